"""A category's files -> uint8 arrays for training, validation and test, through the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdad_bench.harness.datasets import cache
from kdad_bench.harness.datasets.category import Category, DatasetError
from kdad_bench.harness.datasets.decoding import read_mask, read_rgb


class TestSet(NamedTuple):
    """The test images of a category, in the order of `Category.test`."""

    images: npt.NDArray[np.uint8]  # [N, 3, R, R]
    labels: npt.NDArray[np.bool_]  # [N], True if anomalous
    masks: npt.NDArray[np.bool_] | None  # [N, R, R]; None if the category has no masks
    names: tuple[str, ...]  # "<defect>/<file name>"


def load_train(category: Category, resolution: int) -> npt.NDArray[np.uint8]:
    """The normal training images as uint8 [N, 3, R, R], read-only and memory-mapped. No test file is opened.

    Raises DatasetError, naming the file, if one cannot be decoded.
    """
    return _images(category, "train", category.train, resolution)


def load_validation(category: Category, resolution: int) -> npt.NDArray[np.uint8]:
    """The normal images shipped as a validation split, uint8 [N, 3, R, R]; N = 0 where none is shipped."""
    return _images(category, "validation", category.validation, resolution)


def load_test(category: Category, resolution: int) -> TestSet:
    """The test images, labels and masks. Raises DatasetError, naming the file, if one cannot be used."""
    images = _images(category, "test", [sample.path for sample in category.test], resolution)
    labels = np.array([sample.label for sample in category.test], dtype=np.bool_)
    names = tuple(f"{sample.defect}/{sample.path.name}" for sample in category.test)
    return TestSet(images, labels, _masks(category, resolution) if category.has_masks else None, names)


def _check_resolution(resolution: int) -> None:
    if not 1 <= resolution <= 8192:
        raise DatasetError(f"resolution {resolution}: must lie between 1 and 8192")


def _images(category: Category, split: str, files: Sequence[Path], resolution: int) -> npt.NDArray[np.uint8]:
    _check_resolution(resolution)
    if not files:
        return np.zeros((0, 3, resolution, resolution), dtype=np.uint8)
    if category.modality != "rgb":
        raise DatasetError(f"{category.root}: modality {category.modality} cannot be loaded here; use rgb")

    def fill(array: cache.Array) -> None:
        def decode(index: int) -> None:
            array[index] = read_rgb(files[index], resolution)[0]

        _in_threads(decode, len(files))

    name = cache.key(f"rgb-{split}", files, category.root, resolution)
    return cache.array(name, (len(files), 3, resolution, resolution), np.uint8, fill)


def _masks(category: Category, resolution: int) -> npt.NDArray[np.bool_]:
    files = [path for sample in category.test for path in (sample.path, sample.mask) if path is not None]

    def fill(array: cache.Array) -> None:
        def decode(index: int) -> None:
            sample = category.test[index]
            if sample.mask is not None:
                array[index] = read_mask(sample.mask, resolution, image_size(sample.path))

        _in_threads(decode, len(category.test))

    name = cache.key("masks", files, category.root, resolution)
    return cache.array(name, (len(category.test), resolution, resolution), np.bool_, fill)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as decoded, after its EXIF orientation."""
    from kdad_bench.harness.datasets.decoding import open_image

    return open_image(path).size


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work(0 .. count-1)` on all cores; the first failure, in this order, is raised. Memory: one image a thread."""
    with ThreadPoolExecutor(cache.workers()) as pool:
        futures = [pool.submit(work, index) for index in range(count)]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
