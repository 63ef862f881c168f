"""Patch description networks (PDN) of EfficientAD: Batzner, Heckler, König, WACV 2024, arXiv 2303.14535, Tables 5, 6.

A few plain convolutions without norms: each output describes 33 x 33 px. The keys are those of nelson1425/EfficientAD,
whose files of weights are `teacher_small.pth` and `teacher_medium.pth`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import inference_conv
from kdad_bench.methods.backbones.backbone import Backbone
from kdad_bench.methods.backbones.names import facts_of

POOL = 0  # in a layout: 2 x 2 average pooling
# (kernel, times the width or 0 for the outputs, padding where the network is padded), or POOL, POOL, padding
LAYOUTS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "small": ((4, 1, 3), (POOL, POOL, 1), (4, 2, 3), (POOL, POOL, 1), (3, 2, 1), (4, 0, 0)),
    "medium": ((4, 2, 3), (POOL, POOL, 1), (4, 4, 3), (POOL, POOL, 1), (1, 4, 0), (3, 4, 1), (4, 0, 0), (1, 0, 0)),
}
SIZES = {"pdn_small": "small", "pdn_medium": "medium"}  # the published networks
WIDTH = 128  # of the small network's first layer; the medium one's has twice that
LOST = 8  # rows of four pixels that a network without padding does not describe, half of them before the first


def layers(size: str, width: int, outputs: int, *, padding: bool) -> list[nn.Module]:
    """The layers of the network `size`, one of LAYOUTS; images [N, 3, H, W] -> [N, outputs, H / 4, W / 4].

    Without `padding` the answer has 8 rows and columns less.
    """
    found: list[nn.Module] = []
    inputs = 3
    for kernel, times, pad in LAYOUTS[size]:
        pad = pad if padding else 0
        if kernel == POOL:
            found.append(nn.AvgPool2d(2, 2, pad))
            continue
        channels = times * width or outputs
        found += [nn.Conv2d(inputs, channels, kernel, padding=pad), nn.ReLU(inplace=True)]
        inputs = channels
    return found[:-1]  # the last answers with negative values too


def through(network: Iterable[nn.Module], x: Tensor) -> Tensor:
    """x through the layers of `network` in turn; in an inference copy a rectified convolution is one call."""
    steps = list(network)
    for layer, following in zip(steps, [*steps[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            x = convolved(layer, x, rectified=isinstance(following, nn.ReLU))
        elif not isinstance(layer, nn.ReLU):
            x = layer(x)
    return x


def convolved(layer: nn.Module, x: Tensor, *, rectified: bool) -> Tensor:
    """The convolution `layer` of x, and what is negative of it made 0 if it is to be rectified."""
    assert isinstance(layer, nn.Conv2d)
    rows, columns = map(int, layer.padding)
    fused = inference_conv(layer, x, lambda _: ((rows, rows), (columns, columns)), inf if rectified else None)
    if fused is not None:
        return fused
    y: Tensor = layer(x)
    return F.relu_(y) if rectified else y


class Pdn(Backbone):
    """A published network as a teacher: padded, as it was distilled, so that its tap has H / 4 rows."""

    def __init__(self, name: str, strides: tuple[int, ...]) -> None:
        super().__init__(facts_of(name), strides)
        self.size = SIZES[name]
        for index, layer in enumerate(layers(self.size, WIDTH, self.channels[0], padding=True)):
            self.add_module(str(index), layer)

    def taps(self, normalised: Tensor) -> tuple[Tensor, ...]:
        return (through(self.children(), normalised),)
