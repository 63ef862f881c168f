"""FractalAD's fractal anomaly generation: a patch of the image, changed, rotated, cut to a fractal, pasted elsewhere.

Each sample has a `numpy` generator of its own, so an anomaly depends on its key alone: not on the batch it is in, on
the samples before it, on threads, nor on any global state of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor

from kdad_bench.kernels.sending import sent
from kdad_bench.methods.draws import Mask, uniform
from kdad_bench.methods.fractalad.colour import Levels, cut, random_channel_scaling, random_jitter
from kdad_bench.methods.fractalad.ifs import fractal, rotation
from kdad_bench.methods.fractalad.objects import object_mask, shorter_side

Item = TypeVar("Item", bound=np.generic)

SIDE = (0.1, 0.5)  # side of the patch as a part of the shorter side of the image: official code
REGION = (0.1, 0.9)  # patches are taken from and put into this central part: official code
ANGLE = (15.0, 75.0)  # degrees: official code
DILATIONS = 3  # of the mask, 3 x 3 each: official code
NOISE_CHANCE, NOISE_LEVELS = 0.5, 10.0  # Gaussian noise inside the mask: official code
LAST_JITTER = 0.05  # ColorJitter of clean and anomalous image alike: official code

OBJECT_SIDE = (0.5 * SIDE[0], 3 * SIDE[1])  # side of the patch as a part of the object's shorter side: official code


@dataclass(frozen=True, kw_only=True, slots=True)
class Recombined:
    """An image with one pasted anomaly."""

    image: Levels  # [3, H, W]
    mask: Mask  # [H, W]


def recombine(image: Levels, rng: np.random.Generator, *, points: int, find_object: bool = False) -> Recombined:
    """`image` [3, H, W] in levels 0..255 with a patch of itself pasted through a random fractal of `points` points.

    `find_object`: patch sizes and positions follow the object that stands out from the background (official code:
    capsule, pill, screw, toothbrush, zipper); an image without such an object is treated as without the switch.
    """
    outline = object_mask(image) if find_object else None
    if outline is not None and outline.any():
        side = patch_side(shorter_side(outline), OBJECT_SIDE, image, rng)
        source, target = (corner_on_object(outline, side, rng) for _ in range(2))
    else:
        side = patch_side(float(min(image.shape[1:])), SIDE, image, rng)
        source, target = (corner_in_region(image, side, rng) for _ in range(2))
    patch = change_colour(window(image, source, side), rng)
    if rng.random() < 0.5:
        patch = patch[:, :, ::-1]
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    patch, inside = rotate(patch, uniform(rng, *ANGLE))
    shape = inside & fractal(rng, side, points)
    pasted, mask = image.copy(), np.zeros(image.shape[1:], dtype=np.bool_)
    window(mask[None], target, side)[0] = shape
    window(pasted, target, side)[:, shape] = patch[:, shape]
    return Recombined(image=pasted, mask=mask)


def finish(clean: Levels, anomaly: Recombined, rng: np.random.Generator) -> tuple[Levels, Recombined]:
    """The last steps: mask dilated, noise inside it, one colour jitter for both images."""
    mask = binary_dilation(anomaly.mask, structure=np.ones((3, 3), dtype=np.bool_), iterations=DILATIONS)
    image = anomaly.image
    if rng.random() < NOISE_CHANCE:
        noise = NOISE_LEVELS * normal(rng, int(mask.sum()))
        image = image.copy()
        image[:, mask] = cut(image[:, mask] + noise)  # one channel of noise for all three
    seed = int(rng.random() * 2**53)
    clean, image = (
        random_jitter(
            levels,
            np.random.default_rng(seed),
            brightness=LAST_JITTER,
            contrast=LAST_JITTER,
            saturation=LAST_JITTER,
            hue=LAST_JITTER,
        )
        for levels in (clean, image)
    )
    return clean, Recombined(image=image, mask=mask)


class Samples(NamedTuple):
    """The samples of a batch, in few bytes: both versions in levels [N, 3, H, W] uint8, masks [N, H, W]."""

    clean: NDArray[np.uint8]
    pasted: NDArray[np.uint8]
    masks: Mask


def anomalous(
    images: Tensor, keys: Sequence[Sequence[int]], *, points: int, find_object: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images, anomalous images (both [N, 3, H, W], float32 in [0, 1]) and masks [N, H, W] float32 (0 or 1).

    `images` [N, 3, H, W] float32 in [0, 1]; `keys` are N sequences of whole numbers >= 0, the seed of each sample.
    """
    return on_device(drawn_samples(levels_of(images), keys, points, find_object), images.device)


def levels_of(images: Tensor) -> NDArray[np.uint8]:
    """The nearest levels of `images` in [0, 1]."""
    levels: Levels = np.floor(images.detach().cpu().numpy() * np.float32(255) + np.float32(0.5))
    return np.clip(levels, 0, 255, out=levels).astype(np.uint8)


def drawn_samples(levels: NDArray[np.uint8], keys: Sequence[Sequence[int]], points: int, find_object: bool) -> Samples:
    """A sample of each of `levels` [N, 3, H, W], by its key."""
    made = [one_sample(image.astype(np.float32), np.random.default_rng(tuple(key)), points, find_object)
            for image, key in zip(levels, keys, strict=True)]  # fmt: skip
    clean, pasted = (np.stack(some).astype(np.uint8) for some in ([c for c, _ in made], [a.image for _, a in made]))
    return Samples(clean, pasted, np.stack([a.mask for _, a in made]))


def on_device(samples: Samples, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What `anomalous` answers, on `device`."""
    whole = torch.full((), 255.0, device=device)  # a number would be its rounded inverse on a GPU
    clean, pasted, masks = (sent(array, device).float() for array in samples)
    return clean / whole, pasted / whole, masks


@dataclass(frozen=True, kw_only=True, slots=True)
class Pasting:
    """What a step draws, from the levels of all images that are learnt from."""

    levels: NDArray[np.uint8]  # [K, 3, S, S]
    points: int
    find_object: bool

    def __call__(self, chosen: Tensor, generator: torch.Generator, step: int) -> Samples:
        return replace(self, levels=self.levels[chosen.numpy()]).of_all(generator)

    def of_all(self, generator: torch.Generator) -> Samples:
        """A sample of each image."""
        keys = torch.randint(2**31, (len(self.levels), 2), generator=generator).tolist()
        return drawn_samples(self.levels, keys, self.points, self.find_object)


def one_sample(image: Levels, rng: np.random.Generator, points: int, find_object: bool) -> tuple[Levels, Recombined]:
    """The clean and the anomalous version of `image` [3, H, W], in levels."""
    return finish(image, recombine(image, rng, points=points, find_object=find_object), rng)


def change_colour(patch: Levels, rng: np.random.Generator) -> Levels:
    """One of three changes, by equal chance: a mild jitter, a strong change of light, two channels scaled."""
    choice = int(3 * rng.random())
    if choice == 0:
        return random_jitter(patch, rng, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2)
    if choice == 1:
        return random_jitter(patch, rng, brightness=1.0, contrast=1.0)
    return random_channel_scaling(patch, rng)


def rotate(patch: Levels, degrees: float) -> tuple[Levels, Mask]:
    """`patch` [3, s, s] turned about its centre, nearest neighbour, not expanded; and where it has content [s, s].

    Counter-clockwise, as Pillow turns.
    """
    side = patch.shape[-1]
    middle = (side - 1) / 2
    offsets = np.indices((side, side)).reshape(2, -1) - middle
    row, column = np.floor(rotation(-np.deg2rad(degrees)) @ offsets + middle + 0.5).astype(np.int64)
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    turned = np.where(inside, patch[:, row.clip(0, side - 1), column.clip(0, side - 1)], np.float32(0))
    return turned.reshape(patch.shape), inside.reshape(side, side)


def patch_side(whole: float, part: tuple[float, float], image: Levels, rng: np.random.Generator) -> int:
    """A side uniform in `part` of `whole`, in whole pixels: at least 2, less than the shorter side of the image."""
    return int(np.clip(uniform(rng, *part) * whole, 2, max(2, min(image.shape[1:]) - 1)))


def corner_in_region(image: Levels, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """The top-left corner of a window of `side` inside the central region of `image`."""
    row, column = (int(uniform(rng, REGION[0] * n, max(REGION[0] * n, REGION[1] * n - side))) for n in image.shape[1:])
    return row, column


def corner_on_object(outline: Mask, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """The top-left corner of a window of `side`, inside the image, whose centre was drawn from the object.

    An object that is nearer to the border everywhere than half a side: the window is moved inwards (the official code
    never ends then).
    """
    cells, last = np.argwhere(outline), np.array(outline.shape) - side
    corners = cells - side // 2
    fitting = ((corners >= 0) & (corners <= last)).all(axis=1)
    corners = corners[fitting] if fitting.any() else corners.clip(0, last)
    row, column = corners[int(rng.random() * len(corners))]
    return int(row), int(column)


def window(array: NDArray[Item], corner: tuple[int, int], side: int) -> NDArray[Item]:
    """The view [C, side, side] of `array` [C, H, W] at `corner` (row, column)."""
    return array[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side]


def normal(rng: np.random.Generator, count: int) -> Levels:
    """`count` standard normal numbers, Box and Muller, from `Generator.random` alone."""
    radius = np.sqrt(-2 * np.log1p(-rng.random(count)))
    numbers: Levels = (radius * np.cos(2 * np.pi * rng.random(count))).astype(np.float32)
    return numbers
