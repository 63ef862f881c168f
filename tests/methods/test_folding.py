"""Folded inference copies: the same answers, and never older than the network they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdad_bench.methods.backbones import Attention, Cbam, Eca, build
from kdad_bench.methods.backbones.folding import Folded, folded
from kdad_bench.methods.reverse import Bottleneck, Decoder
from tests.methods.toys import teacher_of


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
