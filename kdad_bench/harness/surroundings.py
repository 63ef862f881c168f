"""Faults of what surrounds a job (a full disk, a drive that went away): no result of its method, so no row."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from kdad_bench.datasets import DatasetError
from kdad_bench.harness.job import Job
from kdad_bench.leaderboard.row import Row
from kdad_bench.leaderboard.store import StoreError
from kdad_bench.outside import text_of

# what a disk, a drive, a network or a limit of the system says; a missing file is not among them
NAMES = (
    "ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ENXIO", "ENODEV", "EREMOTEIO", "ESTALE",
    "ENOTCONN", "ESHUTDOWN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH",
    "ENETDOWN", "ENETUNREACH", "ENETRESET", "ENOLCK", "EMFILE", "ENFILE",
)  # fmt: skip
NUMBERS = frozenset(getattr(errno, name) for name in NAMES if hasattr(errno, name))
TEXTS = tuple(os.strerror(getattr(errno, name)) for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "ESTALE"))


@dataclass(frozen=True, slots=True)
class NoResult:
    """A job that has no row: what around it failed. The next run does it again."""

    reason: str  # one line
    row: Row | None = None  # where the job itself ended well and only its row could not be written


def of_surroundings(error: BaseException, job: Job) -> bool:
    """Whether `error` tells of the machine, its disks or its network and not of the job or its data."""
    return any(
        isinstance(link, StoreError)
        or (isinstance(link, OSError) and link.errno in NUMBERS)
        or any(text in text_of(link) for text in TEXTS)  # libraries that keep the system's words and not its number
        or (isinstance(link, (DatasetError, FileNotFoundError)) and drive_is_gone(job))
        for link in chain(error)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error`, what it came from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def drive_is_gone(job: Job) -> bool:
    """Whether the category's folder vanished and everything beside it too: unmounted or renamed, not edited."""
    root = job.category.root
    try:
        return not root.exists() and not (root.parent.is_dir() and any(root.parent.iterdir()))
    except OSError:
        return True
