"""The TOML file of `run --config`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.config import ConfigError, options_and_file, read

PAGE = Path(__file__).parents[2] / "docs" / "config.md"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    return path


def test_a_file_gives_choices_and_settings(tmp_path: Path) -> None:
    text = """
[run]
methods = ["stfpm", "rd4ad:per_pixel"]
seeds = [3, 7]
[settings]
steps = 5
[settings.stfpm]
learning_rate = 0.1
"""
    config = read(written(tmp_path, text))
    assert config.run.seeds == (3, 7)
    assert config.shared_settings == {"steps": 5}
    assert config.method_settings == {"stfpm": {"learning_rate": 0.1}}


def test_every_mistake_is_listed_with_its_line_and_a_suggestion(tmp_path: Path) -> None:
    text = '[run]\nmethods = ["stfpm"]\nseeds = "three"\ndevise = "cpu"\n'
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path, text))
    message = str(caught.value)
    assert "bad.toml:4: run.devise: not a field (did you mean 'device'?)" in message
    assert "bad.toml:3: run.seeds" in message


WRONG = {
    'methods = ["stfpm"]': "1: methods: not a field here; it belongs below [run]",
    "[stfpm]": "1: stfpm: not a field here; settings of a method belong below [settings.stfpm]",
    "zzz = 1": "1: zzz: not a field; have: run, settings",
    "run = 3": "1: run: must be a table, not 3",
    '[run]\nmethods = "stfpm"': "2: run.methods: must be a list, not 'stfpm'",
    "[run]\nmethods = [1]": "2: run.methods.0: 1 is no name of a method, which is a text",
    "[run]\nseeds = true": "2: run.seeds: seeds 'True' is neither a count (3) nor a list (0,4,7)",
    '[run]\nweights = "x.pth"': "2: run.weights: must be a table, not 'x.pth'",
    '[run]\nresolution = "256"': "2: run.resolution: must be a whole number, not '256'",
    "[run]\nresolution = 1": "2: run.resolution: must be at least 32, not 1",
    "[run]\ndata_root = 5": "2: run.data_root: must be a path, not 5",
    "[run]\noverlap = -1": "2: run.overlap: must be at least 0, not -1",
    "[run]\noverlap = 1.5": "2: run.overlap: must be a whole number, not 1.5",
    "[run]\noverlap = true": "2: run.overlap: must be a whole number, not True",
    "[run]\nworkers = 4": "2: run.workers: not a field of a file; it is said on the command line alone",
    "[run]\nmethods = []": "2: run.methods: an empty list chooses nothing; leave it out for all, or name some",
    "[run]\nseeds = 1\ncategories = []": "3: run.categories: an empty list chooses nothing; leave it out",
    "[run]\nzzz = 1": "2: run.zzz: not a field; have: methods, datasets, categories, seeds, ",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_says_what_is_wanted_or_where_it_belongs(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path, text))
    assert f"bad.toml:{WRONG[text]}" in str(caught.value)


def test_settings_that_no_method_of_the_run_reads_are_refused(tmp_path: Path) -> None:
    path = written(
        tmp_path, '[run]\nmethods = ["stfpm", "padim"]\n[settings.stfpm]\nsteps = 3\n[settings.rd4ad]\nsteps = 3\n'
    )
    with pytest.raises(
        ConfigError, match=r"bad.toml:5: settings.rd4ad: rd4ad is not among the chosen methods .stfpm, padim"
    ):
        options_and_file({"config": str(path)})
    said = options_and_file({"config": str(path), "methods": ["rd4ad"]})  # of the file's methods none, and no fault
    assert said.method_settings["rd4ad"] == {"steps": 3}
    with pytest.raises(SelectionError, match=r"rd4ad is not among the chosen methods .stfpm"):
        options_and_file({"methods": ["stfpm"], "method_settings": {"rd4ad": {"steps": 3}}})
    written(tmp_path, "[settings.rd4ad]\nsteps = 3\n")  # all methods
    assert options_and_file({"config": str(path)}).method_settings


def test_a_table_for_a_method_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bad.toml:2: settings.stfmp: not a method .did you mean 'stfpm'"):
        read(written(tmp_path, "\n[settings.stfmp]\nsteps = 3\n"))


def test_broken_toml_names_the_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bad.toml: not TOML: .*line 2"):
        read(written(tmp_path, "[run]\nseeds = = 3\n"))


def test_a_missing_file_is_named_once_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path / "run.toml")
    assert str(refused.value) == (
        f"{tmp_path / 'run.toml'}: cannot be read: No such file or directory; give a TOML file"
    )


def test_a_pipe_is_one_line_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ConfigError, match=r"pipe.toml: cannot be read: not a regular file"):
        read(tmp_path / "pipe.toml")


def test_weights_of_a_teacher_that_does_not_exist_are_refused_with_their_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bad.toml:2: run.weights.resnet19: not a teacher .did you mean 'resnet18'"):
        read(written(tmp_path, '[run.weights]\nresnet19 = "x.pth"\n'))


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "0x" + "f" * 5000, "[0x" + "f" * 5000 + "]"])
def test_what_the_parser_cannot_hold_is_one_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "run.toml").write_text(f"[run]\nseeds = {value}\n")
    with pytest.raises(ConfigError, match=r"run\.toml: not TOML: (a number of too many digits|nested too deeply)$"):
        read(tmp_path / "run.toml")


def test_the_file_on_the_page_can_be_planned_as_a_whole(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for theirs, here in (
        ('"mvtec_ad"', '"synthetic"'),
        ('"bottle", "cable"', '"caplet", "gear"'),
        ("seeds = 3 ", "seeds = 1 "),
        ('"cuda:0"', '"cpu"'),
        ('"weights/resnet18-f37072fd.pth"', '"random"'),
    ):
        assert theirs in text
        text = text.replace(theirs, here)
    options = options_and_file(
        {"config": written(tmp_path, text), "out": str(tmp_path / "out"), "all_weights": "random"}
    )
    assert len(agenda(options).jobs) == 2 * 2 * 4 * 2 * 2  # methods, categories, and the values of three axes
