"""DSKD (Yao & Gao 2024, arXiv 2402.00448) and BMKD (Liu et al., Computer and Modernization 2025(2):58-63,85).

One teacher, a forward student that sees the image, and a reverse student that restores the teacher's features from the
forward student's. Only the abstracts are public and no code is: everything beyond the layout is a reading. BMKD is DSKD
with attention in the forward student and a feature-fusion residual module between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdad_bench.kernels import (
    Layers,
    dual_discrepancies,
    dual_distillation_loss,
    fuse_scales,
    gaussian_blur,
    image_scores,
)
from kdad_bench.methods.backbones import Attention, Backbone, Cbam, Eca
from kdad_bench.methods.backbones.resnet import initialise
from kdad_bench.methods.distillation import Batch, DistillationSettings, Student, StudentTeacher, Taps
from kdad_bench.methods.protocol import BLURS, Blur, Entry, Scores, Settled, shown
from kdad_bench.methods.reverse import REFUSED, Bottleneck, Decoder, Embedding, Fusion, in_words
from kdad_bench.methods.training import words

ATTENTIONS: Mapping[str, Callable[[int], nn.Module] | None] = {"none": None, "eca": Eca, "cbam": Cbam}
ATTENTION_IN_WORDS = {"none": "", "eca": "ECA", "cbam": "CBAM"}
FUSION_IN_WORDS = {
    "plain": "RD4AD's bottleneck",
    "ffrm": "a feature-fusion residual module and RD4AD's one-class embedding",
    "deepest": "RD4AD's one-class embedding alone",
}
FED_IN_WORDS = {"student": "the forward student", "teacher": "the teacher", "both": "forward student and teacher"}
DISTANCE_IN_WORDS = {
    "cosine": "mean over pixels of the cosine distance (STFPM's pyramid term)",
    "flattened": "cosine distance of flattened maps (RD4AD's code)",
}
ABSTRACT = "abstract"


def attention_in_words(settings: DualStudentSettings) -> str:
    """Where the forward student has attention, and of which kind."""
    kind = ATTENTION_IN_WORDS[settings.attention]
    return kind and f"{kind} after the last norm of every block of the forward student"


def embedding_in_words(settings: DualStudentSettings) -> str:
    """What lies between the students, and what it sees."""
    taps = "the deepest tap" if settings.fusion == "deepest" else "all taps"
    return f"{FUSION_IN_WORDS[settings.fusion]}, fed by {taps} of {FED_IN_WORDS[settings.fed_by]}"


def fed_by_the_teacher_alone(settings: DualStudentSettings) -> str:
    """What stands between the students, where nothing of the one reaches the other."""
    if settings.fed_by != "teacher":
        return ""
    return f"the teacher alone, nothing passes between the students ({ABSTRACT}: the module stands between them)"


def gradient_in_words(settings: DualStudentSettings) -> str:
    """How far the reverse student's gradient flows."""
    if settings.fed_by == "teacher":
        return "the reverse student's ends at the embedding, which sees only the teacher"
    return f"the reverse student's {'stops before' if settings.detach else 'flows into'} the forward student"


def map_in_words(settings: DualStudentSettings) -> str:
    """How the maps of both students and all scales become one, and the image's score."""
    fused = f"{settings.over_students} over students, {settings.over_scales} over scales"
    return f"{fused}, sigma {shown(settings.sigma)}; image score: its maximum"


def norms_in_words(settings: DualStudentSettings) -> str:
    """The momentum of the batch norms of either student."""
    return f"{words.norms(settings)}, the reverse student's {shown(settings.norm_momentum or words.NORM_MOMENTUM)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class DualStudentSettings(DistillationSettings):
    """Every field but the teacher is a reading; what is not said below is RD4AD's."""

    batch_size: int = 16
    optimiser: str = "adam"
    learning_rate: float = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    distance: str = "cosine"  # per pixel: the term that "pyramid matching" has in STFPM | flattened: RD4AD's code
    sigma: float = 4.0  # of the blur, px of the map; RD4AD's, at 256 px
    attention: str = "none"  # none | eca | cbam, in every block of the forward student
    # plain: RD4AD's bottleneck | ffrm: feature-fusion residual module, then one-class embedding | deepest: that alone
    fusion: str = "plain"
    fed_by: str = "student"  # whose features the bottleneck sees: student | teacher | both, side by side
    # whether the reverse student's gradient stops before the forward student. False: a secondary source says that the
    # embedding lets gradients flow both ways
    detach: bool = False
    over_scales: str = "sum"  # sum | product
    over_students: str = "sum"  # sum | product

    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "distance": tuple(DISTANCE_IN_WORDS),
        "attention": tuple(ATTENTIONS),
        "fusion": tuple(FUSION_IN_WORDS),
        "fed_by": tuple(FED_IN_WORDS),
        "over_scales": ("sum", "product"),
        "over_students": ("sum", "product"),
    }
    RANGES: ClassVar = {**DistillationSettings.RANGES, "sigma": BLURS}
    CONFLICTS: ClassVar = REFUSED
    BLUR: ClassVar = Blur("RD4AD's test code", 4.0, 256)
    READINGS: ClassVar = {
        "forward student": words.student,
        "attention": attention_in_words,
        "input": lambda settings: f"{settings.image_size} px",
        "taps": lambda settings: f"strides {shown(settings.strides)}, {settings.taps}",
        "loss": lambda settings: f"{DISTANCE_IN_WORDS[settings.distance]}, both students and all scales alike",
        "embedding": embedding_in_words,
        "gradient": gradient_in_words,
        "bottleneck and decoder": in_words,
        "map": map_in_words,
        "training": words.recipe,
        "students' norms": norms_in_words,
        "selection": words.selection,
    }
    SETTLED: ClassVar = {"teacher": Settled(ABSTRACT, ("resnet18",))}
    DEPARTURES: ClassVar = {"fed by": fed_by_the_teacher_alone}


@dataclass(frozen=True, kw_only=True, slots=True)
class BmkdSettings(DualStudentSettings):
    """DSKD's readings, with the two modules that the abstract of BMKD names."""

    attention: str = "eca"
    fusion: str = "ffrm"

    DEPARTURES: ClassVar = {
        **DualStudentSettings.DEPARTURES,
        "attention": lambda settings: (
            f"none ({ABSTRACT}: an attention module in the forward student)" if settings.attention == "none" else ""
        ),
        "fusion": lambda settings: (
            f"{FUSION_IN_WORDS[settings.fusion]} ({ABSTRACT}: a feature-fusion residual module between the students)"
            if settings.fusion != "ffrm"
            else ""
        ),
    }


class ResidualFusion(nn.Module):
    """FFRM: u = ReLU(f_16 + r), where r fuses all three taps into the deepest's shape; then the one-class embedding.

    With `fed` 2 the taps are those of two networks side by side, and f_16 is the first one's.
    """

    def __init__(self, teacher: Backbone, fed: int = 1) -> None:
        super().__init__()
        self.deep = teacher.channels[2]
        self.fusion = Fusion(teacher, fed)
        self.residual = Layers(nn.Conv2d(self.fusion.outputs, self.deep, 1, bias=False), nn.BatchNorm2d(self.deep))
        self.relu = nn.ReLU()
        self.embedding = Embedding(teacher, self.deep)
        initialise(self)

    def forward(self, taps: Taps) -> Tensor:
        """Taps at strides 4, 8, 16 -> [N, C_32, H / 32, W / 32]."""
        deepest = taps[2] if taps[2].shape[1] == self.deep else taps[2][:, : self.deep]
        code: Tensor = self.embedding(self.relu(deepest + self.residual(self.fusion(taps))))
        return code


class DeepestTap(nn.Module):
    """The one-class embedding of the deepest tap alone: "deep feature embedding" read as that and no more."""

    def __init__(self, teacher: Backbone, fed: int = 1) -> None:
        super().__init__()
        self.embedding = Embedding(teacher, fed * teacher.channels[2])
        initialise(self)

    def forward(self, taps: Taps) -> Tensor:
        """Taps at strides 4, 8, 16 -> [N, C_32, H / 32, W / 32]."""
        code: Tensor = self.embedding(taps[2])
        return code


BOTTLENECKS: Mapping[str, Callable[[Backbone, int], nn.Module]] = {
    "plain": Bottleneck,
    "ffrm": ResidualFusion,
    "deepest": DeepestTap,
}


class DualStudents(nn.Module):
    """The forward student, what lies between, and the reverse student."""

    def __init__(self, teacher: Backbone, settings: DualStudentSettings) -> None:
        super().__init__()
        kind = ATTENTIONS[settings.attention]
        standardised = settings.taps == "standardised"
        self.forward_student = Student(teacher, standardised=standardised, attention=Attention(kind) if kind else None)
        self.bottleneck = BOTTLENECKS[settings.fusion](teacher, 2 if settings.fed_by == "both" else 1)
        self.decoder = Decoder(teacher, signed=teacher.signed or standardised)
        self.fed_by, self.detach = settings.fed_by, settings.detach

    def forward(self, images: Tensor, teacher: Taps) -> tuple[Taps, Taps]:
        """(taps of the forward student, taps that the reverse student restores), each shaped as the teacher's."""
        seen: Taps = self.forward_student(images)
        handed = tuple(tap.detach() for tap in seen) if self.detach else seen
        if self.fed_by == "teacher":
            handed = teacher
        elif self.fed_by == "both":
            handed = tuple(torch.cat(pair, dim=1) for pair in zip(handed, teacher, strict=True))
        restored: Taps = self.decoder(self.bottleneck(handed))
        return seen, restored


class DualStudent(StudentTeacher[DualStudentSettings]):
    """Two students of inverted structure; where either departs from the teacher the image is anomalous."""

    def build_student(self, teacher: Backbone) -> nn.Module:
        return DualStudents(teacher, self.settings)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Sum over both students and all scales of 1 - cos, of flattened maps or the mean over pixels (reading)."""
        seen, restored = self.student(batch.images, batch.teacher)
        return {"feature": dual_distillation_loss(batch.teacher, seen, restored, kind=self.settings.distance)}

    def networks(self, images: Tensor) -> tuple[Taps, Taps, Taps]:
        taps = self.teacher(images)
        seen, restored = self.folded_student(images, taps)
        return taps, seen, restored

    def judge(self, outputs: tuple[Taps, Taps, Taps], size: tuple[int, int]) -> Scores:
        """m_k = d(T, S_f)_k + d(T, S_r)_k, upsampled, summed over scales, blurred; the maximum (reading)."""
        maps = []
        for forward, reverse in dual_discrepancies(*outputs, kind="cosine"):
            maps.append(forward * reverse if self.settings.over_students == "product" else forward + reverse)
        pixel = gaussian_blur(fuse_scales(maps, size, mode=self.settings.over_scales), self.settings.sigma)
        return Scores(image_scores(pixel), pixel)


QUICK: Mapping[str, Any] = {
    "teacher": "efficientnet_lite0",
    "image_size": 128,
    "steps": 60,
    "batch_size": 8,
    "schedule": "one_cycle",
    "norm_momentum": 0.1,
    "sigma": 2.0,  # as wide on 128 px as 4 on 256
}
STANDARD: Mapping[str, Any] = {"steps": 150, "batch_size": 8, "schedule": "one_cycle", "norm_momentum": 0.1}
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "teacher_fed": {"fed_by": "teacher"},
    "both_fed": {"fed_by": "both"},  # "inspired by group discussions": teacher and student both speak
    "deepest_tap": {"fusion": "deepest"},  # "deep feature embedding"
    "detached": {"detach": True},
    "flattened": {"distance": "flattened"},
    "product_scales": {"over_scales": "product"},
    "product_students": {"over_students": "product"},
}

DSKD = Entry(
    name="dskd",
    title="DSKD (reading)",
    paper="Yao, Gao 2024, arXiv 2402.00448",
    presets={
        "paper": DualStudentSettings(),
        "standard": DualStudentSettings(**{**STANDARD, "steps": 600, "batch_size": 2}, learning_rate=0.01),
        "quick": DualStudentSettings(**QUICK, learning_rate=0.01),
    },
    build=DualStudent,
    variants=SWITCHES,
    reading=True,
)

BMKD = Entry(
    name="bmkd",
    title="BMKD (reading)",
    paper="Liu, Li, Ren, Liu, Wang, Computer and Modernization 2025(2):58-63,85",
    presets={"paper": BmkdSettings(), "standard": BmkdSettings(**STANDARD), "quick": BmkdSettings(**QUICK)},
    build=DualStudent,
    variants={
        **SWITCHES,
        "attention_none": {"attention": "none"},
        "attention_cbam": {"attention": "cbam"},
        "plain_fusion": {"fusion": "plain"},
    },
    reading=True,
)
