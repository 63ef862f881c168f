"""What networks begin with: the deviation of every layer's random weights, norms at identity, how many there are."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import nn

from kdad_bench.methods.backbones import FACTS, PYRAMIDS, Attention, Backbone, Cbam, Eca, build
from kdad_bench.methods.distillation import Student
from kdad_bench.methods.dual_student import DeepestTap, ResidualFusion
from kdad_bench.methods.mkd import Cloner
from kdad_bench.methods.reverse import Bottleneck, Decoder

ENOUGH = 2000  # weights of a layer whose deviation is measured
EXPANSION = {"resnet50": 4, "wide_resnet50_2": 4}
WIDEN = {"wide_resnet50_2": 2}
BLOCKS = {"resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3), "wide_resnet50_2": (3, 4, 6, 3)}


def fan_out(layer: nn.Conv2d) -> int:
    return layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] // layer.groups


def convolutions(network: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    found = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    return [(name, layer) for name, layer in found if layer.weight.numel() >= ENOUGH]


def assert_normal(name: str, weight: torch.Tensor, deviation: float) -> None:
    """A normal distribution about zero: its deviation within five standard errors, its tails as long as normal ones."""
    count = weight.numel()
    assert float(weight.detach().std()) == pytest.approx(deviation, rel=5 / sqrt(2 * count)), name
    assert abs(float(weight.detach().mean())) < 5 * deviation / sqrt(count), name
    beyond = float((weight.detach().abs() > 1.8 * deviation).float().mean())  # a uniform one ends at 1.73 deviations
    assert beyond > 0.04, name


def reverse_networks(name: str) -> list[nn.Module]:
    teacher = build(name)
    return [Bottleneck(teacher), Decoder(teacher, signed=False), ResidualFusion(teacher), DeepestTap(teacher)]


@pytest.mark.parametrize("name", [name for name in PYRAMIDS if name != "wide_resnet50_2"])
def test_convolutions_begin_with_he_by_fan_out(name: str) -> None:
    """torchvision's ResNets and VGGs, and EfficientNet's reference (per group)."""
    torch.manual_seed(0)
    for key, layer in convolutions(build(name, strides=(4, 8, 16, 32))):
        assert_normal(f"{name} {key}", layer.weight, sqrt(2 / fan_out(layer)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_what_lies_between_and_the_decoder_begin_as_reverse_distillations_do(name: str) -> None:
    """He by fan-out for convolutions; the official code leaves the transposed ones at PyTorch's uniform default."""
    torch.manual_seed(0)
    for network in reverse_networks(name):
        for key, layer in convolutions(network):
            assert_normal(f"{type(network).__name__} {key}", layer.weight, sqrt(2 / fan_out(layer)))
        for key, module in network.named_modules():
            if isinstance(module, nn.ConvTranspose2d):
                bound = 1 / sqrt(module.weight.shape[1] * 4)  # kaiming_uniform(sqrt 5): 1 / sqrt(fan in)
                assert bound * 0.98 < float(module.weight.detach().abs().max()) <= bound, key


def test_the_cloner_begins_with_xaviers_uniform_weights() -> None:
    torch.manual_seed(0)
    cloner = Cloner(build("vgg16", strides=(4, 8, 16, 32)), full_width=False, signed=False)
    layers = convolutions(cloner)
    assert len(layers) > 5
    for key, layer in layers:
        bound = sqrt(6 / (9 * (layer.in_channels + layer.out_channels)))
        largest = float(layer.weight.detach().abs().max())
        assert bound * 0.99 < largest <= bound * (1 + 1e-6), key
        assert float(layer.weight.detach().std()) == pytest.approx(bound / sqrt(3), rel=0.05), key
        assert layer.bias is None


@pytest.mark.parametrize("name", PYRAMIDS)
def test_norms_begin_at_identity_and_biases_at_zero(name: str) -> None:
    with torch.random.fork_rng():
        networks = [build(name, batch_norm=True), *(reverse_networks(name) if name != "wide_resnet50_2" else [])]
    for network in networks:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert bool((module.weight == 1).all())
                assert bool((module.bias == 0).all())
                assert bool((module.running_mean == 0).all())  # type: ignore[union-attr]
                assert bool((module.running_var == 1).all())  # type: ignore[union-attr]
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                assert bool((module.bias == 0).all())


def norm(channels: int) -> int:
    return 2 * channels


def stage(name: str, inputs: int, planes: int, count: int, *, first: int = 2) -> int:
    """Parameters of a residual stage whose first block changes the shape: convolutions without bias, and norms."""
    outputs, total = planes * EXPANSION.get(name, 1), 0
    for block in range(count):
        into = inputs if block == 0 else outputs
        if name in EXPANSION:
            inner = planes * WIDEN.get(name, 1)
            total += into * inner + 9 * inner * inner + inner * outputs + 2 * norm(inner) + norm(outputs)
        else:
            total += 9 * into * outputs + 9 * outputs * outputs + 2 * norm(outputs)
        if block == 0 and (first != 1 or into != outputs):
            total += into * outputs + norm(outputs)
    return total


def embedding(name: str, inputs: int) -> int:
    planes = FACTS[name].channels[32] // EXPANSION.get(name, 1)
    return stage(name, inputs, planes, BLOCKS.get(name, (2, 2, 2, 2))[3])


def fusion(name: str, fed: int = 1) -> int:
    shallow, middle, deep = (FACTS[name].channels[stride] for stride in (4, 8, 16))
    return 9 * (fed * shallow * middle + middle * deep + fed * middle * deep) + norm(middle) + 2 * norm(deep)


def decoder(name: str) -> int:
    """Mirrored stages; the first block of each doubles the resolution by transposed 2 x 2 convolutions, twice."""
    total, inputs = 0, FACTS[name].channels[32]
    for stride, count in zip((16, 8, 4), BLOCKS.get(name, (2, 2, 2, 2))[:3], strict=True):
        outputs = FACTS[name].channels[stride]
        inner = outputs // 4 * WIDEN.get(name, 1)
        for block in range(count):
            into, first = (inputs, True) if block == 0 else (outputs, False)
            if name in EXPANSION:
                total += into * inner + (4 if first else 9) * inner * inner + inner * outputs
                total += 2 * norm(inner) + norm(outputs)
            else:
                total += (4 * into if first else 9 * outputs) * outputs + 9 * outputs * outputs + 2 * norm(outputs)
            total += 4 * into * outputs + norm(outputs) if first else 0
        inputs = outputs
    return total


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# the same numbers once more, written down: fusion and embedding (RD4AD's bottleneck), decoder
WRITTEN = {
    "resnet18": (11_680_000, 3_703_168),
    "wide_resnet50_2": (58_885_120, 24_917_504),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_every_module_has_the_parameters_counted_by_hand(name: str) -> None:
    with torch.device("meta"):
        teacher = build(name)
        deep, fused = teacher.channels[2], fusion(name)
        counted = {
            "bottleneck": (Bottleneck(teacher), fused + embedding(name, 3 * deep)),
            "bottleneck, two": (Bottleneck(teacher, 2), fusion(name, 2) + embedding(name, 4 * deep)),
            "decoder": (Decoder(teacher, signed=False), decoder(name)),
            "residual": (ResidualFusion(teacher), fused + 3 * deep * deep + norm(deep) + embedding(name, deep)),
            "residual, two": (
                ResidualFusion(teacher, 2),
                fusion(name, 2) + 4 * deep * deep + norm(deep) + embedding(name, deep),
            ),
            "deepest": (DeepestTap(teacher), embedding(name, deep)),
            "deepest, two": (DeepestTap(teacher, 2), embedding(name, 2 * deep)),
        }
    for what, (network, count) in counted.items():
        assert parameters(network) == count, what
    if name in WRITTEN:
        assert (counted["bottleneck"][1], counted["decoder"][1]) == WRITTEN[name]


def blocks_of(teacher: Backbone) -> list[int]:
    """Output widths of the blocks that attention sits in."""
    with torch.device("meta"):
        network = build(teacher.name, attention=Attention(Width))
    return [module.channels for module in network.modules() if isinstance(module, Width)]


class Width(nn.Module):
    """Keeps the width it was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


@pytest.mark.parametrize("name", [name for name in PYRAMIDS if name != "vgg16"])
def test_a_student_is_its_teacher_plus_attention_plus_heads(name: str) -> None:
    with torch.device("meta"):
        teacher = build(name)
        plain = parameters(Student(teacher, standardised=False))
        eca = parameters(Student(teacher, standardised=False, attention=Attention(Eca)))
        cbam = parameters(Student(teacher, standardised=False, attention=Attention(Cbam)))
        shifted = parameters(Student(teacher, standardised=True))
    widths = blocks_of(teacher)
    assert plain == parameters(teacher)
    assert eca - plain == sum(3 if width < 128 else 5 for width in widths)
    assert cbam - plain == sum(2 * width * max(width // 16, 4) + 98 for width in widths)
    assert shifted - plain == (0 if teacher.signed else 2 * sum(teacher.channels))
    for strides in ((8,), (4, 8, 16, 32)):
        with torch.device("meta"):
            assert Student(build(name, strides=strides), standardised=False).network.strides == strides
