"""Methods from outside this package: a file that a person names, or an installed package's entry point.

The code of a file is read once. What runs, here and in worker processes, is what was hashed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdad_bench.methods.protocol import Entry

GROUP = "kdad_bench.methods"  # entry points of installed packages: NAME = "module:ENTRY"
MOST_BYTES = 1 << 20  # of a method's file
NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
SPELLED = re.compile(r"(?P<path>.+\.py)(?::(?P<attribute>[^:]*))?(?::(?P<variant>.*))?")
PRESETS = ("quick", "paper")


class OutsideError(ValueError):
    """A method from outside cannot be used: one line that names the file or package and says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """A method that is not this package's, and the code that it runs."""

    entry: Entry
    where: str  # as messages name it
    sha256: str  # of the file, or of all files of the distribution
    content: bytes = b""  # of the file; none of a package, which every process imports by itself
    attribute: str = ""  # of the file's module


ADDED: dict[str, Outside] = {}  # name -> method, of this process


def spelled(text: str) -> tuple[Path, str, str] | None:
    """(file, attribute, variant) of `path/to/file.py[:ENTRY[:VARIANT]]`; None for the name of a method."""
    found = SPELLED.fullmatch(text)
    return (Path(found["path"]).expanduser(), found["attribute"] or "", found["variant"] or "") if found else None


def add_file(path: Path, attribute: str, taken: Collection[str]) -> str:
    """Load the entry `attribute` (empty: the only one) of a file and return its name; raises OutsideError."""
    return add_content(read(path), attribute, str(path), taken)


def read(path: Path) -> bytes:
    """The bytes of a regular file of bounded size; raises OutsideError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OutsideError(f"{path}: not a regular file; give a file of Python")
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, OutsideError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutsideError(f"{path}: cannot be read ({reason}); give a file of Python") from error
    if len(content) > MOST_BYTES:
        raise OutsideError(f"{path}: more than {MOST_BYTES} bytes; a method's file is shorter")
    return content


def add_content(content: bytes, attribute: str, where: str, taken: Collection[str]) -> str:
    """`add_file` of bytes that were read already: a worker process gets them with its job."""
    sha256 = hashlib.sha256(content).hexdigest()
    entry = checked(entry_in(module_of(content, sha256, where), attribute, where), where, taken)
    other = ADDED.get(entry.name)
    if other is not None and other.sha256 != sha256:
        raise OutsideError(f"{where}: the name {entry.name!r} is that of {other.where} too; rename one of them")
    if other is None:
        ADDED[entry.name] = Outside(entry=entry, where=where, sha256=sha256, content=content, attribute=attribute)
    return entry.name


def module_of(content: bytes, sha256: str, where: str) -> ModuleType:
    """The module of these bytes, run once in each process; raises OutsideError where it cannot be."""
    name = f"kdad_bench_outside_{sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = where
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        exec(compile(content, where, "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:  # a person's code raises anything
        del sys.modules[name]
        said = " ".join(str(error).split())[:300]
        raise OutsideError(f"{where}: cannot be imported ({type(error).__name__}: {said}); mend it") from error
    return module


def entry_in(module: ModuleType, attribute: str, where: str) -> Any:
    """The object that `attribute` names, or the only entry of a module; raises OutsideError."""
    from kdad_bench.methods.protocol import Entry

    entries = {name: value for name, value in vars(module).items() if isinstance(value, Entry)}
    have = f"have: {', '.join(entries)}" if entries else "it has no entry: NAME = Entry(name=..., ...)"
    if attribute:
        if attribute not in vars(module):
            raise OutsideError(f"{where}: no {attribute!r} in it; {have}")
        return vars(module)[attribute]
    if len(entries) != 1:
        raise OutsideError(f"{where}: say which entry, {Path(where).name}:ENTRY; {have}")
    return next(iter(entries.values()))


def checked(found: Any, where: str, taken: Collection[str]) -> Entry:
    """`found` if it can be run as a method; raises OutsideError."""
    from kdad_bench.methods.protocol import FAMILIES, Entry, Settings

    if not isinstance(found, Entry):
        raise OutsideError(
            f"{where}: the entry is of type {type(found).__name__}, not kdad_bench.methods.protocol.Entry"
        )
    if not isinstance(found.name, str) or not NAME.fullmatch(found.name):
        raise OutsideError(f"{where}: the name {found.name!r} is not of small letters, digits and _, up to 41")
    if found.name in taken:
        raise OutsideError(f"{where}: the name {found.name!r} is that of a method of this package; take another")
    if not isinstance(found.presets, dict) or any(
        not isinstance(found.presets.get(preset), Settings) for preset in PRESETS
    ):
        raise OutsideError(f"{where}: presets need 'quick' and 'paper', each an instance of Settings")
    if not callable(found.build):
        raise OutsideError(f"{where}: build is of type {type(found.build).__name__}, not callable")
    if found.family not in FAMILIES or not isinstance(found.title, str) or not found.title.strip():
        raise OutsideError(f"{where}: it needs a title, and a family of {', '.join(FAMILIES)}")
    return found


def installed() -> dict[str, metadata.EntryPoint]:
    """name -> entry point, of all installed packages."""
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def add_installed(name: str, taken: Collection[str]) -> bool:
    """Load the method that an installed package registers as `name`; False without one. Raises OutsideError."""
    if name in ADDED:
        return True
    point = installed().get(name) if name not in taken else None
    if point is None:
        return False
    where = f"entry point {name} = {point.value}"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:300]
        raise OutsideError(f"{where}: cannot be imported ({type(error).__name__}: {said}); mend the package") from error
    entry = checked(found, where, taken)
    if entry.name != name:
        raise OutsideError(f"{where}: its entry is called {entry.name!r}; the two names must be equal")
    ADDED[name] = Outside(entry=entry, where=where, sha256=hash_of(point, where))
    return True


def hash_of(point: metadata.EntryPoint, where: str) -> str:
    """SHA-256 of the code of the distribution: the names and bytes of its Python files, in order."""
    files = sorted(file for file in (point.dist.files if point.dist else None) or () if file.suffix == ".py")
    if not files:  # installed in place: the list names no code
        module = sys.modules[point.module]
        return hashlib.sha256(Path(module.__file__ or where).read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.as_posix()}\0".encode())
        digest.update(hashlib.sha256(Path(str(file.locate())).read_bytes()).digest())
    return digest.hexdigest()
