"""The finer pixel metrics on a GPU, by the formulas of finer.py: maps stay there, only a few floats come back.

Of each group of images it is counted how many pixels lie above each score of the positives and how many are at least as
high. Counts are integers, the same as on the CPU; terms are float64 and added in another order. Torch's own operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdad_bench.kernels.sending import sent
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
from kdad_bench.metrics.device import around, flattened, pixel_metrics_on_device, placed
from kdad_bench.metrics.regions import RegionIndex, Saturated

Groups = NDArray[np.int64]  # [N] the group of each image: NORMAL, or the number of its kind of defect


def every_pixel_metric_on_device(
    maps: Tensor,
    index: RegionIndex,
    groups: Groups,
    *,
    regions: Saturated | None = None,
    threshold: float | None = None,
    names: Sequence[str] | None = None,
    method: str | None = None,
) -> Values:
    """What `finer.every_pixel_metric` returns and raises, for `maps` [N, H, W] on any device, computed on that device.

    `groups` are those of `finer.groups_of`. SegF1 is the same to the bit, the others to 1e-12.
    """
    flat = flattened(maps)
    values = pixel_metrics_on_device(flat.reshape(maps.shape), index, names=names, method=method)
    if values["pixel_auroc"] is None:
        return dict.fromkeys((*PIXEL_METRICS, *FINER))
    found = Passed.of(flat, index, groups)
    return {
        **values,
        **ap_by_size(found, index),
        "aupimo": aupimo(found, index, groups),
        "au_spro_05": None if regions is None else au_spro(flat, found, index, regions, groups),
        "seg_f1": None if threshold is None else seg_f1(flat, index, threshold),
    }


class Passed(NamedTuple):
    """Where the pixels of each group of images lie around the scores of the P positives, in ascending order of these.

    A pair of counts [2, P] int64 says how many pixels are at least as high as each score, and how many are above it.
    """

    scores: Tensor  # [P] ascending
    regions: Tensor  # [P] of each
    ties: Tensor  # [2, P] how many positives lie below each, and how many not above it
    groups: dict[int, Tensor]  # [2, P] of the pixels of each group

    @classmethod
    def of(cls, flat: Tensor, index: RegionIndex, groups: Groups) -> Passed:
        """Of the scores `flat` [N H W], all finite."""
        held = placed(index, flat.device)
        scores, order = torch.sort(flat[held.places], stable=True)
        maps = flat.reshape(index.shape)
        found = {}
        for group in np.unique(groups).tolist():
            pixels = maps[sent(np.flatnonzero(groups == group), flat.device)].reshape(-1)
            found[group] = len(pixels) - around(pixels, scores)
        return cls(scores, held.regions[order], around(scores, scores), found)

    def marked(self, mine: Tensor) -> Tensor:
        """[2, P] counts of the positives that are `mine` [P]."""
        upto = torch.nn.functional.pad(mine.cumsum(0), (1, 0))
        return upto[-1] - upto[self.ties]


def ap_by_size(found: Passed, index: RegionIndex) -> Values:
    """`finer.ap_by_size`."""
    third = thirds(index.sizes)
    areas = np.bincount(third, index.sizes, len(SIZES))
    false = torch.stack([counts[0] for counts in found.groups.values()]).sum(0) - (len(found.scores) - found.ties[0])
    place = sent(third, false.device)[found.regions]
    values: Values = {}
    for number, name in enumerate(SIZES):
        mine = place == number
        called = found.marked(mine)[0].double()
        precision = called / (called + false).clip(min=1.0)  # where nothing is called, its number is 0 as well
        values[name] = float((precision * mine).sum()) / float(areas[number]) if areas[number] else None
    return values


def aupimo(
    found: Passed, index: RegionIndex, groups: Groups, *, limits: tuple[float, float] = PIMO_LIMITS
) -> float | None:
    """`finer.aupimo`."""
    _, height, width = index.shape
    pixels = int(np.count_nonzero(groups == NORMAL)) * height * width
    if pixels * limits[1] < 1:
        return None
    x1, x0 = found.groups[NORMAL].double() / pixels
    areas = np.bincount(index.images, index.sizes, index.shape[0])
    weights = 1.0 / areas[index.images] / np.count_nonzero(areas)
    shares = log_shares(x0, x1, *limits, torch.log)
    return at_most_one(float((sent(weights, x0.device)[found.regions] * shares).sum()))


def au_spro(
    flat: Tensor,
    found: Passed,
    index: RegionIndex,
    regions: Saturated,
    groups: Groups,
    *,
    limit: float = SPRO_LIMIT,
) -> float | None:
    """`finer.au_spro` of the scores `flat` [N H W]."""
    scores, weights, owners = _weighed(flat, regions)
    if not len(scores):
        return None
    at = torch.searchsorted(found.scores, scores).clip(max=len(found.scores) - 1)
    if bool((found.scores[at] != scores).any()):
        raise MetricError(UNMARKED)
    kinds, filled = groups[regions.images], regions.masks.any(axis=(1, 2))
    kind = sent(kinds, flat.device)[owners]
    values = []
    for group in np.unique(kinds[filled]).tolist():
        counts, pixels = _unmarked(found, index, groups, {NORMAL, group})
        if not pixels:
            return None
        x1, x0 = counts[:, at].double() / pixels
        areas = weights * ramp_areas(x0, x1, limit) * (kind == group)
        values.append(float(areas.sum()) / (np.count_nonzero(filled & (kinds == group)) * limit))
    return at_most_one(float(np.mean(values)))


def _unmarked(found: Passed, index: RegionIndex, groups: Groups, wanted: set[int]) -> tuple[Tensor, int]:
    """[2, P] counts of the pixels of the groups that are `wanted` which no mask marks, and how many there are."""
    _, height, width = index.shape
    of_region = groups[index.images]
    marked = sent(of_region, found.scores.device)[found.regions]
    counts, pixels = torch.zeros_like(found.ties), 0
    for group in wanted & found.groups.keys():
        counts = counts + found.groups[group] - found.marked(marked == group)
        pixels += int(np.count_nonzero(groups == group)) * height * width
        pixels -= int(index.sizes[of_region == group].sum())
    return counts, pixels


def _weighed(flat: Tensor, regions: Saturated) -> tuple[Tensor, Tensor, Tensor]:
    """(score, part of its region, number of its region) of each pixel of a region, region by region.

    The k-th highest of a region weighs (min(k, s A) - min(k - 1, s A)) / (s A).
    """
    regions.check()
    count, device = len(regions.masks), flat.device
    side = regions.masks[0].size if count else 1
    inside = sent(np.flatnonzero(regions.masks), device)
    owners = inside // side
    scores = flat[inside + sent((regions.images - np.arange(count)) * side, device)[owners]]
    order = torch.sort(scores, descending=True, stable=True).indices
    order = order[torch.sort(owners[order], stable=True).indices]
    areas = np.count_nonzero(regions.masks, axis=(1, 2))
    before = torch.arange(len(scores), device=device) - sent(np.cumsum(areas) - areas, device)[owners]
    enough = sent(regions.shares * areas, device)[owners]
    weights = (torch.minimum(before + 1, enough) - torch.minimum(before, enough)) / enough
    return scores[order], weights, owners


def seg_f1(flat: Tensor, index: RegionIndex, threshold: float) -> float:
    """`finer.seg_f1` of the scores `flat` [N H W]."""
    limit = float(largest_not_above(threshold, np.float64 if flat.dtype == torch.float64 else np.float32))
    called = int((flat > limit).sum())
    true = int((flat[placed(index, flat.device).places] > limit).sum())
    return 2 * true / (index.positions.size + called)
