"""The choices of a run: the command line and the config file are two faces of one definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

import kdad_bench
from kdad_bench.cli import cli
from kdad_bench.cli.run import options_of, run
from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.options import RunOptions, RunTable, options_from
from kdad_bench.harness.selection import settings_of
from kdad_bench.methods import entry

SETTINGS = {"settings", "method_settings", "weights"}  # tables of the file; on the command line --set and --weights


def test_every_option_is_a_field_and_every_field_an_option() -> None:
    options = {parameter.name for parameter in run.params}
    assert options - {"help"} == set(RunOptions.model_fields) - SETTINGS


def test_what_help_calls_the_default_is_the_default() -> None:
    for parameter in run.params:
        default = parameter.default
        if isinstance(default, (str, int, float)) and parameter.name in RunOptions.model_fields:
            assert RunOptions.model_fields[parameter.name].default == default, parameter.name


def test_options_cannot_be_changed_on_their_way() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        options_from({"methods": ["stfpm"]}).device = "cpu"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"preset": "papr"}, "preset 'papr' (did you mean 'paper'?) is not one of quick, standard, paper"),
        ({"modality": "dept"}, "modality 'dept' (did you mean 'depth'?) is not one of rgb, depth, rgb+depth"),
        ({"all_weights": ("",)}, "--weights : '' is empty; give a path"),
        ({"all_weights": ("resnet18=",)}, "--weights resnet18=: '' is empty; give a path"),
        ({"seeds": "x"}, "seeds 'x' is neither a count (3) nor a list (0,4,7)"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"methods": ["STFPM"]}, "unknown method 'STFPM' (did you mean 'stfpm'?)"),
        ({"methods": ["stfmp"]}, "unknown method 'stfmp' (did you mean 'stfpm'?)"),
        ({"batch_size": 0}, "--batch-size: must be at least 1, not 0"),
        ({"resolution": 9000}, "--resolution: must be at most 8192, not 9000"),
        ({"data_root": 3}, "--data-root: must be a path, not 3"),
        ({"precision": "fp8"}, "--precision: must be 'fp32', 'bf16' or 'fp16', not 'fp8'"),
        ({"gpu_fraction": 0.0}, "--gpu-fraction: must be above 0, not 0.0"),
        ({"job_timeout": "long"}, "--job-timeout: must be a number, not 'long'"),
        ({"force": 1}, "--force: must be true or false, not 1"),
    ],
    ids=str,
)
def test_a_wrong_value_is_one_line_that_names_it(said: dict[str, Any], words: str) -> None:
    with pytest.raises(SelectionError) as caught:
        options_from(said)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_both_faces_give_the_same_options_and_the_command_line_wins(tmp_path: Path) -> None:
    said = {
        "methods": ["stfpm:held_out"], "datasets": ["mvtec_ad"], "categories": ["bottle"], "seeds": [3, 7],
        "preset": "paper", "device": "cpu", "data_root": "data", "out": "there", "resolution": 64, "modality": "depth",
        "fit": "pad", "tile": 32, "overlap": 8,
        "train_images": [1, "all"], "contamination": [0, 0.1], "corruption": ["none", "shift:2"],
        "setting": "multi-class",
    }  # fmt: skip
    assert set(said) == set(RunTable.model_fields) - {"weights"}
    shown = {name: f'"{value}"' if isinstance(value, str) else value for name, value in said.items()}
    path = tmp_path / "run.toml"
    path.write_text("[run]\n" + "".join(f"{name} = {value}\n" for name, value in shown.items()))
    by_file = options_of({"config": path})
    by_command_line = options_of(
        {**said, "methods": (("stfpm", "held_out"),), "datasets": ("mvtec_ad",), "categories": ("bottle",),
         "seeds": "3,7", "train_images": "1,all", "contamination": "0,0.1", "corruption": "none,shift:2",
         "config": path}
    )  # fmt: skip
    assert by_file == by_command_line
    assert options_of({"config": path, "out": "elsewhere", "seeds": None, "datasets": ()}).out == "elsewhere"


ONE = "[settings.stfpm]\nsteps = 3\nlearning_rate = 0.1\nteacher = 'resnet18'\n"


@pytest.mark.parametrize(
    ("file", "said", "expected"),
    [
        (ONE, {"steps": 5}, {"steps": 5, "learning_rate": 0.1, "teacher": "resnet18"}),
        (ONE, {"epochs": 2}, {"steps": None, "epochs": 2, "learning_rate": 0.1}),
        (ONE, {"teacher": "efficientnet_lite0"}, {"teacher": "efficientnet_lite0", "steps": 3}),
        (ONE, {"assignments": ("learning_rate=0.5",)}, {"learning_rate": 0.5, "steps": 3}),
        (ONE, {"assignments": ("stfpm.epochs=2",)}, {"steps": None, "epochs": 2, "learning_rate": 0.1}),
        (ONE, {"steps": 5, "assignments": ("stfpm.steps=7",)}, {"steps": 7}),
        ("[settings.stfpm]\nepochs = 3\n", {"steps": 2}, {"steps": 2}),
        ("[settings]\nsteps = 3\n", {"epochs": 2}, {"steps": None, "epochs": 2}),
        ("[settings]\nepochs = 3\n", {"assignments": ("steps=2",)}, {"steps": 2}),
        ("[settings]\nepochs = 3\n", {"assignments": ("stfpm.steps=2",)}, {"steps": 2}),
        ("[settings]\nsteps = 3\n", {"settings": {"learning_rate": 0.5}}, {"steps": 3, "learning_rate": 0.5}),
        (ONE, {"settings": {"steps": 5}}, {"steps": 5, "learning_rate": 0.1}),
        (ONE, {"method_settings": {"stfpm": {"epochs": 2}}}, {"steps": None, "epochs": 2, "learning_rate": 0.1}),
    ],
    ids=str,
)
def test_what_is_said_of_a_setting_wins_over_the_file_for_all_methods_and_for_one(
    file: str, said: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    """Another job than was asked for ran in silence, or two budgets were refused of which one was the file's."""
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\nmethods = ["stfpm"]\ncategories = ["gear"]\nseeds = 1\npreset = "quick"\n{file}')
    options = options_of({**said, "config": path, "dry_run": True, "out": str(tmp_path / "out")})
    (job,) = agenda(options).jobs
    assert {name: getattr(job.settings, name) for name in expected} == expected


@pytest.mark.parametrize("command_line", [(), ("--data-root", "{said}")], ids=["environment", "command line"])
def test_the_data_root_of_the_environment_is_that_of_nobody_else(command_line: tuple[str, ...], tmp_path: Path) -> None:
    for name in ("said", "filed", "environment"):
        (tmp_path / name).mkdir()
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\ndata_root = "{tmp_path / "filed"}"\nmethods = ["pixel_mean"]\n')
    more = [one.format(said=tmp_path / "said") for one in command_line]
    found = CliRunner().invoke(
        cli,
        ["run", "--config", str(path), "--dry-run", *more],
        env={"KDAD_DATA": str(tmp_path / "environment")},
    )
    assert found.exit_code == 2
    assert f"data root {tmp_path / ('said' if command_line else 'filed')}: no data set there" in found.output


def test_python_takes_from_a_file_what_nobody_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device, the folder and the data of the file gave way to defaults and to the environment."""
    monkeypatch.setenv("KDAD_DATA", str(tmp_path / "environment"))
    path = tmp_path / "run.toml"
    path.write_text(f'[run]\ndata_root = "{tmp_path}"\nmethods = ["pixel_mean"]\ndevice = "cuda:77"\nout = "s3://"\n')
    with pytest.raises(SelectionError, match="out s3://: names no place"):
        kdad_bench.run(config=path)
    with pytest.raises(SelectionError, match=f"data root {tmp_path}: no data set there"):
        kdad_bench.run(config=path, out=tmp_path / "out")
    with pytest.raises(SelectionError, match="device 'cuda:77' is not there"):
        kdad_bench.run(config=path, out=tmp_path / "out", datasets="synthetic")


@pytest.mark.parametrize("face", ["command line", "file"])
def test_the_home_folder_is_expanded_in_every_path_and_in_no_url(
    face: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "run.toml"
    if face == "file":
        config.write_text(
            '[run]\nmethods = ["stfpm"]\ndata_root = "~/data"\nout = "~/out"\n[run.weights]\nresnet18 = "~/w.pth"\n'
        )
        found = options_of({"config": Path("~/run.toml").expanduser()})
        assert found.weights == {"resnet18": str(tmp_path / "w.pth")}
    else:
        config.write_text('[run]\nmethods = ["stfpm"]\n')
        found = options_of(
            {"data_root": Path("~/data"), "out": "~/out", "all_weights": "~/w.pth", "config": Path("~/run.toml")}
        )
        assert found.all_weights == (str(tmp_path / "w.pth"),)
    assert (found.data_root, found.out, found.config) == (tmp_path / "data", str(tmp_path / "out"), config)
    assert options_from({"out": "s3://bucket/~"}).out == "s3://bucket/~"
    assert options_from({"all_weights": "random"}).all_weights == ("random",)
    several = options_from({"all_weights": ("resnet18=~/w.pth", "~/v.pth")})
    assert several.all_weights == (f"resnet18={tmp_path / 'w.pth'}", str(tmp_path / "v.pth"))


@pytest.mark.parametrize("text", ["", "[run]\nseeds = 1\n", "[settings]\nsteps = 3\n", "[settings.stfpm]\nsteps = 3\n"])
def test_a_file_that_chooses_nothing_is_not_taken_for_all(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(SelectionError, match="nothing chosen: say --all, or choose with"):
        options_of({"config": path})
    assert options_of({"config": path, "everything": True}).everything


def test_nothing_held_out_has_no_sign() -> None:
    assert [str(options_from({"hold_out": one}).hold_out) for one in (0, 0.0, -0.0)] == ["0.0"] * 3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"steps": 3, "epochs": 2}, "steps 3 and epochs 2 are two budgets; give one of them"),
        ({"epochs": 2, "assignments": ("steps=3",)}, "steps 3 and epochs 2 are two budgets; give one of them"),
        ({"steps": 3, "settings": {"epochs": 2}}, "steps 3 and epochs 2 are two budgets; give one of them"),
        (
            {"assignments": ("stfpm.epochs=2", "stfpm.steps=3")},
            "steps 3 and epochs 2 of stfpm are two budgets; give one of them",
        ),
    ],
    ids=str,
)
def test_two_budgets_are_refused_wherever_they_come_from(said: dict[str, Any], words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        settings_of(options_from(said))


@pytest.mark.parametrize(
    "said",
    [
        {"epochs": 2},
        {"settings": {"epochs": 2}},
        {"assignments": ("epochs=2",)},
        {"assignments": ("stfpm.epochs=2",)},
        {"steps": 3, "assignments": ("stfpm.epochs=2",)},
        {"method_settings": {"stfpm": {"epochs": 2}}},
    ],
    ids=str,
)
def test_epochs_take_the_place_of_the_steps_of_a_preset(said: dict[str, Any]) -> None:
    """The quick preset has steps, which rule where both stand: epochs would be passed over without a word."""
    overrides, per_method = settings_of(options_from(said))
    settings = replace(entry("stfpm").presets["quick"], **{**overrides, **per_method.get("stfpm", {})})
    assert (settings.steps, settings.epochs) == (None, 2)
