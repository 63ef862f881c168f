"""The finer pixel metrics read straight off their definitions: one threshold after the other, slow and plain.

Shares no code with the package. Every distinct score is a threshold; between two thresholds a curve is straight.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.integrate import quad

from tests.metrics.metrics_by_definition import regions_of

Regions = list[tuple[int, np.ndarray, float]]  # image, mask [H, W], share of its area that saturates


def thresholds(maps: np.ndarray) -> np.ndarray:
    return np.unique(maps)[::-1]


def ap_by_size(maps: np.ndarray, masks: np.ndarray) -> dict[str, float | None]:
    """Sum over falling thresholds of precision times the rise of recall, for the regions of each third."""
    regions = [(i, tuple(np.array(r).T)) for i, mask in enumerate(masks) for r in regions_of(mask)]
    areas = sorted(len(where[0]) for _, where in regions)
    first = areas[int(np.ceil(len(areas) / 3)) - 1] if areas else 0
    second = areas[int(np.ceil(2 * len(areas) / 3)) - 1] if areas else 0
    bounds = {"small": (0, first), "middle": (first, second), "large": (second, np.inf)}
    found: dict[str, float | None] = {}
    for name, (low, high) in bounds.items():
        own = np.zeros(maps.shape, bool)
        for image, where in regions:
            if low < len(where[0]) <= high:
                own[image][where] = True
        found[f"pixel_ap_{name}"] = average_precision(maps, own, ~masks) if own.any() else None
    return found


def average_precision(maps: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> float:
    total, before = 0.0, 0.0
    for threshold in thresholds(maps):
        called = maps >= threshold
        true, false = float((called & positive).sum()), float((called & negative).sum())
        recall = true / positive.sum()
        if recall > before:
            total += (recall - before) * true / (true + false)
        before = recall
    return total


def curve(
    maps: np.ndarray, rate: Callable[[np.ndarray], float], height: Callable[[np.ndarray], float]
) -> tuple[list[float], list[float]]:
    """(x, y) at each threshold, from (0, 0)."""
    xs, ys = [0.0], [0.0]
    for threshold in thresholds(maps):
        called = maps >= threshold
        xs.append(rate(called))
        ys.append(height(called))
    return xs, ys


def segments(xs: list[float], ys: list[float]) -> list[tuple[float, float, float, float]]:
    return [one for one in zip(xs, xs[1:], ys, ys[1:], strict=False) if one[1] > one[0]]


def aupimo(maps: np.ndarray, masks: np.ndarray, normal: np.ndarray, limits: tuple[float, float]) -> float | None:
    """For each image with a mark, the integral of its overlap over log(rate), by quadrature of every segment."""
    anomalous = [i for i, mask in enumerate(masks) if mask.any()]
    pixels = int(normal.sum()) * masks[0].size
    if not anomalous or pixels * limits[1] < 1:
        return None
    found = []
    for image in anomalous:
        xs, ys = curve(
            maps,
            lambda called: float(called[normal].sum() / pixels),
            lambda called, image=image: float(called[image][masks[image]].mean()),
        )
        area = 0.0
        for x0, x1, y0, y1 in [*segments(xs, ys), (1.0, np.inf, 1.0, 1.0)]:
            low, high = max(x0, limits[0]), min(x1, limits[1])
            if low < high:
                slope = (y1 - y0) / (x1 - x0) if x1 < np.inf else 0.0
                area += quad(lambda x, y0=y0, x0=x0, slope=slope: (y0 + slope * (x - x0)) / x, low, high)[0]
        found.append(area / np.log(limits[1] / limits[0]))
    return float(np.mean(found))


def au_spro(
    maps: np.ndarray, masks: np.ndarray, regions: Regions, kinds: list[str], normal: np.ndarray, limit: float
) -> float | None:
    """Trapezoids below the mean of min(covered / saturation, 1), for each kind with the normal images."""
    found = []
    for kind in sorted({kinds[image] for image, mask, _ in regions if mask.any()}):
        chosen = normal | (np.array(kinds) == kind)
        own = [one for one in regions if kinds[one[0]] == kind and one[1].any()]
        unmarked = ~masks & chosen[:, None, None]
        if not unmarked.any():
            return None

        def covered(called: np.ndarray, own: Regions = own) -> float:
            return float(np.mean([min(called[i][mask].sum() / (share * mask.sum()), 1.0) for i, mask, share in own]))

        xs, ys = curve(maps, lambda called, some=unmarked: float((called & some).sum() / some.sum()), covered)
        area = 0.0
        for x0, x1, y0, y1 in segments(xs, ys):
            if x0 < limit:
                top = y1 if x1 <= limit else y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
                area += (min(x1, limit) - x0) * (y0 + top) / 2
        found.append(area / limit)
    return float(np.mean(found)) if found else None


def seg_f1(maps: np.ndarray, masks: np.ndarray, normal_maps: np.ndarray) -> float | None:
    wide = normal_maps.astype(np.float64)
    threshold = wide.mean() + 3 * wide.std()
    called = maps.astype(np.float64) > threshold
    true = (called & masks).sum()
    return float(2 * true / (called.sum() + masks.sum())) if masks.any() else None
