"""Nothing in a data set is passed over in silence: what is not used is told by a run and is a problem for `verify`."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from kdad_bench import datasets
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.listing import HIDDEN, SUFFIXES, begins_as_image
from kdad_bench.datasets.plain_layout import PLAIN as PLAIN_LAYOUT
from kdad_bench.datasets.verify import verify
from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.options import options_from
from kdad_bench.harness.run import columns_of
from tests.conftest import SIDE, write_tree
from tests.datasets.test_mvtec_3d_ad import write_scans
from tests.harness.planned import jobs_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "set", ("bolt",), train=4, test=3) / "bolt"


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    return write_scans(tmp_path / "scans" / "plate")


def told(folder: Path) -> tuple[list[str], list[str]]:
    """(what a run says of a data set, what `verify` finds wrong with it)."""
    found = datasets.categories(f"folder:{folder.parent}", None)
    report = verify(folder.parent, against="none")
    assert report.sound == (not [*report.problems, *report.categories[0].problems])
    return datasets.remarks_on(found, None), [*report.problems, *report.categories[0].problems]


def move(folder: Path, old: str, new: str) -> None:
    (folder / new).parent.mkdir(parents=True, exist_ok=True)
    (folder / old).rename(folder / new)


def copy(folder: Path, old: str, new: str) -> None:
    (folder / new).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / old, folder / new)


def dangle(folder: Path, old: str) -> None:
    (folder / old).unlink()
    (folder / old).symlink_to("/nowhere/at/all.png")


def link(folder: Path, new: str, target: str) -> None:
    (folder / new).parent.mkdir(parents=True, exist_ok=True)
    (folder / new).symlink_to(target)


def put(folder: Path, old: str, new: str) -> None:
    """A copy with contents of its own, so that no other file is equal to it."""
    copy(folder, old, new)
    with open(folder / new, "ab") as file:
        file.write(os.urandom(8))


def begin(folder: Path, new: str, start: bytes) -> None:
    (folder / new).parent.mkdir(parents=True, exist_ok=True)
    (folder / new).write_bytes(start + bytes(200))


FORMS = ("\u00e91", "e\u03011")  # é1 in NFC and in NFD
GOOD, SPOT, MASK = "train/good/000.png", "test/spot/000.png", "ground_truth/spot/000_mask.png"
PLAIN: dict[str, tuple[Callable[[Path], object], str, str]] = {  # what is done, the name told, the reason told
    "a nested folder": (lambda at: move(at, GOOD, "train/good/day2/000.png"), "day2", "folders inside a folder"),
    "a nested test folder": (lambda at: copy(at, SPOT, "test/spot/more/a.png"), "more", "folders inside a folder"),
    "another suffix": (lambda at: move(at, GOOD, "train/good/000.jfif"), "000.jfif", "no suffix of an image"),
    "no suffix": (lambda at: move(at, GOOD, "train/good/000"), "000", "no suffix of an image"),
    "a phone's format": (lambda at: copy(at, GOOD, "test/good/a.HEIC"), "a.HEIC", "no suffix of an image"),
    "text": (lambda at: (at / "train/good/readme.txt").write_text("x"), "readme.txt", "no suffix of an image"),
    "a dangling link": (lambda at: dangle(at, GOOD), "000.png", "links whose target is missing"),
    "a circle of links": (lambda at: (at / "train/good/x.png").symlink_to("x.png"), "x.png", "cannot be read"),
    "a pipe": (lambda at: os.mkfifo(at / "train/good/pipe.png"), "pipe.png", "neither files nor folders"),
    "a device": (lambda at: (at / "train/good/zero.png").symlink_to("/dev/zero"), "zero.png", "neither files nor"),
    "another kind in train": (lambda at: copy(at, GOOD, "train/bad/a.png"), "bad", "only good/ holds normal images"),
    "an image directly in train": (lambda at: copy(at, GOOD, "train/a.png"), "a.png", "not in a folder of a kind"),
    "an image directly in test": (lambda at: copy(at, SPOT, "test/a.png"), "a.png", "not in a folder of a kind"),
    "a mask directly in ground_truth": (lambda at: copy(at, MASK, "ground_truth/a.png"), "a.png", "not in a folder"),
    "a mask of nothing": (lambda at: copy(at, MASK, "ground_truth/spot/9_mask.png"), "9_mask.png", "without an image"),
    "masks of an unknown kind": (lambda at: copy(at, MASK, "ground_truth/dent/000.png"), "000.png", "without an image"),
    "two masks of one image": (lambda at: copy(at, MASK, "ground_truth/spot/000.png"), "000.png", "a second mask"),
    "two suffixes of a mask": (
        lambda at: copy(at, MASK, "ground_truth/spot/000_mask.bmp"), "000_mask.bmp", "a second mask",
    ),
    "a mask one level deeper": (
        lambda at: copy(at, MASK, "ground_truth/spot/000/000.png"), "000", "folders inside a folder",
    ),
    "another split": (lambda at: copy(at, GOOD, "val/good/000.png"), "val", "not a split"),
    "two images of one name": (lambda at: copy(at, SPOT, "test/spot/000.jpg"), "000.jpg", "the same name as 000"),
    "a name that is not UTF-8": (
        lambda at: os.rename(os.fsencode(at / GOOD), os.fsencode(at / "train/good") + b"/\xfc.png"),
        "\\udcfc.png", "not UTF-8",
    ),
    "a name with an escape": (lambda at: copy(at, GOOD, "train/good/\x1b[2J\n.png"), "\\x1b[2J\\x0a", "control char"),
    "a folder beside the categories": (lambda at: copy(at, GOOD, "../nut/images/a.png"), "nut", "not a category"),
    "an image directly in the category": (lambda at: copy(at, GOOD, "a.png"), "a.png", "not in a split"),
    "a link directly in the category": (lambda at: (at / "val").symlink_to("/nowhere"), "val", "links whose target"),
    "a pipe directly in the category": (lambda at: os.mkfifo(at / "pipe"), "pipe", "neither files nor folders"),
    "an image beside the categories": (lambda at: copy(at, GOOD, "../a.png"), "a.png", "not in a folder of a category"),
    "a category that leads nowhere": (lambda at: link(at, "../pin", "/nowhere"), "pin", "links whose target"),
    "a category in a circle": (lambda at: link(at, "../pin", "pin"), "pin", "cannot be read"),
    "a category whose parts lead nowhere": (lambda at: link(at, "../pin/Data", "/nowhere"), "pin", "not a category"),
    "another split of an unknown suffix": (lambda at: copy(at, GOOD, "val/good/000.jfif"), "val", "not a split"),
    "another split of a phone's format": (lambda at: begin(at, "val/good/0", b"\0\0\0\x18ftypheic"), "val", "not a"),
    "a folder of an unknown suffix": (lambda at: copy(at, GOOD, "../nut/images/a.jfif"), "nut", "not a category"),
    "an image of an unknown suffix in the category": (lambda at: copy(at, GOOD, "a.jfif"), "a.jfif", "not in a split"),
    "an image of no suffix beside the categories": (lambda at: copy(at, GOOD, "../x-y"), "x-y", "not in a folder of a"),
    "names in two forms in train": (
        lambda at: [copy(at, GOOD, f"train/good/{name}.png") for name in FORMS], "'\\xe91.png'", "Unicode form",
    ),
    "images in two forms": (
        lambda at: [put(at, SPOT, f"test/spot/{name}.png") for name in FORMS]
        + [put(at, MASK, f"ground_truth/spot/{name}_mask.png") for name in FORMS],
        "test/spot", "but for its Unicode form",
    ),
}  # fmt: skip
SCANS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "a scan of nothing": (lambda at: move(at, "train/good/rgb/000.png", "train/good/000.png"), "000.tiff", "a scan wi"),
    "two scans of one image": (
        lambda at: copy(at, "test/dent/xyz/000.tiff", "test/dent/xyz/000.tif"), "000.tif", "a second scan",
    ),
    "a mask of nothing": (lambda at: copy(at, "test/dent/gt/000.png", "test/dent/gt/9.png"), "9.png", "without an im"),
    "an unknown part": (lambda at: copy(at, "test/dent/gt/000.png", "test/dent/depth/0.png"), "depth", "folders insi"),
    "another kind in train": (
        lambda at: copy(at, "test/dent/rgb/000.png", "train/dent/rgb/0.png"), "dent", "only good/",
    ),
    "a scan with the suffix of an image": (
        lambda at: copy(at, "test/dent/gt/000.png", "test/dent/xyz/0.png"), "0.png", "no suffix",
    ),
    "another split": (lambda at: copy(at, "test/dent/gt/000.png", "extra/0.png"), "extra", "not a split"),
    "one of an unknown suffix": (lambda at: copy(at, "test/dent/gt/000.png", "extra/0.raw"), "extra", "not a split"),
    "an image directly in the category": (lambda at: copy(at, "test/dent/gt/000.png", "0.png"), "0.png", "not in a s"),
    "a link directly in the category": (lambda at: link(at, "val", "/nowhere"), "val", "links whose target"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN)
def test_what_is_not_used_is_told(tree: Path, case: str) -> None:
    assert told(tree) == ([], [])
    change, name, why = PLAIN[case]
    change(tree)
    for lines in told(tree):
        assert sum(name in line and why in line for line in lines) == 1, lines
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("case", SCANS)
def test_what_is_not_used_beside_scans_is_told(scans: Path, case: str) -> None:
    assert told(scans) == ([], [])
    change, name, why = SCANS[case]
    change(scans)
    for lines in told(scans):
        assert any(name in line and why in line for line in lines), lines


NO_IMAGES = {
    "a licence": b"MIT License", "a table": b"image,split\na.png,train\n", "words that begin so": b"BMW: 5 images\nof",
    "a column": b"P1,P2\n1,2\n", "a document": b"%PDF-1.7\n", "an archive": b"PK\3\4", "a film": b"\0\0\0\x18ftypisom",
    "nothing": b"", "points": b"\x93NUMPY",
}  # fmt: skip


@pytest.mark.parametrize("case", NO_IMAGES)
def test_what_is_no_image_beside_splits_and_categories_is_no_loss(tree: Path, case: str) -> None:
    for place in ("notes", "../notes", "docs/notes", "../docs/notes"):
        (tree / place).parent.mkdir(exist_ok=True)
        (tree / place).write_bytes(NO_IMAGES[case])
    assert told(tree) == ([], [])


@pytest.mark.parametrize("name", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "AVIF", "JPEG2000"])
def test_a_file_begins_as_an_image_whatever_its_name(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "x", name)
    assert begins_as_image(tmp_path / "x")


PLACES = ("train", "train/good", "test", "test/good", "test/spot", "ground_truth", "ground_truth/spot", "validation")
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\x00"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    place=st.sampled_from(PLACES), name=NAMES, suffix=st.sampled_from(["", ".png", ".JPG", ".json", ".heif", ".tar"])
)
def test_any_file_anywhere_in_a_split_is_used_or_told_or_hidden(
    tmp_path_factory: pytest.TempPathFactory, place: str, name: str, suffix: str
) -> None:
    tree = write_tree(tmp_path_factory.mktemp("any"), ("bolt",), train=1, test=1) / "bolt"
    (before,) = datasets.categories(f"folder:{tree}", None)
    path = tree / place / f"{name}{suffix}"
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        return
    path.write_bytes((tree / GOOD).read_bytes())
    survey = PLAIN_LAYOUT.survey(tree)
    used = len([*survey.samples, *survey.blank]) > len(list(before.files())) - 1  # all but the mask
    hidden = path.name.startswith(".") or path.name.casefold() in HIDDEN
    listed = path in [one.path for one in survey.unused]
    assert used + hidden + listed == 1, (path, survey)
    assert not used or path.suffix.lower() in SUFFIXES


def refused(folder: Path, modality: str = "rgb") -> tuple[list[str], list[str]]:
    """(lines in which a run refuses a data set, problems that `verify` has with it: they are refusals, too)."""
    with pytest.raises(DatasetError) as error:
        datasets.categories(f"folder:{folder.parent}", None, modality=modality)
    report = verify(folder.parent, against="none")
    assert report.exit_code == 2
    return list(error.value.lines), report.categories[0].problems


def as_btad(tree: Path) -> None:
    for place in ("train/good", "test/good"):
        move(tree, place, place.replace("good", "ok"))
    for place in ("test/spot", "ground_truth/spot"):
        move(tree, place, place.replace("spot", "ko"))


def as_ad_2(tree: Path) -> None:
    move(tree, "test", "test_public")
    move(tree, "ground_truth", "test_public/ground_truth")


LAYOUTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {  # layout -> folders without which nothing is
    "plain": (lambda at: None, ("train", "validation", "test", "ground_truth")),
    "BTAD": (as_btad, ("train", "test", "ground_truth")),
    "AD 2": (as_ad_2, ("train", "validation", "test_public", "test_public/ground_truth")),
    "scans": (lambda at: None, ("train", "validation", "test", "test/dent/gt", "test/dent/rgb", "train/good/xyz")),
}
INSTEAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link to nowhere": (lambda at: at.symlink_to("/nowhere"), "a link whose target is missing"),
    "a circle": (lambda at: at.symlink_to(at.name), "a link that cannot be followed"),
    "a file": (lambda at: at.write_text("../elsewhere"), "a file"),  # what Windows makes of a link
}


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout in LAYOUTS for name in LAYOUTS[layout][1]])
def test_a_folder_that_leads_nowhere_is_refused(
    layout: str, name: str, instead: str, tree: Path, scans: Path, tmp_path: Path
) -> None:
    """What the folders are for is not done without them in silence: no pixel metrics, no validation images."""
    at = scans if layout == "scans" else tree
    LAYOUTS[layout][0](at)
    place, (put_there, words) = at / name, INSTEAD[instead]
    if place.exists():
        place.rename(tmp_path / "away")
    put_there(place)
    if name in ("train", "test_public") and instead == "a file":  # nothing says that it is a category of this layout
        with pytest.raises(DatasetError, match=r"no category there|no normal test image"):
            datasets.categories(f"folder:{at.parent}", None)
        return
    for lines in refused(at):
        assert sum(f"{place}: no folder but {words}; restore it, or remove it" in line for line in lines) == 1, lines


@pytest.mark.parametrize("name", ["train", "validation", "test", "ground_truth", "../pin", "../pin/parts"])
def test_a_folder_that_is_closed_is_told_or_refused(tree: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(os.path.normpath(tree / name))
    place.mkdir(parents=True, exist_ok=True)

    def refuse(which: str) -> Callable[..., object]:
        original = getattr(os, which)

        def ask(path: object = ".") -> object:
            if os.path.normpath(str(path)) == str(place):
                raise PermissionError(13, "Permission denied")
            return original(path)

        return ask

    for which in ("listdir", "scandir"):
        monkeypatch.setattr(os, which, refuse(which))
    if "pin" in name:
        why = "cannot be listed; check their permissions" if name == "../pin" else "not a category"
        for lines in told(tree):
            assert len(lines) == 1
            assert "pin" in lines[0]
            assert why in lines[0]
        return
    for lines in refused(tree):
        assert any(f"{place}: the folder cannot be listed (Permission denied)" in line for line in lines), lines


BESIDE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"{ending} in {place}": (
            lambda at, ending=ending, place=place: copy(at, MASK, f"{place}/000{ending}.png"),  # type: ignore[misc]
            f"{place}/000{ending}.png: called as the mask of 000.png beside it; move the masks to ",
        )
        for ending in ("_mask", "_MASK", "_gt")
        for place in ("train/good", "test/good", "test/spot", "validation/good")
    },
    **{
        f"a folder {name}/{inside}": (
            lambda at, name=name, inside=inside: copy(at, MASK, f"test/{name}/{inside}000.png"),  # type: ignore[misc]
            f"test/{name}: masks among the test images; move them to ",
        )
        for name in ("ground_truth", "Masks")
        for inside in ("", "spot/")
    },
}


@pytest.mark.parametrize("masks", ["kept", "gone"])
@pytest.mark.parametrize("case", BESIDE)
def test_masks_among_images_are_refused(tree: Path, case: str, masks: str) -> None:
    """They are no images, normal or anomalous."""
    change, words = BESIDE[case]
    (tree / "validation/good").mkdir(parents=True)
    copy(tree, GOOD, "validation/good/000.png")
    change(tree)
    if masks == "gone":
        shutil.rmtree(tree / "ground_truth")
    for lines in refused(tree):
        (line,) = [line for line in lines if words in line]
        assert "ground_truth/" in line.partition("move ")[2]
    report = verify(tree, against="none").categories[0]
    assert (report.train, report.validation, report.test_good, report.test_anomalous) == (4, 1, 3, 3)


def test_masks_among_photographs_of_scans_are_refused(scans: Path) -> None:
    copy(scans, "test/dent/gt/000.png", "test/dent/rgb/000_mask.png")
    for lines in refused(scans):
        assert any("000_mask.png: called as the mask of 000.png beside it; move the masks to" in line for line in lines)


@pytest.mark.parametrize("ours", [0, 1])
@pytest.mark.parametrize("part", ["image", "kind", "folder of masks"])
def test_names_in_another_unicode_form_belong_together(tree: Path, part: str, ours: int) -> None:
    """A Mac writes é as two signs; files are opened under the names that they have."""
    one, other = FORMS[ours], FORMS[1 - ours]
    if part == "kind":
        move(tree, "test/spot", f"test/{one}")
        move(tree, "ground_truth/spot", f"ground_truth/{other}")
    else:
        move(tree, SPOT, f"test/spot/{one}.png")
        mask = f"{other}/000.png" if part == "folder of masks" else f"{other}_mask.png"
        move(tree, MASK, f"ground_truth/spot/{mask}")
    assert told(tree) == ([], [])
    (found,) = datasets.categories(f"folder:{tree}", None)
    assert all(len(sample.masks) == 1 for sample in found.test if sample.label)
    assert datasets.load_test(found, SIDE).masks is not None


def test_a_mask_in_another_form_is_not_taken_from_the_image_that_it_fits(tree: Path) -> None:
    move(tree, SPOT, f"test/spot/{FORMS[0]}.png")
    move(tree, MASK, f"ground_truth/spot/{FORMS[1]}_mask.png")
    copy(tree, "test/spot/001.png", "test/spot/\u00c91.png")  # É1
    for lines in refused(tree):
        assert any("the mask of test/spot/\u00c91.png is missing" in line for line in lines)


def test_a_category_is_named_in_any_unicode_form(tree: Path) -> None:
    for ours in (0, 1):
        tree = tree.rename(tree.with_name(FORMS[ours]))
        (found,) = datasets.categories(f"folder:{tree.parent}", None, [FORMS[1 - ours]])
        assert found.name == FORMS[ours]


@pytest.mark.parametrize("place", ["..", "test", "ground_truth"])
def test_folders_that_differ_in_unicode_form_alone_are_refused(tree: Path, place: str) -> None:
    source = {"..": "", "test": "test/spot", "ground_truth": "ground_truth/spot"}[place]
    for name in FORMS:
        shutil.copytree(tree / source, tree.parent / name if place == ".." else tree / place / name)
    words = f"{os.path.normpath(tree / place)}: 'e\\u03011' and '\\xe91' differ in nothing but their Unicode form"
    with pytest.raises(DatasetError) as error:
        datasets.categories(f"folder:{tree.parent}", None)
    assert any(words in line for line in error.value.lines)
    report = verify(tree.parent, against="none")
    assert report.exit_code == 2
    assert any(words in line for line in [*report.problems, *report.categories[0].problems])


def test_an_image_in_two_splits_is_told_by_a_run_and_a_problem_for_verify(tree: Path) -> None:
    copy(tree, "test/good/000.png", "test/good/same.png")  # within one split: no leak
    assert list(datasets.leaks(datasets.sealed(datasets.categories(f"folder:{tree}", None)[0]))) == []
    copy(tree, GOOD, "test/good/leak.png")
    copy(tree, "train/good/001.png", "validation/good/apart.png")
    said = {"methods": ["pixel_mean"], "datasets": [f"folder:{tree}"], "seeds": "2", "device": "cpu", "preset": "quick"}
    (remark,) = agenda(options_from({**said, "out": str(tree.parent / "results")})).remarks
    assert remark == (
        f"{tree}: 2 images have the contents of one in another split (validation/good/apart.png is train/good/001.png, "
        "test/good/leak.png is train/good/000.png): what is learnt from is judged; keep one of each"
    )
    report = verify(tree, against="none")
    assert (report.exit_code, len(report.categories[0].problems)) == (1, 2)


def test_held_out_copies_of_what_is_learnt_from_are_told_by_a_run(tree: Path) -> None:
    for number in range(3):
        copy(tree, f"train/good/00{number}.png", f"train/good/again-{number}.png")
    said = {"methods": ["pixel_mean"], "datasets": [f"folder:{tree}"], "seeds": "3", "device": "cpu", "preset": "quick"}
    out = {"out": str(tree.parent / "results")}
    assert agenda(options_from({**said, **out})).remarks == ()
    (remark,) = agenda(options_from({**said, **out, "hold_out": 0.5})).remarks
    assert re.fullmatch(
        rf"{re.escape(str(tree))}: [1-4] of 4 held-out normals (is a copy|are copies) of images that are learnt "
        "from, or of one another: a threshold from them need not keep its false-alarm rate; keep one of each image",
        remark,
    )


def test_many_of_a_kind_are_one_line(tree: Path) -> None:
    for index in range(4):
        move(tree, f"train/good/{index:03}.png", f"train/good/x{index}.heic")
    copy(tree, "test/good/000.png", "train/good/000.png")
    (remark,) = told(tree)[0]
    assert remark == f"{tree}/train/good: 4 files not used (x0.heic, x1.heic, x2.heic, ...): no suffix of an image"


def test_ground_truth_without_a_usable_mask_is_refused(tree: Path) -> None:
    for change in (
        lambda: [path.rename(path.with_suffix(".mat")) for path in (tree / "ground_truth/spot").iterdir()],
        lambda: shutil.rmtree(tree / "ground_truth/spot"),
    ):
        change()
        with pytest.raises(DatasetError, match="not one mask that can be used"):
            datasets.categories(f"folder:{tree}", None)
        assert any("not one mask" in line for line in verify(tree, against="none").categories[0].problems)


def test_a_folder_of_test_images_without_one_that_can_be_read_is_refused(tree: Path) -> None:
    for path in (tree / "test/spot").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DatasetError, match="test/spot: an empty test folder"):
        datasets.categories(f"folder:{tree}", None)
    problems = verify(tree, against="none").categories[0].problems
    assert sum("no suffix of an image" in line for line in problems) == 3


def test_a_shipped_validation_split_is_held_out(tree: Path) -> None:
    copy(tree, GOOD, "validation/good/v.png")
    (category,) = datasets.categories(f"folder:{tree}", None)
    normals = datasets.load_normals(category, 16)
    assert (normals.source, len(normals.fit), len(normals.held_out)) == ("validation", 4, 1)
    assert category.remarks == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [("train/good", "train/Good"), ("test/good", "test/GOOD"), ("ground_truth", "Ground_Truth"), ("train", "TRAIN"),
     ("ground_truth/spot", "ground_truth/Spot"), (MASK, "ground_truth/spot/000_MASK.PNG")],
)  # fmt: skip
def test_case_makes_no_difference(tree: Path, old: str, new: str) -> None:
    (before,) = datasets.categories(f"folder:{tree}", None)
    move(tree, old, new)
    (after,) = datasets.categories(f"folder:{tree}", None)
    assert [sample.label for sample in after.test].count(False) == 3
    assert (len(after.train), sum(len(one.masks) for one in after.test)) == (4, 3)
    assert after.remarks == before.remarks == ()
    assert verify(tree, against="none").sound


def test_folders_that_differ_in_case_alone_are_refused(tree: Path) -> None:
    copy(tree, GOOD, "train/Good/000.png")
    with pytest.raises(DatasetError, match="Good and good differ in nothing but case"):
        datasets.categories(f"folder:{tree}", None)


def test_masks_are_told_apart_by_case_where_images_are(tree: Path) -> None:
    for name in ("A", "a"):
        copy(tree, SPOT, f"test/spot/{name}.png")
        copy(tree, MASK, f"ground_truth/spot/{name}_mask.png")
    (category,) = datasets.categories(f"folder:{tree}", None)
    masks = {one.path.name: one.masks[0].name for one in category.test if one.masks}
    assert (masks["A.png"], masks["a.png"]) == ("A_mask.png", "a_mask.png")
    assert category.remarks == ()


def test_folders_of_masks_are_told_apart_by_case_where_kinds_are(tree: Path) -> None:
    """A folder of masks that differs from another in case alone is neither lost nor taken for the other."""
    copy(tree, MASK, "ground_truth/Spot/000_mask.png")
    for lines in told(tree):
        assert len([line for line in lines if "ground_truth/Spot" in line and "without an image" in line]) == 1, lines
    copy(tree, SPOT, "test/Spot/000.png")
    (category,) = datasets.categories(f"folder:{tree}", None)
    masks = {str(one.path.relative_to(tree)): one.masks[0].parent.name for one in category.test if one.masks}
    assert (masks["test/Spot/000.png"], masks["test/spot/000.png"]) == ("Spot", "spot")
    shutil.rmtree(tree / "ground_truth/Spot")
    with pytest.raises(DatasetError, match=r"the mask of test/Spot/000\.png is missing"):
        datasets.categories(f"folder:{tree}", None)


@pytest.mark.parametrize("suffix", [".tif", ".TIF", ".TIFF"])
def test_scans_may_have_another_suffix(scans: Path, suffix: str) -> None:
    (before,) = datasets.categories(f"folder:{scans}", None, modality="depth")
    expected = datasets.load_train(before, 16).copy()
    for path in list(scans.rglob("*.tiff")):
        path.rename(path.with_suffix(suffix))
    (after,) = datasets.categories(f"folder:{scans}", None, modality="depth")
    assert np.array_equal(datasets.load_train(after, 16), expected)
    assert verify(scans).sound


def test_a_folder_that_cannot_be_listed_is_one_line(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        if str(path).endswith("test/good"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    original = os.listdir
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DatasetError, match="test/good: the folder cannot be listed"):
        datasets.categories(f"folder:{tree}", None)
    assert not verify(tree, against="none").sound


# --- masks ------------------------------------------------------------------------------------------------------------

REGION = np.zeros((SIDE, SIDE), bool)
REGION[20:30, 12:40] = True


def soft(radius: int) -> np.ndarray:
    """A disc with an edge of many grey values."""
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.clip((radius - np.hypot(x - 30, y - 30)) * 16 + 128, 0, 255).astype(np.uint8)


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


CLEAN = {
    "1": grey(REGION * 1),
    "236": grey(REGION * 236),
    "255": grey(REGION * 255),
    "eight labels": grey(REGION * (1 + np.arange(SIDE) % 8)),
    "RGB": Image.fromarray(np.stack([REGION * np.uint8(0), REGION * np.uint8(200), REGION * np.uint8(0)], axis=2)),
    "16 bits": Image.fromarray((REGION * 40_000).astype(np.uint16)),
    "palette": grey(REGION * 255).convert("P"),
    "one bit": Image.fromarray(REGION),
    "half of the image": grey((np.arange(SIDE * SIDE).reshape(SIDE, SIDE) < SIDE * SIDE // 2) * 255),
    "a great defect inside": grey(np.pad(np.full((SIDE - 4, SIDE - 4), 255), 2)),
}
DOUBTFUL = {
    "inverted": (grey(~REGION * 255), "inverted", {}),
    "everything": (grey(np.full((SIDE, SIDE), 1)), "inverted", {}),
    "soft edges": (grey(soft(12)), "grey values", {}),
    "a photograph": (grey(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE))), "grey values", {}),
    "JPEG": (grey(REGION * 255), "JPEG", {"format": "JPEG", "quality": 75}),
}


def put_masks(tree: Path, image: Image.Image, **options: object) -> datasets.Category:
    for path in (tree / "ground_truth/spot").iterdir():
        image.save(path, **options)
    (category,) = datasets.categories(f"folder:{tree}", None)
    return category


@pytest.mark.parametrize("case", CLEAN)
def test_labels_of_every_kind_are_masks(tree: Path, case: str) -> None:
    category = put_masks(tree, CLEAN[case])
    masks = datasets.load_test(category, SIDE).masks
    assert masks is not None
    mode = "RGB" if case in ("RGB", "palette") else "F"
    marked = np.asarray(CLEAN[case].convert(mode)).reshape(SIDE, SIDE, -1).max(axis=2) > 0
    assert np.array_equal(masks[-1], marked)
    assert verify(tree, against="none").sound


@pytest.mark.parametrize("case", DOUBTFUL)
def test_masks_that_may_mean_something_else_are_told(tree: Path, case: str) -> None:
    image, word, options = DOUBTFUL[case]
    category = put_masks(tree, image, **options)
    for resolution in (SIDE, 24, SIDE):  # the last from the cache
        with pytest.warns(UserWarning, match="the mask") as seen:
            datasets.load_test(category, resolution)
        (line,) = (str(one.message) for one in seen if word in str(one.message))
        assert "2 more masks like it" in line
        assert len(seen) == 1 + (case == "a photograph")  # which marks all of the image besides
    problems = verify(tree, against="none").categories[0].problems
    assert sum(word in line for line in problems) == 3


@pytest.mark.parametrize(
    ("orientation", "whose", "sides", "is_told"),
    [(3, "image", (SIDE, SIDE), True), (6, "image", (SIDE, SIDE), True), (6, "mask", (SIDE, SIDE), True),
     (3, "image", (SIDE, SIDE // 2), True), (1, "image", (SIDE, SIDE), False), (6, "image", (SIDE // 2, SIDE), False),
     (3, "both", (SIDE, SIDE), False)],
)  # fmt: skip
def test_a_turn_of_an_image_or_its_mask_alone_is_told(
    tree: Path, orientation: int, whose: str, sides: tuple[int, int], is_told: bool
) -> None:
    """Whether the mask was drawn on the turned image nobody knows, but where a quarter turn of an oblong one fits."""
    note = Image.Exif()
    note[0x0112] = orientation
    turned = {"exif": note}
    with Image.open(tree / "test/spot/000.png") as file:
        image = file.resize(sides)
    image.save(tree / "test/spot/000.png", **(turned if whose != "mask" else {}))
    upright = sides[::-1] if orientation == 6 and whose == "image" else sides
    with Image.open(tree / MASK) as file:
        mask = file.resize(upright)
    mask.save(tree / MASK, **(turned if whose != "image" else {}))
    (found,) = datasets.categories(f"folder:{tree}", None)
    for _ in range(2):  # the second time from the cache
        with warnings.catch_warnings(record=True) as lines:
            warnings.simplefilter("always")
            datasets.load_test(found, SIDE)
        assert ["turned by a note of the camera" in str(one.message) for one in lines] == [True] * is_told
    problems = verify(tree, against="none").categories[0].problems
    assert [f"{tree / MASK}: the mask is turned by a note of the camera" in line for line in problems] == [
        True
    ] * is_told


def test_doubts_that_differ_in_a_number_are_one_line(tree: Path) -> None:
    for number in range(3):
        values = np.full((SIDE, SIDE), 255)
        values[10 : 14 + 6 * number, 10:40] = 0  # each leaves out another share of the image
        grey(values).save(tree / f"ground_truth/spot/{number:03}_mask.png")
    with pytest.warns(UserWarning, match="inverted") as seen:
        datasets.load_test(datasets.categories(f"folder:{tree}", None)[0], SIDE)
    assert len(seen) == 1


BROKEN = {
    "NaN": np.where(REGION, np.nan, 0).astype(np.float32),
    "infinite": np.where(REGION, np.inf, 0).astype(np.float32),
    "below 0": np.where(REGION, -1, 0).astype(np.int16),
    "below 0, 32 bits": np.where(REGION, -1, 0).astype(np.int32),
    "below 0, floats": np.where(REGION, -0.5, 1).astype(np.float32),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_mask_of_what_is_no_label_is_one_line(tree: Path, case: str) -> None:
    (tree / MASK).unlink()
    path = (tree / MASK).with_suffix(".tiff")
    tifffile.imwrite(path, BROKEN[case])
    (category,) = datasets.categories(f"folder:{tree}", None)
    with pytest.raises(DatasetError) as caught:
        datasets.load_test(category, SIDE)
    line = f"{path}: a mask with values below 0 or not finite; save it with 0 and one value above it"
    assert str(caught.value) == line
    report = verify(tree, against="none")
    assert (report.categories[0].problems, report.exit_code) == ([line], 2)


def test_the_halo_of_a_jpeg_mask_is_no_defect(tree: Path) -> None:
    line = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(line).line((5, 9, 58, 41), fill=255, width=3)
    category = put_masks(tree, line, format="JPEG", quality=75)
    with pytest.warns(UserWarning, match="JPEG"):
        masks = datasets.load_test(category, SIDE).masks
    assert masks is not None
    with Image.open(category.test[-1].masks[0]) as file:
        assert (np.asarray(file) > 0).sum() > 2 * (np.asarray(line) > 0).sum()  # there is a halo
    assert np.array_equal(masks[-1], np.asarray(line) > 0)


def test_a_mask_of_a_normal_image_must_mark_nothing(tree: Path) -> None:
    path = tree / "ground_truth/good/000_mask.png"
    path.parent.mkdir()
    grey(REGION * 0).save(path)
    assert told(tree) == ([], [])
    grey(REGION * 255).save(path)
    assert told(tree)[1][0].endswith("000_mask.png: marks something in the normal image 000.png")


MISREAD: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, str]] = {
    "a JPEG file": (lambda mask: mask, ".jpg", "is a JPEG file"),
    "soft edges": (lambda mask: np.arange(mask.size, dtype=np.uint8).reshape(mask.shape) % 60, ".png", "is not binary"),
    "turned round": (lambda mask: 255 - mask, ".png", "inverted?"),
}


@pytest.mark.parametrize("again", ["first", "from the cache", "at another size"])
@pytest.mark.parametrize("case", MISREAD)
def test_a_doubt_names_the_mask_that_it_is_about(tree: Path, case: str, again: str) -> None:
    """The second of an image's masks, and the one of another image: not the first mask of either."""
    change, suffix, words = MISREAD[case]
    for number in ("000", "001"):
        folder = tree / "ground_truth/spot" / number
        folder.mkdir()
        (tree / f"ground_truth/spot/{number}_mask.png").rename(folder / "a.png")
        with Image.open(folder / "a.png") as image:
            mask = np.asarray(image)
        Image.fromarray(mask).save(folder / "b.png")
        if number == "001":
            Image.fromarray(change(mask)).save(folder / f"c{suffix}")
            Image.fromarray(change(mask)).save(folder / f"d{suffix}")
    (found,) = datasets.categories(f"folder:{tree}", None)
    sides = {"first": [SIDE], "from the cache": [SIDE, SIDE], "at another size": [16, SIDE]}[again]
    for side in sides:
        with pytest.warns(UserWarning, match=words.replace("?", r"\?")) as told_of:
            datasets.load_test(found, side)
        (line,) = (str(one.message) for one in told_of)
        assert f": the mask ground_truth/spot/001/c{suffix} " in line
        assert line.endswith("(and 1 more masks like it)")


def test_own_images_under_a_published_name_are_no_half_archive_but_told_and_shown_with_their_rows(
    tmp_path: Path,
) -> None:
    """No archive holds a bottle with a spot: somebody's own few images were refused as half of it."""
    root = write_tree(tmp_path / "mvtec_ad", categories=("bottle",))
    (found,) = datasets.categories("mvtec_ad", tmp_path)
    (told,) = [line for line in found.remarks if "is it that?" in line]
    assert told.startswith(f"{found.root}: 6 train images and not 209, 3 good test images and not 20, ")
    assert "as MVTec AD has, and defects that it has not (spot): is it that?" in told
    wrong = "data: not those of MVTec AD: 6 train images and not 209, 3 good test images and not 20, "
    assert found.departure == f"{wrong}3 anomalous test images and not 63, defects that are not in it (spot)"
    (job,) = jobs_of(root, methods=(("pixel_mean", ""),), categories=(found,), seeds=(0,))
    assert columns_of(job)["deviations"][-1] == found.departure
    for folder in ("test", "ground_truth"):
        (root / "bottle" / folder / "spot").rename(root / "bottle" / folder / "broken_large")
    with pytest.raises(DatasetError, match="6 of 209 train images of MVTec AD are there"):
        datasets.categories("mvtec_ad", tmp_path)
