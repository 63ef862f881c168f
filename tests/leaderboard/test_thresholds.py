"""The section on thresholds: there where rows have unseen normals, with their figures, and ranked nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdad_bench.harness.decision import rank_of
from kdad_bench.leaderboard import html, markdown, store
from kdad_bench.leaderboard.board import boards
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.thresholds import TAIL, chance_of_alarms, told
from kdad_bench.metrics import clopper_pearson
from tests.leaderboard import plausible


def seen(normals: int) -> dict[str, Any]:
    """Columns of a row that was judged on so many normal images and one that is not."""
    return {
        "image_labels": (*[False] * normals, True), "image_scores": (0.5,) * (normals + 1),
        "image_names": tuple(f"{number}.png" for number in range(normals + 1)),
    }  # fmt: skip


WITH: dict[str, Any] = {
    **seen(20),
    "false_alarm_floor": 0.05, "false_alarms": 0.4, "false_alarms_low": 0.19, "false_alarms_high": 0.64,
    "detected": 0.9, "normals_p": 0.001, "seg_f1": 0.5,
}  # fmt: skip


def written(folder: Path, *rows: Any) -> Path:
    for row in rows:
        store.write(row, folder)
    return folder


def test_the_section_says_what_the_rows_say(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("false_alarms", "false_alarms_low", "false_alarms_high", "detected"))
    few = {**WITH, **nothing, "false_alarm_floor": 1 / 3, "normals_p": 0.5}
    good = {**WITH, "false_alarms": 0.1, "false_alarms_low": 0.05, "detected": 1.0, "normals_p": None}
    written(
        tmp_path,
        plausible.row("stfpm", "bottle", 0, **WITH),
        plausible.row("stfpm", "cable", 0, **good),
        plausible.row("stfpm", "grid", 0, **few),
        plausible.row("rd4ad", "bottle", 0),
    )
    found = store.read(tmp_path)
    (board,) = boards(found.table)
    (line,) = told(board)
    assert line[0] == board.labels[next(key for key in board.order if board.labels[key].startswith("STFPM"))]
    assert line[3:] == ("5.0% to 33.3%", "25.0% (10.0% to 40.0%)", "1 of 2", "95.0% (90.0% to 100.0%)", "1 of 2")
    for page in (markdown.leaderboard(found), html.body(boards(found.table), found.table, found.problems, {})):
        assert "Thresholds from unseen normals" in page
        assert "25.0% (10.0% to 40.0%)" in page
    section = page.partition("Thresholds from unseen normals")[2].partition("</table>")[0]
    assert f'<tr><th scope="row">{line[0]}</th><td>' in section  # a screen reader says it with each figure
    assert not {"false_alarms", "detected", "normals_p", "false_alarm_floor"} & {*METRICS}


def test_without_unseen_normals_there_is_no_section(tmp_path: Path) -> None:
    found = store.read(written(tmp_path, plausible.row("stfpm", "bottle", 0)))
    assert "unseen normals" not in markdown.leaderboard(found)


def test_a_row_that_lacks_some_of_these_figures_costs_no_page(tmp_path: Path) -> None:
    """Each is sound by itself: the border looks at one value at a time."""
    rows = [
        plausible.row("stfpm", "bottle", seed, **{**WITH, name: None})
        for seed, name in enumerate(WITH)
        if name != "false_alarm_floor"
    ]
    written(tmp_path, *rows)
    found = store.read(tmp_path)
    assert not found.problems
    (line,) = told(boards(found.table)[0])
    assert line[5] == "7 of 7"  # one lacks the rate, one the labels of its images


@pytest.mark.parametrize(("normals", "unseen"), [(1, 9), (30, 20), (58, 40), (575, 60), (12, 99), (100, 1000)])
def test_the_chance_of_false_alarms_is_the_beta_binomial_one(normals: int, unseen: int) -> None:
    rank = rank_of(unseen, 0.1)
    law = stats.betabinom(normals, unseen + 1 - rank, rank)
    found = [chance_of_alarms(alarms, normals, unseen) for alarms in range(normals + 1)]
    assert found == pytest.approx([law.sf(alarms - 1) for alarms in range(normals + 1)], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("unseen", "normals"), [(20, 30), (40, 58), (60, 575)])
def test_normals_of_one_kind_are_seldom_called_too_many(unseen: int, normals: int) -> None:
    rng = np.random.default_rng(0)
    limits = np.sort(rng.normal(size=(4000, unseen)), axis=1)[:, rank_of(unseen, 0.1) - 1]
    alarms = (rng.normal(size=(4000, normals)) > limits[:, None]).sum(axis=1)
    too_many = [chance_of_alarms(count, normals, unseen) < TAIL for count in range(normals + 1)]
    flagged = np.mean([too_many[count] for count in alarms])
    assert flagged <= TAIL + 0.006
    shifted = (rng.normal(1.5, size=(500, normals)) > limits[:500, None]).sum(axis=1)
    assert np.mean([too_many[count] for count in shifted]) > 0.5
    lows = [clopper_pearson(count, normals)[0] for count in range(normals + 1)]
    above = np.mean([lows[count] > 0.1 for count in alarms])
    assert above > flagged + 0.02, "the interval of one threshold's rate is no test of the promise"


def test_a_threshold_that_was_unlucky_in_its_draw_is_not_called_too_many(tmp_path: Path) -> None:
    """92 of 575 normal images: an interval above the promise, for this threshold; yet no rare one of 60 images."""
    row = {**WITH, **seen(575), "false_alarm_floor": 1 / 61, "false_alarms": 0.16, "false_alarms_low": 0.13}
    found = store.read(written(tmp_path, plausible.row("stfpm", "bottle", 0, **row)))
    (line,) = told(boards(found.table)[0])
    assert line[5] == "0 of 1"


@pytest.mark.parametrize("floor", [0.0, 1e-300, 0.5, 1.0])
def test_a_floor_that_cannot_be_costs_no_page(tmp_path: Path, floor: float) -> None:
    found = store.read(written(tmp_path, plausible.row("stfpm", "bottle", 0, **{**WITH, "false_alarm_floor": floor})))
    assert len(told(boards(found.table)[0])) == 1
