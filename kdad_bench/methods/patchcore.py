"""PatchCore: Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, arXiv 2106.08265.

A memory of locally aware patch features, thinned to a coreset; a patch is as anomalous as it is far from the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.kernels import nearest
from kdad_bench.methods.backbones import FACTS, Backbone
from kdad_bench.methods.distillation import Taps, chance
from kdad_bench.methods.frozen_features import FrozenFeatures, FrozenSettings, Kept, channels_of, pixels
from kdad_bench.methods.protocol import Entry, Range, Scores, Settled, shown, takes_maps_alone

POOLINGS = ("by_width", "adaptive", "mean")
POOLINGS_IN_WORDS = {  # (pooling, whether adaptive pooling smooths)
    ("by_width", True): "",
    ("by_width", False): "the adaptive one smooths no neighbourhood of taps this narrow",
    ("adaptive", True): "",
    ("adaptive", False): "adaptive on taps so narrow that it smooths no neighbourhood",
    ("mean", True): "of each channel over the neighbourhood, as anomalib",
    ("mean", False): "of each channel over the neighbourhood, as anomalib",
}
NO_PROJECTION = 1 << 62  # numbers; more than any feature has
GATHERED = 4  # up to a fourth of the points is gathered to be measured; of more, all are


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchcoreSettings(FrozenSettings):
    """The paper's PatchCore-10%, as the official code's first command."""

    teacher: str = "wide_resnet50_2"
    strides: tuple[int, ...] = (8, 16)  # layer2 and layer3 (section 3.1)
    patch: int = 3  # side of the neighbourhood that a patch feature averages over; odd
    # adaptive: official code, pooled over channel and neighbourhood to `width` per tap, then both to `width`
    # mean: the neighbourhood's mean, all channels side by side (anomalib)
    # by_width: adaptive where that smooths a neighbourhood, as with the paper's network, else mean
    pooling: str = "by_width"
    width: int = 1024  # of a patch feature; adaptive only
    coreset: float = 0.1  # share of the patches that is kept (paper: 0.25, 0.1, 0.01)
    epsilon: float = 0.9  # distortion of distances that the random projection of the coreset's search may have
    reweighted: int = 9  # neighbours b of eq. 7; 0: the plain maximum, as the official code

    CHOICES: ClassVar = {**FrozenSettings.CHOICES, "pooling": POOLINGS}
    RANGES: ClassVar = {
        **FrozenSettings.RANGES,
        "patch": Range(1, 63),
        "width": Range(1, 1 << 16),
        "coreset": Range(0, 1, open_low=True),
        "epsilon": Range(0, 1, open_low=True, open_high=True),
        "reweighted": Range(0, 1024),
    }
    CONFLICTS: ClassVar = {"teacher": takes_maps_alone}
    SETTLED: ClassVar = {
        "teacher": Settled("paper", ("wide_resnet50_2",)),
        "strides": Settled("paper", ((8, 16),)),
        "taps": Settled("paper", ("raw",)),
        "patch": Settled("paper", (3,)),
        "width": Settled("official code", (1024,), lambda settings: settings.pooled == "adaptive"),
        "coreset": Settled("paper", (0.25, 0.1, 0.01)),
        "epsilon": Settled("paper", (0.9,), lambda settings: settings.coreset < 1),
        "sigma": Settled("paper", (4.0,)),
    }
    DEPARTURES: ClassVar = {
        **FrozenSettings.DEPARTURES,
        "pooling": lambda settings: "mean (official code: adaptive)" if settings.pooled == "mean" else "",
    }
    READINGS: ClassVar = {
        "pooling": lambda settings: POOLINGS_IN_WORDS[settings.pooling, settings.smooths],
        "image score": lambda settings: (
            f"eq. 7 with b = {settings.reweighted}, m* among them, as anomalib (official code: the plain maximum)"
            if settings.reweighted
            else "the plain maximum, as the official code (paper: re-weighted by eq. 7)"
        ),
        "coreset": lambda settings: (
            f"a share of {shown(settings.coreset)}, begun at a patch drawn by the seed" if settings.coreset < 1 else ""
        ),
    }

    def __post_init__(self) -> None:
        """Raises ValueError that names the field, its value and what it may be."""
        super(PatchcoreSettings, self).__post_init__()  # slots: the class is made anew, and super() knows the first
        if self.patch % 2 == 0:
            raise ValueError(f"patch {self.patch} is not odd")
        if self.reweighted == 1:
            raise ValueError("reweighted 1: a single neighbour gives every image the score 0; take 0 or at least 2")

    @property
    def smooths(self) -> bool:
        """Whether adaptive pooling averages whole neighbourhoods: the deepest tap is as wide as a patch feature.

        The official code pools a row of channels times neighbours. On WideResNet-50-2 each value of 1024 is the mean of
        9 neighbours; on ResNet-18 it is that of two or three, places apart, and no smoothing is left.
        """
        facts = FACTS.get(self.teacher)
        return facts is not None and facts.channels.get(max(self.strides), 0) >= self.width

    @property
    def pooled(self) -> str:
        """adaptive or mean: what `pooling` comes to with this teacher."""
        if self.pooling != "by_width":
            return self.pooling
        return "adaptive" if self.smooths else "mean"

    def learning_from(self, images: int) -> tuple[str, ...]:
        """Fewer neighbours in a small memory."""
        kept = max(1, int(images * pixels(self, self.strides[0]) * self.coreset))
        if not images or kept >= self.reweighted:
            return ()
        how = f"eq. 7 with b = {kept}, the whole memory" if kept > 1 else "the plain maximum, by a memory of one patch"
        return (f"image score: {how} (settings: {self.reweighted})",)

    def kept_bytes(self, images: int) -> int:
        """The features of all patches, by the side of their coreset and of what its search projects them to."""
        width = self.width if self.pooled == "adaptive" else sum(channels_of(self, stride) for stride in self.strides)
        all_patches = images * pixels(self, self.strides[0])
        projected_to = min(width, projected_width(max(2, all_patches), self.epsilon)) if self.coreset < 1 else 0
        return int(4 * all_patches * (width * (1 + self.coreset % 1) + projected_to + 8))  # 8: distances, places


class Patchcore(FrozenFeatures[PatchcoreSettings]):
    """Distance of each patch's feature to the nearest in a coreset of the normal images' patches."""

    def build_kept(self, teacher: Backbone) -> Kept:
        return Kept("memory")

    def learn(self, images: Tensor) -> None:
        """Keep the coreset of all patch features of `images`."""
        (every,) = self.gathered(images, lambda taps: [self.embed(taps).flatten(2).mT])
        features = every.flatten(0, 1)  # as `patches`
        count = max(1, int(len(features) * self.settings.coreset))
        if count < len(features):
            features = features[coreset(features, count, self.settings.epsilon, self.settings.seed)]
        self.kept.keep(memory=features)

    def embed(self, taps: Taps) -> Tensor:
        """Patch features [N, D, h, w] at the finest tap."""
        settings = self.settings
        if settings.pooled == "mean":
            return torch.cat(aligned([mean_of_patches(tap, settings.patch) for tap in taps]), 1)
        pooled = [pooled_patches(tap, settings.patch, settings.width) for tap in taps]
        return pooled_channels(torch.cat(aligned(pooled), 1), settings.width)

    def judge(self, outputs: Taps, size: tuple[int, int]) -> Scores:
        """Distances to the memory, upsampled and blurred; the image score is that of the farthest patch, re-weighted.

        Eq. 6 and 7: s = (1 - exp(|x - m*|) / sum over the b neighbours m of m* of exp(|x - m|)) |x - m*|.
        """
        features, memory = self.embed(outputs), self.kept.get_buffer("memory")
        squared, index = nearest(patches(features), memory)
        distances = squared.sqrt().view(len(features), *features.shape[2:])
        farthest, place = distances.flatten(1).max(1)
        if self.settings.reweighted and len(memory) > 1:  # by a lone patch eq. 7 gives every image the score 0
            x = features.flatten(2).gather(2, place[:, None, None].expand(-1, features.shape[1], 1))[:, :, 0]
            star = index.view(len(features), -1).gather(1, place[:, None])[:, 0]
            farthest = farthest * weight(x, memory, star, self.settings.reweighted)
        return Scores(farthest, self.smoothed([distances], size))


def patches(features: Tensor) -> Tensor:
    """[N, D, h, w] -> [N h w, D], one row per patch."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def mean_of_patches(tap: Tensor, side: int) -> Tensor:
    """The mean over each pixel's neighbourhood; zeros beyond the border count, as in the codes."""
    means: Tensor = F.avg_pool2d(tap, side, 1, side // 2)
    return means


def pooled_patches(tap: Tensor, side: int, width: int) -> Tensor:
    """Each pixel's neighbourhood as one row, channel by channel, pooled to `width` values: [N, width, h, w]."""
    rows = F.unfold(tap, side, padding=side // 2)  # [N, C side^2, h w]
    return pooled_channels(rows.view(len(tap), -1, *tap.shape[2:]), width)


def pooled_channels(features: Tensor, width: int) -> Tensor:
    """[N, D, h, w] -> [N, width, h, w]: means of neighbouring channels."""
    n, _, height, breadth = features.shape
    pooled = F.adaptive_avg_pool1d(patches(features)[None], width)
    answer: Tensor = pooled.view(n, height, breadth, width).permute(0, 3, 1, 2)
    return answer


def aligned(maps: list[Tensor]) -> list[Tensor]:
    """All maps at the size of the first, bilinear."""
    size = maps[0].shape[-2:]
    return [maps[0], *(F.interpolate(one, size, mode="bilinear", align_corners=False) for one in maps[1:])]


def weight(x: Tensor, memory: Tensor, star: Tensor, count: int) -> Tensor:
    """Eq. 7's factor [N] for patches `x` [N, D] whose nearest in `memory` is `star` [N]."""
    around = nearest(memory[star], memory, min(count, len(memory)))[1]
    distances = torch.linalg.vector_norm(x[:, None] - memory[around], dim=2)
    own = torch.linalg.vector_norm(x - memory[star], dim=1)
    factor: Tensor = 1 - (own - distances.logsumexp(1)).exp()
    return factor


def projected_width(n: int, epsilon: float) -> int:
    """To how many numbers `n` features may be projected; so many that it is no projection where next to no distortion
    is allowed."""
    allowed = epsilon**2 / 2 - epsilon**3 / 3
    return int(min(4 * log(n) / allowed, NO_PROJECTION)) if allowed > 0 else NO_PROJECTION


def projected(features: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Sparse random projection (Li et al. 2006) of [n, D] to the width that keeps distances within `epsilon`
    (Johnson-Lindenstrauss); the features themselves if that is no fewer."""
    n, have = features.shape
    width = projected_width(n, epsilon)
    if width >= have:
        return features
    density = have**-0.5
    drawn = torch.rand(have, width, generator=generator)
    signs = (drawn < density / 2).float() - (drawn > 1 - density / 2).float()
    low: Tensor = features @ (signs * (1 / (density * width)) ** 0.5).to(features.device)
    return low


def coreset(features: Tensor, count: int, epsilon: float, seed: int) -> Tensor:
    """Rows [count] of `features` [n, D] such that no other row is far from all of them: greedy, by projected distances
    (section 3.2, algorithm 1)."""
    generator = chance(seed, "coreset", 0)
    points = projected(features, epsilon, generator)
    return farthest_first(points, count, int(torch.randint(len(points), (1,), generator=generator)))


def farthest_first(points: Tensor, count: int, first: int) -> Tensor:
    """`count` rows of `points` [n, d]: `first`, then always the row farthest from all rows chosen so far; the lower
    index of equals.

    A point at distance r from its centre cannot be nearer to one that is 2 r or more from that centre: while those are
    many, only the others are measured. Distances are products, as in the official code; their rounding is allowed for.
    On a GPU all are measured: to know which others, and how many, it would be waited for thrice a row.
    """
    if points.is_cuda:
        return farthest_of_all(points, count, first)
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    lengths = points.square().sum(1)
    rounding = (points.shape[1] + 8) * 2.0**-19 * float(lengths.max())
    away = torch.full_like(lengths, torch.inf)  # squared distance to the nearest centre
    centre_of = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for k in range(count):
        chosen[k] = first
        to_centres = squared_to(points, lengths, first, chosen[:k]) - rounding
        near = (to_centres[centre_of] < 4 * away).nonzero()[:, 0] if k else None
        if near is None or len(near) > len(points) // GATHERED:
            distances = squared_to(points, lengths, first)
            moved = (distances < away).nonzero()[:, 0]
            away[moved] = distances[moved]
        else:
            distances = squared_to(points, lengths, first, near)
            nearer = distances < away[near]
            moved = near[nearer]
            away[moved] = distances[nearer]
        centre_of[moved] = k
        away[first] = -1.0  # never again, though all others be duplicates
        first = int(away.argmax())
    return chosen


def farthest_of_all(points: Tensor, count: int, first: int) -> Tensor:
    """`farthest_first` that measures all distances at each step; which row is the next stays on the device."""
    chosen = torch.empty(count, dtype=torch.int64, device=points.device)
    lengths = points.square().sum(1)
    away = torch.full_like(lengths, torch.inf)
    one = torch.full((1,), first, dtype=torch.int64, device=points.device)
    for k in range(count):
        chosen[k : k + 1] = one
        products = torch.addmv(lengths, points, points[one][0], alpha=-2)
        away = torch.minimum(away, products.add_(lengths[one]).clamp_min_(0))
        away.index_fill_(0, one, -1.0)  # never again, though all others be duplicates
        one = away.argmax(0, keepdim=True)
    return chosen


def squared_to(points: Tensor, lengths: Tensor, one: int, others: Tensor | None = None) -> Tensor:
    """Squared distances of point `one` to the `others`, all by default, by their product; never below 0."""
    if others is not None:
        lengths_there, points_there = lengths[others], points[others]
    else:
        lengths_there, points_there = lengths, points
    return (lengths_there + lengths[one] - 2 * (points_there @ points[one])).clamp_min_(0)


PATCHCORE = Entry(
    name="patchcore",
    title="PatchCore",
    paper="Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler, CVPR 2022, arXiv 2106.08265",
    presets={
        "paper": PatchcoreSettings(),
        "standard": PatchcoreSettings(teacher="resnet18", pooling="mean", coreset=0.01),
        "quick": PatchcoreSettings(
            teacher="efficientnet_lite0", image_size=128, batch_size=8, pooling="mean", coreset=0.1, sigma=2.0
        ),
    },
    build=Patchcore,
    family="yardstick",
    variants={
        "one_percent": {"coreset": 0.01},
        "maximum": {"reweighted": 0},  # official code
        "adaptive": {"pooling": "adaptive"},  # official code, whatever the teacher
        "mean": {"pooling": "mean"},  # anomalib
    },
)
