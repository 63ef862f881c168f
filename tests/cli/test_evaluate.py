"""`kdad-bench evaluate`: maps of other code become rows of a section of their own, judged as a run's are."""

from __future__ import annotations

import csv
import json
import re
import warnings
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
from kdad_bench.cli.evaluate import remarks_said
from kdad_bench.harness.checking import Report, check_row
from kdad_bench.harness.evaluate import EvaluationError
from kdad_bench.harness.offers import offers
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
    assert (
        evaluate(tmp_path / "index.csv", tiny_tree, tmp_path / "out", "-c", "bolt", "--name", "mine-anew").exit_code
        == 0
    )
    unknown = command("compare", "stfpm", "mine-anew", "--results", tmp_path / "out")
    assert unknown.exit_code == 2
    assert unknown.stderr.endswith("; 'mine-anew' is external:mine-anew\n")
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
    folder = evaluate(saved.parent, tiny_tree, tmp_path / "other", "-c", "bolt", "--no-pictures")
    assert (folder.exit_code, "if it is a stack of maps, give the file itself" in folder.stderr) == (2, True)


def test_what_was_warned_of_is_said_where_maps_are_then_refused(capsys: pytest.CaptureFixture[str]) -> None:
    def refuses() -> None:
        with remarks_said():
            warnings.warn("defect pixels in 1 good images", stacklevel=1)
            raise EvaluationError(("no map of an image",))

    with pytest.raises(EvaluationError):
        refuses()
    assert capsys.readouterr() == ("", "defect pixels in 1 good images\n")


def test_a_folder_that_moved_keeps_the_name_of_its_rows(maps: Path, tmp_path: Path) -> None:
    tree, out = write_tree(tmp_path / "tree", categories=("bolt",)), tmp_path / "out"
    assert evaluate(maps, tree, out, "--no-pictures").exit_code == 0
    moved = tree.rename(tmp_path / "elsewhere")
    same = evaluate(maps, moved, out, "--seed", 1, "--no-pictures")
    assert (same.exit_code, "these are the maps of mine seed 0" in same.stderr) == (2, True), same.output
    path = next(maps.rglob("*.tiff"))
    tifffile.imwrite(path, tifffile.imread(path) + np.float32(1))
    assert evaluate(maps, moved, out, "--seed", 1, "--no-pictures").exit_code == 0
    assert {(row["dataset"], row["seed"]) for row in store.read(out).rows()} == {
        (f"folder:{tree}", 0),
        (f"folder:{tree}", 1),
    }


def two_shapes(root: Path) -> Path:
    """A tree of one category whose images lie, by turns, 120 x 60 and 60 x 120."""
    tree = write_tree(root, categories=("bolt",), test=4)
    for path in tree.rglob("*.png"):
        with Image.open(path) as image:
            upright = int(path.stem[:3]) % 2
            oblong = image.resize((60, 120) if upright else (120, 60), Image.Resampling.NEAREST)
        oblong.save(path)
    return tree


@pytest.mark.parametrize("fit", ["pad", "short-side"])
def test_the_maps_that_run_saves_of_images_of_several_shapes_have_the_figures_of_its_row(
    fit: str, tmp_path: Path
) -> None:
    tree, out = two_shapes(tmp_path / "tree"), tmp_path / "out"
    what = ("-m", "pixel_mean", "-d", f"folder:{tree}", "--seeds", "1", "--resolution", SIDE, "--fit", fit)
    assert command("run", *what, "--save-maps", "--no-pictures", "--no-measure-speed", "--out", out).exit_code == 0
    (saved,) = (out / "maps").iterdir()
    result = evaluate(saved, tree, tmp_path / "ext", "--no-pictures", "--fit", fit)
    assert result.exit_code == 0, result.output
    (ours,), (theirs,) = store.read(out).rows(), store.read(tmp_path / "ext").rows()
    columns = set(ACCURACY) - {"seg_f1", "image_auroc", "image_ap", "image_f1_max", "pg2", "pb2"}  # no scores are given
    assert {name: theirs[name] for name in columns} == {name: ours[name] for name in columns}
    assert theirs["readings"][0].endswith("px, as they are")
    with np.load(saved) as file:  # a canvas is no picture, wherever it comes from
        np.savez(tmp_path / "canvas.npz", maps=file["maps"], names=file["names"])
    refused = evaluate(tmp_path / "canvas.npz", tree, tmp_path / "none", "--fit", fit)
    assert refused.exit_code == 2
    assert "keeps proportions; give the map of the picture without what lies beside it" in refused.stderr
    smaller = evaluate(saved, tree, tmp_path / "none", "--fit", fit, "--resolution", 32, "--dry-run")
    assert "resampled to a" in smaller.stdout


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
    assert "not used: 1 file, no maps (.txt)" in result.stdout
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


def test_constant_maps_are_said_in_the_row_and_refused_where_all_of_a_category_are(
    tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    """A map of zeros is an answer, as it is of a run; none that tells no image's pixels apart is a slip."""
    for name in NAMES[:2]:
        over(name, np.zeros((SIDE, SIDE), np.float32))(maps)
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures")
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert "maps: 2 are constant" in row["readings"]
    assert row["pixel_auroc"] > 0.9
    for number, name in enumerate(NAMES):
        over(name, np.full((SIDE, SIDE), number, np.float32))(maps)
    result = evaluate(maps, tiny_tree, tmp_path / "none", "-c", "bolt")
    assert result.exit_code == 2
    assert re.fullmatch(r"kdad-bench: .*/bolt: all 6 maps are constant; a map tells pixels apart\n", result.stderr)


@pytest.mark.parametrize("side", [SIDE, 2 * SIDE])
def test_values_that_float32_would_round_are_judged_as_they_are(side: int, tiny_tree: Path, tmp_path: Path) -> None:
    """Energies and log-likelihoods lie far from 0: rounding makes ties, and ties cost accuracy."""
    rows = []
    for far, kind in ((0, np.float64), (10**9, np.float64), (10**9, np.int64)):
        folder = tmp_path / f"{far}{kind.__name__}"
        for name in NAMES:
            path = folder / "bolt" / "test" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            fine = np.random.default_rng(len(name)).integers(0, 60, (side, side))
            values = np.asarray(Image.fromarray(brightness(tiny_tree, "bolt", name)).resize((side, side)))
            np.save(path, (np.round(values) + fine + far).astype(kind))
        result = evaluate(folder, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures", "--name", folder.name)
        assert result.exit_code == 0, result.output
        found = {row["method"]: row for row in store.read(tmp_path / "out").rows()}
        rows.append(found[f"external:{folder.name}"])
    for row in rows[1:]:
        for name in ACCURACY:
            wanted = rows[0][name]
            assert row[name] == (wanted if wanted is None else pytest.approx(wanted, abs=1e-4 * (side > SIDE)))


def test_image_scores_that_float32_would_make_equal_are_kept_apart(tiny_tree: Path, maps: Path, tmp_path: Path) -> None:
    lines = [f"{name}.png,{10**9 + number}" for number, name in enumerate(NAMES)]
    (tmp_path / "scores.csv").write_text("\n".join(["image,score", *lines]))
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--scores", tmp_path / "scores.csv")
    assert result.exit_code == 0, result.output
    (row,) = store.read(tmp_path / "out").rows()
    assert row["image_auroc"] == 1.0
    assert "scores: kept as their ranks, as float32 would make some of them equal" in row["readings"]
    report = Report()
    check_row(row, report)
    assert (report.derived, report.problems) == (1, [])
    plain = evaluate(maps, tiny_tree, tmp_path / "plain", "-c", "bolt")
    assert plain.exit_code == 0, plain.output
    assert not any(line.startswith("scores: ") for line in store.read(tmp_path / "plain").rows()[0]["readings"])


def test_maps_that_float32_tells_not_apart_are_other_maps(tiny_tree: Path, tmp_path: Path) -> None:
    """Of two trainings that differ below float32's step the second was said to be the first."""
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        for name in NAMES:
            path = folder / "bolt" / "test" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, 1e9 + np.random.default_rng([seed, len(name)]).uniform(0, 9, (SIDE, SIDE)))
        result = evaluate(folder, tiny_tree, tmp_path / "out", "-c", "bolt", "--no-pictures", "--seed", str(seed))
        assert result.exit_code == 0, result.output
    assert len(store.read(tmp_path / "out").rows()) == 2


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


@pytest.mark.parametrize("fit", ["squash", "short-side", "pad"])
def test_maps_lie_as_the_note_of_a_camera_turns_their_images(fit: str, tmp_path: Path) -> None:
    tree, note = write_tree(tmp_path / "tree", categories=("bolt",)), Image.Exif()
    note[0x0112] = 6  # a quarter to the right
    for path in tree.rglob("*.png"):
        with Image.open(path) as image:
            upright = image.resize((48, 64), Image.Resampling.NEAREST)
        if "ground_truth" in path.parts:
            upright.save(path)
            continue
        stored = Image.fromarray(np.rot90(np.asarray(upright)))
        stored.save(path.with_suffix(".jpg"), exif=note, quality=95)
        path.unlink()
        for kind, picture in (("stored", stored), ("upright", upright)):
            if "test" in path.parts:
                place = tmp_path / kind / path.parent.name / f"{path.stem}.npy"
                place.parent.mkdir(parents=True, exist_ok=True)
                np.save(place, np.asarray(picture, np.float32).mean(axis=2))
    refused = evaluate(tmp_path / "stored", tree, tmp_path / "out", "--fit", fit)
    assert refused.exit_code == 2
    assert refused.stderr.count(
        "the map is 64 x 48 px; its image is 48 x 64 as a camera's note in the file turns it; turn the map so"
    ) == 6  # fmt: skip
    taken = evaluate(tmp_path / "upright", tree, tmp_path / "out", "--fit", fit)
    assert taken.exit_code == 0, taken.output
    (row,) = store.read(tmp_path / "out").rows()
    assert row["pixel_auroc"] > 0.99
    assert "images: a camera's note turns 6; maps are compared as it says" in row["readings"]
    assert "a camera's note turns 6" in taken.stdout


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


def test_maps_of_training_images_are_none_of_test_images_of_the_same_names(tmp_path: Path) -> None:
    """They would stand for images that the method has not seen, in its favour."""
    tree = write_tree(tmp_path / "tree", categories=("bolt",))
    for split, defect in (("train", "good"), ("test", "spot")):
        for number in range(3):
            path = tmp_path / "maps" / "bolt" / split / defect / f"{number:03}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, RANDOM)
    result = evaluate(tmp_path / "maps", tree, tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("no map of good/00") == 3
    assert "3 maps or scores in folders that hold no test images (train, validation, ground_truth)" in result.stderr
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("kind", ["semicolons", "tabs", "tsv", "other case", "parquet", "views"])
def test_an_index_is_read_however_it_is_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / {"tsv": "x.tsv", "parquet": "x.parquet", "views": "x.parquet"}.get(kind, "x.csv")
    names = ["Image", "MAP", "score"] if kind == "other case" else ["image", "map", "score"]
    columns = [["a/1.png"], ["1.npy"], [0.5]]
    if path.suffix != ".parquet":
        by = {"semicolons": ";", "tabs": "\t", "tsv": "\t"}.get(kind, ",")
        path.write_text(f"\ufeff{by.join(names)}\r\n{by.join(str(one[0]) for one in columns)}\r\n", encoding="utf-8")
    else:
        text = pa.string_view() if kind == "views" else pa.large_string()
        arrays = [pa.array(columns[0], text), pa.array(columns[1], text), pa.array(columns[2], pa.float32())]
        pq.write_table(pa.table(arrays, names=["Image", *names[1:]]), path)
    (found,) = offers(path, ()).found
    assert (found.key.defect, found.key.name, found.file, found.score) == ("a", "1.png", tmp_path / "1.npy", 0.5)


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "no name": (("--name", ""), "--name ''"),
    "a path as a name": (("--name", "../x"), "--name '../x'"),
    "a long name": (("--name", "x" * 65), "up to 64 letters"),
    "an unknown category": (("-c", "bolr"), "did you mean 'bolt'"),
    "scores that are no file": (("-c", "bolt", "--scores", "/no/such.csv"), "/no/such.csv"),
    "a URL that ends with the process": (("-c", "bolt", "--out", "memory://x"), "rows there end with this command"),
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


NO_SCORES = [("nan", "is nan"), ("1e60", "finite in float32"), ("x", "is no number"), ("1_000", "'1_000' is no number")]


@pytest.mark.parametrize(("score", "words"), NO_SCORES)
def test_an_image_score_that_is_no_number_is_one_line(
    score: str, words: str, tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "score"), *((f"{n}.png", 1) for n in NAMES[1:]), (NAMES[0], score)])
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--scores", tmp_path / "scores.csv")
    assert result.exit_code == 2
    assert re.fullmatch(rf"kdad-bench: .*scores.csv, line 7: .*{words}.*\n", result.stderr)


def test_image_scores_of_one_value_are_refused_where_all_of_a_category_are(
    tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    """They are an AUROC of exactly one half, whatever the maps tell."""
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "score"), *((f"{name}.png", 1) for name in NAMES)])
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt", "--scores", tmp_path / "scores.csv")
    assert result.exit_code == 2
    assert re.fullmatch(r"kdad-bench: .*/bolt: all 6 image scores are 1; a score tells images apart\n", result.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", [5, 0])
def test_files_under_a_suffix_of_no_map_are_said_where_maps_are_missing(
    left: int, tiny_tree: Path, maps: Path, tmp_path: Path
) -> None:
    for path in sorted(maps.rglob("*.tiff"))[left:]:
        path.rename(path.with_suffix(".exr"))
    result = evaluate(maps, tiny_tree, tmp_path / "out", "-c", "bolt")
    assert result.exit_code == 2
    assert f"not used: {6 - left} file{'s' if left < 5 else ''}, no maps (.exr)" in result.stderr


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
