"""However a command ends, it says so in one line: no traceback, no hidden cursor, the right exit code."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageFilter

from tests.harness.test_faults import arguments, long_training, wait_for

# the command line with `list methods` replaced by a statement
STAND_IN = """
import sys
from kdad_bench import cli
from kdad_bench.cli import list as commands
def stand_in(**given):
    {statement}
commands.methods.callback = stand_in
sys.argv = ["kdad-bench", "list", "methods"]
cli.main()
"""


def ended(statement: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = STAND_IN.format(statement=statement)
    variables = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise OSError(5, 'Input/output error', 'somewhere')", "OSError: [Errno 5] Input/output error: 'somewhere'"),
        ("raise BrokenPipeError(32, 'Broken pipe')", "a pipe between processes broke"),
        ("raise RuntimeError('line 1\\nline 2 \\x1b[31m')", "RuntimeError: line 1 line 2 [31m"),
        ("raise UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'bad')", "UnicodeDecodeError"),
        ("raise ValueError('\\udcff')", "ValueError"),
        ("raise MemoryError", "MemoryError"),
        ("(lambda f: f(f))(lambda f: f(f))", "RecursionError"),
        ("assert False", "AssertionError"),
    ],
)
def test_an_error_that_nobody_expected_is_one_line_with_the_report(statement: str, words: str, tmp_path: Path) -> None:
    found = ended(statement, KDAD_CACHE=str(tmp_path))
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.count("\n") == 1
    assert words in found.stderr
    assert "Traceback" not in found.stderr
    assert "\x1b" not in found.stderr
    (report,) = (tmp_path / "reports").iterdir()
    assert str(report) in found.stderr
    text = report.read_text()
    assert "Traceback (most recent call last)" in text
    assert "command: 'list' 'methods'" in text


def test_where_the_cache_cannot_be_written_the_report_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = ended("1 / 0", KDAD_CACHE=str(tmp_path / "file"), TMPDIR=str(tmp_path))
    assert found.returncode == 1
    (report,) = tmp_path.glob("kdad-bench-*.txt")
    assert str(report) in found.stderr
    nowhere = ended("import tempfile; tempfile.tempdir = '/proc/none'; 1 / 0", KDAD_CACHE="/proc/none")
    assert nowhere.returncode == 1
    assert "no report could be written" in nowhere.stderr
    assert nowhere.stderr.count("\n") == 1


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    code = STAND_IN.format(statement="import click; [click.echo('x' * 1000) for _ in range(1000)]")
    script = f"{sys.executable} -c {shlex.quote(code)} | head -n 1"
    command = ["bash", "-o", "pipefail", "-c", script]
    found = subprocess.run(command, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (1, "")


def test_ctrl_c_at_any_time_is_a_word_and_130() -> None:
    found = ended("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)")
    assert found.returncode == 130
    assert found.stderr.strip() == "kdad-bench: stopped by Ctrl-C"


def test_term_is_a_word_and_143_and_promises_nothing_that_a_command_does_not_keep() -> None:
    found = ended("import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)")
    assert found.returncode == 143
    assert found.stderr.strip() == "kdad-bench: stopped by TERM"


def test_a_second_ctrl_c_ends_at_once_with_a_word() -> None:
    statement = (
        "import os, signal, time\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT); time.sleep(9); print('gone on', flush=True)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGINT); time.sleep(9); print('gone on', flush=True)"
    )
    found = ended(statement)
    assert found.returncode == 130
    assert found.stderr.strip() == "kdad-bench: stopped at once"
    assert found.stdout == ""


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    statement = "import os, signal; os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); print(1)"
    code = STAND_IN.format(statement=statement)
    script = f"trap '' INT TERM; exec {sys.executable} -c {shlex.quote(code)}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "1\n", "")


def test_ascii_streams_show_what_they_can() -> None:
    found = ended("sys.stdout.write('a ± b'); sys.stderr.write('c ± d')", PYTHONIOENCODING="ascii:strict")
    assert (found.returncode, found.stdout, found.stderr) == (0, "a \\xb1 b", "c \\xb1 d")


def test_a_warning_of_a_job_is_a_line_wherever_the_job_runs(tiny_tree: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(tiny_tree, tmp_path / "set"))
    for mask in tree.glob("bolt/ground_truth/*/*.png"):
        with Image.open(mask) as image:
            image.convert("L").filter(ImageFilter.GaussianBlur(3)).save(mask)
    for number, place in enumerate((("in-process",), ("local", "--workers", "1"))):
        command = arguments(tree, tmp_path / f"out{number}", "--category", "bolt", "--executor", *place)
        found = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert found.returncode == 0, found.stderr
        doubts = [line for line in found.stderr.splitlines() if "is not binary" in line]
        assert len(set(doubts)) == 1, found.stderr
        assert doubts[0].startswith("folder:")
        assert "UserWarning" not in found.stderr
        assert "datasets.load_test" not in found.stderr


def test_warnings_of_others_are_shown_as_python_shows_them() -> None:
    found = ended("import warnings; warnings.warn('of others')")
    assert re.search(r"<string>:\d+: UserWarning: of others", found.stderr)


def test_a_table_goes_to_an_ascii_stream(tiny_tree: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    command = arguments(tiny_tree, tmp_path, "--category", "bolt")
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert "pixel_mean" in found.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_cursor_comes_back_and_the_workers_go(number: int, tiny_tree: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = long_training(tiny_tree, tmp_path, 10**7, "--executor", "local", "--workers", "1")
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    wait_for(lambda: (tmp_path / "logs").exists())
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait() == 128 + number
    text = seen.decode()
    assert "Traceback" not in text
    assert "finished jobs are kept, the same command goes on" in text or number == signal.SIGINT
    switches = re.findall(r"\x1b\[\?25[lh]", text)
    assert switches[-1:] == ["\x1b[?25h"], switches
    assert "\x1b[?25l" in switches
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
