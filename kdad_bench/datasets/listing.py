"""What lies in a folder of a data set: images, folders, and everything else with the reason why it is not used."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdad_bench.datasets.category import UNPRINTABLE, DatasetError
from kdad_bench.datasets.decoding import opened

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
# how files of images begin, those of formats that are not read included; an expression, for what stands further on
BEGINNINGS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-6]\s+[\d#]|P7\n|GIF8[79]a|8BPS\0"
    rb"|qoif|v/1\x01|\xff\x0a|\0\0\0\x0c(?:JXL |jP  )\r\n\x87\n|.{4}ftyp(?:hei[cfsmx]|hev[cmsx]|mif1|msf1|avi[fs]|crx )"
    rb"|.{128}DICM",
    re.DOTALL,
)
# what file managers, synchronisers and archivers leave behind; names that begin with a dot are hidden as well
HIDDEN = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "system volume information",
                    "lost+found", "@eadir"})  # fmt: skip
SHOWN = 3  # names in a line

FILE, FOLDER = "file", "folder"
DANGLING = "links whose target is missing"
UNREADABLE = "cannot be read"
SPECIAL = "neither files nor folders"
SUFFIX = "no suffix of an image"
NAME = "names that are not UTF-8 or hold control characters; rename them"
NESTED = "folders inside a folder of images"
NO_FILE = "folders with the name of an image"
CLOSED = "folders that cannot be listed; check their permissions"
SAID = {DANGLING: "a link whose target is missing", UNREADABLE: "a link that cannot be followed", SUFFIX: "a file",
        SPECIAL: "a pipe or a device", NAME: "a name that does not show"}  # fmt: skip


class Unused(NamedTuple):
    """Something in a data set that nothing reads."""

    path: Path
    why: str
    files: int = 1  # how many, where it is a folder


class Listing(NamedTuple):
    """The contents of a folder without what is hidden, each in the order of the names."""

    files: tuple[Path, ...] = ()
    folders: tuple[Path, ...] = ()
    unused: tuple[Unused, ...] = ()


def hidden(name: str) -> bool:
    """Whether a name is one that people do not mean: it begins with a dot, or a program left it behind."""
    return name.startswith(".") or name.casefold() in HIDDEN


def form(name: str) -> str:
    """A name in one Unicode form (NFC): some systems write é as one sign, others as two."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name in one Unicode form and without capitals (Unicode 15, D145)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def alike(folder: Path, names: Iterable[str]) -> list[str]:
    """A line for each of the names in a folder that differs from an earlier one in its Unicode form alone."""
    first: dict[str, str] = {}
    return [
        f"{folder}: {first[form(name)]!a} and {name!a} differ in nothing but their Unicode form; rename one of them"
        for name in names
        if first.setdefault(form(name), name) != name
    ]


def look(folder: Path | None, suffixes: Iterable[str] = SUFFIXES) -> Listing:
    """List a folder; files are regular ones with one of `suffixes`, in either case. Empty where there is no folder.

    Raises DatasetError if the folder cannot be listed.
    """
    if folder is None or not is_folder(folder):
        return Listing()
    try:
        names = sorted(name for name in os.listdir(folder) if not hidden(name))
    except OSError as error:
        raise DatasetError(
            f"{folder}: the folder cannot be listed ({error.strerror}); check its permissions"
        ) from error
    files, folders, unused = [], [], []
    for path in (folder / name for name in names):
        kind = _kind(path, frozenset(suffixes))  # asks the disk once for each name
        if kind == FILE:
            files.append(path)
        elif kind == FOLDER:
            folders.append(path)
        else:
            unused.append(Unused(path, kind, max(1, files_below(path))))
    return Listing(tuple(files), tuple(folders), tuple(unused))


def _kind(path: Path, suffixes: frozenset[str]) -> str:
    """FILE for a regular one with a known suffix, FOLDER, or why a path cannot be used."""
    if UNPRINTABLE.search(path.name):
        return NAME
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return DANGLING
    except OSError:  # a circle of links, a share that is gone
        return UNREADABLE
    if stat.S_ISDIR(mode):
        return FOLDER
    if not stat.S_ISREG(mode):
        return SPECIAL
    return FILE if path.suffix.lower() in suffixes else SUFFIX


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder; False where it cannot be asked."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether `path` is a regular file; False where it cannot be asked: a name too long, a folder that is closed."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def child(folder: Path, name: str) -> Path | None:
    """The folder `name` in `folder`, in any mixture of upper and lower case; None if there is none.

    Raises DatasetError where two folders differ in nothing but their case or Unicode form.
    """
    exact = folder / name
    try:
        named = [other for other in os.listdir(folder) if folded(other) == folded(name)]
    except OSError:
        return None
    found = [folder / other for other in sorted(named) if is_folder(folder / other)]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DatasetError(
            f"{folder}: the folders {names} differ in nothing but case or Unicode form; make one of them"
        )
    return exact if exact in found else next(iter(found), None)


def severed(folder: Path | None, names: Iterable[str]) -> dict[Path, str]:
    """What bears one of the names of folders and is none (a link to nowhere, a file) -> a line that says so.

    Where a folder of that name is there as well (`child`), it is the one.
    """
    if folder is None or not is_listed(folder):
        return {}
    found: dict[Path, str] = {}
    for name in names:
        for path in (folder / other for other in sorted(os.listdir(folder)) if folded(other) == folded(name)):
            if child(folder, name) is None:
                found[path] = f"{path}: no folder but {SAID[_kind(path, frozenset())]}; restore it, or remove it"
    return found


def is_severed(folder: Path, name: str) -> bool:
    """Whether `name` in a folder is a link that leads nowhere, or a folder that cannot be listed."""
    place = child(folder, name)
    return not is_listed(place) if place is not None else any(map(os.path.islink, severed(folder, [name])))


def is_listed(folder: Path) -> bool:
    """Whether the names in a folder can be listed."""
    try:
        os.listdir(folder)
    except OSError:
        return False
    return True


def loose(folder: Path, why: str, but: Collection[Path] = ()) -> list[Unused]:
    """What lies directly in a folder where folders are read: images, and what cannot be looked at, not those in `but`.

    An image is what has the suffix of one or begins as one. Other files (a licence, a table) are no loss.
    """
    inside = look(folder)
    lost = [Unused(path, why) for path in inside.files]
    for one in inside.unused:
        if one.why != SUFFIX:
            lost.append(one)
        elif begins_as_image(one.path):
            lost.append(Unused(one.path, why))
    return [one for one in lost if one.path not in but]


def begins_as_image(path: Path) -> bool:
    """Whether a file begins as an image does, of a format that is read or of another, or cannot be looked at."""
    try:
        with opened(path) as file:
            return BEGINNINGS.match(file.read(132)) is not None
    except (DatasetError, OSError):
        return True


def files_below(folder: Path) -> int:
    """The number of files below a folder that are not hidden; links to folders are not followed.

    A folder that cannot be listed counts as a file.
    """
    count, closed = 0, list[OSError]()
    for _, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = [name for name in folders if not hidden(name)]
        count += sum(not hidden(name) for name in files)
    return count + len(closed)


def holds_images(folder: Path) -> bool:
    """Whether an image lies anywhere below a folder, by its suffix or its beginning, or what cannot be looked at and
    may be some."""
    closed, others = list[OSError](), list[Path]()
    for place, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = [name for name in folders if not hidden(name)]
        for name in files:
            if not hidden(name):
                if Path(name).suffix.lower() in SUFFIXES or _leads_nowhere(os.path.join(place, name)):
                    return True
                others.append(Path(place, name))
    return bool(closed) or any(begins_as_image(path) for path in others if is_file(path))


def _leads_nowhere(path: str) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def nested(folders: Iterable[Path]) -> list[Unused]:
    """Folders where only files are read; empty ones are no loss, unless one is called like an image."""
    counted = [(path, files_below(path), path.suffix.lower() in SUFFIXES) for path in folders]
    return [Unused(path, NO_FILE if odd else NESTED, max(1, count)) for path, count, odd in counted if count or odd]


def remarks(unused: Sequence[Unused]) -> tuple[str, ...]:
    """A line for each folder and reason: how many files are not used, the first names, and why."""
    groups: dict[tuple[Path, str], list[Unused]] = {}
    for one in unused:
        groups.setdefault((one.path.parent, one.why), []).append(one)
    lines = []
    for (folder, why), those in groups.items():
        count, names = sum(one.files for one in those), ", ".join(one.path.name for one in those[:SHOWN])
        more = ", ..." if len(those) > SHOWN else ""
        lines.append(f"{folder}: {count} {'file' if count == 1 else 'files'} not used ({names}{more}): {why}")
    return tuple(lines)
