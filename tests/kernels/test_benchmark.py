"""The microbenchmark: it refuses wrong results, counts minimum bytes, and writes what it measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from kdad_bench.cli.kernels import kernels as group
from kdad_bench.kernels import benchmark

CASE = benchmark.Case(op="discrepancy", shape="resnet18", batch=1, dtype="fp32", layout="nchw")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    monkeypatch.setattr(benchmark, "ROTATION", {"cpu": 1, "cuda": 1})


@pytest.mark.parametrize("op", benchmark.OPS)
def test_every_op_and_its_eager_forms_agree_with_the_oracle(op: str) -> None:
    case = dataclasses.replace(CASE, op=op)
    taps = benchmark.inputs(case, CPU)[0]
    entry = benchmark.OPS[op]
    expected = entry.oracle(benchmark.double(taps))
    assert entry.three_sum is not None
    for call in (entry.ours, entry.paper):
        assert benchmark.relative_error(call(taps), expected) < 1e-4
    cancelled = benchmark.relative_error(entry.three_sum(taps), expected)
    assert 1e-4 < cancelled < 1e-2 if op == benchmark.NEAR else cancelled < 1e-4


def test_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(benchmark.OPS["discrepancy"], ours=lambda taps: [t[:, 0] for t in taps[0]])
    monkeypatch.setitem(benchmark.OPS, "discrepancy", wrong)
    with pytest.raises(ArithmeticError, match="relative error"):
        list(benchmark.measure(CASE, CPU, compiled=False))


def test_minimum_bytes_are_those_of_the_formula() -> None:
    features = (64 * 64 * 64 + 128 * 32 * 32 + 256 * 16 * 16) * 4
    maps = (64 * 64 + 32 * 32 + 16 * 16) * 4
    assert benchmark.minimum_bytes(benchmark.OPS["discrepancy"], CASE) == 2 * features + maps
    training = dataclasses.replace(CASE, op="loss, forward and backward", batch=3, dtype="bf16")
    assert benchmark.minimum_bytes(benchmark.OPS[training.op], training) == 3 * 3 * features // 2


def test_command_prints_the_table_and_writes_parquet(tmp_path: Path) -> None:
    arguments = ["bench", "--check", "--op", "attention", "--batch", "1", "--no-compile", "--device", "cpu"]
    done = CliRunner().invoke(group, [*arguments, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "2 of 2 cases agree" in done.output
    rows = pq.read_table(tmp_path / "kernels.parquet").to_pylist()
    assert {row["implementation"] for row in rows} >= {"eager as papers", "eager three sums"}
    assert all(row["median_us"] > 0 and row["copy_gb_per_s"] > 0 for row in rows)
    assert "| attention weighting | resnet18 | 1 | fp32 | nchw |" in (tmp_path / "kernels.md").read_text()


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
