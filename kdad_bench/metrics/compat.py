"""Pixel metrics as other codes compute them, under names of their own: never in a column of the protocol's metrics.

Each is written from its formula, with counts in sorted scores in place of a loop over binarised maps. They serve to
understand a published number; `benchmarks/metric_variants.py` shows how far apart they lie on the same maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdad_bench.metrics.curves import MetricError
from kdad_bench.metrics.exact import pixel_metrics
from kdad_bench.metrics.regions import RegionIndex, region_index

Maps = NDArray[np.floating[Any]]
Masks = NDArray[np.bool_]

FPR_LIMIT = 0.3
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)  # OpenCV's elliptic structuring element of size 3


class Variant(NamedTuple):
    """A metric of another code."""

    compute: Callable[[Maps, Masks], float | None]
    like: str  # the protocol's metric that it is mistaken for
    what: str
    source: str


def stfpm_rescaled_pro(maps: Maps, masks: Masks) -> float | None:
    """PRO over the data set at 4000 equidistant thresholds below the maximum, FPR <= 0.3, then both axes stretched to
    [0, 1] by their own minimum and maximum: the curve always ends at 1, whatever it reached.

    `maps` [N, H, W], `masks` [N, H, W] boolean. None where the stretch divides by zero or a class is missing.
    Source: STFPM's official evaluation code.
    """
    curve = _pro_curve(maps, region_index(masks), _from_maximum(maps, 4000))
    if curve is None:
        return None
    fpr, pro = curve
    fpr, pro = fpr[fpr <= FPR_LIMIT], pro[fpr <= FPR_LIMIT]
    return _area(_stretched(fpr), _stretched(pro))


def rd4ad_per_image_pro(maps: Maps, masks: Masks) -> float | None:
    """The mean over anomalous images of a PRO computed within each image: 200 thresholds between its own minimum and
    maximum, its own false-positive rate below 0.3, divided by the largest such rate. Good images never enter.

    `maps` [N, H, W], `masks` [N, H, W] boolean. An image in which no rate below 0.3 but 0 occurs, where the original
    divides by zero, is left out; None if none is left. Source: RD4AD's official test code (which rounds to 3 digits).
    """
    found = []
    for i in np.flatnonzero(masks.any(axis=(1, 2))):
        curve = _pro_curve(maps[i : i + 1], region_index(masks[i : i + 1]), _from_minimum(maps[i], 200))
        if curve is None:
            continue
        fpr, pro = curve
        fpr, pro = fpr[fpr < FPR_LIMIT], pro[fpr < FPR_LIMIT]
        if fpr.size > 1 and fpr.max() > 0:
            found.append(_area(fpr / fpr.max(), pro))
    values = [value for value in found if value is not None]
    return float(np.mean(values)) if values else None


def pro_200_thresholds(maps: Maps, masks: Masks) -> float | None:
    """PRO over the data set at 200 equidistant thresholds, FPR < 0.3, the FPR axis stretched to [0, 1] by its own
    minimum and maximum instead of interpolated at the limit.

    `maps` [N, H, W], `masks` [N, H, W] boolean. None where the stretch divides by zero or a class is missing.
    Source: the loop that many public codes share (CFLOW-AD, ADer and others).
    """
    curve = _pro_curve(maps, region_index(masks), _from_minimum(maps, 200))
    if curve is None:
        return None
    fpr, pro = curve
    fpr, pro = fpr[fpr < FPR_LIMIT], pro[fpr < FPR_LIMIT]
    return _area(_stretched(fpr), pro)


def pro_anomalous_only(maps: Maps, masks: Masks) -> float | None:
    """The exact AUPRO@0.3, but of the anomalous images alone: false positives on good images cost nothing.

    `maps` [N, H, W], `masks` [N, H, W] boolean.
    """
    anomalous = masks.any(axis=(1, 2))
    return pixel_metrics(maps[anomalous], masks[anomalous])["aupro_30"] if anomalous.any() else None


def histogram_50(maps: Maps, masks: Masks, metric: str = "pixel_auroc") -> float | None:
    """One of the pixel metrics after the scores were sorted into 50 equal bins between their minimum and maximum.

    `maps` [N, H, W], `masks` [N, H, W] boolean, `metric` one of the names that `pixel_metrics` returns. None for
    constant maps. Source: the binned evaluation of ADer, as it is described; exact within the bins.
    """
    low, high = float(maps.min()), float(maps.max())
    if low == high:
        return None
    bins = np.clip(np.floor((maps.astype(np.float64) - low) / (high - low) * 50), 0, 49)
    return pixel_metrics(bins.astype(np.float32), masks)[metric]


def f1_max_21_thresholds(maps: Maps, masks: Masks) -> float | None:
    """The largest F1 at the thresholds 0, 0.05, ..., 1 of scores stretched to [0, 1] over the test set.

    `maps` [N, H, W], `masks` [N, H, W] boolean. None for constant maps or a missing class. Source: ADer's evaluation.
    """
    if masks.all() or not masks.any() or maps.min() == maps.max():
        return None
    stretched = _stretched(maps)
    thresholds = np.arange(0.0, 1.0 + 1e-3, 0.05)
    true = _above(np.sort(stretched[masks]), thresholds)
    false = _above(np.sort(stretched[~masks]), thresholds)
    return float((2 * true / (masks.sum() + true + false)).max())


def mkd_pixel_auroc(maps: Maps, soft_masks: NDArray[Any]) -> float | None:
    """MKD's localisation AUROC: maps stretched to [0, 1] per image, 1000 thresholds 0, 0.001, ..., a morphological
    opening of each binary map, and masks whose fractional values weigh true and false positives.

    `maps` [N, H, W]; `soft_masks` [N, H, W] in [0, 1] (a boolean mask is one without fractions). A flat opening
    commutes with thresholding, so the grey opening of the map is thresholded instead. None for a missing class.
    Source: MKD's official test code; there the stretch comes before the blur, inside the saliency.
    """
    from scipy import ndimage

    weights = soft_masks.astype(np.float64)
    positive, negative = weights.sum(), (1 - weights).sum()
    if positive == 0 or negative == 0:
        return None
    opened = np.stack([ndimage.grey_opening(_stretched(one, np.zeros(one.shape)), footprint=_CROSS) for one in maps])
    order = np.argsort(opened, axis=None)
    scores = opened.reshape(-1)[order]
    first = np.searchsorted(scores, 0.001 * np.arange(1000))  # called: all from here on
    true = np.concatenate([[0], np.cumsum(weights.reshape(-1)[order][::-1])])[scores.size - first]
    false = (scores.size - first) - true
    return _area((false / negative)[::-1], (true / positive)[::-1])


def _histogram(metric: str) -> Callable[[Maps, Masks], float | None]:
    return lambda maps, masks: histogram_50(maps, masks, metric)


COMPAT: dict[str, Variant] = {
    "stfpm_rescaled_pro": Variant(
        stfpm_rescaled_pro, "aupro_30", "4000 thresholds, both axes stretched to [0, 1]", "STFPM, official code"
    ),
    "rd4ad_per_image_pro": Variant(
        rd4ad_per_image_pro, "aupro_30", "each anomalous image by itself, 200 thresholds", "RD4AD, official code"
    ),
    "pro_200_thresholds": Variant(
        pro_200_thresholds, "aupro_30", "200 thresholds, FPR axis stretched to [0, 1]", "CFLOW-AD, ADer and others"
    ),
    "pro_anomalous_only": Variant(pro_anomalous_only, "aupro_30", "exact, without the good images", "several codes"),
    "histogram_50_aupro": Variant(_histogram("aupro_30"), "aupro_30", "scores in 50 bins", "ADer, as described"),
    "histogram_50_auroc": Variant(_histogram("pixel_auroc"), "pixel_auroc", "scores in 50 bins", "ADer, as described"),
    "mkd_pixel_auroc": Variant(
        mkd_pixel_auroc,
        "pixel_auroc",
        "stretched per image, opened, 1000 thresholds, fractional masks",
        "MKD, official code",
    ),
    "histogram_50_ap": Variant(_histogram("pixel_ap"), "pixel_ap", "scores in 50 bins", "ADer, as described"),
    "f1_max_21_thresholds": Variant(f1_max_21_thresholds, "pixel_f1_max", "21 thresholds", "ADer"),
}


def compat_metrics(maps: Maps, masks: Masks) -> dict[str, float | None]:
    """All variants of `COMPAT` by name, for `maps` [N, H, W] floats and `masks` [N, H, W] boolean.

    Raises MetricError for a value that is not finite.
    """
    if not np.isfinite(maps).all():
        raise MetricError("a map holds a value that is not finite, so no metric is computed")
    return {name: variant.compute(maps, masks) for name, variant in COMPAT.items()}


def _pro_curve(
    maps: Maps, index: RegionIndex, thresholds: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """(FPR, mean covered fraction of the regions) of `maps > threshold` at each threshold; None for a missing class."""
    flat = maps.reshape(-1)
    if index.count == 0 or index.positions.size == flat.size:
        return None
    normal = np.ones(flat.size, bool)
    normal[index.positions] = False
    order = np.argsort(flat[index.positions])
    scores = flat[index.positions][order]
    mass = np.concatenate([(1 / index.sizes)[index.regions[order]][::-1].cumsum()[::-1], [0.0]]) / index.count
    pro = mass[np.searchsorted(scores, thresholds, side="right")]
    negatives = np.sort(flat[normal])
    return _above(negatives, thresholds) / negatives.size, pro


def _above(ascending: Maps, thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    return ascending.size - np.searchsorted(ascending, thresholds, side="right")


def _from_maximum(maps: Maps, steps: int) -> NDArray[np.float64]:
    low, high = float(maps.min()), float(maps.max())
    return np.asarray(high - np.arange(steps) * ((high - low) / steps))


def _from_minimum(maps: Maps, steps: int) -> NDArray[np.float64]:
    low, high = float(maps.min()), float(maps.max())
    return np.asarray(low + np.arange(steps) * ((high - low) / steps))


def _stretched(values: NDArray[Any], flat: NDArray[Any] | None = None) -> NDArray[Any]:
    """Values moved and scaled to [0, 1]; for constant values `flat`, or nothing at all."""
    if values.size == 0 or values.min() == values.max():
        return flat if flat is not None else values[:0]
    wide = values.astype(np.float64)
    scaled: NDArray[Any] = (wide - wide.min()) / (wide.max() - wide.min())
    return scaled


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Trapezoids below y(x), x ascending or descending; None without a curve."""
    if x.size < 2 or y.size != x.size:
        return None
    return float(abs(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)))
