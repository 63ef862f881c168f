"""Pixel metrics beside the protocol's five: by the size of a defect, at low false-positive rates, at one threshold.

Each needs at most one more pass over the maps, and is exact: every distinct score is a threshold, equal scores move
together as a straight segment of the curve. What is here runs on the CPU; `every_pixel_metric` looks at maps on a GPU
there (finer_device.py).

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
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdad_bench.kernels.counting import keys
from kdad_bench.metrics.curves import (
    FINER,
    NORMAL,
    PIMO_LIMITS,
    PIXEL_METRICS,
    SIZES,
    SPRO_LIMIT,
    UNMARKED,
    MetricError,
    Values,
    at_most_one,
    largest_not_above,
    log_shares,
    ramp_areas,
    thirds,
)
from kdad_bench.metrics.exact import (
    Counted,
    checked,
    counted,
    floating,
    index_of,
    numpy_of,
    on_device,
)
from kdad_bench.metrics.pieces import Sizes, pieces, values_at
from kdad_bench.metrics.regions import RegionIndex, Saturated

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = NDArray[Any] | Tensor

Numbers = NDArray[np.float64]

DEVIATIONS = 3.0  # standard deviations above the mean of normal pixels: the baseline threshold of MVTec AD 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Finer:
    """What the finer metrics need to know of a test set besides its masks."""

    normal: NDArray[np.bool_]  # [N] whether an image is a normal one
    kinds: Sequence[str] = ()  # [N] names of defects, where there are regions
    regions: Saturated | None = None  # None: the data set has no saturation
    threshold: float | None = None  # of `threshold_of`; None: there are no normal maps
    sizes: Sizes | None = None  # (height, width) of the picture in each map; None: they fill them


def every_pixel_metric(
    maps: Array, index: RegionIndex, about: Finer, *, names: Sequence[str] | None = None, method: str | None = None
) -> Values:
    """`exact.pixel_metrics` and FINER by name, for `maps` [N, H, W]; a metric that a data set has not is None.

    Maps on a GPU are evaluated there, unless they have `sizes`.

    Raises MetricError for a NaN or infinite pixel and for maps of another shape than the index.
    """
    index_of(maps, None, index, method)
    groups = groups_of(about.normal, about.kinds if about.regions else ())
    if on_device(maps) and about.sizes is None:
        from kdad_bench.metrics.finer_device import every_pixel_metric_on_device

        return every_pixel_metric_on_device(
            maps, index, groups, regions=about.regions, threshold=about.threshold, names=names, method=method
        )
    host = numpy_of(maps)
    with ThreadPoolExecutor(2) as beside:  # the sort of the one pass takes one core, and so does each of the others
        f1 = beside.submit(_seg_f1_of, host, index, about)
        found = counted(host, index, groups=groups, sizes=about.sizes, names=names, method=method)
        if found is None:
            return dict.fromkeys((*PIXEL_METRICS, *FINER))
        by_size = beside.submit(ap_by_size, found, index)
        others = beside.submit(_others, host, found, index, about.regions, groups)
        return {**found.values(index), **by_size.result(), **others.result(), "seg_f1": f1.result()}


def _seg_f1_of(maps: NDArray[Any], index: RegionIndex, about: Finer) -> float | None:
    return None if about.threshold is None else seg_f1(maps, index, about.threshold, sizes=about.sizes)


def _others(
    maps: NDArray[Any], found: Counted, index: RegionIndex, regions: Saturated | None, groups: NDArray[np.int64]
) -> Values:
    """What follows from the one pass besides the protocol's metrics and those by size."""
    return {
        "aupimo": _aupimo(found, index),
        "au_spro_05": _au_spro(maps, found, index, regions, groups) if regions else None,
    }


def groups_of(normal: ArrayLike, kinds: Sequence[str] = ()) -> NDArray[np.int64]:
    """[N] the group of each image: NORMAL, or from 0 the number of its kind of defect (all one without `kinds`)."""
    good = np.asarray(normal, bool)
    numbers = np.unique(np.asarray(kinds), return_inverse=True)[1] if len(kinds) else np.zeros(good.size, np.int64)
    return np.where(good, NORMAL, numbers).astype(np.int64)


def ap_by_size(pass_over: Counted, index: RegionIndex) -> Values:
    """Pixel average precision over the pixels of small, middle and large regions, each against all normal pixels.

    Thirds of the regions by area; regions of equal area share the smaller third. A third that is empty has no value.
    `pass_over` is that of the same maps (`exact.counted`), so that no further pass is needed.
    """
    own = thirds(index.sizes).astype(np.uint8)[regions_of(pass_over)]
    false = pass_over.negatives_above()
    found: Values = {}
    for place, name in enumerate(SIZES):
        below = np.append(0, np.cumsum(own == place))[pass_over.ranked.ranks].astype(np.float64)
        called = below[-1] - below[:-1]
        precision = called / np.maximum(called + false, 1.0)  # where nothing is called, its number is 0 as well
        found[name] = float((np.diff(below) * precision).sum() / below[-1]) if below[-1] else None
    return found


def regions_of(pass_over: Counted) -> NDArray[Any]:
    """[P] the region of each positive, in the order of the pass."""
    assert pass_over.ranked.regions is not None  # `counted` gives them
    return pass_over.ranked.regions


def aupimo(
    maps: Array, index: RegionIndex, normal: ArrayLike, *, limits: tuple[float, float] = PIMO_LIMITS
) -> float | None:
    """The mean over anomalous images of their covered fraction, averaged over the logarithm of the false-positive rate
    between `limits`; the rate is that of all pixels of the `normal` images [N] of `maps` [N, H, W].

    None without an anomalous or a normal image, and where the normal images have too few pixels for a rate of
    `limits[1]` (10,000 for 1e-4).
    """
    found = counted(maps, index, groups=groups_of(normal))
    return None if found is None else _aupimo(found, index, limits=limits)


def _aupimo(pass_over: Counted, index: RegionIndex, *, limits: tuple[float, float] = PIMO_LIMITS) -> float | None:
    """AUPIMO from a pass over the maps that counted the normal images apart."""
    if NORMAL not in pass_over.groups:
        return None
    counts = pass_over.groups[NORMAL]
    lower, upper = limits
    upto = np.cumsum(counts)
    pixels = int(upto[-1])
    if pixels * upper < 1:
        return None
    above = pixels - upto[1::2]  # normal pixels that are higher than each distinct score of the positives, ascending
    first = int(np.searchsorted(-above, -upper * pixels))  # those below have more above them than the rates go to
    equal = counts[1::2][first:]
    shares = log_shares(above[first:] / pixels, (above[first:] + equal) / pixels, lower, upper)
    images = index.images[index.regions]
    weights = np.zeros(index.shape[0])
    areas = np.bincount(images, minlength=index.shape[0])
    anomalous = np.flatnonzero(areas)
    weights[anomalous] = 1.0 / areas[anomalous] / anomalous.size
    ranks = pass_over.ranked.ranks
    mine = weights[index.images[regions_of(pass_over)[ranks[first] :]]]
    if not mine.size:
        return 0.0
    return at_most_one(float((np.add.reduceat(mine, ranks[first:-1] - ranks[first]) * shares).sum()))


def au_spro(
    maps: Array,
    index: RegionIndex,
    regions: Saturated,
    kinds: Sequence[str],
    normal: ArrayLike,
    *,
    limit: float = SPRO_LIMIT,
    sizes: Sizes | None = None,
    threads: int | None = None,
) -> float | None:
    """The area below (false-positive rate, mean saturated overlap of the regions) up to `limit`, divided by it: for
    each kind of anomaly on its images and the normal ones, then the mean over the kinds.

    `maps` [N, H, W]; `kinds` [N] names of defects; `normal` [N]. A region of area A and share s counts as found in the
    part min(k, s A) / (s A), where k of its pixels are above the threshold. A region that the resizing took is left
    out. None without a region or without a normal pixel.
    """
    groups = groups_of(normal, kinds)
    found = counted(maps, index, groups=groups, sizes=sizes, threads=threads)
    return None if found is None else _au_spro(numpy_of(maps), found, index, regions, groups, limit=limit)


def _au_spro(
    maps: NDArray[Any],
    pass_over: Counted,
    index: RegionIndex,
    regions: Saturated,
    groups: NDArray[np.int64],
    *,
    limit: float = SPRO_LIMIT,
) -> float | None:
    """AU-sPRO from a pass over the maps that counted the normal images and each kind apart."""
    scores, weights, owners = _weighed(floating(maps), regions)
    if not scores.size:
        return None
    at = np.searchsorted(pass_over.ranked.keys, scores)
    if not np.array_equal(pass_over.ranked.keys[np.minimum(at, pass_over.ranked.keys.size - 1)], scores):
        raise MetricError(UNMARKED)
    kind = groups[regions.images[owners]]
    marked = groups[index.images[regions_of(pass_over)]]
    normal = _unmarked(pass_over, marked, NORMAL)
    found = []
    for group in np.unique(kind).tolist():
        upto = normal if group == NORMAL else normal + _unmarked(pass_over, marked, group)
        if not upto[-1]:
            return None
        x0, x1 = (upto[-1] - upto[1::2]) / upto[-1], (upto[-1] - upto[:-1:2]) / upto[-1]
        own = kind == group
        areas = ramp_areas(x0[at[own]], x1[at[own]], limit)
        found.append((weights[own] * areas).sum() / (np.unique(owners[own]).size * limit))
    return at_most_one(float(np.mean(found)))


def _unmarked(pass_over: Counted, marked: NDArray[np.int64], group: int) -> NDArray[np.int64]:
    """[2 M + 1] cumulated counts of the pixels of a group of images that no mask marks; `marked` [P] are the groups of
    the positives in the order of the pass."""
    counts = pass_over.groups.get(group)
    if counts is None:
        return np.zeros(pass_over.counts.size, np.int64)
    own = marked == group
    if own.any():
        counts = counts.copy()
        counts[1::2] -= np.add.reduceat(own.astype(np.int64), pass_over.ranked.ranks[:-1])
    return np.cumsum(counts)


def _weighed(values: NDArray[Any], regions: Saturated) -> tuple[NDArray[Any], Numbers, NDArray[np.int64]]:
    """(key of the score, part of its region, number of its region) of each pixel that a region needs to be found.

    They are the highest of each region: the k-th weighs (min(k, s A) - min(k - 1, s A)) / (s A).
    """
    regions.check()
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


@dataclass(slots=True)
class Moments:
    """Number, mean and sum of squared deviations of values that come in pieces, in float64 whatever they are.

    Source: Chan, Golub, LeVeque, The American Statistician 1983.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Take in more values."""
        mean = float(values.mean(dtype=np.float64))
        self.join(values.size, mean, float(np.square(np.subtract(values, mean, dtype=np.float64)).sum()))

    def join(self, size: int, mean: float, squares: float) -> None:
        """Take in `size` more values with that mean and sum of squared deviations from it."""
        count, shift = self.count + size, mean - self.mean
        self.squares += squares
        self.squares += shift * shift * self.count * size / count
        self.mean += shift * size / count
        self.count = count

    @property
    def threshold(self) -> float:
        """Mean plus DEVIATIONS standard deviations."""
        return self.mean + DEVIATIONS * math.sqrt(self.squares / self.count)


def threshold_of(maps: Array, sizes: Sizes | None = None) -> float | None:
    """The mean plus DEVIATIONS standard deviations of all pixels of the maps [N, H, W] of normal images.

    None without an image, NaN where a pixel is not finite. `sizes` [N, 2] as of `exact.pixel_metrics`. Maps on a GPU
    are added up there, unless they have sizes.
    """
    if on_device(maps) and sizes is None:
        return _threshold_on_device(maps)
    values = numpy_of(maps)
    if not values.size:
        return None
    sizes = None if sizes is None else checked(sizes, values.shape)
    moments = Moments()
    with np.errstate(invalid="ignore"):
        for number, one in enumerate(values):
            moments.add(one if sizes is None else one[: sizes[number, 0], : sizes[number, 1]])
    return moments.threshold


def _threshold_on_device(maps: Tensor) -> float | None:
    moments = Moments()
    for one in maps.detach():
        wide = one.double()
        mean = wide.mean()
        moments.join(wide.numel(), float(mean), float((wide - mean).square().sum()))
    return moments.threshold if moments.count else None


def seg_f1(maps: Array, index: RegionIndex, threshold: float, *, sizes: Sizes | None = None) -> float | None:
    """F1 over all pixels of `maps` [N, H, W], of which those above `threshold` are called defective; None without one
    that is. Raises MetricError for a threshold that is no number.
    """
    values = floating(numpy_of(maps))
    limit = largest_not_above(threshold, values.dtype.type)
    if index.positions.size == 0:
        return None
    sizes = None if sizes is None else checked(sizes, values.shape)
    called = sum(int(np.count_nonzero(piece > limit)) for piece in pieces(values, np.arange(len(values)), sizes))
    true = int(np.count_nonzero(values_at(values, index.positions) > limit))
    return 2 * true / (index.positions.size + called)
