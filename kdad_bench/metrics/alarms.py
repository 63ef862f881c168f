"""False alarms of a threshold on image scores: what was seen of them, what can be said of them, PG2 and PB2.

- Clopper, Pearson, Biometrika 1934: the exact interval of a share.
- Kolmogorov-Smirnov: the exact permutation test of two samples. Equal scores are no obstacle: the curves are compared
  where a group of equal scores ends.
- PG2, PB2: Baitieva, Bouaouni, Briot, Ameln, Khalfaoui, Akcay, VAND at CVPR 2025 (arXiv 2503.23451). What is presorted
  good with at most 2 % of the bad images missed, and presorted bad with at most 2 % of the good ones called bad. Other
  code takes an interpolated quantile as the threshold, with which more than 2 % may be missed: 2 of 63 images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdad_bench.metrics.curves import Values

PRESORTED = ("pg2", "pb2")
ONE_IN = 50  # images that may be called wrongly: 2 %
CONFIDENCE = 0.95


def presorted(scores: NDArray[Any], anomalous: NDArray[np.bool_]) -> Values:
    """PG2 and PB2 of image scores [N], higher is more anomalous, both in [0, 1]; None where a class is absent.

    PG2: the largest share of the normal images below a threshold that at most 2 % of the anomalous ones are below.
    PB2: the largest share of the anomalous images above a threshold that at most 2 % of the normal ones are above.
    """
    bad, good = np.sort(scores[anomalous]), np.sort(scores[~anomalous])
    if not bad.size or not good.size:
        return dict.fromkeys(PRESORTED)
    pg2 = float((good < bad[bad.size // ONE_IN]).mean())
    pb2 = float((bad > good[-1 - good.size // ONE_IN]).mean())
    return dict(zip(PRESORTED, (pg2, pb2), strict=True))


def clopper_pearson(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact interval [low, high] of the chance behind `hits` of `count` >= 1 independent trials."""
    from scipy.special import betaincinv  # slow to import

    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits, count - hits + 1, tail))
    high = 1.0 if hits == count else float(betaincinv(hits + 1, count - hits, 1 - tail))
    return low, high


def two_sample_p(first: ArrayLike, second: ArrayLike) -> float | None:
    """The chance that a random division of the pooled values parts their distributions as far as this one does.

    Exact, two-sided, for values [n] and [m] with or without ties; None where one of them is empty. It takes
    (n + m) n steps.
    """
    one, two = np.sort(np.asarray(first, np.float64)), np.sort(np.asarray(second, np.float64))
    n, m = one.size, two.size
    if not n or not m:
        return None
    pooled = np.sort(np.concatenate([one, two]))
    ends = np.flatnonzero(np.append(pooled[1:] != pooled[:-1], True)) + 1  # how many values lie up to a distinct one
    own = np.searchsorted(one, pooled[ends - 1], side="right")
    observed = int(np.abs(own * m - (ends - own) * n).max())
    return _chance_of(observed, n, m, ends)


def _chance_of(gap: int, n: int, m: int, ends: NDArray[np.int64]) -> float:
    """The share of the divisions whose curves are `gap` / (n m) or more apart at one of the `ends`.

    Walks along the pooled values; `alive` [n + 1] is the chance to have met so many of the first sample and no such
    gap yet. What is cut off is added up, and not what is left: a small chance keeps its digits.
    """
    met, alive, parted = np.arange(n + 1), np.zeros(n + 1), 0.0
    alive[0] = 1.0
    stops = set(ends.tolist())
    for done in range(n + m):
        left = n + m - done
        own = alive * (n - met) / left
        alive = alive * (m - done + met) / left
        alive[1:] += own[:-1]
        if done + 1 in stops:
            apart = np.abs(met * m - (done + 1 - met) * n) >= gap
            parted += float(alive[apart].sum())
            alive[apart] = 0.0
    return min(parted, 1.0)
