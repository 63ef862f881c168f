"""Rows -> means, intervals, ranks and tests: which differences in a table mean something.

Only like is compared with like: rows are first split by data set, preset, modality, resolution, protocol version,
device and origin, and nothing crosses these lines. Within one such group

- a cell (method, category) is the mean over seeds, with std (n-1) and a Student t interval over seeds;
- the overall value is the mean over categories of the cells, with the std over seeds of that mean, and an interval for
  other categories of the same kind: a hierarchical bootstrap over category, seed and test image; another one is for
  these very categories, with other seeds and images;
- two methods are compared by their paired differences on the same images (`pairs`): DeLong's variance or a bootstrap
  over images, and the variance over seeds; without per-image scores by the seeds alone; Holm-corrected over all pairs;
- average ranks over categories come with Nemenyi's critical difference (Demsar, JMLR 7, 2006).

Failed jobs and missing values are never averaged: they are listed, and a method without a value in every category is
neither ranked nor marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.families import UNKNOWN, family_of
from kdad_bench.leaderboard.images import METRICS as IMAGE_METRICS
from kdad_bench.leaderboard.images import SCORED, Images, Noise, of_jobs
from kdad_bench.leaderboard.inference import (
    CONFIDENCE,
    average_ranks,
    critical_difference,
    hierarchical_interval,
    interval_around,
    student_interval,
)
from kdad_bench.leaderboard.metric import ACCURACIES, METRICS
from kdad_bench.leaderboard.pairs import Comparison, compared, corrected
from kdad_bench.leaderboard.spread import Drawn, Parts, drawn, parts, spread

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ENTRANTS = 200  # of one table; every pair of them is compared
FEW = 6  # categories: with fewer, tables show how sure the mean of these very ones is
Interval = tuple[float | None, float | None]
MOST_CELLS = 2_000_000  # entrants x categories x seeds of one table

GROUP_COLUMNS = ("dataset", "preset", "modality", "resolution", "protocol_version", "device", "device_name", "origin")
_COLUMNS = (
    *GROUP_COLUMNS,
    "job_id",
    "created_at",
    "method",
    "title",
    "family",
    "variant",
    "teacher",
    "teacher_weights",
    "teacher_sha256",
    "code_sha256",
    "category",
    "data_fingerprint",
    "seed",
    "status",
    "reason",
    "synthetic",
)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Group:
    """What rows must share to stand in one table."""

    dataset: str
    preset: str
    modality: str
    resolution: int
    protocol_version: str
    device: str
    device_name: str
    origin: str = ""  # "": run by this benchmark; else who vouches for it, in words that every table shows
    synthetic: bool = field(default=False, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """One line of a table: a method, one of its variants, or the same with other teacher weights."""

    key: str  # method, method:variant, and @weights where a group holds several
    method: str
    variant: str | None
    title: str
    teacher: str | None
    teacher_weights: str | None
    family: str = UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean with its spread. `std` and the intervals are None where a single value gives none."""

    mean: float
    std: float | None  # n-1; over seeds
    low: float | None  # 95 % interval; of a mean over several categories for other categories of the same kind
    high: float | None
    these_low: float | None = None  # the same for these very categories, with other images and other seeds
    these_high: float | None = None
    seeds: int  # the fewest seeds behind any category
    categories: int
    complete: bool  # every category in which any method of the group has a value

    @property
    def shown(self) -> tuple[float, float] | None:
        """The interval of tables and charts: with few categories that for these, for others it would say next to
        nothing (Student's t has two degrees of freedom with three of them)."""
        few = 1 < self.categories < FEW
        low, high = (self.these_low, self.these_high) if few else (self.low, self.high)
        return None if low is None or high is None else (low, high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Average ranks over categories, 1 is best; two methods closer than the critical difference are not told apart."""

    metric: str
    average: dict[str, float]  # entrant -> rank; methods without a value in every category are left out
    categories: int
    critical_difference: float | None  # Nemenyi, 0.05; None for fewer than two methods or categories


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All values of one group, by entrant, category and seed, and what follows from them."""

    group: Group
    entrants: tuple[Entrant, ...]  # in alphabetical order of their keys
    categories: tuple[str, ...]
    seeds: tuple[int, ...]
    values: dict[str, NDArray[np.float64]]  # metric -> [entrants, categories, seeds], NaN where there is no value
    jobs: dict[tuple[str, str, int], str]  # (entrant, category, seed) -> job_id of the row behind the values
    images: dict[str, Images]  # category -> the scores of its images, where the rows have them
    failed: tuple[tuple[str, str, int, str], ...]  # (entrant, category, seed, reason)
    problems: tuple[str, ...]  # rows left out, and why

    def entrant(self, key: str) -> Entrant:
        """The entrant of that key. Raises KeyError."""
        return self.entrants[self._at(key)]

    def cell(self, key: str, category: str, metric: str) -> Estimate | None:
        """The mean over seeds in one category; None without a value."""
        values = self.values[metric][self._at(key), self.categories.index(category)]
        values = values[~np.isnan(values)]
        if values.size == 0:
            return None
        std, low, high = student_interval(values)
        return Estimate(
            mean=float(values.mean()), std=std, low=low, high=high, seeds=values.size, categories=1, complete=True
        )

    def overall(self, key: str, metric: str) -> Estimate | None:
        """The mean over categories of the means over seeds; None without a value.

        `std` is that of the per-seed means over categories, from the seeds that have a value in every category of this
        method. The interval is for other categories of the same kind (`hierarchical_interval`), beside it one for these
        very categories (`interval_around`), with other seeds and, where the scores are known, other images; with a
        single category both are that.
        """
        values = self.values[metric][self._at(key)]
        known = np.flatnonzero(~np.isnan(values).all(axis=1))
        values = values[known]
        if values.size == 0:
            return None
        full = values[:, ~np.isnan(values).any(axis=0)].mean(axis=0)
        std = float(full.std(ddof=1)) if full.size > 1 else None
        mean = float(np.nanmean(values, axis=1).mean())
        (low, high), (these_low, these_high) = self._intervals(key, metric, known, mean)
        return Estimate(
            mean=mean,
            std=std,
            low=low,
            high=high,
            these_low=these_low,
            these_high=these_high,
            seeds=int((~np.isnan(values)).sum(axis=1).min()),
            categories=len(values),
            complete=not self.missing(key, metric),
        )

    def _intervals(self, key: str, metric: str, known: NDArray[np.intp], mean: float) -> tuple[Interval, Interval]:
        """(for other categories, for these)."""
        values = self.values[metric][self._at(key)][known]
        noises = [self.noise(metric, self.categories[c]) for c in known]
        jobs = [[(key, s) for s, value in zip(self.seeds, row, strict=True) if not np.isnan(value)] for row in values]
        images = _all_known(noises, jobs)
        shares = METRICS[metric].section == ACCURACIES
        around = spread([row[~np.isnan(row)] for row in values], images)
        these: Interval = (None, None)
        if around is not None:
            these = interval_around(mean, around.half_width(CONFIDENCE), shares=shares)
        if len(values) == 1:
            return these, these
        deviations = None
        if images is not None:
            deviations = [n.deviations[[n.jobs[job] for job in own]] for n, own in zip(noises, jobs, strict=True) if n]
        error = 0.0 if around is None else around.error
        return hierarchical_interval(values, deviations, error, shares=shares), these

    def noise(self, metric: str, category: str) -> Noise | None:
        """What the images of a category do to the jobs' values of a metric; None where the rows do not tell."""
        place = (metric, category)
        if place not in self._noises:
            found = None
            if metric in IMAGE_METRICS and category in self.images:
                values = self.values[metric][:, self.categories.index(category)]
                figures = {
                    (entrant.key, seed): float(value)
                    for entrant, row in zip(self.entrants, values, strict=True)
                    for seed, value in zip(self.seeds, row, strict=True)
                    if not np.isnan(value)
                }
                found = self.images[category].noise(metric, figures)
            self._noises[place] = found
        return self._noises[place]

    def parts(self, key: str, metric: str) -> Parts | None:
        """The variance components of one job's value of an entrant; None without a value."""
        values = self.values[metric][self._at(key)]
        known = [c for c in range(len(values)) if not np.isnan(values[c]).all()]
        if not known:
            return None
        noises = [self.noise(metric, self.categories[c]) for c in known]
        jobs = [
            [(key, s) for s, value in zip(self.seeds, values[c], strict=True) if not np.isnan(value)] for c in known
        ]
        return parts([values[c][~np.isnan(values[c])] for c in known], _all_known(noises, jobs))

    def missing(self, key: str, metric: str) -> tuple[str, ...]:
        """Categories in which another method has a value of this metric and this one has none."""
        known = _known(self.values[metric])  # [entrants, categories]
        return tuple(self.categories[c] for c in np.flatnonzero(known.any(axis=0) & ~known[self._at(key)]))

    def comparisons(self, metric: str) -> tuple[Comparison, ...]:
        """All pairs of entrants, Holm-corrected together."""
        if metric not in self._compared:
            places = combinations(range(len(self.entrants)), 2)
            self._compared[metric] = corrected([self._compared_pair(i, j, metric) for i, j in places])
        return self._compared[metric]

    def comparison(self, a: str, b: str, metric: str) -> Comparison:
        """The comparison of `a` with `b`, in that direction. Raises KeyError for an unknown pair."""
        if metric not in self._by_pair:
            both = self.comparisons(metric)
            self._by_pair[metric] = {(c.a, c.b): c for c in both} | {(c.b, c.a): c.turned() for c in both}
        found = self._by_pair[metric].get((a, b))
        if found is None:
            raise KeyError(f"no comparison of {a!r} with {b!r}; have: {', '.join(e.key for e in self.entrants)}")
        return found

    def in_category(self, a: str, b: str, metric: str, category: str) -> Comparison:
        """The comparison of `a` with `b` in one category, not corrected."""
        place = self.categories.index(category)
        return self._compared_pair(self._at(a), self._at(b), metric, slice(place, place + 1))

    def ranks(self, metric: str, among: Collection[str] | None = None) -> Ranks:
        """Average ranks over the categories that have values, of the entrants with a value in each of them.

        With `among` only these entrants are ranked, as if there were no others; the categories stay those of all.
        """
        known = _known(self.values[metric])
        columns = np.asarray(known.any(axis=0))
        members = np.array([among is None or entrant.key in among for entrant in self.entrants])
        rows = np.asarray(known[:, columns].all(axis=1) & columns.any() & members)
        cells = _seed_means(self.values[metric][rows][:, columns])
        better_first = -cells if METRICS[metric].higher_is_better else cells
        ranks = np.array([average_ranks(column) for column in better_first.T]).T  # [entrants, categories]
        keys = [e.key for e, keep in zip(self.entrants, rows, strict=True) if keep]
        return Ranks(
            metric=metric,
            average={key: float(row.mean()) for key, row in zip(keys, ranks, strict=True)},
            categories=int(columns.sum()),
            critical_difference=critical_difference(len(keys), int(columns.sum())),
        )

    def _compared_pair(self, i: int, j: int, metric: str, categories: slice = slice(None)) -> Comparison:
        return compared(
            metric,
            (self.entrants[i].key, self.entrants[j].key),
            (self.values[metric][i][categories], self.values[metric][j][categories]),
            self.seeds,
            [self.noise(metric, category) for category in self.categories[categories]],
            1 if METRICS[metric].higher_is_better else -1,
        )

    def _at(self, key: str) -> int:
        for i, entrant in enumerate(self.entrants):
            if entrant.key == key:
                return i
        raise KeyError(f"no entrant {key!r}; have: {', '.join(e.key for e in self.entrants)}")

    _compared: dict[str, tuple[Comparison, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _by_pair: dict[str, dict[tuple[str, str], Comparison]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _noises: dict[tuple[str, str], Noise | None] = field(default_factory=dict, init=False, repr=False, compare=False)


def summarise(table: pa.Table, metrics: Sequence[str] | None = None) -> list[Summary]:
    """The summaries of all groups in `table` (columns as in `row.SCHEMA`), in the order of their groups.

    `metrics` defaults to all of `row.METRICS` that the table has. The result does not depend on the order of the rows.
    Where a job was repeated the newest row counts; where a category's files changed between rows, only rows of the
    newest content count; `problems` says what was left out. Raises KeyError if a needed column is missing.
    """
    names = [m for m in (metrics if metrics is not None else METRICS) if m in table.column_names]
    absent = [c for c in _COLUMNS if c not in table.column_names]
    if absent:
        raise KeyError(f"the table lacks the columns {', '.join(absent)}; read it with store.read")
    scored = [name for name in (*SCORED, "also_presets") if name in table.column_names]
    return summarise_rows(table.select([*_COLUMNS, *names, *scored]).to_pylist(), names)


def summarise_rows(rows: Iterable[Mapping[str, Any]], metrics: Sequence[str]) -> list[Summary]:
    """`summarise` of rows as dictionaries that have all needed columns."""
    ordered = sorted(rows, key=lambda row: (row["created_at"] or "", row["job_id"]))
    groups: dict[Group, list[Mapping[str, Any]]] = {_group(row): [] for row in ordered}
    for row in ordered:
        groups[_group(row)].append(row)
        # a job that is another preset's as well stands in the table of that one too, where there is such a table
        for preset in row.get("also_presets") or ():
            if (twin := {**row, "preset": preset}) and _group(twin) in groups:
                groups[_group(twin)].append(twin)
    return [_summary(group, groups[group], metrics) for group in sorted(groups)]


def _all_known(noises: Sequence[Noise | None], jobs: Sequence[Sequence[tuple[str, int]]]) -> list[Drawn] | None:
    """What the images do to an entrant's jobs in each category, or None if that is not known of one."""
    found = []
    for noise, own in zip(noises, jobs, strict=True):
        one = None if noise is None else drawn(noise, own)
        if one is None:
            return None
        found.append(one)
    return found


def _known(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[entrants, categories]: whether there is a value of any seed."""
    return np.asarray(~np.isnan(values).all(axis=2))


def _seed_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the last axis of what is there."""
    there = ~np.isnan(values)
    means: NDArray[np.float64] = np.where(there, values, 0).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)
    return means


def _group(row: Mapping[str, Any]) -> Group:
    return Group(
        **{name: str(row[name] or "") for name in GROUP_COLUMNS if name != "resolution"},
        resolution=row["resolution"] or 0,
        synthetic=bool(row["synthetic"]),
    )


def _summary(group: Group, rows: list[Mapping[str, Any]], metrics: Sequence[str]) -> Summary:
    """The summary of rows that share a group, oldest first."""
    problems: list[str] = []
    rows = _of_bounded_size(_of_newest_content(rows, problems), problems)
    entrants = entrants_of(rows)
    newest: dict[tuple[str, str, int], Mapping[str, Any]] = {}
    repeated = 0
    for row in rows:
        place = (entrants[identity_of(row)].key, row["category"], row["seed"])
        before = newest.get(place)
        if before is not None and before["status"] == "ok" and row["status"] != "ok":
            continue  # a later failure does not erase a result; the failure is not news either
        repeated += before is not None and before["status"] == "ok"
        newest[place] = row
    if repeated:
        problems.append(f"{repeated} results of repeated jobs left out: the newest row of each counts")
    ordered = tuple(sorted(entrants.values(), key=lambda e: e.key))
    categories = tuple(sorted({row["category"] for row in rows}))
    seeds = tuple(sorted({row["seed"] for row in rows}))
    at = {e.key: i for i, e in enumerate(ordered)}
    values = {m: np.full((len(ordered), len(categories), len(seeds)), np.nan) for m in metrics}
    failed = []
    jobs = {}
    scored: dict[str, list[tuple[tuple[str, int], Mapping[str, Any]]]] = {}
    for (key, category, seed), row in sorted(newest.items()):
        if row["status"] != "ok":
            failed.append((key, category, seed, str(row["reason"] or "unknown")))
            continue
        jobs[key, category, seed] = row["job_id"]
        scored.setdefault(category, []).append(((key, seed), row))
        for metric in metrics:
            if row[metric] is not None:
                values[metric][at[key], categories.index(category), seeds.index(seed)] = row[metric]
    return Summary(
        group=group,
        entrants=ordered,
        categories=categories,
        seeds=seeds,
        values=values,
        jobs=jobs,
        images={category: images for category, made in scored.items() if (images := of_jobs(made)) is not None},
        failed=tuple(failed),
        problems=tuple(problems),
    )


def _of_newest_content(rows: list[Mapping[str, Any]], problems: list[str]) -> list[Mapping[str, Any]]:
    """`rows`, oldest first, without the results made from other files than the newest finished row of their category.

    A failure says nothing about the files: damaged ones may have been repaired since, so it decides nothing here.
    """
    ok = [row for row in rows if row["status"] == "ok" and row["data_fingerprint"] is not None]
    newest = {row["category"]: row["data_fingerprint"] for row in ok}
    old = [row for row in ok if row["data_fingerprint"] != newest[row["category"]]]
    for category in sorted({row["category"] for row in old}):
        number = sum(row["category"] == category for row in old)
        problems.append(f"category {category!r}: {number} rows left out, made from other files than the newest row's")
    gone = {id(row) for row in old}
    return [row for row in rows if id(row) not in gone]


def _of_bounded_size(rows: list[Mapping[str, Any]], problems: list[str]) -> list[Mapping[str, Any]]:
    """`rows` without the rarest entrants and seeds where the table of all would not fit the memory."""
    kept = [identity_of(row) for row in rows]
    often = {identity for identity, _ in Counter(kept).most_common(MOST_ENTRANTS)}
    rows_kept = [row for row, identity in zip(rows, kept, strict=True) if identity in often]
    categories = len({row["category"] for row in rows_kept})
    most_seeds = max(1, MOST_CELLS // (len(often) * categories or 1))
    seeds = {seed for seed, _ in Counter(row["seed"] for row in rows_kept).most_common(most_seeds)}
    rows_kept = [row for row in rows_kept if row["seed"] in seeds]
    if len(rows_kept) < len(rows):
        problems.append(f"{len(rows) - len(rows_kept)} rows left out: more methods or seeds than one table can hold")
    return rows_kept


Identity = tuple[str, str, str, str, str]  # method, variant, teacher, hash of its weights, hash of the code


def identity_of(row: Mapping[str, Any]) -> Identity:
    """What makes the entrant of a row another than that of a second row."""
    named = ("method", "variant", "teacher", "teacher_sha256", "code_sha256")
    method, variant, teacher, weights, code = (row[name] or "" for name in named)
    return method, variant, teacher, weights, code


def entrants_of(rows: Iterable[Mapping[str, Any]]) -> dict[Identity, Entrant]:
    """One entrant for each method, variant, teacher and code; the last two are named only where they tell two apart."""
    newest = {identity_of(row): row for row in rows}
    found: dict[Identity, Entrant] = {}
    for identity, row in sorted(newest.items()):
        method, variant, teacher, sha256, code = identity
        every = [other for other in newest if other[:2] == identity[:2]]
        twins = [other for other in every if other[4] == code]
        key = f"{method}:{variant}" if variant else method
        title = row["title"] or method
        if len(twins) > 1:
            weights = row["teacher_weights"] or "no weights"
            unique = sum(newest[t]["teacher_weights"] == row["teacher_weights"] and t[2] == teacher for t in twins) == 1
            name = f"{teacher} {weights}" if unique else f"{teacher} {weights} {sha256[:8]}"
            key, title = f"{key}@{name}", f"{title} ({name})"
        if len(twins) < len(every):
            key, title = f"{key}@code {code[:8]}", f"{title} (code {code[:8]})"
        found[identity] = Entrant(
            key=key,
            method=method,
            variant=variant or None,
            title=title,
            teacher=teacher or None,
            teacher_weights=row["teacher_weights"],
            family=family_of(row),
        )
    return found
