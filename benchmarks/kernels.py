"""Every kernel against its eager forms: `pytest benchmarks/kernels.py --benchmark-group-by=param:op`.

`kdad-bench kernels bench` measures the same calls with bandwidth, bytes and torch.compile, and writes the table.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdad_bench.kernels import benchmark as measuring
from kdad_bench.kernels import benchmark_ops as measured

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("implementation", ["kdad", "eager as papers", "eager three sums"])
@pytest.mark.parametrize("layout", list(measured.LAYOUTS))
@pytest.mark.parametrize("op", list(measured.OPS))
def test_op(benchmark: Any, op: str, layout: str, implementation: str) -> None:
    case = measured.Case(op=op, shape="resnet18", batch=8, dtype="fp32", layout=layout)
    entry = measured.OPS[op]
    call = {"kdad": entry.ours, "eager as papers": entry.paper, "eager three sums": entry.three_sum}[implementation]
    assert call is not None
    sets = measured.inputs(case, DEVICE)
    if implementation == "kdad":
        error = measuring.relative_error(call(sets[0]), entry.oracle(measured.double(sets[0])))
        assert error < measuring.TOLERANCE["fp32"]
    turn = 0

    def rotating() -> None:
        nonlocal turn
        turn += 1
        call(sets[turn % len(sets)])
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(rotating, rounds=10, warmup_rounds=2)
