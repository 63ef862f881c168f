"""Methods from outside the package: files and entry points (`kdad_bench.outside`), checked and known by their names."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench import outside as code
from kdad_bench.outside import NAME, OutsideError, spelled

if TYPE_CHECKING:
    from kdad_bench.methods.protocol import Entry

__all__ = [
    "ADDED",
    "NAME",
    "Outside",
    "OutsideError",
    "add_content",
    "add_file",
    "add_installed",
    "installed",
    "spelled",
]

GROUP = "kdad_bench.methods"  # entry points of installed packages: NAME = "module:ENTRY"
PRESETS = ("quick", "paper")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outside:
    """A method that is not this package's, and the code that it runs."""

    entry: Entry
    where: str  # as messages name it
    sha256: str  # of the file, or of all files of the distribution
    content: bytes = b""  # of the file; none of a package, which every process imports by itself
    attribute: str = ""  # of the file's module


ADDED: dict[str, Outside] = {}  # name -> method, of this process


def add_file(path: Path, attribute: str, taken: Collection[str]) -> str:
    """Load the entry `attribute` (empty: the only one) of a file and return its name; raises OutsideError."""
    return add_content(code.read(path), attribute, str(path), taken)


def add_content(content: bytes, attribute: str, where: str, taken: Collection[str]) -> str:
    """`add_file` of bytes that were read already: a worker process gets them with its job."""
    from kdad_bench.methods.foreign import process_as_it_was
    from kdad_bench.methods.protocol import Entry

    sha256 = hashlib.sha256(content).hexdigest()
    with process_as_it_was(but=("environment variables",)):  # which libraries read when they are loaded
        module = code.module_of(content, sha256, where)
    found = code.entry_in(module, attribute, where, Entry)
    entry = checked(found, where, taken)
    other = ADDED.get(entry.name)
    if other is not None and other.sha256 != sha256:
        raise OutsideError(f"{where}: the name {entry.name!r} is that of {other.where} too; rename one of them")
    if other is None:
        ADDED[entry.name] = Outside(entry=entry, where=where, sha256=sha256, content=content, attribute=attribute)
    return entry.name


def checked(found: Any, where: str, taken: Collection[str]) -> Entry:
    """`found` if it can be run as a method; raises OutsideError."""
    from kdad_bench.methods.protocol import FAMILIES, Entry, Settings

    code.refuse_no_entry(found, where, Entry)
    entry: Entry = found
    if entry.name in taken:
        raise OutsideError(f"{where}: the name {entry.name!r} is that of a method of this package; take another")
    if not isinstance(entry.presets, dict) or any(
        not isinstance(entry.presets.get(preset), Settings) for preset in PRESETS
    ):
        raise OutsideError(f"{where}: presets need 'quick' and 'paper', each an instance of Settings")
    if not callable(entry.build):
        raise OutsideError(f"{where}: build is of type {type(entry.build).__name__}, not callable")
    if entry.family not in FAMILIES or not isinstance(entry.title, str) or not entry.title.strip():
        raise OutsideError(f"{where}: it needs a title, and a family of {', '.join(FAMILIES)}")
    return entry


def installed() -> dict[str, metadata.EntryPoint]:
    """name -> entry point, of all installed packages."""
    return code.installed(GROUP)


def add_installed(name: str, taken: Collection[str]) -> bool:
    """Load the method that an installed package registers as `name`; False without one. Raises OutsideError."""
    if name in ADDED:
        return True
    kept = None if name in taken else code.installed_entry(GROUP, name, partial(checked, taken=taken))
    if kept is None:
        return False
    entry, where, sha256 = kept
    ADDED[name] = Outside(entry=entry, where=where, sha256=sha256)
    return True
