"""The checks of the pixel metrics must reject every faulty implementation, and pass the real one."""

from __future__ import annotations

import numpy as np
import pytest

from kdad_bench.metrics import MetricError, pixel_metrics
from tests.metrics import metrics_by_definition as definition
from tests.wrong.metrics import WRONG, Compute, sound


def corner_touching_squares(shape: tuple[int, int, int]) -> np.ndarray:
    """Regions that touch at a corner, one that lies at the same place in two images, and a good image last."""
    masks = np.zeros(shape, bool)
    masks[0, 1:3, 1:3] = masks[0, 3:5, 3:5] = True
    masks[0, 6:, 6:] = masks[1, 6:, 6:] = True
    masks[1, 0, 0] = True
    return masks


def check(compute: Compute) -> None:
    """What a pixel-metric implementation must get right; raises AssertionError otherwise."""
    masks = corner_touching_squares((4, 12, 12))
    rng = np.random.default_rng(5)
    loudness = np.array([1, 2, 1, 3], np.float32)[:, None, None]  # the good images are the loudest
    continuous = (loudness * rng.random(masks.shape) + masks).astype(np.float32)
    tied = np.round(2 * continuous).astype(np.float32)
    for maps in (continuous, tied):
        assert compute(maps, masks) == pytest.approx(definition.pixel_metrics(maps, masks), abs=1e-9)
    continuous[2, 3, 3] = np.nan
    with pytest.raises(MetricError):
        compute(continuous, masks)


def refusing(compute: Compute) -> Compute:
    """The computation behind the real check for finite values, so that a fault elsewhere is what gets it rejected."""

    def guarded(maps: np.ndarray, masks: np.ndarray) -> dict[str, float | None]:
        pixel_metrics(maps, masks)
        return compute(maps, masks)

    return guarded


@pytest.mark.parametrize("compute", [pixel_metrics, refusing(sound)], ids=["kdad_bench", "slow but sound"])
def test_the_check_passes_a_right_implementation(compute: Compute) -> None:
    check(compute)


@pytest.mark.parametrize("name", WRONG)
def test_the_check_rejects(name: str) -> None:
    compute = WRONG[name] if name == "not_finite_becomes_zero" else refusing(WRONG[name])
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(compute)
