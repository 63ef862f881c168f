"""Maps a piece at a time: neither a mapped file nor a copy of it need fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kdad_bench.files import let_go

PIECE = 1 << 25  # pixels looked at together: 128 MB of float32
LEAST = 1 << 20  # pixels of images side by side that are not copied to lie beside others
Sizes: TypeAlias = NDArray[np.int64]  # [N, 2] (height, width) of the picture in the upper left corner of each map


def pieces(values: NDArray[Any], images: NDArray[np.int64], sizes: Sizes | None = None) -> Iterator[NDArray[Any]]:
    """The pixels of some `images` (ascending) of `values` [N, H, W], flat, at most PIECE together or one image.

    Of pictures that do not fill their maps only their own pixels. The pages of a mapped file are let go after each.
    """
    side = max(1, values.shape[1] * values.shape[2])
    together = max(1, PIECE // side)
    for start in range(0, len(images), together):
        some = images[start : start + together]
        runs = np.split(some, np.flatnonzero(np.diff(some) != 1) + 1)
        if sizes is None and len(some) * side >= len(runs) * LEAST:
            for run in runs:
                yield np.ascontiguousarray(values[run[0] : run[-1] + 1]).reshape(-1)
        else:
            yield np.concatenate([_own(values, int(image), sizes).reshape(-1) for image in some])
        let_go(values)


def _own(values: NDArray[Any], image: int, sizes: Sizes | None) -> NDArray[Any]:
    return values[image] if sizes is None else values[image, : sizes[image, 0], : sizes[image, 1]]


def values_at(values: NDArray[Any], positions: NDArray[np.int64]) -> NDArray[Any]:
    """The pixels of `values` [N, H, W] at flat `positions`, ascending; a mapped file is let go as it is read."""
    side = max(1, values.shape[1] * values.shape[2])
    together = max(1, PIECE // side) * side
    flat, found = np.ascontiguousarray(values).reshape(-1), np.empty(positions.size, values.dtype)
    for start in range(0, flat.size, together):
        first, last = np.searchsorted(positions, (start, start + together))
        found[first:last] = flat[positions[first:last]]
        let_go(values)
    return found
