"""DeSTSeg's losses, stages and score; see the package for the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import distillation_loss, fuse_scales
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.folding import Folded, channels_last
from kdad_bench.methods.destseg.networks import (
    DenoisingStudent,
    SegmentationHead,
    StudentAndHead,
    enlarged,
    products,
    quicken,
)
from kdad_bench.methods.destseg.pasting import Pasting, pasted_into, turned
from kdad_bench.methods.destseg.settings import DestsegSettings
from kdad_bench.methods.distillation import Batch, StudentTeacher, Taps
from kdad_bench.methods.protocol import Entry, Scores
from kdad_bench.methods.training.loop import optimiser_of
from kdad_bench.methods.training.stages import last_of_first, progress_in_stage
from kdad_bench.methods.training.words import NORM_MOMENTUM

LEAST = 1e-12  # of a probability whose root is taken

# ---- the losses


def at_size(shapes: Tensor, size: Sequence[int]) -> Tensor:
    """`shapes` [N, S, S] at `size`: 1 where the bilinear mean is at least a half."""
    return (enlarged(shapes[:, None], size)[:, 0] >= 0.5).float()


def focal_loss(logits: Tensor, shapes: Tensor, gamma: float) -> Tensor:
    """Mean of (1 - p)^gamma (-log p), p the probability of what is there (Lin et al. 2017); both [N, h, w]."""
    surprise = F.binary_cross_entropy_with_logits(logits, shapes, reduction="none")
    missed = 1 - (-surprise).exp()
    if gamma < 1:  # at 0, what a sure head comes to in float32, the power's slope is infinite
        missed = missed.clamp_min(LEAST)
    return (missed**gamma * surprise).mean()


def denoising_loss(clean: Taps, restored: Taps) -> Tensor:
    """The sum over images and taps of the mean over pixels of 1 - cos (official code: over images too, no mean)."""
    return distillation_loss(clean, restored, kind="cosine", weights=[float(len(clean[0]))] * len(clean))


class Destseg(StudentTeacher[DestsegSettings]):
    """A student that repairs features, and a head that sees where it had to."""

    def __init__(self, settings: DestsegSettings, teacher: Backbone | None, device: torch.device) -> None:
        super().__init__(settings, teacher, device)
        self.clean_taps = settings.turned == "no"  # those of turned images cannot be kept
        self.repairing = Folded(self.parts.network)

    @property
    def parts(self) -> StudentAndHead:
        """Student and head."""
        return cast(StudentAndHead, self.student)

    def build_student(self, teacher: Backbone) -> nn.Module:
        signed = teacher.signed or self.settings.taps == "standardised"
        head = SegmentationHead(sum(teacher.channels), self.settings.width)
        network = DenoisingStudent(teacher, signed=signed)
        quicken(network.encoder, NORM_MOMENTUM)
        return StudentAndHead(network, head)

    def learners(self) -> Sequence[nn.Module]:
        return tuple(self.parts.children())

    def optimiser(self) -> torch.optim.Optimizer:
        """One, with rates of their own for the head's parts. Who has no gradient at a stage does not move."""
        head, settings = self.parts.head, self.settings
        optimiser = optimiser_of(self.parts.network.parameters(), settings)
        optimiser.add_param_group({"params": list(head.body.parameters()), "lr": settings.body_rate})
        optimiser.add_param_group({"params": list(head.rest.parameters()), "lr": settings.head_rate})
        return optimiser

    def progress(self, step: int, total: int) -> float:
        """Each stage has a schedule of its own."""
        return progress_in_stage(step, total, last_of_first(self.settings.denoising, total), self.settings.schedule)

    def comparable(self, step: int, total: int) -> bool:
        """Before the head has learnt, its map says nothing."""
        return step > last_of_first(self.settings.denoising, total)

    def drawing(self, images: Tensor, total: int) -> Pasting:
        """Shapes and textures, which know nothing of the images."""
        return Pasting(side=images.shape[-1], textures=self.settings.textures)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """The student's term up to the boundary, then the head's two."""
        images, clean = self.seen(batch)
        samples = batch.drawn or self.drawing(images, batch.total).of(len(images), batch.generator)
        if self.settings.turned != "no":
            images = turned(images, samples.keys, self.settings.turned)
        pasted, shapes = pasted_into(images, samples)
        pasted = channels_last(pasted)
        if batch.step > last_of_first(self.settings.denoising, batch.total):
            return self.head_terms(pasted, shapes)
        if not clean:
            with torch.no_grad():
                clean = self.teacher(images)
        return {"denoising": denoising_loss(clean, self.parts.network(pasted))}

    def seen(self, batch: Batch) -> tuple[Tensor, Taps]:
        """Images and clean taps; of a lone image both twice, for norms over a batch need two."""
        if len(batch.images) > 1:
            return batch.images, batch.teacher
        return torch.cat([batch.images] * 2), tuple(torch.cat([tap] * 2) for tap in batch.teacher)

    def head_terms(self, pasted: Tensor, shapes: Tensor) -> dict[str, Tensor]:
        """Focal and L1 loss of the head on what the frozen networks make of `pasted`."""
        self.parts.network.eval()
        with torch.no_grad():
            features = products(self.teacher(pasted), self.repairing(pasted))
        logits = self.parts.head(features).float()
        target = at_size(shapes, logits.shape[-2:])
        return {
            "focal": focal_loss(logits, target, self.settings.gamma),
            "l1": (logits.sigmoid() - target).abs().mean(),
        }

    def networks(self, images: Tensor) -> Tensor:
        """Logits [N, h, w] at the finest tap."""
        logits: Tensor = self.folded_student(images, self.teacher(images))
        return logits

    def judge(self, outputs: Tensor, size: tuple[int, int]) -> Scores:
        """Pixel: sigmoid(logits), upsampled; image: the mean of its largest values at the network's size."""
        side = self.settings.image_size
        probability = outputs.float().sigmoid()
        whole = fuse_scales([probability], (side, side))
        image = whole.flatten(1).topk(min(self.settings.largest, side * side)).values.mean(1)
        return Scores(image, whole if size == (side, side) else fuse_scales([probability], size))


DESTSEG = Entry(
    name="destseg",
    title="DeSTSeg",
    paper="Zhang, Li, Li, Huang, Shan, Chen, CVPR 2023, arXiv 2211.11317",
    presets={
        "paper": DestsegSettings(),
        "standard": DestsegSettings(
            steps=240,
            batch_size=4,
            optimiser="adam",
            learning_rate=0.003,
            body_rate=0.01,
            head_rate=0.03,
            weight_decay=0.0,
            denoising=0.5,
            width=64,
            schedule="one_cycle",
        ),
        "quick": DestsegSettings(
            teacher="efficientnet_lite0",
            image_size=128,
            steps=120,
            batch_size=4,
            optimiser="adam",  # sgd and the paper's rates do not get the head anywhere in so few steps
            learning_rate=0.001,
            body_rate=0.01,
            head_rate=0.03,
            weight_decay=0.0,
            denoising=0.4,
            width=32,
            schedule="one_cycle",
            norm_momentum=0.1,
            largest=25,  # as much of 128 px as 100 of 256
        ),
    },
    build=Destseg,
    variants={
        "image": {"textures": "image"},
        "turned_slightly": {"turned": "slight"},  # official code: wood, zipper, cable
        "turned": {"turned": "full"},  # official code: bottle, grid, hazelnut, leather, tile, carpet, screw
    },
)
