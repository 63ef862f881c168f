"""The pixel metrics on a GPU, with the same formulas: maps stay there, only a few floats come back.

Triton's kernels count and add where there are any (`kernels.ranks`), torch's own operations elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from kdad_bench.kernels import ranks
from kdad_bench.kernels.counting import NotFinite
from kdad_bench.kernels.sending import sent
from kdad_bench.metrics.curves import (
    AUPRO_LIMITS,
    PIXEL_METRICS,
    MetricError,
    Values,
    image_name,
    not_finite,
    partial_sums,
    ratios,
    would_be_rounded,
)
from kdad_bench.metrics.regions import RegionIndex

_CHUNK = 1 << 23  # keys sorted at a time: torch.sort also writes int64 indices, 12 bytes per key and its workspace

LIMITS = (AUPRO_LIMITS["aupro_30"], AUPRO_LIMITS["aupro_05"])
_MANY = 1 / 8  # share of positives from which on only negatives are sorted beside them: an estimate, not measured


class Placed(NamedTuple):
    """What a device holds of an index: 16 bytes for each positive pixel, and 4 for each negative one where `others`."""

    places: Tensor  # [P] int32 or int64, where the positives are
    others: Tensor | None  # [N - P] where the negatives are; None where few pixels are positive
    weights: Tensor  # [P] float64, 1/|region| of each positive
    regions: Tensor  # [P] int32, the region of each positive


_sent: WeakKeyDictionary[RegionIndex, dict[torch.device, Placed]] = WeakKeyDictionary()  # kept as long as the index is


def pixel_metrics_on_device(
    maps: Tensor, index: RegionIndex, *, names: Sequence[str] | None = None, method: str | None = None
) -> Values:
    """What `metrics.pixel_metrics` returns, for `maps` [N, H, W] on any device, computed on that device.

    Half-precision maps are widened, never rounded. Every operation has one result under
    `torch.use_deterministic_algorithms(True)`. Raises MetricError for a NaN or infinite pixel,
    and for types that would be rounded (int64).
    """
    flat = flattened(maps)
    positives, negatives = index.positions.size, flat.numel() - index.positions.size
    if positives == 0 or negatives == 0:
        _check_finite(flat, maps.shape, names, method)
        return dict.fromkeys(PIXEL_METRICS)
    try:
        part = _sums(flat, placed(index, flat.device))
    except NotFinite:
        _check_finite(flat, maps.shape, names, method)
        raise
    found = ratios([part], positives, negatives, index.count, LIMITS)
    return dict(zip(PIXEL_METRICS, found, strict=True))


def flattened(maps: Tensor) -> Tensor:
    """[N H W] float32 or float64, the scores of `maps` [N, H, W], widened where they are of another type.

    Raises MetricError for types that would be rounded.
    """
    flat = maps.detach().reshape(-1)
    if flat.dtype in (torch.float32, torch.float64):
        return flat
    if flat.dtype.is_complex or not (flat.dtype.is_floating_point or flat.dtype.itemsize <= 4):
        raise MetricError(would_be_rounded(str(flat.dtype).removeprefix("torch.")))
    return flat.to(torch.float32 if flat.dtype.is_floating_point else torch.float64)


def _sums(flat: Tensor, held: Placed) -> tuple[float, ...]:
    """The partial sums of all positives; raises NotFinite."""
    found = ranks.sums(flat, held.places, held.others, held.weights, _CHUNK, LIMITS)
    return _sums_by_torch(flat, held.places, held.weights) if found is None else found


def placed(index: RegionIndex, device: torch.device) -> Placed:
    """What `device` holds of an index, sent once."""
    kept = _sent.setdefault(index, {})
    if device not in kept:
        pixels = math.prod(index.shape)
        narrow = np.int32 if pixels < 2**31 else np.int64
        places = sent(index.positions.astype(narrow), device)
        regions = sent(index.regions.astype(np.int32), device)
        weights = sent(1.0 / index.sizes, device).index_select(0, regions)
        others = None
        if len(places) > pixels * _MANY:
            negative = torch.ones(pixels, dtype=torch.bool, device=device).index_fill_(0, places.long(), False)
            others = negative.nonzero()[:, 0].to(places.dtype)
        kept[device] = Placed(places, others, weights, regions)
    return kept[device]


def around(values: Tensor, scores: Tensor) -> Tensor:
    """[2, M] int64: how many of `values` [n] lie below each of `scores` [M], and how many not above it.

    Raises NotFinite for a value that is not.
    """
    found = torch.zeros((2, len(scores)), dtype=torch.int64, device=scores.device)
    for chunk in torch.split(values, _CHUNK):
        keys = torch.sort(chunk).values
        if not bool(torch.isfinite(keys[[0, -1]]).all()):  # NaN is sorted last
            raise NotFinite
        for row, right in zip(found, (False, True), strict=True):
            row += torch.searchsorted(keys, scores, right=right)
    return found


def _sums_by_torch(flat: Tensor, places: Tensor, weights: Tensor) -> tuple[float, ...]:
    """The same by torch's own operations."""
    distinct, counts, mass = _ranked(flat, places, weights)
    below, upto = around(flat, distinct)
    positives = len(places)
    true = (positives - (counts.cumsum(0) - counts)).double()  # of integers: the same whatever order a GPU adds them in
    false = (flat.numel() - below).double() - true
    equal = (upto - below - counts).double()
    return partial_sums(counts.double(), true, false, equal, mass, (positives, flat.numel() - positives), LIMITS)


def _ranked(flat: Tensor, places: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct scores of the positives, ascending; how many positives have each; their sum of 1/|region|.

    No atomic addition and no cumulative sum of floats, whose order changes between runs on a GPU: the weights of equal
    scores lie side by side and are added segment by segment.
    """
    scores, order = torch.sort(flat[places] + 0.0, stable=True)  # + 0 turns -0.0 into 0.0
    distinct, counts = torch.unique_consecutive(scores, return_counts=True)
    mass = torch.segment_reduce(weights[order], "sum", lengths=counts)
    return distinct, counts, mass


def _check_finite(flat: Tensor, shape: Sequence[int], names: Sequence[str] | None, method: str | None) -> None:
    finite = torch.isfinite(flat)
    if not bool(finite.all()):
        first = int(torch.argmin(finite.to(torch.uint8)))
        image, pixel = divmod(first, int(shape[1]) * int(shape[2]))
        row, column = divmod(pixel, int(shape[2]))
        where = f"anomaly map at row {row}, column {column}"
        raise MetricError(not_finite(method, image_name(names, image), flat[first].item(), where))
