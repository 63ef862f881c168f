"""Uninformed Students (STAD): Bergmann et al., CVPR 2020, arXiv 1911.02357.

A descriptor of small patches is distilled from a backbone; an ensemble of students regresses it on normal images. An
anomaly shows where they err or disagree. The paper distils on ImageNet crops; here crops of the normal images serve. No
official code is known: layers and constants are from the paper as recalled and as public codes repeat them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isclose
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdad_bench.kernels import fuse_scales, image_scores
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.names import IMAGENET_MEAN, IMAGENET_STD
from kdad_bench.methods.crops import CropDrawing, Crops, DrawnCrops, enlarged
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher
from kdad_bench.methods.least_squares import Sums, affine, components
from kdad_bench.methods.patch_network import LAYOUTS, PatchNetwork
from kdad_bench.methods.protocol import Entry, Fitting, Range, Scores, Settled, instead, shown, takes_maps_alone
from kdad_bench.methods.training import words
from kdad_bench.methods.training.chance import seeded
from kdad_bench.methods.training.loop import distil, exactly
from kdad_bench.methods.training.parting import drawn_evenly
from kdad_bench.methods.training.settings import LONG, planned_steps
from kdad_bench.methods.training.teacher import chunks, deviation_of

PAPERS_BUDGET, STUDENTS_EPOCHS = "200 epochs", 100
ENLARGED = 64  # px that a crop is enlarged to before the backbone sees it
AT_ONCE = 4  # images at inference: a dense map of 256 channels takes 67 MB at 256 px
LEAST = 1e-6  # of a deviation that is divided by
# at least squares: a share of the inputs' variance that holds back, for few crops more than for many pixels
RIDGE_OF_CROPS, RIDGE_OF_IMAGES = 0.1, 1e-3
SOLVED_IMAGES = 24  # of the students; at most
SOLVED_GRID = 4  # px between the patches of these images; at least
SOLVED_CROPS = 64  # at a time


def budget(settings: StadSettings) -> str:
    """The length of the training, where the students have not the paper's 100 epochs of it."""
    said, theirs = words.budget(settings), (1 - settings.descriptors) * settings.epochs
    if settings.steps is None and isclose(theirs, STUDENTS_EPOCHS):
        return ""
    if said == PAPERS_BUDGET:
        said = f"{said}, {theirs:g} for the students"
    return instead(said, Settled("paper, 100 for the students", (PAPERS_BUDGET,)))


@dataclass(frozen=True, kw_only=True, slots=True)
class StadSettings(DistillationSettings):
    """The paper's settings for MVTec AD, as recalled."""

    strides: tuple[int, ...] = (32,)  # the tap that is averaged over a crop: 512 values of ResNet-18
    epochs: int = 200  # the first half for the descriptors, the other for the students: 100 epochs
    batch_size: int = 1
    optimiser: str = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    scales: tuple[int, ...] = (17, 33, 65)  # sides of the patches
    students: int = 3  # per scale
    width: int = 128  # of the first layers
    dimensions: int = 128  # of a descriptor
    grid: int = 1  # px from one descriptor to the next
    crops: int = 64  # per scale and step while the descriptors learn
    descriptors: float = 0.5  # share of the steps in which they do
    altered: float = 0.5  # share of the crops that show what no normal image does
    compactness: float = 1.0  # lambda_c; lambda_k is 1
    solved: int = 0  # crops by which the last layers begin at least squares; 0: at random, as all others
    validation: float = 0.1  # share of the normals that errors and variances are scaled by

    APART: ClassVar = ("validation", *DistillationSettings.APART)
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "students": Range(1, 64),
        "width": Range(1, 1024),
        "dimensions": Range(2, 4096),
        "grid": Range(1, 32),
        "crops": Range(2, 4096),
        "descriptors": Range(0, 1, open_high=True),
        "altered": Range(0, 1),
        "compactness": Range(0),
        "solved": Range(0, 10**6),
        "validation": Range(0, 0.9),
    }
    CONFLICTS: ClassVar = {"teacher": takes_maps_alone}
    READINGS: ClassVar = {
        "patches": lambda settings: (
            f"of {shown(settings.scales)} px" + ", the mean of their maps" * (len(settings.scales) > 1)
        ),
        "descriptors": lambda settings: (
            f"learnt in a share of {shown(settings.descriptors)} of the steps, from {settings.crops} crops at a time, "
            f"enlarged to {ENLARGED} px for the backbone"
            if settings.learns_descriptors
            else f"not learnt beyond their start; its crops are enlarged to {ENLARGED} px for the backbone"
            if settings.solved
            else ""
        ),
        "statistics": lambda settings: (
            f"of a share of {shown(settings.validation)} of the normals, which nothing learns from"
            if settings.validation
            else "of the images that the students learnt from (paper: of others)"
        ),
        "weights": lambda settings: (
            "at first He's normal ones for leaky ReLU"
            + "; the decoder begins at the features' mean" * (settings.learns_descriptors and not settings.solved)
        ),
        "border": lambda settings: "images are continued by their outermost pixels",
        "image score": lambda settings: "the map's maximum",
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper", ("resnet18",)),
        "strides": Settled("paper", ((32,),)),
        "image_size": Settled("paper", (256,)),
        "taps": Settled("paper", ("raw",)),
        "batch_size": Settled("paper", (1,)),
        "learning_rate": Settled("paper", (1e-4,)),
        "weight_decay": Settled("paper", (1e-5,)),
        "schedule": Settled("paper", ("constant",)),
        "precision": Settled("paper", ("fp32",)),
        "scales": Settled("paper", ((17, 33, 65), (17,), (33,), (65,))),
        "students": Settled("paper", (3,)),
        "width": Settled("paper", (128,)),
        "dimensions": Settled("paper", (128,)),
        "grid": Settled("paper", (1,)),
        "compactness": Settled("paper", (1.0,), lambda settings: settings.learns_descriptors),
    }
    DEPARTURES: ClassVar = {
        "crops": lambda settings: (
            "of the normal images"
            + f", a share of {shown(settings.altered)} altered" * (settings.altered > 0)
            + " (paper: of ImageNet)"
            if settings.learns_descriptors or settings.solved
            else "none, the descriptors stay as random as they begin (paper: of ImageNet)"
        ),
        "start": lambda settings: (
            f"last layers at least squares over {settings.solved} crops and up to {SOLVED_IMAGES} images (paper: none)"
            if settings.solved
            else ""
        ),
        "optimiser": words.departs(words.algorithm, "adam, betas 0.9 0.999", source="paper"),
        "budget": budget,
        "selection": words.departs(words.selection, words.LAST_STEP, source="paper"),
        "incomplete batches": lambda settings: "left out (paper: none)" if settings.drop_last else "",
    }

    def __post_init__(self) -> None:
        """Raises ValueError that names the field, its value and what it may be."""
        super(StadSettings, self).__post_init__()  # slots: the class is made anew, and super() knows the first
        unknown = [scale for scale in self.scales if scale not in LAYOUTS]
        if unknown or not self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"scales {shown(self.scales)} are not different ones of {shown(tuple(LAYOUTS))}")
        if self.grid & (self.grid - 1):
            raise ValueError(f"grid {self.grid} is not a power of two")

    def stages(self, total: int) -> Mapping[str, int]:
        """The descriptors, then the students."""
        last = int(self.descriptors * total)
        return {"descriptors": last, "students": total - last}

    @property
    def learns_descriptors(self) -> bool:
        """Whether there is a step in which the descriptors learn, of a training of one step or more."""
        return self.stages(LONG if self.steps is None else self.steps)["descriptors"] > 0

    @property
    def shortest(self) -> StadSettings:
        """A few crops solve layers of the same size."""
        short = super(StadSettings, self).shortest
        return replace(short, solved=min(self.solved, SOLVED_CROPS))


class Scale(nn.Module):
    """All of one patch size: the descriptor, its decoder, the students, and what is known of normal images."""

    def __init__(self, side: int, settings: StadSettings, features: int) -> None:
        super().__init__()

        def network() -> PatchNetwork:
            return PatchNetwork(side, settings.width, settings.dimensions)

        self.side, self.grid = side, settings.grid
        self.descriptor: PatchNetwork = network()
        self.decoder = nn.Linear(settings.dimensions, features)
        self.students = nn.ModuleList(network() for _ in range(settings.students))
        self.register_buffer("centre", torch.zeros(settings.dimensions, 1, 1))
        self.register_buffer("deviation", torch.ones(settings.dimensions, 1, 1))
        self.register_buffer("usual", torch.zeros(2))  # mean of errors and of variances
        self.register_buffer("spread", torch.full((2,), torch.inf))  # their deviations; before any fit a map is 0

    def targets(self, images: Tensor, grid: int | None = None) -> Tensor:
        """Descriptors of normalised `images` as the students learn them: (t - mu) / sigma per component."""
        made = self.descriptor.of_images(images, grid or self.grid).float()
        return (made - self.get_buffer("centre")) / self.get_buffer("deviation")

    def answers(self, images: Tensor) -> list[Tensor]:
        """What each student says, [N, dimensions, h, w] each."""
        return [student.of_images(images, self.grid).float() for student in self.students]  # type: ignore[operator]

    def distillation(self, crops: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """(L_k, L_c) of normalised `crops` [n, 3, p, p] with the backbone's `features` [n, F].

        L_k: squared distance of the decoded descriptor; L_c: sum of squared correlations of different components.
        """
        made = self.descriptor(crops, self.descriptor.pooled)[:, :, 0, 0]
        knowledge = (self.decoder(made) - features).float().square().sum(1).mean()
        return knowledge, compactness(made.float())

    def solve_descriptor(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Set the descriptor's last layer and the decoder to the best there is behind the other layers.

        `pairs`: normalised crops [n, 3, p, p] with the backbone's features [n, F]. Among all maps of so many dimensions
        L_k is least, but for the ridge, and L_c is 0 on these crops.
        """
        descriptor, sums = self.descriptor, Sums()
        for crops, features in pairs:
            sums.add(descriptor.inputs_of_last(crops, descriptor.pooled).flatten(1).float(), features)
        weight, bias = affine(sums, RIDGE_OF_CROPS)
        directions, deviations = components(sums, weight, len(descriptor.last.weight))
        mean, count = sums.mean[sums.inputs :], len(deviations)
        rows = (directions / deviations).T
        descriptor.last.weight[:count] = (rows @ weight).view(count, *descriptor.last.weight.shape[1:]).float()
        descriptor.last.bias[:count] = (rows @ (bias - mean)).float()  # type: ignore[index]
        self.decoder.weight.zero_()
        self.decoder.weight[:, :count] = (directions * deviations).float()
        self.decoder.bias.copy_(mean)

    def solve_students(self, chunks_of_images: Iterable[Tensor]) -> None:
        """Set each student's last layer to the best there is behind its own others, on normalised images."""
        grid = max(self.grid, SOLVED_GRID)
        sums = [Sums() for _ in self.students]
        for images in chunks_of_images:
            wanted = rows_of(self.targets(images, grid))
            for one, student in zip(sums, self.students, strict=True):
                seen = student.inputs_of_last(student.continued(images, grid), grid)  # type: ignore[operator]
                one.add(rows_of(seen[..., : images.shape[-2] // grid, : images.shape[-1] // grid].float()), wanted)
        for one, student in zip(sums, self.students, strict=True):
            weight, bias = affine(one, RIDGE_OF_IMAGES)
            last: nn.Conv2d = student.last  # type: ignore[assignment]
            last.weight.copy_(weight.view_as(last.weight))
            last.bias.copy_(bias)  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> Tensor:
        """[N, 2, h, w] of normalised images: squared error of the students' mean, and how far they disagree."""
        target, said = self.targets(images), torch.stack(self.answers(images))
        mean = said.mean(0)
        error = (mean - target).square().sum(1)
        variance = said.square().sum(2).mean(0) - mean.square().sum(1)
        return torch.stack([error, variance], 1)


def rows_of(maps: Tensor) -> Tensor:
    """[N, C, h, w] -> [N h w, C]."""
    return maps.movedim(1, 3).flatten(0, 2)


def compactness(made: Tensor) -> Tensor:
    """Sum of squared correlations between different components of descriptors [n, D]."""
    centred = made - made.mean(0)
    unit = centred / torch.linalg.vector_norm(centred, dim=0).clamp_min(LEAST)
    correlations = unit.T @ unit
    found: Tensor = correlations.square().sum() - correlations.diagonal().square().sum()
    return found


class Scales(nn.Module):
    """Every scale by itself; images come in [0, 1]."""

    def __init__(self, settings: StadSettings, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.scales = nn.ModuleList(Scale(side, settings, features) for side in settings.scales)

    def normalised(self, images: Tensor) -> Tensor:
        """Images as the patch networks see them."""
        return (images - self.get_buffer("mean")) / self.get_buffer("std")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Errors and variances [N, 2, h, w] of each scale, as a scale gives them."""
        seen = self.normalised(images)
        return tuple(scale(seen) for scale in self.scales)


class Stad(StudentTeacher[StadSettings]):
    """Students learn the descriptors of normal patches; elsewhere they err, each in its own way."""

    clean_taps = False
    images: Tensor | None = None  # those that the fit under way learns from
    kinds: Tensor | None = None  # of these images, as of `Parts`
    boundary = 0  # the last step in which the descriptors learn

    def build_student(self, teacher: Backbone) -> nn.Module:
        return Scales(self.settings, teacher.channels[-1])

    @property
    def scales(self) -> Iterator[Scale]:
        """The scales of the student."""
        return (module for module in self.student.modules() if isinstance(module, Scale))

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Learn descriptors and students from most of `normal`, and from the rest what is usual."""
        fitting = fitting or Fitting()
        learnt, apart, kinds = self.parted(normal, fitting)
        others = apart.get("validation", learnt)
        self.images, self.kinds = learnt, kinds
        total, _ = planned_steps(self.settings, len(learnt))
        self.boundary = self.settings.stages(total)["descriptors"]
        self.forget_what_is_usual(LEAST)  # no state without targets is the best on held-out images
        try:
            finished = fitting.after(lambda stad: stad.finish(others))
            distil(self, learnt, finished, held_out=apart.get("held_out"))
        finally:
            self.images = self.kinds = None
        self.finish(others)

    def finish(self, others: Tensor) -> None:
        """What follows the last step: what is usual is learnt from `others`."""
        with seeded(self.settings.seed, self.device):
            self.learn_what_is_usual(others)
        self.folded_student.current()

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The descriptors' terms up to the boundary, then the students'; sums over scales."""
        images = batch.images if self.images is None else self.images
        drawn: DrawnCrops = batch.drawn or self.own_drawing(images)(torch.empty(0), batch.generator, batch.step)
        if batch.step == 1:
            with exactly(self.device):
                self.begin_descriptors(images, drawn.first)
        if batch.step <= self.boundary:
            return self.descriptors_terms(images, drawn.step)
        if batch.step == self.boundary + 1:
            with exactly(self.device):
                self.learn_targets(images)
                self.begin_students(images)
        seen = self.student.normalised(batch.images)  # type: ignore[operator]
        terms = []
        for scale in self.scales:
            with torch.no_grad():
                target = scale.targets(seen)
            terms += [(said - target).square().sum(1).mean() for said in scale.answers(seen)]
        return {"students": torch.stack(terms).sum()}

    def drawing(self, images: Tensor, total: int) -> CropDrawing | None:
        """Where crops are cut and how they are altered."""
        drawing = self.own_drawing(images)
        return drawing if drawing.boundary else None

    def own_drawing(self, images: Tensor) -> CropDrawing:
        """What the steps of the fit under way draw of `images`."""
        settings = self.settings
        return CropDrawing(
            images=len(images), sides=settings.scales, crops=settings.crops, altered=settings.altered,
            boundary=self.boundary, first=settings.solved or settings.crops * (self.boundary > 0),
        )  # fmt: skip

    def descriptors_terms(self, images: Tensor, drawn: Sequence[Crops]) -> dict[str, Tensor]:
        """L_k and L_c of crops of `images`, the same places for no two scales."""
        found = []
        for scale, crops in zip(self.scales, drawn, strict=True):
            found.append(scale.distillation(*self.pair(crops.of(images, scale.side))))
        knowledge, compact = (torch.stack(one).sum() for one in zip(*found, strict=True))
        return {"knowledge": knowledge, "compactness": self.settings.compactness * compact}

    @torch.no_grad()
    def pair(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Crops [n, 3, p, p] as the patch networks see them, and the backbone's pooled features of them [n, F]."""
        features = self.teacher(enlarged(crops, ENLARGED))[-1].float().mean((2, 3))
        return self.student.normalised(crops), features  # type: ignore[operator]

    @torch.no_grad()
    def begin_descriptors(self, images: Tensor, drawn: Sequence[Crops]) -> None:
        """Least squares, or at least a decoder that need not learn the features' mean."""
        for scale, crops in zip(self.scales, drawn, strict=False):  # none are drawn where nothing is to be learnt
            pairs = (self.pair(some) for some in chunks(crops.of(images, scale.side), SOLVED_CROPS))
            if self.settings.solved:
                scale.solve_descriptor(pairs)
            else:
                scale.decoder.bias.copy_(torch.cat([features for _, features in pairs]).mean(0))

    @torch.no_grad()
    def begin_students(self, images: Tensor) -> None:
        """Least squares, if asked for."""
        if self.settings.solved:
            for scale in self.scales:
                scale.solve_students(self.seen(self.enough(images)))

    def enough(self, images: Tensor) -> Tensor:
        """Those of `images` that students are solved on: from all through, of several kinds as many of each."""
        if self.kinds is None:
            return images[:: -(-len(images) // SOLVED_IMAGES)]
        return drawn_evenly(images, self.kinds, SOLVED_IMAGES, self.settings.seed, "last layers")

    @torch.no_grad()
    def learn_targets(self, images: Tensor) -> None:
        """Mean and deviation of every component of the descriptors over all `images`."""
        self.forget_what_is_usual(1.0)
        for scale in self.scales:
            network = scale.descriptor
            sums = [
                torch.stack([made.sum((0, 2, 3)), made.square().sum((0, 2, 3))])
                for made in (network.of_images(seen, scale.grid).double() for seen in self.seen(images))
            ]
            count = len(images) * (images.shape[-2] // scale.grid) * (images.shape[-1] // scale.grid)
            mean, square = torch.stack(sums).sum(0) / count
            scale.get_buffer("centre").copy_(mean[:, None, None])
            scale.get_buffer("deviation").copy_(deviation_of(mean, square)[:, None, None])

    def forget_what_is_usual(self, spread: float) -> None:
        """Errors and variances count from 0, in units of `spread`."""
        for scale in self.scales:
            scale.get_buffer("usual").zero_()
            scale.get_buffer("spread").fill_(spread)

    @torch.no_grad()
    def learn_what_is_usual(self, images: Tensor) -> None:
        """Mean and deviation of errors and variances over all pixels of normal `images`."""
        for scale in self.scales:
            maps = torch.cat([scale(seen).double() for seen in self.seen(images)])
            mean, square = maps.mean((0, 2, 3)), maps.square().mean((0, 2, 3))
            scale.get_buffer("usual").copy_(mean)
            scale.get_buffer("spread").copy_(deviation_of(mean, square))

    def seen(self, images: Tensor) -> Iterator[Tensor]:
        """`images` as the patch networks see them, a few at a time."""
        return (self.student.normalised(some) for some in chunks(images, AT_ONCE))  # type: ignore[operator]

    def networks(self, images: Tensor) -> tuple[Tensor, ...]:
        found = [self.folded_student(some) for some in chunks(images, AT_ONCE)]
        return tuple(torch.cat(one) for one in zip(*found, strict=True))

    def judge(self, outputs: tuple[Tensor, ...], size: tuple[int, int]) -> Scores:
        """(e - its mean) / its deviation + the same of v, the mean over scales, upsampled; the maximum."""
        maps = []
        for scale, both in zip(self.scales, outputs, strict=True):
            usual, spread = (scale.get_buffer(name)[:, None, None] for name in ("usual", "spread"))
            maps.append(((both.float() - usual) / spread).sum(1) / len(outputs))
        pixel = fuse_scales(maps, size)
        return Scores(image_scores(pixel), pixel)


STAD = Entry(
    name="stad",
    title="STAD",
    paper="Bergmann, Fauser, Sattlegger, Steger, CVPR 2020, arXiv 1911.02357",
    presets={
        "paper": StadSettings(),
        "standard": StadSettings(
            teacher="resnet18",
            strides=(16,),
            scales=(33,),
            width=32,
            grid=4,
            solved=2048,
            descriptors=0.0,  # they stay as solved
            steps=300,
            learning_rate=1e-3,
            schedule="one_cycle",
        ),
        "quick": StadSettings(
            teacher="efficientnet_lite0",
            image_size=128,
            scales=(33,),
            width=16,
            dimensions=32,
            grid=4,
            solved=2048,
            descriptors=0.0,
            steps=60,
            learning_rate=1e-3,
            schedule="one_cycle",
        ),
    },
    build=Stad,
    variants={"p17": {"scales": (17,)}, "p33": {"scales": (33,)}, "p65": {"scales": (65,)}},
)
