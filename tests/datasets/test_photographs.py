"""What names, folders and patterns stand for: each photograph once, whatever else is said."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kdad_bench.datasets.photographs import drawn, photographs

RGB = {"photometric": "rgb"}  # tifffile asks for it


def picture(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 90).save(path, **options)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with everything in it that is found in such folders."""
    place = tmp_path / "a [1] folder"
    for name in (
        "a.png",
        "b.PGM",
        "c.bmp",
        "d.tif",
        "x[1]/e[2].jpg",
        "x[1]/f.webp",
        "deep/er/g.ppm",
        "folder.png/h.png",
    ):
        picture(place / name, format="PPM" if name.lower().endswith(("pgm", "ppm")) else None)
    for name in ("._a.png", "Thumbs.db", ".cache/a.png", "__MACOSX/a.png"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"\0\5\x16\7")
    picture(place / "0000-a.png", pnginfo=drawn())
    (place / "predictions.json").write_text("{}")
    (place / "readme.txt").write_text("x")
    (place / "again").symlink_to(place)
    return place


ALL = ["a.png", "b.PGM", "c.bmp", "d.tif", "deep/er/g.ppm", "folder.png/h.png", "x[1]/e[2].jpg", "x[1]/f.webp"]
NAMES = {
    "the folder": ([""], ALL),
    "twice, in two spellings": (["", "x[1]/../"], ALL),
    "a pattern": (["*.png"], ["a.png", "folder.png/h.png"]),
    "a pattern of everything": (["*"], ALL),
    "a pattern through all folders": (["**/*.p*"], ["a.png", "deep/er/g.ppm", "folder.png/h.png"]),
    "behind brackets": (["x[1]/*"], ["x[1]/e[2].jpg", "x[1]/f.webp"]),
    "brackets that mean themselves, before a pattern": (["x[1]/e[2]*"], ["x[1]/e[2].jpg"]),
    "brackets that are a pattern": (["[ab].*"], ["a.png", "b.PGM"]),
    "a pattern before brackets": (["*/e[2].jpg"], ["x[1]/e[2].jpg"]),
    "what a shell makes of a pattern": (
        ["0000-a.png", "Thumbs.db", "a.png", "deep", "predictions.json"], ["a.png", "deep/er/g.ppm"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(NAMES))
def test_names_stand_for_each_photograph_once(place: Path, kind: str) -> None:
    names, expected = NAMES[kind]
    found = photographs([f"{place}/{name}" for name in names])
    assert sorted(str(path.resolve().relative_to(place)) for path in found.files) == expected
    assert found.bad == []


def test_what_is_not_used_is_said_in_a_line_for_each_kind(place: Path) -> None:
    assert photographs([str(place)]).remarks == (
        f"{place}/0000-a.png: 1 not used: pictures that were drawn from scores",
        f"{place}: 2 files not used (predictions.json, readme.txt): no suffix of an image",
    )


def test_masks_and_scans_beside_photographs_are_none(tmp_path: Path) -> None:
    for kind in ("good", "cut"):
        for part in ("rgb", "gt"):
            picture(tmp_path / "solid" / "test" / kind / part / "0.png")
        (tmp_path / "solid" / "test" / kind / "xyz").mkdir()
        tifffile.imwrite(tmp_path / "solid" / "test" / kind / "xyz" / "0.tiff", np.zeros((8, 8, 3), np.float32), **RGB)
    picture(tmp_path / "flat" / "test" / "cut" / "0.png")
    picture(tmp_path / "flat" / "ground_truth" / "cut" / "0_mask.png")
    wanted = {"flat/test/cut/0.png", "solid/test/cut/rgb/0.png", "solid/test/good/rgb/0.png"}
    every = [str(path) for path in tmp_path.rglob("*") if path.is_file()]
    for names in ([str(tmp_path)], [f"{tmp_path}/*/*"], [f"{tmp_path}/**/*"], every):
        found = photographs(names)
        assert {str(path.relative_to(tmp_path)) for path in found.files} == wanted, names
        assert found.bad == []
        assert sum(one.files for one in found.unused) == 5, names


@pytest.mark.parametrize("name", ["masks/a.png", "masks", "mask*/*.png"])
def test_photographs_in_a_folder_as_of_masks_are_told_what_to_do(name: str, tmp_path: Path) -> None:
    """A shell's `*` names masks too, so that they are no photographs where they are named."""
    for folder in ("images", "masks"):
        picture(tmp_path / folder / "a.png")
    found = photographs([f"{tmp_path}/{name}"])
    assert (found.files, found.bad) == ([], [])
    line = found.none_of([f"{tmp_path}/{name}"])
    assert line.startswith(f"{tmp_path}/{name}: no photograph there; ")
    assert line.endswith("masks or scans beside photographs; if they are photographs, move them or rename their folder")


def test_what_cannot_be_a_photograph_is_bad_and_the_others_are_found(tmp_path: Path) -> None:
    sound = picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    found = photographs([str(tmp_path), str(tmp_path / "absent.png"), f"{tmp_path}/*.jpg", "", "~nobody-here/a.png"])
    assert found.files == [sound]
    lines = [one.why for one in found.bad]
    wanted = ["cannot be read", "target is missing", "neither files nor folders", *["no such image"] * 3, "not a path"]
    assert len(lines) == len(wanted)
    for line, words in zip(lines, wanted, strict=True):
        assert words in line


def test_names_that_no_terminal_shows_are_found_and_their_lines_are_printable(tmp_path: Path) -> None:
    names = [b"a\nb.png", b"\x1b[31m.png", b"caf\xe9.png"]
    for name in names:
        picture(tmp_path / "x.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    (tmp_path / "g\ne.png").symlink_to(tmp_path / "nowhere")
    found = photographs([str(tmp_path)])
    assert sorted(os.fsencode(path.name) for path in found.files) == sorted([*names, b"g\ne.png"])
    assert all(one.why.isprintable() for one in found.bad)
    assert all(line.isprintable() for line in photographs([f"{tmp_path}/absent\n.png"]).bad[0].why)
