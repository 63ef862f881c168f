"""MKD, multiresolution knowledge distillation: Salehi et al., CVPR 2021, arXiv 2011.11108.

A small cloner learns value and direction of a frozen source's activations; an image's score is the loss itself, and
its map is the gradient of that score with respect to the input. Re-implemented from the formulas; what the authors'
code does to maps beyond them (each stretched to [0, 1], a noise level squared by a slip) is the variant `official`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import Layers, convolved, flattened_cosine, gaussian_blur, pixel_discrepancy
from kdad_bench.methods.backbones import FACTS, Backbone, facts_of
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, Taps, autocast, chance, resized
from kdad_bench.methods.protocol import Entry, Range, Scores, Settled, shown, takes_maps_alone
from kdad_bench.methods.training import words

CONVOLUTIONS = (2, 2, 3, 3, 3)  # per block, before its pooling: VGG-16, and the cloner
NARROW = (16, 16, 16, 16, 16)  # cloner "B": official code
FULL = (64, 128, 256, 512, 512)  # cloner "A": VGG-16's own
SIGMA = 4.0  # of the maps' Gaussian, at the network's size: official code
SMOOTH_SAMPLES = 50  # noisy copies per image: official code
SMOOTH_NOISE = 0.05  # their noise, as a part of the image's range: official code
PERCENTILE = 0.99  # where the official code clips a map before it stretches it to [0, 1]
EPOCHS = 601  # up to the last state that the official code saves for MVTec AD
VALUE_WEIGHT = 0.5  # lambda: official code, MVTec AD
GRADIENT_SCALE = 2.0**12  # of the score while its gradient is taken, so that fp16 does not lose it; exact in fp32

SALIENCIES = ("gradient", "smooth_grad", "guided_backprop")
CLONERS = ("A", "B")
LOSSES = ("value_and_direction", "direction_only")
NOISES = ("relative", "official")

Rectifier = Callable[[Tensor], Tensor]


class Cloner(nn.Module):
    """VGG-16's layout, narrow, with the source's tap widths at the ends of its blocks.

    3 x 3 convolutions without bias; a batch norm after each but the last of a block; max pooling (official code). For
    sources other than VGG-16 the same pattern with their tap widths, and no ReLU at the taps where theirs are signed: a
    reading.
    """

    def __init__(self, source: Backbone, *, full_width: bool, signed: bool) -> None:
        super().__init__()
        self.strides, self.signed = source.strides, signed
        tap_widths = dict(zip(source.strides, source.channels, strict=True))
        self.blocks = nn.ModuleList()
        inputs = 3
        for index, count in enumerate(CONVOLUTIONS):
            stride = 2 << index
            if stride > max(source.strides):
                break
            inner = (FULL if full_width else NARROW)[index]
            widths = [inner] * (count - 1) + [tap_widths.get(stride, inner)]
            self.blocks.append(ClonerBlock(inputs, widths))
            inputs = widths[-1]

    def forward(self, images: Tensor, rectify: Rectifier = F.relu) -> Taps:
        """Taps of normalised `images` [N, 3, H, W] as the source names them; `rectify` is the activation."""
        x, taps = images, []
        for index, block in enumerate(self.blocks):
            pooled = block(x, rectify, signed=self.signed)
            if 2 << index in self.strides:
                taps.append(pooled)
            x = rectify(pooled) if self.signed else pooled
        return tuple(taps)


class ClonerBlock(nn.Module):
    """Convolutions of the given widths, then 2 x 2 max pooling."""

    def __init__(self, inputs: int, widths: Sequence[int]) -> None:
        super().__init__()
        pairs = list(zip([inputs, *widths[:-1]], widths, strict=True))
        self.inner = nn.ModuleList(Layers(convolution(a, b), nn.BatchNorm2d(b)) for a, b in pairs[:-1])
        self.last = convolution(*pairs[-1])

    def forward(self, x: Tensor, rectify: Rectifier, *, signed: bool) -> Tensor:
        """The pooled map; unless `signed`, the last convolution is rectified as the others are."""
        for layer in self.inner:
            x = rectify(layer(x))
        x = convolved(self.last, x)
        return F.max_pool2d(x if signed else rectify(x), 2)


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3, no bias, Xavier's uniform initial weights (official code)."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class GuidedRelu(torch.autograd.Function):
    """ReLU whose gradient passes only where it is positive too (Springenberg et al. 2015, guided backpropagation)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rectified = x.clamp(min=0)
        ctx.save_for_backward(rectified)
        return rectified

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (rectified,) = ctx.saved_tensors
        passed: Tensor = gradients[0].clamp(min=0) * (rectified > 0)
        return passed


def guided_relu(x: Tensor) -> Tensor:
    """max(x, 0), with the gradient of guided backpropagation."""
    rectified: Tensor = GuidedRelu.apply(x)  # type: ignore[no-untyped-call]
    return rectified


class Terms(NamedTuple):
    """The two parts of MKD's loss per image, each [N] float32, summed over layers (official code)."""

    direction: Tensor  # 1 - cos(vec b, vec a), a layer's activations as one vector
    value: Tensor  # mean of (b - a)^2, without lambda


def discrepancy(source: Sequence[Tensor], cloned: Sequence[Tensor]) -> Terms:
    """MKD's loss of the layers `source` and `cloned` [N, C_k, h_k, w_k], per image: no mean over the batch."""
    layers = list(zip(source, cloned, strict=True))
    return Terms(
        direction=torch.stack([flattened_cosine(a, b) for a, b in layers]).sum(dim=0),
        value=torch.stack([pixel_discrepancy(a, b, kind="l2").mean(dim=(1, 2)) / a.shape[1] for a, b in layers]).sum(
            dim=0
        ),
    )


def input_gradient(score: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N] of `images` [N, 3, H, W] and their gradient with respect to the images; no other gradient is left."""
    images = images.detach().clone().requires_grad_()
    scores = score(images)
    (gradient,) = torch.autograd.grad(GRADIENT_SCALE * scores.sum(), images)
    return scores.detach(), gradient.detach() / GRADIENT_SCALE


def smooth_saliency(saliency: Callable[[Tensor], Tensor], images: Tensor, noise: Tensor, deviation: Tensor) -> Tensor:
    """The mean of the maps `saliency` makes of noisy copies of `images` [N, 3, H, W]: [N, H, W].

    After SmoothGrad (Smilkov et al. 2017), but of maps, not of signed gradients (official code). `noise`
    [samples, 3, H, W] standard normal, the same for every image, so that no image depends on its neighbours;
    `deviation` [N] its standard deviation.
    """
    copies = (images + deviation.view(-1, 1, 1, 1) * sample for sample in noise)
    return torch.stack([saliency(copy) for copy in copies]).mean(dim=0)


def grey_opening(maps: Tensor) -> Tensor:
    """Grey-scale opening of `maps` [N, H, W] with the 3 x 3 ellipse (a cross); beyond the border is ignored.

    Opening with a flat element commutes with thresholding: this one opening is all the binary openings of the maps'
    level sets at once.
    """
    return cross_maximum(-cross_maximum(-maps))


def cross_maximum(maps: Tensor) -> Tensor:
    """Maximum over each pixel of `maps` [N, H, W] and its four neighbours."""
    x = maps[:, None]
    upright, level = F.max_pool2d(x, (3, 1), 1, (1, 0)), F.max_pool2d(x, (1, 3), 1, (0, 1))
    return torch.maximum(upright, level)[:, 0]


def stretched(maps: Tensor, percentile: float = 1.0) -> Tensor:
    """Each map of [N, H, W] clipped at its own `percentile`, a part of 1, and stretched to [0, 1] (official code)."""
    flat = maps.flatten(1)
    low, high = flat.amin(dim=1, keepdim=True), flat.quantile(percentile, dim=1, keepdim=True)
    return ((flat - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).view_as(maps)


CODE = "official code"
CODE_MVTEC = "official code, MVTec AD"


def more_than_taps(settings: MkdSettings) -> str:
    """Why so many taps cannot be scored, in words; "" if they can."""
    taps = len(settings.strides)
    return "" if settings.scored <= taps else f"must be 1 to {taps}, the number of taps"


def saliency_words(settings: MkdSettings) -> str:
    """Which of the code's three saliencies is taken."""
    return (
        f"{settings.saliency}; the official code has gradient, smooth_grad and guided_backprop, the last in its "
        "configuration; no source says which the published localisation has"
    )


def epoch_words(settings: MkdSettings) -> str:
    """Which state is kept."""
    kept = "the one with the least map on held-out normals" if settings.held_out else "the last"
    return f"{kept}; the official code tests a saved one, every 50th, that is typed in by hand"


def foreign_source(settings: MkdSettings) -> str:
    """What the cloner of a source that no source of ours speaks of looks like."""
    if settings.teacher == "vgg16":
        return ""
    inside = "VGG-16's widths" if settings.cloner == "A" else f"{NARROW[0]} channels"
    return f"VGG-16's layout with {inside} inside and {settings.teacher}'s widths at the ends of its blocks"


def signed_taps(settings: MkdSettings) -> str:
    """What the cloner answers with where the source's taps have both signs."""
    if settings.taps == "raw" and not (settings.teacher in FACTS and facts_of(settings.teacher).signed):
        return ""
    return "no ReLU at the cloner's taps, as the source's have both signs"


def budget(settings: MkdSettings) -> str:
    """The length of the training, where it is another."""
    if settings.steps is None and settings.epochs == EPOCHS:
        return ""
    length = f"{settings.epochs} epochs" if settings.steps is None else f"{settings.steps} steps"
    return f"{length} ({CODE_MVTEC}: {EPOCHS} epochs)"


def weight_of_value(settings: MkdSettings) -> str:
    """Lambda, where it is in use and another."""
    if settings.loss == "direction_only" or settings.value_weight == VALUE_WEIGHT:
        return ""
    return f"{shown(settings.value_weight)} ({CODE_MVTEC}: {shown(VALUE_WEIGHT)})"


def noise_words(settings: MkdSettings) -> str:
    """SmoothGrad's noise, where there is one."""
    if settings.saliency != "smooth_grad":
        return ""
    if settings.smooth_noise == "official":
        return f"the same draws for all images ({CODE}: drawn anew for each image)"
    ours = f"{shown(SMOOTH_NOISE)} of the image's range, the same draws for all images"
    return f"{ours} ({CODE}: ({shown(SMOOTH_NOISE)} / range) squared, drawn anew for each image)"


def map_of_direction(settings: MkdSettings) -> str:
    """What the map is the gradient of, where the official code takes both terms whatever the loss."""
    if settings.loss != "direction_only":
        return ""
    return f"the gradient of the direction term ({CODE}: of both terms, whatever the loss)"


@dataclass(frozen=True, kw_only=True, slots=True)
class MkdSettings(DistillationSettings):
    """MKD. Sources: the official code's MVTec AD configuration, unless a comment says otherwise."""

    teacher: str = "vgg16"
    strides: tuple[int, ...] = (4, 8, 16, 32)  # pool2 to pool5
    image_size: int = 128
    epochs: int = EPOCHS
    batch_size: int = 64
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    scored: int = 3  # the deepest taps, of which the score and the map are made
    cloner: str = "B"  # B: 16 channels wide inside | A: as wide as VGG-16
    loss: str = "value_and_direction"  # | direction_only
    value_weight: float = VALUE_WEIGHT  # lambda
    normalised: bool = False  # ImageNet normalisation of the input; none for MVTec AD
    saliency: str = "gradient"  # gradient | smooth_grad | guided_backprop; READING: which the published numbers have
    smooth_noise: str = "relative"  # relative: 0.05 of the image's range | official: (0.05 / range) squared
    stretch: bool = False  # True, official code: each map clipped at its 99th percentile and stretched to [0, 1]

    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "saliency": SALIENCIES,
        "cloner": CLONERS,
        "loss": LOSSES,
        "smooth_noise": NOISES,
    }
    CONFLICTS: ClassVar = {"teacher": takes_maps_alone, "scored": more_than_taps}
    READINGS: ClassVar = {
        "saliency": saliency_words,
        "epoch kept": epoch_words,
        "cloner of this source": foreign_source,
        "signs": signed_taps,
    }
    SETTLED: ClassVar = {
        "teacher": Settled(CODE, ("vgg16",)),
        "strides": Settled(CODE, ((4, 8, 16, 32),)),
        "image_size": Settled(CODE_MVTEC, (128,)),
        "batch_size": Settled(CODE, (64,)),
        "precision": Settled(CODE, ("fp32",)),
        "learning_rate": Settled(CODE, (1e-3,)),
        "weight_decay": Settled(CODE, (0.0,)),
        "schedule": Settled(CODE, ("constant",)),
        "taps": Settled(CODE, ("raw",)),
        "drop_last": Settled(CODE, (False,)),
        "held_out": Settled(CODE, (0.0,)),
        "scored": Settled(CODE, (3,)),
        "cloner": Settled(CODE, ("B",)),
        "loss": Settled(CODE, ("value_and_direction",)),
        "normalised": Settled(CODE_MVTEC, (False,)),
        "stretch": Settled(CODE, (True,)),
    }
    DEPARTURES: ClassVar = {
        "budget": budget,
        "optimiser": words.departs(words.algorithm, "adam, betas 0.9 0.999", source=CODE),  # torch's own betas
        "cloner's norms": words.departs(words.own_norms, "momentum 0.1", source=CODE),
        "value_weight": weight_of_value,
        "smooth_noise": noise_words,
        "map": map_of_direction,
    }
    RANGES: ClassVar = {**DistillationSettings.RANGES, "scored": Range(1), "value_weight": Range(0)}


class Mkd(StudentTeacher[MkdSettings]):
    """A cloner learns a source's activations; the score is the loss, the map the score's gradient at the input."""

    def __init__(self, settings: MkdSettings, teacher: Backbone | None, device: torch.device) -> None:
        if teacher is not None and not settings.normalised:
            teacher = deepcopy(teacher)
            teacher.mean.zero_()
            teacher.std.fill_(1.0)
        super().__init__(settings, teacher, device)

    def build_student(self, teacher: Backbone) -> nn.Module:
        """The cloner."""
        signed = teacher.signed or self.settings.taps == "standardised"
        return Cloner(teacher, full_width=self.settings.cloner == "A", signed=signed)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Direction: sum over layers of 1 - cos, flattened. Value: lambda * sum over layers of the mean squares."""
        cloned = self.student(self.teacher.network.normalise(batch.images))
        terms = discrepancy(batch.teacher, cloned)
        if self.settings.loss == "direction_only":
            return {"direction": terms.direction.mean()}
        return {"direction": terms.direction.mean(), "value": self.settings.value_weight * terms.value.mean()}

    def networks(self, images: Tensor) -> tuple[Taps, Taps]:
        """The source's and the cloner's taps of `images` [N, 3, S, S]."""
        with torch.inference_mode(False), torch.no_grad():  # inference copies built here must serve gradients later
            images = images.clone()
            return self.teacher(images), self.cloned(images)

    def cloned(self, images: Tensor, rectify: Rectifier = F.relu) -> Taps:
        """The cloner's taps, at inference."""
        taps: Taps = self.folded_student(self.teacher.network.normalise(images), rectify)
        return taps

    def score(self, images: Tensor) -> Scores:
        """Image: the loss over the deepest taps. Pixel: its input gradient through source AND cloner, |.| summed over
        RGB, blurred, opened. Works under no_grad and inference_mode; leaves no gradient behind."""
        size = int(images.shape[-2]), int(images.shape[-1])
        with torch.inference_mode(False), torch.enable_grad():
            images = resized(images.detach().clone().to(self.device), self.settings.image_size)
            image, gradient = input_gradient(self.loss_of_images, images)
            maps = self.saliency(gradient)
            if self.settings.saliency == "smooth_grad":
                maps = self.smoothed(images)
        maps = gaussian_blur(maps, SIGMA)
        maps = grey_opening(maps)
        if maps.shape[-2:] != size:
            maps = F.interpolate(maps[:, None], size, mode="bilinear")[:, 0]
        return Scores(image=image, pixel=maps)

    def saliency(self, gradient: Tensor) -> Tensor:
        """The map [N, S, S] of an input gradient [N, 3, S, S]: |.| summed over RGB."""
        maps = gradient.abs().sum(dim=1)
        return stretched(maps, PERCENTILE) if self.settings.stretch else maps

    def smoothed(self, images: Tensor) -> Tensor:
        """The mean map [N, S, S] over noisy copies of `images` [N, 3, S, S]."""
        noise, deviation = self.noise(images), self.deviation(images)
        maps = smooth_saliency(
            lambda copies: self.saliency(input_gradient(self.loss_of_images, copies)[1]), images, noise, deviation
        )
        return stretched(maps) if self.settings.stretch else maps

    def loss_of_images(self, images: Tensor) -> Tensor:
        """The loss over the deepest taps, per image [N] float32; differentiable with respect to `images`."""
        settings = self.settings
        rectify = guided_relu if settings.saliency == "guided_backprop" else F.relu
        with autocast(settings.precision, self.device):
            source, cloned = self.teacher(images), self.cloned(images, rectify)
        terms = discrepancy(source[-settings.scored :], cloned[-settings.scored :])
        if settings.loss == "direction_only":
            return terms.direction
        return terms.direction + settings.value_weight * terms.value

    def noise(self, images: Tensor) -> Tensor:
        """Standard normal noise [samples, 3, S, S]: a function of the seed, the same for every image."""
        generator = chance(self.settings.seed, "smooth_grad", 0)
        return torch.randn((SMOOTH_SAMPLES, *images.shape[1:]), generator=generator).to(images.device)

    def deviation(self, images: Tensor) -> Tensor:
        """The standard deviation [N] of SmoothGrad's noise for `images` [N, 3, S, S]."""
        values = images.flatten(1)
        extent = (values.amax(dim=1) - values.amin(dim=1)).clamp(min=1e-6)
        return (SMOOTH_NOISE / extent).square() if self.settings.smooth_noise == "official" else SMOOTH_NOISE * extent


MKD = Entry(
    name="mkd",
    title="MKD",
    paper="Salehi et al., CVPR 2021, arXiv 2011.11108",
    presets={
        "paper": MkdSettings(),
        "standard": MkdSettings(
            teacher="resnet18",
            strides=(4, 8, 16),
            steps=2400,
            batch_size=2,
            schedule="one_cycle",
            normalised=True,  # as this teacher was trained
        ),
        "quick": MkdSettings(
            teacher="efficientnet_lite0",
            steps=200,
            batch_size=8,
            schedule="one_cycle",
            taps="standardised",
            value_weight=0.01,  # the official code's for data sets other than MVTec AD
            normalised=True,  # as this teacher was trained
            scored=4,
        ),
    },
    build=Mkd,
    variants={
        "official": {"normalised": False, "stretch": True, "smooth_noise": "official"},
        "official_guided_backprop": {
            "normalised": False,
            "stretch": True,
            "smooth_noise": "official",
            "saliency": "guided_backprop",
        },
        "smooth_grad": {"saliency": "smooth_grad"},
        "guided_backprop": {"saliency": "guided_backprop"},
        "direction_only": {"loss": "direction_only"},
        "full_width": {"cloner": "A"},
    },
)
