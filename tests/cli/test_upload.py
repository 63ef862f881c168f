"""`results submission`: from a stand-in of MVTec AD 2 to the file that its server takes, and what its check refuses."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import tarfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets.decoding import open_image, reduced_rgb
from kdad_bench.datasets.mvtec_ad_2 import MVTEC_AD_2, PRIVATE, SIZES
from kdad_bench.harness import upload
from kdad_bench.harness.decision import read
from kdad_bench.harness.exported import opened
from kdad_bench.harness.scoring import CPU, as_images
from kdad_bench.harness.upload_check import UploadError, check, published_by
from kdad_bench.harness.view import View
from kdad_bench.harness.windows import Windowed
from kdad_bench.leaderboard import store
from kdad_bench.methods.protocol import Method
from tests.datasets.short import short

Members = dict[str, bytes]
MAP = "sub/anomaly_images/synthetic_sheet_metal/test_private/000_regular.tiff"
DECISIONS = "sub/anomaly_images_thresholded/synthetic_sheet_metal/test_private_mixed/001_mixed.png"
NAME = "synthetic_mvtec_ad_2"


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [*map(str, arguments)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a short stand-in, results of one job with its model, and its submission."""
    place = tmp_path_factory.mktemp("upload")
    with pytest.MonkeyPatch.context() as patch:
        short("mvtec_ad_2", place, patch)
        done = command("run", "--method", "pixel_mean", "--dataset", NAME, "--data-root", place, "--seeds", 1, "--out",
                       place / "out", "--no-pictures", "--save-models", "--resolution", 32,
                       "--no-measure-speed")  # fmt: skip
        assert done.exit_code == 0, done.output
        done = submitted(place, place / "sub.tar.gz")
        assert done.exit_code == 0, done.output
        yield place


def submitted(home: Path, out: Path, *more: object) -> Result:
    return command("results", "submission", home / "out", "--dataset", NAME, "--data-root", home, "--out", out, *more)


def checked(home: Path, file: Path, *more: object) -> Result:
    return command("results", "submission", "--check", file, "--dataset", NAME, "--data-root", home, *more)


def members(file: Path) -> Members:
    with tarfile.open(file) as archive:
        return {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]


def packed(file: Path, found: Members) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, data in found.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return file


def tiff(values: np.ndarray, **tags: Any) -> bytes:
    content = io.BytesIO()
    tifffile.imwrite(content, values, **{"photometric": "minisblack", "metadata": None, **tags})
    return content.getvalue()


def png(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, format="PNG")
    return content.getvalue()


def test_a_submission_holds_the_maps_of_the_private_images_and_their_decisions(home: Path) -> None:
    (category,) = datasets.categories(NAME, home)
    (model,) = (home / "out" / "models").iterdir()
    _, method, kept, device = opened(model, "cpu")

    def whole(path: Path) -> np.ndarray:
        pixels = datasets.decoding.read_rgb(path, kept.resolution)[0]  # type: ignore[attr-defined]
        heat = method.score(as_images(pixels[None], device)).pixel[0].numpy()
        with Image.open(path) as image:
            return np.asarray(Image.fromarray(heat).resize(image.size, Image.Resampling.BILINEAR), np.float32)

    normal = np.stack([whole(sample.path) for sample in category.validation]).astype(np.float64)
    threshold = normal.mean() + 3 * normal.std()
    power = -int(np.floor(np.log2(threshold)))
    found = members(home / "sub.tar.gz")
    assert len(found) == 8
    for path in category.unlabelled:
        stem = f"synthetic_sheet_metal/{path.relative_to(category.root).with_suffix('')}"
        heat = whole(path)
        half = tifffile.imread(io.BytesIO(found[f"sub/anomaly_images/{stem}.tiff"]))
        assert (half.dtype, half.shape) == (np.float16, heat.shape)
        assert np.array_equal(half, (heat * np.float32(2.0**power)).astype(np.float16))
        with Image.open(io.BytesIO(found[f"sub/anomaly_images_thresholded/{stem}.png"])) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), np.where(heat > threshold, 255, 0))


def test_a_model_that_keeps_proportions_in_tiles_sees_the_private_images_so(home: Path, tmp_path: Path) -> None:
    done = command("run", "--method", "pixel_mean", "--dataset", NAME, "--data-root", home, "--seeds", 1, "--out",
                   home / "tiled", "--no-pictures", "--save-models", "--resolution", 64, "--fit", "pad", "--tile", 32,
                   "--no-measure-speed")  # fmt: skip
    assert done.exit_code == 0, done.output
    done = command("results", "submission", home / "tiled", "--dataset", NAME, "--data-root", home, "--out",
                   tmp_path / "sub.tar.gz")  # fmt: skip
    assert done.exit_code == 0, done.output
    (category,) = datasets.categories(NAME, home)
    (model,) = (home / "tiled" / "models").iterdir()
    _, method, kept, _ = opened(model, "cpu")
    seen = Windowed(cast(Method, method), View(fit="pad", tile=32), kept.resolution)
    assert (kept.fit, kept.tile) == ("pad", 32)
    shapes, found = set(), members(tmp_path / "sub.tar.gz")
    for path in category.unlabelled:
        picture = open_image(path)
        pixels = reduced_rgb(picture, datasets.fitted(picture.size, kept.resolution, "pad", path))
        shapes.add(pixels.shape[1:])
        heat = Image.fromarray(seen.score(as_images(pixels[None], CPU)).pixel[0].numpy())
        whole = np.asarray(heat.resize(picture.size, Image.Resampling.BILINEAR), np.float64)
        half = tifffile.imread(io.BytesIO(found[name_of(category, path)])).astype(np.float64)
        scale = 2.0 ** np.round(np.log2(half.max() / whole.max()))
        np.testing.assert_allclose(half, whole * scale, rtol=1e-3)
    assert any(height != width for height, width in shapes)


def name_of(category: datasets.Category, path: Path) -> str:
    """Of the map of an image in the archive."""
    return f"sub/anomaly_images/{category.name}/{path.relative_to(category.root).with_suffix('')}.tiff"


def test_the_floor_and_the_figures_of_the_public_images_are_said(home: Path, tmp_path: Path) -> None:
    done = submitted(home, tmp_path / "sub.tar.gz")
    (row,) = store.read(str(home / "out")).rows()
    assert f"SegF1 {row['seg_f1']:.4f}, AUPRO@0.05 {row['aupro_05']:.4f}" in done.stdout
    assert "2 unseen normal images cannot support a 1 % false-alarm rate, 33.3 % at best; 99 would" in done.stdout
    assert "no server takes it" in done.stdout
    assert (tmp_path / "sub.tar.gz").read_bytes() == (home / "sub.tar.gz").read_bytes(), "the same bytes every time"
    told = json.loads(submitted(home, tmp_path / "sub.tar.gz", "--json").stdout)
    assert (told["maps"], told["parts"][0]["validation"]) == (4, 2)


def test_private_images_are_in_no_figure_and_the_validation_split_gives_the_threshold(home: Path) -> None:
    (row,) = store.read(str(home / "out")).rows()
    assert row["test_images"] == 4
    assert not any("private" in name or "mixed" in name for name in row["image_names"])
    assert (len(row["normal_scores"]), row["false_alarm_floor"], row["false_alarms"]) == (2, 1 / 3, None)
    (model,) = (home / "out" / "models").iterdir()
    kept = read(model)
    assert kept.normal_scores == tuple(row["normal_scores"])
    good = sorted(s for s, bad in zip(row["image_scores"], row["image_labels"], strict=True) if not bad)
    assert kept.test_normal_scores == tuple(good)
    said = command("predict", model, home / NAME / "synthetic_sheet_metal" / "test_private", "--false-alarms", 0.5)
    assert said.exit_code == 0, said.output
    assert "33.3 % is the smallest false-alarm rate that 2 images can support" in said.stderr
    assert "normal test images" in said.stderr
    refused = command("predict", model, home / NAME / "synthetic_sheet_metal" / "test_private")
    assert (refused.exit_code, "2 unseen normal images cannot support a 10 %" in refused.stderr) == (2, True)


def test_a_sound_one_is_sound_as_file_and_as_folder_with_and_without_its_data(home: Path, tmp_path: Path) -> None:
    with tarfile.open(home / "sub.tar.gz") as archive:
        archive.extractall(tmp_path)
    for file in (home / "sub.tar.gz", tmp_path / "sub"):
        assert "4 maps and 4 decisions, sound against" in checked(home, file).stdout
        assert json.loads(command("results", "submission", "--check", file, "--json").stdout)["sound"] is True
    shutil.rmtree(tmp_path / "sub" / "anomaly_images_thresholded")
    done = checked(home, tmp_path / "sub")
    assert (done.exit_code, "4 maps and 0 decisions" in done.stdout) == (0, True)
    assert "without decisions" in done.stderr


SIDE = (16, 64)  # of a drawn image of sheet_metal
HALF = np.zeros(SIDE, np.float16)
ODD: dict[str, tuple[Callable[[Members], object], str]] = {
    "missing": (lambda found: found.pop(MAP), f"1 file: missing ({MAP})"),
    "decisions missing": (lambda found: found.pop(DECISIONS), f"1 file: missing ({DECISIONS})"),
    "misnamed": (lambda found: found.update({MAP.replace("000_", "0_"): found.pop(MAP)}), "a name that no image"),
    "another suffix": (lambda found: found.update({MAP.replace("tiff", "tif"): found[MAP]}), "a name that no"),
    "of the other split": (lambda f: f.update({MAP.replace("_regular", "_mixed"): f.pop(MAP)}), "a name that no"),
    "a file more": (lambda found: found.update({"sub/readme.txt": b"x"}), "part of no submission"),
    "beside the folder": (lambda found: found.update({"a/../anomaly_images/x.tiff": b"x"}), "part of no submission"),
    "of another size": (lambda found: found.update({MAP: tiff(np.zeros((16, 16), np.float16))}), "another size"),
    "turned": (lambda found: found.update({MAP: tiff(np.zeros((64, 16), np.float16))}), "another size"),
    "float32": (lambda found: found.update({MAP: tiff(np.zeros(SIDE, np.float32))}), "float32, not float16"),
    "NaN": (lambda found: found.update({MAP: tiff(np.full(SIDE, np.nan, np.float16))}), "a NaN or an infinite"),
    "infinite": (lambda found: found.update({MAP: tiff(np.full(SIDE, np.inf, np.float16))}), "a NaN or an inf"),
    "three channels": (lambda found: found.update({MAP: tiff(np.zeros((3, *SIDE), np.float16))}), "more than one"),
    "0 is white": (lambda found: found.update({MAP: tiff(HALF, photometric="miniswhite")}), "0 is white in it"),
    "to be turned": (lambda found: found.update({MAP: tiff(HALF, extratags=[(274, "H", 1, 3, True)])}), "to be turned"),
    "no TIFF": (lambda found: found.update({MAP: b"II*\0"}), "no readable TIFF"),
    "a PNG called TIFF": (lambda found: found.update({MAP: png(np.zeros(SIDE, np.uint8))}), "no readable TIFF"),
    "decisions of 0 and 1": (lambda f: f.update({DECISIONS: png(np.ones(SIDE, np.uint8))}), "other values than 0 and"),
    "decisions in colour": (lambda f: f.update({DECISIONS: png(np.zeros((*SIDE, 3), np.uint8))}), "one channel of 8"),
    "decisions of another size": (lambda f: f.update({DECISIONS: png(np.zeros((9, 9), np.uint8))}), "another size"),
    "no decisions": (lambda found: found.update({DECISIONS: b"x"}), "no readable PNG"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_the_server_would_refuse_is_one_line_and_exit_code_2(case: str, home: Path, tmp_path: Path) -> None:
    spoil, words = ODD[case]
    found = members(home / "sub.tar.gz")
    spoil(found)
    done = checked(home, packed(tmp_path / "odd.tar.gz", found))
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert words in done.stderr
    kinds = 2 if case in ("misnamed", "of the other split") else 1  # the right name is missing then
    assert len(done.stderr.splitlines()) == kinds


def test_all_of_a_kind_are_one_line_with_their_number(home: Path, tmp_path: Path) -> None:
    found = members(home / "sub.tar.gz")
    found |= {name: tiff(np.full(SIDE, np.nan, np.float16)) for name in found if name.endswith(".tiff")}
    done = checked(home, packed(tmp_path / "odd.tar.gz", found))
    assert (len(done.stderr.splitlines()), "4 files: a NaN" in done.stderr, ", ...)" in done.stderr) == (
        1,
        True,
        True,
    )


HOSTILE: dict[str, Callable[[Path, bytes], object]] = {
    "cut": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "cut by a byte": lambda path, content: path.write_bytes(content[:-9]),
    "empty": lambda path, content: path.write_bytes(b""),
    "text": lambda path, content: path.write_text("hello"),
    "none": lambda path, content: None,
    "a pipe": lambda path, content: os.mkfifo(path),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_archive_is_one_line(case: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    HOSTILE[case](path, (home / "sub.tar.gz").read_bytes())
    done = checked(home, path)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.output
    assert str(path) in done.stderr


def header(name: str, size: int, kind: bytes) -> bytes:
    """A block of a tar file."""
    about = tarfile.TarInfo(name)
    about.size, about.type = size, kind
    return about.tobuf(tarfile.GNU_FORMAT)


def pax(key: str, value: str) -> list[bytes]:
    """A pax header of one record."""
    record = f" {key}={value}\n".encode()
    length = len(record)
    while len(str(length)) + len(record) != length:
        length = len(str(length)) + len(record)
    data = str(length).encode() + record
    return [header("x", len(data), b"x"), data.ljust(512, b"\0")]


LAST = [header(MAP, 0, b"0"), bytes(1024)]
MANY = 32 << 20  # bytes
HARMFUL: dict[str, Callable[[], Iterator[bytes]]] = {
    "a sparse map of letters": lambda: iter([*pax("GNU.sparse.map", "a,b"), *LAST]),
    "a sparse size of letters": lambda: iter([*pax("GNU.sparse.size", "abc"), *LAST]),
    "headers before headers": lambda: iter([*[header("x", 2, b"L") + b"a\0".ljust(512, b"\0")] * 3000, *LAST]),
    "a size without end": lambda: iter([*pax("size", str(10**30)), *LAST]),
    "a long name": lambda: iter([header("x", MANY, b"L"), *[b"a" * (1 << 20)] * (MANY >> 20), *LAST]),
    "a long header": lambda: iter([header("x", MANY, b"x"), *[b"0" * (1 << 20)] * (MANY >> 20), *LAST]),
    "a large file": lambda: iter([header(MAP, 1 << 30, b"0"), *[bytes(1 << 20)] * 160]),
    "a name of a megabyte": lambda: iter([header("x", 1 << 20, b"L"), b"a" * (1 << 20), *LAST]),
    "a name that is no text": lambda: iter([header("a\udce4\x1b[2J", 0, b"0"), bytes(1024)]),
}


def test_archives_made_to_harm_are_short_lines_and_take_neither_time_nor_memory(tmp_path: Path) -> None:
    for case, pieces in HARMFUL.items():
        with gzip.open(tmp_path / f"{case}.tar.gz", "wb", 1) as file:
            for piece in pieces():
                file.write(piece)
    code = (
        "import json, resource, sys\nfrom click.testing import CliRunner\nfrom kdad_bench.cli import cli\n"
        "from kdad_bench.harness import upload_check\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    what = ['results', 'submission', '--check', path, '--dataset', 'mvtec_ad_2']\n"
        "    done = CliRunner().invoke(cli, what)\n"
        "    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "    print(json.dumps((path, done.exit_code, done.stderr, more >> 10)))\n"
    )
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [path for path, *_ in told] == files
    for path, exit_code, words, megabytes in told:
        assert exit_code == 2, path
        assert all(len(line) < 1000 for line in words.splitlines()), path
        assert len(words.splitlines()) <= 3, path
        assert megabytes < 100, path


def test_mutated_archives_are_sound_or_refused_in_words(home: Path, tmp_path: Path) -> None:
    """As `tests.datasets.fuzz_archives` does to the archives of data sets."""
    (category,) = datasets.categories(NAME, home)
    whole, chance = gzip.decompress((home / "sub.tar.gz").read_bytes()), random.Random(0)
    path = tmp_path / "x.tar.gz"
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            block = 512 * chance.randrange(0, 20)
            data[block + chance.randrange(512)] = chance.randrange(256)
        path.write_bytes(gzip.compress(bytes(data), 1))
        with contextlib.suppress(UploadError):
            check(path, MVTEC_AD_2, [category])


@pytest.mark.parametrize("folders", [("one", "two"), ("", "one"), ("/", "/"), ("/", "sub"), ("..", "..")])
def test_files_below_several_folders_or_none_of_the_archive_are_refused(
    folders: tuple[str, str], home: Path, tmp_path: Path
) -> None:
    found = members(home / "sub.tar.gz")
    own = {PurePosixPath(folders[number % 2], name[4:]).as_posix(): found[name] for number, name in enumerate(found)}
    done = checked(home, packed(tmp_path / "odd.tar.gz", own))
    assert (done.exit_code, done.stdout) == (2, "")
    words = "part of no submission" if {"/", ".."} & {*folders} else "one in each folder that maps lie below; pack a"
    assert words in done.stderr


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ""])
def test_an_archive_that_is_not_packed_by_gzip_is_refused(suffix: str, home: Path, tmp_path: Path) -> None:
    pack = {".bz2": bz2.compress, ".xz": lzma.compress, "": bytes}[suffix]
    (tmp_path / "x.tar").write_bytes(pack(gzip.decompress((home / "sub.tar.gz").read_bytes())))
    done = checked(home, tmp_path / "x.tar")
    assert (done.exit_code, "not packed by gzip" in done.stderr) == (2, True)


def test_maps_of_either_byte_order_are_sound(home: Path, tmp_path: Path) -> None:
    values = np.arange(np.prod(SIDE)).reshape(SIDE).astype(">f2")
    found = members(home / "sub.tar.gz") | {MAP: tiff(values, byteorder=">")}
    done = checked(home, packed(tmp_path / "x.tar.gz", found))
    assert done.exit_code == 0, done.output


def test_links_and_doubles_are_refused(home: Path, tmp_path: Path) -> None:
    found = members(home / "sub.tar.gz")
    found.pop(MAP)
    file, twice = tmp_path / "odd.tar.gz", tmp_path / "twice.tar.gz"
    for path in (file, twice):
        with tarfile.open(path, "w:gz") as archive:
            for name, content in [*found.items(), *found.items()]:
                about = tarfile.TarInfo(name)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
            link = tarfile.TarInfo(MAP)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            if path == file:
                archive.addfile(link)
    linked = checked(home, file)
    assert (linked.exit_code, len(linked.stderr.splitlines())) == (2, 1)
    assert "is a symbolic link to '/etc/passwd'" in linked.stderr
    doubled = checked(home, twice)
    assert (doubled.exit_code, len(doubled.stderr.splitlines())) == (2, 2)
    assert "7 files: there twice" in doubled.stderr
    assert "1 file: missing" in doubled.stderr


def test_what_cannot_be_packed_is_said_and_leaves_nothing(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub.tar.gz"
    none = command("results", "submission", tmp_path, "--dataset", NAME, "--data-root", home, "--out", out)
    assert "no model of synthetic_sheet_metal there that was asked for" in none.stderr
    other = submitted(home, out, "--method", "stfpm")
    assert "no model of synthetic_sheet_metal" in other.stderr
    server = command("results", "submission", home / "out", "--dataset", "synthetic", "--out", out)
    assert "no server evaluates it; have: mvtec_ad_2" in server.stderr
    neither = command("results", "submission")
    folder = submitted(home, tmp_path)
    twice = tmp_path / "twice"
    shutil.copytree(home / "out", twice)
    command("run", "--method", "pixel_mean", "--dataset", NAME, "--data-root", home, "--seeds", "1,", "--out", twice,
            "--no-pictures", "--save-models", "--resolution", 32, "--no-measure-speed")  # fmt: skip
    several = command("results", "submission", twice, "--dataset", NAME, "--data-root", home, "--out", out)
    assert "2 models of synthetic_sheet_metal (pixel_mean seed 0 quick[resolution=32]; " in several.stderr
    for done in (none, other, server, neither, folder, several):
        assert done.exit_code == 2, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["twice"]
    chosen = command("results", "submission", twice, "--dataset", NAME, "--data-root", home, "--out", out, "--seed", 1)
    assert chosen.exit_code == 0, chosen.output


@pytest.mark.parametrize("torn", ["001_mixed.png", "*.png"], ids=["one", "all"])
def test_an_image_that_cannot_be_decoded_leaves_nothing(torn: str, home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / NAME, tmp_path / NAME)
    for path in (tmp_path / NAME / "synthetic_sheet_metal").glob(f"test_private*/{torn}"):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])
    done = command("results", "submission", home / "out", "--dataset", NAME, "--data-root", tmp_path, "--out",
                   tmp_path / "sub.tar.gz")  # fmt: skip
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert ".png: not a readable image" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("case", ["missing", "more", "misnamed", "empty", "cut"])
def test_private_images_that_the_server_does_not_know_are_told_before_anything_is_scored(
    case: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an archive would be scored for hours, and refused by the server alone."""
    place = Path(shutil.copytree(home / NAME, tmp_path / NAME)) / "synthetic_sheet_metal" / "test_private_mixed"
    first = place / "000_mixed.png"
    if case == "cut":
        first.write_bytes(first.read_bytes()[:200])
    elif case == "more":
        shutil.copy(first, place / "002_mixed.png")
    elif case == "empty":
        first.write_bytes(b"")
    else:
        first.unlink() if case == "missing" else first.rename(place / "0_mixed.png")
    monkeypatch.setattr(upload, "judge_of", lambda *_: pytest.fail("nothing is to be scored"))
    done = command("results", "submission", home / "out", "--dataset", NAME, "--data-root", tmp_path, "--out",
                   tmp_path / "sub.tar.gz")  # fmt: skip
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    stem = "synthetic_sheet_metal/test_private_mixed/"
    words = {
        "cut": ["1 file: cut short (test_private_mixed/000_mixed.png); restore it"],
        "missing": [f"1 images without labels are not there ({stem}000_mixed)"],
        "more": [f"1 images without labels are not known to the server ({stem}002_mixed)"],
        "misnamed": [f"are not there ({stem}000_mixed)", f"are not known to the server ({stem}0_mixed)"],
        "empty": ["1 file: empty (0 bytes) (test_private_mixed/000_mixed.png); restore it"],
    }[case]
    lines = done.stderr.splitlines()
    assert len(lines) == len(words)
    assert all(word in line for word, line in zip(words, lines, strict=True)), lines
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_other_data_than_the_models_leave_nothing(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / NAME, tmp_path / NAME)
    first, second, *_ = sorted((tmp_path / NAME / "synthetic_sheet_metal" / "train" / "good").iterdir())
    first.write_bytes(second.read_bytes())
    done = command("results", "submission", home / "out", "--dataset", NAME, "--data-root", tmp_path, "--out",
                   tmp_path / "sub.tar.gz")  # fmt: skip
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1), done.output
    assert "not the files that job" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_what_is_packed_is_examined_before_it_appears(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enlarged = upload.enlarged
    monkeypatch.setattr(upload, "enlarged", lambda heat, size: enlarged(heat, (size[0] - 1, size[1])))
    done = submitted(home, tmp_path / "sub.tar.gz")
    assert done.exit_code == 2
    assert f"{tmp_path / 'sub.tar.gz'}: 8 files: another size than its image" in done.stderr
    assert not list(tmp_path.iterdir())


def test_maps_of_full_size_are_in_memory_one_at_a_time(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living: list[weakref.ref[np.ndarray]] = []
    most = 0
    enlarged = upload.enlarged

    def seen(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        nonlocal most
        whole = enlarged(heat, size).copy()
        living.append(weakref.ref(whole))
        most = max(most, sum(one() is not None for one in living))
        return whole

    monkeypatch.setattr(upload, "enlarged", seen)
    assert submitted(home, tmp_path / "sub.tar.gz").exit_code == 0
    assert (len(living), most) == (6, 2), "the one that is made, while the last one's name still holds it"


def test_moments_in_pieces_are_those_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(1000.0, 0.1, (7, 50)).astype(np.float32)
    found = upload.Moments()
    for some in (values[:1], values[1:4], values[4:]):
        found.add(some)
    whole = values.astype(np.float64)
    assert found.threshold == pytest.approx(whole.mean() + 3 * whole.std(), rel=1e-12)


def test_the_published_numbers_are_those_of_the_server() -> None:
    expected = published_by(MVTEC_AD_2, list(PRIVATE))
    assert len(expected) == 4090
    assert expected["can/test_private/320_regular"] == SIZES["can"]
    assert "can/test_private/321_regular" not in expected
    assert expected["walnuts/test_private_mixed/227_mixed"] == SIZES["walnuts"]
    assert set(published_by(MVTEC_AD_2, ["synthetic_can"]).values()) == {(0, 0)}


def test_a_power_of_two_brings_a_threshold_where_float16_tells_most_apart() -> None:
    for threshold in (3e-7, 0.4, 1.0, 77.0, 1e9):
        assert 1 <= threshold * 2.0 ** upload.scale_of(threshold) < 2
    assert upload.scale_of(0.0) == upload.scale_of(-1.0) == 0
