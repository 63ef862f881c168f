"""The scripts for a GPU keep what they have measured, end in time, and need no command line."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from kdad_bench.methods import entry
from kdad_bench.methods.foreign import guarded

HERE = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
ROW: dict[str, Any] = {
    "teacher": "none", "image_size": 64, "batch": 8, "step_ms": 2.0, "latency_ms": 1.0, "eager_ms": 3.0,
    "images_per_second": 10.0, "throughput": {1: 10.0}, "graphs": True, "projected_hours": 0.5,
    "compiled_ms": {"default": 1.0}, "top_costs": [("mm", 0.4)],
}  # fmt: skip


ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(f"gpu_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["methods", "leaderboard", "kernels", "checks", "beyond_int32"])
def test_no_script_imports_the_command_line(name: str) -> None:
    names = set()
    for node in ast.walk(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    assert not [one for one in names if "rich" in one or one == "click" or one.startswith("kdad_bench.cli")]


def given(**changes: Any) -> argparse.Namespace:
    usual = {"seconds": 1000.0, "least": 0.1, "seeds": 3, "after": False, "weights": None, "size": 8, "drawers": 0}
    return argparse.Namespace(**{**usual, "compiled": [], "costs": False, **changes})


def a_fault_and_the_end_of_time() -> None:
    """In a process of its own: the timer is one for a whole process, and the test runner has its own."""
    methods = script("methods")
    shares: list[float] = []

    def measure(name: str, given: argparse.Namespace, device: torch.device, row: dict[str, Any], share: Any) -> None:
        shares.append(share.seconds)
        row |= {**ROW, "projected_hours": methods.UNKNOWN}
        if name == "faulty":
            raise ValueError("no\nweights")
        while name == "endless":
            time.sleep(0.01)
        row |= ROW

    methods.measure = measure
    methods.BEGAN = time.perf_counter()
    late = "out of time while beginning"
    rows = list(methods.measured(["stfpm", "faulty", "endless", "rd4ad"], given(seconds=2.0), torch.device("cpu")))
    assert [row["method"] for row in rows] == ["stfpm", "faulty", "endless", "rd4ad"]
    assert [row.get("problem") for row in rows] == [None, "ValueError: no weights", late, None]
    assert 0.3 < shares[0] <= 0.5
    assert 0.7 < shares[2] <= 1.0  # what the others left of two seconds, for two methods
    assert 0.1 < shares[3] <= 0.5  # one that is slow takes more than its share, but not all that there is
    text = methods.table(rows, 3)
    assert "| 64 | 8 | 2.00 | 1.00 | 3.00 | 10 | 0.50 |" in text
    assert "| 64 | 8 | 2.00 | 1.00 | 3.00 | 10 | – |" in text  # what was measured by then
    assert "2 of 4 methods, 15 categories x 3 seeds: 1.0 h" in text
    assert f"endless: not all measured: {late}" in text
    assert "stfpm images/s: 10 at batch 1; by CUDA graphs" in text
    assert "stfpm step with compiled=default: 1.00 ms, 2.00x as fast" in text
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Standing:
    """Settings of a stand-in, and how its fit goes."""

    course: str
    steps: int = 1000
    image_size: int = 8
    batch_size: int = 2


class StandIn:
    def __init__(self, settings: Standing, teacher: None, device: torch.device) -> None:
        self.settings = settings

    def fit(self, normal: torch.Tensor, fitting: Any = None) -> None:
        begins = {"silent": 0, "hangs": 12, "long": 10**6}[self.settings.course]
        for step in range(4, 10**6 if self.settings.steps > 1 else 0, 4):
            time.sleep(0.001)
            if step <= begins:
                fitting.log(step, {})

    def score(self, images: torch.Tensor) -> None:
        time.sleep(1e-4)


def what_does_not_end_shows_what_it_has() -> None:
    methods, found = script("methods"), argparse.Namespace(needs_teacher=False, build=StandIn)
    methods.settings_of = lambda name, given: (found, argparse.Namespace(), Standing(name))
    methods.BEGAN = time.perf_counter()
    limited, limits = methods.limited, list[float]()
    methods.limited = lambda seconds: limits.append(seconds) or limited(seconds)
    with limited(1000.0):
        rows = list(methods.measured(["silent", "hangs", "long"], given(seconds=4.5), torch.device("cpu")))
        assert 900.0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000.0  # a limit around another one still holds
    assert all(fit < method - 0.2 for method, fit in zip(limits[::2], limits[1::2], strict=True))
    assert all(row["latency_ms"] > 0 and row["throughput"] for row in rows)
    assert [row["step_ms"] == row["step_ms"] for row in rows] == [False, True, True]
    assert [row.get("problem", "").startswith("its fit was stopped after") for row in rows] == [True, True, False]
    assert [list(row["stages"]) for row in rows] == [["building", "fitting", "scoring", "comparing"]] * 3
    assert "| silent | none | 8 | 2 | – | 0." in methods.table(rows, 3)


@pytest.mark.parametrize("what", ["a_fault_and_the_end_of_time", "what_does_not_end_shows_what_it_has"])
def test_the_end_of_time_costs_one_method_what_it_has_not_measured(what: str) -> None:
    program = f"from tests.test_gpu_benchmarks import {what} as it; it(); print('as it should be')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert (done.returncode, done.stdout.strip()) == (0, "as it should be"), done.stderr


ENDLESS = (1e9,) * 17
# seconds, start, what each of 17 methods needs -> how many are begun, of 10 s each at least
TIMES = {
    "35 s, and none ends": (35.0, 0.0, ENDLESS, 3),
    "35 s, of which CUDA takes 8": (35.0, 8.0, ENDLESS, 2),
    "35 s, and each needs 4": (35.0, 0.0, (4.0,) * 17, 7),
    "35 s, and the first alone does not end": (35.0, 0.0, (1e9, *(4.0,) * 16), 4),
    "less than one needs": (6.0, 0.0, ENDLESS, 1),
    "nothing left": (35.0, 36.0, ENDLESS, 0),
    "enough for all": (175.0, 0.0, ENDLESS, 17),
    "more than enough": (440.0, 3.0, ENDLESS, 17),
    "a method less": (164.0, 0.0, ENDLESS, 16),
}


@pytest.mark.parametrize("case", TIMES)
def test_as_many_methods_are_begun_as_get_their_least_time(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = script("methods")
    seconds, start, needs, expected = TIMES[case]
    now, got = [start], list[float]()
    names = [f"method {number}" for number in range(17)]

    def measure(name: str, given: argparse.Namespace, device: torch.device, row: dict[str, Any], share: Any) -> None:
        need = needs[names.index(name)]
        now[0] += min(need, share.most) + 0.05  # of stopping it
        got.append(share.most)
        row |= ROW
        if need > share.most:
            raise methods.OutOfTime("out of time")

    monkeypatch.setattr(methods, "limited", lambda seconds: nullcontext())
    monkeypatch.setattr(methods, "measure", measure)
    monkeypatch.setattr(methods, "BEGAN", 0.0)
    monkeypatch.setattr(methods, "time", argparse.Namespace(perf_counter=lambda: now[0]))
    rows = list(methods.measured(names, given(seconds=seconds, least=10.0), torch.device("cpu")))
    begun = [row["method"] for row in rows if row.get("problem") != methods.NOT_BEGUN]
    assert begun == names[:expected]
    assert [row["method"] for row in rows] == names
    assert all(most >= min(9.0, seconds) for most in got)
    assert now[0] <= max(start, seconds) + 0.1
    text = methods.table(rows, 3)
    never = f"not begun, as too little time was left: {', '.join(names[expected:])}"
    assert (never in text) == (expected < 17)
    assert "method 16: not all measured: not begun" not in text


def test_the_methods_asked_for_most_come_first_and_none_is_left_out() -> None:
    methods = script("methods")
    names = methods.every_method()
    assert names[:2] == ["stfpm", "padim"]
    assert sorted(names) == sorted({*methods.METHODS, "stfpm@fp16"} - {"pixel_mean"})


def test_what_is_done_once_for_all_is_done_before_the_first_share(monkeypatch: pytest.MonkeyPatch) -> None:
    methods, done = script("methods"), list[str]()
    monkeypatch.setattr(methods, "entry", done.append)
    monkeypatch.setattr(methods, "measure", lambda name, *others: done.append(f"measure {name}"))
    monkeypatch.setattr("sys.argv", ["methods.py", "--device", "cpu", "--methods", "stfpm@fp16", "padim"])
    monkeypatch.setattr(methods, "table", lambda rows, seeds: "")
    assert methods.main() == 0
    assert done == ["stfpm", "padim", "measure stfpm@fp16", "measure padim"]


def test_each_method_is_written_before_the_next_one_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, there = script("methods"), []

    def measure(name: str, given: argparse.Namespace, device: torch.device, row: dict[str, Any], share: Any) -> None:
        files = [json.loads(file.read_text()) for file in tmp_path.glob("methods.json")]
        there.append([row["method"] for one in files for row in one["rows"]])
        row |= ROW

    monkeypatch.setattr(methods, "measure", measure)
    chosen = ["--device", "cpu", "--methods", "stfpm", "rd4ad", "mkd", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["methods.py", *chosen])
    assert methods.main() == 0
    assert there == [[], ["stfpm"], ["stfpm", "rd4ad"]]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["methods.json", "methods.md"]
    assert methods.arguments().compiled == []  # nothing is compiled unless it is asked for


def test_a_method_that_loses_the_gpu_costs_the_others_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, became = script("methods"), list[list[str]]()
    lost = "AcceleratorError: CUDA error: an illegal memory access was encountered"

    def measured(names: Any, given: argparse.Namespace, device: torch.device) -> Any:
        for name in names:
            nothing = dict.fromkeys(methods.FIGURES, methods.UNKNOWN)
            yield {"method": name, **nothing, "problem": lost} if name == "rd4ad" else {"method": name, **ROW}

    def execv(program: str, arguments: list[str]) -> None:
        became.append(arguments)
        monkeypatch.setattr("sys.argv", arguments[1:])
        raise SystemExit(methods.main())

    monkeypatch.setattr(methods, "measured", measured)
    monkeypatch.setattr(methods.os, "execv", execv)
    monkeypatch.setattr(methods, "BEGAN", time.perf_counter() - 1000)
    chosen = [
        "--device",
        "cpu",
        "--seconds",
        "9e3",
        "--methods",
        "stfpm",
        "rd4ad",
        "mkd",
        "stad",
        "--out",
        str(tmp_path),
    ]
    monkeypatch.setattr("sys.argv", ["methods.py", *chosen])
    with pytest.raises(SystemExit):
        methods.main()
    rows = json.loads((tmp_path / "methods.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["stfpm", "rd4ad", "mkd", "stad"]
    assert [row.get("problem") for row in rows] == [None, lost, None, None]
    (arguments,) = became
    assert arguments[2:-5] == ["--device", "cpu", "--out", str(tmp_path), "--after"]
    assert (arguments[-5], arguments[-3:]) == ("--seconds", ["--methods", "mkd", "stad"])
    assert 7e3 < float(arguments[-4]) <= 8e3
    assert not methods.loses_gpu("OutOfMemoryError: CUDA out of memory")
    assert not methods.loses_gpu("ValueError: no weights")


CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   FADD R2, R2, R3 ;
.L_x_0:
        /*0020*/                   FMUL R2, R2, R3 ;
        /*0030*/              @!P0 BRA `(.L_x_0) ;
        /*0040*/               @P2 BRA `(.L_x_1) ;
        /*0050*/                   EXIT ;
.L_x_4:
        /*0060*/                   BRA `(.L_x_4);
"""


def test_instructions_are_counted_as_often_as_the_loops_around_them_run() -> None:
    instructions = script("instructions")
    assert instructions.carried_out(CODE, [5, 3]) == 3 + 5 * (2 + 3 * 2)
    with pytest.raises(ValueError, match="2 loops in the code in place of 1"):
        instructions.carried_out(CODE, [5])


def test_the_loops_of_every_launch_whose_instructions_are_counted_are_known() -> None:
    instructions = script("instructions")
    loops = [
        [instructions.trips(launch) for launch in instructions.launches(*case)]
        for case in instructions.CASES if case[3] == 32
    ]  # fmt: skip
    assert loops == [[[]], [[]], [[4, 3]], [[]]]  # of 64 x 96 fused values for a tile, 16 x 32 are made at a time
    (launch,) = instructions.launches("product", None, (64, 64), 1)
    assert instructions.trips(launch) == []  # four rows at a time, of four
    rows = dataclasses.replace(launch, arguments=launch.arguments | {"BLOCK_Y": 16})
    assert instructions.trips(rows) == [4]


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(HERE))
    module = script("kernels")
    monkeypatch.setattr(module.benchmark, "environment", lambda device: {"device": "none"})
    monkeypatch.setattr(module, "POLL", 0.01)
    return module


def timing(case: Any, benchmark: Any) -> Any:
    return benchmark.Timing(
        case=case, implementation="kdad (triton)", median_us=10.0, p20_us=9.0, p80_us=11.0, calls=4, minimum_bytes=1000,
        copy_gb_per_s=1.0, read_gb_per_s=1.0, host_us=5.0, relative_error=0.0,
    )  # fmt: skip


def measuring(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, faults: dict[int, Exception]) -> list[Any]:
    """Lets every case be measured at once but for those of `faults`, by their place; returns what was begun."""
    begun: list[Any] = []

    def measure(case: Any, device: torch.device, *, compiled: bool) -> list[Any]:
        assert not compiled
        begun.append(case)
        if fault := faults.get(len(begun)):
            raise fault
        return [timing(case, kernels.benchmark)]

    monkeypatch.setattr(kernels.benchmark, "measure", measure)
    return begun


def test_each_kernel_is_written_before_the_next_is_measured(
    tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there: list[int] = []
    begun = measuring(kernels, monkeypatch, {2: ArithmeticError("wrong"), 3: torch.OutOfMemoryError("CUDA: full")})
    note = kernels.attempt

    def noted(out: Path, case: Any, problem: str) -> None:
        there.append(sum(len(file.read_text().splitlines()) for file in tmp_path.glob("kernels.jsonl")))
        note(out, case, problem)

    monkeypatch.setattr(kernels, "attempt", noted)
    assert kernels.measured(tmp_path, time.perf_counter() + 1000, compiled=False) == 0
    assert begun == kernels.checks.cases()
    assert there[:8] == [0, 0, 1, 1, 1, 1, 1, 1]  # before and after each case, as long as nothing is written
    rows = [json.loads(line) for line in (tmp_path / "kernels.jsonl").read_text().splitlines()]
    assert len(rows) == len(begun) - 2
    assert {row["device"] for row in rows} == {"none"}
    assert (tmp_path / "kernels.md").read_text().count("| 5 |") == len(rows)
    problems = [problem for problem in kernels.attempts(tmp_path).values() if problem]
    assert problems == ["ArithmeticError: wrong", "OutOfMemoryError: CUDA: full"]
    for file in tmp_path.iterdir():
        file.unlink()
    assert kernels.measured(tmp_path, time.perf_counter() - 1, compiled=False) == 0
    assert f"{len(begun)} of {len(begun)} cases not measured" in capsys.readouterr().out


def test_a_gpu_that_is_lost_costs_the_case_that_lost_it(
    tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = kernels.checks.cases()
    measuring(kernels, monkeypatch, {3: RuntimeError("CUDA error: an illegal memory access was encountered")})
    ends = time.perf_counter() + 1000
    assert kernels.measured(tmp_path, ends, compiled=False) == kernels.LOST
    assert len(kernels.read(tmp_path)) == 2
    begun = measuring(kernels, monkeypatch, {})
    assert kernels.measured(tmp_path, ends, compiled=False) == 0
    assert begun == cases[3:]
    found = kernels.read(tmp_path)
    assert [one.case for one in found] == [*cases[:2], *cases[3:]]
    assert found[0] == timing(cases[0], kernels.benchmark)
    assert sum("illegal" in problem for problem in kernels.attempts(tmp_path).values()) == 1


MEASURING = """
import json, sys, time
from pathlib import Path
file = Path(sys.argv[1]) / "attempts.jsonl"
place = len(file.read_text().splitlines()) if file.exists() else 0
with file.open("a") as out:
    out.write(json.dumps({"case": f"case {place}", "problem": "begun, and never ended"}) + chr(10))
    out.flush()
    if place < 2:
        {0: lambda: sys.exit(3), 1: lambda: time.sleep(600)}[place]()
    out.write(json.dumps({"case": f"case {place}", "problem": ""}) + chr(10))
"""


def test_measuring_is_started_anew_where_it_died_or_hung(
    tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "command", lambda out, *more: [sys.executable, "-S", "-c", MEASURING, str(out)])
    failed = kernels.tables(tmp_path, time.perf_counter() + 100, 1.0, compiled=False)
    assert failed == ["case 0: begun, and never ended", "case 1: begun, and never ended"]
    assert list(kernels.attempts(tmp_path)) == ["case 0", "case 1", "case 2"]
    said = capsys.readouterr().out
    assert "ended with 3" in said
    assert "ended with None" in said
    assert kernels.tables(tmp_path / "never", time.perf_counter() - 1, 1.0, compiled=False) == []


def test_checks_run_side_by_side_and_end_in_time(
    tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[str] = []
    code = {"good": "print('good: fine' + 100000 * '.')", "bad": "print('bad: FAILED'); raise SystemExit(1)"}
    code["endless"] = "import time; print('begun', flush=True); time.sleep(600)"

    def process(name: str, out: Path, log: Path) -> subprocess.Popen[bytes]:
        began.append(name)
        with log.open("wb") as file:
            return subprocess.Popen([sys.executable, "-S", "-c", code[name]], stdout=file)

    monkeypatch.setattr(kernels, "check_process", process)
    failed = kernels.checked(["endless", "good", "bad"], tmp_path, time.perf_counter() + 2)
    assert set(failed) == {"bad", "endless"}
    assert began == ["endless", "good", "bad"]
    said = capsys.readouterr().out
    assert said.index("good: fine") < said.index("begun")  # as it came, however long another takes
    assert "endless: FAILED: out of time" in said
    assert "bad: FAILED: exit code 1" in said


@pytest.mark.parametrize("right", [True, False])
def test_how_launches_are_made_is_checked_before_everything_else(
    right: bool, tmp_path: Path, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str | None]] = []

    def checked(names: Any, out: Path, ends: float) -> list[str]:
        seen.extend((name, os.environ.get("KDAD_TRITON_LAUNCH")) for name in names)
        return [] if right or names != ["launching"] else ["launching"]

    monkeypatch.setenv("KDAD_TRITON_LAUNCH", "")  # so that it is put back
    monkeypatch.delenv("KDAD_TRITON_LAUNCH")
    monkeypatch.setattr(kernels, "checked", checked)
    monkeypatch.setattr(
        kernels, "tables", lambda *_: seen.append(("tables", os.environ.get("KDAD_TRITON_LAUNCH"))) or []
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("sys.argv", ["kernels.py", "--out", str(tmp_path)])
    (tmp_path / "attempts.jsonl").write_text('{"case": "of another run", "problem": ""}')
    assert kernels.main() == (0 if right else 1)
    assert [name for name, _ in seen] == [*kernels.checks.CHECKS, "tables"]
    assert {said for name, said in seen if name != "launching"} == {None if right else "official"}
    assert not (tmp_path / "attempts.jsonl").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_course_can_be_rehearsed_without_a_gpu(tmp_path: Path) -> None:
    environment = {
        **os.environ, "KDAD_REHEARSAL": "benchmarks/gpu/rehearse.py", "PYTHON": sys.executable, "BUDGET": "1500",
    }  # fmt: skip
    script = ["bash", str(HERE / "run.sh"), str(tmp_path / "out")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "attempts.jsonl", "gpu.txt", "kernels.jsonl", "kernels.md", "kernels.txt",
    ]  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out" / "kernels.jsonl").read_text().splitlines()]
    assert {row["implementation"] for row in rows} == {"kdad (triton)", "eager as papers", "eager three sums"}


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
        with pytest.raises(KeyboardInterrupt), guarded():  # as a job's code is
            interrupted(number)
        os.kill(os.getpid(), signal.SIGTERM)  # while what was begun is ended
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler)


def interrupted(number: signal.Signals) -> None:
    script("leaderboard").stopped_after(500 if number == signal.SIGTERM else 0.01)
    if number == signal.SIGTERM:
        os.kill(os.getpid(), number)
    time.sleep(5)


def test_a_leaderboard_begins_method_by_method_and_then_seed_by_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaderboard, begun, teachers = script("leaderboard"), list[tuple[str, int, str]](), dict[str, str]()

    def outcomes(jobs: Any, *arguments: Any, in_order: bool) -> Any:
        assert in_order
        begun.extend((job.method, job.seed, job.category.name) for job in jobs)
        teachers.update((job.method, job.settings.teacher) for job in jobs if job.weights)
        yield from ()

    monkeypatch.setattr(leaderboard, "outcomes", outcomes)
    monkeypatch.setattr(leaderboard, "stopped_after", lambda seconds: None)
    chosen = ["--methods", "stfpm", "pixel_mean", "--categories", "gear", "plank", "--seeds", "2", "--device", "cpu"]
    chosen += ["--dataset", "synthetic", "--preset", "quick", "--out", str(tmp_path)]
    chosen += ["--then", "padim", "rd4ad", "--weights", "random", "--teacher-of", "rd4ad=resnet18"]
    monkeypatch.setattr("sys.argv", ["leaderboard.py", *chosen])
    assert leaderboard.main() == 0
    places = [(seed, category) for seed in (0, 1) for category in ("gear", "plank")]
    first = [(method, *place) for method in ("stfpm", "pixel_mean") for place in places]
    assert begun == first + [(method, *place) for place in places for method in ("padim", "rd4ad")]
    assert teachers == {"stfpm": "efficientnet_lite0", "padim": "efficientnet_lite0", "rd4ad": "resnet18"}
    assert "stad" not in (*leaderboard.METHODS, *leaderboard.THEN)


def test_a_leaderboard_with_a_failed_job_is_not_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdad_bench.harness.surroundings import NoResult

    leaderboard = script("leaderboard")

    def outcomes(jobs: Any, *arguments: Any, in_order: bool) -> Any:
        yield from ((job, NoResult("the disk is full")) for job in jobs)

    monkeypatch.setattr(leaderboard, "outcomes", outcomes)
    monkeypatch.setattr(leaderboard, "stopped_after", lambda seconds: None)
    chosen = ["--methods", "pixel_mean", "--categories", "gear", "--seeds", "1", "--device", "cpu", "--then"]
    chosen += ["--dataset", "synthetic", "--preset", "quick", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["leaderboard.py", *chosen])
    assert leaderboard.main() == 1


def test_hours_are_those_of_the_steps_and_images_of_every_category() -> None:
    leaderboard = script("leaderboard")
    settings = {**vars_of("stfpm"), "strides": [4, 8, 16], "epochs": 2}
    stfpm = {"method": "stfpm", "settings": json.dumps(settings), "steps": 14, "train_images": 219, "status": "ok"}
    seconds = {"train_seconds": 14.0, "total_seconds": 17.0}
    steps = sum(2 * -(-counts.train // 32) for counts in leaderboard.MVTEC_AD.values())
    assert leaderboard.hours_like(stfpm | seconds, 3) == pytest.approx(3 * (steps + 15 * 3.0) / 3600)
    padim = {"method": "padim", "settings": json.dumps(vars_of("padim")), "steps": 0, "train_images": 100}
    images = sum(counts.train for counts in leaderboard.MVTEC_AD.values())
    hours = leaderboard.hours_like(padim | seconds, 1)
    assert hours == pytest.approx((0.14 * images + 15 * 3.0) / 3600)
    rows = [stfpm | seconds, stfpm | seconds, {**padim, **seconds, "status": "failed"}]
    rows.append({**stfpm, "train_seconds": None, "total_seconds": None})
    text = leaderboard.projection(rows, 4, 3)
    one = leaderboard.hours_like(stfpm | seconds, 3)
    assert f"| stfpm | 2 | {one:.2f} | {one / 4:.2f} |" in text
    assert "padim" not in text


def vars_of(method: str) -> dict[str, Any]:
    return dataclasses.asdict(entry(method).presets["paper"])


@pytest.mark.parametrize("there", ["mps", "mps that does not serve", "none"])
def test_jobs_take_turns_where_there_is_no_mps(there: str, tmp_path: Path) -> None:
    said = tmp_path / "said"
    probed = 0 if there == "mps" else 1
    programs = {
        "python": f'[ "$1" = -c ] && exit {probed}; echo "${{CUDA_MPS_PIPE_DIRECTORY-alone}}" >> $SAID; exit 3',
        "nvidia-cuda-mps-control": 'echo "mps $* $(if [ $# = 0 ]; then cat; fi)" >> $SAID',
    }
    for name, program in programs.items():
        if there != "none" or name == "python":
            (tmp_path / name).write_text(f"#!/bin/bash\n{program}\n")
            (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(tmp_path / "python"), "MPS": "1"}
    environment |= {"SAID": str(said), "KDAD_DATA": "data", "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", str(HERE / "leaderboard.sh"), str(tmp_path / "out")], env=environment, check=False)
    assert done.returncode == 3
    lines = [re.sub(r"tmp\.[^/]*$", "", line.strip()) for line in said.read_text().splitlines()]
    assert (
        lines
        == {
            "mps": ["mps -d", f"{tmp_path}/", "mps  quit"],
            "mps that does not serve": ["mps -d", "mps  quit", "alone"],
            "none": ["alone"],
        }[there]
    )
    assert not list(tmp_path.glob("tmp.*"))
