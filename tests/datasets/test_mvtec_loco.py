"""MVTec LOCO: regions in files of their own, each with the share of its area that counts as all of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.verify import verify
from tests.datasets.short import SIDE, pixels, short


@pytest.fixture
def loco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The category of a short MVTec LOCO."""
    return short("mvtec_loco", tmp_path, monkeypatch) / "synthetic_pushpins"


def region(loco: Path, name: str, value: int, rows: slice, columns: slice) -> None:
    """One more region of the first logical anomaly."""
    mask = np.zeros(pixels(loco / "test/logical_anomalies/000.png").shape[:2], np.uint8)
    mask[rows, columns] = value
    Image.fromarray(mask).save(loco / "ground_truth/logical_anomalies/000" / name)


def configure(loco: Path, *entries: tuple[int, float, bool]) -> None:
    (loco / "defects_config.json").write_text(json.dumps([
        {"defect_name": str(value), "pixel_value": value, "saturation_threshold": area, "relative_saturation": relative}
        for value, area, relative in entries
    ]))  # fmt: skip


def only(loco: Path) -> datasets.Category:
    (found,) = datasets.categories(f"folder:{loco}", None)
    return found


def test_regions_stay_apart_with_the_share_that_saturates(loco: Path) -> None:
    configure(loco, (255, 0.5, True), (254, 1.0, True), (7, 30, False), (9, 5000, False), (11, 0.3, True))
    region(loco, "001.png", 7, slice(0, 6), slice(0, 10))  # 60 pixels, 30 of them do
    region(loco, "002.png", 9, slice(4, 8), slice(5, 25))  # overlaps it; all 80 are needed
    region(loco, "003.png", 11, slice(30, 31), slice(30, 32))  # 0.6 of a pixel: one is
    test = datasets.load_test(only(loco), SIDE)
    assert test.masks is not None
    assert test.regions is not None
    own = np.flatnonzero(test.regions.images == 2)  # after two good images
    assert test.regions.shares[own[1:]].tolist() == [0.5, 1.0, 0.5]
    drawn = pixels(only(loco).test[2].masks[0]) > 0
    assert test.regions.shares[own[0]] == int(0.5 * drawn.sum()) / drawn.sum()
    assert np.array_equal(test.regions.masks[own].any(axis=0), test.masks[2])
    assert (test.regions.masks[own[1]] & test.regions.masks[own[2]]).any()
    again = datasets.load_test(only(loco), SIDE // 2).regions  # the shares from the cache
    assert again is not None
    assert np.array_equal(again.shares, test.regions.shares)


def test_the_saturation_is_part_of_the_fingerprint(loco: Path) -> None:
    before = datasets.fingerprint(only(loco))
    configure(loco, (255, 0.25, True), (254, 1.0, True))
    assert datasets.fingerprint(only(loco)) != before
    regions = datasets.load_test(only(loco), SIDE).regions
    assert regions is not None
    assert regions.shares.min() < 0.3


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([(255, 0.5, True)], "a region marked with 254; it must be one value of the listed 255"),
        ([(255, 0.5, True), (255, 0.5, True)], "stands twice"),
        ([(256, 0.5, True)], "outside of 1 .. 255"),
        ([(255, 1.5, True)], "not a list of defects with their saturation"),
        ([(255, 0, False)], "not a list of defects with their saturation"),
        ([(255, -3, False)], "not a list of defects with their saturation"),
        ([(math.inf, 0.5, True)], "not a list of defects with their saturation"),
        ([(255, 10**400, False)], "not a list of defects with their saturation"),
    ],
)
def test_a_saturation_that_does_not_fit_is_one_line(
    loco: Path, entries: list[tuple[float, float, bool]], said: str
) -> None:
    configure(loco, *entries)
    with pytest.raises(DatasetError, match=said) as error:
        datasets.load_test(only(loco), SIDE)
    assert "\n" not in str(error.value)
    assert sum(said in line for line in verify(loco.parent).categories[0].problems) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[[]]", '[{"pixel_value": 1}]', '"x"', "[" * 5000])
def test_a_damaged_saturation_is_one_line(loco: Path, text: str) -> None:
    (loco / "defects_config.json").write_text(text)
    with pytest.raises(DatasetError, match=r"defects_config\.json: ") as error:
        datasets.load_test(only(loco), SIDE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fill", ["nothing", "two values"])
def test_a_region_marks_with_one_value(loco: Path, fill: str) -> None:
    region(loco, "001.png", 255 if fill == "two values" else 0, slice(0, 6), slice(0, 10))
    if fill == "two values":
        path = loco / "ground_truth/logical_anomalies/000/001.png"
        mask = pixels(path).copy()
        mask[0, 0] = 254
        Image.fromarray(mask).save(path)
    with pytest.raises(DatasetError, match=r"001\.png: .*region"):
        datasets.load_test(only(loco), SIDE)


def test_without_the_file_there_are_masks_and_no_saturation(loco: Path) -> None:
    (loco / "defects_config.json").unlink()
    test = datasets.load_test(only(loco), SIDE)
    assert test.masks is not None
    assert test.regions is None


def test_an_image_with_an_empty_folder_of_masks_has_none(loco: Path) -> None:
    (loco / "ground_truth/logical_anomalies/000/000.png").unlink()
    with pytest.raises(DatasetError, match=r"the mask of test/logical_anomalies/000\.png is missing"):
        only(loco)


def test_a_folder_of_masks_beside_a_mask_and_one_of_no_image_are_told(loco: Path) -> None:
    kind = loco / "ground_truth/logical_anomalies"
    shutil.copy(kind / "000/000.png", kind / "000_mask.png")
    shutil.copytree(kind / "000", kind / "777")
    (kind / "000/inner").mkdir()
    shutil.copy(kind / "000/000.png", kind / "000/inner/0.png")
    assert sum("folders inside a folder of images" in line for line in only(loco).remarks) == 1
    assert only(loco).test[2].masks == (kind / "000_mask.png",)
    assert sum("folders inside a folder" in line for line in verify(loco.parent).categories[0].problems) == 2
