"""EfficientAD's settings, and what they say of themselves in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kdad_bench.methods.backbones import FACTS
from kdad_bench.methods.backbones.pdn import LAYOUTS, LOST, SIZES, WIDTH
from kdad_bench.methods.distillation import DistillationSettings
from kdad_bench.methods.protocol import Range, Settled, instead, shown, takes_maps_alone
from kdad_bench.methods.training import words
from kdad_bench.methods.training.settings import LONG

STEPS = 70_000
PDN = "PDN"  # the stage in which one is distilled
SIDE = 256  # px of the paper's images
PENALTIES_IN_WORDS: Mapping[str, str] = {"drawn": "on drawn images", "none": "none"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientAdSettings(DistillationSettings):
    """The paper's small form; a width of 128 and 384 features are those of its Table 5."""

    teacher: str = "pdn_small"  # a PDN with its published weights, or what one is distilled from here
    strides: tuple[int, ...] = (4,)  # of a PDN; of another teacher 8 and 16, its second and third layer
    steps: int | None = STEPS
    batch_size: int = 1
    optimiser: str = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    schedule: str = "late_drop"  # a tenth from step 66,500 on
    initial: str = "pytorch"  # random weights of student and autoencoder: pytorch (public code) | he
    network: str = "small"  # small | medium
    width: int = 128  # channels of the small form's first layer; the others follow
    features: int = 384  # outputs of the teacher and of the autoencoder, and half of the student's
    autoencoder: int = 64  # channels of its latent vector and of its decoder
    padding: bool = False  # the paper's tables pad; public code does while the teacher is distilled, and not later
    border: str = "zeros"  # what lies around a map without padding: zeros (public code) | nearest
    hard: float = 0.999  # p_hard: the share of differences that the student does not learn from
    penalty: str = "drawn"  # what the student must not imitate the teacher on: drawn | none (paper: ImageNet)
    distilling: float = 0.5  # share of the steps in which the PDN learns from a teacher that is none
    enlarged: int = 2  # how many times larger that teacher sees images than the PDN: 512 px beside 256
    solved: bool = False  # last layers by least squares at the end of their steps (no source): for short budgets
    validation: float = 0.1  # share of the normals that the maps' quantiles are of

    APART: ClassVar = ("validation", *DistillationSettings.APART)
    CHOICES: ClassVar = {
        **DistillationSettings.CHOICES,
        "initial": ("pytorch", "he"),
        "network": tuple(LAYOUTS),
        "border": ("zeros", "nearest"),
        "penalty": tuple(PENALTIES_IN_WORDS),
    }
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "image_size": Range(64, 8192),
        "width": Range(1, 1024),
        "features": Range(1, 4096),
        "autoencoder": Range(2, 1024),
        "hard": Range(0, 1, open_high=True),
        "distilling": Range(0, 1, open_high=True),
        "enlarged": Range(1, 4),
        "validation": Range(0, 0.9),
    }
    CONFLICTS: ClassVar = {"teacher": lambda settings: _other_network(settings)}
    READINGS: ClassVar = {
        "form": lambda settings: f"the {settings.network} one of the paper's two",
        "padding": lambda settings: "as in the paper's tables" if settings.padding else _border_in_words(settings),
        "quantiles": lambda settings: (
            f"of a share of {shown(settings.validation)} of the normals, which nothing learns from"
            if settings.validation
            else "of the images that the student learnt from (paper: of others)"
        ),
        "autoencoder": lambda settings: (
            ""
            if settings.image_size == SIDE
            else f"bottleneck and decoder scaled to {settings.image_size} px; the paper's are for {SIDE}"
        ),
        "hard features": lambda settings: "of each image by itself" if settings.batch_size > 1 else "",
    }
    SETTLED: ClassVar = {
        "teacher": Settled("paper", tuple(SIZES)),
        "strides": Settled("paper", ((8, 16),), lambda settings: settings.distilled),
        "image_size": Settled("paper", (SIDE,)),
        "taps": Settled("paper", ("raw",), lambda settings: settings.distilled),
        "batch_size": Settled("paper", (1,)),
        "learning_rate": Settled("paper", (1e-4,)),
        "weight_decay": Settled("paper", (1e-5,)),
        "schedule": Settled("paper", ("late_drop",)),
        "precision": Settled("paper", ("fp32",)),
        "initial": Settled("public code", ("pytorch",)),
        "width": Settled("paper", (128,)),
        "features": Settled("paper", (384,)),
        "autoencoder": Settled("paper", (64,)),
        "hard": Settled("paper", (0.999,)),
        "enlarged": Settled("paper", (2,), lambda settings: settings.distilled),
    }
    DEPARTURES: ClassVar = {
        "descriptor": lambda settings: (
            _distilling_in_words(settings) + " (paper: from WideResNet-101 on ImageNet, 60000 steps before)"
            if settings.distilled
            else ""
        ),
        "penalty": lambda settings: f"{PENALTIES_IN_WORDS[settings.penalty]} (paper: images of ImageNet)",
        "last layers": lambda settings: (
            "by least squares after their steps (paper: as all others)" if settings.solved else ""
        ),
        "optimiser": words.departs(words.algorithm, "adam, betas 0.9 0.999", source="paper"),
        "budget": lambda settings: _budget(settings),
        "late drop": lambda settings: _late_drop(settings),
        "selection": words.departs(words.selection, words.LAST_STEP, source="paper"),
        "incomplete batches": lambda settings: "left out (paper: none)" if settings.drop_last else "",
    }

    @property
    def distilled(self) -> bool:
        """Whether the PDN is distilled here: the teacher is no PDN."""
        return self.teacher not in SIZES

    def stages(self, total: int) -> Mapping[str, int]:
        """A PDN that is distilled here, with one step at the least where there are two to share; then the student."""
        if not self.distilled:
            return {}
        last = max(int(self.distilling * total), min(1, total - 1)) if self.distilling else 0
        return {PDN: last, "student": total - last}

    @property
    def distils_in_steps(self) -> bool:
        """Whether there is a step in which the PDN learns, of a training of two steps or more."""
        return self.stages(LONG if self.steps is None else self.steps).get(PDN, 0) > 0


def _distilling_in_words(settings: EfficientAdSettings) -> str:
    """Where the descriptors of a PDN come from that no file has."""
    if settings.distils_in_steps:
        return f"distilled here, on normal and drawn images, in a share of {shown(settings.distilling)} of the steps"
    last = ", but for the last layer, which is solved on normal and drawn images" * settings.solved
    return f"none is learnt, the PDN stays as random as it begins{last}"


def _late_drop(settings: EfficientAdSettings) -> str:
    """Where the rate drops, if that is not the last twentieth of the student's steps."""
    if settings.schedule != "late_drop":
        return ""
    if settings.steps is not None and settings.steps < 20:
        return "none, a twentieth of so few steps is less than one (paper: in the last of the student's)"
    among = "in the last twentieth of all steps, the PDN's among them (paper: of the student's)"
    return among if settings.distils_in_steps else ""


def _budget(settings: EfficientAdSettings) -> str:
    """The length of the training, where the student has not the paper's 70,000 steps of it."""
    said, settled = words.budget(settings), Settled("paper", (f"{STEPS} steps",))
    if not settings.distilled:
        return "" if settings.steps == STEPS else instead(said, settled)
    students = None if settings.steps is None else settings.stages(settings.steps)["student"]
    if students == STEPS:
        return ""
    return instead(f"{said}, {students} for the student" if settings.steps == STEPS else said, settled)


def _other_network(settings: EfficientAdSettings) -> str:
    """Why the teacher cannot be what these settings imitate, in words; "" if it can."""
    if settings.distilled:
        return takes_maps_alone(settings)
    have = (SIZES[settings.teacher], WIDTH, FACTS[settings.teacher].channels[4])
    asked = (settings.network, settings.width, settings.features)
    if asked == have:
        return ""
    return "it has {}; got {}".format(*("network {}, width {}, features {}".format(*one) for one in (have, asked)))


def _border_in_words(settings: EfficientAdSettings) -> str:
    """What stands for the outermost pixels, which a network without padding does not describe."""
    around = "zeros" if settings.border == "zeros" else "their outermost values"
    return f"none, as in public code (paper's tables: zeros around every layer); maps have {around} around them"


def grid_of(settings: EfficientAdSettings) -> int:
    """Rows of the networks' outputs."""
    return settings.image_size // 4 - (0 if settings.padding else LOST)
