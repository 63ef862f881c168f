"""Scores and maps of a test set -> the accuracy columns of a row: one path for runs and for maps of other code."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from numpy.typing import NDArray

from kdad_bench.datasets import Category, TestSet
from kdad_bench.files import CacheError, cache_folder
from kdad_bench.metrics import (
    FINER,
    PIXEL_METRICS,
    Finer,
    RegionIndex,
    Saturated,
    all_finite,
    check_finite,
    every_pixel_metric,
    image_metrics,
    mask_conflicts,
    region_index,
)
from kdad_bench.metrics.curves import image_name

if TYPE_CHECKING:
    from torch import Tensor

    Array: TypeAlias = NDArray[Any] | Tensor


def judged(
    image: Array,
    maps: Array,
    peaks: Array,
    test: TestSet,
    *,
    category: Category,
    resolution: int,
    method: str,
    threshold: float | None = None,
    index: RegionIndex | None = None,
) -> dict[str, Any]:
    """The accuracy columns of a row: image and pixel metrics, and the image AUROC of the maps' maxima.

    `image` [N] scores, `maps` [N, R, R] and `peaks` [N], the maximum of each map: float32 arrays or tensors, in the
    order of `test`. `threshold` is that of SegF1, where there are normal images that nothing was learnt
    from; `index` that of the masks (`regions_of`), where it is at hand. A metric that a data set has not is None. Warns
    of masks that disagree with labels. Raises MetricError for a NaN or an infinity, naming `method` and the image; of a
    map, which is looked at first as scores often follow from it, also row and column.
    """
    if test.masks is None or not (all_finite(image) and all_finite(peaks)):  # with masks the one pass finds -inf
        check_finite(image, maps, sizes=test.sizes, names=test.names, method=method)
    figures: dict[str, Any] = image_metrics(image, test.labels, names=test.names, method=method)
    common = image_metrics(peaks, test.labels, names=test.names, method=method)
    figures["image_auroc_max"] = common["image_auroc"]
    warn_of_conflicts(test, category, resolution)
    if test.masks is None:
        return figures | dict.fromkeys((*PIXEL_METRICS, *FINER))
    index = index or region_index(test.masks, region_file(category, resolution, test))
    about = Finer(
        normal=~test.labels,
        kinds=[sample.defect for sample in category.test],
        regions=Saturated(*test.regions) if test.regions is not None else None,
        threshold=threshold,
        sizes=test.sizes,
    )
    return figures | every_pixel_metric(maps, index, about, names=test.names, method=method)


def regions_of(test: TestSet, category: Category, resolution: int) -> RegionIndex | None:
    """The regions of a test set, found once and kept; None without masks."""
    return None if test.masks is None else region_index(test.masks, region_file(category, resolution, test))


def warn_of_conflicts(test: TestSet, category: Category, resolution: int) -> None:
    """One line on images whose mask and label disagree: the pixel metrics then mean less than they seem to."""
    marked, unmarked = mask_conflicts(test.masks, test.labels, names=test.names)
    where = f"{category.dataset}/{category.name} at {resolution} px"
    if marked:
        warnings.warn(f"{where}: defect pixels in {len(marked)} good images ({listed(marked)})", stacklevel=3)
    if unmarked:
        at_any_size = {image_name(test.unmarked, place) for place in range(len(test.unmarked))}
        hopeless = len(at_any_size & {*unmarked})
        remedy = "" if hopeless == len(unmarked) else "; a higher --resolution helps"
        remedy += f" {len(unmarked) - hopeless} of them" if remedy and hopeless else ""
        warnings.warn(
            f"{where}: no defect pixel in the masks of {len(unmarked)} anomalous images ({listed(unmarked)}); they "
            f"count as anomalous in the image metrics and as normal in the pixel metrics{remedy}",
            stacklevel=3,
        )


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def region_file(category: Category, resolution: int, test: TestSet) -> Path | None:
    """Where the region index of a category's masks at a resolution is kept; None without a cache folder."""
    shape = "" if test.sizes is None else "-{}x{}".format(*test.images.shape[-2:])
    name = f"{category.dataset}-{category.name}-{resolution}{shape}.regions"
    readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)[-120:]
    try:
        return cache_folder() / "regions" / readable
    except CacheError:
        return None
