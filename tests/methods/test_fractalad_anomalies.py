"""FractalAD's anomalies: fractals, colours and recombination; objects are in test_fractalad_objects."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy import ndimage

from kdad_bench.methods.fractalad import anomaly, colour, ifs

RECORDED = {  # key -> first 16 hex digits of the sha256 of the packed picture, 96 x 96, 20,000 points
    0: "d714256998bb29b1",
    1: "35d99a77ff6f0392",
    2: "d4a6ee6e14313781",
    17: "3dfc728b31c9375d",
    2024: "5bf90d3eab6544bf",
}


def rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


CHANGES = ("brightness", "contrast", "saturation", "hue")


class Draws:
    """A source of chance that gives what it was made with."""

    def __init__(self, *draws: float) -> None:
        self.left = list(draws)

    def random(self) -> float:
        return self.left.pop(0)


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


def test_a_fractal_of_one_point_is_one_cell() -> None:
    assert ifs.fractal(rng(3), 16, 1).sum() == 1


def test_a_fractal_without_cells_or_points_is_refused() -> None:
    with pytest.raises(ValueError, match="size 0"):
        ifs.fractal(rng(0), 0, 10)


def picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8))


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).transpose(2, 0, 1).astype(np.float32)


def colours(side: int = 64) -> np.ndarray:
    """Every kind of colour: random ones, greys, black, white, pure ones."""
    image = rng(3).integers(0, 256, (3, side, side)).astype(np.float32)
    image[:, 0] = image[0, 0]
    image[:, 1] = np.resize(np.array([0, 255]), (3, side))
    return image


def pillow_hue(image: np.ndarray, turn: float) -> np.ndarray:
    hue, saturation, value = picture(image).convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(turn * 255)) % 256
    return levels(Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB"))


@pytest.mark.parametrize("turn", [0.0, 0.2, -0.13, 0.5, -0.0499])
def test_turning_the_hue_is_pillows(turn: float) -> None:
    difference = np.abs(colour.turn_hue(colours(), turn) - pillow_hue(colours(), turn))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return colour.blend(image, np.float32(np.floor(colour.grey(image).mean(dtype=np.float64) + 0.5)), factor)


ENHANCED: dict[str, tuple[type, Callable[[np.ndarray, float], np.ndarray]]] = {
    "brightness": (ImageEnhance.Brightness, lambda image, factor: colour.blend(image, np.float32(0), factor)),
    "contrast": (ImageEnhance.Contrast, contrast),
    "saturation": (ImageEnhance.Color, lambda image, factor: colour.blend(image, colour.grey(image), factor)),
}


@pytest.mark.parametrize("factor", [0.0, 0.03, 0.5, 0.97, 1.0, 1.2, 1.99])
@pytest.mark.parametrize("change", ENHANCED)
def test_a_change_of_colour_is_pillows_level_for_level(change: str, factor: float) -> None:
    pillow, ours = ENHANCED[change]
    assert np.array_equal(ours(colours(), factor), levels(pillow(picture(colours())).enhance(factor)))


def test_a_jitter_draws_factors_hue_and_order_as_torchvision_does() -> None:
    """On one grey, where only brightness changes anything: its factor is uniform in 1 - s .. 1 + s, cut at 0."""
    image = np.full((3, 1, 1), 100, dtype=np.float32)
    weak, strong = (
        np.array([colour.random_jitter(image, rng(k), brightness=s, saturation=0.2)[0, 0, 0] for k in range(600)])
        for s in (0.2, 1.5)
    )
    assert (weak.min(), weak.max()) == (80, 119)
    assert weak.mean() == pytest.approx(99.5, abs=2)
    assert strong.min() == 0
    assert strong.mean() == pytest.approx(124.5, abs=12)


@pytest.mark.parametrize("key", range(6))
@pytest.mark.parametrize(
    "strengths",
    [{"brightness": 0.3}, {"contrast": 0.3}, {"saturation": 0.3}, {"hue": 0.3}, dict.fromkeys(CHANGES, 0.3)],
    ids=" ".join,
)
def test_a_jitter_is_its_four_changes_with_the_drawn_factors_in_the_drawn_order(
    key: int, strengths: dict[str, float]
) -> None:
    image, chance = photograph(16, 16), rng(key)
    at = [strengths.get(change, 0.0) for change in CHANGES]
    factors = [1 - s + 2 * s * chance.random() for s in at[:3]]
    turn = -at[3] + 2 * at[3] * chance.random()
    expected = image
    for change in np.argsort(chance.random(4)):
        if not at[change]:
            continue
        grey = colour.grey(expected)
        others = (np.float32(0), np.float32(np.floor(grey.mean(dtype=np.float64) + 0.5)), grey)
        if change == 3:
            expected = colour.turn_hue(expected, turn)
        else:
            expected = colour.blend(expected, others[change], factors[change])
    made = colour.random_jitter(image, rng(key), **strengths)
    assert not np.array_equal(made, image)
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(("draw", "expected"), [(0.0, "mild"), (0.33, "mild"), (0.34, "light"), (0.66, "light")])
def test_the_changes_of_colour_have_their_strengths(
    monkeypatch: pytest.MonkeyPatch, draw: float, expected: str
) -> None:
    """Official code: ColorJitter(0.2, 0.2, 0.2, 0.2) and ColorJitter(brightness=1, contrast=1)."""
    given: list[dict[str, float]] = []
    monkeypatch.setattr(anomaly, "random_jitter", lambda patch, chance, **strengths: given.append(strengths) or patch)
    anomaly.change_colour(photograph(8, 8), Draws(draw))  # type: ignore[arg-type]
    assert given == [dict.fromkeys(CHANGES, 0.2) if expected == "mild" else {"brightness": 1.0, "contrast": 1.0}]


@pytest.mark.parametrize(("draw", "noisy"), [(0.0, True), (0.4999, True), (0.5, False), (0.9, False)])
def test_noise_is_added_where_its_draw_is_below_a_half(
    monkeypatch: pytest.MonkeyPatch, draw: float, noisy: bool
) -> None:
    clean, mask = np.full((3, 12, 12), 100, dtype=np.float32), np.ones((12, 12), dtype=bool)
    monkeypatch.setattr(anomaly, "normal", lambda chance, count: np.ones(count, dtype=np.float32))
    monkeypatch.setattr(anomaly, "random_jitter", lambda levels, chance, **strengths: levels)
    made = anomaly.finish(clean, anomaly.Recombined(image=clean, mask=mask), Draws(draw, 0.0))[1]  # type: ignore[arg-type]
    assert set(made.image.ravel()) == {100 + anomaly.NOISE_LEVELS if noisy else 100}


def test_normal_numbers_are_box_and_mullers() -> None:
    first, second = rng(4).random((2, 500))
    expected = np.sqrt(-2 * np.log(1 - first)) * np.cos(2 * np.pi * second)
    np.testing.assert_allclose(anomaly.normal(rng(4), 500), expected, rtol=1e-5, atol=1e-6)


def test_channels_are_scaled_by_up_to_two_and_wrap_around_like_8_bit_numbers() -> None:
    image = photograph(8, 8)
    for key in range(30):
        scaled, chance, expected = colour.random_channel_scaling(image, rng(key)), rng(key), image.copy()
        for channel in (3 * chance.random(2)).astype(int):
            product = expected[channel].astype(np.float64) * (2 * chance.random())
            expected[channel] = product.astype(np.int64).astype(np.uint8)
        assert np.array_equal(scaled, expected)


def test_the_two_channels_are_drawn_with_replacement() -> None:
    """As numpy's choice(3, 2) in the official code: one time in three it is one channel, scaled twice."""
    image = photograph(8, 8)
    changed = [
        sum(not np.array_equal(a, b) for a, b in zip(colour.random_channel_scaling(image, rng(k)), image, strict=True))
        for k in range(600)
    ]
    assert set(changed) == {1, 2}
    assert changed.count(1) / 600 == pytest.approx(1 / 3, abs=0.06)


def test_a_jitter_of_strength_zero_changes_nothing_and_levels_stay_whole() -> None:
    image = photograph()
    assert np.array_equal(colour.random_jitter(image, rng(1)), image)
    jittered = colour.random_jitter(image, rng(1), brightness=1, contrast=1, saturation=0.2, hue=0.2)
    assert not np.array_equal(jittered, image)
    assert np.array_equal(jittered, np.clip(np.floor(jittered), 0, 255))


@pytest.mark.parametrize(("side", "degrees"), [(13, 37.0), (14, 15.5), (40, 74.0), (41, 60.1)])
def test_rotation_is_pillows(side: int, degrees: float) -> None:
    patch = photograph(side, side)
    turned, inside = anomaly.rotate(patch, degrees)
    expected = levels(picture(patch).convert("RGBA").rotate(degrees, expand=False))
    assert (inside != (expected[3] > 0)).mean() < 0.01
    assert (turned != expected[:3] * inside).mean() < 0.01


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


@pytest.mark.parametrize(("sideways", "upright"), [(0.2, 0.7), (0.7, 0.2), (0.4999, 0.4999), (0.5, 0.5)])
def test_a_patch_is_turned_over_where_its_draw_is_below_a_half(
    monkeypatch: pytest.MonkeyPatch, sideways: float, upright: float
) -> None:
    """Inverted draws would be as likely, and every row of the method another."""
    image = photograph()
    monkeypatch.setattr(anomaly, "patch_side", lambda *given: 12)
    monkeypatch.setattr(anomaly, "corner_in_region", lambda *given: (20, 16))
    monkeypatch.setattr(anomaly, "change_colour", lambda patch, chance: patch.copy())
    monkeypatch.setattr(anomaly, "rotate", lambda patch, degrees: (patch, np.ones(patch.shape[1:], dtype=np.bool_)))
    monkeypatch.setattr(anomaly, "fractal", lambda chance, side, points: np.ones((side, side), dtype=np.bool_))
    made = anomaly.recombine(image, Draws(sideways, upright, 0.0), points=1)  # type: ignore[arg-type]
    patch = image[:, 20:32, 16:28]
    patch = patch[:, :, ::-1] if sideways < 0.5 else patch
    patch = patch[:, ::-1] if upright < 0.5 else patch
    np.testing.assert_array_equal(made.image[:, 20:32, 16:28], patch)


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
        difference = (made.image - jittered)[:, expected]
        assert np.abs(difference - difference.mean(axis=0)).max() <= 6  # one channel of noise for all three
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


def test_levels_are_those_of_an_8_bit_image_and_become_parts_of_one_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def pasted_white(image: np.ndarray, *_: object) -> tuple[np.ndarray, anomaly.Recombined]:
        mask = np.zeros(image.shape[1:], dtype=bool)
        return image, anomaly.Recombined(image=np.full_like(image, 255), mask=mask)

    monkeypatch.setattr(anomaly, "one_sample", pasted_white)
    levels = torch.arange(256.0).view(1, 16, 16).expand(3, 16, 16)
    nearby = (levels + torch.tensor([-0.4, 0.0, 0.4])[:, None, None]).clamp(0, 255) / 255
    clean, pasted, _ = anomaly.anomalous(nearby[None], [(0,)], points=1)
    assert torch.equal(clean[0], levels / 255)
    assert torch.equal(pasted[0], torch.ones(3, 16, 16))


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


def clouds(side: int, seed: int) -> np.ndarray:
    """[3, side, side]: soft clouds of colour over the full range, with a little noise."""
    chance = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(chance.normal(size=(3, side, side)), (0, side / 40, side / 40))
    soft = (soft - soft.min()) / (soft.max() - soft.min())
    return np.clip(np.floor(255 * soft + chance.normal(size=soft.shape) * 6), 0, 255).astype(np.float32)


def test_the_statistics_of_anomalies_are_those_of_the_official_generator() -> None:
    """Its means over 1,500 samples of the same twenty clouds, 256 x 256 px; within four standard errors of ours."""
    count = 100
    images = [torch.from_numpy(clouds(256, seed))[None] / 255 for seed in range(8)]
    made = [anomaly.anomalous(images[k % 8], [(k,)], points=100_000) for k in range(count)]
    differences = [(255 * (pasted - clean)).abs().mean(dim=1)[0].numpy() for clean, pasted, _ in made]
    masks = [mask[0].numpy() > 0 for _, _, mask in made]
    seen = [k for k in range(count) if masks[k].any()]
    assert np.mean([masks[k].mean() for k in range(count)]) == pytest.approx(0.0591, abs=0.016)
    extents = [max(np.ptp(axis) + 1 for axis in np.nonzero(masks[k])) for k in seen]
    assert np.mean(extents) == pytest.approx(79.7, abs=12)
    assert np.mean([differences[k][masks[k]].mean() for k in seen]) == pytest.approx(32.0, abs=6)
    assert np.mean([differences[k][~masks[k]].mean() for k in seen]) < 0.1
    rough = [np.abs(ndimage.laplace(differences[k]))[masks[k]].mean() for k in seen]
    assert np.mean(rough) > 15  # fine structure: fractals, not blobs


def test_the_share_of_a_patch_that_a_fractal_covers_is_the_official_one() -> None:
    """Mean and quartiles over 1,000 fractals of 77 x 77 cells and 100,000 points drawn by the official package."""
    shares = np.array([ifs.fractal(rng(7, key), 77, 100_000).mean() for key in range(120)])
    assert shares.mean() == pytest.approx(0.403, abs=0.05)
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.281, 0.384, 0.512], atol=0.06)


def test_on_one_colour_the_patch_shows_by_its_change_of_colour_alone() -> None:
    image = np.full((3, 64, 64), 0, dtype=np.float32) + np.array([150, 90, 60], dtype=np.float32)[:, None, None]
    made = [anomaly.recombine(image, rng(key), points=2000) for key in range(60)]
    changed = [bool((one.image != image).any()) for one in made if one.mask.any()]
    assert np.mean(changed) > 0.9


def test_the_three_changes_of_colour_have_equal_chance() -> None:
    """Of a grey patch: channels scaled make it coloured, the strong light leaves it grey, as does the mild jitter."""
    patch = np.full((3, 8, 8), 100, dtype=np.float32)
    changed = [anomaly.change_colour(patch, rng(key)) for key in range(600)]
    coloured = [float(np.ptp(one[:, 0, 0])) > 0 for one in changed]
    assert np.mean(coloured) == pytest.approx(1 / 3, abs=0.07)
    far = [abs(float(one[0, 0, 0]) - 100) > 22 for one in changed if np.ptp(one[:, 0, 0]) == 0]
    assert np.mean(far) == pytest.approx(0.5 * 0.78, abs=0.08)  # a mild jitter stays within a fifth


def test_sides_of_patches_are_uniform_in_a_tenth_to_half_of_the_image() -> None:
    image = photograph(100, 140)
    sides = [anomaly.patch_side(100.0, anomaly.SIDE, image, rng(key)) for key in range(900)]
    assert (min(sides), max(sides)) == (10, 49)
    assert np.mean(sides) == pytest.approx(29.5, abs=1.5)
    assert np.std(sides) == pytest.approx(40 / 12**0.5, abs=0.8)


def test_half_of_the_samples_get_noise_of_ten_levels_inside_the_mask_alone() -> None:
    clean = np.full((3, 40, 40), 128, dtype=np.float32)
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    deviations = []
    for key in range(200):
        jittered, made = anomaly.finish(clean, anomaly.Recombined(image=clean, mask=mask), rng(key))
        difference = made.image - jittered
        deviations.append(difference[:, made.mask].std())
        assert np.abs(difference[:, ~made.mask]).max() <= 1
    noisy = [deviation for deviation in deviations if deviation > 1]
    assert len(noisy) / 200 == pytest.approx(0.5, abs=0.12)
    assert np.mean(noisy) == pytest.approx(10, abs=0.5)
    assert made.mask.sum() == 26 * 26
