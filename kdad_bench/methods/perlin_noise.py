"""Perlin's gradient noise in two dimensions (Perlin 2002: quintic interpolation) and the random shapes cut out of it.

All chance comes from the `numpy` generator that is handed in, and only through `Generator.random`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdad_bench.methods.draws import Floats, Mask, uniform

SCALES = 6  # cells along an axis: 2^0 to 2^5
THRESHOLD = 0.5  # what is above it is part of a shape
MOST_TURN = 90.0  # degrees, either way


def perlin(rows: Floats, columns: Floats, angles: Floats) -> Floats:
    """The field in [-1, 1] at `rows` and `columns`, in cells from the lattice's corner, and of their shape.

    `angles` [R + 1, C + 1] are the directions of the gradients at the corners of R x C cells; a point beyond the
    lattice belongs to the nearest cell.
    """
    top = np.clip(np.floor(rows), 0, angles.shape[0] - 2).astype(np.int64)
    left = np.clip(np.floor(columns), 0, angles.shape[1] - 2).astype(np.int64)
    down, right = rows - top, columns - left
    cosines, sines = np.cos(angles), np.sin(angles)

    def from_corner(i: int, j: int) -> Floats:
        reached: Floats = cosines[top + i, left + j] * (down - i) + sines[top + i, left + j] * (right - j)
        return reached

    vertical, horizontal = faded(down), faded(right)
    before = between(from_corner(0, 0), from_corner(1, 0), vertical)
    after = between(from_corner(0, 1), from_corner(1, 1), vertical)
    found: Floats = np.sqrt(2) * between(before, after, horizontal)
    return found


def faded(share: Floats) -> Floats:
    """6 t^5 - 15 t^4 + 10 t^3: rises from 0 to 1 with no slope and no curvature at both ends."""
    return share**3 * (share * (6 * share - 15) + 10)


def between(first: Floats, second: Floats, share: Floats) -> Floats:
    """`first` at share 0, `second` at share 1."""
    return first + (second - first) * share


def random_field(side: int, rng: np.random.Generator, scales: int = SCALES) -> Floats:
    """[side, side]: of 2^a x 2^b cells, a and b from 0 to `scales` - 1."""
    counts = [2 ** int(scales * rng.random()) for _ in range(2)]
    return of_cells(side, (counts[0], counts[1]), rng)


def of_cells(side: int, cells: tuple[int, int], rng: np.random.Generator) -> Floats:
    """[side, side]: a field of that many cells along the rows and the columns."""
    angles = 2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))
    axis = np.arange(side) / side
    return perlin(axis[:, None] * cells[0], axis[None] * cells[1], angles)


def random_shape(side: int, rng: np.random.Generator) -> Mask:
    """[side, side] bool: where such a field, turned about the middle by up to 90 degrees, is above the threshold.

    What is turned in from beyond the image is no part of it. The shape may be empty.
    """
    cells = [2 ** int(SCALES * rng.random()) for _ in range(2)]
    angles = 2 * np.pi * rng.random((cells[0] + 1, cells[1] + 1))
    turn = np.deg2rad(uniform(rng, -MOST_TURN, MOST_TURN))
    axis, middle = np.arange(side), (side - 1) / 2
    y, x = axis[:, None] - middle, axis[None] - middle
    rows = np.cos(turn) * y - np.sin(turn) * x + middle
    columns = np.sin(turn) * y + np.cos(turn) * x + middle
    inside = (rows >= 0) & (rows <= side - 1) & (columns >= 0) & (columns <= side - 1)
    found: NDArray[np.bool_] = inside & (perlin(rows * cells[0] / side, columns * cells[1] / side, angles) > THRESHOLD)
    return found
