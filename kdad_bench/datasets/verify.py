"""Is a copy of a data set complete and sound? Every fault is reported, not only the first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kdad_bench.datasets import cache, outside
from kdad_bench.datasets.category import DatasetError, Sample, printable
from kdad_bench.datasets.decoding import TURNED_APART, as_rgb, image_size, mask_of, open_image, turned_apart
from kdad_bench.datasets.entry import Entry, Layout
from kdad_bench.datasets.finding import expanded, strays
from kdad_bench.datasets.listing import Unused, alike, is_file, is_folder, remarks
from kdad_bench.datasets.marking import inverted
from kdad_bench.datasets.saturation import Saturation, saturations, share_of
from kdad_bench.datasets.survey import Survey
from kdad_bench.datasets.table import entries
from kdad_bench.datasets.whole import NUMBERS, USED, expected, is_own, published_name, short, totals_of, without


@dataclass(kw_only=True, slots=True)
class CategoryReport:
    """What was found of one category."""

    name: str
    train: int = 0
    validation: int = 0
    test_good: int = 0
    test_anomalous: int = 0
    types: list[str] = field(default_factory=list)
    masks: int = 0
    scans: int = 0
    unlabelled: int = 0  # test images whose labels are not published
    published: dict[str, int] | None = None  # the published numbers, where the category has a table
    problems: list[str] = field(default_factory=list)  # what makes results wrong or a run fail
    refused: int = 0  # how many of them a run does not take, in one of the modalities: the others are told by it
    notes: list[str] = field(default_factory=list)  # what is worth knowing

    def refuse(self, *lines: str) -> None:
        """Note problems that a run does not take."""
        self.problems += lines
        self.refused += len(lines)


@dataclass(kw_only=True, slots=True)
class Report:
    """What was found of a data set."""

    path: str
    compared_with: str | None
    categories: list[CategoryReport]
    problems: list[str] = field(default_factory=list)
    refused: int = 0  # how many of them a run of the whole does not take
    notes: list[str] = field(default_factory=list)

    def refuse(self, line: str) -> None:
        """Note a problem that a run of the whole does not take."""
        self.problems.append(line)
        self.refused += 1

    @property
    def exit_code(self) -> int:
        """0 if it is sound, 1 if a run tells what is wrong and goes on, 2 if it refuses."""
        refused = self.refused + sum(category.refused for category in self.categories)
        return 2 if refused else 0 if self.sound else 1

    @property
    def sound(self) -> bool:
        """True if there is no problem anywhere."""
        return not self.problems and not any(category.problems for category in self.categories)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {"sound": self.sound, **asdict(self)}


def verify(root: Path, *, against: str | None = None, done: Callable[[str], None] = lambda _: None) -> Report:
    """Examine a data set (or a single category) in a known layout. `done` is called with each category's name.

    `against` is a data set with published numbers or "none"; without it the table is recognised by the names of the
    categories. Files are decoded, masks compared with their images, and contents compared between train, validation
    and test; whatever is not used is a problem. Raises DatasetError only if `root` holds no category at all.
    """
    return _report(expanded(root), against, done, examine=True)


def count(root: Path, *, against: str | None = None) -> Report:
    """The numbers of a data set compared with the published table; no image is decoded. As `verify` otherwise."""
    return _report(expanded(root), against, lambda _: None, examine=False)


def _report(root: Path, against: str | None, done: Callable[[str], None], *, examine: bool) -> Report:
    tables = entries(lambda one: one.published)
    if against not in (None, "none", *tables, *outside.ADDED):
        raise DatasetError(f"no published table '{against}'; have: {', '.join(tables)}, none")
    asked = outside.ADDED[against].entry if against in outside.ADDED else tables.get(against or "")
    layout, folders = _read(root, asked)
    original = tables.get(against or "") if against else _recognised(tables, layout, list(folders))
    title = original.name if original is not None else None
    report = Report(path=printable(str(root)), compared_with=title, categories=[])
    for line in alike(root, folders):
        report.refuse(printable(line))
    single = root in folders.values()
    if not single:
        report.problems += map(_line, strays(root, list(folders.values())))
    for name, folder in folders.items():
        report.categories.append(_examined(layout, name, folder, original, examine=examine))
        done(name)
    absent = sorted(set(original.published) - {published_name(original, one) for one in folders}) if original else []
    if absent and not single:  # a part of a data set is no fault unless the whole was asked for
        line = f"{root}: {len(absent)} categories of {title} that are not there: {', '.join(absent)}"
        report.refuse(line) if against else report.notes.append(line)
    if original is not None and not absent and not single:
        _compare_totals(report, original)
    return report


def _read(root: Path, asked: Entry | None) -> tuple[Layout, dict[str, Path]]:
    """The first layout that finds a category in `root`: of those of the data set asked for, of folders, of any."""
    if not is_folder(root) and not is_file(root):
        raise DatasetError(f"{root}: no such folder")
    every = sorted(entries().values(), key=lambda one: not one.takes_path)
    first = [asked, *every] if asked is not None else every
    for layout in dict.fromkeys(layout for one in first for layout in one.layouts):
        if folders := layout.categories(root):
            return layout, folders
    raise DatasetError(f"{root}: no category there; the layout is {first[0].layouts[-1].text}")


def _recognised(tables: dict[str, Entry], layout: Layout, names: Sequence[str]) -> Entry | None:
    """The data set in this layout that the categories belong to: at least half of them are in its table."""
    for one in tables.values():
        if layout in one.layouts and 2 * sum(published_name(one, name) is not None for name in names) >= len(names):
            return one
    return None


def _examined(layout: Layout, name: str, folder: Path, original: Entry | None, *, examine: bool) -> CategoryReport:
    """The report on one category; a folder that cannot be listed is its only problem."""
    found = CategoryReport(name=printable(name))
    try:
        survey = layout.survey(folder)
        _count(found, survey)
        if original is not None:
            _compare(found, original)
            lost = without(folder, found.name, {*found.types}, survey.has_masks, original)
            found.refuse(*(f"{folder / file}: missing; without it masks are not read as published" for file in lost))
        if examine:
            _examine(found, survey)
    except DatasetError as error:
        found.refuse(*error.lines)
    found.problems, found.notes = list(map(printable, found.problems)), list(map(printable, found.notes))
    return found


def _line(unused: Unused) -> str:
    return printable(f"{unused.path}: not used: {unused.why}")


def _count(found: CategoryReport, survey: Survey) -> None:
    """The numbers of a survey, and what it says by itself: faults, scans that are missing, what is not used."""
    found.train, found.validation = len(survey.train), len(survey.validation)
    found.test_good = sum(not sample.label for sample in survey.test)
    found.test_anomalous = len(survey.test) - found.test_good
    found.types = list(dict.fromkeys(sample.defect for sample in survey.test if sample.label))
    found.masks = sum(len(sample.masks) for sample in survey.test) + len(survey.blank)
    found.scans = sum(sample.scan is not None for sample in survey.samples)
    found.refuse(*survey.faults)
    found.refuse(*(f"{path}: the scan is missing" for path in survey.absent_scans))
    found.problems += [*map(_line, survey.unused), *survey.doubts]
    found.unlabelled = len(survey.unlabelled)
    found.notes += remarks(survey.unlabelled)


def _compare_totals(report: Report, original: Entry) -> None:
    """Compare the sums over all categories, where single ones are not published."""
    totals = totals_of(original, [one.name for one in report.categories], any(one.masks for one in report.categories))
    have = {key: sum(getattr(one, key) for one in report.categories) for key in totals}
    differing = {key: (have[key], value) for key, value in totals.items() if have[key] != value}
    line = f"{report.path}: all categories together differ from the published numbers: {_said(differing)}"
    if short(differing) and not any(is_own({*one.types}, original, one.name) for one in report.categories):
        report.refuse(line)
    elif differing:
        report.problems.append(line)


def _compare(found: CategoryReport, original: Entry) -> None:
    """Compare the numbers of a category with those published, or with those that were drawn."""
    counts, sure = expected(original, found.name)
    if counts is None:
        found.problems.append(f"{found.name}: not a category of {original.name}")
        return
    known = {**{key: getattr(counts, key) for key in NUMBERS}, "types": len(counts.types)}
    found.published = {key: value for key, value in known.items() if value is not None}
    have = {**asdict(found), "types": len(found.types)}
    differing = {key: (have[key], value) for key, value in found.published.items() if have[key] != value}
    if not differing:
        return
    line = f"{found.name}: differs from the published numbers: {_said(differing)}"
    if sure and short(differing) and not is_own({*found.types}, original, found.name):
        found.refuse(line)
    else:  # kinds of defects are renamed in copies of some data sets
        renamed = set(differing) == {"types"} and {*USED} <= {*found.published}
        (found.problems if sure and not renamed else found.notes).append(line)


def _said(differing: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{key} {there} and not {wanted}" for key, (there, wanted) in differing.items())


def _examine(found: CategoryReport, survey: Survey) -> None:
    """Unreadable files, masks and scans that do not fit, and equal contents in two splits."""
    blank, known = dict(survey.blank), None
    shares: dict[Path, tuple[float, float]] = {}
    try:
        known = saturations(survey.saturation) if survey.saturation is not None else None
    except DatasetError as error:
        found.refuse(str(error))
    with ThreadPoolExecutor(cache.workers()) as pool:
        for broken, odd, marked in pool.map(
            lambda sample: _image_problems(sample, blank.get(sample.path), known), survey.samples
        ):
            found.refuse(*broken)
            found.problems += odd
            shares |= marked
        turned = zip(shares, inverted(list(shares.values())), strict=True)
        found.problems += [f"{path}: the mask {line}" for path, line in turned if line]
        found.problems += [line for line in pool.map(_unreadable, survey.unlabelled) if line]
        found.refuse(*(line for line in pool.map(_scan_problem, survey.samples) if line))
    splits = {"train": survey.train, "validation": survey.validation, "test": survey.test}
    readable = [
        (split, sample.path) for split, samples in splits.items() for sample in samples if _has_bytes(sample.path)
    ]
    hashes = cache.content_hashes([path for _, path in readable])
    by_content: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for split, path in readable:
        by_content[hashes[path]].append((split, path))
    for same in by_content.values():
        first, *others = same
        for split, path in others:
            other = first[1]  # a table may name files outside of the folder
            own = other.relative_to(survey.folder) if other.is_relative_to(survey.folder) else other
            line = f"{path}: the same content as {own}"
            (found.problems if split != first[0] else found.notes).append(line)


def _has_bytes(path: Path) -> bool:
    """Whether a file is there and not empty; one that is not has its own line already."""
    return is_file(path) and path.stat().st_size > 0


def _image_problems(
    sample: Sample, blank: Path | None, known: dict[int, Saturation] | None
) -> tuple[list[str], list[str], dict[Path, tuple[float, float]]]:
    """(what a job fails of, what else is wrong, mask -> the shares of its image and of its rim that it marks) of an
    image and its masks.

    `blank` is the mask of a normal image, `known` what saturates.
    """
    broken: list[str] = []
    odd: list[str] = []
    shares: dict[Path, tuple[float, float]] = {}
    try:
        size = as_rgb(open_image(sample.path), sample.path).size  # as a job reads it
    except DatasetError as error:
        return [str(error)], [], {}
    for path in (*sample.masks, *([blank] if blank is not None else [])):
        try:
            mask = mask_of(path, size)
            if path == blank and mask.marked.any():
                odd.append(f"{path}: marks something in the normal image {sample.path.name}")
            elif path != blank:
                odd += [f"{path}: the mask {mask.doubt}"] if mask.doubt else []
                shares[path] = float(mask.marked.mean()), mask.rim
                odd += [f"{path}: the mask {TURNED_APART}"] if turned_apart(sample.path, path) else []
                if known is not None and mask.marked.any():
                    share_of(path, mask, known)
        except DatasetError as error:
            (odd if path == blank else broken).append(str(error))
    return broken, odd, shares


def _unreadable(unlabelled: Unused) -> str | None:
    """What is wrong with an image without labels."""
    try:
        as_rgb(open_image(unlabelled.path), unlabelled.path)
    except DatasetError as error:
        return str(error)
    return None


def _scan_problem(sample: Sample) -> str | None:
    from kdad_bench.datasets.depth import FEWEST, read_scan

    if sample.scan is None:
        return None
    try:
        points = read_scan(sample.scan)
        size = image_size(sample.path)
    except DatasetError as error:
        return str(error) if str(error).startswith(str(sample.scan)) else None  # the image has its own line already
    if (points.shape[1], points.shape[0]) != size:
        return f"{sample.scan}: {points.shape[1]} x {points.shape[0]} points and its image {size[0]} x {size[1]} pixels"
    seen = int((points[:, :, 2] > 0).sum())
    return f"{sample.scan}: only {seen} points with data" if seen < FEWEST else None
