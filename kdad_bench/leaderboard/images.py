"""What the images of one category say about the figures of its jobs: how far other images would have moved them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.inference import average_ranks

Floats = NDArray[np.float64]
Job = tuple[str, int]  # entrant, seed

SCORED = ("image_scores", "image_labels", "image_names")  # columns of a row
METRICS = ("image_auroc", "image_ap", "image_f1_max")  # the figures that follow from the scores of whole images
DRAWS = 1000  # bootstrap samples of the images of a category
MOST_IMAGES = 5000  # of one category: more would need gigabytes to draw, and their noise is small
MOST_JOBS = 1500  # of one category: the table of their covariances grows with the square
SAME = 1e-3  # by which a figure drawn from stored scores (float32, ties perhaps made by that) may miss the row's


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How the images that happened to be tested move the figures of the jobs of a category."""

    jobs: Mapping[Job, int]  # job -> its place below
    covariance: Floats  # [jobs, jobs] over samples of images
    freedom: int  # of the variance of the rarer kind of image


@dataclass(frozen=True, kw_only=True)
class Images:
    """The test images of a category in one order, and the score that each job gave them."""

    labels: NDArray[np.bool_]  # [images]: true is anomalous
    scores: Mapping[Job, Floats]  # [images]

    @cached_property
    def anomalous(self) -> int:
        """How many images are."""
        return int(self.labels.sum())

    @cached_property
    def good(self) -> int:
        """How many images are."""
        return int(self.labels.size - self.anomalous)

    def noise(self, metric: str, figures: Mapping[Job, float]) -> Noise | None:
        """The noise of `metric`, one of METRICS, over the jobs with a figure; None if the scores say nothing about it.

        A job whose scores do not give the figure that its row has is left out: they are not what was measured. So are
        categories with a single image of a kind, or more than can be drawn.
        """
        if min(self.anomalous, self.good) < 2 or (metric != "image_auroc" and self.labels.size > MOST_IMAGES):
            return None
        own = [job for job in sorted(figures) if job in self.scores][:MOST_JOBS]
        made = self._of_auroc if metric == "image_auroc" else partial(self._of_curve, metric)
        return made({job: figures[job] for job in own})

    def _of_auroc(self, figures: Mapping[Job, float]) -> Noise | None:
        """DeLong's covariance."""
        both = {job: placements(self.scores[job], self.labels) for job in figures}
        own = [job for job, (above, _) in both.items() if abs(above.mean() - figures[job]) <= SAME]
        if not own:
            return None
        above, below = (
            np.array([both[job][kind] for job in own]) for kind in (0, 1)
        )  # [jobs, anomalous], [jobs, good]
        return self._noise(own, delong(above, below))

    def _of_curve(self, metric: str, figures: Mapping[Job, float]) -> Noise | None:
        """Covariance of a figure over resampled images."""
        once = np.ones((1, self.labels.size))
        given = {job: float(resampled(metric, self.scores[job], self.labels, once)[0]) for job in figures}
        own = [job for job, value in given.items() if abs(value - figures[job]) <= SAME]
        if not own:
            return None
        often = np.empty((DRAWS, self.labels.size))
        often[:, self.labels], often[:, ~self.labels] = _times(self.anomalous, self.good)
        found = np.array([resampled(metric, self.scores[job], self.labels, often) for job in own])
        return self._noise(own, np.atleast_2d(np.cov(found)))

    def _noise(self, own: Sequence[Job], covariance: Floats) -> Noise:
        places = {job: place for place, job in enumerate(own)}
        return Noise(jobs=places, covariance=covariance, freedom=min(self.anomalous, self.good) - 1)


def placements(scores: Floats, labels: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(share of the good images below each anomalous one, share of the anomalous ones above each good one).

    Equal scores count half. The mean of either is the AUROC. By midranks, in O(N log N): Sun & Xu, IEEE Signal
    Processing Letters 21(11), 2014, equations 5 to 8.
    """
    anomalous, good = scores[labels], scores[~labels]
    ranks = average_ranks(scores)
    above = (ranks[labels] - average_ranks(anomalous)) / good.size
    below = 1 - (ranks[~labels] - average_ranks(good)) / anomalous.size
    return above, below


def delong(above: Floats, below: Floats) -> Floats:
    """Covariance [k, k] of k AUROCs from their `placements`, [k, anomalous] and [k, good].

    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 44(3), 1988.
    """
    return np.asarray(np.atleast_2d(np.cov(above)) / above.shape[1] + np.atleast_2d(np.cov(below)) / below.shape[1])


def resampled(metric: str, scores: Floats, labels: NDArray[np.bool_], times: Floats) -> Floats:
    """`metric` ("image_ap" or "image_f1_max") of each resample; `times` [resamples, images]: how often it has each."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # equal scores are called together
    true = np.cumsum(times[:, order] * labels[order], axis=1)[:, ends]
    called = np.cumsum(times[:, order], axis=1)[:, ends]
    all_true = true[:, -1:]
    if metric == "image_f1_max":
        return np.asarray((2 * true / (called + all_true)).max(axis=1))
    precision = true / np.maximum(called, 1)
    gained = np.diff(true, axis=1, prepend=0) / all_true
    return np.asarray((gained * precision).sum(axis=1))


@lru_cache(maxsize=8)
def _times(anomalous: int, good: int) -> tuple[Floats, Floats]:
    """How often each resample has each image, of either kind as many as there are: alike for all jobs."""
    generator = np.random.default_rng(0)
    return tuple(  # type: ignore[return-value]
        generator.multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(np.float64)
        for size in (anomalous, good)
    )


def of_jobs(rows: Iterable[tuple[Job, Mapping[str, Any]]]) -> Images | None:
    """The images that most of the jobs of one category share; None without any.

    Images are told by their names. A job without scores, with doubled names, or with other images than most others
    has no part in it.
    """
    sorted_rows: dict[Job, tuple[tuple[str, ...], NDArray[np.bool_], Floats]] = {}
    for job, row in rows:
        found = _in_order(row)
        if found is not None:
            sorted_rows[job] = found
    if not sorted_rows:
        return None
    sets = Counter((names, labels.tobytes()) for names, labels, _ in sorted_rows.values())
    most = min(sets, key=lambda one: (-sets[one], one))
    same = {job: one for job, one in sorted_rows.items() if (one[0], one[1].tobytes()) == most}
    labels = next(iter(same.values()))[1]
    return Images(labels=labels, scores={job: scores for job, (_, _, scores) in same.items()})


def _in_order(row: Mapping[str, Any]) -> tuple[tuple[str, ...], NDArray[np.bool_], Floats] | None:
    """Names, labels and scores of a row in the order of the names; None if the row does not have them."""
    scores, labels, names = (row.get(name) for name in SCORED)
    if not scores or not labels or not names or not len(scores) == len(labels) == len(names) == len({*names}):
        return None
    order = sorted(range(len(names)), key=names.__getitem__)
    made = np.array(scores, np.float64)[order]
    if not np.isfinite(made).all():
        return None
    return tuple(names[place] for place in order), np.array(labels, np.bool_)[order], made
