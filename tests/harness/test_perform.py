"""What is said of a job that failed."""

from __future__ import annotations

from pathlib import Path

import torch

from kdad_bench.harness.perform import reason_of
from kdad_bench.metrics.exact import MetricError, pixel_metrics


def test_a_reason_is_one_line_with_the_place_in_this_package(tmp_path: Path) -> None:
    try:
        pixel_metrics(torch.zeros(2, 3), None, region_index=None)
        pixel_metrics(torch.zeros(2, 3), torch.zeros(2, 3))
    except MetricError as error:
        reason = reason_of(error)
    assert "\n" not in reason
    assert "exact.py:" in reason
