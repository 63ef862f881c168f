"""Where a mean over categories and seeds could have come out instead, and what of that is seed, image or category."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.images import Job, Noise
from kdad_bench.leaderboard.inference import CONFIDENCE
from kdad_bench.leaderboard.student_t import student_quantile, student_tail

Floats = NDArray[np.float64]
IMAGES_AND_SEEDS, IMAGES, SEEDS, CATEGORIES, NOTHING = "images and seeds", "images", "seeds", "categories", ""
ONE_TRAINING = "categories of one training"
STILL = 1e-5  # a standard deviation over seeds below this is none: the seeds tie
CANCELLED = 1e-9  # the same of their means over categories: what rounding leaves where the categories cancel
MORE = 1  # Satterthwaite's 0 makes intervals too wide where there are two seeds, Welch's 2 too narrow: coverage.py
MOST_FREEDOM = 1000  # beyond it Student's t is the normal distribution


class Drawn(NamedTuple):
    """How the images of one category move a contrast of its jobs: variances over samples of images."""

    of_mean: float  # of the mean over the seeds
    of_one: float  # of one seed's value, on average
    shared: float  # the part that all seeds share: the mean covariance of two of them; with one seed all of it
    freedom: float


class Spread(NamedTuple):
    """Variance of the mean over these categories, with other seeds and other images of them."""

    variance: float
    freedom: float
    evidence: str

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.variance)

    def half_width(self, level: float) -> float:
        """Half of the interval of that level."""
        return student_quantile(self.freedom, level) * self.error

    def p(self, difference: float) -> float:
        """Two-sided p of a difference from zero."""
        return student_tail(abs(difference) / self.error, self.freedom)


def drawn(noise: Noise, plus: Sequence[Job], minus: Sequence[Job] = ()) -> Drawn | None:
    """The part of the images in (values of `plus` minus those of `minus`), paired in their order; None if one lacks."""
    if any(job not in noise.jobs for job in (*plus, *minus)):
        return None
    contrast = np.zeros((len(plus), len(noise.jobs)))
    for place, job in enumerate(plus):
        contrast[place, noise.jobs[job]] += 1
    for place, job in enumerate(minus):
        contrast[place, noise.jobs[job]] -= 1
    covariance = contrast @ noise.covariance @ contrast.T  # [seeds, seeds]
    of_mean, of_one, seeds = float(covariance.mean()), float(np.diag(covariance).mean()), len(covariance)
    shared = of_one if seeds == 1 else (of_mean * seeds - of_one) / (seeds - 1)
    return Drawn(of_mean, of_one, shared, noise.freedom)


def spread(values: Sequence[Floats], images: Sequence[Drawn] | None, *, together: bool = False) -> Spread | None:
    """The spread of the mean over categories of the means over seeds; None where nothing tells it.

    `values`: for each category one value per seed, NaN where there is none. `images`: for each category what its images
    do, or None where that is not known; then only the seeds tell. In a category the variance of the mean is that part
    of the images' that all seeds share, for they have seen the same ones, and the variance over seeds over their
    number, which holds the rest. Seeds that all tie hold nothing of it, and other models tie by chance where a figure
    moves in few steps: then it is what the images do to the mean of these very models. A category with one seed gets
    the variance over seeds that the others have, and so as little certainty about it: what it adds stands in their
    terms.

    `together`: one training of each seed serves all categories, so that they go up and down together, and `values` are
    in one order of the seeds. Then the seeds count once: `_of_trainings`. Such seeds tie where their means over the
    categories do, one category up by what another is down: that says as little of other trainings.
    """
    repeated = [one[~np.isnan(one)] for one in values]
    over_seeds = [(float(one.var(ddof=1)), one.size) for one in repeated if one.size > 1]
    typical = float(np.mean([variance for variance, _ in over_seeds])) if over_seeds else 0.0
    evidence = SEEDS if images is None else IMAGES_AND_SEEDS if over_seeds else IMAGES
    trainings = _of_trainings(values, evidence) if together and len(values) > 1 and over_seeds else None
    if math.sqrt(typical) <= STILL or (trainings is not None and trainings.error <= CANCELLED):
        return _added([(one.of_mean, one.freedom) for one in images or ()], len(values), evidence)
    shared = sum(one.shared for one in images or ())
    terms = [(one.shared, one.freedom) for one in images or ()] if shared > 0 else []  # below zero by chance: nothing
    if trainings is not None:
        return _weighed(_added(terms, len(values), evidence), trainings)
    borrowed = (len(values) - len(over_seeds)) / len(over_seeds)  # categories with one seed, for each with several
    terms += [(variance * (1 / size + borrowed), size - 1) for variance, size in over_seeds]
    return _added(terms, len(values), evidence)


def half_across(values: Sequence[Floats], these: Spread | None) -> float:
    """Half of the 95 % interval of the mean for other categories, where one training of each seed serves all.

    `values`: for each category, at least two, one value per seed in one order of the seeds, NaN where there is none.
    `these`: the spread of the mean for these very categories. The variance over categories of their means holds what
    differs between them, their images' part too, but not what a training does to all of them alike: that is added, over
    the number of trainings. By chance it may be estimated as nothing: so the interval is as wide as that for these at
    least.
    """
    means = np.array([np.nanmean(one) for one in values])
    others = Spread(float(means.var(ddof=1)) / len(means), len(means) - 1.0, CATEGORIES)
    variance, trainings = _alike(values)
    if variance > 0:
        others = _weighed(others, Spread(variance / trainings, trainings - 1.0, SEEDS))
    return max(one.half_width(CONFIDENCE) for one in (others, these) if one is not None)


def _added(terms: Sequence[tuple[float, float]], categories: int, evidence: str) -> Spread | None:
    """The spread of a mean from (variance, degrees of freedom) of what adds up to the sum over the categories.

    Degrees of freedom: between Satterthwaite (Biometrics Bulletin 2(6), 1946) and Welch (Biometrika 34, 1947), rounded
    down to tenths.
    """
    total = sum(variance for variance, _ in terms)
    below = sum(variance**2 / (freedom + MORE) for variance, freedom in terms)
    if total <= 0 or below <= 0:
        return None
    freedom = max(1.0, min(MOST_FREEDOM, math.floor(10 * (total**2 / below - MORE)) / 10))
    return Spread(total / categories**2, freedom, evidence)


def _weighed(one: Spread | None, other: Spread) -> Spread:
    """The spread of a sum of two, of which the second may have very few degrees of freedom and weigh most.

    Student's t is the mean of the two, weighted by their variances, at the level of the intervals: Cochran (Biometrics
    20, 1964). Welch's degrees of freedom are too many where a few seeds are the larger part: with two, intervals of 95
    % held 86 %, and by this mean 94 to 98.
    """
    if one is None:
        return other
    total = one.variance + other.variance
    t = sum(part.variance * student_quantile(part.freedom, CONFIDENCE) for part in (one, other)) / total
    tenths = range(10, 10 * MOST_FREEDOM + 1)
    more = bisect_right(tenths, -t, key=lambda tenth: -student_quantile(tenth / 10, CONFIDENCE))
    return Spread(total, tenths[max(0, more - 1)] / 10, one.evidence)


def _of_trainings(values: Sequence[Floats], evidence: str) -> Spread:
    """What the seeds do to the mean over categories that one training each serves.

    The variance over seeds of their means over the categories, over the number of seeds: those that have every
    category, so that further values of some make nothing surer. With fewer than two such, the most that it can be:
    categories that go up and down as one, those with one seed as the others.
    """
    whole = _whole(values)
    if whole.shape[1] > 1:
        return Spread(float(whole.mean(axis=0).var(ddof=1)) / whole.shape[1], whole.shape[1] - 1.0, evidence)
    repeated = [one[~np.isnan(one)] for one in values]
    typical = math.sqrt(float(np.mean([one.var(ddof=1) for one in repeated if one.size > 1])))
    errors = [float(one.std(ddof=1)) / math.sqrt(one.size) if one.size > 1 else typical for one in repeated]
    fewest = min(one.size for one in repeated if one.size > 1)
    return Spread((sum(errors) / len(values)) ** 2, fewest - 1.0, evidence)


def _whole(values: Sequence[Floats]) -> Floats:
    """[categories, seeds]: the values of the seeds that have every category."""
    grid = np.stack(values)
    return np.asarray(grid[:, ~np.isnan(grid).any(axis=0)])


def _alike(values: Sequence[Floats]) -> tuple[float, int]:
    """(variance of what one training does to all of its categories alike, seeds that have every category).

    By the method of moments: over seeds, the variance of the means over k categories is c + e / k and the mean variance
    within a category c + e, where e is what a seed does to one category and not to another. Nothing is known with fewer
    than two such seeds, or one category.
    """
    whole = _whole(values)
    categories, seeds = whole.shape
    if seeds < 2 or categories < 2:
        return 0.0, seeds
    of_means, within = float(whole.mean(axis=0).var(ddof=1)), float(whole.var(axis=1, ddof=1).mean())
    return (categories * of_means - within) / (categories - 1), seeds


class Parts(NamedTuple):
    """Estimated variances of one job's value: what the category adds, what the seed adds, and what the images add.

    Right on average, so that one that is small may come out below zero; `components.shares` shows none such.
    """

    category: float | None  # None with one category
    seed: float | None  # None with one seed everywhere
    image: float | None  # None where nothing is known about the images


def parts(values: Sequence[Floats], images: Sequence[Drawn] | None, *, together: bool = False) -> Parts:
    """The variance components of one job's value, by the method of moments; arguments as those of `spread`.

    image: what DeLong's formula (or the bootstrap) gives for one job. seed: the variance over seeds within a category,
    less what the images do to one seed and not to another. category: the variance of the categories' means, less what
    seeds and images put into them. Where nothing is known about the images, their part lies in that of the category.
    With `together` what a seed does to all categories alike is in its part, and moves none of their means from another.
    """
    common = _alike(values)[0] if together else 0.0
    values = [one[~np.isnan(one)] for one in values]
    image = None if images is None else float(np.mean([one.of_one for one in images]))
    own = [
        float(one.var(ddof=1)) - (0.0 if images is None else images[c].of_one - images[c].shared)
        for c, one in enumerate(values)
        if one.size > 1
    ]
    seed = float(np.mean(own)) if own else None
    if len(values) < 2:
        return Parts(None, seed, image)
    between = float(np.var([one.mean() for one in values], ddof=1))
    inside = float(np.mean([((seed or 0.0) - common) / one.size for one in values]))
    inside += 0.0 if images is None else float(np.mean([one.of_mean for one in images]))
    return Parts(between - inside, seed, image)
