"""Half an archive, another data set's tree, a table of files that are not there: a line for each kind, exit code 2."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import stand_in
from tests.datasets import short as shortening
from tests.datasets.short import short

MASKS = ("ground_truth", "Masks", "gt")
CATEGORY = {**shortening.CATEGORY, "mvtec_ad": "bottle", "mvtec_3d_ad": "bagel"}
PLAIN = [name for name in CATEGORY if name != "visa"]  # without a table


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [*map(str, arguments)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """data set -> a small tree of it under its real names; the tables of the data sets are as short meanwhile."""
    place = tmp_path_factory.mktemp("trees")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortening, "WHOLE", {name: datasets.entry(name) for name in CATEGORY})
        for name, category in CATEGORY.items():
            root = short(name, place, patch, category)
            (root / stand_in.MARKER).unlink()
            (root / f"synthetic_{category}").rename(root / category)
            for table in root.rglob("*.csv"):
                table.write_text(table.read_text().replace("synthetic_", ""))
            found[name] = root
        yield found


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def masks(place: Path) -> list[Path]:
    return [path for path in files(place) if {*MASKS} & {*path.parts}]


def without(some: Callable[[list[Path]], list[Path]]) -> Callable[[Path], None]:
    def remove(place: Path) -> None:
        for path in some(files(place)):
            path.unlink()

    return remove


def gone(*names: str) -> Callable[[Path], None]:
    """Without the folders of these names, wherever they are."""

    def remove(place: Path) -> None:
        for path in sorted(place.rglob("*")):
            if path.name in names and path.is_dir():
                shutil.rmtree(path)

    return remove


def emptied(place: Path) -> None:
    for path in files(place)[::3]:
        path.write_bytes(b"")


def no_masks(place: Path) -> None:
    for path in masks(place):
        path.unlink()


# case -> (what happens to a tree, words of a line; no words: those of the layout)
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "the first half is gone": (without(lambda found: found[: len(found) // 2]), ""),
    "the second half is gone": (without(lambda found: found[len(found) // 2 :]), ""),
    "without a mask": (no_masks, "mask"),
    "one mask is gone": (lambda place: masks(place)[0].unlink(), "mask"),
    "without training images": (gone("train", "Normal"), ""),
    "without test images": (gone("test", "test_public", "Anomaly"), ""),
    "without a file": (without(lambda found: found), ""),
    "empty files": (emptied, "empty"),
}


def copied(trees: dict[str, Path], name: str, root: Path, called: str = "") -> Path:
    return Path(shutil.copytree(trees[name], root / (called or name)))


def dry_run(dataset: str, root: Path) -> Result:
    return command("run", "--method", "pixel_mean", "--dataset", dataset, "--data-root", root, "--seeds", 1, "--out",
                   root / "out", "--dry-run")  # fmt: skip


def assert_refused(done: Result, place: Path, words: str) -> None:
    """A line for each kind, of which each names the place, none too many, and the exit code 2."""
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 5, lines
    for line in lines:
        assert line.startswith("kdad-bench: ")
        assert line.isprintable()
        assert str(place) in line
        assert any(remedy in line for remedy in ("restore", "layout", "add i", "mend", "move it", "fetch", "remove"))
    assert words in done.stderr


@pytest.mark.parametrize("name", CATEGORY)
@pytest.mark.parametrize("case", CASES)
def test_a_tree_that_is_not_whole_is_refused(case: str, name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    spoil, words = CASES[case]
    place = copied(trees, name, tmp_path)
    spoil(place)
    assert_refused(dry_run(name, tmp_path), place, words)
    verified = command("data", "verify", place)
    assert verified.exit_code in (1, 2), verified.output
    assert_refused(dry_run(f"folder:{place}", tmp_path), place, words)


@pytest.mark.parametrize("name", CATEGORY)
def test_the_tree_of_another_data_set_is_refused_by_its_name(name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    for number, other in enumerate(one for one in CATEGORY if one != name):
        place = copied(trees, other, tmp_path / str(number), name)
        done = dry_run(name, tmp_path / str(number))
        assert_refused(done, place, f"is it {datasets.entry(other).title}")
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", CATEGORY)
def test_the_trees_are_sound_before_that(name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    copied(trees, name, tmp_path)
    assert dry_run(name, tmp_path).exit_code == 0
    assert command("data", "verify", tmp_path / name).exit_code == 0


def second(paths: list[Path]) -> list[Path]:
    return [path for path in paths if "train" in path.parts and path.suffix != ".tiff"][::2]


@pytest.mark.parametrize("name", PLAIN)
def test_fewer_images_than_published_are_told_with_their_numbers(
    name: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    place = copied(trees, name, tmp_path)
    without(second)(place)
    done = dry_run(name, tmp_path)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert f"2 of 4 train images of {datasets.entry(name).title} are there: is it whole?" in said
    copied(trees, name, tmp_path / "whole")
    assert "is it whole?" not in " ".join(dry_run(name, tmp_path / "whole").output.split())


TABLES: dict[str, tuple[Callable[[list[str]], list[str]], str]] = {
    "files that are not there": (lambda rows: [row.replace(".JPG", ".jpeg") for row in rows],
                                 "8 lines with an image that is not there"),
    "doubled rows": (lambda rows: [*rows, *rows], "8 lines with an image that another line names"),
    "unknown labels": (lambda rows: [row.replace("normal", "fine") for row in rows], "6 lines with an unknown label"),
    "unknown splits": (lambda rows: [row.replace(",test,", ",final,") for row in rows], "4 lines with an unknown"),
    "masks that are not there": (lambda rows: [row.replace(".png", ".bmp") for row in rows],
                                 "2 lines with a mask that is not there"),
    "anomalous images to learn from": (lambda rows: [row.replace("test,anomaly", "train,anomaly") for row in rows],
                                       "2 lines with an anomalous image outside of the test split"),
    "no line": (lambda rows: [], "not one line"),
    "half a line": (lambda rows: [*rows, "pcb1,train"], "1 line with more or fewer cells than columns"),
    "only normal images": (lambda rows: [row for row in rows if "anomaly" not in row], "no anomalous test image"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["visa", "tabular"])
@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_is_wrong_is_refused_with_the_number_of_lines(
    case: str, kind: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    change, words = TABLES[case]
    place = copied(trees, "visa", tmp_path)
    table = place / "split_csv" / "1cls.csv"
    header, *rows = table.read_text().splitlines()
    if kind == "tabular":
        table = place / "1cls.csv"
    table.write_text("\n".join([header, *change(rows)]) + "\n")
    done = dry_run("visa" if kind == "visa" else f"tabular:{table}", tmp_path)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    assert len(done.stderr.splitlines()) <= 2
    assert words in done.stderr
    assert str(place) in done.stderr
