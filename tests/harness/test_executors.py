"""Which executor runs the jobs, what it is told at once that it lacks, and what becomes of workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from kdad_bench.harness import executors
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.executors import LOST_STARTS, Pool, Worker, local, outcomes
from kdad_bench.harness.job import Job
from kdad_bench.harness.on_ray import refuse_silence
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.output import Work
from kdad_bench.harness.surroundings import NoResult
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row
from tests.harness.kills import state_of
from tests.harness.planned import jobs_of
from tests.harness.test_faults import wait_for


def test_nobody_at_the_address_of_a_ray_cluster_is_told_at_once() -> None:
    for address, words in (("127.0.0.1:1", "nobody answers there"), ("nohost", "not HOST:PORT")):
        with pytest.raises(SelectionError, match=words):
            refuse_silence(address)


def floors(tree: Path) -> list[Job]:
    """The four jobs of the method that trains in no time."""
    return [job for job in jobs_of(tree) if job.method == "pixel_mean"]


def pool_of(jobs: list[Job], out: Path, workers: int = 1, job_timeout: float | None = None) -> Pool:
    return Pool(
        work=Work(out=str(out)), workers=workers, job_timeout=job_timeout, started=lambda job: None, waiting=deque(jobs)
    )


class Planned:
    """A pool whose two workers end one of four jobs at each step, the last not before `imported` where that is one."""

    workers = 2
    imported: threading.Event | None = None
    running: tuple[()] = ()
    ending = Pool.ending

    def __init__(self, **given: Any) -> None:
        self.waiting, self.busy = given["waiting"], 0

    def step(self) -> Iterator[tuple[str, str]]:
        while self.waiting and self.busy < self.workers:
            self.waiting.popleft()
            self.busy += 1
        if self.ending and self.imported is not None:
            assert self.imported.wait(100)
        self.busy -= 1
        yield "job", "ended"


@pytest.mark.parametrize("measured_after", [True, False])
def test_what_measuring_needs_is_imported_while_the_last_jobs_leave_a_core_idle(
    measured_after: bool, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    done = threading.Event()

    def warm_up(late: tuple[str, ...]) -> None:
        told.append("imported")
        done.set()

    monkeypatch.setattr(executors, "Pool", Planned)
    monkeypatch.setattr(Planned, "imported", done if measured_after else None)
    monkeypatch.setattr(executors, "warm_up", warm_up)
    for _ in local(
        floors(tiny_tree), Work(out=str(tmp_path)), lambda job: None, workers=2, job_timeout=None,
        measured_after=measured_after,
    ):  # fmt: skip
        told.append("ended")
    assert told == (["ended"] * 3 + ["imported", "ended"] if measured_after else ["ended"] * 4)


def test_a_run_imports_ahead_only_what_it_will_need(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(executors, "local", lambda *given, measured_after, **named: asked.append(measured_after))
    for changes in ({}, {"measure_speed": True}, {"measure_speed": False}, {"time_every_job": True}):
        options = RunOptions(executor="local", **changes)  # type: ignore[arg-type]
        outcomes(floors(tiny_tree), Work(out=str(tmp_path)), lambda job: None, options)
    assert asked == [True, True, False, False]


def test_torchs_compiler_is_imported_ahead_where_a_method_has_an_optimiser(tiny_tree: Path) -> None:
    jobs = jobs_of(tiny_tree, methods=(("pixel_mean", ""), ("padim", ""), ("patchcore", ""), ("spade", "")))
    assert executors.COMPILER not in executors.imported_late(jobs)
    (other,) = [replace(job, code="0123") for job in jobs[:1]]  # of a file, whose fit may do anything
    for more in (other, jobs_of(tiny_tree)[0]):
        assert executors.COMPILER in executors.imported_late([*jobs, more])


UNTRAINED = """
import contextlib, sys
from kdad_bench.cli import cli
methods = [word for name in ("pixel_mean", "padim", "patchcore", "spade") for word in ("--method", name)]
where = ["--dataset", f"folder:{sys.argv[1]}", "--category", "bolt", "--out", sys.argv[2], "--no-pictures"]
where += ["--preset", "quick", "--teacher", "resnet18"]
how = ["--seeds", "1", "--weights", "random", "--resolution", "64", "--image-size", "64", "--no-measure-speed"]
with contextlib.suppress(SystemExit):
    cli.main(["run", *methods, *where, *how, "--executor", "in-process"])
print(sorted({"torch._dynamo", "torch._inductor"} & {*sys.modules}))
"""


def test_floors_and_yardsticks_run_without_torchs_compiler(tiny_tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNTRAINED, str(tiny_tree), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("\n[]\n"), done.stdout + done.stderr
    found = store.read(tmp_path).rows()
    assert [row["status"] for row in found] == ["ok"] * 4
    gflops = {row["method"]: row["gflops"] for row in found}
    assert gflops["pixel_mean"] == 0 < gflops["padim"], "operations are counted all the same"


def until_ready(pool: Pool) -> Worker:
    """The first worker of the pool, once it has said that it is ready; no job is handed out."""
    pool.fill()
    deadline = time.monotonic() + 120
    while not pool.running[0].ready:
        assert time.monotonic() < deadline, "the worker does not get ready"
        for worker, answer in pool.answers():
            list(pool.settle(worker, answer))
    return pool.running[0]


def kill(worker: Worker) -> None:
    worker.process.kill()
    worker.process.join()


def to_the_end(pool: Pool) -> list[object]:
    """How the jobs of the pool ended."""
    ended: list[object] = []
    try:
        while pool.waiting or pool.busy:
            ended += [ending for _, ending in pool.step()]
    finally:
        for worker in list(pool.running):
            pool.retire(worker)
    return ended


def test_idle_and_starting_workers_that_are_killed_cost_no_job_a_try(tiny_tree: Path, tmp_path: Path) -> None:
    pool = pool_of(floors(tiny_tree)[:1], tmp_path)
    kill(until_ready(pool))
    assert not pool.give(pool.running[0], pool.waiting[0], memoryview(b""))
    list(pool.step())  # hears of it
    assert pool.attempts == {}
    for _ in range(3):  # more often than a job is tried
        kill(pool.spawn() if not pool.running else pool.running[0])
        list(pool.step())
        assert pool.attempts == {}
    (row,) = to_the_end(pool)
    assert isinstance(row, Row)
    assert row.status == "ok"


def test_a_job_that_cannot_be_sent_to_a_worker_has_failed_and_costs_no_other(tiny_tree: Path, tmp_path: Path) -> None:
    class Local(type(floors(tiny_tree)[0].settings)):  # type: ignore[misc]  # a class that no process can look up
        pass

    first, second = (job for job in floors(tiny_tree) if job.category.name == "bolt")
    unsendable = replace(first, settings=Local(**asdict(first.settings)))
    ended = to_the_end(pool_of([unsendable, second], tmp_path))
    rows = {row.seed: row for row in ended if isinstance(row, Row)}
    assert len(ended) == len(rows) == 2
    assert rows[second.seed].status == "ok"
    assert rows[first.seed].status == "failed"
    reason = str(rows[first.seed].reason)
    assert reason.startswith("it cannot be sent to a process of its own (")
    assert "Local" in reason
    assert reason.endswith("--executor in-process")


def test_a_worker_that_dies_twice_under_a_job_leaves_a_failed_row(tiny_tree: Path, tmp_path: Path) -> None:
    (job,) = jobs = floors(tiny_tree)[:1]
    pool = pool_of(jobs, tmp_path)
    for attempt in (1, 2):
        worker = until_ready(pool)
        os.kill(worker.process.pid or 0, signal.SIGSTOP)  # so that it does not end the job first
        list(pool.hand_out())
        assert (worker.job, pool.attempts[job.id]) == (job, attempt)
        kill(worker)
        ended = [ending for _ in range(3) for _, ending in pool.step()] if attempt == 2 else list(pool.step())
    (row,) = ended
    assert isinstance(row, Row)
    assert (row.status, row.reason) == ("failed", "its worker process died (signal SIGKILL)")
    assert to_the_end(pool) == []


def test_the_end_of_a_worker_has_a_name_or_a_number() -> None:
    said = ["signal SIGKILL", "signal 40", "exit code 3", "no exit code"]
    assert [executors.death(code) for code in (-9, -40, 3, None)] == said


def test_workers_that_all_die_as_they_start_end_the_run_with_a_word(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def spawn(self: Pool) -> Worker:
        made.append(1)
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Pool, "spawn", spawn)
    jobs = floors(tiny_tree)
    ended = list(local(jobs, Work(out=str(tmp_path)), lambda job: None, workers=2, job_timeout=None))
    assert [job for job, _ in ended] == jobs
    assert all(isinstance(ending, NoResult) and "died as they started" in ending.reason for _, ending in ended)
    assert len(made) == LOST_STARTS


def test_where_no_process_can_be_made_the_run_ends_with_the_systems_word(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(self: Pool) -> Worker:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(Pool, "spawn", spawn)
    jobs = floors(tiny_tree)
    ended = list(local(jobs, Work(out=str(tmp_path)), lambda job: None, workers=2, job_timeout=None))
    reason = "no worker process can be started (Resource temporarily unavailable); try a smaller --workers"
    assert [(job, ending.reason) for job, ending in ended if isinstance(ending, NoResult)] == [
        (job, reason) for job in jobs
    ]


def test_a_limit_that_is_gone_in_a_moment_costs_no_job(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, begun = Pool.spawn, time.monotonic()

    def spawn_later(self: Pool) -> Worker:
        if time.monotonic() - begun < 0.5:
            raise OSError(11, "Resource temporarily unavailable")
        return spawn(self)

    monkeypatch.setattr(Pool, "spawn", spawn_later)
    jobs = floors(tiny_tree)[:1]
    (ended,) = to_the_end(pool_of(jobs, tmp_path))
    assert isinstance(ended, Row)


def test_a_worker_that_does_not_die_is_left_behind(tiny_tree: Path, tmp_path: Path) -> None:
    waited: list[float | None] = []

    class Hanging:
        """A process in a call of a dead network drive, which no signal ends."""

        def is_alive(self) -> bool:
            return True

        def kill(self) -> None:
            pass

        def join(self, timeout: float | None = None) -> None:
            assert timeout is not None, "waits for ever"
            waited.append(timeout)

    pool = pool_of([], tmp_path)
    process: Any = Hanging()
    executors.CHILDREN.add(process)
    pool.running.append(Worker(process=process, pipe=Pipe()[0]))
    pool.retire(pool.running[0])
    assert waited == [executors.DYING_SECONDS]
    assert not pool.running
    assert process not in executors.CHILDREN


def test_where_fewer_processes_can_be_made_than_asked_for_those_there_are_do_all_jobs(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, made = Pool.spawn, list[Worker]()

    def spawn_one(self: Pool) -> Worker:
        if made:
            raise OSError(11, "Resource temporarily unavailable")
        made.append(spawn(self))
        return made[0]

    monkeypatch.setattr(Pool, "spawn", spawn_one)
    jobs = floors(tiny_tree)
    ended = list(local(jobs, Work(out=str(tmp_path)), lambda job: None, workers=8, job_timeout=None))
    assert sorted(job.id for job, _ in ended) == sorted(job.id for job in jobs)
    assert [ending.status for _, ending in ended if isinstance(ending, Row)] == ["ok"] * len(jobs)


def test_starting_workers_that_die_cost_no_job_while_another_works(tiny_tree: Path, tmp_path: Path) -> None:
    jobs = floors(tiny_tree)
    pool = pool_of(jobs, tmp_path)
    until_ready(pool)
    pool.lost_starts = LOST_STARTS
    ended = to_the_end(pool)
    assert [ending.status for ending in ended if isinstance(ending, Row)] == ["ok"] * len(jobs)


def test_a_file_of_the_working_folder_that_is_named_as_a_module_ends_no_worker(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "signal.py").write_text("raise RuntimeError('of the working folder')\n")
    monkeypatch.chdir(tmp_path)
    ended = to_the_end(pool_of(floors(tiny_tree)[:1], tmp_path / "out"))
    assert [ending.status for ending in ended if isinstance(ending, Row)] == ["ok"]


@pytest.mark.parametrize("in_order", [True, False])
def test_jobs_begin_in_their_order_where_that_is_asked_for(
    in_order: bool, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spawn(self: Pool) -> Worker:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(Pool, "spawn", spawn)
    monkeypatch.setattr(executors, "longest_first_at_the_end", lambda jobs, workers, threads: jobs[::-1])
    jobs, options = floors(tiny_tree), RunOptions(workers=2, executor="local")
    ended = list(outcomes(jobs, Work(out=str(tmp_path)), lambda job: None, options, in_order=in_order))
    assert [job for job, _ in ended] == (jobs if in_order else jobs[::-1])


def test_a_pipe_that_breaks_while_a_worker_is_started_is_another_start(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, broken = Pool.spawn, [BrokenPipeError(32, "Broken pipe"), OSError(11, "Resource temporarily unavailable")]

    def spawn_at_last(self: Pool) -> Worker:
        if broken:
            raise broken.pop()
        return spawn(self)

    monkeypatch.setattr(Pool, "spawn", spawn_at_last)
    ended = list(local(floors(tiny_tree)[:1], Work(out=str(tmp_path)), lambda job: None, workers=1, job_timeout=None))
    assert [ending.status for _, ending in ended if isinstance(ending, Row)] == ["ok"]


def test_the_time_that_a_worker_takes_to_start_counts_against_no_job(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_of(floors(tiny_tree)[:1], tmp_path, job_timeout=300)
    assert list(pool.step()) == []  # a worker that would be handed a job before it is ready has it by now
    later = time.monotonic() + 1000
    with monkeypatch.context() as patch:
        patch.setattr(executors, "time", SimpleNamespace(monotonic=lambda: later, sleep=time.sleep))
        assert list(pool.step()) == []
    (row,) = to_the_end(pool)
    assert isinstance(row, Row)
    assert row.status == "ok"
    assert list(pool.attempts.values()) == [1]


def test_a_worker_whose_runner_is_gone_ends_without_a_word(
    tiny_tree: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = pool_of(floors(tiny_tree)[:1], tmp_path)
    worker = until_ready(pool)
    list(pool.hand_out())
    worker.pipe.close()
    worker.process.join(60)
    assert worker.process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_what_the_end_of_a_terminal_tells_workers_they_ignore(tiny_tree: Path, tmp_path: Path) -> None:
    pool = pool_of(floors(tiny_tree)[:1], tmp_path)
    worker = until_ready(pool)
    for number in executors.HELD:
        os.kill(worker.process.pid or 0, number)
    assert state_of(psutil.Process(worker.process.pid)) == "idle"
    (row,) = to_the_end(pool)
    assert isinstance(row, Row)
    assert row.status == "ok"


def test_the_states_of_a_worker_are_told_apart(tiny_tree: Path, tmp_path: Path) -> None:
    job = next(job for job in jobs_of(tiny_tree) if job.method == "stfpm")
    pool = pool_of([job], tmp_path)
    pool.fill()
    process = psutil.Process(pool.running[0].process.pid)
    assert state_of(process) == "starting"
    until_ready(pool)
    assert state_of(process) == "idle"
    list(pool.hand_out())
    wait_for(lambda: state_of(process) == "working")
    pool.retire(pool.running[0])
