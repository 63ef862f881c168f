"""Folded inference copies: the same answers, and never older than the network they stand for."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from kdad_bench.kernels import layers
from kdad_bench.kernels.digest import digests
from kdad_bench.methods.backbones import Attention, Cbam, Eca, build, folding
from kdad_bench.methods.backbones.folding import Folded, folded
from kdad_bench.methods.reverse import Bottleneck, Decoder
from tests.methods.toys import teacher_of
from tests.writes import WRITES


def disturbed(network: nn.Module) -> nn.Module:
    """Norms as after training, so that leaving one out would show."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnet18", None),
        ("resnet50", None),
        ("vgg16", None),
        ("efficientnet_lite0", None),
        ("resnet18", Eca),
        ("vgg16", Eca),
        ("efficientnet_lite0", Cbam),
    ],
)
def test_a_folded_backbone_has_no_norms_and_the_same_answers(name: str, kind: type[nn.Module] | None) -> None:
    network = disturbed(build(name, attention=Attention(kind) if kind else None, batch_norm=True))
    copy = folded(network)
    assert norms(network) > 0
    assert norms(copy) == 0
    images = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        for ours, theirs in zip(copy(images), network(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_a_folded_decoder_has_no_norms_and_the_same_answers(name: str) -> None:
    teacher = build(name)
    student = disturbed(nn.Sequential(Bottleneck(teacher), Decoder(teacher, signed=False)))
    taps = tuple(torch.randn(1, c, 32 // s, 32 // s) for c, s in zip(teacher.channels, teacher.strides, strict=True))
    copy = folded(student)
    assert norms(copy) == 0
    with torch.no_grad():
        for ours, theirs in zip(copy(taps), student(taps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4 * float(theirs.abs().max()))


def test_folding_leaves_the_network_as_it_was() -> None:
    network = teacher_of("efficientnet_lite0")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_copy_is_made_anew_when_a_weight_or_a_norms_buffer_changes() -> None:
    network = build("resnet18", strides=(4,)).eval()
    copy, images = Folded(network), torch.rand(1, 3, 32, 32)
    first = copy.current()
    assert copy.current() is first
    with torch.no_grad():
        network.conv1.weight.mul_(2)  # type: ignore[union-attr,operator]
    second = copy.current()
    assert second is not first
    network.train()(images)
    network.eval()
    assert copy.current() is not second
    third = copy.current()
    network.load_state_dict(build("resnet18", strides=(4,)).state_dict())
    assert copy.current() is not third
    torch.testing.assert_close(copy(images)[0], network(images)[0], rtol=1e-4, atol=1e-4)


def test_a_copy_made_while_scoring_serves_training() -> None:
    copy = Folded(build("resnet18", strides=(4,)).eval())
    with torch.inference_mode():
        copy(torch.rand(1, 3, 32, 32))
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    copy(images)[0].sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


def replaced_weight(network: nn.Module) -> None:
    network.conv1.weight = nn.Parameter(torch.randn_like(network.conv1.weight))  # type: ignore[union-attr,arg-type,call-overload]


def replaced_layer(network: nn.Module) -> None:
    network.bn1 = nn.Identity()


def assigned_weights(network: nn.Module) -> None:
    network.load_state_dict(build("resnet18", strides=(4,)).state_dict(), assign=True)


def pruned(network: nn.Module) -> None:
    prune.l1_unstructured(network.conv1, "weight", 0.9)


def weight_normed(network: nn.Module) -> None:
    parametrizations.weight_norm(network.conv1)
    with torch.no_grad():
        network.conv1.parametrizations.weight.original0.mul_(3)  # type: ignore[union-attr,operator]


def spectrally_normed(network: nn.Module) -> None:
    parametrizations.spectral_norm(network.conv1)


@pytest.mark.parametrize(
    "change", [replaced_weight, replaced_layer, assigned_weights, pruned, weight_normed, spectrally_normed]
)
def test_a_copy_is_made_anew_when_layers_or_tensors_are_replaced(change: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    network = disturbed(build("resnet18", strides=(4,)))
    copy, images = Folded(network), torch.rand(1, 3, 32, 32)
    before = copy(images)[0]
    change(network)
    network.eval()
    after, expected = copy(images)[0], network(images)[0].detach()
    largest = float(expected.abs().max())
    assert not torch.allclose(after, before, rtol=1e-3, atol=1e-2 * largest)
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=2e-4 * largest)
    assert copy.current() is copy.current()


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("what", ["parameters", "buffers"])
def test_no_write_on_a_cpu_goes_unseen(what: str, write: str, inference: bool) -> None:
    """Neither by the inference copy nor by the frozen network itself, as of a teacher that is a moving average."""
    torch.manual_seed(0)
    network = disturbed(build("resnet18", strides=(4, 8))).requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copy, images = Folded(network), torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(inference):
        before = [call(images) for call in (copy, network)]
    for tensor in getattr(network, what)():
        if tensor.is_floating_point():
            WRITES[write](tensor, torch.rand_like(tensor) * tensor.abs().mean())
    with torch.inference_mode(inference):
        fresh = deepcopy(network)
        for old, found, wanted in zip(before, (copy, network), (folded(fresh), fresh), strict=True):
            for taps in zip(found(images), wanted(images), old, strict=True):
                assert torch.equal(torch.nan_to_num(taps[0]), torch.nan_to_num(taps[1]))
                assert not torch.equal(taps[0], taps[2])


@pytest.mark.parametrize(("name", "stride"), [("efficientnet_lite0", 8), ("vgg16", 8), ("pdn_small", 4)])
def test_a_moving_average_through_data_is_followed_in_every_backbone(name: str, stride: int) -> None:
    torch.manual_seed(0)
    network = disturbed(build(name, strides=(stride,), batch_norm=True)).requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copy, images = Folded(network), torch.rand(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        for tensor in network.parameters():
            tensor.data.mul_(0.9).add_(torch.rand_like(tensor) * 0.1 * tensor.abs().mean())
        with torch.no_grad():
            fresh = deepcopy(network)
            for call, again in ((copy, folded(fresh)), (network, fresh)):
                for found, wanted in zip(call(images), again(images), strict=True):
                    assert torch.equal(found, wanted)


def test_the_same_bytes_read_in_another_order_are_other_weights() -> None:
    network = build("resnet18", strides=(4,)).eval()
    copy, images = Folded(network), torch.rand(1, 3, 32, 32)
    copy(images)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[0] == module.weight.shape[1]:
            module.weight.data = module.weight.data.transpose(0, 1)
    torch.testing.assert_close(copy(images)[0], network(images)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_call_reads_the_weights_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the network: nobody else has the copy, whose own are not read."""
    copy, images = Folded(build(name, strides=(4, 8)).eval()), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        copy(images)
        read: list[int] = []

        def noted(starts: Sequence[int], sizes: Sequence[int]) -> list[int]:
            read.extend(starts)
            return digests(starts, sizes)

        for module in (folding, layers):
            monkeypatch.setattr(module, "digests", noted)
        copy(images)
    assert sorted(read) == sorted(tensor.data_ptr() for tensor in (*copy.network.parameters(), *copy.network.buffers()))


def test_a_write_to_the_copy_itself_is_seen_where_pytorch_counts_it() -> None:
    copy, images = Folded(build("resnet18", strides=(4,)).eval()), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = copy(images)[0]
        for tensor in copy.current().parameters():
            tensor.mul_(2)
        assert not torch.equal(copy(images)[0], before)
        torch.testing.assert_close(copy(images)[0], deepcopy(copy.current())(images)[0])


def test_a_copy_can_be_forgotten() -> None:
    network = disturbed(build("resnet18", strides=(4,)))
    copy, images = Folded(network), torch.rand(1, 3, 32, 32)
    copy(images)
    network.bn1.eps = 1.0  # type: ignore[union-attr]
    copy.forget()
    torch.testing.assert_close(copy(images)[0], network(images)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_network_that_has_scored_can_be_copied_and_saved(name: str) -> None:
    copy, images = Folded(build(name, strides=(4,)).eval()), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = copy(images)[0]
        inner = deepcopy(copy.current())
        again, loaded = deepcopy(copy), pickle.loads(pickle.dumps(copy))
        assert torch.equal(inner(images)[0], expected)
        assert torch.equal(again(images)[0], expected)
        assert torch.equal(loaded(images)[0], expected)
        again.network.get_parameter(next(iter(dict(again.network.named_parameters())))).mul_(2)
        assert not torch.equal(again(images)[0], expected)
        assert torch.equal(copy(images)[0], expected)


def test_a_network_made_in_inference_mode_can_be_folded() -> None:
    with torch.inference_mode():
        copy = Folded(build("efficientnet_lite0", strides=(4,)).eval())
        images = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(copy(images)[0], copy.network(images)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_folded_copy_can_be_traced() -> None:
    network = disturbed(build("efficientnet_lite0", strides=(4,)))
    copy, images = folded(network), torch.rand(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        copy(images)
        traced = torch.jit.trace(copy, images)
        torch.testing.assert_close(traced(images)[0], network(images)[0], rtol=1e-3, atol=1e-3)


def test_bf16_networks_answer_in_bf16_whatever_the_layout() -> None:
    copy = folded(build("efficientnet_lite0", strides=(4,)))
    for layout in (torch.contiguous_format, torch.channels_last):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert copy(torch.rand(1, 3, 32, 32).contiguous(memory_format=layout))[0].dtype == torch.bfloat16
