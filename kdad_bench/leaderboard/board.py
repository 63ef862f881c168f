"""One board: the entrants of one summary with the rows behind them, as every renderer shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdad_bench.leaderboard.row import ACCURACY, METRICS
from kdad_bench.leaderboard.student_t import student_quantile
from kdad_bench.leaderboard.summary import CONFIDENCE, Entrant, Estimate, Group, Summary, summarise

if TYPE_CHECKING:
    import pyarrow as pa

HEADLINE = ("image_auroc", "pixel_auroc", "aupro_30")
RANKED = ("image_auroc", "aupro_30")  # detection and localisation, one metric each
UNSTEADY = 0.05  # relative spread of a timing over the jobs of one entrant that is flagged (docs/protocol.md)
VISIBLE = 0.0005  # half of the last digit that tables show: a smaller difference is none

# What the renderers read of each row: a thousand files are opened for a page, and each column costs time.
DRAWN = (
    *("job_id", "schema_version", "protocol_version", "created_at", "method", "title", "dataset", "category", "seed"),
    *(
        "preset",
        "modality",
        "status",
        "reason",
        "teacher",
        "teacher_weights",
        "teacher_sha256",
        "resolution",
        "readings",
    ),
    *("image_size", "variant", "data_fingerprint", "synthetic", *ACCURACY, "train_seconds", "latency_ms"),
    *("network_latency_ms", "images_per_second", "best_batch", "peak_memory_mb", "parameters", "trainable_parameters"),
    *("gflops", "device", "device_name", "threads", "python", "torch", "triton", "numpy", "kdad_bench", "platform"),
    *("git_commit", "git_dirty"),
)

Mark = Literal["best", "second", ""]


@dataclass(frozen=True, kw_only=True)
class Board:
    """A summary, and for each of its entrants the row of each job that counts."""

    summary: Summary
    rows: Mapping[str, tuple[Mapping[str, Any], ...]]  # entrant -> rows, by category and seed; only those with a row

    _overall: dict[tuple[str, str], Estimate | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def group(self) -> Group:
        """What all rows share."""
        return self.summary.group

    @property
    def quick(self) -> bool:
        """Whether the budget is not the paper's: such numbers say nothing about a paper."""
        return not self.group.preset.startswith("paper")

    @property
    def dataset(self) -> str:
        """The data set as shown: a folder by its last component."""
        name = self.group.dataset
        return f"folder:{name.rstrip('/').rsplit('/', 1)[-1]}" if name.startswith("folder:") else name

    @property
    def machine(self) -> str:
        """The device as shown, with the threads that its jobs had."""
        name = self.group.device_name or self.group.device or "unknown device"
        threads = sorted({row["threads"] for rows in self.rows.values() for row in rows if row["threads"]})
        if self.group.device != "cpu" or not threads:
            return name
        return f"{name}, {' or '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"

    @property
    def title(self) -> str:
        """One line that says what the rows share."""
        seen = "" if self.group.modality in ("", "rgb") else f" ({self.group.modality})"
        resolution = f" at {self.group.resolution} px" if self.group.resolution else ""
        return f"{self.dataset}{seen}{resolution}, {self.group.preset} preset, {self.machine}"

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader must know before the first number: short names of the labels that apply."""
        marks = (("quick preset", self.quick), ("synthetic data", self.group.synthetic))
        return tuple(name for name, applies in marks if applies)

    @cached_property
    def labels(self) -> dict[str, str]:
        """entrant -> its name in tables, unique on this board."""
        names = {key: self._name(self.summary.entrant(key)) for key in self.rows}
        return {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}

    @staticmethod
    def _name(entrant: Entrant) -> str:
        return f"{entrant.title} ({entrant.variant})" if entrant.variant else entrant.title

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds with at least one finished job."""
        return tuple(sorted({row["seed"] for rows in self.rows.values() for row in rows}))

    def cell(self, key: str, category: str, metric: str) -> Estimate | None:
        """The mean over seeds in one category; None without a value."""
        return self.summary.cell(key, category, metric)

    def overall(self, key: str, metric: str) -> Estimate | None:
        """The mean over categories of the means over seeds; None without a value."""
        if (key, metric) not in self._overall:  # the bootstrap is the slowest part of a page
            self._overall[key, metric] = self.summary.overall(key, metric)
        return self._overall[key, metric]

    def readings(self, key: str) -> tuple[str, ...]:
        """The settings of an entrant that no source settles."""
        return tuple(dict.fromkeys(reading for row in self.rows[key] for reading in row["readings"] or ()))

    def covered(self, key: str) -> tuple[str, ...]:
        """The categories with a finished job of the entrant."""
        return tuple(dict.fromkeys(row["category"] for row in self.rows[key]))

    def measured(self, metric: str) -> bool:
        """Whether any entrant has a value."""
        return bool((~np.isnan(self.summary.values[metric])).any())

    @cached_property
    def headline(self) -> tuple[str, ...]:
        """The headline metrics that were measured: without masks there are none per pixel."""
        return tuple(metric for metric in HEADLINE if self.measured(metric))

    def categories(self, metric: str) -> tuple[str, ...]:
        """The categories in which any entrant has a value."""
        known = np.asarray((~np.isnan(self.summary.values[metric])).any(axis=(0, 2)))
        return tuple(name for name, there in zip(self.summary.categories, known, strict=True) if there)

    @cached_property
    def average_ranks(self) -> dict[str, float]:
        """entrant -> rank over the categories, the mean of those for the RANKED metrics that were measured.

        An entrant that lacks a category that another one has gets none: its mean is over other data.
        """
        metrics = [metric for metric in RANKED if self.measured(metric)]
        ranks = [self.summary.ranks(metric).average for metric in metrics]
        return {key: fmean(rank[key] for rank in ranks) for key in self.rows if ranks and all(key in r for r in ranks)}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The entrants, best average rank first, the unranked after them."""
        ranks = self.average_ranks

        def place(key: str) -> tuple[Any, ...]:
            found = self.overall(key, RANKED[0])
            return (ranks.get(key, float("inf")), -len(self.covered(key)), -found.mean if found else 0.0, key)

        return tuple(sorted(self.rows, key=place))

    def look(self, key: str) -> int:
        """A number that says how an entrant is drawn; a change of ranks leaves it as it is."""
        return sorted(self.rows).index(key)

    def typical(self, key: str, column: str) -> float | None:
        """Median over the jobs of a cost, which categories and seeds share."""
        values = [row[column] for row in self.rows[key] if row[column] is not None]
        return median(values) if values else None

    def unsteady(self, key: str, column: str) -> bool:
        """Whether the cost varies between the jobs by more than UNSTEADY of its mean (standard deviation)."""
        values = [row[column] for row in self.rows[key] if row[column] is not None]
        return len(values) > 1 and fmean(values) > 0 and stdev(values) / fmean(values) > UNSTEADY

    def cell_marks(self, metric: str, category: str) -> dict[str, Mark]:
        """The best and second of one category, each only if the 95 % interval of its paired difference to the next one
        over the shared seeds (Student) lies on its side of zero. Without repeats nothing is marked.
        """
        sign = 1 if METRICS[metric].higher_is_better else -1
        values = self.summary.values[metric][:, self.summary.categories.index(category)]  # [entrants, seeds]
        found = {
            entrant.key: sign * row
            for entrant, row in zip(self.summary.entrants, values, strict=True)
            if not np.isnan(row).all()
        }
        order = sorted(found, key=lambda key: (-float(np.nanmean(found[key])), key))
        marks: dict[str, Mark] = {}
        names: tuple[Mark, Mark] = ("best", "second")
        for place, name in enumerate(names):
            if len(order) > place + 1:
                difference = found[order[place]] - found[order[place + 1]]
                if _above_zero(difference[~np.isnan(difference)]):
                    marks[order[place]] = name
        return marks

    def overall_marks(self, metric: str) -> dict[str, Mark]:
        """The best and second overall mean, each only if the corrected Wilcoxon test tells it from the next one's."""
        means = {
            key: found.mean for key in self.rows if (found := self.overall(key, metric)) is not None and found.complete
        }
        sign = -1 if METRICS[metric].higher_is_better else 1
        order = sorted(means, key=lambda key: (sign * means[key], key))
        marks: dict[str, Mark] = {}
        names: tuple[Mark, Mark] = ("best", "second")
        for place, name in enumerate(names):
            if len(order) > place + 1 and self.summary.comparison(order[place], order[place + 1], metric).significant:
                marks[order[place]] = name
        return marks


def _above_zero(difference: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
    """Whether the Student interval of the mean lies above zero, and the mean would be seen in a table."""
    if difference.size < 2 or difference.mean() < VISIBLE:
        return False
    half = student_quantile(difference.size - 1, CONFIDENCE) * difference.std(ddof=1) / difference.size**0.5
    return bool(difference.mean() - half > 0)


def boards(table: pa.Table) -> list[Board]:
    """The boards of `table` (columns DRAWN, each job once), in an order that depends only on what they hold.

    The paper preset and real data come first.
    """
    rows = {row["job_id"]: row for row in table.to_pylist()}
    made = []
    for summary in summarise(table, ACCURACY):
        found: dict[str, list[Mapping[str, Any]]] = {}
        for (key, *_), job in sorted(summary.jobs.items()):
            found.setdefault(key, []).append(rows[job])
        made.append(Board(summary=summary, rows={key: tuple(members) for key, members in found.items()}))
    return sorted(made, key=lambda board: (board.quick, board.group.synthetic, board.group))
