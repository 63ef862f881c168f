"""The Ray executor on a cluster of this machine alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from kdad_bench.harness import on_ray
from tests.harness.test_faults import JOBS, assert_whole, long_training, rows, wait_for, waiting_jobs

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'kdad-bench[ray]'")


def test_a_killed_ray_worker_costs_nothing_but_time(tiny_tree: Path, tmp_path: Path) -> None:
    command, gate = waiting_jobs(tmp_path, tiny_tree, tmp_path / "out", "--executor", "ray")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT)

    def busy() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.name().startswith("ray::perform") or "ray::perform" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:  # it ended while it was looked at
                continue
        return found

    try:
        wait_for(busy)[0].kill()
        gate.touch()
        output, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    assert len(rows(tmp_path / "out")) == JOBS
    assert_whole(tmp_path / "out")


def listening(processes: list[psutil.Process]) -> set[str]:
    """The addresses at which any of the processes listens."""
    found = set()
    for process in processes:
        with suppress(psutil.Error):
            found |= {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    return found


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    found = psutil.Process(pid)
    return [found, *found.children(recursive=True)]


def test_a_cluster_of_our_own_is_for_nobody_else_and_ends_with_a_killed_runner(tiny_tree: Path, tmp_path: Path) -> None:
    command = [*long_training(tiny_tree, tmp_path / "out", 10**7), "--executor", "ray"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    try:
        wait_for(lambda: (tmp_path / "out" / "logs").exists(), 180)
        found = family(process.pid)
        assert {one.removeprefix("::ffff:") for one in listening(found)} == {"127.0.0.1"}
        variables = {key: value for one in found[1:] for key, value in environment_of(one).items()}
        assert variables["RAY_USAGE_STATS_ENABLED"] == "0"
        assert variables["RAY_AUTH_MODE"] == "token"
        assert len(variables["RAY_AUTH_TOKEN"]) == 64
        others = [environment_of(one).get("RAY_AUTH_TOKEN") for one in found[1:] if "ray" in one.name()]
        assert set(others) - {None} == {variables["RAY_AUTH_TOKEN"]}  # some overwrite their variables with a title
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(found, timeout=60)
    assert not alive


def environment_of(process: psutil.Process) -> dict[str, str]:
    """The variables of a process; none if it is gone."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_the_reaper_ends_what_it_was_told_and_no_pid_that_was_used_anew() -> None:
    chosen, other = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    birth = psutil.Process(chosen.pid).create_time()
    told = [f"{chosen.pid}:{birth}", f"{other.pid}:{birth - 100}", "999999999:1.0"]
    command = [sys.executable, "-m", "kdad_bench.harness.reaper", *told]
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        assert chosen.poll() is None
        reaper.communicate()
        assert chosen.wait() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (chosen, other, reaper):
            process.kill()
            process.wait()


def test_ray_without_its_package_is_one_line_with_the_remedy(
    tiny_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from kdad_bench.cli import cli

    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["run", "--method", "pixel_mean", "--dataset", f"folder:{tiny_tree}", "--executor", "ray"]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "pip install 'kdad-bench[ray]'" in result.output


class FromRay(Exception):
    """As Ray's: the text begins with where the task ran, and `cause` is what was raised there."""

    def __init__(self, text: str, cause: Exception | None) -> None:
        super().__init__(text)
        self.cause = cause


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (ValueError("no such file\nmore"), "Ray gave it up: ValueError: no such file"),
        (None, "Ray gave it up: FromRay: ray::performed() (pid=1)"),
    ],
)
def test_a_job_that_ray_gives_up_says_what_was_raised(
    cause: Exception | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(reference: object) -> None:
        raise FromRay("\nray::performed() (pid=1)\nValueError: no such file", cause)

    monkeypatch.setattr(on_ray, "record_failure", lambda job, work, why: why)
    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=FromRay))
    assert on_ray.answer_of(ray, None, cast("Any", None), cast("Any", None)) == said
