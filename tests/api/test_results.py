"""`kdad_bench.run` and `Results`: what the commands do, as functions and tables."""

from __future__ import annotations

import re
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import kdad_bench
from kdad_bench.api import running
from kdad_bench.api.results import Comparison
from kdad_bench.cli import cli
from kdad_bench.cli.run import run as command
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.options import RunOptions
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.compare import NothingToCompare

FAST: dict[str, Any] = {"seeds": 2, "preset": "quick", "resolution": 64, "pictures": False, "measure_speed": False}


@pytest.fixture(scope="module")
def ran(tiny_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> kdad_bench.Results:
    out = tmp_path_factory.mktemp("ran")
    options = {**FAST, "settings": {"image_size": 64}, "weights": "random"}
    return kdad_bench.run(["pixel_mean", "padim"], f"folder:{tiny_tree}", "bolt", out=out, **options)


def test_it_leaves_the_rows_that_the_command_leaves(ran: kdad_bench.Results, tiny_tree: Path, tmp_path: Path) -> None:
    arguments = ["run", "-m", "padim", "-c", "bolt", "--seeds", "1,", "--resolution", "64", "--image-size", "64"]
    arguments += [
        "--preset",
        "quick",
        "--weights",
        "random",
        "--no-pictures",
        "--no-measure-speed",
        "-d",
        f"folder:{tiny_tree}",
        "--out",
        str(tmp_path),
    ]
    assert CliRunner().invoke(cli, arguments).exit_code == 0
    columns = ["job_id", "image_scores", "pixel_auroc", "preset", "settings"]
    theirs = store.read(tmp_path, columns).table.select(columns)
    ours = ran.frame([*columns, "method", "seed"]).to_pylist()
    (same,) = ({name: row[name] for name in columns} for row in ours if (row["method"], row["seed"]) == ("padim", 1))
    assert [same] == theirs.to_pylist()
    assert len(ran) == 4


def test_what_is_finished_is_not_run_again_and_nothing_is_printed(
    ran: kdad_bench.Results, tiny_tree: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []
    again = kdad_bench.run(
        "pixel_mean", f"folder:{tiny_tree}", ["bolt"], out=Path(ran.where), settings={"pixel_mean": {"image_size": 64}},
        progress=told.append, **{**FAST, "seeds": range(1, 3)},
    )  # fmt: skip
    assert [re.sub(r" in .*|:.*", "", line) for line in told] == ["pixel_mean folder"]
    assert "seed 2: image AUROC" in told[0]
    assert again.frame("seed")["seed"].to_pylist() == [1, 2]
    assert len(kdad_bench.Results(ran.where)) == 5
    str(again), repr(again), again.leaderboard(), again._repr_html_()
    assert capfd.readouterr() == ("", "")


def test_frames_have_the_columns_that_are_asked_for_in_that_order(ran: kdad_bench.Results) -> None:
    assert ran.frame(["seed", "method"]).column_names == ["seed", "method"]
    assert "latency_samples_ms" in ran.frame().column_names
    with pytest.raises(ValueError, match="no column 'sead'; have: job_id"):
        ran.frame(["sead"])


def test_a_frame_becomes_one_of_pandas_where_that_is_installed(ran: kdad_bench.Results) -> None:
    frame = ran.frame(["method", "seed", "image_auroc"])
    if find_spec("pandas") is None:
        with pytest.raises(ModuleNotFoundError, match="pandas"):
            frame.to_pandas()
    else:
        assert frame.to_pandas().to_dict("list") == frame.to_pydict()


def test_the_leaderboard_is_that_of_the_command(ran: kdad_bench.Results, tmp_path: Path) -> None:
    board = ran.leaderboard()
    assert [sorted(found.labels.values()) for found in board.boards] == [["PaDiM", "Pixel mean (floor)"]]
    names = {path.name for path in board.save(tmp_path / "pages")}
    assert names == {f"leaderboard.{kind}" for kind in ("md", "html", "parquet", "csv", "json")}
    lines = board.frame()
    means = lines.filter(lines["scope"].to_numpy(zero_copy_only=False) == "mean")
    assert set(means["method"].to_pylist()) == {"pixel_mean", "padim"}
    assert "PaDiM" in str(board)
    assert board._repr_html_().count("<tr>") == 3
    assert repr(board) == str(board)


def test_texts_in_a_page_are_escaped(ran: kdad_bench.Results) -> None:
    from kdad_bench.api.tables import Table

    made = Table(caption="<script>", heading=("a&b", "x"), lines=(("<b>", "\x1b[31m"),))
    assert "<script>" not in made.html
    assert "<b>" not in made.html
    assert "\x1b" not in made.html + made.text
    assert ran._repr_html_().startswith("<table>")


def test_methods_and_results_are_compared_as_the_command_does(ran: kdad_bench.Results, tmp_path: Path) -> None:
    found = ran.compare("pixel_mean", "padim")
    assert len(found) == len(list(found)) == found.frame().num_rows > 0
    assert set(found) >= set(found.worse) | set(found.better)
    assert found[0].verdict == "worse" or not found.worse
    assert found._repr_html_().startswith("<table>")
    same = ran.compare(ran, metrics="image_auroc")
    assert {one.difference for one in same} == {0.0}
    assert {one.metric for one in same} == {"image_auroc"}
    assert (same.worse, same.better) == ((), ())
    done = CliRunner().invoke(cli, ["compare", "pixel_mean", "padim", "--results", ran.where, "--json"])
    assert done.exit_code == (1 if found.worse else 0)
    with pytest.raises(NothingToCompare, match="no finished jobs of both"):
        ran.compare("pixel_mean", "stfpm")
    with pytest.raises(NothingToCompare, match=r"on both sides; choose another metrics$"):
        ran.compare("pixel_mean", "padim", metrics="au_spro_05")
    with pytest.raises(ValueError, match="no metric 'auroc'"):
        ran.compare("pixel_mean", "padim", metrics=["auroc"])
    (tmp_path / "leaderboard.md").mkdir()
    with pytest.raises(store.StoreError, match=r"leaderboard\.md'.*move it away, or choose another place with folder$"):
        ran.leaderboard().save(tmp_path)
    with pytest.raises(ValueError, match="give the names of two methods, or other Results"):
        ran.compare("pixel_mean")
    with pytest.raises(ValueError, match="give the names of two methods, or other Results"):
        ran.compare(ran, "pixel_mean")


def test_what_cannot_be_read_shows_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, words in (("gone", "no results folder "), ("file", "is a file, not a results folder")):
        lost = kdad_bench.Results(tmp_path / name)
        assert repr(lost).startswith(f"Results({str(tmp_path / name)!r}): ")
        assert words in repr(lost)
        assert words in lost._repr_html_()
        with pytest.raises(store.StoreError):
            lost.leaderboard()


def test_a_folder_without_rows_and_a_comparison_of_nothing_show_themselves(tmp_path: Path) -> None:
    empty = kdad_bench.Results(tmp_path)
    assert (len(empty), empty.failed, empty.frame().num_rows) == (0, (), 0)
    assert (str(empty.leaderboard()), empty._repr_html_()) == ("no finished job", "<p>no finished job</p>")
    for other in (lambda: empty.compare("a", "b"), lambda: empty.compare(empty)):
        with pytest.raises(NothingToCompare):
            other()
    nothing = Comparison(())
    assert (repr(nothing), nothing._repr_html_()) == ("no difference", "<p>no difference</p>")
    assert nothing.frame().num_rows == 0
    assert {"method", "metric", "first", "second", "difference"} < set(nothing.frame().column_names)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match="no results folder"):
        kdad_bench.Results(tmp_path / "none").frame()


def damaged(png: bytes) -> bytes:
    """As whole as before by its beginning and end, and not to be decoded."""
    middle = len(png) // 2
    return png[:middle] + bytes(255 - value for value in png[middle : middle + 16]) + png[middle + 16 :]


def test_a_job_that_fails_is_a_row_and_one_warning(tiny_tree: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for path in (tiny_tree / "bolt").rglob("*.png"):
        target = tmp_path / "tree" / "bolt" / path.relative_to(tiny_tree / "bolt")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes() if target.name != "001.png" else damaged(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"1 of 1 jobs have no result; pixel_mean .*001\.png.*Results\.failed"):
        results = kdad_bench.run("pixel_mean", f"folder:{tmp_path}/tree", out=tmp_path / "out", **{**FAST, "seeds": 1})
    (line,) = results.failed
    assert "001.png" in line
    assert "1 failed" in repr(results)


def test_what_ended_well_is_kept_where_the_caller_stops_the_rest(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, told = store.write, list[str]()

    def refuse_the_first(row: Any, folder: str) -> str:
        if not told:
            raise store.StoreError("no space left")
        return write(row, folder)

    def stop(line: str) -> None:
        told.append(line)
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write", refuse_the_first)
    with pytest.raises(KeyboardInterrupt):
        kdad_bench.run("pixel_mean", f"folder:{tiny_tree}", out=tmp_path, progress=stop, **{**FAST, "seeds": 1})
    assert "NO RESULT: no space left" in told[0]
    assert len(kdad_bench.Results(tmp_path)) == 1


def test_an_older_row_is_no_result_of_a_call_that_was_to_redo_it(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(row: Any, folder: str) -> str:
        raise store.StoreError("no space left")

    said: Any = {**FAST, "seeds": 1, "out": tmp_path}
    kdad_bench.run("pixel_mean", f"folder:{tiny_tree}", "bolt", **said)
    monkeypatch.setattr(store, "write", refuse)
    with pytest.warns(UserWarning, match=r"1 of 1 jobs have no result; .* no result: no space left"):
        kdad_bench.run("pixel_mean", f"folder:{tiny_tree}", "bolt", force=True, **said)


def test_torch_is_left_as_it_was(tiny_tree: Path, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        options = {**FAST, "seeds": 1, "threads": before + 1}
        kdad_bench.run("pixel_mean", f"folder:{tiny_tree}", "bolt", out=tmp_path, **options)
        assert torch.get_num_threads() == before
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


def test_every_option_of_the_command_is_a_keyword_of_its_name() -> None:
    options = [max(one.opts, key=len).removeprefix("--").replace("-", "_") for one in command.params]
    assert "checkpoint_every" in options
    alone = {"dry_run", "json"}  # of the command line, as docs/api.md says
    several = {"method": "methods", "dataset": "datasets", "category": "categories", "set": "settings"}
    named = {**several, "all": "everything"}
    keywords = {named.get(one, one) for one in options if one not in alone}
    assert keywords - {*RunOptions.model_fields} == set()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "nothing chosen: say everything=True, or choose with methods, datasets, categories or in a config"),
    "an unknown method": ({"methods": "stfmp"}, "unknown method 'stfmp' (did you mean 'stfpm'?)"),
    "an unknown data set": ({"datasets": "mvtex"}, "data set 'mvtex' (did you mean 'mvtec_ad'?) is not known"),
    "an unknown category": ({"categories": ["caplett"]}, "did you mean 'caplet'"),
    "an unknown option": ({"methods": "stfpm", "stepps": 3}, "'stepps' is no option (did you mean 'steps'?)"),
    "an option of the command line": ({"methods": "stfpm", "dry_run": True}, "'dry_run' is no option"),
    "no steps": ({"methods": "stfpm", "steps": 0}, "1, not 0"),
    "steps in words": ({"methods": "stfpm", "steps": "many"}, "steps: must be a whole number, not 'many'"),
    "no seeds": (
        {"methods": "stfpm", "seeds": 0},
        "seeds=0 is no count from 1 to 10000; for that seed alone give seeds=[0]",
    ),
    "seeds below zero": ({"methods": "stfpm", "seeds": [2, -1]}, "seeds=[2, -1]: -1 is no whole number from 0 to"),
    "true seeds": ({"methods": "stfpm", "seeds": True}, "seeds=True is of type bool; give a count or a"),
    "a seed twice": ({"methods": "stfpm", "seeds": (1, 1)}, "seeds=[1, 1] names a seed twice"),
    "seeds of a type": ({"methods": "stfpm", "seeds": 1.5}, "seeds=1.5 is of type float; give a count or a"),
    "an unknown setting": ({"methods": "stfpm", "settings": {"rate": 1}}, "'rate' is not a setting"),
    "settings of a type": ({"methods": "stfpm", "settings": ["rate"]}, "give a dict"),
    "settings of an unknown method": ({"methods": "stfpm", "settings": {"stfmp": {"steps": 1}}}, "stfmp"),
    "a modality that is none": ({"methods": "stfpm", "modality": "xyz"}, "modality 'xyz'"),
    "an address without Ray": ({"methods": "stfpm", "address": "a:1"}, "address is for executor ray"),
    "methods of a type": ({"methods": 3}, "methods=3 is of type int"),
    "a place that is none": ({"methods": "pixel_mean", "out": "s3://"}, "names no place"),
    "a file in the way": ({"methods": "pixel_mean", "out": __file__}, "is a file, not a results folder"),
    "weights of a teacher that is none": (
        {"methods": "pixel_mean", "weights": {"resnet19": "x"}},
        "unknown teacher 'resnet19' (did you mean 'resnet18'?)",
    ),
    "progress that cannot be called": ({"methods": "pixel_mean", "progress": 3}, "progress=3 is not callable"),
    "a config that is not there": ({"config": "/no/such.toml"}, "/no/such.toml: cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_one_line_in_keywords_and_nothing_is_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDAD_DATA", raising=False)
    options, words = BAD[case]
    with warnings.catch_warnings(), pytest.raises((ValueError, store.StoreError)) as error:
        kdad_bench.run(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_values_of_numpy_are_taken_as_those_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    class Enough(Exception):
        pass

    def stop(asked: RunOptions) -> None:
        raise Enough(asked.model_dump(exclude_defaults=True))

    monkeypatch.setattr(running, "agenda", stop)

    def asked(**options: Any) -> Any:
        with pytest.raises(Enough) as told:
            kdad_bench.run("pixel_mean", **options)
        return told.value.args[0]

    ours: dict[str, Any] = {
        "hold_out": 0.2, "steps": 3, "train_images": [2, 4], "contamination": [0.0, 0.2], "seeds": 2, "force": True,
        "categories": ["a", "b"], "settings": {"sigma": 1.5, "pixel_mean": {"strides": [4, 8]}},
    }  # fmt: skip
    theirs = {
        "hold_out": np.float64(0.2), "steps": np.int64(3), "train_images": np.array([2, 4]), "force": np.True_,
        "contamination": np.linspace(0, 0.2, 2), "seeds": np.int64(2), "categories": np.array(["a", "b"]),
        "settings": {"sigma": np.float64(1.5), "pixel_mean": {"strides": np.array([4, 8])}},
    }  # fmt: skip
    assert repr(asked(**theirs)) == repr(asked(**ours))
    assert repr(asked(seeds=[np.int64(1)])) == repr(asked(seeds=(1,)))


@pytest.mark.parametrize(
    ("name", "empty"),
    [
        *(("methods", empty) for empty in ([], (), set(), range(0), np.array([]))),
        ("datasets", []),
        ("categories", ()),
        ("seeds", []),
        ("seeds", range(0)),
        ("train_images", []),
        ("contamination", ()),
    ],
)
def test_an_empty_list_is_refused_and_chooses_not_all_there_are(name: str, empty: Any, tmp_path: Path) -> None:
    with pytest.raises(SelectionError) as told:
        kdad_bench.run(**{"methods": "pixel_mean", "datasets": "synthetic", "out": tmp_path / "out", name: empty})
    assert str(told.value).startswith(name)
    assert "an empty list chooses nothing; leave it out for " in str(told.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "option"), [("methods", "--method"), ("datasets", "--dataset"), ("categories", "--category")]
)
def test_names_with_a_comma_between_them_are_told_how_several_are_given(name: str, option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one,two") as told:
        kdad_bench.run(**{"datasets": "synthetic", "out": tmp_path / "out", name: "one,two"})
    assert f"; give each by itself, in a list or as `{option} A {option} B`; have: " in str(told.value)


def test_a_results_folder_that_is_a_file_is_no_value_error_as_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(store.StoreError, match="is a file, not a results folder") as told:
        kdad_bench.run("pixel_mean", "synthetic", "caplet", out=tmp_path / "file")
    assert not isinstance(told.value, ValueError)


@pytest.mark.parametrize("where", [5, None, "", ["a"]])
def test_results_of_no_path_are_refused_in_one_line(where: Any) -> None:
    with pytest.raises(SelectionError, match="no results folder; give its path or URL"):
        kdad_bench.Results(where)
