"""Files, folders and patterns, as a person names them -> the photographs they stand for, each once.

The same rules as for data sets: hidden files are passed over, and whatever else is not used is said. Masks and scans
that a data set keeps beside its photographs are none, and neither is a picture that `drawn` marks.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from PIL.PngImagePlugin import PngInfo

from kdad_bench.datasets.category import DatasetError, printable
from kdad_bench.datasets.decoding import PNG_SIGNATURE, opened
from kdad_bench.datasets.finding import at_home
from kdad_bench.datasets.listing import (
    HIDDEN,
    NAME,
    SUFFIX,
    SUFFIXES,
    Listing,
    Unused,
    child,
    files_below,
    is_folder,
    look,
    remarks,
)
from kdad_bench.datasets.plain_layout import MASKS
from kdad_bench.datasets.scan_layout import PARTS

PUBLIC = "test_public"  # of MVTec AD 2, which keeps its ground truth inside
ASIDE = "masks or scans beside photographs"
DRAWN = "pictures that were drawn from scores"
ANSWERS = "predictions.json"  # lies beside them
MARK = "kdad-bench"  # the keyword of a text chunk that the pictures drawn from scores have
ANSWER = re.compile(rb'\{\s*"model": ".*",\s*"method": "')  # how one begins
NOTHING = "no such image, folder of images, or glob that matches one"


class Bad(NamedTuple):
    """Something that was to be a photograph and is none."""

    path: Path
    why: str  # one printable line that begins with the path


@dataclass(kw_only=True, slots=True)
class Photographs:
    """What names stand for, in the order of the names."""

    files: list[Path] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)

    @property
    def remarks(self) -> tuple[str, ...]:
        """A printable line for each kind of thing that is not used."""
        lines = []
        for why in (ASIDE, DRAWN):
            those = [one for one in self.unused if one.why == why]
            if those:
                count = sum(one.files for one in those)
                lines.append(f"{those[0].path}{', ...' if len(those) > 1 else ''}: {count} not used: {why}")
        rest = remarks([one for one in self.unused if one.why not in (ASIDE, DRAWN)])
        return tuple(map(printable, (*lines, *rest)))

    def none_of(self, names: Sequence[str]) -> str:
        """A line on `names` that stand for no photograph: what is not used of them, and what to do."""
        aside = any(one.why == ASIDE for one in self.unused)
        remedy = ("if they are photographs, move them or rename their folder",) if aside else ()
        return printable(f"{', '.join(names)}: no photograph there; {'; '.join((*self.remarks, *remedy))}")


def photographs(names: Sequence[str]) -> Photographs:
    """The photographs that `names` stand for: files, folders with all below, and patterns with `*`, `?`, `[ ]`, `**`.

    A file that is named is taken whatever its suffix, but not out of a folder of masks or scans, as a shell's `*` names
    those too; a name that stands for nothing is bad. No image is decoded.
    """
    found = Photographs()
    for name in names:
        before = len(found.bad), len(found.files), len(found.unused)
        try:
            _take_all(found, name)
        except DatasetError as error:
            found.bad.append(Bad(Path(name), str(error)))
        if before == (len(found.bad), len(found.files), len(found.unused)):
            found.bad.append(Bad(Path(name), printable(f"{name if name.strip() else repr(name)}: {NOTHING}")))
    first: dict[tuple[str, str], Path] = {}
    for path in found.files:
        first.setdefault((os.path.realpath(path.parent), path.name), path)
    found.files, found.unused = list(first.values()), list(dict.fromkeys(found.unused))
    return found


def drawn() -> PngInfo:
    """What a PNG file is to carry (`pnginfo` of Pillow) so that it is not taken for a photograph."""
    info = PngInfo()
    info.add_text(MARK, "drawn from scores")
    return info


def _take_all(found: Photographs, name: str) -> None:
    """Add what one name stands for: itself, or what it matches."""
    path = at_home(Path(name))
    if os.path.lexists(path) and name:
        _take(found, path)
        return
    places = [Path(path.anchor)]
    for part in path.parts[1:] if path.anchor else path.parts:
        places = [one for place in places for one in _step(found, place, part)]
    for one in places if path.parts else ():
        if is_folder(one) or one.suffix.lower() in SUFFIXES:
            _take(found, one)
        else:
            found.unused.append(Unused(one, SUFFIX))


def _step(found: Photographs, place: Path, part: str) -> Iterable[Path]:
    """What one part of a pattern stands for in a folder: the name as it is, where there is one."""
    if os.path.lexists(place / part):
        return [place / part]
    if not is_folder(place) or not glob.has_magic(part):
        return []
    if part == "**":
        return [folder for folder, _ in _walk(found, place)]
    have = look(place)
    paths = sorted([*have.files, *_open(have), *(one.path for one in have.unused)])
    aside = [folder for folder in have.folders if _is_aside(folder)]
    found.unused += [Unused(one, ASIDE, files_below(one)) for one in _matching(aside, part)]
    # brackets that match nothing stand for themselves
    return _matching(paths, part) or _matching(paths, part.replace("[", "[[]"))


def _matching(paths: Iterable[Path], part: str) -> list[Path]:
    return [path for path in paths if fnmatchcase(path.name, part)]


def _take(found: Photographs, path: Path) -> None:
    """Add one file, or all that lies below one folder."""
    if not is_folder(path):
        _sort_in(found, path)
        return
    for _, listing in _walk(found, path):
        for file in listing.files:
            _sort_in(found, file)
        for one in listing.unused:
            _set_aside(found, one)
        found.unused += [Unused(one, ASIDE, files_below(one)) for one in listing.folders if _is_aside(one)]


def _sort_in(found: Photographs, path: Path) -> None:
    """A photograph, unless it is a mask, a scan or a drawn picture."""
    if any(_is_aside(folder) for folder in path.parents):
        found.unused.append(Unused(path, ASIDE))
    elif path.name.casefold() in HIDDEN:  # named by a shell's `*`
        found.unused.append(Unused(path, SUFFIX))
    elif path.name == ANSWERS or is_drawn(path):
        found.unused.append(Unused(path, DRAWN))
    else:
        found.files.append(path)


def _set_aside(found: Photographs, one: Unused) -> None:
    """What `look` does not use: an image that cannot be read is bad, one of a strange name is shown with another."""
    if one.path.suffix.lower() not in SUFFIXES or one.why == SUFFIX:
        found.unused.append(one)
    elif one.why == NAME and not is_folder(one.path):
        _sort_in(found, one.path)
    else:
        found.bad.append(Bad(one.path, printable(f"{one.path}: not used: {one.why}")))


def _walk(found: Photographs, folder: Path) -> Iterator[tuple[Path, Listing]]:
    """(folder, what is in it) of a folder and all below it, each once however many links lead there."""
    pending, seen = [folder], set()
    while pending:
        place = pending.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        try:
            listing = look(place)
        except DatasetError as error:
            found.bad.append(Bad(place, str(error)))
            continue
        yield place, listing
        pending += reversed(_open(listing))


def _open(listing: Listing) -> list[Path]:
    """The folders in which photographs may lie."""
    return [folder for folder in listing.folders if not _is_aside(folder)]


def _is_aside(folder: Path) -> bool:
    """Whether a folder holds masks or scans of a data set: `ground_truth` beside `test` or in `test_public`, `Masks`
    beside `Images`, `xyz` or `gt` beside `rgb`.
    """
    name = folder.name.casefold()
    if name == MASKS:
        return child(folder.parent, "test") is not None or folder.parent.name.casefold() == PUBLIC
    if name == "masks":
        return child(folder.parent, "images") is not None
    return name in PARTS[1:] and child(folder.parent, PARTS[0]) is not None


def is_drawn(path: Path) -> bool:
    """Whether a file begins as a picture with the mark of `drawn`; False where it cannot be read."""
    start = _beginning(path, 64)
    return start.startswith(PNG_SIGNATURE) and start[37:].startswith(b"tEXt" + MARK.encode())


def is_answer(path: Path) -> bool:
    """Whether a file begins as ANSWERS that this package wrote; False where it cannot be read."""
    return ANSWER.match(_beginning(path, 1 << 16)) is not None


def _beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    try:
        with opened(path) as file:
            return file.read(size)
    except (DatasetError, OSError):
        return b""
