"""What compute-sanitizer looks at on a GPU: every kernel there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu import sanitise
from kdad_bench.kernels import (
    fusion_kernels,
    neighbours_kernels,
    neighbours_triton,
    ranks_triton,
    triton_fusion,
    triton_kernels,
    triton_launch,
    triton_path,
)


def test_every_kernel_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_KERNELS", "triton")
    seen: set[str] = set()
    for module in (triton_path, triton_fusion, neighbours_triton, ranks_triton, triton_launch):
        real = module.launch

        def noted(kernel: Any, *arguments: Any, real: Any = real, **named: Any) -> None:
            seen.add(kernel.__name__)
            real(kernel, *arguments, **named)

        monkeypatch.setattr(module, "launch", noted)
    if not torch.cuda.is_available():
        monkeypatch.setattr(sanitise, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(neighbours_triton, "DIRECT", neighbours_triton.DIRECT)  # put back at the end
    monkeypatch.setattr(sanitise, "FEATURES", ((torch.float32, sanitise.NCHW, (2, 5, 3, 2)),))
    monkeypatch.setattr(sanitise, "ROWS", (4, 12, 3))
    monkeypatch.setattr(sanitise, "MAPS", sanitise.MAPS[1:])
    monkeypatch.setattr(sanitise, "SIZES", ((17, 18),))
    sanitise.main()
    there = {
        name
        for module in (triton_kernels, fusion_kernels, neighbours_kernels, ranks_triton)
        for name in vars(module)
        if name.endswith("_kernel")
    }
    assert there - seen == set()
