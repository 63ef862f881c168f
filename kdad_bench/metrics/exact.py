"""Exact image and pixel metrics from counts at the scores of the positives; arrays in, floats out.

Only the scores of positive pixels tell where a curve moves. They alone are sorted, with their regions; of all pixels it
is only counted how many lie below and at each of their distinct scores (counting.py), in pieces and by threads. With P
positives, N negatives, R regions and, for the j-th distinct positive score u_j, c_j positives equal to it, W_j the sum
of 1/|region| over those, TP_j and FP_j the positives and negatives >= u_j and E_j the negatives equal to u_j:

    AUROC = sum_j c_j (N - FP_j + E_j / 2) / (P N)
    AP    = sum_j (c_j / P) TP_j / (TP_j + FP_j)
    F1max = max_j 2 TP_j / (P + TP_j + FP_j)
    AUPRO = 1 / (R L) sum_j W_j area_j(L), where area_j(L) is the area below a ramp that rises from 0 at
            x0 = (FP_j - E_j) / N to 1 at x1 = FP_j / N, cut at the limit L.

Pixels with equal score move together, as a straight segment of the curve, which is scikit-learn's rule.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdad_bench.allowance import cores
from kdad_bench.files import let_go
from kdad_bench.kernels.counting import Counter, NotFinite, add_up, keys, sort_words
from kdad_bench.metrics.alarms import PRESORTED, presorted
from kdad_bench.metrics.curves import (
    AUPRO_LIMITS,
    IMAGE_METRICS,
    PIXEL_METRICS,
    MetricError,
    Values,
    image_name,
    not_finite,
    partial_sums,
    ratios,
    who,
    would_be_rounded,
)
from kdad_bench.metrics.pieces import Sizes, pieces, values_at
from kdad_bench.metrics.regions import RegionIndex
from kdad_bench.metrics.regions import marked as has_a_pixel
from kdad_bench.metrics.regions import region_index as regions_of

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = NDArray[Any] | Tensor

_BLOCK = 1 << 15  # distinct scores handled at a time, so that temporaries stay in a core's cache
_MOST_THREADS = 8  # unless more are asked for
_LIMIT = 64  # of those


def image_metrics(
    scores: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    *,
    names: Sequence[str] | None = None,
    method: str | None = None,
) -> Values:
    """AUROC, average precision, best F1, PG2 and PB2 over images.

    `scores` [N] floats, higher is more anomalous; `labels` [N], true or 1 for an anomalous image. Values lie in [0, 1].
    All are None when one of the two classes is absent: a ranking of one class says nothing.

    Raises MetricError for a NaN or infinite score (naming `method` and the image), for labels other than false, true, 0
    and 1, and for shapes that do not match.
    """
    values = floating(numpy_of(scores)).reshape(-1)
    positive = _boolean(labels, method)
    if values.shape != positive.shape:
        raise MetricError(
            f"{who(method)}{values.size} image scores for {positive.size} labels; give one score per image"
        )
    _check_scores(values, names, method)
    positives = int(positive.sum())
    if positives == 0 or positives == positive.size:
        return dict.fromkeys((*IMAGE_METRICS, *PRESORTED))
    ranked = _Ranked.of(keys(values[positive]))
    counter = Counter(ranked.keys)
    found = _sums(counter, ranked, counter(values, 1), ())
    curves = zip(IMAGE_METRICS, ratios(found, positives, values.size - positives, 0, ()), strict=True)
    return {**dict(curves), **presorted(values, positive)}


def pixel_metrics(
    maps: ArrayLike | Tensor,
    masks: ArrayLike | Tensor | None,
    *,
    region_index: RegionIndex | None = None,
    sizes: Sizes | None = None,
    threads: int | None = None,
    names: Sequence[str] | None = None,
    method: str | None = None,
) -> Values:
    """AUROC, average precision, best F1, AUPRO@0.3 and AUPRO@0.05 over all pixels of all test images, exact.

    `maps` [N, H, W] floats, higher is more anomalous; a tensor on a GPU is evaluated there. `masks` [N, H, W], true
    where defective, good images included (all false); or None for a data set without masks. `region_index` spares
    the search for connected regions: build it once with `metrics.region_index(masks, file)`. `sizes` [N, 2], where
    pictures fill their maps in part: (height, width) of each from the upper left corner; no value beyond is looked at.
    `threads` is for maps on the CPU, at most 64; None takes the CPUs this process may use, at most 8. The result does
    not depend on it.

    The maps are looked at a piece of at most 128 MB at a time, so that a mapped file need not fit into memory. Extra
    memory: some 100 bytes per positive pixel and thread, whatever the number of pixels (without the compiled counting
    also 32 MB per thread); maps of another type are first copied.

    Returns floats in [0, 1]. All are None without masks, without any positive pixel and without any negative pixel.
    Raises MetricError for a NaN or infinite pixel (naming `method` and the image), for shapes that do not match, for
    maps of truth values, for masks of other values than `region_index` takes, and for a mask that marks a pixel beyond
    its picture.

    Source: Bergmann et al., IJCV 2021, section 5 (PRO; 8-connected regions, one sweep over the whole test set).
    """
    if masks is None and region_index is None:
        return dict.fromkeys(PIXEL_METRICS)
    index = index_of(maps, masks, region_index, method)
    if on_device(maps) and sizes is None:
        from kdad_bench.metrics.device import pixel_metrics_on_device

        return pixel_metrics_on_device(maps, index, names=names, method=method)
    found = counted(maps, index, sizes=sizes, threads=threads, names=names, method=method)
    return dict.fromkeys(PIXEL_METRICS) if found is None else found.values(index)


def index_of(
    maps: ArrayLike | Tensor, masks: ArrayLike | Tensor | None, index: RegionIndex | None, method: str | None = None
) -> RegionIndex:
    """`index`, or that of the `masks`; raises MetricError unless maps, masks and index have one shape [N, H, W], for
    maps of truth values and for masks that say not what is defective."""
    shape = tuple(np.shape(maps))
    if str(getattr(maps, "dtype", None) or np.asarray(maps).dtype) in ("bool", "torch.bool"):
        raise MetricError(f"{who(method)}maps of truth values, which rank nothing; are maps and masks swapped?")
    if len(shape) != 3:
        raise MetricError(f"{who(method)}maps of shape {shape}; they must be [N, H, W]")
    if masks is not None and tuple(np.shape(masks)) != shape:
        raise MetricError(f"{who(method)}maps of shape {shape} for masks of shape {tuple(np.shape(masks))}")
    found = index if index is not None else regions_of(numpy_of(masks))
    if found.shape != shape:
        raise MetricError(f"{who(method)}maps of shape {shape} for a region index of shape {found.shape}")
    return found


def counted(
    maps: ArrayLike | Tensor,
    index: RegionIndex,
    *,
    groups: NDArray[np.int64] | None = None,
    sizes: Sizes | None = None,
    threads: int | None = None,
    names: Sequence[str] | None = None,
    method: str | None = None,
) -> Counted | None:
    """The one pass over the maps from which the pixel metrics follow; None where one of the two classes is absent.

    Each of the `groups` [N] of images is also counted by itself. Raises MetricError for a NaN or infinite pixel, for
    sizes beyond the maps, and for a mask that marks a pixel beyond its picture.
    """
    values = floating(numpy_of(maps))
    if sizes is not None:
        sizes = checked(sizes, index.shape, method)
        _check_positions(index, sizes, names, method)
    kinds = np.zeros(len(values), np.int64) if groups is None else groups
    pixels = values.size if sizes is None else int(np.prod(sizes, axis=1).sum())
    if index.positions.size in (0, pixels):
        _check_finite(values, sizes, names, method)
        return None
    ranked = _Ranked.of(keys(values_at(values, index.positions)), index)
    counter = Counter(ranked.keys)
    found = {kind: np.zeros(2 * ranked.keys.size + 1, np.int64) for kind in np.unique(kinds).tolist()}
    try:
        for kind, counts in found.items():
            for piece in pieces(values, np.flatnonzero(kinds == kind), sizes):
                counts += counter(piece, threads_for(threads))
    except NotFinite:
        _check_finite(values, sizes, names, method)
        raise
    return Counted(ranked, counter, functools.reduce(np.add, found.values()), found)


def threads_for(threads: int | None) -> int:
    """How many threads count: as many as asked for, at most 64, else the CPUs this process may use, at most 8."""
    return max(1, min(threads, _LIMIT) if threads is not None else min(cores(), _MOST_THREADS))


def mask_conflicts(
    masks: ArrayLike | None, labels: ArrayLike, *, names: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Images whose mask and label disagree: (good by label but with mask pixels, anomalous but with an empty mask).

    `masks` [N, H, W] or None, `labels` [N]. The first kind is a fault of the data set. The second happens when a thin
    defect vanishes as its mask is resized: such an image counts as anomalous in the image metrics, its pixels count
    as normal and it has no region. Without masks both lists are empty and all pixel metrics are None.
    """
    if masks is None:
        return [], []
    marked = has_a_pixel(np.asarray(masks))
    anomalous = _boolean(labels)
    if marked.shape != anomalous.shape:
        raise MetricError(f"{marked.size} masks for {anomalous.size} labels; give one mask per image")
    return (
        [image_name(names, int(i)) for i in np.flatnonzero(marked & ~anomalous)],
        [image_name(names, int(i)) for i in np.flatnonzero(~marked & anomalous)],
    )


@dataclass(frozen=True, slots=True)
class _Ranked:
    """The distinct keys of the positives, ascending."""

    keys: NDArray[Any]  # u_j
    ranks: NDArray[np.int64]  # positives below u_j, and finally all of them: one longer than `keys`
    mass: NDArray[np.float64] | None  # W_j
    regions: NDArray[Any] | None = None  # [P] of each positive in this order

    @classmethod
    def of(cls, keys: NDArray[Any], index: RegionIndex | None = None) -> _Ranked:
        regions: NDArray[Any] | None = index.regions if index is not None else None
        if keys.dtype == np.int32 and regions is not None:
            # one word per pixel, key above region: bare words are sorted many times faster than by an argsort
            words = keys.astype(np.int64) << 32
            words |= regions
            sort_words(words)
            keys, regions = (words >> 32).astype(np.int32), words.astype(np.uint32)
        elif regions is not None:
            order = np.argsort(keys, kind="stable")
            keys, regions = keys[order], regions[order]
        else:
            keys = np.sort(keys)
        new = np.empty(keys.size, bool)
        new[:1] = True
        np.not_equal(keys[1:], keys[:-1], out=new[1:])
        starts = np.flatnonzero(new)
        ranks = np.append(starts, keys.size)
        if index is None:
            return cls(keys[starts], ranks, None)
        return cls(keys[starts], ranks, np.add.reduceat((1.0 / index.sizes)[regions], starts), regions)


@dataclass(frozen=True, slots=True)
class Counted:
    """Where the pixels of a test set lie among the distinct scores of its positives."""

    ranked: _Ranked
    counter: Counter
    counts: NDArray[np.int64]  # [2 M + 1] of all pixels: between the distinct keys, and at each
    groups: dict[int, NDArray[np.int64]]  # [2 M + 1] of the pixels of each group of images

    def negatives_above(self) -> NDArray[np.float64]:
        """[M] how many negatives are at least as high as each distinct score of the positives, ascending."""
        ranks, upto = self.ranked.ranks, np.cumsum(self.counts)
        return np.asarray(upto[-1] - upto[:-1:2] - (ranks[-1] - ranks[:-1]), np.float64)

    def values(self, index: RegionIndex) -> Values:
        """The protocol's pixel metrics by name."""
        positives, pixels = index.positions.size, int(self.counts.sum())
        limits = tuple(AUPRO_LIMITS.values())
        sums = _sums(self.counter, self.ranked, self.counts, limits)
        found = ratios(sums, positives, pixels - positives, index.count, limits)
        return dict(zip(PIXEL_METRICS, found, strict=True))


def _sums(
    counter: Counter, ranked: _Ranked, counts: NDArray[np.int64], limits: Sequence[float]
) -> list[tuple[float, ...]]:
    """The partial sums of the distinct positive scores, run by run."""
    if counter.compiled is not None:
        return [add_up(counter.compiled, counts, ranked.ranks, ranked.mass, limits)]
    upto = np.cumsum(counts)
    pixels, positives = int(upto[-1]), int(ranked.ranks[-1])
    found = []
    for start in range(0, ranked.keys.size, _BLOCK):
        end = min(start + _BLOCK, ranked.keys.size)
        ranks = ranked.ranks[start : end + 1]
        own = np.diff(ranks).astype(np.float64)
        true = positives - ranks[:-1].astype(np.float64)
        false = pixels - upto[2 * start : 2 * end : 2] - true
        equal = counts[2 * start + 1 : 2 * end : 2] - own
        mass = ranked.mass[start:end] if ranked.mass is not None else None
        found.append(partial_sums(own, true, false, equal, mass, (positives, pixels - positives), limits))
    return found


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def on_device(maps: Any) -> TypeGuard[Tensor]:
    """Whether the maps lie on a GPU."""
    return _is_tensor(maps) and maps.device.type != "cpu"


def numpy_of(value: Any) -> NDArray[Any]:
    """The values as a numpy array, without a copy where possible."""
    if _is_tensor(value):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.dtype.is_floating_point and value.dtype.itemsize < 4 else value)
    return np.asarray(value)


def _boolean(labels: Any, method: str | None = None) -> NDArray[np.bool_]:
    values = numpy_of(labels).reshape(-1)
    found = values.astype(bool)
    if values.dtype != bool and values.size and not (values == found).all():
        odd = values[np.flatnonzero(values != found)[0]]
        raise MetricError(f"{who(method)}label {str(odd)!r} is neither good (false, 0) nor anomalous (true, 1)")
    return found


def floating(values: NDArray[Any]) -> NDArray[Any]:
    """Values as float32 if that is exact, else as float64: no score is ever rounded."""
    if values.dtype in (np.float32, np.float64) and values.dtype.isnative:
        return values
    if values.dtype.kind in "fiub":
        for wider in (np.float32, np.float64):
            if np.can_cast(values.dtype, wider) and not (values.dtype.kind in "iu" and values.dtype.itemsize > 4):
                return values.astype(wider)
    raise MetricError(would_be_rounded(str(values.dtype)))


def checked(sizes: ArrayLike, shape: Sequence[int], method: str | None = None) -> Sizes:
    """`sizes` [N, 2] of pictures in maps of that `shape` [N, H, W]; raises MetricError where they do not lie within."""
    found = np.asarray(sizes)
    fit = found.shape == (shape[0], 2) and found.dtype.kind in "ui"
    if not fit or ((found < 1) | (found > np.array(shape[1:]))).any():
        raise MetricError(
            f"{who(method)}sizes of shape {found.shape} for maps of shape {tuple(shape)}; they must be whole numbers "
            f"[N, 2], from 1 x 1 to {shape[1]} x {shape[2]}"
        )
    return found


def _check_positions(index: RegionIndex, sizes: Sizes, names: Sequence[str] | None, method: str | None) -> None:
    image, row, column = np.unravel_index(index.positions, index.shape)
    beyond = np.flatnonzero((row >= sizes[image, 0]) | (column >= sizes[image, 1]))
    if beyond.size:
        one = beyond[0]
        height, width = sizes[image[one]]
        where = f"row {row[one]}, column {column[one]} of {image_name(names, int(image[one]))}"
        raise MetricError(f"{who(method)}a mask marks {where}, beyond its picture of {height} x {width}")


def check_finite(
    scores: ArrayLike | Tensor,
    maps: ArrayLike | Tensor,
    *,
    sizes: Sizes | None = None,
    names: Sequence[str] | None = None,
    method: str | None = None,
) -> None:
    """Raises MetricError for the first pixel of `maps` [N, H, W] that is NaN or infinite, else for the first such image
    score of `scores` [N], naming `method`, image and, of a pixel, row and column. `sizes` as of `pixel_metrics`."""
    _check_finite(floating(numpy_of(maps)), sizes, names, method)
    _check_scores(floating(numpy_of(scores)).reshape(-1), names, method)


def all_finite(values: ArrayLike | Tensor) -> bool:
    """Whether `values` hold neither a NaN nor an infinity."""
    return bool(np.isfinite(numpy_of(values)).all())


def _check_scores(values: NDArray[Any], names: Sequence[str] | None, method: str | None) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise MetricError(not_finite(method, image_name(names, int(bad[0])), values[bad[0]], "image score"))


def _check_finite(values: NDArray[Any], sizes: Sizes | None, names: Sequence[str] | None, method: str | None) -> None:
    for image, whole in enumerate(values):
        part = whole if sizes is None else whole[: sizes[image, 0], : sizes[image, 1]]
        finite = np.isfinite(part)
        if not finite.all():
            row, column = divmod(int(np.argmin(finite)), part.shape[1])
            where = f"anomaly map at row {row}, column {column}"
            raise MetricError(not_finite(method, image_name(names, image), part[row, column], where))
        let_go(whole)
