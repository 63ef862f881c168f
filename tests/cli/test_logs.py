"""`logs --follow`: what is written as it comes, also where the log is begun anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kdad_bench.cli import cli, logs

OLD = '{"event": "start"}\n{"event": "step", "step": 1, "loss": 0.5}\n{"event": "step", "step": 2, "loss": 0.25}\n'
NEW = '{"event": "start", "again": 1}\n{"event": "step", "step": 1, "loss": 0.125}\n'
LONG = NEW + '{"event": "step", "step": 7, "loss": 0.125}\n' * 5
END = '{"event": "end"}\n'


def followed(path: Path, monkeypatch: pytest.MonkeyPatch, *deeds: Callable[[], object]) -> Result:
    """What `logs --follow` shows where one deed after another is done between its looks."""
    left = list(deeds)

    def waited(seconds: float) -> None:
        left.pop(0)()  # IndexError: it waits for ever

    monkeypatch.setattr(logs.time, "sleep", waited)
    done = CliRunner().invoke(cli, ["logs", "a1", "--follow", "--results", str(path.parent.parent)])
    assert left == []
    return done


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "a1b2.jsonl"
    path.parent.mkdir()
    path.write_text(OLD)
    return path


def replaced(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


def added(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


WAYS: dict[str, Callable[[Path, str], object]] = {
    "truncated": lambda path, text: path.write_text(text),
    "replaced": replaced,
    "gone and made again": lambda path, text: (path.unlink(), path.write_text(text)),
}


@pytest.mark.parametrize("text", [NEW, LONG], ids=["shorter", "longer"])
@pytest.mark.parametrize("way", WAYS)
def test_a_log_that_is_begun_anew_is_read_from_its_beginning(
    way: str, text: str, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = followed(log, monkeypatch, lambda: WAYS[way](log, text), lambda: added(log, END))
    assert done.exit_code == 0, done.output
    assert "a1b2.jsonl: begun anew" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[3] == "start  again=1"
    assert len(lines) == 3 + text.count("\n") + 1
    assert lines[-1].startswith("end")


def test_a_log_that_is_cut_in_its_middle_is_begun_anew(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = OLD + "".join(f'{{"event": "step", "step": {n}, "loss": 0.5}}\n' for n in range(3, 60))
    log.write_text(many)
    assert len(OLD) + 30 * 40 > logs.HEAD
    cut = "".join(many.splitlines(keepends=True)[:33])
    done = followed(log, monkeypatch, lambda: log.write_text(cut), lambda: added(log, END))
    assert "begun anew" in done.stderr
    assert len(done.stdout.splitlines()) == 60 + 33 + 1


def test_a_log_that_grows_is_shown_once_and_one_that_is_gone_is_waited_for(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = log.with_suffix(".away")
    done = followed(
        log, monkeypatch,
        lambda: added(log, '{"event": "step", "step": 3'), lambda: added(log, ", \"loss\": 1.0}\n"),
        lambda: log.rename(away), lambda: added(away, END),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "anew" not in done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:4]] == [["step", "1"], ["step", "2"], ["step", "3"]]
    assert len(done.stdout.splitlines()) == 5
