"""Every op registered with torch.library: fake kernel and autograd, so that torch.compile sees one opaque call.

A direct call of the public functions does not come through here: the dispatcher and a registered backward cost more
than the kernels themselves at a small batch. Each op refuses what the public functions refuse (ValueError): a graph
that holds it may be given other tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdad_bench.kernels import checks, dispatch, reference
from kdad_bench.kernels.dispatch import uses_reference


def result(like: Sequence[Tensor], shape: Sequence[Any]) -> Tensor:
    """An uninitialised result on the device of `like`, float64 if any of them is and float32 otherwise."""
    wide = any(one.dtype == torch.float64 for one in like)
    return like[0].new_empty(shape, dtype=torch.float64 if wide else torch.float32)


def absent(like: Tensor) -> Tensor:
    """What stands for a gradient nobody wants."""
    return like.new_empty(0)


def wanted(gradient: Tensor | None, wish: bool, like: Tensor) -> Tensor:
    """The gradient, or what stands for it if nobody wants it."""
    return gradient if wish and gradient is not None else absent(like)


def pixels(x: Tensor) -> list[Any]:
    """The shape [N, H, W] of the map of features `x` [N, C, H, W]."""
    return [x.shape[0], x.shape[2], x.shape[3]]


# ---- per-pixel discrepancy ----------------------------------------------------------------------------------------


@torch.library.custom_op("kdad::pixel_discrepancy", mutates_args=())
def pixel_discrepancy(teacher: Tensor, student: Tensor, kind: str, weight: float) -> Tensor:
    """The map [N, H, W] float32 (float64 for float64) of features [N, C, H, W]; see `discrepancy.pixel_discrepancy`."""
    checks.check(kind, checks.PIXEL_KINDS, teacher, student)
    if uses_reference(teacher, student):
        return reference.pixel_discrepancy(teacher, student, kind=kind, weight=weight)
    return dispatch.ops_of(teacher).pixel_maps([teacher], [[student]], kind, weight)[0][0]


@pixel_discrepancy.register_fake
def _(teacher: Tensor, student: Tensor, kind: str, weight: float) -> Tensor:
    return result([teacher, student], pixels(teacher))


@torch.library.custom_op("kdad::pixel_discrepancy_gradients", mutates_args=())
def pixel_discrepancy_gradients(
    upstream: Tensor, teacher: Tensor, student: Tensor, kind: str, weight: float, to_teacher: bool, to_student: bool
) -> tuple[Tensor, Tensor]:
    """Gradients to teacher and student under `upstream` [N, H, W], in their dtypes; empty where not wanted."""
    checks.check(kind, checks.PIXEL_KINDS, teacher, student)
    checks.check_upstream(upstream, pixels(teacher), teacher)
    grad_t: Tensor | None
    grad_s: Tensor | None
    if uses_reference(teacher, student):
        grad_t, grad_s = reference.pixel_discrepancy_gradients(upstream, teacher, student, kind=kind, weight=weight)
    else:
        grad_t, grad_s = dispatch.ops_of(teacher).pixel_gradients(
            teacher, student, upstream.float(), kind, weight, (to_teacher, to_student)
        )
    return wanted(grad_t, to_teacher, teacher), wanted(grad_s, to_student, student)


@pixel_discrepancy_gradients.register_fake
def _(
    upstream: Tensor, teacher: Tensor, student: Tensor, kind: str, weight: float, to_teacher: bool, to_student: bool
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(teacher) if to_teacher else absent(teacher),
        torch.empty_like(student) if to_student else absent(student),
    )


def keep_pixel_discrepancy(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps the features: the backward reads them again."""
    teacher, student, ctx.kind, ctx.weight = inputs
    ctx.save_for_backward(teacher, student)


def pixel_discrepancy_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients to teacher and student."""
    teacher, student = ctx.saved_tensors
    to_teacher, to_student = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    grad_t, grad_s = torch.ops.kdad.pixel_discrepancy_gradients(
        upstream, teacher, student, ctx.kind, ctx.weight, to_teacher, to_student
    )
    return grad_t if to_teacher else None, grad_s if to_student else None, None, None


pixel_discrepancy.register_autograd(pixel_discrepancy_backward, setup_context=keep_pixel_discrepancy)


@torch.library.custom_op("kdad::dual_discrepancy", mutates_args=())
def dual_discrepancy(teacher: Tensor, a: Tensor, b: Tensor, kind: str, weight: float) -> tuple[Tensor, Tensor]:
    """The maps of two students of one teacher, each as `pixel_discrepancy`."""
    checks.check(kind, checks.PIXEL_KINDS, teacher, a, b)
    if uses_reference(teacher, a, b):
        return reference.dual_discrepancy(teacher, a, b, kind=kind, weight=weight)
    map_a, map_b = dispatch.ops_of(teacher).pixel_maps([teacher], [[a, b]], kind, weight)[0]
    return map_a, map_b


@dual_discrepancy.register_fake
def _(teacher: Tensor, a: Tensor, b: Tensor, kind: str, weight: float) -> tuple[Tensor, Tensor]:
    return result([teacher, a], pixels(teacher)), result([teacher, b], pixels(teacher))


def keep_dual_discrepancy(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps the features."""
    teacher, a, b, ctx.kind, ctx.weight = inputs
    ctx.save_for_backward(teacher, a, b)


def dual_discrepancy_backward(ctx: Any, above_a: Tensor, above_b: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients to teacher and both students; those to the teacher add up."""
    teacher, a, b = ctx.saved_tensors
    to_teacher, to_a, to_b = ctx.needs_input_grad[:3]
    gradients = torch.ops.kdad.pixel_discrepancy_gradients
    teacher_a, grad_a = gradients(above_a, teacher, a, ctx.kind, ctx.weight, to_teacher, to_a)
    teacher_b, grad_b = gradients(above_b, teacher, b, ctx.kind, ctx.weight, to_teacher, to_b)
    return teacher_a + teacher_b if to_teacher else None, grad_a if to_a else None, grad_b if to_b else None, None, None


dual_discrepancy.register_autograd(dual_discrepancy_backward, setup_context=keep_dual_discrepancy)


@torch.library.custom_op("kdad::attention_weighting", mutates_args=())
def attention_weighting(teacher: Tensor, student: Tensor) -> Tensor:
    """(1 - cos)/2 · student, [N, C, H, W] in the student's dtype and layout."""
    checks.check("cosine", checks.PIXEL_KINDS, teacher, student)
    if uses_reference(teacher, student):
        return reference.attention_weighting(teacher, student)
    return dispatch.ops_of(teacher).attention_weighting([teacher], [student])[0]


@attention_weighting.register_fake
def _(teacher: Tensor, student: Tensor) -> Tensor:
    return torch.empty_like(student)


def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """The op is forward only."""


def attention_weighting_backward(ctx: Any, upstream: Tensor) -> tuple[None, None]:
    """None at all."""
    return None, None  # detached by definition: FractalAD's segmentation loss never trains the student


attention_weighting.register_autograd(attention_weighting_backward, setup_context=keep_nothing)


# ---- per-sample discrepancy ---------------------------------------------------------------------------------------


@torch.library.custom_op("kdad::flattened_cosine", mutates_args=())
def flattened_cosine(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Distances [N] float32 (float64 for float64) of whole samples, and A, B, P [N, 3] float64 for the backward."""
    checks.check("flattened", checks.KINDS, teacher, student)
    if uses_reference(teacher, student):
        t, s = teacher.double().flatten(1), student.double().flatten(1)
        sums = torch.stack(((t * t).sum(1), (s * s).sum(1), (t * s).sum(1)), 1)
        return reference.flattened_cosine(teacher, student), sums
    sums, distance = dispatch.ops_of(teacher).flat_sums([teacher], [[student]])[0][0]
    return distance, sums


@flattened_cosine.register_fake
def _(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    n = teacher.shape[0]
    return result([teacher, student], [n]), teacher.new_empty((n, 3), dtype=torch.float64)


@torch.library.custom_op("kdad::flattened_cosine_gradients", mutates_args=())
def flattened_cosine_gradients(
    upstream: Tensor, teacher: Tensor, student: Tensor, sums: Tensor, to_teacher: bool, to_student: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of the distances to teacher and student under `upstream` [N]; empty where not wanted."""
    checks.check("flattened", checks.KINDS, teacher, student)
    checks.check_upstream(upstream, teacher.shape[:1], teacher)
    checks.check_sums(sums, teacher)
    grad_t: Tensor | None
    grad_s: Tensor | None
    if uses_reference(teacher, student):
        grad_t, grad_s = reference.flattened_cosine_gradients(upstream, teacher, student)
    else:
        grad_t, grad_s = dispatch.ops_of(teacher).flat_gradients(
            teacher, student, sums, upstream.float(), 1.0, (to_teacher, to_student)
        )
    return wanted(grad_t, to_teacher, teacher), wanted(grad_s, to_student, student)


@flattened_cosine_gradients.register_fake
def _(
    upstream: Tensor, teacher: Tensor, student: Tensor, sums: Tensor, to_teacher: bool, to_student: bool
) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(teacher) if to_teacher else absent(teacher),
        torch.empty_like(student) if to_student else absent(student),
    )


def keep_flattened_cosine(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps features and sums; the sums have no gradient of their own."""
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def flattened_cosine_backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to teacher and student."""
    teacher, student, sums = ctx.saved_tensors
    to_teacher, to_student = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    grad_t, grad_s = torch.ops.kdad.flattened_cosine_gradients(upstream, teacher, student, sums, to_teacher, to_student)
    return grad_t if to_teacher else None, grad_s if to_student else None


flattened_cosine.register_autograd(flattened_cosine_backward, setup_context=keep_flattened_cosine)


# ---- the mean loss of one scale, gradients written by the forward --------------------------------------------------


@torch.library.custom_op("kdad::distillation_loss", mutates_args=())
def distillation_loss(
    teacher: Tensor, student: Tensor, kind: str, weight: float, early_teacher: bool, early_student: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the map of one scale times `weight`, a scalar, and early gradients; empty where not asked for."""
    checks.check(kind, checks.PIXEL_KINDS, teacher, student)
    if teacher.numel() == 0:
        raise ValueError(f"the mean over no pixels is undefined; the features have shape {tuple(teacher.shape)}")
    early = early_teacher, early_student
    grad_t: Tensor | None
    grad_s: Tensor | None
    if uses_reference(teacher, student):
        loss = reference.distillation_loss([teacher], [student], kind=kind, weights=[weight])
        n, _c, h, w = teacher.shape
        above = loss.new_ones(()).expand(n, h, w)
        grad_t, grad_s = reference.pixel_discrepancy_gradients(
            above, teacher, student, kind=kind, weight=weight / (n * h * w)
        )
    else:
        loss, to_teachers, to_students = dispatch.ops_of(teacher).pixel_loss(
            [teacher], [[student]], kind, [weight], early
        )
        grad_t, grad_s = to_teachers[0], to_students[0][0]
    return loss, wanted(grad_t, early_teacher, teacher), wanted(grad_s, early_student, student)


@distillation_loss.register_fake
def _(
    teacher: Tensor, student: Tensor, kind: str, weight: float, early_teacher: bool, early_student: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        result([teacher, student], []),
        torch.empty_like(teacher) if early_teacher else absent(teacher),
        torch.empty_like(student) if early_student else absent(student),
    )


def keep_distillation_loss(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps features and early gradients; the latter are no differentiable outputs."""
    teacher, student, ctx.kind, ctx.weight, ctx.early_teacher, ctx.early_student = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(teacher, student, output[1], output[2])


def distillation_loss_backward(ctx: Any, upstream: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Early gradients times the upstream gradient; those that were not written early are computed now."""
    teacher, student, grad_t, grad_s = ctx.saved_tensors
    to_teacher, to_student = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    late_teacher, late_student = to_teacher and not ctx.early_teacher, to_student and not ctx.early_student
    early_t = grad_t * upstream.to(grad_t.dtype) if to_teacher and ctx.early_teacher else None
    early_s = grad_s * upstream.to(grad_s.dtype) if to_student and ctx.early_student else None
    if late_teacher or late_student:
        n, _c, h, w = teacher.shape
        late_t, late_s = torch.ops.kdad.pixel_discrepancy_gradients(
            upstream.expand(n, h, w), teacher, student, ctx.kind, ctx.weight / (n * h * w), late_teacher, late_student
        )
        early_t, early_s = late_t if late_teacher else early_t, late_s if late_student else early_s
    return early_t, early_s, None, None, None, None


distillation_loss.register_autograd(distillation_loss_backward, setup_context=keep_distillation_loss)


# ---- fusion and blur ------------------------------------------------------------------------------------------------


@torch.library.custom_op("kdad::fuse_scales", mutates_args=())
def fuse_scales(maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool) -> Tensor:
    """Maps [N, h_k, w_k] upsampled to `size` and added or multiplied: [N, H, W]."""
    checks.check_option("mode", mode, checks.MODES)
    checks.check_maps(maps)
    checks.check_size("size", size)
    to = (size[0], size[1])
    if uses_reference(*maps) or len(maps) > 4:
        return reference.fuse_scales(maps, to, mode=mode, align_corners=align_corners)
    return dispatch.ops_of(maps[0]).fuse_blur_score(maps, to, mode, align_corners, None, 0, "scipy", None)[0]


@fuse_scales.register_fake
def _(maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool) -> Tensor:
    return result(maps, [maps[0].shape[0], size[0], size[1]])


@torch.library.custom_op("kdad::fuse_scales_gradients", mutates_args=())
def fuse_scales_gradients(
    upstream: Tensor, maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool
) -> list[Tensor]:
    """Gradients to every map under `upstream` [N, H, W]."""
    checks.check_option("mode", mode, checks.MODES)
    checks.check_maps(maps)
    checks.check_upstream(upstream, [maps[0].shape[0], *size], maps[0])
    found = reference.fuse_scales_gradients(upstream, maps, mode=mode, align_corners=align_corners)
    return [g.contiguous() for g in found]


@fuse_scales_gradients.register_fake
def _(upstream: Tensor, maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool) -> list[Tensor]:
    return [m.new_empty(m.shape) for m in maps]


def keep_fuse_scales(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps the maps: the product needs them."""
    maps, ctx.size, ctx.mode, ctx.align_corners = inputs
    ctx.save_for_backward(*maps)


def fuse_scales_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    """Gradients to every map."""
    grads = torch.ops.kdad.fuse_scales_gradients(
        upstream, list(ctx.saved_tensors), ctx.size, ctx.mode, ctx.align_corners
    )
    return grads, None, None, None


fuse_scales.register_autograd(fuse_scales_backward, setup_context=keep_fuse_scales)


@torch.library.custom_op("kdad::gaussian_blur", mutates_args=())
def gaussian_blur(maps: Tensor, sigma: float, border: str, radius: int) -> Tensor:
    """Maps [N, H, W] blurred, cut off at `radius`."""
    checks.check_blur(sigma, border, radius)
    checks.check_maps([maps])
    if uses_reference(maps):
        return reference.gaussian_blur(maps, sigma, border=border, radius=radius)
    size = (maps.shape[1], maps.shape[2])
    return dispatch.ops_of(maps).fuse_blur_score([maps], size, "sum", False, sigma, radius, border, None)[0]


@gaussian_blur.register_fake
def _(maps: Tensor, sigma: float, border: str, radius: int) -> Tensor:
    return result([maps], maps.shape)


@torch.library.custom_op("kdad::gaussian_blur_gradients", mutates_args=())
def gaussian_blur_gradients(upstream: Tensor, maps: Tensor, sigma: float, border: str, radius: int) -> Tensor:
    """The adjoint of the blur on `upstream` [N, H, W], in the maps' dtype."""
    checks.check_blur(sigma, border, radius)
    checks.check_upstream(upstream, maps.shape, maps)
    return reference.gaussian_blur_gradient(upstream, sigma, border=border, radius=radius).to(maps.dtype).contiguous()


@gaussian_blur_gradients.register_fake
def _(upstream: Tensor, maps: Tensor, sigma: float, border: str, radius: int) -> Tensor:
    return maps.new_empty(maps.shape)


def keep_gaussian_blur(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps the maps for their dtype and device."""
    maps, ctx.sigma, ctx.border, ctx.radius = inputs
    ctx.save_for_backward(maps)


def gaussian_blur_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient to the maps."""
    (maps,) = ctx.saved_tensors
    grad = torch.ops.kdad.gaussian_blur_gradients(upstream, maps, ctx.sigma, ctx.border, ctx.radius)
    return grad, None, None, None


gaussian_blur.register_autograd(gaussian_blur_backward, setup_context=keep_gaussian_blur)
