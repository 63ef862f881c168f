"""What is asked of Ray and what becomes of its answers, by stand-ins; test_ray.py has the thing itself."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdad_bench.harness import on_ray
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.output import Work
from kdad_bench.harness.run import columns_of
from kdad_bench.leaderboard.row import Row
from tests.harness.planned import jobs_of

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED")


class RayError(Exception):
    """As Ray's."""


class Cluster:
    """As much of the module `ray` as jobs are shared out by: it has `CPU` and `GPU`, and runs one task at a time."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, hangs: bool = False, **resources: float) -> None:
        self.resources, self.hangs = resources, hangs
        self.out, self.most, self.asked = 0, 0, dict[str, Any]()

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": self.resources}]

    def remote(self, made: Any) -> Any:
        def options(**said: Any) -> Any:
            if isinstance(made, type):
                one = made()
                answers = {name: SimpleNamespace(remote=getattr(one, name)) for name in ("note", "seconds")}
                return SimpleNamespace(remote=lambda: SimpleNamespace(**answers))
            self.asked = said
            return SimpleNamespace(remote=partial(self.handed_over, made))

        return SimpleNamespace(options=options)

    def handed_over(self, *task: Any) -> Callable[[], object]:
        self.out += 1
        self.most = max(self.most, self.out)
        return partial(*task)

    def wait(self, tasks: list[Callable[[], object]], timeout: float) -> tuple[list[Any], list[Any]]:
        if self.hangs:  # in the first task, which has begun
            tasks[0]()
            return [], tasks
        return tasks[:1], tasks[1:]

    def get(self, what: Any, timeout: float | None = None) -> Any:
        if not callable(what):
            return what
        self.out -= 1
        return what()

    def cancel(self, task: Callable[[], object], force: bool) -> None:
        self.out, self.hangs = self.out - 1, False


def shared_out(
    ray: Cluster, tree: Path, monkeypatch: pytest.MonkeyPatch, device: str = "cpu", **said: Any
) -> list[Row]:
    """How four jobs of a tenth of a second end."""

    def perform(job: Any, work: Work) -> Row:
        time.sleep(0.1)
        return Row(**columns_of(job))

    monkeypatch.setattr(on_ray, "perform", perform)
    monkeypatch.setattr(on_ray, "record_failure", lambda job, work, why: Row.failed(reason=why, **columns_of(job)))
    jobs = deque(jobs_of(tree, methods=(("pixel_mean", ""),), device=device))
    options: dict[str, Any] = {"job_timeout": 0.25, "gpu_fraction": 1.0, "threads": 1, **said}
    return [ended for _, ended in on_ray.shared_out(ray, jobs, Work(out="there"), lambda job: None, **options)]


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda:0", 1), ("cuda:0", 0)])
def test_no_job_fails_for_waiting_its_turn(
    device: str, gpus: int, tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = shared_out(Cluster(CPU=8, GPU=gpus), tiny_tree, monkeypatch, device)
    assert [row.status for row in ended] == ["ok"] * 4


def test_a_job_that_has_begun_and_does_not_end_fails(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = shared_out(Cluster(hangs=True, CPU=8), tiny_tree, monkeypatch, job_timeout=0.05)
    assert [row.status for row in ended] == ["failed", "ok", "ok", "ok"]
    assert ended[0].reason == "it ran longer than --job-timeout 0.05 s"


@pytest.mark.parametrize(
    ("resources", "device", "said", "most", "cpus"),
    [
        ({"CPU": 8}, "cpu", {}, 4, 1),
        ({"CPU": 8}, "cpu", {"threads": 4}, 2, 4),
        ({"CPU": 2}, "cpu", {"threads": 8}, 1, 2),
        ({"CPU": 8}, "cpu", {"threads": None}, 4, 1),
        ({"CPU": 8, "GPU": 1}, "cuda:0", {}, 1, 1),
        ({"CPU": 8, "GPU": 1}, "cuda:0", {"gpu_fraction": 0.5}, 2, 1),
        ({"CPU": 8, "GPU": 2}, "cuda:0", {"gpu_fraction": 0.6}, 2, 1),
        ({"CPU": 1, "GPU": 2}, "cuda:0", {}, 1, 1),
    ],
)
def test_no_more_jobs_are_handed_out_than_the_cluster_has_room_for(
    resources: dict[str, float], device: str, said: dict[str, Any], most: int, cpus: int, tiny_tree: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ray = Cluster(**resources)
    shared_out(ray, tiny_tree, monkeypatch, device, job_timeout=None, **said)
    assert (ray.most, ray.asked["num_cpus"]) == (most, cpus)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `ray.init` is asked for, and the variables at that moment."""
    found: list[dict[str, Any]] = []

    def init(**said: Any) -> None:
        found.append(said | {name: os.environ.get(name) for name in VARIABLES})
        if said["address"] == "auto":
            raise ConnectionError("Could not find any running Ray instance.\nMore of it.")

    ray = SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(on_ray, "on_loopback", on_ray.contextlib.nullcontext)
    monkeypatch.setattr(on_ray, "start_reaper", lambda: SimpleNamespace(communicate=lambda: None))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return found


@pytest.mark.parametrize("address", [None, "", "local"])
def test_a_cluster_of_our_own_is_for_nobody_else_however_it_is_asked_for(
    address: str | None, asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    with on_ray.cluster(address):
        pass
    (said,) = asked
    assert said["address"] == "local"  # which Ray takes before RAY_ADDRESS
    assert (said["include_dashboard"], said["_node_ip_address"]) == (False, "127.0.0.1")
    assert (said["RAY_AUTH_MODE"], len(said["RAY_AUTH_TOKEN"]), said["RAY_USAGE_STATS_ENABLED"]) == ("token", 64, "0")
    assert not set(VARIABLES) & set(os.environ)


def test_an_address_without_a_cluster_is_one_line(asked: list[dict[str, Any]]) -> None:
    words = r"^--address auto: no Ray cluster to work with \(Could not find any running Ray instance\.\)$"
    with pytest.raises(SelectionError, match=words), on_ray.cluster("auto"):
        pass
    assert asked[0]["RAY_AUTH_TOKEN"] is None


def test_an_address_of_ipv6_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # a machine without IPv6 cannot listen; what is connected to is looked at below on any
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        on_ray.refuse_silence(f"[::1]:{listening.getsockname()[1]}")
    reached: list[tuple[str, int]] = []

    def connected(address: tuple[str, int], timeout: float) -> SimpleNamespace:
        reached.append(address)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(on_ray.socket, "create_connection", connected)
    on_ray.refuse_silence("[::1]:6379")
    on_ray.refuse_silence("ray://[::1]:10001")
    assert reached == [("::1", 6379), ("::1", 10001)]
