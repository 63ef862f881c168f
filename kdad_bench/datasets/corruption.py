"""Test images as a worse camera would have taken them: seven corruptions in five levels, the same for every method.

What is drawn by lot (a direction, a sign, a pattern of noise) depends on the name of the image alone, not on its place
in the test set, on the seed of a job or on the level: a higher level is more of the same. Lengths are shares of the
side of the image, so that a level means the same at any resolution. docs/axes.md states the formulas.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdad_bench.datasets.category import Category
from kdad_bench.datasets.loading import Regions, TestSet
from kdad_bench.datasets.synthetic.drawing import Stream

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

# level 1 .. 5
BRIGHTNESS = (0.04, 0.08, 0.12, 0.18, 0.25)  # of the full range, added or taken away
CONTRAST = (0.85, 0.70, 0.55, 0.40, 0.25)  # of the distance to the mean of the image that is left
BLUR = (0.004, 0.006, 0.008, 0.012, 0.016)  # standard deviation, of the side
NOISE = (0.02, 0.04, 0.06, 0.09, 0.13)  # standard deviation, of the full range
JPEG = (70, 50, 30, 18, 10)  # Pillow's quality
SHIFT = (0.02, 0.04, 0.06, 0.08, 0.10)  # of the side
ROTATION = (2.0, 4.0, 7.0, 11.0, 16.0)  # degrees
LEVELS = range(1, 6)


def brightness(image: U8, level: int, lot: Stream) -> F64:
    """x + s 255 b, the sign s by lot."""
    return image.astype(np.float64) + lot.sign() * 255 * BRIGHTNESS[level - 1]


def contrast(image: U8, level: int, lot: Stream) -> F64:
    """m + c (x - m), m the mean over pixels and channels."""
    mean = image.mean()
    return np.asarray(mean + CONTRAST[level - 1] * (image - mean))


def blur(image: U8, level: int, lot: Stream) -> F64:
    """Each channel convolved with a Gaussian, the image reflected at its borders."""
    from scipy import ndimage  # slow to import

    sigma = BLUR[level - 1] * image.shape[-1]
    return np.asarray(ndimage.gaussian_filter(image.astype(np.float64), (0, sigma, sigma), mode="reflect"))


def noise(image: U8, level: int, lot: Stream) -> F64:
    """x + 255 s n, n independent for each pixel and channel, mean 0 and variance 1, close to a normal variable."""
    _, height, width = image.shape
    grain = np.stack([lot.grain(height, width) for _ in image])
    return np.asarray(image + 255 * NOISE[level - 1] * grain)


def jpeg(image: U8, level: int, lot: Stream) -> F64:
    """Written as JPEG by Pillow (colours at half the resolution) and read again."""
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="JPEG", quality=JPEG[level - 1], subsampling=2)
    with Image.open(file) as read:
        return np.asarray(read.convert("RGB"), dtype=np.float64).transpose(2, 0, 1)


def shift(image: npt.NDArray[np.generic], level: int, lot: Stream) -> npt.NDArray[np.generic]:
    """Moved by whole pixels into one of eight directions, by lot; what comes in is reflected at the border."""
    length = max(1, round(SHIFT[level - 1] * image.shape[-1]))
    down, right = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))[lot.below(8)]
    rows, columns = (_reflected(image.shape[-1], -length * way) for way in (down, right))
    return image[..., rows[:, None], columns]


def _reflected(side: int, offset: int) -> npt.NDArray[np.int64]:
    """The index that each place takes its pixel from, reflected into 0 .. side - 1."""
    places = np.mod(np.arange(side) + offset, 2 * side)
    return np.where(places < side, places, 2 * side - 1 - places)


def rotation(image: npt.NDArray[np.generic], level: int, lot: Stream) -> npt.NDArray[np.generic]:
    """Turned about its centre, to the left or to the right by lot, reflected at its borders.

    Bilinear; a mask by nearest neighbour.
    """
    from scipy import ndimage  # slow to import

    angle = lot.sign() * ROTATION[level - 1]
    values = image.astype(np.uint8 if image.dtype == bool else np.float64)
    turned = ndimage.rotate(
        values, angle, axes=(-1, -2), reshape=False, order=0 if image.dtype == bool else 1, mode="reflect"
    )
    return np.asarray(turned, dtype=image.dtype if image.dtype == bool else np.float64)


def turned(normals: F64, level: int, lot: Stream) -> F64:
    """The x and y components of surface normals, [2, R, R] about 128, as a scan that was turned so has them."""
    angle = np.deg2rad(lot.sign() * ROTATION[level - 1])
    across, down = normals - 128.0
    found = [np.cos(angle) * across + np.sin(angle) * down, np.cos(angle) * down - np.sin(angle) * across]
    return np.asarray(128.0 + np.stack(found), np.float64)


PHOTOGRAPHIC: dict[str, Callable[[U8, int, Stream], F64]] = {
    "brightness": brightness,
    "contrast": contrast,
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
}
GEOMETRIC: dict[str, Callable[[npt.NDArray[np.generic], int, Stream], npt.NDArray[np.generic]]] = {
    "shift": shift,
    "rotation": rotation,
}
CORRUPTIONS = (*PHOTOGRAPHIC, *GEOMETRIC)


def corrupted(test: TestSet, category: Category, name: str, level: int) -> TestSet:
    """`test` with every image corrupted, uint8 [N, 3 M, R, R]; masks follow a shift and a rotation, labels stay.

    Photographic corruptions change the photograph alone, geometric ones every modality; with a scan the normals of its
    surface are turned. Each image is corrupted by itself. Raises KeyError for an unknown name.
    """
    modalities = category.modality.split("+")
    photographs = 3 if "rgb" in modalities else 0
    images = np.empty_like(test.images)
    masks = None if test.masks is None else np.empty_like(test.masks)
    for index, image in enumerate(test.images):
        lot = _lot(test, category, name, index)
        if name in PHOTOGRAPHIC:
            changed = PHOTOGRAPHIC[name](image[:photographs], level, lot) if photographs else image[:0]
            images[index] = np.concatenate([_pixels(changed), image[photographs:]])
        else:
            moved = np.asarray(GEOMETRIC[name](image, level, lot), np.float64)
            if name == "rotation" and "depth" in modalities:
                normals = moved[photographs + 1 :]
                normals[:] = turned(normals, level, _lot(test, category, name, index))
            images[index] = _pixels(moved)
        if masks is not None and test.masks is not None:
            mask = test.masks[index]
            moves = name in GEOMETRIC and mask.any()
            masks[index] = GEOMETRIC[name](mask, level, _lot(test, category, name, index)) if moves else mask
    return test._replace(images=images, masks=masks, regions=_moved(test, category, name, level))


def _moved(test: TestSet, category: Category, name: str, level: int) -> Regions | None:
    """The annotated regions where a shift or a rotation takes their image; those that leave it are left out."""
    found = test.regions
    if found is None or name not in GEOMETRIC:
        return found
    moved = np.empty_like(found.masks)
    for index, image in enumerate(found.images):
        moved[index] = GEOMETRIC[name](found.masks[index], level, _lot(test, category, name, image))
    seen = moved.any(axis=(1, 2))
    return Regions(moved[seen], found.images[seen], found.shares[seen])


def _lot(test: TestSet, category: Category, name: str, index: int) -> Stream:
    """What is drawn for a test image: by its name, whatever the level."""
    return Stream(f"corruption/{name}/{category.name}/{test.names[index]}")


def _pixels(values: npt.NDArray[np.generic]) -> U8:
    """Rounded to whole grey values from 0 to 255."""
    rounded: F64 = np.rint(values.astype(np.float64))
    return np.clip(rounded, 0, 255).astype(np.uint8)
