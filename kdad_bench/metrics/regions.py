"""The connected ground-truth regions of a test set, found once and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = 1
_EIGHT = np.ones((3, 3), bool)  # 8-connectivity: pixels that touch at a corner belong together


@dataclass(frozen=True, eq=False, slots=True)
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


def region_index(masks: ArrayLike | Tensor, cache_key: str | None = None) -> RegionIndex:
    """The connected regions of `masks` [N, H, W] (true or non-zero where defective), by 8-connectivity per image.

    With a `cache_key` (say, data set, category and resolution) the index is kept in the cache folder (KDAD_CACHE, or
    the user's cache folder). The file carries a hash of the masks and of its own content: an index of other masks, or
    a damaged file, is rebuilt and replaced; a folder that cannot be written only costs the time to rebuild.

    Raises ValueError if `masks` is not three-dimensional.
    """
    array: NDArray[Any] = np.asarray(masks.cpu() if hasattr(masks, "cpu") else masks)
    if array.ndim != 3:
        raise ValueError(f"masks of shape {array.shape}; they must be [N, H, W]")
    array = array if array.dtype == bool else array != 0
    if cache_key is None:
        return _built(array)
    digest = hashlib.blake2b(np.packbits(array).data, digest_size=16, person=b"kdad-regions")
    digest.update(repr((_FORMAT, array.shape)).encode())
    source = digest.hexdigest()
    readable = "".join(c if c.isalnum() or c in "-_." else "-" for c in cache_key)[-120:]
    path = cache_folder() / "regions" / f"{readable}.npz"
    index = _read(path, source)
    if index is None:
        index = _built(array)
        _write(path, index, source)
    return index


def cache_folder() -> Path:
    """Where derived files are kept: KDAD_CACHE if set, else the user's cache folder."""
    chosen = os.environ.get("KDAD_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("kdad-bench"))


def _built(masks: NDArray[np.bool_]) -> RegionIndex:
    from scipy import ndimage  # slow to import, and not needed when the index is cached

    count, height, width = masks.shape
    positions, regions, sizes, images = [], [], [], []
    found = 0
    for image in np.flatnonzero(masks.any(axis=(1, 2))):
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


def _joined(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)


def _checksum(index: RegionIndex) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in (index.positions, index.regions, index.sizes, index.images):
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _read(path: Path, source: str) -> RegionIndex | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["source"]) != source:
                return None
            count, height, width = (int(n) for n in stored["shape"])
            index = RegionIndex(
                (count, height, width), stored["positions"], stored["regions"], stored["sizes"], stored["images"]
            )
            return index if str(stored["checksum"]) == _checksum(index) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, index: RegionIndex, source: str) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".npz")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(
                    file,
                    source=np.array(source),
                    checksum=np.array(_checksum(index)),
                    shape=np.array(index.shape),
                    positions=index.positions,
                    regions=index.regions,
                    sizes=index.sizes,
                    images=index.images,
                )
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
