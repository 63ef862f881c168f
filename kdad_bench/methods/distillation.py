"""The frame that a student-teacher method fills in: it writes its student, its loss and its map.

Everything else is in `training`: seeds, batches, budget, precision, the frozen teacher, the cache of its features, the
step log, checkpoints and held-out selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import Attention, Backbone, build
from kdad_bench.methods.backbones.folding import Folded, channels_last
from kdad_bench.methods.protocol import Fitting, Scores
from kdad_bench.methods.resizing import resized
from kdad_bench.methods.training.chance import chance, seeded
from kdad_bench.methods.training.course import Drawing
from kdad_bench.methods.training.loop import autocast, distil, optimiser_of
from kdad_bench.methods.training.parting import Parts, set_apart
from kdad_bench.methods.training.settings import Batch, DistillationSettings, Taps, part_done
from kdad_bench.methods.training.teacher import Teacher

__all__ = [  # all that a method of this kind needs
    "Batch",
    "DistillationSettings",
    "Student",
    "StudentTeacher",
    "Taps",
    "autocast",
    "chance",
    "resized",
]

S = TypeVar("S", bound=DistillationSettings)


class StudentTeacher(Generic[S]):
    """The frame of a student-teacher detector: a method of this kind says what its student, loss and map are.

    `student` holds everything that learns, `teacher` nothing that does. A subclass defines `build_student`, `loss`,
    `networks` and `judge`; `fit` and `score` follow from them.
    """

    settings: S
    reads_teacher = True  # whether anything follows from the teacher's taps; without it no statistics of them are taken
    clean_taps = True  # whether the loss reads `batch.teacher`; without it the taps are neither computed nor kept

    def __init__(self, settings: S, teacher: Backbone | None, device: torch.device) -> None:
        if teacher is None or teacher.strides != tuple(settings.strides):
            have = "no teacher" if teacher is None else f"strides {teacher.strides}"
            raise ValueError(
                f"{type(self).__name__} needs a teacher with taps at strides {settings.strides}; got {have}"
            )
        self.settings, self.device = settings, device
        self.teacher = Teacher(teacher, settings.taps == "standardised").to(device)
        with seeded(settings.seed, device):
            self.student = self.build_student(teacher)
        if not isinstance(self.student, nn.Module):
            raise ValueError(f"{type(self).__name__}.build_student gives a {type(self.student).__name__}, no nn.Module")
        if settings.norm_momentum is not None:
            for module in self.student.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = settings.norm_momentum
        self.student = self.student.to(device).eval()
        self.student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.folded_student = Folded(self.student)
        self.module: nn.Module = nn.ModuleDict({"teacher": self.teacher, "student": self.student})

    def build_student(self, teacher: Backbone) -> nn.Module:
        """Everything that learns, with random weights from torch's global generator (seeded around this call)."""
        raise NotImplementedError(f"{type(self).__name__} builds no student")

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The named terms of the loss of one batch, scalars; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def networks(self, images: Tensor) -> Any:
        """What the networks say of `images` [N, 3, S, S] in [0, 1] at inference: the argument of `judge`."""
        raise NotImplementedError(f"{type(self).__name__} runs no networks")

    def judge(self, outputs: Any, size: tuple[int, int]) -> Scores:
        """Map at `size` and image score from what `networks` returned."""
        raise NotImplementedError(f"{type(self).__name__} gives no scores")

    def drawing(self, images: Tensor, total: int) -> Drawing | None:
        """All that `loss` draws on the CPU for each step of a fit of `total` on `images` [N, 3, S, S], on the device.

        Where that takes long, other processes do it beforehand: `Batch.drawn`. None: it is not worth it.
        """
        return None

    def learners(self) -> Sequence[nn.Module]:
        """The modules that `loss` calls and that learn: what `settings.compiled` compiles."""
        return (self.student,)

    def optimiser(self) -> torch.optim.Optimizer:
        """The optimiser of all of the student's parameters, from the settings."""
        return optimiser_of(self.student.parameters(), self.settings)

    def progress(self, step: int, total: int) -> float:
        """How far the schedule of the learning rate is in step `step` (from 1) of `total`, in [0, 1)."""
        return part_done(step, total, self.settings.schedule)

    def comparable(self, step: int, total: int) -> bool:
        """Whether the state after `step` may be the one kept for its mean map on held-out normals."""
        return True

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Train the student on `normal` [N, 3, H, W] float32 in [0, 1], images without a defect; then it can score."""
        fitting = fitting or Fitting()
        learnt, apart, _ = self.parted(normal, fitting)
        distil(self, learnt, fitting, held_out=apart.get("held_out"))
        self.folded_student.current()  # so that the first image waits for no more than any other

    def parted(self, normal: Tensor, fitting: Fitting) -> Parts:
        """`normal` [N, 3, H, W] as the networks see it, parted into what is learnt from and the shares set apart.

        Raises ValueError for no images.
        """
        if normal.ndim != 4 or len(normal) == 0:
            raise ValueError(f"fit needs images [N, 3, H, W] with N > 0; got {tuple(normal.shape)}")
        seen = resized(normal.to(self.device), self.settings.image_size)
        return set_apart(seen, self.settings, fitting.sources, fitting.categories)

    @torch.no_grad()
    def score(self, images: Tensor) -> Scores:
        """Scores of `images` [N, 3, H, W] float32 in [0, 1], each independent of the others."""
        size = int(images.shape[-2]), int(images.shape[-1])
        images = channels_last(resized(images.to(self.device), self.settings.image_size))  # once for all networks
        with autocast(self.settings.precision, self.device):
            outputs = self.networks(images)
        return self.judge(outputs, size)


class ChannelAffine(nn.Module):
    """A learnt scale and shift per channel: lets a student that ends in a ReLU answer with negative values."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Student(nn.Module):
    """A network of the teacher's architecture with random weights, that sees the images and answers with taps."""

    def __init__(self, teacher: Backbone, *, standardised: bool, attention: Attention | None = None) -> None:
        super().__init__()
        self.network = build(teacher.name, strides=teacher.strides, attention=attention, batch_norm=True)
        shifted = standardised and not teacher.signed
        self.heads = nn.ModuleList(
            ChannelAffine(channels) if shifted else nn.Identity() for channels in teacher.channels
        )

    def forward(self, images: Tensor) -> Taps:
        """Taps of `images` [N, 3, S, S] in [0, 1], shaped as the teacher's."""
        return tuple(head(tap) for head, tap in zip(self.heads, self.network(images), strict=True))
