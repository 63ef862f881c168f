"""DeSTSeg's networks: the student that repairs features, the products of both networks' features, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import Layers
from kdad_bench.methods.backbones import Backbone, build, facts_of
from kdad_bench.methods.backbones.resnet import BasicBlock, Bottleneck, initialise
from kdad_bench.methods.distillation import Taps

DEEPEST = 32  # stride of the code between encoder and decoder
BLOCKS = 2  # of every stage of the decoder, and of the head's first
RATES = (6, 12, 18)  # of the head's dilated convolutions: official code, on 64 x 64


# ---- the networks


def residual_stage(inputs: int, outputs: int) -> nn.Sequential:
    """ResNet-18's blocks at one resolution."""
    return nn.Sequential(*(BasicBlock(inputs if k == 0 else outputs, outputs, 1, 1, None) for k in range(BLOCKS)))


def begin_at_shortcuts(network: nn.Module) -> None:
    """Make each residual block of a ResNet its shortcut: a last norm of 0, as timm's networks begin (official code)."""
    for module in network.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
            nn.init.zeros_(last.weight)


def quicken(network: nn.Module, momentum: float) -> None:
    """Raise the momentum of each batch norm that has a lower one: Lite0's 0.01 is too slow for a few hundred steps."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, momentum)


class DenoisingStudent(nn.Module):
    """The teacher's architecture down to stride 32, from random weights, and a decoder of its taps; no shortcuts.

    Where the teacher's taps can be negative (`signed`) a 1 x 1 convolution reads each of the decoder's.
    """

    def __init__(self, teacher: Backbone, *, signed: bool) -> None:
        super().__init__()
        self.strides = teacher.strides
        deep = facts_of(teacher.name).channels[DEEPEST]
        widths = (deep, deep, *reversed(teacher.channels))
        self.stages = nn.ModuleList(residual_stage(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.heads = nn.ModuleList(nn.Conv2d(c, c, 1) if signed else nn.Identity() for c in teacher.channels)
        initialise(self)
        self.encoder = build(teacher.name, strides=(DEEPEST,), batch_norm=True)
        begin_at_shortcuts(self.encoder)

    def forward(self, images: Tensor) -> Taps:
        """Taps of `images` [N, 3, S, S] in [0, 1], shaped as the teacher's, shallow first."""
        height, width = images.shape[-2:]
        x = self.stages[0](self.encoder(images)[0])
        found = []
        for stage, stride in zip(self.stages[1:], reversed(self.strides), strict=True):
            x = stage(enlarged(x, (height // stride, width // stride)))
            found.append(x)
        return tuple(head(tap) for head, tap in zip(self.heads, reversed(found), strict=True))


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """`maps` [N, C, h, w] at `size` (H, W), bilinear; as they are if they have it."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, (size[0], size[1]), mode="bilinear", align_corners=False)


def conv_norm_relu(inputs: int, outputs: int, size: int, rate: int = 1) -> nn.Sequential:
    """Convolution dilated by `rate`, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=rate * (size // 2), dilation=rate, bias=False)
    return Layers(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class AtrousPyramid(nn.Module):
    """ASPP (Chen et al. 2017, arXiv 1706.05587) without its 1 x 1 branch: three dilated convolutions and the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = conv_norm_relu(width, width, 1)
        self.branches = nn.ModuleList(conv_norm_relu(width, width, 3, rate) for rate in RATES)
        self.fusion = conv_norm_relu((1 + len(RATES)) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        fused: Tensor = self.fusion(torch.cat([mean, *(branch(x) for branch in self.branches)], 1))
        return fused


class SegmentationHead(nn.Module):
    """Products of features in, logits out, at the finest tap's resolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = residual_stage(inputs, width)
        initialise(self)
        self.rest = nn.Sequential(AtrousPyramid(width), conv_norm_relu(width, width, 3), nn.Conv2d(width, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, h, w]."""
        logits: Tensor = self.rest(self.body(features))
        return logits[:, 0]


def products(teacher: Taps, student: Taps) -> Tensor:
    """[N, sum of C_k, h, w] at the finest tap: minus the product of the normalised features, channel by channel.

    Summed over a tap's channels it is minus the cosine.
    """
    size = teacher[0].shape[-2:]
    pairs = zip(teacher, student, strict=True)
    return torch.cat([enlarged(-F.normalize(t.float()) * F.normalize(s.float()), size) for t, s in pairs], 1)


class StudentAndHead(nn.Module):
    """Everything that learns."""

    def __init__(self, network: DenoisingStudent, head: SegmentationHead) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images: Tensor, teacher: Taps) -> Tensor:
        """Logits [N, h, w] of `images` [N, 3, S, S] and the teacher's taps of them."""
        logits: Tensor = self.head(products(teacher, self.network(images)))
        return logits
