"""FractalAD's networks, loss and score; see the package for the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdad_bench.kernels import attention_weightings, distillation_loss, image_scores
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.distillation import Batch, Student, StudentTeacher
from kdad_bench.methods.fractalad.anomaly import Pasting, levels_of, on_device
from kdad_bench.methods.fractalad.segmentation import SegmentationHead, segmentation_loss
from kdad_bench.methods.fractalad.settings import DECAY, FractalADSettings
from kdad_bench.methods.protocol import Entry, Scores


class StudentAndHead(nn.Module):
    """Everything that learns: the student network (None without distillation) and the segmentation head."""

    def __init__(self, network: nn.Module | None, head: SegmentationHead) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, images: Tensor, teacher_taps: Sequence[Tensor]) -> Tensor:
        """Logits [N, H, W] of `images` [N, 3, H, W]: head(CSAM(teacher, student)), or head(teacher)."""
        features = teacher_taps if self.network is None else weighted(teacher_taps, self.network(images))
        logits: Tensor = self.head(features, images.shape[-2:])
        return logits


def weighted(teacher_taps: Sequence[Tensor], student_taps: Sequence[Tensor]) -> list[Tensor]:
    """Cosine-similarity attention (CSAM): (1 - cos) / 2 per pixel, times the STUDENT's features; no gradient."""
    return attention_weightings(teacher_taps, student_taps)


class FractalAD(StudentTeacher[FractalADSettings]):
    """Distillation on clean images, and a head that learns to segment pasted fractals from the attention's output."""

    clean_taps = False  # the clean images are jittered with the augmented ones, so their taps cannot be kept

    def build_student(self, teacher: Backbone) -> nn.Module:
        """A student of the teacher's architecture from random weights, and the head."""
        network = Student(teacher, standardised=self.settings.taps == "standardised") if self.settings.kd else None
        return StudentAndHead(network, SegmentationHead(teacher.channels, self.settings.head_width))

    def learners(self) -> Sequence[nn.Module]:
        return tuple(self.student.children())

    def drawing(self, images: Tensor, total: int) -> Pasting:
        """The samples, made on the CPU."""
        settings = self.settings
        return Pasting(levels=levels_of(images), points=settings.fractal_points, find_object=settings.find_object)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """L = L_KD (clean images) + L_seg (anomalous images); L_seg does not reach the student."""
        networks = self.student
        assert isinstance(networks, StudentAndHead)
        drawn = batch.drawn or self.drawing(batch.images, batch.total).of_all(batch.generator)
        clean, pasted, masks = on_device(drawn, self.device)
        with torch.no_grad():
            pasted_taps = self.teacher(pasted)
        if networks.network is None:
            return {"segmentation": segmentation_loss(networks.head(pasted_taps, masks.shape[-2:]), masks)}
        with torch.no_grad():
            clean_taps = self.teacher(clean)
        # the clean images first: autocast would keep the casted weights of a pass without gradients
        distillation = distillation_loss(clean_taps, networks.network(clean), kind="cosine")
        with torch.no_grad():  # the attention is detached; the pass still moves the batch norms' statistics
            features = weighted(pasted_taps, networks.network(pasted))
        segmentation = segmentation_loss(networks.head(features, masks.shape[-2:]), masks)
        return {"distillation": distillation, "segmentation": segmentation}

    def networks(self, images: Tensor) -> Tensor:
        """Logits [N, S, S]."""
        taps = self.teacher(images)
        logits: Tensor = self.folded_student(images, taps)
        return logits

    def judge(self, outputs: Tensor, size: tuple[int, int]) -> Scores:
        """Pixel: sigmoid(logits); image: its MEAN, at the network's size (official code). No blur."""
        probability = outputs.float().sigmoid()
        scores = image_scores(probability, "mean")
        if probability.shape[-2:] != size:
            probability = nn.functional.interpolate(probability[:, None], size, mode="bilinear")[:, 0]
        return Scores(image=scores, pixel=probability)


PAPER = FractalADSettings()
STANDARD = FractalADSettings(
    strides=(4, 8, 16),
    steps=250,
    batch_size=4,
    schedule="one_cycle",
    norm_momentum=0.1,
)
QUICK = FractalADSettings(
    teacher="efficientnet_lite0",
    strides=(4, 8, 16),
    image_size=128,
    steps=150,
    batch_size=4,
    norm_momentum=0.1,
    schedule="one_cycle",
    weight_decay=DECAY[False],
    taps="standardised",
    kd=False,
    head_width=32,
    fractal_points=20_000,
)

FRACTALAD = Entry(
    name="fractalad",
    title="FractalAD",
    paper="Xia et al. 2023, arXiv 2301.12739",
    presets={"paper": PAPER, "standard": STANDARD, "quick": QUICK},
    build=FractalAD,
    variants={
        "kd": {"kd": True, "weight_decay": DECAY[True]},  # the default of `paper`; `quick` has it off
        "no_kd": {"kd": False, "weight_decay": DECAY[False]},  # official code: carpet, grid, leather, tile, wood
        "find_object": {"find_object": True},  # official code: capsule, pill, screw, toothbrush, zipper
    },
)
