"""Pictures of nothing: coloured textures that meet at edges, drawn from a generator, where a paper asks for ImageNet.

They are of no task. What they cannot do is look like photographs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

COARSEST = 2  # squares of noise along a side; finer ones have twice as many each
AMPLITUDE = 0.25  # of the noise about a texture's own colour


def drawn_images(count: int, side: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side] float32 in [0, 1] on the CPU: two textures each, parted by the outline of a third.

    `generator` (CPU) gives all chance.
    """
    one, other = (texture(count, side, generator) for _ in range(2))
    outline = noise(count, 1, side, generator) > 0
    return torch.where(outline, one, other)


def texture(count: int, side: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side]: noise about one colour each, somewhere between grey and coloured."""
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    strength = AMPLITUDE * torch.rand(count, 3, 1, 1, generator=generator)
    return (colour + strength * noise(count, 3, side, generator)).clamp(0, 1)


def noise(count: int, channels: int, side: int, generator: torch.Generator) -> Tensor:
    """[count, channels, side, side] of mean 0, deviation 1: octaves of value noise, each as strong as chance has it."""
    found = torch.zeros(count, channels, side, side)
    squares = COARSEST
    while squares <= side:
        weight = torch.rand(count, 1, 1, 1, generator=generator).pow(3)
        grid = torch.rand(count, channels, squares, squares, generator=generator) - 0.5
        found += weight * F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
        squares *= 2
    deviation, mean = torch.std_mean(found, (2, 3), keepdim=True, correction=0)
    return (found - mean) / deviation.clamp_min(1e-6)
