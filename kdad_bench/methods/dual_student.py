"""DSKD (Yao & Gao 2024, arXiv 2402.00448) and BMKD (Liu et al., Computer and Modernization 2025(2):58-63,85).

One teacher, a forward student that sees the image, and a reverse student that restores the teacher's features from the
forward student's. Only the abstracts are public and no code is: everything beyond the layout is a reading. BMKD is DSKD
with attention in the forward student and a feature-fusion residual module between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdad_bench.kernels import dual_discrepancies, dual_distillation_loss, fuse_scales, gaussian_blur, image_scores
from kdad_bench.methods.backbones import Attention, Backbone, Cbam, Eca
from kdad_bench.methods.backbones.resnet import initialise
from kdad_bench.methods.distillation import Batch, DistillationSettings, Student, StudentTeacher, Taps
from kdad_bench.methods.protocol import BLURS, Entry, Scores
from kdad_bench.methods.reverse import Bottleneck, Decoder, Embedding, Fusion

ATTENTIONS: Mapping[str, Callable[[int], nn.Module] | None] = {"none": None, "eca": Eca, "cbam": Cbam}
READINGS = (
    "loss: cosine distance of flattened maps (RD4AD's code), both students and all scales alike",
    "bottleneck: fed by the forward student's three taps",
    "map: sum over students and scales, sigma 4; image score: its maximum",
    "training: RD4AD's optimiser, batch and epochs",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DualStudentSettings(DistillationSettings):
    """Every field but the teacher and the image size is a reading."""

    batch_size: int = 16
    optimiser: str = "adam"
    learning_rate: float = 0.005
    betas: tuple[float, float] = (0.5, 0.999)
    distance: str = "flattened"  # as RD4AD's official code | cosine: per pixel, eq. 1 of RD4AD
    sigma: float = 4.0  # of the blur, px of the map; RD4AD's, at 256 px
    attention: str = "none"  # none | eca | cbam, in every block of the forward student
    fusion: str = "plain"  # plain: RD4AD's bottleneck | ffrm: feature-fusion residual module, then one-class embedding
    fed_by: str = "student"  # whose features the bottleneck sees: student | teacher
    detach: bool = False  # whether the reverse student's gradient stops before the forward student
    over_scales: str = "sum"  # sum | product
    over_students: str = "sum"  # sum | product

    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "distance": ("cosine", "flattened"),
        "attention": tuple(ATTENTIONS),
        "fusion": ("ffrm", "plain"),
        "fed_by": ("student", "teacher"),
        "over_scales": ("sum", "product"),
        "over_students": ("sum", "product"),
    }
    READINGS: ClassVar = {"everything": lambda settings: "; ".join(READINGS)}
    RANGES: ClassVar = {**DistillationSettings.RANGES, "sigma": BLURS}


class ResidualFusion(nn.Module):
    """FFRM: u = ReLU(f_16 + r), where r fuses all three taps into the deepest's shape; then the one-class embedding."""

    def __init__(self, teacher: Backbone) -> None:
        super().__init__()
        deep = teacher.channels[2]
        self.fusion = Fusion(teacher)
        self.residual = nn.Sequential(nn.Conv2d(3 * deep, deep, 1, bias=False), nn.BatchNorm2d(deep))
        self.relu = nn.ReLU()
        self.embedding = Embedding(teacher, deep)
        initialise(self)

    def forward(self, taps: Taps) -> Tensor:
        """Taps at strides 4, 8, 16 -> [N, C_32, H / 32, W / 32]."""
        code: Tensor = self.embedding(self.relu(taps[2] + self.residual(self.fusion(taps))))
        return code


class DualStudents(nn.Module):
    """The forward student, what lies between, and the reverse student."""

    def __init__(self, teacher: Backbone, settings: DualStudentSettings) -> None:
        super().__init__()
        kind = ATTENTIONS[settings.attention]
        standardised = settings.taps == "standardised"
        self.forward_student = Student(teacher, standardised=standardised, attention=Attention(kind) if kind else None)
        self.bottleneck = ResidualFusion(teacher) if settings.fusion == "ffrm" else Bottleneck(teacher)
        self.decoder = Decoder(teacher, signed=teacher.signed or standardised)
        self.fed_by_teacher, self.detach = settings.fed_by == "teacher", settings.detach

    def forward(self, images: Tensor, teacher: Taps) -> tuple[Taps, Taps]:
        """(taps of the forward student, taps that the reverse student restores), each shaped as the teacher's."""
        seen: Taps = self.forward_student(images)
        fed = teacher if self.fed_by_teacher else seen
        if self.detach:
            fed = tuple(tap.detach() for tap in fed)
        restored: Taps = self.decoder(self.bottleneck(fed))
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


def build(settings: DualStudentSettings, teacher: Backbone | None, device: torch.device) -> DualStudent:
    """DSKD or BMKD, by the settings, with a frozen teacher whose taps are at strides 4, 8, 16."""
    return DualStudent(settings, teacher, device)


QUICK = DualStudentSettings(
    teacher="efficientnet_lite0",
    image_size=128,
    steps=60,
    batch_size=8,
    schedule="one_cycle",
    norm_momentum=0.1,
    sigma=2.0,  # as wide on 128 px as 4 on 256
)
SWITCHES: Mapping[str, Mapping[str, object]] = {
    "teacher_fed": {"fed_by": "teacher"},
    "detached": {"detach": True},
    "per_pixel": {"distance": "cosine"},
    "product_scales": {"over_scales": "product"},
    "product_students": {"over_students": "product"},
}

DSKD = Entry(
    name="dskd",
    title="DSKD (reading)",
    paper="Yao, Gao 2024, arXiv 2402.00448",
    presets={
        "paper": DualStudentSettings(),
        "quick": QUICK,
    },
    build=build,
    variants=SWITCHES,
)

BMKD = Entry(
    name="bmkd",
    title="BMKD (reading)",
    paper="Liu, Li, Ren, Liu, Wang, Computer and Modernization 2025(2):58-63,85",
    presets={
        "paper": DualStudentSettings(attention="eca", fusion="ffrm"),
        "quick": replace(QUICK, attention="eca", fusion="ffrm"),
    },
    build=build,
    variants={
        **SWITCHES,
        "attention_none": {"attention": "none"},
        "attention_cbam": {"attention": "cbam"},
        "plain_fusion": {"fusion": "plain"},
    },
)
