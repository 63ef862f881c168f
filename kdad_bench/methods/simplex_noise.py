"""OpenSimplex noise in three dimensions (Spencer 2014), a smooth random field without the axes of Perlin's.

Space is filled by the vertices of the simplectic honeycomb, each with a direction chosen by a table of chance; a point
sees the vertices nearer than sqrt 2. Written as that sum, without the usual case analysis of which vertices those are.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

TABLE = 256  # entries of the table of chance
NORM = 103.0  # brings the field into [-1, 1]
# towards the edges of a cube's faces, 24 of them
DIRECTIONS = tuple(
    (x * a, y * b, z * c)
    for z, y, x in product((1, -1), (1, -1), (-1, 1))
    for a, b, c in ((11, 4, 4), (4, 11, 4), (4, 4, 11))
)
# vertices around a point's cell, of which the seen ones are some
AROUND = tuple(product((-1, 0, 1, 2), repeat=3))


def table_of_chance(generator: torch.Generator) -> Tensor:
    """A permutation [256] int64."""
    return torch.randperm(TABLE, generator=generator)


def noise(points: Tensor, table: Tensor) -> Tensor:
    """The field at `points` [..., 3] float64: [...] in [-1, 1], with the permutation `table` [256].

    Sum over vertices v of max(0, 2 - |p - v|^2)^4 (p - v) . direction(v) / 103.
    """
    skewed = points - points.sum(-1, keepdim=True) / 6
    cell = skewed.floor()
    directions = points.new_tensor(DIRECTIONS)
    total = points.new_zeros(points.shape[:-1])
    for around in AROUND:
        vertex = cell + points.new_tensor(around)
        away = points - vertex - vertex.sum(-1, keepdim=True) / 3
        nearness = (2 - away.square().sum(-1)).clamp_min(0)
        total += nearness.pow(4) * (away * directions[chosen(vertex.long(), table)]).sum(-1)
    return total / NORM


def chosen(vertex: Tensor, table: Tensor) -> Tensor:
    """Which direction the integer `vertex` [..., 3] has: int64 [...] below 24."""
    entry = table[vertex[..., 0] % TABLE]
    entry = table[(entry + vertex[..., 1]) % TABLE]
    return table[(entry + vertex[..., 2]) % TABLE] % len(DIRECTIONS)


def fractal(depth: int, side: int, step: float, octaves: int, persistence: float, table: Tensor) -> Tensor:
    """[depth, side, side] float32 at whole layers and pixels: octaves that halve their scale, each `persistence` of the
    one before. The first sees pixels `step` apart."""
    axis = torch.arange(side, dtype=torch.float64) * step
    layers = torch.arange(depth, dtype=torch.float64) * step
    z, y, x = torch.meshgrid(layers, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], dim=-1)
    parts = [persistence**k * noise(points * 2**k, table) for k in range(octaves)]
    return torch.stack(parts).sum(0).float()
