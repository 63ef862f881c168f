"""MVTec LOCO's `defects_config.json`: at which area a region counts as found, by the value that its mask marks with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.decoding import Mask, read_bytes

LARGEST = 255  # value of a pixel of a mask
MOST_BYTES = 1 << 20  # of the file: an entry has some 100


class Saturation(NamedTuple):
    """The area at which a region of one kind of defect counts as found."""

    threshold: float
    relative: bool  # a share of the region's own area, and not a number of pixels at the mask's own size


def saturations(path: Path, sha256: str | None = None) -> dict[int, Saturation]:
    """Value of a mask's pixels -> saturation, from a list of entries with `pixel_value`, `saturation_threshold` and
    `relative_saturation`.

    Raises DatasetError for what is no such list, a value outside of 1 .. 255 or twice, and a threshold that is no
    positive number (nor, if relative, at most 1).
    """
    try:
        entries = json.loads(read_bytes(path, sha256, image=False, most=MOST_BYTES))
        found = {int(one["pixel_value"]): _saturation(one) for one in entries}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        if isinstance(error, DatasetError):
            raise
        why = f"{type(error).__name__}: {error}"
        raise DatasetError(f"{path}: not a list of defects with their saturation ({why}); restore it") from error
    if len(found) != len(entries) or not all(1 <= value <= LARGEST for value in found):
        raise DatasetError(f"{path}: a pixel value that stands twice or outside of 1 .. {LARGEST}; restore it")
    return found


def _saturation(one: dict[str, Any]) -> Saturation:
    threshold, relative = one["saturation_threshold"], one["relative_saturation"]
    if not isinstance(relative, bool) or isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise ValueError(f"the threshold {threshold!r}, relative: {relative!r}")
    if not 0 < threshold < float("inf") or (relative and threshold > 1):
        raise ValueError(f"the threshold {threshold}")
    return Saturation(float(threshold), relative)


def share_of(path: Path, mask: Mask, known: dict[int, Saturation]) -> float:
    """The share in (0, 1] of the region of the mask `path` that counts as all of it, as MVTec's evaluation takes it.

    A relative threshold is rounded down to whole pixels, at least one; an absolute one is at most the region's area.
    Raises DatasetError for a mask that marks nothing, with several values, or with one that is not `known`.
    """
    area = int(mask.marked.sum())
    if not area:
        raise DatasetError(f"{path}: the mask of a region marks no pixel; restore it")
    if len(mask.values) != 1 or mask.values[0] not in known:
        shown, listed = ", ".join(map(str, mask.values)), ", ".join(map(str, known))
        raise DatasetError(f"{path}: a region marked with {shown}; it must be one value of the listed {listed}")
    threshold, relative = known[mask.values[0]]
    return max(1, int(threshold * area)) / area if relative else min(threshold, area) / area
