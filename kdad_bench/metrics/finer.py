"""Pixel metrics beside the protocol's five: by the size of a defect, at low false-positive rates, at one threshold.

Each needs at most one more pass over the maps, and is exact: every distinct score is a threshold, equal scores move
together as a straight segment of the curve. They run on the CPU; maps on a GPU are copied.

- AP by size: the regions of a test set in thirds by area; the pixels of the others count neither way.
- AUPIMO: Bertoldo, Hueso, Ilin, Aslan, BMVC 2024. False-positive rate on normal images alone, on a logarithmic axis.
- AU-sPRO: Bergmann, Batzner, Fauser, Sattlegger, Steger, IJCV 2022. A region counts as found at its saturation.
- SegF1: Heckler-Kram, Neudeck, Scheler, König, Steger, 2025 (MVTec AD 2). F1 at a threshold from normal images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdad_bench.kernels.counting import Counter, keys
from kdad_bench.metrics.curves import PIXEL_METRICS, Values, ramp_areas
from kdad_bench.metrics.exact import (
    Counted,
    counted,
    floating,
    index_of,
    numpy_of,
    on_device,
    pixel_metrics,
    threads_for,
)
from kdad_bench.metrics.regions import RegionIndex

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = NDArray[Any] | Tensor

Numbers = NDArray[np.float64]

SIZES = ("pixel_ap_small", "pixel_ap_middle", "pixel_ap_large")
FINER = (*SIZES, "aupimo", "au_spro_05", "seg_f1")
PIMO_LIMITS = (1e-5, 1e-4)  # false-positive rates between which AUPIMO integrates
SPRO_LIMIT = 0.05
BLOCK = 64  # values whose maximum is taken together
DEVIATIONS = 3.0  # standard deviations above the mean of normal pixels: the baseline threshold of MVTec AD 2


class Saturated(NamedTuple):
    """The annotated regions of a test set with the share of each that counts as all of it."""

    masks: NDArray[np.bool_]  # [M, H, W]; they may overlap
    images: NDArray[np.int64]  # [M], the image of each
    shares: Numbers  # [M] in (0, 1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finer:
    """What the finer metrics need to know of a test set besides its masks."""

    normal: NDArray[np.bool_]  # [N] whether an image is a normal one
    kinds: Sequence[str] = ()  # [N] names of defects, where there are regions
    regions: Saturated | None = None  # None: the data set has no saturation
    threshold: float | None = None  # of `threshold_of`; None: there are no normal maps


def every_pixel_metric(
    maps: Array, index: RegionIndex, about: Finer, *, names: Sequence[str] | None = None, method: str | None = None
) -> Values:
    """`exact.pixel_metrics` and FINER by name, for `maps` [N, H, W]; a metric that a data set has not is None.

    Raises MetricError for a NaN or infinite pixel and for maps of another shape than the index.
    """
    index_of(maps, None, index, method)
    host = numpy_of(maps)
    with ThreadPoolExecutor(1) as beside:  # the sort of the one pass takes one core, and so do the others
        others = beside.submit(_others, host, index, about)
        found = counted(host, index, names=names, method=method)
        if found is None:
            return dict.fromkeys((*PIXEL_METRICS, *FINER))
        sizes = beside.submit(ap_by_size, found, index)
        if on_device(maps):
            values = pixel_metrics(maps, None, region_index=index, names=names, method=method)
        else:
            values = found.values(index)
        return {**values, **sizes.result(), **others.result()}


def _others(maps: NDArray[Any], index: RegionIndex, about: Finer) -> Values:
    return {
        "aupimo": aupimo(maps, index, about.normal),
        "au_spro_05": au_spro(maps, index, about.regions, about.kinds, about.normal) if about.regions else None,
        "seg_f1": seg_f1(maps, index, about.threshold) if about.threshold is not None else None,
    }


def ap_by_size(pass_over: Counted, index: RegionIndex) -> Values:
    """Pixel average precision over the pixels of small, middle and large regions, each against all normal pixels.

    Thirds of the regions by area; regions of equal area share the smaller third. A third that is empty has no value.
    `pass_over` is that of the same maps (`exact.counted`), so that no further pass is needed.
    """
    own = thirds(index.sizes).astype(np.uint8)[pass_over.ranked.regions]
    false = pass_over.negatives_above()
    found: Values = {}
    for place, name in enumerate(SIZES):
        below = np.append(0, np.cumsum(own == place))[pass_over.ranked.ranks].astype(np.float64)
        called = below[-1] - below[:-1]
        precision = called / np.maximum(called + false, 1.0)  # where nothing is called, its number is 0 as well
        found[name] = float((np.diff(below) * precision).sum() / below[-1]) if below[-1] else None
    return found


def thirds(areas: NDArray[np.int64]) -> NDArray[np.int64]:
    """[R] 0, 1 or 2: the third of the regions that each belongs to by its area."""
    ordered, count = np.sort(areas), areas.size
    edges = [ordered[-(-count * part // 3) - 1] for part in (1, 2)] if count else []
    return np.searchsorted(np.array(edges, areas.dtype), areas, side="left").astype(np.int64)


def aupimo(
    maps: Array, index: RegionIndex, normal: ArrayLike, *, limits: tuple[float, float] = PIMO_LIMITS
) -> float | None:
    """The mean over anomalous images of their covered fraction, averaged over the logarithm of the false-positive rate
    between `limits`; the rate is that of all pixels of the `normal` images [N] of `maps` [N, H, W].

    None without an anomalous or a normal image, and where the normal images have too few pixels for a rate of
    `limits[1]` (10,000 for 1e-4).
    """
    lower, upper = limits
    values = floating(numpy_of(maps))
    good = values[np.asarray(normal, bool)]
    if index.positions.size == 0 or good.size * upper < 1:
        return None
    negatives = keys(np.ascontiguousarray(good).reshape(-1))
    most = min(int(upper * negatives.size) + 1, negatives.size)
    high_ones = np.sort(at_least_the_highest(negatives, most))
    top = high_ones[-most:]
    alike = int(np.count_nonzero(high_ones[:-most] == top[0]))  # further ones of the lowest that is kept
    scores = keys(np.ascontiguousarray(values).reshape(-1)[index.positions])
    high = np.flatnonzero(scores >= top[0])
    scores = scores[high]
    upto = np.searchsorted(top, scores, side="right")
    above = (most - upto).astype(np.float64)
    equal = upto - np.searchsorted(top, scores) + np.where(scores == top[0], alike, 0)
    shares = _log_shares(above / negatives.size, (above + equal) / negatives.size, lower, upper)
    pixels = np.bincount(index.images, weights=index.sizes)  # of the regions of each image
    weights = 1.0 / pixels[index.images[index.regions[high]]] / np.count_nonzero(pixels)
    return float((weights * shares).sum())


def at_least_the_highest(values: NDArray[Any], most: int) -> NDArray[Any]:
    """The `most` highest of `values` [n], all equal to the lowest of those, and perhaps a few more.

    Of blocks of BLOCK values as many as are wanted have a maximum of at least some bound: at least so many values reach
    it, and no lower one is among the highest. One pass and a few comparisons instead of a partition.
    """
    whole = values[: values.size - values.size % BLOCK].reshape(BLOCK, -1)  # a block is a column
    peaks = np.append(whole.max(axis=0), values[whole.size :])
    if most > peaks.size:
        return values
    high: NDArray[Any] = values[values >= np.partition(peaks, peaks.size - most)[peaks.size - most]]
    return high


def _log_shares(x0: Numbers, x1: Numbers, lower: float, upper: float) -> Numbers:
    """Of ramps that rise from 0 at x0 to 1 at x1: the mean over log(x) between the limits."""
    a, b = np.clip(x0, lower, upper), np.clip(x1, lower, upper)
    rise = np.where(x1 > x0, x1 - x0, 1.0)
    inside = np.where(x1 > x0, ((b - a) - x0 * np.log(b / a)) / rise, 0.0)
    shares: Numbers = (inside + np.log(upper / b)) / np.log(upper / lower)
    return shares


def au_spro(
    maps: Array,
    index: RegionIndex,
    regions: Saturated,
    kinds: Sequence[str],
    normal: ArrayLike,
    *,
    limit: float = SPRO_LIMIT,
    threads: int | None = None,
) -> float | None:
    """The area below (false-positive rate, mean saturated overlap of the regions) up to `limit`, divided by it: for
    each kind of anomaly on its images and the normal ones, then the mean over the kinds.

    `maps` [N, H, W]; `kinds` [N] names of defects; `normal` [N]. A region of area A and share s counts as found in the
    part min(k, s A) / (s A), where k of its pixels are above the threshold. A region that the resizing took is left
    out. None without a region or without a normal pixel.
    """
    values = np.ascontiguousarray(floating(numpy_of(maps)))
    good = np.asarray(normal, bool)
    groups = np.where(good, -1, np.unique(np.asarray(kinds), return_inverse=True)[1])
    scores, weights, owners = _weighed(values, regions)
    if not scores.size:
        return None
    distinct, at = np.unique(scores, return_inverse=True)
    counts = _negatives(values, index, groups, distinct, threads_for(threads))
    nothing = np.zeros(2 * distinct.size + 1, np.int64)
    kind = groups[regions.images[owners]]
    found = []
    for group in np.unique(kind):
        upto = np.cumsum(counts.get(-1, nothing) + (counts[group] if group != -1 else 0))
        if not upto[-1]:
            return None
        x0, x1 = (upto[-1] - upto[1::2]) / upto[-1], (upto[-1] - upto[:-1:2]) / upto[-1]
        own = kind == group
        areas = ramp_areas(x0[at[own]], x1[at[own]], limit)
        found.append((weights[own] * areas).sum() / (np.unique(owners[own]).size * limit))
    return float(np.mean(found))


def _weighed(values: NDArray[Any], regions: Saturated) -> tuple[NDArray[Any], Numbers, NDArray[np.int64]]:
    """(key of the score, part of its region, number of its region) of each pixel that a region needs to be found.

    They are the highest of each region: the k-th weighs (min(k, s A) - min(k - 1, s A)) / (s A).
    """
    scores, weights, owners = [keys(values[:0].reshape(-1))], [np.zeros(0)], [np.zeros(0, np.int64)]
    for number, (mask, image, share) in enumerate(zip(*regions, strict=True)):
        own = np.sort(keys(values[image][mask]))[::-1]
        if not own.size:
            continue
        enough = share * own.size
        needed = min(int(np.ceil(enough)), own.size)
        scores.append(own[:needed])
        weights.append(np.diff(np.minimum(np.arange(needed + 1), enough)) / enough)
        owners.append(np.full(needed, number))
    return np.concatenate(scores), np.concatenate(weights), np.concatenate(owners)


def _negatives(
    values: NDArray[Any], index: RegionIndex, groups: NDArray[np.int64], distinct: NDArray[Any], threads: int
) -> dict[int, NDArray[np.int64]]:
    """The counts (`Counter`) of the unmarked pixels of each group of images."""
    counter = Counter(distinct)
    side = values.shape[1] * values.shape[2]
    edges = [0, *(np.flatnonzero(np.diff(groups)) + 1), len(groups)]
    counts: dict[int, NDArray[np.int64]] = {}
    for begin, end in pairwise(edges):  # images of one group lie side by side
        first, last = np.searchsorted(index.positions, [begin * side, end * side])
        marked = values.reshape(-1)[index.positions[first:last]]
        some = counter(values[begin:end].reshape(-1), threads)
        if marked.size:
            some = some - counter(marked, 1)
        group = int(groups[begin])
        counts[group] = counts[group] + some if group in counts else some
    return counts


def threshold_of(maps: Array) -> float | None:
    """The mean plus DEVIATIONS standard deviations of all pixels of the maps [N, H, W] of normal images.

    None without an image.
    """
    values = numpy_of(maps)
    if not values.size:
        return None
    mean = float(np.mean([one.mean(dtype=np.float64) for one in values]))
    variance = float(np.mean([np.square(one - np.float64(mean)).mean() for one in values]))
    return mean + DEVIATIONS * math.sqrt(variance)


def seg_f1(maps: Array, index: RegionIndex, threshold: float) -> float | None:
    """F1 over all pixels of `maps` [N, H, W], of which those above `threshold` are called defective; None without one
    that is.
    """
    if index.positions.size == 0:
        return None
    values = floating(numpy_of(maps))
    with np.errstate(over="ignore"):
        limit = values.dtype.type(threshold)
    if float(limit) > threshold:  # the largest score that is not above it
        limit = np.nextafter(limit, values.dtype.type(-np.inf))
    called = int(np.count_nonzero(values > limit))
    true = int(np.count_nonzero(np.ascontiguousarray(values).reshape(-1)[index.positions] > limit))
    return 2 * true / (index.positions.size + called)
