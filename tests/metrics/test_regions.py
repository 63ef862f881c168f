"""The region index and its file in the cache folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdad_bench.metrics import regions
from kdad_bench.metrics.regions import RegionIndex, region_index
from tests.metrics.metrics_by_definition import regions_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))
    return tmp_path / "regions"


def some_masks(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, 12, 9)) < 0.2


def same(a: RegionIndex, b: RegionIndex) -> bool:
    pairs = zip((a.positions, a.regions, a.sizes, a.images), (b.positions, b.regions, b.sizes, b.images), strict=True)
    return a.shape == b.shape and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_regions_are_those_of_a_flood_fill(seed: int, share: float) -> None:
    masks = np.random.default_rng(seed).random((3, 7, 8)) < share
    index = region_index(masks)
    expected = {frozenset((i, y, x) for y, x in region) for i, mask in enumerate(masks) for region in regions_of(mask)}
    places = np.stack(np.unravel_index(index.positions, masks.shape), axis=1)
    found = {frozenset(map(tuple, places[index.regions == r].tolist())) for r in range(index.count)}
    assert found == expected
    assert index.sizes.tolist() == np.bincount(index.regions, minlength=index.count).tolist()
    assert [places[index.regions == r][0, 0] for r in range(index.count)] == index.images.tolist()


def test_the_index_is_read_back_and_not_built_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = region_index(some_masks(), "mvtec_ad/bottle/256")
    assert [path.name for path in cache.iterdir()] == ["mvtec_ad-bottle-256.npz"]
    monkeypatch.setattr(regions, "_built", lambda masks: pytest.fail("built although cached"))
    assert same(region_index(some_masks(), "mvtec_ad/bottle/256"), built)


def test_other_masks_under_the_same_key_replace_the_index(cache: Path) -> None:
    region_index(some_masks(0), "key")
    assert same(region_index(some_masks(1), "key"), region_index(some_masks(1)))
    assert same(region_index(some_masks(1), "key"), region_index(some_masks(1)))
    assert len(list(cache.iterdir())) == 1
    reshaped = some_masks(1).reshape(3, 9, 12)
    assert same(region_index(reshaped, "key"), region_index(reshaped))


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped bit", "other archive", "folder"])
def test_a_damaged_file_is_rebuilt(cache: Path, damage: str) -> None:
    expected = region_index(some_masks(), "key")
    path = cache / "key.npz"
    content = bytearray(path.read_bytes())
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "flipped bit":
        at = content.index(expected.positions.tobytes())
        content[at] ^= 1
        path.write_bytes(content)
    elif damage == "other archive":
        np.savez(path, positions=np.array([1]))
    else:
        path.unlink()
        path.mkdir()
    assert same(region_index(some_masks(), "key"), expected)
    if damage != "folder":
        assert path.stat().st_size == len(content)


def test_a_folder_that_cannot_be_written_only_costs_the_rebuild(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "file"))
    assert same(region_index(some_masks(), "key"), region_index(some_masks()))


def test_no_temporary_file_is_left_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(regions.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        region_index(some_masks(), "key")
    assert list(cache.iterdir()) == []


def test_masks_need_three_dimensions() -> None:
    with pytest.raises(ValueError, match=r"masks of shape \(4, 4\); they must be \[N, H, W\]"):
        region_index(np.zeros((4, 4), bool))
