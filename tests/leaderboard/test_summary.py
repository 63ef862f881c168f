"""Means, intervals, tests and ranks against numbers worked out by hand and against scipy."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import plausible
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kdad_bench.leaderboard.grouping import summarise
from kdad_bench.leaderboard.inference import (
    average_ranks,
    critical_difference,
    holm,
    interval_across,
    interval_around,
    wilcoxon,
)
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.row import SCHEMA, Row
from kdad_bench.leaderboard.spread import spread
from kdad_bench.leaderboard.summary import Summary

METRIC = "image_auroc"


def row(method: str, category: str, seed: int, value: float | None, **columns: object) -> Row:
    known = {
        "job_id": f"{method}-{category}-{seed}-{len(columns)}",
        "created_at": "2026-01-01T00:00:00",
        "dataset": "mvtec_ad",
        "preset": "quick",
        "protocol_version": "1",
        "resolution": 256,
        "device": "cpu",
        "device_name": "a CPU",
        "data_fingerprint": f"files of {category}",
    }
    return Row(**{**known, "method": method, "category": category, "seed": seed, METRIC: value, **columns})


def summaries_of(rows: list[Row]) -> list[Summary]:
    """The summaries of rows as a results folder gives them back."""
    lines = [{f.name: getattr(r, f.name) for f in dataclasses.fields(r)} for r in rows]
    return summarise(pa.Table.from_pylist(lines, SCHEMA).to_pylist(), tuple(METRICS))


def only(rows: list[Row]) -> Summary:
    (summary,) = summaries_of(rows)
    return summary


def grid(values: dict[str, list[list[float | None]]]) -> list[Row]:
    """Rows of method -> [category][seed] values."""
    return [
        row(method, f"c{c:02}", seed, value)
        for method, categories in values.items()
        for c, seeds in enumerate(categories)
        for seed, value in enumerate(seeds)
        if value is not None
    ]


# --- means and intervals


def test_a_cell_is_the_mean_over_seeds_with_n_minus_one_and_students_interval() -> None:
    cell = only(grid({"a": [[0.90, 0.92, 0.97]]})).cell("a", "c00", METRIC)
    assert cell is not None
    assert cell.mean == pytest.approx(0.93)
    assert cell.std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    half = 4.302652729911275 * cell.std / math.sqrt(3)  # t of 2 degrees of freedom at 0.975
    assert (cell.low, cell.high) == (pytest.approx(0.93 - half), pytest.approx(0.93 + half))
    assert (cell.seeds, cell.categories) == (3, 1)


def test_the_overall_mean_is_over_categories_and_its_std_over_seeds() -> None:
    overall = only(grid({"a": [[0.8, 0.9], [0.6, 1.0], [0.7, 0.8]]})).overall("a", METRIC)
    assert overall is not None
    assert overall.mean == pytest.approx((0.85 + 0.8 + 0.75) / 3)
    assert overall.std == pytest.approx(abs(0.9 - 0.7) / math.sqrt(2))  # seed means 0.7 and 0.9
    assert overall.low is not None
    assert overall.high is not None
    assert overall.low < overall.mean < overall.high
    assert (overall.seeds, overall.categories, overall.complete) == (2, 3, True)


def test_a_category_with_more_seeds_does_not_weigh_more() -> None:
    overall = only(grid({"a": [[1.0, 1.0, 1.0], [0.0, None, None]]})).overall("a", METRIC)
    assert overall is not None
    assert overall.mean == pytest.approx(0.5)
    assert overall.std is None  # only one seed has a value in every category
    assert overall.seeds == 1


def test_a_single_value_has_neither_std_nor_interval() -> None:
    summary = only(grid({"a": [[0.9]]}))
    for found in (summary.cell("a", "c00", METRIC), summary.overall("a", METRIC)):
        assert found is not None
        assert (found.mean, found.std, found.low, found.high) == (0.9, None, None, None)


def test_a_metric_without_values_has_no_estimate() -> None:
    summary = only(grid({"a": [[0.9]]}))
    assert summary.cell("a", "c00", "pixel_ap") is None
    assert summary.overall("a", "pixel_ap") is None
    assert summary.ranks("pixel_ap").average == {}


def test_the_interval_of_alike_categories_is_a_point_and_of_any_lies_around_the_mean() -> None:
    same = np.full((5, 3), 0.4)
    assert interval_across(same) == pytest.approx((0.4, 0.4))
    low, high = interval_across(np.array([[0.9, 0.92], [0.8, 0.78], [0.95, 0.97]]))
    assert 0.3 < low < 0.887 < high < 1


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("categories", [2, 4, 12, 60])
def test_the_interval_over_categories_is_students_of_their_means(categories: int, shares: bool) -> None:
    values = np.random.default_rng(3).normal(0.5, 0.05, size=(categories, 3))
    means = values.mean(axis=1)
    half = stats.t.ppf(0.975, categories - 1) * means.std(ddof=1) / math.sqrt(categories)
    expected = interval_around(float(means.mean()), half, shares=shares)
    assert interval_across(values, shares=shares) == pytest.approx(expected)
    assert interval_across(values[::-1], shares=shares) == pytest.approx(expected), "in any order"


@pytest.mark.parametrize("values", [[[1.0], [0.999]], [[0.0], [1.0]], [[1.0], [1.0], [0.5]], [[1.0], [1.0]]])
def test_the_interval_of_shares_over_categories_stays_between_0_and_1(values: list[list[float]]) -> None:
    low, high = interval_across(np.array(values))
    assert 0 <= low <= np.mean(values) <= high <= 1


def test_two_categories_apart_leave_nearly_everything_open() -> None:
    """A half-width beyond the scale is no bound at all, wherever the mean lies."""
    low, high = interval_across(np.array([[0.9], [0.6]]))
    assert low < 0.01
    assert high > 0.99


def test_images_and_seeds_set_a_least_width_that_categories_alike_by_chance_cannot_undercut() -> None:
    alike = np.array([[0.9, 0.9], [0.9, 0.9], [0.9, 0.9]])
    low, high = interval_across(alike, within=0.01)
    assert (high - low) / 2 == pytest.approx(0.01, rel=0.05)
    apart = np.array([[0.9], [0.8], [0.85]])
    assert interval_across(apart, within=0.01) == interval_across(apart)


@given(mean=st.floats(0, 1), half=st.floats(0, 5))
@settings(max_examples=50)
def test_the_interval_of_a_share_lies_in_0_to_1_around_it(mean: float, half: float) -> None:
    low, high = interval_around(mean, half)
    assert 0 <= low <= mean <= high <= 1
    mirrored = interval_around(1 - mean, half)
    assert (1 - mirrored[1], 1 - mirrored[0]) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_of_a_share_is_that_of_its_logit() -> None:
    low, high = interval_around(0.9, 0.05)
    ends = [1 / (1 + math.exp(-(math.log(9) + sign * 0.05 / 0.09))) for sign in (-1, 1)]
    assert (low, high) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    assert 0.9 - low > high - 0.9, "near 1 it reaches further down"
    assert interval_around(5.0, 0.5, shares=False) == (4.5, 5.5)


@pytest.mark.parametrize("mean", [0.0, 0.001, 0.004])
def test_at_the_ends_of_the_scale_the_interval_does_not_run_away(mean: float) -> None:
    low, high = interval_around(mean, 0.02)
    assert low == pytest.approx(0, abs=0.005)
    assert mean + 0.02 < high < mean + 0.08


@pytest.mark.parametrize(("categories", "these"), [(1, True), (2, True), (5, True), (6, False), (9, False)])
def test_with_few_categories_the_interval_for_these_is_shown(categories: int, these: bool) -> None:
    rng = np.random.default_rng(0)
    values = np.clip(rng.uniform(0.6, 0.9, (categories, 1)) + 0.01 * rng.normal(size=(categories, 3)), 0, 1)
    found = only(grid({"a": values.tolist()})).overall("a", METRIC)
    assert found is not None
    around = spread(list(values), None)
    assert around is not None
    expected = interval_around(found.mean, around.half_width(0.95))
    assert (found.these_low, found.these_high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    assert found.shown == ((found.these_low, found.these_high) if these else (found.low, found.high))
    if categories > 1:
        assert found.low is not None
        assert found.these_low is not None
        assert found.low < found.these_low, "other categories differ more"


def test_no_interval_for_these_categories_where_nothing_tells() -> None:
    found = only(grid({"a": [[0.9], [0.8]]})).overall("a", METRIC)
    assert found is not None
    assert (found.shown, found.these_low) == (None, None)
    assert found.low is not None


def test_the_interval_passes_over_missing_seeds() -> None:
    nan = float("nan")
    low, high = interval_across(np.array([[nan, 0.5, nan], [0.5, nan, 0.5], [0.5, 0.5, 0.5]]))
    assert (low, high) == pytest.approx((0.5, 0.5))


# --- Wilcoxon, Holm, ranks


def test_wilcoxon_by_hand() -> None:
    assert wilcoxon([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert wilcoxon([1, 2, 3, 4, 5]) == pytest.approx(2 / 32)
    assert wilcoxon([-1, 2, 3, 4, 5]) == pytest.approx(4 / 32)  # W = 1: nothing, or the 1
    assert wilcoxon([1, 1, -1]) == 1.0  # ranks 2 2 2; at most 4 of 6 on one side
    assert wilcoxon([0, 0, 5]) == 1.0
    assert wilcoxon([0.0, 0.0]) == 1.0


@settings(max_examples=60)
@given(st.lists(st.floats(-1, 1).filter(lambda x: abs(x) > 1e-6), min_size=1, max_size=25, unique_by=abs))
def test_wilcoxon_without_ties_is_scipys_exact_test(differences: list[float]) -> None:
    rounded = np.round(differences, 12)
    if len(set(np.abs(rounded))) == len(rounded):
        expected = stats.wilcoxon(rounded, method="exact").pvalue
        assert wilcoxon(differences) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_wilcoxon_with_ties_is_the_permutation_test_of_all_signs(differences: list[int]) -> None:
    kept = np.array([d for d in differences if d])
    ranks = average_ranks(np.abs(kept).astype(float)) if kept.size else np.array([])
    sums = [float(np.dot(signs, ranks)) for signs in itertools.product((0, 1), repeat=len(kept))]
    observed = float(ranks[kept > 0].sum()) if kept.size else 0.0
    low, high = np.mean([s <= observed for s in sums]), np.mean([s >= observed for s in sums])
    assert wilcoxon(differences) == pytest.approx(min(1.0, 2 * min(low, high)))


def test_wilcoxon_of_many_categories_does_not_overflow() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, 300)
    assert wilcoxon(values) == pytest.approx(stats.wilcoxon(values, method="approx").pvalue, rel=0.02)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_average_ranks_are_scipys(values: list[int]) -> None:
    np.testing.assert_array_equal(average_ranks(np.array(values, float)), stats.rankdata(values))


def test_the_critical_difference_is_demsars() -> None:
    assert critical_difference(4, 14) == pytest.approx(
        2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3
    )  # his example: 1.25
    assert critical_difference(1, 14) is None
    assert critical_difference(4, 1) is None
    for methods in (2, 5, 13, 20, 21):
        expected = stats.studentized_range.ppf(0.95, methods, np.inf) / math.sqrt(2)
        assert critical_difference(methods, 10) == pytest.approx(
            expected * math.sqrt(methods * (methods + 1) / 60), rel=1e-5
        )


def test_average_ranks_by_hand() -> None:
    summary = only(grid({"a": [[0.9], [0.8], [0.7]], "b": [[0.8], [0.8], [0.6]], "c": [[0.7], [0.9], [0.5]]}))
    ranks = summary.ranks(METRIC)
    assert ranks.average == pytest.approx({"a": (1 + 2.5 + 1) / 3, "b": (2 + 2.5 + 2) / 3, "c": (3 + 1 + 3) / 3})
    assert ranks.categories == 3


def test_a_metric_of_which_less_is_better_is_ranked_the_other_way() -> None:
    rows = [
        row(m, f"c{c}", 0, None, latency_ms=value) for m, value in (("slow", 9.0), ("quick", 2.0)) for c in range(3)
    ]
    summary = only(rows)
    assert summary.ranks("latency_ms").average == {"quick": 1.0, "slow": 2.0}
    assert summary.comparison("quick", "slow", "latency_ms").a_better == 3
    assert summary.comparison("quick", "slow", "latency_ms").difference == -7.0


# --- comparisons


def test_methods_are_paired_by_category_and_seed() -> None:
    # b is 0.1 below a wherever both were run; the seed that b alone has must not count
    found = only(grid({"a": [[0.9, 0.5, None], [0.8, 0.7, None]], "b": [[0.8, 0.4, 1.0], [0.7, 0.6, 1.0]]}))
    comparison = found.comparison("a", "b", METRIC)
    assert comparison.difference == pytest.approx(0.1)
    assert (comparison.categories, comparison.pairs, comparison.a_better, comparison.b_better) == (2, 4, 2, 0)
    turned = found.comparison("b", "a", METRIC)
    assert turned.difference == pytest.approx(-0.1)
    assert (turned.a_better, turned.b_better, turned.p_holm) == (0, 2, comparison.p_holm)


def test_the_number_of_seeds_does_not_make_a_difference_significant() -> None:
    few = only(grid({"a": [[0.9] * 2] * 5, "b": [[0.8] * 2] * 5}))
    many = only(grid({"a": [[0.9] * 50] * 5, "b": [[0.8] * 50] * 5}))
    for summary in (few, many):
        comparison = summary.comparison("a", "b", METRIC)
        assert comparison.p == pytest.approx(2 / 32)
        assert not comparison.significant


def test_all_pairs_are_corrected_together() -> None:
    rng = np.random.default_rng(0)
    values = {m: [[0.6 + 0.1 * i + 0.001 * rng.random()] for _ in range(8)] for i, m in enumerate("abc")}
    comparisons = only(grid(values)).comparisons(METRIC)
    assert [c.p for c in comparisons] == pytest.approx([2 / 256] * 3)
    assert [c.p_holm for c in comparisons] == pytest.approx([6 / 256] * 3)
    assert all(c.significant for c in comparisons)


def test_methods_without_a_common_category_are_not_compared() -> None:
    comparison = only([row("a", "x", 0, 0.9), row("b", "y", 0, 0.8)]).comparison("a", "b", METRIC)
    assert (comparison.p, comparison.p_holm, comparison.difference, comparison.significant) == (None, None, None, False)


def test_an_unknown_pair_or_entrant_is_named() -> None:
    summary = only(grid({"a": [[0.9]], "b": [[0.8]]}))
    with pytest.raises(KeyError, match="no comparison of 'a' with 'z'; have: a, b"):
        summary.comparison("a", "z", METRIC)
    with pytest.raises(KeyError, match="no entrant 'z'; have: a, b"):
        summary.overall("z", METRIC)


# --- what may stand in one table


@pytest.mark.parametrize(
    ("column", "other"),
    [
        ("device", "cuda"),
        ("device_name", "another CPU"),
        ("preset", "paper"),
        ("protocol_version", "2"),
        ("dataset", "synthetic"),
        ("modality", "depth"),
        ("resolution", 128),
        ("origin", "external, protocol not verified"),
    ],
)
def test_rows_that_differ_in_this_never_meet(column: str, other: object) -> None:
    summaries = summaries_of([row("a", "x", 0, 0.9), row("a", "x", 0, 0.1, **{column: other})])
    assert len(summaries) == 2
    assert sorted(s.overall("a", METRIC).mean for s in summaries) == [0.1, 0.9]  # type: ignore[union-attr]


def test_failed_jobs_are_listed_and_not_averaged() -> None:
    broken = dataclasses.replace(row("a", "y", 0, None), status="failed", reason="CUDA out of memory")
    summary = only([row("a", "x", 0, 0.9), broken, row("b", "x", 0, 0.8), row("b", "y", 0, 0.8)])
    assert summary.failed == (("a", "y", 0, "CUDA out of memory"),)
    assert summary.missing("a", METRIC) == ("y",)
    overall = summary.overall("a", METRIC)
    assert overall is not None
    assert (overall.mean, overall.categories, overall.complete) == (0.9, 1, False)
    assert summary.ranks(METRIC).average == {"b": 1.0}


def test_the_newest_row_of_a_repeated_job_counts_and_this_is_said() -> None:
    rows = [
        row("a", "x", 0, 0.5, job_id="later", created_at="2026-02-01T00:00:00"),
        row("a", "x", 0, 0.9, job_id="earlier", created_at="2026-01-01T00:00:00"),
    ]
    for order in (rows, rows[::-1]):
        summary = only(order)
        assert summary.cell("a", "x", METRIC).mean == 0.5  # type: ignore[union-attr]
        assert summary.jobs == {("a", "x", 0): "later"}
        assert summary.problems == ("1 results of repeated jobs left out: the newest row of each counts",)


def test_the_newest_row_is_so_by_the_moment_whatever_zone_its_text_names() -> None:
    rows = [
        row("a", "x", 0, 0.5, job_id="later", created_at="2026-01-01T23:30:00-05:00"),
        row("a", "x", 0, 0.9, job_id="earlier", created_at="2026-01-02T01:00:00+00:00"),
    ]
    assert only(rows).jobs == {("a", "x", 0): "later"}


def test_a_later_failure_does_not_erase_a_result() -> None:
    failure = dataclasses.replace(
        row("a", "x", 0, None, job_id="z", created_at="2026-03-01T00:00:00"), status="failed", reason="killed"
    )
    summary = only([row("a", "x", 0, 0.9), failure])
    assert summary.failed == ()
    assert summary.overall("a", METRIC).mean == 0.9  # type: ignore[union-attr]


def test_rows_of_changed_files_are_left_out_and_this_is_said() -> None:
    rows = [
        row("a", "x", 0, 0.5, job_id="1", data_fingerprint="old", created_at="2026-01-01T00:00:00"),
        row("b", "x", 0, 0.9, job_id="2", data_fingerprint="new", created_at="2026-02-01T00:00:00"),
    ]
    summary = only(rows)
    assert [e.key for e in summary.entrants] == ["b"]
    assert summary.problems == ("category 'x': 1 row left out, made from other files than the newest row's",)


def test_variants_and_other_teachers_are_entrants_of_their_own() -> None:
    rows = [
        row("a", "x", 0, 0.9, teacher="resnet18", teacher_weights="torchvision", teacher_sha256="11"),
        row("a", "x", 0, 0.5, teacher="resnet18", teacher_weights="random", teacher_sha256="22", job_id="r"),
        row("a", "x", 0, 0.7, variant="held_out", job_id="v"),
    ]
    summary = only(rows)
    assert [e.key for e in summary.entrants] == ["a:held_out", "a@resnet18 random", "a@resnet18 torchvision"]
    assert summary.overall("a@resnet18 random", METRIC).mean == 0.5  # type: ignore[union-attr]


def test_summaries_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    rows = grid({m: rng.random((4, 3)).tolist() for m in ("a", "b", "c")})
    expected = only(rows)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(rows))
        found = only([rows[i] for i in order])
        assert found.overall("a", METRIC) == expected.overall("a", METRIC)
        assert found.comparisons(METRIC) == expected.comparisons(METRIC)
        assert found.ranks(METRIC) == expected.ranks(METRIC)


def test_no_rows_have_no_summaries() -> None:
    assert summaries_of([]) == []


# --- failures and files that changed


def rows_of_two_contents(*, failed_last: bool) -> list[Row]:
    good = row("a", "x", 0, 0.9, job_id="good", created_at="2026-01-01T00:00:00", data_fingerprint="whole")
    broken = dataclasses.replace(
        good, job_id="broken", status="failed", reason="torn", data_fingerprint="torn",
        created_at="2026-02-01T00:00:00" if failed_last else "2025-12-01T00:00:00", image_auroc=None,
    )  # fmt: skip
    return [good, broken]


@pytest.mark.parametrize("failed_last", [True, False])
def test_a_failure_on_other_files_takes_no_result_off_the_table(failed_last: bool) -> None:
    summary = only(rows_of_two_contents(failed_last=failed_last))
    assert summary.jobs == {("a", "x", 0): "good"}
    assert summary.problems == ()
    assert summary.failed == ()


def test_a_failure_alone_is_listed_whatever_files_it_saw() -> None:
    _, broken = rows_of_two_contents(failed_last=True)
    summary = only([broken, dataclasses.replace(broken, job_id="c", category="y", data_fingerprint="other")])
    assert [failure[1] for failure in summary.failed] == ["x", "y"]


def test_of_finished_rows_only_the_newest_content_counts_and_this_is_said() -> None:
    good, broken = rows_of_two_contents(failed_last=True)
    newer = dataclasses.replace(good, job_id="newer", data_fingerprint="new", created_at="2026-01-15T00:00:00")
    summary = only([good, broken, newer])
    assert summary.jobs == {("a", "x", 0): "newer"}
    assert summary.problems == ("category 'x': 1 row left out, made from other files than the newest row's",)


@pytest.mark.parametrize("drawn_first", [True, False])
def test_whether_a_board_is_of_drawn_images_is_what_the_rows_that_count_say(drawn_first: bool) -> None:
    """An older row of other files, or a failure, decides nothing; one category of drawn images marks the whole."""
    old = row("a", "x", 0, 0.9, job_id="1", data_fingerprint="old", synthetic=drawn_first)
    new = row("a", "x", 1, 0.9, job_id="2", data_fingerprint="new", synthetic=not drawn_first,
              created_at="2026-02-01T00:00:00")  # fmt: skip
    failure = dataclasses.replace(old, job_id="3", method="b", status="failed", reason="killed", image_auroc=None)
    assert only([old, new, failure]).group.synthetic is not drawn_first
    assert only([failure]).group.synthetic is drawn_first
    assert only([new, row("a", "y", 0, 0.9, synthetic=drawn_first)]).group.synthetic


def test_seeds_and_methods_beyond_what_a_table_holds_are_left_out_and_this_is_said() -> None:
    many = [row(f"m{n}", f"c{n}", 10**12 + n, 0.5) for n in range(1500)] + grid({"a": [[0.9, 0.8], [0.7, 0.6]]})
    summary = only(many)
    assert len(summary.entrants) <= 200
    overall = summary.overall("a", METRIC)
    assert overall is not None
    assert overall.mean == pytest.approx(0.75)
    assert any("more methods or seeds than one table can hold" in problem for problem in summary.problems)


def test_a_job_of_two_presets_stands_in_both_tables_but_makes_none() -> None:
    """The job ran under one name; the other's table has it where there is one, in its place among the seeds."""
    both = plausible.full_table(("mkd",), ("bottle",), 2, preset="paper", also_presets=("standard",))
    alone = summaries_of(both)
    assert [summary.group.preset for summary in alone] == ["paper"]
    both += plausible.full_table(("stfpm",), ("bottle",), 2, preset="standard")
    paper, standard = summaries_of(both)
    assert [one.key for one in paper.entrants] == ["mkd"]
    assert [one.key for one in standard.entrants] == ["mkd", "stfpm"]
    assert standard.values["image_auroc"][0].tolist() == paper.values["image_auroc"][0].tolist()
    broken = plausible.failed_row("mkd", "cable", 0, "out of memory", preset="paper")
    both.append(dataclasses.replace(broken, also_presets=("standard",)))
    assert [len(one.failed) for one in summaries_of(both)] == [1, 0], "one job has failed, once"


def test_a_failure_for_want_of_weights_is_gone_once_they_were_there() -> None:
    """The finished job has another id, since the weights are part of it: it is no other entrant for that."""
    weights = {"teacher_weights": "unavailable", "teacher_sha256": "unavailable"}
    failed = [
        dataclasses.replace(plausible.failed_row("stfpm", category, 0, "no weights"), job_id=f"f-{category}", **weights)
        for category in ("bottle", "cable")
    ]
    alone = only(failed)
    assert [one.key for one in alone.entrants] == ["stfpm"]
    assert len(alone.failed) == 2
    both = only([*failed, *plausible.full_table(("stfpm",), ("bottle",), 2)])
    assert [one.key for one in both.entrants] == ["stfpm"]
    assert both.entrants[0].teacher_weights == "torchvision IMAGENET1K_V1"
    assert [one[:3] for one in both.failed] == [("stfpm", "cable", 0)], "that one has no result yet"
    assert both.problems == ()
