"""Exact image and pixel metrics from one key-only sort of the scores; arrays in, floats out.

Only the scores of positive pixels tell where a curve moves. They alone are sorted with their regions; all other
pixels are sorted as bare keys, in chunks, and counted by binary search of the positives' distinct scores. With P
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

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdad_bench.harness.regions import RegionIndex, region_index

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = NDArray[Any] | Tensor

__all__ = [
    "AUPRO_LIMITS",
    "IMAGE_METRICS",
    "PIXEL_METRICS",
    "MetricError",
    "RegionIndex",
    "image_metrics",
    "mask_conflicts",
    "pixel_metrics",
    "region_index",
]

AUPRO_LIMITS = {"aupro_30": 0.3, "aupro_05": 0.05}  # false-positive rates up to which AUPRO integrates
IMAGE_METRICS = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1_max", *AUPRO_LIMITS)

Values = dict[str, float | None]

_BLOCK = 1 << 18  # distinct scores handled at a time: bounds the temporaries
_MOST_THREADS = 8
_SIGN, _ALL = np.uint32(0x80000000), np.uint32(0xFFFFFFFF)


class MetricError(ValueError):
    """Scores or masks from which no honest number can be computed; the message names method and image."""


def image_metrics(
    scores: ArrayLike | Tensor,
    labels: ArrayLike | Tensor,
    *,
    names: Sequence[str] | None = None,
    method: str | None = None,
) -> Values:
    """AUROC, average precision and best F1 over images.

    `scores` [N] floats, higher is more anomalous; `labels` [N], true for an anomalous image. Values lie in [0, 1].
    All three are None when one of the two classes is absent: a ranking of one class says nothing.

    Raises MetricError for a NaN or infinite score (naming `method` and the image) and for shapes that do not match.
    """
    values = _floating(_numpy(scores)).reshape(-1)
    positive = _numpy(labels).reshape(-1).astype(bool)
    if values.shape != positive.shape:
        raise MetricError(
            f"{_who(method)}{values.size} image scores for {positive.size} labels; give one score per image"
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise MetricError(_not_finite(method, _name(names, int(bad[0])), values[bad[0]], "image score"))
    positives = int(positive.sum())
    if positives == 0 or positives == positive.size:
        return dict.fromkeys(IMAGE_METRICS)
    distinct, starts, _ = _distinct(values[positive], None)
    ordered = np.sort(values)
    least, tied = _counted(ordered, distinct)
    sums = _Sums(positives, values.size - positives, {})
    sums.add(starts, least, tied, values.size, None, 0, distinct.size)
    return dict(zip(IMAGE_METRICS, sums.ratios()[:3], strict=True))


def pixel_metrics(
    maps: ArrayLike | Tensor,
    masks: ArrayLike | Tensor | None,
    *,
    region_index: RegionIndex | None = None,
    threads: int | None = None,
    names: Sequence[str] | None = None,
    method: str | None = None,
) -> Values:
    """AUROC, average precision, best F1, AUPRO@0.3 and AUPRO@0.05 over all pixels of all test images, exact.

    `maps` [N, H, W] floats, higher is more anomalous; a tensor on a GPU is evaluated there. `masks` [N, H, W], true
    where defective, good images included (all false); or None for a data set without masks. `region_index` spares
    the search for connected regions: build it once with `region_index(masks, cache_key)`. `threads` is for numpy
    inputs; None takes the CPUs this process may use, at most 8. Extra memory is that of one copy of the maps plus
    about 50 bytes per positive pixel.

    Returns floats in [0, 1]. All are None without masks, without any positive pixel and without any negative pixel.
    Raises MetricError for a NaN or infinite pixel (naming `method` and the image) and for shapes that do not match.

    Source: Bergmann et al., IJCV 2021, section 5 (PRO; 8-connected regions, one sweep over the whole test set).
    """
    if masks is None and region_index is None:
        return dict.fromkeys(PIXEL_METRICS)
    shape = tuple(np.shape(maps))
    if len(shape) != 3:
        raise MetricError(f"{_who(method)}maps of shape {shape}; they must be [N, H, W]")
    if masks is not None and tuple(np.shape(masks)) != shape:
        raise MetricError(f"{_who(method)}maps of shape {shape} for masks of shape {tuple(np.shape(masks))}")
    index = region_index if region_index is not None else _index(masks)
    if index.shape != shape:
        raise MetricError(f"{_who(method)}maps of shape {shape} for a region index of shape {index.shape}")
    if _is_tensor(maps) and maps.device.type != "cpu":  # type: ignore[union-attr]
        from kdad_bench.harness.device_metrics import pixel_metrics_on_device

        return pixel_metrics_on_device(maps, index, names=names, method=method)  # type: ignore[arg-type]
    flat = np.ascontiguousarray(_floating(_numpy(maps))).reshape(-1)
    positives, negatives = index.positions.size, flat.size - index.positions.size
    if positives == 0 or negatives == 0:
        _check_finite(flat, shape, names, method)
        return dict.fromkeys(PIXEL_METRICS)
    workers = max(1, threads if threads is not None else min(available_cpus(), _MOST_THREADS))
    distinct, starts, mass = _distinct(flat[index.positions], index)
    least = np.zeros(distinct.size, np.int64)  # pixels below u_j
    tied = np.zeros(distinct.size, np.int64)  # pixels equal to u_j
    edges = [flat.size * k // workers for k in range(workers + 1)]

    def count(k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        keys = np.sort(flat[edges[k] : edges[k + 1]])
        if keys.size and not (np.isfinite(keys[0]) and np.isfinite(keys[-1])):  # NaN is sorted last
            _check_finite(flat, shape, names, method)
        return _counted(keys, distinct)

    with ThreadPoolExecutor(workers) as pool:
        for below, equal in pool.map(count, range(workers)):
            least += below
            tied += equal
    sums = _Sums(positives, negatives, AUPRO_LIMITS, index.count)
    for start in range(0, distinct.size, _BLOCK):
        sums.add(starts, least, tied, flat.size, mass, start, min(start + _BLOCK, distinct.size))
    return dict(zip(PIXEL_METRICS, sums.ratios(), strict=True))


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
    marked = np.asarray(masks).reshape(len(np.asarray(masks)), -1).any(axis=1)
    anomalous = np.asarray(labels).astype(bool)
    if marked.shape != anomalous.shape:
        raise MetricError(f"{marked.size} masks for {anomalous.size} labels; give one mask per image")
    return (
        [_name(names, int(i)) for i in np.flatnonzero(marked & ~anomalous)],
        [_name(names, int(i)) for i in np.flatnonzero(~marked & anomalous)],
    )


def available_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class _Sums:
    """The sums over distinct positive scores that the formulas above need, added block by block.

    Written with operators that numpy arrays and tensors share, so that both paths use the same formulas.
    """

    def __init__(self, positives: int, negatives: int, limits: dict[str, float], regions: int = 0) -> None:
        self.positives, self.negatives, self.regions = positives, negatives, regions
        self.limits = tuple(limits.values())
        self.auroc = self.ap = self.f1_max = 0.0
        self.aupro = [0.0] * len(self.limits)

    def add(
        self,
        starts: NDArray[np.int64],
        least: NDArray[np.int64],
        tied: NDArray[np.int64],
        pixels: int,
        mass: NDArray[np.float64] | None,
        begin: int,
        end: int,
    ) -> None:
        """Add the distinct scores begin..end, in ascending order: rank of each among positives and among all."""
        rank = starts[begin : end + 1]
        if end == starts.size:
            rank = np.append(rank, self.positives)
        counts = np.diff(rank).astype(np.float64)
        true = (self.positives - rank[:-1]).astype(np.float64)
        false = (pixels - least[begin:end]).astype(np.float64) - true
        self.add_block(counts, true, false, tied[begin:end] - counts, mass[begin:end] if mass is not None else None)

    def add_block(self, counts: Any, true: Any, false: Any, equal: Any, mass: Any) -> None:
        """Add one block of float64 values c_j, TP_j, FP_j, E_j, W_j."""
        self.auroc += float((counts * (self.negatives - false + equal / 2)).sum())
        self.ap += float((counts * (true / (true + false))).sum())
        self.f1_max = max(self.f1_max, float((2 * true / (self.positives + true + false)).max()))
        for i, limit in enumerate(self.limits):
            x1 = false / self.negatives
            x0 = (false - equal) / self.negatives
            top = x1.clip(max=limit)
            width = top - x0.clip(max=limit)
            rise = (x1 - x0).clip(min=1e-300)  # a step (no tie) has width 0 and adds nothing here
            self.aupro[i] += float((mass * (limit - top + width * width / (2 * rise))).sum())

    def ratios(self) -> list[float]:
        """AUROC, AP, F1-max and AUPRO at each limit."""
        areas = [area / (self.regions * limit) for area, limit in zip(self.aupro, self.limits, strict=True)]
        return [self.auroc / (self.positives * self.negatives), self.ap / self.positives, self.f1_max, *areas]


def _distinct(
    scores: NDArray[Any], index: RegionIndex | None
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float64] | None]:
    """Distinct values of `scores` ascending, the rank at which each begins, and the region mass W of each."""
    if scores.dtype == np.float32:
        # one word per pixel, score above region: sorting bare words is many times faster than argsort
        bits: NDArray[Any] = (scores + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
        bits ^= np.where(bits & _SIGN, _ALL, _SIGN)  # unsigned order = order of the floats
        words = bits.astype(np.uint64) << np.uint64(32)
        if index is not None:
            words |= index.regions
        words.sort()
        high: NDArray[Any] = (words >> np.uint64(32)).astype(np.uint32)
        starts = _changes(high)
        high = high[starts]
        high ^= np.where(high & _SIGN, _SIGN, _ALL)
        distinct: NDArray[Any] = high.view(np.float32)
        regions: NDArray[Any] = words.astype(np.uint32)  # the low half
    else:
        order = np.argsort(scores, kind="stable")
        ordered = scores[order]
        starts = _changes(ordered)
        distinct = ordered[starts]
        regions = index.regions[order] if index is not None else order
    if index is None:
        return distinct, starts, None
    return distinct, starts, np.add.reduceat((1.0 / index.sizes)[regions], starts)


def _changes(ordered: NDArray[Any]) -> NDArray[np.int64]:
    """Where a new value begins in sorted values."""
    new = np.empty(ordered.size, bool)
    new[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new)


def _counted(keys: NDArray[Any], distinct: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each of the ascending `distinct` values: how many sorted `keys` are below it, and how many equal it."""
    below = np.searchsorted(keys, distinct, side="left")
    equal = np.zeros(distinct.size, np.int64)
    if keys.size == 0:
        return below, equal
    last = keys.size - 1
    equal += (keys[np.minimum(below, last)] == distinct) & (below <= last)
    # most values occur once in a chunk: only real ties need the second search
    ties = np.flatnonzero((equal == 1) & (below < last) & (keys[np.minimum(below + 1, last)] == distinct))
    if ties.size:
        equal[ties] = np.searchsorted(keys, distinct[ties], side="right") - below[ties]
    return below, equal


def _index(masks: ArrayLike | Tensor | None) -> RegionIndex:
    return region_index(_numpy(masks))


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _numpy(value: Any) -> NDArray[Any]:
    """The values as a numpy array, without a copy where possible."""
    if _is_tensor(value):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.dtype.is_floating_point and value.dtype.itemsize < 4 else value)
    return np.asarray(value)


def _floating(values: NDArray[Any]) -> NDArray[Any]:
    """Values as float32 if that is exact, else as float64: no score is ever rounded."""
    if values.dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        return values
    return values.astype(np.float32 if np.can_cast(values.dtype, np.float32) else np.float64)


def _check_finite(flat: NDArray[Any], shape: tuple[int, ...], names: Sequence[str] | None, method: str | None) -> None:
    side = shape[1] * shape[2]
    for image in range(shape[0]):
        values = flat[image * side : (image + 1) * side]
        finite = np.isfinite(values)
        if not finite.all():
            row, column = divmod(int(np.argmin(finite)), shape[2])
            where = f"anomaly map at row {row}, column {column}"
            raise MetricError(_not_finite(method, _name(names, image), values[np.argmin(finite)], where))


def _not_finite(method: str | None, image: str, value: Any, where: str) -> str:
    return f"{_who(method)}{where} of {image} is {float(value)}; a score must be finite, so no metric is computed"


def _who(method: str | None) -> str:
    return f"{method}: " if method else ""


def _name(names: Sequence[str] | None, image: int) -> str:
    return f"image {names[image]!r}" if names is not None else f"image {image}"
