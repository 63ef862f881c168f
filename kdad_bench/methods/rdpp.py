"""RD++: Tien et al., "Revisiting Reverse Distillation for Anomaly Detection", CVPR 2023.

RD4AD with a projection of each tap before the bottleneck, which learns to undo pseudo-anomalies of simplex noise. The
official code's optimal transport term compares a batch with itself in another order and is 0 whatever is learnt: it is
not computed; `halves` is a reading of what it may have been meant to be. One budget for every category, last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from math import log
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import Layers, distillation_loss
from kdad_bench.kernels.sending import sent
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, Taps, chance
from kdad_bench.methods.protocol import BLURS, Blur, Entry, Range, Scores, Settled
from kdad_bench.methods.reverse import REFUSED, Bottleneck, Decoder, in_words, restoration_scores
from kdad_bench.methods.simplex_noise import fractal, table_of_chance
from kdad_bench.methods.training import words
from kdad_bench.methods.training.loop import optimiser_of

SIDE = 256  # px of the images that the code's noise is made for; other sizes scale it
LEAST, MOST = 10 / SIDE, 32 / SIDE  # sides of a noised rectangle, the upper end excluded
OCTAVES, PERSISTENCE, COARSEST = 6, 0.6, 32  # of the noise; px of the coarsest octave
STRENGTH = 0.2  # of the noise, images being in [0, 1]
MARGIN = 0.5  # of the contrast term
RECONSTRUCTION, CONTRAST = 0.01, 0.1  # weights beside the transport term's 1; divided by the sum of the three
BLUR, COOLING = 0.05, 0.8  # of the transport: its final scale, and what it shrinks by at each step
TRANSPORTS_IN_WORDS = {
    "batch": "0, as in the official code: a batch and the same batch in another order are one point cloud",
    "halves": "between two random halves of a batch (official code: a batch and itself, which is 0)",
}


def passes_of(images: int, passes: int) -> int:
    """How many passes a batch of `images` is cut into: as many as asked for, or as have two images each."""
    return max(min(passes, images // 2), 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class RdppSettings(DistillationSettings):
    """Defaults of the official code."""

    teacher: str = "wide_resnet50_2"
    batch_size: int = 32  # of a step; official code: 16 a pass
    passes: int = 2  # of a step, each with its own norms and transport, their gradients added
    optimiser: str = "adam"
    learning_rate: float = 0.005  # of bottleneck and decoder
    projection_rate: float = 0.001  # of the projections
    betas: tuple[float, float] = (0.5, 0.999)
    projection_weight: float = 0.2  # of the projections' three terms together
    transport: str = "batch"  # batch: official code, always 0 | halves: between halves of a pass
    sigma: float = 4.0  # of the blur, px of the map; official test code, at 256 px

    CHOICES: ClassVar = {**DistillationSettings.CHOICES, "transport": tuple(TRANSPORTS_IN_WORDS)}
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "passes": Range(1, 1024),
        "projection_rate": Range(0, open_low=True),
        "projection_weight": Range(0),
        "sigma": BLURS,
    }
    CONFLICTS: ClassVar = REFUSED
    BLUR: ClassVar = Blur("official test code", 4.0, 256)
    READINGS: ClassVar = {
        "transport": lambda settings: (
            "0, as a lone image has no halves"
            if settings.transport == "halves" and settings.batch_size == 1
            else TRANSPORTS_IN_WORDS[settings.transport]
        ),
        "bottleneck and decoder": in_words,
        "noise": lambda settings: (
            ""
            if settings.image_size == SIDE
            else f"sizes as at {SIDE} px, scaled to the image's side, and with them its step from colour to colour"
        ),
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper and official code", ("wide_resnet50_2",)),
        "strides": Settled("official code", ((4, 8, 16),)),
        "image_size": Settled("official code", (256,)),
        "taps": Settled("official code", ("raw",)),
        "batch_size": Settled("official code, two passes of 16", (32,)),
        "passes": Settled("official code", (2,)),
        "learning_rate": Settled("official code", (0.005,)),
        "projection_rate": Settled("official code", (0.001,)),
        "projection_weight": Settled("official code", (0.2,)),
        "weight_decay": Settled("official code", (0.0,)),
        "schedule": Settled("official code", ("constant",)),
        "precision": Settled("official code", ("fp32",)),
        "sigma": Settled("official test code", (4.0,)),
    }
    DEPARTURES: ClassVar = {
        "optimiser": words.departs(words.algorithm, "adam, betas 0.5 0.999", source="official code"),
        "budget": lambda settings: f"{words.budget(settings)} (official code: 10 to 300 epochs by category)",
        "selection": lambda settings: f"{words.selection(settings)} (official code: the epoch best on the test images)",
        "student's norms": words.departs(words.own_norms, "momentum 0.1", source="official code"),
        "passes of a batch": lambda settings: (
            f"{passes_of(settings.batch_size, settings.passes)}, each needs two images (official code: two of 16)"
            if passes_of(settings.batch_size, settings.passes) != settings.passes
            else ""
        ),
        "incomplete batches": lambda settings: (
            "left out (official code: added to the next step)"
            if settings.drop_last
            else "a step of their own (official code: added to the next step)"
        ),
    }

    def learning_from(self, images: int) -> tuple[str, ...]:
        """As every method's, and fewer passes of a smaller batch."""
        said = super(RdppSettings, self).learning_from(images)  # slots: the class is made anew
        asked, passes = (passes_of(size, self.passes) for size in (self.batch_size, min(self.batch_size, images)))
        return (*said, *([f"passes of a batch: {passes} (settings: {asked})"] if images and passes < asked else []))


class Projection(Layers):
    """Four 3x3 convolutions, through half, a quarter and half of the channels, each normed per image and rectified."""

    def __init__(self, channels: int) -> None:
        widths = (channels, channels // 2, channels // 4, channels // 2, channels)
        layers = (
            (nn.Conv2d(inputs, outputs, 3, padding=1), nn.InstanceNorm2d(outputs), nn.LeakyReLU())
            for inputs, outputs in pairwise(widths)
        )
        super().__init__(*chain.from_iterable(layers))


class Outputs(NamedTuple):
    """What the student makes of the teacher's taps, and of noised ones; three taps each, shallow first."""

    restored: Taps
    projected: Taps
    noised: Taps  # projections of the noised taps; () where there were none


class ProjectedStudent(nn.Module):
    """The projections, and RD4AD's bottleneck and decoder behind them."""

    def __init__(self, teacher: Backbone, *, signed: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleList(Projection(channels) for channels in teacher.channels)
        self.bottleneck = Bottleneck(teacher)
        self.decoder = Decoder(teacher, signed=signed)

    def forward(self, taps: Taps, noised: Taps = ()) -> Outputs:
        """Restored taps of the projected ones; projections of both."""
        projected = self.project(taps)
        return Outputs(self.decoder(self.bottleneck(projected)), projected, self.project(noised))

    def project(self, taps: Taps) -> Taps:
        """Each tap by its own projection; () of none."""
        return tuple(one(tap) for one, tap in zip(self.projections, taps, strict=False))


class Rdpp(StudentTeacher[RdppSettings]):
    """Reverse distillation from projected features, which forget anomalies before they are embedded."""

    def __init__(self, settings: RdppSettings, teacher: Backbone | None, device: torch.device) -> None:
        super().__init__(settings, teacher, device)
        # the official code draws one field and takes every rectangle's noise from its corner
        field = largest(settings.image_size) - 1
        table = table_of_chance(chance(settings.seed, "simplex noise", 0))
        step = SIDE / settings.image_size / COARSEST
        self.noise = STRENGTH * fractal(3, field, step, OCTAVES, PERSISTENCE, table).to(device)

    def build_student(self, teacher: Backbone) -> nn.Module:
        return ProjectedStudent(teacher, signed=teacher.signed or self.settings.taps == "standardised")

    def optimiser(self) -> torch.optim.Optimizer:
        """One, with a rate of their own for the projections."""
        parts = dict(self.student.named_children())
        rest = chain(parts["bottleneck"].parameters(), parts["decoder"].parameters())
        optimiser = optimiser_of(rest, self.settings)
        projections = list(parts["projections"].parameters())
        optimiser.add_param_group({"params": projections, "lr": self.settings.projection_rate})
        return optimiser

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """RD4AD's term, and the projections' three; the sum over the passes of a step."""
        with torch.no_grad():
            noised = self.teacher(noised_images(batch.images, self.noise, batch.generator))
        parts = [self.terms(taps, noisy, batch.generator) for taps, noisy in self.split(batch.teacher, noised)]
        return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}

    def split(self, taps: Taps, noised: Taps) -> Iterator[tuple[Taps, Taps]]:
        """Both by passes of two images or more, if there are as many."""
        count = passes_of(len(taps[0]), self.settings.passes)
        halves = (zip(*(tap.tensor_split(count) for tap in both), strict=True) for both in (taps, noised))
        return zip(*halves, strict=True)

    def terms(self, taps: Taps, noised: Taps, generator: torch.Generator) -> dict[str, Tensor]:
        """The terms of one pass: the teacher's taps of images and of the same images with noise."""
        restored, projected, undone = self.student(taps, noised)
        weight = self.settings.projection_weight / (1 + RECONSTRUCTION + CONTRAST)
        found = {
            "feature": distillation_loss(taps, restored, kind="flattened"),
            "reconstruction": weight * RECONSTRUCTION * distillation_loss(undone, projected, kind="cosine"),
            "contrast": weight * CONTRAST * contrast(noised, projected),
        }
        if self.settings.transport == "halves" and len(taps[0]) > 1:
            found["transport"] = weight * between_halves(projected, generator)
        return found

    def networks(self, images: Tensor) -> tuple[Taps, Taps]:
        taps = self.teacher(images)
        return taps, self.folded_student(taps).restored

    def judge(self, outputs: tuple[Taps, Taps], size: tuple[int, int]) -> Scores:
        """RD4AD's map and image score."""
        return restoration_scores(*outputs, size, self.settings.sigma)


def least(side: int) -> int:
    """The least side in px of a noised rectangle in images of `side`."""
    return max(round(LEAST * side), 1)


def largest(side: int) -> int:
    """The least that no side of a noised rectangle reaches."""
    return max(int(MOST * side), least(side) + 1)


def noised_images(images: Tensor, field: Tensor, generator: torch.Generator) -> Tensor:
    """`images` [N, 3, S, S] with a piece of the `field` [3, s, s] added to a random rectangle of each, not clipped.

    `generator` (CPU) gives all chance.
    """
    side = images.shape[-1]
    noised = images.clone()
    for image in noised:
        height, width = torch.randint(least(side), largest(side), (2,), generator=generator).tolist()
        top = int(torch.randint(1, side - height, (), generator=generator))
        left = int(torch.randint(1, side - width, (), generator=generator))
        image[:, top : top + height, left : left + width] += field[:, :height, :width]
    return noised


def contrast(noised: Taps, projected: Taps) -> Tensor:
    """Sum over taps of max(0, cos - 1/2), the mean over images, of flattened maps: away from the noised features."""
    cosines = [
        F.cosine_similarity(n.flatten(1).float(), p.flatten(1).float()) for n, p in zip(noised, projected, strict=True)
    ]
    return torch.stack([(cosine - MARGIN).clamp_min(0).mean() for cosine in cosines]).sum()


def between_halves(projected: Taps, generator: torch.Generator) -> Tensor:
    """Sum over taps of the Sinkhorn divergence between two random halves of the images, each a point: its map's softmax
    as one vector."""
    order = sent(torch.randperm(len(projected[0]), generator=generator), projected[0].device)
    half = len(order) // 2
    points = [tap.flatten(1).float().softmax(1) for tap in projected]
    found = [sinkhorn_divergence(each[order[:half]], each[order[half:]]) for each in points]
    return torch.stack(found).sum()


def sinkhorn_divergence(x: Tensor, y: Tensor) -> Tensor:
    """OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2 of point clouds [n, D] and [m, D] float32 of equal weights (Feydy et al.
    2019), for the cost |x - y|^2 / 2, blurred by 0.05; 0 for a cloud and itself in any order.

    Symmetric updates in the log domain, from the clouds' own extent down; the gradient is that of a last update.
    """
    costs = [half_squared(a, b) for a, b in ((x, y), (x, x), (y, y))]
    with torch.no_grad():
        extent = max(float(cost.max()) for cost in costs)
        states = [(cost.new_zeros(cost.shape[0]), cost.new_zeros(cost.shape[1])) for cost in costs]
        for epsilon in scales(extent):
            states = [
                averaged(state, updated(cost, *state, epsilon)) for cost, state in zip(costs, states, strict=True)
            ]
    across, of_x, of_y = (transport_cost(cost, *state) for cost, state in zip(costs, states, strict=True))
    return across - (of_x + of_y) / 2


def half_squared(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 / 2 of all pairs [n, m], by differences."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square() / 2


def scales(extent: float) -> list[float]:
    """Falling temperatures from the greatest cost to BLUR^2, which is kept a while, so that the updates settle."""
    cooling = log(max(2 * extent, BLUR**2) / BLUR**2) / log(1 / COOLING**2)
    falling = [2 * extent * COOLING ** (2 * k) for k in range(int(cooling) + 1)]
    return [max(epsilon, BLUR**2) for epsilon in falling] + [BLUR**2] * 100


def updated(cost: Tensor, f: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Both dual potentials from one another: f = -epsilon log of the mean over y of exp((g - cost) / epsilon)."""
    n, m = cost.shape
    return (
        -epsilon * (((g[None] - cost) / epsilon).logsumexp(1) - log(m)),
        -epsilon * (((f[:, None] - cost) / epsilon).logsumexp(0) - log(n)),
    )


def averaged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Half of each."""
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2


def transport_cost(cost: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """The sum of both potentials' means. Only one is updated once more: its gradient by the cost is the whole plan."""
    return updated(cost, f, g, BLUR**2)[0].mean() + g.mean()


RDPP = Entry(
    name="rdpp",
    title="RD++",
    paper="Tien, Nguyen, Tran, Ta, Duong, Nguyen, Truong, CVPR 2023",
    presets={
        "paper": RdppSettings(),
        "standard": RdppSettings(teacher="resnet18", steps=250, batch_size=8, passes=1, schedule="one_cycle"),
        "quick": RdppSettings(
            teacher="efficientnet_lite0",
            image_size=128,
            steps=140,  # RD4AD's
            batch_size=8,
            passes=1,
            learning_rate=0.01,  # RD4AD's
            projection_rate=0.002,  # a fifth of it, as in the official code
            schedule="one_cycle",
            sigma=2.0,  # as wide on 128 px as 4 on 256
        ),
    },
    build=Rdpp,
    variants={"halves": {"transport": "halves"}},
)
