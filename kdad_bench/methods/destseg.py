"""DeSTSeg: Zhang et al., "DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection", CVPR 2023,
arXiv 2211.11317.

A student, encoder and decoder, sees images with synthetic anomalies and learns the teacher's features of the clean
ones; then it is frozen, and a head learns to find the anomalies in the products of both networks' features. The paper
pastes photographs of textures (DTD); here textures are drawn. One augmentation for every category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import distillation_loss, fuse_scales
from kdad_bench.methods.backbones import FACTS, Backbone, build, facts_of
from kdad_bench.methods.backbones.folding import Folded, channels_last
from kdad_bench.methods.backbones.resnet import LAYOUTS, BasicBlock, Bottleneck, initialise
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, Taps
from kdad_bench.methods.drawn_textures import texture
from kdad_bench.methods.fractalad.ifs import Floats, Mask, uniform
from kdad_bench.methods.perlin_noise import random_shape
from kdad_bench.methods.protocol import Entry, Range, Scores, Settled
from kdad_bench.methods.training import words
from kdad_bench.methods.training.loop import optimiser_of
from kdad_bench.methods.training.stages import last_of_first, progress_in_stage

CODE = "official code"
DEEPEST = 32  # stride of the code between encoder and decoder
BLOCKS = 2  # of every stage of the decoder, and of the head's first
RATES = (6, 12, 18)  # of the head's dilated convolutions: official code, on 64 x 64
MOST_OF_THE_IMAGE = 0.8  # that shows through a pasted texture: official code
TILES = 8  # along a side: of an image that is its own texture
TEXTURES_IN_WORDS = {
    "drawn": "drawn: clouds, weaves, cells and grain in random colours",
    "image": f"the image itself, its {TILES} x {TILES} tiles in another order",
}
BORDER = 114 / 255  # of a turned image: official code
MOST_TURN = 5.0  # degrees: official code
TURNS_IN_WORDS = {
    "no": "not turned",
    "slight": f"turned by up to {MOST_TURN:g} degrees",
    "full": f"turned by quarters and by up to {MOST_TURN:g} degrees",
}


def encoder_in_words(settings: DestsegSettings) -> str:
    """What the student has of a teacher, or of taps, that no source has."""
    facts = FACTS.get(settings.teacher)
    parts = []
    if facts is not None and facts.name not in LAYOUTS:
        norms = " with batch norms" if facts.name == "vgg16" else ""
        parts.append(f"{facts.title}'s architecture{norms} as the encoder, ResNet-18's blocks in the decoder")
    elif facts is not None and settings.teacher != "resnet18":
        parts.append(f"ResNet-18's blocks in the decoder for {facts.title}'s taps")
    if settings.taps == "standardised" or (facts is not None and facts.signed):
        parts.append("taps that can be negative are read through a 1 x 1 convolution")
    return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class DestsegSettings(DistillationSettings):
    """Defaults of the official code."""

    steps: int | None = 5000
    batch_size: int = 32
    weight_decay: float = 1e-4
    drop_last: bool = True
    denoising: float = 0.2  # share of the steps in which the student learns; the head has the others: 1000 of 5000
    body_rate: float = 0.1  # learning rate of the head's residual blocks; `learning_rate` is the student's
    head_rate: float = 0.01  # of the rest of the head
    width: int = 256  # channels of the head
    gamma: float = 4.0  # of the focal loss
    largest: int = 100  # pixels whose mean is the image score
    textures: str = "drawn"  # what is pasted: drawn | image
    turned: str = "no"  # normal images before anything is pasted: no | slight | full

    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "textures": tuple(TEXTURES_IN_WORDS),
        "turned": tuple(TURNS_IN_WORDS),
    }
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "denoising": Range(0, 1),
        "body_rate": Range(0, open_low=True),
        "head_rate": Range(0, open_low=True),
        "width": Range(1, 4096),
        "gamma": Range(0, 64),
        "largest": Range(1),
    }
    READINGS: ClassVar = {"student": encoder_in_words}
    SETTLED: ClassVar = {
        "teacher": Settled("paper and official code", ("resnet18",)),
        "strides": Settled("paper and official code", ((4, 8, 16),)),
        "image_size": Settled("paper and official code", (256,)),
        "taps": Settled(CODE, ("raw",)),
        "batch_size": Settled(CODE, (32,)),
        "learning_rate": Settled(CODE, (0.4,)),
        "body_rate": Settled(CODE, (0.1,)),
        "head_rate": Settled(CODE, (0.01,)),
        "weight_decay": Settled(CODE, (1e-4,)),
        "schedule": Settled(CODE, ("constant",)),
        "drop_last": Settled(CODE, (True,)),
        "precision": Settled(CODE, ("fp32",)),
        "denoising": Settled(CODE, (0.2,)),
        "width": Settled(CODE, (256,)),
        "gamma": Settled(CODE, (4.0,)),
        "largest": Settled(CODE, (100,)),
    }
    DEPARTURES: ClassVar = {
        "textures": lambda settings: (
            f"{TEXTURES_IN_WORDS[settings.textures]} (paper and official code: photographs of the Describable Textures "
            "Dataset)"
        ),
        "turning": lambda settings: (
            f"{TURNS_IN_WORDS[settings.turned]}, the same for every category ({CODE}: a table by category)"
        ),
        "optimiser": words.departs(words.algorithm, "sgd, momentum 0.9", source=CODE),
        "budget": words.departs(words.budget, "5000 steps", source=CODE),
        "student's norms": words.departs(words.norms, "momentum 0.1", source=CODE),
        "selection": words.departs(words.selection, "last step, all normals", source=CODE),
    }


# ---- the networks


def residual_stage(inputs: int, outputs: int) -> nn.Sequential:
    """ResNet-18's blocks at one resolution."""
    return nn.Sequential(*(BasicBlock(inputs if k == 0 else outputs, outputs, 1, 1, None) for k in range(BLOCKS)))


def begin_at_shortcuts(network: nn.Module) -> None:
    """Make each residual block of a ResNet its shortcut: a last norm of 0, as timm's networks begin (official code)."""
    for module in network.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
            nn.init.zeros_(last.weight)


class DenoisingStudent(nn.Module):
    """The teacher's architecture down to stride 32, from random weights, and a decoder of its taps; no shortcuts.

    Where the teacher's taps can be negative (`signed`) a 1 x 1 convolution reads each of the decoder's.
    """

    def __init__(self, teacher: Backbone, *, signed: bool) -> None:
        super().__init__()
        self.strides = teacher.strides
        deep = facts_of(teacher.name).channels[DEEPEST]
        widths = (deep, deep, *reversed(teacher.channels))
        self.stages = nn.ModuleList(residual_stage(inputs, outputs) for inputs, outputs in pairwise(widths))
        self.heads = nn.ModuleList(nn.Conv2d(c, c, 1) if signed else nn.Identity() for c in teacher.channels)
        initialise(self)
        self.encoder = build(teacher.name, strides=(DEEPEST,), batch_norm=True)
        begin_at_shortcuts(self.encoder)

    def forward(self, images: Tensor) -> Taps:
        """Taps of `images` [N, 3, S, S] in [0, 1], shaped as the teacher's, shallow first."""
        height, width = images.shape[-2:]
        x = self.stages[0](self.encoder(images)[0])
        found = []
        for stage, stride in zip(self.stages[1:], reversed(self.strides), strict=True):
            x = stage(enlarged(x, (height // stride, width // stride)))
            found.append(x)
        return tuple(head(tap) for head, tap in zip(self.heads, reversed(found), strict=True))


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """`maps` [N, C, h, w] at `size` (H, W), bilinear; as they are if they have it."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, (size[0], size[1]), mode="bilinear", align_corners=False)


def conv_norm_relu(inputs: int, outputs: int, size: int, rate: int = 1) -> nn.Sequential:
    """Convolution dilated by `rate`, batch norm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=rate * (size // 2), dilation=rate, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class AtrousPyramid(nn.Module):
    """ASPP (Chen et al. 2017, arXiv 1706.05587) without its 1 x 1 branch: three dilated convolutions and the mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = conv_norm_relu(width, width, 1)
        self.branches = nn.ModuleList(conv_norm_relu(width, width, 3, rate) for rate in RATES)
        self.fusion = conv_norm_relu((1 + len(RATES)) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        fused: Tensor = self.fusion(torch.cat([mean, *(branch(x) for branch in self.branches)], 1))
        return fused


class SegmentationHead(nn.Module):
    """Products of features in, logits out, at the finest tap's resolution."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.body = residual_stage(inputs, width)
        initialise(self)
        self.rest = nn.Sequential(AtrousPyramid(width), conv_norm_relu(width, width, 3), nn.Conv2d(width, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, h, w]."""
        logits: Tensor = self.rest(self.body(features))
        return logits[:, 0]


def products(teacher: Taps, student: Taps) -> Tensor:
    """[N, sum of C_k, h, w] at the finest tap: minus the product of the normalised features, channel by channel.

    Summed over a tap's channels it is minus the cosine.
    """
    size = teacher[0].shape[-2:]
    pairs = zip(teacher, student, strict=True)
    return torch.cat([enlarged(-F.normalize(t.float()) * F.normalize(s.float()), size) for t, s in pairs], 1)


class StudentAndHead(nn.Module):
    """Everything that learns."""

    def __init__(self, network: DenoisingStudent, head: SegmentationHead) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images: Tensor, teacher: Taps) -> Tensor:
        """Logits [N, h, w] of `images` [N, 3, S, S] and the teacher's taps of them."""
        logits: Tensor = self.head(products(teacher, self.network(images)))
        return logits


# ---- synthetic anomalies


def anomalous(images: Tensor, keys: Sequence[Sequence[int]], textures: str) -> tuple[Tensor, Tensor]:
    """(images with a texture pasted into a random shape [N, 3, S, S], the shapes [N, S, S], 0 or 1), float32.

    `images` in [0, 1]; `keys` are N sequences of whole numbers >= 0, the seed of each sample. A shape may be empty.
    """
    made = [sample(image, np.random.default_rng(tuple(key)), textures) for image, key in zip(images, keys, strict=True)]
    return torch.stack([pasted for pasted, _ in made]), torch.stack([shape for _, shape in made])


def sample(image: Tensor, rng: np.random.Generator, textures: str) -> tuple[Tensor, Tensor]:
    """One image [3, S, S] and one shape [S, S]; the image shows through the texture by up to 0.8."""
    side = image.shape[-1]
    shape = as_tensor(random_shape(side, rng), image)
    through = uniform(rng, 0, MOST_OF_THE_IMAGE)
    pasted = shuffled(image, rng) if textures == "image" else as_tensor(texture(side, rng), image)
    return torch.where(shape > 0, (1 - through) * pasted + through * image, image), shape


def as_tensor(array: Floats | Mask, like: Tensor) -> Tensor:
    """float32, where `like` is."""
    return torch.from_numpy(array.astype(np.float32)).to(like.device)


def shuffled(image: Tensor, rng: np.random.Generator) -> Tensor:
    """`image` [3, S, S] cut into 8 x 8 tiles, in another order; what is left over at the border stays."""
    side = image.shape[-1] // TILES
    order = torch.from_numpy(np.argsort(rng.random(TILES * TILES)))
    inner = image[:, : TILES * side, : TILES * side]
    tiles = inner.reshape(3, TILES, side, TILES, side).transpose(2, 3).reshape(3, -1, side, side)
    mixed = tiles[:, order].reshape(3, TILES, TILES, side, side).transpose(2, 3).reshape(inner.shape)
    found = image.clone()
    found[:, : TILES * side, : TILES * side] = mixed
    return found


def turned(images: Tensor, keys: Sequence[Sequence[int]], how: str) -> Tensor:
    """`images` [N, 3, S, S], each turned about its middle by an angle of its own key; bilinear, grey beyond."""
    angles = []
    for key in keys:
        rng = np.random.default_rng((*key, 1))  # another draw than the anomaly's
        quarters = 90 * int(4 * rng.random()) if how == "full" else 0
        angles.append(np.deg2rad(quarters + uniform(rng, -MOST_TURN, MOST_TURN)))
    cosines, sines = np.cos(angles), np.sin(angles)
    rows = [[cosines, -sines, 0 * sines], [sines, cosines, 0 * sines]]
    turns = torch.from_numpy(np.array(rows).transpose(2, 0, 1)).to(images)
    grid = F.affine_grid(turns, list(images.shape), align_corners=False)
    return F.grid_sample(images - BORDER, grid, mode="bilinear", align_corners=False) + BORDER


# ---- the losses


def at_size(shapes: Tensor, size: Sequence[int]) -> Tensor:
    """`shapes` [N, S, S] at `size`: 1 where the bilinear mean is at least a half."""
    return (enlarged(shapes[:, None], size)[:, 0] >= 0.5).float()


def focal_loss(logits: Tensor, shapes: Tensor, gamma: float) -> Tensor:
    """Mean of (1 - p)^gamma (-log p), p the probability of what is there (Lin et al. 2017); both [N, h, w]."""
    surprise = F.binary_cross_entropy_with_logits(logits, shapes, reduction="none")
    return ((1 - (-surprise).exp()) ** gamma * surprise).mean()


class Destseg(StudentTeacher[DestsegSettings]):
    """A student that repairs features, and a head that sees where it had to."""

    def __init__(self, settings: DestsegSettings, teacher: Backbone | None, device: torch.device) -> None:
        super().__init__(settings, teacher, device)
        self.clean_taps = settings.turned == "no"  # those of turned images cannot be kept
        self.repairing = Folded(self.parts.network)

    @property
    def parts(self) -> StudentAndHead:
        """Student and head."""
        return cast(StudentAndHead, self.student)

    def build_student(self, teacher: Backbone) -> nn.Module:
        signed = teacher.signed or self.settings.taps == "standardised"
        head = SegmentationHead(sum(teacher.channels), self.settings.width)
        return StudentAndHead(DenoisingStudent(teacher, signed=signed), head)

    def learners(self) -> Sequence[nn.Module]:
        return tuple(self.parts.children())

    def optimiser(self) -> torch.optim.Optimizer:
        """One, with rates of their own for the head's parts. Who has no gradient at a stage does not move."""
        head, settings = self.parts.head, self.settings
        optimiser = optimiser_of(self.parts.network.parameters(), settings)
        optimiser.add_param_group({"params": list(head.body.parameters()), "lr": settings.body_rate})
        optimiser.add_param_group({"params": list(head.rest.parameters()), "lr": settings.head_rate})
        return optimiser

    def progress(self, step: int, total: int) -> float:
        """Each stage has a schedule of its own."""
        return progress_in_stage(step, total, last_of_first(self.settings.denoising, total))

    def comparable(self, step: int, total: int) -> bool:
        """Before the head has learnt, its map says nothing."""
        return step > last_of_first(self.settings.denoising, total)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The student's term up to the boundary, then the head's two."""
        images, clean = self.seen(batch)
        keys = drawn_keys(len(images), batch.generator)
        if self.settings.turned != "no":
            images = turned(images, keys, self.settings.turned)
        pasted, shapes = anomalous(images, keys, self.settings.textures)
        pasted = channels_last(pasted)
        if batch.step > last_of_first(self.settings.denoising, batch.total):
            return self.head_terms(pasted, shapes)
        if not clean:
            with torch.no_grad():
                clean = self.teacher(images)
        return {"denoising": denoising_loss(clean, self.parts.network(pasted))}

    def seen(self, batch: Batch) -> tuple[Tensor, Taps]:
        """Images and clean taps; of a lone image both twice, for norms over a batch need two."""
        if len(batch.images) > 1:
            return batch.images, batch.teacher
        return torch.cat([batch.images] * 2), tuple(torch.cat([tap] * 2) for tap in batch.teacher)

    def head_terms(self, pasted: Tensor, shapes: Tensor) -> dict[str, Tensor]:
        """Focal and L1 loss of the head on what the frozen networks make of `pasted`."""
        self.parts.network.eval()
        with torch.no_grad():
            features = products(self.teacher(pasted), self.repairing(pasted))
        logits = self.parts.head(features).float()
        target = at_size(shapes, logits.shape[-2:])
        return {
            "focal": focal_loss(logits, target, self.settings.gamma),
            "l1": (logits.sigmoid() - target).abs().mean(),
        }

    def networks(self, images: Tensor) -> Tensor:
        """Logits [N, h, w] at the finest tap."""
        logits: Tensor = self.folded_student(images, self.teacher(images))
        return logits

    def judge(self, outputs: Tensor, size: tuple[int, int]) -> Scores:
        """Pixel: sigmoid(logits), upsampled; image: the mean of its largest values at the network's size."""
        side = self.settings.image_size
        probability = outputs.float().sigmoid()
        whole = fuse_scales([probability], (side, side))
        image = whole.flatten(1).topk(min(self.settings.largest, side * side)).values.mean(1)
        return Scores(image, whole if size == (side, side) else fuse_scales([probability], size))


def denoising_loss(clean: Taps, restored: Taps) -> Tensor:
    """The sum over images and taps of the mean over pixels of 1 - cos (official code: over images too, no mean)."""
    return distillation_loss(clean, restored, kind="cosine", weights=[float(len(clean[0]))] * len(clean))


def drawn_keys(count: int, generator: torch.Generator) -> list[list[int]]:
    """The seeds of `count` samples."""
    keys: list[list[int]] = torch.randint(2**31, (count, 2), generator=generator).tolist()
    return keys


DESTSEG = Entry(
    name="destseg",
    title="DeSTSeg",
    paper="Zhang, Li, Li, Huang, Shan, Chen, CVPR 2023, arXiv 2211.11317",
    presets={
        "paper": DestsegSettings(),
        "standard": DestsegSettings(
            steps=240,
            batch_size=4,
            optimiser="adam",
            learning_rate=0.003,
            body_rate=0.01,
            head_rate=0.03,
            weight_decay=0.0,
            denoising=0.5,
            width=64,
            schedule="one_cycle",
        ),
        "quick": DestsegSettings(
            teacher="efficientnet_lite0",
            image_size=128,
            steps=120,
            batch_size=4,
            optimiser="adam",  # sgd and the paper's rates do not get the head anywhere in so few steps
            learning_rate=0.003,
            body_rate=0.01,
            head_rate=0.03,
            weight_decay=0.0,
            denoising=0.4,
            width=32,
            schedule="one_cycle",
            norm_momentum=0.1,
            largest=25,  # as much of 128 px as 100 of 256
        ),
    },
    build=Destseg,
    variants={
        "image": {"textures": "image"},
        "turned_slightly": {"turned": "slight"},  # official code: wood, zipper, cable
        "turned": {"turned": "full"},  # official code: bottle, grid, hazelnut, leather, tile, carpet, screw
    },
)
