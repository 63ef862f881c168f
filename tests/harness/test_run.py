"""What `run` puts into a row."""

from __future__ import annotations

from kdad_bench.harness.run import thinned


def test_a_loss_curve_in_a_row_is_short_and_keeps_its_end() -> None:
    curve = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 1001)]
    kept = thinned(curve)
    assert len(kept) <= 200
    assert kept[-1] == curve[-1]
    assert thinned([]) == []
