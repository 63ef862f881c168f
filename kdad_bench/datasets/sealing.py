"""Categories as a plan takes them: their files are looked at, hashed, and held to those hashes when they are loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from kdad_bench.datasets import cache
from kdad_bench.datasets.category import Category, DatasetError, printable
from kdad_bench.datasets.decoding import upright
from kdad_bench.datasets.listing import SHOWN
from kdad_bench.datasets.saturation import saturations
from kdad_bench.datasets.torn import Size, fault_of, fault_of_scan

OTHER_SIZE = "of another size than their image"
NUMBER = re.compile(r"\d+")


def sealed(category: Category) -> Category:
    """The category with the hash of every file, so that loading it refuses a file that has changed since.

    Raises DatasetError as `all_sealed` does.
    """
    return all_sealed([category])[0]


def sealed_apart(categories: Sequence[Category]) -> list[Category]:
    """`all_sealed`, but categories with faults spoil no other: they come back with `faults`, a line for each kind.

    Raises DatasetError as `all_sealed` does where every category has faults, and where a file cannot be hashed.
    """
    faults = [tuple(lines_on([one])) for one in categories]
    if all(faults):
        return all_sealed(categories)
    return [replace(hashed(one), faults=lines) for one, lines in zip(categories, faults, strict=True)]


def hashed(category: Category) -> Category:
    """`sealed`, but no image is looked at: for what is judged on its test images alone, whose decoding tells.

    Raises DatasetError for a file that is missing or cannot be read.
    """
    return replace(category, seal=cache.named(category, cache.content_hashes(dict.fromkeys(category.files()))))


def all_sealed(categories: Sequence[Category]) -> list[Category]:
    """The categories with the hash of every file. No pixel is decoded.

    Raises DatasetError with a line for each kind of fault that the beginnings and the ends of their images show: what
    is missing, not readable, empty, no image or cut short, masks of another size than their image, and saturations that
    cannot be read.
    """
    if lines := [line for those in _by_dataset(categories) for line in lines_on(those)]:
        raise DatasetError(*lines)
    return [hashed(one) for one in categories]


def leaks(category: Category) -> Iterator[str]:
    """A line on the images of a sealed category that lie in two of its splits, if there are any."""
    if twice := cache.equal_contents(category):
        those = ", ".join(f"{name} is {other}" for name, other in twice[:SHOWN]) + (", ..." if twice[SHOWN:] else "")
        images = "1 image has" if len(twice) == 1 else f"{len(twice)} images have"
        yield printable(
            f"{category.root}: {images} the contents of one in another split ({those}): what is learnt from is judged; "
            "keep one of each"
        )


def _by_dataset(categories: Iterable[Category]) -> list[list[Category]]:
    found: dict[str, list[Category]] = {}
    for one in categories:
        found.setdefault(one.dataset, []).append(one)
    return list(found.values())


def lines_on(categories: Sequence[Category]) -> Iterator[str]:
    """A line for each kind of fault of the images and masks of a data set: how many files have it, the first names."""
    every = [path for one in categories for _, sample in one.splits() for path in (sample.path, *sample.masks)]
    looked = looked_at(every)
    faults = {path: why for path, (why, _) in looked.items() if why}
    sizes = {path: size for path, (_, size) in looked.items()}
    faults |= dict.fromkeys((path for one in categories for path in _odd_masks(one, sizes)), OTHER_SIZE)
    faults |= {path: why for path in _others(categories, looked) if (why := fault_of_scan(path))}
    yield from told(Path(os.path.commonpath([one.root for one in categories])), faults)
    for one in categories:
        if one.saturation is not None and one.saturation not in faults:
            yield from _lines_on_saturation(one.saturation)


def _others(categories: Sequence[Category], looked: Mapping[Path, object]) -> list[Path]:
    """The files that are no images: scans, and what says where regions saturate."""
    return [path for one in categories for path in one.files() if path not in looked]


def _lines_on_saturation(path: Path) -> tuple[str, ...]:
    try:
        saturations(path)
    except DatasetError as error:
        return error.lines
    return ()


def looked_at(files: Iterable[Path]) -> dict[Path, tuple[str, Size]]:
    """What `fault_of` says of each file."""
    each = list(dict.fromkeys(files))
    with ThreadPoolExecutor(cache.workers()) as pool:
        return dict(zip(each, pool.map(fault_of, each), strict=True))


def told(root: Path, faults: Mapping[Path, str]) -> Iterator[str]:
    """A line for each kind of fault, kinds that differ in numbers alone together."""
    kinds: dict[str, list[Path]] = {}
    for path, why in faults.items():
        kinds.setdefault(NUMBER.sub("", why), []).append(path)
    for those in kinds.values():
        names = ", ".join(os.path.relpath(path, root) for path in those[:SHOWN])
        more = ", ..." if len(those) > SHOWN else ""
        one = len(those) == 1
        yield (
            f"{root}: {len(those)} {'file' if one else 'files'}: {faults[those[0]]} ({names}{more}); "
            f"restore {'it' if one else 'them'}"
        )


def _odd_masks(category: Category, sizes: Mapping[Path, Size]) -> Iterator[Path]:
    """The masks whose width and height are not those of their image, both as they are read: turned upright."""
    for _, sample in category.splits():
        own = sizes[sample.path]
        for path in sample.masks:
            known = 0 not in (*own, *sizes[path])
            if known and (sorted(own) != sorted(sizes[path]) or (own[0] != own[1] and _across(sample.path, path))):
                yield path


def _across(image: Path, mask: Path) -> bool:
    """Whether a mask has the width of its image for a height; their headers alone are read."""
    try:
        return upright(image).size != upright(mask).size
    except DatasetError:  # damaged in a way that decoding tells
        return False
