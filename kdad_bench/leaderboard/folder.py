"""A folder of results: a local directory (the fast path) or any fsspec URL, with whole-file writes."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from kdad_bench import files

if TYPE_CHECKING:
    import pyarrow as pa

LOCK = ".lock"
WHOLE = 1 << 20  # bytes: a smaller file is read in one go
SETTLED_NS = 2_000_000_000  # file systems tell times apart that lie so far from one another
TAGS = ("ETag", "etag")  # what stores name contents by
CHANGED = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")  # what they call its time
OLDER_TEMPORARY = ".writing-"  # began the names of unfinished writes up to version 0.1


class StoreError(Exception):
    """A results folder cannot be read or written; the message is one line with the remedy."""


class MissingFolder(StoreError):
    """There is no such results folder."""


class Entry(NamedTuple):
    """One file of the folder; `stamp` changes whenever its content is replaced."""

    name: str
    stamp: tuple[Any, ...]  # () for what is no regular file: a folder, a pipe, a link to nothing

    @property
    def size(self) -> int:
        """Bytes of the file, 0 where nobody tells."""
        return (self.stamp[2] or 0) if self.stamp else 0

    @property
    def unfinished(self) -> bool:
        """Whether it is a write that has not ended, or never will."""
        return self.name.startswith(OLDER_TEMPORARY) or (self.name.startswith(".") and self.name.endswith(files.SUFFIX))


class Folder(Protocol):
    """What the store needs of a place to keep files in."""

    readers: int  # threads that read at a time

    @property
    def where(self) -> str:
        """The folder as the user knows it: a path or a URL."""
        ...

    def path(self, name: str) -> str:
        """The full path or URL of a file."""
        ...

    def entries(self) -> list[Entry]:
        """The files of the folder itself, by name; raises StoreError if there is no such folder."""
        ...

    def settled(self, entry: Entry) -> bool:
        """Whether the stamp of an entry listed just now tells it from whatever replaces it: not so for a file that is
        still new, where two contents may have one time."""
        ...

    def open(self, name: str) -> pa.NativeFile:
        """The file for reading; raises FileNotFoundError if it is gone."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put the whole file there or nothing; a crash leaves the old content or the new one, never a mixture."""
        ...

    def remove(self, entry: Entry) -> bool:
        """Delete the file unless it was replaced since `entry` was taken; whether it was deleted."""
        ...

    def sweep(self) -> None:
        """Remove what killed writers left; the caller holds the exclusive lock."""
        ...

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        """Keep writers (shared) and a compaction (exclusive) apart; the lock dies with its process."""
        ...


def open_folder(where: str | Path) -> Folder:
    """The folder at a path or an fsspec URL (`s3://bucket/results`, `memory://results`).

    Raises StoreError if the URL's scheme is unknown or needs a package that is not installed.
    """
    if isinstance(where, str) and "://" in where and not where.startswith("file://"):
        return RemoteFolder(where)
    return LocalFolder(Path(str(where).removeprefix("file://")).expanduser())


class LocalFolder:
    """A directory. Writes go to a dot-name, are flushed to the disk, and are renamed over the final name."""

    readers = 2  # more only wait for one another

    def __init__(self, path: Path) -> None:
        self.root = path

    @property
    def where(self) -> str:
        return str(self.root)

    def path(self, name: str) -> str:
        return str(self.root / name)

    def entries(self) -> list[Entry]:
        try:
            with os.scandir(self.root) as found:
                return sorted(entry for item in found if (entry := _entry(item)) is not None)
        except FileNotFoundError:
            raise MissingFolder(_none_at(self.where)) from None
        except NotADirectoryError:
            raise StoreError(f"{self.where!r} is a file, not a results folder") from None
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"cannot read the results folder {self.where!r}: {reason}") from error

    def settled(self, entry: Entry) -> bool:
        return entry.stamp != () and time.time_ns() - max(entry.stamp[1], entry.stamp[3]) > SETTLED_NS

    def open(self, name: str) -> pa.NativeFile:
        import pyarrow as pa

        path = self.path(name)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # to open a pipe must not wait
        try:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            content = os.read(handle, state.st_size) if state.st_size <= WHOLE else b""
            return pa.BufferReader(content) if len(content) == state.st_size else pa.OSFile(path, "rb")
        finally:
            os.close(handle)

    def write(self, name: str, content: bytes) -> None:
        try:
            files.write_bytes_whole(self.root / name, content)
        except OSError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> StoreError:
        remedy = "free some space" if error.errno in files.FULL else "make it writable"
        return StoreError(
            f"cannot write to the results folder {self.where!r}: {error.strerror or error}; "
            f"{remedy} or choose another with --out (what is finished is kept)"
        )

    def remove(self, entry: Entry) -> bool:
        path = self.root / entry.name
        try:
            if entry.stamp != _stamp(path.stat()):
                return False
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._refusal(error) from error
        return True

    def sweep(self) -> None:
        files.sweep(self.root)
        for entry in self.entries():
            if entry.name.startswith(OLDER_TEMPORARY):  # its writer is dead: a live one would hold the lock
                self.remove(entry)

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._refusal(error) from error
        try:
            with contextlib.suppress(ImportError, OSError):  # Windows, or a file system without locks
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)


def _entry(item: os.DirEntry[str]) -> Entry | None:
    """What the listing found; None for a folder of ours, and for what is gone by now."""
    try:
        if item.is_file():
            return Entry(item.name, _stamp(item.stat()))
        item.stat(follow_symlinks=False)
    except FileNotFoundError:  # replaced or compacted away meanwhile
        return None
    except OSError:  # a link to itself
        return Entry(item.name, ())
    return Entry(item.name, ()) if item.name.endswith(".parquet") else None


def _stamp(state: os.stat_result) -> tuple[int, ...]:
    """The last of it is set by the system alone: an archive unpacked over a folder keeps dates, and takes up inodes."""
    return (state.st_ino, state.st_mtime_ns, state.st_size, state.st_ctime_ns)


class RemoteFolder:
    """An fsspec URL. Object stores put whole objects; there is no lock, so compact while nobody runs."""

    readers = 16  # requests under way

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            extra = "pip install 'kdad-bench[s3]'" if scheme == "s3" else f"install fsspec's package for {scheme}://"
            raise StoreError(f"cannot open {url!r}: {error}; {extra}") from error
        except ValueError as error:
            raise StoreError(f"cannot open {url!r}: {error}; give a path or an fsspec URL such as s3://...") from error

    @property
    def where(self) -> str:
        return self.url

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def entries(self) -> list[Entry]:
        try:
            self.fs.invalidate_cache(self.root)
            found = self.fs.ls(self.root, detail=True)
        except FileNotFoundError:
            raise MissingFolder(_none_at(self.where)) from None
        except Exception as error:  # each back end raises its own
            raise StoreError(f"cannot read the results folder {self.where!r}: {_line(error)}") from error
        return sorted(
            Entry(item["name"].rsplit("/", 1)[-1], self._stamp(item)) for item in found if item["type"] == "file"
        )

    @staticmethod
    def _stamp(item: dict[str, Any]) -> tuple[Any, ...]:
        """(a text that tells contents apart or "", else when it changed last in seconds or as it is told, bytes)."""
        if tag := next((item[name] for name in TAGS if item.get(name)), None):
            return (str(tag), None, item["size"])
        told = next((item[name] for name in CHANGED if item.get(name)), None)
        seconds = told.timestamp() if isinstance(told, datetime) else told
        return ("", seconds if isinstance(seconds, int | float) else str(seconds), item["size"])

    def settled(self, entry: Entry) -> bool:
        if entry.stamp[0]:
            return True
        changed = entry.stamp[1]
        return isinstance(changed, int | float) and time.time_ns() - changed * 1e9 > SETTLED_NS

    def open(self, name: str) -> pa.NativeFile:
        import pyarrow as pa

        return pa.BufferReader(self.fs.cat_file(f"{self.root}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        try:
            self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(f"{self.root}/{name}", content)
        except Exception as error:  # each back end raises its own
            raise StoreError(
                f"cannot write to the results folder {self.where!r}: {_line(error)}; check address and credentials"
            ) from error

    def remove(self, entry: Entry) -> bool:
        path = f"{self.root}/{entry.name}"
        try:
            self.fs.invalidate_cache(self.root)
            if self._stamp(self.fs.info(path)) != entry.stamp:
                return False
            self.fs.rm_file(path)
        except FileNotFoundError:
            return False
        except Exception as error:  # each back end raises its own
            raise StoreError(f"cannot delete {self.path(entry.name)!r}: {_line(error)}") from error
        return True

    def sweep(self) -> None:
        """Objects are put whole: nothing is left."""

    @contextmanager
    def locked(self, *, exclusive: bool) -> Iterator[None]:
        yield


def _none_at(where: str) -> str:
    """That there is no results folder, and the command that makes one."""
    return f"no results folder {where!r}; `kdad-bench run --all --out {shlex.quote(where)}` makes one"


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
