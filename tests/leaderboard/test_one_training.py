"""One training that serves all categories moves all of them: it counts once, however many categories it has."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import plausible
import pytest
from numpy.typing import NDArray
from scipy import stats
from test_markdown import board_of, page, section, table

from kdad_bench.leaderboard import compare
from kdad_bench.leaderboard.inference import CONFIDENCE
from kdad_bench.leaderboard.marks import overall_marks
from kdad_bench.leaderboard.pairs import compared
from kdad_bench.leaderboard.row import Row
from kdad_bench.leaderboard.spread import CATEGORIES, ONE_TRAINING, SEEDS, Drawn, half_across, parts, spread

Floats = NDArray[np.float64]
METRIC = "aupro_30"
NAN = math.nan


def rows(values: dict[str, Floats], *, setting: bool = True) -> list[Row]:
    """Rows of methods whose AUPRO is that of `values` [categories, seeds]; of one model for all, or one for each."""
    categories = plausible.CATEGORIES[: len(next(iter(values.values())))]
    learnt = tuple(f"{name}={place}" for place, name in enumerate(categories))
    more = {"setting": "multi-class", "learnt_together": learnt} if setting else {}
    preset = f"paper[setting=multi-class:{len(categories)}:ab12]" if setting else "paper"
    return [
        plausible.invented(method, name, seed, title=method, preset=preset, aupro_30=float(value), image_auroc=None,
                           pixel_auroc=None, **more)
        for method, grid in values.items() for name, line in zip(categories, grid, strict=True)
        for seed, value in enumerate(line) if not math.isnan(value)
    ]  # fmt: skip


def drawn_by(common: float, own: float, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """[categories, seeds] around 0.9: what a seed does to all categories, and to each by itself."""
    return np.asarray(0.9 + common * rng.normal(size=(1, shape[1])) + own * rng.normal(size=shape))


ALL_ALIKE, HALF, APART = (0.01, 0.002), (0.007, 0.007), (0.0, 0.01)


# ---- by hand


def test_the_seeds_count_once_by_their_means_over_categories() -> None:
    values = drawn_by(*HALF, (5, 4), np.random.default_rng(0))
    means = values.mean(axis=0)
    found = spread(list(values), None, together=True)
    assert found is not None
    assert found.error == pytest.approx(means.std(ddof=1) / 2)
    assert (found.freedom, found.evidence) == (3, SEEDS)
    low, high = stats.t.interval(0.95, 3, means.mean(), stats.sem(means))
    assert found.half_width(0.95) == pytest.approx((high - low) / 2)


def test_one_category_is_judged_as_ever() -> None:
    values = [np.array([0.90, 0.92, 0.97])]
    assert spread(values, None, together=True) == pytest.approx(spread(values, None))
    assert parts(values, None, together=True) == parts(values, None)


@pytest.mark.parametrize("grid", [[[0.81, 0.79], [0.59, 0.61]], [[0.75, 0.5], [0.5, 0.75]]])
def test_seeds_whose_means_tie_while_their_categories_do_not_say_nothing(grid: list[list[float]]) -> None:
    """One category went up by what the other went down: no page could be drawn, or the difference was sure at 1e-16."""
    values, other = np.array(grid), np.array([[0.7004, 0.6604], [0.6796, 0.7196]])
    assert spread(list(values), None, together=True) is None
    (found,) = [compared("pixel_auroc", ("a", "b"), (values, other), [0, 1], [None, None], 1, together=True)]
    if values[0, 0] == 0.81:
        assert (found.evidence, found.low, found.high) == (CATEGORIES, None, None)
        assert found.p == 1.0
    images = [Drawn(of_mean=0.0007, of_one=0.0009, shared=shared, freedom=20) for shared in (0.0005, 0.0001)]
    around = spread(list(values), images, together=True)
    assert around is not None
    assert around.variance == pytest.approx(0.0014 / 4), "what images do to these very models"


def test_a_page_is_drawn_where_the_means_of_seeds_tie() -> None:
    one, two = np.array([[0.75, 0.5], [0.5, 0.75]]), np.array([[0.5, 0.5], [0.25, 0.25]])
    drawn = page(rows({"one": one, "two": two}))
    assert "0.625" in drawn
    assert "**AUPRO@0.3**: 0 of 1 pairs told apart; judged with other categories" in drawn


def test_images_of_categories_are_others_and_add_up() -> None:
    values = drawn_by(*HALF, (2, 3), np.random.default_rng(1))
    images = [Drawn(of_mean=0.0007, of_one=0.0009, shared=shared, freedom=20) for shared in (0.0005, 0.0001)]
    found = spread(list(values), images, together=True)
    assert found is not None
    assert found.variance == pytest.approx(0.0006 / 4 + values.mean(axis=0).var(ddof=1) / 3)


def test_only_seeds_that_have_every_category_tell() -> None:
    values = drawn_by(*HALF, (3, 5), np.random.default_rng(2))
    values[0, 1] = values[2, 4] = NAN
    means = values[:, [0, 2, 3]].mean(axis=0)
    found = spread(list(values), None, together=True)
    assert found is not None
    assert (found.error, found.freedom) == (pytest.approx(means.std(ddof=1) / math.sqrt(3)), 2)


# ---- by simulation: nominal 5 % and 95 %


@pytest.mark.parametrize(("common", "own"), [ALL_ALIKE, HALF, APART])
@pytest.mark.parametrize("shape", [(4, 3), (15, 2)])
def test_equal_methods_are_told_apart_in_one_table_of_twenty(common: float, own: float, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    sure, covered = [], []
    for _ in range(600):
        a, b = drawn_by(common, own, shape, rng), drawn_by(common, own, shape, rng)
        found = compared(METRIC, ("a", "b"), (a, b), range(shape[1]), [None] * shape[0], 1, together=True)
        assert found.p is not None
        sure.append(found.p < 0.05)
        around = spread(list(a), None, together=True)
        assert around is not None
        covered.append(abs(a.mean() - 0.9) <= around.half_width(CONFIDENCE))
    assert 0.02 <= np.mean(sure) <= 0.085
    assert 0.92 <= np.mean(covered) <= 0.98


GAPS: dict[str, list[tuple[int, int]]] = {  # (category, seed) without a value, of four by three
    "one job": [(0, 2)], "one category with one seed": [(0, 1), (0, 2)],
    "no seed with every category": [(0, 0), (1, 1), (2, 2)],
}  # fmt: skip


@pytest.mark.parametrize(("common", "own"), [ALL_ALIKE, HALF, APART])
@pytest.mark.parametrize("gaps", GAPS)
def test_an_unfinished_table_is_not_surer_than_its_trainings(gaps: str, common: float, own: float) -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(600):
        values = drawn_by(common, own, (4, 3), rng)
        values[tuple(zip(*GAPS[gaps], strict=True))] = NAN
        around = spread(list(values), None, together=True)
        assert around is not None
        covered.append(abs(np.nanmean(values, axis=1).mean() - 0.9) <= around.half_width(CONFIDENCE))
    assert np.mean(covered) >= 0.93


@pytest.mark.parametrize("category", [0.003, 0.01, 0.05])
@pytest.mark.parametrize(("common", "own"), [ALL_ALIKE, HALF, APART])
def test_the_mean_for_other_categories_holds_another_training(common: float, own: float, category: float) -> None:
    rng = np.random.default_rng(5)
    covered = []
    for _ in range(500):
        values = drawn_by(common, own, (8, 3), rng) + category * rng.normal(size=(8, 1))
        half = half_across(list(values), spread(list(values), None, together=True))
        covered.append(abs(values.mean() - 0.9) <= half)
    assert np.mean(covered) >= 0.92


def test_what_a_training_does_to_all_is_no_part_of_the_category() -> None:
    rng = np.random.default_rng(6)
    found = []
    for _ in range(2000):
        values = drawn_by(0.02, 0.01, (6, 2), rng) + 0.01 * rng.normal(size=(6, 1))
        found.append(parts(list(values), None, together=True))
    assert np.mean([one.category for one in found]) == pytest.approx(0.01**2, rel=0.1)
    assert np.mean([one.seed for one in found]) == pytest.approx(0.02**2 + 0.01**2, rel=0.1)


# ---- on a board


def both(shape: tuple[int, int] = (4, 3)) -> dict[str, Floats]:
    """Two methods of which `b` had better trainings."""
    rng = np.random.default_rng(7)
    trainings = {"a": np.array([0.88, 0.90, 0.91]), "b": np.array([0.895, 0.935, 0.915])}
    return {name: of[: shape[1]] + 0.002 * rng.normal(size=shape) for name, of in trainings.items()}


def test_a_board_of_one_model_for_all_is_as_sure_as_its_trainings_are_many() -> None:
    values = both()
    board, each = board_of(rows(values)), board_of(rows(values, setting=False))
    gained = values["a"].mean(axis=0) - values["b"].mean(axis=0)
    found, apart = (one.summary.comparison("a", "b", METRIC) for one in (board, each))
    assert found.p == pytest.approx(stats.ttest_1samp(gained, 0).pvalue)
    assert apart.p is not None
    assert found.p is not None
    assert apart.p < 0.01 < 0.05 < found.p, "what four independent models for each seed would tell"
    assert (apart.difference, apart.p_categories) == (found.difference, found.p_categories)
    assert overall_marks(board, METRIC) == {}
    assert overall_marks(each, METRIC) == {"b": "best"}


@pytest.mark.parametrize("categories", [4, 8])
def test_no_interval_is_narrower_than_its_trainings_allow(categories: int) -> None:
    values = both((categories, 3))
    found = board_of(rows(values)).overall("a", METRIC)
    assert found is not None
    assert found.shown is not None
    low, high = stats.t.interval(0.95, 2, values["a"].mean(), stats.sem(values["a"].mean(axis=0)))
    assert found.shown[1] - found.shown[0] == pytest.approx(high - low, rel=0.05)  # made as that of a logit


def test_the_components_of_a_board_know_it() -> None:
    values = both((6, 3))
    found = board_of(rows(values)).summary.parts("a", METRIC)
    assert found == parts(list(values["a"]), None, together=True)
    assert found != parts(list(values["a"]), None)


def test_two_folders_are_compared_by_their_trainings() -> None:
    values = both()
    before, after = (
        table([replace(row, method="a", title="a") for row in rows({"a": grid})]) for grid in values.values()
    )
    found = compare.of_folders(before, after, [METRIC], 0.005)
    (mean,) = [one for one in found if one.category == "mean of 4"]
    gained = values["b"].mean(axis=0) - values["a"].mean(axis=0)
    low, high = stats.t.interval(0.95, 2, gained.mean(), stats.sem(gained))
    assert (mean.low, mean.high) == (pytest.approx(low), pytest.approx(high))
    assert mean.verdict == "same"


def test_one_training_says_that_it_speaks_for_itself_alone() -> None:
    values = both((8, 1))
    board, each = board_of(rows(values)), board_of(rows(values, setting=False))
    assert board.summary.comparison("a", "b", METRIC).evidence == ONE_TRAINING
    assert each.summary.comparison("a", "b", METRIC).evidence == CATEGORIES
    told = section(page(rows(values)), "Who beats whom")
    assert "for these trained models: one training of each serves all categories" in told
    assert "for these trained models" not in section(page(rows(values, setting=False)), "Who beats whom")
    assert "one seed says nothing of others" in board.interval_words
    assert "one seed" not in each.interval_words


def test_methods_that_no_seed_moves_are_judged_by_the_categories_of_one_model_too() -> None:
    fixed = {name: np.repeat(grid, 2, axis=1) for name, grid in both((8, 1)).items()}
    assert board_of(rows(fixed)).summary.comparison("a", "b", METRIC).evidence == CATEGORIES


def test_two_trainings_that_outweigh_the_images_hold_what_they_promise() -> None:
    """Welch's degrees of freedom would make of 95 % about 88."""
    rng = np.random.default_rng(8)
    covered = []
    for _ in range(1500):
        values = drawn_by(0.01, 0.0, (2, 2), rng) + 0.005 * rng.normal(size=(2, 1))
        images = [Drawn(of_mean=0.005**2, of_one=0.005**2, shared=0.005**2, freedom=200)] * 2
        around = spread(list(values), images, together=True)
        assert around is not None
        covered.append(abs(values.mean() - 0.9) <= around.half_width(CONFIDENCE))
    assert 0.935 <= np.mean(covered) <= 0.985
