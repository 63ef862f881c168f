"""Means, intervals, ranks and tests of rows that may stand in one table: which differences in it mean something.

Which rows may is for `grouping` to say, and nothing here crosses its lines. Within one such group

- a cell (method, category) is the mean over seeds, with std (n-1) and a Student t interval over seeds;
- the overall value is the mean over categories of the cells, with the std over seeds of that mean, and an interval for
  other categories of the same kind: Student's t over the categories; another one is for these very categories, with
  other seeds and images;
- two methods are compared by their paired differences on the same images (`pairs`): DeLong's variance or a bootstrap
  over images, and the variance over seeds; without per-image scores by the seeds alone; Holm-corrected over all pairs;
- where one training of each seed serves all categories (`Summary.together`) they go up and down together: then the
  seeds count once, by the variance of their means over categories;
- average ranks over categories come with Nemenyi's critical difference (Demsar, JMLR 7, 2006).

Failed jobs and missing values are never averaged: they are listed, and a method without a value in every category is
neither ranked nor marked; nor, on a board, is one of which a job ran away to values that are not finite, of which no
pair is judged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.families import UNKNOWN
from kdad_bench.leaderboard.images import METRICS as IMAGE_METRICS
from kdad_bench.leaderboard.images import Images, Noise
from kdad_bench.leaderboard.inference import (
    CONFIDENCE,
    DIGITS,
    average_ranks,
    critical_difference,
    interval_across,
    interval_around,
    student_interval,
)
from kdad_bench.leaderboard.metric import ACCURACIES, METRICS
from kdad_bench.leaderboard.pairs import Comparison, compared, corrected
from kdad_bench.leaderboard.spread import Drawn, Parts, drawn, half_across, parts, spread

FEW = 6  # categories: with fewer, tables show how sure the mean of these very ones is
Interval = tuple[float | None, float | None]
# how the reason of a job begins whose training or scores ran away, and what it holds; a mask with a NaN is the data's
RAN_AWAY = {
    "FloatingPointError": "",
    "ScoreError": "NaN",
    "MetricError": "a score must be finite",
    "NoNearest": "hold NaN",
}


def ran_away(reason: str) -> bool:
    """Whether a job failed for a loss, features or scores of its method that are not finite."""
    kind, _, said = reason.partition(":")
    return kind in RAN_AWAY and RAN_AWAY[kind] in said


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
    synthetic: bool = field(default=False, compare=False)  # whether any row that counts is of drawn images


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
    entrant_of: dict[str, str]  # job_id -> entrant of every row of the group: failed ones and repeated ones, too
    images: dict[str, Images]  # category -> the scores of its images, where the rows have them
    failed: tuple[tuple[str, str, int, str], ...]  # (entrant, category, seed, reason)
    problems: tuple[str, ...]  # rows left out, and why
    together: bool = False  # one training of each seed serves all categories

    @cached_property
    def diverged(self) -> frozenset[str]:
        """The entrants of which a job ran away to values that are not finite."""
        return frozenset(key for key, _, _, reason in self.failed if ran_away(reason))

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
        method. The interval is for other categories of the same kind (`interval_across`), beside it one for these
        very categories (`interval_around`), with other seeds and, where the scores are known, other images; with a
        single category both are that.
        """
        values = self.values[metric][self._at(key)]
        known = np.flatnonzero(~np.isnan(values).all(axis=1))
        values = values[known]
        if values.size == 0:
            return None
        full = self.means_of_seeds(key, metric)
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

    def means_of_seeds(self, key: str, metric: str) -> NDArray[np.float64]:
        """The mean over categories of each seed that has a value in every category of this entrant."""
        values = self.values[metric][self._at(key)]
        values = values[~np.isnan(values).all(axis=1)]
        whole = values[:, ~np.isnan(values).any(axis=0)]
        return np.asarray(whole.mean(axis=0)) if len(values) else np.zeros(0)

    def _intervals(self, key: str, metric: str, known: NDArray[np.intp], mean: float) -> tuple[Interval, Interval]:
        """(for other categories, for these)."""
        values = self.values[metric][self._at(key)][known]
        noises = [self.noise(metric, self.categories[c]) for c in known]
        jobs = [[(key, s) for s, value in zip(self.seeds, row, strict=True) if not np.isnan(value)] for row in values]
        images = _all_known(noises, jobs)
        shares = METRICS[metric].section == ACCURACIES
        around = spread(list(values), images, together=self.together)
        these: Interval = (None, None)
        if around is not None:
            these = interval_around(mean, around.half_width(CONFIDENCE), shares=shares)
        if len(values) == 1:
            return these, these
        if self.together:
            return interval_around(mean, half_across(list(values), around), shares=shares), these
        return interval_across(values, 0.0 if around is None else around.error, shares=shares), these

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
        return parts([values[c] for c in known], _all_known(noises, jobs), together=self.together)

    def missing(self, key: str, metric: str) -> tuple[str, ...]:
        """Categories in which another method has a value of this metric and this one has none."""
        known = _known(self.values[metric])  # [entrants, categories]
        return tuple(self.categories[c] for c in np.flatnonzero(known.any(axis=0) & ~known[self._at(key)]))

    def comparisons(self, metric: str) -> tuple[Comparison, ...]:
        """All pairs of entrants, Holm-corrected together; those with one that `diverged` have a difference alone."""
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
        cells = np.round(_seed_means(self.values[metric][rows][:, columns]), DIGITS)
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
        found = compared(
            metric,
            (self.entrants[i].key, self.entrants[j].key),
            (self.values[metric][i][categories], self.values[metric][j][categories]),
            self.seeds,
            [self.noise(metric, category) for category in self.categories[categories]],
            1 if METRICS[metric].higher_is_better else -1,
            together=self.together,
        )
        return found.unjudged() if self.diverged & {found.a, found.b} else found

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
