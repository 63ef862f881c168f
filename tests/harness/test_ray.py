"""The Ray executor on a cluster of this machine alone."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.harness.test_faults import JOBS, assert_whole, rows, wait_for

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'kdad-bench[ray]'")


def test_a_killed_ray_worker_costs_nothing_but_time(tiny_tree: Path, tmp_path: Path) -> None:
    chosen = ["--method", "pixel_mean", "--dataset", f"folder:{tiny_tree}", "--seeds", "2", "--no-pictures"]
    command = [sys.executable, "-m", "kdad_bench", "run", *chosen, "--out", str(tmp_path / "out"), "--executor", "ray"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def busy() -> list[psutil.Process]:
        found = []
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                if child.name().startswith("ray::perform") or "ray::perform" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:  # it ended while it was looked at
                continue
        return found

    wait_for(busy, 90)
    busy()[0].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert len(rows(tmp_path / "out")) == JOBS
    assert_whole(tmp_path / "out")


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
