"""A training and the file that keeps it: damage, full disks, read-only folders."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch

from kdad_bench.harness.giving_way import computing_with
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work
from kdad_bench.harness.run import place_of, run
from kdad_bench.harness.step_log import step_log
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training import resume
from tests.harness.planned import jobs_of
from tests.methods.checks import assert_same_state, state
from tests.methods.test_distillation import Interrupted, progress, stop_at
from tests.methods.toys import normals, small_method

SMALL = {"image_size": 32, "batch_size": 4, "steps": 30}


def without(*names: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        kept = torch.load(path, weights_only=True)
        torch.save({key: value for key, value in kept.items() if key not in names}, path)

    return damage


def changed(name: str, value: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), name: value}, path)

    return damage


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save([1, 2], path),
        flipped,
        without("student"),
        without("optimiser"),
        without("rng"),
        changed("step", "three"),
        changed("student", {"a": torch.zeros(1)}),
        changed("optimiser", {"state": {}, "param_groups": []}),
        changed("rng", torch.zeros(3)),
    ],
)
def test_a_damaged_checkpoint_gives_the_result_of_a_straight_training(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    images, path = normals(10, seed=1), tmp_path / "fit.pt"
    whole, broken, resumed = (small_method("stfpm", steps=4, batch_size=4) for _ in range(3))
    whole.fit(images)
    with pytest.raises(Interrupted):
        broken.fit(images, Fitting(log=stop_at(3), log_every=1, checkpoint=path, checkpoint_every_seconds=0))
    damage(path)
    with pytest.warns(RuntimeWarning, match=r"fit\.pt: damaged checkpoint"):
        resumed.fit(images, Fitting(checkpoint=path))
    assert_same_state(state(whole), state(resumed), "a damaged checkpoint changed the result")


def test_what_is_no_regular_file_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fit.pt")
    small_method("stfpm", steps=1, batch_size=4).fit(normals(8, seed=1), Fitting(checkpoint=tmp_path / "fit.pt"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_checkpoint_that_cannot_be_written_costs_only_a_warning(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: object) -> None:
        raise error

    monkeypatch.setattr(resume, "write_whole", full)
    method = small_method("stfpm", steps=2, batch_size=4)
    with pytest.warns(RuntimeWarning, match="no checkpoint can be written"):
        method.fit(normals(8, seed=1), Fitting(checkpoint=tmp_path / "fit.pt", checkpoint_every_seconds=0))


class Clock:
    """`time.perf_counter`, which can be moved on."""

    def __init__(self) -> None:
        self.ahead, self.real = 0.0, time.perf_counter

    def __call__(self) -> float:
        return self.real() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def write_log(job: Job, out: Path) -> None:
    """A log without steps, which a resumed job reads."""
    (out / "logs").mkdir()
    (out / "logs" / f"{job.id}.jsonl").write_text('{"event": "start"}\n')


def slow_until(step: int, clock: Clock, seconds: float) -> Callable[[int, Any], None]:
    """A log for whose first step so much time passes, and that stops the training at `step`."""

    def log(at: int, terms: Any) -> None:
        clock.ahead += seconds if at == 1 else 0.0
        if at == step:
            raise Interrupted

    return log


def test_the_row_of_a_resumed_training_has_the_seconds_of_all_of_it(
    tiny_tree: Path, tmp_path: Path, clock: Clock
) -> None:
    (job,) = jobs_of(tiny_tree, methods=(("stfpm", ""),), seeds=(0,), resolution=32, overrides=SMALL)[:1]
    work = Work(out=str(tmp_path), checkpoint_every_seconds=0.0)
    write_log(job, tmp_path)
    with pytest.raises(Interrupted):
        run(job, work, slow_until(1, clock, 500.0))  # the fit has no checkpoint yet: this time is lost
    with pytest.raises(Interrupted):
        run(job, work, slow_until(10, clock, 1000.0))
    with pytest.raises(Interrupted):
        run(job, work, slow_until(20, clock, 0.0))
    row = run(job, work, lambda step, terms: None)
    assert row.steps == 30
    assert row.train_seconds is not None
    assert row.total_seconds is not None
    assert 1000 <= row.train_seconds <= row.total_seconds < 1400


class Refusing:
    """A log file on a disk that is full from step 10 on, until it is opened again."""

    def __init__(self, path: Path, mode: str) -> None:
        self.file = FileIO(path, mode)
        self.close = self.file.close

    def write(self, line: bytes) -> int:
        if b'"step": 10,' in line:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(line)


def closed(path: Path, mode: str) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("fault", [Refusing, closed])
def test_a_resumed_training_has_all_losses_where_its_log_could_not_be_written_for_a_while(
    fault: Any, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs_of(tiny_tree, methods=(("stfpm", ""),), seeds=(0,), resolution=32, overrides=SMALL)[:1]

    def attempt(out: str, stop: int | None = None) -> Row:
        work = Work(out=str(tmp_path / out), checkpoint_every_seconds=0.0)
        with step_log(job, work) as log:

            def logged(step: int, terms: Any) -> bool | None:
                if step == stop:
                    raise Interrupted
                return log(step, terms)

            return run(job, work, logged)

    straight = attempt("straight")
    with pytest.raises(Interrupted):
        attempt("out", 10)
    with monkeypatch.context() as patched:
        patched.setattr("kdad_bench.harness.step_log.FileIO", fault)
        with pytest.warns(UserWarning, match="goes on without checkpoints"), pytest.raises(Interrupted):
            attempt("out", 30)
    row = attempt("out")
    assert row.losses == straight.losses
    assert [one["step"] for one in json.loads(row.losses)] == [1, 10, 20, 30]


def test_what_is_done_again_before_a_fit_goes_on_is_counted_once(tmp_path: Path) -> None:
    kept, told = progress(tmp_path / "fit.pt"), list[float | None]()
    kept.saved_at = -1e9
    kept.began -= 100.0
    kept.save_when_due(7)
    again = progress(tmp_path / "fit.pt")
    again.tell = told.append
    again.began -= 40.0  # features of the teacher, say, which a checkpoint does not hold
    again.resume()
    assert told == [pytest.approx(60.0, abs=10.0)]
    assert time.perf_counter() - again.began == pytest.approx(100.0, abs=10.0)  # what a next checkpoint tells


def test_the_seconds_of_a_checkpoint_that_does_not_tell_them_are_not_made_up(tiny_tree: Path, tmp_path: Path) -> None:
    (job,) = jobs_of(tiny_tree, methods=(("stfpm", ""),), seeds=(0,), resolution=32, overrides=SMALL)[:1]
    work = Work(out=str(tmp_path), checkpoint_every_seconds=0.0)
    write_log(job, tmp_path)
    with pytest.raises(Interrupted):
        run(job, work, stop_at(20))
    (path,) = (tmp_path / "checkpoints").glob("*.pt")
    without("seconds", "place")(path)
    row = run(job, work, lambda step, terms: None)
    assert (row.status, row.steps, row.train_seconds, row.total_seconds) == ("ok", 30, None, None)


def test_looks_at_a_training_are_no_part_of_its_seconds(tmp_path: Path, clock: Clock) -> None:
    def look(step: int, method: Any) -> None:
        clock.ahead += 1000.0

    told, path = list[float | None](), tmp_path / "fit.pt"
    asked: dict[str, Any] = {"log_every": 1, "checkpoint": path, "checkpoint_every_seconds": 0, "watch_every": 1}
    with pytest.raises(Interrupted):
        small_method("stfpm", steps=4, batch_size=4).fit(
            normals(8, seed=1), Fitting(log=stop_at(3), watch=look, **asked)
        )
    small_method("stfpm", steps=4, batch_size=4).fit(normals(8, seed=1), Fitting(resumed=told.append, **asked))
    (seconds,) = told
    assert seconds is not None
    assert seconds < 500


@pytest.mark.parametrize(
    ("begun", "now", "anew"),
    [("A, 8 threads", "A, 1 thread", True), ("A", "A", False), ("", "A", False), ("A", "", False)],
)
def test_a_row_is_of_one_place(begun: str, now: str, anew: bool, tmp_path: Path) -> None:
    images, path, told = normals(8, seed=1), tmp_path / "fit.pt", list[int]()
    stopped = Fitting(log=stop_at(3), log_every=1, checkpoint=path, checkpoint_every_seconds=0, place=begun)
    with pytest.raises(Interrupted):
        small_method("stfpm", steps=4, batch_size=4).fit(images, stopped)
    again = Fitting(log=lambda step, terms: told.append(step), log_every=1, checkpoint=path, place=now)
    said = pytest.warns(RuntimeWarning, match="begun with A, 8 threads, now A, 1 thread: the training starts from its")
    with said if anew else nullcontext():
        small_method("stfpm", steps=4, batch_size=4).fit(images, again)
    assert told == ([1, 2, 3, 4] if anew else [3, 4])
    assert not path.exists()


def test_a_checkpoint_of_another_place_does_not_wait_for_a_return_there(tmp_path: Path) -> None:
    images, path = normals(8, seed=1), tmp_path / "fit.pt"
    asked: dict[str, Any] = {"log_every": 1, "checkpoint": path}
    with pytest.raises(Interrupted):
        small_method("stfpm", steps=4, batch_size=4).fit(
            images, Fitting(log=stop_at(3), checkpoint_every_seconds=0, place="A", **asked)
        )
    with pytest.raises(Interrupted), pytest.warns(RuntimeWarning, match="begun with A, now B"):
        small_method("stfpm", steps=4, batch_size=4).fit(images, Fitting(log=stop_at(1), place="B", **asked))
    assert not path.exists()


def test_threads_are_part_of_a_place_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    with computing_with(1):
        one = place_of("cpu")
    with computing_with(2):
        two = place_of("cpu")
    assert ", 1 thread, kernels " in one
    assert two == one.replace("1 thread,", "2 threads,")
    monkeypatch.setenv("KDAD_KERNELS", "torch")
    with computing_with(1):
        assert place_of("cpu") == one.rpartition(" ")[0] + " torch"
