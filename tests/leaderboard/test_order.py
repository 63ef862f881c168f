"""What decides where the values of a board do not: ties of ranks, unlike seeds, the critical difference."""

from __future__ import annotations

import plausible
import pytest
from test_markdown import board_of

from kdad_bench.leaderboard.markdown_method import measured
from kdad_bench.leaderboard.metric import RANKED
from kdad_bench.leaderboard.summary import critical_difference


def test_a_methods_seeds_are_told_once_or_as_a_range() -> None:
    two = plausible.full_table(("stfpm",), ("bottle", "capsule"), 2)
    more = [*two, plausible.row("stfpm", "bottle", 2)]
    assert measured(board_of(two))["stfpm"].partition(";")[0].endswith(", 2 seeds")
    assert measured(board_of(more))["stfpm"].partition(";")[0].endswith(", 2 to 3 seeds")


def test_of_entrants_of_the_same_rank_the_better_mean_is_first() -> None:
    """Each wins one category; the better mean is that of the later by name."""
    values = {"rd4ad": (0.70, 0.80), "stfpm": (0.95, 0.79)}
    made = [
        plausible.row(method, category, seed, **{**dict.fromkeys(RANKED, 0.9), "image_auroc": value})
        for method, of in values.items()
        for category, value in zip(("bottle", "cable"), of, strict=True)
        for seed in range(2)
    ]
    board = board_of(made)
    assert len(set(board.average_ranks.values())) == 1
    assert [key.split(":")[0] for key in board.order] == ["stfpm", "rd4ad"]


def test_the_critical_difference_of_a_board_is_for_its_methods_and_categories() -> None:
    board = board_of(plausible.full_table(("rd4ad", "stfpm", "mkd"), tuple("abcdef"), 1))
    found = board.summary.ranks("image_auroc")
    assert (len(found.average), found.categories) == (3, 6)
    assert found.critical_difference == pytest.approx(critical_difference(3, 6))
