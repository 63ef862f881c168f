"""One board: the entrants of one summary with the rows behind them, as every renderer shows them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from kdad_bench.leaderboard import measurement
from kdad_bench.leaderboard.families import in_order
from kdad_bench.leaderboard.grouping import shortest_names, summarise
from kdad_bench.leaderboard.metric import ACCURACY, HEADLINE, MEASURED, METRICS, RANKED
from kdad_bench.leaderboard.row import COLUMNS, EXTERNAL
from kdad_bench.leaderboard.summary import FEW, Entrant, Estimate, Group, Ranks, Summary
from kdad_bench.leaderboard.text import first_names

if TYPE_CHECKING:
    import pyarrow as pa

# The one rule for a noisy timing, which docs/protocol.md states: a time or a rate whose standard deviation over the
# jobs of one entrant is more than this part of its mean is flagged with a tilde. One job has nothing to compare with.
# A figure of a shared measurement is flagged where other work held more than this part of the processors meanwhile.
UNSTEADY = 0.05
MOST_LOAD = 0.2
TIMED = ("s", "ms", "1/s")  # units of a timing
BUDGETS = {"paper": 0, "standard": 1, "quick": 3}  # the order of presets on a page; any other stands before `quick`
# What is not the paper's in the presets that are not the papers'.
SHORT = {
    "quick": "small images and a short fixed budget; no statement about a paper's numbers",
    "standard": "one small teacher and a budget far below the papers'; no statement about a paper's numbers",
}

# What the renderers read of each row: a thousand files are opened for a page, and each column costs time.
_IDENTITY = (
    "job_id schema_version protocol_version created_at method title family variant dataset category seed preset "
    "also_presets modality status reason teacher teacher_weights teacher_sha256 resolution image_size readings "
    "deviations data_fingerprint synthetic origin code_sha256 train_images k_shot contamination corruption "
    "setting learnt_together weights_sha256 fit tile tile_overlap speed_key speed_threads"
)
_MACHINE = "device device_name threads python torch triton numpy kdad_bench platform git_commit git_dirty"
_SCORES = "image_scores image_labels image_names"
_FIGURES = tuple(
    name
    for name, metric in MEASURED.items()
    if name in ACCURACY or metric.tables or metric.higher_is_better is None or name in measurement.SHARED
)
DRAWN = tuple(name for name in COLUMNS if name in {*_IDENTITY.split(), *_FIGURES, *_SCORES.split(), *_MACHINE.split()})

SEVERAL_VERSIONS = "rows of several versions"  # a caveat


@dataclass(frozen=True, kw_only=True)
class Board:
    """A summary, and for each of its entrants the row of each job that counts."""

    summary: Summary
    rows: Mapping[str, tuple[Mapping[str, Any], ...]]  # entrant -> rows, by category and seed; only those with a row
    dataset: str  # as shown: a folder by as many of its last components as tell it from the others
    apart: str = ""  # what else tells the title from that of another board

    _overall: dict[tuple[str, str], Estimate | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def group(self) -> Group:
        """What all rows share."""
        return self.summary.group

    @property
    def preset(self) -> str:
        """The preset by name, without what a run changed of it; "" for maps that other code made."""
        return "" if self.external else self.group.preset.partition("[")[0]

    @property
    def short(self) -> bool:
        """Whether the budget is not the paper's: such numbers say nothing about a paper."""
        return self.preset not in ("", "paper")

    @property
    def budget(self) -> str:
        """What a reader must know of a preset whose budget is not the paper's."""
        return SHORT.get(self.preset, "a budget that is not the paper's; no statement about a paper's numbers")

    @property
    def external(self) -> bool:
        """Whether other code made the maps: how they were made is not known, so nothing here ranks among our rows."""
        return bool(self.group.origin)

    @property
    def machine(self) -> str:
        """The device as shown, with the threads that its jobs had."""
        return self._with_threads({row["threads"] for rows in self.rows.values() for row in rows})

    def clocked(self, row: Mapping[str, Any]) -> str:
        """The device as shown, with the threads that the speed of a row was measured with."""
        return self._with_threads({row["speed_threads" if measurement.measured_alone(row) else "threads"]})

    def _with_threads(self, numbers: Iterable[int | None]) -> str:
        name = self.group.device_name or self.group.device or "unknown device"
        threads = sorted(filter(None, numbers))
        if self.group.device != "cpu" or not threads:
            return name
        return f"{name}, {' or '.join(map(str, threads))} thread{'s' if threads != [1] else ''}"

    @property
    def title(self) -> str:
        """One line that says what the rows share."""
        return self._titled("" if self.external else f", {self.machine}")

    @property
    def title_but_machine(self) -> str:
        """The title without the device and its threads."""
        return self._titled("")

    def _titled(self, machine: str) -> str:
        seen = "" if self.group.modality in ("", "rgb") else f" ({self.group.modality})"
        resolution = f" at {self.group.resolution} px" if self.group.resolution else ""
        made = self._origin if self.external else f"{self.group.preset} preset{machine}"
        one = f", one model for {self.together} categories" if self.together else ""
        return f"{self.dataset}{seen}{resolution}, {made}{one}{self.apart}"

    @property
    def _origin(self) -> str:
        """Who made an external result, and what else it was judged with than the plain rules: `fit=pad`."""
        judged = self.group.preset.partition("[")[2].removesuffix("]")
        return self.group.origin + (f", {judged}" if judged else "")

    @property
    def together(self) -> int:
        """How many categories one model has learnt from; 0 where each has its own."""
        row = next((row for rows in self.rows.values() for row in rows), None)
        return len(row["learnt_together"] or ()) if row is not None and row.get("setting") else 0

    @property
    def interval_words(self) -> str:
        """What the interval of a mean in this board's tables is for: in one, or of each metric where they differ."""
        told: dict[str, list[str]] = {}
        for metric in self.headline:
            told.setdefault(self._interval_for(metric), []).append(METRICS[metric].label)
        if len(told) < 2:
            return "".join(f" for {words}" for words in told)
        return ": " + "; ".join(f"of {' and '.join(labels)} for {words}" for words, labels in told.items())

    def _interval_for(self, metric: str) -> str:
        counts = {found.categories for key in self.rows if (found := self.overall(key, metric)) is not None}
        categories = max(counts, default=0)
        other = "other seeds and, where rows hold the scores of images, other test images"
        repeated = [self.seeds_of(key)[1] > 1 for key in self.rows]
        if not any(repeated):
            other = "other test images, for these trained models: one seed says nothing of others"
        elif not all(repeated):
            other += " (of a method with one seed for other test images alone)"
        if categories >= FEW:
            fewer = ", of a method that has fewer than six for those alone" if min(counts) < FEW else ""
            once = f", {other}" if self.together and not any(repeated) else ""
            return f"other categories of the same kind{fewer}{once}"
        if categories < 2:
            return f"one category, with {other}" if len(self.everything) > 1 else other
        fewer = " (of a method that has fewer for those)" if len(counts) > 1 else ""
        return (
            f"these {categories} categories{fewer}, with {other}; for other categories of the same kind it is far "
            "wider (`low`, `high` in `leaderboard.csv`)"
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader must know before the first number: short names of the labels that apply."""
        marks = (
            (EXTERNAL, self.external),
            ("multi-class", self.together > 0),
            (f"{self.preset} preset", self.short),
            ("synthetic data", self.group.synthetic),
            (SEVERAL_VERSIONS, bool(self.mixture)),
        )
        return tuple(name for name, applies in marks if applies)

    @cached_property
    def versions(self) -> dict[str, Counter[str]]:
        """entrant -> version of this package -> how many of its jobs that count are of it."""
        return {key: Counter(row["kdad_bench"] or "unknown" for row in rows) for key, rows in self.rows.items()}

    @cached_property
    def mixture(self) -> str:
        """Which versions the rows are of, and which means are over several; "" where all are of one.

        Between two versions numbers may change. The newest rows count, so that a table of both is no comparison of like
        with like until what is older was run again.
        """
        every = sorted({version for found in self.versions.values() for version in found})
        if len(every) < 2:
            return ""
        both, one = [], dict[str, list[str]]()
        for key in self.order:
            found = self.versions[key]
            if len(found) > 1:
                counts = ", ".join(f"{version}: {found[version]}" for version in sorted(found))
                both.append(f"{self.labels[key]} ({counts})")
            else:
                one.setdefault(next(iter(found)), []).append(self.labels[key])
        words = f"numbers of kdad-bench {' and '.join(every)} stand in one table and may differ by the version alone"
        words += f"; means over jobs of several: {first_names(both)}" if both else ""
        return words + "".join(f"; of {version} alone: {first_names(one[version])}" for version in sorted(one))

    @cached_property
    def labels(self) -> dict[str, str]:
        """entrant -> its name in tables, unique on this board."""
        names = {entrant.key: self.name(entrant) for entrant in self.summary.entrants}
        return {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}

    @staticmethod
    def name(entrant: Entrant) -> str:
        """An entrant with its variant, which another board's may share."""
        return f"{entrant.title} ({entrant.variant})" if entrant.variant else entrant.title

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds with at least one finished job."""
        return tuple(sorted({row["seed"] for rows in self.rows.values() for row in rows}))

    def seeds_of(self, key: str) -> tuple[int, int]:
        """The fewest and the most seeds that an entrant has in a category."""
        found = Counter(row["category"] for row in self.rows[key])
        return min(found.values()), max(found.values())

    def cell(self, key: str, category: str, metric: str) -> Estimate | None:
        """The mean over seeds in one category; None without a value."""
        return self.summary.cell(key, category, metric)

    def overall(self, key: str, metric: str) -> Estimate | None:
        """The mean over categories of the means over seeds; None without a value."""
        if (key, metric) not in self._overall:
            self._overall[key, metric] = self.summary.overall(key, metric)
        return self._overall[key, metric]

    def fewer(self, key: str, metric: str) -> str:
        """A remark on a mean that lacks categories which others have, or jobs that failed: ` (3 of 4, 2 failed)`."""
        if self.overall(key, metric) is None:
            return ""
        failed = self.failed(key, metric)
        parts = [part for part in (self.lacking(key, metric), f"{failed} failed" if failed else "") if part]
        return f" ({', '.join(parts)})" if parts else ""

    def lacking(self, key: str, metric: str) -> str:
        """Over how many categories a mean is that lacks some which others have: `3 of 4`; "" of one that lacks none."""
        found = self.overall(key, metric)
        return "" if found is None or found.complete else f"{found.categories} of {len(self.categories(metric))}"

    @cached_property
    def failures(self) -> Counter[str]:
        """entrant -> how many of its jobs failed and have no result since."""
        return Counter(key for key, *_ in self.summary.failed)

    def failed(self, key: str, metric: str) -> int:
        """How many of these a mean lacks: not those of a category that is known to have no value of the metric."""
        elsewhere = self.everything - {*self.categories(metric)}
        return sum(one == key and category not in elsewhere for one, category, *_ in self.summary.failed)

    def failed_in(self, key: str, category: str) -> int:
        """How many of them are of one category."""
        return sum((one, there) == (key, category) for one, there, *_ in self.summary.failed)

    @property
    def diverged(self) -> frozenset[str]:
        """The entrants of which a job ran away to values that are not finite: the mean of those that did not says more
        good of them than is true, so that they are neither ranked, marked nor judged."""
        return self.summary.diverged

    def readings(self, key: str) -> tuple[str, ...]:
        """The settings of an entrant that no source settles."""
        return tuple(dict.fromkeys(reading for row in self.rows[key] for reading in row["readings"] or ()))

    def also_presets(self, key: str) -> tuple[str, ...]:
        """The other presets whose jobs all of this entrant's are."""
        found = [row.get("also_presets") or () for row in self.rows[key]]
        return tuple(name for name in found[0] if all(name in other for other in found)) if found else ()

    def deviations(self, key: str) -> tuple[str, ...]:
        """What the sources of an entrant settle and its jobs did otherwise."""
        return tuple(dict.fromkeys(one for row in self.rows[key] for one in row["deviations"] or ()))

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
        """The categories in which any entrant has a value, numbers in their names in the order of numbers."""
        known = np.asarray((~np.isnan(self.summary.values[metric])).any(axis=(0, 2)))
        return tuple(
            sorted((c for c, there in zip(self.summary.categories, known, strict=True) if there), key=_numbered)
        )

    def heading(self, metric: str) -> str:
        """The name of a metric above its means, with its categories where it lacks some: `AUPRO@0.3 (1 of 2)`."""
        known, every = len(self.categories(metric)), len(self.everything)
        return METRICS[metric].label + (f" ({known} of {every})" if 0 < known < every else "")

    @cached_property
    def everything(self) -> frozenset[str]:
        """The categories with a finished job of any entrant."""
        return frozenset(category for key in self.rows for category in self.covered(key))

    @property
    def rank_words(self) -> str:
        """What the average rank is a mean over, with the categories of each metric where one has more than another."""
        ranked = [metric for metric in RANKED if self.measured(metric)]
        counts = {metric: len(self.categories(metric)) for metric in ranked}
        if not ranked:
            return "No ranked metric was measured: there is no average rank."
        labels = [METRICS[metric].label for metric in ranked]
        if len({*counts.values()}) == 1:
            return f"Average rank: over the categories, of {' and '.join(labels)}."
        apart = " and ".join(f"{label} (over {counts[metric]})" for metric, label in zip(ranked, labels, strict=True))
        return f"Average rank: the mean of those of {apart}, each over the categories that have it."

    @cached_property
    def average_ranks(self) -> dict[str, float]:
        """entrant -> rank over the categories, the mean of those for the RANKED metrics that were measured.

        An entrant that lacks a category that another one has gets none: its mean is over other data.
        """
        return self._ranks_among(None)

    @cached_property
    def ranks_in_family(self) -> dict[str, float]:
        """entrant -> the same rank among the entrants of its family alone."""
        found: dict[str, float] = {}
        for family in self.families:
            found |= self._ranks_among([key for key in self.rows if self.family(key) == family])
        return found

    def _ranks_among(self, members: Sequence[str] | None) -> dict[str, float]:
        ranks = [self.ranks(metric, members).average for metric in RANKED if self.measured(metric)]
        return {
            key: _mean_of_ranks([rank[key] for rank in ranks])
            for key in self.rows
            if ranks and all(key in rank for rank in ranks)
        }

    def ranks(self, metric: str, members: Sequence[str] | None = None) -> Ranks:
        """Average ranks in a metric of `members`, of all if None, but for those that `diverged`."""
        if members is None and not self.diverged:
            return self.summary.ranks(metric)
        return self.summary.ranks(metric, {*(self.rows if members is None else members)} - self.diverged)

    def family(self, key: str) -> str:
        """The family of an entrant."""
        return self.summary.entrant(key).family

    @cached_property
    def families(self) -> tuple[str, ...]:
        """The families with a finished job, in the order in which they are shown."""
        return in_order(self.family(key) for key in self.rows)

    @cached_property
    def places(self) -> dict[str, int]:
        """entrant -> place by average rank; equal ranks share a place, entrants without a rank have none."""
        return _places(self.average_ranks)

    @cached_property
    def places_in_family(self) -> dict[str, int]:
        """entrant -> place within its family."""
        found: dict[str, int] = {}
        for family in self.families:
            found |= _places({key: rank for key, rank in self.ranks_in_family.items() if self.family(key) == family})
        return found

    def members(self, family: str) -> tuple[str, ...]:
        """The entrants of a family, the best average rank within it first, the unranked after them."""
        ranks = self.ranks_in_family
        keys = [key for key in self.order if self.family(key) == family]
        return tuple(sorted(keys, key=lambda key: ranks.get(key, float("inf"))))

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
        """Median over the jobs of a cost, which categories and seeds share; what was measured once counts once."""
        values = measurement.distinct(self.rows[key], column)
        return median(values) if values else None

    def unsteady(self, key: str, column: str) -> bool:
        """Whether it is a timing that varies over the jobs by more than UNSTEADY of its mean (standard deviation), or
        that was measured alone, once, while other work held more than MOST_LOAD of the processors."""
        if METRICS[column].unit not in TIMED or self.typical(key, column) is None:
            return False
        if column in measurement.SHARED and any(load > MOST_LOAD for load in self._loads(key)):
            return True
        values = measurement.distinct(self.rows[key], column)
        return len(values) > 1 and fmean(values) > 0 and stdev(values) / fmean(values) > UNSTEADY

    def _loads(self, key: str) -> list[float]:
        """What other work held during each shared measurement of an entrant, as a part of the processors."""
        return measurement.distinct([row for row in self.rows[key] if row["speed_key"]], "speed_load")

    @cached_property
    def alone(self) -> tuple[int, ...]:
        """The CPU threads of the shared measurements behind the figures of speed; none where each job has its own."""
        members = [row for rows in self.rows.values() for row in rows if row["speed_key"]]
        return tuple(sorted({row["speed_threads"] for row in members if row["speed_threads"]}))

    @property
    def alone_words(self) -> str:
        """The CPU threads of these measurements, which need not be those of the jobs: `2 CPU threads`; or nothing."""
        if not self.alone:
            return ""
        return f"{' or '.join(map(str, self.alone))} CPU thread{'' if self.alone == (1,) else 's'}"


def _numbered(name: str) -> list[tuple[bool, int, str]]:
    """By what `cat2` stands before `cat10`."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts]


def _mean_of_ranks(ranks: Sequence[float]) -> float:
    """Their mean. Each is a half of a whole number over the categories: equal means are equal to the last bit, however
    they come about."""
    exact = [Fraction(rank).limit_denominator(1_000_000) for rank in ranks]
    return float(sum(exact, Fraction()) / len(exact))


def _places(ranks: Mapping[str, float]) -> dict[str, int]:
    return {key: 1 + sum(other < rank for other in ranks.values()) for key, rank in ranks.items()}


def boards(table: pa.Table) -> list[Board]:
    """The boards of `table` (columns DRAWN, each job once), in an order that depends only on what they hold.

    The paper preset and real data come first, then a model for each category, then larger budgets, then data sets by
    how many of their categories were run; external results last. No two have the same title.
    """
    return boards_of(table.to_pylist())


def boards_of(rows: Sequence[Mapping[str, Any]]) -> list[Board]:
    """The boards of rows as dictionaries with the columns DRAWN, each job once."""
    by_job = {row["job_id"]: row for row in rows}
    shown = shortest_names({row["dataset"] for row in rows})
    made = []
    for summary in summarise(rows, ACCURACY):
        found: dict[str, list[Mapping[str, Any]]] = {}
        for (key, *_), job in sorted(summary.jobs.items()):
            found.setdefault(key, []).append(by_job[job])
        members = {key: tuple(jobs) for key, jobs in found.items()}
        made.append(Board(summary=summary, rows=members, dataset=shown.get(summary.group.dataset, "")))
    most: dict[str, int] = {}
    for one in made:
        most[one.group.dataset] = max(most.get(one.group.dataset, 0), len(one.summary.categories))

    def place(one: Board) -> tuple[Any, ...]:
        kind = (one.external, one.short, one.group.synthetic, one.together > 0)
        return *kind, BUDGETS.get(one.preset, 2), -most[one.group.dataset], one.group

    return _told_apart(sorted(made, key=place))


def _told_apart(found: list[Board]) -> list[Board]:
    """The boards, with whatever their titles leave out added to those that would be the same."""
    titles = Counter(board.title for board in found)
    made = []
    for number, board in enumerate(found, 1):
        if titles[board.title] > 1:
            protocol = f", protocol {board.group.protocol_version or 'unknown'}"
            twins = [other for other in found if other.title == board.title]
            same = [other for other in twins if other.group.protocol_version == board.group.protocol_version]
            board = replace(board, apart=protocol if len(same) == 1 else f"{protocol}, number {number}")
        made.append(board)
    return made
