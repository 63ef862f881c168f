"""The cellar, below every room: files that appear whole or not at all, and the one cache folder."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import secrets
import stat
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows: without locks, `sweep` leaves every temporary file alone
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".tmp"  # of a file that is being written: `.NAME.RANDOM.tmp` beside NAME
JSON_BYTES = 16 << 20  # longest JSON file that is read; the largest of the product's own is far below
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # why a write finds no room
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that file systems take
T = TypeVar("T", dict, list)  # type: ignore[type-arg]  # what a JSON file may hold at its top

_scratch: dict[int, weakref.ref[mmap.mmap]] = {}  # address -> nameless file that is mapped there


class CacheError(ValueError):
    """The cache folder cannot be used: one line that names it, what is wrong and what to do."""


class DamagedError(ValueError):
    """A file of the product's own is not what it wrote: one line that names it, what is wrong and the remedy."""


def at_home(text: str) -> str:
    """A path as a person writes it with `~` as the home folder; raises ValueError, in words, for what is no path."""
    if not text.strip():
        raise ValueError("is empty; give a path, `.` is the current folder")
    coded = os.fsencode(text)
    if len(coded) > LONGEST_PATH or max(map(len, coded.split(b"/"))) > LONGEST_NAME:
        raise ValueError(f"is too long for a path: {LONGEST_NAME} bytes a name, {LONGEST_PATH} in all")
    try:
        return os.fspath(Path(text).expanduser())
    except RuntimeError as error:
        raise ValueError(f"is no path ({error})") from error


def cache_folder() -> Path:
    """Where derived files are kept: environment variable KDAD_CACHE (`~` is the home folder), or the user's cache.

    Created if missing, absolute, links resolved. Raises CacheError if it cannot be made.
    """
    named = os.environ.get("KDAD_CACHE")
    try:
        if named:
            path = Path(named).expanduser()
        else:
            import platformdirs  # a GPU machine that is lent may have none, and needs none for its figures

            path = Path(platformdirs.user_cache_dir("kdad-bench"))
        path.mkdir(parents=True, exist_ok=True)
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a home folder that is not known
        reason = getattr(error, "strerror", None) or error
        raise CacheError(
            f"{named or 'cache folder'}: the cache folder cannot be made ({reason}); set KDAD_CACHE"
        ) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)` and put what it wrote at `path` in one step: nobody ever sees half a file.

    The file and its folder are flushed to disk, an existing file keeps its permissions, and a link is followed.
    Folders on the way are made. Raises OSError, and what `write` raises; `path` is then as it was before. A device, a
    pipe or a socket at `path` is refused with OSError: it would be replaced by a file, /dev/null among them.
    """
    write_all_whole({path: write})


def write_all_whole(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """`write_whole` of files that belong together: none is put in its place before each is written and flushed.

    Raises OSError, and what a `write` raises; all of them are then as they were before.
    """
    with contextlib.ExitStack() as open_ones:
        written = []
        for given, write in writes.items():
            refuse_what_is_no_file(given)  # before its links are followed: that of a pipe leads to no path
            path = Path(os.path.realpath(given))
            path.parent.mkdir(parents=True, exist_ok=True)
            with _said_of(path):
                temporary = open_ones.enter_context(_temporary(path))
                write(temporary)
                _flush(temporary)
            with contextlib.suppress(FileNotFoundError):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            written.append((temporary, path))
        for temporary, path in written:
            os.replace(temporary, path)
    for folder in {path.parent for _, path in written}:
        with contextlib.suppress(OSError):  # a file system whose folders cannot be opened or flushed
            _flush(folder)


@contextlib.contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """An OSError that a full disk raises inside names `path`: a write itself knows no name."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise


def refuse_what_is_no_file(path: Path) -> None:
    """Raises OSError for what is there and no file: nothing can be written in its place."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a file but a device, a pipe or a socket", str(path))


def why_not_written(error: OSError, folder: Path) -> str:
    """Which of several files of `folder` cannot be written, why, and what to do: one in whose place something else is,
    or all."""
    blocked = error.filename
    if blocked is None or Path(blocked) == folder or not os.path.exists(blocked) or os.path.isfile(blocked):
        return f"{str(folder)!r}: {error.strerror}; choose another place with --out"
    return f"{str(blocked)!r}: {error.strerror}; move it away, or choose another place with --out"


def write_text_whole(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8 with newlines as they stand, in one step; raises OSError."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def write_bytes_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step; raises OSError."""
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def read_json(path: Path, kind: type[T], *, limit: int = JSON_BYTES, remedy: str = "delete it") -> T:
    """The contents of a JSON file, which must be a `kind` (dict or list) of finite numbers and printable text.

    What lies inside of it is for the caller to check. Raises DamagedError, which ends in the `remedy`, for a file that
    is longer than `limit` bytes, not a regular file, not UTF-8, not JSON, nested too deeply, not a `kind` or has a key
    twice, and OSError (FileNotFoundError if it is missing) where it cannot be read. A pipe or an endless file neither
    hangs nor fills the memory.
    """
    try:
        value = json.loads(_read_regular(path, limit).decode("utf-8"), object_pairs_hook=_each_once)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # NaN, 1e999, half a surrogate pair
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DamagedError(f"{path}: damaged ({why}); {remedy}") from error
    if not isinstance(value, kind):
        raise DamagedError(f"{path}: damaged (holds {type(value).__name__} and not {kind.__name__}); {remedy}")
    return value


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object of JSON; ValueError for a key that stands there twice, of which one would be passed over."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)[:60]!r} stands there twice")
    return found


def _read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file; ValueError for anything else or more than `limit` bytes."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    content = bytearray()
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        while len(content) <= limit and (chunk := os.read(descriptor, 1 << 20)):
            content += chunk
    finally:
        os.close(descriptor)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    return bytes(content)


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed writers left in `folder`; returns how many. Living writers keep theirs."""
    removed = 0
    for left in folder.glob(f".*{SUFFIX}") if fcntl is not None and folder.is_dir() else ():
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held by its writer: BlockingIOError
                left.unlink()
                removed += 1
            finally:
                os.close(descriptor)
    return removed


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A fresh file beside `path`, gone at the end; locked while its writer lives, so that `sweep` can tell, unless the
    lock itself keeps others from writing."""
    while True:
        start = os.fsdecode(os.fsencode(path.name)[:100])  # names are limited in bytes
        temporary = path.with_name(f".{start}.{secrets.token_hex(6)}{SUFFIX}")
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except OSError as error:
            error.filename = str(path)  # what a person knows of
            raise
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not temporary.exists():  # swept between its creation and its lock
                continue
            if fcntl is not None and not _takes_writing(temporary):
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
            yield temporary
            return
        finally:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)


def _takes_writing(path: Path) -> bool:
    """Whether a locked file can be written through another descriptor: flock(2) says that on SMB it cannot."""
    try:
        with path.open("r+b", buffering=0) as file:
            file.write(b"\0")
            file.truncate(0)
    except PermissionError:
        return False
    except OSError:  # a full disk, say: whoever writes will be told
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def scratch(size: int, address_of: Callable[[mmap.mmap], int]) -> mmap.mmap:
    """`size` bytes of zeros in a file without a name in the cache folder, mapped: gone when nobody holds them.

    `address_of` tells where a mapping lies, for `let_go` to find it by. Raises CacheError, and OSError on a full disk.
    """
    with tempfile.TemporaryFile(dir=cache_folder()) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk would kill who writes to the mapping
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    address = address_of(mapped)
    _scratch[address] = weakref.ref(mapped, lambda _: _scratch.pop(address, None))
    return mapped


def let_go(array: Any, *, shared: bool = False) -> None:
    """Take the pages of the mapped file that a numpy array lies in out of this process; any other array stays as it is.

    They stay in the system's cache, and on disk, to be read again. That is done to files mapped for reading alone,
    to `scratch`, and where the caller knows that a mapping is `shared`: of a private one, changes would be lost.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    holder = array
    while hasattr(holder, "flags") and getattr(holder, "base", None) is not None:
        holder = holder.base
    if not (isinstance(holder, mmap.mmap) and (shared or _is_read_alone(holder))):
        holder = _scratch_at(int(array.__array_interface__["data"][0]))
    if holder is not None:
        holder.madvise(mmap.MADV_DONTNEED)


def _is_read_alone(mapped: mmap.mmap) -> bool:
    """Whether a file is mapped for reading alone: an array on a private mapping may have been made read-only later."""
    with memoryview(mapped) as view:
        return view.readonly


def _scratch_at(address: int) -> mmap.mmap | None:
    for start, held in list(_scratch.items()):
        mapped = held()
        if mapped is not None and start <= address < start + len(mapped):
            return mapped
    return None
