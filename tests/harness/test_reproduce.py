"""A row holds all that its numbers need: its job runs once more from the row alone, and comes to the same bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import kdad_bench
from kdad_bench.cli import cli
from kdad_bench.cli.results import reproduction
from kdad_bench.harness import reproduce
from kdad_bench.harness.job import id_of_row
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.metric import ACCURACY
from kdad_bench.leaderboard.row import Row

STFPM: dict[str, Any] = {"methods": "stfpm", "weights": "random", "steps": 2}
POINTS: dict[str, dict[str, Any]] = {
    "floor": {"methods": "pixel_mean", "deterministic": True},
    "settings, normals held out, few images": {
        "methods": "stfpm",
        "weights": "random",
        "settings": {"epochs": 7, "stfpm": {"learning_rate": 0.1, "steps": 2}},
        "batch_size": 2,
        "hold_out": 0.34,
        "train_images": [2],
    },
    "variant, tiles": {
        "methods": "stfpm:batch_sum",
        "weights": "random",
        "steps": 1,
        "fit": "pad",
        "tile": 64,
        "resolution": 96,
    },
    "dirty and corrupted images": {
        "methods": "pixel_mean",
        "train_images": [3],
        "contamination": [0.3],
        "corruption": ["blur:2"],
    },
    "one model for all": {"methods": "pixel_mean", "setting": "multi-class"},
}


def rows_of(tree: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    """A results folder of one category, or of all for a model of all."""
    every = options.get("setting") == "multi-class"
    kdad_bench.run(
        datasets=f"folder:{tree}", categories=None if every else "bolt", seeds=[3], preset="quick", out=out,
        pictures=False, measure_speed=False, **options,
    )  # fmt: skip
    return store.read(out).rows()


def again(results: Path, tree: Path, tmp_path: Path, weights: tuple[str, ...] = ()) -> reproduce.Reproduced:
    asked = reproduce.Asked(out=str(tmp_path / "again"), datasets=(f"folder:{tree}",), weights=weights)
    (found,) = reproduce.reproduced(reproduce.chosen(str(results)), asked, lambda _: None)
    return found


@pytest.fixture(scope="module")
def floor(tiny_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("floor") / "results"
    rows_of(tiny_tree, out, methods="pixel_mean")
    return out


@pytest.mark.parametrize("options", POINTS.values(), ids=POINTS.keys())
def test_every_kind_of_job_comes_to_the_same_bits_from_its_row_alone(
    tiny_tree: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    before = rows_of(tiny_tree, tmp_path / "results", **options)
    found = again(tmp_path / "results", tiny_tree, tmp_path, ("random",) if "weights" in options else ())
    assert (found.why_not, found.differ) == ("", ())
    assert found.identical
    assert found.within(0.0)
    assert store.read(tmp_path / "results").rows() == before  # nothing is written there


def rewritten(results: Path, out: Path, *, whole: bool = False, **changes: Any) -> Path:
    """The one row of `results` with other values in it, in a folder of its own; `whole`: with the id of these."""
    (line,) = store.read(results).rows()
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in (line | changes).items()}
    known: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if whole:
        known["job_id"] = id_of_row(line | changes)
    store.write(Row(**known), out)
    return out


def test_numbers_that_do_not_come_again_are_named_with_their_distance(
    floor: Path, tiny_tree: Path, tmp_path: Path
) -> None:
    (row,) = store.read(floor).rows()
    scores = list(row["image_scores"])
    scores[0] += (max(scores) - min(scores)) / 4
    image = row["image_auroc"] - 0.125
    changed = rewritten(floor, tmp_path / "changed", image_scores=tuple(scores), image_auroc=image)
    found = again(changed, tiny_tree, tmp_path)
    assert not found.identical
    assert set(found.differ) == {"image_scores", "image_auroc"}
    moved = {name: value for name, value in (found.apart or {}).items() if value}
    assert moved == pytest.approx({"image_auroc": 0.125})
    assert {*(found.apart or {})} == {name for name in ACCURACY if row[name] is not None} > {"pixel_ap", "image_f1_max"}
    assert found.scores_apart == pytest.approx(0.25, rel=0.3)  # the range of the old scores grew with it
    assert not found.within(0.12)
    assert found.within(0.13)


def test_a_figure_that_one_of_the_two_alone_has_is_a_difference(floor: Path, tiny_tree: Path, tmp_path: Path) -> None:
    (row,) = store.read(floor).rows()
    found = again(rewritten(floor, tmp_path / "lost", aupro_30=None), tiny_tree, tmp_path)
    assert (found.differ, found.one_sided) == (("aupro_30",), (f"aupro_30 None, now {row['aupro_30']}",))
    assert {"image_auroc", "pixel_auroc"} <= set(found.apart or {})
    assert "aupro_30" not in (found.apart or {})
    assert not found.within(1.0)
    (new,) = store.read(tmp_path / "again").rows()
    ended = Row(**{name: tuple(v) if isinstance(v, list) else v for name, v in new.items() if v is not None})
    lost = reproduce._beside(row, replace(ended, aupro_30=None))
    assert (lost.differ, lost.one_sided) == (("aupro_30",), (f"aupro_30 {row['aupro_30']}, now None",))
    assert not lost.within(1.0)
    done = command(tmp_path / "lost", "--dataset", f"folder:{tiny_tree}", "--tolerance", 1)
    assert done.exit_code == 1
    assert f"pixel_auroc +0.0000, aupro_30 None, now {row['aupro_30']}; image scores" in done.stdout


def test_a_row_that_does_not_say_how_long_it_took_is_no_quick_one(floor: Path, tiny_tree: Path, tmp_path: Path) -> None:
    rewritten(floor, tmp_path / "both", total_seconds=7.0)
    rewritten(floor, tmp_path / "both", whole=True, seed=4, total_seconds=None)
    (row,) = reproduce.chosen(str(tmp_path / "both"))
    assert row["total_seconds"] == 7.0
    silent = rewritten(floor, tmp_path / "silent", total_seconds=None)
    done = command(silent, "--dataset", f"folder:{tiny_tree}")
    assert "1 job, which took 0 s by their rows; 1 do not say" in done.stderr


REFUSED: dict[str, tuple[bool, Mapping[str, Any], str]] = {
    "another version": (True, {"kdad_bench": "0.1.0"}, "it is of kdad-bench 0.1.0"),
    "another protocol": (True, {"protocol_version": "0"}, "another version of the protocol"),
    "other files": (True, {"data_fingerprint": "0" * 64}, "the files of its category here are not those that it saw"),
    "another size": (True, {"settings": '{"image_size": 32, "seed": 3}'}, "another settings here (batch_size"),
    "a setting that is none": (True, {"settings": '{"colour": "red", "seed": 3}'}, "'colour' is not a setting"),
    "a method that is none": (True, {"method": "stfmp"}, "there is no method 'stfmp' here"),
    "a preset that is none": (True, {"preset": "huge"}, "preset 'huge'"),
    "a changed seed": (False, {"seed": 4}, "its id is not that of what it says: the row was changed"),
    "a changed setting": (False, {"settings": "{}"}, "its id is not that of what it says: the row was changed"),
    "a corruption that is none": (False, {"corruption": "rain:1"}, "its id is not that of what it says"),
}


@pytest.mark.parametrize(("whole", "changes", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_a_row_whose_job_cannot_be_had_says_why_and_nothing_runs(
    floor: Path, tiny_tree: Path, tmp_path: Path, whole: bool, changes: dict[str, Any], why: str
) -> None:
    found = again(rewritten(floor, tmp_path / "changed", whole=whole, **changes), tiny_tree, tmp_path)
    assert why in found.why_not
    assert not found.within(1.0)
    assert not list((tmp_path / "again").glob("*.parquet"))


def test_a_job_runs_with_as_many_threads_as_its_row_says(floor: Path) -> None:
    (row,) = store.read(floor).rows()
    asked = reproduce.Asked(out="again")
    assert row["threads"] == 1
    assert [reproduce.options_of(row | {"threads": n}, "synthetic", asked).threads for n in (1, 2, 3)] == [1, 2, 3]


def test_other_weights_of_the_teacher_are_named(tiny_tree: Path, tmp_path: Path) -> None:
    rows_of(tiny_tree, tmp_path / "results", **STFPM)
    found = again(tmp_path / "results", tiny_tree, tmp_path)
    assert "its teacher had other weights; give them with --weights" in found.why_not


# ---- the command


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, ["results", "reproduce", *map(str, arguments)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def test_the_command_says_identical_and_ends_with_0(floor: Path, tiny_tree: Path) -> None:
    done = command(floor, "--dataset", f"folder:{tiny_tree}")
    assert done.exit_code == 0
    assert "pixel_mean" in done.stdout
    assert done.stdout.rstrip().endswith(": identical")
    (report,) = map(json.loads, command(floor, "-d", f"folder:{tiny_tree}", "--json").stdout.splitlines())
    assert report["identical"] is True


def test_the_command_ends_with_1_where_anything_differs(floor: Path, tiny_tree: Path, tmp_path: Path) -> None:
    changed = rewritten(floor, tmp_path / "changed", pixel_auroc=0.5)
    done = command(changed, "--dataset", f"folder:{tiny_tree}", "--out", tmp_path / "kept")
    assert done.exit_code == 1
    assert "not identical (pixel_auroc)" in done.stdout
    assert len(store.read(tmp_path / "kept").rows()) == 1
    assert command(changed, "-d", f"folder:{tiny_tree}", "--tolerance", 1).exit_code == 0
    assert command(changed).exit_code == 1  # nobody says where its data lie
    moved = tmp_path / "moved"
    shutil.copytree(tiny_tree, moved)
    (next((moved / "bolt" / "train" / "good").iterdir())).unlink()
    done = command(changed, "-d", f"folder:{moved}")
    assert done.exit_code == 1
    assert "not those that it saw" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--job", "zz"], "no finished row has such an id; `kdad-bench results export "),
        (["--job", ""], "no finished row has such an id"),
        (["--method", "stfpm"], "no finished row of these methods to reproduce"),
        (["--method", "stfmp"], "stfpm"),
        (["--all", "--job", "a"], "not both"),
        (["--tolerance", "nan"], "tolerance"),
        (["--weights", "nowhere.pth"], "--weights nowhere.pth: no teacher of this run needs a file"),
        (["--weights", "resnet18=nowhere.pth"], "--weights nowhere.pth: no such file; give a checkpoint of resnet18"),
        (["--weights", "resnt18=nowhere.pth"], "unknown teacher 'resnt18' (did you mean 'resnet18'?)"),
        (["-d", ""], "for a path write folder:"),
        (["-d", "mvtec_a"], "data set 'mvtec_a' (did you mean 'mvtec_ad'?) is not known"),
        (["-d", "folder:nowhere"], "no such folder"),
        (["-d", f"folder:{__file__}"], "not a folder"),
        (["-d", "tabular:nowhere.csv"], "no such file or folder"),
        (["-d", "nowhere.py"], "cannot be read"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_what_cannot_be_meant_is_one_line_exit_code_2_and_nothing_runs(
    floor: Path, arguments: list[str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "reproduced", lambda *_: pytest.fail("was run"))
    done = command(floor, *arguments)
    assert done.exit_code == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_weights_go_to_the_rows_whose_teacher_they_fit_and_keep_no_other_from_running(floor: Path) -> None:
    (row,) = store.read(floor).rows()
    asked = reproduce.Asked(out="again", weights=("resnet18=random",))
    rows = [row, row | {"teacher": "resnet18"}, row | {"teacher": "efficientnet_lite0"}]
    assert reproduce.settled(rows[:1], asked).weights == ()
    assert reproduce.settled(rows, asked).weights == ("resnet18=random",)
    loose = reproduce.settled(rows, reproduce.Asked(out="again", weights=("random",))).weights
    assert set(loose) == {"resnet18=random", "efficientnet_lite0=random"}


def test_new_rows_never_go_beside_the_old_ones(floor: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(floor)
    for same in (floor, tmp_path / "link"):
        done = command(floor, "--out", same)
        assert done.exit_code == 2
        assert "choose another folder" in done.stderr
    assert command(tmp_path / "nowhere").exit_code == 2


def test_every_figure_of_a_row_has_to_come_again(floor: Path, tiny_tree: Path, tmp_path: Path) -> None:
    (row,) = store.read(floor).rows()
    for name in [name for name in ACCURACY if row[name] is not None]:
        other = row[name] - 0.01 if row[name] > 0.5 else row[name] + 0.01
        ended = Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if v is not None})
        found = reproduce._beside(row, replace(ended, **{name: other}))
        assert found.differ == (name,)
        assert not found.identical
        assert not found.within(0.009)
        assert f"{name} {other - row[name]:+.4f}" in reproduction(found)


def test_a_figure_that_rows_have_only_since_is_no_difference_and_one_that_is_lost_is(floor: Path) -> None:
    """A row may be older than a measure that later code of its version adds."""
    (row,) = store.read(floor).rows()
    ended = Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items() if v is not None})
    assert reproduce._beside({**row, "pixel_ap": None}, ended).identical
    lost = reproduce._beside(row, replace(ended, pixel_ap=None))
    assert (lost.differ, lost.identical, lost.within(1.0)) == (("pixel_ap",), False, False)


def test_a_job_that_is_named_twice_is_run_once() -> None:
    rows = store.read(Path(__file__).parents[2] / "docs" / "results" / "quick")
    job = rows.rows()[0]["job_id"]
    (found,) = reproduce.chosen("quick", [job, job], found=rows)
    assert found["job_id"] == job
