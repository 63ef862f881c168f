"""What the images of a category say: DeLong's variance, resampled figures, and whose scores count."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from kdad_bench.leaderboard import images
from kdad_bench.leaderboard.images import Images, delong, of_jobs, placements, resampled
from kdad_bench.leaderboard.student_t import student_quantile, student_tail

Floats = NDArray[np.float64]


def pair_by_pair(scores: Sequence[float], labels: Sequence[bool]) -> tuple[list[float], list[float]]:
    """The placement values from their definition: psi is 1, 1/2 or 0 for each pair of an anomalous and a good image."""
    anomalous = [s for s, label in zip(scores, labels, strict=True) if label]
    good = [s for s, label in zip(scores, labels, strict=True) if not label]

    def psi(x: float, y: float) -> float:
        return 1.0 if y < x else 0.5 if y == x else 0.0

    above = [sum(psi(x, y) for y in good) / len(good) for x in anomalous]
    below = [sum(psi(x, y) for x in anomalous) / len(anomalous) for y in good]
    return above, below


def covariance_by_hand(one: Sequence[float], other: Sequence[float], labels: Sequence[bool]) -> float:
    """S of DeLong, DeLong & Clarke-Pearson 1988, eq. 6 and 7: sums of products around the two areas."""
    total = 0.0
    for kind in (0, 1):
        v, w = pair_by_pair(one, labels)[kind], pair_by_pair(other, labels)[kind]
        area_v, area_w = sum(v) / len(v), sum(w) / len(w)
        s = sum((a - area_v) * (b - area_w) for a, b in zip(v, w, strict=True)) / (len(v) - 1)
        total += s / len(v)
    return total


LABELLED = st.integers(2, 9).flatmap(
    lambda m: st.integers(2, 9).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-3, 3), min_size=m + n, max_size=m + n),
            st.lists(st.integers(-3, 3), min_size=m + n, max_size=m + n),
            st.permutations([True] * m + [False] * n),
        )
    )
)


@settings(max_examples=60)
@given(LABELLED)
def test_delongs_covariance_is_that_of_its_definition_pair_by_pair(
    drawn: tuple[list[int], list[int], list[bool]],
) -> None:
    one, other, labels = drawn
    marks = np.array(labels)
    both = [placements(np.array(scores, float), marks) for scores in (one, other)]
    for scores, (above, below) in zip((one, other), both, strict=True):
        expected = pair_by_pair(scores, labels)
        np.testing.assert_allclose(above, expected[0], atol=1e-12)
        np.testing.assert_allclose(below, expected[1], atol=1e-12)
        assert above.mean() == pytest.approx(roc_auc_score(labels, scores))
        assert below.mean() == pytest.approx(roc_auc_score(labels, scores))
    found = delong(np.array([above for above, _ in both]), np.array([below for _, below in both]))
    for i, j in itertools.product((0, 1), (0, 1)):
        expected = covariance_by_hand((one, other)[i], (one, other)[j], labels)
        assert found[i, j] == pytest.approx(expected, abs=1e-12)


def test_delongs_variance_is_what_new_images_do() -> None:
    """Against the truth: the variance of the difference of two areas over 1,500 samples of images."""
    rng = np.random.default_rng(0)
    labels = np.arange(70) < 40
    areas, estimates = [], []
    for _ in range(1500):
        shared = rng.normal(size=70)
        scores = [shared + rng.normal(size=70) + shift * labels for shift in (2.0, 1.4)]
        both = [placements(one, labels) for one in scores]
        areas.append([above.mean() for above, _ in both])
        found = delong(np.array([above for above, _ in both]), np.array([below for _, below in both]))
        estimates.append([found[0, 0], found[1, 1], found[0, 1]])
    true = np.cov(np.array(areas).T)
    expected = [true[0, 0], true[1, 1], true[0, 1]]
    np.testing.assert_allclose(np.mean(estimates, axis=0), expected, rtol=0.12)


def jobs_of(scores: dict[tuple[str, int], Floats], labels: NDArray[np.bool_]) -> Images:
    return Images(labels=labels, scores=scores)


def figures_of(metric: str, found: Images) -> dict[tuple[str, int], float]:
    once = np.ones((1, found.labels.size))
    if metric == "image_auroc":
        return {job: float(roc_auc_score(found.labels, scores)) for job, scores in found.scores.items()}
    return {job: float(resampled(metric, scores, found.labels, once)[0]) for job, scores in found.scores.items()}


@pytest.fixture(scope="module")
def three_jobs() -> Images:
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(60) < 38)
    shared = rng.normal(size=60)
    scores = {(m, s): shared + rng.normal(size=60) + 1.5 * labels for m, s in (("a", 0), ("a", 1), ("b", 0))}
    return jobs_of(scores, labels)


@pytest.mark.parametrize("metric", images.METRICS)
def test_covariances_are_those_of_a_stratified_paired_bootstrap(three_jobs: Images, metric: str) -> None:
    """Against resamples drawn here one by one, each figure by scikit-learn."""
    noise = three_jobs.noise(metric, figures_of(metric, three_jobs))
    assert noise is not None
    rng = np.random.default_rng(5)
    anomalous, good = np.flatnonzero(three_jobs.labels), np.flatnonzero(~three_jobs.labels)
    drawn = []
    for _ in range(400):
        chosen = np.concatenate([rng.choice(anomalous, anomalous.size), rng.choice(good, good.size)])
        drawn.append([by_scikit_learn(metric, three_jobs.scores[job][chosen], three_jobs.labels[chosen])
                      for job in noise.jobs])  # fmt: skip
    expected = np.cov(np.array(drawn).T)
    np.testing.assert_allclose(noise.covariance, expected, rtol=0.3, atol=0.1 * expected.max())


def by_scikit_learn(metric: str, scores: Floats, labels: NDArray[np.bool_]) -> float:
    if metric == "image_auroc":
        return float(roc_auc_score(labels, scores))
    if metric == "image_ap":
        return float(average_precision_score(labels, scores))
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


@settings(max_examples=25)
@given(LABELLED)
def test_resampled_figures_are_those_of_the_repeated_images(drawn: tuple[list[int], list[int], list[bool]]) -> None:
    scores, _, marks = drawn
    labels = np.array(marks)
    rng = np.random.default_rng(len(scores))
    times = rng.integers(0, 4, size=(5, len(scores)))
    times[:, np.flatnonzero(labels)[0]] += 1
    for metric in ("image_ap", "image_f1_max"):
        found = resampled(metric, np.array(scores, float), labels, times.astype(float))
        for value, often in zip(found, times, strict=True):
            chosen = np.repeat(np.arange(len(scores)), often)
            assert value == pytest.approx(by_scikit_learn(metric, np.array(scores, float)[chosen], labels[chosen]))


def test_scores_that_do_not_give_the_figure_of_their_row_count_for_nothing(three_jobs: Images) -> None:
    figures = figures_of("image_auroc", three_jobs)
    figures["a", 1] += 0.01
    noise = three_jobs.noise("image_auroc", figures)
    assert noise is not None
    assert {*noise.jobs} == {("a", 0), ("b", 0)}
    assert three_jobs.noise("image_auroc", dict.fromkeys(figures, 0.1)) is None


@pytest.mark.parametrize(("anomalous", "good"), [(1, 5), (5, 1), (0, 6), (6, 0)])
def test_one_image_of_a_kind_has_no_variance(anomalous: int, good: int) -> None:
    labels = np.arange(anomalous + good) < anomalous
    found = jobs_of({("a", 0): np.arange(labels.size, dtype=float)}, labels)
    assert found.noise("image_auroc", {("a", 0): 0.5}) is None


def a_row(names: Sequence[str], scores: Sequence[float], labels: Sequence[bool], **more: Any) -> dict[str, Any]:
    return {"image_names": list(names), "image_scores": list(scores), "image_labels": list(labels), **more}


def test_images_are_paired_by_name_whatever_their_order() -> None:
    rows = [
        (("a", 0), a_row("wxyz", (1, 2, 3, 4), (False, True, False, True))),
        (("b", 0), a_row("zyxw", (40, 30, 20, 10), (True, False, True, False))),
    ]
    found = of_jobs(rows)
    assert found is not None
    np.testing.assert_array_equal(found.scores["b", 0], 10 * found.scores["a", 0])
    np.testing.assert_array_equal(found.labels, [False, True, False, True])


def test_jobs_with_other_images_or_without_scores_have_no_part() -> None:
    good = [(("a", seed), a_row("wxyz", (1, 2, 3, 4), (False, True, False, True))) for seed in (0, 1)]
    others = {
        "other names": a_row("wxyq", (1, 2, 3, 4), (False, True, False, True)),
        "other labels": a_row("wxyz", (1, 2, 3, 4), (True, True, False, True)),
        "one twice": a_row("wxyy", (1, 2, 3, 4), (False, True, False, True)),
        "fewer": a_row("wxy", (1, 2, 3), (False, True, False)),
        "of two lengths": a_row("wxyz", (1, 2, 3), (False, True, False, True)),
        "not finite": a_row("wxyz", (1, 2, math.nan, 4), (False, True, False, True)),
        "null": {"image_names": None, "image_scores": None, "image_labels": None},
        "absent": {},
    }
    for what, row in others.items():
        found = of_jobs([*good, (("b", 0), row)])
        assert found is not None
        assert {*found.scores} == {("a", 0), ("a", 1)}, what
        assert of_jobs([(("b", 0), others["null"])]) is None


# ---- Student's t, for any degrees of freedom


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 2.5, 3, 7.7, 30, 123.4, 1000])
def test_students_tail_and_quantile_are_scipys(freedom: float) -> None:
    for value in (0.0, 1e-6, 0.3, 1.0, 2.5, 10.0, 300.0):
        assert student_tail(value, freedom) == pytest.approx(2 * stats.t.sf(value, freedom), rel=1e-8, abs=1e-300)
    for level in (0.01, 0.5, 0.6, 0.95, 0.999, 0.999999):
        assert student_quantile(freedom, level) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-8)


def test_a_quantile_outside_its_ranges_is_an_error() -> None:
    for freedom, level in ((0.5, 0.95), (3, 0.0), (3, 1.0)):
        with pytest.raises(ValueError, match="no Student quantile"):
            student_quantile(freedom, level)
