"""FractalAD's head, a flow-aligned feature pyramid (SFNet: Li et al., ECCV 2020, arXiv 2002.10120), and its losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import Layers
from kdad_bench.methods.grid_sampling import sampled

DICE_SMOOTHING = 1.0  # official code


def conv_norm_relu(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU. The bias does nothing before a batch norm; the official code has it."""
    return Layers(nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """`maps` [N, C, h, w] at `size` (H, W), bilinear."""
    return F.interpolate(maps, (size[0], size[1]), mode="bilinear", align_corners=False)


def warp(maps: Tensor, flow: Tensor) -> Tensor:
    """`maps` [N, C, h, w] sampled where `flow` [N, 2, h, w] (x, y, in pixels) points; zero beyond the border.

    The coordinates are divided by w - 1 and h - 1 but sampled with align_corners=False: zero flow is therefore not the
    identity but a slight magnification, up to half a pixel at the border. The official code does so; kept for parity.
    """
    high, wide = maps.shape[-2:]
    rows = torch.arange(high, device=flow.device, dtype=torch.float32)[:, None]
    columns = torch.arange(wide, device=flow.device, dtype=torch.float32)
    moved = flow.float()
    x = 2 * (columns + moved[:, 0]) / max(wide - 1, 1) - 1
    y = 2 * (rows + moved[:, 1]) / max(high - 1, 1) - 1
    grid = torch.stack([x, y], dim=-1).to(maps.dtype)
    return sampled(maps, grid)


class FlowAlignment(nn.Module):
    """Bring a coarse map to a fine one's size after a learnt flow has aligned it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.flow = nn.Conv2d(2 * width, 2, 3, padding=1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """`coarse` [N, C, h, w] aligned and resized to `fine` [N, C, H, W]."""
        flow = self.flow(torch.cat([fine, resize(coarse, fine.shape[-2:])], dim=1))
        return resize(warp(coarse, resize(flow, coarse.shape[-2:])), fine.shape[-2:])


class SegmentationHead(nn.Module):
    """Feature maps of `channels` at rising strides in, one map of logits out.

    `width` channels inside; None: as many as the shallowest map has (official code).
    """

    def __init__(self, channels: Sequence[int], width: int | None = None) -> None:
        super().__init__()
        width = channels[0] if width is None else width
        self.laterals = nn.ModuleList(conv_norm_relu(c, width, 1) for c in channels)
        self.alignments = nn.ModuleList(FlowAlignment(width) for _ in channels[1:])
        self.smoothings = nn.ModuleList(conv_norm_relu(width, width, 3) for _ in channels[1:])
        self.classifier = nn.Sequential(
            conv_norm_relu(len(channels) * width, width, 3), nn.Conv2d(width, 1, 3, padding=1)
        )

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Logits [N, H, W] at `size` (H, W) of `features` [N, C_k, h_k, w_k], shallow first.

        What is passed down to the next finer level is the smoothed one (official code).
        """
        laterals = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        top = laterals[-1]
        levels = [top]
        for k in reversed(range(len(laterals) - 1)):
            top = self.smoothings[k](laterals[k] + self.alignments[k](laterals[k], top))
            levels.append(top)
        finest = levels[-1].shape[-2:]
        pyramid = [level if level.shape[-2:] == finest else resize(level, finest) for level in reversed(levels)]
        logits = self.classifier(torch.cat(pyramid, dim=1))
        return resize(logits, size)[:, 0]


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """1 - (2 I + 1) / (sum p + sum g + 1) over the whole batch; both [N, H, W], in [0, 1]."""
    overlap = (probabilities * masks).sum()
    return 1 - (2 * overlap + DICE_SMOOTHING) / (probabilities.sum() + masks.sum() + DICE_SMOOTHING)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean binary cross-entropy plus Dice loss of `logits` [N, H, W] against `masks` [N, H, W] (0 or 1); fp32."""
    logits = logits.float()
    return F.binary_cross_entropy_with_logits(logits, masks) + dice_loss(logits.sigmoid(), masks)
