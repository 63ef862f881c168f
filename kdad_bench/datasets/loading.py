"""A category's files -> uint8 arrays for training, validation and test, through the cache.

What is decoded is what was hashed: each file is compared with the hash that names its cache entry as it is read, and
with the plan's where the category is sealed.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdad_bench.datasets import cache
from kdad_bench.datasets.category import Category, DatasetError, Sample, printable
from kdad_bench.datasets.decoding import (
    TURNED_APART,
    Mask,
    image_size,
    mask_of,
    open_image,
    read_bytes,
    read_rgb,
    reduced,
    turned_apart,
)
from kdad_bench.datasets.fitting import SQUASH, Shape, fitted
from kdad_bench.datasets.marking import inverted
from kdad_bench.datasets.saturation import Saturation, saturations, share_of
from kdad_bench.files import let_go

Size = tuple[int, int]  # width, height
Hashes = dict[Path, str]
NUMBER = re.compile(r"\d+")
MARKS_A_NORMAL = "marks something in a normal image, which counts as normal; is the label wrong, or the mask?"
SEEN_BYTES = 256  # of what is kept of a mask, a line on it included


class Regions(NamedTuple):
    """The annotated regions of a test set, where a data set says at which area each counts as found."""

    masks: npt.NDArray[np.bool_]  # [M, H, W], a region each; they may overlap
    images: npt.NDArray[np.int64]  # [M], the test image of each
    shares: npt.NDArray[np.float64]  # [M] in (0, 1], the part of its area that counts as all of it


class Seen(NamedTuple):
    """What a mask is, in short."""

    share: float  # of its pixels that it marks
    rim: float  # of its outermost pixels
    doubt: str  # why it may not mean what it marks, or nothing


class TestSet(NamedTuple):
    """The test images of a category, in the order of `Category.test`.

    H and W are the resolution R, unless pictures keep their proportions: then those of the largest, and each picture
    lies in the upper left corner with zeros beside it.
    """

    images: npt.NDArray[np.uint8]  # [N, 3, H, W]
    labels: npt.NDArray[np.bool_]  # [N], True if anomalous
    masks: npt.NDArray[np.bool_] | None  # [N, H, W]; None if the category has no masks
    names: tuple[str, ...]  # "<defect>/<file name>", each once
    regions: Regions | None = None  # None where the data set has no saturation
    sizes: npt.NDArray[np.int64] | None = None  # [N, 2] height and width of each picture; None: all fill H x W
    unmarked: tuple[str, ...] = ()  # of the names, anomalous images whose masks mark no pixel at their own size


def load_train(category: Category, resolution: int) -> npt.NDArray[np.uint8]:
    """The normal training images as uint8 [N, 3, R, R], read-only and memory-mapped. No test file is opened.

    The modality of the category decides what they show: the photograph or the relief of the scan.
    Raises DatasetError, naming the file, if one cannot be decoded.
    """
    return _images(category, "train", category.train, resolution)


def load_validation(category: Category, resolution: int) -> npt.NDArray[np.uint8]:
    """The normal images shipped as a validation split, uint8 [N, 3, R, R]; N = 0 where none is shipped."""
    return _images(category, "validation", category.validation, resolution)


def load_pictures(category: Category, split: str, resolution: int, fit: str) -> list[npt.NDArray[np.uint8]]:
    """The images of a `split` (train or validation) as uint8 [3, h, w] each, of the shape that `fit` gives them.

    Views of a mapped file. Raises DatasetError, naming the file, if one cannot be decoded.
    """
    samples = category.train if split == "train" else category.validation
    canvas = _images(category, split, samples, resolution, fit)
    shapes = _shapes(category, samples, resolution, fit)
    return [whole[:, :height, :width] for whole, (height, width) in zip(canvas, shapes, strict=True)]


def load_test(category: Category, resolution: int, fit: str = SQUASH) -> TestSet:
    """The test images, labels and masks. Raises DatasetError, naming the file, if one cannot be used.

    Warns, in one line for each reason, of masks that may not mean what they mark.
    """
    images = _images(category, "test", category.test, resolution, fit)
    labels = np.array([sample.label for sample in category.test], dtype=np.bool_)
    regions = load_regions(category, resolution, fit) if category.saturation is not None else None
    masks, unmarked = _masks(category, resolution, fit) if category.has_masks else (None, [])
    _warn(category, _marks_in_normals(category))
    sizes = None if fit == SQUASH else np.array(_shapes(category, category.test, resolution, fit), np.int64)
    names = names_of(category)
    return TestSet(images, labels, masks, names, regions, sizes, tuple(names[index] for index in unmarked))


def names_of(category: Category) -> tuple[str, ...]:
    """The names of the test images: their file names, or where two of one kind share one their whole relative paths.

    Below `<defect>/`, whichever it is."""
    short = tuple(f"{sample.defect}/{sample.path.name}" for sample in category.test)
    if len(set(short)) == len(short):
        return short
    return tuple(f"{one.defect}/{one.path.relative_to(category.root).as_posix()}" for one in category.test)


def single_modalities(category: Category) -> tuple[Category, ...]:
    """The category once for each modality that is loaded apart: rgb+depth is an rgb one and a depth one."""
    return tuple(dataclasses.replace(category, modality=modality) for modality in category.modality.split("+"))


def _shapes(category: Category, samples: Sequence[Sample], resolution: int, fit: str) -> list[Shape]:
    """The height and width that each image is brought to; only where proportions are kept are the files asked."""
    if fit == SQUASH or not samples:
        return [(resolution, resolution)] * len(samples)
    files = [sample.path for sample in samples]
    hashes = cache.unchanged(category, files)
    sizes = _sizes(category, files, hashes, lambda: _measured(files, hashes))
    return [fitted(size, resolution, fit, path) for size, path in zip(sizes, files, strict=True)]


def _canvas(shapes: Sequence[Shape]) -> Shape:
    """The height and width that hold each of the shapes."""
    return max(height for height, _ in shapes), max(width for _, width in shapes)


def _images(
    category: Category, split: str, samples: Sequence[Sample], resolution: int, fit: str = SQUASH
) -> npt.NDArray[np.uint8]:
    if not 1 <= resolution <= 8192:
        raise DatasetError(f"resolution {resolution}: must lie between 1 and 8192")
    if category.modality not in ("rgb", "depth"):
        raise DatasetError(f"{category.name}: {category.modality} has two pictures; load single_modalities one by one")
    if not samples:
        return np.zeros((0, 3, resolution, resolution), dtype=np.uint8)
    if category.modality == "depth":
        return _depths(category, split, samples, resolution, fit)
    files = [sample.path for sample in samples]
    hashes = cache.unchanged(category, files)
    shapes = _shapes(category, samples, resolution, fit)

    def fill(array: cache.Array) -> None:
        def decode(index: int) -> None:
            height, width = shapes[index]
            found, sizes[index] = read_rgb(files[index], shapes[index], hashes[files[index]])
            array[index, :, :height, :width] = found
            let_go(array, shared=True)

        sizes: list[Size] = [(0, 0)] * len(files)
        _in_threads(decode, len(files))
        _sizes(category, files, hashes, lambda: sizes)

    name = cache.key(f"rgb-{split}", files, hashes, category.root, resolution, *_said(fit))
    return cache.array(name, (len(files), 3, *_canvas(shapes)), np.uint8, fill)


def _said(fit: str) -> tuple[str, ...]:
    """What names an entry of the cache besides the resolution: nothing for squares, which are older than fits."""
    return () if fit == SQUASH else (fit,)


def _depths(
    category: Category, split: str, samples: Sequence[Sample], resolution: int, fit: str
) -> npt.NDArray[np.uint8]:
    from kdad_bench.datasets.depth import RENDERED_BY, read_depth

    scans = _scans(samples)
    hashes = cache.unchanged(category, scans)
    top = highest_relief(category)
    shapes = _shapes(category, samples, resolution, fit)

    def fill(array: cache.Array) -> None:
        def decode(index: int) -> None:
            height, width = shapes[index]
            found, size = read_depth(scans[index], shapes[index], top, hashes[scans[index]])
            if size != image_size(samples[index].path):
                raise DatasetError(
                    f"{scans[index]}: the scan is {size[0]} x {size[1]} and its image is not; restore both"
                )
            array[index, :, :height, :width] = found

        _in_threads(decode, len(scans))

    parts = (resolution, top.hex(), RENDERED_BY, *_said(fit))
    name = cache.key(f"depth-{split}", scans, hashes, category.root, *parts)
    return cache.array(name, (len(scans), 3, *_canvas(shapes)), np.uint8, fill)


def _scans(samples: Sequence[Sample]) -> list[Path]:
    """The scans of samples; `category_of` has seen to it that each has one."""
    return [sample.scan for sample in samples if sample.scan is not None]


def highest_relief(category: Category) -> float:
    """The highest relief of the category's normal training scans, in metres; the scale of the height channel."""
    from kdad_bench.datasets.depth import RENDERED_BY, top_of

    scans = _scans(category.train)
    hashes = cache.unchanged(category, scans)

    def fill(array: cache.Array) -> None:
        def measure(index: int) -> None:
            array[index] = top_of(scans[index], hashes[scans[index]])

        _in_threads(measure, len(scans))

    name = cache.key("tops", scans, hashes, category.root, RENDERED_BY)
    tops = cache.array(name, (len(scans),), np.float64, fill)
    return float(np.max(tops))


def _masks(category: Category, resolution: int, fit: str) -> tuple[npt.NDArray[np.bool_], list[int]]:
    """The masks [N, H, W] of the test images, and the places of those that no mask of theirs marks at its own size."""
    marked = [(index, sample) for index, sample in enumerate(category.test) if sample.masks]
    files = [path for _, sample in marked for path in (sample.path, *sample.masks)]
    every, masks = [sample.path for sample in category.test], [path for _, sample in marked for path in sample.masks]
    hashes = cache.unchanged(category, [*every, *files])
    shapes = _shapes(category, category.test, resolution, fit)

    def fill(array: cache.Array) -> None:
        sizes = _sizes(category, every, hashes, lambda: _measured(every, hashes))

        def decode(place: int) -> None:
            index, sample = marked[place]
            read = [mask_of(path, sizes[index], hashes[path]) for path in sample.masks]
            height, width = shapes[index]
            array[index, :height, :width] = np.any([reduced(mask.marked, shapes[index]) for mask in read], axis=0)
            let_go(array, shared=True)
            found.update({path: _in_short(mask) for path, mask in zip(sample.masks, read, strict=True)})

        found: dict[Path, Seen] = {}
        _in_threads(decode, len(marked))
        _seen(category, masks, hashes, found.__getitem__)

    name = cache.key("masks", [*every, *files], hashes, category.root, resolution, *_said(fit))
    array = cache.array(name, (len(category.test), *_canvas(shapes)), np.bool_, fill)
    seen = _seen(category, masks, hashes, lambda path: _in_short(mask_of(path, sha256=hashes[path])))
    _warn(category, {path: one.doubt for path, one in seen.items()})
    _warn(category, dict(zip(seen, inverted([(one.share, one.rim) for one in seen.values()]), strict=True)))
    _warn(category, dict.fromkeys(_turned_apart(category, [sample for _, sample in marked], hashes), TURNED_APART))
    return array, [index for index, sample in marked if not any(seen[path].share for path in sample.masks)]


def _in_short(mask: Mask) -> Seen:
    return Seen(float(mask.marked.mean()), mask.rim, mask.doubt)


def _turned_apart(category: Category, marked: Sequence[Sample], hashes: Hashes) -> list[Path]:
    """The masks that a note of the camera turns otherwise than their image, remembered at any resolution."""
    pairs = [(sample.path, mask) for sample in marked for mask in sample.masks]
    files = [path for pair in pairs for path in pair]

    def fill(array: cache.Array) -> None:
        def look(place: int) -> None:
            array[place] = turned_apart(*pairs[place])

        _in_threads(look, len(pairs))
        for path, digest in cache.content_hashes(files).items():  # headers are read, not hashed
            if digest != hashes[path]:
                raise DatasetError(f"{path}: changed while it was read; run again when nothing writes to it")

    name = cache.key("turned apart", files, hashes, category.root)
    kept = cache.array(name, (len(pairs),), np.bool_, fill)
    return [mask for (_, mask), apart in zip(pairs, kept, strict=True) if apart]


def _seen(
    category: Category, masks: Sequence[Path], hashes: Hashes, examine: Callable[[Path], Seen]
) -> dict[Path, Seen]:
    """What each mask is, remembered at any resolution."""

    def said(path: Path) -> str:
        share, rim, doubt = examine(path)
        return f"{share!r} {rim!r} {doubt}"

    kept = _lines(cache.key("doubts of masks", masks, hashes, category.root), masks, said)
    parts = {path: line.split(" ", 2) for path, line in kept.items()}
    return {path: Seen(float(share), float(rim), doubt) for path, (share, rim, doubt) in parts.items()}


def _marks_in_normals(category: Category) -> dict[Path, str]:
    """Masks of normal images -> what is said of those that mark something or cannot be read; remembered."""
    hashes: Hashes = {}

    def said(path: Path) -> str:
        try:
            return MARKS_A_NORMAL if mask_of(path, sha256=hashes.get(path)).marked.any() else ""
        except DatasetError as error:
            return f"is not used: {str(error).removeprefix(f'{path}: ')}"

    try:
        hashes |= cache.content_hashes(category.blank)
    except DatasetError:  # one of them cannot be read, and so none is remembered
        return {path: said(path) for path in category.blank}
    name = cache.key("masks of normal images", [], {}, category.root, *(hashes[path] for path in category.blank))
    return _lines(name, category.blank, said) if category.blank else {}


def _lines(name: str, paths: Sequence[Path], say: Callable[[Path], str]) -> dict[Path, str]:
    """What is said of each file in one line, kept in the entry `name` of the cache."""

    def fill(array: cache.Array) -> None:
        def put(place: int) -> None:
            text = say(paths[place]).encode("ascii", "replace")[:SEEN_BYTES]
            array[place, : len(text)] = np.frombuffer(text, np.uint8)

        _in_threads(put, len(paths))

    kept = cache.array(name, (len(paths), SEEN_BYTES), np.uint8, fill)
    found = (row.tobytes().rstrip(b"\0").decode("ascii") for row in kept)
    return dict(zip(paths, found, strict=True))


def _warn(category: Category, doubts: dict[Path, str]) -> None:
    """One line for each reason to doubt masks, with the first file and the number of those like it; none for none."""
    reasons: dict[str, list[Path]] = {}
    for path, doubt in doubts.items():
        if doubt:
            reasons.setdefault(NUMBER.sub("", doubt), []).append(path)
    for those in reasons.values():
        many = f" (and {len(those) - 1} more masks like it)" if len(those) > 1 else ""
        first, doubt = those[0], doubts[those[0]]
        name = first.relative_to(category.root) if first.is_relative_to(category.root) else first
        line = f"{category.dataset}/{category.name}: the mask {name} {doubt}{many}"
        warnings.warn(printable(line), stacklevel=4)


def load_regions(category: Category, resolution: int, fit: str = SQUASH) -> Regions:
    """The region that each mask file of the category marks, with the share of it that saturates.

    The share is taken at the mask's own size, where absolute areas of `category.saturation` are meant. Raises
    DatasetError for a mask that marks nothing, marks with several values, or with one that is not listed.
    """
    if category.saturation is None:
        raise DatasetError(f"{category.root}: no file says at which area a region counts as found")
    every = [(image, path) for image, sample in enumerate(category.test) for path in sample.masks]
    files = [path for _, path in every]
    hashes = cache.unchanged(category, [*files, category.saturation])
    known = saturations(category.saturation, hashes[category.saturation])
    shapes = _shapes(category, category.test, resolution, fit)

    def fill(array: cache.Array) -> None:
        def decode(place: int) -> None:
            mask = mask_of(files[place], sha256=hashes[files[place]])
            height, width = shapes[every[place][0]]
            array[place, :height, :width] = reduced(mask.marked, (height, width))
            shares[place] = share_of(files[place], mask, known)

        shares = [0.0] * len(files)
        _in_threads(decode, len(files))
        _shares(category, files, hashes, known, lambda: shares)

    name = cache.key("regions", [*files, category.saturation], hashes, category.root, resolution, *_said(fit))
    masks = cache.array(name, (len(files), *_canvas(shapes)), np.bool_, fill)
    shares = _shares(
        category, files, hashes, known,
        lambda: [share_of(path, mask_of(path, sha256=hashes[path]), known) for path in files],
    )  # fmt: skip
    return Regions(masks, np.array([image for image, _ in every], np.int64), shares)


def _shares(
    category: Category,
    files: Sequence[Path],
    hashes: Hashes,
    known: dict[int, Saturation],
    measure: Callable[[], list[float]],
) -> npt.NDArray[np.float64]:
    """The share of each region that saturates, remembered at any resolution."""

    def fill(array: cache.Array) -> None:
        array[:] = measure()

    name = cache.key("shares", files, hashes, category.root, sorted(known.items()))
    return cache.array(name, (len(files),), np.float64, fill)


def _sizes(category: Category, files: Sequence[Path], hashes: Hashes, measure: Callable[[], list[Size]]) -> list[Size]:
    """(width, height) of the decoded images, remembered so that a mask is compared without decoding its image again."""

    def fill(array: cache.Array) -> None:
        array[:] = measure()

    found = cache.array(cache.key("sizes", files, hashes, category.root), (len(files), 2), np.int32, fill)
    return [(int(width), int(height)) for width, height in found]


def _measured(files: Sequence[Path], hashes: Hashes) -> list[Size]:
    sizes: list[Size] = [(0, 0)] * len(files)

    def measure(index: int) -> None:
        path = files[index]
        sizes[index] = open_image(path, read_bytes(path, hashes[path])).size

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
