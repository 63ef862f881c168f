"""How far a student is from its teacher: per pixel, per sample, as a loss; forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdad_bench.kernels import dispatch, reference

PIXEL_KINDS = ("unit_l2", "cosine", "l2")
KINDS = (*PIXEL_KINDS, "flattened")


def check(kind: str, kinds: Sequence[str], teacher: Tensor, *students: Tensor) -> None:
    """Raise ValueError unless the tensors are [N,C,H,W] of one shape and device, C >= 1, and `kind` is known."""
    if kind not in kinds:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(kinds)}")
    if teacher.dim() != 4 or teacher.shape[1] == 0:
        raise ValueError(f"features must be [N, C, H, W] with C >= 1; the teacher's are {tuple(teacher.shape)}")
    for student in students:
        if student.shape != teacher.shape or student.device != teacher.device:
            raise ValueError(
                f"teacher and student must agree: {tuple(teacher.shape)} on {teacher.device}, "
                f"{tuple(student.shape)} on {student.device}"
            )


def check_scales(*lists: Sequence[Tensor]) -> None:
    """Raise ValueError unless all lists have the same length, at least 1."""
    lengths = [len(taps) for taps in lists]
    if min(lengths) == 0 or len(set(lengths)) > 1:
        raise ValueError(f"teacher and student need the same number of scales, at least one; got {lengths}")


def plain(*tensors: Tensor) -> bool:
    """Whether the tensors hold memory a kernel can be pointed at: not traced, not fake, not a subclass."""
    return not torch.compiler.is_compiling() and all(
        type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors
    )


def wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def uses_reference(*tensors: Tensor) -> bool:
    """Whether the eager formula runs: on request, and for float64."""
    if any(t.dtype not in dispatch.SUPPORTED for t in tensors):
        return True
    return dispatch.path(tensors[0].device) == "reference"


class PixelDiscrepancy(torch.autograd.Function):
    """The map; its backward reads the features again and writes the gradients, nothing normalised is kept."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, kind: str, weight: float) -> Tensor:
        ctx.save_for_backward(teacher, student)
        ctx.kind, ctx.weight = kind, weight
        made: Tensor = dispatch.run("pixel_maps", teacher, [teacher], [[student]], kind, weight)[0][0]
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        teacher, student = ctx.saved_tensors
        wants = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        to_teacher, to_student = dispatch.run(
            "pixel_gradients", teacher, teacher, student, upstream.float(), ctx.kind, ctx.weight, wants
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
    made: Tensor = dispatch.run("pixel_maps", teacher, [teacher], [[student]], kind, weight)[0][0]
    return made


def pixel_discrepancies(
    teacher_taps: Sequence[Tensor], student_taps: Sequence[Tensor], *, kind: str = "unit_l2", weight: float = 1.0
) -> list[Tensor]:
    """`pixel_discrepancy` at every scale: all maps in one launch on a GPU, one parallel region on a CPU.

    Args: one [N, C_k, H_k, W_k] per scale. Returns: one [N, H_k, W_k] float32 per scale. Differentiable.

    Raises: ValueError as there, and for no or unequal numbers of scales.
    """
    check_scales(teacher_taps, student_taps)
    for t, s in zip(teacher_taps, student_taps, strict=True):
        check(kind, PIXEL_KINDS, t, s)
    everything = [*teacher_taps, *student_taps]
    if not plain(*everything) or uses_reference(*everything) or wants_gradient(*everything):
        pairs = zip(teacher_taps, student_taps, strict=True)
        return [pixel_discrepancy(t, s, kind=kind, weight=weight) for t, s in pairs]
    found = dispatch.run("pixel_maps", teacher_taps[0], teacher_taps, [[s] for s in student_taps], kind, weight)
    return [maps[0] for maps in found]


class FlattenedCosine(torch.autograd.Function):
    """Per-sample distances; keeps A, B, P of each sample for the backward."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        sums, distance = dispatch.run("flat_sums", teacher, [teacher], [[student]])[0][0]
        ctx.save_for_backward(teacher, student, sums)
        kept: Tensor = distance
        return kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        teacher, student, sums = ctx.saved_tensors
        to_teacher, to_student = dispatch.run(
            "flat_gradients", teacher, teacher, student, sums, upstream.float(), 1.0, ctx.needs_input_grad
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
    made: Tensor = dispatch.run("flat_sums", teacher, [teacher], [[student]])[0][0][1]
    return made


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
    map_a, map_b = dispatch.run("pixel_maps", teacher, [teacher], [[a, b]], kind, weight)[0]
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
    check_scales(teacher_taps, a_taps, b_taps)
    for t, a, b in zip(teacher_taps, a_taps, b_taps, strict=True):
        check(kind, PIXEL_KINDS, t, a, b)
    everything = [*teacher_taps, *a_taps, *b_taps]
    students = list(zip(a_taps, b_taps, strict=True))
    if not plain(*everything) or uses_reference(*everything) or wants_gradient(*everything):
        return [
            dual_discrepancy(t, a, b, kind=kind, weight=weight)
            for t, (a, b) in zip(teacher_taps, students, strict=True)
        ]
    found = dispatch.run("pixel_maps", teacher_taps[0], teacher_taps, students, kind, weight)
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
    check_scales(teacher_taps, student_taps)
    for t, s in zip(teacher_taps, student_taps, strict=True):
        check("cosine", PIXEL_KINDS, t, s)
    teachers, students = [t.detach() for t in teacher_taps], [s.detach() for s in student_taps]
    if not plain(*teachers, *students):
        return [torch.ops.kdad.attention_weighting(t, s) for t, s in zip(teachers, students, strict=True)]
    if uses_reference(*teachers, *students):
        return [reference.attention_weighting(t, s) for t, s in zip(teachers, students, strict=True)]
    made: list[Tensor] = dispatch.run("attention_weighting", teachers[0], teachers, students)
    return made


def is_one(upstream: Tensor) -> bool:
    """Whether an upstream gradient on the CPU is exactly 1; on other devices nobody may ask without synchronising."""
    return upstream.device.type == "cpu" and upstream.item() == 1.0


class PixelLoss(torch.autograd.Function):
    """The mean loss of all scales. The forward writes the gradients in the sweep that makes the loss.

    The first backward scales them by its upstream gradient where it has to and hands them on; any later one (retained
    graph) computes them anew. float16 gradients are left to the backward: a mean divides by N·H·W, and without the
    loss scale of mixed precision, which the forward cannot know, they would vanish below 6e-8.
    """

    @staticmethod
    def forward(ctx: Any, kind: str, weights: tuple[float, ...], *taps: Tensor) -> Tensor:
        scales = len(weights)
        teachers, students = (
            taps[:scales],
            list(zip(*(taps[i : i + scales] for i in range(scales, len(taps), scales)), strict=True)),
        )
        wants = any(ctx.needs_input_grad[2 : 2 + scales]), any(ctx.needs_input_grad[2 + scales :])
        ctx.save_for_backward(*taps)
        ctx.kind, ctx.weights, ctx.wants = kind, weights, wants
        written = [t for t, wanted in zip(taps, ctx.needs_input_grad[2:], strict=True) if wanted]
        ctx.early = all(t.dtype != torch.float16 for t in written)
        loss, to_teachers, to_students = dispatch.run(
            "pixel_loss", taps[0], teachers, students, kind, weights, wants if ctx.early else (False, False)
        )
        ctx.grads = [*to_teachers, *(grads[i] for i in range(len(taps) // scales - 1) for grads in to_students)]
        made: Tensor = loss
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        taps, scales = ctx.saved_tensors, len(ctx.weights)
        grads: list[Tensor | None]
        if ctx.early and ctx.grads is not None:
            grads, ctx.grads = ctx.grads, None
            if not is_one(upstream):
                dispatch.run("scale_in_place", taps[0], [g for g in grads if g is not None], upstream)
        else:
            grads = [None] * len(taps)
            for i in range(scales, len(taps)):
                teacher, student, weight = taps[i % scales], taps[i], ctx.weights[i % scales]
                n, _, h, w = teacher.shape
                above = upstream.float().expand(n, h, w)
                to_teacher, grads[i] = dispatch.run(
                    "pixel_gradients", teacher, teacher, student, above, ctx.kind, weight / (n * h * w), ctx.wants
                )
                grads[i % scales] = to_teacher
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(g if wish else None for g, wish in zip(grads, wanted, strict=True))


class FlattenedLoss(torch.autograd.Function):
    """The mean of the per-sample distances of all scales.

    The C++ path writes the gradients with the forward, as `PixelLoss` does: a sample's second reading comes from the
    cache. On a GPU the sums of all samples come first and the backward reads again.
    """

    @staticmethod
    def forward(ctx: Any, weights: tuple[float, ...], *taps: Tensor) -> Tensor:
        scales = len(weights)
        teachers, students = (
            taps[:scales],
            list(zip(*(taps[i : i + scales] for i in range(scales, len(taps), scales)), strict=True)),
        )
        wanted = ctx.needs_input_grad[1:]
        written = [t for t, wish in zip(taps, wanted, strict=True) if wish]
        ctx.grads = None
        ctx.weights = weights
        if dispatch.path_of(taps[0]) == "cpp" and all(t.dtype != torch.float16 for t in written):
            wants = any(wanted[:scales]), any(wanted[scales:])
            loss, sums, to_teachers, to_students = dispatch.run(
                "flat_loss", taps[0], teachers, students, weights, wants
            )
            ctx.grads = [*to_teachers, *(grads[i] for i in range(len(taps) // scales - 1) for grads in to_students)]
        else:
            found = dispatch.run("flat_sums", taps[0], teachers, students)
            sums = [[one for one, _ in pairs] for pairs in found]
            distances = [found[i % scales][i // scales - 1][1] for i in range(scales, len(taps))]
            loss = weighted_means(distances, weights)
        ctx.save_for_backward(*taps, *(sums[i % scales][i // scales - 1] for i in range(scales, len(taps))))
        made: Tensor = loss
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scales, wanted = len(ctx.weights), ctx.needs_input_grad[1:]
        taps, sums = ctx.saved_tensors[: len(wanted)], ctx.saved_tensors[len(wanted) :]
        if ctx.grads is not None:
            early, ctx.grads = ctx.grads, None
            if not is_one(upstream):
                dispatch.run("scale_in_place", taps[0], [g for g in early if g is not None], upstream)
            return None, *(g if wish else None for g, wish in zip(early, wanted, strict=True))
        grads: list[Tensor | None] = [None] * len(taps)
        for i in range(scales, len(taps)):
            teacher, student = taps[i % scales], taps[i]
            n = teacher.shape[0]
            grads[i % scales], grads[i] = dispatch.run(
                "flat_gradients",
                teacher,
                teacher,
                student,
                sums[i - scales],
                upstream.float().expand(n),
                ctx.weights[i % scales] / n,
                (wanted[i % scales], wanted[i]),
            )
        return None, *grads


def weighted_means(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ w_k · mean(value_k), the weights repeating for a second student."""
    total = values[0].mean() * weights[0]
    for k in range(1, len(values)):
        total = total + values[k].mean() * weights[k % len(weights)]
    return total


def loss_of(
    teachers: Sequence[Tensor], several: Sequence[Sequence[Tensor]], kind: str, weights: Sequence[float] | None
) -> Tensor:
    """The loss of one or two students."""
    check_scales(teachers, *several)
    factors = (1.0,) * len(teachers) if weights is None else tuple(float(w) for w in weights)
    if len(factors) != len(teachers):
        raise ValueError(f"{len(factors)} weights for {len(teachers)} scales")
    for k, teacher in enumerate(teachers):
        check(kind, KINDS, teacher, *(taps[k] for taps in several))
        if teacher.numel() == 0:
            raise ValueError(f"the mean over no pixels is undefined; scale {k} has shape {tuple(teacher.shape)}")
    everything = [*teachers, *(s for taps in several for s in taps)]
    if not plain(*everything):
        terms = [traced_loss(t, taps[k], kind, factors[k]) for taps in several for k, t in enumerate(teachers)]
        return torch.stack(terms).sum()
    if uses_reference(*everything):
        if len(several) == 2:
            return reference.dual_distillation_loss(teachers, *several, kind=kind, weights=factors)
        return reference.distillation_loss(teachers, several[0], kind=kind, weights=factors)
    if len(several) == 2 and wants_gradient(
        *teachers
    ):  # both students' gradients meet in the teacher: let autograd add
        return loss_of(teachers, several[:1], kind, factors) + loss_of(teachers, several[1:], kind, factors)
    if wants_gradient(*everything):
        if kind == "flattened":
            recorded: Tensor = FlattenedLoss.apply(factors, *everything)  # type: ignore[no-untyped-call]
        else:
            recorded = PixelLoss.apply(kind, factors, *everything)  # type: ignore[no-untyped-call]
        return recorded
    per_scale = list(zip(*several, strict=True))
    if kind == "flattened":
        found = dispatch.run("flat_sums", teachers[0], teachers, per_scale)
        return weighted_means([found[k][i][1] for i in range(len(several)) for k in range(len(teachers))], factors)
    made: Tensor = dispatch.run("pixel_loss", teachers[0], teachers, per_scale, kind, factors, (False, False))[0]
    return made


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
