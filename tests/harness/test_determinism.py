"""What deterministic algorithms on a GPU need: set before CUDA starts, in every process that a job may run in."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kdad_bench.harness import determinism, executors, on_ray, run, selection, speed
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.determinism import VARIABLE, choose_algorithms, prepare
from kdad_bench.harness.options import options_from
from kdad_bench.harness.output import Work
from tests.harness.planned import jobs_of


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable, CUDA not started, and torch's choice put back."""
    monkeypatch.setenv(VARIABLE, "")  # so that it is put back, whatever a test does with it
    monkeypatch.delenv(VARIABLE)
    started(monkeypatch, False)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: CHOSEN.append(mode))
    CHOSEN.clear()


CHOSEN: list[bool] = []


def started(monkeypatch: pytest.MonkeyPatch, yes: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: yes)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:3"])
def test_the_workspace_is_fixed_before_cuda_starts(device: str) -> None:
    choose_algorithms(True, device)
    assert os.environ[VARIABLE] == ":4096:8"
    assert CHOSEN == [True]


@pytest.mark.parametrize(("strict", "device"), [(False, "cuda:0"), (False, "cpu"), (True, "cpu")])
def test_nothing_else_sets_it(strict: bool, device: str) -> None:
    choose_algorithms(strict, device)
    assert VARIABLE not in os.environ
    assert [True] * strict == CHOSEN, "any algorithms are torch's own choice: to make it anew imports its compiler"


def test_any_algorithms_are_chosen_again_after_a_deterministic_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    choose_algorithms(False, "cpu")
    assert CHOSEN == [False]


@pytest.mark.parametrize("said", [":4096:8", ":16:8"])
@pytest.mark.parametrize("yes", [False, True])
def test_what_was_said_and_serves_stays(said: str, yes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, yes)
    monkeypatch.setenv(VARIABLE, said)
    choose_algorithms(True, "cuda:0")
    assert os.environ[VARIABLE] == said


@pytest.mark.parametrize("said", ["", ":0:0", ":4096:2:16:8", ":8192:8"])
def test_what_does_not_serve_is_refused_with_the_remedy(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, said)
    with pytest.raises(SelectionError, match=f"{VARIABLE}={said} lets cuBLAS .* set {VARIABLE}=:4096:8 before"):
        choose_algorithms(True, "cuda:0")
    assert CHOSEN == []


def test_where_cuda_has_started_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, True)
    with pytest.raises(SelectionError, match=f"CUDA has started in this process without {VARIABLE}; set"):
        prepare("cuda:0")
    assert VARIABLE not in os.environ


def test_a_selection_sets_it_before_anything_asks_a_gpu(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run starts later, workers of any kind, inherits the variable."""
    seen = []
    monkeypatch.setattr(selection, "device_from", lambda text: "cuda:0")
    monkeypatch.setattr(
        selection, "refuse_kernels_that_are_not_there", lambda device: seen.append(os.environ.get(VARIABLE))
    )
    chosen = {"methods": ["stfpm"], "datasets": [f"folder:{tiny_tree}"]}
    selection.selected(options_from(chosen))
    selection.selected(options_from({**chosen, "deterministic": True}))
    assert seen == [None, ":4096:8"]


@pytest.mark.parametrize("executor", ["in-process", "a worker", "ray"])
def test_every_executors_job_sets_it_before_it_asks_a_gpu(
    executor: str, tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody did before it: a process of Ray's may be on another machine."""
    seen: list[Any] = []

    def first_use(device: str, share: float | None) -> None:
        seen.append((os.environ.get(VARIABLE), list(CHOSEN), device))
        raise RuntimeError("so far")

    monkeypatch.setattr(run.gpu_share, "keep_to_share", first_use)
    monkeypatch.setattr("kdad_bench.harness.perform.record_failure", lambda job, work, reason: reason)
    job, work = replace(jobs_of(tiny_tree)[0], device="cuda:0", deterministic=True), Work(out=str(tmp_path))
    if executor == "in-process":
        list(executors.in_process([job], work, lambda job: None, 1))
    elif executor == "ray":
        on_ray.performed(job, work, 1)
    else:
        pipe = Pipe([job])
        monkeypatch.setattr(executors, "warm_up", lambda late: None)
        monkeypatch.setattr(executors.signal, "signal", lambda *said: None)
        executors.serve(pipe, work, 1, os.getppid(), ())  # type: ignore[arg-type]
        assert pipe.said[0] == executors.READY
    assert seen == [(":4096:8", [True], "cuda:0")]


class Pipe:
    """The end of a pipe that a worker holds: jobs, then the end."""

    def __init__(self, jobs: list[Any]) -> None:
        self.jobs, self.said = jobs, []

    def send(self, what: Any) -> None:
        self.said.append(what)

    def recv_bytes(self) -> bytes:
        if not self.jobs:
            raise EOFError
        return pickle.dumps(self.jobs.pop(0))


def test_speed_is_measured_with_the_same_algorithms(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_use(job: Any) -> Any:
        raise RuntimeError("so far")

    monkeypatch.setattr(speed, "fitted", first_use)
    with pytest.raises(RuntimeError, match="so far"):
        speed.measure(replace(jobs_of(tiny_tree)[0], device="cuda:0", deterministic=True))
    assert os.environ[VARIABLE] == ":4096:8"
    assert CHOSEN == [True]
    assert determinism.FIXED[0] == ":4096:8"
