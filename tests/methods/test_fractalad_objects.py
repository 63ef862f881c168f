"""How FractalAD finds the object of an image, and that anomalies are then made on it."""

from __future__ import annotations

import numpy as np
import pytest

from kdad_bench.methods.fractalad import anomaly, objects
from tests.methods.test_fractalad_anomalies import photograph, rng


def plate(background: float, thing: float, *, side: int = 256) -> np.ndarray:
    """[3, side, side] of one level with a rectangle, 60 x 30 cells of 256, of another."""
    image = np.full((3, side, side), background, dtype=np.float32)
    unit = side / 256
    image[:, int(100 * unit) : int(130 * unit), int(80 * unit) : int(140 * unit)] = thing
    return image


@pytest.mark.parametrize(
    ("background", "thing", "found"),
    [
        (128, 139, True),  # dark: brighter by more than 10
        (128, 138, False),
        (128, 20, False),  # dark: never darker
        (129, 79, True),  # bright: darker by 50
        (129, 80, False),
        (129, 250, False),  # bright: never brighter
        (0, 11, True),
        (255, 205, True),
    ],
)
def test_an_object_is_brighter_than_a_dark_background_or_darker_than_a_bright_one(
    background: float, thing: float, found: bool
) -> None:
    assert objects.object_mask(plate(background, thing))[115, 110] == found
    assert not objects.object_mask(plate(background, thing))[50, 50]


@pytest.mark.parametrize("side", [64, 128, 256, 300])
def test_the_mask_has_the_size_of_the_image_and_the_place_of_the_object(side: int) -> None:
    mask = objects.object_mask(plate(20, 200, side=side))
    assert mask.shape == (side, side)
    rows, columns = np.nonzero(mask)
    unit = side / 256
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == pytest.approx(
        [100 * unit, 130 * unit, 80 * unit, 140 * unit], abs=3 + unit
    )


def test_what_is_found_is_a_mean_of_25_cells_and_then_a_median_of_25() -> None:
    """A black pixel in an object one level above the threshold: the mean makes a hole of 5 x 5, whose corners, with 9
    of 25 cells, the median fills. A bright pixel on the background changes the mean by too little."""
    image = plate(20, 31)
    image[:, 115, 110] = 0
    image[:, 30, 30] = 200
    mask = objects.object_mask(image)
    assert not mask[115, 110]
    assert not mask[113:118, 110].any()
    assert mask[113, 108]
    assert mask[117, 112]
    assert not mask[25:36, 25:36].any()


def test_red_and_blue_change_places_in_the_luma_as_in_the_official_code() -> None:
    """A blue object of 60 levels adds 18 to a black picture's luma, a red one 7."""
    blue, red = plate(0, 0), plate(0, 0)
    blue[2], red[0] = plate(0, 60)[0], plate(0, 60)[0]
    assert objects.object_mask(blue).any()
    assert not objects.object_mask(red).any()


def test_the_picture_for_the_search_is_bilinear_and_rounded() -> None:
    row = np.array([[[0.0, 100.0, 200.0, 201.0]]])
    assert objects.resized(row, 1, 2).tolist() == [[[50.0, 201.0]]]  # 200.5 is rounded up
    assert objects.resized(row, 1, 8)[0, 0].tolist() == [0, 25, 75, 125, 175, 200, 201, 201]
    assert np.array_equal(objects.resized(photograph(9, 7), 9, 7), photograph(9, 7))


def test_the_shorter_side_of_a_tilted_bar_is_its_thickness() -> None:
    rows, columns = np.indices((160, 160)) - 80
    for degrees in (0, 10, 30, 45, 80):
        angle = np.deg2rad(degrees)
        along, across = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
        bar = (np.abs(along) <= 60) & (np.abs(across) <= 10)
        assert objects.shorter_side(bar) == pytest.approx(20, abs=1.5), degrees


@pytest.mark.parametrize("degrees", [0, 25, 60, 115])
def test_the_shorter_side_of_a_flat_triangle_is_its_height(degrees: int) -> None:
    """No edge of it runs across: the height is measured along a normal."""
    angle = np.deg2rad(degrees)
    rows, columns = np.indices((200, 200)) - 100
    along, up = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
    triangle = (up >= 0) & (up <= 30 * (1 - np.abs(along) / 70))
    assert objects.shorter_side(triangle) == pytest.approx(30, abs=1.5)


@pytest.mark.parametrize(
    ("cells", "side"),
    [
        ([(3, 3)], 0.0),
        ([(3, 3), (3, 4), (3, 5)], 0.0),
        ([(1, 1), (2, 2), (3, 3)], 0.0),
        ([(1, 1), (1, 2), (2, 1), (2, 2)], 1.0),
        ([(r, c) for r in range(4) for c in range(7)], 3.0),
        (
            [(0, 2), (1, 1), (1, 2), (1, 3), (2, 2), (2, 0), (2, 1), (2, 3), (2, 4), (3, 1), (3, 2), (3, 3), (4, 2)],
            2.83,
        ),
    ],
)
def test_sides_are_measured_from_centre_to_centre(cells: list[tuple[int, int]], side: float) -> None:
    outline = np.zeros((8, 8), dtype=bool)
    outline[tuple(np.array(cells).T)] = True
    assert objects.shorter_side(outline) == pytest.approx(side, abs=0.01)


def test_the_largest_part_counts_holes_as_its_own_and_corners_as_connected() -> None:
    outline = np.zeros((40, 40), dtype=bool)
    outline[2:20, 2:20] = True
    outline[3:19, 3:19] = False  # a ring of 68 cells that encloses 289
    outline[25:38, 25:38] = True  # 169 cells, enclosing 144
    part = objects.largest_part(outline)
    assert part[10, 10]
    assert not part[30, 30]
    outline[20:25, 20:25] |= np.eye(5, dtype=bool)  # a diagonal joins the two
    assert objects.largest_part(outline)[30, 30]


def test_what_a_part_encloses_is_the_area_within_the_centres_of_its_outermost_cells() -> None:
    """A diamond of 13 cells encloses 8, half of it where three cells meet; blocks of 3 x 4 and 4 x 4: 6 and 9."""
    diamond = [(row, column) for row in range(5) for column in range(5) if abs(row - 2) + abs(column - 2) <= 2]
    for height, larger in ((3, "diamond"), (4, "block")):
        outline = np.zeros((16, 24), dtype=bool)
        outline[tuple(np.array(diamond).T)] = True
        outline[9 : 9 + height, 15:19] = True
        part = objects.largest_part(outline)
        assert part.sum() == (13 if larger == "diamond" else 16)
        assert part[2, 2] == (larger == "diamond")


def test_anomalies_are_pasted_on_the_object_when_it_is_looked_for() -> None:
    image = np.full((3, 96, 96), 20, dtype=np.float32)
    image[:, 60:84, 20:80] = photograph(24, 60) / 2 + 90
    found = [anomaly.recombine(image, rng(key), points=500, find_object=True).mask for key in range(30)]
    anywhere = [anomaly.recombine(image, rng(key), points=500).mask for key in range(30)]
    assert sum(mask[60:84, 20:80].any() for mask in found) >= 28
    assert sum(mask[60:84, 20:80].any() for mask in anywhere) < 25


def test_centres_are_drawn_evenly_from_the_object_where_a_patch_fits() -> None:
    outline = np.zeros((50, 50), dtype=bool)
    outline[:, 20:30] = True
    corners = np.array([anomaly.corner_on_object(outline, 20, rng(key)) for key in range(800)])
    assert corners.min(axis=0).tolist() == [0, 10]  # centres from 10 to 40 and from 20 to 29
    assert corners.max(axis=0).tolist() == [30, 19]
    np.testing.assert_allclose(corners.mean(axis=0), [15, 14.5], atol=1)


def test_a_patch_that_fits_nowhere_on_the_object_is_moved_inwards() -> None:
    outline = np.zeros((50, 50), dtype=bool)
    outline[:3, 48:] = True
    assert {anomaly.corner_on_object(outline, 21, rng(key)) for key in range(20)} == {(0, 29)}


def test_the_side_of_a_patch_follows_the_objects_shorter_side() -> None:
    image = plate(20, 200)
    shorter = objects.shorter_side(objects.object_mask(image))
    sides = [anomaly.patch_side(shorter, anomaly.OBJECT_SIDE, image, rng(key)) for key in range(600)]
    assert shorter == pytest.approx(31, abs=4)
    assert min(sides) == 2
    assert max(sides) == pytest.approx(1.5 * shorter, abs=1)
    assert np.mean(sides) == pytest.approx(0.775 * shorter, abs=1.5)
    assert max(anomaly.patch_side(1e6, (0.5, 1), image, rng(key)) for key in range(9)) == 255


def test_an_image_without_an_object_is_treated_as_without_the_switch() -> None:
    flat = np.full((3, 40, 40), 99, dtype=np.float32)
    ours, plain = (anomaly.recombine(flat, rng(3), points=500, find_object=switch) for switch in (True, False))
    assert np.array_equal(ours.mask, plain.mask)
    assert np.array_equal(ours.image, plain.image)
