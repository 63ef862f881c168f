"""RD4AD: Deng & Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022, arXiv 2201.10703.

The loss is the official code's flattened cosine; the paper's per-pixel one is the variant `per_pixel`. Layers that the
code builds and never uses are left out. Widths follow the teacher's taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from kdad_bench.kernels import distillation_loss
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.distillation import Batch, DistillationSettings, StudentTeacher, Taps
from kdad_bench.methods.protocol import BLURS, Blur, Entry, Scores, Settled
from kdad_bench.methods.reverse import REFUSED, Bottleneck, Decoder, in_words, restoration_scores
from kdad_bench.methods.training import words

LOSSES_IN_WORDS = {
    "flattened": "of flattened maps, as the official code; eq. 1 is per pixel",
    "cosine": "per pixel, as eq. 1; the official code flattens the maps",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rd4adSettings(DistillationSettings):
    """Defaults of the official code."""

    teacher: str = "wide_resnet50_2"
    batch_size: int = 16
    optimiser: str = "adam"
    learning_rate: float = 0.005
    betas: tuple[float, float] = (0.5, 0.999)  # official code; anomalib takes 0.99
    sigma: float = 4.0  # of the blur, px of the map; official test code, at 256 px
    distance: str = "flattened"  # flattened: official code, one vector per sample and scale | cosine: eq. 1, per pixel

    CHOICES: ClassVar = {**DistillationSettings.CHOICES, "distance": tuple(LOSSES_IN_WORDS)}
    RANGES: ClassVar = {**DistillationSettings.RANGES, "sigma": BLURS}
    CONFLICTS: ClassVar = REFUSED
    BLUR: ClassVar = Blur("official test code", 4.0, 256)
    READINGS: ClassVar = {
        "loss": lambda settings: LOSSES_IN_WORDS[settings.distance],
        "bottleneck and decoder": in_words,
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper's main results and official code", ("wide_resnet50_2",)),
        "strides": Settled("paper and official code", ((4, 8, 16),)),
        "image_size": Settled("paper and official code", (256,)),
        "taps": Settled("eq. 1", ("raw",)),
        "distance": Settled("official code and eq. 1", ("flattened", "cosine")),
        "batch_size": Settled("official code", (16,)),
        "learning_rate": Settled("paper and official code", (0.005,)),
        "weight_decay": Settled("official code", (0.0,)),
        "schedule": Settled("official code", ("constant",)),
        "drop_last": Settled("official code", (False,)),
        "precision": Settled("official code", ("fp32",)),
        "sigma": Settled("official test code", (4.0,)),
    }
    DEPARTURES: ClassVar = {
        "optimiser": words.departs(words.algorithm, "adam, betas 0.5 0.999", source="official code"),
        "budget": words.departs(words.budget, "200 epochs", source="official code"),
        "student's norms": words.departs(words.own_norms, "momentum 0.1", source="official code"),
        "selection": words.departs(words.selection, words.LAST_STEP, source="official code"),
    }


class ReverseStudent(nn.Module):
    """The one-class bottleneck embedding and the decoder that restores the teacher's taps from it."""

    def __init__(self, teacher: Backbone, *, signed: bool) -> None:
        super().__init__()
        self.bottleneck = Bottleneck(teacher)
        self.decoder = Decoder(teacher, signed=signed)

    def forward(self, taps: Taps) -> Taps:
        """The teacher's taps as restored from their embedding, shallow first."""
        restored: Taps = self.decoder(self.bottleneck(taps))
        return restored


class Rd4ad(StudentTeacher[Rd4adSettings]):
    """A decoder restores the teacher's features from a compact embedding; it fails where the image is anomalous."""

    def build_student(self, teacher: Backbone) -> nn.Module:
        return ReverseStudent(teacher, signed=teacher.signed or self.settings.taps == "standardised")

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Eq. 2: the sum over scales of 1 - cos, of the flattened maps (code) or the mean over pixels (eq. 1)."""
        restored = self.student(batch.teacher)
        return {"feature": distillation_loss(batch.teacher, restored, kind=self.settings.distance)}

    def networks(self, images: Tensor) -> tuple[Taps, Taps]:
        taps = self.teacher(images)
        return taps, self.folded_student(taps)

    def judge(self, outputs: tuple[Taps, Taps], size: tuple[int, int]) -> Scores:
        """Eq. 3 and the official test code."""
        return restoration_scores(*outputs, size, self.settings.sigma)


RD4AD = Entry(
    name="rd4ad",
    title="RD4AD",
    paper="Deng, Li, CVPR 2022, arXiv 2201.10703",
    presets={
        "paper": Rd4adSettings(),
        "standard": Rd4adSettings(teacher="resnet18", steps=250, batch_size=8, schedule="one_cycle"),
        "quick": Rd4adSettings(
            teacher="efficientnet_lite0",
            image_size=128,
            steps=140,
            batch_size=8,
            learning_rate=0.01,
            schedule="one_cycle",
            sigma=2.0,  # as wide on 128 px as 4 on 256
        ),
    },
    build=Rd4ad,
    variants={"per_pixel": {"distance": "cosine"}},
)
