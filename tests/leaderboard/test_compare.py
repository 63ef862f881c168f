"""Comparing two methods or two folders: regressions first, judged only where the difference is sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plausible
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from test_markdown import board_of, table
from test_pairs import scored_rows

from kdad_bench.leaderboard.compare import (
    Difference,
    NothingToCompare,
    of_folders,
    of_methods,
    one_sided_of_folders,
    one_sided_of_methods,
)
from kdad_bench.leaderboard.row import EXTERNAL, Row
from kdad_bench.leaderboard.spread import IMAGES, IMAGES_AND_SEEDS, SEEDS


def rows(
    values: Sequence[float], category: str = "bottle", metric: str = "image_auroc", **changes: object
) -> list[Row]:
    return [plausible.row("stfpm", category, seed, **{**changes, metric: value}) for seed, value in enumerate(values)]


def folders(first: list[Row], second: list[Row], metric: str = "image_auroc") -> list[Difference]:
    return of_folders(table(first), table(second), [metric], 0.005)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((0.90, 0.91, 0.92), (0.80, 0.81, 0.821), "worse"),
        ((0.80, 0.81, 0.821), (0.90, 0.91, 0.92), "better"),
        ((0.90, 0.91, 0.92), (0.896, 0.906, 0.9161), "same"),  # sure but within the tolerance
        ((0.90, 0.95, 0.70), (0.70, 0.90, 0.93), "same"),  # beyond the tolerance but not sure
        ((0.90,), (0.80,), "worse"),  # one seed: nothing is known of the noise, the tolerance decides
        ((0.90,), (0.899,), "same"),
    ],
)
def test_a_change_counts_if_it_is_beyond_the_tolerance_and_beyond_the_noise(
    first: Sequence[float], second: Sequence[float], verdict: str
) -> None:
    (one,) = folders(rows(first), rows(second))
    assert one.verdict == verdict
    assert one.difference == pytest.approx(sum(second) / len(second) - sum(first) / len(first))
    assert (one.low is None) == (len(first) == 1)


@pytest.mark.parametrize(
    ("before", "after", "verdict"), [(10.0, 12.0, "worse"), (12.0, 10.0, "better"), (10.0, 10.9, "same")]
)
def test_a_cost_that_rises_is_a_regression(before: float, after: float, verdict: str) -> None:
    found = folders(rows((before,) * 2, metric="latency_ms"), rows((after,) * 2, metric="latency_ms"), "latency_ms")
    assert [one.verdict for one in found] == [verdict]


def test_the_interval_is_that_of_the_paired_differences() -> None:
    (one,) = folders(rows((0.90, 0.92)), rows((0.80, 0.86)))
    # differences -0.10 and -0.06: mean -0.08, std 0.0283, half width 12.706 * 0.02
    assert (one.low, one.high) == (pytest.approx(-0.08 - 0.254124), pytest.approx(-0.08 + 0.254124, abs=1e-5))


def test_regressions_come_first_the_largest_at_the_top() -> None:
    first = [row for c in "abcd" for row in rows((0.9, 0.9), c)]
    second = [row for c, value in zip("abcd", (0.95, 0.88, 0.9, 0.5), strict=True) for row in rows((value, value), c)]
    found = folders(first, second)
    assert [(one.category, one.verdict) for one in found] == [
        ("d", "worse"), ("mean of 4", "worse"), ("b", "worse"), ("a", "better"), ("c", "same"),
    ]  # fmt: skip


def test_only_seeds_and_categories_in_common_are_paired() -> None:
    found = folders(rows((0.9, 0.8, 0.7)) + rows((0.9,), "cable"), rows((0.9, 0.8)) + rows((0.5,), "tile"))
    assert [(one.category, one.pairs, one.difference) for one in found] == [("bottle", 2, pytest.approx(0.0))]


def test_a_category_whose_files_changed_is_listed_and_not_judged() -> None:
    first = rows((0.9, 0.9)) + rows((0.9, 0.9), "cable")
    second = [replace(row, data_fingerprint="f" * 64) for row in rows((0.5, 0.5))] + rows((0.9, 0.9), "cable")
    verdicts = {one.category: one.verdict for one in folders(first, second)}
    assert verdicts == {"bottle": "data differ", "cable": "same"}


@pytest.mark.parametrize("change", [{"preset": "quick"}, {"device_name": "Another CPU"}, {"protocol_version": "2"}])
def test_folders_of_different_conditions_have_nothing_in_common(change: dict[str, object]) -> None:
    with pytest.raises(NothingToCompare, match=r"nothing in common; first: mvtec_ad .*; second: mvtec_ad"):
        folders(rows((0.9,)), rows((0.9,), **change))


def test_the_same_jobs_under_twin_presets_of_two_folders_are_compared() -> None:
    """`standard` of one folder is `paper` of the other where their jobs are the same."""
    first = [replace(row, preset="standard", also_presets=("paper",)) for row in rows((0.9, 0.8))]
    for also in ((), ("standard",)):
        second = [replace(row, preset="paper", also_presets=also, image_auroc=0.5) for row in first]
        for one, other in ((first, second), (second, first)):
            assert len(folders(one, other)) == len(folders(first, first)) > 0


def test_two_methods_are_compared_on_every_board_that_has_both() -> None:
    made = plausible.full_table(("stfpm", "rd4ad"), ("bottle", "cable"), 2)
    made += plausible.full_table(("stfpm", "rd4ad"), ("weave",), 2, dataset="synthetic", preset="quick", synthetic=True)
    made += plausible.full_table(("stfpm",), ("bottle",), 2, variant="held_out")
    found = of_methods(table(made), "rd4ad", "stfpm", ["image_auroc"], 0.005)
    assert {one.method for one in found} == {"STFPM against RD4AD"}
    assert {one.board.split()[0] for one in found} == {"mvtec_ad", "synthetic"}
    assert all(one.verdict == "worse" for one in found)
    variants = of_methods(table(made), "stfpm", "stfpm:held_out", ["image_auroc"], 0.005)
    assert {(one.method, one.category) for one in variants} == {("STFPM (held_out) against STFPM", "bottle")}


def test_a_method_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(NothingToCompare, match=r"no finished jobs of both 'stfpm' and 'mkd'.*have: stfpm"):
        of_methods(table(rows((0.9,))), "stfpm", "mkd", ["image_auroc"], 0.005)
    made = [*rows((0.9,)), *(replace(row, method="mkd", preset="paper[steps=5]") for row in rows((0.9,)))]
    with pytest.raises(
        NothingToCompare, match=r"'stfpm' is on .* paper preset.*'mkd' is on .* paper\[steps=5\] preset"
    ):
        of_methods(table(made), "stfpm", "mkd", ["image_auroc"], 0.005)
    with pytest.raises(NothingToCompare, match=r"have: external:other, stfpm; 'other' is external:other$"):
        of_methods(table([*rows((0.9,)), external("bottle", 0)]), "stfpm", "other", ["image_auroc"], 0.005)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            {"seeds": (0, 1)},
            {"seeds": (2, 3)},
            r"no category with a seed in common; first: bottle seed 0, bottle seed 1;",
        ),
        ({}, {"category": "cable"}, "first: bottle seed 0; second: cable seed 0; run one of them with the --seeds"),
        ({"image_auroc": None}, {}, "no job with a value of image_auroc on both sides; choose another --metric"),
    ],
)
def test_jobs_that_meet_nowhere_are_one_line_that_says_why(
    first: dict[str, Any], second: dict[str, Any], words: str
) -> None:
    def made(method: str, seeds: tuple[int, ...] = (0,), category: str = "bottle", **changes: Any) -> list[Row]:
        return [plausible.row(method, category, seed, **changes) for seed in seeds]

    with pytest.raises(NothingToCompare, match=f"'rd4ad' and 'stfpm' have .*{words}"):
        of_methods(table(made("rd4ad", **first) + made("stfpm", **second)), "rd4ad", "stfpm", ["image_auroc"], 0.005)
    with pytest.raises(NothingToCompare, match=f"STFPM of the two folders have .*{words}"):
        folders(made("stfpm", **first), made("stfpm", **second))


def test_what_only_one_side_has_is_named_and_no_regression() -> None:
    first = rows((0.9, 0.9)) + rows((0.9, 0.9), "cable") + [plausible.row("mkd", "bottle", 0)]
    second = rows((0.9, 0.9)) + [replace(row, pixel_auroc=None) for row in rows((0.9,), "cable")]
    board = board_of(first).title
    lines = one_sided_of_folders(table(first), table(second), ["image_auroc", "pixel_auroc"])
    assert sorted(lines) == [
        f"Not compared, as only the first side has it: MKD, {board}: bottle seed 0",
        f"Not compared, as only the first side has it: STFPM, {board}: pixel_auroc of cable seed 0, cable seed 1",
    ]
    turned = one_sided_of_folders(table(second), table(first), ["image_auroc", "pixel_auroc"])
    assert sorted(turned) == [line.replace("first", "second") for line in sorted(lines)]
    assert one_sided_of_folders(table(first), table(first), ["image_auroc"]) == []
    assert [one.verdict for one in of_folders(table(first), table(second), ["image_auroc"], 0.005)] == ["same"] * 3


def test_jobs_that_one_of_two_methods_lacks_are_named_up_to_four() -> None:
    made = [plausible.row("rd4ad", "bottle", seed) for seed in range(6)] + [plausible.row("stfpm", "bottle", 0)]
    made += [plausible.row("stfpm", "bolt", 0, dataset="other")]  # a board without rd4ad
    (line,) = one_sided_of_methods(table(made), "rd4ad", "stfpm", ["image_auroc"])
    assert line.startswith("Not compared, as only the first side has it: STFPM against RD4AD, ")
    assert line.endswith(": bottle seed 1, bottle seed 2, bottle seed 3, bottle seed 4, ...")


def external(category: str, seed: int, method: str = "external:other") -> Row:
    """A row whose maps other code made, plausible in every other respect."""
    facts = {"title": "other (external)", "origin": EXTERNAL, "preset": "external", "device": None, "device_name": None}
    return replace(
        plausible.row("stfpm", category, seed), method=method, job_id=f"{method[-5:]}{category}{seed}", **facts
    )


def test_an_external_result_is_set_against_a_run_and_the_title_says_so() -> None:
    runs = [plausible.row(method, category, 0) for method in ("stfpm", "rd4ad") for category in ("bottle", "cable")]
    found = of_methods(table([*runs, external("bottle", 0)]), "rd4ad", "external:other", ("image_auroc",), 0.005)
    (one,) = found
    assert (one.category, one.pairs) == ("bottle", 1)
    assert EXTERNAL in one.board
    assert "paper preset" in one.board


@pytest.mark.parametrize(
    "change", [{"resolution": 512}, {"modality": "depth"}, {"protocol_version": "2"}, {"fit": "pad"}]
)
def test_an_external_result_is_not_set_against_a_run_of_other_data_or_rules(change: dict[str, Any]) -> None:
    rows = [plausible.row("rd4ad", "bottle", 0), replace(external("bottle", 0), **change)]
    with pytest.raises(NothingToCompare):
        of_methods(table(rows), "rd4ad", "external:other", ("image_auroc",), 0.005)


@pytest.mark.parametrize(
    "change",
    [
        {"fit": "pad", "preset": "paper[fit=pad]"},
        {"corruption": "blur:3", "preset": "paper[corruption=blur:3]"},
        {"contamination": 0.1, "preset": "paper[contamination=0.1]"},
    ],
    ids=str,
)
def test_an_external_result_is_set_against_runs_that_were_judged_on_the_same_images(change: dict[str, Any]) -> None:
    plain, other = plausible.row("rd4ad", "bottle", 0), plausible.row("rd4ad", "bottle", 0, **change)
    maps = external("bottle", 0)
    (one,) = of_methods(table([plain, other, maps]), "rd4ad", "external:other", ("image_auroc",), 0.005)
    assert "paper preset" in one.board
    with pytest.raises(NothingToCompare):
        of_methods(table([other, maps]), "rd4ad", "external:other", ("image_auroc",), 0.005)


# ---- by the scores of the images, as the leaderboard judges a pair


@pytest.mark.parametrize("metric", ["image_auroc", "image_ap"])
def test_a_pair_is_judged_as_the_leaderboard_judges_it(metric: str) -> None:
    made = [
        replace(row, image_ap=average_precision_score(row.image_labels, row.image_scores))
        for row in scored_rows({"a": 2.0, "b": 1.2}, "abc", seeds=2)
    ]
    board = board_of(made)
    found = {one.category: one for one in of_methods(table(made), "b", "a", [metric], 0.005)}
    pairs = {"mean of 3": board.summary.comparison("a", "b", metric)}
    pairs |= {category: board.summary.in_category("a", "b", metric, category) for category in "abc"}
    for category, pair in pairs.items():
        one = found[category]
        assert one.difference == pytest.approx(pair.difference)
        assert (one.low, one.high) == (pytest.approx(pair.low), pytest.approx(pair.high))
        assert (one.evidence, one.pairs) == (pair.evidence, pair.pairs) == (IMAGES_AND_SEEDS, pair.pairs)
    across = of_folders(table(made), table(second_of(made, "a")), [metric], 0.005)
    assert {one.evidence for one in across} == {IMAGES_AND_SEEDS}
    itself = of_folders(table(made), table(made), [metric], 0.005)
    assert {(one.evidence, one.low, one.high, one.verdict) for one in itself} == {("all alike", 0.0, 0.0, "same")}


def second_of(made: Sequence[Row], method: str) -> list[Row]:
    """The rows of a method, as another folder has them: its scores rounded."""
    changed = []
    for row in made:
        scores = tuple(round(score, 1) for score in row.image_scores)
        figures = {"image_auroc": roc_auc_score, "image_ap": average_precision_score}
        values = {name: float(figure(row.image_labels, scores)) for name, figure in figures.items()}
        changed.append(replace(row, job_id=f"2{row.job_id}", image_scores=scores, **values))
    return [row for row in changed if row.method == method]


def test_one_seed_is_judged_by_the_images_and_small_differences_are_none() -> None:
    made = scored_rows({"a": 2.0, "b": 1.95}, "a", seeds=1)
    (one,) = of_methods(table(made), "b", "a", ["image_auroc"], 0.0)
    assert one.low is not None
    assert one.high is not None
    assert one.low < 0 < one.high
    assert (one.verdict, one.evidence) == ("same", IMAGES)


@pytest.mark.parametrize("lack", ["scores", "other images", "wrong scores"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_without_the_scores_of_both_sides_the_seeds_judge(lack: str, side: str) -> None:
    changes: dict[str, Any] = {
        "scores": {"image_scores": (), "image_labels": (), "image_names": ()},
        "other images": {"image_names": tuple(f"other {n}" for n in range(60))},
        "wrong scores": {"image_auroc": 0.123},
    }[lack]
    made = scored_rows({"a": 2.0, "b": 1.0}, "ab", seeds=3)
    made = [replace(row, **changes) if (row.category, row.method) == ("b", side) else row for row in made]
    found = {one.category: one for one in of_methods(table(made), "b", "a", ["image_auroc"], 0.005)}
    assert {name: one.evidence for name, one in found.items()} == {
        "a": IMAGES_AND_SEEDS,
        "b": SEEDS,
        "mean of 2": SEEDS,
    }


RANDOM = {"teacher_weights": "random", "teacher_sha256": "7" * 64}


def test_other_weights_of_the_teacher_are_named_where_two_folders_are_compared() -> None:
    (one,) = folders(rows((0.9,)), [replace(row, **RANDOM) for row in rows((0.6,))])
    assert one.verdict == "worse"
    assert one.method.endswith("(the teacher's weights: torchvision IMAGENET1K_V1 f37072fd, second random 77777777)")
    (same,) = folders(rows((0.9,)), rows((0.6,)))
    assert "weights" not in same.method


@pytest.mark.parametrize("twins", ["first", "second"])
def test_an_entrant_is_found_again_where_one_folder_has_it_with_other_weights_too(twins: str) -> None:
    """Its key on a board says the weights only where that board has both."""
    plain = rows((0.9, 0.91))
    both = rows((0.8, 0.81)) + [replace(row, job_id=f"r{row.job_id}", **RANDOM) for row in rows((0.5, 0.51))]
    pair = (both, plain) if twins == "first" else (plain, both)
    (one,) = folders(*pair)
    assert abs(one.difference) == pytest.approx(0.1)
    lines = one_sided_of_folders(table(pair[0]), table(pair[1]), ["image_auroc"])
    assert len(lines) == 1
    assert lines[0].startswith(f"Not compared, as only the {twins} side has it: STFPM (resnet18 random)")


def test_of_two_that_could_be_meant_none_is_taken_for_the_other() -> None:
    """One with third weights beside two of others: nothing says which of the two it is to be set against."""
    third = {"teacher_weights": "random", "teacher_sha256": "8" * 64}
    both = rows((0.8,)) + [replace(row, job_id=f"r{row.job_id}", **RANDOM) for row in rows((0.5,))]
    with pytest.raises(NothingToCompare):
        folders(both, [replace(row, **third) for row in rows((0.9,))])


def test_seeds_that_tie_by_chance_are_judged_by_the_images_and_by_the_tolerance_without_them() -> None:
    """Two seeds that each miss another image have one AUROC: their figure is no surer for that."""
    labels, names = (False,) * 4 + (True,) * 4, tuple(f"{n}.png" for n in range(8))
    perfect = tuple(float(n) for n in range(8))
    one_off = (*perfect[:3], 4.5, *perfect[4:]), (*perfect[:2], 4.5, perfect[3], *perfect[4:])
    scores = {"a": (perfect, perfect), "b": one_off}
    made = [
        plausible.invented(method, "x", seed, title=method, image_auroc=float(roc_auc_score(labels, own)),
                           image_scores=own, image_labels=labels, image_names=names)
        for method, both in scores.items() for seed, own in enumerate(both)
    ]  # fmt: skip
    assert made[2].image_auroc == made[3].image_auroc < 1
    (one,) = of_methods(table(made), "a", "b", ["image_auroc"], 0.005)
    assert one.evidence == IMAGES_AND_SEEDS
    assert one.low is not None
    assert one.low < one.difference < 0 < (one.high or 0)
    assert one.verdict == "same"
    pair = board_of(made).summary.comparison("b", "a", "image_auroc")
    assert (pair.low, pair.high) == (pytest.approx(one.low), pytest.approx(one.high))
    estimate = board_of(made).overall("b", "image_auroc")
    assert estimate is not None
    assert estimate.shown is not None, "so the mean has an interval"
    bare = [replace(row, image_scores=(), image_labels=(), image_names=()) for row in made]
    (without,) = of_methods(table(bare), "a", "b", ["image_auroc"], 0.005)
    assert (without.low, without.evidence) == (None, "")
