"""Carry out one job for good: claim it, run it, write its row; what goes wrong with it becomes a failed row."""

from __future__ import annotations

import contextlib
import fcntl
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from kdad_bench.harness import together
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work, checkpoints, refuse_what_cannot_be_written
from kdad_bench.harness.run import columns_of, environment_columns, run
from kdad_bench.harness.step_log import step_log
from kdad_bench.harness.surroundings import NoResult, of_surroundings
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import outside
from kdad_bench.methods.foreign import guarded
from kdad_bench.outside import MODULE, text_of
from kdad_bench.process import Escaped

OURS = __name__.partition(".")[0]  # this package


def perform(job: Job, work: Work) -> Row | NoResult | None:
    """Run `job` and write its row; returns the row, or None when another runner on the same folder holds the job.

    A job that another runner finished meanwhile is not run again: its row is read and returned. Where the surroundings
    failed (no space, read-only, a drive that went away) there is no row but a `NoResult`.
    """
    try:
        with claim(job, work) as ours:
            if not ours:
                return None
            done = finished_row(job, work)
            if done is not None:
                return done
            with turn(job, work) as ours:
                if not ours:
                    return None
                with step_log(job, work) as log, guarded():
                    row = run(job, work, log)
            return kept(row, job, work)
    except Exception as error:  # a method's own code raises anything
        reason = reason_of(error)
        return NoResult(reason) if of_surroundings(error, job) else record_failure(job, work, reason)


def kept(row: Row, job: Job, work: Work) -> Row | NoResult:
    """The row of a job, once it is written; if it ended well, what was kept of its training has then served."""
    ended = written(row, work)
    if isinstance(ended, Row) and ended.status == "ok":
        with contextlib.suppress(OSError, store.StoreError):  # a folder that is read-only or unreadable by now
            for checkpoint in checkpoints(job, work):
                checkpoint.unlink(missing_ok=True)
            together.done(job, work)
    return ended


def finished_row(job: Job, work: Work) -> Row | None:
    """The row of `job` if another runner on the same local folder wrote it since this run was planned."""
    if work.beside is None or work.force:
        return None
    found = store.find(work.out, job.id)
    return None if found is None or work.redoes(found.status) else found


def record_failure(job: Job, work: Work, reason: str) -> Row | NoResult:
    """Write and return the failed row of `job`; no row where it cannot be made, as a method's words on its settings
    are code of others."""
    try:
        with guarded():
            row = Row.failed(reason=reason, **columns_of(job), **environment_columns(job))
    except Exception as error:
        return NoResult(f"{reason}; no row can be made: {reason_of(error)}")
    return written(row, work)


def written(row: Row, work: Work) -> Row | NoResult:
    """`row` once it is on disk, with the date that it has there; where it cannot be, a `NoResult` that still holds a
    good one."""
    try:
        row = store.dated(row, work.out)
        store.write(row, work.out)
    except store.StoreError as error:
        return NoResult(str(error), row if row.status == "ok" else None)
    return row


def reason_of(error: BaseException) -> str:
    """One line that tells a person what happened: type, text and where: the innermost line of code from outside of this
    package that it knows (a method's, a data set's), else of this package."""
    error = error.__cause__ if isinstance(error, Escaped) and error.__cause__ else error
    text = " ".join(text_of(error).split()) or "no message"
    others = {str(getattr(one.entry.build, "__module__", "")).partition(".")[0] for one in outside.ADDED.values()}
    ours = place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        here = f" (at {Path(frame.f_code.co_filename).name}:{line})"
        if package == OURS:
            ours = here
        elif package in others or package.startswith(MODULE):
            place = here
    return f"{type(error).__name__}: {text}{place or ours}"


@contextlib.contextmanager
def claim(job: Job, work: Work) -> Iterator[bool]:
    """Hold `job` against other runners on the same local folder; the lock goes with the process, however it dies.

    Results on a URL have no locks: two runners may then do the same job, and its row is still counted once. Raises
    StoreError for a local folder in which no row could be written: before hours of training, not after.
    """
    if work.beside is None:
        yield True
        return
    try:
        refuse_what_cannot_be_written(work.beside)
    except SelectionError as error:
        raise store.StoreError(str(error)) from error
    with holding(work.beside / ".locks" / f"{job.id}.lock") as ours:
        yield ours


@contextlib.contextmanager
def turn(job: Job, work: Work) -> Iterator[bool]:
    """Hold the training of `job` where others wait for the same model; without one to learn there is no waiting."""
    if not job.together or together.kept(job, work) is not None:
        yield True
        return
    with holding(together.lock_of(job, work)) as ours:
        yield ours


@contextlib.contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Whether the lock of the file `path` is ours while the block runs; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        yield locked(descriptor)
    finally:
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    """Whether the lock is ours now; a file system without locks gives it to everybody."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # network drives may say EACCES of one that is held
        return False
    except OSError:
        return True
    return True
