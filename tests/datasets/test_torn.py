"""Files that are no whole images: found before anything is learnt, named, a line for each kind, exit code 2."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import decoding
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.decoding import open_image
from kdad_bench.datasets.torn import EMPTY, TORN, fault_of, fault_of_scan
from kdad_bench.datasets.verify import verify
from kdad_bench.leaderboard import store
from tests.conftest import write_tree
from tests.datasets.test_mvtec_3d_ad import write_scans

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 3), np.uint8)  # odd sides: rows are padded where a format pads them
GREY, DEEP = NOISE[..., 0], NOISE[..., 0].astype(np.uint16) * 257


def saved(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format=kind, **options)  # type: ignore[arg-type]
    return content.getvalue()


def tiff(pixels: np.ndarray, **options: object) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, pixels, metadata=None, **options)  # type: ignore[arg-type]
    return content.getvalue()


WHOLE: dict[str, bytes] = {
    "png": saved(NOISE, "PNG"),
    "png grey": saved(GREY, "PNG"),
    "png 16": saved(DEEP, "PNG"),
    "png palette": saved(np.asarray(Image.fromarray(NOISE).quantize(16)), "PNG"),
    "png, bytes behind": saved(NOISE, "PNG") + b"behind the end" * 9,
    "jpeg": saved(NOISE, "JPEG"),
    "jpeg grey": saved(GREY, "JPEG"),
    "jpeg progressive": saved(NOISE, "JPEG", progressive=True, quality=95),
    "jpeg, bytes behind": saved(NOISE, "JPEG") + b"\0" * 40,
    "jpeg with a thumbnail": saved(NOISE, "JPEG", exif=b"Exif\0\0" + saved(GREY[:9, :9], "JPEG")),
    "bmp": saved(NOISE, "BMP"),
    "bmp grey": saved(GREY, "BMP"),
    "bmp of bits": saved(GREY > 128, "BMP"),
    "tiff": saved(NOISE, "TIFF"),
    "tiff packed": saved(NOISE, "TIFF", compression="tiff_lzw"),
    "tiff deflate": saved(NOISE, "TIFF", compression="tiff_deflate"),
    "tiff 16": tiff(DEEP),
    "tiff tiles": tiff(np.tile(GREY, (2, 2))[:64, :96], tile=(16, 16)),
    "tiff strips": tiff(NOISE, rowsperstrip=5, photometric="rgb"),
    "tiff, big endian": tiff(DEEP, byteorder=">"),
    "webp": saved(NOISE, "WEBP", quality=90),
    "webp exact": saved(NOISE, "WEBP", lossless=True),
    "ppm": saved(NOISE, "PPM"),
    "pgm": saved(GREY, "PPM"),
    "pgm 16": saved(DEEP, "PPM"),
    "ppm 16": b"P6\n53 37\n65535\n" + (NOISE.astype(">u2") * 257).tobytes(),
    "pgm of 10 bits": b"P5\n53 37\n1023\n" + (GREY.astype(">u2") * 4).tobytes(),
    "pbm": b"P4\n53 37\n" + np.packbits(GREY > 128, axis=1).tobytes(),
}


def decodes(path: Path) -> bool:
    try:
        open_image(path)
    except DatasetError:
        return False
    return True


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_file_has_no_fault_and_its_size_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(WHOLE[kind])
    assert fault_of(path) == ("", open_image(path).size)


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_that_is_cut_is_told_unless_it_can_be_decoded(tmp_path: Path, kind: str) -> None:
    path, content = tmp_path / "x.png", WHOLE[kind]
    missed = 0
    places = sorted({*range(1, len(content), max(1, len(content) // 25)), *range(len(content) - 26, len(content))})
    for place in places:
        path.write_bytes(content[:place])
        why, _ = fault_of(path)
        assert not (why and decodes(path)), (kind, place, why)
        missed += not why and not decodes(path)
    assert missed <= 8, (kind, missed)
    path.write_bytes(content[: len(content) // 2])
    assert fault_of(path)[0]


@pytest.mark.parametrize("side", [16, 37, 64])
def test_a_jpeg_without_the_mark_of_its_end_is_torn_only_where_its_pixels_are(tmp_path: Path, side: int) -> None:
    path, spared = tmp_path / "x.jpg", 0
    for seed in range(24):
        pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
        path.write_bytes(saved(pixels, "JPEG", quality=75 + seed % 12)[:-2])
        assert (fault_of(path)[0] == "") is decodes(path), seed
        spared += decodes(path)
    assert spared or side != 37


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_no_file_is_called_torn_that_can_be_decoded(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path, content = tmp_path_factory.getbasetemp() / "odd.png", bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    why, _ = fault_of(path)
    assert why.isprintable()
    assert not (why and decodes(path)), (kind, why)


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [*map(str, arguments)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "set", ("bolt",), train=4, test=3) / "bolt"


def converted(path: Path, kind: str) -> bytes:
    with Image.open(path) as image:
        return saved(np.asarray(image), kind)


def cut(kind: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        content = converted(path, kind)
        path.write_bytes(content[: len(content) * 2 // 3])

    return change


def of_another_size(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.asarray(image)
    path.write_bytes(saved(np.ascontiguousarray(pixels[:, :-1]), "PNG"))


# case -> (what happens to the file, words of the line)
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a PNG file that is cut": (cut("PNG"), TORN),
    "a JPEG file that is cut": (cut("JPEG"), TORN),
    "a BMP file that is cut": (cut("BMP"), TORN),
    "a TIFF file that is cut": (cut("TIFF"), TORN),
    "a WebP file that is cut": (cut("WEBP"), "not a readable image"),
    "a PPM file that is cut": (cut("PPM"), TORN),
    "an empty file": (lambda path: path.write_bytes(b""), EMPTY),
    "text": (lambda path: path.write_text("not an image"), "not one of PNG"),
    "a format that is not read": (lambda path: path.write_bytes(converted(path, "GIF")), "not one of PNG"),
    "a page of the web": (lambda path: path.write_text("<!DOCTYPE html>" * 99), "not one of PNG"),
    "zeros": (lambda path: path.write_bytes(bytes(5000)), "not one of PNG"),
    "the beginning alone": (lambda path: path.write_bytes(path.read_bytes()[:20]), "not a readable image"),
}
PLACES = ("train/good/001.png", "test/good/001.png", "test/spot/001.png", "ground_truth/spot/001_mask.png")


EVERYWHERE = [(next(iter(FILES)), place) for place in PLACES]
ELSEWHERE = [(case, PLACES[number % len(PLACES)]) for number, case in enumerate(FILES)][1:]


@pytest.mark.parametrize(("case", "place"), [*EVERYWHERE, *ELSEWHERE])
def test_a_file_that_is_no_whole_image_is_one_line_before_anything_is_learnt(
    tree: Path, tmp_path: Path, case: str, place: str
) -> None:
    change, words = FILES[case]
    change(tree / place)
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--seeds", 1, "--out", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    (line,) = done.stderr.splitlines()
    assert f"{tree}: 1 file: " in line
    assert words in line
    assert f"({place}); restore it" in line
    assert not (tmp_path / "out").exists()
    report = verify(tree)
    assert report.exit_code == 2
    assert sum(str(tree / place) in one for one in report.categories[0].problems) == 1, report


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", ["a PNG file that is cut", "text"])
def test_a_category_with_faults_fails_and_spoils_no_other(tmp_path: Path, case: str, place: str) -> None:
    """One torn file among fifteen categories refused the run of all."""
    root, out = write_tree(tmp_path / "set"), tmp_path / "out"
    path = root / "cloth" / place
    content = path.read_bytes()
    FILES[case][0](path)
    given = ("run", "-m", "pixel_mean", "-d", f"folder:{root}", "--seeds", 1, "--no-measure-speed", "--out", out)
    planned = command(*given, "--dry-run")
    line = f"{root / 'cloth'}: 1 file: "
    (told,) = [one for one in planned.output.splitlines() if one.startswith(line)]
    assert told.endswith(f"({place}); restore it: until then every job of cloth fails")
    assert planned.exit_code == 1, planned.output
    assert command(*given).exit_code == 1
    status = {row["category"]: (row["status"], row["reason"]) for row in store.read(str(out)).rows()}
    assert status["bolt"] == ("ok", None)
    assert status["cloth"][0] == "failed"
    assert line in status["cloth"][1]
    together = command(*given, "--setting", "multi-class")
    assert together.exit_code == 2, together.output
    path.write_bytes(content)
    again = command(*given)
    assert again.exit_code == 0, again.output
    assert {row["category"]: row["status"] for row in store.read(str(out)).rows()} == {"bolt": "ok", "cloth": "ok"}


@pytest.mark.parametrize("place", PLACES[2:])
def test_a_mask_of_another_size_is_one_line_before_anything_is_learnt(tree: Path, place: str) -> None:
    of_another_size(tree / place)
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--dry-run")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    (line,) = done.stderr.splitlines()
    assert "1 file: of another size than their image (ground_truth/spot/001_mask.png); restore it" in line


@pytest.mark.parametrize("note", [False, True])
def test_a_mask_that_lies_across_its_image_is_one_line_before_anything_is_learnt(tree: Path, note: bool) -> None:
    """By itself, or as it was stored where a note of the camera turns the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image, mask = (tree / place for place in PLACES[2:])
    for path in (image, mask):
        with Image.open(path) as picture:
            oblong = picture.resize((64, 48))
        across = oblong.transpose(Image.Transpose.ROTATE_90) if path == mask and not note else oblong
        across.save(path, **({"exif": exif} if path == image and note else {}))
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--dry-run")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    (line,) = done.stderr.splitlines()
    assert "1 file: of another size than their image (ground_truth/spot/001_mask.png); restore it" in line


def test_a_mask_that_is_turned_as_its_image_is_told_to_be_is_sound(tree: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for place in PLACES[2:]:
        with Image.open(tree / place) as image:
            pixels = np.asarray(image)[:, :-8]
        (tree / place).write_bytes(saved(np.ascontiguousarray(pixels), "PNG"))
    image, mask = (tree / place for place in PLACES[2:])
    with Image.open(image) as picture:
        picture.load()
        picture.save(image, exif=exif)
    with Image.open(mask) as picture:
        turned = np.ascontiguousarray(np.rot90(np.asarray(picture), -1))
    mask.write_bytes(saved(turned, "PNG"))
    assert command("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--dry-run").exit_code == 0


def test_a_file_that_may_not_be_read_is_one_line(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, real = str(tree / PLACES[0]), os.open

    def refused(path: str | Path, *more: int) -> int:
        if str(path) == closed:
            raise PermissionError(13, "Permission denied")
        return real(path, *more)

    monkeypatch.setattr(decoding.os, "open", refused)
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--dry-run")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    (line,) = done.stderr.splitlines()
    assert f"1 file: cannot be read (Permission denied) ({PLACES[0]}); restore it" in line


def test_files_of_one_kind_are_one_line_over_all_categories(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "set", train=4, test=3)
    torn = [path for path in sorted(root.rglob("*.png")) if path.name.startswith("001")]
    for path in torn:
        cut("PNG")(path)
    (root / "cloth/train/good/000.png").write_bytes(b"")
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{root}", "--dry-run")
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    many, one = sorted(done.stderr.splitlines(), key=lambda line: TORN not in line)
    assert f"{root}: {len(torn)} files: {TORN} (bolt/" in many
    assert many.endswith(", ...); restore them")
    assert one.endswith(f"1 file: {EMPTY} (cloth/train/good/000.png); restore it")


@pytest.mark.parametrize("case", ["empty", "cut", "cut at its end"])
@pytest.mark.parametrize("place", ["train/good/xyz/001.tiff", "test/dent/xyz/000.tiff"])
def test_a_scan_that_is_not_whole_is_one_line_where_scans_are_read(tmp_path: Path, place: str, case: str) -> None:
    plate = write_scans(tmp_path / "set" / "plate")
    content = (plate / place).read_bytes()
    (plate / place).write_bytes(content[: {"empty": 0, "cut": len(content) // 2, "cut at its end": -9}[case]])
    (flat,) = datasets.categories(f"folder:{plate}", None)
    datasets.sealed(flat)
    (deep,) = datasets.categories(f"folder:{plate}", None, modality="depth")
    with pytest.raises(DatasetError) as error:
        datasets.sealed(deep)
    (line,) = error.value.lines
    assert line == f"{plate}: 1 file: {EMPTY if case == 'empty' else TORN} ({place}); restore it"


def test_a_whole_scan_has_no_fault_in_any_way_of_writing(tmp_path: Path) -> None:
    numbers, path = RNG.normal(size=(20, 30, 3)).astype(np.float32), tmp_path / "x.tiff"
    for options in ({}, {"compression": "zlib"}, {"rowsperstrip": 3}, {"byteorder": ">"}, {"bigtiff": True}):
        path.write_bytes(tiff(numbers, photometric="rgb", **options))
        assert fault_of_scan(path) == "", options
        path.write_bytes(path.read_bytes()[:-40])
        assert fault_of_scan(path) == TORN, options
    path.write_bytes(b"II*\0" + bytes(90))
    assert fault_of_scan(path) == ""  # reading it tells


def test_an_image_of_many_channels_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    path.write_bytes(tiff(np.zeros((9, 9, 7), np.uint16), planarconfig="contig", photometric="minisblack"))
    assert fault_of(path) == ("a TIFF file of 7 channels of 16 bits", (0, 0))


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_saturation_that_cannot_be_read_is_one_line_before_anything_is_learnt(tree: Path, text: str) -> None:
    (tree / "defects_config.json").write_text(text)
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--dry-run")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert "defects_config.json" in done.stderr


@pytest.mark.parametrize("place", ["train/good", "test/good", "test/spot"])
def test_a_folder_with_the_name_of_an_image_is_told(tree: Path, place: str) -> None:
    (tree / place / "9.png").mkdir()
    (found,) = datasets.categories(f"folder:{tree}", None)
    assert found.remarks == (f"{tree / place}: 1 file not used (9.png): folders with the name of an image",)
    assert command("data", "verify", tree).exit_code == 1


def test_a_folder_in_the_place_of_a_mask_is_a_missing_mask(tree: Path) -> None:
    (tree / PLACES[3]).unlink()
    (tree / PLACES[3]).mkdir()
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--dry-run")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert f"{PLACES[3]}: the mask of {PLACES[2]} is missing" in done.stderr


def damaged_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)


@pytest.mark.parametrize("place", PLACES)
def test_damage_inside_of_a_file_fails_its_jobs_by_name_and_the_others_go_on(tmp_path: Path, place: str) -> None:
    """Only decoding shows it, and test images are decoded after the training."""
    root = write_tree(tmp_path / "set", train=4, test=3)
    damaged_inside(root / "bolt" / place)
    done = command("run", "-m", "pixel_mean", "-d", f"folder:{root}", "--seeds", 1, "--out", tmp_path / "out",
                   "--no-pictures", "--no-measure-speed", "--executor", "in-process")  # fmt: skip
    assert done.exit_code == 1, done.output
    failed, well = sorted(store.read(tmp_path / "out").rows(), key=lambda row: row["status"])
    assert (failed["status"], failed["category"], well["category"]) == ("failed", "bolt", "cloth")
    assert f"DatasetError: {root}/bolt/{place}: not a readable image" in failed["reason"]
    assert command("data", "verify", root).exit_code == 2


def test_a_copy_is_not_touched(tree: Path, tmp_path: Path) -> None:
    before = {path: path.stat() for path in shutil.copytree(tree, tmp_path / "copy").rglob("*")}
    command("run", "-m", "pixel_mean", "-d", f"folder:{tmp_path / 'copy'}", "--dry-run")
    assert {path: path.stat().st_mtime_ns for path in before} == {path: one.st_mtime_ns for path, one in before.items()}
