"""What came of the jobs of one call: each in a line, and the rows that found no place at first."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from kdad_bench.harness.job import Job
from kdad_bench.harness.on_ray import Ending
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row

LINE_METRICS = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("aupro_30", "AUPRO"))


def line(job: Job, row: Row | NoResult) -> str:
    """`stfpm synthetic/weave seed 0: image AUROC 0.981, pixel AUROC 0.962, AUPRO 0.911, 7.3 s`."""
    if isinstance(row, NoResult):
        return f"{job.label}: NO RESULT: {row.reason}"
    if row.status != "ok":
        return f"{job.label}: FAILED: {row.reason}"
    numbers = [f"{label} {value(getattr(row, name))}" for name, label in LINE_METRICS]
    took = [] if row.total_seconds is None else [f"{row.total_seconds:.1f} s"]
    return f"{job.label}: {', '.join([*numbers, *took])}"


def value(number: float | None) -> str:
    """Three digits, or a dash for what cannot be measured (no masks)."""
    return "-" if number is None else f"{number:.3f}"


def put_back(endings: Sequence[tuple[Job, Ending]], out: str) -> int:
    """How many rows of this call had to be written again.

    A folder that was moved or emptied meanwhile, or was full for a while, gets the rows that are still in memory.
    """
    found = (ended if isinstance(ended, Row) else ended.row for _, ended in endings)
    rows = {row.job_id: row for row in found if row is not None}
    restored = 0
    with suppress(store.StoreError):  # a job without a row is listed
        there = store.finished(out, rows) if rows else {}
        for job, row in rows.items():
            if job not in there:
                store.write(row, out)
                restored += 1
    return restored
