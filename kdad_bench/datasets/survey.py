"""What was found of one category, before anybody judges it: a run takes it whole, `verify` lists its faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kdad_bench.datasets.category import Category, DatasetError, Sample, printable
from kdad_bench.datasets.listing import Unused, folded, form, remarks


@dataclass(kw_only=True, slots=True)
class Survey:
    """The files of one category by their use. Nothing is left out that is not hidden."""

    name: str
    folder: Path
    layout: str  # one line on what lies where, for messages
    train: list[Sample] = field(default_factory=list)
    validation: list[Sample] = field(default_factory=list)
    test: list[Sample] = field(default_factory=list)
    has_masks: bool = False
    blank: list[tuple[Path, Path]] = field(default_factory=list)  # (normal image, its mask): should mark nothing
    faults: list[str] = field(default_factory=list)  # lines, each of which stops a run
    absent_scans: list[Path] = field(default_factory=list)  # stop a run that needs scans
    unused: list[Unused] = field(default_factory=list)
    unlabelled: list[Unused] = field(default_factory=list)  # test images whose labels are not published: no fault
    by_table: bool = False  # a table says what each image is for
    saturation: Path | None = None  # the file that says at which area a region counts as found
    doubts: list[str] = field(default_factory=list)  # lines on what is used and may not be meant so

    @property
    def samples(self) -> list[Sample]:
        """Every image."""
        return [*self.train, *self.validation, *self.test]

    def check_splits(self, train: Path, good: Path, test: Path) -> None:
        """Note what is empty that must not be: training images, normal and anomalous test images."""
        if not self.train:
            self.faults.insert(0, f"{train}: no image to learn from; the layout is {self.layout}")
        if all(sample.label for sample in self.test):
            self.faults.append(f"{good}: no normal test image; the layout is {self.layout}")
        if not any(sample.label for sample in self.test):
            self.faults.append(f"{test}: no anomalous test image beside {good.name}/; the layout is {self.layout}")


def category_of(survey: Survey, dataset: str, *, synthetic: bool = False, modality: str = "rgb") -> Category:
    """The category that a survey describes. No image is opened.

    Raises DatasetError with a line for each kind of fault: an empty split, missing masks, missing scans where scans are
    needed.
    """
    if survey.faults:
        raise DatasetError(*kinds(survey.faults))
    has_scans = all(sample.scan is not None for sample in survey.samples)
    if modality != "rgb" and survey.absent_scans:
        raise DatasetError(f"{survey.absent_scans[0]}: the scan is missing; restore it or use the modality rgb")
    if modality != "rgb" and not has_scans:
        raise DatasetError(f"modality '{modality}': {dataset} has no scans; use rgb")
    return Category(
        dataset=dataset,
        name=survey.name,
        root=survey.folder,
        train=tuple(survey.train),
        test=tuple(survey.test),
        validation=tuple(survey.validation),
        synthetic=synthetic,
        modality=modality,
        has_masks=survey.has_masks,
        has_scans=has_scans,
        by_table=survey.by_table,
        saturation=survey.saturation if survey.has_masks else None,
        blank=tuple(dict.fromkeys(mask for _, mask in survey.blank)),
        unlabelled=tuple(one.path for one in survey.unlabelled),
        remarks=tuple(map(printable, (*remarks(survey.unused), *remarks(survey.unlabelled), *survey.doubts))),
    )


def kinds(lines: Sequence[str]) -> list[str]:
    """The first of the lines that differ in nothing but names and numbers, with the number of the others like it."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        groups.setdefault(" ".join(word for word in line.split() if not _NAME.search(word)), []).append(line)
    return [one[0] + (f" (and {len(one) - 1} more like it)" if one[1:] else "") for one in groups.values()]


BESIDE = ("_mask", "_gt")  # how the names of masks end that lie beside their images
_NAME = re.compile(r"[/\\.\d]")  # what a word of a path or a number holds


def matched(
    images: Sequence[Path], files: Sequence[Path], endings: Sequence[str], what: str
) -> tuple[dict[Path, Path], list[Unused]]:
    """(image -> the file whose stem is the image's with one of `endings`, the files that belong to no image).

    The first ending that fits wins, then the same letters, then the same case in any Unicode form, then the last name;
    a second file for one image is not used.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(folded(path.stem), []).append(path)
    chosen: dict[Path, Path] = {}
    for image in images:
        for stem in (image.stem + ending for ending in endings):
            found = by_stem.get(folded(stem), [])
            same = [path for path in found if path.stem == stem]
            near = [] if same else [path for path in found if form(path.stem) == form(stem)]
            near = [path for path in near if not _is_anothers(path, images, endings, str)]
            others = [] if same or near else [path for path in found if not _is_anothers(path, images, endings, form)]
            if same or near or others:
                chosen[image] = (same or near or others)[-1]
                break
    used = set(chosen.values())
    stems = {folded(image.stem + ending) for image in chosen for ending in endings}
    lost = [
        Unused(path, f"a second {what} of one image" if folded(path.stem) in stems else f"a {what} without an image")
        for path in files
        if path not in used
    ]
    return chosen, lost


def _is_anothers(path: Path, images: Sequence[Path], endings: Sequence[str], spelt: Callable[[str], str]) -> bool:
    """Whether a file, as `spelt`, fits another image, so that one that it fits less cannot have it."""
    return any(spelt(path.stem) == spelt(image.stem + ending) for image in images for ending in endings)


def twins(images: Sequence[Path], taken: Mapping[Path, Path]) -> list[str]:
    """A line for each image that differs from another by its suffix alone, or that takes the same mask or scan."""
    first: dict[str, Path] = {}
    lines = []
    for image in images:
        other = first.setdefault(folded(image.stem), image)
        shared = taken[image] if image in taken and taken.get(other) == taken[image] else None
        if other is not image and (form(image.stem) == form(other.stem) or shared):
            both = f"; both take {shared.name}" if shared else ""
            in_form = image.stem != other.stem and form(image.stem) == form(other.stem)
            how = "Unicode form" if in_form else "suffix or case"
            lines.append(f"{image}: the same name as {other.name} but for its {how}{both}; is it meant twice?")
    return lines


def masks_beside(images: Sequence[Path], place: str) -> dict[Path, str]:
    """Image that is called as the mask of another one in its folder -> a line that says where masks belong: `place`."""
    by_stem = {folded(path.stem): path for path in images}
    found: dict[Path, str] = {}
    for path in images:
        for ending in BESIDE:
            stem = folded(path.stem).removesuffix(ending)
            if stem != folded(path.stem) and stem in by_stem:
                found[path] = f"{path}: called as the mask of {by_stem[stem].name} beside it; move the masks to {place}"
    return found
