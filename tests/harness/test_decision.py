"""The threshold from held-out normals."""

from __future__ import annotations

import pytest

from kdad_bench.harness.decision import Decision, DecisionError


def test_the_threshold_is_the_conformal_quantile() -> None:
    scores = tuple(float(i) for i in range(1, 20))  # n = 19: rate 0.05 needs the 19th of 19
    assert Decision(category="x", resolution=64, normal_scores=scores).threshold(0.05) == 19.0
    assert Decision(category="x", resolution=64, normal_scores=scores).threshold(0.5) == 10.0
    with pytest.raises(DecisionError, match="cannot promise"):
        Decision(category="x", resolution=64, normal_scores=scores).threshold(0.04)
    with pytest.raises(DecisionError, match="no held-out scores"):
        Decision(category="x", resolution=64).threshold(0.1)
