"""What the values of a mask mean: labels stay what they are, and what a lossy format leaves around them is none."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from kdad_bench import datasets
from kdad_bench.datasets.decoding import mask_of
from kdad_bench.datasets.marking import inverted
from kdad_bench.datasets.verify import verify
from tests.conftest import SIDE, write_tree

SHAPES = {
    "square": lambda draw: draw.rectangle((17, 18, 30, 32), fill=255),
    "disc": lambda draw: draw.ellipse((9, 12, 50, 44), fill=255),
    "line": lambda draw: draw.line((5, 9, 58, 41), fill=255, width=3),
}


NOTES = {"exif": Image.Exif()}  # of a camera, which stand in a chunk of their own
NOTES["exif"][270] = "a mask"


def drawn(shape: str) -> Image.Image:
    mask = Image.new("L", (SIDE, SIDE))
    SHAPES[shape](ImageDraw.Draw(mask))
    return mask


def through(mask: Image.Image, name: str, quality: int) -> np.ndarray:
    """What a lossy format makes of a mask, as grey values."""
    file = io.BytesIO()
    mask.save(file, name, quality=quality)
    return np.asarray(Image.open(file).convert("L"))


def said_of(tree: Path) -> tuple[list[str], list[str]]:
    """(what a run says as it loads the test images, what `verify` finds wrong)."""
    (category,) = datasets.categories(f"folder:{tree}", None)
    told: list[list[str]] = []
    for _ in range(2):  # the second time from the cache
        with warnings.catch_warnings(record=True) as lines:
            warnings.simplefilter("always")
            datasets.load_test(category, SIDE)
        told.append([str(one.message) for one in lines])
    assert told[0] == told[1]
    return told[0], verify(tree, against="none").categories[0].problems


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "set", ("bolt",), train=4, test=3) / "bolt"


LABELS = {
    "one": (1,), "kinds of VisA": (1, 2, 3), "kinds of LOCO": (*range(240, 248),), "the highest": (254, 255),
    "eight from 1 on": (*range(1, 9),), "spread": (40, 80, 120, 160, 200, 240),
    "near the top and half": (3, 128, 254, 255), "16 bits": (1, 2, 300), "of a dark grey": (1, 2, 126, 127),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_every_label_above_0_is_a_defect(case: str, tmp_path: Path) -> None:
    values = np.zeros((SIDE, SIDE), np.uint16 if max(LABELS[case]) > 255 else np.uint8)
    for place, label in enumerate(LABELS[case]):
        values[4 + 6 * place : 8 + 6 * place, 10:30] = label
    Image.fromarray(values).save(tmp_path / "mask.png")
    found = mask_of(tmp_path / "mask.png")
    assert np.array_equal(found.marked, values > 0)
    assert (found.doubt, found.values) == ("", LABELS[case])


@pytest.mark.parametrize("quality", [50, 75, 90, 95, 97, 98])
@pytest.mark.parametrize("name", ["JPEG", "WEBP"])
@pytest.mark.parametrize("shape", ["disc", "line"])
def test_a_mask_that_went_through_a_lossy_format_has_a_halo_which_is_no_defect(
    shape: str, name: str, quality: int, tmp_path: Path
) -> None:
    mask, values = drawn(shape), through(drawn(shape), name, quality)
    truth = np.asarray(mask) > 0
    assert (values > 0).sum() > truth.sum()
    for image in (values, np.stack([values] * 3, axis=2), values.astype(np.uint16) * 257):
        Image.fromarray(image).save(tmp_path / "mask.png")
        found = mask_of(tmp_path / "mask.png")
        assert np.array_equal(found.marked, truth)
        assert found.doubt.startswith("has the halo of a lossy format (values near 0 and near ")


def test_a_halo_that_may_be_a_label_counts_as_defect_and_is_told(tree: Path) -> None:
    """1 and 255 alone are what the best quality of JPEG leaves of some masks, and two labels in others."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[8:12, 8:40], values[30:40, 8:40] = 1, 255
    Image.fromarray(values).save(tree / "ground_truth/spot/001_mask.png")
    assert np.array_equal(mask_of(tree / "ground_truth/spot/001_mask.png").marked, values > 0)
    for (line,) in said_of(tree):
        assert "001_mask.png" in line
        assert "marks with 1 and with 255: kinds of defects, or the halo of a lossy format?" in line


def put_lossy(mask: Image.Image, folder: Path, case: str) -> Path:
    """A mask in a file of a lossy kind."""
    path = folder / "mask"
    if case == "JPEG-compressed TIFF":
        mask.save(path, "TIFF", compression="jpeg", quality=75)
    else:
        mask.convert("RGB").save(path, case.split()[-1], quality=75, **NOTES if "notes" in case else {})
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", ["JPEG", "lossy WEBP", "with notes, lossy WEBP", "JPEG-compressed TIFF"])
def test_a_lossy_file_is_cut_at_half_and_told_whatever_the_container(case: str, shape: str, tmp_path: Path) -> None:
    path = put_lossy(drawn(shape), tmp_path, case)
    found = mask_of(path)
    assert np.array_equal(found.marked, np.asarray(drawn(shape)) > 0)
    kind = case.rpartition(", ")[2].replace("WEBP", "WebP")
    assert found.doubt.startswith(f"is a {kind} file, whose edges are blurred")


@pytest.mark.parametrize("case", ["plain", "with notes"])
def test_labels_in_a_lossless_webp_file_stay_what_they_are(case: str, tmp_path: Path) -> None:
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[8:12, 8:40], values[30:40, 8:40] = 1, 3
    options = NOTES if case == "with notes" else {}
    Image.fromarray(values).convert("RGB").save(tmp_path / "mask", "WEBP", lossless=True, **options)
    found = mask_of(tmp_path / "mask")
    assert np.array_equal(found.marked, values > 0)
    assert (found.doubt, found.values) == ("", (1, 3))


def test_labels_in_a_compressed_tiff_file_stay_what_they_are(tmp_path: Path) -> None:
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[8:12, 8:40], values[30:40, 8:40] = 1, 3
    for compression in ("zlib", "lzw", "packbits"):
        Image.fromarray(values).save(tmp_path / "a.tiff", compression=compression.replace("zlib", "tiff_deflate"))
        assert mask_of(tmp_path / "a.tiff").values == (1, 3)
        assert mask_of(tmp_path / "a.tiff").doubt == ""
    tifffile.imwrite(tmp_path / "b.tiff", values, tile=(32, 32), photometric="minisblack")
    assert mask_of(tmp_path / "b.tiff").doubt == ""


# --- all masks of a category together ---------------------------------------------------------------------------------


def test_inverted_masks_of_defects_on_the_rim_are_told(tree: Path) -> None:
    """Each leaves out a part of the rim; that all mark most of it is what no set of defects does."""
    values = np.full((SIDE, SIDE), 255, np.uint8)
    values[:30, 20:36] = 0
    for number in range(3):
        Image.fromarray(values).save(tree / f"ground_truth/spot/{number:03}_mask.png")
    told, problems = said_of(tree)
    assert len(told) == 1
    assert "marks 88% of the image and 94% of its rim: inverted?" in told[0]
    assert told[0].endswith("(and 2 more masks like it)")
    assert [line.endswith("inverted? defects have values above 0") for line in problems] == [True] * 3


def test_a_great_defect_among_small_ones_is_not_told(tree: Path) -> None:
    values = np.full((SIDE, SIDE), 255, np.uint8)
    values[:30, 20:36] = 0
    Image.fromarray(values).save(tree / "ground_truth/spot/001_mask.png")
    assert said_of(tree) == ([], [])


@pytest.mark.parametrize(
    ("shares", "which"),
    [
        ([(0.9, 0.96), (0.1, 0.0), (0.1, 0.0)], [0]),  # one alone by nearly its whole rim
        ([(0.9, 0.6), (0.9, 0.6), (0.1, 0.0)], [0, 1]),  # most of them by most of it
        ([(0.9, 0.6), (0.1, 0.0)], []),  # half of them are not most
        ([(0.9, 0.5), (0.9, 0.4)], []),  # great defects inside
        ([(0.5, 0.9), (0.4, 0.9)], []),  # and others around
        ([], []),
    ],
)
def test_masks_are_inverted_by_their_image_and_rim(shares: list[tuple[float, float]], which: list[int]) -> None:
    assert [place for place, line in enumerate(inverted(shares)) if line] == which


# --- masks that mark nothing, or what they should not -----------------------------------------------------------------

NOTHING = {
    "zeros": ("marks no pixel", Image.new("L", (SIDE, SIDE))),
    "alpha": (
        "marks no pixel but in its alpha channel", Image.merge("LA", [Image.new("L", (SIDE, SIDE)), drawn("disc")]),
    ),
    "an even alpha": ("marks no pixel", Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 255))),
    "a black palette": ("marks no pixel: its palette shows every index in black", drawn("disc").convert("P")),
}  # fmt: skip
NOTHING["a black palette"][1].putpalette([0] * 768)


@pytest.mark.parametrize("case", NOTHING)
def test_a_mask_that_marks_nothing_says_where_its_marks_may_be(tree: Path, case: str) -> None:
    words, image = NOTHING[case]
    image.save(tree / "ground_truth/spot/001_mask.png")
    for (line,) in said_of(tree):
        assert f"mask {words}" in line or f"001_mask.png {words}" in line
        assert ("; save it as grey" in line or "; save that as grey" in line) == (case in ("alpha", "a black palette"))


def test_the_mask_of_a_normal_image_that_marks_something_is_told_by_the_run(tree: Path) -> None:
    (tree / "ground_truth/good").mkdir()
    Image.new("L", (SIDE, SIDE)).save(tree / "ground_truth/good/000_mask.png")
    assert said_of(tree) == ([], [])
    for number in (1, 2):
        drawn("disc").save(tree / f"ground_truth/good/{number:03}_mask.png")
    (line,), problems = said_of(tree)
    assert line.endswith(
        "bolt: the mask ground_truth/good/001_mask.png marks something in a normal image, which counts as normal; is "
        "the label wrong, or the mask? (and 1 more masks like it)"
    )
    assert len(problems) == 2


@pytest.mark.parametrize("content", [b"", b"broken"])
def test_the_mask_of_a_normal_image_that_cannot_be_read_stops_no_run(tree: Path, content: bytes) -> None:
    (tree / "ground_truth/good").mkdir()
    (tree / "ground_truth/good/000_mask.png").write_bytes(content)
    (line,), problems = said_of(tree)
    assert "the mask ground_truth/good/000_mask.png is not used: " in line
    assert len(problems) == 1


def test_the_mask_of_a_normal_image_enters_no_fingerprint(tree: Path) -> None:
    before = datasets.fingerprint(*datasets.categories(f"folder:{tree}", None))
    (tree / "ground_truth/good").mkdir()
    drawn("disc").save(tree / "ground_truth/good/000_mask.png")
    assert datasets.fingerprint(*datasets.categories(f"folder:{tree}", None)) == before
