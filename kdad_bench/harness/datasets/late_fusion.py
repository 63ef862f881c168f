"""Two modalities, two detectors, one verdict: maps and scores are standardised on held-out normals, then averaged.

A detector's maps have no unit: the maps of two can only be added once each is measured by its own spread on normal
images. The held-out normals give location and scale; no test image and no other image of the batch takes part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What normal looks like to one detector: mean and standard deviation of its pixels and of its image scores."""

    pixel_mean: float
    pixel_std: float
    score_mean: float
    score_std: float

    def standardised(self, maps: Floats, scores: Floats) -> tuple[Floats, Floats]:
        """`maps` [N, H, W] and `scores` [N] in standard deviations above normal, float32."""
        return (
            ((maps - self.pixel_mean) / self.pixel_std).astype(np.float32),
            ((scores - self.score_mean) / self.score_std).astype(np.float32),
        )


def calibrate(maps: npt.ArrayLike, scores: npt.ArrayLike) -> Calibration:
    """The calibration of a detector from its `maps` [M, H, W] and `scores` [M] on held-out normal images, M >= 1.

    A spread of zero (a constant map, a single image) counts as 1, so that nothing is divided by zero.
    Raises ValueError for M = 0 or values that are not finite.
    """
    pixels, images = np.asarray(maps, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if pixels.ndim != 3 or images.shape != pixels.shape[:1] or len(images) == 0:
        raise ValueError(f"maps {pixels.shape} and scores {images.shape}: must be [M, H, W] and [M] with M >= 1")
    if not (np.isfinite(pixels).all() and np.isfinite(images).all()):
        raise ValueError("maps or scores of the held-out normals are not finite")
    return Calibration(
        pixel_mean=float(pixels.mean()),
        pixel_std=_spread(pixels),
        score_mean=float(images.mean()),
        score_std=_spread(images),
    )


def _spread(values: npt.NDArray[np.float64]) -> float:
    spread = float(values.std())
    return spread if spread > 1e-12 * max(1.0, float(np.abs(values).max())) else 1.0


def fuse(parts: Sequence[tuple[npt.ArrayLike, npt.ArrayLike, Calibration]]) -> tuple[Floats, Floats]:
    """(maps [N, H, W], scores [N]) float32: the mean over detectors of what each says, in its own standard deviations.

    `parts` gives (maps [N, H, W], scores [N], calibration) of each detector on the same images, in the same order.
    Raises ValueError if the shapes differ.
    """
    ready = [
        calibration.standardised(np.asarray(maps, dtype=np.float32), np.asarray(scores, dtype=np.float32))
        for maps, scores, calibration in parts
    ]
    shapes = {(maps.shape, scores.shape) for maps, scores in ready}
    if len(shapes) != 1:
        raise ValueError(f"maps and scores of the modalities differ in shape: {sorted(shapes)}")
    maps = sum((maps for maps, _ in ready[1:]), ready[0][0]) / np.float32(len(ready))
    scores = sum((scores for _, scores in ready[1:]), ready[0][1]) / np.float32(len(ready))
    return maps, scores
