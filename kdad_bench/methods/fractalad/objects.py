"""The object that stands out from an image's background, as FractalAD finds it; constants from the official code.

The official code works with OpenCV on 8-bit pictures; the same steps here need numpy and scipy alone. Measured against
OpenCV: docs/methods/fractalad.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kdad_bench.methods.draws import Floats, Mask
from kdad_bench.methods.fractalad.colour import Levels

SIDE = 256  # pixels: the object is looked for in a picture of this size
CORNER = 20  # pixels: side of the top-left patch that shows the background
WINDOW = 5  # pixels: side of the mean before the threshold and of the median after it
BRIGHT = 128  # mean level above which a background is a bright one
DARKER, BRIGHTER = 50, 10  # levels: an object is darker than a bright background, or brighter than a dark one, by these
LUMA = (3735, 19235, 9798)  # parts of 32,768 of red, green, blue: the official code hands red for blue


def object_mask(image: Levels) -> Mask:
    """Where the object of `image` [3, H, W] in levels is, [H, W]."""
    picture = resized(image, SIDE, SIDE)
    luma = np.floor(np.tensordot(LUMA, picture, axes=1) / 32768 + 0.5)
    luma = np.rint(ndimage.uniform_filter(luma, WINDOW, mode="mirror"))
    background = float(luma[:CORNER, :CORNER].mean())
    found = luma <= int(background) - DARKER if background > BRIGHT else luma > int(background) + BRIGHTER
    most = ndimage.uniform_filter(found.astype(np.float64), WINDOW, mode="nearest") > 0.5  # the median of yes and no
    return np.asarray(resized(255.0 * most[None], *image.shape[1:])[0] > 0)


def resized(picture: NDArray[np.floating], height: int, width: int) -> Floats:
    """`picture` [C, h, w] at [C, height, width] in whole levels: bilinear, not antialiased, borders repeated."""
    across = along(picture, width)
    return np.floor(along(across.swapaxes(1, 2), height).swapaxes(1, 2) + 0.5)


def along(picture: NDArray[np.floating], length: int) -> Floats:
    """The last axis of `picture` at `length`, linearly."""
    have = picture.shape[-1]
    place = ((np.arange(length) + 0.5) * (have / length) - 0.5).clip(0, have - 1)
    low = place.astype(np.int64)
    part = place - low
    answer: Floats = picture[..., low] * (1 - part) + picture[..., np.minimum(low + 1, have - 1)] * part
    return answer


def shorter_side(outline: Mask) -> float:
    """The shorter side of the smallest rectangle, turned as need be, around the largest connected part of `outline`.

    In pixels, from centre to centre: a line of single cells has 0. `outline` [H, W] has at least one true cell.
    """
    corners = hull(largest_part(outline))
    edges = np.roll(corners, -1, axis=0) - corners
    lengths = np.hypot(*edges.T)
    if not lengths.all() or len(corners) < 3:
        return 0.0
    units = edges / lengths[:, None]
    normals = np.stack([-units[:, 1], units[:, 0]], axis=1)
    sides = np.stack([np.ptp(corners @ units.T, axis=0), np.ptp(corners @ normals.T, axis=0)])  # one side on an edge
    return float(sides[:, np.argmin(sides.prod(axis=0))].min())


def largest_part(outline: Mask) -> Mask:
    """The part of `outline` [H, W], connected over corners too, whose contour through the cells' centres encloses most.

    A square of four cells adds 1 to what is enclosed, three cells of such a square 1/2.
    """
    parts, count = ndimage.label(ndimage.binary_fill_holes(outline), structure=np.ones((3, 3)))
    if count < 2:
        return np.asarray(parts > 0)
    squares = np.stack([parts[:-1, :-1], parts[1:, :-1], parts[:-1, 1:], parts[1:, 1:]]).reshape(4, -1)
    cells = (squares > 0).sum(axis=0)
    enclosed = np.bincount(squares.max(axis=0), np.where(cells == 4, 1.0, np.where(cells == 3, 0.5, 0.0)), count + 1)
    return np.asarray(parts == 1 + np.argmax(enclosed[1:]))


def hull(part: Mask) -> Floats:
    """The corners [n, 2] of the convex hull of the true cells of `part`, counter-clockwise in (row, column)."""
    rows = np.flatnonzero(part.any(axis=1))
    first, last = part[rows].argmax(axis=1), part.shape[1] - 1 - part[rows, ::-1].argmax(axis=1)
    points = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)])
    order = points[np.lexsort(points.T[::-1])].tolist()
    return np.array(half_hull(order)[:-1] + half_hull(order[::-1])[:-1] or order[:1], dtype=np.float64)


def half_hull(points: list[list[int]]) -> list[list[int]]:
    """One side of the convex hull of sorted `points` (Andrew's monotone chain)."""
    chain: list[list[int]] = []
    for point in points:
        while len(chain) > 1 and cross(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        if not chain or chain[-1] != point:
            chain.append(point)
    return chain


def cross(a: list[int], b: list[int], c: list[int]) -> int:
    """Twice the signed area of the triangle a, b, c."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
