"""EfficientAD: Batzner, Heckler, König, "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level
Latencies", WACV 2024, arXiv 2303.14535.

A student of a few convolutions regresses the features of a patch description network (PDN) on normal images, and, with
as many outputs again, those of an autoencoder, which knows the image as a whole. No official code is known: layers and
algorithms are the paper's tables as public codes write them out. Where the PDN's published weights are not given, it is
distilled here from another teacher, on the normal images and on drawn ones; drawn images also stand for ImageNet in the
student's penalty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from math import ceil
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import fuse_scales, image_scores, pixel_discrepancies
from kdad_bench.methods.augmentation import grey, jitter
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.backbone import normalised
from kdad_bench.methods.backbones.names import IMAGENET_MEAN, IMAGENET_STD
from kdad_bench.methods.backbones.pdn import LAYOUTS, LOST, SIZES, WIDTH, Pdn, convolved, layers, through
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, Taps, autocast, chance, resized
from kdad_bench.methods.drawn_images import drawn_images
from kdad_bench.methods.protocol import Entry, Fitting, Range, Scores, Settled, shown
from kdad_bench.methods.stad import learners, parted
from kdad_bench.methods.training import words
from kdad_bench.methods.training.chance import seeded
from kdad_bench.methods.training.loop import distil, planned_steps
from kdad_bench.methods.training.teacher import chunks

LOW, HIGH = 0.9, 0.995  # quantiles of normal maps that become 0 and 0.1
TENTH = 0.1
SWAY = 0.2  # of a factor about 1: what the autoencoder's images differ by in brightness, contrast or saturation
GREY_CROPS, GREY_PENALTY = 0.1, 0.3  # how often an image loses its colour before the PDN learns, and in the penalty
DROPPED = 0.2  # of the decoder's values while it learns
AT_ONCE = 8  # images, where statistics are taken
LEAST = 1e-6  # of what is divided by
PENALTIES_IN_WORDS: Mapping[str, str] = {"drawn": "on drawn images", "none": "none"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientAdSettings(DistillationSettings):
    """The paper's small form; a width of 128 and 384 features are those of its Table 5."""

    teacher: str = "pdn_small"  # a PDN with its published weights, or what one is distilled from here
    strides: tuple[int, ...] = (4,)  # of a PDN; of another teacher 8 and 16, its second and third layer
    steps: int | None = 70_000
    batch_size: int = 1
    optimiser: str = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    schedule: str = "late_drop"  # a tenth from step 66,500 on
    initial: str = "pytorch"  # random weights of student and autoencoder: pytorch (public code) | he
    network: str = "small"  # small | medium
    width: int = 128  # channels of the small form's first layer; the others follow
    features: int = 384  # outputs of the teacher and of the autoencoder, and half of the student's
    autoencoder: int = 64  # channels of its latent vector and of its decoder
    padding: bool = False  # the paper's tables pad; public code does while the teacher is distilled, and not later
    border: str = "zeros"  # what lies around a map without padding: zeros (public code) | nearest
    hard: float = 0.999  # p_hard: the share of differences that the student does not learn from
    penalty: str = "drawn"  # what the student must not imitate the teacher on: drawn | none (paper: ImageNet)
    distilling: float = 0.5  # share of the steps in which the PDN learns from a teacher that is none
    enlarged: int = 2  # how many times larger that teacher sees images than the PDN: 512 px beside 256
    validation: float = 0.1  # share of the normals that the maps' quantiles are of

    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "initial": ("pytorch", "he"),
        "network": tuple(LAYOUTS),
        "border": ("zeros", "nearest"),
        "penalty": tuple(PENALTIES_IN_WORDS),
    }
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "image_size": Range(64, 8192),
        "width": Range(1, 1024),
        "features": Range(1, 4096),
        "autoencoder": Range(2, 1024),
        "hard": Range(0, 1, open_high=True),
        "distilling": Range(0, 1, open_high=True),
        "enlarged": Range(1, 4),
        "validation": Range(0, 0.9),
    }
    READINGS: ClassVar = {
        "form": lambda settings: f"the {settings.network} one of the paper's two",
        "padding": lambda settings: "as in the paper's tables" if settings.padding else _border_in_words(settings),
        "quantiles": lambda settings: (
            f"of a share of {shown(settings.validation)} of the normals, which nothing learns from"
            if settings.validation
            else "of the images that the student learnt from (paper: of others)"
        ),
        "hard features": lambda settings: "of each image by itself" if settings.batch_size > 1 else "",
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper", tuple(SIZES)),
        "strides": Settled("paper", ((8, 16),), lambda settings: settings.distilled),
        "image_size": Settled("paper", (256,)),
        "taps": Settled("paper", ("raw",)),
        "batch_size": Settled("paper", (1,)),
        "learning_rate": Settled("paper", (1e-4,)),
        "weight_decay": Settled("paper", (1e-5,)),
        "schedule": Settled("paper", ("late_drop",)),
        "precision": Settled("paper", ("fp32",)),
        "initial": Settled("public code", ("pytorch",)),
        "width": Settled("paper", (128,)),
        "features": Settled("paper", (384,)),
        "autoencoder": Settled("paper", (64,)),
        "hard": Settled("paper", (0.999,)),
        "enlarged": Settled("paper", (2,), lambda settings: settings.distilled),
    }
    DEPARTURES: ClassVar = {
        "descriptor": lambda settings: (
            f"distilled here, on normal and drawn images, in a share of {shown(settings.distilling)} of the steps"
            " (paper: from WideResNet-101 on ImageNet, 60000 steps before)"
            if settings.distilled
            else ""
        ),
        "penalty": lambda settings: f"{PENALTIES_IN_WORDS[settings.penalty]} (paper: images of ImageNet)",
        "optimiser": words.departs(words.algorithm, "adam, betas 0.9 0.999", source="paper"),
        "budget": words.departs(words.budget, "70000 steps", source="paper"),
        "selection": words.departs(words.selection, "last step, all normals", source="paper"),
        "incomplete batches": lambda settings: "left out (paper: none)" if settings.drop_last else "",
    }

    @property
    def distilled(self) -> bool:
        """Whether the PDN is distilled here: the teacher is no PDN."""
        return self.teacher not in SIZES


def _border_in_words(settings: EfficientAdSettings) -> str:
    """What stands for the outermost pixels, which a network without padding does not describe."""
    around = "zeros" if settings.border == "zeros" else "their outermost values"
    return f"none, as in public code (paper's tables: zeros around every layer); maps have {around} around them"


class Autoencoder(nn.Module):
    """An image as one vector, and the teacher's features from it: the paper's Table 7, for images of any side."""

    def __init__(self, settings: EfficientAdSettings) -> None:
        super().__init__()
        width, side = settings.autoencoder, settings.image_size
        widths = (3, width // 2, width // 2, width, width, width)
        down = ((nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(inplace=True)) for a, b in pairwise(widths))
        self.encoder = nn.Sequential(*chain.from_iterable(down), nn.Conv2d(width, width, side // 32))
        # 3, 8, 15, 32, 63, 127 for 256 px; a kernel of 4 with a padding of 2 adds one
        sizes = (side // 64 - 1, side // 32, side // 16 - 1, side // 8, side // 4 - 1, side // 2 - 1)
        self.sizes = tuple(max(size, 1) for size in sizes)
        self.decoder = nn.ModuleList(nn.Conv2d(width, width, 4, padding=2) for _ in self.sizes)
        self.last = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, settings.features, 3, padding=1),
        )
        self.side = grid_of(settings)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, s, s] of normalised images, s as the PDN's."""
        x = through(self.encoder, x)
        for size, layer in zip(self.sizes, self.decoder, strict=True):
            x = convolved(layer, enlarged(x, size), rectified=True)
            x = F.dropout(x, DROPPED, self.training)
        return through(self.last, enlarged(x, self.side))


class Outputs(NamedTuple):
    """What the networks say of images, [N, features, s, s] each."""

    teacher: Tensor
    student: Tensor  # of the teacher
    autoencoder: Tensor
    imitation: Tensor  # the student's, of the autoencoder


class Networks(nn.Module):
    """The PDN that is imitated, the student, the autoencoder, and what is known of normal images."""

    def __init__(self, settings: EfficientAdSettings) -> None:
        super().__init__()
        size, width, outputs, pad = settings.network, settings.width, settings.features, settings.padding
        self.descriptor: nn.Sequential = nn.Sequential(*layers(size, width, outputs, padding=pad))
        *shared, last = layers(size, width, 2 * outputs, padding=pad)
        assert isinstance(last, nn.Conv2d)
        self.student = nn.Sequential(*shared)
        # one layer of twice the outputs, in two, so that either half can be had alone: of the teacher, the autoencoder
        self.halves = nn.ModuleList(nn.Conv2d(last.in_channels, outputs, last.kernel_size[0]) for _ in range(2))
        self.autoencoder = Autoencoder(settings)
        if settings.initial == "he":
            initialise(self)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(IMAGENET_STD))
        self.register_buffer("centre", torch.zeros(outputs, 1, 1))  # of the features that the PDN is distilled from
        self.register_buffer("deviation", torch.ones(outputs, 1, 1))
        self.register_buffer("low", torch.zeros(2))  # of the student's map, of the autoencoder's
        self.register_buffer("span", torch.full((2,), torch.inf))  # before any fit a map is 0

    def normalised(self, images: Tensor) -> Tensor:
        """Images as the networks see them."""
        return normalised(images, self.get_buffer("mean"), self.get_buffer("std"))

    def described(self, x: Tensor) -> Tensor:
        """What the PDN says of normalised images."""
        return through(self.descriptor, x)

    def half_of(self, x: Tensor, which: int) -> Tensor:
        """The student's outputs of normalised images: those of the teacher (0) or of the autoencoder (1) alone."""
        return self.answers(through(self.student, x), which)

    def answers(self, hidden: Tensor, which: int) -> Tensor:
        """One half of the student's outputs."""
        return convolved(self.halves[which], hidden, rectified=False)

    def forward(self, images: Tensor) -> Outputs:
        """All of them of `images` [N, 3, S, S] in [0, 1]."""
        x = self.normalised(images)
        hidden = through(self.student, x)
        return Outputs(self.described(x), self.answers(hidden, 0), self.autoencoder(x), self.answers(hidden, 1))


class EfficientAd(StudentTeacher[EfficientAdSettings]):
    """A student errs where a patch is new, and where it does not fit the image that the autoencoder makes of it."""

    clean_taps = False
    images: Tensor | None = None  # those of the fit under way
    boundary = 0  # the last step in which the PDN learns

    def build_student(self, teacher: Backbone) -> nn.Module:
        networks = Networks(self.settings)
        if isinstance(teacher, Pdn):
            asked = (self.settings.network, self.settings.width, self.settings.features)
            have = (teacher.size, WIDTH, teacher.channels[0])
            if asked != have:
                said = ("network {}, width {}, features {}".format(*one) for one in (have, asked))
                raise ValueError("teacher {}: it has {}; got {}".format(teacher.name, *said))
            networks.descriptor.load_state_dict(teacher.state_dict())
        networks.descriptor.requires_grad_(self.settings.distilled)
        return networks

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Learn PDN, student and autoencoder from most of `normal`, and from the rest what maps are usual."""
        if normal.ndim != 4 or len(normal) == 0:
            raise ValueError(f"fit needs images [N, 3, H, W] with N > 0; got {tuple(normal.shape)}")
        images = resized(normal.to(self.device), self.settings.image_size)
        learnt, others = parted(images, self.settings.validation, self.settings.seed)
        total, _ = planned_steps(self.settings, learners(len(learnt), self.settings.held_out))
        self.boundary = self.last_of_descriptor(total)
        self.forget_what_is_usual(LEAST)  # no state without targets is the best on held-out images
        self.images = learnt
        try:
            distil(self, learnt, fitting or Fitting())
        finally:
            self.images = None
        with seeded(self.settings.seed, self.device):
            self.learn_what_is_usual(others)
        self.folded_student.current()

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The PDN's term up to the boundary, then those of student and autoencoder."""
        images = batch.images if self.images is None else self.images
        if batch.step <= self.boundary:
            return self.descriptors_term(batch, images)
        if batch.step == self.boundary + 1:
            self.learn_targets(images)
        return self.students_terms(batch)

    def last_of_descriptor(self, total: int) -> int:
        """The last of `total` steps in which the PDN learns; one step at the least where there are two to share."""
        share = self.settings.distilling if self.settings.distilled else 0.0
        return max(int(share * total), min(1, total - 1)) if share else 0

    def descriptors_term(self, batch: Batch, images: Tensor) -> dict[str, Tensor]:
        """Mean squared difference of the PDN to the teacher's normalised features, of normal and of drawn images."""
        if batch.step == 1:
            self.learn_features(images)
        seen = sometimes_grey(self.with_drawn(batch.images, batch.generator), GREY_CROPS, batch.generator)
        with torch.no_grad():
            target = self.embedding(seen)
        target = (target - self.own.get_buffer("centre")) / self.own.get_buffer("deviation")
        made = self.own.described(self.own.normalised(seen))
        return {"descriptor": F.mse_loss(made.float(), target)}

    def students_terms(self, batch: Batch) -> dict[str, Tensor]:
        """L_hard and the penalty, L_AE and L_STAE of one batch; the autoencoder's images differ in colour."""
        student, images, count = self.own, batch.images, len(batch.images)
        seen = [images, recoloured(images, batch.generator)]
        if self.settings.penalty == "drawn":
            seen.append(sometimes_grey(self.drawn(count, batch.generator), GREY_PENALTY, batch.generator))
        seen = [student.normalised(one) for one in seen]
        with torch.no_grad():
            target, other_target = student.described(torch.cat(seen[:2])).float().tensor_split(2)
        answers = student.half_of(torch.cat([seen[0], *seen[2:]]), 0).float()
        made, imitation = student.autoencoder(seen[1]).float(), student.half_of(seen[1], 1).float()
        terms = {
            "hard": hardest((answers[:count] - target).square(), self.settings.hard),
            "autoencoder": F.mse_loss(made, other_target),
            "imitation": F.mse_loss(imitation, made),
        }
        if self.settings.penalty == "drawn":
            terms["penalty"] = answers[count:].square().mean()
        return terms

    @property
    def own(self) -> Networks:
        """The student, as what it is."""
        assert isinstance(self.student, Networks)
        return self.student

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Images of nothing, on the device."""
        return drawn_images(count, self.settings.image_size, generator).to(self.device)

    def with_drawn(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """`images` and as many drawn ones."""
        return torch.cat([images, self.drawn(len(images), generator)])

    def embedding(self, images: Tensor) -> Tensor:
        """The teacher's features [N, features, s, s], s as the PDN's: taps in a row, neighbouring channels averaged."""
        side = self.settings.enlarged * self.settings.image_size
        taps: Taps = self.teacher(enlarged(images, side))
        rest = self.settings.image_size // 4
        whole = torch.cat([enlarged(tap.float(), rest) for tap in taps], 1)
        margin = 0 if self.settings.padding else LOST // 2
        pixels = whole[:, :, margin : rest - margin, margin : rest - margin].permute(0, 2, 3, 1)
        pooled = F.adaptive_avg_pool1d(pixels.flatten(1, 2), self.settings.features)
        return pooled.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def learn_features(self, images: Tensor) -> None:
        """Mean and deviation of every value of the teacher's features, over `images` and as many drawn ones."""
        generator = chance(self.settings.seed, "features", 0)
        parts = chunks(images, AT_ONCE)
        found = moments(self.embedding(self.with_drawn(some, generator)) for some in parts)
        for name, value in zip(("centre", "deviation"), found, strict=True):
            self.own.get_buffer(name).copy_(value[:, None, None])

    @torch.no_grad()
    def learn_targets(self, images: Tensor) -> None:
        """Make the PDN's outputs those of mean 0 and deviation 1 over `images`, by its last layer's weights."""
        student = self.own
        seen = (student.normalised(some) for some in chunks(images, AT_ONCE))
        mean, deviation = moments(student.described(some) for some in seen)
        *_, weight, bias = student.descriptor.parameters()
        weight.div_(deviation[:, None, None, None])
        bias.sub_(mean).div_(deviation)
        self.forget_what_is_usual(1.0)

    def forget_what_is_usual(self, span: float) -> None:
        """Maps count from 0, in units of `span`."""
        self.own.get_buffer("low").zero_()
        self.own.get_buffer("span").fill_(span)

    @torch.no_grad()
    def learn_what_is_usual(self, images: Tensor) -> None:
        """The quantiles of both maps over all pixels of normal `images`."""
        with autocast(self.settings.precision, self.device):
            found = [torch.stack(self.maps(self.networks(some))) for some in chunks(images, AT_ONCE)]
        values = torch.cat(found, 1).flatten(1).double().cpu().numpy()
        low, high = np.quantile(values, (LOW, HIGH), axis=1)
        self.own.get_buffer("low").copy_(torch.from_numpy(low))
        self.own.get_buffer("span").copy_(torch.from_numpy(high - low).clamp_min(LEAST))

    def networks(self, images: Tensor) -> Outputs:
        found: Outputs = self.folded_student(images)
        return found

    def maps(self, outputs: Outputs) -> list[Tensor]:
        """Mean squared differences [N, s, s]: student and teacher, student and autoencoder."""
        pairs = (outputs.teacher, outputs.autoencoder), (outputs.student, outputs.imitation)
        return pixel_discrepancies(*pairs, kind="l2", weight=1 / self.settings.features)

    def judge(self, outputs: Outputs, size: tuple[int, int]) -> Scores:
        """Both maps so that the quantiles become 0 and 0.1, their mean, upsampled; the image score is the maximum."""
        units = zip(self.maps(outputs), *(self.own.get_buffer(name) for name in ("low", "span")), strict=True)
        combined = torch.stack([TENTH * (one - low) / span for one, low, span in units]).mean(0)
        if not self.settings.padding:
            margins = (LOST // 2,) * 4
            combined = F.pad(combined, margins, "constant" if self.settings.border == "zeros" else "replicate")
        pixel = fuse_scales([combined], size)
        return Scores(image_scores(pixel), pixel)


def initialise(network: nn.Module) -> None:
    """He initialisation by fan-in, no biases: what passes through many layers keeps its size."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def grid_of(settings: EfficientAdSettings) -> int:
    """Rows of the networks' outputs."""
    return settings.image_size // 4 - (0 if settings.padding else LOST)


def enlarged(images: Tensor, side: int) -> Tensor:
    """[N, C, side, side], bilinear."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def hardest(squared: Tensor, share: float) -> Tensor:
    """The mean of the elements of `squared` [N, ...] that are not below their `share`-quantile, of each image alone."""
    values = squared.flatten(1)
    last = values.shape[1] - 1
    count = last + 1 - ceil(share * last - 1e-9)  # the quantile lies between two elements
    return values.topk(count, 1, sorted=False).values.mean()


def recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """`images` [N, 3, H, W], of each the brightness, the contrast or the saturation times a factor of 0.8 to 1.2."""
    which = torch.randint(3, (len(images),), generator=generator)
    factors = 1 + SWAY * (2 * torch.rand(len(images), generator=generator) - 1)
    changes = [torch.where(which == kind, factors, 1.0).to(images.device)[:, None, None, None] for kind in range(3)]
    brightness, contrast, saturation = changes
    return jitter(images, brightness, contrast, saturation, torch.zeros(len(images)))


def sometimes_grey(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """`images` [N, 3, H, W], each without its colour with that probability."""
    happens = torch.rand(len(images), generator=generator).to(images.device) < probability
    return torch.where(happens[:, None, None, None], grey(images), images)


def moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] float32 of every channel over all `parts` [N, C, h, w]; 1 where nothing varies."""
    found, count = [], 0
    for part in parts:
        values = part.double()
        found.append(torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))]))
        count += part[:, 0].numel()
    mean, square = torch.stack(found).sum(0) / count
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return mean.float(), torch.where(deviation > LEAST, deviation, 1.0).float()


PUBLISHED = {"strides": (4,), "width": 128, "features": 384}  # what a published PDN asks for, whatever the preset

EFFICIENTAD = Entry(
    name="efficientad",
    title="EfficientAD",
    paper="Batzner, Heckler, König, WACV 2024, arXiv 2303.14535",
    presets={
        "paper": EfficientAdSettings(),
        "standard": EfficientAdSettings(
            teacher="resnet18",
            strides=(4, 8),
            initial="he",
            width=32,
            features=128,
            autoencoder=32,
            border="nearest",
            hard=0.0,
            penalty="none",
            distilling=0.45,
            enlarged=1,
            steps=600,
            learning_rate=2e-3,
            schedule="one_cycle",
        ),
        "quick": EfficientAdSettings(
            teacher="efficientnet_lite0",
            strides=(4, 8),
            image_size=128,
            initial="he",
            width=16,
            features=64,
            autoencoder=16,
            border="nearest",
            hard=0.0,  # this, the rates and the budgets: docs/recipes.md
            penalty="none",
            distilling=0.45,
            enlarged=1,
            steps=450,
            learning_rate=3e-3,
            schedule="one_cycle",
        ),
    },
    build=EfficientAd,
    variants={
        "small": {"teacher": "pdn_small", "network": "small", **PUBLISHED},
        "medium": {"teacher": "pdn_medium", "network": "medium", **PUBLISHED},
        "distilled": {"teacher": "resnet18", "strides": (8, 16)},
        "padded": {"padding": True},
        "penalised": {"penalty": "drawn"},
    },
)
