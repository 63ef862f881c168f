"""The formulas of the metrics over any arrays, their names, and the error of scores that have none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

AUPRO_LIMITS = {"aupro_30": 0.3, "aupro_05": 0.05}  # false-positive rates up to which AUPRO integrates
IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", *AUPRO_LIMITS)
SIZES = ("pixel_ap_small", "pixel_ap_middle", "pixel_ap_large")
FINER = (*SIZES, "aupimo", "au_spro_05", "seg_f1")
PIMO_LIMITS = (1e-5, 1e-4)  # false-positive rates between which AUPIMO integrates
SPRO_LIMIT = 0.05
NORMAL = -1  # the group of the normal images
UNMARKED = "a region marks a pixel that no mask marks; give masks that hold every region"

Values = dict[str, float | None]


class MetricError(ValueError):
    """Scores or masks from which no honest number can be computed; the message names method and image."""


def partial_sums(
    counts: Any, true: Any, false: Any, equal: Any, mass: Any, classes: tuple[int, int], limits: Sequence[float]
) -> tuple[float, ...]:
    """What a run of distinct positive scores, in ascending order, adds to the formulas of exact.py.

    c_j, TP_j, FP_j, E_j and W_j as float64 arrays, or tensors: only operators that both have are used, so that both
    paths share one formula. `classes` = (P, N). Returns the sums of AUROC and AP, the maximum of F1, and the sum of
    AUPRO for each limit.
    """
    positives, negatives = classes
    called = true + false
    x1 = false / negatives
    x0 = x1 - equal / negatives
    areas = []
    for limit in limits:
        first = int((x0 >= limit).sum())  # x0 falls as the score rises: nothing before this one reaches the limit
        areas.append(float((mass[first:] * ramp_areas(x0[first:], x1[first:], limit)).sum()))
    return (
        float((counts * (negatives - false + equal / 2)).sum()),
        float((counts * true / called).sum()),
        float((2 * true / (called + positives)).max()),
        *areas,
    )


def ramp_areas(x0: Any, x1: Any, limit: float) -> Any:
    """The areas below ramps that rise from 0 at x0 to 1 at x1, cut at the limit: the areas of AUPRO, in any order."""
    left, top = x0.clip(max=limit), x1.clip(max=limit)
    width = top - left
    rise = (x1 - x0).clip(min=1e-300)  # without a tie the ramp is a step: width 0, no triangle
    return limit - top + width * width / (2 * rise)


def log_shares(x0: Any, x1: Any, lower: float, upper: float, log: Any = np.log) -> Any:
    """Of ramps that rise from 0 at x0 to 1 at x1: the mean over log(x) between the limits, as AUPIMO averages.

    Float64 arrays, or tensors with torch's `log`.
    """
    a, b = x0.clip(lower, upper), x1.clip(lower, upper)
    rise = (x1 - x0).clip(min=1e-300)  # without a tie the ramp is a step: nothing of it lies inside
    inside = ((b - a) - x0 * log(b / a)) / rise
    return (inside + log(upper / b)) / np.log(upper / lower)


def thirds(areas: NDArray[np.int64]) -> NDArray[np.int64]:
    """[R] 0, 1 or 2: the third of the regions that each belongs to by its area."""
    ordered, count = np.sort(areas), areas.size
    edges = [ordered[-(-count * part // 3) - 1] for part in (1, 2)] if count else []
    return np.searchsorted(np.array(edges, areas.dtype), areas, side="left").astype(np.int64)


def largest_not_above(threshold: float, kind: Any) -> Any:
    """The largest score of the floating type `kind` that is not above the threshold of SegF1, as a scalar of it.

    Raises MetricError for a threshold that is no number.
    """
    if math.isnan(threshold):
        raise MetricError("the threshold of SegF1 is no number (NaN); the maps it comes from hold one that is none")
    with np.errstate(over="ignore"):
        limit = kind(threshold)
    return np.nextafter(limit, kind(-np.inf)) if float(limit) > threshold else limit


def ratios(
    parts: Sequence[tuple[float, ...]], positives: int, negatives: int, regions: int, limits: Sequence[float]
) -> list[float]:
    """AUROC, AP, F1-max and AUPRO at each limit from the partial sums of all runs of scores."""
    auroc, ap, f1_max, *areas = zip(*parts, strict=True)
    found = [
        math.fsum(auroc) / (positives * negatives),
        math.fsum(ap) / positives,
        max(f1_max),
        *(math.fsum(area) / (regions * limit) for area, limit in zip(areas, limits, strict=True)),
    ]
    return [at_most_one(value) for value in found]


def at_most_one(value: float) -> float:
    """A ratio of sums without what their rounding adds to 1: those of 1/|region| seldom add up to a whole number."""
    return min(value, 1.0)


def not_finite(method: str | None, image: str, value: Any, where: str) -> str:
    """The message of MetricError for a score that is NaN or infinite."""
    return f"{who(method)}{where} of {image} is {float(value)}; a score must be finite, so no metric is computed"


def would_be_rounded(kind: str) -> str:
    """The message of MetricError for scores of a type that float64 cannot hold."""
    return f"scores of type {kind} would be rounded; give float32 or float64"


def who(method: str | None) -> str:
    """How a message begins: with the method, if it is known."""
    return f"{method}: " if method else ""


def image_name(names: Sequence[str] | None, image: int) -> str:
    """The image with this number, by its name if names are known."""
    return f"image {names[image]!r}" if names is not None else f"image {image}"
