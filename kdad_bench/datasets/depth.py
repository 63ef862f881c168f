"""A scan of MVTec 3D-AD -> a picture of its relief: background removed, aligned with the table, in three channels.

The steps, for one scan of points (x, y, z) in metres seen by a camera at the origin:

1. points that are (0, 0, 0), not finite or not in front of the camera are no data and take the nearest point's values;
2. the table is the plane through the outer frame of the scan (random triples, then least squares near the best);
3. the height of a point is its distance from that plane, positive towards the camera: tilt and distance are gone;
4. heights within the tolerance of the table, and points without data, are background: 0;
5. channel 0 is the height over `top`, the highest normal relief of the category (training scans alone decide it);
   channels 1 and 2 are the x and y components of the surface normal, 128 for a surface parallel to the table.

Bergmann, Jin, Sattlegger, Steger, VISAPP 2022 describe the data; the choice of the channels is this package's own.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy
import tifffile
from PIL import Image
from scipy import ndimage

from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.decoding import MAX_PIXELS, read_bytes, reduced_rgb
from kdad_bench.text import reason_of

FRAME = 0.08  # width of the frame that shows the table, as a share of the shorter side
TRIPLES = 128  # random planes tried
SAMPLE = 1024  # points of the frame that judge them
NEAREST_METRES, FARTHEST_METRES = 0.0005, 0.005  # limits of the tolerance around the table
RENDERED_BY = f"NumPy {np.__version__}, SciPy {scipy.__version__}"  # whose arithmetic a relief follows
FARTHEST = 20.0  # metres of the middle point of a scan: beyond it are scans in millimetres
FEWEST = 64  # points below which a frame or a scan cannot be used
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it also raises; a fault here is one line
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def read_scan(path: Path, sha256: str | None = None) -> F32:
    """The points of an xyz TIFF, float32 [H, W, 3] in metres; points without data are (0, 0, 0).

    Raises DatasetError, naming the file, if it is not a TIFF of three floating-point channels, of several scans, too
    large, of other units, or has not the SHA-256 where one is given.
    """
    data = read_bytes(path, sha256)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            shape, kind = tuple(page.shape), np.dtype(page.dtype).kind if page.dtype is not None else "?"
            if len(shape) != 3 or 3 not in (shape[0], shape[-1]) or kind != "f":
                raise DatasetError(
                    f"{path}: not a scan (shape {shape}, kind '{kind}'); an xyz TIFF is H x W x 3 floats"
                )
            if shape[0] * shape[1] * shape[2] > 3 * MAX_PIXELS:
                raise DatasetError(f"{path}: {shape} points, above the limit of {MAX_PIXELS} pixels; reduce it first")
            pages = sum(tuple(other.shape) == shape for other in file.pages)
            if pages > 1:
                raise DatasetError(f"{path}: holds {pages} scans, of which one would be read; keep one in a file")
            points = np.asarray(page.asarray())
    except DatasetError:
        raise
    except Exception as error:  # tifffile raises almost anything on damaged files
        raise DatasetError(f"{path}: not a readable scan ({reason_of(error)}); restore the file") from error
    if points.ndim != 3 or points.size == 0 or points.size != shape[0] * shape[1] * shape[2]:
        raise DatasetError(f"{path}: not a readable scan ({points.size} values in it); restore the file")
    if points.shape[-1] != 3:  # stored channel by channel
        points = np.moveaxis(points, 0, -1)
    with np.errstate(over="ignore"):  # beyond float32 is infinite: no data
        points = np.ascontiguousarray(points, dtype=np.float32)
    seen = np.isfinite(points).all(axis=2) & (np.abs(points) < 1e6).all(axis=2) & (points[:, :, 2] > 0)
    middle = float(np.median(points[:, :, 2][seen])) if seen.any() else 0.0
    if middle > FARTHEST:
        raise DatasetError(f"{path}: points {middle:.0f} units away; scans are in metres: divide millimetres by 1000")
    return np.where(seen[:, :, None], points, np.float32(0))


def heights(points: F32, path: Path) -> tuple[F32, npt.NDArray[np.bool_]]:
    """(height over the table in metres [H, W], 0 for background; True where there is an object [H, W]).

    `path` only serves the message of the DatasetError that is raised where too few points are seen.
    """
    seen = points[:, :, 2] > 0
    count = int(np.count_nonzero(seen))
    if count < FEWEST:
        raise DatasetError(f"{path}: {count} points with data, fewer than {FEWEST}; restore the scan")
    nearest = ndimage.distance_transform_edt(~seen, return_distances=False, return_indices=True)
    filled = points[nearest[0], nearest[1]].astype(np.float64)
    normal, offset, tolerance = _table(points, seen)
    height = filled @ normal + offset
    # no data beyond the reach of the object (shadows at the rim of the scan) is background, holes inside it are not
    solid = ndimage.binary_fill_holes(seen & (height > tolerance))
    found = (height > tolerance) & (solid | seen)
    return np.where(found, height, 0.0).astype(np.float32), found


def _table(points: F32, seen: npt.NDArray[np.bool_]) -> tuple[F64, float, float]:
    """(unit normal towards the camera, offset, tolerance in metres): height = point . normal + offset."""
    height, width = seen.shape
    band = max(1, round(FRAME * min(height, width)))
    frame = np.ones_like(seen)
    frame[band : height - band, band : width - band] = False
    chosen = points[frame & seen].astype(np.float64)
    if len(chosen) < FEWEST:  # the object fills the view: its own mean plane has to serve
        chosen = points[seen].astype(np.float64)
    normal, offset = _best_plane(chosen)
    for _ in range(5):  # least squares on the points near the plane
        distance = np.abs(chosen @ normal + offset)
        near = distance <= max(3.0 * float(np.median(distance)), 1e-6)
        centre = chosen[near].mean(axis=0)
        normal = np.linalg.svd(chosen[near] - centre, full_matrices=False)[2][2]
        offset = -float(centre @ normal)
    if offset < 0:  # the camera, at the origin, is above the table
        normal, offset = -normal, -offset
    spread = 1.4826 * float(np.median(np.abs(chosen @ normal + offset)))
    return normal, offset, min(max(4.0 * spread, NEAREST_METRES), FARTHEST_METRES)


def _best_plane(points: F64) -> tuple[F64, float]:
    """The plane through three of the points with the smallest median distance to the others; always the same one."""
    draw = np.random.Philox(key=0)
    words = np.asarray(draw.random_raw(3 * TRIPLES + SAMPLE), dtype=np.uint64) % np.uint64(len(points))
    judges = points[words[3 * TRIPLES :].astype(np.int64)]
    best: tuple[float, F64, float] = (np.inf, np.array([0.0, 0.0, -1.0]), float(np.median(points[:, 2])))
    for a, b, c in points[words[: 3 * TRIPLES].astype(np.int64)].reshape(TRIPLES, 3, 3):
        normal = np.cross(b - a, c - a)
        size = float(np.sqrt(normal @ normal))
        if size < 1e-12:
            continue
        normal = normal / size
        offset = -float(a @ normal)
        miss = float(np.median(np.abs(judges @ normal + offset)))
        if miss < best[0]:
            best = (miss, normal, offset)
    return best[1], best[2]


def top_of(path: Path, sha256: str | None = None) -> float:
    """The height in metres that 99.5 % of the object's points stay below; 0 where nothing stands out of the table."""
    height, found = heights(read_scan(path, sha256), path)
    return float(np.percentile(height[found], 99.5)) if found.any() else 0.0


def render(path: Path, top: float, sha256: str | None = None) -> U8:
    """The relief of a scan as uint8 [H, W, 3]: height over `top`, and the normal's x and y components about 128."""
    points = read_scan(path, sha256)
    height, found = heights(points, path)
    level = np.clip(height / max(top, 1e-6), 0.0, 1.0) * 255.0
    pitch = _pitch(points)
    smooth = ndimage.gaussian_filter(height.astype(np.float64), 1.0, mode="nearest")
    slope_x, slope_y = _slope(smooth, 1) / pitch, _slope(smooth, 0) / pitch
    upright = 1.0 / np.sqrt(1.0 + slope_x * slope_x + slope_y * slope_y)
    inside = found.astype(np.float64)
    channels = [level, 128.0 - 127.0 * slope_x * upright * inside, 128.0 - 127.0 * slope_y * upright * inside]
    relief: U8 = np.clip(np.rint(np.stack(channels, axis=2)), 0, 255).astype(np.uint8)
    return relief


def _slope(height: F64, axis: int) -> F64:
    """Central differences along an axis; 0 for an axis of one pixel."""
    if height.shape[axis] < 2:
        return np.zeros_like(height)
    return np.asarray(np.gradient(height, axis=axis), dtype=np.float64)


def _pitch(points: F32) -> float:
    """Metres from one pixel to the next: the median step of x along rows and of y along columns, without gaps."""
    seen = points[:, :, 2] > 0
    steps = np.concatenate(
        [
            np.abs(np.diff(points[:, :, 0], axis=1))[seen[:, 1:] & seen[:, :-1]],
            np.abs(np.diff(points[:, :, 1], axis=0))[seen[1:] & seen[:-1]],
        ]
    )
    return max(float(np.median(steps)), 1e-6) if len(steps) else 1e-3


def read_depth(
    path: Path, shape: int | tuple[int, int], top: float, sha256: str | None = None
) -> tuple[U8, tuple[int, int]]:
    """The relief of a scan as uint8 [3, H, W] (antialiased bilinear, no crop) and the scan's own (width, height).

    `shape` is (H, W), or the side of a square.
    """
    picture = Image.fromarray(render(path, top, sha256))
    return reduced_rgb(picture, shape), picture.size
