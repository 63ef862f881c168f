"""The section on thresholds: there where rows have unseen normals, with their figures, and ranked nowhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdad_bench.leaderboard import html, markdown, store
from kdad_bench.leaderboard.board import boards
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.thresholds import told
from tests.leaderboard import plausible

WITH: dict[str, Any] = {
    "false_alarm_floor": 0.05, "false_alarms": 0.2, "false_alarms_low": 0.12, "false_alarms_high": 0.3,
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
    assert line[3:] == ("5.0% to 33.3%", "15.0% (10.0% to 20.0%)", "1 of 2", "95.0% (90.0% to 100.0%)", "1 of 2")
    for page in (markdown.leaderboard(found), html.body(boards(found.table), found.table, found.problems, {})):
        assert "Thresholds from unseen normals" in page
        assert "15.0% (10.0% to 20.0%)" in page
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
    assert line[5] == "4 of 4"  # one lacks the rate, one the end of its interval
