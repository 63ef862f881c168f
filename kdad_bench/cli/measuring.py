"""What a person sees while speed is measured, after the jobs: a line for each configuration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console

from kdad_bench.leaderboard.text import counted

if TYPE_CHECKING:
    from kdad_bench.harness.agenda import Agenda
    from kdad_bench.harness.job import Job
    from kdad_bench.harness.on_ray import Ending
    from kdad_bench.harness.options import RunOptions
    from kdad_bench.leaderboard.measurement import Measurement

SAID = (
    "latency_ms", "latency_p95_ms", "latency_p99_ms", "first_latency_ms", "images_per_second", "one_thread_latency_ms",
    "speed_load", "speed_threads",
)  # fmt: skip


def measure_speed(
    found: Agenda, options: RunOptions, console: Console, endings: Sequence[tuple[Job, Ending]], missing: list[str]
) -> bool:
    """Measure what has no measurement yet, once no job runs any more; false when Ctrl-C stopped it.

    A line for each configuration that has none afterwards is appended to `missing`.
    """
    from kdad_bench.harness.measuring import NotMeasured, measured, wanted
    from kdad_bench.leaderboard.row import Row
    from kdad_bench.leaderboard.store import StoreError

    rows = [row for _, ended in endings if (row := ended if isinstance(ended, Row) else ended.row) is not None]
    try:
        todo, elsewhere = wanted(found, rows, options)
        missing += [one.line for one in elsewhere]
        timed = sum(one.kept is None for one in todo)
        if timed:
            console.print(f"measuring the speed of {counted(timed, 'configuration')}, nothing beside it", markup=False)
        anew, tell = bool(options.measure_speed or found.work.force), partial(console.print, markup=False)
        for made in measured(todo, found.work.out, anew=anew, tell=tell):
            if isinstance(made, NotMeasured):
                missing.append(made.line)
            else:
                console.print(line(made), markup=False)
    except StoreError as error:
        missing.append(f"speed not measured: {error}")
    except KeyboardInterrupt:
        return False
    return True


def line(made: Measurement) -> str:
    """`stfpm at 128 px: 12.3 ms/image (p95 13.1, p99 15.0; first 80.2), 1 thread 20.1, 210 images/s, 2 threads`."""
    from kdad_bench.leaderboard.board import MOST_LOAD  # loads numpy

    figures = {name: number(made.figures.get(name)) for name in SAID}
    busy = (made.figures.get("speed_load") or 0) > MOST_LOAD
    beside = f" ~ other work held {made.figures['speed_load']:.0%} of the processors" if busy else ""
    return (
        f"{made.method} at {made.configuration.get('resolution')} px: {figures['latency_ms']} ms/image (p95 "
        f"{figures['latency_p95_ms']}, p99 {figures['latency_p99_ms']}, first {figures['first_latency_ms']}), one "
        f"thread {figures['one_thread_latency_ms']}; {figures['images_per_second']} images/s{beside}"
    )


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
