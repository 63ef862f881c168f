"""A category as arrays in one call, for notebooks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdad_bench.datasets.cache import fingerprint
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.finding import canonical, categories
from kdad_bench.datasets.loading import load_test, load_train
from kdad_bench.datasets.sealing import sealed


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Data:
    """Normal images to learn from, and test images with what is known of them; R is the resolution."""

    dataset: str
    category: str
    train: npt.NDArray[np.uint8]  # [N, R, R, 3], normal images
    test: npt.NDArray[np.uint8]  # [M, R, R, 3]
    labels: npt.NDArray[np.bool_]  # [M], True: anomalous
    masks: npt.NDArray[np.bool_] | None  # [M, R, R], True: defective; None for a data set without masks
    names: tuple[str, ...]  # [M], "<defect>/<file name>"
    fingerprint: str  # content hash of the category's files
    synthetic: bool

    def __repr__(self) -> str:
        masks = "masks" if self.masks is not None else "no masks"
        side = self.test.shape[1]
        return (
            f"Data({self.dataset!r}, {self.category!r}): {len(self.train)} normal images, {len(self.test)} test images "
            f"({int(self.labels.sum())} anomalous, {masks}), {side} x {side} px"
        )


def load(
    dataset: str | os.PathLike[str],
    category: str | None = None,
    *,
    resolution: int = 256,
    data_root: str | os.PathLike[str] | None = None,
    modality: str = "rgb",
) -> Data:
    """The images of a category as arrays [N, R, R, 3], decoded and reduced as a run does; read-only, from the cache.

    `dataset` is a name as `run --dataset` takes it, `data_root` the folder that holds data sets, KDAD_DATA unless said.
    A data set of one category needs no `category`. `modality` is rgb, or depth for the relief of scans. Raises
    DatasetError, a ValueError of one line, for what is not there or cannot be decoded.
    """
    if isinstance(resolution, bool) or not isinstance(resolution, int):
        raise DatasetError(f"resolution {resolution!r}: must be a whole number from 1 to 8192")
    names: dict[str, Any] = {"dataset": dataset, "category": "" if category is None else category}
    for what, value in names.items():
        if not isinstance(value, (str, os.PathLike)):
            raise DatasetError(f"{what} {value!r}: is of type {type(value).__name__}; give a name")
    place = data_root if data_root is not None else os.environ.get("KDAD_DATA") or None
    root = None if place is None else Path(place)
    chosen = () if category is None else (category,)
    found = categories(canonical(os.fspath(dataset)), root, chosen, modality=modality)
    if len(found) != 1:
        raise DatasetError(f"{dataset}: which category? have: {', '.join(one.name for one in found)}")
    one = sealed(found[0])
    test = load_test(one, resolution)
    return Data(
        dataset=one.dataset,
        category=one.name,
        train=load_train(one, resolution).transpose(0, 2, 3, 1),
        test=test.images.transpose(0, 2, 3, 1),
        labels=test.labels,
        masks=test.masks,
        names=test.names,
        fingerprint=fingerprint(one),
        synthetic=one.synthetic,
    )
