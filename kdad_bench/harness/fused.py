"""One detector per modality, one verdict: each learns alone, their maps meet on the scale of held-out normals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdad_bench.harness.datasets.late_fusion import Calibration, calibrate
from kdad_bench.methods.protocol import Fitting, Method, Scores

CHANNELS = 3  # of one modality; the modalities of an image are stacked along the channels


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
        found = [part.score(channels(images, k)) for k, part in enumerate(self.parts)]
        ready = [
            (
                (scores.image - calibration.score_mean) / calibration.score_std,
                (scores.pixel - calibration.pixel_mean) / calibration.pixel_std,
            )
            for scores, calibration in zip(found, self.calibrations, strict=True)
        ]
        return Scores(torch.stack([image for image, _ in ready]).mean(0), torch.stack([p for _, p in ready]).mean(0))

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
