"""FractalAD's settings, and the words that follow from them: what no source settles, and what differs from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kdad_bench.methods.backbones import FACTS
from kdad_bench.methods.distillation import DistillationSettings
from kdad_bench.methods.fractalad.ifs import ORBITS, SETTLING
from kdad_bench.methods.protocol import Range, Settled, shown, takes_maps_alone
from kdad_bench.methods.training import words

CODE = "official code"
STEPS = 1200  # 100 epochs of 12 steps: official code
TWICE_PUBLISHED = ("resnet50", "wide_resnet50_2")  # torchvision has two sets of weights of these
DECAY = {True: 1e-3, False: 1e-2}  # weight decay with and without distillation: official code


def switches(settings: FractalADSettings) -> str:
    """What the official code chooses by the category's name, which a method here does not learn."""
    kd, search = ("yes" if on else "no" for on in (settings.kd, settings.find_object))
    return f"distillation {kd}, object search {search}, the same for every category ({CODE}: a table by category)"


def budget(settings: FractalADSettings) -> str:
    """The length of the training, where it is another."""
    if settings.steps == STEPS:
        return ""
    length = f"{settings.epochs} epochs" if settings.steps is None else f"{settings.steps} steps"
    return f"{length} ({CODE}: {STEPS} steps, 100 epochs of 12)"


def decay(settings: FractalADSettings) -> str:
    """The weight decay, where it is not the one that goes with or without distillation."""
    due = DECAY[settings.kd]
    case = "with" if settings.kd else "without"
    return (
        "" if settings.weight_decay == due else f"{shown(settings.weight_decay)} ({CODE}: {due:g} {case} distillation)"
    )


def norms(settings: FractalADSettings) -> str:
    """The momentum of the batch norms, of the student if there is one and of the head."""
    head = words.own_norms(settings)
    student = words.norms(settings) if settings.kd else head
    return head if student == head else f"{student} in the student, {head} in the head"


def width_of_head(settings: FractalADSettings) -> str:
    """The width of the head, where it does not follow the teacher's."""
    width, facts = settings.head_width, FACTS.get(settings.teacher)
    follows = width is None or (facts is not None and width == facts.channels[settings.strides[0]])
    return "" if follows else f"{width} channels ({CODE}: as many as the shallowest tap has)"


def pasting(settings: FractalADSettings) -> str:
    """At which size anomalies are made: a method here is handed images, not files."""
    side = settings.image_size
    return f"at {side} x {side} px ({CODE}: at the image file's size, then reduced by Lanczos)"


def chaos_game(settings: FractalADSettings) -> str:
    """How a fractal's points are drawn."""
    orbits = min(ORBITS, settings.fractal_points)
    return f"{orbits} orbits side by side, the first {SETTLING} steps of each not drawn ({CODE}: one orbit, all drawn)"


def sampling(settings: FractalADSettings) -> str:
    """What an epoch is."""
    last = "without" if settings.drop_last else "with"
    return f"epochs are the images once each, {last} the incomplete batch ({CODE}: a list cycled to 391 items, without)"


def weights(settings: FractalADSettings) -> str:
    """Which of torchvision's weights a teacher has of which there are two."""
    if settings.teacher not in TWICE_PUBLISHED:
        return ""
    return f"torchvision's first ones unless a file is given ({CODE}: torchvision's DEFAULT, its second ones)"


def search(settings: FractalADSettings) -> str:
    """What happens to images for which the official code stops with an error or never ends."""
    if not settings.find_object:
        return ""
    return (
        "an image in which none is found is treated as without the search, patches are less than the image's side, a "
        f"patch that fits nowhere on the object is moved inwards ({CODE}: an error or an endless loop)"
    )


def foreign_teacher(settings: FractalADSettings) -> str:
    """Teachers that no source has."""
    if settings.teacher.startswith(("resnet", "wide_resnet")):
        return ""
    strides = ", ".join(map(str, settings.strides))
    return f"no source says where {settings.teacher} is tapped; here at strides {strides}"


@dataclass(frozen=True, kw_only=True, slots=True)
class FractalADSettings(DistillationSettings):
    """FractalAD. Sources: the official code, unless a comment says otherwise."""

    teacher: str = "resnet18"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    image_size: int = 256
    steps: int | None = STEPS  # 100 epochs of 12 steps, the data set cycled to 391 items, whatever its size
    batch_size: int = 32
    optimiser: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = DECAY[True]  # 1e-2 without knowledge distillation
    drop_last: bool = True
    kd: bool = True  # False: the head sees the teacher's features, no student, no distillation loss
    find_object: bool = False  # True: anomalies follow the object that stands out from the background
    head_width: int | None = None  # channels of the head's pyramid; None: as many as the shallowest tap has
    fractal_points: int = 100_000  # of the chaos game, per fractal

    CONFLICTS: ClassVar = {"teacher": takes_maps_alone}
    READINGS: ClassVar = {
        "taps": foreign_teacher,
        "student": lambda settings: words.student(settings) if settings.kd else "",
        "objects": search,
    }
    SETTLED: ClassVar = {
        "teacher": Settled(f"{CODE}'s default", ("resnet18",)),
        "strides": Settled(CODE, ((4, 8, 16, 32),)),
        "image_size": Settled(CODE, (256,)),
        "batch_size": Settled(CODE, (32,)),
        "precision": Settled(CODE, ("fp32",)),
        "learning_rate": Settled(CODE, (1e-3,)),
        "schedule": Settled(CODE, ("constant",)),
        "taps": Settled(CODE, ("raw",)),
        "fractal_points": Settled(CODE, (100_000,)),
    }
    DEPARTURES: ClassVar = {
        "switches": switches,
        "budget": budget,
        "optimiser": words.departs(words.algorithm, "adamw, betas 0.9 0.999", source=CODE),  # torch's own betas
        "norms": words.departs(norms, "momentum 0.1", source=CODE),
        "selection": words.departs(words.selection, words.LAST_STEP, source=CODE),
        "weight_decay": decay,
        "head_width": width_of_head,
        "pasting": pasting,
        "chaos game": chaos_game,
        "sampling": sampling,
        "teacher's weights": weights,
        "reduction": lambda settings: f"antialiased bilinear ({CODE}: by Lanczos in training)",
        "random numbers": lambda settings: (
            f"a generator for each sample, from the seed ({CODE}: fractals without a seed)"
        ),
    }
    RANGES: ClassVar = {
        **DistillationSettings.RANGES,
        "head_width": Range(1, 4096),
        "fractal_points": Range(1, 100_000_000),
    }
