"""Pixel metrics with one fault each, all seen in public code or close to it. The checks must reject every one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from scipy.integrate import trapezoid

from kdad_bench.metrics import pixel_metrics

Values = dict[str, float | None]
Compute = Callable[[np.ndarray, np.ndarray], Values]
EIGHT = np.ones((3, 3), bool)


def aupro_curve(
    maps: np.ndarray, masks: np.ndarray, thresholds: np.ndarray, structure: np.ndarray = EIGHT
) -> np.ndarray:
    """(FPR, mean overlap) at each threshold, from (0, 0)."""
    labelled = [ndimage.label(mask, structure=structure) for mask in masks]
    points = [(0.0, 0.0)]
    for threshold in thresholds:
        called = maps >= threshold
        overlap = [called[i][labels == r].mean() for i, (labels, n) in enumerate(labelled) for r in range(1, n + 1)]
        points.append((float(called[~masks].mean()), float(np.mean(overlap))))
    return np.array(points).T


def area(rates: np.ndarray, overlaps: np.ndarray, limit: float) -> float:
    """Trapezoids up to the limit, cut there by interpolation, divided by the limit."""
    inside = rates <= limit
    x, y = np.append(rates[inside], limit), np.append(overlaps[inside], np.interp(limit, rates, overlaps))
    return float(trapezoid(y, x) / limit)


def exact_thresholds(maps: np.ndarray) -> np.ndarray:
    return np.unique(maps)[::-1]


def with_aupro(maps: np.ndarray, masks: np.ndarray, value: float) -> Values:
    return {**pixel_metrics(maps, masks), "aupro_30": value}


def sound(maps: np.ndarray, masks: np.ndarray) -> Values:
    """No fault: shows that the parts below are right without one."""
    return with_aupro(maps, masks, area(*aupro_curve(maps, masks, exact_thresholds(maps)), 0.3))


def flipped_interpolation(maps: np.ndarray, masks: np.ndarray) -> Values:
    """At the limit, the overlap is weighted from the wrong end of the segment."""
    x, y = aupro_curve(maps, masks, exact_thresholds(maps))
    k = int(np.searchsorted(x, 0.3, side="right"))
    share = (x[k] - 0.3) / (x[k] - x[k - 1])  # should be the other part
    cut = y[k - 1] + share * (y[k] - y[k - 1])
    return with_aupro(maps, masks, float(trapezoid(np.append(y[:k], cut), np.append(x[:k], 0.3)) / 0.3))


def no_interpolation(maps: np.ndarray, masks: np.ndarray) -> Values:
    """The curve ends at the last point before the limit."""
    x, y = aupro_curve(maps, masks, exact_thresholds(maps))
    return with_aupro(maps, masks, float(trapezoid(y[x <= 0.3], x[x <= 0.3]) / 0.3))


def two_hundred_thresholds(maps: np.ndarray, masks: np.ndarray) -> Values:
    """200 equidistant thresholds instead of every score."""
    thresholds = np.linspace(maps.max(), maps.min(), 200)
    return with_aupro(maps, masks, area(*aupro_curve(maps, masks, thresholds), 0.3))


def four_connectivity(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Regions that touch at a corner are counted apart."""
    cross = ndimage.generate_binary_structure(2, 1)
    return with_aupro(maps, masks, area(*aupro_curve(maps, masks, exact_thresholds(maps), cross), 0.3))


def connected_across_images(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Regions of neighbouring images grow together, as one label call over the stack does."""
    labels, number = ndimage.label(masks, structure=np.ones((3, 3, 3), bool))
    points = [(0.0, 0.0)]
    for threshold in exact_thresholds(maps):
        called = maps >= threshold
        overlap = [called[labels == r].mean() for r in range(1, number + 1)]
        points.append((float(called[~masks].mean()), float(np.mean(overlap))))
    return with_aupro(maps, masks, area(*np.array(points).T, 0.3))


def pooled_pixels(maps: np.ndarray, masks: np.ndarray) -> Values:
    """A large region outweighs a small one: the overlap of all defect pixels, not the mean over regions."""
    points = [(0.0, 0.0)]
    for threshold in exact_thresholds(maps):
        called = maps >= threshold
        points.append((float(called[~masks].mean()), float(called[masks].mean())))
    return with_aupro(maps, masks, area(*np.array(points).T, 0.3))


def good_images_dropped(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Only anomalous images enter."""
    anomalous = masks.any(axis=(1, 2))
    return pixel_metrics(maps[anomalous], masks[anomalous])


def normalised_per_image(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Each map is stretched to [0, 1] first, so that every image has its 'most anomalous' pixel."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return pixel_metrics((maps - low) / np.maximum(high - low, 1e-12), masks)


def normalised_over_the_test_set_to_8_bits(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Maps as they are stored in PNG files."""
    return pixel_metrics(np.round((maps - maps.min()) / np.ptp(maps) * 255).astype(np.float32), masks)


def rounded_to_half(maps: np.ndarray, masks: np.ndarray) -> Values:
    """float16 makes ties that were none."""
    return pixel_metrics(maps.astype(np.float16), masks)


def ties_broken_by_position(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Equal scores are ranked in the order in which they lie in memory."""
    ranks = np.empty(maps.size)
    ranks[np.argsort(maps.reshape(-1), kind="stable")] = np.arange(maps.size)
    return pixel_metrics(ranks.reshape(maps.shape), masks)


def ties_in_favour_of_the_method(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Among equal scores the positives come first."""
    _, levels = np.unique(maps, return_inverse=True)
    return pixel_metrics(2.0 * levels.reshape(maps.shape) + masks, masks)


def histogram_of_50_bins(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Scores in 50 bins, presented as exact."""
    edges = np.linspace(maps.min(), maps.max(), 51)
    return pixel_metrics(np.digitize(maps, edges[1:-1]).astype(np.float32), masks)


def f1_at_one_half(maps: np.ndarray, masks: np.ndarray) -> Values:
    """F1 at a fixed threshold in place of the best."""
    called = maps >= 0.5
    true = (called & masks).sum()
    return {**pixel_metrics(maps, masks), "pixel_f1_max": float(2 * true / (called.sum() + masks.sum()))}


def ap_by_trapezoids(maps: np.ndarray, masks: np.ndarray) -> Values:
    """The precision-recall curve is joined by straight lines, which is too kind."""
    points = []
    for threshold in exact_thresholds(maps):
        called = maps >= threshold
        points.append(((called & masks).sum() / masks.sum(), (called & masks).sum() / called.sum()))
    recall, precision = np.array([(0.0, points[0][1]), *points]).T
    return {**pixel_metrics(maps, masks), "pixel_ap": float(trapezoid(precision, recall))}


def mean_over_images(maps: np.ndarray, masks: np.ndarray) -> Values:
    """Each anomalous image by itself, then the mean, instead of one sweep over the data set."""
    each = [pixel_metrics(maps[i : i + 1], masks[i : i + 1]) for i in np.flatnonzero(masks.any(axis=(1, 2)))]
    return {name: float(np.mean([values[name] for values in each])) for name in each[0]}


def not_finite_becomes_zero(maps: np.ndarray, masks: np.ndarray) -> Values:
    """A NaN is quietly a zero."""
    return pixel_metrics(np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0), masks)


def not_divided_by_the_limit(maps: np.ndarray, masks: np.ndarray) -> Values:
    """AUPRO up to 0.3 can then not exceed 0.3."""
    found = pixel_metrics(maps, masks)
    return {**found, "aupro_30": 0.3 * (found["aupro_30"] or 0)}


def inverted(maps: np.ndarray, masks: np.ndarray) -> Values:
    """High scores taken for normal."""
    return pixel_metrics(-maps, masks)


WRONG: dict[str, Compute] = {
    f.__name__: f
    for f in (
        flipped_interpolation,
        no_interpolation,
        two_hundred_thresholds,
        four_connectivity,
        connected_across_images,
        pooled_pixels,
        good_images_dropped,
        normalised_per_image,
        normalised_over_the_test_set_to_8_bits,
        rounded_to_half,
        ties_broken_by_position,
        ties_in_favour_of_the_method,
        histogram_of_50_bins,
        f1_at_one_half,
        ap_by_trapezoids,
        mean_over_images,
        not_finite_becomes_zero,
        not_divided_by_the_limit,
        inverted,
    )
}
