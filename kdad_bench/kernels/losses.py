"""The losses: weighted means of discrepancies over all scales, gradients written with the forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdad_bench.kernels import cpp_path, dispatch, ready, reference
from kdad_bench.kernels.checks import KINDS, check, check_scales
from kdad_bench.kernels.discrepancy import MOST_SCALES, plain, wants_gradient
from kdad_bench.kernels.dispatch import uses_reference
from kdad_bench.kernels.protocol import Gradients


def is_one(upstream: Tensor) -> bool:
    """Whether an upstream gradient on the CPU is exactly 1; on other devices nobody may ask without synchronising."""
    return upstream.device.type == "cpu" and upstream.item() == 1.0


def parted(taps: Sequence[Tensor], scales: int) -> tuple[Sequence[Tensor], list[tuple[Tensor, ...]]]:
    """Teachers, and per scale the students, of the taps of an autograd function: teachers first, then each student."""
    students = (taps[i : i + scales] for i in range(scales, len(taps), scales))
    return taps[:scales], list(zip(*students, strict=True))


def joined(to_teachers: Gradients, to_students: list[Gradients]) -> Gradients:
    """Gradients to teachers and, per scale, to students in the order of the taps."""
    return [*to_teachers, *(grad for student in zip(*to_students, strict=True) for grad in student)]


LossAnswer = Callable[[Sequence[Tensor]], tuple[Tensor, Gradients]]


def wants_of(taps: Sequence[Tensor], wanted: Sequence[bool], scales: int) -> tuple[tuple[bool, bool], bool]:
    """Whether teachers and students want a gradient, and whether the forward may write it: see `PixelLoss`."""
    early = all(t.dtype != torch.float16 for t, wish in zip(taps, wanted, strict=True) if wish)
    return (any(wanted[:scales]), any(wanted[scales:])), early


def handed_on(ctx: Any, like: Tensor, upstream: Tensor) -> Gradients | None:
    """The gradients that the forward wrote, times `upstream`; None if it wrote none or they were handed on before."""
    early: Gradients | None
    early, ctx.grads = ctx.grads, None
    if early is not None and not is_one(upstream):
        dispatch.ops_of(like).scale_in_place([g for g in early if g is not None], upstream)
    return early


class PixelLoss(torch.autograd.Function):
    """The mean loss of all scales. The forward writes the gradients in the sweep that makes the loss.

    The first backward scales them by its upstream gradient where it has to and hands them on; any later one (retained
    graph) computes them anew. float16 gradients are left to the backward: a mean divides by N·H·W, and without the
    loss scale of mixed precision, which the forward cannot know, they would vanish below 6e-8.
    """

    @staticmethod
    def forward(ctx: Any, kept: LossAnswer | None, kind: str, weights: tuple[float, ...], *taps: Tensor) -> Tensor:
        """The loss, a scalar; `taps` are those of the teacher, then of each student. `kept` makes its launches."""
        ctx.save_for_backward(*taps)
        ctx.kind, ctx.weights = kind, weights
        wanted = ctx.needs_input_grad[3:]
        ctx.wants, early = wants_of(taps, wanted, len(weights))
        if kept is not None:
            loss, ctx.grads = kept(taps)
        else:
            teachers, students = parted(taps, len(weights))
            loss, to_teachers, to_students = dispatch.ops_of(taps[0]).pixel_loss(
                teachers, students, kind, weights, ctx.wants if early else (False, False)
            )
            ctx.grads = joined(to_teachers, to_students)
        if not early:
            ctx.grads = None
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to the taps that want one, under a scalar `upstream`."""
        taps, wanted, upstream = ctx.saved_tensors, ctx.needs_input_grad[3:], dispatch.held(upstream)
        found = handed_on(ctx, taps[0], upstream) or PixelLoss.anew(ctx, taps, upstream)
        return None, None, None, *(g if wish else None for g, wish in zip(found, wanted, strict=True))

    @staticmethod
    def anew(ctx: Any, taps: Sequence[Tensor], upstream: Tensor) -> list[Tensor | None]:
        """The gradients to `taps`, computed from them."""
        scales = len(ctx.weights)
        grads: list[Tensor | None] = [None] * len(taps)
        for i in range(scales, len(taps)):
            teacher, student, weight = taps[i % scales], taps[i], ctx.weights[i % scales]
            n, _, h, w = teacher.shape
            grads[i % scales], grads[i] = dispatch.ops_of(teacher).pixel_gradients(
                teacher, student, upstream.float().expand(n, h, w), ctx.kind, weight / (n * h * w), ctx.wants
            )
        return grads


class FlattenedLoss(torch.autograd.Function):
    """The mean of the per-sample distances of all scales.

    The C++ path writes the gradients with the forward, as `PixelLoss` does: a sample's second reading comes from the
    cache. On a GPU the sums of all samples come first and the backward reads again.
    """

    @staticmethod
    def forward(ctx: Any, weights: tuple[float, ...], *taps: Tensor) -> Tensor:
        """The loss, a scalar; `taps` as in `PixelLoss`."""
        scales = len(weights)
        teachers, students = parted(taps, scales)
        wanted = ctx.needs_input_grad[1:]
        written = [t for t, wish in zip(taps, wanted, strict=True) if wish]
        ctx.grads = None
        ctx.weights = weights
        if dispatch.path_of(taps[0]) == "cpp" and all(t.dtype != torch.float16 for t in written):
            wants = any(wanted[:scales]), any(wanted[scales:])
            loss, sums, to_teachers, to_students = cpp_path.flat_loss(teachers, students, weights, wants)
            ctx.grads = joined(to_teachers, to_students)
        else:
            found = dispatch.ops_of(taps[0]).flat_sums(teachers, students)
            sums = [[one for one, _ in pairs] for pairs in found]
            distances = [found[i % scales][i // scales - 1][1] for i in range(scales, len(taps))]
            loss = weighted_means(distances, weights)
        ctx.save_for_backward(*taps, *(sums[i % scales][i // scales - 1] for i in range(scales, len(taps))))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to the taps that want one, under a scalar `upstream`."""
        scales, wanted, upstream = len(ctx.weights), ctx.needs_input_grad[1:], dispatch.held(upstream)
        taps, sums = ctx.saved_tensors[: len(wanted)], ctx.saved_tensors[len(wanted) :]
        early = handed_on(ctx, taps[0], upstream)
        if early is not None:
            return None, *(g if wish else None for g, wish in zip(early, wanted, strict=True))
        grads: list[Tensor | None] = [None] * len(taps)
        for i in range(scales, len(taps)):
            teacher, student = taps[i % scales], taps[i]
            n = teacher.shape[0]
            above, factor, wants = (
                upstream.float().expand(n),
                ctx.weights[i % scales] / n,
                (wanted[i % scales], wanted[i]),
            )
            grads[i % scales], grads[i] = dispatch.ops_of(teacher).flat_gradients(
                teacher, student, sums[i - scales], above, factor, wants
            )
        return None, *grads


def weighted_means(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_k · mean(value_k), the weights repeating for a second student."""
    total = values[0].mean() * weights[0]
    for k in range(1, len(values)):
        total = total + values[k].mean() * weights[k % len(weights)]
    return total


def checked_factors(
    teachers: Sequence[Tensor], several: Sequence[Sequence[Tensor]], kind: str, weights: Sequence[float] | None
) -> tuple[float, ...]:
    """The factor of each scale; raises ValueError for a loss that is not defined."""
    check_scales(teachers, *several)
    factors = (1.0,) * len(teachers) if weights is None else tuple(float(w) for w in weights)
    if len(factors) != len(teachers):
        raise ValueError(f"{len(factors)} weights for {len(teachers)} scales")
    for k, teacher in enumerate(teachers):
        check(kind, KINDS, teacher, *(taps[k] for taps in several))
        if teacher.numel() == 0:
            raise ValueError(f"the mean over no pixels is undefined; scale {k} has shape {tuple(teacher.shape)}")
    return factors


def loss_of(
    teachers: Sequence[Tensor], several: Sequence[Sequence[Tensor]], kind: str, weights: Sequence[float] | None
) -> Tensor:
    """The loss of one or two students."""
    everything = [*teachers, *(s for taps in several for s in taps)]
    given = None if weights is None else tuple(map(float, weights))
    key = ready.alike((kind, given, len(teachers), *map(len, several)), everything)
    if (answered := ready.answer("loss", key, everything)) is not None:
        kept: Tensor = answered
        return kept
    factors = checked_factors(teachers, several, kind, weights)
    if not plain(*everything):
        terms = [traced_loss(t, taps[k], kind, factors[k]) for taps in several for k, t in enumerate(teachers)]
        return torch.stack(terms).sum()
    if uses_reference(*everything):
        if len(several) == 2:
            return reference.dual_distillation_loss(teachers, *several, kind=kind, weights=factors)
        return reference.distillation_loss(teachers, several[0], kind=kind, weights=factors)
    if len(several) == 2 and wants_gradient(*teachers):  # two gradients meet in the teacher: let autograd add
        return loss_of(teachers, several[:1], kind, factors) + loss_of(teachers, several[1:], kind, factors)
    if wants_gradient(*everything):
        if kind == "flattened":
            recorded: Tensor = FlattenedLoss.apply(factors, *everything)  # type: ignore[no-untyped-call]
        else:
            recorded = PixelLoss.apply(None, kind, factors, *everything)  # type: ignore[no-untyped-call]
            keep(key, kind, factors, everything)
        return recorded
    per_scale = list(zip(*several, strict=True))
    if kind == "flattened":
        found = dispatch.ops_of(teachers[0]).flat_sums(teachers, per_scale)
        return weighted_means([found[k][i][1] for i in range(len(several)) for k in range(len(teachers))], factors)
    value = dispatch.ops_of(teachers[0]).pixel_loss(teachers, per_scale, kind, factors, (False, False))[0]
    keep(key, kind, factors, everything)
    return value


def keep(key: Any, kind: str, factors: tuple[float, ...], everything: Sequence[Tensor]) -> None:
    """Keep a pixel loss for calls alike."""
    if key is None or len(factors) > MOST_SCALES:
        return

    def plan() -> ready.Answer:
        from kdad_bench.kernels import triton_calls  # imports triton: only when it is used

        records = wants_gradient(*everything)
        wants, early = wants_of(everything, [records and t.requires_grad for t in everything], len(factors))
        launches = triton_calls.loss(everything, len(factors), kind, factors, wants if early else (False, False))
        if not records:
            return lambda taps: launches(taps)[0]
        return lambda taps: PixelLoss.apply(launches, kind, factors, *taps)  # type: ignore[no-untyped-call]

    ready.keep("loss", key, everything, plan)


def traced_loss(teacher: Tensor, student: Tensor, kind: str, weight: float) -> Tensor:
    """One term of the loss as registered ops, for torch.compile."""
    if kind == "flattened":
        distance: Tensor = torch.ops.kdad.flattened_cosine(teacher, student)[0]
        return distance.mean() * weight
    emit = torch.is_grad_enabled()
    early_t = emit and teacher.requires_grad and teacher.dtype != torch.float16
    early_s = emit and student.requires_grad and student.dtype != torch.float16
    term: Tensor = torch.ops.kdad.distillation_loss(teacher, student, kind, weight, early_t, early_s)[0]
    return term


def distillation_loss(
    teacher_taps: Sequence[Tensor],
    student_taps: Sequence[Tensor],
    *,
    kind: str = "unit_l2",
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Σ_k w_k · mean of the discrepancy at scale k: the training loss of every method here, all scales in one sweep.

    The mean is over n, h and w for the pixel kinds ("unit_l2": STFPM eq. 3; "cosine": RD4AD eq. 1-2; "l2": MKD,
    STAD) and over n for "flattened" (RD4AD's code, MKD). When a gradient is wanted, it is written as the loss is made
    (not if it would be float16, nor for "flattened" on a GPU).

    Args:
        teacher_taps, student_taps: one [N, C_k, H_k, W_k] per scale, as for `pixel_discrepancy`.
        weights: one factor per scale; 1 if absent.

    Returns: a float32 scalar. Gradients reach the students, and the teachers if they require them.

    Raises: ValueError for an unknown kind, no or unequal numbers of scales or weights, empty or differing shapes.
    """
    return loss_of(teacher_taps, [student_taps], kind, weights)


def dual_distillation_loss(
    teacher_taps: Sequence[Tensor],
    a_taps: Sequence[Tensor],
    b_taps: Sequence[Tensor],
    *,
    kind: str = "unit_l2",
    weights: Sequence[float] | None = None,
) -> Tensor:
    """`distillation_loss` of two students against one teacher, added; the teacher is read once (DSKD, BMKD).

    Arguments and errors as there.
    """
    return loss_of(teacher_taps, [a_taps, b_taps], kind, weights)
