"""What `predict` says of where its threshold is from."""

from __future__ import annotations

from pathlib import Path

from kdad_bench.harness.decision import Decision
from kdad_bench.harness.predict import threshold_of

KEPT = Decision(category="bottle", resolution=64, normal_scores=tuple(number / 20 for number in range(20)))


def test_normals_that_a_person_named_are_not_vouched_for() -> None:
    """Nobody knows whether the model learnt from them: of its own training images the threshold is far too low."""
    limit, said = threshold_of(KEPT, None, 0.1, Path("good"))
    own, of_model = threshold_of(KEPT, None, 0.1)
    assert limit == own
    assert "20 held-out normals" in of_model
    assert "held-out" not in said
    assert "20 normals of good" in said
    assert said.endswith("which holds if the model learnt from none of them")
