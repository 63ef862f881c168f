"""Processes that are started from a folder with modules of its own run what the process runs that starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import kdad_bench
from kdad_bench import children


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: with another version of this package, and files named as modules of Python."""
    (tmp_path / "kdad_bench").mkdir()
    for name in ("kdad_bench/__init__.py", "signal.py", "calendar.py", "pickle.py"):
        (tmp_path / name).write_text("raise RuntimeError('of the working folder')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def surroundings() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": children.search_path()}


@pytest.mark.parametrize("program", ["-c", "-m"])
def test_a_program_of_ours_is_ours(folder: Path, program: str) -> None:
    own = ("-c", "import calendar, pickle, signal, kdad_bench; print(kdad_bench.__file__)")
    what = own if program == "-c" else ("-m", "kdad_bench", "--version")
    done = subprocess.run(children.command(*what), env=surroundings(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == kdad_bench.__file__ or kdad_bench.__version__ in done.stdout


def tell(pipe: Connection) -> None:
    before = os.environ.get(children.SAFE)
    children.spawned()
    pipe.send((before, os.environ.get(children.SAFE), kdad_bench.__file__, list(sys.path)))


@pytest.mark.parametrize("said", [None, "1"])
def test_a_spawned_process_is_ours_and_hands_nothing_on(
    folder: Path, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(children.SAFE, raising=False)
    if said:
        monkeypatch.setenv(children.SAFE, said)
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=tell, args=(theirs,))
    with children.spawning():
        process.start()
    assert os.environ.get(children.SAFE) == said
    assert ours.poll(60)
    during, after, place, path = ours.recv()
    process.join(60)
    assert during == (said or children.MARK)
    assert after == said
    assert place == kdad_bench.__file__
    assert str(folder) not in path


def test_places_are_told_in_full_and_a_folder_that_is_gone_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.setattr(sys, "path", ["", "lib", f"/opt/a{os.pathsep}b", "/usr/lib"])
    monkeypatch.chdir(tmp_path)
    assert children.search_path() == os.pathsep.join([str(tmp_path), str(tmp_path / "lib"), "/usr/lib"])
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert children.search_path() == "/usr/lib"
