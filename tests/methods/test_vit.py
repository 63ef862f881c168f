"""DINOv2's ViTs: keys, numbers of parameters, and what the public code answers from the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdad_bench.methods.backbones import Attention, Eca, build
from kdad_bench.methods.backbones.vit import LAYOUTS, Vit
from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
from tests.methods.fixed_weights import filled, summary, tensor_of, value_of, wave

WIDTHS = {"dinov2_vits14": 384, "dinov2_vitb14": 768, "dinov2_vits14_reg": 384, "dinov2_vitb14_reg": 768}
# DINOv2's code in guojiajeremy/Dinomaly @c5c76d0, with its loader's arguments (no antialiasing, offset 0.1) and the
# weights of `with_fixed_weights`, on `view`: mean, root of the mean square and weighted sum of the first, the fourth
# and the eighth map, and of class and registers
GOLDEN = {
    "dinov2_vits14": (
        (0.006139, 0.799370, -0.010693),
        (0.000565, 0.798820, -0.011699),
        (0.005953, 0.831204, -0.011019),
        (0.005257, 1.278657, -9.019958),
    ),
    "dinov2_vits14_reg": (
        (0.006140, 0.798593, -0.009171),
        (0.000577, 0.797833, -0.011163),
        (0.005984, 0.829345, -0.014531),
        (0.004554, 0.906076, -0.048813),
    ),
}


def with_fixed_weights(name: str) -> Vit:
    """A network whose weights are a function of their names; positions and tokens large enough to be seen."""
    network = filled(lambda: build(name, strides=(14,)))
    assert isinstance(network, Vit)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            tensor.copy_(fixed(key, tensor))
    return network


def fixed(key: str, tensor: Tensor) -> Tensor:
    """The weight that belongs to `key`."""
    return wave(tensor.numel(), key).view(tensor.shape) if tensor.dim() == 3 else value_of(key, tensor)


def view() -> Tensor:
    """One image that is higher than it is wide."""
    return tensor_of(1, 3, 84, 56, name="view")


@pytest.mark.parametrize("name", WIDTHS)
def test_the_ten_blocks_have_the_parameters_counted_by_hand(name: str) -> None:
    width, registers = WIDTHS[name], 4 * name.endswith("_reg")
    attention, perceptron = 4 * width**2 + 4 * width, 8 * width**2 + 5 * width
    one = attention + perceptron + 4 * width + 2 * width  # norms and scales
    first = (3 * 14 * 14 + 1) * width + (1 + 1 + 37 * 37 + registers) * width
    with torch.device("meta"):
        found = sum(parameter.numel() for parameter in build(name, strides=(14,)).parameters())
    assert found == first + 10 * one
    if name == "dinov2_vitb14":  # published: 86,580,480 with two more blocks, a norm and a mask token
        assert found == 86_580_480 - 2 * one - 2 * width - width


def keys_of(name: str, blocks: int) -> set[str]:
    """The published checkpoint's keys up to so many blocks."""
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    found = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    found |= {"register_tokens"} if name.endswith("_reg") else set()
    for index in range(blocks):
        found |= {f"blocks.{index}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
        found |= {f"blocks.{index}.{scale}.gamma" for scale in ("ls1", "ls2")}
    return found


@pytest.mark.parametrize("name", WIDTHS)
def test_the_keys_are_those_of_the_published_checkpoints(name: str) -> None:
    with torch.device("meta"):
        network = build(name, strides=(14,))
    assert set(network.state_dict()) == keys_of(name, 10)


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize(("height", "width"), [(14, 14), (84, 56), (392, 392), (518, 518)])
def test_taps_are_eight_maps_and_a_row_of_class_and_registers(name: str, height: int, width: int) -> None:
    with torch.device("meta"):
        network = build(name, strides=(14,))
        taps = network(torch.empty(2, 3, height, width))
    registers = LAYOUTS[name][2]
    grid, row = (height // 14, width // 14), (1, 1 + registers)
    assert [tuple(tap.shape) for tap in taps] == [(2, WIDTHS[name], *grid)] * 8 + [(2, WIDTHS[name], *row)]
    assert network.channels == (WIDTHS[name],) * 9
    assert network.strides == (14,)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov2_vits14_reg"])
def test_the_answers_of_fixed_weights_are_the_public_codes(name: str) -> None:
    with torch.no_grad():
        taps = with_fixed_weights(name)(view())
    for index, expected in zip((0, 3, 7, 8), GOLDEN[name], strict=True):
        assert summary(taps[index]) == pytest.approx(expected, rel=1e-4, abs=2e-5), index


def test_positions_of_the_size_they_were_learnt_at_are_taken_as_they_are() -> None:
    network = with_fixed_weights("dinov2_vits14")
    _, grid = network.positions(37, 37)
    assert torch.equal(grid, network.pos_embed[:, 1:].transpose(1, 2).reshape(1, 384, 37, 37))
    _, smaller = network.positions(6, 4)
    assert tuple(smaller.shape) == (1, 384, 6, 4)


def test_sides_that_are_no_multiple_of_a_patch_attention_and_other_strides_are_refused() -> None:
    network = build("dinov2_vits14", strides=(14,))
    with pytest.raises(ValueError, match="takes multiples of 14 px"):
        network(torch.rand(1, 3, 32, 28))
    with pytest.raises(ValueError, match="takes no attention"):
        build("dinov2_vits14", strides=(14,), attention=Attention(Eca))
    with pytest.raises(ValueError, match="must rise and be among 14"):
        build("dinov2_vits14")


def test_a_published_checkpoint_loads_and_another_networks_does_not(tmp_path: Path) -> None:
    """With its last blocks, its norm and its mask token, which no tap needs; its hash stands in the row."""
    with torch.device("meta"):
        shapes = build("dinov2_vits14_reg", strides=(14,)).state_dict()
    whole = {key: 0.1 * tensor_of(*value.shape, name=key) for key, value in shapes.items()}
    published = whole | {
        "mask_token": torch.zeros(1, 384),
        "norm.weight": torch.ones(384),
        "blocks.11.norm1.bias": torch.ones(384),
    }
    torch.save(published, tmp_path / "mine.pth")
    teacher, info = load_teacher("dinov2_vits14_reg", source=tmp_path / "mine.pth")
    assert teacher.strides == (14,)
    assert torch.equal(teacher.state_dict()["register_tokens"], whole["register_tokens"])
    assert len(info.sha256) == 64
    with pytest.raises(WeightsError, match="not weights of dinov2_vits14: has 'register_tokens'"):
        load_teacher("dinov2_vits14", source=tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match="not weights of dinov2_vitb14_reg: 'cls_token' has shape"):
        load_teacher("dinov2_vitb14_reg", source=tmp_path / "mine.pth")
    torch.save({key: value for key, value in whole.items() if key != "pos_embed"}, tmp_path / "less.pth")
    with pytest.raises(WeightsError, match="lacks 'pos_embed'"):
        load_teacher("dinov2_vits14_reg", source=tmp_path / "less.pth")


def test_a_file_in_torch_hubs_cache_is_taken_if_it_is_the_published_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth"
    path.parent.mkdir(parents=True)
    torch.save({"cls_token": torch.zeros(1, 1, 384)}, path)
    with pytest.raises(WeightsError, match="not the published file"):
        load_teacher("dinov2_vits14")
