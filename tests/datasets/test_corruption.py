"""Corruptions: by image alone, more with every level, masks where they belong, and as docs/axes.md says."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdad_bench import datasets
from kdad_bench.datasets import Category, corruption
from kdad_bench.datasets.corruption import CORRUPTIONS, GEOMETRIC, LEVELS, PHOTOGRAPHIC, corrupted
from kdad_bench.datasets.loading import Regions
from kdad_bench.datasets.synthetic.drawing import Stream

PLACE = Category(dataset="folder:/data", name="bolt", root=Path("/data"), train=(), test=())
SIDE = 48
PAGE = (Path(__file__).parents[2] / "docs" / "axes.md").read_text(encoding="utf-8")


def images_of(count: int = 5, side: int = SIDE, channels: int = 3) -> datasets.TestSet:
    """Smooth random images with a square that the mask marks; the first is good."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 190, (count, channels, 6, 6))
    images = np.repeat(np.repeat(coarse, side // 6, 2), side // 6, 3).astype(np.uint8)
    masks = np.zeros((count, side, side), bool)
    masks[1:, side // 4 : side // 2, side // 3 : side // 2] = True
    labels = np.arange(count) > 0
    return datasets.TestSet(images, labels, masks, tuple(f"spot/{index:03}.png" for index in range(count)))


def part(of: datasets.TestSet, kept: list[int]) -> datasets.TestSet:
    assert of.masks is not None
    return datasets.TestSet(of.images[kept], of.labels[kept], of.masks[kept], tuple(of.names[index] for index in kept))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_by_itself_whatever_stands_beside_it(name: str) -> None:
    whole = corrupted(images_of(), PLACE, name, 3)
    again = corrupted(part(images_of(), [4, 2]), PLACE, name, 3)
    np.testing.assert_array_equal(again.images, whole.images[[4, 2]])
    np.testing.assert_array_equal(again.masks, whole.masks[[4, 2]])
    assert whole.images.dtype == np.uint8
    assert whole.names == images_of().names
    np.testing.assert_array_equal(whole.labels, images_of().labels)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_level_is_more_of_the_same(name: str) -> None:
    clean = images_of(side=96).images.astype(float)
    far = [np.abs(corrupted(images_of(side=96), PLACE, name, level).images - clean).mean() for level in LEVELS]
    assert far[0] > 0
    assert all(less < more for less, more in itertools.pairwise(far))


@pytest.mark.parametrize("name", PHOTOGRAPHIC)
def test_masks_stay_where_nothing_moves(name: str) -> None:
    np.testing.assert_array_equal(corrupted(images_of(), PLACE, name, 5).masks, images_of().masks)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("level", LEVELS)
def test_masks_go_where_the_defect_goes(name: str, level: int) -> None:
    clean = images_of(side=96)
    marked = clean._replace(images=np.repeat(clean.masks[:, None], 3, 1).astype(np.uint8) * 255)
    found = corrupted(marked, PLACE, name, level)
    seen = found.images[:, 0] > 127
    differs = (seen != found.masks).sum(axis=(1, 2))
    rim = 0 if name == "shift" else 0.1 * clean.masks[1].sum()  # bilinear beside nearest neighbour, along an edge
    assert differs.max() <= rim
    assert not found.masks[0].any()
    assert (found.masks[1:] != clean.masks[1:]).any(axis=(1, 2)).all()
    assert found.masks.dtype == bool


@pytest.mark.parametrize("name", GEOMETRIC)
def test_annotated_regions_go_with_their_image_and_one_that_leaves_it_is_left_out(name: str) -> None:
    whole = images_of(side=96)
    assert whole.masks is not None
    corner = np.zeros_like(whole.masks[:1])
    corner[0, 95, 47] = True
    regions = Regions(
        np.concatenate([whole.masks[1:], corner]), np.array([1, 2, 3, 4, 1]), np.array([0.1, 0.2, 0.3, 0.4, 1.0])
    )
    found = corrupted(whole._replace(regions=regions), PLACE, name, 5)
    assert found.regions is not None
    np.testing.assert_array_equal(found.regions.masks[:4], found.masks[1:])
    assert found.regions.shares[:4].tolist() == [0.1, 0.2, 0.3, 0.4]
    gone = GEOMETRIC[name](corner[0], 5, Stream(f"corruption/{name}/bolt/{whole.names[1]}"))
    assert len(found.regions.images) == 4 + int(gone.any())
    assert corrupted(whole._replace(regions=regions), PLACE, "noise", 5).regions is regions


def test_directions_and_signs_are_drawn_for_each_image() -> None:
    clean = images_of(count=24)
    for name in ("brightness", "shift", "rotation"):
        found = corrupted(clean._replace(images=np.repeat(clean.images[:1], 24, 0)), PLACE, name, 3)
        assert len({image.tobytes() for image in found.images}) > 1
        other = corrupted(clean, replace(PLACE, name="nut"), name, 3)
        assert not np.array_equal(other.images, corrupted(clean, PLACE, name, 3).images)


def test_a_category_without_masks_has_none_afterwards() -> None:
    assert corrupted(images_of()._replace(masks=None), PLACE, "shift", 2).masks is None


def test_a_scan_keeps_its_values_under_a_photographic_corruption_and_moves_with_its_photograph() -> None:
    both = images_of(channels=6)
    place = replace(PLACE, modality="rgb+depth")
    noisy = corrupted(both, place, "noise", 5)
    np.testing.assert_array_equal(noisy.images[:, 3:], both.images[:, 3:])
    assert (noisy.images[:, :3] != both.images[:, :3]).any()
    twice = both._replace(images=np.repeat(both.images[:, :3], 2, 0).reshape(5, 6, SIDE, SIDE))
    twice.images[:, 3:] = twice.images[:, :3]
    moved = corrupted(twice, place, "shift", 5)
    np.testing.assert_array_equal(moved.images[:, 3:], moved.images[:, :3])


@pytest.mark.parametrize("modality", ["depth", "rgb+depth"])
def test_a_turned_scan_has_the_normals_of_its_turned_relief(modality: str) -> None:
    """Its relief: a hill that leans to one side. Slopes by central differences, away from the borders."""
    side = 64
    down, right = np.mgrid[:side, :side] / side - 0.5
    height = np.exp(-30 * ((right - 0.03) ** 2 + 2 * (down + 0.05) ** 2) + right)

    def relief(of: np.ndarray) -> np.ndarray:
        slopes = np.gradient(of)
        return np.stack([128 - 900 * slopes[1], 128 - 900 * slopes[0]])

    scan = np.concatenate([height[None] * 60, relief(height)])
    whole = scan if modality == "depth" else np.concatenate([scan, scan])
    names = tuple(f"{number}.png" for number in range(6))
    clean = datasets.TestSet(np.rint(np.stack([whole] * 6)).astype(np.uint8), np.zeros(6, bool), None, names)
    found = corrupted(clean, replace(PLACE, modality=modality), "rotation", 5).images[:, -3:].astype(float)
    assert len({image.tobytes() for image in found}) == 2, "to the left and to the right"
    for image in found:
        expected = relief(image[0] / 60)
        inner = slice(14, -14)
        assert abs(expected - 128)[:, inner, inner].max() > 30
        np.testing.assert_allclose(image[1:, inner, inner], expected[:, inner, inner], atol=12)


def test_the_formulas_are_those_of_the_page() -> None:
    image = images_of(channels=3).images[1]

    def of(name: str, level: int = 5) -> np.ndarray:
        return corrupted(images_of(), PLACE, name, level).images[1].astype(float)

    difference = of("brightness", 1) - image
    assert np.unique(difference).tolist() in ([round(255 * 0.04)], [-round(255 * 0.04)])
    np.testing.assert_allclose(of("contrast"), image.mean() + 0.25 * (image - image.mean()), atol=0.5)
    noise = of("noise", 1) - image
    assert abs(noise.std() / 255 - 0.02) < 0.001
    assert abs(noise.mean()) < 0.5
    impulse = np.zeros((3, 101, 101), np.uint8)
    impulse[:, 50, 50] = 255
    spread = corruption.blur(impulse, 5, Stream("any"))[0] / 255
    distance = np.arange(101) - 50
    assert (spread.sum(0) * distance**2).sum() == pytest.approx((0.016 * 101) ** 2, rel=0.03)
    turned = np.flatnonzero(corruption.shift(np.arange(101)[None, None].repeat(101, 1), 5, Stream("b"))[0, 50] == 60)
    assert abs(int(turned[0]) - 60) in (0, 10)


def test_the_table_of_the_page_is_that_of_the_code() -> None:
    for name in CORRUPTIONS:
        line = re.search(rf"^\| `{name}` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
        assert line is not None, name
        assert [float(value) for value in line[1].split(",")] == list(getattr(corruption, name.upper()))
