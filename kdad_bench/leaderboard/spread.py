"""Where a mean over categories and seeds could have come out instead, and what of that is seed, image or category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.images import Job, Noise
from kdad_bench.leaderboard.student_t import student_quantile, student_tail

Floats = NDArray[np.float64]
IMAGES_AND_SEEDS, IMAGES, SEEDS, CATEGORIES, NOTHING = "images and seeds", "images", "seeds", "categories", ""
STILL = 1e-5  # a standard deviation over seeds below this is none: the methods do not depend on the seed
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


def spread(values: Sequence[Floats], images: Sequence[Drawn] | None) -> Spread | None:
    """The spread of the mean over categories of the means over seeds; None where nothing tells it.

    `values`: for each category one value per seed. `images`: for each category what its images do, or None where that
    is not known; then only the seeds tell. In a category the variance of the mean is that part of the images' that all
    seeds share, for they have seen the same ones, and the variance over seeds over their number, which holds the rest.
    A category with one seed gets the variance over seeds that the others have, and so as little certainty about it:
    what it adds stands in their terms. Degrees of freedom: between Satterthwaite (Biometrics Bulletin 2(6), 1946) and
    Welch (Biometrika 34, 1947), rounded down to tenths.
    """
    over_seeds = [(float(one.var(ddof=1)), one.size) for one in values if one.size > 1]
    typical = float(np.mean([variance for variance, _ in over_seeds])) if over_seeds else 0.0
    shared = sum(one.shared for one in images or ())
    terms = [(one.shared, one.freedom) for one in images or ()] if shared > 0 else []  # below zero by chance: nothing
    if math.sqrt(typical) > STILL:
        borrowed = (len(values) - len(over_seeds)) / len(over_seeds)  # categories with one seed, for each with several
        terms += [(variance * (1 / size + borrowed), size - 1) for variance, size in over_seeds]
    total = sum(variance for variance, _ in terms)
    below = sum(variance**2 / (freedom + MORE) for variance, freedom in terms)
    if total <= 0 or below <= 0:
        return None
    freedom = max(1.0, min(MOST_FREEDOM, math.floor(10 * (total**2 / below - MORE)) / 10))
    evidence = SEEDS if images is None else IMAGES_AND_SEEDS if over_seeds else IMAGES
    return Spread(total / len(values) ** 2, freedom, evidence)


class Parts(NamedTuple):
    """Estimated variances of one job's value: what the category adds, what the seed adds, and what the images add.

    Right on average, so that one that is small may come out below zero; `components.shares` shows none such.
    """

    category: float | None  # None with one category
    seed: float | None  # None with one seed everywhere
    image: float | None  # None where nothing is known about the images


def parts(values: Sequence[Floats], images: Sequence[Drawn] | None) -> Parts:
    """The variance components of one job's value, by the method of moments.

    image: what DeLong's formula (or the bootstrap) gives for one job. seed: the variance over seeds within a category,
    less what the images do to one seed and not to another. category: the variance of the categories' means, less what
    seeds and images put into them. Where nothing is known about the images, their part lies in that of the category.
    """
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
    inside = float(np.mean([(seed or 0.0) / one.size for one in values]))
    inside += 0.0 if images is None else float(np.mean([one.of_mean for one in images]))
    return Parts(between - inside, seed, image)
