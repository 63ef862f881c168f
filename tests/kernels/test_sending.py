"""Small tensors reach a GPU without anybody waiting for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdad_bench.kernels import torch_path, triton_fusion
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


def test_a_new_sigma_for_every_image_fills_no_memory_and_waits_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = []
    monkeypatch.setattr(torch_path, "sent", lambda tensor, device: passed.append(device) or tensor)
    torch_path.blur_matrix.cache_clear()
    for k in range(128):
        torch_path.blur_matrix(9, 0.5 + k / 1000, 5, "torch", CPU)
    assert torch_path.blur_matrix.cache_info().currsize == 64
    assert passed == [CPU] * 128
    torch_path.blur_matrix.cache_clear()


def test_the_tables_of_fusion_on_a_gpu_are_bounded_and_sent_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = []
    monkeypatch.setattr(triton_fusion, "sent", lambda tensor, device: passed.append(device) or tensor)
    triton_fusion.fusion_of.cache_clear()
    for k in range(triton_fusion.MOST_TABLES + 8):
        blur = triton_fusion.Filter(0.5 + k / 1000, 3, "torch")
        step = triton_fusion.Step((16, 16), False, False, blur, blur)
        triton_fusion.fusion_of(1, ((8, 8),), step, "max", CPU)
    assert triton_fusion.fusion_of.cache_info().currsize == triton_fusion.MOST_TABLES
    assert passed == [CPU, CPU] * (triton_fusion.MOST_TABLES + 8)
    triton_fusion.fusion_of.cache_clear()
