"""A category's files -> uint8 arrays for training, validation and test, through the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdad_bench.datasets import cache
from kdad_bench.datasets.category import Category, DatasetError
from kdad_bench.datasets.decoding import image_size, open_image, read_mask, read_rgb
from kdad_bench.datasets.mvtec_3d_ad import scan_path

Size = tuple[int, int]  # width, height


class TestSet(NamedTuple):
    """The test images of a category, in the order of `Category.test`."""

    images: npt.NDArray[np.uint8]  # [N, 3, R, R]
    labels: npt.NDArray[np.bool_]  # [N], True if anomalous
    masks: npt.NDArray[np.bool_] | None  # [N, R, R]; None if the category has no masks
    names: tuple[str, ...]  # "<defect>/<file name>"


def load_train(category: Category, resolution: int) -> npt.NDArray[np.uint8]:
    """The normal training images as uint8 [N, 3, R, R], read-only and memory-mapped. No test file is opened.

    The modality of the category decides what they show: the photograph or the relief of the scan.
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


def single_modalities(category: Category) -> tuple[Category, ...]:
    """The category once for each modality that is loaded apart: rgb+depth is an rgb one and a depth one."""
    return tuple(dataclasses.replace(category, modality=modality) for modality in category.modality.split("+"))


def _images(category: Category, split: str, files: Sequence[Path], resolution: int) -> npt.NDArray[np.uint8]:
    if not 1 <= resolution <= 8192:
        raise DatasetError(f"resolution {resolution}: must lie between 1 and 8192")
    if category.modality not in ("rgb", "depth"):
        raise DatasetError(f"{category.name}: {category.modality} has two pictures; load single_modalities one by one")
    if not files:
        return np.zeros((0, 3, resolution, resolution), dtype=np.uint8)
    if category.modality == "depth":
        return _depths(category, split, files, resolution)

    def fill(array: cache.Array) -> None:
        def decode(index: int) -> None:
            array[index], sizes[index] = read_rgb(files[index], resolution)

        sizes: list[Size] = [(0, 0)] * len(files)
        _in_threads(decode, len(files))
        _sizes(category, files, lambda: sizes)

    name = cache.key(f"rgb-{split}", files, category.root, resolution)
    return cache.array(name, (len(files), 3, resolution, resolution), np.uint8, fill)


def _depths(category: Category, split: str, files: Sequence[Path], resolution: int) -> npt.NDArray[np.uint8]:
    from kdad_bench.datasets.depth import read_depth

    scans = [scan_path(path) for path in files]
    top = highest_relief(category)

    def fill(array: cache.Array) -> None:
        def decode(index: int) -> None:
            array[index], size = read_depth(scans[index], resolution, top)
            if size != image_size(files[index]):
                raise DatasetError(
                    f"{scans[index]}: the scan is {size[0]} x {size[1]} and its image is not; restore both"
                )

        _in_threads(decode, len(scans))

    name = cache.key(f"depth-{split}", scans, category.root, resolution, top.hex())
    return cache.array(name, (len(scans), 3, resolution, resolution), np.uint8, fill)


def highest_relief(category: Category) -> float:
    """The highest relief of the category's normal training scans, in metres; the scale of the height channel."""
    from kdad_bench.datasets.depth import top_of

    scans = [scan_path(path) for path in category.train]

    def fill(array: cache.Array) -> None:
        def measure(index: int) -> None:
            array[index] = top_of(scans[index])

        _in_threads(measure, len(scans))

    tops = cache.array(cache.key("tops", scans, category.root), (len(scans),), np.float64, fill)
    return float(np.max(tops))


def _masks(category: Category, resolution: int) -> npt.NDArray[np.bool_]:
    marked = [(index, sample) for index, sample in enumerate(category.test) if sample.mask is not None]
    files = [path for _, sample in marked for path in (sample.path, sample.mask) if path is not None]
    every = [sample.path for sample in category.test]

    def fill(array: cache.Array) -> None:
        sizes = _sizes(category, every, lambda: _measured(every))

        def decode(place: int) -> None:
            index, sample = marked[place]
            if sample.mask is not None:
                array[index] = read_mask(sample.mask, resolution, sizes[index])

        _in_threads(decode, len(marked))

    name = cache.key("masks", [*every, *files], category.root, resolution)
    return cache.array(name, (len(category.test), resolution, resolution), np.bool_, fill)


def _sizes(category: Category, files: Sequence[Path], measure: Callable[[], list[Size]]) -> list[Size]:
    """(width, height) of the decoded images, remembered so that a mask is compared without decoding its image again."""

    def fill(array: cache.Array) -> None:
        array[:] = measure()

    found = cache.array(cache.key("sizes", files, category.root), (len(files), 2), np.int32, fill)
    return [(int(width), int(height)) for width, height in found]


def _measured(files: Sequence[Path]) -> list[Size]:
    sizes: list[Size] = [(0, 0)] * len(files)

    def measure(index: int) -> None:
        sizes[index] = open_image(files[index]).size

    _in_threads(measure, len(files))
    return sizes


def _in_threads(work: Callable[[int], None], count: int) -> None:
    """Call `work(0 .. count-1)` on all cores, an image a thread in memory; the first failure, in order, is raised."""
    with ThreadPoolExecutor(cache.workers()) as pool:
        futures = [pool.submit(work, index) for index in range(count)]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
