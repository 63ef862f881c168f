"""Carry out one job for good: claim it, run it, write its row; what goes wrong becomes a failed row."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdad_bench.harness.job import Job
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Where results go and what is kept beside them."""

    out: str  # results folder: a local path or an fsspec URL
    force: bool = False  # redo jobs that have a row
    retry_failed: bool = False  # redo jobs whose row is a failure
    pictures: bool = False  # a contact sheet per job under pictures/
    save_models: bool = False  # the trained model per job under models/
    save_maps: bool = False  # the raw anomaly maps per job as float16 under maps/
    tensorboard: bool = False  # the loss terms as TensorBoard events under tensorboard/
    checkpoint_every_seconds: float = 60.0

    @property
    def beside(self) -> Path | None:
        """The local folder for what is kept beside the rows; None when results go to a URL."""
        return None if "://" in self.out else Path(self.out)


def perform(job: Job, work: Work) -> Row | None:
    """Run `job` and write its row; returns the row, or None when another runner on the same folder holds the job.

    A job that another runner finished meanwhile is not run again: its row is read and returned.
    """
    from kdad_bench.harness.run import run

    with claim(job, work) as ours:
        if not ours:
            return None
        done = None if work.force else finished_row(job, work)
        if done is not None and (done.status == "ok" or not work.retry_failed):
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
    from kdad_bench.harness.run import columns_of, environment_columns

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


def checkpoint_path(job: Job, work: Work) -> Path | None:
    """Where an unfinished training of `job` is kept; None when results go to a URL."""
    return work.beside / "checkpoints" / f"{job.id}.pt" if work.beside else None


def checkpoints(job: Job, work: Work) -> list[Path]:
    """What is kept of an unfinished training of `job`: one file, or one per modality."""
    path = checkpoint_path(job, work)
    return [] if path is None else sorted(path.parent.glob(f"{job.id}*.pt"))


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


def tensorboard_writer(job: Job, work: Work) -> Any:
    """A TensorBoard writer for `job`, None unless asked for; raises ModuleNotFoundError without the package."""
    if not work.tensorboard or work.beside is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(work.beside / "tensorboard" / job.id))


def earlier_losses(job: Job, work: Work) -> dict[int, dict[str, float]]:
    """step -> loss terms that an interrupted training of `job` logged before it was stopped."""
    if work.beside is None or not checkpoints(job, work):
        return {}
    found: dict[int, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError):  # a log that is torn or gone costs only its own lines
        for text in (work.beside / "logs" / f"{job.id}.jsonl").read_text(encoding="utf-8").splitlines():
            content = json.loads(text)
            if content.pop("event") == "step":
                step = int(content["step"])
                found[step] = {**found.get(step, {}), **content}
    return found


@contextlib.contextmanager
def step_log(job: Job, work: Work) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function that appends one JSON line per call (`step`, then the loss terms) to logs/<job id>.jsonl."""
    if work.beside is None:
        yield lambda step, terms: None
        return
    path = work.beside / "logs" / f"{job.id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = tensorboard_writer(job, work)
    resumed = bool(checkpoints(job, work))  # then the log goes on as well
    with path.open("a" if resumed else "w", encoding="utf-8", buffering=1) as file:
        header = {"job": job.id, **{key: value for key, value in job.identity.items() if key != "settings"}}
        file.write(json.dumps({"event": "start", **header}) + "\n")

        def log(step: int, terms: Mapping[str, float]) -> None:
            file.write(json.dumps({"event": "step", "step": step, **terms}) + "\n")
            if writer is not None:
                for name, value in terms.items():
                    writer.add_scalar(f"loss/{name}", value, step)

        try:
            yield log
        except BaseException as error:
            file.write(json.dumps({"event": "failed", "error": f"{type(error).__name__}: {error}"}) + "\n")
            raise
        else:
            file.write(json.dumps({"event": "end"}) + "\n")
        finally:
            if writer is not None:
                writer.close()
