"""SPADE: Cohen & Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid Correspondences", 2020, arXiv 2005.02357.

The nearest normal images first, by one feature per image; then each pixel's nearest feature among those images' pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kdad_bench.kernels import nearest
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.distillation import Taps
from kdad_bench.methods.frozen_features import FrozenFeatures, FrozenSettings, Kept, channels_of, pixels
from kdad_bench.methods.protocol import Entry, Range, Scores, Settled


@dataclass(frozen=True, kw_only=True, slots=True)
class SpadeSettings(FrozenSettings):
    """The paper's settings for MVTec AD, as recalled and as public codes repeat them."""

    teacher: str = "wide_resnet50_2"
    strides: tuple[int, ...] = (4, 8, 16, 32)  # the deepest, averaged over the image, finds the nearest images
    maps: int = 3  # the shallowest taps whose pixels are compared: 4, 8, 16
    images: int = 50  # K nearest images; all of them where there are fewer
    pixels: int = 1  # kappa nearest pixel features, their distances averaged; all of them where there are fewer

    RANGES: ClassVar = {
        **FrozenSettings.RANGES,
        "maps": Range(1, 4),
        "images": Range(1),
        "pixels": Range(1, 1024),
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper", ("wide_resnet50_2",)),
        "strides": Settled("paper", ((4, 8, 16, 32),)),
        "taps": Settled("paper", ("raw",)),
        "maps": Settled("paper", (3,)),
        "images": Settled("paper", (50,)),
        "pixels": Settled("paper", (1,)),
        "sigma": Settled("paper", (4.0,)),
    }
    READINGS: ClassVar = {
        "pyramid": lambda settings: "each tap has its own nearest pixels, distances averaged over taps (public code)",
        "image score": lambda settings: "mean of Euclidean distances, not of their squares (public code)",
    }

    def __post_init__(self) -> None:
        """Raises ValueError that names the field, its value and what it may be."""
        super(SpadeSettings, self).__post_init__()  # slots: the class is made anew, and super() knows the first
        if self.maps > len(self.strides):
            raise ValueError(f"maps {self.maps} is more than the {len(self.strides)} strides")

    def compared(self, images: int) -> int:
        """The K nearest of `images`."""
        return min(images, self.images)

    def learning_from(self, images: int) -> tuple[str, ...]:
        """Fewer neighbours."""
        few = 0 < images < self.images
        return (f"neighbours: {images} images, all there are (settings: {self.images})",) if few else ()

    def kept_bytes(self, images: int) -> int:
        """A feature of each image, and of each of its pixels at the shallow taps."""
        shallow = sum(channels_of(self, stride) * pixels(self, stride) for stride in self.strides[: self.maps])
        return 4 * images * (shallow + channels_of(self, self.strides[-1]))


class Spade(FrozenFeatures[SpadeSettings]):
    """Distance of each pixel's features to the nearest among the pixels of the K most similar normal images."""

    def build_kept(self, teacher: Backbone) -> Kept:
        return Kept("images", *(f"pixels{k}" for k in range(self.settings.maps)))

    def learn(self, images: Tensor) -> None:
        """Keep one feature per image, and all pixels' of the shallow taps: [N, C] and [N, h w, C_k]."""
        maps = self.settings.maps
        kinds = self.gathered(images, lambda taps: [taps[-1].mean((2, 3)), *map(rows, taps[:maps])])
        self.kept.keep(images=kinds[0], **{f"pixels{k}": kind for k, kind in enumerate(kinds[1:])})

    def judge(self, outputs: Taps, size: tuple[int, int]) -> Scores:
        """Image: mean distance to the K nearest images. Pixel: distance to the nearest pixel feature of those images,
        averaged over the taps, upsampled and blurred."""
        known = self.kept.get_buffer("images")
        squared, index = nearest(outputs[-1].mean((2, 3)), known, min(self.settings.images, len(known)))
        maps = []
        for k, tap in enumerate(outputs[: self.settings.maps]):
            gallery = self.kept.get_buffer(f"pixels{k}")
            found = [self.distances(one, gallery[near]) for one, near in zip(rows(tap), index, strict=True)]
            maps.append(torch.stack(found).view(len(tap), *tap.shape[2:]) / self.settings.maps)
        return Scores(squared.sqrt().mean(1), self.smoothed(maps, size))

    def distances(self, pixels: Tensor, gallery: Tensor) -> Tensor:
        """[P]: mean distance of each of `pixels` [P, C] to the kappa nearest pixels of `gallery` [K, P, C], or all."""
        every = gallery.flatten(0, 1)
        squared, _ = nearest(pixels, every, min(self.settings.pixels, len(every)))
        return squared.sqrt().mean(1)


def rows(tap: Tensor) -> Tensor:
    """[N, C, h, w] -> [N, h w, C]."""
    return tap.flatten(2).mT.contiguous()


SPADE = Entry(
    name="spade",
    title="SPADE",
    paper="Cohen, Hoshen 2020, arXiv 2005.02357",
    presets={
        "paper": SpadeSettings(),
        "standard": SpadeSettings(teacher="resnet18", strides=(4, 8, 16)),
        "quick": SpadeSettings(
            teacher="efficientnet_lite0", image_size=128, batch_size=8, strides=(4, 8, 16), images=10, sigma=2.0
        ),
    },
    build=Spade,
    family="yardstick",
    variants={"stride16": {"strides": (4, 8, 16)}},  # weights without the last stage: stride 16 finds the images
)
