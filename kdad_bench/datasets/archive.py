"""Unpacking an archive that nobody vouches for: what would leave the folder, or fill the disk, is refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from kdad_bench.datasets.category import DatasetError

READ_AT_ONCE = 16 << 20  # longest read that tarfile may ask for: a pax header of 10 GB would be read whole
REMEMBERED = 4096  # bytes that can be read again; tarfile steps back by one


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an archive may declare before it is taken for a bomb; MVTec 3D-AD has 12,500 files and some 30 GB."""

    total_bytes: int = 80 << 30
    member_bytes: int = 1 << 30
    members: int = 200_000


class _Forward(io.RawIOBase):
    """A decompressed stream with positions, read once: small steps back, long ones refused, no read without a limit."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        super().__init__()
        self._stream = stream
        self._position = 0
        self._recent = b""  # the bytes just before the stream's own position
        self._behind = 0  # how many of them are to be read again

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise tarfile.ReadError("only absolute positions can be sought in a stream")
        while self._position < offset:
            if not self.read(min(offset - self._position, 1 << 20)):
                break
        back = self._position - offset
        if back > 0:
            if self._behind + back > len(self._recent):
                raise tarfile.ReadError("the archive asks for a jump back")
            self._behind += back
            self._position = offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > READ_AT_ONCE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        again = self._recent[len(self._recent) - self._behind :][:size] if self._behind else b""
        self._behind -= len(again)
        fresh = self._stream.read(size - len(again)) if size > len(again) else b""
        if fresh:
            self._recent = (self._recent + fresh)[-REMEMBERED:]
        self._position += len(again) + len(fresh)
        return again + fresh


def decompressed(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The tar stream in `path`, whose compression (xz, gzip, bzip2, none) is told by its first bytes."""
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"\xfd7zXZ\x00"):
        return lzma.open(path, "rb")
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path, "rb")
    if start.startswith(b"BZh"):
        return bz2.open(path, "rb")
    return open(path, "rb")


def extract(
    path: Path, target: Path, *, limits: Limits | None = None, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Unpack the tar archive `path` into the existing folder `target`; return the number of files.

    `progress` gets the bytes unpacked so far. Raises DatasetError, naming archive and member, for absolute paths,
    `..`, links out of the folder, devices and pipes, more than `limits` allow, or a damaged archive. What was unpacked
    until then is left in `target`: unpack into a folder that is thrown away on failure.
    """
    limits = limits or Limits()
    if not hasattr(tarfile, "data_filter"):
        raise DatasetError("this Python's tarfile has no 'data' filter; use Python 3.11.4 or newer")
    total = count = files = 0
    try:
        with decompressed(path) as stream, tarfile.open(fileobj=_Forward(stream), mode="r:") as archive:
            while (member := archive.next()) is not None:
                count, total = count + 1, total + max(member.size, 0)
                _refuse(path, member, count, total, limits)
                archive.extract(member, target, filter="data", set_attrs=False)
                archive.members = []  # type: ignore[attr-defined]  # bounded memory: nothing is looked up again
                files += member.isfile()
                progress(total)
    except tarfile.FilterError as error:
        raise DatasetError(f"{path}: refused, member '{_shown(error.tarinfo.name)}' {_why(error)}") from error
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, gzip.BadGzipFile):
            raise DatasetError(f"{target}: cannot be written ({error.strerror}); free space or choose --out") from error
        raise DatasetError(f"{path}: a damaged archive, or none ({error}); delete it and fetch it again") from error
    if files == 0:
        raise DatasetError(f"{path}: no file in the archive; fetch it again")
    return files


def _refuse(path: Path, member: tarfile.TarInfo, count: int, total: int, limits: Limits) -> None:
    """What the data filter lets pass and is not wanted: bombs by their declared size, and absolute names."""
    name = _shown(member.name)
    if count > limits.members:
        raise DatasetError(f"{path}: refused, more than {limits.members} members")
    if member.size > limits.member_bytes:
        raise DatasetError(
            f"{path}: refused, member '{name}' declares {member.size} bytes; limit {limits.member_bytes}"
        )
    if total > limits.total_bytes:
        raise DatasetError(f"{path}: refused, the members declare more than {limits.total_bytes} bytes in total")
    parts = PurePosixPath(member.name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (parts.parts and parts.parts[0].endswith(":")):
        raise DatasetError(f"{path}: refused, member '{name}' would be written outside of the folder")
    if member.isdev():
        raise DatasetError(f"{path}: refused, member '{name}' is a device or a pipe")
    if member.islnk():  # MVTec's archives have none, and finding its target means jumping back
        raise DatasetError(f"{path}: refused, member '{name}' is a hard link to '{_shown(member.linkname)}'")


def _shown(name: str) -> str:
    """A member's name, short and on one line."""
    return name.encode("unicode_escape").decode()[:120]


def _why(error: tarfile.FilterError) -> str:
    if isinstance(error, tarfile.AbsoluteLinkError | tarfile.LinkOutsideDestinationError):
        return f"is a link out of the folder, to '{_shown(error.tarinfo.linkname)}'"
    if isinstance(error, tarfile.SpecialFileError):
        return "is a device or a pipe"
    return "would be written outside of the folder"
