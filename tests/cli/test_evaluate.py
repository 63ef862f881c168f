"""`kdad-bench evaluate`: maps of other code become rows of a section of their own, judged as a run's are."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from click.testing import CliRunner, Result
from PIL import Image

from kdad_bench.cli import cli
from kdad_bench.harness.offers import of_index
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.metric import ACCURACY
from kdad_bench.leaderboard.row import EXTERNAL
from tests.conftest import write_tree

SIDE = 64  # of the images
NAMES = tuple(f"{defect}/{number:03}" for defect in ("good", "spot") for number in range(3))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def evaluate(maps: Path, tree: Path, out: Path, *more: object) -> Result:
    what = ("--dataset", f"folder:{tree}", "--out", out, "--resolution", SIDE, "--name", "mine")
    return command("evaluate", maps, *what, *more)


def brightness(tree: Path, category: str, name: str) -> np.ndarray:
    """A map that finds the bright blobs: float32 [64, 64]."""
    with Image.open(tree / category / "test" / f"{name}.png") as image:
        return np.asarray(image).astype(np.float32).mean(axis=2)


def write_maps(root: Path, tree: Path, categories: tuple[str, ...] = ("bolt",), side: int = SIDE) -> Path:
    for category in categories:
        for name in NAMES:
            path = root / category / "test" / f"{name}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = Image.fromarray(brightness(tree, category, name)).resize((side, side))
            tifffile.imwrite(path, np.asarray(values, dtype=np.float32))
    return root


@pytest.fixture
def maps(tiny_tree: Path, tmp_path: Path) -> Path:
    return write_maps(tmp_path / "maps", tiny_tree)


def test_maps_become_a_flagged_row_a_picture_and_a_section_of_their_own(
    tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    run = ("run", "-m", "pixel_mean", "-d", f"folder:{tiny_tree}", "--seeds", "1", "--resolution", SIDE)
    assert command(*run, "--no-pictures", "--out", tmp_path / "out").exit_code == 0
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--seed", "3")
    assert result.exit_code == 0, result.output
    found = {row["method"]: row for row in store.read(tmp_path / "out").rows() if row["category"] == "bolt"}
    row = found["external:mine"]
    assert row["origin"] == EXTERNAL
    assert found["pixel_mean"]["origin"] is None
    assert (row["seed"], row["test_images"], row["title"]) == (3, 6, "mine (external)")
    assert row["pixel_auroc"] > 0.99
    assert row["readings"] == ["maps: 64 x 64 px, as they are", "image scores: the maximum of each map at 64 px"]
    assert row["latency_ms"] is None
    assert (tmp_path / "out" / "pictures" / f"{row['job_id']}.png").stat().st_size > 1000
    page = (tmp_path / "out" / "leaderboard.md").read_text()
    ours, own = page.split(f"at 64 px, {EXTERNAL}\n", 1)
    assert "mine (external)" not in ours.partition("## Failed")[0]
    assert "Pixel mean" not in own.partition("## How these numbers were made")[0]
    assert "**External, protocol not verified**" in own
    assert "image AUROC" in result.stdout
    assert "external, protocol not verified" in result.stdout


def test_float32_maps_of_our_own_method_score_bit_for_bit_as_its_run(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdad_bench.harness import run as harness

    kept: dict[str, Any] = {}

    def remember(job: Any, work: Any, method: Any, test: Any, scores: Any, held_out: Any) -> None:
        kept.update(test=test, scores=scores)

    monkeypatch.setattr(harness, "keep_beside", remember)
    what = ("-m", "stfpm", "--weights", "random", "-d", f"folder:{tiny_tree}", "-c", "bolt", "--seeds", "1")
    ran = command("run", *what, "--steps", "2", "--resolution", SIDE, "--out", tmp_path / "out")
    assert ran.exit_code == 0, ran.output
    lines = ["image,map,score"]
    for number, name in enumerate(kept["test"].names):
        tifffile.imwrite(tmp_path / f"{number}.tiff", kept["scores"].pixel[number].numpy())
        lines.append(f"test/{name},{number}.tiff,{float(kept['scores'].image[number])!r}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    result = evaluate(tmp_path / "index.csv", tiny_tree, tmp_path / "out", "-c", "bolt")
    assert result.exit_code == 0, result.output
    ours, theirs = sorted(store.read(tmp_path / "out").rows(), key=lambda row: row["origin"] is not None)
    assert ours["method"] == "stfpm"
    assert {name: theirs[name] for name in ACCURACY} == {name: ours[name] for name in ACCURACY}
    assert theirs["image_scores"] == ours["image_scores"]
    assert theirs["data_fingerprint"] == ours["data_fingerprint"]
    compared = command("compare", "stfpm", "external:mine", "--results", tmp_path / "out", "--all")
    assert compared.exit_code == 0, compared.output
    assert f"{EXTERNAL}; against" in compared.stdout
    assert "+0.0000" in compared.stdout


def test_the_maps_that_run_saves_are_a_stack_that_evaluate_takes(tiny_tree: Path, tmp_path: Path) -> None:
    what = ("-m", "pixel_mean", "-d", f"folder:{tiny_tree}", "-c", "bolt", "--seeds", "1", "--resolution", SIDE)
    assert command("run", *what, "--save-maps", "--no-pictures", "--out", tmp_path / "out").exit_code == 0
    (saved,) = (tmp_path / "out" / "maps").iterdir()
    result = evaluate(saved, tiny_tree, tmp_path / "ext", "-c", "bolt", "--no-pictures")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "ext" / "pictures").exists()


def test_all_categories_are_evaluated_unless_some_are_chosen(tiny_tree: Path, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", tiny_tree, ("bolt", "cloth"))
    assert evaluate(root, tiny_tree, tmp_path / "out", "--no-pictures").exit_code == 0
    assert [row["category"] for row in store.read(tmp_path / "out").rows()] == ["bolt", "cloth"]


def test_the_same_maps_again_are_the_same_job_and_other_maps_another(
    tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures")
    assert len(store.read(tmp_path / "out").rows()) == 1
    tifffile.imwrite(maps / "bolt/test/good/000.tiff", np.random.default_rng(0).random((SIDE, SIDE), np.float32))
    evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures")
    assert len(store.read(tmp_path / "out").rows()) == 2


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_the_maps_of_one_seed_are_refused_as_those_of_another(
    dry: tuple[str, ...], tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert evaluate(maps, tiny_tree, out, "-c", "bolt", "--no-pictures").exit_code == 0
    result = evaluate(maps, tiny_tree, out, "-c", "bolt", "--no-pictures", "--seed", "1", *dry)
    assert result.exit_code == 2
    (row,) = store.read(out).rows()
    assert re.fullmatch(
        rf"kdad-bench: .*/bolt: these are the maps of mine seed 0 \(job {row['job_id']}\); .*\n", result.stderr
    )
    tifffile.imwrite(maps / "bolt/test/good/000.tiff", RANDOM)
    assert evaluate(maps, tiny_tree, out, "-c", "bolt", "--no-pictures", "--seed", "1", *dry).exit_code == 0


def test_the_maps_of_another_name_are_taken_and_said_in_the_row(tiny_tree: Path, maps: Path, tmp_path: Path) -> None:
    for name, again in (("mine", False), ("yours", True), ("yours", True)):
        result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures", "--name", name)
        assert result.exit_code == 0, result.output
        assert ("maps: the same as those of external:mine seed 0" in result.stdout) == again
    first, second = sorted(store.read(tmp_path / "out").rows(), key=lambda row: str(row["method"]))
    assert [text for text in first["readings"] if "the same" in text] == []
    assert second["readings"][-1] == "maps: the same as those of external:mine seed 0"


def test_maps_of_several_images_that_are_equal_are_said_in_the_row(tiny_tree: Path, maps: Path, tmp_path: Path) -> None:
    for name in ("good/001", "spot/001"):
        (maps / f"bolt/test/{name}.tiff").write_bytes((maps / "bolt/test/good/000.tiff").read_bytes())
    assert evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures").exit_code == 0
    (row,) = store.read(tmp_path / "out").rows()
    assert row["readings"][-1] == "maps: 2 are, pixel by pixel, those of another image"


@pytest.mark.parametrize(
    ("side", "said"), [(32, "32 x 32 px, resampled to 64 x 64 px, antialiased bilinear"), (64, "")]
)
def test_resampling_is_stated_in_the_row(side: int, said: str, tiny_tree: Path, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", tiny_tree, side=side)
    result = evaluate(root, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures")
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert row["readings"][0] == f"maps: {said or '64 x 64 px, as they are'}"
    assert row["pixel_auroc"] > 0.9


def test_a_dry_run_says_what_matched_and_writes_nothing(tiny_tree: Path, maps: Path, tmp_path: Path) -> None:
    (maps / "notes.txt").touch()
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "1 files are no maps and not used (.txt)" in result.stdout
    assert "bolt: 6 maps for 6 test images; maps: 64 x 64 px, as they are" in result.stdout
    assert not (tmp_path / "out").exists()


def test_json_is_an_object_per_category_on_stdout_and_words_are_on_stderr(tiny_tree: Path, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", tiny_tree, ("bolt", "cloth"))
    dry = evaluate(root, tiny_tree, tmp_path / "out", "--no-pictures", "--json", "--dry-run")
    assert dry.exit_code == 0, dry.output
    planned = [json.loads(line) for line in dry.stdout.splitlines()]
    assert [(one["category"], one["status"], one["job_id"], one["maps"]) for one in planned] == [
        ("bolt", "none", None, 6), ("cloth", "none", None, 6)
    ]  # fmt: skip
    assert "dry run: nothing was judged or written" in dry.stderr
    assert not (tmp_path / "out").exists()
    done = evaluate(root, tiny_tree, tmp_path / "out", "--no-pictures", "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    rows = store.read(tmp_path / "out").rows()
    assert [(one["job_id"], one["image_auroc"]) for one in told] == [
        (row["job_id"], row["image_auroc"]) for row in rows
    ]
    assert {(one["status"], one["origin"], one["test_images"]) for one in told} == {("ok", EXTERNAL, 6)}
    assert told[0].keys() == planned[0].keys() > names_of_a_run(tiny_tree, tmp_path)
    assert told[0]["readings"] == ["maps: 64 x 64 px, as they are", "image scores: the maximum of each map at 64 px"]
    assert "leaderboard" in done.stderr
    (root / "bolt/test/good/000.tiff").unlink()
    failed = evaluate(root, tiny_tree, tmp_path / "out", "--json")
    assert (failed.exit_code, failed.stdout) == (2, "")


def names_of_a_run(tree: Path, folder: Path) -> set[str]:
    """The fields of a line of `run --json`."""
    what = ("-m", "pixel_mean", "-d", f"folder:{tree}", "-c", "bolt", "--seeds", "1", "--resolution", SIDE, "--json")
    done = command("run", *what, "--no-pictures", "--no-measure-speed", "--out", folder / "ran")
    assert done.exit_code == 0, done.output
    return set(json.loads(done.stdout.splitlines()[0]))


def over(name: str, values: np.ndarray) -> Callable[[Path], None]:
    return lambda maps: tifffile.imwrite(maps / "bolt" / "test" / f"{name}.tiff", values)


RANDOM = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
HOLED = np.where(RANDOM > 0.999, np.nan, RANDOM)
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda maps: (maps / "bolt/test/good/000.tiff").unlink(), "/bolt: no map of good/000.png"),
    "doubled": (lambda maps: np.save(maps / "bolt/test/good/000.npy", RANDOM), "a second map of "),
    "misnamed": (over("good/777", RANDOM), "no test image 'good/777.tiff'"),
    "of another size": (over("good/000", RANDOM[:50, :40]), "the map is 40 x 50 px; its image is 64 x 64 and"),
    "NaN": (over("good/000", HOLED), "holds nan at row"),
    "infinite": (over("good/000", np.where(RANDOM > 0.9, np.inf, RANDOM)), "inf"),
    "constant": (over("good/000", np.ones((SIDE, SIDE), np.float32)), "is constant (every pixel is 1)"),
    "no map": (lambda maps: (maps / "bolt/test/good/000.tiff").write_text("hello"), "is not readable"),
}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_maps_is_one_line_exit_code_2_and_nothing_is_written(
    fault: str, dry: tuple[str, ...], tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    spoil, words = FAULTS[fault]
    spoil(maps)
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", *dry)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert words in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_fault_of_one_category_keeps_the_rows_of_all_from_being_written(tiny_tree: Path, tmp_path: Path) -> None:
    root = write_maps(tmp_path / "maps", tiny_tree, ("bolt", "cloth"))
    tifffile.imwrite(root / "cloth/test/spot/002.tiff", HOLED)
    tifffile.imwrite(root / "cloth/test/spot/001.tiff", HOLED)
    result = evaluate(root, tiny_tree, tmp_path / "out")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_maps_with_the_proportions_of_an_oblong_image_fit_and_others_do_not(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", categories=("bolt",))
    for path in tree.rglob("*.png"):
        with Image.open(path) as image:
            wide = image.resize((96, 64), Image.Resampling.NEAREST)
        wide.save(path)
    for side, code in (((32, 48), 0), ((64, 96), 0), ((32, 32), 0), ((48, 32), 2)):
        for name in NAMES:
            values = Image.fromarray(brightness(tree, "bolt", name)).resize(side[::-1])
            path = tmp_path / "maps" / "test" / f"{name}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, np.asarray(values))
        result = evaluate(tmp_path / "maps", tree, tmp_path / "out", "--no-pictures")
        assert result.exit_code == code, (side, result.output)
        assert len(result.stderr.splitlines()) == (6 if code else 0)


def test_the_images_themselves_are_no_maps(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", categories=("bolt",))
    for path in tree.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    result = evaluate(tree / "bolt" / "test", tree, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("is the test image itself") == 6
    for path in (tree / "bolt" / "test").rglob("*.png"):  # a second name of the same file
        linked = tmp_path / "linked" / path.relative_to(tree)
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.hardlink_to(path)
    result = evaluate(tmp_path / "linked", tree, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("is the test image itself") == 6


def test_only_the_files_of_chosen_categories_are_looked_at(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", categories=("bolt", "nut"))
    for path in (tree / "nut" / "test").rglob("*.png"):
        path.unlink()  # this category is not whole
    maps = write_maps(tmp_path / "maps", tree)
    result = evaluate(maps, tree, tmp_path / "out", "-c", "bolt", "--no-pictures")
    assert result.exit_code == 0, result.output
    assert evaluate(maps, tree, tmp_path / "out", "--no-pictures").exit_code == 2
    result = evaluate(maps, tree, tmp_path / "out", "-c", "nutt")
    assert "did you mean 'nut'" in result.stderr  # its name is known all the same


@pytest.mark.parametrize("kind", ["semicolons", "other case", "parquet", "views"])
def test_an_index_is_read_however_it_is_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.csv" if kind in ("semicolons", "other case") else "x.parquet")
    names = ["Image", "MAP", "score"] if kind == "other case" else ["image", "map", "score"]
    columns = [["a/1.png"], ["1.npy"], [0.5]]
    if path.suffix == ".csv":
        by = ";" if kind == "semicolons" else ","
        path.write_text(f"\ufeff{by.join(names)}\r\n{by.join(str(one[0]) for one in columns)}\r\n", encoding="utf-8")
    else:
        text = pa.string_view() if kind == "views" else pa.large_string()
        arrays = [pa.array(columns[0], text), pa.array(columns[1], text), pa.array(columns[2], pa.float32())]
        pq.write_table(pa.table(arrays, names=["Image", *names[1:]]), path)
    (found,) = of_index(path, ())
    assert (found.key.defect, found.key.name, found.file, found.score) == ("a", "1.png", tmp_path / "1.npy", 0.5)


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no name": (("--name", ""), "--name ''"),
    "a path as a name": (("--name", "../x"), "--name '../x'"),
    "a long name": (("--name", "x" * 65), "up to 64 letters"),
    "an unknown category": (("-c", "bolr"), "did you mean 'bolt'"),
    "scores that are no file": (("-c", "bolt", "--scores", "/no/such.csv"), "/no/such.csv"),
    "a URL that names no place": (("-c", "bolt", "--out", "s3://"), "names no place"),
    "a file in the way": (("-c", "bolt", "--out", __file__), "not a folder"),
    "a data set that is not there": (("-d", "folder:/no/such"), "/no/such"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, tiny_tree: Path, maps: Path, tmp_path: Path) -> None:
    more, words = BAD[case]
    result = evaluate(maps, tiny_tree, tmp_path / "out", *more)
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("score", "words"), [("nan", "is nan"), ("1e60", "finite in float32"), ("x", "is no number")])
def test_an_image_score_that_is_no_number_is_one_line(
    score: str, words: str, tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "score"), *((f"{n}.png", 1) for n in NAMES[1:]), (NAMES[0], score)])
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--scores", tmp_path / "scores.csv")
    assert result.exit_code == 2
    assert re.fullmatch(rf"kdad-bench: .*scores.csv, line 7: .*{words}.*\n", result.stderr)


def test_many_faults_are_told_in_some_lines_and_a_count(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", categories=("bolt",), test=30)
    (tmp_path / "maps" / "good").mkdir(parents=True)
    np.save(tmp_path / "maps" / "good" / "000.npy", RANDOM)
    result = evaluate(tmp_path / "maps", tree, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == "kdad-bench: and 19 more lines like these"
    assert len(result.stderr.splitlines()) == 41


def test_a_picture_that_cannot_be_written_costs_no_row(tiny_tree: Path, tmp_path: Path) -> None:
    categories = tuple(sorted(path.name for path in tiny_tree.iterdir() if path.is_dir()))
    assert len(categories) > 1
    maps, out = write_maps(tmp_path / "maps", tiny_tree, categories), tmp_path / "out"
    out.mkdir()
    (out / "pictures").write_text("a file where a folder should be")
    result = evaluate(maps, tiny_tree, out)
    assert result.exit_code == 0, result.output
    assert {row["category"] for row in store.read(out).rows()} == {*categories}
    lines = [line for line in result.stderr.splitlines() if "its picture is not kept" in line]
    assert len(lines) == len(categories)
    assert all("its row is complete" in line for line in lines)
