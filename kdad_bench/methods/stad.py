"""Uninformed Students (STAD): Bergmann et al., CVPR 2020, arXiv 1911.02357.

A descriptor of small patches is distilled from a backbone; an ensemble of students regresses it on normal images. An
anomaly shows where they err or disagree. The paper distils on ImageNet crops; here crops of the normal images serve. No
official code is known: layers and constants are from the paper as recalled and as public codes repeat them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import fuse_scales, image_scores
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.names import IMAGENET_MEAN, IMAGENET_STD
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, chance, resized
from kdad_bench.methods.protocol import Entry, Fitting, Range, Scores, Settled, shown
from kdad_bench.methods.training import words
from kdad_bench.methods.training.chance import seeded
from kdad_bench.methods.training.loop import distil, planned_steps
from kdad_bench.methods.training.teacher import chunks

POOL = 0  # in a layout: 2 x 2 max pooling
# side of the patch -> (side of the kernel, how many times the width), or POOL; the last has the descriptor's dimensions
LAYOUTS: Mapping[int, tuple[tuple[int, int], ...]] = {
    17: ((6, 1), (5, 2), (5, 2), (4, 0)),
    33: ((5, 1), (POOL, 0), (5, 2), (POOL, 0), (2, 2), (4, 0)),
    65: ((5, 1), (POOL, 0), (5, 1), (POOL, 0), (5, 2), (POOL, 0), (4, 2), (1, 0)),
}
SLOPE = 5e-3  # of the leaky ReLU
ENLARGED = 64  # px that a crop is enlarged to before the backbone sees it
AT_ONCE = 4  # images at inference: a dense map of 256 channels takes 67 MB at 256 px
LEAST = 1e-6  # of a deviation that is divided by


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
    compactness: float = 1.0  # lambda_c; lambda_k is 1
    validation: float = 0.1  # share of the normals that errors and variances are scaled by

    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "students": Range(1, 64),
        "width": Range(1, 1024),
        "dimensions": Range(2, 4096),
        "grid": Range(1, 32),
        "crops": Range(2, 4096),
        "descriptors": Range(0, 1, open_high=True),
        "compactness": Range(0),
        "validation": Range(0, 0.9),
    }
    READINGS: ClassVar = {
        "patches": lambda settings: (
            f"of {shown(settings.scales)} px" + ", the mean of their maps" * (len(settings.scales) > 1)
        ),
        "descriptors": lambda settings: (
            f"learnt in a share of {shown(settings.descriptors)} of the steps, from {settings.crops} crops at a time, "
            f"enlarged to {ENLARGED} px for the backbone"
        ),
        "statistics": lambda settings: (
            f"of a share of {shown(settings.validation)} of the normals, which nothing learns from"
            if settings.validation
            else "of the images that the students learnt from (paper: of others)"
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
        "compactness": Settled("paper", (1.0,)),
    }
    DEPARTURES: ClassVar = {
        "crops": lambda settings: "of the normal images (paper: of ImageNet)",
        "optimiser": words.departs(words.algorithm, "adam, betas 0.9 0.999", source="paper"),
        "budget": words.departs(words.budget, "200 epochs", source="paper, 100 for the students"),
        "selection": words.departs(words.selection, "last step, all normals", source="paper"),
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


class PatchNetwork(nn.Module):
    """A descriptor [dimensions] of every patch of one size, at once: Bailer et al. 2017.

    Pooling halves the resolution only as far as `grid` allows; beyond that it moves pixel by pixel, and what follows
    looks at every second, fourth, eighth pixel. The answers are those of the plain network on each patch by itself.
    """

    def __init__(self, side: int, width: int, dimensions: int) -> None:
        super().__init__()
        self.side, inputs = side, 3
        self.layers = nn.ModuleList()
        for kernel, times in LAYOUTS[side]:
            if kernel != POOL:
                outputs = times * width or dimensions
                self.layers.append(nn.Conv2d(inputs, outputs, kernel))
                inputs = outputs
        self.spatial = max(k for k, layer in enumerate(self.layers) if layer.kernel_size != (1, 1))

    def forward(self, x: Tensor, grid: int) -> Tensor:
        """[N, 3, H, W] -> [N, dimensions, h, w]: of the patches whose corners are `grid` px apart."""
        stride = apart = 1
        k = 0
        for kernel, _ in LAYOUTS[self.side]:
            if kernel == POOL:
                halved = 2 * stride <= grid
                x = F.max_pool2d(x, 2, 2 if halved else 1, dilation=apart)
                stride, apart = (2 * stride, apart) if halved else (stride, 2 * apart)
                continue
            layer = self.layers[k]
            step = grid // stride if k == self.spatial else 1
            x = F.conv2d(x, layer.weight, layer.bias, step, dilation=apart)  # type: ignore[arg-type]
            k += 1
            if k < len(self.layers):
                x = F.leaky_relu(x, SLOPE)
        return x

    def of_images(self, images: Tensor, grid: int) -> Tensor:
        """[N, dimensions, H / grid, W / grid]: of patches about the middle of each `grid` x `grid` px."""
        before = self.side // 2 - (grid - 1) // 2
        after = self.side - grid - before  # negative: the rest of the last cell is not looked at
        padded = F.pad(images, (before, after, before, after), mode="replicate")
        height, width = (side // grid for side in images.shape[-2:])
        found: Tensor = self(padded, grid)
        return found[..., :height, :width]

    @property
    def pooled(self) -> int:
        """The grid at which nothing is computed twice."""
        return int(prod(2 for kernel, _ in LAYOUTS[self.side] if kernel == POOL))


class Scale(nn.Module):
    """All of one patch size: the descriptor, its decoder, the students, and what is known of normal images."""

    def __init__(self, side: int, settings: StadSettings, features: int) -> None:
        super().__init__()

        def network() -> PatchNetwork:
            return PatchNetwork(side, settings.width, settings.dimensions)

        self.side, self.grid = side, settings.grid
        self.descriptor = network()
        self.decoder = nn.Linear(settings.dimensions, features)
        self.students = nn.ModuleList(network() for _ in range(settings.students))
        self.register_buffer("centre", torch.zeros(settings.dimensions, 1, 1))
        self.register_buffer("deviation", torch.ones(settings.dimensions, 1, 1))
        self.register_buffer("usual", torch.zeros(2))  # mean of errors and of variances
        self.register_buffer("spread", torch.full((2,), torch.inf))  # their deviations; before any fit a map is 0

    def targets(self, images: Tensor) -> Tensor:
        """Descriptors of normalised `images` as the students learn them: (t - mu) / sigma per component."""
        descriptor: PatchNetwork = self.descriptor
        made = descriptor.of_images(images, self.grid).float()
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

    def forward(self, images: Tensor) -> Tensor:
        """[N, 2, h, w] of normalised images: squared error of the students' mean, and how far they disagree."""
        target, said = self.targets(images), torch.stack(self.answers(images))
        mean = said.mean(0)
        error = (mean - target).square().sum(1)
        variance = said.square().sum(2).mean(0) - mean.square().sum(1)
        return torch.stack([error, variance], 1)


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
    images: Tensor | None = None  # those of the fit under way
    boundary = 0  # the last step in which the descriptors learn

    def build_student(self, teacher: Backbone) -> nn.Module:
        return Scales(self.settings, teacher.channels[-1])

    @property
    def scales(self) -> Iterator[Scale]:
        """The scales of the student."""
        return (module for module in self.student.modules() if isinstance(module, Scale))

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Learn descriptors and students from most of `normal`, and from the rest what is usual."""
        if normal.ndim != 4 or len(normal) == 0:
            raise ValueError(f"fit needs images [N, 3, H, W] with N > 0; got {tuple(normal.shape)}")
        images = resized(normal.to(self.device), self.settings.image_size)
        learnt, others = parted(images, self.settings.validation, self.settings.seed)
        self.images = learnt
        total, _ = planned_steps(self.settings, learners(len(learnt), self.settings.held_out))
        self.boundary = int(self.settings.descriptors * total)
        self.forget_what_is_usual(LEAST)  # no state without targets is the best on held-out images
        try:
            distil(self, learnt, (fitting or Fitting()).after(lambda stad: stad.finish(others)))
        finally:
            self.images = None
        self.finish(others)

    def finish(self, others: Tensor) -> None:
        """What follows the last step: what is usual is learnt from `others`."""
        with seeded(self.settings.seed, self.device):
            self.learn_what_is_usual(others)
        self.folded_student.current()

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The descriptors' terms up to the boundary, then the students'; sums over scales."""
        images = batch.images if self.images is None else self.images
        if batch.step <= self.boundary:
            return self.descriptors_terms(images, batch.generator)
        if batch.step == self.boundary + 1:
            self.learn_targets(images)
        seen = self.student.normalised(batch.images)  # type: ignore[operator]
        terms = []
        for scale in self.scales:
            with torch.no_grad():
                target = scale.targets(seen)
            terms += [(said - target).square().sum(1).mean() for said in scale.answers(seen)]
        return {"students": torch.stack(terms).sum()}

    def descriptors_terms(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """L_k and L_c of crops of `images`, the same places for no two scales."""
        found = []
        for scale in self.scales:
            crops = random_crops(images, scale.side, self.settings.crops, generator)
            with torch.no_grad():
                features = self.teacher(enlarged(crops))[-1].float().mean((2, 3))
            found.append(scale.distillation(self.student.normalised(crops), features))  # type: ignore[operator]
        knowledge, compact = (torch.stack(one).sum() for one in zip(*found, strict=True))
        return {"knowledge": knowledge, "compactness": self.settings.compactness * compact}

    @torch.no_grad()
    def learn_targets(self, images: Tensor) -> None:
        """Mean and deviation of every component of the descriptors over all `images`."""
        self.forget_what_is_usual(1.0)
        for scale in self.scales:
            network: PatchNetwork = scale.descriptor
            sums = [
                torch.stack([made.sum((0, 2, 3)), made.square().sum((0, 2, 3))])
                for made in (network.of_images(seen, scale.grid).double() for seen in self.seen(images))
            ]
            count = len(images) * (images.shape[-2] // scale.grid) * (images.shape[-1] // scale.grid)
            mean, square = torch.stack(sums).sum(0) / count
            scale.get_buffer("centre").copy_(mean[:, None, None])
            scale.get_buffer("deviation").copy_(deviation(mean, square)[:, None, None])

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
            scale.get_buffer("spread").copy_(deviation(mean, square))

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


def parted(images: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """(images to learn from, others): a seeded share of others, one at the least; all are both if there is one image or
    no share."""
    if not share or len(images) < 2:
        return images, images
    count = min(max(round(share * len(images)), 1), len(images) - 1)
    order = torch.randperm(len(images), generator=chance(seed, "validation", 0)).to(images.device)
    return images[order[count:].sort().values], images[order[:count].sort().values]


def learners(images: int, held_out: float) -> int:
    """How many of `images` the loop learns from when it holds a share out."""
    return images - min(max(round(held_out * images), 1), images - 1) if held_out else images


def deviation(mean: Tensor, square: Tensor) -> Tensor:
    """From the means of values and of their squares; 1 where nothing varies."""
    found = (square - mean.square()).clamp_min(0).sqrt()
    return torch.where(found > LEAST, found, 1.0)


def random_crops(images: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """[count, 3, side, side] of `images`, each image continued by its outermost pixels if it is smaller."""
    missing = max(side - min(images.shape[-2:]), 0)
    which = torch.randint(len(images), (count,), generator=generator).tolist()
    places = torch.rand(2, count, generator=generator).tolist()
    crops = []
    for image, down, right in zip(which, *places, strict=True):
        whole = F.pad(images[image][None], (0, missing, 0, missing), mode="replicate")[0] if missing else images[image]
        top, left = (int(share * (end - side + 1)) for share, end in zip((down, right), whole.shape[-2:], strict=True))
        crops.append(whole[:, top : top + side, left : left + side])
    return torch.stack(crops)


def enlarged(crops: Tensor) -> Tensor:
    """Crops as the backbone sees them."""
    return F.interpolate(crops, (ENLARGED, ENLARGED), mode="bilinear", align_corners=False)


STAD = Entry(
    name="stad",
    title="STAD",
    paper="Bergmann, Fauser, Sattlegger, Steger, CVPR 2020, arXiv 1911.02357",
    presets={
        "paper": StadSettings(),
        "standard": StadSettings(
            teacher="resnet18",
            strides=(16,),
            scales=(33, 65),
            width=32,
            dimensions=64,
            grid=4,
            crops=16,
            steps=400,
            batch_size=2,
            learning_rate=1e-3,
            schedule="one_cycle",
        ),
        "quick": StadSettings(
            teacher="efficientnet_lite0",
            image_size=128,
            scales=(33, 65),
            width=16,
            dimensions=32,
            grid=4,
            crops=16,
            steps=120,
            batch_size=4,
            learning_rate=3e-3,
            schedule="one_cycle",
        ),
    },
    build=Stad,
    variants={"p17": {"scales": (17,)}, "p33": {"scales": (33,)}, "p65": {"scales": (65,)}},
)
