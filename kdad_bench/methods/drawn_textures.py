"""Textures that are drawn, for methods that paste foreign ones: clouds, weaves, cells and grain in random colours.

They stand in for photographs of textures where none are at hand. All chance comes from the `numpy` generator that is
handed in, and only through `Generator.random`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from kdad_bench.methods.draws import Floats, uniform
from kdad_bench.methods.perlin_noise import of_cells

OCTAVES = 3
COARSEST = (2, 4, 8)  # cells along the side of a cloud's first octave
PERIODS = (2.0, 40.0)  # of a weave's stripes along the side
CELLS = (12, 120)
GRAINS = (1, 2, 4, 8)  # px of 256
COLOURS = 3  # of a texture
SENSOR = 0.02  # deviation of the noise of every pixel


def texture(side: int, rng: np.random.Generator) -> Floats:
    """[3, side, side] in [0, 1]: one of the kinds, its levels turned into colours."""
    kind = KINDS[int(len(KINDS) * rng.random())]
    coloured = painted(kind(side, rng), rng.random((COLOURS, 3)))
    noise = SENSOR * 12**0.5 * (rng.random((side, side)) - 0.5)
    return np.clip(coloured + noise, 0, 1)


def painted(levels: Floats, colours: Floats) -> Floats:
    """[3, H, W]: `levels` [H, W] in [0, 1] along the polygon through `colours` [K, 3]."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(levels, stops, channel) for channel in colours.T])


def stretched(values: Floats) -> Floats:
    """`values` brought to [0, 1]; of a constant field 0."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / max(high - low, 1e-12)


def clouds(side: int, rng: np.random.Generator) -> Floats:
    """Octaves of Perlin noise, each half as strong and half as large as the one before."""
    coarsest = COARSEST[int(len(COARSEST) * rng.random())]
    return stretched(sum(of_cells(side, (coarsest << k, coarsest << k), rng) / 2**k for k in range(OCTAVES)))


def weave(side: int, rng: np.random.Generator) -> Floats:
    """Stripes in a random direction, in half of the cases crossed by others, all bent by a cloud."""
    axis = np.arange(side) / side
    bend = uniform(rng, 0, 2) * of_cells(side, (4, 4), rng)
    waves = []
    for _ in range(1 + int(2 * rng.random())):
        turn, period = uniform(rng, 0, np.pi), np.exp(uniform(rng, *np.log(PERIODS)))
        phase = 2 * np.pi * (period * (np.cos(turn) * axis[:, None] + np.sin(turn) * axis) + rng.random()) + bend
        waves.append(np.sin(phase))
    return stretched(np.prod(waves, axis=0))


def cells(side: int, rng: np.random.Generator) -> Floats:
    """Cells about random points: each one level, or darker towards its border."""
    count = int(uniform(rng, *CELLS))
    points, levels = rng.random((count, 2)), rng.random(count)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1) / side
    away, nearest = cKDTree(points).query(grid, k=2)
    if rng.random() < 0.5:
        return np.asarray(levels[nearest[..., 0]])
    return stretched(away[..., 1] - away[..., 0])


def grain(side: int, rng: np.random.Generator) -> Floats:
    """Independent levels of squares of one size."""
    size = max(round(GRAINS[int(len(GRAINS) * rng.random())] * side / 256), 1)
    count = -(-side // size)
    return rng.random((count, count)).repeat(size, 0).repeat(size, 1)[:side, :side]


KINDS: tuple[Callable[[int, np.random.Generator], Floats], ...] = (clouds, weave, cells, grain)
