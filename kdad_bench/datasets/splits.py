"""Normal images set apart for thresholds and selection: no test image takes part."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdad_bench.datasets.category import Category, DatasetError
from kdad_bench.datasets.loading import load_train, load_validation
from kdad_bench.datasets.synthetic.drawing import Stream

FRACTION = 0.2  # of train/good, where the data set ships no validation split; STFPM's official split


class Normals(NamedTuple):
    """The normal images of a category, apart: to learn from, and to choose by."""

    fit: npt.NDArray[np.uint8]  # [N, 3, R, R]
    held_out: npt.NDArray[np.uint8]  # [M, 3, R, R]
    source: str  # "validation" where the data set ships that split, or "train"


def held_out(
    count: int, *, fraction: float = FRACTION, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices 0 .. count - 1, split at random into (fit, held out); both sorted, both with at least one index.

    The same on every machine and for every version of numpy. Raises DatasetError for count < 2 or a fraction
    outside (0, 1).
    """
    if count < 2:
        raise DatasetError(f"{count} normal image(s): at least 2 are needed to hold some out")
    if not 0.0 < fraction < 1.0:
        raise DatasetError(f"fraction {fraction}: must lie between 0 and 1")
    size = min(max(round(count * fraction), 1), count - 1)
    order = np.argsort(Stream(f"held-out/{count}/{seed}").words(count), kind="stable").astype(np.int64)
    return np.sort(order[size:]), np.sort(order[:size])


def copies(fit: Iterable[Hashable], apart: Iterable[Hashable]) -> int:
    """How many of what is held out equal something that is learnt from, or something that is held out before them."""
    seen, found = set(fit), 0
    for one in apart:
        found += one in seen
        seen.add(one)
    return found


def load_normals(category: Category, resolution: int, *, fraction: float = FRACTION, seed: int = 0) -> Normals:
    """Training images and held-out normal images: the shipped validation split, or a seeded part of train/good.

    With a shipped validation split every training image is for fitting. No test file is opened.
    """
    train = load_train(category, resolution)
    if category.validation:
        return Normals(train, load_validation(category, resolution), "validation")
    fit, apart = held_out(len(train), fraction=fraction, seed=seed)
    return Normals(train[fit], train[apart], "train")
