"""The settings of every method that the one loop trains, and what a loss sees of a step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdad_bench.methods.protocol import Range, Settings

Taps = tuple[Tensor, ...]
LONG = 10**9  # steps, of which every stage has some that is asked for
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILED = ("off", "default", "reduce-overhead", "max-autotune")  # torch.compile's modes
WARM_UP = 0.02  # the part of a `warm_cosine` in which it rises: 100 of 5000 steps
SCHEDULES: Mapping[str, Callable[[float], float]] = {  # progress in [0, 1) -> factor of the learning rate
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + cos(pi * progress)),
    "late_drop": lambda progress: 1.0 if progress < 0.95 else 0.1,  # EfficientAD: a tenth in the last twentieth
    # up over the first tenth, then a cosine down: Smith & Topin 2019 without the momentum cycle
    "one_cycle": lambda progress: (
        0.1 + 9.0 * progress if progress < 0.1 else 0.5 * (1.0 + cos(pi * (progress - 0.1) / 0.9))
    ),
    # up from 0 over the first fiftieth, then a cosine down to a tenth: Dinomaly's code, 100 of 5000 steps
    "warm_cosine": lambda progress: (
        50.0 * progress if progress < WARM_UP else 0.1 + 0.45 * (1.0 + cos(pi * (progress - WARM_UP) / 0.98))
    ),
}


def part_done(step: int, total: int, schedule: str) -> float:
    """How far `schedule` is in step `step` (from 1) of `total`, in [0, 1).

    A lone step is at the height of a rise from 0, as it would learn nothing at its beginning.
    """
    return WARM_UP if total == 1 and schedule == "warm_cosine" else (step - 1) / total


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationSettings(Settings):
    """The settings of every method trained by this loop."""

    optimiser: str = "sgd"  # sgd | adam | adamw
    learning_rate: float = 0.4
    momentum: float = 0.9  # sgd
    betas: tuple[float, float] = (0.9, 0.999)  # adam, adamw
    weight_decay: float = 0.0
    schedule: str = "constant"  # of the learning rate: constant | cosine | late_drop | one_cycle | warm_cosine
    norm_momentum: float | None = None  # of the student's batch norms; None: the architecture's own
    taps: str = "raw"  # raw | standardised: per channel over the normal images, before any distance
    drop_last: bool = False  # leave out the incomplete batch at an epoch's end
    # torch.compile of the student's training pass: off | default | reduce-overhead (CUDA graphs) | max-autotune.
    # Off: on a CPU it does not pay (docs/performance.md).
    compiled: str = "off"
    held_out: float = 0.0  # share of the normals that select the epoch kept; 0: the last epoch, all normals

    APART: ClassVar[tuple[str, ...]] = ("held_out",)
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {
        **Settings.CHOICES,
        "optimiser": ("sgd", "adam", "adamw"),
        "schedule": tuple(SCHEDULES),
        "taps": ("raw", "standardised"),
        "compiled": COMPILED,
    }
    RANGES: ClassVar[Mapping[str, Range]] = {
        **Settings.RANGES,
        "epochs": Range(1),
        "learning_rate": Range(0, open_low=True),
        "momentum": Range(0, 1),
        "betas": Range(0, 1, open_high=True),
        "weight_decay": Range(0),
        "norm_momentum": Range(0, 1, open_low=True),
        "held_out": Range(0, 0.9),
    }

    def stages(self, total: int) -> Mapping[str, int]:
        """What learns one after the other -> in how many of `total` steps; none where all learn at once."""
        return {}

    def learning_from(self, images: int) -> tuple[str, ...]:
        """Smaller batches, images that no step sees, stages without a step, and a state that is chosen among fewer than
        two; held-out normals are not among the `images`."""
        if not images:
            return ()
        total, per_epoch = planned_steps(self, images)
        stages, asked = self.stages(total), self.stages(LONG)
        first = total - last_of(stages) if stages else 0  # its states are not compared
        states = total // per_epoch - first // per_epoch + (total % per_epoch > 0) if first < total else 0
        seen = total * min(self.batch_size, images)
        compared = "one, the last" if states else "none, the last is kept"
        steps = ", ".join(f"{steps} for the {name}" for name, steps in stages.items())
        said = {
            "batches": images < self.batch_size and f"of {images}, all there are (settings: {self.batch_size})",
            "images": seen < images and f"{seen} of {images} in the steps, which are less than an epoch",
            "steps": any(asked[name] and not steps for name, steps in stages.items()) and steps,
            "states compared": self.held_out and states < 2 and compared,
        }
        return tuple(f"{subject}: {words}" for subject, words in said.items() if words)


def last_of(stages: Mapping[str, int]) -> int:
    """The steps of the last of `stages`."""
    return list(stages.values())[-1]


def planned_steps(settings: DistillationSettings, images: int) -> tuple[int, int]:
    """(steps in all, steps per epoch) of a fit on `images` normals, held-out ones not counted among them.

    A batch is never larger than all images, so that `drop_last` never leaves out the only one of an epoch.
    """
    size = min(settings.batch_size, images)
    per_epoch = images // size if settings.drop_last else ceil(images / size)
    return (settings.epochs * per_epoch if settings.steps is None else settings.steps), per_epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What a loss sees of one step."""

    images: Tensor  # [B, 3, S, S] float32 in [0, 1], on the device
    teacher: Taps  # the frozen teacher's taps of `images`; () for a method without `clean_taps`
    step: int  # from 1
    generator: torch.Generator  # on the CPU, a function of seed and step: all chance of an augmentation
    total: int = 0  # steps of the whole fit
    drawn: Any = None  # what the method's `drawing` gives for this step, where that was done beforehand
