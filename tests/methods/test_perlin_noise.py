"""Perlin's noise by its definition, the shapes cut out of it, and drawn textures; samples follow from their seed."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, floor, pi, sin, sqrt

import numpy as np
import pytest

from kdad_bench.methods.drawn_textures import COLOURS, KINDS, painted, stretched, texture
from kdad_bench.methods.draws import Floats, Mask
from kdad_bench.methods.perlin_noise import THRESHOLD, of_cells, perlin, random_field, random_shape

SIDE = 64
ANGLES = 2 * pi * np.random.default_rng(1).random((4, 6))


def by_definition(row: float, column: float, angles: Floats) -> float:
    """At one point: the four corners' slopes, blended by 6 t^5 - 15 t^4 + 10 t^3."""
    top, left = min(floor(row), len(angles) - 2), min(floor(column), len(angles[0]) - 2)
    down, right = row - top, column - left
    fade = [6 * t**5 - 15 * t**4 + 10 * t**3 for t in (down, right)]
    total = 0.0
    for i in (0, 1):
        for j in (0, 1):
            angle = angles[top + i][left + j]
            slope = cos(angle) * (down - i) + sin(angle) * (right - j)
            total += slope * (fade[0] if i else 1 - fade[0]) * (fade[1] if j else 1 - fade[1])
    return sqrt(2) * total


def check_perlin(of: Callable[[Floats, Floats, Floats], Floats]) -> None:
    rng = np.random.default_rng(3)
    rows, columns = 3 * rng.random(50), 5 * rng.random(50)
    expected = [by_definition(float(r), float(c), ANGLES) for r, c in zip(rows, columns, strict=True)]
    np.testing.assert_allclose(of(rows, columns, ANGLES), expected, atol=1e-12)


def test_the_field_is_its_definition_also_at_its_ends() -> None:
    check_perlin(perlin)
    ends = np.array([0.0, 3.0]), np.array([0.0, 5.0])
    np.testing.assert_allclose(perlin(*ends, ANGLES), 0, atol=1e-12)


FAULTY: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "axes exchanged": lambda rows, columns, angles: perlin(columns * 0.6, rows * 5 / 3, angles),
    "gradients turned round": lambda rows, columns, angles: perlin(rows, columns, angles + pi),
    "no root of two": lambda rows, columns, angles: perlin(rows, columns, angles) / sqrt(2),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_field_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_perlin(FAULTY[name])


def test_a_field_of_cells_vanishes_at_their_corners_and_nowhere_else() -> None:
    field = of_cells(SIDE, (4, 8), np.random.default_rng(0))
    np.testing.assert_allclose(field[::16, ::8], 0, atol=1e-12)
    assert float(np.abs(field).max()) <= 1
    assert float((np.abs(field) < 1e-9).mean()) < 0.02


def test_fields_have_one_to_thirty_two_cells_along_each_axis_on_their_own() -> None:
    """Along the first row of a corner's column the field changes its slope at the corners alone: count by zeros."""
    counts = set()
    for seed in range(60):
        field = random_field(SIDE, np.random.default_rng(seed))
        rows, columns = ((np.abs(field) < 1e-9).all(axis=axis).sum() for axis in (1, 0))
        zeros = np.argwhere(np.abs(field) < 1e-9)
        counts.add((len(np.unique(zeros[:, 0])), len(np.unique(zeros[:, 1]))))
        assert rows <= SIDE
        assert columns <= SIDE
    assert {a for a, _ in counts} == {b for _, b in counts} == {1, 2, 4, 8, 16, 32}
    assert any(a != b for a, b in counts)


def shapes(count: int = 300) -> list[Mask]:
    return [random_shape(SIDE, np.random.default_rng((seed, 7))) for seed in range(count)]


def test_shapes_cover_a_twentieth_of_the_image_and_some_are_empty() -> None:
    """The official generator's share of 4,000 masks of 256 px is 0.047 on average."""
    covered = np.array([shape.mean() for shape in shapes()])
    assert 0.04 < covered.mean() < 0.056
    assert covered.max() < 0.4
    assert 0 < (covered == 0).mean() < 0.1


def test_shapes_are_turned_and_leave_the_corners_out_more_often_than_the_middle() -> None:
    mean = np.mean(shapes(), axis=0)
    corners = np.mean([mean[:6, :6], mean[:6, -6:], mean[-6:, :6], mean[-6:, -6:]])
    assert corners < 0.6 * mean[16:-16, 16:-16].mean()


def test_samples_follow_from_their_seed_alone() -> None:
    first, again, other = (random_shape(SIDE, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    one, two = (texture(SIDE, np.random.default_rng((5, 1))) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("side", [32, 33, 256])
def test_every_kind_of_texture_fills_the_image_with_levels(kind: Callable[..., Floats], side: int) -> None:
    for seed in range(3):
        levels = kind(side, np.random.default_rng(seed))
        assert levels.shape == (side, side)
        assert 0 <= float(levels.min()) < float(levels.max()) <= 1


def test_textures_differ_are_coloured_and_lie_in_the_unit_interval() -> None:
    found = np.stack([texture(SIDE, np.random.default_rng(seed)) for seed in range(40)])
    assert found.shape == (40, 3, SIDE, SIDE)
    assert 0 <= found.min() < found.max() <= 1
    assert len({one.tobytes() for one in found}) == 40
    assert (np.abs(found[:, 0] - found[:, 1]).mean((1, 2)) > 0.02).mean() > 0.9
    assert (found.std((2, 3)).max(1) > 0.05).mean() > 0.9  # not one colour


def test_levels_become_colours_along_the_polygon() -> None:
    colours = np.array([[0.0, 0.2, 1.0], [0.5, 0.4, 0.0], [1.0, 0.0, 0.5]])
    assert len(colours) == COLOURS
    found = painted(np.array([[0.0, 0.25, 0.5, 1.0]]), colours)
    np.testing.assert_allclose(found[:, 0].T, [colours[0], (colours[0] + colours[1]) / 2, colours[1], colours[2]])


def test_a_constant_is_stretched_to_zero() -> None:
    assert stretched(np.full((3, 3), 0.7)).tolist() == np.zeros((3, 3)).tolist()
    assert stretched(np.array([2.0, 4.0, 3.0])).tolist() == [0.0, 1.0, 0.5]
    assert 0 < THRESHOLD < 1
