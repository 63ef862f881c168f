"""Trees on disk: what is read, what is converted, and the one line that everything else ends in."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets import cache
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.decoding import MAX_PIXELS, open_image, read_mask, read_rgb
from tests.conftest import SIDE, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of one category that a test may damage."""
    return write_tree(tmp_path / "tree", ("bolt",), train=4, test=2) / "bolt"


def only(tree: Path) -> datasets.Category:
    """The category of a tree."""
    (found,) = datasets.categories(f"folder:{tree}", None)
    return found


def one_line(error: pytest.ExceptionInfo[DatasetError], *parts: object) -> None:
    """The message is one line and names what it should."""
    message = str(error.value)
    assert "\n" not in message
    assert len(re.sub(r"/[^\s,;:']*", "", message)) < 300  # however deep the folder of the tests lies
    for part in parts:
        assert str(part) in message


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_tree_is_read_with_its_counts_labels_and_masks(tiny_tree: Path) -> None:
    found = datasets.categories(f"folder:{tiny_tree}", None)
    assert [category.name for category in found] == ["bolt", "cloth"]
    bolt = found[0]
    assert (len(bolt.train), len(bolt.test), bolt.has_masks, bolt.synthetic) == (6, 6, True, False)
    train, test = datasets.load_train(bolt, 32), datasets.load_test(bolt, 32)
    assert (train.shape, train.dtype) == ((6, 3, 32, 32), np.uint8)
    assert (test.images.shape, test.images.dtype) == ((6, 3, 32, 32), np.uint8)
    assert test.labels.tolist() == [False] * 3 + [True] * 3
    assert test.names[0] == "good/000.png"
    assert test.masks is not None
    assert (test.masks.shape, test.masks.dtype) == ((6, 32, 32), np.bool_)
    assert not test.masks[:3].any()
    assert test.masks[3:].any(axis=(1, 2)).all()


def test_pixels_are_those_of_pillows_bilinear_reduction(tiny_tree: Path) -> None:
    category = only(tiny_tree / "bolt")
    for resolution in (1, 31, 48, SIDE, 100):
        loaded = datasets.load_train(category, resolution)
        for sample, image in zip(category.train, loaded, strict=True):
            with Image.open(sample.path) as file:
                expected = file.convert("RGB").resize((resolution, resolution), Image.Resampling.BILINEAR)
            assert np.array_equal(image, np.asarray(expected).transpose(2, 0, 1))


def test_masks_are_taken_by_nearest_neighbour(tiny_tree: Path) -> None:
    category = only(tiny_tree / "bolt")
    masks = datasets.load_test(category, 24).masks
    assert masks is not None
    for sample, mask in zip(category.test, masks, strict=True):
        for path in sample.masks:
            with Image.open(path) as original:
                assert np.array_equal(mask, np.asarray(original.resize((24, 24), Image.Resampling.NEAREST)) > 0)


def test_without_masks_there_are_none_and_never_empty_ones(tree: Path) -> None:
    shutil.rmtree(tree / "ground_truth")
    category = only(tree)
    assert not category.has_masks
    assert datasets.load_test(category, 16).masks is None


def test_data_sets_are_found_under_a_data_root(tmp_path: Path) -> None:
    assert datasets.find(tmp_path) == []
    write_tree(tmp_path / "mvtec_ad", ("bottle",), train=2, test=1)
    assert datasets.find(tmp_path) == ["mvtec_ad"]
    assert datasets.find(tmp_path / "mvtec_ad") == ["mvtec_ad"]
    assert datasets.category_names("mvtec_ad", tmp_path) == ["bottle"]
    assert datasets.find(tmp_path / "absent") == []


def test_a_misspelt_category_names_those_there_are(tiny_tree: Path) -> None:
    with pytest.raises(DatasetError) as error:
        datasets.categories(f"folder:{tiny_tree}", None, ["bolts"])
    one_line(error, "'bolts'", "bolt, cloth")


@pytest.mark.parametrize("name", ["mvtec", "folders", "coco"])
def test_an_unknown_data_set_names_the_known_ones(name: str) -> None:
    with pytest.raises(DatasetError) as error:
        datasets.categories(name, None)
    one_line(error, name, "mvtec_3d_ad")


def test_an_absent_data_set_names_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as error:
        datasets.categories("mvtec_ad", tmp_path)
    one_line(error, tmp_path)
    with pytest.raises(DatasetError, match="KDAD_DATA"):
        datasets.categories("mvtec_ad", None)


# --- conversion -----------------------------------------------------------------------------------------------------

GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_grey_alpha_palette_and_sixteen_bits_become_rgb(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    grey = saved(tmp_path / "grey.png", Image.fromarray(GREY))
    alpha = saved(tmp_path / "alpha.png", Image.fromarray(colours))
    grey_alpha = saved(tmp_path / "la.png", Image.fromarray(colours[:, :, :2]))
    deep = saved(tmp_path / "deep.png", Image.fromarray(GREY.astype(np.uint16) * 257))
    palette = saved(tmp_path / "palette.png", Image.fromarray(GREY).convert("P"), transparency=b"\x00\x80")
    binary = saved(tmp_path / "binary.png", Image.fromarray(GREY > 100))
    for path in (grey, deep, palette):
        assert np.array_equal(read_rgb(path, 8)[0], np.stack([GREY] * 3)), path
    assert np.array_equal(read_rgb(alpha, 8)[0], colours[:, :, :3].transpose(2, 0, 1))
    assert np.array_equal(read_rgb(grey_alpha, 8)[0], np.stack([colours[:, :, 0]] * 3))
    assert np.array_equal(read_rgb(binary, 8)[0], np.stack([(GREY > 100) * np.uint8(255)] * 3))


def test_cmyk_and_a_wrong_suffix_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cmyk.png"
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).convert("CMYK").save(path, format="JPEG")
    assert abs(int(read_rgb(path, 8)[0].mean()) - 200) < 4


def test_exif_orientation_turns_image_and_mask_alike(tmp_path: Path) -> None:
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[0, :] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    path = saved(tmp_path / "turned.png", Image.fromarray(pixels), exif=exif)
    image, size = read_rgb(path, 8)
    assert size == (4, 8)
    assert np.array_equal(np.asarray(open_image(path))[:, :, 0], np.rot90(pixels[:, :, 0], -1))
    assert image[0, :, -1].min() > image[0, :, 0].max()
    assert read_mask(path, None).shape == (8, 4)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_is_any_value_above_zero_in_any_mode(tmp_path: Path, mode: str) -> None:
    marked = GREY > 128
    if mode == "I;16":
        image = Image.fromarray(marked.astype(np.uint16))
    else:
        image = Image.fromarray((marked * 255).astype(np.uint8)).convert(mode)
    assert np.array_equal(read_mask(saved(tmp_path / "mask.png", image), None), marked)


def test_an_image_of_one_pixel_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "dot.png", Image.fromarray(np.full((1, 1, 3), 7, np.uint8)))
    assert (read_rgb(path, 5)[0] == 7).all()


# --- faults ---------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that declares a size and has a few bytes of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(20_000, 20_000))
    with pytest.raises(DatasetError) as error:
        open_image(path)
    one_line(error, path, "20000 x 20000", MAX_PIXELS)


def test_a_wide_flat_image_within_the_limit_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "wide.png", Image.new("RGB", (20_000, 2), (1, 2, 3)))
    assert read_rgb(path, 16)[0][2].tolist() == [[3] * 16] * 16


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "html", "half header", "folder", "missing", "float"])
def test_a_damaged_image_ends_in_one_line_with_its_path(tree: Path, kind: str) -> None:
    path = tree / "train" / "good" / "001.png"
    data = path.read_bytes()
    category = only(tree)
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "float":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path, format="TIFF")
    elif kind != "missing":
        contents = {"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello", "half header": data[:20]}
        path.write_bytes(contents.get(kind, b"<html>moved</html>"))
    with pytest.raises(DatasetError) as error:
        datasets.load_train(category, 16)
    one_line(error, path)


def test_a_mask_of_another_size_is_refused(tree: Path) -> None:
    mask = tree / "ground_truth" / "spot" / "001_mask.png"
    Image.fromarray(np.ones((SIDE, SIDE + 1), np.uint8)).save(mask)
    category = only(tree)
    assert len(datasets.load_train(category, 16)) == 4
    for _ in range(2):  # the second time from a cache that knows the sizes
        with pytest.raises(DatasetError) as error:
            datasets.load_test(category, 16)
        one_line(error, mask, f"{SIDE + 1} x {SIDE}", f"{SIDE} x {SIDE}")


def test_a_missing_mask_is_named(tree: Path) -> None:
    mask = tree / "ground_truth" / "spot" / "000_mask.png"
    mask.unlink()
    with pytest.raises(DatasetError) as error:
        only(tree)
    one_line(error, mask, "test/spot/000.png")


@pytest.mark.parametrize("split", ["train/good", "test/good", "test/spot"])
def test_an_empty_split_is_named(tree: Path, split: str) -> None:
    for path in (tree / split).iterdir():
        path.unlink()
    with pytest.raises(DatasetError) as error:
        only(tree)
    one_line(error, tree / split)


@pytest.mark.parametrize("split", ["test/good", "test/spot"])
def test_a_missing_split_is_named(tree: Path, split: str) -> None:
    shutil.rmtree(tree / split)
    with pytest.raises(DatasetError) as error:
        only(tree)
    one_line(error, tree / "test")


def test_hidden_files_in_the_tree_are_passed_over(tree: Path) -> None:
    before = only(tree)
    for name in (".DS_Store", "Thumbs.db", "._000.png", ".hidden.png"):
        (tree / "train" / "good" / name).write_bytes(b"x")
    assert (only(tree), only(tree).remarks) == (before, ())


@pytest.mark.parametrize("resolution", [0, -1, 10_000])
def test_a_resolution_out_of_range_is_refused(tree: Path, resolution: int) -> None:
    with pytest.raises(DatasetError) as error:
        datasets.load_train(only(tree), resolution)
    one_line(error, resolution)


def sample_bytes(kind: str) -> bytes:
    """A small valid image file of a kind."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    if kind == "palette":
        image.quantize(16).save(buffer, format="PNG")
    else:
        image.save(buffer, format=kind)
    return buffer.getvalue()


SAMPLES = {kind: sample_bytes(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "palette")}


@settings(max_examples=250, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    cut=st.integers(0, 2000),
    flips=st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), max_size=8),
)
@pytest.mark.filterwarnings("ignore")  # Pillow's remarks on what it can still read
def test_fuzzed_images_end_in_a_result_or_in_one_line(
    tmp_path: Path, kind: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(SAMPLES[kind][: cut or None] if cut % 3 == 0 else SAMPLES[kind])
    for place, value in flips:
        if data:
            data[place % len(data)] = value
    path = tmp_path / "fuzzed.png"
    path.write_bytes(bytes(data))
    for read in (lambda: read_rgb(path, 8)[0], lambda: read_mask(path, 8)):
        message, shape = "", (8, 8)
        try:
            shape = read().shape[-2:]
        except DatasetError as error:
            message = str(error)
        assert shape == (8, 8)
        assert "\n" not in message
        assert not message or str(path) in message


# --- what is opened -------------------------------------------------------------------------------------------------

TRACE = """
import sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from kdad_bench import datasets
(category,) = datasets.categories("folder:" + sys.argv[1], None)
datasets.load_train(category, 16)
datasets.load_normals(category, 24, seed=3)
root = str(Path(sys.argv[1]).resolve())
before = [path for path in opened if path.startswith(sys.argv[1])]
datasets.load_test(category, 16)
after = [path for path in opened if path.startswith(sys.argv[1])]
tests = [path for path in before if "/test/" in path or "ground_truth" in path]
print(len(before), len(tests), sum("/test/" in path for path in after))
"""


def test_loading_for_training_opens_no_test_file(tree: Path, tmp_path: Path) -> None:
    env = {**os.environ, "KDAD_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", TRACE, str(tree)], capture_output=True, text=True, check=True, env=env)
    before, test_before, test_after = map(int, done.stdout.split())
    assert before >= 4  # the trace does see files being opened
    assert test_before == 0
    assert test_after >= 4


# --- fingerprint and cache ------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_contents_and_not_places(tree: Path, tmp_path: Path) -> None:
    first = datasets.fingerprint(only(tree))
    moved = shutil.copytree(tree, tmp_path / "elsewhere" / "bolt")
    assert datasets.fingerprint(only(moved)) == first
    path = moved / "test" / "good" / "000.png"
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(path)
    assert datasets.fingerprint(only(moved)) != first
    assert datasets.fingerprint(only(tree)) == first


def test_a_changed_image_is_seen_through_the_cache(tree: Path) -> None:
    category = only(tree)
    before = datasets.load_train(category, 16).copy()
    path = category.train[0].path
    Image.fromarray(np.full((SIDE, SIDE, 3), 9, np.uint8)).save(path)
    after = datasets.load_train(category, 16)
    assert (after[0] == 9).all()
    assert np.array_equal(after[1:], before[1:])


def test_cached_arrays_are_mapped_and_cannot_be_written(tree: Path) -> None:
    loaded = datasets.load_train(only(tree), 16)
    assert isinstance(loaded, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 0


def test_a_torn_cache_entry_is_built_again(tree: Path) -> None:
    category = only(tree)
    before = datasets.load_train(category, 20).copy()
    files = [sample.path for sample in category.train]
    name = cache.key("rgb-train", files, cache.content_hashes(files), category.root, 20)
    entry = cache.folder() / "arrays" / f"{name}.npy"
    for contents in (b"", b"torn", entry.read_bytes()[:200]):
        entry.write_bytes(contents)
        assert np.array_equal(datasets.load_train(category, 20), before)


def test_a_failed_build_leaves_nothing_behind(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    category = only(tree)
    category.train[2].path.write_bytes(b"broken")
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "cache"))  # others write into the shared one
    with pytest.raises(DatasetError):
        datasets.load_train(category, 22)
    new = set((cache.folder() / "arrays").glob("*"))
    assert [path for path in new if path.suffix in (".npy", ".tmp")] == []


BUILD = """
import sys, hashlib
from kdad_bench import datasets
(category,) = datasets.categories("folder:" + sys.argv[1], None)
print(hashlib.sha256(datasets.load_train(category, 40).tobytes()).hexdigest())
"""


def test_concurrent_builders_of_one_entry_agree(tree: Path, tmp_path: Path) -> None:
    env = {**os.environ, "KDAD_CACHE": str(tmp_path / "cache")}
    running = [
        subprocess.Popen([sys.executable, "-c", BUILD, str(tree)], stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(3)
    ]
    answers = {process.communicate()[0] for process in running}
    assert len(answers) == 1
    assert len(answers.pop()) == 65
    entries = list((tmp_path / "cache" / "arrays").iterdir())
    assert [path for path in entries if path.suffix == ".tmp"] == []


def test_an_unwritable_cache_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DatasetError) as error:
        cache.folder()
    one_line(error, "KDAD_CACHE")


# --- held-out normals -----------------------------------------------------------------------------------------------


def test_held_out_normals_are_seeded_disjoint_and_complete() -> None:
    for count in (2, 3, 5, 40, 391):
        fit, apart = datasets.held_out(count, seed=1)
        assert sorted([*fit, *apart]) == list(range(count))
        assert len(apart) == max(1, round(count * 0.2))
        assert all(np.array_equal(a, b) for a, b in zip((fit, apart), datasets.held_out(count, seed=1), strict=True))
    assert datasets.held_out(40, seed=1)[1].tolist() != datasets.held_out(40, seed=2)[1].tolist()
    assert datasets.held_out(10, seed=0)[1].tolist() == [1, 6]  # the same on every machine


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.2), (0, 0.2), (10, 0.0), (10, 1.0), (10, -1.0)])
def test_a_split_that_cannot_be_made_is_refused(count: int, fraction: float) -> None:
    with pytest.raises(DatasetError):
        datasets.held_out(count, fraction=fraction)


def test_normals_come_from_training_images_where_no_validation_is_shipped(tree: Path) -> None:
    category = only(tree)
    normals = datasets.load_normals(category, 16, seed=5)
    assert normals.source == "train"
    assert (len(normals.fit), len(normals.held_out)) == (3, 1)
    assert len(datasets.load_validation(category, 16)) == 0


@pytest.mark.real_data
@pytest.mark.skipif(
    not os.environ.get("KDAD_DATA") or not (Path(os.environ["KDAD_DATA"]) / "mvtec_ad" / "bottle").is_dir(),
    reason="no mvtec_ad/bottle under KDAD_DATA",
)
def test_the_real_bottle_category_has_its_published_numbers() -> None:
    (bottle,) = datasets.categories("mvtec_ad", Path(os.environ["KDAD_DATA"]), ["bottle"])
    test = datasets.load_test(bottle, 64)
    assert (len(bottle.train), int((~test.labels).sum()), int(test.labels.sum())) == (209, 20, 63)
    assert test.masks is not None
    assert test.masks[test.labels].any(axis=(1, 2)).all()
