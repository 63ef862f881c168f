"""The table of one method's own page: its figures by category, with what others report of the same ones beside them."""

from __future__ import annotations

import plausible
import pytest
from test_markdown import board_of, cells, table
from test_published import MVTEC

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
    made = plausible.full_table(
        ("stfpm",), CATEGORIES, 2, variant="held_out", preset="standard", also_presets=("paper",)
    )
    board = board_of(made)
    text = measured(board)["stfpm"]
    found = board.cell(board.order[0], "bottle", "image_auroc")
    assert found is not None
    assert f"1.000 (authors' code, resnet18, {found.mean - 1:+.3f})" in text


def test_data_for_which_nothing_is_published_have_the_figures_alone() -> None:
    made = plausible.full_table(("stfpm",), CATEGORIES, 1, dataset="synthetic", preset="quick")
    (board,) = boards(table(made))
    text = measured(board)["stfpm"]
    assert "published |" not in text
    assert "Not compared: " in text
    assert list(cells(text)) == [*CATEGORIES, "mean"]


@pytest.mark.parametrize("preset", ["standard", "paper"])
def test_a_published_mean_of_more_categories_stands_beside_no_mean_of_fewer(preset: str) -> None:
    """A reader would take the difference, which is one of data."""

    def lines_of(board: Board) -> dict[str, list[str]]:
        """category -> the cells of its columns `published`, which share that heading."""
        lines = [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in measured(board)["stfpm"].splitlines()
            if "|" in line
        ]
        columns = [place for place, name in enumerate(lines[0]) if name == "published"]
        return {line[0]: [line[place] for place in columns] for line in lines[2:]}

    for category, beside in lines_of(mvtec(preset)).items():
        assert len(beside) == 3
        assert all(text == "–" for text in beside) == (category == "mean"), category
    whole = board_of(plausible.full_table(("stfpm",), MVTEC, 1, preset="paper"))
    assert "0.955 (paper, resnet18" in lines_of(whole)["mean"][0]
