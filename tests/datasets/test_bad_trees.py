"""Half an archive, another data set's tree, a table of files that are not there: a line for each kind, exit code 2."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from kdad_bench import datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import stand_in
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.verify import count
from tests.datasets.short import EVERY as CATEGORY
from tests.datasets.short import short

MASKS = ("ground_truth", "Masks", "gt")
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


PARTS: dict[str, Callable[[datasets.Category], list[datasets.Sample]]] = {
    "train images": lambda found: list(found.train),
    "validation images": lambda found: list(found.validation),
    "good test images": lambda found: [sample for sample in found.test if not sample.label],
    "anomalous test images": lambda found: [sample for sample in found.test if sample.label],
}


def thinned(place: Path, part: str) -> tuple[int, int]:
    """(images left, images before) of a kind, of which some are gone with masks, scans and folders left empty."""
    (found,) = datasets.categories(f"folder:{place}", None)
    samples = PARTS[part](found)
    first = samples[0].defect if samples else ""
    lost = samples[::2] if samples and samples[-1].defect == first else [one for one in samples if one.defect == first]
    for sample in lost:
        for path in (sample.path, *sample.masks, *([sample.scan] if sample.scan else [])):
            path.unlink()
    for folder in sorted((one for one in place.rglob("*") if one.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
    return len(samples) - len(lost), len(samples)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", PLAIN)
def test_half_of_a_kind_of_images_is_refused_with_numbers_and_runs_as_a_folder(
    name: str, part: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    """What is there is sound in itself: only the published numbers tell."""
    place = copied(trees, name, tmp_path)
    left, all_of_them = thinned(place, part)
    if not all_of_them:
        assert part == "validation images"
        return
    with pytest.raises(DatasetError) as error:
        datasets.categories(name, tmp_path)
    (line,) = error.value.lines
    title = datasets.entry(name).title
    assert line.startswith(f"{place}: {left} of {all_of_them} {part} of {title} are there (")
    assert line.endswith(f"restore them, or name it folder:{place} to run on what is there")
    assert len(datasets.categories(f"folder:{place}", None)) == 1
    report = count(place)
    assert (report.sound, report.exit_code) == (False, 2)
    assert "differ" in " ".join([*report.problems, *report.categories[0].problems])


@pytest.mark.parametrize("name", CATEGORY)
def test_half_of_a_stand_in_is_refused_by_the_numbers_that_were_drawn(
    name: str, trees: dict[str, Path], tmp_path: Path
) -> None:
    """Also where the numbers of the real categories are not beyond doubt."""
    place = copied(trees, name, tmp_path, f"synthetic_{name}")
    (place / stand_in.MARKER).write_text(json.dumps({"synthetic": True, "like": name}))
    (place / CATEGORY[name]).rename(place / f"synthetic_{CATEGORY[name]}")
    table = place / "split_csv" / "1cls.csv"
    if name == "visa":
        rows = table.read_text().replace("pcb1", "synthetic_pcb1").splitlines(keepends=True)
        table.write_text("".join(row for row in rows if "/0001.JPG" not in row))
        (place / "synthetic_pcb1/Data/Images/Normal/0001.JPG").unlink()
        left = 3
    else:
        left, _ = thinned(place, "train images")
    done = dry_run(place.name, tmp_path)
    assert (done.exit_code, done.stdout) == (2, ""), done.output
    (line,) = done.stderr.splitlines()
    assert f"{place}: {left} of 4 train images of {datasets.entry(name).title} are there (synthetic_" in line
    verified = command("data", "verify", place)
    assert verified.exit_code == 2, verified.output
    assert f"differs from the published numbers: train {left} and not 4" in verified.output


@pytest.mark.parametrize("name", PLAIN)
def test_what_was_published_departs_from_nothing(name: str, trees: dict[str, Path], tmp_path: Path) -> None:
    copied(trees, name, tmp_path)
    assert [one.departure for one in datasets.categories(name, tmp_path)] == [""]


# --- names and kinds that are published, in another case, renamed, or somebody's own ----------------------------------


def renamed(place: Path, old: str, new: str) -> None:
    """Call every folder `old` below a place `new`."""
    for path in sorted(place.rglob(old)):
        path.rename(path.with_name(new))


def converted(trees: dict[str, Path], root: Path) -> Path:
    """A tree of VisA as the authors' script converts it: the plain layout, `bad` for every defect."""
    (found,) = datasets.categories(f"folder:{trees['visa']}", None)
    place = root / "VisA_pytorch/1cls"
    for split, sample in found.splits():
        kind = "bad" if sample.label else "good"
        for path, folder in ((sample.path, split), *((mask, "ground_truth") for mask in sample.masks)):
            new = place / found.name / folder / kind / f"{split}{path.name}"
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, new)
    return place


def less(place: Path) -> None:
    """Without its first training image."""
    next(path for path in files(place) if "train" in path.parts).unlink()


def own_category(place: Path) -> None:
    shutil.copytree(place / "bottle", place / "bottle_backup")


def own_kinds(place: Path) -> None:
    renamed(place, "contamination", "spot")
    less(place)


def cut_scan(place: Path) -> None:
    path = next(path for path in files(place) if path.suffix == ".tiff")
    path.write_bytes(path.read_bytes()[:5000])


def without_a_scan(place: Path) -> None:
    next(path for path in files(place) if path.suffix == ".tiff").unlink()


def capitals(place: Path) -> None:
    """Kinds of defects with a capital, and the category."""
    renamed(place, "contamination", "Contamination")
    (place / "bottle").rename(place / "Bottle")


def half_with_capitals(place: Path) -> None:
    capitals(place)
    less(place)


def other_kinds(place: Path) -> None:
    renamed(place, "contamination", "dirt")


def without_saturation(place: Path) -> None:
    (place / "pushpins/defects_config.json").unlink()


def without_saturation_and_masks(place: Path) -> None:
    without_saturation(place)
    shutil.rmtree(place / "pushpins/ground_truth")


def nothing(_: Path) -> None:
    pass


# case -> (data set, what happens to its tree, exit code of a run, of verify, the departure of each category)
NONE = "data: no category of MVTec AD"
OWN = "data: not those of MVTec AD: 3 train images and not 4, defects that are not in it (spot)"
DOORS: dict[str, tuple[str, Callable[[Path], None], int, int, list[str]]] = {
    "converted": ("visa", nothing, 0, 0, [""]),
    "half of a converted one": ("visa", less, 2, 2, []),
    "capitals": ("mvtec_ad", capitals, 0, 0, [""]),
    "half with capitals": ("mvtec_ad", half_with_capitals, 2, 2, []),
    "renamed kinds": ("mvtec_ad", other_kinds, 0, 0, [""]),
    "own kinds": ("mvtec_ad", own_kinds, 0, 1, [OWN]),
    "an own category beside": ("mvtec_ad", own_category, 0, 1, ["", NONE]),
    "no saturation": ("mvtec_loco", without_saturation, 2, 2, []),
    "neither masks nor their saturation": ("mvtec_loco", without_saturation_and_masks, 0, 0, [""]),
    "a scan cut short": ("mvtec_3d_ad", cut_scan, 2, 2, [""]),
    "a scan less": ("mvtec_3d_ad", without_a_scan, 2, 2, [""]),
}


@pytest.mark.parametrize("case", DOORS)
def test_verify_and_a_run_agree_on_what_is_published(case: str, trees: dict[str, Path], tmp_path: Path) -> None:
    """What a run refuses ends `data verify` with 2, what it tells with 1; names are compared in any case."""
    name, change, run_code, verify_code, departures = DOORS[case]
    place = converted(trees, tmp_path) if name == "visa" else copied(trees, name, tmp_path)
    change(place)
    modality = ["--modality", "depth"] if name == "mvtec_3d_ad" else []
    done = command("run", "--method", "pixel_mean", "--dataset", name, "--data-root", tmp_path, "--seeds", 1, "--out",
                   tmp_path / "out", "--dry-run", *modality)  # fmt: skip
    assert done.exit_code == run_code, done.output
    verified = command("data", "verify", place)
    assert verified.exit_code == verify_code, verified.output
    if departures:
        found = datasets.categories(name, tmp_path)
        assert [one.departure for one in found] == departures
        assert [bool(one.remarks) for one in found] == [bool(one) and not modality for one in departures]
        assert (" if it is your own, name it folder:" in done.output) == (NONE in departures)


def test_kinds_in_capitals_do_not_switch_totals_off(trees: dict[str, Path], tmp_path: Path) -> None:
    """Where single categories are not beyond doubt, renamed kinds are no sign of somebody's own images."""
    place = copied(trees, "btad", tmp_path)
    less(place)
    for kind in ("KO", "mine"):
        renamed(place, "ko" if kind == "KO" else "KO", kind)
        with pytest.raises(DatasetError, match=r"3 of 4 train images of BTAD .* are there .all categories 3 of 4"):
            datasets.categories("btad", tmp_path)
        assert count(place).exit_code == 2


def test_a_region_less_is_told(trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that has another region is not without a mask, and its figures are other ones."""
    module = ModuleType("regions")
    module.ALL = replace(datasets.entry("mvtec_loco"), totals={"masks": 3})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "regions", module)
    monkeypatch.setitem(datasets.DATASETS, "mvtec_loco", "regions:ALL")
    place = copied(trees, "mvtec_loco", tmp_path)
    with pytest.raises(DatasetError, match=r"2 of 3 masks of MVTec LOCO AD are there"):
        datasets.categories("mvtec_loco", tmp_path)
    assert "masks 2 and not 3" in " ".join(count(place).problems)
    assert count(place).exit_code == 2
    folder = place / "pushpins/ground_truth/logical_anomalies/000"
    shutil.copy(folder / "000.png", folder / "001.png")
    assert len(datasets.categories("mvtec_loco", tmp_path)) == count(place).exit_code + 1
    shutil.rmtree(place / "pushpins/ground_truth")  # image metrics need none
    assert len(datasets.categories("mvtec_loco", tmp_path)) == count(place).exit_code + 1


def test_all_categories_of_a_kind_are_one_line_and_a_part_of_a_data_set_is_none(
    trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["bottle", "cable", "carpet", "grid", "zipper"]
    one = datasets.entry("mvtec_ad")
    module = ModuleType("five")
    module.FIVE = replace(one, published=dict.fromkeys(names, one.published["bottle"]))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "five", module)
    monkeypatch.setitem(datasets.DATASETS, "mvtec_ad", "five:FIVE")
    place = copied(trees, "mvtec_ad", tmp_path)
    for name in names[1:]:
        shutil.copytree(place / "bottle", place / name)
    assert len(datasets.categories("mvtec_ad", tmp_path)) == 5
    for name in names[1:]:
        without(lambda found: [path for path in found if "train" in path.parts][::2])(place / name)
    assert len(datasets.categories("mvtec_ad", tmp_path, ["bottle"])) == 1
    with pytest.raises(DatasetError) as error:
        datasets.categories("mvtec_ad", tmp_path)
    (line,) = error.value.lines
    assert "8 of 16 train images of MVTec AD are there (cable 2 of 4, carpet 2 of 4, grid 2 of 4, 1 more);" in line
    for name in names[3:]:
        shutil.rmtree(place / name)
    with pytest.raises(DatasetError, match="4 of 8 train images"):
        datasets.categories("mvtec_ad", tmp_path)


def test_half_of_a_data_set_is_listed_and_looked_at(trees: dict[str, Path], tmp_path: Path) -> None:
    place = copied(trees, "mvtec_ad", tmp_path)
    left, _ = thinned(place, "train images")
    listed = command("list", "datasets", "--data-root", tmp_path)
    assert listed.exit_code == 0, listed.output
    assert any({"mvtec_ad", "bottle", str(left)} <= {*line.replace("│", " ").split()} for line in
               listed.stdout.splitlines()), listed.stdout  # fmt: skip
    seen = command("data", "preview", "mvtec_ad", "--data-root", tmp_path, "--out", tmp_path / "sheets", "--side", 32)
    assert seen.exit_code == 0, seen.output


@pytest.mark.parametrize("name", ["btad", "mpdd", "mvtec_3d_ad"])
def test_numbers_that_are_in_doubt_are_told_unless_the_sum_tells(
    name: str, trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = datasets.entry(name)
    more = replace(one.published[CATEGORY[name]], train=1)
    module = ModuleType("two")
    module.TWO = replace(  # type: ignore[attr-defined]
        one, published={**one.published, "second": more}, totals=dict.fromkeys(one.totals, 9)
    )
    monkeypatch.setitem(sys.modules, "two", module)
    monkeypatch.setitem(datasets.DATASETS, name, "two:TWO")
    place = copied(trees, name, tmp_path)
    thinned(place, "train images")
    (found,) = datasets.categories(name, tmp_path)  # a part of it: nobody knows
    assert f"2 train images and not 4, as {one.title} has, as far as they are known: is it that?" in found.remarks[0]
    assert count(place).exit_code == 0
    shutil.copytree(place / CATEGORY[name], place / "second")
    with pytest.raises(DatasetError, match=r"4 of 9 train images of .* \(all categories 4 of 9\)"):
        datasets.categories(name, tmp_path)
    assert count(place).exit_code == 2


def test_more_images_than_published_are_told_and_private_ones_are_not_needed_by_a_run(
    trees: dict[str, Path], tmp_path: Path
) -> None:
    place = copied(trees, "mvtec_ad_2", tmp_path)
    (found,) = datasets.categories("mvtec_ad_2", tmp_path)
    shutil.copy(found.train[0].path, found.train[0].path.with_name("999_regular.png"))
    shutil.rmtree(found.root / "test_private")
    (found,) = datasets.categories("mvtec_ad_2", tmp_path)
    said = "5 train images and not 4, 2 images without labels and not 4, as MVTec AD 2 has: is it that?"
    assert said in found.remarks[-1]
    assert count(place).exit_code == 1


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
