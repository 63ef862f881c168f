"""One folder is one data set however it is spelt; paths, homes and names end in one printable line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets.category import DatasetError, printable
from kdad_bench.datasets.finding import expanded
from tests.conftest import write_tree


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and the working directory, with a data set in it."""
    home = (tmp_path / "home").resolve()
    write_tree(home / "data", ("bolt",), train=2, test=1)
    (home / "link").symlink_to(home / "data")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


SPELLINGS = ("data", "data/", "./data", "data/.", "data/../data", "link", "~/data", "~/link/", "data/bolt/..")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_folder_is_one_data_set(home: Path, spelling: str) -> None:
    name = f"folder:{home}/data"
    assert datasets.canonical(f"folder:{spelling}") == name
    (found,) = datasets.categories(f"folder:{spelling}", None)
    assert found == datasets.categories(name, None)[0]
    assert found.dataset == name


def test_folders_of_one_name_are_told_apart(home: Path) -> None:
    shutil.copytree(home / "data", home / "other" / "data")
    names = {datasets.categories(f"folder:{path}", None)[0].dataset for path in ("data", "other/data")}
    assert len(names) == 2


def test_names_of_other_data_sets_stay_as_they_are() -> None:
    for name in ("synthetic", "mvtec_ad", "folder", "folder:", "coco", "coco:x"):
        assert datasets.canonical(name) == name


def test_the_home_folder_is_known_in_a_data_root(home: Path) -> None:
    (home / "data").rename(home / "mvtec_ad")
    for root in (Path("~"), Path("~/mvtec_ad"), home):
        assert datasets.find(root) == ["mvtec_ad"]
        assert datasets.categories("mvtec_ad", root)[0].root == home / "mvtec_ad" / "bolt"
    with pytest.raises(DatasetError, match="not a path"):
        expanded(Path("~nobody-of-this-name/data"))


@pytest.mark.parametrize("given", ["data", "./data", "~/data", "/no/such/folder", "data/bolt", "../home/data"])
def test_a_bare_path_is_answered_with_folder(home: Path, given: str) -> None:
    with pytest.raises(DatasetError, match=f"write folder:{given}$"):
        datasets.categories(given, None)


@pytest.mark.parametrize("given", ["folder", "folder:"])
def test_a_folder_without_a_path_is_told_how_to_write_it(given: str) -> None:
    with pytest.raises(DatasetError, match="write folder:PATH"):
        datasets.categories(given, None)


@pytest.mark.parametrize(
    "given",
    ["folder:/no/such", "folder:\udcff", "folder:a\x00b", "folder:a\nb", "coco\x1b[2J", "folder:a\u200bb", "vi\xadsa"],
)
def test_names_that_lead_nowhere_are_one_printable_line(given: str) -> None:
    with pytest.raises(DatasetError) as error:
        datasets.categories(given, None)
    assert str(error.value).isprintable()


@given(st.text(st.characters()))
def test_every_message_is_one_line_that_can_be_written(text: str) -> None:
    line = str(DatasetError(text))
    assert line == printable(line)
    assert len(line.splitlines()) <= 1
    assert "\x1b" not in line
    line.encode("utf-8")


def test_plain_text_is_not_changed() -> None:
    for text in ("räder/größe.png: weg", "日本語　データ", "a b\u00a0c", "100 %"):
        assert printable(text) == text


def test_verify_writes_names_that_are_not_utf8(home: Path) -> None:
    path = home / "data/bolt/train/good"
    os.rename(path / "000.png", os.fsencode(path) + b"/Pr\xfc\x1b[2J.png")
    done = CliRunner().invoke(cli, ["data", "verify", str(home / "data")])
    assert done.exit_code == 1
    assert "Pr\\udcfc\\x1b[2J.png: not used: names that are not UTF-8" in done.output
    as_json = CliRunner().invoke(cli, ["data", "verify", str(home / "data"), "--json"])
    assert "Pr" in json.loads(as_json.stdout)["categories"][0]["problems"][0]


# --- a folder that moved ----------------------------------------------------------------------------------------------


def known(*categories: datasets.Category) -> dict[tuple[str, str], str]:
    return {(one.name, datasets.fingerprint(one)): one.dataset for one in categories}


def test_a_folder_that_moved_keeps_the_name_of_its_rows(home: Path) -> None:
    rows = known(*datasets.categories("folder:data", None))
    (home / "data").rename(home / "moved")
    write_tree(home / "moved", ("cloth",), train=2, test=1)  # a category that has no row yet
    found = datasets.under_known_names(datasets.categories("folder:moved", None), rows)
    assert [one.dataset for one in found] == [f"folder:{home}/data"] * 2


def test_another_folder_does_not_take_the_name_of_rows(home: Path) -> None:
    shutil.copytree(home / "data", home / "copy")
    write_tree(home / "data", ("nut", "cloth"), train=2, test=1)
    rows = known(*datasets.categories("folder:data", None))
    shutil.copytree(home / "data/cloth", home / "copy/nut")  # bolt is the same, nut is not
    found = datasets.under_known_names(datasets.categories("folder:copy", None), rows)
    assert {one.dataset for one in found} == {f"folder:{home}/copy"}


def test_only_folders_are_renamed(home: Path) -> None:
    (found,) = datasets.categories("synthetic", None, ["plank"])
    rows = {("plank", datasets.fingerprint(found)): "folder:/x"}
    assert datasets.under_known_names([found], rows) == (found,)
    (bolt,) = datasets.categories("folder:data", None)
    assert datasets.under_known_names([bolt], {("bolt", datasets.fingerprint(bolt)): "mvtec_ad"}) == (bolt,)


def test_a_category_with_a_missing_file_keeps_its_name(home: Path) -> None:
    (bolt,) = datasets.categories("folder:data", None)
    bolt.train[0].path.unlink()
    assert datasets.under_known_names([bolt], {}) == (bolt,)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"dataset": 3}, "dataset 3: is of type int; give a name"),
        ({"dataset": "synthetic", "category": 3}, "category 3: is of type int; give a name"),
        ({"dataset": "synthetic", "resolution": True}, "resolution True: must be a whole number"),
        ({"dataset": "synthetic", "resolution": 64.0}, "resolution 64.0: must be a whole number"),
    ],
)
def test_what_is_no_name_or_number_is_one_line(said: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        datasets.load(**said)
