"""What may be concluded from a table: intervals, paired tests, corrections and ranks, each with its source."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.student_t import student_quantile

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
DIGITS = 12  # of figures and differences that can tie: ties must not hang on the last bit of a mean or of a sum
CLOSEST = 5e-3  # to 0 or 1 that a share counts as, where it is a logit: no test set tells finer ones apart

# 0.95 quantile of the studentised range for k groups and infinite degrees of freedom, over the square root of 2
_NEMENYI = (
    1.959964, 2.343701, 2.569032, 2.727774, 2.849705, 2.948320, 3.030878, 3.101730, 3.163684, 3.218654,
    3.268004, 3.312739, 3.353618, 3.391230, 3.426041, 3.458425, 3.488685, 3.517073, 3.543799,
)  # fmt: skip  # k = 2 .. 20


def wilcoxon(differences: Iterable[float]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test, exact for any ties: the null distribution is that of the sum of
    the observed (averaged) ranks under random signs. Zero differences are dropped (Wilcoxon's rule); without any other
    p is 1. Source: Wilcoxon, Biometrics Bulletin 1(6), 1945; Hollander & Wolfe, section 3.1.
    """
    values = np.round(np.asarray(list(differences), np.float64), DIGITS)
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


def interval_across(values: NDArray[np.float64], within: float = 0.0, *, shares: bool = True) -> tuple[float, float]:
    """95 % interval of the mean over categories of the means over seeds, for other categories of the same kind.

    `values` [categories >= 2, seeds], NaN where missing, at least one value in each category. `within`: the standard
    error of the mean for these very categories, by seeds and images. `shares`: the values lie in [0, 1] and the
    interval does too.

    Student's t over the categories' means, which differ by seeds and images already. A bootstrap of categories, of
    their seeds and of their images counts those twice; freed of that its variance is this one (docs/protocol.md derives
    it). Categories that are alike by chance do not make it narrower than one standard error `within`. Source: Hartung &
    Knapp, Statistics in Medicine 20, 2001, with equal weights.
    """
    means = np.nanmean(values, axis=1)
    half = student_quantile(len(means) - 1, CONFIDENCE) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return interval_around(float(means.mean()), max(half, within), shares=shares)


def interval_around(mean: float, half: float, *, shares: bool = True) -> tuple[float, float]:
    """The interval of half-width `half` around `mean`; of a share it is made as that of its logit, and lies in [0, 1].

    Near 1 it then reaches further down than up, as other images would move it. The logit is taken no closer to 0 or 1
    than half of `half`: from there a step of the scale would be as wide as the scale. The share of the way to 0 or 1
    that it reaches from there it reaches from the mean. Source: Pepe, The Statistical Evaluation of Medical Tests for
    Classification and Prediction, 2003, chapter 5.
    """
    if not shares:
        return mean - half, mean + half
    near = min(0.5, max(CLOSEST, half / 2))
    share = min(max(mean, near), 1 - near)
    at, reach = math.log(share / (1 - share)), half / (share * (1 - share))
    below, above = (abs(_share(at + end) - share) for end in (-reach, reach))
    below, above = below * max(1.0, mean / share), above * max(1.0, (1 - mean) / (1 - share))
    return max(0.0, mean - below), min(1.0, mean + above)


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def student_interval(values: NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
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
