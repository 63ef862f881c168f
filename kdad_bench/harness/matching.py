"""Offered maps and scores, image by image: what is missing, doubled or misnamed is said in one line each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kdad_bench.datasets import Category, Sample, names_of
from kdad_bench.harness.choices import suggestion
from kdad_bench.harness.offers import APART, Key, Offer, normal


@dataclass(kw_only=True)
class Matched:
    """The maps and scores of one category, by the number of the test image, and what is wrong with them."""

    category: Category
    maps: dict[int, Offer] = field(default_factory=dict)
    scores: dict[int, Offer] = field(default_factory=dict)
    unlabelled: int = 0  # offers for images whose labels are not published
    apart: int = 0  # offers from folders of images that nothing is judged on
    problems: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """How people read the category."""
        return f"{self.category.dataset}/{self.category.name}"

    @property
    def remarks(self) -> list[str]:
        """A line for each kind of offer that is not used."""
        kinds = {
            "of images whose labels are not published": self.unlabelled,
            f"in folders that hold no test images ({', '.join(APART)})": self.apart,
        }
        return [f"{self.label}: {count} maps or scores {what}, not used" for what, count in kinds.items() if count]


@dataclass(frozen=True, kw_only=True)
class Matching:
    """All evaluated categories; what belongs to none of them; the number of offers for others."""

    categories: tuple[Matched, ...]
    problems: tuple[str, ...]
    unused: int

    @property
    def faults(self) -> list[str]:
        """Every line, those on offers that fit no image first."""
        return [*self.problems, *(line for one in self.categories for line in one.problems)]

    @property
    def remarks(self) -> list[str]:
        """A line for each kind of offer that is not used."""
        other = [f"{self.unused} maps or scores of categories that were not chosen"] if self.unused else []
        return [*other, *(line for one in self.categories for line in one.remarks)]


class Images:
    """The test images of a category by what they may be called."""

    def __init__(self, category: Category) -> None:
        self.names, self.test, self.category = names_of(category), category.test, category
        self.by: dict[tuple[str, str], list[int]] = {}
        for number, sample in enumerate(category.test):
            for name in dict.fromkeys((normal(sample.path.name), normal(sample.path.stem))):
                for defect in (normal(sample.defect), ""):
                    self.by.setdefault((defect, name), []).append(number)
        # where a file name does not tell two images of a kind apart, their paths do, with or without the kind
        several = self.names != tuple(map(name_of, category.test))
        self.whole: dict[str, list[int]] = {}
        for number, name in enumerate(self.names if several else ()):
            for path in (normal(name), normal(name.partition("/")[2])):
                for said in dict.fromkeys((path, without_suffix(path))):
                    self.whole.setdefault(said, []).append(number)
        self.apart = {(normal(path.parent.name), normal(path.stem)) for path in category.unlabelled}

    def called(self, offer: Offer) -> list[int]:
        """The numbers of the images that an offer may mean; a map's own suffix is no part of the name."""
        if those := self.by_path(offer):
            return those
        key, is_file = offer.key, offer.is_file
        stem = PurePosixPath(key.name).stem
        for name in (stem,) if is_file else (key.name, stem):
            if found := self.by.get((key.defect, name)):
                return found
        return []

    def by_path(self, offer: Offer) -> list[int]:
        """The numbers of the images whose whole path that of an offer ends with, where their names do not tell them.

        A name alone is the whole path of an image only where nothing stands before it.
        """
        parts = (without_suffix(offer.path) if offer.is_file else offer.path).split("/") if self.whole else []
        ends = ("/".join(parts[start:]) for start in range(max(1, len(parts) - 1)) if parts)
        return next((found for end in ends if (found := self.whole.get(end))), [])

    def lies_in(self, number: int, folder: str) -> bool:
        """Whether a test image lies in a folder of that name, below the one of its category; a table may have taken it
        from anywhere."""
        path = self.test[number].path
        if self.category.by_table:
            return folder in path.absolute().parts[:-1]
        return folder in os.path.relpath(path, self.category.root).split(os.sep)[:-1]

    def without_label(self, key: Key) -> bool:
        """Whether `key` means an image of the category whose label is not published."""
        return (key.defect, PurePosixPath(key.name).stem) in self.apart


def without_suffix(path: str) -> str:
    """A path with slashes, without the suffix of its file."""
    return str(PurePosixPath(path).with_suffix("")) if PurePosixPath(path).name else path


def name_of(sample: Sample) -> str:
    """`<defect>/<file name>`."""
    return f"{sample.defect}/{sample.path.name}"


def match(maps: Sequence[Offer], scores: Sequence[Offer], chosen: Sequence[Category], known: Iterable[str]) -> Matching:
    """Give each offer to its image. An offer for a category of `known` that was not chosen is only counted."""
    found = {normal(category.name): Matched(category=category) for category in chosen}
    images = {normal(category.name): Images(category) for category in chosen}
    every, problems, unused = set(map(normal, known)) | set(found), list[str](), 0
    known_files: dict[str, str] = {}
    for offer in (*maps, *scores):
        of_map = offer.file is not None or offer.array is not None
        name = offer.key.category or (next(iter(found)) if len(found) == 1 else "")
        if name not in every:  # folders that are no category: the whole path may tell
            name = next((other for other, those in images.items() if those.by_path(offer)), name)
        if name not in found:
            unused += name in every
            if name not in every:
                problems.append(stray(offer, sorted(every)))
            continue
        one = found[name]
        numbers = images[name].called(offer)
        if not numbers and images[name].without_label(offer.key):
            one.unlabelled += 1
            continue
        if offer.key.apart:  # a table may take its test images from there
            numbers = [number for number in numbers if images[name].lies_in(number, offer.key.apart)]
            if not numbers:
                one.apart += 1
                continue
        if len(numbers) != 1:
            one.problems.append(misnamed(offer, one, images[name], numbers))
            continue
        label = f"{one.label} {images[name].names[numbers[0]]}"
        for what, kept, there in (("map", one.maps, of_map), ("score", one.scores, offer.score is not None)):
            if there and numbers[0] in kept:
                one.problems.append(f"{offer.where}: a second {what} of {label}, after {kept[numbers[0]].where}")
            elif there:
                kept[numbers[0]] = offer
    for one in found.values():
        one.problems += shared(one, known_files)
        one.problems += missing(one, "map", one.maps)
        one.problems += missing(one, "score", one.scores) if scores or one.scores else ()
    return Matching(categories=tuple(found.values()), problems=tuple(problems), unused=unused)


def stray(offer: Offer, every: Sequence[str]) -> str:
    """A line on an offer for no category."""
    if not offer.key.category:
        return f"{offer.where}: says no category; evaluate one with --category"
    name = offer.key.category
    return f"{offer.where}: no category '{name}'{suggestion(name, every)}; have: {', '.join(every)}"


def misnamed(offer: Offer, one: Matched, images: Images, numbers: Sequence[int]) -> str:
    """A line on an offer whose name fits no image, or several."""
    if numbers:
        few = ", ".join(images.names[number] for number in numbers[:3])
        return f"{offer.where}: may belong to {len(numbers)} images of {one.label} ({few}); say which one"
    said = f"{offer.key.defect}/{offer.key.name}" if offer.key.defect else offer.key.name
    said = offer.path if images.whole else said
    stack = "; if it is a stack of maps, give the file itself" if offer.where.endswith(".npz") else ""
    return f"{offer.where}: no test image '{said}' in {one.label}{suggestion(said, images.names)}{stack}"


def shared(one: Matched, known: dict[str, str]) -> Iterator[str]:
    """A line for each file that is the map of a second image; `known` are the files so far, with their images."""
    names = names_of(one.category)
    for number, offer in sorted(one.maps.items()):
        if offer.file is None:
            continue
        path, name = whole_name(offer.file), f"{one.label} {names[number]}"
        if path in known:
            yield f"{offer.where}: {offer.file} is the map of {name} and of {known[path]}; each image has its own"
        known[path] = name


def whole_name(file: Path) -> str:
    """What is the same of all names of a file, links included."""
    try:
        about = os.stat(file)
    except (OSError, ValueError):  # reading it tells
        return os.path.normpath(file)
    return f"{about.st_dev}:{about.st_ino}" if about.st_ino else os.path.normpath(file)


def missing(one: Matched, what: str, kept: Mapping[int, Offer]) -> list[str]:
    """A line for each image without; a single one where no image has any."""
    if not kept:
        return [f"{one.label}: no {what} for any of its {len(one.category.test)} test images"]
    return [
        f"{one.label}: no {what} of {name}" for number, name in enumerate(names_of(one.category)) if number not in kept
    ]
