"""One detector per modality, one verdict: each learns alone, their maps meet on the scale of held-out normals.

A detector's maps have no unit: the maps of two can only be added once each is measured by its own spread on normal
images. The held-out normals give location and scale; no test image and no other image of the batch takes part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdad_bench.methods.protocol import Fitting, Method, Scores

CHANNELS = 3  # of one modality; the modalities of an image are stacked along the channels


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What normal looks like to one detector: mean and standard deviation of its pixels and of its image scores."""

    pixel_mean: float
    pixel_std: float
    score_mean: float
    score_std: float

    def standardised(self, scores: Scores) -> Scores:
        """`scores` in standard deviations above normal."""
        return Scores(
            (scores.image - self.score_mean) / self.score_std, (scores.pixel - self.pixel_mean) / self.pixel_std
        )


class FusedModalities:
    """A `Method` on images [N, 3 M, H, W]: M detectors of one kind, each on its three channels, fused late.

    Image scores and pixels of each are standardised by mean and deviation over held-out normals, then averaged.
    """

    def __init__(self, parts: Sequence[Method], names: Sequence[str], held_out: Tensor) -> None:
        """`parts` and their modalities' `names`, in the order of the channels; `held_out` [K, 3 M, H, W], K >= 1."""
        if len(held_out) == 0:
            raise ValueError("late fusion needs held-out normal images to bring the modalities to one scale")
        self.parts, self.names, self.held_out = tuple(parts), tuple(names), held_out
        self.settings: Any = parts[0].settings
        self.module: nn.Module = nn.ModuleList(part.module for part in parts)
        self.calibrations: tuple[Calibration, ...] = ()

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Each detector learns from its channels of `normal`; then all are calibrated on the held-out normals."""
        fitting = fitting or Fitting()
        for k, (part, name) in enumerate(zip(self.parts, self.names, strict=True)):
            checkpoint = fitting.checkpoint and fitting.checkpoint.with_suffix(f".{name}.pt")
            part.fit(channels(normal, k), replace(fitting, log=named(fitting, name), checkpoint=checkpoint))
        self.calibrations = tuple(calibration_of(part, channels(self.held_out, k)) for k, part in enumerate(self.parts))

    def score(self, images: Tensor) -> Scores:
        """The mean over modalities of scores and maps in standard deviations above normal."""
        found = [
            calibration.standardised(part.score(channels(images, k)))
            for k, (part, calibration) in enumerate(zip(self.parts, self.calibrations, strict=True))
        ]
        return Scores(torch.stack([s.image for s in found]).mean(0), torch.stack([s.pixel for s in found]).mean(0))

    def networks(self, images: Tensor) -> list[object]:
        """The networks of every modality, without maps."""
        return [part.networks(channels(images, k)) for k, part in enumerate(self.parts)]


def channels(images: Tensor, k: int) -> Tensor:
    """The three channels of modality `k`."""
    return images[:, CHANNELS * k : CHANNELS * (k + 1)].contiguous()


def named(fitting: Fitting, name: str) -> Any:
    """The log of `fitting` with the modality before each term."""

    def log(step: int, terms: Mapping[str, float]) -> None:
        fitting.log(step, {f"{name} {term}": value for term, value in terms.items()})

    return log


def calibration_of(method: Method, held_out: Tensor) -> Calibration:
    """Where and how wide the scores of normal images lie, from images the method did not learn from."""
    with torch.inference_mode():
        scores = [method.score(held_out[i : i + 1]) for i in range(len(held_out))]
    maps = torch.cat([score.pixel for score in scores]).cpu().numpy()
    return calibrate(maps, torch.cat([score.image for score in scores]).cpu().numpy())


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
