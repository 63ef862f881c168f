"""The pixel metrics by Triton's kernels are those that are counted on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdad_bench.kernels import dispatch, ranks
from kdad_bench.metrics import MetricError, device, pixel_metrics, region_index
from kdad_bench.metrics.device import pixel_metrics_on_device
from tests.metrics.metric_cases import KINDS, case, cases

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_KERNELS", "triton")


def agree(maps: np.ndarray, masks: np.ndarray) -> None:
    found = pixel_metrics_on_device(torch.from_numpy(maps).to(DEVICE), region_index(masks))
    assert found == pytest.approx(pixel_metrics(maps, masks), abs=1e-13)


@settings(max_examples=15, deadline=None)
@given(cases(), st.integers(1, 200), st.sampled_from([np.float32, np.float64]))
def test_small_maps_agree_in_any_number_of_chunks(drawn: tuple[np.ndarray, np.ndarray], chunk: int, dtype: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "_CHUNK", chunk)
        agree(drawn[0].astype(dtype), drawn[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.03, 0.5, 0.9])
def test_maps_of_several_programs_agree(kind: str, share: float) -> None:
    rng = np.random.default_rng(3)
    masks = rng.random((3, 31, 33)) < share
    agree(case(kind, masks, rng), masks)
