"""The cellar, below every room: files that appear whole or not at all, and the one cache folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

try:
    import fcntl
except ImportError:  # Windows: without locks, `sweep` leaves every temporary file alone
    fcntl = None  # type: ignore[assignment]

SUFFIX = ".tmp"  # of a file that is being written: `.NAME.RANDOM.tmp` beside NAME


class CacheError(ValueError):
    """The cache folder cannot be used: one line that names it, what is wrong and what to do."""


def cache_folder() -> Path:
    """Where derived files are kept: environment variable KDAD_CACHE (`~` is the home folder), or the user's cache.

    Created if missing, absolute, links resolved. Raises CacheError if it cannot be made.
    """
    named = os.environ.get("KDAD_CACHE")
    try:
        path = Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("kdad-bench"))
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
    Folders on the way are made. Raises OSError, and what `write` raises; `path` is then as it was before.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path) as temporary:
        write(temporary)
        _flush(temporary)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(temporary, path)
    with contextlib.suppress(OSError):  # a file system whose folders cannot be opened or flushed
        _flush(path.parent)


def write_text_whole(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8 with newlines as they stand, in one step; raises OSError."""
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def write_bytes_whole(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step; raises OSError."""
    write_whole(path, lambda temporary: temporary.write_bytes(content))


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
    """A fresh file beside `path`, locked while its writer lives so that `sweep` can tell; gone at the end."""
    while True:
        temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}{SUFFIX}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not temporary.exists():  # swept between its creation and its lock
                continue
            yield temporary
            return
        finally:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
