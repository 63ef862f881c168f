"""What a person sees while jobs run: a bar with the time left on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from kdad_bench.harness.endings import line
from kdad_bench.harness.estimate import remember
from kdad_bench.harness.job import Job
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.leaderboard.row import Row


class Progress:
    """Follows the jobs of one run."""

    def __init__(self, console: Console, jobs: Sequence[Job], *, as_json: bool) -> None:
        self.console = console
        self.as_json = as_json
        self.total = len(jobs)
        self.done = 0
        self.bar = Bar(
            SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("jobs,"), TimeElapsedColumn(),
            TextColumn("gone,"), TimeRemainingColumn(), TextColumn("left  {task.description}", markup=False),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=self.total)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def started(self, job: Job) -> None:
        """A job began."""
        self.bar.update(self.task, description=job.label)

    def ended(self, job: Job, ended: Row | NoResult) -> None:
        """A job left its row, or none: one line, or one JSON object on stdout."""
        self.done += 1
        self.bar.advance(self.task)
        known = isinstance(ended, Row) and not (job.together and ended.train_seconds is None)  # else who learnt is not
        if isinstance(ended, Row) and known and ended.status == "ok" and ended.total_seconds is not None:
            # where another job learnt the model the row has that one's seconds of training
            learns = not job.together or ended.total_seconds >= (ended.train_seconds or 0.0)
            remember(job, ended.total_seconds, ended.threads, learns=learns)
        self.console.print(f"[{self.done}/{self.total}] {line(job, ended)}", markup=False)
        if self.as_json:
            click.echo(json.dumps(summary(job, ended)))


def summary(job: Job, row: Row | NoResult) -> dict[str, object]:
    """What `--json` says of a job that ended; `status` is `ok`, `failed` or, without a row, `none`."""
    names = (
        "job_id", "status", "reason", "method", "variant", "dataset", "category", "seed", "preset", "device",
        "image_auroc", "pixel_auroc", "aupro_30", "latency_ms", "speed_key", "train_seconds", "total_seconds",
    )  # fmt: skip
    if isinstance(row, NoResult):
        known = {
            "job_id": job.id, "status": "none", "reason": row.reason, "method": job.method,
            "variant": job.variant or None, "dataset": job.category.dataset, "category": job.category.name,
            "seed": job.seed, "preset": job.preset, "device": job.device.partition(":")[0],
        }  # fmt: skip
        return {name: known.get(name) for name in names}
    return {name: getattr(row, name) for name in names}
