"""Data sets from outside the package: files and entry points (`kdad_bench.outside`), checked and known by their names.

Whatever their code raises or returns that cannot be is one line: a run never trains on it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from kdad_bench import outside as code
from kdad_bench.datasets.category import MODALITIES, UNPRINTABLE, DatasetError, Sample, is_name
from kdad_bench.datasets.entry import Archive, Counts, Entry, Layout
from kdad_bench.datasets.listing import Unused, is_folder
from kdad_bench.datasets.survey import Survey
from kdad_bench.interrupts import by_a_person
from kdad_bench.outside import OutsideError
from kdad_bench.process import aside, in_main_thread

GROUP = "kdad_bench.datasets"  # entry points of installed packages: NAME = "module:ENTRY"
STAND_IN = "synthetic_"  # how the names of drawn stand-ins begin
NUMBERS = [one.name for one in fields(Counts) if one.name not in ("types", "renamed", "width", "height")]
TOTALS = [*NUMBERS, "masks"]  # NUMBERS are of images
NO_NAME = "of letters that show, without a slash"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """A data set that is not this package's."""

    entry: Entry
    where: str  # as messages name it
    sha256: str  # of the file, or of the code of the package (`hash_of`)
    attribute: str = ""  # of the file's module


ADDED: dict[str, Outside] = {}  # name -> data set, of this process


def spelled(text: str) -> tuple[Path, str, str] | None:
    """(file, attribute, PATH) of `path/to/file.py[:ENTRY[:PATH]]`; None for anything else. Raises DatasetError."""
    try:
        return code.spelled(text)
    except OutsideError as error:
        raise DatasetError(str(error)) from error


def add_file(path: Path, attribute: str, taken: Collection[str]) -> str:
    """Load the entry `attribute` (empty: the only one) of a file and return its name; raises DatasetError."""
    where = str(path)
    try:
        content = code.read(path)
        sha256 = hashlib.sha256(content).hexdigest()
        module = code.module_of(content, sha256, where)
        found = code.entry_in(module, attribute, where, Entry)
        entry = checked(found, where, taken)
        attribute = code.attribute_of(module, found)
        code.refuse_twin(entry.name, where, sha256, attribute, ADDED.get(entry.name))
    except OutsideError as error:
        raise DatasetError(str(error)) from error
    ADDED[entry.name] = Outside(entry=entry, where=where, sha256=sha256, attribute=attribute)
    return entry.name


def installed() -> dict[str, metadata.EntryPoint]:
    """name -> entry point, of all installed packages."""
    return code.installed(GROUP)


def add_installed(name: str, taken: Collection[str]) -> bool:
    """Load the data set that an installed package registers as `name`; False without one. Raises DatasetError."""
    if name in ADDED:
        return True
    try:
        kept = None if name in taken else code.installed_entry(GROUP, name, partial(checked, taken=taken))
    except OutsideError as error:
        raise DatasetError(str(error)) from error
    if kept is None:
        return False
    entry, where, sha256 = kept
    ADDED[name] = Outside(entry=entry, where=where, sha256=sha256)
    return True


def checked(found: Any, where: str, taken: Collection[str]) -> Entry:
    """`found`, its code guarded, if it can be run on; raises OutsideError."""
    code.refuse_no_entry(found, where, Entry)
    entry: Entry = found
    for why in reasons_against(entry, taken):
        raise OutsideError(f"{where}: {why}")
    drawn = None if entry.drawn is None else guarded_drawing(entry.drawn, where)
    return replace(entry, layouts=tuple(Guarded(one, where) for one in entry.layouts), drawn=drawn)


def reasons_against(entry: Any, taken: Collection[str]) -> Iterator[str]:
    """What is wrong with an entry, in words that follow its file."""
    if entry.name in taken:
        yield f"the name {entry.name!r} is that of a data set of this package; take another"
    if entry.name.startswith(STAND_IN):
        yield f"the name {entry.name!r} begins as those of drawn stand-ins do; take another"
    for name in ("title", "licence"):
        value = getattr(entry, name)
        if not isinstance(value, str) or not value.strip() or UNPRINTABLE.search(value):
            yield f"{name} {value!r} is no line of text"
    if not isinstance(entry.layouts, tuple) or not entry.layouts or not all(map(is_layout, entry.layouts)):
        yield "layouts need at least one object with `text`, `categories` and `survey`, in a tuple"
    if (
        not isinstance(entry.modalities, tuple)
        or not entry.modalities
        or not all(one in MODALITIES for one in entry.modalities)
    ):
        yield f"modalities {entry.modalities!r} are not of {', '.join(MODALITIES)}, in a tuple"
    if not isinstance(entry.folders, tuple) or not all(map(is_name, entry.folders)):
        yield f"folders {entry.folders!r} are not names of folders, in a tuple"
    if not entry.folders and not entry.takes_path and entry.drawn is None:
        yield "nothing says where it lies: it needs folders, takes_path or drawn"
    if entry.drawn is not None and not callable(entry.drawn):
        yield f"drawn is of type {type(entry.drawn).__name__}, not callable"
    if entry.archive is not None and not isinstance(entry.archive, Archive):
        yield f"archive is of type {type(entry.archive).__name__}, not Archive"
    elif entry.archive is not None and not is_digest(entry.archive):
        yield (
            f"archive: {entry.archive.digest!r} by {entry.archive.algorithm!r} is no checksum: "
            "64 hexadecimal digits by sha256, or 32 by md5"
        )
    if not isinstance(entry.published, Mapping) or not all(isinstance(one, Counts) for one in entry.published.values()):
        yield "published maps names of categories to Counts"
        return
    for name, counts in entry.published.items():
        yield from reasons_against_counts(name, counts)
    if not isinstance(entry.totals, Mapping) or not all(
        name in TOTALS and is_count(value) for name, value in entry.totals.items()
    ):
        yield f"totals {entry.totals!r} are not whole numbers from 0 on by {', '.join(TOTALS)}"
    if not isinstance(entry.needs, tuple) or not all(map(is_name, entry.needs)):
        yield f"needs {entry.needs!r} are not names of files, in a tuple"
    for name in ("takes_path", "takes_file", "closed", "confirmed"):
        if not isinstance(getattr(entry, name), bool):
            yield f"{name} is {getattr(entry, name)!r}, neither True nor False"


def reasons_against_counts(name: Any, counts: Counts) -> Iterator[str]:
    """What is wrong with the published numbers of the category `name`."""
    if not is_name(name):
        yield f"published has a category {name!r}, which is not {NO_NAME}"
    for field in (*NUMBERS, "width", "height"):
        value = getattr(counts, field)
        if not is_count(value) and (value is not None or field in ("unlabelled", "width", "height")):
            yield f"published: {field} of {name!r} is {value!r}, no whole number from 0 on"
    for field in ("types", "renamed"):
        value = getattr(counts, field)
        if not isinstance(value, tuple) or not all(map(is_name, value)):
            yield f"published: {field} of {name!r} are {value!r}, not names of defects, in a tuple"


def is_count(value: object) -> bool:
    """Whether it is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_digest(archive: Archive) -> bool:
    """Whether an archive's checksum is one of its algorithm."""
    digits = {"sha256": 64, "md5": 32}.get(archive.algorithm, 0)
    return is_text(archive.digest) and bool(digits) and bool(re.fullmatch(f"[0-9a-fA-F]{{{digits}}}", archive.digest))


def is_layout(found: object) -> bool:
    """Whether it looks like a layout."""
    asked = (getattr(found, name, None) for name in ("categories", "survey"))
    return isinstance(getattr(found, "text", None), str) and all(map(callable, asked))


def is_text(found: object) -> bool:
    """Whether it is text."""
    return isinstance(found, str)


def is_path(found: object) -> bool:
    """Whether it is a Path."""
    return isinstance(found, Path)


def is_below(found: object, folder: Path) -> bool:
    """Whether it is a Path below `folder`."""
    return isinstance(found, Path) and found.is_relative_to(folder) and ".." not in found.parts


def is_unused(found: object) -> bool:
    """Whether it is an Unused of a path, a reason and a number of files."""
    return isinstance(found, Unused) and is_path(found.path) and is_text(found.why) and is_count(found.files)


def is_pair(found: object) -> bool:
    """Whether it is an image and its mask."""
    return isinstance(found, tuple) and len(found) == 2 and all(map(is_path, found))


def guarded_drawing(drawn: Callable[[Sequence[str]], Path], where: str) -> Callable[[Sequence[str]], Path]:
    """`drawn`, whose mistakes are one line."""

    def draw(names: Sequence[str]) -> Path:
        folder = asked(lambda: drawn(names), where, "drawn")
        if not isinstance(folder, Path):
            raise DatasetError(f"{where}: its drawn gave {type(folder).__name__}, not the Path of a folder; mend it")
        return folder

    return draw


def asked(ask: Callable[[], Any], where: str, what: str) -> Any:
    """What a person's code answers; whatever it raises but DatasetError becomes one, what it sets is put back, and what
    it prints goes to stderr."""
    try:
        with aside() if in_main_thread() else nullcontext():
            return ask()
    except DatasetError:
        raise
    except BaseException as error:  # a person's code raises anything
        if by_a_person(error):
            raise
        raise DatasetError(f"{where}: its {what} failed ({code.said(error)}); mend it") from error


@dataclass(frozen=True, slots=True, eq=False)  # theirs may have no hash, and an `==` of any kind
class Guarded:
    """A layout of other people, with its answers looked at."""

    inner: Layout
    where: str

    @property
    def text(self) -> str:
        """One line on what lies where."""
        return self.inner.text

    def categories(self, root: Path) -> dict[str, Path]:
        """As the layout says, in alphabetical order; raises DatasetError for what are no folders of categories."""
        if not is_folder(root):
            return {}
        found = asked(lambda: self.inner.categories(root), self.where, "layout's `categories`")
        if not isinstance(found, Mapping):
            raise self.wrong("categories", f"gave {type(found).__name__}, not a dict of names and folders")
        for name, folder in found.items():
            if not is_name(name):
                raise self.wrong("categories", f"calls a category {name!r}, which is not {NO_NAME}")
            if not isinstance(folder, Path) or not folder.is_relative_to(root):
                raise self.wrong("categories", f"gave {folder!r} for {name!r}, which is no Path below {root}")
        return dict(sorted(found.items()))

    def survey(self, folder: Path) -> Survey:
        """As the layout says; raises DatasetError for a survey that no run may be made of."""
        found = asked(lambda: self.inner.survey(folder), self.where, "layout's `survey`")
        if not isinstance(found, Survey) or found.folder != folder:
            raise self.wrong("survey", f"gave no Survey of {folder}")
        asked(lambda: self.look_at(found), self.where, "layout's `survey`")
        if not found.faults:
            found.check_splits(folder, folder, folder)
        return found

    def look_at(self, found: Survey) -> None:
        """Raises DatasetError for the first thing that cannot be: a leak between splits first of all."""
        first: dict[Path, str] = {}
        for split, samples in (("train", found.train), ("validation", found.validation), ("test", found.test)):
            for sample in samples:
                self.look_at_sample(found, sample, split)
                if sample.path in first:
                    raise self.wrong("survey", f"has {sample.path} in {first[sample.path]} and in {split}")
                first[sample.path] = split
        self.look_at_the_rest(found)

    def look_at_the_rest(self, found: Survey) -> None:
        """Raises DatasetError for what is said beside the splits, of another type than `Survey` says."""
        if not is_name(found.name):
            raise self.wrong("survey", f"calls its category {found.name!r}, which is not {NO_NAME}")
        for name, fits, what in (
            ("faults", is_text, "a line of text"),
            ("doubts", is_text, "a line of text"),
            ("unused", is_unused, "Unused(path, why)"),
            ("unlabelled", is_unused, "Unused(path, why)"),
            ("absent_scans", is_path, "a Path"),
            ("blank", is_pair, "two Paths, of an image and its mask"),
        ):
            value = getattr(found, name)
            if not isinstance(value, list):
                raise self.wrong("survey", f"gives {name} of type {type(value).__name__}, not a list")
            for one in value:
                if not fits(one):
                    raise self.wrong("survey", f"has {one!r} in {name}, which is not {what}")
        for name in ("has_masks", "by_table"):
            if not isinstance(getattr(found, name), bool):
                raise self.wrong("survey", f"gives {name} as {getattr(found, name)!r}, neither True nor False")
        if found.saturation is not None and not is_below(found.saturation, found.folder):
            how = f"gives saturation as {found.saturation!r}, which is no Path below {found.folder}"
            raise self.wrong("survey", how)

    def look_at_sample(self, found: Survey, sample: Sample, split: str) -> None:
        """Raises DatasetError for an image that is not what its split needs."""
        if not isinstance(sample, Sample):
            raise self.wrong("survey", f"has a {type(sample).__name__} in {split}, not a Sample")
        if not is_name(sample.defect):
            raise self.wrong("survey", f"has the defect {sample.defect!r} in {split}, which is not {NO_NAME}")
        for path in (sample.path, *sample.masks, *(() if sample.scan is None else (sample.scan,))):
            if not is_path(path):
                raise self.wrong("survey", f"has {path!r} in {split}, a {type(path).__name__} and no Path")
            if not is_below(path, found.folder):
                raise self.wrong("survey", f"has {path} in {split}, which is no Path below {found.folder}")
        if split != "test" and sample.label:
            raise self.wrong("survey", f"has {sample.path} in {split}, with the defect {sample.defect!r}")
        if sample.masks and not (found.has_masks and sample.label):
            why = "is normal" if not sample.label else "lies in a category whose has_masks is not set"
            raise self.wrong("survey", f"has a mask for {sample.path}, which {why}")
        if sample.label and found.has_masks and not sample.masks:
            raise self.wrong("survey", f"has no mask for {sample.path}, and has_masks is set")

    def wrong(self, what: str, how: str) -> DatasetError:
        """What to raise for an answer that cannot be."""
        return DatasetError(f"{self.where}: its layout's `{what}` {how}; mend it")
