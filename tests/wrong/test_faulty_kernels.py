"""Kernels with one fault each: the checks that the real ones pass must reject every one of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdad_bench.kernels import cpp_path

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from kdad_bench.kernels import reference
from tests.kernels import checks
from tests.kernels.guards import Guards, between_nans


def rejected(check: Callable[[], None]) -> None:
    """The check fails with an assertion, not with an accident."""
    with pytest.raises(AssertionError):
        check()


def one_minus_cosine(t: Tensor, s: Tensor, **_: Any) -> Tensor:
    """1 - P/√(AB) in float32: right on paper."""
    t, s = t.float(), s.float()
    return 1 - (t * s).sum(1) / (t.square().sum(1) * s.square().sum(1)).sqrt()


def half_sums(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    """Sums in the dtype of the features."""
    if kind == "l2":
        return weight * (t - s).square().sum(1).float()
    return (
        weight * 0.5 * (t / t.square().sum(1, True).sqrt() - s / s.square().sum(1, True).sqrt()).square().sum(1).float()
    )


def with_epsilon(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    """F.normalize, whose epsilon of 1e-12 swallows small vectors."""
    return weight * 0.5 * (F.normalize(t.float()) - F.normalize(s.float())).square().sum(1)


def one_rule_for_zero(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    """Treats a zero vector alike in both kinds."""
    return reference.pixel_discrepancy(t, s, kind="unit_l2" if kind == "cosine" else kind, weight=weight)


def forgets_weight(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    return reference.pixel_discrepancy(t, s, kind=kind)


def hides_nan(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    return torch.nan_to_num(reference.pixel_discrepancy(t, s, kind=kind, weight=weight))


def spreads_nan(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    found = reference.pixel_discrepancy(t, s, kind=kind, weight=weight)
    return found + 0 * found.sum()


def drops_last_channel(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    return reference.pixel_discrepancy(t[:, :-1], s[:, :-1], kind=kind, weight=weight)


def shifts_a_pixel(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    return reference.pixel_discrepancy(t, s, kind=kind, weight=weight).roll(1, 2)


def test_cancellation_in_float32_is_rejected() -> None:
    rejected(lambda: checks.check_precision(one_minus_cosine))


def test_sums_in_float16_are_rejected() -> None:
    rejected(lambda: checks.check_magnitudes(half_sums))


def test_an_epsilon_in_the_length_is_rejected() -> None:
    rejected(lambda: checks.check_magnitudes(with_epsilon))


def test_a_wrong_rule_for_zero_vectors_is_rejected() -> None:
    rejected(lambda: checks.check_zero_vectors(one_rule_for_zero))


def zero_gets_a_gradient(t: Tensor, s: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    """The right map; its gradient treats a zero vector as a short one."""
    return (
        weight
        * 0.5
        * (t / (t.norm(dim=1, keepdim=True) + 1e-3) - s / (s.norm(dim=1, keepdim=True) + 1e-3)).square().sum(1)
    )


def test_a_gradient_at_a_zero_vector_is_rejected() -> None:
    rejected(lambda: checks.check_zero_gradients(zero_gets_a_gradient))


def flat_without_zero_rule(t: Tensor, s: Tensor) -> Tensor:
    t, s = t.flatten(1) + 1e-12, s.flatten(1) + 1e-12
    return 1 - (t * s).sum(1) / (t.norm(dim=1) * s.norm(dim=1))


def flat_hiding_nan(t: Tensor, s: Tensor) -> Tensor:
    return reference.flattened_cosine(torch.nan_to_num(t), s)


def test_a_flattened_distance_without_the_rule_for_zero_is_rejected() -> None:
    rejected(lambda: checks.check_zero_samples(flat_without_zero_rule))


def test_a_flattened_distance_that_hides_nan_is_rejected() -> None:
    rejected(lambda: checks.check_not_a_number_stays_in_its_sample(flat_hiding_nan))


@pytest.mark.parametrize("faulty", [hides_nan, spreads_nan])
def test_a_hidden_or_spreading_nan_is_rejected(faulty: Callable[..., Tensor]) -> None:
    rejected(lambda: checks.check_not_a_number_stays(faulty))


@pytest.mark.parametrize("faulty", [forgets_weight, drops_last_channel, shifts_a_pixel])
def test_a_wrong_map_is_rejected(faulty: Callable[..., Tensor]) -> None:
    t, s = checks.pair((2, 9, 5, 4))
    rejected(lambda: checks.check_map(faulty, t, s, weight=2.0))


class WrongGradient(torch.autograd.Function):
    """The right map with a backward that a fault has got into."""

    fault = ""

    @staticmethod
    def forward(ctx: Any, t: Tensor, s: Tensor) -> Tensor:
        ctx.save_for_backward(t, s)
        return reference.pixel_discrepancy(t, s)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        t, s = ctx.saved_tensors
        fault = WrongGradient.fault
        if fault == "first stride only":  # reads a stride-0 or sliced gradient as if it were dense
            dense = torch.zeros(upstream.numel() + 1)
            memory = upstream.as_strided((min(upstream.untyped_storage().nbytes() // 4, upstream.numel()),), (1,))
            dense[: memory.numel()] = memory
            upstream = dense[: upstream.numel()].view(upstream.shape)
        to_teacher, to_student = reference.pixel_discrepancy_gradients(upstream, t, s)
        if fault == "no projection":
            to_student = to_student + 1e-3 * upstream[:, None] * s
        if fault == "sign of the teacher":
            to_teacher = -to_teacher
        if fault == "not divided by the length":
            to_student = to_student * s.norm(dim=1, keepdim=True)
        return to_teacher, to_student


@pytest.mark.parametrize(
    "fault", ["first stride only", "sign of the teacher", "not divided by the length", "no projection"]
)
def test_a_wrong_backward_is_rejected(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WrongGradient, "fault", fault)
    t, s = checks.pair((2, 9, 5, 4))
    upstream = torch.tensor(0.5).expand(2, 5, 4)
    rejected(lambda: checks.check_upstream(lambda a, b, kind: WrongGradient.apply(a, b), upstream, t, s))
    if fault == "no projection":
        rejected(lambda: checks.check_orthogonal(WrongGradient.apply, t, s))


def loss_without_weights(teachers: Sequence[Tensor], students: Sequence[Tensor], *, kind: str, weights: Any) -> Tensor:
    return reference.distillation_loss(teachers, students, kind=kind)


def loss_of_all_pixels(teachers: Sequence[Tensor], students: Sequence[Tensor], *, kind: str, weights: Any) -> Tensor:
    """One mean over the pixels of all scales."""
    maps = [reference.pixel_discrepancy(t, s, kind=kind).flatten() for t, s in zip(teachers, students, strict=True)]
    return torch.cat(maps).mean() * len(maps)


def loss_deaf_to_upstream(teachers: Sequence[Tensor], students: Sequence[Tensor], *, kind: str, weights: Any) -> Tensor:
    """Hands on the gradient the forward wrote, whatever comes from above."""

    class Deaf(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *taps: Tensor) -> Tensor:
            with torch.enable_grad():
                own = [s.detach().requires_grad_() for s in taps]
                loss = reference.distillation_loss([t.detach() for t in teachers], own, kind=kind, weights=weights)
            ctx.grads = torch.autograd.grad(loss, own)
            return loss.detach()

        @staticmethod
        def backward(ctx: Any, upstream: Tensor) -> Any:
            return ctx.grads

    made: Tensor = Deaf.apply(*students)
    return made


@pytest.mark.parametrize("faulty", [loss_without_weights, loss_of_all_pixels, loss_deaf_to_upstream])
def test_a_wrong_loss_is_rejected(faulty: Callable[..., Tensor]) -> None:
    pairs = [checks.pair((2, 9, 6, 5)), checks.pair((2, 5, 2, 3), seed=1)]
    rejected(lambda: checks.check_loss_gradient(faulty, pairs, "unit_l2", upstream=3.0, weights=(0.5, 2.0)))


def fuses_with_other_corners(
    maps: Sequence[Tensor], size: tuple[int, int], *, mode: str, align_corners: bool
) -> Tensor:
    return reference.fuse_scales(maps, size, mode=mode, align_corners=not align_corners)


def adds_for_product(maps: Sequence[Tensor], size: tuple[int, int], *, mode: str, align_corners: bool) -> Tensor:
    return reference.fuse_scales(maps, size, align_corners=align_corners)


def swaps_sides(maps: Sequence[Tensor], size: tuple[int, int], *, mode: str, align_corners: bool) -> Tensor:
    flipped = [m.transpose(1, 2) for m in maps]
    return reference.fuse_scales(flipped, size, mode=mode, align_corners=align_corners)


@pytest.mark.parametrize("faulty", [fuses_with_other_corners, adds_for_product, swaps_sides])
def test_a_wrong_fusion_is_rejected(faulty: Callable[..., Tensor]) -> None:
    rejected(lambda: checks.check_fusion(faulty, checks.maps_of([(7, 5), (3, 4)]), (20, 18)))


def blurs_with_one_border(maps: Tensor, sigma: float, *, border: str) -> Tensor:
    return reference.gaussian_blur(maps, sigma, border="scipy")


def blurs_one_pixel_short(maps: Tensor, sigma: float, *, border: str) -> Tensor:
    return reference.gaussian_blur(maps, sigma, border=border, radius=reference.blur_radius(sigma) - 1)


def blurs_along_rows_only(maps: Tensor, sigma: float, *, border: str) -> Tensor:
    return maps @ reference.blur_matrix(maps.shape[2], sigma, reference.blur_radius(sigma), border).float().T


@pytest.mark.parametrize("faulty", [blurs_with_one_border, blurs_one_pixel_short, blurs_along_rows_only])
def test_a_wrong_blur_is_rejected(faulty: Callable[..., Tensor]) -> None:
    rejected(lambda: checks.check_blur(faulty, checks.maps_of([(33, 21)])[0], 4.0))


def test_a_score_that_misses_the_last_row_is_rejected() -> None:
    maps = checks.maps_of([(9, 35)])[0]
    maps[0, 8, 34] = 7.0
    rejected(lambda: checks.check_scores(lambda m, rule: reference.image_scores(m[:, :-1], rule), maps))


def unmasked_kernels() -> tuple[Any, Any]:
    """A Triton kernel that reads beyond the last pixel, and one that writes beyond it."""
    import triton
    import triton.language as tl

    @triton.jit
    def reads_too_far(values, out, count, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(out, tl.sum(tl.load(values + i), axis=0))

    @triton.jit
    def writes_too_far(values, out, count, BLOCK: tl.constexpr):
        i = tl.arange(0, BLOCK)
        tl.store(out + i, tl.load(values + i, mask=i < count, other=0.0))

    return reads_too_far, writes_too_far


def test_a_read_beyond_the_tensor_is_seen() -> None:
    reads_too_far, _ = unmasked_kernels()
    values, out = between_nans(torch.ones(13)), torch.zeros(1)
    reads_too_far[(1,)](values, out, 13, BLOCK=16)
    rejected(lambda: checks.assert_close(out, torch.full((1,), 13.0, dtype=torch.float64), 1e-6))


def test_a_write_beyond_the_tensor_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    _, writes_too_far = unmasked_kernels()
    guards = Guards(monkeypatch)
    writes_too_far[(1,)](torch.ones(13), torch.empty(13), 13, BLOCK=16)
    rejected(guards.check)


@pytest.mark.skipif(cpp_path.missing() is not None, reason="the C++ library was not built")
def test_a_compiled_kernel_told_of_a_row_too_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    t, s = checks.pair((1, 4, 6, 8))
    guards = Guards(monkeypatch)
    out = torch.empty((1, 5, 8))  # one row less than the features have
    cpp_path.sweep([cpp_path.job(t, s, out=out)], cpp_path.KINDS["unit_l2"])
    rejected(guards.check)
