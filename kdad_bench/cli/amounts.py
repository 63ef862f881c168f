"""Progress of work that is counted in bytes, images or maps, on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import rich_click as click


class Amounts:
    """Progress on stderr: a bar in a terminal, a line every ten seconds elsewhere."""

    def __init__(self, unit: str = "bytes") -> None:
        self._unit = unit
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last = time.monotonic()

    def __enter__(self) -> Amounts:
        if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            from rich import progress
            from rich.console import Console

            amount = progress.DownloadColumn() if self._unit == "bytes" else progress.MofNCompleteColumn()
            self._bar = progress.Progress(
                "{task.description}", progress.BarColumn(), amount, progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )  # fmt: skip
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, phase: str, done: int, total: int | None) -> None:
        if self._bar is not None:
            if phase not in self._tasks:
                self._tasks[phase] = self._bar.add_task(phase, total=total)
            self._bar.update(self._tasks[phase], completed=done, total=total)
        elif time.monotonic() - self._last > 10:
            self._last = time.monotonic()
            share = f" of {total} ({done / total:.0%})" if total else ""
            click.echo(f"{phase}: {done}{share} {self._unit}", err=True)
