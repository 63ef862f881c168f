"""Decoded images, kept as memory-mapped uint8 arrays under a name made of their contents and their resolution."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import platformdirs

from kdad_bench.datasets.category import DatasetError

LAYOUT = "1"  # changes when decoding or the stored layout changes: old entries are then no longer found
CHUNK = 1 << 20

Array = npt.NDArray[Any]


def folder() -> Path:
    """The cache folder: environment variable KDAD_CACHE, or the user's cache folder. Created if missing."""
    named = os.environ.get("KDAD_CACHE")
    path = Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("kdad-bench"))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatasetError(f"{path}: the cache folder cannot be made ({error.strerror}); set KDAD_CACHE") from error
    return path.resolve()


def workers() -> int:
    """Threads that decode: the cores this process may use, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, available))


@contextlib.contextmanager
def only_builder(path: Path) -> Iterator[None]:
    """Hold the lock file beside `path`, so that one process builds and the others wait (advisory; POSIX only).

    Without the lock two builders would do the same work twice; the placement is atomic either way.
    """
    try:
        import fcntl
    except ImportError:  # Windows: work twice rather than wait
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def place(write: Callable[[Path], None], path: Path) -> None:
    """Call `write(temporary)` and move what it wrote to `path` in one step: nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's contents, 64 hex digits. Raises DatasetError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); restore the file") from error
    return digest.hexdigest()


def content_hashes(files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each file, remembered in the cache folder by path, size and modification time.

    One record file per parent folder, so that the test images of a category are not touched for its training images.
    """
    by_folder: dict[Path, list[Path]] = {}
    for path in files:
        by_folder.setdefault(path.parent, []).append(path)
    hashes: dict[Path, str] = {}
    for parent, paths in by_folder.items():
        hashes.update(_folder_hashes(parent, paths))
    return hashes


def _folder_hashes(parent: Path, paths: Sequence[Path]) -> dict[Path, str]:
    resolved = parent.resolve()
    record = folder() / "hashes" / f"{hashlib.sha256(str(resolved).encode()).hexdigest()[:32]}.json"
    known: dict[str, list[Any]] = {}
    with contextlib.suppress(OSError, ValueError):
        read = json.loads(record.read_text())
        if isinstance(read, dict):
            known = read
    stats: dict[Path, list[int]] = {}
    for path in paths:
        try:
            stat = path.stat()
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); restore the file") from error
        stats[path] = [stat.st_size, stat.st_mtime_ns]
    fresh = [path for path in paths if known.get(path.name, [None])[:2] != stats[path]]
    if fresh:
        with ThreadPoolExecutor(workers()) as pool:
            for path, digest in zip(fresh, pool.map(file_hash, fresh), strict=True):
                known[path.name] = [*stats[path], digest]
        text = json.dumps(known)
        with contextlib.suppress(OSError):  # a full or read-only cache only costs the next call its time
            place(lambda temporary: _write_text(temporary, text), record)
    return {path: str(known[path.name][2]) for path in paths}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def key(kind: str, files: Sequence[Path], root: Path, *parts: object) -> str:
    """The name of a cache entry: 40 hex digits over `kind`, `parts`, and the names and contents of `files`."""
    digest = hashlib.sha256("\0".join([LAYOUT, kind, *map(str, parts)]).encode())
    hashes = content_hashes(files)
    for path in files:
        digest.update(f"\n{path.relative_to(root).as_posix()}\0{hashes[path]}".encode())
    return digest.hexdigest()[:40]


def array(name: str, shape: tuple[int, ...], dtype: type[np.generic], fill: Callable[[Array], None]) -> Array:
    """The read-only memory-mapped array `name`, made by `fill(array of that shape and dtype)` if it is not there.

    Safe with concurrent builders: each writes its own temporary file, and the entry appears whole or not at all.
    """
    path = folder() / "arrays" / f"{name}.npy"
    found = _mapped(path, shape, dtype)
    if found is not None:
        return found
    with only_builder(path):
        found = _mapped(path, shape, dtype)  # another process may have built it while this one waited
        if found is not None:
            return found

        def write(temporary: Path) -> None:
            mapped = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
            fill(mapped)
            mapped.flush()

        try:
            place(write, path)
        except OSError as error:
            raise DatasetError(
                f"{path}: the cache cannot be written ({error.strerror or error}); set KDAD_CACHE"
            ) from error
    found = _mapped(path, shape, dtype)
    if found is None:
        raise DatasetError(f"{path}: the cache entry cannot be read back; delete it or set KDAD_CACHE")
    return found


def _mapped(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> Array | None:
    if not path.exists():
        return None
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.dtype(dtype) else None
