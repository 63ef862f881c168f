"""PG2, PB2, the exact interval and the exact two-sample test, each against its definition."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdad_bench.metrics import clopper_pearson, image_metrics, two_sample_p

SCORES = st.lists(st.integers(-3, 6).map(float), min_size=1, max_size=130)
TWO_PERCENT = Fraction(2, 100)


def by_definition(good: list[float], bad: list[float]) -> tuple[Fraction, Fraction]:
    """PG2 and PB2 by trying every threshold there is."""
    thresholds = [-np.inf, *good, *bad, np.inf]

    def share(scores: list[float], called: list[bool]) -> Fraction:
        return Fraction(sum(called), len(scores))

    pg = [share(good, [s < t for s in good]) for t in thresholds if share(bad, [s < t for s in bad]) <= TWO_PERCENT]
    pb = [share(bad, [s > t for s in bad]) for t in thresholds if share(good, [s > t for s in good]) <= TWO_PERCENT]
    return max(pg), max(pb)


@given(good=SCORES, bad=SCORES)
def test_pg2_and_pb2_are_their_definitions(good: list[float], bad: list[float]) -> None:
    found = image_metrics(np.array([*good, *bad], np.float32), [0] * len(good) + [1] * len(bad))
    pg2, pb2 = by_definition(good, bad)
    assert (found["pg2"], found["pb2"]) == (pytest.approx(float(pg2), abs=1e-12), pytest.approx(float(pb2), abs=1e-12))


@pytest.mark.parametrize("count", [1, 49, 50, 51, 99, 100, 149, 150])
def test_the_share_is_two_percent_where_images_are_counted(count: int) -> None:
    one, two = [float(k) for k in range(count)], [k + 0.5 for k in range(-3, count + 3)]
    for good, bad in ((one, two), (two, one)):
        found = image_metrics(np.array([*good, *bad], np.float32), [0] * len(good) + [1] * len(bad))
        assert (found["pg2"], found["pb2"]) == pytest.approx(tuple(map(float, by_definition(good, bad))), abs=1e-12)


def test_no_more_than_two_percent_are_ever_missed() -> None:
    # 2 of 63 are more than 2 %: an interpolated quantile would let them go
    bad = np.arange(63, dtype=np.float32)
    good = np.array([0.5, 1.5, 2.5], np.float32)
    found = image_metrics(np.concatenate([good, bad]), [0] * 3 + [1] * 63)
    assert found["pg2"] == pytest.approx(1 / 3)


def test_one_class_has_neither() -> None:
    found = image_metrics(np.ones(3, np.float32), [0, 0, 0])
    assert (found["pg2"], found["pb2"]) == (None, None)


@given(hits=st.integers(0, 60), more=st.integers(0, 60))
def test_the_interval_is_clopper_pearsons(hits: int, more: int) -> None:
    count = max(1, hits + more)
    low, high = clopper_pearson(min(hits, count), count)
    theirs = stats.binomtest(min(hits, count), count).proportion_ci(0.95, method="exact")
    assert (low, high) == (pytest.approx(theirs.low, abs=1e-12), pytest.approx(theirs.high, abs=1e-12))


SMALL = st.lists(st.integers(0, 3).map(float), min_size=1, max_size=5)


def gap(first: np.ndarray, second: np.ndarray) -> Fraction:
    """The largest distance of two empirical distributions."""
    return max(
        abs(Fraction(int((first <= v).sum()), first.size) - Fraction(int((second <= v).sum()), second.size))
        for v in (*first, *second)
    )


@given(first=SMALL, second=SMALL)
def test_the_p_value_is_the_share_of_divisions_that_part_as_far(first: list[float], second: list[float]) -> None:
    pooled = np.array([*first, *second])
    seen = gap(pooled[: len(first)], pooled[len(first) :])
    parts = [list(own) for own in combinations(range(pooled.size), len(first))]
    as_far = sum(gap(pooled[own], np.delete(pooled, own)) >= seen for own in parts)
    assert two_sample_p(first, second) == pytest.approx(as_far / len(parts), abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (19, 45), (60, 60), (300, 70)])
def test_without_ties_it_is_scipys_exact_test(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.normal(size=n), rng.normal(0.4, 1, size=m)
    theirs = stats.ks_2samp(first, second, method="exact").pvalue
    assert two_sample_p(first, second) == pytest.approx(theirs, rel=1e-9)
    assert two_sample_p(second, first) == pytest.approx(theirs, rel=1e-9)


def test_far_apart_is_small_and_nothing_is_no_test() -> None:
    assert two_sample_p(np.arange(40), np.arange(40) + 100) == pytest.approx(1.860340365603626e-23, rel=1e-9)
    assert two_sample_p([1.0, 1.0], [1.0]) == 1.0
    assert two_sample_p([], [1.0]) is None


# as other code has it, or nearly: the definition must tell each from the real thing
FAULTS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, float]]] = {
    "an interpolated quantile": lambda good, bad: (
        float((good < np.quantile(bad, 0.02)).mean()), float((bad > np.quantile(good, 0.98)).mean()),
    ),
    "images at the threshold are called": lambda good, bad: (
        float((good <= bad[bad.size // 50]).mean()), float((bad >= good[-1 - good.size // 50]).mean()),
    ),
    "2 % rounded up": lambda good, bad: (
        float((good < bad[-(-bad.size // 50)]).mean()), float((bad > good[-1 - -(-good.size // 50)]).mean()),
    ),
    "the classes exchanged": lambda good, bad: (
        float((bad > good[-1 - good.size // 50]).mean()), float((good < bad[bad.size // 50]).mean()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_pg2_and_pb2_is_seen(fault: str) -> None:
    rng = np.random.default_rng(1)
    good, bad = np.sort(np.round(rng.normal(0, 1, 63), 1)), np.sort(np.round(rng.normal(1.5, 1, 77), 1))
    sound = tuple(map(float, by_definition(good.tolist(), bad.tolist())))
    found = image_metrics(np.concatenate([good, bad]), [0] * 63 + [1] * 77)
    assert (found["pg2"], found["pb2"]) == pytest.approx(sound, abs=1e-12)
    pg2, pb2 = FAULTS[fault](good, bad)
    assert pg2 != pytest.approx(sound[0], abs=1e-9)
    assert pb2 != pytest.approx(sound[1], abs=1e-9)


@pytest.mark.parametrize("count", [1, 2, 9, 19, 99, 1000])
def test_the_interval_of_none_and_of_all_by_hand(count: int) -> None:
    """(1 - high)^n = 2.5 % where none was seen, low^n = 2.5 % where all were."""
    low, high = clopper_pearson(0, count)
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / count), abs=1e-12))
    low, high = clopper_pearson(count, count)
    assert (low, high) == (pytest.approx(0.025 ** (1 / count), abs=1e-12), 1.0)


@pytest.mark.parametrize("count", [1, 19])
def test_the_interval_holds_what_it_says(count: int) -> None:
    """Whatever the chance, at most 2.5 % of the samples lie beside it on either end."""
    intervals = [clopper_pearson(hits, count) for hits in range(count + 1)]
    for chance in np.linspace(0.001, 0.999, 97):
        share = stats.binom.pmf(np.arange(count + 1), count, chance)
        assert sum(s for s, (low, _) in zip(share, intervals, strict=True) if low > chance) <= 0.025 + 1e-12
        assert sum(s for s, (_, high) in zip(share, intervals, strict=True) if high < chance) <= 0.025 + 1e-12


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0], [2.0], 1.0),  # either order is as far apart
        ([1.0, 2.0], [3.0, 4.0], 2 / 6),  # 2 of 6 divisions part them wholly
        ([1.0, 1.0], [1.0, 2.0], 1.0),
        (list(range(19)), [19.0], 2 / 20),  # the lone one lies at either end
        (list(range(9)), list(range(9)), 1.0),
        ([0.0] * 5, [1.0] * 5, 2 / 252),
    ],
)
def test_the_p_value_by_hand(first: list[float], second: list[float], expected: float) -> None:
    assert two_sample_p(first, second) == pytest.approx(expected, abs=1e-12)
