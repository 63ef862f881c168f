"""The pixel metrics in torch, with the same formulas: maps on a GPU stay there, only a few floats come back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdad_bench.metrics.curves import (
    AUPRO_LIMITS,
    PIXEL_METRICS,
    MetricError,
    Values,
    image_name,
    not_finite,
    partial_sums,
    ratios,
)
from kdad_bench.metrics.regions import RegionIndex

_CHUNK = 1 << 23  # keys sorted at a time: torch.sort also writes int64 indices, 12 bytes per key and its workspace


def pixel_metrics_on_device(
    maps: Tensor, index: RegionIndex, *, names: Sequence[str] | None = None, method: str | None = None
) -> Values:
    """What `metrics.pixel_metrics` returns, for `maps` [N, H, W] on any device, computed on that device.

    Half-precision maps are widened, never rounded. Every operation has one result under
    `torch.use_deterministic_algorithms(True)`. Raises MetricError for a NaN or infinite pixel.
    """
    flat = maps.detach().reshape(-1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.to(torch.float32 if flat.dtype.is_floating_point else torch.float64)
    positives, negatives = index.positions.size, flat.numel() - index.positions.size
    if positives == 0 or negatives == 0:
        _check_finite(flat, maps.shape, names, method)
        return dict.fromkeys(PIXEL_METRICS)
    distinct, counts, mass = _ranked(flat, index)
    below, upto = torch.zeros_like(counts), torch.zeros_like(counts)
    for chunk in torch.split(flat, _CHUNK):
        keys = torch.sort(chunk).values
        if not bool(torch.isfinite(keys[[0, -1]]).all()):  # NaN is sorted last
            _check_finite(flat, maps.shape, names, method)
        below += torch.searchsorted(keys, distinct)
        upto += torch.searchsorted(keys, distinct, right=True)
    true = (positives - (counts.cumsum(0) - counts)).double()  # of integers: the same whatever order a GPU adds them in
    false = (flat.numel() - below).double() - true
    limits = tuple(AUPRO_LIMITS.values())
    equal = (upto - below - counts).double()
    part = partial_sums(counts.double(), true, false, equal, mass, (positives, negatives), limits)
    return dict(zip(PIXEL_METRICS, ratios([part], positives, negatives, index.count, limits), strict=True))


def _ranked(flat: Tensor, index: RegionIndex) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct scores of the positives, ascending; how many positives have each; their sum of 1/|region|.

    No atomic addition and no cumulative sum of floats, whose order changes between runs on a GPU: the weights of equal
    scores lie side by side and are added segment by segment.
    """
    at = torch.from_numpy(index.positions).to(flat.device)
    regions = torch.from_numpy(index.regions.astype("int64")).to(flat.device)
    weights = (1.0 / torch.from_numpy(index.sizes).to(flat.device, torch.float64))[regions]
    scores, order = torch.sort(flat[at] + 0.0, stable=True)  # + 0 turns -0.0 into 0.0
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
