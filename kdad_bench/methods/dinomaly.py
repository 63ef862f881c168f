"""Dinomaly: Guo et al., "Dinomaly: The Less Is More Philosophy in Multi-Class Unsupervised Anomaly Detection", CVPR
2025, arXiv 2405.14325.

The official code's model for one class; words of one model for several categories compare with its other model, that of
all classes. Images are seen whole, where the paper crops them. Without a DINOv2 encoder,
the feature maps of a convolutional teacher take the place of its tokens: a deviation that such a row says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import distillation_loss, fuse_scales, gaussian_blur, pixel_discrepancies, pixel_discrepancy
from kdad_bench.methods.backbones import FACTS, Backbone
from kdad_bench.methods.backbones.vit import Perceptron, SelfAttention, Vit
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, Taps
from kdad_bench.methods.protocol import BLURS, WHOLE_IMAGES, Blur, Entry, Range, Scores, Settled
from kdad_bench.methods.training import words
from kdad_bench.methods.training.loop import optimiser_of
from kdad_bench.methods.training.stable_adamw import StableAdamW

VIT_STRIDES, PYRAMID_STRIDES = (14,), (4, 8, 16)
WIDEST_HEAD = 64  # channels; DINOv2's
EPSILON = 1e-8  # of the decoder's norms
DEVIATION, FARTHEST = 0.01, 0.03  # of the first weights, a normal distribution cut off
RISE = 50  # the first of so many parts of the steps is the warm-up of `warm_cosine`
CLIP = 0.1  # norm of all gradients together
CODE = "official code"


def is_vit(teacher: str) -> bool:
    """Whether a teacher of that name has tokens of its own."""
    return teacher in FACTS and VIT_STRIDES[0] in FACTS[teacher].channels


def tokens_in_words(settings: Any) -> str:
    """What stands for tokens where the teacher is no ViT."""
    if is_vit(settings.teacher):
        return ""
    facts = FACTS.get(settings.teacher)
    title = facts.title if facts else settings.teacher
    return f"feature maps of {title} on one grid, side by side ({CODE}: eight layers of a DINOv2 ViT)"


def warm_up_in_words(settings: Any) -> str:
    """How long the learning rate rises, where that is not the code's 100 of 5000 steps."""
    if settings.schedule != "warm_cosine" or settings.steps == 5000:
        return ""
    if settings.steps == 1:
        return "none, the only step has the full rate"
    rises = settings.steps is None or settings.steps > RISE
    return f"over the first fiftieth of the steps{'' if rises else ', a lone one of rate 0'}, as 100 are of 5000"


def warm_up_together(settings: Any) -> str:
    """How long the learning rate rises, where one model learns from all classes: that is not as in the code's."""
    if settings.schedule != "warm_cosine":
        return ""
    rise = "none" if settings.steps == 1 else "over the first fiftieth of the steps"
    return f"{rise} ({CODE}: over the first 100 of 10000)"


def epsilon_together(settings: Any) -> str:
    """What is added to StableAdamW's denominator, where one model learns from all classes."""
    return f"1e-8 in the optimiser's denominator ({CODE}: 1e-10)" if settings.optimiser == "stable_adamw" else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class DinomalySettings(DistillationSettings):
    """Defaults of the official code for one class at a time."""

    teacher: str = "dinov2_vitb14_reg"
    strides: tuple[int, ...] = VIT_STRIDES  # those of a teacher that is no ViT: 4 8 16 unless they are named
    image_size: int = 392
    steps: int | None = 5000
    batch_size: int = 16
    drop_last: bool = True
    optimiser: str = "stable_adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    schedule: str = "warm_cosine"
    layers: int = 8  # of the decoder; half of them restore each group
    dropout: float = 0.2  # of the bottleneck: its input, its hidden layer, its output
    mined: float = 0.9  # share of the places whose gradient is made small: those that are restored best
    mining_steps: int = 1000  # until it is so large, from 0 on
    easy: float = 0.1  # what their gradient is multiplied by
    sigma: float = 4.0  # of the blur, px of the map
    radius: int = 2  # where it is cut off, px
    top: float = 0.01  # share of the map's pixels whose mean is the image score

    TOGETHER: ClassVar = True
    BLUR: ClassVar = Blur(CODE, 4.0, 256)
    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "optimiser": (*DistillationSettings.CHOICES["optimiser"], "stable_adamw"),
    }
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "layers": Range(2, 64),
        "dropout": Range(0, 1, open_high=True),
        "mined": Range(0, 1, open_high=True),
        "mining_steps": Range(0),
        "easy": Range(0, 1),
        "sigma": BLURS,
        "radius": Range(0, 1000),
        "top": Range(0, 1, open_low=True),
    }
    READINGS: ClassVar = {"warm-up": warm_up_in_words}
    SETTLED: ClassVar = {
        "teacher": Settled(CODE, ("dinov2_vitb14_reg",)),
        "strides": Settled(CODE, (VIT_STRIDES,)),
        "taps": Settled(CODE, ("raw",)),
        "batch_size": Settled(CODE, (16,)),
        "drop_last": Settled(CODE, (True,)),
        "learning_rate": Settled(CODE, (2e-3,)),
        "weight_decay": Settled(CODE, (1e-4,)),
        "schedule": Settled(CODE, ("warm_cosine",)),
        "precision": Settled(CODE, ("fp32",)),
        "layers": Settled(CODE, (8,)),
        "dropout": Settled(CODE, (0.2,)),
        "mined": Settled(CODE, (0.9,)),
        "mining_steps": Settled(CODE, (1000,), lambda settings: settings.mined > 0),
        "easy": Settled(CODE, (0.1,), lambda settings: settings.mined > 0),
        "sigma": Settled(CODE, (4.0,)),
        "radius": Settled(CODE, (2,)),
        "top": Settled(CODE, (0.01,)),
    }
    DEPARTURES: ClassVar = {
        "tokens": tokens_in_words,
        "input": lambda settings: f"{WHOLE_IMAGES} at {settings.image_size} px ({CODE}: the central 392 of 448 px)",
        "map": lambda settings: (
            f"upsampled to its size at once, its edges repeated in the blur ({CODE}: by way of 392 px, with zeros)"
        ),
        "optimiser": words.departs(words.algorithm, "stable_adamw, betas 0.9 0.999", source=CODE),
        "budget": words.departs(words.budget, "5000 steps", source=CODE),
        "selection": words.departs(words.selection, words.LAST_STEP, source=CODE),
    }
    READINGS_TOGETHER: ClassVar = {"warm-up": lambda settings: ""}  # settled: 100 of 10,000 steps
    DEPARTURES_TOGETHER: ClassVar = {
        "budget": words.departs(words.budget, "10000 steps", source=CODE),
        "warm-up": warm_up_together,
        "epsilon": epsilon_together,
    }

    def __post_init__(self) -> None:
        """Raises ValueError that names the field, its value and what it may be."""
        if is_vit(self.teacher):
            object.__setattr__(self, "strides", VIT_STRIDES)  # frozen: a ViT has no other
        elif tuple(self.strides) == VIT_STRIDES:
            object.__setattr__(self, "strides", PYRAMID_STRIDES)
        super(DinomalySettings, self).__post_init__()  # slots: the class is made anew, and super() knows the first
        if self.layers % 2:
            raise ValueError(f"layers {self.layers} is not even: each of the two groups has half of them")
        if len(self.strides) < 2 and not is_vit(self.teacher):
            raise ValueError(f"strides {self.strides}: two groups take two strides of {self.teacher} or more")


class LinearAttention(SelfAttention):
    """Multi-head attention with elu + 1 in place of the softmax (Katharopoulos et al., ICML 2020).

    Each answer is a mean of all values, weighted by f(q) f(k): it cannot single out a place and copy it.
    """

    def mix(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[N, heads, T, C / heads] of each."""
        queries, keys = F.elu(queries) + 1, F.elu(keys) + 1
        mixed = queries @ (keys.transpose(2, 3) @ values)
        total = queries @ keys.sum(2).unsqueeze(3)
        return mixed / total.clamp_min(torch.finfo(total.dtype).tiny)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then the same with a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPSILON)
        self.attention = LinearAttention(width, heads_of(width))
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.perceptron = Perceptron(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        answer: Tensor = tokens + self.perceptron(self.norm2(tokens))
        return answer


class NoisyBottleneck(nn.Module):
    """A perceptron with dropout before, between and behind its layers: noise that the decoder learns to undo."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.fc1(self.dropout(tokens))))
        answer: Tensor = self.dropout(self.fc2(hidden))
        return answer


def heads_of(width: int) -> int:
    """As few heads as divide `width` into at most 64 channels each."""
    return next(heads for heads in range(1, width + 1) if width % heads == 0 and width // heads <= WIDEST_HEAD)


class VitTokens:
    """What the decoder sees of a ViT's taps and what it is to restore."""

    def __init__(self, teacher: Backbone) -> None:
        self.width = teacher.channels[0]

    def seen(self, taps: Taps) -> Tensor:
        """The mean of all layers [N, T, C], class and registers first."""
        *maps, others = taps
        return torch.cat([others.flatten(2), mean_of(maps).flatten(2)], 2).transpose(1, 2)

    def groups(self, taps: Taps) -> Taps:
        """The means of the shallow and of the deep half of the layers, as maps [N, C, h, w]."""
        half = (len(taps) - 1) // 2
        return mean_of(taps[:half]), mean_of(taps[half:-1])

    def restored(self, groups: Taps, taps: Taps) -> Taps:
        """Tokens [N, T, C] of each group as maps, without class and registers."""
        first = taps[-1].shape[3]
        return tuple(as_map(tokens[:, first:], taps[0]) for tokens in groups)


class PyramidTokens:
    """A convolutional teacher's maps in place of tokens: brought to one grid and laid side by side.

    The shallow half of them is one group and the rest the other; each is restored in its own channels.
    """

    def __init__(self, teacher: Backbone) -> None:
        self.shallow = (len(teacher.channels) + 1) // 2
        self.width = sum(teacher.channels)
        self.split = sum(teacher.channels[: self.shallow])

    def together(self, taps: Taps) -> Tensor:
        """All maps [N, C, h, w] on the grid of the deepest shallow one: finer ones averaged, others interpolated."""
        grid = (taps[self.shallow - 1].shape[2], taps[self.shallow - 1].shape[3])
        finer = [F.adaptive_avg_pool2d(tap, grid) for tap in taps[: self.shallow]]
        return torch.cat([*finer, *(F.interpolate(tap, grid, mode="bilinear") for tap in taps[self.shallow :])], 1)

    def seen(self, taps: Taps) -> Tensor:
        """All channels of each place [N, T, C]."""
        return self.together(taps).flatten(2).transpose(1, 2)

    def groups(self, taps: Taps) -> Taps:
        """The channels of the shallow and of the deep maps."""
        whole = self.together(taps)
        return whole[:, : self.split], whole[:, self.split :]

    def restored(self, groups: Taps, taps: Taps) -> Taps:
        """Of each group's tokens [N, T, C] the channels that it is to restore, as maps."""
        shallow, deep = (as_map(tokens, taps[self.shallow - 1]) for tokens in groups)
        return shallow[:, : self.split], deep[:, self.split :]


def mean_of(maps: Any) -> Tensor:
    """The mean of maps of one shape."""
    return torch.stack(tuple(maps)).mean(0)


def as_map(tokens: Tensor, like: Tensor) -> Tensor:
    """[N, h w, C] -> [N, C, h, w] with the grid of `like`."""
    count, _, width = tokens.shape
    return tokens.transpose(1, 2).reshape(count, width, *like.shape[2:])


class Restorer(nn.Module):
    """The noisy bottleneck and the decoder; restores each group of layers as one, and no layer by itself."""

    def __init__(self, teacher: Backbone, settings: DinomalySettings) -> None:
        super().__init__()
        self.tokens: VitTokens | PyramidTokens = (VitTokens if isinstance(teacher, Vit) else PyramidTokens)(teacher)
        self.bottleneck = NoisyBottleneck(self.tokens.width, settings.dropout)
        self.decoder = nn.ModuleList(DecoderLayer(self.tokens.width) for _ in range(settings.layers))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=DEVIATION, a=-FARTHEST, b=FARTHEST)
                nn.init.zeros_(module.bias)

    def forward(self, taps: Taps) -> Taps:
        """The restored groups [N, C, h, w], the shallow one first: it is the mean of the decoder's last layers."""
        tokens = self.bottleneck(self.tokens.seen(taps))
        answers = []
        for layer in self.decoder:
            tokens = layer(tokens)
            answers.append(tokens)
        half = len(answers) // 2
        return self.tokens.restored((mean_of(answers[half:]), mean_of(answers[:half])), taps)


class ScaledGradient(torch.autograd.Function):
    """The identity; its gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return upstream[0] * factor.to(upstream[0].dtype), None


class Dinomaly(StudentTeacher[DinomalySettings]):
    """A decoder that can attend to nothing in particular restores the encoder's features from noise; loosely."""

    def build_student(self, teacher: Backbone) -> nn.Module:
        return Restorer(teacher, self.settings)

    def optimiser(self) -> torch.optim.Optimizer:
        """StableAdamW by default, which the other methods do not know."""
        if self.settings.optimiser != "stable_adamw":
            return optimiser_of(self.student.parameters(), self.settings)
        settings = self.settings
        return StableAdamW(
            self.student.parameters(), settings.learning_rate, betas=settings.betas,
            weight_decay=settings.weight_decay, clip=CLIP,
        )  # fmt: skip

    def progress(self, step: int, total: int) -> float:
        """As for every method, but that the rate is at its height at the last step of its rise, not after it."""
        rising = -(-total // RISE)
        if self.settings.schedule == "warm_cosine" and rising > 1 and step <= rising:
            return (step - 1) / (rising - 1) / RISE
        return super().progress(step, total)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """1 - cos of each group's flattened maps, the mean over groups; places that are restored well pull little."""
        groups = self.targets(batch.teacher)
        share = self.mined_at(batch.step)
        pairs = zip(groups, self.student(batch.teacher), strict=True)
        restored = [loosened(group, answer, share, self.settings.easy) for group, answer in pairs]
        return {"feature": distillation_loss(groups, restored, kind="flattened") / len(groups)}

    def mined_at(self, step: int) -> float:
        """The share of easy places at `step` (from 1): it grows from 0."""
        reached = (step - 1) / self.settings.mining_steps if self.settings.mining_steps else 1.0
        return self.settings.mined * min(reached, 1.0)

    def targets(self, taps: Taps) -> Taps:
        """The encoder's two groups [N, C, h, w]."""
        found: Taps = self.student.tokens.groups(taps)  # type: ignore[union-attr,operator]
        return found

    def networks(self, images: Tensor) -> tuple[Taps, Taps]:
        taps = self.teacher(images)
        return self.targets(taps), self.folded_student(taps)

    def judge(self, outputs: tuple[Taps, Taps], size: tuple[int, int]) -> Scores:
        """1 - cos of both groups, upsampled with aligned corners, the mean, blurred; the mean of the largest pixels."""
        maps = pixel_discrepancies(*outputs, kind="cosine")
        pixel = fuse_scales(maps, size, align_corners=True) / len(maps)
        pixel = gaussian_blur(pixel, self.settings.sigma, radius=self.settings.radius)
        count = max(int(self.settings.top * size[0] * size[1]), 1)
        return Scores(pixel.flatten(1).topk(count).values.mean(1), pixel)


def loosened(target: Tensor, restored: Tensor, share: float, easy: float) -> Tensor:
    """`restored` [N, C, h, w] as it is, with `easy` times the gradient where it is nearer to `target` than elsewhere.

    That is everywhere but in the part 1 - `share` of the batch's places which has the largest 1 - cos.
    """
    with torch.no_grad():
        distance = pixel_discrepancy(target, restored.detach(), kind="cosine")  # [N, h, w]
        hardest = max(int(distance.numel() * (1 - share)), 1)
        least = distance.flatten().topk(hardest).values[-1]
        factor = torch.where(distance < least, easy, 1.0).unsqueeze(1)
    loose: Tensor = ScaledGradient.apply(restored, factor)  # type: ignore[no-untyped-call]
    return loose


DINOMALY = Entry(
    name="dinomaly",
    title="Dinomaly",
    paper="Guo, Lu, Zhang, Chen, Li, Liao, CVPR 2025, arXiv 2405.14325",
    presets={
        "paper": DinomalySettings(),
        "standard": DinomalySettings(
            teacher="dinov2_vits14_reg", image_size=224, steps=200, batch_size=8, mining_steps=40
        ),
        "quick": DinomalySettings(  # no DINOv2 weights are at hand: the embedded teacher's maps
            teacher="efficientnet_lite0",
            strides=(8, 16),
            taps="standardised",
            image_size=128,
            steps=50,
            batch_size=4,
            learning_rate=1e-3,
            layers=4,
            mining_steps=10,  # a fifth, as in the official code
        ),
    },
    build=Dinomaly,
)
