"""Verification, previews and the `data` command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import stand_in
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.mvtec_ad import PUBLISHED as MVTEC_AD
from kdad_bench.datasets.preview import LABEL, contact_sheet
from kdad_bench.datasets.verify import count, verify
from tests.conftest import SIDE, write_tree
from tests.datasets.test_mvtec_3d_ad import write_scans


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "set", ("bolt",), train=3, test=2)


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["data", *map(str, arguments)])


def test_a_sound_tree_has_no_problem(tree: Path) -> None:
    report = verify(tree)
    assert report.sound
    assert report.compared_with is None
    (bolt,) = report.categories
    assert (bolt.train, bolt.test_good, bolt.test_anomalous, bolt.masks, bolt.types) == (3, 2, 2, 2, ["spot"])
    assert bolt.problems == bolt.notes == []


def test_every_fault_is_reported_and_not_only_the_first(tree: Path) -> None:
    bolt = tree / "bolt"
    (bolt / "train" / "good" / "001.png").write_bytes(b"broken")
    (bolt / "test" / "good" / "000.png").write_bytes(b"")
    shutil.copy(bolt / "train" / "good" / "002.png", bolt / "test" / "good" / "001.png")
    Image.fromarray(np.ones((SIDE, 3), np.uint8)).save(bolt / "ground_truth" / "spot" / "000_mask.png")
    (bolt / "ground_truth" / "spot" / "001_mask.png").rename(bolt / "ground_truth" / "spot" / "009_mask.png")
    (problems,) = (one.problems for one in verify(tree).categories)
    expected = (
        "train/good/001.png: not a readable image",
        "test/good/000.png: the file is empty",
        "000_mask.png: the mask is 3 x 64",
        "the mask of test/spot/001.png is missing",
        "009_mask.png: not used: a mask without an image",
        "test/good/001.png: the same content as train/good/002.png",
    )
    for part in expected:
        assert sum(part in line for line in problems) == 1, part
    assert len(problems) == len(expected)


def test_a_mask_that_marks_nothing_is_a_problem(tree: Path) -> None:
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tree / "bolt" / "ground_truth" / "spot" / "000_mask.png")
    (problems,) = (one.problems for one in verify(tree).categories)
    assert len(problems) == 1
    assert "marks no pixel" in problems[0]


def test_equal_files_within_a_split_are_a_note(tree: Path) -> None:
    shutil.copy(tree / "bolt" / "train" / "good" / "000.png", tree / "bolt" / "train" / "good" / "001.png")
    report = verify(tree)
    assert report.sound
    assert "same content as train/good/000.png" in report.categories[0].notes[0]


def test_empty_splits_are_problems(tree: Path) -> None:
    shutil.rmtree(tree / "bolt" / "test")
    problems = verify(tree).categories[0].problems
    assert any("no normal test image" in line for line in problems)
    assert any("no anomalous test image" in line for line in problems)


def test_published_numbers_are_compared(tmp_path: Path) -> None:
    write_tree(tmp_path / "mvtec_ad", ("bottle",), train=3, test=2)
    report = count(tmp_path / "mvtec_ad")
    assert report.compared_with == "mvtec_ad"
    assert "train 3 and not 209" in report.categories[0].problems[0]
    assert "cable" in report.notes[0]  # the rest is not there, which is no fault unless it was asked for
    assert "cable" in count(tmp_path / "mvtec_ad", against="mvtec_ad").problems[0]
    assert verify(tmp_path / "mvtec_ad", against="none").sound


def test_a_stand_in_equals_the_published_numbers(tmp_path: Path) -> None:
    root = stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"], size=64)
    report = verify(root)
    assert report.sound
    assert report.categories[0].published is not None
    assert report.categories[0].published["train"] == MVTEC_AD["toothbrush"].train


def test_scans_are_examined(tmp_path: Path) -> None:
    root = write_scans(tmp_path / "set" / "plate").parent
    report = verify(root)
    assert report.sound, report
    (plate,) = report.categories
    assert (plate.train, plate.validation, plate.masks, plate.scans) == (4, 2, 4, 10)
    (root / "plate" / "train" / "good" / "xyz" / "000.tiff").write_bytes(b"II*")
    (root / "plate" / "train" / "good" / "xyz" / "001.tiff").unlink()
    (root / "plate" / "test" / "dent" / "gt" / "000.png").unlink()
    problems = verify(root).categories[0].problems
    assert len(problems) == 3
    for part in ("not a readable scan", "001.tiff: the scan is missing", "gt/000.png: the mask is missing"):
        assert sum(part in line for line in problems) == 1


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no category there"):
        verify(tmp_path)
    with pytest.raises(DatasetError, match="no published table"):
        verify(tmp_path, against="coco")


def test_the_verify_command_says_what_it_found(tree: Path) -> None:
    sound = command("verify", tree)
    assert sound.exit_code == 0
    assert "1 category, 7 images, sound" in sound.output
    (tree / "bolt" / "test" / "good" / "000.png").write_bytes(b"")
    broken = command("verify", tree)
    assert broken.exit_code == 2, "a run refuses it"
    assert "problem: " in broken.output
    as_json = CliRunner().invoke(cli, ["data", "verify", str(tree), "--json"])
    report = json.loads(as_json.stdout)
    assert report["sound"] is False
    assert report["categories"][0]["test_anomalous"] == 2
    shutil.copy(tree / "bolt" / "train" / "good" / "000.png", tree / "bolt" / "test" / "good" / "000.png")
    assert command("verify", tree).exit_code == 1, "a run tells and goes on"
    assert command("verify", tree / "bolt" / "train").exit_code == 2


def test_names_from_disk_are_shown_as_they_are_and_are_no_markup(tmp_path: Path) -> None:
    """Square brackets are letters of a name: two categories are two names, and a path with `[/` ends no command."""
    root = write_tree(tmp_path / "x[" / "red]" / "mvtec_ad", ("bolt [old]", "bolt [new]"), train=3, test=2)
    (root / "bolt [old]").rename(root / "bottle")
    shutil.copytree(root / "bottle", root / "bolt [old]")
    wide = {"COLUMNS": "400"}
    verified = CliRunner().invoke(cli, ["data", "verify", str(root), "--against", "none"], env=wide)
    listed = CliRunner().invoke(cli, ["list", "datasets", "--data-root", str(root.parent)], env=wide)
    for done in (verified, listed):
        assert done.exit_code == 0, done.output
        for name in ("bolt [old]", "bolt [new]"):
            assert any(name in line and "│" in line for line in done.output.splitlines()), done.output
    named = ["--data-root", str(root.parent), "--out", str(root.parent / "[bold]out")]
    done = CliRunner().invoke(cli, ["doctor", *named], env=wide)
    assert not isinstance(done.exception, Exception), done.exception
    for words in ("x[/red]", "[bold]out"):
        assert words in "".join(done.output.split())


def test_a_contact_sheet_shows_each_kind_and_outlines_masks(tree: Path) -> None:
    (category,) = datasets.categories(f"folder:{tree}", None)
    sheet = contact_sheet(category, columns=2, side=64)
    assert sheet.size == (128, 3 * (64 + LABEL))
    pixels = np.asarray(sheet)
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert not red[: 2 * (64 + LABEL)].any()
    assert red[2 * (64 + LABEL) :].sum() >= 2 * 40  # two squares of 12 x 12, outlined
    with pytest.raises(DatasetError):
        contact_sheet(category, columns=0)


def test_the_preview_command_writes_a_sheet_per_category(tree: Path, tmp_path: Path) -> None:
    write_scans(tmp_path / "mvtec_3d_ad" / "bagel")
    done = command("preview", f"folder:{tree}", "--out", tmp_path / "sheets", "--side", 32)
    assert done.exit_code == 0, done.output
    both = command(
        "preview", "mvtec_3d_ad", "--data-root", tmp_path, "--modality", "rgb+depth", "--out", tmp_path / "sheets"
    )
    assert both.exit_code == 0, both.output
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == ["folder-set-bolt-rgb.png", "mvtec_3d_ad-bagel-rgb+depth.png"]
    assert command("preview", "coco").exit_code == 2


def test_sheets_of_two_paths_are_two_files(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "other")
    for place in (tree, tmp_path / "other/bolt"):
        assert command("preview", f"folder:{place}", "--out", tmp_path / "sheets", "--side", 16).exit_code == 0
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == ["folder-other-bolt-rgb.png", "folder-set-bolt-rgb.png"]


@pytest.mark.parametrize("call", [("verify", ".", "--against"), ("fetch",), ("generate", "--like")])
def test_a_path_behind_a_name_is_refused_where_none_is_taken(call: tuple[str, ...]) -> None:
    done = command(*call, "mvtec_ad:foo")
    assert done.exit_code == 2
    assert "mvtec_ad takes no path here; leave out :foo" in " ".join(done.output.replace("│", " ").split())


def test_the_generate_command_draws_a_stand_in(tmp_path: Path) -> None:
    done = command("generate", "--like", "mvtec_ad", "--category", "toothbrush", "--size", 64, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "102 images" in done.output
    assert datasets.find(tmp_path) == ["synthetic_mvtec_ad"]
    wrong = command("generate", "--like", "mvtec_ad", "--category", "tooth", "--size", 64, "--out", tmp_path)
    assert wrong.exit_code == 2
    assert "'tooth' (did you mean 'toothbrush'?) not in mvtec_ad" in wrong.output
