"""Calls of the Triton path that are planned once: each plans for given tensors and returns what answers calls alike.

Tensors come as one sequence: the teacher's taps, then those of each student. None of these handles more scales than
one launch does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdad_bench.kernels.triton_fusion import Fusing
from kdad_bench.kernels.triton_path import Loss, Maps, Taps, Weighting

Given = Sequence[Tensor]


def groups_of(tensors: Given, scales: int) -> tuple[Taps, Taps, Taps]:
    """Teacher, first and second student; the second is the first, the same object, if there is none."""
    given = tuple(tensors)
    first = given[scales : 2 * scales]
    return given[:scales], first, given[2 * scales :] or first


def maps(tensors: Given, scales: int, kind: str, weight: float) -> Callable[[Given], list[Tensor]]:
    """The maps of one student."""
    planned = Maps.of(*groups_of(tensors, scales), kind, False)
    return lambda given: list(planned.launch(*groups_of(given, scales), weight, None)[0])


def dual_maps(tensors: Given, scales: int, kind: str, weight: float) -> Callable[[Given], list[tuple[Tensor, Tensor]]]:
    """The maps of two students."""
    planned = Maps.of(*groups_of(tensors, scales), kind, False)
    return lambda given: list(zip(*planned.launch(*groups_of(given, scales), weight, None), strict=True))


def weighting(tensors: Given, scales: int) -> Callable[[Given], list[Tensor]]:
    """Attention weighting."""
    planned = Weighting.of(*groups_of(tensors, scales)[:2])
    return lambda given: list(planned.launch(*groups_of(given, scales)[:2]))


def whole_map(
    tensors: Given, scales: int, size: tuple[int, int], kind: str, weight: float, *options: Any
) -> Callable[[Given], tuple[Tensor, Tensor]]:
    """The whole map; `options` are mode, align_corners, sigma, radius, border, score and fuse_size."""
    mode, align_corners, sigma, radius, border, score, fuse_size = options
    zeroed = score == "max" and weight >= 0
    images, device = tensors[0].shape[0], tensors[0].device
    planned = Maps.of(*groups_of(tensors, scales), kind, zeroed)
    shapes = tuple((h, w) for _, h, w in planned.shapes)
    fused = Fusing.of(
        shapes, images, device, size, mode, align_corners, sigma, radius, border, score, zeroed, fuse_size
    )

    def answer(given: Given) -> tuple[Tensor, Tensor]:
        scores = given[0].new_empty(images, dtype=torch.float32) if zeroed else None
        found, _ = planned.launch(*groups_of(given, scales), weight, scores)
        out, made = fused.launch(found, scores)
        assert made is not None
        return out, made

    return answer


def loss(
    tensors: Given, scales: int, kind: str, weights: Sequence[float], wants: tuple[bool, bool]
) -> Callable[[Given], tuple[Tensor, list[Tensor | None]]]:
    """A pixel loss and the gradients to the tensors, in their order, of one student or two."""
    nothing: tuple[None, ...] = (None,) * scales

    def students(given: Given) -> list[Taps]:
        return [tuple(given[i : i + scales]) for i in range(scales, len(given), scales)]

    planned = Loss.of(tuple(tensors[:scales]), students(tensors), kind, weights, wants)

    def answer(given: Given) -> tuple[Tensor, list[Tensor | None]]:
        value, to_teachers, to_several = planned.launch(tuple(given[:scales]), students(given))
        return value, [grad for group in (to_teachers, *to_several) for grad in group or nothing]

    return answer
