"""`run --save-models --hold-out` then `predict`: scores, decisions, overlays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from kdad_bench.cli import cli
from tests.conftest import write_tree


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a saved model of 'bolt', the tree it was trained on)."""
    folder = tmp_path_factory.mktemp("predict")
    tree = write_tree(folder / "tree", categories=("bolt",), train=20)
    arguments = ["run", "--method", "pixel_mean", "--dataset", f"folder:{tree}", "--seeds", "1", "--save-models"]
    result = CliRunner().invoke(cli, [*arguments, "--hold-out", "0.5", "--no-pictures", "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    (saved,) = (folder / "out" / "models").iterdir()
    return saved, tree


def predict(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["predict", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_held_out_normals_give_a_threshold_that_tells_defects_from_normals(
    model: tuple[Path, Path], tmp_path: Path
) -> None:
    saved, tree = model
    code, output, errors = predict(saved, tree / "bolt" / "test", "--json", "--out", tmp_path)
    assert code == 0, errors
    found = json.loads(output)
    decisions = {(Path(one["image"]).parent.name, one["anomalous"]) for one in found["images"]}
    assert ("spot", True) in decisions
    assert ("spot", False) not in decisions
    assert "10 held-out normals" in found["threshold_from"]
    for one in found["images"]:
        with Image.open(one["overlay"]) as overlay:
            assert overlay.size == (64, 64)
    assert json.loads((tmp_path / "predictions.json").read_text()) == found


def test_a_model_scores_an_image_as_the_run_did(model: tuple[Path, Path]) -> None:
    from kdad_bench.leaderboard import store

    saved, tree = model
    (row,) = store.read(saved.parent.parent).rows()
    measured = dict(zip(row["image_names"], row["image_scores"], strict=True))
    code, output, _ = predict(saved, tree / "bolt" / "test" / "spot" / "000.png", "--json")
    assert code == 0
    assert json.loads(output)["images"][0]["score"] == pytest.approx(measured["spot/000.png"], rel=1e-5)


def test_globs_and_single_files_work_and_a_given_threshold_wins(model: tuple[Path, Path]) -> None:
    saved, tree = model
    code, output, errors = predict(saved, f"{tree}/bolt/test/good/*.png", "--threshold", "-1")
    assert code == 0
    assert output.count("ANOMALOUS") == 3
    assert "as given" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}", "/no/such/*.png"], "no such image"),
        (["/no/such/model", "{tree}"], "/no/such/model"),
        (["{model}", "{tree}/bolt/test", "--false-alarms", "0.01"], "take --false-alarms 0.091"),
        (["{model}", "{text}"], "not a readable image"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    model: tuple[Path, Path], tmp_path: Path, arguments: list[str], words: str
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    names = {"model": model[0], "tree": model[1], "text": text}
    code, _, errors = predict(*(argument.format(**names) for argument in arguments))
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1


def test_a_model_whose_weights_are_not_finite_calls_nothing_normal(model: tuple[Path, Path], tmp_path: Path) -> None:
    saved, tree = model
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    state = load_file(broken / "model.safetensors")
    state["mean"][0, 3, 3] = float("nan")
    save_file(state, broken / "model.safetensors")
    code, output, errors = predict(broken, tree / "bolt" / "test")
    assert (code, output) == (2, "")
    assert "the scores of method 'pixel_mean' are not finite" in errors
    assert errors.count("\n") == 1
