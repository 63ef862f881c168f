"""Channel and spatial attention for students: ECA (Wang et al., CVPR 2020) and CBAM (Woo et al., ECCV 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor, nn

REDUCTION = 16  # CBAM, section 3: the bottleneck of its shared perceptron


@dataclass(frozen=True, slots=True)
class Attention:
    """Which attention a backbone gets and where: after the last norm of every block, or of each stage's last block."""

    module: Callable[[int], nn.Module]  # channels -> module
    every_block: bool = True


def attention_at(attention: Attention | None, channels: int, *, last: bool) -> nn.Module | None:
    """The attention module of a block that is (`last`) or is not the last of its stage."""
    if attention is None or not (attention.every_block or last):
        return None
    return attention.module(channels)


def eca_kernel_size(channels: int, gamma: float = 2, bias: float = 1) -> int:
    """k = |log2(C) / gamma + b / gamma|_odd (ECA, eq. 12): 64 -> 3, 128 -> 5, 256 -> 5, 512 -> 5.

    A tie (C = 128 gives 4) is rounded up: the integer part, plus one when that is even.
    """
    size = int(abs((log2(channels) + bias) / gamma))
    return size if size % 2 else size + 1


class Eca(nn.Module):
    """Y = sigmoid(Conv1d_k(GAP(X))) * X: each channel is scaled by its k neighbours' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        size = eca_kernel_size(channels)
        self.conv = nn.Conv1d(1, 1, size, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3)).unsqueeze(1)  # [N, 1, C]
        weights = torch.sigmoid(self.conv(means)).squeeze(1)  # [N, C]
        return x * weights[:, :, None, None]


class Cbam(nn.Module):
    """Channel attention, then spatial attention, each from average and maximum pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // REDUCTION, 4)
        self.perceptron = nn.Sequential(
            nn.Linear(channels, inner, bias=False), nn.ReLU(), nn.Linear(inner, channels, bias=False)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.perceptron(x.mean((2, 3))) + self.perceptron(x.amax((2, 3)))  # [N, C]
        x = x * torch.sigmoid(pooled)[:, :, None, None]
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)  # [N, 2, H, W]
        return x * torch.sigmoid(self.spatial(summary))
