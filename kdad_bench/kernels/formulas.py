"""Every registered op as its formula in PyTorch's own ops: for graphs that leave this package and run without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

import kdad_bench.kernels.neighbours
import kdad_bench.kernels.ops  # noqa: F401 - registers torch.ops.kdad
from kdad_bench.kernels import reference


def constant(make: Callable[[], Tensor]) -> Tensor:
    """The tensor of `make`, which a trace around this call sees as a constant and not as the ops that made it."""
    with _disable_current_modes(), torch.inference_mode(False):
        return make()


def blurred(maps: Tensor, sigma: float, border: str, radius: int) -> Tensor:
    """The separable Gaussian as two matrix products: every runtime has those, and no border rule is left to it."""
    x = reference.wide(maps)

    def matrix(length: int) -> Tensor:
        return reference.blur_matrix(length, sigma, radius, border).to(x.dtype)

    down, across = (constant(partial(matrix, int(length))) for length in x.shape[1:])
    return down @ x @ across.T


def flattened(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [N], and the sums [N, 3] that a backward of the compiled op would read."""
    t, s = teacher.double().flatten(1), student.double().flatten(1)
    sums = torch.stack(((t * t).sum(1), (s * s).sum(1), (t * s).sum(1)), 1)
    return reference.flattened_cosine(teacher, student), sums


def nearest(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows: a product selects them, and their distances are taken from the residual directly."""
    apart = memory.square().sum(1) - 2 * (queries @ memory.T)  # [N, M], without |query|^2: the order is the same
    index = apart.topk(k, dim=1, largest=False).indices
    squared = (queries[:, None] - memory[index]).square().sum(2)
    return squared, index


def gradients(
    formula: Callable[..., tuple[Tensor, Tensor]], upstream: Tensor, teacher: Tensor, student: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    """Gradients to teacher and student by a closed formula; the last two of `rest` say which are wanted."""
    found = formula(upstream, teacher, student)
    return tuple(g if wish else g.new_empty(0) for g, wish in zip(found, rest[-2:], strict=True))  # type: ignore[return-value]


def pixel_gradients(
    upstream: Tensor, teacher: Tensor, student: Tensor, kind: str, weight: float, *wants: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of the map to teacher and student."""
    formula = partial(reference.pixel_discrepancy_gradients, kind=kind, weight=weight)
    return gradients(formula, upstream, teacher, student, *wants)


def fused(maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool) -> Tensor:
    """Maps resized and added or multiplied."""
    parts = [resized(reference.wide(m)[:, None], (size[0], size[1]), align_corners)[:, 0] for m in maps]
    total = parts[0]
    for part in parts[1:]:
        total = total * part if mode == "product" else total + part
    return total


def resized(images: Tensor, size: tuple[int, int], align_corners: bool = False, antialias: bool = False) -> Tensor:
    """Bilinear resizing of [N, C, h, w] to `size` as two matrix products: runtimes need not agree on corners."""
    if tuple(images.shape[2:]) == size:
        return images
    down, across = (
        constant(partial(resizing, int(length), to, align_corners, antialias))
        for length, to in zip(images.shape[2:], size, strict=True)
    )
    return down @ images @ across.T


@cache
def resizing(length: int, to: int, align_corners: bool, antialias: bool) -> Tensor:
    """The matrix [to, length] that resizes a column of `length` values: what PyTorch makes of the unit vectors."""
    return F.interpolate(
        torch.eye(length)[None, None], (to, length), mode="bilinear", align_corners=align_corners, antialias=antialias
    )[0, 0]


_kdad = torch.ops.kdad
# op -> the same arguments, the same results
FORMULAS: Mapping[Any, Callable[..., Any]] = {
    _kdad.pixel_discrepancy.default: lambda t, s, kind, weight: reference.pixel_discrepancy(
        t, s, kind=kind, weight=weight
    ),
    _kdad.dual_discrepancy.default: lambda t, a, b, kind, weight: reference.dual_discrepancy(
        t, a, b, kind=kind, weight=weight
    ),
    _kdad.pixel_discrepancy_gradients.default: pixel_gradients,
    _kdad.attention_weighting.default: reference.attention_weighting,
    _kdad.flattened_cosine.default: flattened,
    _kdad.flattened_cosine_gradients.default: partial(gradients, reference.flattened_cosine_gradients),
    _kdad.fuse_scales.default: fused,
    _kdad.gaussian_blur.default: blurred,
    _kdad.nearest.default: nearest,
}
