"""Backbones: shapes, parameters and keys against numbers worked out by hand, and torchvision where it is there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdad_bench.kernels import cpp_path, winograd
from kdad_bench.methods.backbones import FACTS, PYRAMIDS, Attention, Cbam, Eca, build
from kdad_bench.methods.backbones.attention import eca_kernel_size
from kdad_bench.methods.backbones.efficientnet_lite import SameConv2d
from kdad_bench.methods.backbones.folding import folded
from kdad_bench.methods.backbones.names import IMAGENET_MEAN, IMAGENET_STD
from tests.methods.torchvision_parity import torchvision

CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "wide_resnet50_2": (256, 512, 1024, 2048),
    "vgg16": (128, 256, 512, 512),
    "efficientnet_lite0": (24, 40, 112, 320),
}
# the published networks' parameters less their classification layers
TRUNK_PARAMETERS = {
    "resnet18": 11_689_512 - 513_000,
    "resnet34": 21_797_672 - 513_000,
    "resnet50": 25_557_032 - 2_049_000,
    "wide_resnet50_2": 68_883_240 - 2_049_000,
    "vgg16": 138_357_544 - 123_642_856,
    "efficientnet_lite0": 4_652_008 - 1_281_000 - 1280 * 320 - 2 * 1280,
}


def resnet18_parameters_by_hand() -> int:
    """Stem, layer1, layer2 and layer3 of ResNet-18: convolutions without bias, two parameters per norm channel."""
    total = 3 * 64 * 49 + 2 * 64 + 4 * (64 * 64 * 9 + 2 * 64)
    for narrow, wide in ((64, 128), (128, 256)):
        total += narrow * wide * 9 + 3 * wide * wide * 9 + narrow * wide + 5 * 2 * wide
    return total


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_truncated_resnet18_has_the_parameters_counted_by_hand() -> None:
    assert parameters(build("resnet18")) == resnet18_parameters_by_hand() == 2_782_784


@pytest.mark.parametrize("name", PYRAMIDS)
def test_the_whole_trunk_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = build(name, strides=(4, 8, 16, 32))
    assert parameters(network) == TRUNK_PARAMETERS[name]


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
def test_taps_have_their_channels_at_their_strides(name: str, height: int, width: int) -> None:
    with torch.device("meta"):
        network = build(name, strides=(4, 8, 16, 32)).eval()
        taps = network(torch.empty(2, 3, height, width))
    shapes = [(2, c, height // s, width // s) for c, s in zip(CHANNELS[name], (4, 8, 16, 32), strict=True)]
    assert [tuple(tap.shape) for tap in taps] == shapes
    assert network.channels == CHANNELS[name] == tuple(FACTS[name].channels.values())


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_lite0"])
def test_a_subset_of_taps_is_the_same_taps_with_fewer_layers(name: str) -> None:
    whole, some = build(name, strides=(4, 8, 16, 32)).eval(), build(name, strides=(8,)).eval()
    some.load_state_dict({key: whole.state_dict()[key] for key in some.state_dict()})
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(some(images)[0], whole(images)[1])
    assert parameters(some) < parameters(whole)


def test_images_are_normalised_inside_by_what_the_weights_expect() -> None:
    resnet, lite = build("resnet18"), build("efficientnet_lite0")
    grey = torch.full((1, 3, 2, 2), 127 / 255)
    assert torch.allclose(lite.normalise(grey), torch.zeros(1), atol=1e-6)
    expected = [(127 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert torch.allclose(resnet.normalise(grey)[0, :, 0, 0], torch.tensor(expected), atol=1e-6)
    assert torch.allclose(lite.normalise(torch.ones(1, 3, 1, 1)), torch.ones(1))  # (255 - 127) / 128
    assert not {"mean", "std"} & set(resnet.state_dict())


def test_an_unknown_name_or_stride_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="teacher 'resnet19' is not known; have: resnet18"):
        build("resnet19")
    for strides in ((2, 4), (), (8, 4), (4, 4)):
        with pytest.raises(ValueError, match="must rise and be among 4, 8, 16, 32"):
            build("resnet18", strides=strides)


@pytest.mark.parametrize("side", [1, 2, 7, 8, 31, 32, 33])
@pytest.mark.parametrize("size", [3, 5])
def test_same_padding_follows_tensorflows_rule(side: int, size: int) -> None:
    convolution = SameConv2d(1, 1, size, stride=2)
    nn.init.ones_(convolution.weight)
    answer = convolution(torch.ones(1, 1, side, side))[0, 0]
    outputs = -(-side // 2)
    missing = max((outputs - 1) * 2 + size - side, 0)
    before = missing // 2  # the odd one comes after
    covered = [sum(0 <= position * 2 - before + tap < side for tap in range(size)) for position in range(outputs)]
    assert answer.shape == (outputs, outputs)
    assert answer.tolist() == [[float(a * b) for b in covered] for a in covered]


@pytest.mark.parametrize(("channels", "size"), [(24, 3), (40, 3), (64, 3), (112, 3), (128, 5), (256, 5), (512, 5)])
def test_eca_kernels_grow_with_the_channels(channels: int, size: int) -> None:
    assert eca_kernel_size(channels) == size


def test_eca_is_its_formula() -> None:
    eca, x = Eca(64), torch.randn(2, 64, 3, 5)
    weights = eca.conv.weight.detach().flatten()
    means = x.mean((2, 3))
    padded = torch.cat([torch.zeros(2, 1), means, torch.zeros(2, 1)], 1)
    scale = torch.stack([torch.sigmoid((padded[:, i : i + 3] * weights).sum(1)) for i in range(64)], 1)
    assert torch.allclose(eca(x), x * scale[:, :, None, None], atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "efficientnet_lite0"])
@pytest.mark.parametrize("kind", [Eca, Cbam])
def test_attention_sits_in_every_block_or_in_each_stages_last(name: str, kind: type[nn.Module]) -> None:
    blocks = {"resnet18": 6, "resnet50": 13, "vgg16": 10, "efficientnet_lite0": 11}[name]
    stages = {"resnet18": 3, "resnet50": 3, "vgg16": 4, "efficientnet_lite0": 5}[name]
    for every, count in ((True, blocks), (False, stages)):
        network = build(name, attention=Attention(kind, every_block=every), batch_norm=True)
        assert sum(isinstance(module, kind) for module in network.modules()) == count
        assert network.eval()(torch.rand(1, 3, 32, 32))[2].shape[-1] == 2


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("resnet18", ["layer1.1", "layer2.1", "layer3.1"]),
        ("resnet50", ["layer1.2", "layer2.3", "layer3.5"]),
        ("efficientnet_lite0", ["_blocks.0", "_blocks.2", "_blocks.4", "_blocks.7", "_blocks.10"]),
    ],
)
def test_attention_of_stages_sits_in_their_last_blocks(name: str, places: list[str]) -> None:
    network = build(name, attention=Attention(Eca, every_block=False))
    found = [key.removesuffix(".attention") for key, module in network.named_modules() if isinstance(module, Eca)]
    assert found == places


def test_attention_of_a_vggs_stage_sits_between_its_last_norm_and_relu() -> None:
    layers = list(
        build("vgg16", attention=Attention(Eca, every_block=False), batch_norm=True).get_submodule("features")
    )  # type: ignore[arg-type]
    places = [index for index, layer in enumerate(layers) if isinstance(layer, Eca)]
    assert len(places) == 4
    for index in places:
        around = [type(layer) for layer in layers[index - 1 : index + 3]]
        assert around == [nn.BatchNorm2d, Eca, nn.ReLU, nn.MaxPool2d]


def test_attention_of_a_residual_block_comes_before_the_addition() -> None:
    class Nothing(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 0

    block = build("resnet18", attention=Attention(Nothing)).layer1[0].eval()  # type: ignore[index,union-attr]
    x = torch.rand(1, 64, 4, 4)
    assert torch.equal(block(x), x)


def test_the_names_are_known_without_torch() -> None:
    code = (
        "import sys; from kdad_bench.methods.backbones import BACKBONES; "
        "from kdad_bench.methods.backbones.weights import find_weights; find_weights('efficientnet_lite0'); "
        "assert len(BACKBONES) == 12; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name in PYRAMIDS if name != "efficientnet_lite0"])
def test_torchvision_has_the_same_keys_and_answers(name: str) -> None:
    theirs = getattr(torchvision().models, name)(weights=None).eval()
    ours = build(name, strides=(4, 8, 16, 32)).eval()
    trunk = {key: value for key, value in theirs.state_dict().items() if not key.startswith(("fc.", "classifier."))}
    assert trunk.keys() == ours.state_dict().keys()
    ours.load_state_dict(trunk)
    images = torch.rand(1, 3, 64, 64)
    x = ours.normalise(images)
    if name == "vgg16":
        expected = theirs.features(x)
    else:
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))
    assert torch.equal(ours(images)[3], expected)


@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (1, 3, 1, 1), (3, 3, 1, 7)], ids=str)
def test_images_are_normalised_alike_in_every_layout(shape: tuple[int, ...]) -> None:
    network, images = build("resnet18", strides=(4,)), torch.rand(shape)
    expected = (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = network.normalise(images.contiguous(memory_format=layout))
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.skipif(cpp_path.missing() is not None, reason="the C++ kernels were not built")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16"])
@pytest.mark.parametrize("attention", [None, Attention(Eca)], ids=["plain", "eca"])
def test_compiled_norms_additions_and_poolings_change_no_bit_of_a_network(
    name: str, attention: Attention | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "pays", lambda: False)  # its convolutions round otherwise
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last)
    found = []
    for path in ("cpp", "torch"):
        monkeypatch.setenv("KDAD_KERNELS", path)
        torch.manual_seed(0)
        network = build(name, strides=(4, 8), attention=attention, batch_norm=name == "vgg16").train()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser, losses = torch.optim.SGD(network.parameters(), 0.01), []
        for _ in range(2):
            loss = sum((tap.square().mean() for tap in network(images)), torch.zeros(()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        with torch.inference_mode():
            taps = folded(network)(images)
        found.append([*losses, *network.parameters(), *network.buffers(), *taps])
    torch.set_num_threads(threads)
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
