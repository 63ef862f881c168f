"""What lies in a folder of a data set: images, folders, and everything else with the reason why it is not used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from kdad_bench.datasets.category import UNPRINTABLE, DatasetError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
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

    Raises DatasetError where two folders differ in nothing but their case.
    """
    exact = folder / name
    try:
        named = [other for other in os.listdir(folder) if other.casefold() == name.casefold()]
    except OSError:
        return None
    found = [folder / other for other in sorted(named) if is_folder(folder / other)]
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise DatasetError(f"{folder}: the folders {names} differ in nothing but case; make one of them")
    return exact if exact in found else next(iter(found), None)


def files_below(folder: Path) -> int:
    """The number of files below a folder that are not hidden; links to folders are not followed."""
    count = 0
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(name)]
        count += sum(not hidden(name) for name in files)
    return count


def holds_images(folder: Path) -> bool:
    """Whether an image lies anywhere below a folder, by its suffix."""
    for _, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(name)]
        if any(not hidden(name) and Path(name).suffix.lower() in SUFFIXES for name in files):
            return True
    return False


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
