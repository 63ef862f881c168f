"""Rows -> means, intervals, ranks and tests: which differences in a table mean something.

Only like is compared with like: rows are first split by data set, preset, modality, resolution, protocol version and
device, and nothing crosses these lines. Within one such group

- a cell (method, category) is the mean over seeds, with std (n-1) and a Student t interval over seeds;
- the overall value is the mean over categories of the cells, with the std over seeds of that mean, and a two-level
  percentile bootstrap interval: categories are drawn with replacement, then seeds within each drawn category;
- two methods are compared by their paired differences: the mean over common seeds in each common category, then an
  exact two-sided Wilcoxon signed-rank test over categories, Holm-corrected over all pairs of the group;
- average ranks over categories come with Nemenyi's critical difference (Demsar, JMLR 7, 2006).

Failed jobs and missing values are never averaged: they are listed, and a method without a value in every category is
neither ranked nor marked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.row import METRICS
from kdad_bench.leaderboard.student_t import student_quantile

if TYPE_CHECKING:
    import pyarrow as pa

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
RESAMPLES = 2000

GROUP_COLUMNS = ("dataset", "preset", "modality", "resolution", "protocol_version", "device", "device_name")
_COLUMNS = (
    *GROUP_COLUMNS,
    "job_id",
    "created_at",
    "method",
    "title",
    "variant",
    "teacher",
    "teacher_weights",
    "teacher_sha256",
    "category",
    "data_fingerprint",
    "seed",
    "status",
    "reason",
    "synthetic",
)

# 0.95 quantile of the studentised range for k groups and infinite degrees of freedom, over the square root of 2
_NEMENYI = (
    1.959964, 2.343701, 2.569032, 2.727774, 2.849705, 2.948320, 3.030878, 3.101730, 3.163684, 3.218654,
    3.268004, 3.312739, 3.353618, 3.391230, 3.426041, 3.458425, 3.488685, 3.517073, 3.543799,
)  # fmt: skip  # k = 2 .. 20

Mark = Literal["best", "second", "tied"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean with its spread. `std` and the interval are None where a single value gives none."""

    mean: float
    std: float | None  # n-1; over seeds
    low: float | None  # 95 % interval
    high: float | None
    seeds: int  # the fewest seeds behind any category
    categories: int
    complete: bool  # every category in which any method of the group has a value


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Method `a` against method `b` on one metric, paired by category and seed."""

    metric: str
    a: str
    b: str
    difference: float | None  # mean over common categories of a - b
    categories: int  # in common
    pairs: int  # (category, seed) in common
    a_better: int  # categories
    b_better: int
    p: float | None  # exact two-sided Wilcoxon signed-rank over categories; None without a category in common
    p_holm: float | None = None  # corrected for all pairs of the group

    @property
    def significant(self) -> bool:
        """Whether the corrected p lies below 0.05. With fewer than six categories it cannot."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


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
        std, low, high = _student(values)
        return Estimate(
            mean=float(values.mean()), std=std, low=low, high=high, seeds=values.size, categories=1, complete=True
        )

    def overall(self, key: str, metric: str) -> Estimate | None:
        """The mean over categories of the means over seeds; None without a value.

        `std` is that of the per-seed means over categories, from the seeds that have a value in every category of this
        method. The interval is the two-level bootstrap; with a single category it is Student's t, as in its cell.
        """
        values = self.values[metric][self._at(key)]
        values = values[~np.isnan(values).all(axis=1)]
        if values.size == 0:
            return None
        full = values[:, ~np.isnan(values).any(axis=0)].mean(axis=0)
        std = float(full.std(ddof=1)) if full.size > 1 else None
        if len(values) == 1:
            _, low, high = _student(values[0][~np.isnan(values[0])])
        else:
            low, high = two_level_bootstrap(values)
        return Estimate(
            mean=float(np.nanmean(values, axis=1).mean()),
            std=std,
            low=low,
            high=high,
            seeds=int((~np.isnan(values)).sum(axis=1).min()),
            categories=len(values),
            complete=not self.missing(key, metric),
        )

    def missing(self, key: str, metric: str) -> tuple[str, ...]:
        """Categories in which another method has a value of this metric and this one has none."""
        known = _known(self.values[metric])  # [entrants, categories]
        return tuple(self.categories[c] for c in np.flatnonzero(known.any(axis=0) & ~known[self._at(key)]))

    def comparisons(self, metric: str) -> tuple[Comparison, ...]:
        """All pairs of entrants, Holm-corrected together."""
        if metric not in self._compared:
            self._compared[metric] = self._comparisons(metric)
        return self._compared[metric]

    def comparison(self, a: str, b: str, metric: str) -> Comparison:
        """The comparison of `a` with `b`, in that direction. Raises KeyError for an unknown pair."""
        for found in self.comparisons(metric):
            if (found.a, found.b) == (a, b):
                return found
            if (found.b, found.a) == (a, b):
                return Comparison(
                    metric=metric,
                    a=a,
                    b=b,
                    difference=None if found.difference is None else -found.difference,
                    categories=found.categories,
                    pairs=found.pairs,
                    a_better=found.b_better,
                    b_better=found.a_better,
                    p=found.p,
                    p_holm=found.p_holm,
                )
        raise KeyError(f"no comparison of {a!r} with {b!r}; have: {', '.join(e.key for e in self.entrants)}")

    def ranks(self, metric: str) -> Ranks:
        """Average ranks over the categories that have values, of the entrants with a value in each of them."""
        known = _known(self.values[metric])
        columns = np.asarray(known.any(axis=0))
        rows = np.asarray(known[:, columns].all(axis=1) & columns.any())
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

    def marks(self, metric: str) -> dict[str, Mark]:
        """`best`: the best overall mean; `second`: the next; `tied`: not significantly worse than the best.

        Only entrants with a value in every category take part, and there must be two of them. A `second` that is not
        significantly worse is still `second`: `comparison` says whether it is. Equal means share a mark.
        """
        means = {
            e.key: found.mean
            for e in self.entrants
            if (found := self.overall(e.key, metric)) is not None and found.complete
        }
        if len(means) < 2:
            return {}
        values = sorted(set(means.values()), reverse=METRICS[metric].higher_is_better)
        best = min(key for key, mean in means.items() if mean == values[0])
        marks: dict[str, Mark] = {}
        for key, mean in means.items():
            if mean == values[0]:
                marks[key] = "best"
            elif mean == values[1]:
                marks[key] = "second"
            elif not self.comparison(best, key, metric).significant:
                marks[key] = "tied"
        return marks

    def _comparisons(self, metric: str) -> tuple[Comparison, ...]:
        sign = 1 if METRICS[metric].higher_is_better else -1
        found = []
        for i, j in combinations(range(len(self.entrants)), 2):
            difference = self.values[metric][i] - self.values[metric][j]  # [categories, seeds]
            paired = ~np.isnan(difference)
            by_category = np.array(
                [row[keep].mean() for row, keep in zip(difference, paired, strict=True) if keep.any()]
            )
            found.append(
                Comparison(
                    metric=metric,
                    a=self.entrants[i].key,
                    b=self.entrants[j].key,
                    difference=float(by_category.mean()) if by_category.size else None,
                    categories=by_category.size,
                    pairs=int(paired.sum()),
                    a_better=int((sign * by_category > 0).sum()),
                    b_better=int((sign * by_category < 0).sum()),
                    p=wilcoxon(by_category) if by_category.size else None,
                )
            )
        corrected = iter(holm([c.p for c in found if c.p is not None]))
        return tuple(replace(c, p_holm=next(corrected)) if c.p is not None else c for c in found)

    def _at(self, key: str) -> int:
        for i, entrant in enumerate(self.entrants):
            if entrant.key == key:
                return i
        raise KeyError(f"no entrant {key!r}; have: {', '.join(e.key for e in self.entrants)}")

    _compared: dict[str, tuple[Comparison, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)


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
    rows = table.select([*_COLUMNS, *names]).to_pylist()
    rows.sort(key=lambda row: (row["created_at"] or "", row["job_id"]))
    groups: dict[Group, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
    return [_summary(group, groups[group], names) for group in sorted(groups)]


def wilcoxon(differences: Iterable[float]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test, exact for any ties: the null distribution is that of the sum of
    the observed (averaged) ranks under random signs. Zero differences are dropped (Wilcoxon's rule); without any other
    p is 1. Source: Wilcoxon, Biometrics Bulletin 1(6), 1945; Hollander & Wolfe, section 3.1.
    """
    values = np.round(np.asarray(list(differences), np.float64), 12)  # ties must not hang on the last bit of a mean
    values = values[values != 0]
    if values.size == 0:
        return 1.0
    ranks = np.rint(2 * average_ranks(np.abs(values))).astype(int)  # doubled, so that half ranks are whole
    total = int(ranks.sum())
    ways = np.zeros(total + 1)
    ways[0] = 1.0
    for rank in ranks:  # probabilities, halved at each step, so that many categories do not overflow
        ways[rank:] = (ways[rank:] + ways[: total + 1 - rank]) / 2
        ways[:rank] /= 2
    positive = int(ranks[values > 0].sum())
    tail = ways[: min(positive, total - positive) + 1].sum()
    return float(min(1.0, 2 * tail))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given. Source: Holm, Scandinavian Journal of Statistics 6, 1979."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for position, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[i]))
        corrected[i] = largest
    return corrected


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1 of `values`, ascending; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def critical_difference(methods: int, categories: int) -> float | None:
    """Nemenyi's critical difference of average ranks at 0.05: q sqrt(k (k + 1) / (6 N)). None where k or N is below 2.

    Source: Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 7, 2006, equation 5.
    """
    if methods < 2 or categories < 2:
        return None
    return _nemenyi(methods) * math.sqrt(methods * (methods + 1) / (6 * categories))


def two_level_bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of the mean over categories of the means over seeds.

    `values` [categories, seeds], NaN where missing, at least one value in each category. 2000 resamples with a fixed
    generator: categories with replacement, then for each drawn category as many seeds as it has, with replacement.
    Percentile intervals are too narrow for few categories (about 10 or fewer): read them together with their number.
    """
    counts = (~np.isnan(values)).sum(axis=1)
    packed = np.take_along_axis(values, np.argsort(np.isnan(values), axis=1, kind="stable"), axis=1)
    drawn, picks, inside, drawn_counts = _draws(tuple(counts.tolist()), values.shape[1])
    means = np.where(inside, packed[drawn[..., None], picks], 0).sum(axis=2) / drawn_counts
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means.mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


@functools.lru_cache(maxsize=4)
def _draws(
    counts: tuple[int, ...], seeds: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_], NDArray[np.intp]]:
    """The resamples for categories with `counts` values each: the same for every method and metric of that shape."""
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(counts), size=(RESAMPLES, len(counts)))
    drawn_counts = np.asarray(counts)[drawn]
    picks = np.floor(generator.random((*drawn.shape, seeds)) * drawn_counts[..., None]).astype(int)
    return drawn, picks, np.arange(seeds) < drawn_counts[..., None], drawn_counts


def _student(values: NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
    """Standard deviation (n-1) and the Student t interval of the mean."""
    if values.size < 2:
        return None, None, None
    std = float(values.std(ddof=1))
    half = student_quantile(values.size - 1, CONFIDENCE) * std / math.sqrt(values.size)
    mean = float(values.mean())
    return std, mean - half, mean + half


@functools.cache
def _nemenyi(methods: int) -> float:
    if methods - 2 < len(_NEMENYI):
        return _NEMENYI[methods - 2]
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(1 - SIGNIFICANCE, methods, np.inf)) / math.sqrt(2)


def _known(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[entrants, categories]: whether there is a value of any seed."""
    return np.asarray(~np.isnan(values).all(axis=2))


def _seed_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over the last axis of what is there."""
    there = ~np.isnan(values)
    means: NDArray[np.float64] = np.where(there, values, 0).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1)
    return means


def _group(row: dict[str, Any]) -> Group:
    return Group(
        **{name: str(row[name] or "") for name in GROUP_COLUMNS if name != "resolution"},
        resolution=row["resolution"] or 0,
        synthetic=bool(row["synthetic"]),
    )


def _summary(group: Group, rows: list[dict[str, Any]], metrics: Sequence[str]) -> Summary:
    """The summary of rows that share a group, oldest first."""
    problems: list[str] = []
    rows = _of_newest_content(rows, problems)
    entrants = _entrants(rows)
    newest: dict[tuple[str, str, int], dict[str, Any]] = {}
    repeated = 0
    for row in rows:
        place = (entrants[_identity(row)].key, row["category"], row["seed"])
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
    for (key, category, seed), row in sorted(newest.items()):
        if row["status"] != "ok":
            failed.append((key, category, seed, str(row["reason"] or "unknown")))
            continue
        jobs[key, category, seed] = row["job_id"]
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
        failed=tuple(failed),
        problems=tuple(problems),
    )


def _of_newest_content(rows: list[dict[str, Any]], problems: list[str]) -> list[dict[str, Any]]:
    newest = {row["category"]: row["data_fingerprint"] for row in rows if row["data_fingerprint"] is not None}
    kept = [row for row in rows if row["data_fingerprint"] in (None, newest.get(row["category"]))]
    gone: dict[str, int] = {}
    for row in rows:
        if row["data_fingerprint"] not in (None, newest.get(row["category"])):
            gone[row["category"]] = gone.get(row["category"], 0) + 1
    problems.extend(
        f"category {category!r}: {number} rows left out, made from other files than the newest row's"
        for category, number in sorted(gone.items())
    )
    return kept


Identity = tuple[str, str, str, str]


def _identity(row: dict[str, Any]) -> Identity:
    return (row["method"], row["variant"] or "", row["teacher"] or "", row["teacher_sha256"] or "")


def _entrants(rows: list[dict[str, Any]]) -> dict[Identity, Entrant]:
    """One entrant for each method, variant and teacher; the teacher is named only where it tells two apart."""
    newest = {_identity(row): row for row in rows}
    found: dict[Identity, Entrant] = {}
    for identity, row in sorted(newest.items()):
        method, variant, teacher, sha256 = identity
        twins = [other for other in newest if other[:2] == identity[:2]]
        key = f"{method}:{variant}" if variant else method
        title = row["title"] or method
        if len(twins) > 1:
            weights = row["teacher_weights"] or "no weights"
            unique = sum(newest[t]["teacher_weights"] == row["teacher_weights"] and t[2] == teacher for t in twins) == 1
            name = f"{teacher} {weights}" if unique else f"{teacher} {weights} {sha256[:8]}"
            key, title = f"{key}@{name}", f"{title} ({name})"
        found[identity] = Entrant(
            key=key,
            method=method,
            variant=variant or None,
            title=title,
            teacher=teacher or None,
            teacher_weights=row["teacher_weights"],
        )
    return found
