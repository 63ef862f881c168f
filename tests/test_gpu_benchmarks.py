"""The scripts for a GPU keep what they have measured, end in time, and need no command line."""

from __future__ import annotations

import argparse
import ast
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
ROW: dict[str, Any] = {
    "teacher": "none", "image_size": 64, "batch": 8, "step_ms": 2.0, "latency_ms": 1.0, "images_per_second": 10.0,
    "projected_hours": 0.5, "compiled_ms": {"default": 1.0}, "top_costs": [("mm", 0.4)],
}  # fmt: skip


ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(f"gpu_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["methods", "leaderboard", "kernels", "beyond_int32"])
def test_no_script_imports_the_command_line(name: str) -> None:
    names = set()
    for node in ast.walk(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    assert not [one for one in names if "rich" in one or one == "click" or one.startswith("kdad_bench.cli")]


def given(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"seconds": 1000.0, "seeds": 3, **changes})


def a_fault_and_the_end_of_time() -> None:
    """In a process of its own: the timer is one for a whole process, and the test runner has its own."""
    methods = script("methods")

    def measure(name: str, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
        if name == "faulty":
            raise ValueError("no\nweights")
        while name == "endless":
            time.sleep(0.01)
        return {"method": name, **ROW}

    methods.measure = measure
    methods.BEGAN = time.perf_counter()
    rows = list(methods.measured(["stfpm", "faulty", "endless", "rd4ad"], given(seconds=0.5), torch.device("cpu")))
    assert [row["method"] for row in rows] == ["stfpm", "faulty", "endless", "rd4ad"]
    problems = [row.get("problem") for row in rows]
    assert problems == [None, "ValueError: no weights", "out of time", "out of time"]
    text = methods.table(rows, 3)
    assert "| stfpm | none | 64 | 8 | 2.00 | 1.00 | 10 | 0.50 |" in text
    assert "endless: not measured: out of time" in text
    assert "stfpm step with compiled=default: 1.00 ms, 2.00x as fast" in text
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_fault_and_the_end_of_time_cost_one_method_its_figures() -> None:
    program = "from tests.test_gpu_benchmarks import a_fault_and_the_end_of_time as it; it(); print('as it should be')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stdout.strip()) == (0, "as it should be"), done.stderr


def test_each_method_is_written_before_the_next_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, there = script("methods"), []

    def measure(name: str, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
        files = [json.loads(file.read_text()) for file in tmp_path.glob("methods.json")]
        there.append([row["method"] for one in files for row in one["rows"]])
        return {"method": name, **ROW}

    monkeypatch.setattr(methods, "measure", measure)
    chosen = ["--device", "cpu", "--methods", "stfpm", "rd4ad", "mkd", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["methods.py", *chosen])
    assert methods.main() == 0
    assert there == [[], ["stfpm"], ["stfpm", "rd4ad"]]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["methods.json", "methods.md"]
    assert methods.arguments().compiled == []  # nothing is compiled unless it is asked for


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))
    module = script("kernels")
    monkeypatch.setattr(module.benchmark, "environment", lambda device: {"device": "none"})
    return module


def timing(case: Any, benchmark: Any) -> Any:
    return benchmark.Timing(
        case=case, implementation="kdad (triton)", median_us=10.0, p20_us=9.0, p80_us=11.0, calls=4, minimum_bytes=1000,
        copy_gb_per_s=1.0, read_gb_per_s=1.0, host_us=5.0, relative_error=0.0,
    )  # fmt: skip


def test_each_kernel_is_written_before_the_next_is_measured(
    tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there: list[int] = []

    def measure(case: Any, device: torch.device, *, compiled: bool) -> list[Any]:
        assert not compiled
        there.append(sum(len(file.read_text().splitlines()) for file in tmp_path.glob("kernels.jsonl")))
        if len(there) == 2:
            raise ArithmeticError("wrong")
        return [timing(case, kernels.benchmark)]

    monkeypatch.setattr(kernels.benchmark, "measure", measure)
    failed = kernels.measured(tmp_path, time.perf_counter() + 1000, compiled=False)
    assert there[:4] == [0, 1, 1, 2]
    assert len(failed) == 1
    assert "wrong" in failed[0]
    rows = [json.loads(line) for line in (tmp_path / "kernels.jsonl").read_text().splitlines()]
    assert len(rows) == len(there) - 1
    assert {row["device"] for row in rows} == {"none"}
    assert (tmp_path / "kernels.md").read_text().count("| 5 |") == len(rows)
    assert kernels.measured(tmp_path, time.perf_counter() - 1, compiled=False) == []
    assert "cases not measured" in capsys.readouterr().out


def test_checks_run_side_by_side_and_end_in_time(
    tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[str] = []

    def process(name: str, out: Path) -> subprocess.Popen[str]:
        began.append(name)
        code = {"good": "print('good: fine')", "bad": "print('bad: FAILED'); raise SystemExit(1)"}
        code["endless"] = "import time; print('begun', flush=True); time.sleep(600)"
        return subprocess.Popen([sys.executable, "-c", code[name]], stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(kernels, "check_process", process)
    assert kernels.checked(["good", "bad", "endless"], tmp_path, time.perf_counter() + 2) == ["bad", "endless"]
    assert began == ["good", "bad", "endless"]
    said = capsys.readouterr().out
    assert "good: fine" in said
    assert "endless: FAILED: out of time" in said


def test_a_leaderboard_is_packed_without_what_is_heavy(tmp_path: Path) -> None:
    leaderboard, results = script("leaderboard"), tmp_path / "results"
    for name in ("a.parquet", "logs/a.jsonl", "checkpoints/a.pt", ".locks/a.lock", "models/a/model.safetensors"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(name)
    leaderboard.packed(results)
    leaderboard.packed(results)  # in place of the first
    with tarfile.open(tmp_path / "results.tar.gz") as archive:
        names = {one.name for one in archive.getmembers() if one.isfile()}
    assert names == {"results/a.parquet", "results/logs/a.jsonl"}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM])
def test_the_end_of_a_leaderboards_time_is_ctrl_c(number: signal.Signals) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGALRM, signal.SIGTERM)}
    try:
        script("leaderboard").stopped_after(500 if number == signal.SIGTERM else 0.01)
        with pytest.raises(KeyboardInterrupt):
            interrupted(number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler)


def interrupted(number: signal.Signals) -> None:
    if number == signal.SIGTERM:
        os.kill(os.getpid(), number)
    time.sleep(5)
