"""What DeSTSeg's training draws: textures pasted into random shapes, and normal images turned beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.kernels.sending import sent
from kdad_bench.methods.destseg.settings import MOST_TURN, TILES
from kdad_bench.methods.drawn_textures import texture
from kdad_bench.methods.draws import Floats, Mask, uniform
from kdad_bench.methods.perlin_noise import random_shape

MOST_OF_THE_IMAGE = 0.8  # that shows through a pasted texture: official code
BORDER = 114 / 255  # of a turned image: official code


# ---- synthetic anomalies


class Samples(NamedTuple):
    """What is drawn for a batch: the key of each sample, its shape, how much of the image shows, and what is pasted."""

    keys: list[list[int]]
    shapes: Mask  # [N, S, S]
    through: Floats  # [N]
    textures: NDArray[np.float32] | None  # [N, 3, S, S]
    orders: NDArray[np.int64] | None  # [N, 64]: of the image's own tiles, in place of a texture


def drawn_samples(side: int, keys: list[list[int]], textures: str) -> Samples:
    """A sample by each key, for images of `side` px. A shape may be empty."""
    made = [sample(side, np.random.default_rng(tuple(key)), textures) for key in keys]
    shapes, through, pasted = (np.stack(some) for some in zip(*made, strict=True))
    of_image = textures == "image"
    return Samples(keys, shapes, through, None if of_image else pasted, pasted if of_image else None)


def sample(side: int, rng: np.random.Generator, textures: str) -> tuple[Mask, np.float64, Any]:
    """(shape [S, S], how much of the image shows, a texture [3, S, S] float32 or an order of tiles)."""
    shape, through = random_shape(side, rng), np.float64(uniform(rng, 0, MOST_OF_THE_IMAGE))
    own = textures == "image"
    return shape, through, np.argsort(rng.random(TILES * TILES)) if own else texture(side, rng).astype(np.float32)


def anomalous(images: Tensor, keys: list[list[int]], textures: str) -> tuple[Tensor, Tensor]:
    """(images with a texture pasted into a random shape [N, 3, S, S], the shapes [N, S, S], 0 or 1), float32.

    `images` in [0, 1]; `keys` are N lists of whole numbers >= 0, the seed of each sample.
    """
    return pasted_into(images, drawn_samples(images.shape[-1], keys, textures))


def pasted_into(images: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
    """What `anomalous` answers. The image shows through the texture by up to 0.8."""
    shapes = sent(samples.shapes, images.device)
    shares = np.stack([1 - samples.through, samples.through]).astype(np.float32)
    rest, through = sent(shares, images.device)[..., None, None, None]
    if samples.textures is not None:
        pasted = sent(samples.textures, images.device)
    else:
        assert samples.orders is not None
        pasted = torch.stack([shuffled(image, order) for image, order in zip(images, samples.orders, strict=True)])
    return torch.where(shapes[:, None], rest * pasted + through * images, images), shapes.float()


def shuffled(image: Tensor, order: NDArray[np.int64]) -> Tensor:
    """`image` [3, S, S] cut into 8 x 8 tiles, in another `order` [64]; what is left over at the border stays."""
    side = image.shape[-1] // TILES
    inner = image[:, : TILES * side, : TILES * side]
    tiles = inner.reshape(3, TILES, side, TILES, side).transpose(2, 3).reshape(3, -1, side, side)
    tiles = tiles[:, sent(order, image.device)].reshape(3, TILES, TILES, side, side)
    mixed = tiles.transpose(2, 3).reshape(inner.shape)
    found = image.clone()
    found[:, : TILES * side, : TILES * side] = mixed
    return found


def turned(images: Tensor, keys: Sequence[Sequence[int]], how: str) -> Tensor:
    """`images` [N, 3, S, S], each turned about its middle by an angle of its own key; bilinear, grey beyond."""
    angles = []
    for key in keys:
        rng = np.random.default_rng((*key, 1))  # another draw than the anomaly's
        quarters = 90 * int(4 * rng.random()) if how == "full" else 0
        angles.append(np.deg2rad(quarters + uniform(rng, -MOST_TURN, MOST_TURN)))
    cosines, sines = np.cos(angles), np.sin(angles)
    rows = [[cosines, -sines, 0 * sines], [sines, cosines, 0 * sines]]
    turns = sent(np.array(rows, np.float32).transpose(2, 0, 1), images.device)
    grid = F.affine_grid(turns, list(images.shape), align_corners=False)
    return F.grid_sample(images - BORDER, grid, mode="bilinear", align_corners=False) + BORDER


@dataclass(frozen=True, kw_only=True, slots=True)
class Pasting:
    """What a step draws; of a lone image two samples, as its loss sees it twice."""

    side: int
    textures: str

    def __call__(self, chosen: Tensor, generator: torch.Generator, step: int) -> Samples:
        return self.of(max(len(chosen), 2), generator)

    def of(self, count: int, generator: torch.Generator) -> Samples:
        """So many samples."""
        return drawn_samples(self.side, drawn_keys(count, generator), self.textures)


def drawn_keys(count: int, generator: torch.Generator) -> list[list[int]]:
    """The seeds of `count` samples."""
    keys: list[list[int]] = torch.randint(2**31, (count, 2), generator=generator).tolist()
    return keys
