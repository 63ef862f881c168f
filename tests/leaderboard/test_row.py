"""A row: what it refuses, and the schema made from it."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import plausible
import pytest

from kdad_bench.leaderboard import metric, row
from kdad_bench.leaderboard.row import Row


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["image_auroc", "aupro_30", "latency_ms"])
def test_a_row_with_a_broken_number_cannot_be_made(metric: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{metric} is .*record the job as failed"):
        plausible.row("stfpm", "bottle", 0, **{metric: value})


def test_a_failed_row_needs_a_reason_and_an_ok_row_has_none() -> None:
    with pytest.raises(ValueError, match="needs its reason"):
        plausible.row("stfpm", "bottle", 0, status="failed")
    with pytest.raises(ValueError, match="status is ok but"):
        plausible.row("stfpm", "bottle", 0, reason="out of memory")
    with pytest.raises(ValueError, match="'done' is not one of ok, failed"):
        plausible.row("stfpm", "bottle", 0, status="done")


def test_the_reason_of_a_failed_row_is_one_line() -> None:
    made = plausible.failed_row("stfpm", "bottle", 0, "CUDA error:\n  out of memory\n")
    assert (made.status, made.reason) == ("failed", "CUDA error: out of memory")
    assert plausible.failed_row("stfpm", "bottle", 0, " \n").reason == "unknown"


def test_the_schema_has_every_field_of_a_row_in_order_with_a_meaning() -> None:
    assert row.SCHEMA.names == list(row.COLUMNS) == [field.name for field in dataclasses.fields(Row)]
    assert all(meaning for _, _, meaning in row.describe())
    assert row.SCHEMA.metadata == {b"kdad_bench.schema_version": str(row.SCHEMA_VERSION).encode()}
    assert set(metric.METRICS) <= set(row.COLUMNS)
    assert set(row.KEY_COLUMNS) <= set(row.COLUMNS)
    assert max(row.SCHEMA_HISTORY) == row.SCHEMA_VERSION


def test_the_accuracies_are_the_metrics_that_lie_between_0_and_1() -> None:
    assert metric.ACCURACY == (
        "image_auroc", "image_ap", "image_f1_max", "image_auroc_max",
        "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05",
        "pixel_ap_small", "pixel_ap_middle", "pixel_ap_large", "aupimo", "au_spro_05", "seg_f1", "pg2", "pb2",
    )  # fmt: skip
    assert all(metric.METRICS[name].higher_is_better for name in metric.ACCURACY)


def test_a_row_is_made_without_loading_pyarrow_and_no_part_of_the_room_loads_torch() -> None:
    code = (
        "import sys; from kdad_bench.leaderboard.row import Row;"
        "Row(job_id='a', method='m', dataset='d', category='c', seed=0, preset='quick');"
        "assert 'pyarrow' not in sys.modules, 'pyarrow';"
        "from kdad_bench.leaderboard import markdown, pages, store, long_table;"
        "from kdad_bench.cli import leaderboard, results;"
        "assert not {'torch', 'triton', 'matplotlib', 'scipy'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("value", [0, 0.25, 1, 1.0])
def test_a_contamination_is_a_share(value: float) -> None:
    assert row.fault("contamination", value) == ""
    assert plausible.row("stfpm", "bottle", 0, contamination=value).contamination == value


@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan, True, "0.5"])
def test_a_contamination_that_is_no_share_is_refused(value: Any) -> None:
    assert row.fault("contamination", value).endswith(", not a share from 0 to 1")
