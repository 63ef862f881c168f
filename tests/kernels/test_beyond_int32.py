"""The checks beyond 2^31, which need a GPU's memory, run small: they pass, and reject what they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu import beyond_int32
from benchmarks.gpu.beyond_int32 import Size
from kdad_bench import kernels

SMALL = Size(features=(3, 9, 7, 5), sample=(1, 33, 4, 6), maps=(2, 5, 4), fused=(20, 16))
CPU = torch.device("cpu")


def test_the_small_checks_pass(device: torch.device) -> None:
    lines = beyond_int32.run(SMALL, device)
    for name in ("map", "gradient", "loss", "gradient of the loss", "flattened", "gradient of flattened", "fusion"):
        assert f"{name} " in lines


def test_the_large_checks_reach_where_they_should() -> None:
    size = Size()
    assert beyond_int32.far(size.features)
    assert beyond_int32.far(size.sample)
    assert beyond_int32.far((size.maps[0], *size.fused))
    assert not beyond_int32.far((2, 64, 4112, 4112))  # as large in all, but no sample begins that far out


def wrapped(name: str, monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    real = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *given, **named: spoil(real(*given, **named)))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("pixel_discrepancy", "map"),
        ("distillation_loss", "loss"),
        ("flattened_cosine", "flattened"),
        ("fuse_scales", "fusion"),
    ],
)
def test_a_last_sample_that_is_wrong_is_rejected(name: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(found: torch.Tensor) -> torch.Tensor:
        factors = torch.ones(found.shape[:1]) if found.dim() else torch.tensor(1.0)
        factors[... if found.dim() == 0 else -1] = 1.01
        return found * factors.view(-1, *[1] * (found.dim() - 1)) if found.dim() else found * factors

    wrapped(name, monkeypatch, spoilt)
    with pytest.raises(AssertionError, match=f"{shown}: relative error"):
        beyond_int32.run(SMALL, CPU)


@pytest.mark.parametrize("name", ["pixel_discrepancy", "distillation_loss", "flattened_cosine", "fuse_scales"])
def test_results_that_change_between_calls_are_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))
    wrapped(name, monkeypatch, lambda found: found * (1 + 1e-6 * (next(calls) % 2)))
    with pytest.raises(AssertionError, match="differs between two calls"):
        beyond_int32.run(SMALL, CPU)
