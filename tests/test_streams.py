"""A run whose standard streams are closed, or take nothing, loses no row by what a method prints."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kdad_bench.leaderboard import store
from kdad_bench.process import Aside, aside

PLAIN = (Path(__file__).parent / "harness" / "plain_method.py.txt").read_text()
LOUD = """\
        import os, sys
        with open(FILE, "a") as file:
            for number in (0, 1, 2):
                print(os.path.basename(os.readlink(f"/proc/self/fd/{number}")), file=file)
        for number in (1, 2):
            try:
                os.write(number, b"as a library in C does")
            except OSError:
                pass
        print("printed" * 50, flush=True)
        print("to stderr" * 50, file=sys.stderr, flush=True)
"""
STARTING = """
import os, subprocess, sys
from kdad_bench import streams
TELL = "print(*(os.path.basename(os.readlink(f'/proc/self/fd/{n}')) for n in (0, 1, 2)), file=open(PLACE, 'w'))"
streams.hold()
print("said")
print("said", file=sys.stderr)
assert sys.stdin is not None
exec(TELL, {"os": os, "PLACE": sys.argv[1]})
subprocess.run([sys.executable, "-c", f"import os; PLACE = {sys.argv[2]!r}; {TELL}"], check=True)
"""
FIRST = "        fitting = fitting or Fitting()\n"  # of what learns
CLOSED = ["<&- >&- 2>&-", "<&- >&-", "2>&-"]


def method(folder: Path) -> Path:
    """The file of a method that prints as it learns, and tells where the standard streams of its process lead."""
    path = folder / "loud.py"
    text = LOUD.replace("FILE", repr(str(folder / "led")))
    path.write_text(PLAIN.replace(FIRST, text + FIRST))
    assert text in path.read_text()
    return path


def shell(streams: str, *command: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f"exec {shlex.join(map(str, command))} {streams}"], timeout=250, input=b"", capture_output=True
    )


@pytest.mark.parametrize(
    ("streams", "more"),
    [*((one, ("--executor", "in-process")) for one in (*CLOSED, "2>/dev/full")), (CLOSED[0], ("--workers", 2))],
)
def test_a_method_that_prints_where_nothing_is_taken_leaves_its_row(
    streams: str, more: tuple[object, ...], tiny_tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    what = ("-d", f"folder:{tiny_tree}", "-c", "bolt", "--seeds", "1", "--resolution", 64, "--no-pictures")
    speed = ("--no-measure-speed", "--executor", "local") if "--workers" in more else ("--no-measure-speed",)
    found = shell(
        streams, sys.executable, "-m", "kdad_bench", "run", "-m", method(tmp_path), *what, "--out", out, *speed, *more
    )
    assert found.returncode == 0
    assert [line["status"] for line in store.read(out).rows()] == ["ok"]
    for log in (out / "logs").iterdir():
        for line in log.read_text().splitlines():
            json.loads(line)
    led = (tmp_path / "led").read_text().split()
    if streams == CLOSED[0]:
        assert set(led) == {"null"}


@pytest.mark.parametrize("streams", CLOSED)
def test_processes_that_are_started_have_the_standard_streams(streams: str, tmp_path: Path) -> None:
    """So that nothing that is opened here or there gets their numbers."""
    script = tmp_path / "script.py"
    script.write_text(STARTING)
    assert shell(streams, sys.executable, script, tmp_path / "here", tmp_path / "there").returncode == 0
    for place in ("here", "there"):
        led = (tmp_path / place).read_text().split()
        assert len(led) == 3
        assert led.count("null") == streams.count("&-")


@pytest.mark.parametrize("streams", ["2>/dev/full", ">/dev/full 2>/dev/full", "2>&3", ">&- 2>&3"])
@pytest.mark.parametrize("command", ["results verify nosuch", "nosuch", "list methods --nosuch"])
def test_what_stderr_cannot_take_changes_no_exit_code(streams: str, command: str, tmp_path: Path) -> None:
    """Neither a full disk nor a pipe that nobody reads (3) makes of bad input an error that nobody expected."""
    reader, writer = os.pipe()
    os.close(reader)
    asked = f"exec {shlex.quote(sys.executable)} -m kdad_bench {command} 3>&{writer} {streams}"
    try:
        found = subprocess.run(
            ["bash", "-c", asked], pass_fds=[writer], env={**os.environ, "KDAD_CACHE": str(tmp_path)}, timeout=150
        )
    finally:
        os.close(writer)
    assert found.returncode == 2
    assert not (tmp_path / "reports").exists()


def test_a_reader_of_stdout_who_left_is_no_place_that_cannot_be_written(tiny_tree: Path, tmp_path: Path) -> None:
    """The sheet is written, and its name is what nobody read: exit code 1 and not a word, as of any command."""
    reader, writer = os.pipe()
    os.close(reader)
    asked = ("data", "preview", f"folder:{tiny_tree}", "--out", str(tmp_path / "out"))
    try:
        found = subprocess.run(
            [sys.executable, "-m", "kdad_bench", *asked], stdout=writer, stderr=subprocess.PIPE, timeout=150
        )
    finally:
        os.close(writer)
    assert (found.returncode, found.stderr) == (1, b"")


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_what_is_printed_aside_is_dropped_where_stderr_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, Full(), closed):
        monkeypatch.setattr(sys, "stderr", stream)
        with aside():
            sys.stdout.write("printed")
        assert Aside().write("abc") == 3
    taking = io.StringIO()
    monkeypatch.setattr(sys, "stderr", taking)
    with aside():
        sys.stdout.write("printed")
    assert taking.getvalue() == "printed"
