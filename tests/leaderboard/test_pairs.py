"""Who beats whom: on what evidence, how sure, and what a table could have seen; and where the spread comes from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import plausible
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score
from test_markdown import board_of, page, section, table

from kdad_bench.leaderboard import components, deciding, html_pairs, images, markdown_pairs, pages, store
from kdad_bench.leaderboard.board import Board, boards
from kdad_bench.leaderboard.images import Images, placements
from kdad_bench.leaderboard.inference import holm
from kdad_bench.leaderboard.pairs import Comparison, compared, corrected, visible
from kdad_bench.leaderboard.row import Row
from kdad_bench.leaderboard.spread import CATEGORIES, IMAGES, IMAGES_AND_SEEDS, SEEDS, Drawn, Parts, parts, spread

Floats = NDArray[np.float64]
METRIC = "image_auroc"
NOTHING_KNOWN = [None] * 20


def scored_rows(
    levels: Mapping[str, float], categories: str = "abcd", seeds: int = 2, images: int = 60, draw: int = 0, **more: Any
) -> list[Row]:
    """Rows whose image AUROC is that of their scores; hard images are hard for all methods."""
    rng = np.random.default_rng(draw)
    labels = np.arange(images) < images * 0.6
    made = []
    for category in categories:
        shared = rng.normal(size=images)
        for method, level in levels.items():
            own = rng.normal(size=images)
            for seed in range(seeds):
                scores = np.float32(shared + 0.8 * own + 0.3 * rng.normal(size=images) + level * labels)
                made.append(plausible.invented(
                    method, category, seed, title=method, image_auroc=float(roc_auc_score(labels, scores)),
                    image_scores=tuple(map(float, scores)), image_labels=tuple(map(bool, labels)),
                    image_names=tuple(f"{n:03}.png" for n in range(images)), **more,
                ))  # fmt: skip
    return made


# ---- one pair by hand


def test_one_seed_is_judged_by_delongs_test() -> None:
    rng = np.random.default_rng(4)
    labels = np.arange(80) < 50
    shared = rng.normal(size=80)
    scores = {(m, 0): shared + rng.normal(size=80) + d * labels for m, d in (("a", 2.2), ("b", 1.5))}
    areas = {job: float(roc_auc_score(labels, one)) for job, one in scores.items()}
    noise = Images(labels=labels, scores=scores).noise(METRIC, areas)
    values = (np.array([[areas["a", 0]]]), np.array([[areas["b", 0]]]))
    found = compared(METRIC, ("a", "b"), values, [0], [noise], 1)
    (above_a, below_a), (above_b, below_b) = (placements(scores[m, 0], labels) for m in "ab")
    variance = (above_a - above_b).var(ddof=1) / 50 + (below_a - below_b).var(ddof=1) / 30
    assert found.error == pytest.approx(math.sqrt(variance))
    assert found.freedom == 29
    assert found.p == pytest.approx(2 * stats.t.sf(abs(areas["a", 0] - areas["b", 0]) / math.sqrt(variance), 29))
    assert (found.evidence, found.categories, found.pairs) == (IMAGES, 1, 1)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 29) * math.sqrt(variance))


def test_without_scores_the_seeds_tell_and_their_variances_add_up() -> None:
    a = np.array([[0.90, 0.92, 0.91], [0.80, 0.84, 0.82]])
    b = np.array([[0.85, 0.86, 0.90], [0.80, 0.79, 0.78]])
    found = compared(METRIC, ("a", "b"), (a, b), [0, 1, 2], [None, None], 1)
    of_means = [(a - b)[c].var(ddof=1) / 3 for c in (0, 1)]
    assert found.error == pytest.approx(math.sqrt(sum(of_means)) / 2)
    assert found.freedom == pytest.approx(sum(of_means) ** 2 / sum(v**2 / 3 for v in of_means) - 1, abs=0.1)
    assert found.evidence == SEEDS


def test_seeds_that_saw_the_same_images_share_what_these_do() -> None:
    """Variance of a mean over seeds: what all share once, and the variance over seeds over their number."""
    drawn = [Drawn(of_mean=0.0007, of_one=0.0009, shared=0.0005, freedom=20)]
    found = spread([np.array([0.9, 0.92])], drawn)
    assert found is not None
    assert found.variance == pytest.approx(0.0005 + 0.0002 / 2)
    assert found.evidence == IMAGES_AND_SEEDS
    more = spread([np.array([0.9, 0.92] * 50)], drawn)
    assert more is not None
    assert more.variance > 0.0005, "no number of seeds makes up for the images"


@pytest.mark.parametrize("more", [1, 2, 14])
def test_a_category_with_one_seed_makes_the_others_no_surer(more: int) -> None:
    """It has the variance of those with several seeds, whose few degrees of freedom are all there is."""
    two, one = np.array([0.90, 0.92]), np.array([0.9])
    found = spread([two, *[one] * more], None)
    assert found is not None
    assert found.variance == pytest.approx(two.var(ddof=1) * (1 / 2 + more) / (1 + more) ** 2)
    assert found.freedom == 1


def test_intervals_of_uneven_seeds_hold_what_they_promise() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        values = [rng.normal(size=seeds) for seeds in (2, 2, 1)]
        found = spread(values, None)
        assert found is not None
        held.append(abs(np.mean([one.mean() for one in values])) <= found.half_width(0.95))
    assert 0.94 <= np.mean(held) <= 0.985


def test_methods_that_no_seed_moves_are_judged_by_the_categories() -> None:
    a, b = np.full((7, 2), 0.9), np.full((7, 2), 0.8)
    found = compared(METRIC, ("a", "b"), (a, b), [0, 1], [None] * 7, 1)
    assert (found.evidence, found.p, found.low) == (CATEGORIES, pytest.approx(2 / 2**7), None)
    one_seed = compared(METRIC, ("a", "b"), (a[:, :1], b[:, :1]), [0], [None] * 7, 1)
    assert one_seed.evidence == CATEGORIES


def test_one_category_and_one_seed_and_no_scores_tell_nothing_sure() -> None:
    found = compared(METRIC, ("a", "b"), (np.array([[0.9]]), np.array([[0.1]])), [0], [None], 1)
    assert (found.p, found.low, found.evidence) == (None, None, "")
    made = [plausible.invented(name, "x", 0, title=name, image_auroc=value) for name, value in (("a", 0.9), ("b", 0.1))]
    told = section(page(made), "Who beats whom")
    assert (
        "0 of 1 pairs told apart; judged by nothing: neither images nor seeds tell, and there is one category" in told
    )
    assert "other categories" not in told


def test_a_turned_comparison_is_the_comparison_the_other_way() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.uniform(0.8, 1, size=(2, 5, 3))
    one = compared(METRIC, ("a", "b"), (a, b), range(3), NOTHING_KNOWN[:5], 1)
    other = compared(METRIC, ("b", "a"), (b, a), range(3), NOTHING_KNOWN[:5], 1)
    assert one.turned().turned() == one
    for name in Comparison.__slots__:
        mine, theirs = getattr(one.turned(), name), getattr(other, name)
        assert mine == (pytest.approx(theirs) if isinstance(theirs, float) else theirs), name


def test_effect_sizes_by_hand() -> None:
    a, b = np.array([[0.9, 0.8], [0.7, 0.6]]), np.array([[0.8, 0.8], [0.5, 0.7]])
    found = compared(METRIC, ("a", "b"), (a, b), [0, 1], [None, None], 1)
    jobs = np.array([0.1, 0.0, 0.2, -0.1])
    assert found.won == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert found.effect == pytest.approx(jobs.mean() / jobs.std(ddof=1))
    assert (found.a_better, found.b_better) == (2, 0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_last_bit_of_a_figure_wins_nothing(seeds: int) -> None:
    """Figures of perfect maps are 1 but for the rounding of their sums."""
    rng = np.random.default_rng(0)
    a, b = 1 - rng.integers(0, 4, (2, 8, seeds)) * np.finfo(np.float64).epsneg
    found = compared("aupro_30", ("a", "b"), (a, b), range(seeds), NOTHING_KNOWN[:8], 1)
    assert (found.difference, found.a_better, found.b_better, found.won, found.effect) == (0, 0, 0, 0.5, None)
    assert found.p_categories == 1
    assert found.p is None or found.p == 1


def test_equal_differences_have_no_deviation_to_be_measured_in() -> None:
    b = np.array([[0.9], [0.1], [0.33]])
    found = compared(METRIC, ("a", "b"), (b + 0.05, b), [0], NOTHING_KNOWN[:3], 1)
    assert (found.a_better, found.won, found.effect) == (3, 1, None)


def test_all_pairs_are_corrected_together_and_pairs_without_a_p_are_passed_over() -> None:
    ps = [0.01, None, 0.04, 0.03]
    found = corrected([
        Comparison(metric=METRIC, a="a", b="b", difference=0.1, categories=1, pairs=1, a_better=1, b_better=0, p=p)
        for p in ps
    ])  # fmt: skip
    assert [one.p_holm for one in found] == [holm([0.01, 0.04, 0.03])[0], None, *holm([0.01, 0.04, 0.03])[1:]]


def test_the_power_line_names_a_difference_that_is_found_four_times_in_five() -> None:
    """Simulated: a true difference of the named size, its error as in the table."""
    one = Comparison(
        metric=METRIC, a="a", b="b", difference=0.0, categories=1, pairs=1, a_better=0, b_better=0, p=0.5,
        error=0.02, freedom=11.0,
    )  # fmt: skip
    found = visible(METRIC, [one] * 10)
    assert found is not None
    rng = np.random.default_rng(0)
    for size, level in ((found.one, 0.05), (found.all, 0.05 / 10)):
        error = 0.02 * np.sqrt(rng.chisquare(11, 40_000) / 11)
        t = (size + 0.02 * rng.normal(size=40_000)) / error
        share = float(np.mean(np.abs(t) > stats.t.ppf(1 - level / 2, 11)))
        assert share == pytest.approx(0.8, abs=0.03)
    assert visible(METRIC, []) is None


# ---- coverage, in its short form: benchmarks/coverage.py is the long one


def test_intervals_of_differences_cover_the_truth() -> None:
    rng = np.random.default_rng(11)
    labels = np.arange(50) < 30
    levels = np.array([[2.4, 1.8], [2.0, 1.9]])  # [methods, categories]
    true = float((stats.norm.cdf(levels / math.sqrt(2 + 0.09))).mean(axis=1) @ [1, -1])
    inside = sure = 0
    for _ in range(400):
        noises, values = [], np.empty((2, 2, 2))
        for c in range(2):
            shared, scores = rng.normal(size=50), {}
            for m in range(2):
                own = rng.normal(size=50)
                for s in range(2):
                    noise = 0.6 * shared + 0.6 * own + math.sqrt(0.28) * rng.normal(size=50)
                    scores["ab"[m], s] = noise + (levels[m, c] + 0.3 * rng.normal()) * labels
                    values[m, c, s] = placements(scores["ab"[m], s], labels)[0].mean()
            figures = {(m, s): values["ab".index(m), c, s] for m, s in scores}
            noises.append(Images(labels=labels, scores=scores).noise(METRIC, figures))
        found = compared(METRIC, ("a", "b"), (values[0], values[1]), [0, 1], noises, 1)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= true <= found.high
        sure += found.p is not None and found.p < 0.05
    assert 0.92 <= inside / 400 <= 0.985
    assert sure > 8


# ---- on a board


def test_scores_of_images_decide_where_categories_never_could() -> None:
    rows = scored_rows({"good": 3.0, "bad": 1.2, "twin": 3.0})
    found = board_of(rows).summary.comparison("good", "bad", METRIC)
    assert found.evidence == IMAGES_AND_SEEDS
    assert found.significant
    assert found.p_categories == pytest.approx(2 / 2**4), "four categories alone cannot"
    twins = board_of(rows).summary.comparison("good", "twin", METRIC)
    assert not twins.significant
    bare = [
        plausible.invented(r.method, r.category, r.seed, title=r.method, image_auroc=r.image_auroc, image_scores=(),
                           image_labels=(), image_names=())
        for r in rows
    ]  # fmt: skip
    assert board_of(bare).summary.comparison("good", "bad", METRIC).evidence == SEEDS


def test_rows_whose_scores_are_not_of_their_figure_fall_back_and_the_page_says_so() -> None:
    rows = scored_rows({"good": 3.0, "bad": 1.2})
    rows[0] = plausible.invented("good", "a", 0, title="good", image_auroc=0.5, image_scores=rows[0].image_scores,
                                 image_labels=rows[0].image_labels, image_names=rows[0].image_names)  # fmt: skip
    assert board_of(rows).summary.comparison("good", "bad", METRIC).evidence == SEEDS
    text = section(page(rows), "Who beats whom")
    assert "image AUROC**: 0 of 1 pairs told apart; judged on these very test images, with other seeds" in text


def test_more_jobs_than_are_compared_by_images_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = scored_rows({"good": 3.0, "bad": 1.2})
    jobs = max(Counter(row.category for row in rows).values())
    monkeypatch.setattr(images, "MOST_JOBS", jobs)
    assert board_of(rows).summary.comparison("good", "bad", METRIC).evidence == IMAGES_AND_SEEDS
    assert f"first {jobs:,} jobs" not in section(page(rows), "Who beats whom")
    monkeypatch.setattr(images, "MOST_JOBS", jobs - 1)
    assert board_of(rows).summary.comparison("good", "bad", METRIC).evidence == SEEDS
    told = section(page(rows), "Who beats whom")
    assert f"or are not among the first {jobs - 1:,} jobs of a category, whose images are compared" in told


def test_seeds_that_set_other_images_aside_are_not_said_to_be_of_the_same_ones() -> None:
    made = scored_rows({"good": 3.0, "bad": 1.2}, contamination=0.1, preset="paper[contamination=0.1]")
    made = [replace(row, image_names=tuple(f"{row.seed}{name}" for name in row.image_names)) for row in made]
    assert board_of(made).summary.comparison("good", "bad", METRIC).evidence == SEEDS
    told = section(page(made), "Who beats whom")
    assert "with other seeds, of which each sets other images aside" in told
    assert "very test images" not in told
    assert "rows hold nothing" not in told


def test_the_matrix_says_who_beats_whom_by_how_much_and_how_sure() -> None:
    board = board_of(scored_rows({"good": 3.0, "bad": 1.0, "worst": 0.0}))
    text = page(scored_rows({"good": 3.0, "bad": 1.0, "worst": 0.0}))
    inside = text[text.index("<summary>image AUROC: every pair") :]
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in inside.splitlines() if line[:1] == "|"][:5]
    assert lines[0] == ["#", "method", "1", "2", "3", "beats", "loses to"]
    assert [line[1] for line in lines[2:]] == [board.labels[key] for key in board.order]
    place = {line[1]: line for line in lines[2:]}
    assert place["good"][-2:] == ["2", "0"]
    assert place["worst"][-2:] == ["0", "2"]
    found = board.summary.comparison("good", "worst", METRIC)
    assert f"**{found.difference:+.3f}**<br><sub>p &lt;0.001</sub>" in place["good"]
    assert f"**{-(found.difference or 0):+.3f}**<br><sub>p &lt;0.001</sub>" in place["worst"]
    assert "Holm" in text
    power = deciding.power(board, METRIC)
    assert power.startswith("With these images and seeds a difference of 0.0")
    assert power in text


def test_the_power_line_names_no_difference_that_there_cannot_be() -> None:
    made = [
        plausible.invented(name, "x", seed, title=name, image_auroc=value, image_scores=())
        for name, values in (("a", (0.9, 0.5)), ("b", (0.6, 0.7)), ("c", (0.5, 0.8)))
        for seed, value in enumerate(values)
    ]
    for rows in (made, made[:4]):
        told = deciding.power(board_of(rows), METRIC)
        assert told == "With these seeds no difference that there can be would be seen four times in five."


def test_a_matrix_of_very_many_methods_shows_the_first_and_says_so() -> None:
    many = [
        plausible.invented(f"m{n:02}", c, 0, title=f"m{n:02}", image_auroc=0.5 + n / 100, aupro_30=0.5 + n / 100)
        for n in range(deciding.MOST_SHOWN + 3) for c in "ab"
    ]  # fmt: skip
    assert f"The first {deciding.MOST_SHOWN} of {deciding.MOST_SHOWN + 3} methods." in page(many)


def test_methods_of_other_seeds_are_not_compared_and_every_page_says_why() -> None:
    rows = scored_rows({"a": 2.0}, "xy") + [
        replace(row, seed=row.seed + 2, job_id=f"b{row.job_id}") for row in scored_rows({"b": 1.0}, "xy")
    ]
    board = board_of(rows)
    found = board.summary.comparison("a", "b", METRIC)
    assert (found.difference, found.p, found.categories) == (None, None, 0)
    assert deciding.told(board, found) == "a and b: no category with a seed in common"
    assert deciding.counted(board, METRIC) == "no two methods have a category with a seed in common"
    assert deciding.power(board, METRIC) == ""
    for text in (page(rows), html_pairs.matrix(board, METRIC)):
        assert "no two methods have a category with a seed in common" in text
        assert "; ." not in text


EQUAL: dict[str, tuple[float, ...]] = {"tied": (0.5,) * 12, "perfect": tuple(float(n) for n in range(12))}


@pytest.mark.parametrize(("first", "second"), [("tied", "tied"), ("perfect", "perfect"), ("perfect", "tied")])
@pytest.mark.parametrize("seeds", [1, 2])
def test_scores_that_cannot_vary_make_no_error_and_nothing_sure(first: str, second: str, seeds: int) -> None:
    labels = tuple(n >= 6 for n in range(12))
    made = [
        plausible.invented(
            method, category, seed, title=method, image_auroc=float(roc_auc_score(labels, EQUAL[kind])), image_ap=None,
            image_scores=EQUAL[kind], image_labels=labels, image_names=tuple(f"{n:02}.png" for n in range(12)),
        )
        for method, kind in (("a", first), ("b", second)) for category in "xyz" for seed in range(seeds)
    ]  # fmt: skip
    found = board_of(made).summary.comparison("a", "b", METRIC)
    assert found.difference == pytest.approx(0.0 if first == second else 0.5)
    assert (found.low, found.evidence) == (None, CATEGORIES)
    assert found.p == (1.0 if first == second else pytest.approx(0.25))
    assert "nan" not in page(made).lower()


def test_a_category_with_one_anomalous_image_is_judged_by_seeds_and_said() -> None:
    rows = scored_rows({"a": 2.0, "b": 1.0}, "xy")
    short = [
        replace(row, image_auroc=0.5, image_scores=(0.1, 0.2, 0.3), image_labels=(True, False, False),
                image_names=("a", "b", "c")) if row.category == "y" else row for row in rows
    ]  # fmt: skip
    board = board_of(short)
    assert board.summary.comparison("a", "b", METRIC).evidence == SEEDS
    assert board.summary.in_category("a", "b", METRIC, "x").evidence == IMAGES_AND_SEEDS
    assert "on these very test images" in deciding.counted(board, METRIC)


# ---- variance components


def simulated(category: float, seed: float, images: bool, categories: int = 400) -> list[tuple[Floats, Drawn]]:
    """Values of three seeds in many categories, with an image part of 0.02 of which seeds share 0.015."""
    rng = np.random.default_rng(0)
    shared, own = (0.015, math.sqrt(0.02**2 - 0.015**2)) if images else (0.0, 0.0)
    made = []
    for _ in range(categories):
        values = 0.8 + category * rng.normal() + shared * rng.normal() + (own * rng.normal(size=3))
        values = values + seed * rng.normal(size=3)
        made.append((values, Drawn(shared**2 + own**2 / 3, shared**2 + own**2, shared**2, 30)))
    return made


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize(("category", "seed"), [(0.05, 0.02), (0.01, 0.03), (0.05, 0.0)])
def test_the_components_are_those_that_the_values_were_made_of(category: float, seed: float, images: bool) -> None:
    made = simulated(category, seed, images)
    found = parts([values for values, _ in made], [drawn for _, drawn in made] if images else None)
    assert math.sqrt(max(0.0, found.category or 0)) == pytest.approx(category, abs=0.006)
    assert math.sqrt(max(0.0, found.seed or 0)) == pytest.approx(seed, abs=0.006)
    assert found.image == (pytest.approx(0.02**2) if images else None)


@pytest.mark.parametrize("images", [True, False])
@pytest.mark.parametrize(("category", "seed"), [(0.03, 0.01), (0.0, 0.02), (0.03, 0.0), (0.0, 0.0)])
def test_small_benchmarks_are_right_on_average_also_where_a_source_adds_nothing(
    category: float, seed: float, images: bool
) -> None:
    """Benchmarks of four categories of 2, 3, 2 and 1 seeds: the mean of the estimates within 4.5 of its errors."""
    shared, own, draw = (0.015, 0.01, 800) if images else (0.0, 0.0, 800)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draw):
        values, drawn_of = [], []
        for seeds in (2, 3, 2, 1):
            level = 0.8 + category * rng.normal() + shared * rng.normal()
            values.append(level + own * rng.normal(size=seeds) + seed * rng.normal(size=seeds))
            drawn_of.append(Drawn(shared**2 + own**2 / seeds, shared**2 + own**2, shared**2 if seeds > 1 else 0.0, 30))
        found.append(parts(values, drawn_of if images else None))
    for name, true in (("category", category**2), ("seed", seed**2)):
        every = np.array([getattr(one, name) for one in found])
        assert abs(every.mean() - true) < 4.5 * every.std() / math.sqrt(draw) + 1e-15, name


def test_what_is_estimated_below_zero_is_shown_as_nothing_and_not_averaged_as_nothing() -> None:
    known = components.shares(Parts(-0.01, 0.03, 0.01))
    assert known == {"category": (0.0, 0.0), "seed": (math.sqrt(0.03), 0.75), "image sample": (0.1, 0.25)}
    rng = np.random.default_rng(3)
    board = board_of([
        plausible.invented(f"m{n}", c, s, title=f"m{n}", image_auroc=0.8 + 0.02 * rng.normal())
        for n in range(60) for c in "abc" for s in (0, 1)
    ])  # fmt: skip
    every = components.of_entrants(board, METRIC).values()
    assert any((one.category or 0) < 0 for one in every)
    pooled = components.pooled(board, METRIC)
    assert pooled is not None
    assert pooled.category == pytest.approx(np.mean([one.category for one in every]))
    assert math.sqrt(max(0.0, pooled.category or 0.0)) < 0.007, "categories add nothing here"


def test_a_floor_that_no_seed_moves_makes_the_spread_of_methods_no_smaller() -> None:
    rng = np.random.default_rng(4)
    rows = [plausible.invented("m", c, s, image_auroc=0.8 + 0.02 * rng.normal()) for c in "abc" for s in (0, 1, 2)]
    floor = [plausible.invented("pixel_mean", c, s, family="floor", image_auroc=0.6) for c in "abc" for s in (0, 1, 2)]
    alone, beside = (components.pooled(board_of(some), METRIC) for some in (rows, [*rows, *floor]))
    assert alone == beside
    only = components.pooled(board_of(floor), METRIC)
    assert only is not None
    assert only.seed == 0


def test_what_cannot_be_told_is_not_shown_as_nothing() -> None:
    assert parts([np.array([0.9])], None) == (None, None, None)
    assert parts([np.array([0.9]), np.array([0.8])], None).seed is None
    assert parts([np.array([0.9, 0.8])], None).category is None


def test_the_shares_of_a_board_add_up_and_the_command_prints_them(tmp_path: Any) -> None:
    rows = scored_rows({"good": 3.0, "bad": 1.2})
    pooled = components.pooled(board_of(rows), METRIC)
    assert pooled is not None
    known = components.shares(pooled)
    assert {*known} == {"category", "seed", "image sample"}
    assert sum(share for _, share in known.values()) == pytest.approx(1)
    for row in rows:
        store.write(row, tmp_path)
    lines = pages.spread(boards(store.read(tmp_path).table))
    assert any("spread of image AUROC: " in line and "image sample" in line for line in lines)
    assert any("AUPRO" in line and "lies in the category's part" in line for line in lines)
    assert sum("ran on one device with 2 threads" in line for line in lines) == 1


def thread_board(by_seed: Mapping[int, int], shift: float) -> Board:
    rng = np.random.default_rng(2)
    return board_of([
        plausible.invented("m", category, seed, title="m", threads=threads,
                           image_auroc=0.8 + shift * (threads == 4) + 0.001 * rng.normal())
        for category in "abcdefgh" for seed, threads in by_seed.items()
    ])  # fmt: skip


def test_the_part_of_the_threads_is_told_where_rows_differ_in_them() -> None:
    found = components.of_threads(thread_board({0: 1, 1: 1, 2: 4, 3: 4}, 0.02), METRIC)
    assert found is not None
    assert found.numbers == (1, 4)
    assert found.deviation == pytest.approx(0.02 / math.sqrt(2), rel=0.1)
    same = components.of_threads(thread_board({0: 1, 1: 1, 2: 4, 3: 4}, 0.0), METRIC)
    assert same is not None
    assert same.deviation is not None
    assert same.deviation < 0.001
    hidden = components.of_threads(thread_board({0: 1, 1: 4}, 0.02), METRIC)
    assert hidden is not None
    assert hidden.deviation is None
    assert components.of_threads(thread_board({0: 2, 1: 2}, 0.02), METRIC) is None
    assert "not told from the seed" in components.in_words(thread_board({0: 1, 1: 4}, 0.02), METRIC)


@pytest.mark.parametrize(
    ("threads", "words"),
    [
        ({0: 1, 1: 1}, "ran on one device with 1 thread: what another one, or another number of threads, adds"),
        ({0: 2, 1: 2}, "ran on one device with 2 threads: what another one, or another number of threads, adds"),
        ({0: 1, 1: 4}, "ran on one device: what another one adds"),
        ({0: None, 1: None}, "ran on one device: what another one, or another number of threads, adds"),
    ],
)
def test_what_no_job_differs_in_is_said_to_be_left_out(threads: dict[int, int], words: str) -> None:
    board = thread_board(threads, 0.0)
    for said in (components.left_out(board), markdown_pairs.components_of(board), html_pairs.components_of(board)):
        assert words in said


def test_the_same_jobs_on_two_devices_are_set_side_by_side() -> None:
    here = plausible.full_table(("stfpm",), ("bottle", "cable"), 2)
    there = [
        plausible.row("stfpm", row.category, row.seed, device="cuda", device_name="Example GPU",
                      image_auroc=row.image_auroc + shift, aupro_30=row.aupro_30)
        for row, shift in zip(here, (0.002, -0.002, 0.002, -0.002), strict=True)
    ]  # fmt: skip
    found = {one.metric: one for one in components.of_devices(boards(table([*here, *there])))}
    assert found[METRIC].deviation == pytest.approx(0.002 / math.sqrt(2))
    assert found[METRIC].jobs == 4
    assert found["aupro_30"].deviation == 0
    text = section(page([*here, *there]), "The same jobs on two devices")
    assert "mvtec_ad at 256 px, paper preset: Example CPU, 2 threads and Example GPU, image AUROC: 0.0014" in text
    other_data = [plausible.row("stfpm", r.category, r.seed, device="cuda", data_fingerprint="x") for r in here]
    assert [*components.of_devices(boards(table([*here, *other_data])))] == []


def test_a_source_that_the_shares_do_not_tell_is_named_with_where_it_lies() -> None:
    """ "Seed 100 %" of one category, and "category 100 %" of one seed, did not say what they leave out."""
    scores = {"image_scores": (), "image_labels": (), "image_names": ()}

    def words(categories: tuple[str, ...], seeds: int) -> str:
        return components.in_words(board_of(plausible.full_table(("stfpm",), categories, seeds, **scores)), METRIC)

    images = "; what the sample of images adds is not known"
    lies = " and lies in the category's part"
    assert words(("bottle", "cable"), 3).endswith(f"){images}{lies}")
    assert "seed 100 %" in words(("bottle",), 3)
    assert words(("bottle",), 3).endswith(f"; there is one category: what another one adds is not known{images}")
    assert "category 100 %" in words(("bottle", "cable"), 1)
    assert words(("bottle", "cable"), 1).endswith(
        f"; there is one seed: what another one adds is not known{lies}{images}{lies}"
    )


PRESETS = ("paper", "quick")


def test_several_boards_on_two_devices_are_told_from_each_other() -> None:
    """A line named the two devices alone, and "all these jobs" of several boards were those of each."""
    made = []
    for preset in PRESETS:
        for changes in ({}, {"device": "cuda", "device_name": "Example GPU"}):
            made += plausible.full_table(("stfpm", "mkd"), ("bottle", "cable"), 2, preset=preset, **changes)
    lines = pages.spread(boards(table(made)))
    apart = [line for line in lines if "the same jobs'" in line]
    assert len(apart) == len(set(apart)) > 0
    of_each = {f"mvtec_ad at 256 px, {preset} preset: Example CPU, 2 threads and Example GPU" for preset in PRESETS}
    assert {line.rpartition(": ")[0] for line in apart} == of_each
    assert not any(line.startswith("All these jobs") for line in lines)
    (left_out,) = (line for line in lines if "ran on one device" in line)
    assert left_out.startswith("The jobs of each board ran on one device")
    shown = html_pairs.devices(boards(table(made)))
    assert all(f"mvtec_ad at 256 px, {preset} preset<" in shown for preset in PRESETS)
    one = pages.spread(boards(table(made[:4])))
    assert any(line.startswith("All these jobs ran on one device with 2 threads") for line in one)


def test_with_one_seed_the_interval_is_for_these_trained_models() -> None:
    made = scored_rows({"a": 2.0, "b": 1.0}, "abc", seeds=1)
    words = (
        "95 % interval of the mean for these 3 categories, with other test images, for these trained models: one seed"
    )
    assert words in section(page(made), "Ranking")


@pytest.mark.parametrize(
    "apart",
    [
        {"teacher_weights": "random", "teacher_sha256": "7" * 64}, {"kdad_bench": "0.0"}, {"code_sha256": "7" * 64},
        {"data_fingerprint": "x"}, {"variant": "other"}, {"seed": 7},
    ],
    ids=str,
)  # fmt: skip
def test_other_jobs_on_another_device_say_nothing_of_the_device(apart: dict[str, Any]) -> None:
    here = plausible.full_table(("stfpm",), ("bottle", "cable"), 1)
    there = [replace(row, job_id=f"g{row.job_id}", device="cuda", device_name="GPU") for row in here]
    assert len([*components.of_devices(boards(table([*here, *there])))]) > 0
    others = [replace(row, **apart) for row in there]
    assert [*components.of_devices(boards(table([*here, *others])))] == []
