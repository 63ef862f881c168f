"""Unpacking an archive that nobody vouches for: regular files and folders, below one folder, within set limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from kdad_bench.datasets.archive import tar, zip
from kdad_bench.datasets.archive.limits import Damaged, Limits, Member, Refused
from kdad_bench.datasets.archive.names import Known, parts
from kdad_bench.datasets.archive.place import CAN, Below
from kdad_bench.datasets.archive.streams import File, Stream
from kdad_bench.datasets.category import DatasetError

__all__ = ["Limits", "extract"]


def extract(
    path: Path, target: Path, *, limits: Limits | None = None, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Unpack the tar (xz, gzip, bzip2, plain) or zip archive `path` into the empty folder `target`.

    Returns the number of files; `progress` gets the bytes unpacked so far. Raises DatasetError, naming archive and
    member, for anything but regular files and folders, names that are not plain relative ones, names used twice, more
    than `limits` allow, or a damaged archive. What was unpacked until then is left in `target`: unpack into a folder
    that is thrown away on failure. Modes, owners and times of the archive are not taken over. Memory stays below
    256 MB whatever the archive says.
    """
    if not CAN:
        raise DatasetError(f"{path}: this system cannot write below an opened folder; unpack it by other means")
    try:
        files = _unpack(path, target, limits or Limits(), progress)
    except Refused as error:
        raise DatasetError(f"{path}: refused, {error}") from error
    except Damaged as error:
        raise DatasetError(f"{path}: a damaged archive, or none ({error}); fetch it again") from error
    except OSError as error:
        raise DatasetError(f"{target}: cannot be written ({error.strerror}); free space or choose --out") from error
    if files == 0:
        raise DatasetError(f"{path}: no file in the archive; fetch it again")
    return files


def _unpack(path: Path, target: Path, limits: Limits, progress: Callable[[int], None]) -> int:
    total = count = files = 0
    known = Known(limits.members)
    with contextlib.closing(File(path)) as file, Below(target) as below:
        for member in _members(file, limits):
            count, declared = count + 1, total + member.size
            if count > limits.members:
                raise Refused(f"more than {limits.members} members")
            if declared > limits.total_bytes:
                raise Refused(f"the members declare more than {limits.total_bytes} bytes in total")
            place = parts(member.name, folder=member.folder)
            known.add(member.name, place, folder=member.folder)
            if member.folder:
                below.enter(place)
            else:
                below.write(place, _counted(member, total, progress))
                files += 1
            total = declared
            progress(total)
    return files


def _members(file: File, limits: Limits) -> Iterator[Member]:
    """The members of an archive whose kind is told by its first bytes."""
    start = file.read(4)
    file.seek(0)
    return zip.members(file, limits) if start in zip.SIGNATURES else tar.members(Stream(file, limits), limits)


def _counted(member: Member, before: int, progress: Callable[[int], None]) -> Iterator[bytes]:
    done = before
    for chunk in member.chunks:
        yield chunk
        done += len(chunk)
        progress(done)
