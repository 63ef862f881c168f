"""Small pieces of images, as they are and altered beyond what normal images show."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CONTRAST, CHANNEL, SHIFT = 0.3, 0.15, 0.15  # deviations: of a gain's logarithm, of a channel's own, of what is added
LEAST, MOST = 0.5, 2.0  # side of the piece that an altered crop is made of, in crops
CELLS = (3, 5, 7, 9)  # of the field whose sign parts the two layers of an altered crop


def random_crops(images: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side] of `images`, each image continued by its outermost pixels if it is smaller."""
    missing = max(side - min(images.shape[-2:]), 0)
    which = torch.randint(len(images), (count,), generator=generator).tolist()
    places = torch.rand(2, count, generator=generator).tolist()
    crops = []
    for image, down, right in zip(which, *places, strict=True):
        whole = F.pad(images[image][None], (0, missing, 0, missing), mode="replicate")[0] if missing else images[image]
        top, left = (int(share * (end - side + 1)) for share, end in zip((down, right), whole.shape[-2:], strict=True))
        crops.append(whole[:, top : top + side, left : left + side])
    return torch.stack(crops)


def altered_crops(images: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side] of two layers, parted by the sign of a smooth field, clipped to [0, 1].

    A layer is a piece of `images`, scaled, turned and recoloured; half of the second layers are a flat colour instead.
    `generator` (CPU) gives all chance.
    """
    made = []
    for k, cells in enumerate(CELLS):
        some = count // len(CELLS) + (k < count % len(CELLS))
        if some:
            below, above = (recoloured_crops(images, side, some, generator) for _ in range(2))
            flat = torch.rand(some, 1, 1, 1, generator=generator) < 0.5
            colour = torch.rand(some, 3, 1, 1, generator=generator)
            above = torch.where(flat.to(images.device), colour.to(images.device), above)
            field = F.interpolate(torch.randn(some, 1, cells, cells, generator=generator), (side, side), mode="bicubic")
            over = field > torch.randn(some, 1, 1, 1, generator=generator)
            made.append(torch.where(over.to(images.device), above, below))
    return torch.cat(made).clamp(0, 1)


def recoloured_crops(images: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side], not clipped: pieces of half to twice the side, turned by quarters, each in other colours.

    Scale and turn are the same for all.
    """
    scale, turn = torch.rand(2, generator=generator).tolist()
    piece = min(max(round(side * (LEAST + (MOST - LEAST) * scale)), 1), *images.shape[-2:])
    crops = random_crops(images, piece, count, generator)
    crops = F.interpolate(crops, (side, side), mode="bilinear", align_corners=False)
    crops = torch.rot90(crops, int(4 * turn), (2, 3))
    drawn = torch.randn(3, count, 3, 1, 1, generator=generator)
    gain = (CONTRAST * drawn[0, :, :1] + CHANNEL * drawn[1]).exp().to(images.device)
    return (crops - 0.5) * gain + 0.5 + SHIFT * drawn[2].to(images.device)


def enlarged(crops: Tensor, side: int) -> Tensor:
    """Crops at `side` px, bilinear."""
    return F.interpolate(crops, (side, side), mode="bilinear", align_corners=False)
