"""Methods with one fault each, which the generic checks must reject."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.protocol import Fitting, Scores
from kdad_bench.methods.stfpm import Stfpm


class TrainsTheTeacher(Stfpm):
    """Gradient reaches the teacher, and the optimiser has its parameters."""

    def optimiser(self) -> torch.optim.Optimizer:
        self.teacher.network.requires_grad_(True)
        parameters = [*self.student.parameters(), *self.teacher.network.parameters()]
        return torch.optim.SGD(parameters, 0.1)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        taps = self.teacher.network(batch.images)
        return super().loss(Batch(images=batch.images, teacher=taps, step=batch.step, generator=batch.generator))


class MovesTheTeachersNorms(Stfpm):
    """The teacher's weights stay, but its norms run in training mode: only their buffers move."""

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        for module in self.teacher.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.training = True
        with torch.no_grad():
            self.teacher.network(batch.images)
        return super().loss(batch)


class FlipsTheSign(Stfpm):
    """Calls normal what is anomalous."""

    def judge(self, outputs: object, size: tuple[int, int]) -> Scores:
        scores = super().judge(outputs, size)  # type: ignore[arg-type]
        return Scores(-scores.image, -scores.pixel)


class NormalisesOverTheTestBatch(Stfpm):
    """Scales a batch's maps to [0, 1], so that an image's answer depends on its neighbours."""

    def judge(self, outputs: object, size: tuple[int, int]) -> Scores:
        _, pixel = super().judge(outputs, size)  # type: ignore[arg-type]
        pixel = (pixel - pixel.min()) / (pixel.max() - pixel.min())
        return Scores(pixel.flatten(1).amax(1), pixel)


class PeeksAtTheTestImages(Stfpm):
    """Keeps the mean of all maps it has ever made and subtracts it: it learns from test images."""

    seen = 0
    total: Tensor | None = None

    def judge(self, outputs: object, size: tuple[int, int]) -> Scores:
        _, pixel = super().judge(outputs, size)  # type: ignore[arg-type]
        self.total = pixel.sum(0) if self.total is None or self.total.shape != size else self.total + pixel.sum(0)
        self.seen += len(pixel)
        pixel = pixel - self.total / self.seen
        return Scores(pixel.flatten(1).amax(1), pixel)


class AdaptsItsNorms(Stfpm):
    """Scores with the student in training mode: its norms' buffers learn from test images."""

    def networks(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        self.student.train()
        return self.teacher(images), self.student(images)


class IgnoresTheSeed(Stfpm):
    """Takes its weights from the global generator."""

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        with torch.no_grad():
            for parameter in self.student.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        super().fit(normal, fitting)


class LearnsNothing(Stfpm):
    """Its fit does no step."""

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        return None


class CopiesTheTeacher(Stfpm):
    """The student is the teacher itself: the distance is zero everywhere."""

    def build_student(self, teacher: Backbone) -> nn.Module:
        return deepcopy(teacher)

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        return None
