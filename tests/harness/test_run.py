"""What `run` puts into a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdad_bench.harness.axes import Axes
from kdad_bench.harness.endings import line
from kdad_bench.harness.run import columns_of, thinned
from kdad_bench.leaderboard.row import Row
from tests.harness.planned import jobs_of


def test_a_loss_curve_in_a_row_is_short_and_keeps_its_end() -> None:
    curve = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 1001)]
    kept = thinned(curve)
    assert len(kept) <= 200
    assert kept[-1] == curve[-1]
    assert thinned([]) == []


@pytest.mark.parametrize("method", ["stad", "efficientad", "stfpm:held_out", "stfpm", "padim"])
def test_a_row_says_that_a_lone_image_is_on_both_sides(method: str, tiny_tree: Path) -> None:
    name, _, variant = method.partition(":")
    one, all_ = (
        columns_of(jobs_of(tiny_tree, methods=((name, variant),), axes=(Axes(train_images=count),))[0])["deviations"]
        for count in (1, None)
    )
    parts = method in ("stad", "efficientad", "stfpm:held_out")
    assert any(line.startswith("lone image: ") for line in one) is parts
    assert not any(line.startswith("lone image: ") for line in all_)


def test_the_line_of_a_job_names_no_seconds_that_are_not_known(tiny_tree: Path) -> None:
    job = jobs_of(tiny_tree, methods=(("pixel_mean", ""),))[0]
    figures = {"image_auroc": 0.9812, "pixel_auroc": None, "aupro_30": 0.5}
    row = Row(**columns_of(job), **figures)
    assert line(job, replace(row, total_seconds=7.32)).endswith(
        ": image AUROC 0.981, pixel AUROC -, AUPRO 0.500, 7.3 s"
    )
    assert line(job, row).endswith(": image AUROC 0.981, pixel AUROC -, AUPRO 0.500")
