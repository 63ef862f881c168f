"""The mean of the trainings that did not run away flatters what is unstable: it says so, and wins nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plausible
import pytest
from test_markdown import board_of, cells, page, section, table
from test_published import MVTEC

from kdad_bench.leaderboard import chart, curve_chart, curve_tables, html, published
from kdad_bench.leaderboard.axes import curves
from kdad_bench.leaderboard.board import Board, boards_of
from kdad_bench.leaderboard.compare import of_folders, of_methods, ran_away_of_folders, ran_away_of_methods
from kdad_bench.leaderboard.marks import cell_marks, overall_marks
from kdad_bench.leaderboard.row import COLUMNS, Row

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
    assert overall_marks(whole, METRIC)[key(whole, "stfpm")] == "best"
    assert whole.places[key(whole, "stfpm")] == 1
    best = key(board, "stfpm")
    assert best not in board.average_ranks
    assert best not in board.ranks_in_family
    assert best not in overall_marks(board, METRIC)
    assert all(best not in cell_marks(board, METRIC, name) for name in NAMES)
    assert board.average_ranks[key(board, "rd4ad")] == 1, "the others are ranked as if it were not there"
    assert overall_marks(board, METRIC)[key(board, "rd4ad")] == "best"
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


def test_no_pair_with_a_method_that_ran_away_is_judged_nor_counted_in_the_correction() -> None:
    made = rows(RAN_AWAY)
    whole, board = board_of(rows()), board_of(made)
    best, other, last = (key(board, method) for method in LEVELS)
    assert whole.summary.comparison(best, other, METRIC).significant
    assert whole.summary.in_category(best, other, METRIC, NAMES[0]).low is not None
    found = board.summary.comparison(best, other, METRIC)
    assert found.difference == pytest.approx(0.05, abs=0.005)
    assert (found.low, found.p, found.p_holm, found.p_categories, found.evidence) == (None, None, None, None, "")
    assert board.summary.in_category(best, other, METRIC, NAMES[0]).low is None
    apart = board.summary.comparison(other, last, METRIC)
    assert apart.p_holm == apart.p, "one pair is left"
    words = section(page(made), "Who beats whom")
    assert "1 of 1 pairs told apart" in words
    assert "not judged: the pairs with STFPM, of which a job ran away to values that are not finite" in words
    line = cells(words.partition("every pair of methods</summary>")[2], by=1)["STFPM"]
    assert (line["beats"], line["loses to"]) == ("0", "0")
    assert "**" not in "".join(line.values())
    assert "not judged" not in section(page(rows()), "Who beats whom")


def test_a_method_that_ran_away_is_on_no_front_of_speed_and_accuracy() -> None:
    made = rows(RAN_AWAY)
    board = board_of(made)
    assert key(board, "stfpm") == board_of(rows()).order[0] == chart.points(board_of(rows()), METRIC)[0].key
    assert [point.key for point in chart.points(board, METRIC)] == [key(board, "rd4ad"), key(board, "mkd")]
    assert "or of which a job ran away, are left out" in html.body([board], table(made), (), {})


@pytest.mark.parametrize(("reason", "first"), [(RAN_AWAY, "rd4ad"), ("OSError: No space left on device", "stfpm")])
def test_a_method_that_ran_away_at_one_point_of_a_curve_is_not_ranked_on_it(reason: str, first: str) -> None:
    made = [
        replace(one, preset=f"paper[contamination={share}]", contamination=share, job_id=f"{one.job_id}{share}")
        for share, of_point in ((0.1, rows()), (0.2, rows(reason)))
        for one in of_point
    ]
    found = boards_of([{name: getattr(one, name) for name in COLUMNS} for one in made])
    (curve,) = curves(found)
    assert curve.order(METRIC)[0] == first
    assert curve.ranked("stfpm", METRIC) is (first == "stfpm")
    text = curve_tables.sections([curve])
    line = cells(curve_tables.table(curve, METRIC), by=1)["STFPM"]
    assert line["#"] == ("1" if first == "stfpm" else "–")
    assert (line["0.1"].count("failed"), line["0.2"].endswith(" (8 failed)")) == (0, True)
    said = "Not ranked, as a job ran away to values that are not finite: STFPM."
    page_of_curves = "".join(curve_chart.sections([curve]))
    assert (said in "".join(text), said in page_of_curves) == (first != "stfpm", first != "stfpm")
    assert "(8 failed)" in page_of_curves


def test_a_method_that_ran_away_agrees_with_no_published_number() -> None:
    made = [
        plausible.failed_row("stfpm", category, 2, RAN_AWAY, variant="held_out") if seed == 2 and category == "bottle"
        else plausible.row("stfpm", category, seed, variant="held_out", image_auroc=0.954 + 0.001 * seed)
        for category in MVTEC for seed in range(3)
    ]  # fmt: skip
    board = board_of(made)
    assert board.diverged == {"stfpm:held_out"}
    found = [one for one in published.verdicts(board) if one.reported.measured == METRIC]
    assert any(one.refusal == published.RAN_AWAY for one in found)
    assert not any(one.verdict for one in found)
    assert " (1 failed) |" in section(page(made), "Published and measured")
    kept = board_of([one for one in made if one.status == "ok"])
    assert any(one.verdict == "agrees" for one in published.verdicts(kept))


@pytest.mark.parametrize("order", [("rd4ad", "stfpm"), ("stfpm", "rd4ad"), ("stfpm", "stfpm")])
def test_a_comparison_does_not_judge_a_method_that_ran_away_and_says_which_jobs(order: tuple[str, str]) -> None:
    found = of_methods(table(rows(RAN_AWAY)), *order, [METRIC, "latency_ms"], 0.005)
    assert {one.verdict for one in found} == {"ran away"}
    assert {(one.low, one.high, one.judged_by) for one in found} == {(None, None, "not judged")}
    lines = ran_away_of_methods(table(rows(RAN_AWAY)), *order)
    sides = [side for side, name in zip(("first", "second"), order, strict=True) if name == "stfpm"]
    assert [line.partition(" side: ")[0].rpartition(" ")[2] for line in lines] == sides
    assert all("ran away to values that are not finite" in line for line in lines)
    jobs = ", ".join(f"{name} seed {seed}" for name in NAMES[:2] for seed in (1, 2))
    assert all(line.endswith(f": {jobs}, ...") for line in lines)


@pytest.mark.parametrize("reason", ["", "DatasetError: photo.png: damaged", "OSError: No space left on device"])
def test_a_comparison_judges_a_method_whose_failures_are_not_its_own(reason: str) -> None:
    made = table(rows(reason))
    found = of_methods(made, "rd4ad", "stfpm", [METRIC], 0.005)
    assert {one.verdict for one in found} == {"better"}
    assert ran_away_of_methods(made, "rd4ad", "stfpm") == []


def test_two_folders_are_compared_but_for_what_ran_away_in_one_of_them() -> None:
    calm, unstable = rows(), rows(RAN_AWAY)
    worse = [replace(row, image_auroc=row.image_auroc and row.image_auroc - 0.1) for row in calm]
    for first, second, side in ((worse, unstable, "second"), (unstable, worse, "first")):
        found = of_folders(table(first), table(second), [METRIC], 0.005)
        verdicts = {one.method: one.verdict for one in found}
        others = "better" if side == "second" else "worse"
        assert verdicts == {"STFPM": "ran away", "RD4AD": others, "MKD": others}
        (line,) = ran_away_of_folders(table(first), table(second))
        assert f"on the {side} side: STFPM, " in line
    assert ran_away_of_folders(table(calm), table(worse)) == []
    other = [row for row in unstable if row.method == "stfpm"]
    assert ran_away_of_folders(table(other + calm[12:]), table(calm[12:])) == [], "no job of it is in both"


def test_a_job_that_ran_away_and_was_run_again_is_judged() -> None:
    broken = plausible.failed_row("stfpm", NAMES[0], 0, RAN_AWAY, created_at="2020-01-01T00:00:00+00:00")
    found = of_methods(table([*rows(), broken]), "rd4ad", "stfpm", [METRIC], 0.005)
    assert {one.verdict for one in found} == {"better"}


def test_files_that_differ_are_told_before_what_ran_away() -> None:
    other = [replace(row, data_fingerprint="f" * 64) if row.category == NAMES[0] else row for row in rows(RAN_AWAY)]
    found = of_folders(table(rows()), table(other), [METRIC], 0.005)
    verdicts = {(one.method, one.category): one.verdict for one in found}
    assert verdicts["STFPM", NAMES[0]] == verdicts["RD4AD", NAMES[0]] == "data differ"
    assert verdicts["STFPM", NAMES[1]] == "ran away"
    assert verdicts["RD4AD", NAMES[1]] == "same"
