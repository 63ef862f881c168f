"""The height and width that a picture is brought to: squeezed into a square, or with its proportions kept."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.decoding import MAX_PIXELS

Shape: TypeAlias = tuple[int, int]  # height, width

SQUASH, SHORT_SIDE, PAD = "squash", "short-side", "pad"
FITS = (SQUASH, SHORT_SIDE, PAD)


def fitted(size: tuple[int, int], resolution: int, fit: str, path: Path) -> Shape:
    """(height, width) of a picture of `size` (width, height) at `resolution`.

    squash: both are `resolution`. short-side: the shorter one is, pad: the longer one is; the other follows in
    proportion, rounded half up, at least 1. Raises DatasetError that names `path` for a picture with too many pixels.
    """
    if fit == SQUASH:
        return resolution, resolution
    width, height = size
    side = min(size) if fit == SHORT_SIDE else max(size)
    shape = _scaled(height, resolution, side), _scaled(width, resolution, side)
    if shape[0] * shape[1] > MAX_PIXELS:
        raise DatasetError(
            f"{path}: {width} x {height} pixels are {shape[1]} x {shape[0]} with a short side of {resolution}, above "
            f"the limit of {MAX_PIXELS} pixels; take a smaller --resolution, --fit pad or squash"
        )
    return shape


def _scaled(length: int, resolution: int, side: int) -> int:
    return max(1, (2 * length * resolution + side) // (2 * side))
