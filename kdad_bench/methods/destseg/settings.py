"""DeSTSeg's settings, and what its sources settle of them; see the package for the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kdad_bench.methods.backbones import FACTS
from kdad_bench.methods.backbones.resnet import LAYOUTS
from kdad_bench.methods.distillation import DistillationSettings
from kdad_bench.methods.protocol import Range, Settled
from kdad_bench.methods.training import words
from kdad_bench.methods.training.stages import last_of_first

CODE = "official code"
TILES = 8  # along a side: of an image that is its own texture
MOST_TURN = 5.0  # degrees: official code
TEXTURES_IN_WORDS = {
    "drawn": "drawn: clouds, weaves, cells and grain in random colours",
    "image": f"the image itself, its {TILES} x {TILES} tiles in another order",
}
TURNS_IN_WORDS = {
    "no": "not turned",
    "slight": f"turned by up to {MOST_TURN:g} degrees",
    "full": f"turned by quarters and by up to {MOST_TURN:g} degrees",
}


def without_an_encoder(settings: DestsegSettings) -> str:
    """Why the student cannot have the teacher's architecture, in words; "" if it can."""
    facts = FACTS.get(settings.teacher)
    lacks = facts is not None and 32 not in facts.channels
    return "it has no layers down to stride 32, where the student's encoder ends" if lacks else ""


def encoder_in_words(settings: DestsegSettings) -> str:
    """What the student has of a teacher, or of taps, that no source has."""
    facts = FACTS.get(settings.teacher)
    parts = []
    if facts is not None and facts.name not in LAYOUTS:
        norms = " with batch norms" if facts.name == "vgg16" else ""
        parts.append(f"{facts.title}'s architecture{norms} as the encoder, ResNet-18's blocks in the decoder")
        own = words.momentum_of_norms(settings)
        if settings.norm_momentum is None and own < words.NORM_MOMENTUM:
            parts.append(f"momentum {words.NORM_MOMENTUM:g} in the encoder, whose own is {own:g}")
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
    CONFLICTS: ClassVar = {"teacher": without_an_encoder}
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
        "student's norms": words.departs(words.own_norms, "momentum 0.1", source=CODE),
        "selection": words.departs(words.selection, words.LAST_STEP, source=CODE),
    }

    def stages(self, total: int) -> Mapping[str, int]:
        """The student, then the head."""
        last = last_of_first(self.denoising, total)
        return {"student": last, "head": total - last}
