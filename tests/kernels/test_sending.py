"""Small tensors reach a GPU without anybody waiting for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdad_bench.kernels import sending, torch_path, triton_path
from kdad_bench.kernels.sending import constant, sent

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of a tensor on its way to a GPU that is not there."""
    found: list[Any] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: found.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *said, **more: found.append((said, more)) or self)
    return found


def test_on_a_cpu_values_stay_where_they_are() -> None:
    tensor, array = torch.rand(3), np.arange(4)
    assert sent(tensor, CPU) is tensor
    assert sent(array, CPU).data_ptr() == array.ctypes.data
    assert sent(array.astype(np.bool_), CPU).dtype == torch.bool


@pytest.mark.parametrize("values", [torch.rand(3), np.arange(4)], ids=["tensor", "array"])
def test_a_gpu_reads_pinned_memory_in_its_own_time(values: Any, calls: list[Any]) -> None:
    sent(values, GPU)
    assert calls == ["pinned", ((GPU,), {"non_blocking": True})]


def test_constants_are_sent_once_and_may_be_learnt_through_whoever_asks_first() -> None:
    with torch.inference_mode():
        found = constant((0.25, 0.5), CPU, torch.float32)
    assert constant((0.25, 0.5), CPU, torch.float32) is found
    assert not found.is_inference()
    assert found.tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("table", "arguments", "most"),
    [
        (triton_path.blur_table, (5, CPU), triton_path.MOST_BLURS),
        (torch_path.blur_matrix, (9, 5, "torch", CPU), 64),
    ],
    ids=["triton", "torch"],
)
def test_a_new_sigma_for_every_image_fills_no_memory_and_waits_for_no_gpu(
    table: Any, arguments: tuple[Any, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = triton_path if table is triton_path.blur_table else torch_path
    passed = []
    monkeypatch.setattr(module, "sent", lambda tensor, device: passed.append(device) or tensor)
    table.cache_clear()
    sigmas = [0.5 + k / 1000 for k in range(2 * most)]
    for sigma in sigmas:
        if module is triton_path:
            table(sigma, *arguments)
        else:
            length, *rest = arguments
            table(length, sigma, *rest)
    assert table.cache_info().currsize == most
    assert passed == [CPU] * len(sigmas)
    table.cache_clear()
    assert sending.sent is sent
