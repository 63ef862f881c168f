"""MKD, multiresolution knowledge distillation: Salehi et al., CVPR 2021, arXiv 2011.11108.

A small cloner learns value and direction of a frozen source's activations; an image's score is the loss itself, and
its map is the gradient of that score with respect to the input. Re-implemented from the formulas; the differences from
the authors' code (per-image normalisation of maps, a noise level squared by a slip) are the variant `official`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import flattened_cosine, pixel_discrepancy
from kdad_bench.methods.backbones import Backbone

CONVOLUTIONS = (2, 2, 3, 3, 3)  # per block, before its pooling: VGG-16, and the cloner
NARROW = (16, 16, 16, 16, 16)  # cloner "B": official code
FULL = (64, 128, 256, 512, 512)  # cloner "A": VGG-16's own
SIGNED_TAPS = ("efficientnet_lite0",)  # teachers whose taps are linear; all others end in a ReLU

Rectifier = Callable[[Tensor], Tensor]


class Cloner(nn.Module):
    """VGG-16's layout, narrow, with the source's tap widths at the ends of its blocks.

    3 x 3 convolutions without bias; a batch norm after each but the last of a block (official code). For sources other
    than VGG-16 the same pattern with their tap widths, and no ReLU at the taps where theirs are signed: a reading.
    """

    def __init__(self, source: Backbone, *, full_width: bool = False) -> None:
        super().__init__()
        self.strides = source.strides
        self.signed = source.name in SIGNED_TAPS
        tap_widths = dict(zip(source.strides, source.channels, strict=True))
        self.blocks = nn.ModuleList()
        inputs = 3
        for index, count in enumerate(CONVOLUTIONS):
            stride = 2 << index
            if stride > max(source.strides):
                break
            inner = (FULL if full_width else NARROW)[index]
            widths = [inner] * (count - 1) + [tap_widths.get(stride, inner)]
            self.blocks.append(ClonerBlock(inputs, widths))
            inputs = widths[-1]

    def forward(self, images: Tensor, rectify: Rectifier = F.relu) -> tuple[Tensor, ...]:
        """Taps of `images` [N, 3, H, W] as the source names them; `rectify` is the activation."""
        x, taps = images, []
        for index, block in enumerate(self.blocks):
            pooled = block(x, rectify, last=not self.signed)
            x = rectify(pooled) if self.signed else pooled  # the pooled ReLU is the ReLU of the pooled
            if 2 << index in self.strides:
                taps.append(pooled)
        return tuple(taps)


class ClonerBlock(nn.Module):
    """Convolutions of the given widths, then 2 x 2 max pooling."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = zip([inputs, *widths[:-1]], widths, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        for convolution in self.convolutions:
            nn.init.xavier_uniform_(convolution.weight)  # official code: Xavier

    def forward(self, x: Tensor, rectify: Rectifier, *, last: bool) -> Tensor:
        """The pooled map; the last convolution is rectified only if `last`."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=False):
            x = rectify(norm(convolution(x)))
        x = self.convolutions[-1](x)
        return F.max_pool2d(rectify(x) if last else x, 2)


class GuidedRelu(torch.autograd.Function):
    """ReLU whose gradient passes only where it is positive too (Springenberg et al. 2015, guided backpropagation)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rectified = x.clamp(min=0)
        ctx.save_for_backward(rectified)
        return rectified

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * (rectified > 0)


def guided_relu(x: Tensor) -> Tensor:
    """max(x, 0), with the gradient of guided backpropagation."""
    rectified: Tensor = GuidedRelu.apply(x)  # type: ignore[no-untyped-call]
    return rectified


def discrepancy(
    source: Sequence[Tensor], cloner: Sequence[Tensor], *, value_weight: float, direction_only: bool = False
) -> Tensor:
    """Per image [N], float32: sum over layers of 1 - cos(vec b, vec a) + lambda * mean (b - a)^2, lambda = `value_weight`.

    The direction term (eq. 2) and the value term (eq. 1) of the paper, without a mean over the batch.
    """
    total = torch.zeros(source[0].shape[0], device=source[0].device)
    for a, b in zip(source, cloner, strict=True):
        total = total + flattened_cosine(a, b)
        if not direction_only:
            total = total + value_weight * pixel_discrepancy(a, b, kind="l2").mean(dim=(1, 2)) / a.shape[1]
    return total


def input_gradient(score: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N] of `images` [N, 3, H, W] and their gradient with respect to the images; no other gradient is left."""
    images = images.detach().clone().requires_grad_()
    scores = score(images)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    return scores.detach(), gradient.detach()


def smooth_gradient(
    score: Callable[[Tensor], Tensor], images: Tensor, noise: Tensor, deviation: Tensor
) -> Tensor:
    """SmoothGrad (Smilkov et al. 2017): the mean input gradient over noisy copies of `images` [N, 3, H, W].

    `noise` [samples, 3, H, W] standard normal, the same for every image, so that no image depends on its neighbours;
    `deviation` [N] its standard deviation.
    """
    total = torch.zeros_like(images)
    for sample in noise:
        total += input_gradient(score, images + deviation.view(-1, 1, 1, 1) * sample)[1]
    return total / len(noise)


def grey_opening(maps: Tensor) -> Tensor:
    """Grey-scale opening of `maps` [N, H, W] with the 3 x 3 ellipse (a cross); beyond the border is ignored.

    Opening with a flat element commutes with thresholding: this one opening is all the binary openings of the maps'
    level sets at once.
    """
    return cross_maximum(-cross_maximum(-maps))


def cross_maximum(maps: Tensor) -> Tensor:
    """Maximum over each pixel of `maps` [N, H, W] and its four neighbours."""
    x = maps[:, None]
    upright, level = F.max_pool2d(x, (3, 1), 1, (1, 0)), F.max_pool2d(x, (1, 3), 1, (0, 1))
    return torch.maximum(upright, level)[:, 0]


def min_max(maps: Tensor, percentile: float = 0.99) -> Tensor:
    """Each map of [N, H, W] clipped at its percentile and stretched to [0, 1] (official code only)."""
    flat = maps.flatten(1)
    low = flat.amin(dim=1)[:, None]
    high = flat.quantile(percentile, dim=1, keepdim=True)
    stretched = (flat.clamp(max=high) - low) / (high - low).clamp(min=1e-12)
    return stretched.clamp(0, 1).view_as(maps)
