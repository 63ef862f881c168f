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

    Half-precision maps are widened, never rounded. Raises MetricError for a NaN or infinite pixel.
    """
    flat = maps.detach().reshape(-1)
    if flat.dtype not in (torch.float32, torch.float64):
        flat = flat.to(torch.float32 if flat.dtype.is_floating_point else torch.float64)
    positives, negatives = index.positions.size, flat.numel() - index.positions.size
    if positives == 0 or negatives == 0:
        _check_finite(flat, maps.shape, names, method)
        return dict.fromkeys(PIXEL_METRICS)
    at = torch.from_numpy(index.positions).to(flat.device)
    regions = torch.from_numpy(index.regions.astype("int64")).to(flat.device)
    weights = (1.0 / torch.from_numpy(index.sizes).to(flat.device, torch.float64))[regions]
    scores, order = torch.sort(flat[at] + 0.0)  # + 0 turns -0.0 into 0.0
    weights = weights[order]
    distinct, group, counts = torch.unique_consecutive(scores, return_inverse=True, return_counts=True)
    below = torch.zeros_like(counts)
    tied = torch.zeros_like(counts)
    for chunk in torch.split(flat, _CHUNK):
        keys = torch.sort(chunk).values
        if not bool(torch.isfinite(keys[[0, -1]]).all()):  # NaN is sorted last
            _check_finite(flat, maps.shape, names, method)
        left = torch.searchsorted(keys, distinct)
        below += left
        tied += torch.searchsorted(keys, distinct, right=True) - left
    counts = counts.double()
    true = positives - (counts.cumsum(0) - counts)
    false = (flat.numel() - below).double() - true
    mass = torch.zeros_like(counts).scatter_add_(0, group, weights)
    limits = tuple(AUPRO_LIMITS.values())
    part = partial_sums(counts, true, false, tied.double() - counts, mass, (positives, negatives), limits)
    return dict(zip(PIXEL_METRICS, ratios([part], positives, negatives, index.count, limits), strict=True))


def _check_finite(flat: Tensor, shape: Sequence[int], names: Sequence[str] | None, method: str | None) -> None:
    finite = torch.isfinite(flat)
    if not bool(finite.all()):
        first = int(torch.argmin(finite.to(torch.uint8)))
        image, pixel = divmod(first, int(shape[1]) * int(shape[2]))
        row, column = divmod(pixel, int(shape[2]))
        where = f"anomaly map at row {row}, column {column}"
        raise MetricError(not_finite(method, image_name(names, image), flat[first].item(), where))
