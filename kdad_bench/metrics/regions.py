"""The connected ground-truth regions of a test set, found once and kept in a file that the caller names."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdad_bench.files import let_go, write_bytes_whole
from kdad_bench.metrics.curves import MetricError
from kdad_bench.metrics.pieces import PIECE

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = b"kdad-regions 3\n"
_DIGEST = 32  # bytes of the checksum that follows the format
_EIGHT = np.ones((3, 3), bool)  # 8-connectivity: pixels that touch at a corner belong together
_PARTS = ("regions", "sizes", "images")  # the positions are where the masks are true


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class RegionIndex:
    """Where the positive pixels of masks [N, H, W] are and which 8-connected region of its image each belongs to."""

    shape: tuple[int, int, int]  # of the masks
    positions: NDArray[np.int64]  # [P] flat, ascending
    regions: NDArray[np.uint32]  # [P] region of each position, 0..R-1
    sizes: NDArray[np.int64]  # [R] pixels of each region
    images: NDArray[np.int64]  # [R] image each region lies in

    @property
    def count(self) -> int:
        """The number of regions R."""
        return int(self.sizes.size)


class Saturated(NamedTuple):
    """The annotated regions of a test set with the share of each that counts as all of it."""

    masks: NDArray[np.bool_]  # [M, H, W]; they may overlap
    images: NDArray[np.int64]  # [M], the image of each
    shares: NDArray[np.float64]  # [M] in (0, 1]

    def check(self) -> None:
        """Raises MetricError for a share that is none of its region."""
        if not ((self.shares > 0) & (self.shares <= 1)).all():  # NaN included
            raise MetricError("the share of a region that counts as all of it must lie above 0 and be at most 1")


def region_index(masks: ArrayLike | Tensor, file: Path | None = None) -> RegionIndex:
    """The connected regions of `masks` [N, H, W] by 8-connectivity per image: defective is true, or above 0.

    With a `file` the index is read from it or kept in it. The file carries a checksum of the masks and of its own
    content, and what it holds is compared with the masks: one of other masks, a damaged one and one that does not fit
    are built again and replaced. A file that cannot be read or written only costs the time to build.

    Raises ValueError if `masks` is not three-dimensional, and MetricError, a ValueError, for a value below 0 and for
    floats other than 0, 1 and 255: scores are no masks.
    """
    array: NDArray[Any] = np.asarray(masks.cpu() if hasattr(masks, "cpu") else masks)
    if array.ndim != 3:
        raise ValueError(f"masks of shape {array.shape}; they must be [N, H, W]")
    array = array if array.dtype == bool else _defective(array)
    if file is None:
        return _built(array)
    index = _read(file, array)
    if index is None:
        index = _built(array)
        with contextlib.suppress(OSError):  # full, read-only or no folder: the index is built again next time
            write_bytes_whole(file, _packed(index, array))
    return index


def _defective(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """Where masks of numbers are above 0; raises MetricError for numbers that mark nothing."""
    defective: NDArray[np.bool_] = masks > 0
    sound = defective | (masks == 0)
    if masks.dtype.kind == "f":
        sound &= (masks == 1) | (masks == 255) | ~defective
    if not sound.all():
        image = int(np.flatnonzero(~sound.reshape(len(masks), -1).all(1))[0])
        value = masks[image][~sound[image]][0]
        raise MetricError(
            f"the mask of image {image} has the value {value:.6g}; give truth values, or 0 for what is sound and 1 or "
            "255 for what is defective"
        )
    return defective


def _built(masks: NDArray[np.bool_]) -> RegionIndex:
    from scipy import ndimage  # slow to import, and not needed when the index is cached

    count, height, width = masks.shape
    positions, regions, sizes, images = [], [], [], []
    found = 0
    for image in np.flatnonzero(marked(masks)):
        labels, number = ndimage.label(masks[image], structure=_EIGHT)
        labels = labels.reshape(-1)
        inside = np.flatnonzero(labels)
        region = labels[inside] - 1
        positions.append(inside + int(image) * height * width)
        regions.append((region + found).astype(np.uint32))
        sizes.append(np.bincount(region, minlength=number))
        images.append(np.full(number, image))
        found += number
    return RegionIndex(
        (count, height, width),
        _joined(positions, np.int64),
        _joined(regions, np.uint32),
        _joined(sizes, np.int64),
        _joined(images, np.int64),
    )


def marked(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[N] whether each of `masks` [N, H, W] marks a pixel."""
    return np.concatenate([np.zeros(0, bool), *(some.any(axis=(1, 2)) for some in _some(masks))])


def _some(masks: NDArray[np.bool_]) -> Iterator[NDArray[np.bool_]]:
    """The masks, as many as PIECE pixels hold at a time; a mapped file is let go as it is read."""
    together = max(1, PIECE // max(1, masks.shape[1] * masks.shape[2]))
    for start in range(0, len(masks), together):
        yield masks[start : start + together]
        if len(masks) > together:
            let_go(masks)


def _places(masks: NDArray[np.bool_]) -> NDArray[np.int64]:
    """[P] flat, ascending: where the masks are true."""
    found, first = [], 0
    for some in _some(masks):
        found.append(np.flatnonzero(some) + first)
        first += some.size
    return _joined(found, np.int64)


def _joined(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


def _checksum(content: bytes, masks: NDArray[np.bool_]) -> bytes:
    digest = hashlib.blake2b(content, digest_size=_DIGEST, person=b"kdad-regions")
    digest.update(repr(masks.shape).encode())
    for some in _some(masks):
        digest.update(np.packbits(some).data)
    return digest.digest()


def _packed(index: RegionIndex, masks: NDArray[np.bool_]) -> bytes:
    content = io.BytesIO()
    np.savez(content, **{part: getattr(index, part) for part in _PARTS})
    return _FORMAT + _checksum(content.getvalue(), masks) + content.getvalue()


def _read(file: Path, masks: NDArray[np.bool_]) -> RegionIndex | None:
    """The index in `file`; None unless it is whole and that of `masks`."""
    try:
        if not file.is_file():  # a pipe would never end
            return None
        stored = file.read_bytes()
    except OSError:
        return None
    start = len(_FORMAT) + _DIGEST
    content = stored[start:]
    if stored[:start] != _FORMAT + _checksum(content, masks):
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:  # as it was written: the checksum says so
        count, height, width = masks.shape
        index = RegionIndex((count, height, width), _places(masks), *(arrays[part] for part in _PARTS))
    return index if _fits(index, masks) else None


def _fits(index: RegionIndex, masks: NDArray[np.bool_]) -> bool:
    """Whether the index can be that of the masks, whose positions it has: every one in a region of its image, sizes as
    they are."""
    side = masks.shape[1] * masks.shape[2]
    edges = np.searchsorted(index.positions, np.arange(masks.shape[0] + 1) * side)
    return (
        index.regions.shape == index.positions.shape
        and index.images.shape == index.sizes.shape
        and bool((index.sizes > 0).all())
        and np.array_equal(np.bincount(index.regions, minlength=index.count), index.sizes)
        and np.array_equal(index.images[index.regions], np.repeat(np.arange(masks.shape[0]), np.diff(edges)))
    )
