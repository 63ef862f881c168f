"""The microbenchmark: it refuses wrong results, counts minimum bytes, and writes what it measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from kdad_bench.cli.kernels import kernels as group
from kdad_bench.kernels import benchmark, benchmark_ops

CASE = benchmark_ops.Case(op="discrepancy", shape="resnet18", batch=1, dtype="fp32", layout="nchw")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    monkeypatch.setattr(benchmark_ops, "ROTATION", {"cpu": 1, "cuda": 1})


@pytest.mark.parametrize("op", benchmark_ops.OPS)
def test_every_op_and_its_eager_forms_agree_with_the_oracle(op: str) -> None:
    case = dataclasses.replace(CASE, op=op)
    taps = benchmark_ops.inputs(case, CPU)[0]
    entry = benchmark_ops.OPS[op]
    expected = entry.oracle(benchmark_ops.double(taps))
    assert entry.three_sum is not None
    for call in (entry.ours, entry.paper):
        assert benchmark.relative_error(call(taps), expected) < 1e-4
    cancelled = benchmark.relative_error(entry.three_sum(taps), expected)
    assert 1e-4 < cancelled < 1e-2 if op == benchmark_ops.NEAR else cancelled < 1e-4


def test_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(benchmark_ops.OPS["discrepancy"], ours=lambda taps: [t[:, 0] for t in taps[0]])
    monkeypatch.setitem(benchmark_ops.OPS, "discrepancy", wrong)
    with pytest.raises(ArithmeticError, match="relative error"):
        list(benchmark.measure(CASE, CPU, compiled=False))


def subnormal_gradient(fault: float) -> float:
    """The error of a float16 gradient that lies among the subnormals, when it is off by a factor."""
    case = dataclasses.replace(CASE, op="loss, forward and backward", dtype="fp16")
    gradient = 2e-7 * torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = torch.tensor(0.25, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        entry = dataclasses.replace(
            benchmark_ops.OPS[case.op],
            ours=lambda _: (value.float(), (fault * gradient).half()),
            oracle=lambda _: (value, gradient),
        )
        patch.setitem(benchmark_ops.OPS, case.op, entry)
        return benchmark.checked(case, [])


def test_a_gradient_among_the_subnormals_may_err_by_their_rounding_and_no_more() -> None:
    assert 0.05 < subnormal_gradient(1.0) < 0.5  # what float16 cannot hold
    for fault in (1.1, 0.9, -1.0, 0.0, float("nan")):
        with pytest.raises(ArithmeticError, match="relative error"):
            subnormal_gradient(fault)


def test_minimum_bytes_are_those_of_the_formula() -> None:
    features = (64 * 64 * 64 + 128 * 32 * 32 + 256 * 16 * 16) * 4
    maps = (64 * 64 + 32 * 32 + 16 * 16) * 4
    assert benchmark_ops.minimum_bytes(benchmark_ops.OPS["discrepancy"], CASE, CPU) == 2 * features + maps
    training = dataclasses.replace(CASE, op="loss, forward and backward", batch=3, dtype="bf16")
    assert benchmark_ops.minimum_bytes(benchmark_ops.OPS[training.op], training, CPU) == 3 * 3 * features // 2


@pytest.mark.parametrize(
    ("op", "dtype", "device", "transfers"),
    [
        ("discrepancy", "fp16", "cuda", 2),
        ("loss, forward and backward", "fp32", "cuda", 3),
        ("loss, forward and backward", "bf16", "cuda", 3),
        ("loss, forward and backward", "fp16", "cuda", 5),
        ("loss, forward and backward", "fp16", "cpu", 5),
        ("flattened loss, forward and backward", "fp32", "cpu", 3),
        ("flattened loss, forward and backward", "fp32", "cuda", 5),
        ("attention weighting", "fp16", "cuda", 3),
    ],
)
def test_losses_whose_backward_reads_again_move_five_transfers(
    op: str, dtype: str, device: str, transfers: int
) -> None:
    case = dataclasses.replace(CASE, op=op, dtype=dtype)
    assert benchmark_ops.transfers_of(benchmark_ops.OPS[op], case, torch.device(device)) == transfers


class Machine:
    """Stands in for a GPU: a graph is a list of calls, a launch takes 50 us, a kernel `self.us`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.us, self.graphs, self.allocated = 8.0, 0, []
        self.work = 0.0
        monkeypatch.setattr(benchmark, "captured", self.captured)
        monkeypatch.setattr(benchmark, "device_microseconds", self.device_microseconds)
        monkeypatch.setattr(benchmark, "host_microseconds", lambda call, sets: 50.0)
        monkeypatch.setattr(benchmark, "BASELINE", 1 << 10)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        benchmark.baseline.cache_clear()

    def captured(self, call: Any, sets: list[Any]) -> Any:
        self.graphs += 1
        for taps in sets:
            call(taps)

        def replay() -> None:
            self.work += self.us * len(sets)

        return replay

    def device_microseconds(self, work: Any) -> float:
        self.work = 0.0
        work()
        return self.work


def test_on_a_gpu_kernels_are_timed_by_replay_and_the_host_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    meta = torch.device("meta")
    monkeypatch.setattr(benchmark, "inputs", lambda case, device: benchmark_ops.inputs(case, CPU)[:1] * 3)
    monkeypatch.setattr(benchmark.kernels, "path", lambda device: "triton")
    monkeypatch.setattr(torch, "randn", lambda *size, device, randn=torch.randn, **named: randn(*size, **named))
    found: list[benchmark.Timing] = []
    for op, batch in (("discrepancy", 1), ("discrepancy", 2), ("loss, forward and backward", 1)):
        case = dataclasses.replace(CASE, op=op, batch=batch)
        found += benchmark.measure(case, meta, check=False, compiled=False)
    assert {timing.median_us for timing in found} == {8.0}  # per call, however many sets a graph holds
    assert {timing.host_us for timing in found} == {50.0}
    assert {timing.copy_gb_per_s for timing in found} == {2 * 4 * 1024 / 8 / 1e3}
    assert machine.graphs == 3 * benchmark.ROUNDS * 3 + 3  # three forms of three cases, and the baseline once
    table = benchmark.table(found).splitlines()
    assert "| host us |" in table[0]
    assert "| 50 |" in table[2]


def test_on_a_cpu_there_is_no_host_column() -> None:
    found = list(benchmark.measure(CASE, CPU, compiled=False))
    assert {timing.host_us for timing in found} == {None}
    assert "host" not in benchmark.table(found)


def test_command_prints_the_table_and_writes_parquet(tmp_path: Path) -> None:
    arguments = ["bench", "--check", "--op", "attention", "--batch", "1", "--no-compile", "--device", "cpu"]
    done = CliRunner().invoke(group, [*arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "2 of 2 cases agree" in done.output
    rows = pq.read_table(tmp_path / "kernels.parquet").to_pylist()
    assert {row["implementation"] for row in rows} >= {"eager as papers", "eager three sums"}
    assert all(row["median_us"] > 0 and row["copy_gb_per_s"] > 0 for row in rows)
    assert "| attention weighting | resnet18 | 1 | fp32 | nchw |" in (tmp_path / "kernels.md").read_text()


def test_a_form_that_cannot_be_compiled_is_told_and_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(call: benchmark.Call) -> benchmark.Call:
        def compiled(taps: Any) -> Any:
            raise RuntimeError("No working C++ compiler found\nmore lines")

        return compiled

    monkeypatch.setattr(benchmark, "compiled_call", fails)
    arguments = ["bench", "--op", "attention", "--batch", "1", "--layout", "nchw", "--device", "cpu"]
    done = CliRunner().invoke(group, arguments)
    assert done.exit_code == 0, done.output
    why = "left out (RuntimeError: No working C++ compiler found)\n"
    assert f"attention weighting, compiled as papers: {why}" in done.stderr
    assert "| attention weighting |" in done.stdout
    assert "compiled" not in done.stdout


@pytest.mark.parametrize("there", ["no place for folders", "a folder for the table"])
def test_command_refuses_a_place_before_anything_is_timed(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path("/proc/nope/x") if there == "no place for folders" else tmp_path / "out"
    if there == "a folder for the table":
        (out / "kernels.md").mkdir(parents=True)
    monkeypatch.setattr(benchmark, "measure", lambda *arguments, **options: pytest.fail("it was timed"))
    done = CliRunner().invoke(group, ["bench", "--op", "attention", "--device", "cpu", "--out", str(out)])
    assert done.exit_code == 2, done.output
    assert "cannot be written (" in done.output
    assert "choose --out" in done.output


def test_nothing_of_a_run_before_is_left_where_nothing_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["bench", "--check", "--op", "attention", "--batch", "1", "--no-compile", "--device", "cpu"]
    monkeypatch.setattr(benchmark, "measure", lambda *given, **options: wrong("map"))
    (tmp_path / "kernels.parquet").write_bytes(b"timings")
    done = CliRunner().invoke(group, [*arguments, "--out", str(tmp_path)])
    assert done.exit_code == 1, done.output
    assert [file.name for file in tmp_path.iterdir()] == ["kernels.md"]


def wrong(what: str) -> None:
    raise ArithmeticError(f"{what} differs")


def test_the_gpu_that_is_named_is_the_one_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for device in ("cuda:1", "cuda"):
        assert CliRunner().invoke(group, ["bench", "--op", "nonsense", "--device", device]).exit_code == 2
    assert current == [torch.device("cuda:1")]  # before events, streams and graphs are made
    done = CliRunner().invoke(group, ["bench", "--device", "cuda:2"])
    assert done.exit_code == 2
    assert "--device cuda:2: torch sees 2 GPUs" in done.output


def test_command_refuses_what_it_cannot_do() -> None:
    done = CliRunner().invoke(group, ["bench", "--op", "nonsense", "--device", "cpu"])
    assert done.exit_code == 2
    assert "no case matches" in done.output
    if not torch.cuda.is_available():
        done = CliRunner().invoke(group, ["bench", "--device", "cuda"])
        assert done.exit_code == 2
        assert "torch sees no GPU" in done.output


def test_inspect_refuses_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = CliRunner().invoke(group, ["inspect"])
    assert done.exit_code == 2
    assert "unset it" in done.output
