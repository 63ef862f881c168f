"""The table at the end of a run: accuracy beside speed, one line per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

ACCURACY = (("image_auroc", "image AUROC"), ("pixel_auroc", "pixel AUROC"), ("aupro_30", "AUPRO@0.3"))
SPEED = (("train_seconds", "train s", 1), ("latency_ms", "ms/image", 1), ("images_per_second", "images/s", 0))


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Mean over categories ± deviation over seeds; median speed. Finished jobs of one run only."""
    finished = [row for row in rows if row["status"] == "ok"]
    table = Table(title=title(finished), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    table.add_column("jobs", justify="right")
    for _, label in ACCURACY:
        table.add_column(label, justify="right", no_wrap=True)
    for _, label, _ in SPEED:
        table.add_column(label, justify="right", no_wrap=True)
    for name in dict.fromkeys(name_of(row) for row in rows):
        ours = [row for row in finished if name_of(row) == name]
        jobs = sum(name_of(row) == name for row in rows)
        cells = [mean_over_categories(ours, metric) for metric, _ in ACCURACY]
        cells += [typical(ours, metric, digits) for metric, _, digits in SPEED]
        table.add_row(name, f"{len(ours)}/{jobs}", *cells)
    return table


def title(rows: Sequence[Mapping[str, Any]]) -> str:
    """Says what must not be mistaken: synthetic data, a preset's budget."""
    labels = list(dict.fromkeys(f"preset {row['preset'].partition('[')[0]}" for row in rows))
    if any(row["synthetic"] for row in rows):
        labels.append("synthetic data")
    return "mean over categories ± deviation over seeds; " + ", ".join(labels)


def name_of(row: Mapping[str, Any]) -> str:
    """`method` or `method:variant`."""
    return f"{row['method']}:{row['variant']}" if row["variant"] else str(row["method"])


def mean_over_categories(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """`0.953 ± 0.004`: per seed the mean over categories, then mean and deviation over the seeds."""
    seeds: dict[int, list[float]] = {}
    for row in rows:
        if row[metric] is not None:
            seeds.setdefault(row["seed"], []).append(row[metric])
    means = [fmean(values) for values in seeds.values()]
    if not means:
        return "-"
    return f"{fmean(means):.3f}" + (f" ± {stdev(means):.3f}" if len(means) > 1 else "")


def typical(rows: Sequence[Mapping[str, Any]], metric: str, digits: int) -> str:
    """The median over the jobs."""
    values = [row[metric] for row in rows if row[metric] is not None]
    return f"{median(values):.{digits}f}" if values else "-"
