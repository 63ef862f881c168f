"""The region index and its file in the cache folder."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdad_bench.metrics import regions
from kdad_bench.metrics.regions import RegionIndex, region_index
from tests.metrics.metrics_by_definition import regions_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "regions" / "key.regions"


def some_masks(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, 12, 9)) < 0.2


def same(a: RegionIndex, b: RegionIndex) -> bool:
    pairs = zip((a.positions, a.regions, a.sizes, a.images), (b.positions, b.regions, b.sizes, b.images), strict=True)
    return a.shape == b.shape and all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


@settings(max_examples=60)
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


@pytest.mark.parametrize("piece", [1, 1 << 25])
def test_the_index_is_read_back_and_not_built_again(piece: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "PIECE", piece)  # pixels of the masks that are looked at together
    built = region_index(some_masks(), file)
    assert [path.name for path in file.parent.iterdir()] == ["key.regions"]
    monkeypatch.setattr(regions, "_built", lambda masks: pytest.fail("built although cached"))
    assert same(region_index(some_masks(), file), built)


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 3), (3, 5, 5)])
def test_an_index_without_regions_is_read_back(
    shape: tuple[int, ...], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = region_index(np.zeros(shape, bool), file)
    monkeypatch.setattr(regions, "_built", lambda masks: pytest.fail("built although cached"))
    assert same(region_index(np.zeros(shape, bool), file), built)


def test_other_masks_in_the_same_file_replace_the_index(file: Path) -> None:
    region_index(some_masks(0), file)
    assert same(region_index(some_masks(1), file), region_index(some_masks(1)))
    assert same(region_index(some_masks(1), file), region_index(some_masks(1)))
    assert len(list(file.parent.iterdir())) == 1
    reshaped = some_masks(1).reshape(3, 9, 12)
    assert same(region_index(reshaped, file), region_index(reshaped))


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "zeros", "other archive", "longer", "folder"])
def test_a_damaged_file_is_rebuilt(file: Path, damage: str) -> None:
    expected = region_index(some_masks(), file)
    content = file.read_bytes()
    if damage == "other archive":
        np.savez(file.with_suffix(".npz"), positions=np.array([1]))
        file.with_suffix(".npz").replace(file)
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        half = content[: len(content) // 2]
        found = {
            "empty": b"",
            "cut": half,
            "text": b"no index",
            "zeros": bytes(len(content)),
            "longer": content + b"\0",
        }
        file.write_bytes(found[damage])
    assert same(region_index(some_masks(), file), expected)
    if damage != "folder":
        assert file.read_bytes() == content


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.floats(0, 1), st.integers(1, 600), st.sampled_from([b"\0", b"\xff"]))
def test_any_stretch_of_the_file_that_was_overwritten_is_seen(file: Path, at: float, length: int, by: bytes) -> None:
    expected = region_index(some_masks(), file)
    content = file.read_bytes()
    start = int(at * (len(content) - 1))
    damaged = (content[:start] + by * length + content[start + length :])[: len(content)]
    file.write_bytes(damaged)
    assert same(region_index(some_masks(), file), expected)
    assert file.read_bytes() == content


LIES = {
    "a size of zero": {"sizes": lambda index: index.sizes * 0},
    "all positions zero": {"positions": lambda index: index.positions * 0},
    "positions of other pixels": {"positions": lambda index: index.positions + 1},
    "one region too many": {
        "sizes": lambda index: np.append(index.sizes, 0),
        "images": lambda index: np.append(index.images, 0),
    },
    "a region beyond the last": {"regions": lambda index: index.regions + np.uint32(1)},
    "regions of another image": {"images": lambda index: index.images[::-1].copy()},
    "sizes in another order": {"sizes": lambda index: np.sort(index.sizes)},
    "fewer regions than positions": {"regions": lambda index: index.regions[1:]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_under_a_right_checksum_is_rebuilt(lie: str, file: Path) -> None:
    """As a faulty writer, or an older one, would leave it."""
    masks = some_masks()
    expected = region_index(masks)
    changes = {part: change(expected) for part, change in LIES[lie].items()}
    file.parent.mkdir()
    file.write_bytes(regions._packed(dataclasses.replace(expected, **changes), masks))
    assert same(region_index(masks, file), expected)
    assert file.read_bytes() == regions._packed(expected, masks)


def test_a_file_that_cannot_be_written_only_costs_the_rebuild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    assert same(region_index(some_masks(), tmp_path / "file" / "key.regions"), region_index(some_masks()))
    for reason in (errno.ENOSPC, errno.EROFS, errno.EACCES):

        def full(*_: object, reason: int = reason) -> None:
            raise OSError(reason, "cannot be written")

        monkeypatch.setattr(regions, "write_bytes_whole", full)
        assert same(region_index(some_masks(), tmp_path / "key.regions"), region_index(some_masks()))
        assert not (tmp_path / "key.regions").exists()


def test_no_temporary_file_is_left_behind(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdad_bench.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        region_index(some_masks(), file)
    assert list(file.parent.iterdir()) == []


def test_masks_need_three_dimensions() -> None:
    with pytest.raises(ValueError, match=r"masks of shape \(4, 4\); they must be \[N, H, W\]"):
        region_index(np.zeros((4, 4), bool))


def test_a_pipe_in_the_place_of_the_file_is_not_read(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(file)
    masks = np.zeros((1, 4, 4), np.bool_)
    assert regions._read(file, masks) is None
