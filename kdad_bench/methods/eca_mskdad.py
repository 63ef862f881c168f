"""ECA-MSKDAD: Qiao & Xing, Computer Science 2024, 51(6A):230300223; a student with ECA that also sees distorted images.

No official code exists. What the paper leaves open is a reading. Its relative-distance loss
(eq. 15 to 18) does not train as printed (`rel_mode="literal"`; what was run is in docs/methods/eca_mskdad.md): the
default is its normalised form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdad_bench.kernels import anomaly_map, distillation_loss, pixel_discrepancy
from kdad_bench.methods.augmentation import Strengths, distorted
from kdad_bench.methods.backbones import FACTS, Attention, Backbone, Eca
from kdad_bench.methods.distillation import Batch, DistillationSettings, Student, StudentTeacher, Taps
from kdad_bench.methods.protocol import Entry, Range, Scores, Settled, shown, takes_maps_alone
from kdad_bench.methods.training import words

REL_MODES = ("normalised_mean", "raw_mean", "literal")
PAPERS_BUDGET = 300  # "iterations": of what is not said
FIGURE_11 = "figure 11 shows 64, 32, 16 px: layers 1 to 3 of 256 px, or the stem and layers 1 and 2 of 128 px"
ATTENTION_IN_WORDS = {
    "blocks": "ECA after the last norm of every block",
    "stages": "ECA after the last norm of each stage's last block",
    "none": "",
}


def iterations(settings: EcaMskdadSettings) -> str:
    """How the paper's 300 iterations are read; "" where the budget is another."""
    if (settings.epochs if settings.steps is None else settings.steps) != PAPERS_BUDGET:
        return ""
    return f"the paper's {PAPERS_BUDGET}, read as {'epochs' if settings.steps is None else 'optimiser steps'}"


def no_place_for_attention(settings: EcaMskdadSettings) -> str:
    """Why a student of the teacher's architecture cannot have attention, in words; "" if it can."""
    facts = FACTS.get(settings.teacher)
    if settings.attention == "none" or facts is None or 32 in facts.channels:
        return ""
    return f"{facts.title} has no blocks with norms to put it into; take none, or another teacher"


def maps_of(settings: EcaMskdadSettings) -> str:
    """The sides of the maps that are multiplied."""
    return ", ".join(str(settings.image_size // stride) for stride in settings.strides)


@dataclass(frozen=True, kw_only=True, slots=True)
class EcaMskdadSettings(DistillationSettings):
    """The paper's section 4, and readings where it is silent."""

    image_size: int = 128  # text; figure 11's maps are those of 256
    epochs: int = 300  # "iterations"
    weight_decay: float = 1e-4  # reading
    balance: float = 1.0  # lambda of eq. 11, reading: it scales the feature loss by (1 + lambda) / 2
    rel_mode: str = "normalised_mean"  # | raw_mean | literal: eq. 15 to 18
    attention: str = "blocks"  # ECA in every block | "stages": in each stage's last block | "none"
    joint_pass: bool = True  # x and x^a share their batch statistics
    distortion: float = 0.5  # SimCLR's strength of the colour distortion, reading
    score: str = "max"  # of the product map, as STFPM's code | "loss": eq. 2, means over pixels, summed over scales

    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "rel_mode": REL_MODES,
        "attention": ("blocks", "stages", "none"),
        "score": ("max", "loss"),
    }
    RANGES: ClassVar = {**DistillationSettings.RANGES, "balance": Range(0), "distortion": Range(0, 1)}
    CONFLICTS: ClassVar = {"teacher": takes_maps_alone, "attention": no_place_for_attention}
    READINGS: ClassVar = {
        "student": words.student,
        "scales": lambda settings: f"strides {shown(settings.strides)}, maps of {maps_of(settings)} px; {FIGURE_11}",
        "lambda": lambda settings: shown(settings.balance),
        "attention": lambda settings: ATTENTION_IN_WORDS[settings.attention],
        "augmentation": lambda settings: f"SimCLR's colour distortion at strength {shown(settings.distortion)}",
        "batch": lambda settings: "x and x^a in one pass" if settings.joint_pass else "x and x^a in two passes",
        "weight decay": lambda settings: shown(settings.weight_decay),
        "iterations": iterations,
        "student's norms": words.norms,
        "incomplete batches": lambda settings: "left out" if settings.drop_last else "learnt from",
        "precision": lambda settings: settings.precision,
        "selection": words.selection,
        "map": lambda settings: "bilinear, product, no blur",
    }
    SETTLED: ClassVar = {
        "teacher": Settled("section 4", ("resnet18",)),
        "image_size": Settled("section 4", (128,)),
        "rel_mode": Settled("eq. 15 to 18", ("literal",)),
        "score": Settled("eq. 2", ("loss",)),
        "taps": Settled("eq. 8", ("raw",)),
        "batch_size": Settled("section 4", (32,)),
        "learning_rate": Settled("section 4", (0.4,)),
        "schedule": Settled("section 4, one learning rate", ("constant",)),
    }
    DEPARTURES: ClassVar = {
        "attention": lambda settings: (
            "none (paper: after some of the batch norms)" if settings.attention == "none" else ""
        ),
        "optimiser": words.departs(words.algorithm, "sgd, momentum 0.9", source="section 4"),
        "budget": lambda settings: (
            "" if iterations(settings) else f"{words.budget(settings)} (section 4: {PAPERS_BUDGET} iterations)"
        ),
    }


class EcaMskdad(StudentTeacher[EcaMskdadSettings]):
    """Feature loss on an image and its distorted copy; the student keeps the teacher's distance between the two."""

    def build_student(self, teacher: Backbone) -> nn.Module:
        settings = self.settings
        attention = None if settings.attention == "none" else Attention(Eca, settings.attention == "blocks")
        return Student(teacher, standardised=settings.taps == "standardised", attention=attention)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """L = L_feature + L_rel, on x and on x^a; no weight between the two."""
        x = batch.images
        strengths = Strengths.simclr(self.settings.distortion)
        x_a = distorted(x, batch.generator, strengths).contiguous(memory_format=torch.channels_last)
        teacher, teacher_a = batch.teacher, self.teacher(x_a)
        if self.settings.joint_pass:
            both = self.student(torch.cat([x, x_a]))
            student, student_a = (tuple(tap.chunk(2)[half] for tap in both) for half in (0, 1))
        else:
            student, student_a = self.student(x), self.student(x_a)
        # eq. 8 and 9 are the same distance, so that eq. 11 is (1 + lambda) times either
        weights = [1 + self.settings.balance] * len(teacher)
        feature = distillation_loss(teacher, student, weights=weights)
        feature_a = distillation_loss(teacher_a, student_a, weights=weights)
        relative = relative_loss((teacher, teacher_a), (student, student_a), self.settings.rel_mode)
        return {"feature": feature, "feature_augmented": feature_a, "relative": relative}

    def networks(self, images: Tensor) -> tuple[Taps, Taps]:
        return self.teacher(images), self.folded_student(images)

    def judge(self, outputs: tuple[Taps, Taps], size: tuple[int, int]) -> Scores:
        """Eq. 12 without its mean, upsampled, and eq. 4: the product over scales."""
        teacher, student = outputs
        weight = 1 + self.settings.balance
        pixel, image = anomaly_map(teacher, student, size, weight=weight, mode="product")
        if self.settings.score == "loss":
            distances = [
                pixel_discrepancy(t, s, weight=weight).mean((1, 2)) for t, s in zip(teacher, student, strict=True)
            ]
            image = torch.stack(distances).sum(0)
        return Scores(image, pixel)


def relative_loss(teacher: tuple[Taps, Taps], student: tuple[Taps, Taps], mode: str) -> Tensor:
    """Eq. 15 to 18: sum over scales of (d_T - d_S)^2, d the distance of a network's features of x and x^a; batch mean.

    `literal`: d = |F(x) - F(x^a)|^2 of raw features, summed over the map; `raw_mean`: its mean over pixels;
    `normalised_mean`: that of features with unit length per pixel, the normaliser of eq. 12.
    """
    total = student[0][0].new_zeros((), dtype=torch.float32)
    for scale in range(len(teacher[0])):
        d_t, d_s = (distance(pair[0][scale], pair[1][scale], mode) for pair in (teacher, student))
        total = total + (d_t - d_s).square().mean()
    return total


def distance(features: Tensor, augmented: Tensor, mode: str) -> Tensor:
    """|F(x) - F(x^a)|^2 of each sample [N], by `mode`."""
    if mode == "normalised_mean":
        return pixel_discrepancy(features, augmented, weight=2.0).mean((1, 2))
    squares = pixel_discrepancy(features, augmented, kind="l2")
    return squares.mean((1, 2)) if mode == "raw_mean" else squares.sum((1, 2))


ECA_MSKDAD = Entry(
    name="eca_mskdad",
    title="ECA-MSKDAD",
    paper="Qiao, Xing, Computer Science 2024, 51(6A):230300223",
    presets={
        "paper": EcaMskdadSettings(),
        "standard": EcaMskdadSettings(
            steps=1200, batch_size=2, learning_rate=0.8, schedule="one_cycle", norm_momentum=0.1
        ),
        "quick": EcaMskdadSettings(
            teacher="efficientnet_lite0",
            steps=60,
            batch_size=8,
            learning_rate=0.8,
            schedule="one_cycle",
            norm_momentum=0.1,
        ),
    },
    build=EcaMskdad,
    variants={
        "figure_size": {"image_size": 256},
        "rel_raw_mean": {"rel_mode": "raw_mean"},
        "rel_literal": {"rel_mode": "literal"},
        "attention_stages": {"attention": "stages"},
        "attention_none": {"attention": "none"},
        "two_passes": {"joint_pass": False},
        "score_loss": {"score": "loss"},
    },
    published_variant="score_loss",
)
