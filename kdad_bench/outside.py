"""Code from outside this package: a file that a person names, or an installed package's entry point.

A file is read once. What runs, here and in worker processes, is what was hashed.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from kdad_bench.interrupts import by_a_person

MOST_BYTES = 1 << 20  # of a file
MODULE = "kdad_bench_outside_"  # how the module of a file is called, before the first digits of its hash
NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")  # of what an entry is called
SPELLED = re.compile(r"(?P<path>.+?\.py)(?::(?P<attribute>[^:]*))?(?::(?P<rest>.*))?")


class OutsideError(ValueError):
    """Code from outside cannot be used: one line that names the file or package and says why."""


def spelled(text: str) -> tuple[Path, str, str] | None:
    """(file, attribute, rest) of `path/to/file.py[:ENTRY[:REST]]`; None for anything else."""
    found = SPELLED.fullmatch(text)
    if found is None:
        return None
    try:
        return Path(found["path"]).expanduser(), found["attribute"] or "", found["rest"] or ""
    except RuntimeError as error:
        raise OutsideError(f"{text}: {error}; give the whole path") from error


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
        raise OutsideError(f"{path}: more than {MOST_BYTES} bytes; such a file is shorter")
    return content


def module_of(content: bytes, sha256: str, where: str) -> ModuleType:
    """The module of these bytes, run once in each process; raises OutsideError where it cannot be."""
    from kdad_bench.process import loading  # loads NumPy

    name = f"{MODULE}{sha256[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = where
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        with loading():
            exec(compile(content, where, "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:  # a person's code raises anything
        del sys.modules[name]
        if by_a_person(error):
            raise
        raise OutsideError(f"{where}: cannot be imported ({said(error)}); mend it") from error
    return module


def said(error: BaseException) -> str:
    """What a person's code raised, short, on one line."""
    return f"{type(error).__name__}: {' '.join(text_of(error).split())[:300]}"


def text_of(error: BaseException) -> str:
    """What an error says; nothing where asking for it is an error, too."""
    try:
        return str(error)
    except Exception:  # a class of a person's
        return ""


def entry_in(module: ModuleType, attribute: str, where: str, kind: type) -> Any:
    """The object that `attribute` names, or the only `kind` of a module; raises OutsideError."""
    entries = {name: value for name, value in vars(module).items() if isinstance(value, kind)}
    have = f"have: {', '.join(entries)}" if entries else "it has no entry: NAME = Entry(name=..., ...)"
    if attribute:
        if attribute not in vars(module):
            raise OutsideError(f"{where}: no {attribute!r} in it; {have}")
        return vars(module)[attribute]
    if len(entries) != 1:
        raise OutsideError(f"{where}: say which entry, {Path(where).name}:ENTRY; {have}")
    return next(iter(entries.values()))


def attribute_of(module: ModuleType, found: Any) -> str:
    """The first name of a module's object."""
    return next(name for name, value in vars(module).items() if value is found)


def refuse_twin(name: str, where: str, sha256: str, attribute: str, other: Any) -> None:
    """Raises OutsideError where `other`, an entry of that name with its `where`, `sha256` and `attribute`, differs."""
    if other is None or (other.sha256, other.attribute) == (sha256, attribute):
        return
    if other.sha256 == sha256:
        raise OutsideError(f"{where}: two of its entries are called {name!r}; rename one of them")
    if os.path.realpath(other.where) == os.path.realpath(where):
        raise OutsideError(f"{where}: has changed since this process read it; start Python anew")
    raise OutsideError(f"{where}: the name {name!r} is that of {other.where} too; rename one of them")


def refuse_no_entry(found: Any, where: str, kind: type) -> None:
    """Raises OutsideError unless `found` is a `kind` with a name that can stand in rows and on the command line."""
    if not isinstance(found, kind):
        raise OutsideError(f"{where}: the entry is of type {type(found).__name__}, not {kind.__module__}.Entry")
    if not isinstance(found.name, str) or not NAME.fullmatch(found.name):  # type: ignore[attr-defined]
        raise OutsideError(
            f"{where}: the name {found.name!r} is not of small letters, digits and _, up to 41"  # type: ignore[attr-defined]
        )


def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """name -> entry point, of all installed packages."""
    return {point.name: point for point in metadata.entry_points(group=group)}


def installed_entry(group: str, name: str, checked: Callable[[Any, str], Any]) -> tuple[Any, str, str] | None:
    """(entry, how messages name it, hash of its code) of what an installed package registers as `name`; None without.

    `checked` gives the entry that is used of what is found there. Raises OutsideError.
    """
    point = installed(group).get(name)
    if point is None:
        return None
    found, where = loaded(point)
    entry = checked(found, where)
    if entry.name != name:
        raise OutsideError(f"{where}: its entry is called {entry.name!r}; the two names must be equal")
    return entry, where, hash_of(point, where)


def loaded(point: metadata.EntryPoint) -> tuple[Any, str]:
    """(what an entry point names, how messages name it); raises OutsideError where it cannot be imported."""
    from kdad_bench.process import loading

    where = f"entry point {point.name} = {point.value}"
    try:
        with loading():
            return point.load(), where
    except BaseException as error:
        if by_a_person(error):
            raise
        raise OutsideError(f"{where}: cannot be imported ({said(error)}); mend the package") from error


def hash_of(point: metadata.EntryPoint, where: str) -> str:
    """SHA-256 of the code behind an entry point: the names and bytes of Python files, in order.

    They are those that the distribution's RECORD lists, if the entry's module is among the files listed. Installed in
    place, the list names a stub or nothing (and that of an egg-info other files): then they are those below the folders
    of the module's package, or the module itself where it lies in none. Raises OutsideError for what cannot be read.
    """
    listed = sorted((point.dist.files if point.dist and point.dist.read_text("RECORD") is not None else None) or ())
    module = _file_of(point.module, where)
    if any(file.name == module.name and _is_same(Path(str(file.locate())), module) for file in listed):
        files = [(file.as_posix(), Path(str(file.locate()))) for file in listed if file.suffix == ".py"]
    else:
        files = _package_of(point.module)
    if not files:
        return hashlib.sha256(_bytes_of(module, where)).hexdigest()
    digest = hashlib.sha256()
    for name, path in files:
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(_bytes_of(path, where)).digest())
    return digest.hexdigest()


def _file_of(module: str, where: str) -> Path:
    """The file of a module that is loaded; raises OutsideError where it has none."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if not file:
        raise OutsideError(f"{where}: the module {module} has no file, so that its code has no hash; name one that has")
    return Path(file)


def _package_of(module: str) -> list[tuple[str, Path]]:
    """(name, path) of each Python file of the outermost package around a loaded module, in order; none without one.

    A namespace, in which several distributions may lie, is no package.
    """
    names = module.split(".")
    for count in range(1, len(names) + 1):
        package = sys.modules.get(".".join(names[:count]))
        if package is not None and getattr(package, "__file__", None) and hasattr(package, "__path__"):
            return sorted(one for top in package.__path__ for one in _python_below(Path(top)))
    return []


def _python_below(top: Path) -> Iterator[tuple[str, Path]]:
    """(name from `top` on, path) of each Python file below a folder; links are followed, each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(top, followlinks=True):
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in seen]
        seen |= {os.path.realpath(os.path.join(place, name)) for name in folders}
        for path in (Path(place, name) for name in files if name.endswith(".py")):
            yield path.relative_to(top).as_posix(), path


def _is_same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False


def _bytes_of(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutsideError(
            f"{where}: {path}: cannot be read ({error.strerror or error}); install the package again"
        ) from error
