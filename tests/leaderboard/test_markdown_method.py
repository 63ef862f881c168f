"""The table of one method's own page: its figures by category, with what others report of the same ones beside them."""

from __future__ import annotations

import plausible
from test_markdown import board_of, cells, table

from kdad_bench.leaderboard.board import Board, boards
from kdad_bench.leaderboard.markdown_method import measured

CATEGORIES = ("bottle", "capsule")


def mvtec(preset: str = "standard", **changes: object) -> Board:
    return board_of(plausible.full_table(("stfpm", "rd4ad"), CATEGORIES, 2, preset=preset, **changes))


def test_a_method_has_its_own_figures_by_category_and_in_the_mean() -> None:
    board = mvtec()
    tables = measured(board)
    assert set(tables) == {"stfpm", "rd4ad"}
    key = next(key for key in board.order if board.summary.entrant(key).method == "stfpm")
    lines = cells(tables["stfpm"])
    assert list(lines) == [*CATEGORIES, "mean"]
    for category in CATEGORIES:
        found = board.cell(key, category, "image_auroc")
        assert found is not None
        assert lines[category]["image AUROC"] == f"{found.mean:.3f} ± {found.std:.3f}"
    assert "2 seeds; ± is the standard deviation over seeds" in tables["stfpm"]


def test_published_values_stand_beside_the_very_category_and_say_whose_they_are_and_of_which_network() -> None:
    text = measured(mvtec())["stfpm"]
    bottle = next(line for line in text.splitlines() if line.startswith("| bottle"))
    assert "1.000 (authors' code, resnet18)" in bottle
    assert "0.979 (anomalib, resnet18)" in bottle
    assert "0.987 (anomalib, wideresnet50)" in bottle
    assert "0.893" not in bottle  # the authors' capsule
    assert "- preset standard: the published numbers are for each paper's own sizes and budget" in text


def test_a_value_that_may_be_compared_has_its_difference() -> None:
    board = mvtec("paper")
    text = measured(board)["rd4ad"]
    key = next(key for key in board.order if board.summary.entrant(key).method == "rd4ad")
    found = board.cell(key, "bottle", "pixel_auroc")
    assert found is not None
    assert f"0.984 (anomalib, wideresnet50, {found.mean - 0.984:+.3f})" in text


def test_data_for_which_nothing_is_published_have_the_figures_alone() -> None:
    made = plausible.full_table(("stfpm",), CATEGORIES, 1, dataset="synthetic", preset="quick")
    (board,) = boards(table(made))
    text = measured(board)["stfpm"]
    assert "published |" not in text
    assert "Not compared: " in text
    assert list(cells(text)) == [*CATEGORIES, "mean"]
