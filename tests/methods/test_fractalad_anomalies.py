"""FractalAD's anomalies: fractals, colours and recombination."""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np
import pytest
import torch

from kdad_bench.methods.fractalad import anomaly, colour, ifs

RECORDED = {  # key -> first 16 hex digits of the sha256 of the packed picture, 96 x 96, 20,000 points
    0: "d9b12654f2002e14",
    1: "fb40ce4cb3a00bbe",
    2: "6be83c70d532e047",
    17: "40438c523e769e1f",
    2024: "7fc04f8a2c273777",
}


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def picture_hash(picture: np.ndarray) -> str:
    return hashlib.sha256(np.packbits(picture).tobytes()).hexdigest()[:16]


def photograph(height: int = 48, width: int = 48, seed: int = 5) -> np.ndarray:
    rows, columns = np.indices((height, width))
    wave = 128 + 80 * np.sin(rows / 5 + seed) * np.cos(columns / 7)
    noise = rng(seed).integers(0, 30, (3, height, width))
    return np.clip(np.floor(wave + noise), 0, 255).astype(np.float32)


@pytest.mark.parametrize("key", sorted(RECORDED))
def test_fractals_match_their_recorded_hashes(key: int) -> None:
    assert picture_hash(ifs.fractal(rng(key), 96, 20_000)) == RECORDED[key]


def test_a_fractal_depends_on_its_seed_alone() -> None:
    np.random.seed(1)  # noqa: NPY002  (the global generator must not matter)
    first = ifs.fractal(rng(3), 64, 5000)
    np.random.seed(2)  # noqa: NPY002
    ifs.fractal(rng(4), 32, 1000)
    assert np.array_equal(first, ifs.fractal(rng(3), 64, 5000))
    assert not np.array_equal(first, ifs.fractal(rng(4), 64, 5000))


def test_singular_values_are_contractive_ordered_and_sum_into_the_factor() -> None:
    for key in range(300):
        for maps, factor in ((2, (3.5, 4.0)), (3, (4.0, 4.5)), (1, (0.5, 2.9))):
            values = ifs.singular_values(rng(key), maps, factor)
            first, second = values.T
            assert (first <= 1 + 1e-12).all()
            assert (second <= first + 1e-12).all()
            assert (second >= -1e-12).all()
            assert factor[0] - 1e-9 <= (first + 2 * second).sum() <= factor[1] + 1e-9


def test_systems_have_the_singular_values_and_probabilities_they_were_drawn_with() -> None:
    system = ifs.sample_system(rng(11))
    areas = np.abs(np.linalg.det(system.matrices))
    np.testing.assert_allclose(system.probabilities, areas / areas.sum(), rtol=1e-12)
    drawn = ifs.singular_values(rng(11))
    np.testing.assert_allclose(np.linalg.svd(system.matrices, compute_uv=False), drawn, atol=1e-12)
    assert (np.abs(system.translations) <= 1).all()


def test_points_lie_on_the_attractor_and_cover_it() -> None:
    """A Sierpinski triangle: every point is the image of a point of the triangle, and its holes stay empty."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 1.0]])
    system = ifs.System(
        matrices=np.stack([np.eye(2) / 2] * 3), translations=corners / 2, probabilities=np.full(3, 1 / 3)
    )
    points = ifs.attractor(system, 30_000, rng(1))
    assert points.shape == (30_000, 2)
    x, y = points.T
    barycentric = np.stack([y, x - y / 2, 1 - x - y / 2])
    assert (barycentric >= -1e-9).all()
    for level in range(1, 6):  # in the gasket, at every level one of the coordinates has its bit set, never none
        bits = np.floor(barycentric * 2**level) % 2
        assert (bits.sum(axis=0) >= 1 - 1e-9).all()
    thirds = [(barycentric[k] > 0.5).mean() for k in range(3)]
    np.testing.assert_allclose(thirds, 1 / 3, atol=0.02)


def test_a_sequential_chaos_game_draws_the_same_picture() -> None:
    system = ifs.sample_system(rng(8))
    point, chance, orbit = np.zeros(2), rng(99), []
    for step in range(40_000):
        k = int(chance.random() > system.probabilities[0])
        point = system.matrices[k] @ point + system.translations[k]
        if step > 50:
            orbit.append(point)
    ours = ifs.render(ifs.attractor(system, 40_000, rng(7)), 24, rng(1))
    theirs = ifs.render(np.array(orbit), 24, rng(1))
    assert (ours != theirs).mean() < 0.03


def test_a_dab_may_be_drawn_beside_its_point_and_the_bounding_box_fills_the_picture() -> None:
    points = np.array([[0.0, 0.0], [1.0, 2.0]])
    for key in range(20):
        dab = rng(key).random((3, 3)) < 0.5
        picture = ifs.render(points, 9, rng(key))
        expected = np.zeros((11, 11), dtype=bool)
        expected[0:3, 0:3] |= dab
        expected[8:11, 8:11] |= dab
        assert np.array_equal(picture, expected[1:10, 1:10])


@pytest.mark.parametrize("size", [1, 2, 31, 33])
def test_fractals_of_any_size_have_that_size(size: int) -> None:
    assert ifs.fractal(rng(2), size, 500).shape == (size, size)


def test_a_fractal_without_cells_or_points_is_refused() -> None:
    with pytest.raises(ValueError, match="size 0"):
        ifs.fractal(rng(0), 0, 10)


@pytest.mark.parametrize("turn", [0.0, 0.2, -0.13, 0.5])
def test_turning_the_hue_agrees_with_the_standard_library(turn: float) -> None:
    image = rng(3).integers(0, 256, (3, 6, 7)).astype(np.float32)
    image[:, 0] = image[0, 0]  # a grey row has no hue
    turned = colour.turn_hue(image, turn)
    for i, j in np.ndindex(6, 7):
        h, s, v = colorsys.rgb_to_hsv(*(image[:, i, j] / 255).tolist())
        expected = np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v)) * 255
        np.testing.assert_allclose(turned[:, i, j], expected, atol=0.51)


def test_scaled_channels_wrap_around_like_8_bit_numbers() -> None:
    image = photograph(8, 8)
    scaled = colour.random_channel_scaling(image, rng(6))
    changed = [c for c in range(3) if not np.array_equal(scaled[c], image[c])]
    assert len(changed) == 2
    assert scaled.min() >= 0
    assert scaled.max() <= 255
    chance = rng(6)
    for channel in np.argsort(chance.random(3))[:2]:
        expected = np.floor(image[channel] * np.float32(2 * chance.random())).astype(np.int64).astype(np.uint8)
        assert np.array_equal(scaled[channel], expected.astype(np.float32))


def test_a_jitter_of_strength_zero_changes_nothing_and_levels_stay_whole() -> None:
    image = photograph()
    assert np.array_equal(colour.random_jitter(image, rng(1)), image)
    jittered = colour.random_jitter(image, rng(1), brightness=1, contrast=1, saturation=0.2, hue=0.2)
    assert not np.array_equal(jittered, image)
    assert np.array_equal(jittered, np.clip(np.round(jittered), 0, 255))


def test_rotation_agrees_with_a_pixel_by_pixel_loop() -> None:
    patch, degrees = photograph(13, 13), 37.0
    turned, inside = anomaly.rotate(patch, degrees)
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    for i, j in np.ndindex(13, 13):
        row, column = (np.floor(np.array([c * (i - 6) - s * (j - 6), s * (i - 6) + c * (j - 6)]) + 6.5)).astype(int)
        within = 0 <= row < 13 and 0 <= column < 13
        assert inside[i, j] == within
        expected = patch[:, row, column] if within else np.zeros(3)
        assert np.array_equal(turned[:, i, j], expected)


@pytest.mark.parametrize("find_object", [False, True])
@pytest.mark.parametrize("shape", [(48, 48), (33, 64)])
def test_an_image_changes_only_where_its_mask_says(shape: tuple[int, int], find_object: bool) -> None:
    image = photograph(*shape)
    changed = 0
    for key in range(20):
        made = anomaly.recombine(image, rng(key), points=500, find_object=find_object)
        assert made.image.shape == image.shape
        assert np.array_equal(made.image[:, ~made.mask], image[:, ~made.mask])
        changed += int((made.image != image).any())
    assert changed >= 16  # nearly empty fractals exist, but are rare


def test_patches_stay_in_the_central_region_and_below_half_the_image() -> None:
    image = photograph(100, 100)
    for key in range(60):
        rows, columns = np.nonzero(anomaly.recombine(image, rng(key), points=500).mask)
        if len(rows):
            assert rows.min() >= 10
            assert columns.min() >= 10
            assert rows.max() < 90
            assert columns.max() < 90
            assert np.ptp(rows) < 50


def test_anomalies_are_pasted_on_the_object_when_it_is_looked_for() -> None:
    image = np.full((3, 96, 96), 20, dtype=np.float32)
    image[:, 60:84, 20:80] = photograph(24, 60) / 2 + 90
    found = [anomaly.recombine(image, rng(key), points=500, find_object=True).mask for key in range(30)]
    anywhere = [anomaly.recombine(image, rng(key), points=500).mask for key in range(30)]
    assert sum(mask[60:84, 20:80].any() for mask in found) >= 28
    assert sum(mask[60:84, 20:80].any() for mask in anywhere) < 25


def test_an_image_without_an_object_is_treated_as_without_the_switch() -> None:
    flat = np.full((3, 40, 40), 99, dtype=np.float32)
    ours, plain = (anomaly.recombine(flat, rng(3), points=500, find_object=switch) for switch in (True, False))
    assert np.array_equal(ours.mask, plain.mask)
    assert np.array_equal(ours.image, plain.image)


def test_the_shorter_side_of_a_tilted_bar_is_its_thickness() -> None:
    rows, columns = np.indices((80, 80)) - 40
    angle = np.deg2rad(30)
    along, across = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
    bar = (np.abs(along) < 30) & (np.abs(across) < 5)
    assert anomaly.shorter_side(bar) == pytest.approx(10, abs=1.6)


def test_finishing_dilates_the_mask_by_three_pixels_and_keeps_noise_inside_it() -> None:
    clean = photograph(40, 40)
    mask = np.zeros((40, 40), dtype=bool)
    mask[20, 20] = True
    expected = np.zeros((40, 40), dtype=bool)
    expected[17:24, 17:24] = True
    noisy = 0
    for key in range(20):
        jittered, made = anomaly.finish(clean, anomaly.Recombined(image=clean, mask=mask), rng(key))
        assert np.array_equal(made.mask, expected)
        noisy += int((made.image != jittered)[:, expected].mean() > 0.5)
        assert np.abs(made.image - jittered)[:, ~expected].max() <= 2  # the same jitter but for the mean of a contrast
    assert 4 <= noisy <= 16


def test_a_sample_depends_on_its_key_and_not_on_its_batch() -> None:
    images = torch.from_numpy(np.stack([photograph(seed=s) for s in range(4)])) / 255
    keys = [(0, 7, i) for i in range(4)]
    together = anomaly.anomalous(images, keys, points=500)
    for i in (0, 3):
        alone = anomaly.anomalous(images[i : i + 1], keys[i : i + 1], points=500)
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))
    other = anomaly.anomalous(images, [(0, 8, i) for i in range(4)], points=500)
    assert not torch.equal(other[1], together[1])


def test_samples_have_the_size_of_the_images_and_stay_in_range() -> None:
    images = torch.from_numpy(np.stack([photograph(50, 70, seed=s) for s in range(3)])) / 255
    clean, pasted, masks = anomaly.anomalous(images, [(i,) for i in range(3)], points=500)
    assert clean.shape == pasted.shape == (3, 3, 50, 70)
    assert masks.shape == (3, 50, 70)
    for made in (clean, pasted, masks):
        assert made.dtype == torch.float32
        assert made.min() >= 0
        assert made.max() <= 1
    assert set(masks.unique().tolist()) == {0.0, 1.0}
