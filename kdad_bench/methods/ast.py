"""AST: Rudolph et al., "Asymmetric Student-Teacher Networks for Industrial Anomaly Detection", WACV 2023,
arXiv 2210.07829.

A normalising flow learns the density of a frozen backbone's features, of depth, or of both, each place knowing where it
is; a convolutional student learns what the flow answers. Beside normal data the two are far apart, for the student is
no bijection. The paper's backbone is EfficientNet-B5; here it is whichever teacher is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import Layers, fuse_scales, image_scores, pixel_discrepancy
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, Taps
from kdad_bench.methods.protocol import Entry, Range, Scores, Settled, shown
from kdad_bench.methods.training import words
from kdad_bench.methods.training.stages import last_of_first, progress_in_stage

CODE = "official code"
STRIDE = 32  # px of an image to a place: official code
CELL = 8  # depth pixels along the side of a feature's pixel: 64 channels of depth
GROWN = 8  # px of the depth map by which the foreground is dilated
ATAN = 0.636  # 2 / pi as the official code has it: brings the arc tangent to 1
LONGEST = 1e4  # of the wavelengths of the places, over 2 pi
RELIEF = 4.0  # depth is in quarters of the category's highest relief; official code: in centimetres
LIMIT = 1e6  # of what a coupling answers, either way
KERNELS = 3, 5  # sides of the flow's convolutions: of all blocks but the last, of the last
INPUTS = ("rgb", "depth", "rgb+depth")


def depth_in_words(settings: AstSettings) -> str:
    """How depth is read from a picture of the relief."""
    if "depth" not in settings.inputs:
        return ""
    return (
        f"the relief's height alone, about its mean over the object, in units of 1/{RELIEF:g} of the highest one of "
        "the category; the object is what stands out of the table"
    )


def teacher_in_words(settings: AstSettings) -> str:
    """The backbone, where it is looked at."""
    if settings.inputs == "depth":
        return ""
    strides = ", ".join(map(str, settings.strides))
    return f"{settings.teacher} at stride {strides} (paper and official code: EfficientNet-B5 at stride {STRIDE})"


def grid_in_words(settings: AstSettings) -> str:
    """How finely depth alone is looked at, where that is not as in the code; a backbone's words say its stride."""
    (stride,) = settings.strides
    if settings.inputs != "depth" or stride == STRIDE:
        return ""
    side = settings.image_size // stride
    return f"stride {stride}, {side} x {side} places ({CODE}: stride {STRIDE}, 24 x 24 of 768 px)"


@dataclass(frozen=True, kw_only=True, slots=True)
class AstSettings(DistillationSettings):
    """Defaults of the official code."""

    teacher: str = "efficientnet_lite0"  # the nearest to EfficientNet-B5 whose weights come with a package
    strides: tuple[int, ...] = (32,)  # one tap
    image_size: int = 768
    epochs: int = 144  # 72 for the flow, 72 for the student
    batch_size: int = 8
    optimiser: str = "adam"
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    drop_last: bool = True
    inputs: str = "rgb"  # rgb | depth | rgb+depth; a run says what it has
    flow: float = 0.5  # share of the steps in which the flow learns; the student has the others
    couplings: int = 4
    clamp: float = 1.9  # of a coupling's log-scales
    flow_width: int = 64  # channels inside the flow's couplings
    places: int = 32  # channels that say where a feature is
    student_width: int = 1024
    student_blocks: int = 4
    score: str = "max"  # of the map: max | mean

    CHOICES: ClassVar = {**DistillationSettings.CHOICES, "inputs": INPUTS, "score": ("max", "mean")}
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "flow": Range(0, 1),
        "couplings": Range(1, 64),
        "clamp": Range(0, 100, open_low=True),
        "flow_width": Range(1, 4096),
        "places": Range(4, 1024),
        "student_width": Range(1, 8192),
        "student_blocks": Range(0, 64),
    }
    READINGS: ClassVar = {
        "depth": depth_in_words,
        "image score": lambda settings: (
            f"the map's {'maximum' if settings.score == 'max' else 'mean'}; the official code reports maximum and mean"
        ),
    }
    SETTLED: ClassVar = {
        "image_size": Settled("paper and official code", (768,)),
        "taps": Settled(CODE, ("raw",), lambda settings: settings.inputs != "depth"),
        "batch_size": Settled(CODE, (8,)),
        "learning_rate": Settled(CODE, (2e-4,)),
        "weight_decay": Settled(CODE, (1e-5,)),
        "schedule": Settled(CODE, ("constant",)),
        "drop_last": Settled(CODE, (True,)),
        "precision": Settled(CODE, ("fp32",)),
        "flow": Settled(CODE, (0.5,)),
        "couplings": Settled(CODE, (4,)),
        "clamp": Settled(CODE, (1.9,)),
        "flow_width": Settled(CODE, (64,)),
        "places": Settled(CODE, (32,)),
        "student_width": Settled(CODE, (1024,)),
        "student_blocks": Settled(CODE, (4,)),
    }
    DEPARTURES: ClassVar = {
        "backbone": teacher_in_words,
        "grid": grid_in_words,
        "order of the channels": lambda settings: f"drawn by the run's seed ({CODE}: by seeds 0 to 3 in every run)",
        "map": lambda settings: f"enlarged bilinearly ({CODE}: bicubically)",
        "optimiser": words.departs(words.algorithm, "adam, betas 0.9 0.999", source=CODE),
        "budget": words.departs(words.budget, "144 epochs", source=CODE),
        "student's norms": words.departs(words.own_norms, "momentum 0.1", source=CODE),
        "selection": words.departs(words.selection, words.LAST_STEP, source=CODE),
    }

    def stages(self, total: int) -> Mapping[str, int]:
        """The flow, then the student."""
        last = last_of_first(self.flow, total)
        return {"flow": last, "student": total - last}

    def __post_init__(self) -> None:
        """Raises ValueError that names the field, its value and what it may be."""
        super(AstSettings, self).__post_init__()  # slots: the class is made anew, and super() knows the first
        if self.places % 4:
            raise ValueError(f"places {self.places} is not a multiple of 4")
        if len(self.strides) != 1:
            raise ValueError(f"strides {shown(self.strides)} are not one tap")


# ---- the flow


class Subnet(nn.Module):
    """Two convolutions, borders repeated, times a learnt factor that begins at 0: a coupling begins as identity."""

    def __init__(self, inputs: int, outputs: int, width: int, kernel: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(1))
        self.first = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, padding_mode="replicate")
        self.last = nn.Conv2d(width, outputs, kernel, padding=kernel // 2, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(F.relu(self.first(x))).float() * self.factor
        return found


class Coupling(nn.Module):
    """Each half of the channels is scaled and shifted as the other half and the place say (Glow, conditional)."""

    def __init__(self, channels: int, settings: AstSettings, kernel: int) -> None:
        super().__init__()
        self.sizes = [channels // 2, channels - channels // 2]
        self.clamp, places = settings.clamp, settings.places
        first, second = self.sizes
        self.by_second = Subnet(second + places, 2 * first, settings.flow_width, kernel)
        self.by_first = Subnet(first + places, 2 * second, settings.flow_width, kernel)
        self.register_buffer("order", torch.randperm(channels))

    def affine(self, subnet: Subnet, given: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale, bounded by about `clamp`, and shift."""
        scale, shift = subnet(torch.cat([given, places], 1)).chunk(2, 1)
        return self.clamp * ATAN * torch.atan(scale / self.clamp), shift

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """(what becomes of `x` [N, C, h, w], the log of the Jacobian's determinant as a sum over pixels [N, h, w])."""
        first, second = torch.split(x[:, self.get_buffer("order")], self.sizes, 1)
        scale, shift = self.affine(self.by_second, second, places)
        first = scale.exp() * first + shift
        log_determinant = scale.sum(1)
        scale, shift = self.affine(self.by_first, first, places)
        second = scale.exp() * second + shift
        return torch.cat([first, second], 1).clamp(-LIMIT, LIMIT), log_determinant + scale.sum(1)

    def inverse(self, y: Tensor, places: Tensor) -> Tensor:
        """The x that becomes `y`."""
        first, second = torch.split(y, self.sizes, 1)
        scale, shift = self.affine(self.by_first, first, places)
        second = (second - shift) * (-scale).exp()
        scale, shift = self.affine(self.by_second, second, places)
        first = (first - shift) * (-scale).exp()
        return torch.cat([first, second], 1)[:, self.get_buffer("order").argsort()]


class Flow(nn.Module):
    """Couplings one after the other, each after a fixed random order of the channels."""

    def __init__(self, channels: int, settings: AstSettings) -> None:
        super().__init__()
        kernels = [KERNELS[0]] * (settings.couplings - 1) + [KERNELS[1]]
        self.couplings = nn.ModuleList(Coupling(channels, settings, kernel) for kernel in kernels)

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """(z [N, C, h, w], log-determinant [N, h, w]) of features `x` at `places` [N, P, h, w]."""
        total = x.new_zeros(())
        for coupling in self.couplings:
            x, log_determinant = coupling(x, places)
            total = total + log_determinant
        return x, total

    def inverse(self, z: Tensor, places: Tensor) -> Tensor:
        """The x that becomes `z`."""
        for coupling in reversed(self.couplings):
            z = coupling.inverse(z, places)  # type: ignore[operator]
        return z


def encoded_places(count: int, height: int, width: int) -> Tensor:
    """[count, height, width]: sines and cosines of the column, then of the row, at falling frequencies.

    Half of the channels each; sine and cosine of one frequency are neighbours. Vaswani et al. 2017, in two dimensions.
    """
    half = count // 2
    rates = torch.exp(torch.arange(0.0, half, 2) * (-log(LONGEST) / half))
    found = torch.zeros(count, height, width)
    for start, size, shape in ((0, width, (-1, 1, width)), (half, height, (-1, height, 1))):
        phase = (rates[:, None] * torch.arange(size)).view(shape)
        found[start : start + half : 2] = phase.sin()
        found[start + 1 : start + half : 2] = phase.cos()
    return found


# ---- the student


class ResidualBlock(nn.Module):
    """Two convolutions, each with norm and leaky ReLU, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts = [(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU()) for _ in range(2)]
        self.layers = Layers(*parts[0], *parts[1])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x) + x
        return y


class ConvolutionalStudent(Layers):
    """What the flow sees in, what it answers out."""

    def __init__(self, channels: int, settings: AstSettings) -> None:
        width = settings.student_width
        super().__init__(
            nn.Conv2d(channels + settings.places, width, 3, padding=1),
            nn.LeakyReLU(),
            *(ResidualBlock(width) for _ in range(settings.student_blocks)),
            nn.Conv2d(width, channels, 3, padding=1),
        )


class Outputs(NamedTuple):
    """What both networks make of features, [N, C, h, w] each, and where there is an object."""

    flow: Tensor
    student: Tensor
    foreground: Tensor | None  # [N, h, w] in [0, 1]; None without depth


class FlowAndStudent(nn.Module):
    """Everything that learns, and the places."""

    def __init__(self, channels: int, side: int, settings: AstSettings) -> None:
        super().__init__()
        self.flow = Flow(channels, settings)
        self.student = ConvolutionalStudent(channels, settings)
        self.register_buffer("places", encoded_places(settings.places, side, side), persistent=False)

    def placed(self, x: Tensor) -> Tensor:
        """The places of every image of `x`."""
        return self.get_buffer("places").expand(x.shape[0], -1, -1, -1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the flow and the student answer to features [N, C, h, w]."""
        places = self.placed(x)
        return self.flow(x, places)[0], self.student(torch.cat([x, places], 1))


# ---- depth


def depth_of(relief: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(depth in 64 channels [N, 64, side, side], foreground [N, side, side] in [0, 1]) of `relief` [N, 1, S, S].

    `relief` is the height over the table, 0 beside the object. Depth is about the object's mean, and 0 beside it.
    """
    found = (relief > 0).float()
    mean = (relief * found).sum((2, 3), keepdim=True) / found.sum((2, 3), keepdim=True).clamp_min(1)
    fine = (CELL * side, CELL * side)
    depth, there = (
        F.interpolate(one, fine, mode="bilinear", align_corners=False)
        for one in (RELIEF * found * (relief - mean), found)
    )
    foreground = F.interpolate(dilated((there > 0).float()), (side, side), mode="bilinear", align_corners=False)
    return F.pixel_unshuffle(depth, CELL), foreground[:, 0]


def dilated(masks: Tensor) -> Tensor:
    """`masks` [N, 1, H, W] grown by a square of 8 x 8 px, as scipy's binary_dilation grows them."""
    before = GROWN // 2 - 1
    return F.max_pool2d(F.pad(masks, (before, GROWN - 1 - before) * 2), GROWN, 1)


# ---- the losses


def negative_log_likelihood(z: Tensor, log_determinant: Tensor, foreground: Tensor | None) -> Tensor:
    """Mean over pixels of |z|^2 / 2 - log |det J|, what lies beside the foreground as 0."""
    found = 0.5 * z.square().sum(1) - log_determinant
    return (found if foreground is None else foreground * found).mean()


def distances(z: Tensor, said: Tensor, foreground: Tensor | None) -> Tensor:
    """[N, h, w]: mean over channels of the squared difference, what lies beside the foreground as 0."""
    found = pixel_discrepancy(z, said, kind="l2", weight=1 / z.shape[1])
    return found if foreground is None else foreground * found


class Ast(StudentTeacher[AstSettings]):
    """A flow and a student that differ where the flow has learnt no density."""

    def __init__(self, settings: AstSettings, teacher: Backbone | None, device: torch.device) -> None:
        super().__init__(settings, teacher, device)
        self.reads_teacher = self.clean_taps = settings.inputs != "depth"

    @property
    def parts(self) -> FlowAndStudent:
        """Flow and student."""
        return cast(FlowAndStudent, self.student)

    @property
    def side(self) -> int:
        """Of the feature map, px."""
        return self.settings.image_size // self.settings.strides[0]

    def build_student(self, teacher: Backbone) -> nn.Module:
        counts = {"rgb": teacher.channels[0], "depth": CELL**2}
        channels = sum(counts[one] for one in self.settings.inputs.split("+"))
        return FlowAndStudent(channels, self.side, self.settings)

    def features(self, images: Tensor, taps: Taps) -> tuple[Tensor, Tensor | None]:
        """(features [N, C, h, w], foreground): the photographs' tap, the depth of the pictures of reliefs, or both."""
        if self.settings.inputs == "rgb":
            return taps[0].float(), None
        depth, foreground = depth_of(images[:, -3:-2], self.side)
        return depth if self.settings.inputs == "depth" else torch.cat([taps[0].float(), depth], 1), foreground

    def progress(self, step: int, total: int) -> float:
        """Each stage has a schedule of its own."""
        return progress_in_stage(step, total, last_of_first(self.settings.flow, total), self.settings.schedule)

    def comparable(self, step: int, total: int) -> bool:
        """Before the student has learnt, its distance says nothing."""
        return step > last_of_first(self.settings.flow, total)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The flow's likelihood up to the boundary, then the student's distance to it."""
        x, foreground = self.features(batch.images, batch.teacher)
        if x[:, 0].numel() == 1:  # one image of one place: norms over a batch need two
            x, foreground = torch.cat([x, x]), None if foreground is None else torch.cat([foreground, foreground])
        places = self.parts.placed(x)
        if batch.step <= last_of_first(self.settings.flow, batch.total):
            z, log_determinant = self.parts.flow(x, places)
            return {"flow": negative_log_likelihood(z, log_determinant, foreground)}
        with torch.no_grad():
            z = self.parts.flow(x, places)[0]
        said = self.parts.student(torch.cat([x, places], 1)).float()
        return {"student": distances(z, said, foreground).mean()}

    def networks(self, images: Tensor) -> Outputs:
        taps = () if self.settings.inputs == "depth" else self.teacher(images)
        x, foreground = self.features(images, taps)
        z, said = self.folded_student(x)
        return Outputs(z, said.float(), foreground)

    def judge(self, outputs: Outputs, size: tuple[int, int]) -> Scores:
        """Pixel: the distance, upsampled; image: its maximum or mean at the size of the features.

        The official code weighs the map by the foreground once more than the loss and the mean.
        """
        found = distances(*outputs)
        pixel = found if outputs.foreground is None else outputs.foreground * found
        return Scores(
            image_scores(pixel if self.settings.score == "max" else found, self.settings.score),
            fuse_scales([pixel], size),
        )


AST = Entry(
    name="ast",
    title="AST",
    paper="Rudolph, Wehrbein, Rosenhahn, Wandt, WACV 2023, arXiv 2210.07829",
    presets={
        "paper": AstSettings(),
        "standard": AstSettings(
            teacher="resnet18",
            strides=(16,),
            image_size=256,
            taps="standardised",
            steps=400,
            student_width=256,
            student_blocks=2,
            learning_rate=1e-3,
            schedule="one_cycle",
        ),
        "quick": AstSettings(
            strides=(16,),
            image_size=128,
            taps="standardised",
            steps=200,
            flow_width=32,
            student_width=128,
            student_blocks=2,
            learning_rate=2e-3,
            schedule="one_cycle",
        ),
    },
    build=Ast,
    modality_setting="inputs",
    variants={"mean": {"score": "mean"}},
)
