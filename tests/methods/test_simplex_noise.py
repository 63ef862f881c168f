"""OpenSimplex noise against its definition, one point and one vertex at a time, and the octaves made of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from kdad_bench.methods import simplex_noise
from kdad_bench.methods.simplex_noise import DIRECTIONS, fractal, noise, table_of_chance

Field = Callable[[Tensor, Tensor], Tensor]


def table(seed: int = 0) -> Tensor:
    return table_of_chance(torch.Generator().manual_seed(seed))


def position(vertex: np.ndarray) -> np.ndarray:
    """Where a vertex of whole coordinates lies: moved along the diagonal by a third of their sum."""
    return vertex + vertex.sum() / 3


def by_definition(point: np.ndarray, chance: list[int]) -> float:
    """All vertices within reach, and many beyond it."""
    cell, total = np.floor(point - point.sum() / 6).astype(int), 0.0
    for around in product(range(-3, 5), repeat=3):
        vertex = cell + np.array(around)
        away = point - position(vertex)
        if away @ away < 2:
            index = chance[(chance[(chance[vertex[0] % 256] + vertex[1]) % 256] + vertex[2]) % 256]
            total += (2 - away @ away) ** 4 * (away @ np.array(DIRECTIONS[index % 24]))
    return total / 103


def check_field(field: Field) -> None:
    points = 40 * torch.rand(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) - 20
    expected = [by_definition(point.numpy(), table().tolist()) for point in points]
    np.testing.assert_allclose(field(points, table()).numpy(), expected, rtol=0, atol=1e-12)


def test_the_field_is_the_sum_over_vertices() -> None:
    check_field(noise)


def too_few_vertices(points: Tensor, chance: Tensor) -> Tensor:
    around = simplex_noise.AROUND
    try:
        simplex_noise.AROUND = tuple(product((0, 1), repeat=3))
        return noise(points, chance)
    finally:
        simplex_noise.AROUND = around


FAULTY: dict[str, Field] = {
    "too few vertices": too_few_vertices,
    "shifted by one": lambda points, chance: noise(points + 1, chance),
    "coordinates exchanged": lambda points, chance: noise(points.flip(-1), chance),
    "another table": lambda points, chance: noise(points, chance.flip(0)),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_field_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_field(FAULTY[name])


def test_at_a_vertex_the_field_is_zero_and_rises_along_the_vertexs_direction() -> None:
    chance = table()
    for vertex in ((0, 0, 0), (1, -2, 5), (300, 7, -1)):
        at = torch.from_numpy(position(np.array(vertex, dtype=float)))
        assert float(noise(at[None], chance)) == pytest.approx(0, abs=1e-9)
        slope = [float(noise((at + step)[None], chance)) / 1e-4 for step in 1e-4 * torch.eye(3, dtype=torch.float64)]
        assert sorted(abs(value) * 103 / 16 for value in slope) == pytest.approx([4, 4, 11], rel=1e-2)


def test_the_directions_are_the_24_of_one_length() -> None:
    assert len(set(DIRECTIONS)) == 24
    assert {x * x + y * y + z * z for x, y, z in DIRECTIONS} == {11**2 + 2 * 4**2}
    assert all(sorted(map(abs, one)) == [4, 4, 11] for one in DIRECTIONS)


def test_the_field_stays_within_one_and_fills_it() -> None:
    values = noise(
        200 * torch.rand(20_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), table()
    )
    assert 0.7 < float(values.max()) <= 1
    assert -1 <= float(values.min()) < -0.7
    assert abs(float(values.mean())) < 0.02


def test_octaves_halve_their_scale_and_lose_two_fifths() -> None:
    chance, step = table(), 1 / 32
    found = fractal(3, 9, step, 3, 0.6, chance)
    for z, y, x in ((0, 0, 0), (0, 8, 3), (2, 1, 8), (1, 5, 5)):
        point = torch.tensor([x, y, z], dtype=torch.float64) * step
        values = [0.6**k * float(noise((2**k * point)[None], chance)) for k in range(3)]
        assert float(found[z, y, x]) == pytest.approx(sum(values), abs=1e-6)


def test_the_table_is_a_permutation_that_the_generator_decides() -> None:
    assert sorted(table().tolist()) == list(range(256))
    assert torch.equal(table(), table())
    assert not torch.equal(table(), table(1))
    assert float(noise(torch.full((1, 3), sqrt(2), dtype=torch.float64), table(1))) != 0
