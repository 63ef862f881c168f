"""The log of a training, one JSON line per step, and the loss curve that an interrupted training goes on with."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

from kdad_bench.harness import together
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work, checkpoints
from kdad_bench.outside import text_of

EVENTS = ("start", "step", "end", "failed")


class DamagedLog(ValueError):
    """A log with a line that is none of ours."""


def earlier_losses(job: Job, work: Work) -> dict[int, dict[str, float]]:
    """step -> loss terms that an interrupted training of `job` logged before it was stopped."""
    if work.beside is None or not checkpoints(job, work):
        return {}
    return curve_of(log_path(job, work.beside))


def log_path(job: Job, folder: Path) -> Path:
    """logs/<job id>.jsonl in a results folder; of jobs that share a model, one of that training's id."""
    return folder / "logs" / f"{job.training}.jsonl"


def curve_of(path: Path) -> dict[int, dict[str, float]]:
    """step -> loss terms in a log; raises DamagedLog for a line that is torn or none of ours, OSError without a log."""
    found: dict[int, dict[str, float]] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        step, terms = step_of(line)
        if step is not None:
            found[step] = {**found.get(step, {}), "step": step, **terms}
    if not path.read_bytes().endswith(b"\n"):
        raise DamagedLog(f"{path}: its last line is torn")
    return found


def step_of(line: bytes) -> tuple[int | None, dict[str, float]]:
    """(step, loss terms) of a line, (None, {}) of another event; raises DamagedLog."""
    try:
        content = json.loads(line.decode("utf-8"))
        event = content.pop("event")
        step = content.pop("step") if event == "step" else None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedLog(f"a line that is none of ours: {line[:80]!r}") from error
    if event not in EVENTS or (event == "step" and not (type(step) is int and all(map(is_number, content.values())))):
        raise DamagedLog(f"a line that is none of ours: {line[:80]!r}")
    return step, content if event == "step" else {}


def is_number(value: object) -> bool:
    """Whether a loss term is a finite number."""
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def start_anew_where_the_log_is_damaged(job: Job, work: Work) -> bool:
    """Whether a training goes on. Without its whole loss curve it does not: the row would differ from a straight run's.

    Its checkpoints are then deleted, with a warning.
    """
    kept = checkpoints(job, work)
    if work.beside is None or not kept:
        return False
    path = log_path(job, work.beside)
    try:
        curve_of(path)
    except (OSError, DamagedLog) as error:
        warnings.warn(f"{path}: damaged log ({error}): the training starts from its beginning", stacklevel=2)
        for checkpoint in kept:
            checkpoint.unlink(missing_ok=True)
        return False
    return True


class Lines:
    """A log file that is written as long as it can be: after that one warning, and the job goes on without it."""

    def __init__(self, path: Path, *, go_on: bool) -> None:
        self.path = path
        self.file: FileIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = FileIO(path, "a" if go_on else "w")  # unbuffered: a killed job has logged what it did
        except OSError as error:
            self.give_up(error)

    def write(self, event: str, **content: Any) -> bool:
        """Append one JSON line; whether it is there."""
        line = (json.dumps({"event": event, **content}) + "\n").encode()
        try:
            if self.file is not None and self.file.write(line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            self.give_up(error)
        return self.file is not None

    def give_up(self, error: OSError) -> None:
        """Say once why nothing more is logged."""
        self.close()
        warnings.warn(
            f"{self.path}: no more is logged there ({error.strerror or error}); the job goes on without checkpoints",
            stacklevel=3,
        )

    def close(self) -> None:
        """Write no more."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.close()
        self.file = None


@contextlib.contextmanager
def step_log(job: Job, work: Work) -> Iterator[Callable[[int, Mapping[str, float]], bool | None]]:
    """A function that appends one JSON line per call (`step`, then the loss terms) to logs/<job id>.jsonl; it answers
    whether the line is there, None where no log is kept.

    A log that cannot be written is one warning and costs the row nothing.
    """
    if work.beside is not None and job.together:
        point_to_the_training(job, work.beside)
    if work.beside is None or together.kept(job, work) is not None:  # it has been learnt, and its log is there
        yield lambda step, terms: None
        return
    lines = Lines(log_path(job, work.beside), go_on=start_anew_where_the_log_is_damaged(job, work))
    events = tensorboard_writer(job, work)

    def log(step: int, terms: Mapping[str, float]) -> bool:
        there = lines.write("step", step=step, **terms)
        if events is not None:
            for name, value in terms.items():
                events.add_scalar(f"loss/{name}", value, step)
        return there

    lines.write("start", job=job.id, **{key: value for key, value in job.identity.items() if key != "settings"})
    try:
        yield log
    except BaseException as error:
        lines.write("failed", error=f"{type(error).__name__}: {text_of(error)}")
        raise
    else:
        lines.write("end")
    finally:
        lines.close()
        if events is not None:
            with contextlib.suppress(OSError):  # its disk is full: the log says what there was
                events.close()


def point_to_the_training(job: Job, folder: Path) -> None:
    """A log of a job that shares a model: it says in which one the training is."""
    lines = Lines(folder / "logs" / f"{job.id}.jsonl", go_on=False)
    lines.write("start", job=job.id, training=job.training)
    lines.write("end")
    lines.close()


def tensorboard_writer(job: Job, work: Work) -> Any:
    """A TensorBoard writer for `job`, None unless asked for; raises ModuleNotFoundError without the package."""
    if not work.tensorboard or work.beside is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(work.beside / "tensorboard" / job.id))
    except OSError as error:
        warnings.warn(f"{job.label}: no TensorBoard events ({error}); the job goes on", stacklevel=2)
        return None
