"""Tab looks and does nothing: no file's code runs, nothing is drawn, and what is not there completes to nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from kdad_bench.cli import COMMANDS, cli
from tests.datasets.short import short


class Shell(ShellComplete):
    """What click asks of a shell, without one."""

    name = "none"
    source_template = ""


def completed(line: str) -> list[str]:
    """What Tab offers after `kdad-bench LINE`; its last word, perhaps empty, is not finished."""
    *words, last = line.split(" ")
    return [one.value for one in Shell(cli, {}, "kdad-bench", "_KDAD_BENCH_COMPLETE").get_completions(words, last)]


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """(words, command) of every command and command of a group."""
    for name, (place, _) in COMMANDS.items():
        module, _, attribute = place.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", one) for inner, one in found.commands.items())
        else:
            yield name, found


WITH_VALUES = [
    (words, command.params, parameter)
    for words, command in all_commands()
    for parameter in command.params
    if not getattr(parameter, "is_flag", False)
]


@pytest.mark.parametrize(
    ("words", "every", "parameter"), WITH_VALUES, ids=[f"{words} {one.opts[0]}" for words, _, one in WITH_VALUES]
)
def test_a_file_on_the_line_is_not_run_by_tab(
    words: str, every: list[click.Parameter], parameter: click.Parameter, tmp_path: Path
) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    said = f"{tmp_path}/evil.py" if isinstance(parameter, click.Argument) else f"{parameter.opts[0]} {tmp_path}/evil.py"
    for other in every:
        if isinstance(other, click.Option):
            completed(f"{words} {said} {other.opts[0]} ")
    completed(f"{words} {said} ")
    completed(f"{words} {said}")
    assert not (tmp_path / "ran").exists()


def test_categories_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tree: Path) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDAD_DATA", raising=False)
    assert completed("run --dataset synthetic --category ") == ["caplet", "fabric", "gear", "plank"]
    assert completed("run --category ca") == ["caplet"]
    assert not (tmp_path / "cache").exists(), "nothing is drawn"
    assert completed(f"run --dataset folder:{tiny_tree} -c ") == ["bolt", "cloth"]
    assert completed(f"evaluate maps --dataset folder:{tiny_tree} --category ") == ["bolt", "cloth"]
    short("mpdd", tmp_path, monkeypatch)
    named = f"run --data-root {tmp_path} --dataset synthetic_mpdd --category "
    assert completed(named) == ["synthetic_metal_plate"]
    assert completed(f"run --data-root {tmp_path} --category s") == ["synthetic_metal_plate"]


@pytest.mark.parametrize("words", ["run", "evaluate maps", "bench end-to-end"])
def test_data_sets_by_name_and_those_that_take_a_path_up_to_it(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KDAD_DATA", raising=False)
    assert completed(f"{words} --dataset m") == ["mvtec_ad", "mvtec_3d_ad", "mvtec_ad_2", "mvtec_loco", "mpdd"]
    assert completed(f"{words} --dataset f") == ["folder:"]
    assert completed(f"{words} --data-root ~nobody-here --dataset synthetic") == ["synthetic", "synthetic_3d"]
    short("mpdd", tmp_path, monkeypatch)
    assert completed(f"{words} --data-root {tmp_path} --dataset synthetic_m") == ["synthetic_mpdd"]


@pytest.mark.parametrize("words", ["run --out", "evaluate maps --out", "leaderboard", "show x --results"])
def test_results_folders_are_left_to_the_shell_and_urls_to_nobody(words: str) -> None:
    *given, last = f"{words} res".split(" ")
    offered = Shell(cli, {}, "kdad-bench", "_KDAD_BENCH_COMPLETE").get_completions(given, last)
    assert [(one.type, one.value) for one in offered] == [("dir", "res")]
    assert completed(f"{words} s3://bucket/") == []


def test_a_data_root_that_is_no_path_completes_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_DATA", "~nobody-here/data")
    assert completed("run --category ") == []
    assert completed("run --dataset visa") == ["visa"]


@pytest.mark.parametrize(
    "dataset", ["visa", "nonsense", "folder:/nowhere", "tabular:/nowhere", "/x.py", "folder:~nobody/x"]
)
def test_what_is_not_there_completes_to_nothing(dataset: str, tmp_path: Path) -> None:
    assert completed(f"run --data-root {tmp_path} --dataset {dataset} --category ") == []
