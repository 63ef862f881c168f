"""Who beats whom: two entrants on one metric, by how much, how sure, and on what evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.images import Noise
from kdad_bench.leaderboard.inference import CONFIDENCE, DIGITS, SIGNIFICANCE, holm, wilcoxon
from kdad_bench.leaderboard.spread import CATEGORIES, NOTHING, ONE_TRAINING, Drawn, Spread, drawn, spread
from kdad_bench.leaderboard.student_t import student_quantile

Floats = NDArray[np.float64]
POWER = 0.8  # how often a difference of the size that `visible` names is found


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Entrant `a` against `b` on one metric, paired by category, seed and image."""

    metric: str
    a: str
    b: str
    difference: float | None  # mean over common categories of a - b
    low: float | None = None  # 95 % interval of it, for these categories; None where only categories tell
    high: float | None = None
    categories: int  # in common
    pairs: int  # (category, seed) in common
    a_better: int  # categories
    b_better: int
    won: float | None = None  # share of the pairs that `a` wins, ties half
    effect: float | None = None  # difference over the standard deviation of the pairs' differences
    error: float | None = None  # standard error of the difference
    freedom: float | None = None  # degrees of freedom of that error
    p: float | None  # two-sided; None where nothing tells
    p_holm: float | None = None  # corrected for all pairs of the group
    p_categories: float | None = None  # exact Wilcoxon signed-rank over categories: whether others would agree
    evidence: str = NOTHING  # what p rests on: images and seeds | images | seeds | categories

    @property
    def significant(self) -> bool:
        """Whether the corrected p lies below 0.05."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE

    def turned(self) -> Comparison:
        """The same, `b` against `a`."""
        return replace(
            self,
            a=self.b,
            b=self.a,
            difference=None if self.difference is None else -self.difference,
            low=None if self.high is None else -self.high,
            high=None if self.low is None else -self.low,
            a_better=self.b_better,
            b_better=self.a_better,
            won=None if self.won is None else 1 - self.won,
            effect=None if self.effect is None else -self.effect,
        )

    def unjudged(self) -> Comparison:
        """The difference alone, where what is left of the jobs says nothing of the entrants."""
        return replace(
            self, low=None, high=None, error=None, freedom=None, p=None, p_holm=None, p_categories=None,
            evidence=NOTHING,
        )  # fmt: skip


def compared(
    metric: str,
    keys: tuple[str, str],
    values: tuple[Floats, Floats],
    seeds: Sequence[int],
    noises: Sequence[Noise | None],
    sign: int,
    *,
    together: bool = False,
) -> Comparison:
    """The comparison of two entrants, not yet corrected.

    `values`: [categories, seeds] of each, NaN where there is none. `noises`: what is known of the images, by category.
    `sign`: 1 where more is better, else -1. `together`: one training of each seed serves all categories.

    With per-image scores the images and the seeds tell (`spread`), without them the seeds alone, and where there is one
    seed, or none of the two depends on it, the categories (exact Wilcoxon signed-rank test), where there are several.
    """
    difference = np.round(values[0] - values[1], DIGITS)
    paired = ~np.isnan(difference)
    common = [c for c in range(len(difference)) if paired[c].any()]
    by_category = np.round([difference[c][paired[c]].mean() for c in common], DIGITS)
    jobs = difference[paired]
    found = Comparison(
        metric=metric, a=keys[0], b=keys[1], categories=len(common), pairs=jobs.size, p=None,
        difference=float(by_category.mean()) if common else None,
        a_better=int((sign * by_category > 0).sum()), b_better=int((sign * by_category < 0).sum()),
    )  # fmt: skip
    if not common:
        return found
    found = replace(found, won=float((np.sign(sign * jobs) + 1).mean() / 2), effect=_effect(jobs),
                    p_categories=wilcoxon(by_category))  # fmt: skip
    around = _around(difference, common, keys, seeds, noises, together=together)
    if around is None and len(common) < 2:
        return found  # the test would say 1 whatever the difference is
    if around is None:
        one_training = together and int(paired.any(axis=0).sum()) == 1
        return replace(found, p=found.p_categories, evidence=ONE_TRAINING if one_training else CATEGORIES)
    mean, half = float(by_category.mean()), around.half_width(CONFIDENCE)
    return replace(
        found, low=mean - half, high=mean + half, error=around.error, freedom=around.freedom, p=around.p(mean),
        evidence=around.evidence,
    )  # fmt: skip


def _effect(jobs: Floats) -> float | None:
    """The mean difference in standard deviations of the pairs' differences (Cohen's d for pairs)."""
    return float(jobs.mean() / jobs.std(ddof=1)) if np.ptp(jobs) > 0 else None  # equal ones' deviation is not quite 0


def _around(
    difference: Floats,
    common: Sequence[int],
    keys: tuple[str, str],
    seeds: Sequence[int],
    noises: Sequence[Noise | None],
    *,
    together: bool,
) -> Spread | None:
    """The spread of the mean difference, by the images where all common categories have them."""
    values = [difference[c] for c in common]
    images: list[Drawn] = []
    for c in common:
        noise = noises[c]
        own = [seed for seed, missing in zip(seeds, np.isnan(difference[c]), strict=True) if not missing]
        pair = None if noise is None else drawn(noise, [(keys[0], s) for s in own], [(keys[1], s) for s in own])
        if pair is None:
            return spread(values, None, together=together)
        images.append(pair)
    if all(one.of_one <= 0 for one in images):
        # both give all images the same places, or are never wrong: nothing to judge by
        return spread(values, None, together=together)
    return spread(values, images, together=together)


def corrected(found: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The comparisons with p corrected for all of them together, by Holm's step-down procedure."""
    adjusted = iter(holm([one.p for one in found if one.p is not None]))
    return tuple(replace(one, p_holm=next(adjusted)) if one.p is not None else one for one in found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Visible:
    """The smallest difference that a table can show to be one, four times in five."""

    metric: str
    one: float  # if a single pair had been asked about
    all: float  # with the correction for every pair of the table
    evidence: str
    pairs: int


def visible(metric: str, found: Sequence[Comparison]) -> Visible | None:
    """What the table of `found` comparisons could see: the median over its pairs; None where nothing tells.

    A difference d of standard error s is found with probability POWER if d = (t at the level + t at POWER) s; the level
    is 0.05, and 0.05 over the number of pairs, which is what Holm's procedure asks of the surest of them.
    """
    told = [one for one in found if one.error and one.freedom]
    if not told:
        return None
    tested = sum(one.p is not None for one in found)

    def smallest(level: float) -> float:
        return median(
            (student_quantile(one.freedom or 1, 1 - level) + student_quantile(one.freedom or 1, 2 * POWER - 1))
            * (one.error or 0.0)
            for one in told
        )

    kinds = [one.evidence for one in told]
    return Visible(
        metric=metric,
        one=smallest(SIGNIFICANCE),
        all=smallest(SIGNIFICANCE / max(tested, 1)),
        evidence=max(set(kinds), key=lambda kind: (kinds.count(kind), kind)),
        pairs=tested,
    )
