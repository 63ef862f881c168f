"""Scans: their layout, their faults, and the picture of their relief."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets import depth
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.synthetic.encoding import tiff

WIDE, HIGH = 40, 24
PITCH = 0.0005


def plate(bump: float = 0.01, *, tilt: float = 0.05, distance: float = 0.5, noise: float = 0.0) -> np.ndarray:
    """A scan [HIGH, WIDE, 3] of a tilted table with a square block of `bump` metres in the middle."""
    y, x = np.mgrid[0:HIGH, 0:WIDE].astype(np.float64)
    px, py = (x - WIDE / 2) * PITCH, (y - HIGH / 2) * PITCH
    block = (abs(x - WIDE / 2 + 0.5) < 8) & (abs(y - HIGH / 2 + 0.5) < 6)
    z = distance + tilt * px - 0.5 * tilt * py - bump * block
    z = z + np.random.default_rng(0).normal(size=z.shape) * noise
    return np.stack([px, py, z], axis=2).astype(np.float32)


def write_scans(root: Path) -> Path:
    """A category in the MVTec 3D-AD layout; defective scans have a dent."""
    rng = np.random.default_rng(1)
    for kind, count in (("train/good", 4), ("validation/good", 2), ("test/good", 2), ("test/dent", 2)):
        for name in ("rgb", "xyz", "gt"):
            (root / kind / name).mkdir(parents=True)
        for index in range(count):
            picture = rng.integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / kind / "rgb" / f"{index:03}.png")
            points = plate(noise=1e-5)
            mask = np.zeros((HIGH, WIDE), np.uint8)
            if kind == "test/dent":
                points[10:13, 18:22, 2] += 0.004
                mask[10:13, 18:22] = 255
            (root / kind / "xyz" / f"{index:03}.tiff").write_bytes(tiff(points))
            if kind.startswith("test"):
                Image.fromarray(mask).save(root / kind / "gt" / f"{index:03}.png")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "mvtec_3d_ad" / "bagel")


def load(tree: Path, modality: str = "rgb") -> datasets.Category:
    (found,) = datasets.categories("mvtec_3d_ad", tree.parent.parent, modality=modality)
    return found


def saved(path: Path, points: np.ndarray) -> Path:
    path.write_bytes(tiff(points.astype(np.float32)))
    return path


# --- layout ---------------------------------------------------------------------------------------------------------


def test_the_layout_is_read_with_validation_masks_and_scans(tree: Path) -> None:
    category = load(tree)
    assert (len(category.train), len(category.validation), len(category.test)) == (4, 2, 4)
    assert category.has_scans
    test = datasets.load_test(category, 24)
    assert test.masks is not None
    assert test.masks.any(axis=(1, 2)).tolist() == [True, True, False, False]  # dent, then good
    assert test.labels.tolist() == [True, True, False, False]
    assert datasets.find(tree.parent.parent) == ["mvtec_3d_ad"]


def test_held_out_normals_are_the_shipped_validation_split(tree: Path) -> None:
    normals = datasets.load_normals(load(tree), 16)
    assert (normals.source, len(normals.fit), len(normals.held_out)) == ("validation", 4, 2)


def test_every_modality_is_loaded(tree: Path) -> None:
    parts = datasets.single_modalities(load(tree, "rgb+depth"))
    assert [part.modality for part in parts] == ["rgb", "depth"]
    rgb, relief = (datasets.load_test(part, 24) for part in parts)
    assert rgb.images.shape == relief.images.shape == (4, 3, 24, 24)
    assert not np.array_equal(rgb.images, relief.images)
    assert rgb.names == relief.names
    assert len({datasets.fingerprint(part) for part in [*parts, load(tree, "rgb+depth")]}) == 3
    with pytest.raises(DatasetError, match="single_modalities"):
        datasets.load_train(load(tree, "rgb+depth"), 24)


def test_a_missing_scan_matters_for_depth_alone(tree: Path) -> None:
    scan = tree / "test" / "good" / "xyz" / "001.tiff"
    scan.unlink()
    assert not load(tree).has_scans
    with pytest.raises(DatasetError, match="scan is missing") as error:
        load(tree, "depth")
    assert str(scan) in str(error.value)


def test_a_data_set_without_scans_has_no_depth(tiny_tree: Path) -> None:
    with pytest.raises(DatasetError, match="no scans"):
        datasets.categories(f"folder:{tiny_tree}", None, modality="depth")
    with pytest.raises(DatasetError, match="must be one of"):
        datasets.categories("synthetic", None, modality="thermal")


def test_a_scan_in_millimetres_is_one_line(tmp_path: Path) -> None:
    """What is taken for the table, in metres, would be no point of it."""
    path = saved(tmp_path / "a.tiff", plate(noise=1e-5) * 1000)
    line = r"a\.tiff: points \d+ units away; scans are in metres: divide millimetres by 1000"
    with pytest.raises(DatasetError, match=line):
        depth.read_scan(path)
    assert depth.read_scan(saved(path, plate(noise=1e-5)))[..., 2].max() < 2


def test_a_file_of_several_scans_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, np.stack([plate(), plate()]).astype(np.float32), photometric="rgb")
    with pytest.raises(DatasetError, match=r"a\.tiff: holds 2 scans, of which one would be read; keep one in a file"):
        depth.read_scan(path)


@pytest.mark.filterwarnings("error")
def test_a_point_beyond_float32_is_no_data_and_no_warning(tmp_path: Path) -> None:
    points = plate().astype(np.float64)
    points[0, 0] = 1e300
    tifffile.imwrite(tmp_path / "a.tiff", points, photometric="rgb")
    assert depth.read_scan(tmp_path / "a.tiff")[0, 0].tolist() == [0, 0, 0]


def test_a_missing_mask_is_named(tree: Path) -> None:
    (tree / "test" / "dent" / "gt" / "001.png").unlink()
    with pytest.raises(DatasetError, match=r"dent/gt/001\.png: the mask is missing"):
        load(tree)


def test_without_any_mask_only_image_metrics_remain(tree: Path) -> None:
    for folder in tree.glob("test/*/gt"):
        shutil.rmtree(folder)
    assert datasets.load_test(load(tree), 16).masks is None


def test_a_scan_of_another_size_than_its_image_is_refused(tree: Path) -> None:
    scan = saved(tree / "train" / "good" / "xyz" / "000.tiff", plate()[:, :-1])
    with pytest.raises(DatasetError, match="its image is not") as error:
        datasets.load_train(load(tree, "depth"), 16)
    assert str(scan) in str(error.value)


# --- relief ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt", [0.0, 0.05, -0.2])
@pytest.mark.parametrize("distance", [0.3, 0.7])
def test_heights_do_not_depend_on_tilt_and_distance(tmp_path: Path, tilt: float, distance: float) -> None:
    height, found = depth.heights(plate(0.01, tilt=tilt, distance=distance, noise=2e-5), tmp_path)
    assert found.sum() == 16 * 12
    upright = 0.01 / np.sqrt(1 + tilt**2 + 0.25 * tilt**2)  # measured along the normal of the table
    assert np.abs(height[found] - upright).max() < 3e-4
    assert (height[~found] == 0).all()


def test_the_background_is_flat_and_grey(tmp_path: Path) -> None:
    relief = depth.render(saved(tmp_path / "a.tiff", plate(noise=2e-5)), 0.02)
    assert relief.shape == (HIGH, WIDE, 3)
    assert relief[0, 0].tolist() == [0, 128, 128]
    assert abs(int(relief[HIGH // 2, WIDE // 2, 0]) - 127) <= 4  # half of the highest relief
    assert np.abs(relief[HIGH // 2, WIDE // 2, 1:].astype(int) - 128).max() <= 12


def test_no_data_takes_the_value_beside_it(tmp_path: Path) -> None:
    points = plate()
    whole = depth.render(saved(tmp_path / "a.tiff", points), 0.02)
    points[11, 19] = 0.0
    points[12, 20] = np.nan
    points[12, 21] = (0.1, np.inf, 0.5)
    holes = depth.render(saved(tmp_path / "b.tiff", points), 0.02)
    assert np.abs(whole.astype(int) - holes.astype(int)).max() <= 12


def test_a_dent_shows_in_the_relief() -> None:
    (category,) = datasets.categories("synthetic_3d", None, ["sponge"], modality="depth")
    test = datasets.load_test(category, 96)
    assert test.masks is not None
    names = np.array([name.split("/")[0] for name in test.names])
    steep = np.abs(test.images[:, 1:].astype(int) - 128).max(axis=1)
    for kind, shows in (("dent", True), ("color", False)):
        chosen = names == kind
        rough = np.array([steep[i][test.masks[i]].mean() for i in np.flatnonzero(chosen)])
        assert (rough > 28).all() == shows, (kind, rough)


def test_the_scale_of_the_height_comes_from_training_scans_alone(tree: Path) -> None:
    before = datasets.load_train(load(tree, "depth"), 24).copy()
    saved(tree / "test" / "good" / "xyz" / "000.tiff", plate(0.2))
    assert np.array_equal(datasets.load_train(load(tree, "depth"), 24), before)


@pytest.mark.parametrize("case", ["no data", "nan", "one point", "flat", "line", "huge", "behind"])
def test_odd_scans_end_in_a_picture_or_in_one_line(tmp_path: Path, case: str) -> None:
    points = plate()
    if case == "no data":
        points[:] = 0
    elif case == "nan":
        points[:] = np.nan
    elif case == "one point":
        points[1:] = 0
        points[0, 1:] = 0
    elif case == "flat":
        points = plate(0.0)
    elif case == "line":
        points[1:] = 0
        points = np.repeat(points, 3, axis=1)
    elif case == "huge":
        points[:, :, 2] *= 1e30
    else:
        points[:, :, 2] *= -1
    path = saved(tmp_path / "scan.tiff", points)
    if case in ("flat", "line"):
        assert depth.render(path, 0.0).dtype == np.uint8
    else:
        with pytest.raises(DatasetError, match="points with data") as error:
            depth.render(path, 0.02)
        assert str(path) in str(error.value)


def test_a_tiff_that_is_no_scan_is_refused(tmp_path: Path) -> None:
    cases = {"grey.tiff": np.zeros((8, 8), np.float32), "bytes.tiff": np.zeros((8, 8, 3), np.uint8)}
    for name, values in cases.items():
        tifffile.imwrite(tmp_path / name, values)
        with pytest.raises(DatasetError, match="not a scan"):
            depth.read_scan(tmp_path / name)
    (tmp_path / "png.tiff").write_bytes(b"\x89PNG")
    with pytest.raises(DatasetError, match="not a readable scan"):
        depth.read_scan(tmp_path / "png.tiff")


def test_scans_written_by_tifffile_and_stored_by_channel_are_read(tmp_path: Path) -> None:
    points = plate()
    tifffile.imwrite(tmp_path / "a.tiff", points, photometric="rgb", compression="zlib")
    tifffile.imwrite(tmp_path / "b.tiff", points.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    for name in ("a.tiff", "b.tiff"):
        assert np.array_equal(depth.read_scan(tmp_path / name), points)


def test_a_scan_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    data = bytearray(tiff(plate()))
    for tag in range(11):  # width and height are the first two entries
        kind = int.from_bytes(data[10 + 12 * tag : 12 + 12 * tag], "little")
        if kind in (256, 257):
            data[18 + 12 * tag : 22 + 12 * tag] = (20_000).to_bytes(4, "little")
    (tmp_path / "bomb.tiff").write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="above the limit"):
        depth.read_scan(tmp_path / "bomb.tiff")


SCAN = tiff(plate())


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(
    cut=st.integers(0, len(SCAN)),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_fuzzed_scans_end_in_a_result_or_in_one_line(tmp_path: Path, cut: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(SCAN[: cut or None] if cut % 3 == 0 else SCAN)
    for place, value in flips:
        if data:
            data[place % len(data)] = value
    path = tmp_path / "fuzzed.tiff"
    path.write_bytes(bytes(data))
    message, shape = "", (3, 8, 8)
    try:
        shape = depth.read_depth(path, 8, 0.02)[0].shape
    except DatasetError as error:
        message = str(error)
    assert shape == (3, 8, 8)
    assert "\n" not in message
    assert not message or str(path) in message
