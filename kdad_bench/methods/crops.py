"""Small pieces of images, as they are and altered beyond what normal images show.

What is drawn for them and the cutting are apart: the one is done on the CPU, by whoever has the time, the other where
the images are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.kernels.sending import sent

CONTRAST, CHANNEL, SHIFT = 0.3, 0.15, 0.15  # deviations: of a gain's logarithm, of a channel's own, of what is added
LEAST, MOST = 0.5, 2.0  # side of the piece that an altered crop is made of, in crops
CELLS = (3, 5, 7, 9)  # of the field whose sign parts the two layers of an altered crop


class Places(NamedTuple):
    """Where crops are cut."""

    which: NDArray[np.int64]  # [count], of the images
    corners: NDArray[np.float32]  # [2, count], down and right, as shares of what is free


class Layer(NamedTuple):
    """Pieces of one scale and turn."""

    scale: float  # 0 to 1, from the least to the most
    turn: float  # 0 to 1, of a full turn
    places: Places
    gain: NDArray[np.float32]  # [count, 3, 1, 1]
    shift: NDArray[np.float32]  # [count, 3, 1, 1]


class Alteration(NamedTuple):
    """Crops of two layers that are parted alike."""

    below: Layer
    above: Layer
    flat: NDArray[np.bool_]  # [count, 1, 1, 1]: a colour in place of the layer above
    colour: NDArray[np.float32]  # [count, 3, 1, 1]
    over: NDArray[np.bool_]  # [count, 1, side, side]: where the layer above is seen


def random_crops(images: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side] of `images`, each image continued by its outermost pixels if it is smaller."""
    return cut(images, side, drawn_places(len(images), count, generator))


def drawn_places(images: int, count: int, generator: torch.Generator) -> Places:
    """`count` places in so many images."""
    which = torch.randint(images, (count,), generator=generator).numpy()
    return Places(which, torch.rand(2, count, generator=generator).numpy())


def cut(images: Tensor, side: int, places: Places) -> Tensor:
    """[count, 3, side, side] of `images`, each image continued by its outermost pixels if it is smaller."""
    missing = max(side - min(images.shape[-2:]), 0)
    crops = []
    for image, down, right in zip(places.which.tolist(), *places.corners.tolist(), strict=True):
        whole = F.pad(images[image][None], (0, missing, 0, missing), mode="replicate")[0] if missing else images[image]
        top, left = (int(share * (end - side + 1)) for share, end in zip((down, right), whole.shape[-2:], strict=True))
        crops.append(whole[:, top : top + side, left : left + side])
    return torch.stack(crops)


def altered_crops(images: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side] of two layers, parted by the sign of a smooth field, clipped to [0, 1].

    A layer is a piece of `images`, scaled, turned and recoloured; half of the second layers are a flat colour instead.
    `generator` (CPU) gives all chance.
    """
    return altered(images, side, drawn_alterations(len(images), side, count, generator))


def drawn_alterations(images: int, side: int, count: int, generator: torch.Generator) -> list[Alteration]:
    """What `count` altered crops of so many images are made by."""
    made = []
    for k, cells in enumerate(CELLS):
        some = count // len(CELLS) + (k < count % len(CELLS))
        if some:
            below, above = (drawn_layer(images, some, generator) for _ in range(2))
            flat = torch.rand(some, 1, 1, 1, generator=generator) < 0.5
            colour = torch.rand(some, 3, 1, 1, generator=generator)
            field = F.interpolate(torch.randn(some, 1, cells, cells, generator=generator), (side, side), mode="bicubic")
            over = field > torch.randn(some, 1, 1, 1, generator=generator)
            made.append(Alteration(below, above, flat.numpy(), colour.numpy(), over.numpy()))
    return made


def altered(images: Tensor, side: int, alterations: list[Alteration]) -> Tensor:
    """What `altered_crops` answers."""
    made = []
    for one in alterations:
        below, above = (layer_of(images, side, layer) for layer in (one.below, one.above))
        flat, colour, over = (sent(array, images.device) for array in (one.flat, one.colour, one.over))
        made.append(torch.where(over, torch.where(flat, colour, above), below))
    return torch.cat(made).clamp(0, 1)


def drawn_layer(images: int, count: int, generator: torch.Generator) -> Layer:
    """What `count` pieces of so many images are recoloured by; scale and turn are the same for all."""
    scale, turn = torch.rand(2, generator=generator).tolist()
    places = drawn_places(images, count, generator)
    drawn = torch.randn(3, count, 3, 1, 1, generator=generator)
    gain = (CONTRAST * drawn[0, :, :1] + CHANNEL * drawn[1]).exp()
    return Layer(scale, turn, places, gain.numpy(), drawn[2].numpy())


def layer_of(images: Tensor, side: int, layer: Layer) -> Tensor:
    """[count, 3, side, side], not clipped: pieces of half to twice the side, turned by quarters, in other colours."""
    piece = min(max(round(side * (LEAST + (MOST - LEAST) * layer.scale)), 1), *images.shape[-2:])
    crops = cut(images, piece, layer.places)
    crops = F.interpolate(crops, (side, side), mode="bilinear", align_corners=False)
    crops = torch.rot90(crops, int(4 * layer.turn), (2, 3))
    gain, shift = sent(layer.gain, images.device), sent(layer.shift, images.device)
    return (crops - 0.5) * gain + 0.5 + SHIFT * shift


class Crops(NamedTuple):
    """Crops of one scale: as they are, then altered ones."""

    plain: Places | None
    altered: list[Alteration]

    def of(self, images: Tensor, side: int) -> Tensor:
        """[count, 3, side, side]."""
        parts = [cut(images, side, self.plain)] if self.plain else []
        parts += [altered(images, side, self.altered)] if self.altered else []
        return torch.cat(parts)


class DrawnCrops(NamedTuple):
    """What a step draws: of each scale the crops it learns from, and before the first step those it begins with."""

    first: list[Crops]
    step: list[Crops]


@dataclass(frozen=True, kw_only=True, slots=True)
class CropDrawing:
    """Crops of so many `images` for the steps up to `boundary`."""

    images: int
    sides: tuple[int, ...]
    crops: int
    altered: float
    boundary: int
    first: int  # crops before the first step; 0: none

    def __call__(self, chosen: Tensor, generator: torch.Generator, step: int) -> DrawnCrops:
        counts = self.first if step == 1 else 0, self.crops if step <= self.boundary else 0
        first, then = (self.of(count, generator) if count else [] for count in counts)
        return DrawnCrops(first, then)

    def of(self, count: int, generator: torch.Generator) -> list[Crops]:
        """So many of each scale."""
        return [drawn_crops(self.images, side, count, self.altered, generator) for side in self.sides]


def drawn_crops(images: int, side: int, count: int, share: float, generator: torch.Generator) -> Crops:
    """`count` crops of so many images, a `share` of them altered."""
    some = round(share * count)
    plain = drawn_places(images, count - some, generator) if some < count else None
    return Crops(plain, drawn_alterations(images, side, some, generator) if some else [])


def enlarged(crops: Tensor, side: int) -> Tensor:
    """Crops at `side` px, bilinear."""
    return F.interpolate(crops, (side, side), mode="bilinear", align_corners=False)
