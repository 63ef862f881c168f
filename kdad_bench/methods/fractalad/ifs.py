"""Fractals of iterated function systems: Anderson and Farrell, WACV 2022, arXiv 2110.03091, as FractalAD uses them.

All chance comes from the `numpy` generator that is handed in, and only through `Generator.random`, so a fractal is a
pure function of its seed. Many orbits of the chaos game run side by side in place of one long one: the same attractor
and the same invariant measure, in a few dozen vector operations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kdad_bench.methods.draws import Floats, Mask, uniform

MAPS = 2  # affine maps per system: FractalAD, official code
SIGMA_FACTOR = (3.5, 4.0)  # sum of (s1 + 2 s2) over both maps: FractalAD, official code; (5+n)/2..(6+n)/2 for n = 2
ORBITS = 1000  # orbits of the chaos game that run side by side; they share the iterations
SETTLING = 20  # first iterations of an orbit, not drawn: all orbits leave from one point of the attractor


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """An iterated function system x -> A_k x + b_k, map k taken with probability p_k."""

    matrices: Floats  # [n, 2, 2], contractive
    translations: Floats  # [n, 2]
    probabilities: Floats  # [n], sums to 1


def singular_values(rng: np.random.Generator, maps: int = MAPS, factor: tuple[float, float] = SIGMA_FACTOR) -> Floats:
    """Singular values [maps, 2] with 1 >= s1 >= s2 >= 0 whose sum of s1 + 2 s2 is uniform in `factor`.

    Each map draws within the bounds that leave the remaining maps a solution (a map adds between 0 and 3 to the sum);
    the last one takes what is left.
    """
    left = uniform(rng, *factor)
    values = np.empty((maps, 2))
    for k in range(maps - 1):
        most_others = 3.0 * (maps - 1 - k)
        least = max(0.0, left - most_others)  # s1 + 2 s2 must reach this, or the others cannot make up the sum
        s1 = uniform(rng, least / 3, min(1.0, left))
        s2 = uniform(rng, max(0.0, (least - s1) / 2), min(s1, (left - s1) / 2))
        values[k] = s1, s2
        left -= s1 + 2 * s2
    s2 = uniform(rng, max(0.0, (left - 1) / 2), left / 3)
    values[-1] = left - 2 * s2, s2
    return values


def sample_system(rng: np.random.Generator, maps: int = MAPS) -> System:
    """A random system: A_k = R(theta) diag(s1, s2) R(phi) diag(+-1, +-1), b_k ~ U(-1, 1), p_k ~ |det A_k|."""
    values = singular_values(rng, maps)
    turns = 2 * np.pi * rng.random((maps, 2))
    signs = np.where(rng.random((maps, 2)) < 0.5, -1.0, 1.0)
    matrices = np.stack(
        [rotation(turns[k, 0]) @ np.diag(values[k]) @ rotation(turns[k, 1]) @ np.diag(signs[k]) for k in range(maps)]
    )
    areas = values.prod(axis=1)  # |det A_k|
    total = areas.sum()
    probabilities = areas / total if total > 0 else np.full(maps, 1 / maps)
    return System(matrices=matrices, translations=2 * rng.random((maps, 2)) - 1, probabilities=probabilities)


def attractor(system: System, points: int, rng: np.random.Generator) -> Floats:
    """`points` points [points, 2] on the attractor of `system`, by the chaos game."""
    orbits = min(ORBITS, points)
    steps = SETTLING + -(-points // orbits)
    cumulative = np.cumsum(system.probabilities)[:-1]
    choice = np.searchsorted(cumulative, rng.random((steps, orbits)), side="right")  # [steps, orbits] of 0..n-1
    table = np.concatenate([system.matrices.reshape(-1, 4), system.translations], axis=1)  # [n, 6]: a b c d e f
    a, b, c, d, e, f = (column[choice] for column in table.T)
    x, y = (np.full(orbits, value) for value in fixed_point(system))
    drawn = np.empty((2, steps - SETTLING, orbits))
    for step in range(steps):
        x, y = a[step] * x + b[step] * y + e[step], c[step] * x + d[step] * y + f[step]
        if step >= SETTLING:
            drawn[:, step - SETTLING] = x, y
    return drawn.reshape(2, -1)[:, :points].T


def render(points: Floats, size: int, rng: np.random.Generator) -> Mask:
    """The binary picture [size, size] of `points` [n, 2]: their bounding box fills it, each point a random 3 x 3 dab.

    Every cell of the dab is set with probability one half, one dab for the whole picture. The first coordinate of a
    point is its row; coordinates are cut, not rounded, to cells (official code).
    """
    dab = rng.random((3, 3)) < 0.5
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.where(high > low, high - low, 1.0)
    row, column = ((points - low) * ((size - 1) / extent)).astype(np.int64).T
    hit = np.zeros((size + 2, size + 2), dtype=np.bool_)  # a border of one cell, so that a dab may stick out
    hit[row + 1, column + 1] = True
    picture = np.zeros((size, size), dtype=np.bool_)
    for i, j in np.argwhere(dab):
        picture |= hit[2 - i : 2 - i + size, 2 - j : 2 - j + size]
    return picture


def fractal(rng: np.random.Generator, size: int, points: int) -> Mask:
    """A random fractal [size, size]; may be nearly empty, for FractalAD does not filter by density."""
    if size < 1 or points < 1:
        raise ValueError(f"a fractal needs at least one cell and one point, not size {size} and {points} points")
    return render(attractor(sample_system(rng), points, rng), size, rng)


def fixed_point(system: System) -> Floats:
    """The fixed point [2] of the most contractive map: a point of the attractor."""
    k = int(np.argmin(np.linalg.norm(system.matrices, axis=(1, 2))))
    point: Floats = np.linalg.solve(np.eye(2) - system.matrices[k], system.translations[k])
    return point


def rotation(angle: float) -> Floats:
    """The matrix [2, 2] that rotates by `angle` radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
