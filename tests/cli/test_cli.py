"""The command line beside `run`: quick to start, listing, doctor, logs, completion."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdad_bench.cli import COMMANDS, Number, Whole, cli
from kdad_bench.cli.new import TEMPLATE
from kdad_bench.cli.parameters import LocalPath, Place
from kdad_bench.cli.ranges import readable
from kdad_bench.harness.plain_loop import read_masks
from kdad_bench.methods import METHODS, entry, outside
from kdad_bench.methods.backbones.weights import find_weights


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def modules_after(*arguments: str) -> set[str]:
    """The modules that a command has loaded when it ends, in a process of its own."""
    code = "import sys; from kdad_bench.cli import cli\ntry:\n    cli(sys.argv[1:])\nexcept SystemExit:\n"
    code += "    print('MODULES', *sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    lines = [line for line in found.stderr.splitlines() if line.startswith("MODULES")]
    assert lines, found.stderr
    return set(lines[-1].split()[1:])


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("list", "methods"), ("leaderboard", "--help")])
def test_help_and_names_load_neither_torch_nor_pyarrow(arguments: tuple[str, ...]) -> None:
    loaded = modules_after(*arguments)
    assert "rich_click" in loaded
    assert {"torch", "triton", "pyarrow", "numpy", "matplotlib", "scipy"} & loaded == set()


def test_the_leaderboard_is_drawn_without_torch(tmp_path: Path) -> None:
    results = Path(__file__).resolve().parents[1] / "golden" / "results"
    loaded = modules_after("leaderboard", str(results), "--out", str(tmp_path))
    assert (tmp_path / "leaderboard.md").exists()
    assert {"torch", "triton"} & loaded == set()


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a command and all below it, as they are typed."""
    yield path
    for name, below in command.commands.items() if isinstance(command, click.Group) else ():
        yield from every_command(below, (*path, name))


ALL = [
    place
    for name in COMMANDS
    for place in every_command(cli.resolve_command(click.Context(cli), [name])[1] or cli, (name,))
]


@pytest.mark.parametrize("place", ALL, ids=" ".join)
def test_no_help_shows_a_range_as_a_formula(place: tuple[str, ...]) -> None:
    said = CliRunner().invoke(cli, [*place, "--help"], terminal_width=140).output
    assert "Usage" in said
    for noise in ("RANGE", "None", "<=", ">=", "x>", "x<", "inf", "9223372036854775807"):
        assert noise not in said, noise


def test_a_range_that_click_itself_made_is_told_in_words_too() -> None:
    option = click.Option(["--n"], type=click.IntRange(min=2, max=9, max_open=True))
    outer = click.Group("outer", commands={"inner": click.Command("inner", params=[option])})
    assert "[from 2, below 9]" in CliRunner().invoke(readable(outer), ["inner", "--help"]).output


BOUNDS = st.none() | st.integers(-9, 9)


@given(BOUNDS, BOUNDS, st.booleans(), st.booleans(), st.integers(-12, 12))
def test_the_words_of_a_range_say_what_it_takes(
    low: int | None, high: int | None, low_open: bool, high_open: bool, value: int
) -> None:
    for kind in (Whole, Number):
        found = kind(low, high, low_open, high_open)
        words = found._describe_range()
        takes = True
        for part in words.split(", ") if words else []:
            match = re.fullmatch(r"above (\S+)|from (\S+)|(\S+) or more|below (\S+)|up to (\S+)|(\S+) to (\S+)", part)
            assert match, words
            above, start, least, below, most, first, last = (float(g) if g else None for g in match.groups())
            takes &= all((
                above is None or value > above, start is None or value >= start, least is None or value >= least,
                below is None or value < below, most is None or value <= most,
                first is None or value >= first, last is None or value <= last,
            ))  # fmt: skip
        if takes:
            assert found.convert(str(value), None, None) == value
        else:
            with pytest.raises(click.BadParameter, match=re.escape(words)):
                found.convert(str(value), None, None)


def test_a_method_that_trains_nothing_is_listed_so_and_the_others_with_their_budget() -> None:
    lines = invoke("list", "methods", "--verbose").output.splitlines()
    presets = [line for line in lines if re.match(r"  \w+: teacher ", line)]
    assert len(presets) >= 2 * len(METHODS)
    assert not [line for line in presets if re.search(r"\b0 (epochs|steps)", line)]
    for name in METHODS:
        entrant = entry(name)
        for preset, settings in entrant.presets.items():
            begins = f"  {preset}: teacher {settings.teacher if entrant.needs_teacher else 'none'},"
            start = next(place for place, line in enumerate(lines) if line.startswith(f"{name}  "))
            line = next(line for line in lines[start:] if line.startswith(begins))
            assert ("nothing is trained" in line) == (not settings.steps and not settings.epochs), line


def test_an_unknown_command_is_answered_with_the_closest_one() -> None:
    result = invoke("rum")
    assert result.exit_code == 2
    assert "Did you mean 'run'?" in result.stderr
    assert result.stderr.count("\n") == 1


def test_methods_are_listed_by_name_with_their_papers_and_as_json() -> None:
    assert invoke("list", "methods").output.split() == list(METHODS)
    verbose = invoke("list", "methods", "--verbose").output
    assert "BMVC 2021" in verbose
    assert "reading:" in verbose
    found = json.loads(invoke("list", "methods", "--json").output)
    assert list(found) == list(METHODS)
    assert found["pixel_mean"]["needs_teacher"] is False


def test_teachers_are_listed_with_their_weights() -> None:
    output = invoke("list", "teachers").output
    assert "efficientnet_lite0" in output
    assert "wide_resnet50_2" in output


@pytest.mark.parametrize("columns", ["30", "80"])
def test_nothing_of_a_table_is_cut_off_in_a_pipe(columns: str, tmp_path: Path) -> None:
    path = find_weights("efficientnet_lite0")
    assert str(path) in CliRunner().invoke(cli, ["list", "teachers"], env={"COLUMNS": columns}).stdout
    found = CliRunner().invoke(cli, ["list", "datasets"], env={"COLUMNS": columns, "KDAD_DATA": ""}).stdout
    assert "test anomalous" in found
    assert "\u2026" not in found


def test_a_data_root_that_gives_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, code, said in (("nowhere", 2, "no such folder"), ("file", 2, "is no folder"), ("empty", 0, "no ")):
        done = CliRunner().invoke(cli, ["list", "datasets"], env={"KDAD_DATA": str(tmp_path / name)})
        assert done.exit_code == code
        assert f"kdad-bench: data root {tmp_path / name}: {said}" in done.stderr
        assert ("synthetic" in done.stdout) is (code == 0)


def test_help_is_there_after_a_command_was_imported() -> None:
    """The module `list` of this package hid Python's `list` from then on."""
    assert invoke("list", "methods").exit_code == 0
    assert invoke("--help").exit_code == 0


IMPORTED = [
    name
    for node in ast.parse(TEMPLATE.read_text().replace("%CLASS%", "C").replace("%ENTRY%", "E")).body
    if isinstance(node, ast.ImportFrom)
    for name in (one.name for one in node.names)
]


@pytest.mark.parametrize("name", [*dict.fromkeys([*IMPORTED, "Distillation", "True", "Exception"]), "my_own", "a"])
def test_a_new_method_hides_no_name_of_its_own_file(name: str, tmp_path: Path) -> None:
    spelt = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    out = tmp_path / "my folder"
    out.mkdir()
    done = invoke("new", "method", spelt, "--out", out)
    assert done.exit_code == 0, done.output
    assert f"kdad-bench check-method '{out}/{spelt}.py'" in done.stdout
    body = ast.parse((out / f"{spelt}.py").read_text()).body
    made = [one.name for one in body if isinstance(one, ast.ClassDef)]
    made += [one.targets[0].id for one in body if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)]
    assert len({*made, *IMPORTED, *dir(builtins)}) == len(made) + len({*IMPORTED, *dir(builtins)})
    assert outside.add_file(out / f"{spelt}.py", "", dict(METHODS)) == spelt


def test_a_word_of_python_is_no_name_of_a_method(tmp_path: Path) -> None:
    done = invoke("new", "method", "class", "--out", tmp_path)
    assert (done.exit_code, done.stderr) == (2, "kdad-bench: class: is a word of Python; take another name\n")


def test_data_sets_are_listed_with_their_counts(tmp_path: Path) -> None:
    from tests.conftest import write_tree

    write_tree(tmp_path / "mvtec_ad", categories=("bottle",))
    output = invoke("list", "datasets", "--data-root", tmp_path).output
    assert "bottle" in output
    assert "synthetic" in output


def test_doctor_says_what_is_there_and_fails_for_a_data_root_that_is_not(tmp_path: Path) -> None:
    result = invoke("doctor", "--json", "--out", tmp_path / "results")
    found = {one["what"]: one for one in json.loads(result.output)}
    assert found["teacher efficientnet_lite0"]["state"] == "ok"
    assert found["kernels on cpu"]["text"] in ("cpp", "torch", "reference")
    missing = invoke("doctor", "--data-root", tmp_path / "nowhere", "--out", tmp_path)
    assert missing.exit_code == 1
    assert "KDAD_DATA" in missing.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(shell: str) -> None:
    result = invoke("completion", shell)
    assert result.exit_code == 0
    assert "_KDAD_BENCH_COMPLETE" in result.output


def test_the_shell_completes_methods() -> None:
    environment = {**os.environ, "_KDAD_BENCH_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    environment["COMP_WORDS"] = "kdad-bench run --method st"
    found = subprocess.run(
        [sys.executable, "-c", "from kdad_bench.cli import main; main()"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "stfpm" in found.stdout


def test_the_log_of_a_job_is_readable_and_an_unknown_job_is_one_line(tiny_tree: Path, tmp_path: Path) -> None:
    arguments = ("--weights", "random", "--steps", "3", "--image-size", "64", "--resolution", "64", "--no-pictures")
    where = ("--dataset", f"folder:{tiny_tree}", "--category", "bolt", "--seeds", "1", "--out", tmp_path)
    assert invoke("run", "--method", "stfpm", *arguments, *where).exit_code == 0
    (path,) = (tmp_path / "logs").glob("*.jsonl")
    output = invoke("logs", path.stem[:6], "--results", tmp_path).output
    assert "step      3" in output
    assert "loss" in output
    unknown = invoke("logs", "zzz", "--results", tmp_path)
    assert unknown.exit_code == 2
    assert unknown.stderr.count("\n") == 1


def test_the_end_to_end_benchmark_prints_ratios_of_both_sides(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the first of a process pays, the import of much of torch by its optimiser, stood in the plain total."""
    pytest.importorskip("sklearn")

    class Sgd(torch.optim.SGD):
        made = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            time.sleep(0 if Sgd.made else 3)
            Sgd.made += 1
            super().__init__(*arguments, **options)

    monkeypatch.setattr(torch.optim, "SGD", Sgd)
    options = ("--steps", "2", "--size", "64", "--batch-size", "1000")
    result = invoke("bench", "end-to-end", "--dataset", f"folder:{tiny_tree}", *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for seconds in (found["plain"], found["ours"]):
        assert 2 * seconds["total"] - sum(seconds.values()) < 1.5  # outside of the parts
    assert "64 px, 2 steps of 6," in found["what"]  # images that there are
    assert set(found["plain"]) == set(found["ours"]) == {"data", "training step", "inference", "metrics", "total"}
    assert all(0 <= found["plain_metrics"][name] <= 1 for name in ("image_auroc", "pixel_auroc", "aupro_30"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "end-to-end", "--category", ""), "category '' not in"),
        (("bench", "end-to-end", "--category", "bolr"), "did you mean 'bolt'"),
        (("bench", "end-to-end", "--size", "33"), "--size 33: image_size 33 is not a multiple of 32"),
        (("kernels", "bench", "--device", ""), "--device '': not a device"),
        (("kernels", "bench", "--device", "meta"), "no kernels are for it"),
    ],
)
def test_a_benchmark_of_nothing_is_one_line_and_measures_nothing(
    arguments: tuple[str, ...], words: str, tiny_tree: Path
) -> None:
    more = ("--dataset", f"folder:{tiny_tree}") if arguments[0] == "bench" else ()
    done = invoke(*arguments, *more)
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1), done.output
    assert words in done.stderr


def test_the_end_to_end_benchmark_takes_every_mask_of_an_image(tmp_path: Path) -> None:
    sides = [np.zeros((8, 8), np.uint8) for _ in range(2)]
    sides[0][:4], sides[1][:, :4] = 255, 236
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for path, side in zip(paths, sides, strict=True):
        Image.fromarray(side).save(path)
    assert np.array_equal(read_masks(paths, 8), (sides[0] > 0) | (sides[1] > 0))
    assert not read_masks((), 8).any()


def found_at(place: tuple[str, ...]) -> click.Command:
    """The command that is typed so."""
    found = cli.resolve_command(click.Context(cli), [place[0]])[1]
    for name in place[1:]:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    assert found is not None
    return found


PLACES = [
    (place, parameter)
    for place in ALL
    for parameter in (found_at(place).params)
    if isinstance(parameter.type, (click.Path, Place))
]


@pytest.mark.parametrize(("place", "parameter"), PLACES, ids=lambda one: getattr(one, "name", None) or " ".join(one))
def test_what_can_be_no_path_is_refused_in_one_line_at_every_door(
    place: tuple[str, ...], parameter: click.Parameter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert isinstance(parameter.type, (LocalPath, Place)), f"{place}: a click.Path does not know ~"
    for text in ("", " ", "x" * 300, "a/" * 3000, "~nobody-of-that-name/x"):
        with pytest.raises(click.BadParameter, match=r"empty|too long|no path") as refused:
            parameter.type.convert(text, parameter, None)
        assert len(refused.value.message) < 200
    if isinstance(parameter.type, LocalPath):
        for url in ("s3://bucket/x", f"file://{tmp_path}"):
            with pytest.raises(click.BadParameter, match="is a URL; a path on this machine is needed here"):
                parameter.type.convert(url, parameter, None)
    if not getattr(parameter.type, "exists", False):
        assert str(parameter.type.convert("~/none", parameter, None)) == str(tmp_path / "none")


def no_folders(below: Path) -> Iterator[Path]:
    """What is there, under a name of its own each, and is no folder."""
    (below / "file").write_text("x")
    os.mkfifo(below / "pipe")
    (below / "lost").symlink_to("nowhere")
    (below / "circle").symlink_to("circle")
    yield from (below / name for name in ("file", "pipe", "lost", "circle"))


@pytest.mark.parametrize(
    ("place", "parameter"),
    [(place, one) for place, one in PLACES if isinstance(one.type, LocalPath) and not one.type.file_okay],
    ids=lambda one: getattr(one, "name", None) or " ".join(one),
)
def test_where_a_folder_is_meant_nothing_else_is_taken(
    place: tuple[str, ...], parameter: click.Parameter, tmp_path: Path
) -> None:
    for path in no_folders(tmp_path):
        for one in (path, path / "below", path / "far" / "below"):
            with pytest.raises(click.BadParameter, match=r"is a file|is no folder|does not exist"):
                parameter.type.convert(str(one), parameter, None)


ROOTS = [place for place, one in PLACES if one.name == "data_root" and place != ("doctor",)]  # doctor reports it


@pytest.mark.parametrize("place", ROOTS, ids=" ".join)
def test_a_data_root_on_the_command_line_has_to_be_there(
    place: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be passed over where the data set is a folder, and what was to be looked at be left out."""
    command = found_at(place)
    parameter = next(one for one in command.params if one.name == "data_root")
    for path in (tmp_path / "nowhere", *no_folders(tmp_path)):
        with pytest.raises(click.BadParameter, match=r"(no such|is no) folder; name the one that holds mvtec_ad/"):
            parameter.handle_parse_result(click.Context(command), {"data_root": str(path)}, [])
    monkeypatch.setenv("KDAD_DATA", str(tmp_path / "nowhere"))  # may be of another day: who needs it says so
    assert parameter.handle_parse_result(click.Context(command), {}, [])[0] == tmp_path / "nowhere"


@pytest.mark.parametrize("place", ALL, ids=" ".join)
def test_every_number_of_an_option_has_bounds(place: tuple[str, ...]) -> None:
    for parameter in found_at(place).params:
        assert parameter.type is not click.INT, f"{' '.join(place)} {parameter.opts}"
        assert parameter.type is not click.FLOAT, f"{' '.join(place)} {parameter.opts}"
