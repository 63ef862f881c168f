"""The commands that read results: what they print, write, and return."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import plausible
import pytest
from click.testing import CliRunner, Result

from kdad_bench.api.results import Results
from kdad_bench.cli import cli
from kdad_bench.cli.show import SECTIONS, WORDS
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import COLUMNS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table's files, each of which waits for the disk: they are written once, and copied for each test."""
    folder = tmp_path_factory.mktemp("written")
    for row in plausible.mixed_table():
        store.write(row, folder)
    return folder


@pytest.fixture
def results(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "results"))


def test_leaderboard_writes_every_form_beside_the_rows(results: Path) -> None:
    done = run("leaderboard", results)
    assert done.exit_code == 0, done.output
    for kind in ("md", "html", "parquet", "csv", "json"):
        assert (results / f"leaderboard.{kind}").stat().st_size > 1000
    assert "130 jobs of 130 files" in done.output
    before = (results / "leaderboard.html").read_bytes()
    assert run("leaderboard", results).exit_code == 0
    assert (results / "leaderboard.html").read_bytes() == before, "the page depends on the rows alone"


def test_leaderboard_of_a_url_needs_a_place_to_write() -> None:
    done = run("leaderboard", "memory://nowhere")
    assert done.exit_code == 2
    assert "say with --out where to write" in done.stderr


def test_leaderboard_names_files_it_left_out_and_goes_on(results: Path, tmp_path: Path) -> None:
    (results / "torn.parquet").write_bytes(b"PAR1")
    done = run("leaderboard", results, "--out", tmp_path / "page")
    assert done.exit_code == 0
    assert "left out: torn.parquet: unreadable" in done.stderr
    assert "torn.parquet" in (tmp_path / "page" / "leaderboard.md").read_text()


def test_no_command_leaves_rows_out_in_silence(results: Path, tmp_path: Path) -> None:
    """A torn file is rows that are not there: whoever compares, exports or draws the rest has to know."""
    (results / "torn.parquet").write_bytes(b"PAR1")
    page = tmp_path / "README.md"
    page.write_text("<!-- leaderboard begin: ranking -->\n<!-- leaderboard end -->\n")
    for command in (
        ("compare", "stfpm", "rd4ad", "--results", results),
        ("compare", results, results),
        ("leaderboard", results, "--into", page),
        ("results", "export", results, "csv", "--out", tmp_path / "all.csv"),
    ):
        done = run(*command)
        assert done.exit_code in (0, 1), done.output
        sides = 2 if command[:2] == ("compare", results) else 1
        assert done.stderr.count("left out: torn.parquet: unreadable") == sides, command
    done = run("results", "reproduce", results)
    assert "left out: torn.parquet: unreadable" in done.stderr


def test_compare_names_what_only_one_side_has_on_stderr(results: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(results, more)
    store.write(plausible.row("stfpm", "bottle", 9), more)
    for command in (("compare", more, results), ("compare", more, results, "--json")):
        done = run(*command)
        assert done.exit_code == 0, done.output
        (line,) = (line for line in done.stderr.splitlines() if "Not compared" in line)
        assert line.startswith("kdad-bench: Not compared, as only the first side has it: STFPM, ")
        assert line.endswith(": bottle seed 9")
    assert "Not compared" not in run("compare", results, results).stderr
    alone = Results(results).compare(Results(more)).one_sided
    assert [line.rpartition(": ")[2] for line in alone] == ["bottle seed 9"]


def test_compare_judges_no_method_of_which_a_job_ran_away_and_says_which(results: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    shutil.copytree(results, more)
    why = "FloatingPointError: step 10: the loss is not finite (nan); lower the learning rate"
    store.write(plausible.failed_row("stfpm", "bottle", 9, why), more)
    store.write(replace(plausible.row("stfpm", "bottle", 0), image_auroc=0.1), more)
    done = run("compare", results, more)
    assert done.exit_code == 0, done.output
    assert re.search(r"^ran away +image_auroc +bottle .* not judged$", done.stdout, re.MULTILINE)
    assert re.search(r"\n0 worse, 0 better, \d+ without a sure change, \d+ not judged\n$", done.stdout)
    (line,) = (line for line in done.stderr.splitlines() if "Not judged" in line)
    assert re.search(r"ran away to values that are not finite on the second side: STFPM, .*: bottle seed 9$", line)
    made = json.loads(run("compare", results, more, "--json").stdout)
    boards = {one["board"].partition(" ")[0]: one["verdict"] for one in made if one["method"] == "STFPM"}
    assert boards == {"mvtec_ad": "ran away", "synthetic": "same"}
    found = Results(more).compare(Results(results))
    assert [line.rpartition(": ")[2] for line in found.ran_away] == ["bottle seed 9"]
    assert not found.worse
    assert not found.better
    assert "not judged" not in run("compare", results, results).stdout


def test_compare_names_the_side_that_is_neither_a_folder_nor_a_method(results: Path, tmp_path: Path) -> None:
    done = run("compare", results, "nope", "--results", tmp_path / "nowhere")
    assert (done.exit_code, f"nope: no such results folder, as {results} is;" in done.stderr) == (2, True)
    done = run("compare", "stfpm", "rd4da", "--results", results)
    assert (done.exit_code, done.stderr.endswith("; rd4da (did you mean 'rd4ad'?)\n")) == (2, True)


def test_a_metric_that_is_said_twice_is_compared_once(results: Path) -> None:
    metric = ("--metric", "image_auroc")
    once, twice = (run("compare", "rd4ad", "stfpm", "--results", results, *metric * n).stdout for n in (1, 2))
    assert once == twice


def test_compare_of_folders_takes_no_third_one(results: Path) -> None:
    done = run("compare", results, results, "--results", results)
    assert done.exit_code == 2
    assert "--results is for two methods" in done.stderr


def test_leaderboard_redraws_and_checks_tables_in_another_page(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# A\n<!-- leaderboard begin: ranking -->\n<!-- leaderboard end -->\n", encoding="utf-8")
    assert run("leaderboard", results, "--into", readme, "--check").exit_code == 1
    assert run("leaderboard", results, "--into", readme).exit_code == 0
    assert "RD4AD" in readme.read_text()
    assert run("leaderboard", results, "--into", readme, "--check").exit_code == 0
    store.write(plausible.row("stfpm", "bottle", 9), results)
    assert run("leaderboard", results, "--into", readme, "--check").exit_code == 1
    readme.write_text("no marker")
    done = run("leaderboard", results, "--into", readme)
    assert done.exit_code == 2
    assert "README.md: no marker" in done.stderr


MISSING_FOLDER = (
    ("leaderboard",),
    ("results", "verify"),
    ("results", "compact"),
    ("show", "abc", "--results"),
    ("compare", "a", "b", "--results"),
)


@pytest.mark.parametrize("arguments", MISSING_FOLDER)
def test_a_folder_that_does_not_exist_is_one_line_and_exit_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = run(*arguments, tmp_path / "nowhere")
    assert done.exit_code == 2, done.output
    assert "no results folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_verify_counts_and_fails_on_a_torn_file_or_an_unmet_expectation(results: Path) -> None:
    done = run("results", "verify", results, "--expect", 128)
    assert done.exit_code == 0, done.output
    assert "130 jobs, each counted once: 128 ok, 2 failed" in done.output
    assert run("results", "verify", results, "--expect", 127).exit_code == 1
    (results / "torn.parquet").write_bytes(b"PAR1")
    done = run("results", "verify", results, "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert (said["ok"], said["failed"], said["sound"], said["problems"][0]["file"]) == (128, 2, False, "torn.parquet")


def test_compact_and_export_say_what_they_did(results: Path, tmp_path: Path) -> None:
    assert "130 files put into" in run("results", "compact", results).output
    assert "nothing to compact" in run("results", "compact", results).output
    done = run("results", "export", results, "csv", "--out", tmp_path / "all.csv")
    assert done.output.strip() == f"130 rows in {tmp_path / 'all.csv'}"
    alone = plausible.row("stfpm", "bottle", 0)
    store.write(alone, tmp_path / "one")
    done = run("results", "export", tmp_path / "one", "csv", "--out", tmp_path / "one.csv")
    assert done.output.strip() == f"1 row in {tmp_path / 'one.csv'}"


@pytest.mark.parametrize(
    "command", [("leaderboard", "{}"), ("results", "export", "{}", "csv"), ("results", "pack", "{}")]
)
def test_a_folder_without_rows_is_no_results_folder_and_stays_as_it_is(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    done = run(*(word.format(tmp_path) for word in command))
    assert done.exit_code == 2
    assert "no row there; give a results folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_compare_returns_1_for_a_regression_and_0_without(results: Path) -> None:
    worse = run("compare", "rd4ad", "stfpm", "--results", results)
    assert worse.exit_code == 1
    assert worse.output.splitlines()[4].startswith("worse")
    better = run("compare", "stfpm", "rd4ad", "--results", results, "--json")
    assert better.exit_code == 0
    assert {one["verdict"] for one in json.loads(better.stdout)} == {"better"}
    assert run("compare", results, results).exit_code == 0
    assert "judged by" in worse.output
    assert "Figures of pixels are judged by seeds" in worse.output
    assert "Judged by seeds: these rows do not hold the scores of the same images" in worse.output
    unknown = run("compare", "stfpm", "rd4ad", "--results", results, "--metric", "auroc")
    assert unknown.exit_code == 2
    assert "--metric auroc (did you mean 'pixel_auroc'?): no such column; have: image_auroc" in unknown.stderr


def test_show_tells_all_about_a_job_by_the_start_of_its_id(results: Path) -> None:
    row = next(row for row in plausible.mixed_table() if row.method == "dskd")
    (results / "pictures").mkdir()
    (results / "pictures" / f"{row.job_id}.png").touch()
    done = run("show", row.job_id[:9], "--results", results)
    assert done.exit_code == 0, done.output
    for text in (row.job_id, "DSKD (reading)", f"{row.image_auroc:.6g}", "fusion: sum over scales", "pictures"):
        assert str(text) in done.output
    said = json.loads(run("show", row.job_id, "--results", results, "--json").stdout)
    assert said["image_names"] == list(row.image_names)
    assert "no job 'zzz'" in run("show", "zzz", "--results", results).stderr
    assert "begins the ids of 130 jobs" in run("show", "", "--results", results).stderr


def test_an_empty_id_is_that_of_no_job_even_where_there_is_one(tmp_path: Path) -> None:
    row = plausible.row("stfpm", "bottle", 0)
    store.write(row, tmp_path)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / f"{row.job_id}.jsonl").write_text('{"event": "end"}\n')
    for command, words in (("show", f"begins the ids of 1 job: {row.job_id}"), ("logs", "'': no job; give the id")):
        done = run(command, "", "--results", tmp_path)
        assert done.exit_code == 2, done.output
        assert words in done.stderr
        assert run(command, row.job_id[:6], "--results", tmp_path).exit_code == 0


def test_show_has_a_place_for_every_column_but_the_raw_lists() -> None:
    placed = {*WORDS, *(name for columns in SECTIONS.values() for name in columns)}
    by_themselves = {"status", "reason", "settings", "environment", "throughput"}
    raw = {"image_scores", "image_labels", "image_names", "normal_scores", "latency_samples_ms", "losses"}
    assert placed | by_themselves | raw == set(COLUMNS)


def test_show_gives_the_reason_of_a_failed_job(results: Path) -> None:
    job = next(job for job, found in store.finished(results).items() if found.status == "failed")
    done = run("show", job, "--results", results)
    assert "reason: CUDA out of memory | tried batch 16, then 8" in done.output


@pytest.mark.slow
def test_the_leaderboard_of_a_thousand_files_takes_under_two_seconds(tmp_path: Path) -> None:
    for row in plausible.full_table(categories=tuple(f"c{n}" for n in range(15)), seeds=14)[:1000]:
        store.write(row, tmp_path)
    best = 9.9
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kdad_bench", "leaderboard", str(tmp_path)], check=True, env=os.environ)
        best = min(best, time.perf_counter() - start)
    assert best < 2
