"""PaDiM: Defard et al., "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization",
ICPR workshops 2021, arXiv 2011.08785. One Gaussian per position over a random choice of feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.methods.backbones import FACTS, Backbone
from kdad_bench.methods.distillation import Taps, chance
from kdad_bench.methods.frozen_features import FrozenFeatures, FrozenSettings, Kept, pixels, with_maximum
from kdad_bench.methods.protocol import Entry, Range, Scores, Settled, takes_maps_alone

POSITIONS = 256  # whose covariances are held in float64 at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class PadimSettings(FrozenSettings):
    """The paper's R18-Rd100."""

    channels: int = 100  # chosen at random of all taps' (paper: 100 with ResNet-18, 550 with WideResNet-50-2)
    regulariser: float = 0.01  # of the covariance's diagonal (section III-B)

    RANGES: ClassVar = {
        **FrozenSettings.RANGES,
        "channels": Range(1),
        "regulariser": Range(0, open_low=True),
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper", ("resnet18", "wide_resnet50_2")),
        "strides": Settled("paper", ((4, 8, 16),)),
        "taps": Settled("paper", ("raw",)),
        "regulariser": Settled("paper", (0.01,)),
        "sigma": Settled("paper", (4.0,)),
    }
    CONFLICTS: ClassVar = {
        "teacher": takes_maps_alone,
        "channels": lambda settings: (
            f"teacher {settings.teacher} has {settings.all_channels} in all its taps"
            if settings.all_channels is not None and settings.channels > settings.all_channels
            else ""
        ),
    }
    READINGS: ClassVar = {
        "channels": lambda settings: (
            f"which {settings.channels} follows from the seed; no source names them"
            if settings.channels != settings.all_channels
            else ""
        ),
        "upsampling": lambda settings: "deeper taps repeated, maps bilinear, as in public codes",
    }
    DEPARTURES: ClassVar = {
        **FrozenSettings.DEPARTURES,
        "channels": lambda settings: _unlike_the_paper(settings),
    }

    def kept_bytes(self, images: int) -> int:
        """The features of all images and each position's matrix, both twice as they are brought together, and what is
        held in float64 of POSITIONS at a time."""
        positions, wide = pixels(self, self.strides[0]), self.channels
        together = 8 * positions * (images * wide + wide**2)
        return together + 8 * min(POSITIONS, positions) * (3 * images * wide + 5 * wide**2)

    @property
    def all_channels(self) -> int | None:
        """How many channels the taps have together; None of a teacher that is not known."""
        facts = FACTS.get(self.teacher)
        return None if facts is None else sum(facts.channels[stride] for stride in self.strides)


def _unlike_the_paper(settings: PadimSettings) -> str:
    """What the paper chose for this teacher, if it is something else."""
    chosen = {"resnet18": 100, "wide_resnet50_2": 550}.get(settings.teacher)
    if chosen is None or chosen == settings.channels:
        return ""
    return f"{settings.channels} (paper: {chosen} with this teacher)"


class Padim(FrozenFeatures[PadimSettings]):
    """Mahalanobis distance of each position's features to the Gaussian of the normal images there."""

    _parts: tuple[Tensor, int, Taps] | None = None  # of `parts`: the buffer, its version, what came of it

    def build_kept(self, teacher: Backbone) -> Kept:
        return Kept("channels", "mean", "whitening")

    def learn(self, images: Tensor) -> None:
        """Mean and covariance + 0.01 I of every position; kept is L^-1 of the covariance L L^T."""
        have = sum(self.teacher.network.channels)
        order = torch.randperm(have, generator=chance(self.settings.seed, "channels", 0))
        channels = order[: self.settings.channels].sort().values.to(self.device)
        parts = by_tap(channels, self.teacher.network.channels)
        features = torch.cat([embedding(taps, parts).flatten(2) for taps in self.taps_of(images)])  # [N, D, P]
        whitening = [whitening_of(some, self.settings.regulariser) for some in torch.split(features, POSITIONS, 2)]
        self.kept.keep(channels=channels, mean=features.mean(0), whitening=torch.cat(whitening))

    def parts(self) -> Taps:
        """The channels that are kept of each tap, found once: to find them a GPU is waited for."""
        channels = self.kept.get_buffer("channels")
        version = 0 if channels.is_inference() else channels._version
        if self._parts is None or self._parts[0] is not channels or self._parts[1] != version:
            self._parts = channels, version, by_tap(channels, self.teacher.network.channels)
        return self._parts[2]

    def judge(self, outputs: Taps, size: tuple[int, int]) -> Scores:
        """sqrt((x - mean)^T covariance^-1 (x - mean)) = |L^-1 (x - mean)| at each position (eq. 2), upsampled and
        blurred; the image score is the maximum."""
        kept = self.kept
        features = embedding(outputs, self.parts())
        centred = features.flatten(2) - kept.get_buffer("mean")  # [N, D, P]
        white = torch.bmm(kept.get_buffer("whitening"), centred.permute(2, 1, 0))  # [P, D, N]
        distances = torch.linalg.vector_norm(white, dim=1).T.reshape(-1, *features.shape[2:])
        return with_maximum(self.smoothed([distances], size))


def by_tap(channels: Tensor, sizes: Sequence[int]) -> Taps:
    """Ascending `channels` of all taps' in a row, int64 [D], as those of each tap, which has so many."""
    ends = torch.tensor([0, *accumulate(sizes)])
    places = torch.searchsorted(channels.cpu(), ends).tolist()
    return tuple(channels[a:b] - int(end) for (a, b), end in zip(pairwise(places), ends, strict=False))


def embedding(taps: Taps, parts: Taps) -> Tensor:
    """The channels `parts` of each tap in a row [N, D, h, w] at the finest tap; a deeper pixel covers several."""
    height, width = taps[0].shape[-2:]
    found = [
        F.interpolate(tap[:, mine], (height, width), mode="nearest")
        for tap, mine in zip(taps, parts, strict=True)
        if len(mine)  # of no channels nothing can be resized
    ]
    return torch.cat(found, 1)


def whitening_of(features: Tensor, regulariser: float) -> Tensor:
    """L^-1 [P, D, D] float32 of each position's covariance (eq. 1) of `features` [N, D, P], plus `regulariser` I."""
    samples = features.double().permute(2, 0, 1)  # [P, N, D]
    samples = samples - samples.mean(1, keepdim=True)
    identity = torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
    covariance = samples.mT @ samples / max(len(features) - 1, 1) + regulariser * identity
    lower = torch.linalg.cholesky(covariance)
    inverse: Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return inverse.float()


PADIM = Entry(
    name="padim",
    title="PaDiM",
    paper="Defard, Setkov, Loesch, Audigier, ICPR workshops 2021, arXiv 2011.08785",
    presets={
        "paper": PadimSettings(),
        "standard": PadimSettings(),
        "quick": PadimSettings(teacher="efficientnet_lite0", image_size=128, batch_size=8, sigma=2.0),
    },
    build=Padim,
    family="yardstick",
    variants={"wide": {"teacher": "wide_resnet50_2", "channels": 550}},
)
