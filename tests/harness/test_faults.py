"""Real processes, real signals: whatever is killed, what was finished stays and is counted once."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
from click.testing import CliRunner

from kdad_bench.cli import cli
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.output import refuse_what_cannot_be_written
from kdad_bench.leaderboard import store

COMMAND = [sys.executable, "-m", "kdad_bench"]
JOBS = 4
Found = TypeVar("Found")


def arguments(tree: Path, out: Path, *more: str) -> list[str]:
    """Four jobs of the fastest method; `--measure-speed` where the measurement after them belongs to what is tested."""
    chosen = ["--method", "pixel_mean", "--dataset", f"folder:{tree}", "--seeds", "2", "--out", str(out)]
    return [*COMMAND, "run", *chosen, "--no-pictures", "--no-measure-speed", *more]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(command: list[str]) -> tuple[int, str]:
    """Exit code and output of a command that nobody kills: in this process, which has imported what it needs."""
    done = CliRunner().invoke(cli, command[len(COMMAND) :])
    return done.exit_code, done.output


def rows(out: Path) -> list[dict[str, object]]:
    return store.read(out).rows() if out.exists() else []


def wait_for(condition: Callable[[], Found], seconds: float = 150) -> Found:
    """What `condition` gives, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found


def waiting_jobs(folder: Path, tree: Path, out: Path, *more: str) -> tuple[list[str], Path]:
    """Four jobs whose training does not go on before the file that comes with them is there."""
    method, gate = folder / "waiting.py", folder / "gate"
    wait = f"        import pathlib, time\n        while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)\n"
    plain = (Path(__file__).parent / "plain_method.py.txt").read_text()
    begins = "        fitting = fitting or Fitting()\n"
    assert begins in plain
    method.write_text(plain.replace(begins, begins + wait))
    chosen = ["--method", str(method), "--dataset", f"folder:{tree}", "--seeds", "2", "--out", str(out)]
    return [*COMMAND, "run", *chosen, "--resolution", "64", "--no-pictures", "--no-measure-speed", *more], gate


def assert_whole(out: Path) -> None:
    """Every job has exactly one row, all of them ok, and `results verify` agrees."""
    found = rows(out)
    assert len(found) == JOBS
    assert len({row["job_id"] for row in found}) == JOBS
    assert all(row["status"] == "ok" for row in found)
    code, output = finish([*COMMAND, "results", "verify", str(out)])
    assert code == 0, output


def kill_until_done(tree: Path, out: Path, kills: int, longest: float) -> None:
    """Start the run, kill -9 it after a random time, and again; each time what was there before is still there."""
    chance = random.Random(0)
    before: set[object] = set()
    for _ in range(kills):
        process = start(arguments(tree, out, "--measure-speed", "--executor", "local", "--workers", "2"))
        time.sleep(chance.uniform(0.2, longest))
        process.kill()
        process.communicate()
        now = {(row["job_id"], row["created_at"]) for row in rows(out)}
        assert before <= now, "a finished row was lost or written again"
        before = now
    code, output = finish(arguments(tree, out, "--measure-speed"))
    assert code == 0, output
    assert before <= {(row["job_id"], row["created_at"]) for row in rows(out)}
    assert_whole(out)


def test_kill_9_of_the_runner_at_random_moments_loses_nothing(tiny_tree: Path, tmp_path: Path) -> None:
    kill_until_done(tiny_tree, tmp_path / "out", kills=3, longest=5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_kills_lose_nothing(tiny_tree: Path, tmp_path: Path) -> None:
    done = 0
    while done < 100:
        out = tmp_path / f"out{done}"
        kill_until_done(tiny_tree, out, kills=10, longest=6)
        done += 10


def test_kill_9_of_a_worker_costs_only_a_second_try(tiny_tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command, gate = waiting_jobs(tmp_path, tiny_tree, out, "--executor", "local", "--workers", "2")
    process = start(command)
    wait_for(lambda: len(list(out.glob("logs/*"))) == 2)  # both workers hold a job
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    gate.touch()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_whole(out)


def test_two_runners_on_one_folder_share_the_work(tiny_tree: Path, tmp_path: Path) -> None:
    first, second = (start(arguments(tiny_tree, tmp_path, "--measure-speed")) for _ in range(2))
    outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert_whole(tmp_path)
    assert len(list(tmp_path.glob("pixel_mean-*.parquet"))) == JOBS


# the second job does not come to its row
STOPPED = """
import sys, time
from kdad_bench.cli import main
from kdad_bench.leaderboard import store

write = store.write

def write_one(row, folder):
    write(row, folder)
    store.write = lambda row, folder: time.sleep(1000)

store.write = write_one
sys.argv[0] = "kdad-bench"
main()
"""


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(tiny_tree: Path, tmp_path: Path) -> None:
    command = arguments(tiny_tree, tmp_path, "--workers", "1")
    process = start([sys.executable, "-c", STOPPED, *command[len(COMMAND) :]])
    wait_for(lambda: list(tmp_path.glob("*.parquet")))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    assert "go on with: kdad-bench run --method pixel_mean" in output
    assert "Traceback" not in output
    kept = {(row["job_id"], row["created_at"]) for row in rows(tmp_path)}
    assert len(kept) == 1
    code, output = finish(command)
    assert code == 0, output
    assert kept <= {(row["job_id"], row["created_at"]) for row in rows(tmp_path)}
    assert_whole(tmp_path)


def long_training(tree: Path, out: Path, steps: int, *more: str) -> list[str]:
    chosen = ["--method", "stfpm", "--weights", "random", "--category", "bolt", "--seeds", "1", "--no-pictures"]
    where = ["--dataset", f"folder:{tree}", "--out", str(out), "--steps", str(steps), "--image-size", "64"]
    return [*COMMAND, "run", *chosen, *where, "--no-measure-speed", *more]


def test_a_job_that_hangs_is_given_up_and_the_row_says_so(tiny_tree: Path, tmp_path: Path) -> None:
    code, output = finish(long_training(tiny_tree, tmp_path, 10**7, "--job-timeout", "2"))
    assert code == 1, output
    (row,) = rows(tmp_path)
    assert row["status"] == "failed"
    assert "--job-timeout 2 s" in str(row["reason"])


# killed as its fifth step has been kept
KILLED = """
import os, sys
from kdad_bench.cli import main
from kdad_bench.methods.training.resume import Progress

save_when_due = Progress.save_when_due

def kill_when_saved(self, step):
    save_when_due(self, step)
    if step == 5:
        os.kill(os.getpid(), 9)

Progress.save_when_due = kill_when_saved
sys.argv[0] = "kdad-bench"
main()
"""


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_numbers(tiny_tree: Path, tmp_path: Path) -> None:
    straight = long_training(tiny_tree, tmp_path / "straight", 12)
    code, output = finish(straight)
    assert code == 0, output
    broken = long_training(tiny_tree, tmp_path / "broken", 12, "--checkpoint-every", "0")
    killed = start([sys.executable, "-c", KILLED, *broken[len(COMMAND) :]])
    output, _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, output
    assert list((tmp_path / "broken" / "checkpoints").glob("*.pt"))
    assert not rows(tmp_path / "broken")
    code, output = finish(broken)
    assert code == 0, output
    (one,), (two,) = rows(tmp_path / "straight"), rows(tmp_path / "broken")
    assert one["image_scores"] == two["image_scores"]
    assert one["pixel_auroc"] == two["pixel_auroc"]
    assert json.loads(str(one["losses"])) == json.loads(str(two["losses"]))
    assert not list((tmp_path / "broken" / "checkpoints").glob("*.pt"))


# a disk that has room when a job begins, and none for its row
FILLED = """
import resource, sys
from kdad_bench.cli import main
from kdad_bench.leaderboard import store

write = store.write

def full(row, folder):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    return write(row, folder)

store.write = full
sys.argv[0] = "kdad-bench"
main()
"""


def test_a_full_disk_is_a_line_for_each_job_and_leaves_no_half_written_row(tiny_tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILLED, *arguments(tiny_tree, tmp_path / "out")[len(COMMAND) :]]
    full = subprocess.run(command, capture_output=True, text=True)
    assert full.returncode == 1, full.stdout + full.stderr  # no result of a method: the next run does it
    assert full.stdout.count("no result: pixel_mean") == 4
    assert "4 of 4 jobs have no row" in full.stdout
    assert "Traceback" not in full.stdout + full.stderr
    assert rows(tmp_path / "out") == []
    code, output = finish(arguments(tiny_tree, tmp_path / "out"))
    assert code == 0, output
    assert_whole(tmp_path / "out")


def test_a_folder_with_room_for_a_part_of_a_row_is_refused(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system then writes the first 1,000 bytes
    try:
        with pytest.raises(SelectionError, match=r"no results can be written there .File too large.; free some"):
            refuse_what_cannot_be_written(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refuse_what_cannot_be_written(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
