"""Decoded images, kept as memory-mapped arrays under a name made of their contents and their resolution.

Nothing in the cache is believed: an array carries a checksum of its bytes, the remembered hashes of files carry the
size, times and inode that they were taken at, and what does not fit is made again. A cache that cannot be written only
costs time and memory; one that is full says so.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import PIL

from kdad_bench.allowance import cores
from kdad_bench.datasets.category import Category, DatasetError, Sample
from kdad_bench.datasets.decoding import MAX_BYTES, opened
from kdad_bench.files import CacheError, cache_folder, let_go, sweep, write_text_whole, write_whole

LAYOUT = "3"  # changes when this package's decoding or the stored layout changes: old entries are no longer found
DECODER = f"Pillow {PIL.__version__}"  # decoders of two versions differ in JPEG pixels, say
CHUNK = 1 << 20
PIECE = 1 << 28  # bytes of an array that are in memory at a time while they are checked
SEAL = b"kdad\x00crc"  # before the CRC-32 at the end of an array's file
RACY_NS = 100_000_000  # a file changed so shortly ago may change again within one tick of its clock
READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})

Array = npt.NDArray[Any]
Stamp = list[int]  # size, mtime, ctime, inode: what changes whenever a file is written

_remembered: dict[Path, dict[str, list[Any]]] = {}  # folder -> name -> [*stamp, SHA-256], in this process
_sound: set[tuple[str, int, int, int]] = set()  # arrays whose checksum this process has compared


def folder() -> Path:
    """The cache folder: environment variable KDAD_CACHE, or the user's cache folder. Created if missing."""
    try:
        return cache_folder()
    except CacheError as error:
        raise DatasetError(str(error)) from error


def workers() -> int:
    """Threads that decode: the cores this process may use, at most 16."""
    return min(16, cores())


@contextlib.contextmanager
def only_builder(path: Path) -> Iterator[bool]:
    """Hold the lock file beside `path`, so that one process builds and the others wait; yields whether it is held.

    Without a lock (Windows, some network drives, a read-only disk) two builders do the same work twice; the placement
    is atomic either way.
    """
    try:
        import fcntl

        lock = open(path.with_name(f".{path.name}.lock"), "w")  # noqa: SIM115 - closed below, kept while the lock lasts
    except (ImportError, OSError):
        yield False
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield False
            return
        yield True


# --- hashes of files --------------------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    """SHA-256 of a file's contents, 64 hex digits. Raises DatasetError if it cannot be read or is too large."""
    digest, done = hashlib.sha256(), 0
    with opened(path) as file:
        while chunk := _read(file, path):
            digest.update(chunk)
            done += len(chunk)
            if done > MAX_BYTES:
                raise DatasetError(f"{path}: more than {MAX_BYTES} bytes, the limit for a file; not read")
    return digest.hexdigest()


def _read(file: IO[bytes], path: Path) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); restore the file") from error


def content_hashes(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file, remembered by path, size, times of change and inode, in this process and in the cache.

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
    stamps = {path: _stamp(path) for path in paths}
    known = _remembered.get(resolved, {})
    fresh = [path for path in paths if known.get(path.name, [])[:-1] != stamps[path]]
    if fresh:  # not of this process: by another one, perhaps
        record = folder() / "hashes" / f"{hashlib.sha256(os.fsencode(resolved)).hexdigest()[:32]}.json"
        known = _remembered[resolved] = {**_record(record), **known}
        fresh = [path for path in fresh if known.get(path.name, [])[:-1] != stamps[path]]
    if fresh:
        began = time.time_ns()
        with ThreadPoolExecutor(workers()) as pool:
            for path, digest in zip(fresh, pool.map(file_hash, fresh), strict=True):
                known[path.name] = [*stamps[path], digest]
        lasting = {name: one for name, one in known.items() if began - max(one[1], one[2]) > RACY_NS}
        _remembered[resolved] = lasting
        # a full or read-only cache only costs the next process its time
        with contextlib.suppress(OSError):
            write_text_whole(record, _written(lasting))
    return {path: str(known[path.name][-1]) for path in paths}


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); restore the file") from error
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _written(known: Mapping[str, list[Any]]) -> str:
    body = json.dumps(known)
    return json.dumps({"crc": zlib.crc32(body.encode("ascii")), "files": body})


def _record(path: Path) -> dict[str, list[Any]]:
    """What a record file remembers; nothing where it is missing, of an earlier version or damaged."""
    try:
        if not path.is_file():  # a pipe would never end
            return {}
        kept = json.loads(path.read_bytes())
        if zlib.crc32(kept["files"].encode("ascii")) != kept["crc"]:
            return {}
        found: dict[str, list[Any]] = json.loads(kept["files"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return found


def fingerprint(category: Category) -> str:
    """SHA-256 (64 hex digits) over the relative names and the contents of every file the modality reads, and over the
    use of each and the code that decided it where their names do not.

    Of a sealed category it is the plan's, and no file is touched. Raises DatasetError if a file is missing.
    """
    found = category.seal or named(category, content_hashes(dict.fromkeys(category.files())))
    digest = hashlib.sha256(category.modality.encode())
    for name in sorted((_inside(path, category.root) for path in category.files()), key=lambda name: name.split("/")):
        digest.update(_bytes_of(f"{name}\0{found[name]}\n"))
    if category.code:
        digest.update(f"code\0{category.code}\n".encode())
    if category.by_table or category.code:  # no name says what the image is for
        digest.update(_bytes_of("".join(_uses(category))))
    return digest.hexdigest()


def _bytes_of(names: str) -> bytes:
    """Text with names of files as bytes, also where a folder's name is not UTF-8."""
    return names.encode("utf-8", "surrogateescape")


def _uses(category: Category) -> Iterator[str]:
    """A line for each image: its split, its defect, its name and those of its masks."""
    for split, sample in category.splits():
        names = (_inside(path, category.root) for path in (sample.path, *sample.masks))
        yield "\0".join([split, sample.defect, *names]) + "\n"


def named(category: Category, hashes: Mapping[Path, str]) -> dict[str, str]:
    """Name below the category's folder -> hash of each file."""
    return {_inside(path, category.root): digest for path, digest in hashes.items()}


def _inside(path: Path, root: Path) -> str:
    """The name of `path` from `root` on, with slashes; ValueError where it lies elsewhere.

    As `relative_to`, which takes most of the time of looking at a data set that is known.
    """
    text, begin = str(path), f"{root}/"
    return text[len(begin) :] if os.sep == "/" and text.startswith(begin) else path.relative_to(root).as_posix()


def equal_contents(category: Category) -> list[tuple[str, str]]:
    """(name, name of the first) of each image of a sealed category that lies in an earlier split, too: one that is
    learnt from or held out is then judged as if it were new."""
    first: dict[str, tuple[str, str]] = {}
    found = []
    for split, sample in category.splits():
        name = _inside(sample.path, category.root)
        known = first.setdefault(category.seal[name], (split, name))
        if known[0] != split:
            found.append((name, known[1]))
    return found


def contents_of(category: Category, samples: Iterable[Sample]) -> list[str]:
    """The SHA-256 of each image; its name in a category that is not sealed."""
    names = [_inside(one.path, category.root) for one in samples]
    return [category.seal.get(name, name) for name in names]


def unchanged(category: Category, files: Sequence[Path]) -> dict[Path, str]:
    """SHA-256 of each of the category's files; raises DatasetError for one that is not as the plan saw it."""
    hashes = content_hashes(files)
    for path, digest in hashes.items():
        planned = category.seal.get(_inside(path, category.root))
        if planned is not None and planned != digest:
            raise DatasetError(f"{path}: changed since the run was planned; restore the file, or start the run again")
    return hashes


# --- arrays -----------------------------------------------------------------------------------------------------------


def key(kind: str, files: Sequence[Path], hashes: Mapping[Path, str], root: Path, *parts: object) -> str:
    """The name of a cache entry: 40 hex digits over `kind`, `parts`, the decoder, the names and contents of `files`."""
    digest = hashlib.sha256("\0".join([LAYOUT, DECODER, kind, *map(str, parts)]).encode())
    for path in files:
        digest.update(_bytes_of(f"\n{_inside(path, root)}\0{hashes[path]}"))
    return digest.hexdigest()[:40]


def array(name: str, shape: tuple[int, ...], dtype: type[np.generic], fill: Callable[[Array], None]) -> Array:
    """The read-only memory-mapped array `name`, made by `fill(array of that shape and dtype)` if it is not there.

    Safe with concurrent builders: each writes its own temporary file, and the entry appears whole or not at all. Where
    the cache cannot be written the array is made in memory. Raises DatasetError where the disk is full.
    """
    path = folder() / "arrays" / f"{name}.npy"
    found = _mapped(path, shape, dtype)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_builder(path):
            found = _mapped(path, shape, dtype)  # another process may have built it while this one waited
            if found is None:
                sweep(path.parent)
                write_whole(path, lambda temporary: _build(temporary, shape, dtype, fill))
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise DatasetError(
                f"{path}: the cache cannot be written ({error.strerror or error}); free space or set KDAD_CACHE"
            ) from error
        return _in_memory(shape, dtype, fill)
    found = found if found is not None else _mapped(path, shape, dtype)
    if found is None:
        raise DatasetError(f"{path}: the cache entry cannot be read back; delete it or set KDAD_CACHE")
    return found


def _in_memory(shape: tuple[int, ...], dtype: type[np.generic], fill: Callable[[Array], None]) -> Array:
    made: Array = np.zeros(shape, dtype)
    fill(made)
    made.flags.writeable = False
    return made


def _build(path: Path, shape: tuple[int, ...], dtype: type[np.generic], fill: Callable[[Array], None]) -> None:
    """Write a .npy file whose space is taken before it is mapped (a full disk kills a mapping), and its checksum."""
    head = _head(shape, dtype)
    with open(path, "r+b") as file:
        file.write(head)
        _take(file, len(head) + _bytes(shape, dtype))
        mapped = np.memmap(file, dtype=dtype, mode="r+", offset=len(head), shape=shape)
        fill(mapped)
        mapped.flush()
        file.seek(0, os.SEEK_END)
        file.write(SEAL + _checksum(mapped))


def _head(shape: tuple[int, ...], dtype: type[np.generic]) -> bytes:
    """The header of a .npy file, which is compared and never parsed."""
    head = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, facts)
    return head.getvalue()


def _bytes(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _take(file: IO[bytes], size: int) -> None:
    """Make `file` `size` bytes long on disk and not in name only; raises OSError where there is no room."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    file.seek(0, os.SEEK_END)
    while (left := size - file.tell()) > 0:
        file.write(bytes(min(left, CHUNK)))
    file.flush()


def _checksum(values: Array) -> bytes:
    """CRC-32 of the bytes, whose pages are let go on the way: the array need not fit into memory."""
    found, flat = 0, values.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, PIECE):
        found = zlib.crc32(flat[start : start + PIECE].data, found)
        if flat.size > PIECE:
            let_go(values, shared=True)
    return found.to_bytes(4, "little")


def _mapped(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> Array | None:
    """The array of a file; None if there is none, or if it is not what was written."""
    head = _head(shape, dtype)
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if about.st_size != len(head) + _bytes(shape, dtype) + len(SEAL) + 4 or file.read(len(head)) != head:
                return None
            file.seek(-len(SEAL) - 4, os.SEEK_END)
            seal = file.read()
            found = np.memmap(file, dtype=dtype, mode="r", offset=len(head), shape=shape)
    except (OSError, ValueError):
        return None
    known = (str(path), about.st_ino, about.st_mtime_ns, about.st_ctime_ns)
    if known not in _sound:
        if seal != SEAL + _checksum(found):
            return None
        _sound.add(known)
    return found
