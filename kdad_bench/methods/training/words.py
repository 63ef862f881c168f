"""Settings of the training loop in words, for what a method reads into its paper and where it departs from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdad_bench.methods.backbones import FACTS
from kdad_bench.methods.backbones.resnet import LAYOUTS
from kdad_bench.methods.protocol import Settled, instead, shown
from kdad_bench.methods.training.settings import LONG, DistillationSettings, last_of

Say = Callable[[Any], str]  # of a method's settings
LITE_NORM_MOMENTUM = 0.01  # EfficientNet's reference; PyTorch's norms, which all others have, take 0.1
NORM_MOMENTUM = 0.1
LAST_STEP = "last step, all normals it is given"  # a job may keep some from a method, or hand over a few


def algorithm(settings: DistillationSettings) -> str:
    """The optimiser with the one constant that it uses: `sgd, momentum 0.9`, `adam, betas 0.5 0.999`."""
    if settings.optimiser == "sgd":
        return f"sgd, momentum {shown(settings.momentum)}"
    return f"{settings.optimiser}, betas {shown(settings.betas)}"


def budget(settings: DistillationSettings) -> str:
    """`60 steps` or `200 epochs`, whichever rules."""
    return f"{settings.epochs} epochs" if settings.steps is None else f"{settings.steps} steps"


def selection(settings: DistillationSettings) -> str:
    """Which state is kept and what was learnt from."""
    if not settings.held_out:
        return LAST_STEP
    stages = settings.stages(LONG if settings.steps is None else settings.steps)
    if stages and not last_of(stages):  # states are compared in the last stage alone
        return f"last step, a share of {shown(settings.held_out)} of the normals held out for nothing"
    return f"epoch of the least mean map on held-out normals, a share of {shown(settings.held_out)}"


def momentum_of_norms(settings: DistillationSettings) -> float:
    """That of a student of the teacher's architecture."""
    if settings.norm_momentum is not None:
        return settings.norm_momentum
    return LITE_NORM_MOMENTUM if settings.teacher == "efficientnet_lite0" else NORM_MOMENTUM


def own_norms(settings: DistillationSettings) -> str:
    """The momentum of batch norms that are no copy of the teacher's, in words."""
    return f"momentum {shown(settings.norm_momentum or NORM_MOMENTUM)}"


def recipe(settings: DistillationSettings) -> str:
    """Everything that decides how the student is trained."""
    parts = [
        algorithm(settings),
        f"learning rate {shown(settings.learning_rate)}",
        f"weight decay {shown(settings.weight_decay)}",
        f"{settings.schedule} schedule",
        f"batch {settings.batch_size}",
        budget(settings),
        *(["incomplete batches left out"] if settings.drop_last else []),
        *([settings.precision] if settings.precision != "fp32" else []),
    ]
    return ", ".join(parts)


def departs(say: Say, *settled: str, source: str) -> Say:
    """What `say` says of the settings and what `source` has instead; "" where it says one of `settled`."""

    def words(settings: DistillationSettings) -> str:
        said = say(settings)
        return "" if said in settled else instead(said, Settled(source, settled))

    return words


def norms(settings: DistillationSettings) -> str:
    """The momentum of the student's batch norms, in words; "none" where the teacher's architecture has none."""
    facts = FACTS.get(settings.teacher)
    if facts is not None and 32 not in facts.channels:
        return "none"
    return f"momentum {shown(momentum_of_norms(settings))}"


def student(settings: DistillationSettings) -> str:
    """What a student of the teacher's architecture has that no paper says."""
    facts = FACTS.get(settings.teacher)
    if facts is None or (settings.teacher in LAYOUTS and settings.taps == "raw"):
        return ""
    parts = []
    if settings.teacher not in LAYOUTS:
        parts.append(f"{facts.title}'s architecture" + (" with batch norms" if settings.teacher == "vgg16" else ""))
    if settings.taps == "standardised" and not facts.signed:
        parts.append("a learnt scale and shift per channel at its taps")
    return ", ".join(parts)
