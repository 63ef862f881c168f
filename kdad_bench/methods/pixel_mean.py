"""The floor of every table: no teacher and nothing learnt but the mean and deviation of each pixel over the normals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdad_bench.kernels import fuse_scales, gaussian_blur, image_scores
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.protocol import BLURS, Entry, Fitting, Scores, Settings
from kdad_bench.methods.resizing import resized

LEAST_DEVIATION = 1 / 255  # one grey level: keeps a pixel that never changes from dividing by zero


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelMeanSettings(Settings):
    """No source: a floor, not a method."""

    teacher: str = "none"
    epochs: int = 0
    sigma: float = 4.0  # of the blur, RD4AD's

    RANGES: ClassVar = {**Settings.RANGES, "sigma": BLURS}


class PixelMean:
    """Standardised distance of a pixel to its mean over the normal images, averaged over colours and blurred."""

    def __init__(self, settings: PixelMeanSettings, device: torch.device) -> None:
        self.settings, self.device = settings, device
        self.module: nn.Module = nn.Module()
        side = settings.image_size
        self.module.register_buffer("mean", torch.zeros(3, side, side, device=device))
        self.module.register_buffer("deviation", torch.ones(3, side, side, device=device))

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Mean and standard deviation of every pixel and colour of `normal` [N, 3, H, W] in [0, 1]."""
        if normal.ndim != 4 or normal.shape[0] == 0:
            raise ValueError(f"fit needs images [N, 3, H, W] with N > 0; got {tuple(normal.shape)}")
        images = resized(normal.to(self.device), self.settings.image_size)
        deviation = images.std(0, correction=0)
        self.module.load_state_dict({"mean": images.mean(0), "deviation": deviation.clamp_min(LEAST_DEVIATION)})

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Scores of `images` [N, 3, H, W] float32 in [0, 1]; the image score is the map's maximum."""
        size = int(images.shape[-2]), int(images.shape[-1])
        small = self.networks(resized(images.to(self.device), self.settings.image_size))
        pixel = fuse_scales([gaussian_blur(small, self.settings.sigma)], size)
        return Scores(image_scores(pixel), pixel)

    def networks(self, images: Tensor) -> Tensor:
        """There is no network; the standardised distance [N, S, S] before its blur."""
        mean, deviation = self.module.get_buffer("mean"), self.module.get_buffer("deviation")
        return ((images - mean).abs() / deviation).mean(1)


def build(settings: PixelMeanSettings, teacher: Backbone | None, device: torch.device) -> PixelMean:
    """The floor; a teacher is not used."""
    return PixelMean(settings, device)


PIXEL_MEAN = Entry(
    name="pixel_mean",
    title="Pixel mean (floor)",
    paper="no paper: the floor that every method must beat",
    presets={"paper": PixelMeanSettings(), "standard": PixelMeanSettings(), "quick": PixelMeanSettings(image_size=128)},
    build=build,
    needs_teacher=False,
    family="floor",
)
