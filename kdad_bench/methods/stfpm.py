"""STFPM: Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021, arXiv 2103.04257.

The default is the official code's loss scale; the layer that the code computes and never uses is not built, and the
last epoch is kept unless `held_out` asks for the code's selection on held-out normals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from kdad_bench.kernels import anomaly_map, distillation_loss
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.distillation import Batch, DistillationSettings, Student, StudentTeacher, Taps
from kdad_bench.methods.protocol import Entry, Scores, Settled, takes_maps_alone
from kdad_bench.methods.training import words

LOSS_SCALES_IN_WORDS = {
    "official": "without 1/2, as the official code; eq. 2 has it",
    "paper": "with 1/2, as eq. 2; the official code has none",
    "batch_sum": "",  # no source of this method has it: a deviation
}
LOSS_SCALES = tuple(LOSS_SCALES_IN_WORDS)
CODES_SELECTION = "epoch of the least mean map on held-out normals, a share of 0.2"


@dataclass(frozen=True, kw_only=True, slots=True)
class StfpmSettings(DistillationSettings):
    """Defaults of the official code; its README trains for 200 epochs."""

    weight_decay: float = 1e-4  # official code; anomalib takes 1e-3
    loss_scale: str = "official"  # official: no 1/2 | paper: with 1/2 (eq. 2) | batch_sum: 1/2, summed over the batch

    CHOICES: ClassVar = {**DistillationSettings.CHOICES, "loss_scale": LOSS_SCALES}
    CONFLICTS: ClassVar = {"teacher": takes_maps_alone}
    READINGS: ClassVar = {
        "loss scale": lambda settings: LOSS_SCALES_IN_WORDS[settings.loss_scale],
        "student": words.student,
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper and official code", ("resnet18",)),
        "strides": Settled("paper and official code", ((4, 8, 16),)),
        "image_size": Settled("paper and official code", (256,)),
        "taps": Settled("eq. 1", ("raw",)),
        "batch_size": Settled("official code", (32,)),
        "learning_rate": Settled("paper and official code", (0.4,)),
        "weight_decay": Settled("official code", (1e-4,)),
        "schedule": Settled("official code", ("constant",)),
        "drop_last": Settled("official code", (False,)),
        "precision": Settled("official code", ("fp32",)),
    }
    DEPARTURES: ClassVar = {
        "loss scale": lambda settings: (
            "with 1/2, summed over the batch (official code and eq. 2: its mean)"
            if settings.loss_scale == "batch_sum"
            else ""
        ),
        "optimiser": words.departs(words.algorithm, "sgd, momentum 0.9", source="paper and official code"),
        "budget": words.departs(words.budget, "200 epochs", "100 epochs", source="official code's README and default"),
        "student's norms": words.departs(words.norms, "momentum 0.1", source="official code"),
        "selection": words.departs(words.selection, CODES_SELECTION, source="official code"),
    }


class Stfpm(StudentTeacher[StfpmSettings]):
    """A student of the teacher's architecture matches its normalised features at three scales."""

    def build_student(self, teacher: Backbone) -> nn.Module:
        return Student(teacher, standardised=self.settings.taps == "standardised")

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Eq. 1 to 3: the sum over scales of the mean over pixels of 1/2 |t/|t| - s/|s||^2, times the loss scale."""
        scale = {"official": 2.0, "paper": 1.0, "batch_sum": float(len(batch.images))}[self.settings.loss_scale]
        student = self.student(batch.images)
        return {"feature": distillation_loss(batch.teacher, student, weights=[scale] * len(student))}

    def networks(self, images: Tensor) -> tuple[Taps, Taps]:
        return self.teacher(images), self.folded_student(images)

    def judge(self, outputs: tuple[Taps, Taps], size: tuple[int, int]) -> Scores:
        """Eq. 4, as the official code: |t/|t| - s/|s||^2 upsampled to the finest tap (64 x 64 of 256 x 256), multiplied
        over scales, upsampled to the image; the image score is the maximum."""
        teacher, student = outputs
        height, width = teacher[0].shape[-2:]
        pixel, image = anomaly_map(teacher, student, size, weight=2.0, mode="product", fuse_size=(height, width))
        return Scores(image, pixel)


STFPM = Entry(
    name="stfpm",
    title="STFPM",
    paper="Wang, Han, Ding, Huang, BMVC 2021, arXiv 2103.04257",
    presets={
        "paper": StfpmSettings(),
        "standard": StfpmSettings(
            steps=1200,
            batch_size=2,
            learning_rate=0.8,  # this and the other rates and budgets of standard presets: docs/recipes.md
            schedule="one_cycle",
            norm_momentum=0.1,
        ),
        "quick": StfpmSettings(
            teacher="efficientnet_lite0",
            image_size=128,
            steps=80,
            batch_size=8,
            learning_rate=0.8,  # this and the other rates of quick presets: docs/recipes.md
            schedule="one_cycle",
            norm_momentum=0.1,
        ),
    },
    build=Stfpm,
    variants={
        "paper_scale": {"loss_scale": "paper"},
        "batch_sum": {"loss_scale": "batch_sum"},
        "held_out": {"held_out": 0.2},  # official code: 20 % of train/good select the epoch
    },
    published_variant="held_out",
)
