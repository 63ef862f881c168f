"""The mean of the trainings that did not run away flatters what is unstable: it says so, and wins nothing."""

from __future__ import annotations

import numpy as np
import plausible
import pytest
from test_markdown import board_of, cells, page, section, table

from kdad_bench.leaderboard import html
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.row import Row

NAMES = plausible.CATEGORIES[:4]
RAN_AWAY = "FloatingPointError: step 10: the loss is not finite (nan); lower the learning rate"
METRIC = "image_auroc"
LEVELS = {"stfpm": 0.95, "rd4ad": 0.90, "mkd": 0.80}


def rows(reason: str = "") -> list[Row]:
    """STFPM is the best by far, where of its three seeds two failed for that reason."""
    made, rng = [], np.random.default_rng(0)
    for method, level in LEVELS.items():
        for category in NAMES:
            for seed in range(3):
                values = dict.fromkeys(("image_auroc", "pixel_auroc", "aupro_30"), level + rng.normal() / 1000)
                lost = reason and method == "stfpm" and seed
                made.append(
                    plausible.failed_row(method, category, seed, reason) if lost
                    else plausible.row(method, category, seed, **values)
                )  # fmt: skip
    return made


def key(board: Board, method: str) -> str:
    return next(name for name in board.rows if board.summary.entrant(name).method == method)


def test_a_method_that_ran_away_is_neither_ranked_nor_marked() -> None:
    whole, board = board_of(rows()), board_of(rows(RAN_AWAY))
    assert whole.overall_marks(METRIC)[key(whole, "stfpm")] == "best"
    assert whole.places[key(whole, "stfpm")] == 1
    best = key(board, "stfpm")
    assert best not in board.average_ranks
    assert best not in board.ranks_in_family
    assert best not in board.overall_marks(METRIC)
    assert all(best not in board.cell_marks(METRIC, name) for name in NAMES)
    assert board.average_ranks[key(board, "rd4ad")] == 1, "the others are ranked as if it were not there"
    assert board.overall_marks(METRIC)[key(board, "rd4ad")] == "best"
    assert board.order[-1] == best


def test_pages_say_beside_the_mean_how_many_jobs_failed_and_why_there_is_no_rank() -> None:
    made = rows(RAN_AWAY)
    ranking = section(page(made), "Ranking")
    (line,) = [one for name, one in cells(ranking, by=1).items() if name.startswith("STFPM")] or [
        one for name, one in cells(ranking, by=2).items() if name.startswith("STFPM")
    ]
    assert line["#"] == "–"
    assert line["image AUROC"].endswith("(8 failed)")
    assert "not finite is neither ranked nor marked" in ranking
    board = board_of(made)
    body = html.body([board], table(made), (), {})
    assert "8 failed</span>" in body
    assert "neither ranked nor marked" in body
    assert "failed" not in section(page(rows()), "Ranking")


@pytest.mark.parametrize("reason", ["DatasetError: photo.png: damaged", "OSError: No space left on device"])
def test_a_failure_that_is_not_the_methods_takes_no_rank(reason: str) -> None:
    board = board_of(rows(reason))
    assert board.places[key(board, "stfpm")] == 1
    assert board.fewer(key(board, "stfpm"), METRIC) == " (8 failed)"


@pytest.mark.parametrize(
    ("reason", "away"),
    [
        (RAN_AWAY, True),
        ("MetricError: the score of crack/000.png is nan; a score must be finite, so no metric is computed", True),
        ("ScoreError: score or map of crack/000.png holds a NaN or an infinity when it is scored alone", True),
        ("NoNearest: rows hold NaN or infinity: they have no nearest row", True),
        ("DatasetError: m3.tiff: a mask with values below 0 or not finite; make it 0 and 1", False),
        ("MetricError: masks must be 0 or 1", False),
        ("OutOfMemoryError: not finite", False),
        ("its worker process died (exit code 1)", False),
    ],
)  # fmt: skip
def test_only_values_of_the_method_itself_count_as_run_away(reason: str, away: bool) -> None:
    """A mask that holds a NaN, say, is the fault of no method."""
    board = board_of(rows(reason))
    assert (key(board, "stfpm") in board.diverged) is away
