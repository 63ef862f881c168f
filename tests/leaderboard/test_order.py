"""What decides where the values of a board do not: ties of ranks, unlike seeds, the critical difference."""

from __future__ import annotations

import plausible
import pytest
from test_markdown import board_of, page, table

from kdad_bench.leaderboard.board import boards
from kdad_bench.leaderboard.markdown_method import measured
from kdad_bench.leaderboard.metric import RANKED
from kdad_bench.leaderboard.provenance import PROVENANCE, provenance
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


def test_numbers_in_the_names_of_categories_are_in_the_order_of_numbers() -> None:
    board = board_of(plausible.full_table(("stfpm",), ("cat10", "cat2", "cat1", "7", "dog"), 1))
    assert board.categories("image_auroc") == ("7", "cat1", "cat2", "cat10", "dog")


def test_larger_budgets_stand_before_the_quick_ones() -> None:
    """By name `quick` opened the page, with the numbers that say least."""
    made = [
        plausible.row("stfpm", "bottle", 0, preset=name) for name in ("quick", "own", "standard", "standard[steps=9]")
    ]
    found = [board.group.preset for board in boards(table(made))]
    assert found == ["standard", "standard[steps=9]", "own", "quick"]


def test_ranks_over_unlike_categories_say_over_which() -> None:
    """A mean of ranks over two categories and over the one with masks stood as if both were of the same."""
    without = {"aupro_30": None, "pixel_auroc": None, "pixel_ap": None, "pixel_f1_max": None, "aupro_05": None}
    whole = [plausible.row(method, "bottle", 0) for method in ("stfpm", "mkd")]
    mixed = [*whole, *(plausible.row(method, "cable", 0, **without) for method in ("stfpm", "mkd"))]
    assert board_of(whole).rank_words == "Average rank: over the categories, of image AUROC and AUPRO@0.3."
    said = "the mean of those of image AUROC (over 2) and AUPRO@0.3 (over 1), each over the categories that have it."
    assert board_of(mixed).rank_words == f"Average rank: {said}"
    assert f"Average rank: {said}" in page(mixed)
    nothing = [plausible.row("stfpm", "bottle", 0, **without, image_auroc=None)]
    text = page(nothing)
    assert "No ranked metric was measured: there is no average rank." in text
    assert "is not ranked: its mean" not in text


def test_sizes_among_the_origins_stand_in_the_order_of_numbers() -> None:
    rows = [
        {"status": "ok", "git_dirty": False, **dict.fromkeys(dict(PROVENANCE).values()), "resolution": r}
        for r in (1024, 64, 256)
    ]
    assert provenance(rows) == [("map resolution", "64, 256, 1024")]
