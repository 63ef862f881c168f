"""A run whose terminal goes away works on silently and finishes."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdad_bench.cli.terminal import outlived
from kdad_bench.streams import Lasting, lasting
from tests.harness.test_faults import JOBS, arguments, assert_whole, rows, wait_for

SAYING = """
import os, signal, sys, time
from kdad_bench.cli.terminal import outlived
with outlived():
    print("first")
    {statement}
    for number in range(1000):
        print("x" * 100)
        print("y" * 100, file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize("more", [("--measure-speed",), ("--workers", "2")], ids=["alone", "workers"])
def test_a_run_outlives_its_terminal(more: tuple[str, ...], tiny_tree: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *arguments(tiny_tree, tmp_path, *more)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)

    def first_job_is_logged() -> bool:
        try:
            os.read(ours, 65536)
        except BlockingIOError:
            return (tmp_path / "logs").exists()
        return (tmp_path / "logs").exists()

    wait_for(first_job_is_logged, 120)
    os.close(ours)  # the kernel tells the session with SIGHUP, and every write fails from now on
    assert process.wait(timeout=250) == 0
    assert len(rows(tmp_path)) == JOBS
    assert_whole(tmp_path)
    assert (tmp_path / "leaderboard.html").exists()


def ended(statement: str, **streams: object) -> int:
    command = [sys.executable, "-c", SAYING.format(statement=statement)]
    return subprocess.run(command, **streams).returncode  # type: ignore[call-overload, no-any-return]


def test_writes_to_a_terminal_without_an_owner_are_dropped() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SAYING.format(statement="time.sleep(3)")], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    assert os.read(ours, 100) == b"first\r\n"
    os.close(ours)
    assert process.wait() == 7


def test_after_hanging_up_a_pipe_that_nobody_reads_is_no_error_and_before_it_is_one() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert ended("os.kill(os.getpid(), signal.SIGHUP)", stdout=writer, stderr=writer) in (1, 120)
        statement = "pass\n    os.kill(os.getpid(), signal.SIGHUP)"
        script = SAYING.format(statement=statement).replace('print("first")', "pass")
        found = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=writer)
        assert found.returncode == 7
    finally:
        os.close(writer)


def test_nohup_stays_as_it_is(tmp_path: Path) -> None:
    statement = "assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN"
    with (tmp_path / "out").open("w") as file:
        found = subprocess.run(
            ["nohup", sys.executable, "-c", SAYING.format(statement=statement)], stdout=file, stderr=file
        )
    assert found.returncode == 7
    assert (tmp_path / "out").read_text().count("x" * 100) == 1000


def test_a_full_disk_is_still_an_error() -> None:
    with pytest.raises(OSError, match="No space left"), open("/dev/full", "wb") as full:
        Lasting(full.fileno(), "wb", closefd=False).write(b"x")


def test_streams_that_are_not_the_process_s_own_are_left_alone() -> None:
    text = io.StringIO()
    assert lasting(text, 1) is text
    wrapped = io.TextIOWrapper(io.BytesIO())
    assert lasting(wrapped, 1) is wrapped
    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)
    with outlived():
        assert signal.getsignal(signal.SIGHUP) is not before[2]
    assert (sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)) == before
