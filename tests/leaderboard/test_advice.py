"""Advice: the front of accuracy and latency under limits, from one board, and where its evidence ends."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plausible
import pytest
from test_markdown import board_of, table
from test_pairs import scored_rows

from kdad_bench.leaderboard.advice import NothingKnown, advise, images_learnt_from, limits_of_evidence
from kdad_bench.leaderboard.board import Board, boards, boards_of
from kdad_bench.leaderboard.row import COLUMNS, EXTERNAL, Row

METRIC = "image_auroc"
# method -> (accuracy, ms, MB): d is beaten by b in both, e is the floor
FIELD = {"a": (0.99, 40.0, 900.0), "b": (0.95, 10.0, 400.0), "c": (0.90, 5.0, 300.0), "d": (0.94, 20.0, 200.0)}


def field(categories: str = "xyz", seeds: int = 2, **changes: Any) -> list[Row]:
    """The methods of FIELD, sharply told apart, and a floor that is faster than all."""
    known = {**FIELD, "e": (0.999, 1.0, 100.0)}
    return [
        plausible.invented(
            method, category, seed, title=method, latency_ms=ms, latency_p95_ms=1.1 * ms, peak_memory_mb=mb,
            family="floor" if method == "e" else "student-teacher", image_auroc=accuracy + 0.0004 * seed, **changes,
        )
        for method, (accuracy, ms, mb) in known.items() for category in categories for seed in range(seeds)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "best", "nearest"),
    [
        ({}, "a", None),
        ({"latency_ms": 40.0}, "a", None),
        ({"latency_ms": 39.9}, "b", None),
        ({"memory_mb": 350.0}, "d", None),
        ({"memory_mb": 350.0, "latency_ms": 10.0}, "c", None),
        ({"latency_ms": 4.0}, None, "c"),
        ({"latency_ms": 4.0, "memory_mb": 190.0}, None, "c"),  # at most 1.6 times over, d 5 times
        ({"memory_mb": 50.0}, None, "d"),
    ],
)
def test_the_most_accurate_within_the_limits_is_advised_or_the_nearest_named(
    limits: dict[str, float], best: str | None, nearest: str | None
) -> None:
    found = advise([board_of(field())], METRIC, limits)
    assert (found.best and found.best.key) == best
    assert (found.nearest and found.nearest.key) == nearest
    assert [one.key for one in found.candidates] == ["a", "b", "d", "c"]
    assert [one.key for one in found.front] == ["c", "b", "a"]
    if found.nearest:
        assert found.nearest.over(limits) == {
            name: getattr(found.nearest, name) / limit for name, limit in limits.items()
        }


def test_without_memory_a_limit_of_it_is_not_kept() -> None:
    made = [replace(row, peak_memory_mb=None) if row.method == "b" else row for row in field()]
    found = advise([board_of(made)], METRIC, {"memory_mb": 500.0})
    assert found.best is not None
    assert found.best.key == "d"


def wide_board(rows: Sequence[Row]) -> Board:
    """The board of rows with every column, as the command reads `environment` beside what pages draw."""
    (found,) = boards_of([{name: getattr(row, name) for name in COLUMNS} for row in rows])
    return found


def started(row: Row, megabytes: object) -> Row:
    """`row` of a process that began with so much memory."""
    return replace(row, environment=json.dumps({"memory_at_start_mb": megabytes}))


def test_memory_is_judged_by_what_a_job_added_to_its_process_where_rows_know_it() -> None:
    limits = {"memory_mb": 350.0}
    known = [started(row, 100.0 + 200 * (row.method == "b")) for row in field()]  # b adds 100, a 800, c 200, d 100
    found = advise([wide_board(known)], METRIC, limits)
    assert found.best is not None
    assert (found.best.key, found.best.memory_mb, found.best.process_mb, found.best.beyond_start) == (
        "b",
        100,
        400,
        True,
    )
    said = [line for line in limits_of_evidence(found) if "memory" in line]
    assert said == [
        "memory is the peak of a job beyond its process as it began, training and images included: inference alone "
        "needs less, and Python with its libraries took 100 MB more"
    ]
    mixed = advise([wide_board([row if row.method == "d" else started(row, 100.0) for row in field()])], METRIC, limits)
    assert mixed.best is not None
    assert mixed.best.key == "b"
    assert sum("memory of a whole process holds Python" in line for line in limits_of_evidence(mixed)) == 1
    whole = advise([wide_board(field())], METRIC, limits)
    assert whole.best is not None
    assert (whole.best.key, whole.best.memory_mb, whole.best.beyond_start) == ("d", 200, False)
    assert any("memory is that of the whole process" in line for line in limits_of_evidence(whole))


@pytest.mark.parametrize("start", [-1.0, math.nan, math.inf, 1e9, "100", None, [1], True])
def test_a_start_that_cannot_be_is_none(start: object) -> None:
    made = [started(row, start) for row in field()]
    (best, *_) = advise([wide_board(made)], METRIC, {}).candidates
    assert (best.memory_mb, best.process_mb, best.beyond_start) == (900, 900, False)


def test_on_a_gpu_nothing_lies_there_before_a_job() -> None:
    found = advise([board_of(field(device="cuda"))], METRIC, {"memory_mb": 350.0})
    assert all(one.beyond_start and one.memory_mb == one.process_mb for one in found.candidates)
    assert [line for line in limits_of_evidence(found) if "memory" in line] == [
        "memory is the peak of what a job had on the GPU, training included: inference alone needs less"
    ]


def test_methods_that_memory_alone_keeps_out_and_whose_weights_fit_are_named_and_not_taken() -> None:
    weights = {"a": 20_000_000, "b": 200_000_000, "c": 1_000, "d": 1_000}
    made = [replace(row, parameters=weights.get(row.method, 0)) for row in field()]
    found = advise([board_of(made)], METRIC, {"memory_mb": 350.0})
    assert (found.best and found.best.key, [one.key for one in found.perhaps]) == ("d", ["a"])
    assert found.perhaps[0].weights_mb == 80.0
    slow = advise([board_of(made)], METRIC, {"memory_mb": 350.0, "latency_ms": 30.0})
    assert (slow.best and slow.best.key, slow.perhaps) == ("d", ())
    none = advise([board_of(made)], METRIC, {"memory_mb": 150.0})
    assert (none.best, [one.key for one in none.perhaps]) == (None, ["a", "d", "c"])
    assert advise([board_of(made)], METRIC, {"latency_ms": 1.0}).perhaps == ()


def test_the_fastest_that_is_not_surely_worse_is_named_beside_the_best() -> None:
    rows = scored_rows({"slow": 2.0, "fast": 1.95, "worse": 0.5}, "abcd", seeds=2)
    ms = {"slow": 50.0, "fast": 8.0, "worse": 2.0}
    made = [replace(row, latency_ms=ms[row.method], peak_memory_mb=1.0) for row in rows]
    best = max(("slow", "fast"), key=lambda name: sum(row.image_auroc for row in made if row.method == name))
    found = advise([board_of(made)], METRIC, {})
    assert found.best is not None
    assert found.best.key == best
    assert (found.fast and found.fast.key) == ("fast" if best == "slow" else None)
    if found.fast is not None:
        apart = found.apart
        assert apart is not None
        assert apart.low is not None
        assert apart.high is not None
        assert apart.difference == pytest.approx(found.best.accuracy - found.fast.accuracy)
        assert apart.low < 0 < apart.difference < apart.high
        assert any("may be worse" in line for line in limits_of_evidence(found))


@pytest.mark.parametrize(("others", "named"), [((50.0, 50.0), None), ((20.0, 20.0), "d")])
def test_of_equally_fast_ones_the_more_accurate_is_named_and_none_that_is_not_faster(
    others: tuple[float, float], named: str | None
) -> None:
    """One method with two weights is timed once; the alphabet chose the worse of them."""
    rows = scored_rows({"e": 2.0, "d": 1.98, "c": 1.96}, "abcd", seeds=2)
    order = sorted("cde", key=lambda name: -sum(row.image_auroc or 0 for row in rows if row.method == name))
    renamed = dict(zip(order, ("e", "d", "c"), strict=True))  # the most accurate comes last in the alphabet
    ms = dict(zip(("e", "d", "c"), (50.0, *others), strict=True))
    made = [replace(row, method=renamed[row.method]) for row in rows]
    made = [replace(row, latency_ms=ms[row.method], peak_memory_mb=1.0) for row in made]
    found = advise([board_of(made)], METRIC, {})
    assert [one.key for one in found.candidates] == ["e", "d", "c"]
    assert (found.fast and found.fast.key) == named
    assert found.fast is None or found.fast.front


@pytest.mark.parametrize(
    ("metric", "seed", "categories", "named"),
    [
        ("image_auroc", 5, "bottle cable grid", False),  # no seed in common: no test at all
        ("aupro_30", 0, "bottle cable grid", False),  # p is 0.25 whatever the figures
        ("aupro_30", 0, "bottle cable grid tile zipper", False),  # 0.0625
        ("aupro_30", 0, "bottle cable grid tile zipper screw", True),  # 0.03125, had all of them said the same
    ],
)
def test_what_no_test_could_find_worse_is_not_advised_as_not_found_worse(
    metric: str, seed: int, categories: str, named: bool
) -> None:
    rows = []
    for place, name in enumerate(categories.split()):
        best, fast = (0.97, 0.55) if place < 5 else (0.5, 0.55)
        rows += [plausible.row("rd4ad", name, 0, **{metric: best}, image_scores=(), latency_ms=20.0)]
        rows += [plausible.row("stfpm", name, seed, **{metric: fast}, image_scores=(), latency_ms=2.0)]
    found = advise([board_of(rows)], metric, {})
    assert found.best is not None
    assert (found.best.key, found.fast is not None) == ("rd4ad", named)
    said = any("no test can tell whether stfpm (faster) are worse" in line for line in limits_of_evidence(found))
    assert said is not named
    assert advise([board_of(rows)], metric, {"latency_ms": 10.0}).untested == ()


def test_what_else_lies_in_the_folder_does_not_make_a_worse_method_pass() -> None:
    """Corrected for all pairs of a board, `fast` was no longer found worse once enough others were there."""
    strengths = {"slow": 2.0, "fast": 1.3} | {f"other{i}": 1.29 - 0.01 * i for i in range(14)}
    rows = [
        replace(row, latency_ms={"slow": 50.0, "fast": 8.0}.get(row.method, 60.0), peak_memory_mb=1.0)
        for row in scored_rows(strengths, "abcd", seeds=2)
    ]
    for members in ([row for row in rows if not row.method.startswith("other")], rows):
        board = board_of(members)
        found = advise([board], METRIC, {})
        assert found.best is not None
        assert (found.best.key, found.fast, found.apart) == ("slow", None, None)
    assert not board.summary.comparison("slow", "fast", METRIC).significant


def test_the_pixels_are_where_a_limit_of_latency_begins() -> None:
    rows = [board_of(field())]
    words = "latency begins with the pixels at 256 px: reading, decoding"
    assert any(words in line for line in limits_of_evidence(advise(rows, METRIC, {"latency_ms": 40.0})))
    assert not any(words in line for line in limits_of_evidence(advise(rows, METRIC, {})))


def other(rows: Sequence[Row], **changes: Any) -> list[Row]:
    """The same rows as other jobs."""
    return [replace(row, job_id=f"other-{row.job_id}", **changes) for row in rows]


@pytest.mark.parametrize(
    "worse",
    [
        {"synthetic": True, "dataset": "synthetic"},
        {"preset": "quick"},
        {"preset": "paper[corruption=blur:3]", "corruption": "blur:3"},
        {"preset": "paper[tile=128]", "tile": 128},
        {"preset": "paper[fit=pad]", "fit": "pad"},
        {"preset": "paper[setting=multi-class:3:ab12]", "setting": "multi-class", "learnt_together": ("x=1", "y=2")},
        {"origin": EXTERNAL, "preset": "external"},
        {"device_name": "A CPU without speed", "latency_ms": None},
    ],
    ids=str,
)
def test_the_board_that_says_most_of_real_parts_speaks(worse: dict[str, Any]) -> None:
    rows, more = field(), field("uvwxyz")  # more of everything else, so that nothing but `worse` can decide
    found = advise(boards(table([*rows, *other(more, **worse)])), METRIC, {})
    assert found.board.title == board_of(rows).title
    assert any(f"{len(more)} rows " in line for line in found.left_out)


def test_where_the_evidence_ends_is_said() -> None:
    quiet = list(limits_of_evidence(advise([board_of(field("abcdefgh", 3))], METRIC, {})))
    assert quiet == ["images at 256 px: another size changes both speed and accuracy"]
    changes: dict[str, Any] = {"preset": "quick", "synthetic": True, "teacher_weights": "random"}
    said = " ".join(limits_of_evidence(advise([board_of(field("a", 1, **changes))], METRIC, {"memory_mb": 1e6})))
    for words in ("synthetic images", "quick preset", "1 category:", "one seed", "random teacher", "whole process"):
        assert words in said
    few = advise([board_of(field(k_shot=4, preset="paper[train_images=4]"))], METRIC, {})
    assert any("points of an axis" in line for line in limits_of_evidence(few))
    tiles = advise([board_of(field(tile=128, preset="paper[tile=128]"))], METRIC, {})
    assert any("in tiles" in line for line in limits_of_evidence(tiles))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no finished jobs; make some with `kdad-bench run --all`"),
        (other(field(), origin=EXTERNAL, preset="external"), "only rows of other code, whose speed is not known"),
        ([row for row in field() if row.method == "e"], "only rows of the floor"),
        (
            [row if row.method == "e" else replace(row, latency_ms=None) for row in field()],
            "no row has a latency; `kdad-bench run ... --measure-speed`",
        ),
        (other(field(), latency_ms=None), "no row has a latency; `kdad-bench run ... --measure-speed`"),
        (other(field(), image_auroc=None), "no method has both a latency and image AUROC in every category"),
    ],
    ids=["none", "external", "the floor", "the floor alone has a speed", "no speed", "no accuracy"],
)
def test_rows_that_cannot_say_anything_are_one_line(rows: list[Row], words: str) -> None:
    with pytest.raises(NothingKnown, match=words) as found:
        advise(boards(table(rows)), METRIC, {})
    assert "\n" not in str(found.value)


def test_of_a_model_for_several_categories_the_images_of_one_count() -> None:
    """The rows of such a model hold the number of all that it learnt from."""
    (alone,) = boards(table(field(train_images=200)))
    shared = {"setting": "multi-class", "learnt_together": ("x=1", "y=2", "z=3")}
    (together,) = boards(table(field(train_images=600, preset="paper[setting=multi-class:3:ab]", **shared)))
    assert images_learnt_from(alone) == images_learnt_from(together) == 200
