"""How far a student is from its teacher, per pixel and per sample; forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

import kdad_bench.kernels.ops  # noqa: F401 - registers torch.ops.kdad
from kdad_bench.kernels import dispatch, ready, reference
from kdad_bench.kernels.checks import KINDS, PIXEL_KINDS, check, check_scales
from kdad_bench.kernels.dispatch import uses_reference

MOST_SCALES = 4  # of a call that is kept: one launch of Triton's, see `triton_path`


def plain(*tensors: Tensor) -> bool:
    """Whether the tensors hold memory a kernel can be pointed at: not fake, no subclass, not to be negated and no zeros
    without memory, while nothing follows what is done with them. Raises NotImplementedError for those to be
    differentiated forwards."""
    tangent: Callable[[Tensor], Any] = forward_ad.unpack_dual
    if forward_ad._current_level >= 0 and any(tangent(t).tangent is not None for t in tensors):
        raise NotImplementedError("these kernels have no forward derivative; differentiate backwards, or a formula")
    return not dispatch.watched() and all(
        (type(t) is Tensor or type(t) is torch.nn.Parameter) and not t.is_neg() and not t._is_zerotensor()
        for t in tensors
    )


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records what is done with the tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def keep(op: str, key: Any, everything: Sequence[Tensor], scales: int, *options: Any) -> None:
    """Keep a call of `op`, a function of `triton_calls`, for calls alike, if it is one launch."""
    if key is None or scales > MOST_SCALES:
        return

    def plan() -> ready.Answer:
        from kdad_bench.kernels import triton_calls  # imports triton: only when it is used

        planned: ready.Answer = getattr(triton_calls, op)(everything, scales, *options)
        return planned

    ready.keep(op, key, everything, plan)


class PixelDiscrepancy(torch.autograd.Function):
    """The map; its backward reads the features again and writes the gradients, nothing normalised is kept."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, kind: str, weight: float) -> Tensor:
        """The map [N, H, W]."""
        ctx.save_for_backward(teacher, student)
        ctx.kind, ctx.weight = kind, weight
        made: Tensor = dispatch.ops_of(teacher).pixel_maps([teacher], [[student]], kind, weight)[0][0]
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to teacher and student under `upstream` [N, H, W]."""
        teacher, student = ctx.saved_tensors
        wants = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        to_teacher, to_student = dispatch.ops_of(teacher).pixel_gradients(
            teacher, student, dispatch.held(upstream).float(), ctx.kind, ctx.weight, wants
        )
        return to_teacher, to_student, None, None


def pixel_discrepancy(teacher: Tensor, student: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    """How far the student's feature vector is from the teacher's, at every pixel.

    "unit_l2": ½|t/|t| - s/|s||² in [0, 2], a zero vector staying zero (STFPM, Wang et al. 2021, eq. 1-2; for non-zero
    vectors the same number as 1 - cos). "cosine": 1 - cos in [0, 2], 1 where a vector is zero (RD4AD, Deng & Li 2022,
    eq. 1). "l2": |t - s|². All are taken from the residual directly: 1 - cos in float32 loses every digit below 1e-7.

    Args:
        teacher, student: [N, C, H, W] float32, float16 or bfloat16 (each its own), any strides. float64 takes the
            reference formula and returns float64.
        weight: factor on the map, e.g. 1 + λ of ECA-MSKDAD eq. 11.

    Returns: [N, H, W] float32. Differentiable in both inputs.

    Raises: ValueError for an unknown kind, other ranks, or shapes and devices that differ.
    """
    check(kind, PIXEL_KINDS, teacher, student)
    if not plain(teacher, student):
        traced: Tensor = torch.ops.kdad.pixel_discrepancy(teacher, student, kind, weight)
        return traced
    if uses_reference(teacher, student):
        return reference.pixel_discrepancy(teacher, student, kind=kind, weight=weight)
    if wants_gradient(teacher, student):
        recorded: Tensor = PixelDiscrepancy.apply(teacher, student, kind, weight)  # type: ignore[no-untyped-call]
        return recorded
    return dispatch.ops_of(teacher).pixel_maps([teacher], [[student]], kind, weight)[0][0]


def pixel_discrepancies(
    teacher_taps: Sequence[Tensor], student_taps: Sequence[Tensor], *, kind: str = "unit_l2", weight: float = 1.0
) -> list[Tensor]:
    """`pixel_discrepancy` at every scale: all maps in one launch on a GPU, one parallel region on a CPU.

    Args: one [N, C_k, H_k, W_k] per scale. Returns: one [N, H_k, W_k] float32 per scale. Differentiable.

    Raises: ValueError as there, and for no or unequal numbers of scales.
    """
    everything = [*teacher_taps, *student_taps]
    key = ready.alike((kind, weight, len(teacher_taps)), everything)
    if (made := ready.answer("maps", key, everything)) is not None:
        kept: list[Tensor] = made
        return kept
    check_scales(teacher_taps, student_taps)
    for t, s in zip(teacher_taps, student_taps, strict=True):
        check(kind, PIXEL_KINDS, t, s)
    if not plain(*everything) or uses_reference(*everything) or wants_gradient(*everything):
        pairs = zip(teacher_taps, student_taps, strict=True)
        return [pixel_discrepancy(t, s, kind=kind, weight=weight) for t, s in pairs]
    found = dispatch.ops_of(teacher_taps[0]).pixel_maps(teacher_taps, [[s] for s in student_taps], kind, weight)
    keep("maps", key, everything, len(teacher_taps), kind, weight)
    return [maps[0] for maps in found]


class FlattenedCosine(torch.autograd.Function):
    """Per-sample distances; keeps A, B, P of each sample for the backward."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        """The distances [N]."""
        sums, distance = dispatch.ops_of(teacher).flat_sums([teacher], [[student]])[0][0]
        ctx.save_for_backward(teacher, student, sums)
        kept: Tensor = distance
        return kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients to teacher and student under `upstream` [N]."""
        teacher, student, sums = ctx.saved_tensors
        to_teacher, to_student = dispatch.ops_of(teacher).flat_gradients(
            teacher, student, sums, dispatch.held(upstream).float(), 1.0, ctx.needs_input_grad
        )
        return to_teacher, to_student


def flattened_cosine(teacher: Tensor, student: Tensor) -> Tensor:
    """1 - cos between the C·H·W values of each sample, as RD4AD's code and MKD (Salehi et al. 2021, eq. 2) have it.

    Inputs as for `pixel_discrepancy`. Returns [N] float32 in [0, 2]; 1 where a sample is all zero. Differentiable in
    both.

    Raises: ValueError for other ranks, or shapes and devices that differ.
    """
    check("flattened", KINDS, teacher, student)
    if not plain(teacher, student):
        traced: Tensor = torch.ops.kdad.flattened_cosine(teacher, student)[0]
        return traced
    if uses_reference(teacher, student):
        return reference.flattened_cosine(teacher, student)
    if wants_gradient(teacher, student):
        recorded: Tensor = FlattenedCosine.apply(teacher, student)  # type: ignore[no-untyped-call]
        return recorded
    return dispatch.ops_of(teacher).flat_sums([teacher], [[student]])[0][0][1]


def dual_discrepancy(
    teacher: Tensor, a: Tensor, b: Tensor, *, kind: str = "unit_l2", weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The maps of two students against one teacher, which is read once (DSKD, BMKD: forward and reverse student).

    Arguments, range and errors as `pixel_discrepancy`; returns two maps [N, H, W] float32. Differentiable in all three.
    """
    check(kind, PIXEL_KINDS, teacher, a, b)
    if not plain(teacher, a, b):
        map_a, map_b = torch.ops.kdad.dual_discrepancy(teacher, a, b, kind, weight)
        return map_a, map_b
    if uses_reference(teacher, a, b):
        return reference.dual_discrepancy(teacher, a, b, kind=kind, weight=weight)
    if wants_gradient(teacher, a, b):
        return (
            PixelDiscrepancy.apply(teacher, a, kind, weight),  # type: ignore[no-untyped-call]
            PixelDiscrepancy.apply(teacher, b, kind, weight),  # type: ignore[no-untyped-call]
        )
    map_a, map_b = dispatch.ops_of(teacher).pixel_maps([teacher], [[a, b]], kind, weight)[0]
    return map_a, map_b


def dual_discrepancies(
    teacher_taps: Sequence[Tensor],
    a_taps: Sequence[Tensor],
    b_taps: Sequence[Tensor],
    *,
    kind: str = "unit_l2",
    weight: float = 1.0,
) -> list[tuple[Tensor, Tensor]]:
    """`dual_discrepancy` at every scale: all maps in one launch on a GPU, one parallel region on a CPU.

    Args: one [N, C_k, H_k, W_k] per scale. Returns: two [N, H_k, W_k] float32 per scale. Differentiable.

    Raises: ValueError as there, and for no or unequal numbers of scales.
    """
    everything = [*teacher_taps, *a_taps, *b_taps]
    key = ready.alike((kind, weight, len(teacher_taps), len(a_taps)), everything)
    if (made := ready.answer("dual_maps", key, everything)) is not None:
        kept: list[tuple[Tensor, Tensor]] = made
        return kept
    check_scales(teacher_taps, a_taps, b_taps)
    for t, a, b in zip(teacher_taps, a_taps, b_taps, strict=True):
        check(kind, PIXEL_KINDS, t, a, b)
    students = list(zip(a_taps, b_taps, strict=True))
    if not plain(*everything) or uses_reference(*everything) or wants_gradient(*everything):
        return [
            dual_discrepancy(t, a, b, kind=kind, weight=weight)
            for t, (a, b) in zip(teacher_taps, students, strict=True)
        ]
    found = dispatch.ops_of(teacher_taps[0]).pixel_maps(teacher_taps, students, kind, weight)
    keep("dual_maps", key, everything, len(teacher_taps), kind, weight)
    return [(maps[0], maps[1]) for maps in found]


def attention_weighting(teacher: Tensor, student: Tensor) -> Tensor:
    """(1 - cos)/2 · s at every pixel: the student's features where it departs from its teacher.

    FractalAD (Xia et al. 2023), cosine-similarity attention; its output is detached there, so no gradient flows here.
    Inputs as for `pixel_discrepancy`. Returns [N, C, H, W] in the student's dtype and layout.

    Raises: ValueError for other ranks, or shapes and devices that differ.
    """
    return attention_weightings([teacher], [student])[0]


def attention_weightings(teacher_taps: Sequence[Tensor], student_taps: Sequence[Tensor]) -> list[Tensor]:
    """`attention_weighting` at every scale, in one parallel region on a CPU.

    Raises: ValueError as there, and for no or unequal numbers of scales.
    """
    everything = [*teacher_taps, *student_taps]
    key = ready.alike((len(teacher_taps),), everything)
    if (made := ready.answer("weighting", key, everything)) is not None:
        kept: list[Tensor] = made
        return kept
    check_scales(teacher_taps, student_taps)
    for t, s in zip(teacher_taps, student_taps, strict=True):
        check("cosine", PIXEL_KINDS, t, s)
    teachers, students = [t.detach() for t in teacher_taps], [s.detach() for s in student_taps]
    if not plain(*teachers, *students):
        return [torch.ops.kdad.attention_weighting(t, s) for t, s in zip(teachers, students, strict=True)]
    if uses_reference(*teachers, *students):
        return [reference.attention_weighting(t, s) for t, s in zip(teachers, students, strict=True)]
    weighted = dispatch.ops_of(teachers[0]).attention_weighting(teachers, students)
    keep("weighting", key, everything, len(teachers))
    return weighted
