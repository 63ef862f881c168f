"""STFPM as official codes write such things: DataLoader, eager losses, one test image at a time, scikit-learn, a loop.

The baseline of `kdad-bench bench end-to-end`: the same data, teacher, student, optimiser and number of steps as the
harness, with none of its caches, kernels or metrics. Of the networks it shares the layout and the weights; its
convolutions and norms are PyTorch's own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from kdad_bench.datasets import Category
from kdad_bench.methods.backbones.efficientnet_lite import SameConv2d

THRESHOLDS = 200  # the usual AUPRO loop
FPR_LIMIT = 0.3


@dataclass(slots=True)
class Stopwatch:
    """Seconds by part."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to part `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


class Images(Dataset[Tensor]):
    """Decodes and resizes a file each time it is asked for."""

    def __init__(self, paths: tuple[Any, ...], size: int) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            resized = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255


def train_and_evaluate(
    category: Category,
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    *,
    size: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """(seconds by part: data, training step, inference, metrics; the metrics found) of one category on the CPU.

    `teacher` and `student` map images [N, 3, H, W] in [0, 1] to taps. Needs scikit-learn.
    """
    with kernels_off():
        return by_plain_pytorch(category, stock(teacher), stock(student), size, steps, batch_size, learning_rate,
                                weight_decay, seed)  # fmt: skip


@contextmanager
def kernels_off() -> Iterator[None]:
    """The layers of the networks are PyTorch's own inside."""
    before = os.environ.get("KDAD_KERNELS")
    os.environ["KDAD_KERNELS"] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ["KDAD_KERNELS"]
        else:
            os.environ["KDAD_KERNELS"] = before


def by_plain_pytorch(
    category: Category,
    teacher: torch.nn.Module,
    student: torch.nn.Module,
    size: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """See `train_and_evaluate`."""
    watch = Stopwatch()
    torch.manual_seed(seed)
    loader = DataLoader(
        Images(tuple(sample.path for sample in category.train), size), batch_size=batch_size, shuffle=True
    )
    optimiser = torch.optim.SGD(student.parameters(), learning_rate, momentum=0.9, weight_decay=weight_decay)
    teacher.eval()
    student.train()
    batches = iter(loader)
    for _ in range(steps):
        with watch.part("data"):
            images = next(batches, None)
            if images is None:
                batches = iter(loader)
                images = next(batches)
        with watch.part("training step"):
            step(teacher, student, optimiser, images)
    student.eval()
    maps, masks, labels = [], [], []
    for sample in category.test:
        with watch.part("data"):
            image = Images((sample.path,), size)[0][None]
            masks.append(read_masks(sample.masks, size))
        with watch.part("inference"):
            maps.append(anomaly_map(teacher, student, image, size))
        labels.append(sample.defect != "good")
    with watch.part("metrics"):
        figures = metrics(np.stack(maps), np.stack(masks), np.array(labels))
    return watch.seconds, figures


def stock(network: torch.nn.Module) -> torch.nn.Module:
    """A copy of `network` whose convolutions are PyTorch's own, without this package's matrix products for 1x1."""
    copy = deepcopy(network)
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SameConv2d) and child.kernel_size == (1, 1):
                own = torch.nn.Conv2d(child.in_channels, child.out_channels, 1, bias=False)
                own.weight = child.weight
                setattr(parent, name, own)
    return copy


def step(teacher: torch.nn.Module, student: torch.nn.Module, optimiser: torch.optim.Optimizer, images: Tensor) -> None:
    """One optimiser step with the loss written eagerly."""
    with torch.no_grad():
        wanted = teacher(images)
    loss = torch.zeros(())
    for t, s in zip(wanted, student(images), strict=True):
        loss = loss + (F.normalize(t, dim=1) - F.normalize(s, dim=1)).square().sum(1).mean()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()


@torch.no_grad()
def anomaly_map(teacher: torch.nn.Module, student: torch.nn.Module, image: Tensor, size: int) -> np.ndarray:
    """The map of one image [1, 3, H, W]: the product over scales, upsampled."""
    product = torch.ones(1, 1, size, size)
    for t, s in zip(teacher(image), student(image), strict=True):
        distance = (F.normalize(t, dim=1) - F.normalize(s, dim=1)).square().sum(1, keepdim=True)
        product = product * F.interpolate(distance, (size, size), mode="bilinear", align_corners=False)
    return product[0, 0].numpy()


def read_masks(paths: Sequence[Path], size: int) -> np.ndarray:
    """What any of an image's masks marks, at `size`, nearest; all false for a good image."""
    marked = np.zeros((size, size), bool)
    for path in paths:
        with Image.open(path) as image:
            marked |= np.array(image.convert("L").resize((size, size), Image.Resampling.NEAREST)) > 0
    return marked


def metrics(maps: np.ndarray, masks: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Image AUROC, pixel AUROC, AP and F1-max by scikit-learn, AUPRO by the usual loop over thresholds."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    flat, truth = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(truth, flat)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {
        "image_auroc": float(roc_auc_score(labels, maps.max((1, 2)))),
        "pixel_auroc": float(roc_auc_score(truth, flat)),
        "pixel_ap": float(average_precision_score(truth, flat)),
        "pixel_f1_max": float(f1.max()),
        "aupro_30": aupro(maps, masks),
    }


def aupro(maps: np.ndarray, masks: np.ndarray) -> float:
    """AUPRO@0.3 from THRESHOLDS evenly spaced thresholds: the usual code, an approximation of the exact value."""
    points = []
    for threshold in np.linspace(maps.min(), maps.max(), THRESHOLDS):
        binary = maps > threshold
        overlaps = []
        for found, mask in zip(binary, masks, strict=True):
            regions, count = ndimage.label(mask, structure=np.ones((3, 3)))
            overlaps += [found[regions == region].mean() for region in range(1, count + 1)]
        points.append(((binary & ~masks).sum() / (~masks).sum(), np.mean(overlaps)))
    points.sort()
    fpr, pro = np.array(points).T
    inside = fpr <= FPR_LIMIT
    if not inside.any():
        return 0.0
    return float(np.trapezoid(pro[inside], fpr[inside]) / fpr[inside].max()) if fpr[inside].max() > 0 else 0.0
