"""What any implementation of the ops must satisfy, as functions of the implementation: also run on faulty ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdad_bench.kernels import reference

# Relative tolerance of results that are float32: sums of up to 2048 products; near pairs get NEAR.
MAP_RTOL = 2e-5
NEAR_RTOL = 1e-4  # at d = 1e-2, 1e-4, 1e-6: what the kernels promise
# Of gradients written in the dtype of the features: one rounding (bfloat16: two, the interpreter truncates).
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}

Layout = torch.memory_format
NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def pair(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    layout: Layout = NCHW,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Random teacher and student; the student resembles the teacher."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(*shape, generator=generator)
    s = 0.7 * t + 0.5 * torch.randn(*shape, generator=generator)
    return tuple(x.to(dtype).to(device=device, memory_format=layout) for x in (t, s))  # type: ignore[return-value]


def near_pair(shape: Sequence[int], distance: float, device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """A pair with 1 - cos about `distance` at every pixel and lengths that differ."""
    generator = torch.Generator().manual_seed(1)
    t = torch.randn(*shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
    noise -= (noise * t).sum(1, keepdim=True) / t.square().sum(1, keepdim=True) * t
    noise *= (t.square().sum(1, keepdim=True) / noise.square().sum(1, keepdim=True)).sqrt() * (2 * distance) ** 0.5
    return t.float().to(device), (1.7 * (t + noise)).float().to(device)


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach().cpu().double() for t in tensors)


def assert_close(found: Tensor, expected: Tensor, rtol: float, atol: float = 0.0) -> None:
    """Within rtol of the oracle element by element; NaN must match NaN."""
    torch.testing.assert_close(found.detach().cpu().double(), expected, rtol=rtol, atol=atol, equal_nan=True)


def assert_same_direction(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """|found - expected| <= tolerance |expected| over the whole tensor: right for gradients with elements near 0."""
    found = found.detach().cpu().double()
    assert bool(torch.isfinite(found).all())
    error = (found - expected).norm() / expected.norm()
    assert float(error) <= tolerance, f"relative error {float(error):.2e} > {tolerance:.0e}"


MapOf = Callable[..., Tensor]


def check_map(map_of: MapOf, t: Tensor, s: Tensor, kind: str = "unit_l2", weight: float = 1.0) -> None:
    """The map agrees with the oracle on the same numbers."""
    expected = reference.pixel_discrepancy(*double(t, s), kind=kind, weight=weight)
    found = map_of(t, s, kind=kind, weight=weight)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert_close(found, expected, MAP_RTOL, 1e-7 * abs(weight))


def check_precision(map_of: MapOf, device: str | torch.device = "cpu", channels: int = 48) -> None:
    """Near pairs keep their digits."""
    for distance in (1e-2, 1e-4, 1e-6):
        t, s = near_pair((2, channels, 5, 3), distance, device)
        for kind in ("unit_l2", "cosine"):
            expected = reference.pixel_discrepancy(*double(t, s), kind=kind)
            assert_close(map_of(t, s, kind=kind), expected, NEAR_RTOL)


def check_zero_vectors(map_of: MapOf, device: str | torch.device = "cpu", channels: int = 6) -> None:
    """unit_l2: zero stays zero, so ½ against something and 0 against zero. cosine: 1 in both cases."""
    t, s = pair((1, channels, 2, 2), device=device)
    t[:, :, 0, 1] = 0
    s[:, :, 1, 0] = 0
    t[:, :, 1, 1] = s[:, :, 1, 1] = 0
    unit, cosine = map_of(t, s, kind="unit_l2").cpu(), map_of(t, s, kind="cosine").cpu()
    torch.testing.assert_close(unit[0].flatten()[1:], torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(cosine[0].flatten()[1:], torch.ones(3))


def check_magnitudes(map_of: MapOf, device: str | torch.device = "cpu") -> None:
    """No overflow for float16 at 6e4, no NaN for 1e-20, no change with the length of the vectors."""
    t, s = pair((1, 40, 3, 3), device=device)
    for scale_t, scale_s in ((1e-20, 1.0), (1.0, 1e20), (1e-20, 1e-20), (3e36, 1e-25), (1e18, 1e18)):
        big_t, big_s = t * scale_t, s * scale_s
        for kind in ("unit_l2", "cosine"):
            check_map(map_of, big_t, big_s, kind)
    signs = torch.randn(1, 512, 2, 2, generator=torch.Generator().manual_seed(3), device="cpu").sign().to(device)
    high = (signs * 6e4).half()
    other = high.clone()
    other[:, ::7] *= -1
    check_map(map_of, high, other)
    check_map(map_of, high, other, "l2")


def check_zero_gradients(map_of: MapOf, device: str | torch.device = "cpu", channels: int = 6) -> None:
    """A zero vector gets no gradient and gives none to the other; its neighbours do."""
    t, s = pair((1, channels, 2, 2), device=device)
    t[:, :, 0, 1] = 0
    s[:, :, 1, 0] = 0
    t, s = t.requires_grad_(), s.requires_grad_()
    for kind in ("unit_l2", "cosine"):
        for gradient in torch.autograd.grad(map_of(t, s, kind=kind).sum(), (t, s)):
            assert bool(torch.isfinite(gradient).all())
            assert float(gradient[:, :, 0, 1].abs().max()) == 0
            assert float(gradient[:, :, 1, 0].abs().max()) == 0
            assert float(gradient[:, :, 1, 1].abs().max()) > 0


def check_zero_samples(distance_of: Callable[[Tensor, Tensor], Tensor], device: str | torch.device = "cpu") -> None:
    """The distance of a sample that is all zero is 1, on either side and on both; its gradients are 0."""
    t, s = pair((4, 70, 3, 3), device=device)
    t[0], s[1], t[2], s[2] = 0, 0, 0, 0
    t, s = t.requires_grad_(), s.requires_grad_()
    distance = distance_of(t, s)
    assert distance.detach()[:3].tolist() == [1, 1, 1]
    assert 0 < float(distance.detach()[3]) < 1
    for gradient in torch.autograd.grad(distance.sum(), (t, s)):
        assert float(gradient[:3].abs().max()) == 0
        assert float(gradient[3].abs().max()) > 0


def check_not_a_number_stays_in_its_sample(
    distance_of: Callable[[Tensor, Tensor], Tensor], device: str | torch.device = "cpu"
) -> None:
    """A NaN anywhere in a sample, of teacher or student, is the distance of that sample, and of no other."""
    for role in (0, 1):
        for place in ((1, 0, 0, 0), (1, 69, 8, 7), (1, 64, 0, 3)):  # in the first, the last and another tile
            taps = pair((3, 70, 9, 8), device=device)
            taps[role][place] = torch.nan
            assert distance_of(*taps).isnan().tolist() == [False, True, False]


def check_not_a_number_stays(map_of: MapOf, device: str | torch.device = "cpu") -> None:
    """A NaN in the features is a NaN in its pixel of the map, and in no other."""
    t, s = pair((1, 20, 3, 4), device=device)
    s[0, 7, 1, 2] = torch.nan
    found = map_of(t, s).cpu()
    assert bool(found[0, 1, 2].isnan())
    assert int(found.isnan().sum()) == 1


LossOf = Callable[..., Tensor]


def check_loss_gradient(
    loss_of: LossOf,
    pairs: Sequence[tuple[Tensor, Tensor]],
    kind: str,
    upstream: float = 1.0,
    teacher_too: bool = False,
    weights: Sequence[float] | None = None,
) -> None:
    """Value and gradients of the loss agree with autograd through the oracle in float64."""
    teachers = [t.detach().requires_grad_(teacher_too) for t, _ in pairs]
    students = [s.detach().requires_grad_() for _, s in pairs]
    loss = loss_of(teachers, students, kind=kind, weights=weights)
    assert loss.shape == ()
    wanted = [*students, *teachers] if teacher_too else students
    found = torch.autograd.grad(loss * upstream, wanted)
    oracle_t = [t.requires_grad_(teacher_too) for t in double(*teachers)]
    oracle_s = [s.requires_grad_() for s in double(*students)]
    expected_loss = reference.distillation_loss(oracle_t, oracle_s, kind=kind, weights=weights)
    oracle = [*oracle_s, *oracle_t] if teacher_too else oracle_s
    expected = torch.autograd.grad(expected_loss * upstream, oracle)
    assert_close(loss, expected_loss.detach(), MAP_RTOL)
    for mine, theirs, tensor in zip(found, expected, wanted, strict=True):
        assert mine.dtype == tensor.dtype
        assert_same_direction(mine, theirs, GRADIENT_TOLERANCE[tensor.dtype])


def check_upstream(map_of: MapOf, upstream: Tensor, t: Tensor, s: Tensor, kind: str = "unit_l2") -> None:
    """The backward of the map under any upstream gradient, to both inputs."""
    t, s = t.detach().requires_grad_(), s.detach().requires_grad_()
    found = torch.autograd.grad(map_of(t, s, kind=kind), (t, s), upstream)
    expected = reference.pixel_discrepancy_gradients(double(upstream)[0], *double(t, s), kind=kind)
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_direction(mine, theirs, GRADIENT_TOLERANCE[mine.dtype])


def check_orthogonal(map_of: MapOf, t: Tensor, s: Tensor) -> None:
    """Scaling the student does not change the discrepancy: s · ∂d/∂s = 0."""
    s = s.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(map_of(t, s).sum(), s)
    along = (gradient.double() * s.detach().double()).sum(1).abs()
    allowed = 1e-5 * gradient.double().norm(dim=1) * s.detach().double().norm(dim=1)
    assert bool((along <= allowed + 1e-12).all())


FuseOf = Callable[..., Tensor]


def maps_of(sizes: Sequence[tuple[int, int]], batch: int = 2, device: str | torch.device = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(batch, h, w, generator=generator).to(device) for h, w in sizes]


def check_fusion(fuse_of: FuseOf, maps: Sequence[Tensor], size: tuple[int, int]) -> None:
    """Sum and product, both alignments, agree with the oracle."""
    for mode in ("sum", "product"):
        for align_corners in (False, True):
            expected = reference.fuse_scales(double(*maps), size, mode=mode, align_corners=align_corners)
            found = fuse_of(maps, size, mode=mode, align_corners=align_corners)
            assert_close(found, expected, MAP_RTOL, 1e-7)


def check_blur(blur_of: Callable[..., Tensor], maps: Tensor, sigma: float) -> None:
    """Both border rules agree with the oracle."""
    for border in ("scipy", "torch"):
        expected = reference.gaussian_blur(double(maps)[0], sigma, border=border)
        assert_close(blur_of(maps, sigma, border=border), expected, MAP_RTOL, 1e-7)


def check_scores(score_of: Callable[..., Tensor], maps: Tensor) -> None:
    """Maximum and mean agree with the oracle, wherever the maximum is."""
    for rule in ("max", "mean"):
        assert_close(score_of(maps, rule), reference.image_scores(double(maps)[0], rule), MAP_RTOL)
