"""What a row says of its threshold: the floor, false alarms with their interval, and whether the normals differ."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdad_bench.harness.decision import Decision, DecisionError, floor_of, needed_for
from kdad_bench.harness.trust import FIGURES, LEVEL, alarm_words, figures_of, notes_on, warn_of_a_difference, words_of
from kdad_bench.leaderboard.metric import MEASURED
from kdad_bench.leaderboard.row import SINCE_7


def test_the_figures_of_a_row() -> None:
    normal = tuple(float(one) for one in range(19))  # the threshold for 0.1 is the 18th: 17.0
    found = figures_of(normal, [17.0, 18.0, 19.0, 17.5, 1.0], [False, False, False, True, True])
    assert found["false_alarm_floor"] == 1 / 20
    assert found["false_alarms"] == pytest.approx(2 / 3)
    assert found["detected"] == 0.5
    assert found["false_alarms_low"] == pytest.approx(0.09429932, abs=1e-8)
    assert found["false_alarms_high"] == pytest.approx(0.99159624, abs=1e-8)
    assert found["normals_p"] is not None
    assert set(found) == set(FIGURES) <= {*MEASURED} & {*SINCE_7}


def test_what_cannot_be_said_is_null() -> None:
    assert set(figures_of((), [1.0], [True]).values()) == {None}
    few = figures_of((1.0, 2.0), [1.0, 3.0], [False, True])
    assert (few["false_alarm_floor"], few["false_alarms"], few["detected"]) == (1 / 3, None, None)
    assert few["normals_p"] == 1.0
    assert figures_of(tuple(map(float, range(9))), [1.0], [True])["normals_p"] is None


def test_a_difference_of_the_normals_is_told_at_its_level_and_else_not() -> None:
    normal = tuple(map(float, range(30)))
    shifted = figures_of(normal, np.arange(30.0) + 25, [False] * 30)
    alike = figures_of(normal, np.arange(30.0) + 0.5, [False] * 30)
    assert shifted["normals_p"] is not None
    assert shifted["normals_p"] < LEVEL
    with pytest.warns(UserWarning, match=r"stfpm x/y seed 0: the scores of 30 unseen normal images and of 30 normal "
                                         r"test images differ .*p = .*level 0\.01"):  # fmt: skip
        warn_of_a_difference(shifted, 30, 30, "stfpm x/y seed 0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_a_difference(alike, 30, 30, "stfpm x/y seed 0")


def test_the_test_images_move_no_threshold() -> None:
    normal = tuple(map(float, range(19)))
    plain = Decision(category="x", resolution=1, normal_scores=normal)
    seen = Decision(category="x", resolution=1, normal_scores=normal, test_normal_scores=(100.0, 200.0))
    assert plain.threshold(0.1) == seen.threshold(0.1)


def test_notes_on_a_threshold() -> None:
    normal = tuple(map(float, range(19)))
    kept = Decision(category="x", resolution=1, normal_scores=normal, test_normal_scores=(3.0, 18.0, 19.0))
    assert notes_on(kept, 17.0, 0.1) == (
        "5 % is the smallest false-alarm rate that 19 images can support",
        "2 of 3 normal test images lie above it: 66.7 % false alarms, 95 % interval 9.43 % to 99.2 %",
    )
    assert notes_on(kept, 18.5, None)[0] == "0 of 19 unseen normal images lie above it"
    assert notes_on(kept, 17.5, None)[0] == "1 of 19 unseen normal images lies above it"
    far = Decision(
        category="x", resolution=1, normal_scores=normal, test_normal_scores=tuple(map(float, range(50, 70)))
    )
    assert notes_on(far, 17.0, 0.1)[2].startswith("warning: the scores of 19 unseen")
    assert notes_on(Decision(category="x", resolution=1), None, 0.1) == ()


def test_words_of_a_row() -> None:
    row = {"category": "x", "normal_scores": [1.0, 2.0], "image_scores": [1.0, 5.0], "image_labels": [False, True]}
    assert words_of(row) == ("2 unseen normal images cannot support a 10 % false-alarm rate, 33.3 % at best; 9 would",)
    many = {**row, "normal_scores": list(map(float, range(19)))}
    assert words_of(many)[:2] == (
        "threshold 17 for a false-alarm rate of 0.1", "5 % is the smallest false-alarm rate that 19 images can support",
    )  # fmt: skip
    assert words_of({**row, "normal_scores": None}) == ()


@pytest.mark.parametrize("count", [1, 2, 9, 10, 19, 20, 99, 100])
@pytest.mark.parametrize("rate", [0.5, 0.1, 0.05, 0.01, 0.3, 1 / 3])
def test_a_threshold_is_the_lowest_that_keeps_its_rate(count: int, rate: float) -> None:
    """Of n + 1 exchangeable images each is as likely the k-th: a new one lies above the k-th of n with (n + 1 - k) / (n
    + 1)."""
    kept = Decision(category="x", resolution=1, normal_scores=tuple(map(float, range(1, count + 1))))
    promised = [k for k in range(1, count + 1) if (count + 1 - k) / (count + 1) <= rate]
    assert bool(promised) == (rate >= floor_of(count))
    if promised:
        assert kept.threshold(rate) == promised[0]
    else:
        with pytest.raises(DecisionError, match=rf"{needed_for(rate)} would"):
            kept.threshold(rate)
        enough = Decision(category="x", resolution=1, normal_scores=tuple(map(float, range(needed_for(rate)))))
        assert enough.threshold(rate) == needed_for(rate) - 1


@given(st.integers(1, 3000))
def test_the_floor_that_is_written_is_a_rate_that_can_be_asked_for(count: int) -> None:
    kept = Decision(category="x", resolution=1, normal_scores=tuple(map(float, range(count))))
    assert kept.threshold(floor_of(count)) == kept.threshold(float(repr(floor_of(count)))) == count - 1
    assert needed_for(floor_of(count)) == count


@pytest.mark.parametrize(
    ("alarms", "count", "words"),
    [
        (0, 1, "0 of 1 normal test image lie above it: 0 % false alarms, 95 % interval 0 % to 97.5 %"),
        (1, 1, "1 of 1 normal test image lies above it: 100 % false alarms, 95 % interval 2.5 % to 100 %"),
        (0, 19, "0 of 19 normal test images lie above it: 0 % false alarms, 95 % interval 0 % to 17.6 %"),
        (19, 19, "19 of 19 normal test images lie above it: 100 % false alarms, 95 % interval 82.4 % to 100 %"),
        (1, 19, "1 of 19 normal test images lies above it: 5.26 % false alarms, 95 % interval 0.133 % to 26 %"),
    ],
)
def test_false_alarms_in_a_row_and_in_words_are_the_same(alarms: int, count: int, words: str) -> None:
    normal = tuple(map(float, range(9)))  # the fewest that a rate of 0.1 takes: the threshold is the highest, 8
    scores = [9.0] * alarms + [8.0] * (count - alarms)
    found = figures_of(normal, [*scores, 20.0], [False] * count + [True])
    assert (found["false_alarms"], found["detected"]) == (alarms / count, 1.0)
    theirs = stats.binomtest(alarms, count).proportion_ci(0.95, method="exact")
    assert found["false_alarms_low"] == pytest.approx(theirs.low, abs=1e-12)
    assert found["false_alarms_high"] == pytest.approx(theirs.high, abs=1e-12)
    assert alarm_words(alarms, count) == words
    kept = Decision(category="x", resolution=1, normal_scores=normal, test_normal_scores=tuple(sorted(scores)))
    assert notes_on(kept, kept.threshold(0.1), 0.1)[:2] == (
        "10 % is the smallest false-alarm rate that 9 images can support", words,
    )  # fmt: skip
