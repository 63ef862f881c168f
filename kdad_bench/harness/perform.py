"""Carry out one job for good: claim it, run it, write its row; what goes wrong becomes a failed row."""

from __future__ import annotations

import contextlib
import fcntl
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work, checkpoints, step_log
from kdad_bench.harness.run import columns_of, environment_columns, run
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row


def perform(job: Job, work: Work) -> Row | None:
    """Run `job` and write its row; returns the row, or None when another runner on the same folder holds the job.

    A job that another runner finished meanwhile is not run again: its row is read and returned.
    """
    with claim(job, work) as ours:
        if not ours:
            return None
        done = None if work.force else finished_row(job, work)
        if done is not None and not work.redoes(done.status):
            return done
        try:
            with step_log(job, work) as log:
                row = run(job, work, log)
        except Exception as error:
            return record_failure(job, work, reason_of(error))
        store.write(row, work.out)
        for checkpoint in checkpoints(job, work):
            checkpoint.unlink(missing_ok=True)
        return row


def finished_row(job: Job, work: Work) -> Row | None:
    """The row of `job` if another runner on the same local folder wrote it since this run was planned."""
    if work.beside is None or not any(work.beside.glob(f"*{job.id}*.parquet")):
        return None
    for columns in store.read(work.out).rows():
        if columns["job_id"] == job.id:
            plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in columns.items()}
            return Row(**plain)
    return None


def record_failure(job: Job, work: Work, reason: str) -> Row:
    """Write and return the failed row of `job`."""
    row = Row.failed(reason=reason, **columns_of(job), **environment_columns(job))
    store.write(row, work.out)
    return row


def reason_of(error: Exception) -> str:
    """One line that tells a person what happened: type, text and the innermost line of this package."""
    text = " ".join(str(error).split()) or "no message"
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "kdad_bench" in frame.filename:
            place = f" (at {Path(frame.filename).name}:{frame.lineno})"
    return f"{type(error).__name__}: {text}{place}"


@contextlib.contextmanager
def claim(job: Job, work: Work) -> Iterator[bool]:
    """Hold `job` against other runners on the same local folder; the lock goes with the process, however it dies.

    Results on a URL have no locks: two runners may then do the same job, and its row is still counted once.
    """
    if work.beside is None:
        yield True
        return
    locks = work.beside / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    path = locks / f"{job.id}.lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
