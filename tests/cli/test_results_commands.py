"""Commands that read what others wrote: logs, streams that know ASCII only, and the table at the end of a run."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "leaderboard"))

import plausible

from kdad_bench.cli import cli
from kdad_bench.cli.summary_table import summary_table
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.board import DRAWN, boards
from kdad_bench.leaderboard.numbers import number
from kdad_bench.leaderboard.row import Row

JOB = "0123456789abcdef"


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def log(folder: Path, content: bytes, job: str = JOB) -> Path:
    (folder / "logs").mkdir(exist_ok=True)
    path = folder / "logs" / f"{job}.jsonl"
    path.write_bytes(content)
    return path


# ---- logs

LINES = {
    "an escape": b'{"event": "step", "step": 1, "loss": 0.5, "\x1b]0;x\x07": 1.0}\n',
    "an escape in an error": b'{"event": "failed", "error": "\\u001b[31mred"}\n',
    "bytes": b'{"event": "end", "error": "\xff\xfe"}\n',
    "a list": b"[1, 2]\n",
    "a number": b"5\n",
    "a loss in words": b'{"event": "step", "step": "one", "loss": "low"}\n',
    "no step": b'{"event": "step", "loss": null}\n',
    "NaN": b'{"event": "step", "step": 3, "loss": NaN}\n',
    "nested beyond the stack": b"[" * 50_000 + b"\n",
    "a line without an end": b'{"event": "step", "step": 4, "lo',
    "a line of megabytes": b'{"event": "' + b"a" * 3_000_000 + b'"}\n',
    "nothing": b"",
    "line ends of Windows": b'{"event": "end"}\r\n',
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("options", [(), ("--json",), ("--last", "2"), ("--follow",)])
def test_a_line_that_is_not_ours_is_shown_and_obeyed_by_nobody(
    name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    good = b'{"event": "step", "step": 10, "loss": 0.25}\n'
    log(tmp_path, good + LINES[name] + (b'\n{"event": "end"}\n' if "--follow" in options else b""))
    done = run("logs", JOB[:6], "--results", tmp_path, *options)
    assert done.exit_code == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", done.output)
    if options == ():
        assert "step     10  loss 0.25" in done.output


@pytest.mark.parametrize("job", ["**", "[", "../", "*", "\x1b[31m", "zzz", "a\x00b"])
def test_a_job_that_is_a_pattern_or_a_path_is_no_job(job: str, tmp_path: Path) -> None:
    log(tmp_path, b'{"event": "end"}\n')
    done = run("logs", job, "--results", tmp_path)
    assert done.exit_code == 2
    assert "none begins so" in done.stderr
    assert "\x1b" not in done.stderr


def test_logs_that_are_pipes_or_folders_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    os.mkfifo(tmp_path / "logs" / "aaa.jsonl")
    (tmp_path / "logs" / "bbb.jsonl").mkdir()
    (tmp_path / "logs" / "ccc.jsonl").symlink_to("gone")
    for job in ("aaa", "bbb", "ccc"):
        done = run("logs", job, "--results", tmp_path)
        assert (done.exit_code, len(done.stderr.strip().splitlines())) == (2, 1)
    (tmp_path / "file" / "logs").parent.mkdir()
    (tmp_path / "file" / "logs").touch()
    assert "say with --results" in run("logs", "a", "--results", tmp_path / "file").stderr


@settings(
    max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_logs_of_anything_stop_nothing(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("logs")
    log(folder, b"\n".join(lines))
    for options in ((), ("--json",), ("--last", "1")):
        done = run("logs", JOB, "--results", folder, *options)
        assert done.exit_code == 0
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", done.output)


# ---- streams

STREAMS = (
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
)


# commands in one process, each up to a ";", then their exit codes
EACH = """
import sys
from kdad_bench.cli import main
words, codes = sys.argv[1:], []
while words:
    sys.argv = ["kdad-bench", *words[: words.index(";")]]
    words = words[words.index(";") + 1 :]
    try:
        main()
    except SystemExit as ended:
        codes.append(ended.code or 0)
print(*codes)
"""


@pytest.mark.parametrize("environment", STREAMS, ids=lambda found: "-".join(found.values()))
def test_a_stream_that_knows_ascii_only_ends_no_command(environment: dict[str, str], tmp_path: Path) -> None:
    made = plausible.row("stfpm", "schräg–ü", 0, title="Größe ±", readings=("σ: 4 – gewählt",))
    results = tmp_path / os.fsdecode(b"Ergebnis-\xfc")
    store.write(made, results)
    (results / os.fsdecode(b"kaputt-\xfc.parquet")).write_bytes(b"PAR1")
    log(results, '{"event": "step", "step": 1, "größe": 0.5}\n'.encode(), made.job_id)
    commands = (
        ("show", made.job_id, "--results", results),
        ("show", made.job_id, "--results", results, "--json"),
        ("leaderboard", results),
        ("results", "verify", results),
        ("logs", made.job_id, "--results", results),
        ("logs", "ü", "--results", results),
        ("compare", "stfpm", "größe", "--results", results),
    )
    words = [os.fsencode(word) for command in commands for word in (*command, ";")]
    done = subprocess.run(
        [sys.executable, "-c", EACH, *words], capture_output=True, env={**os.environ, **environment}
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr
    *_, codes = done.stdout.splitlines()
    assert codes == b"0 0 0 1 0 2 2", done.stderr  # a file that is none of ours, an unknown job, an unknown method


# ---- the table at the end of a run


def printed(rows: list[Row], folder: Path) -> tuple[str, str]:
    """(the terminal's table, the leaderboard's ranking) of the same rows."""
    for one in rows:
        store.write(one, folder)
    console = Console(width=240, file=io.StringIO(), record=True)
    console.print(summary_table(store.read(folder, DRAWN).rows()))
    assert run("leaderboard", folder).exit_code == 0
    return console.export_text(), (folder / "leaderboard.md").read_text()


def test_the_terminal_and_the_leaderboard_have_one_mean_with_a_failed_job(tmp_path: Path) -> None:
    values = {("a", 0): 0.9, ("a", 1): 0.9, ("b", 0): 0.45}
    rows = [plausible.row("stfpm", name, seed, image_auroc=value) for (name, seed), value in values.items()]
    rows.append(plausible.failed_row("stfpm", "b", 1, "out of memory"))
    said, page = printed(rows, tmp_path)
    (line,) = (line for line in said.splitlines() if line.strip().startswith("stfpm"))
    assert line.split()[:3] == ["stfpm", "3/4", "0.675"], "the mean over categories of the means over seeds"
    assert re.search(r"\| +1 \| STFPM +\| resnet18 \| +0\.675 ", page)


def test_the_terminal_and_the_leaderboard_agree_on_every_method_and_metric(tmp_path: Path) -> None:
    rows = [one for one in plausible.mixed_table() if (one.method, one.category, one.seed) != ("rd4ad", "screw", 1)]
    said, _ = printed(rows, tmp_path)
    for board in boards(store.read(tmp_path, DRAWN).table):
        assert board.title in said
        for key in board.rows:
            for metric in board.headline:
                found = board.overall(key, metric)
                assert found is not None
                assert f"{found.mean:.3f}" in said


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_nothing_of_the_table_of_a_run_is_cut_off_where_jobs_failed(tmp_path: Path, width: int) -> None:
    """At 80 columns failures that stood beside three means cut these and the costs off: `0.845 (2 fa…`."""
    rows = plausible.full_table(("stfpm", "pixel_mean"), ("a", "b"), 2)
    lost = [one for one in rows if one.method == "stfpm" and one.seed == 1]
    rows = [one for one in rows if one not in lost]
    rows += [plausible.failed_row(one.method, one.category, one.seed, "torn") for one in lost]
    for one in rows:
        store.write(one, tmp_path)
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(summary_table(store.read(tmp_path, DRAWN).rows()))
    said = console.export_text()
    assert "…" not in said
    assert max(len(line) for line in said.splitlines()) <= width
    (board,) = boards(store.read(tmp_path, DRAWN).table)
    (line,) = (line for line in said.splitlines() if line.strip().startswith("stfpm"))
    means = [board.overall("stfpm", metric) for metric in board.headline]
    costs = [number(board.typical("stfpm", metric)) for metric in ("train_seconds", "latency_ms", "images_per_second")]
    said_of = [cell for cell in line.split() if cell != "~"]
    assert said_of == ["stfpm", "2/4", *(f"{found.mean:.3f}" for found in means if found), *costs]


def test_rows_that_must_not_be_averaged_get_tables_of_their_own(tmp_path: Path) -> None:
    rows = plausible.full_table(("stfpm",), ("a",), 1, image_auroc=0.5)
    rows += plausible.full_table(("stfpm",), ("a",), 1, image_auroc=0.9, dataset="folder:/x/parts")
    said, _ = printed(rows, tmp_path)
    assert "0.500" in said
    assert "0.900" in said
    assert "0.700" not in said


def test_a_run_without_a_finished_job_still_has_its_line(tmp_path: Path) -> None:
    said, _ = printed([plausible.failed_row("stfpm", "a", 0, "torn [red]x[/red]")], tmp_path)
    assert re.search(r"stfpm +0/1", said)
    assert json.loads(run("results", "verify", tmp_path, "--json").stdout)["failed"] == 1


def damaged(folder: Path) -> Path:
    """The only file of results, which cannot be read, beside pages of better days."""
    (folder / "a.parquet").write_bytes(b"PAR1!")
    for kind in ("md", "html"):
        (folder / f"leaderboard.{kind}").write_text("of better days")
    return folder


def test_pages_of_rows_that_cannot_be_read_are_not_put_over_those_there(tmp_path: Path) -> None:
    done = run("leaderboard", damaged(tmp_path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "left out: a.parquet: unreadable" in done.stderr
    assert f"{tmp_path}: no row there; give a results folder" in done.stderr
    assert {path.read_text() for path in tmp_path.glob("leaderboard.*")} == {"of better days"}


def test_a_file_that_compacting_leaves_is_named(tmp_path: Path) -> None:
    assert "left out: a.parquet: unreadable" in run("results", "compact", damaged(tmp_path)).stderr


@pytest.mark.parametrize("command", [("pack",), ("export", "csv"), ("submission",)], ids=" ".join)
def test_no_output_is_put_over_the_rows_that_it_is_made_from(command: tuple[str, ...], tmp_path: Path) -> None:
    place = store.write(plausible.row("stfpm", "a", 0), tmp_path)
    before = Path(place).read_bytes()
    for out in (Path(place), tmp_path / "other.parquet", tmp_path / "speed-stfpm-0.json"):
        for folder in (str(tmp_path), f"file://{tmp_path}", f"{tmp_path}/../{tmp_path.name}"):
            done = run("results", command[0], folder, *command[1:], "--out", out)
            assert done.exit_code == 2
            assert f"rows and measurements of {folder} lie there; choose another name" in done.stderr
    assert Path(place).read_bytes() == before
    assert run("results", "verify", tmp_path).exit_code == 0


def test_audits_of_what_is_no_folder_are_one_line_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, words in (("nope", "no such folder"), ("file", "is a file")):
        done = run("audit", tmp_path / name)
        assert (done.exit_code, done.stderr) == (2, f"kdad-bench: {tmp_path / name}: {words}; name a results folder\n")


def test_verifying_a_folder_without_a_row_is_no_success(tmp_path: Path) -> None:
    """A mistyped folder that exists would otherwise pass in a script."""
    said = run("results", "verify", tmp_path)
    assert (said.exit_code, said.stderr) == (1, "no row; name a results folder, or --expect 0\n")
    assert json.loads(run("results", "verify", tmp_path, "--json").stdout)["sound"] is False
    assert run("results", "verify", tmp_path, "--expect", "0").exit_code == 0


def test_show_names_all_that_a_run_kept_of_the_job(tmp_path: Path) -> None:
    """The folder of a model above all: `predict` asks for it, and nobody guesses its name."""
    made = plausible.row("stfpm", "tile", 3)
    store.write(made, tmp_path)
    job, other = made.job_id, "f" * len(made.job_id)
    kept = {
        "picture": f"pictures/{job}.png",
        "log": f"logs/{job}.jsonl",
        "model": f"models/stfpm-tile-s3-{job}/model.json",
        "maps": f"maps/{job}.npz",
        "audit": f"audits/{job}.json",
        "events": f"tensorboard/{job}/events",
    }
    for place in kept.values():
        for path in (tmp_path / place, tmp_path / place.replace(job, other)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    shown = run("show", job, "--results", tmp_path).stdout.partition("beside the row\n")[2]
    folders = {"model": f"models/stfpm-tile-s3-{job}", "events": f"tensorboard/{job}"}
    assert dict(line.split() for line in shown.splitlines()) == {
        name: str(tmp_path / place) for name, place in (kept | folders).items()
    }
