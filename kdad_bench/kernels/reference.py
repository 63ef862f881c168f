"""Every op of this room as its formula reads, in eager PyTorch: the oracle of tests and benchmarks.

Nothing here is fast. Inputs of 16 bits are widened to float32 first; float64 stays float64, and is differentiable.
`docs/kernels.md` has the mathematics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FAR = 2.0**40  # a gradient / |x|² may leave float32 where |x| or 1/|x| is above it
TINY = 2.0**-100  # a vector whose largest magnitude is not above this counts as the zero vector, in every path


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """x / |x| along `dim`; the zero vector stays zero. The division by the largest magnitude keeps |x|² in range."""
    largest = x.detach().abs().amax(dim, keepdim=True)
    nonzero = ~(largest <= TINY)  # NaN is no zero vector: it spreads
    scaled = x / torch.where(nonzero, largest, 1.0)
    length = torch.where(nonzero, scaled.square().sum(dim, keepdim=True), 1.0).sqrt()
    return torch.where(nonzero, scaled / length, 0.0)


def is_nonzero(x: Tensor, dim: int | tuple[int, ...] = 1) -> Tensor:
    """Where `x` is not the zero vector along `dim`."""
    return ~(x.detach().abs().amax(dim) <= TINY)


def pixel_discrepancy(teacher: Tensor, student: Tensor, *, kind: str = "unit_l2", weight: float = 1.0) -> Tensor:
    """unit_l2: ½|t/|t| - s/|s||² (STFPM eq. 1-2); cosine: 1 - t·s/(|t||s|) (RD4AD eq. 1); l2: |t - s|².

    [N,C,H,W]² -> [N,H,W].
    """
    t, s = wide(teacher), wide(student)
    if kind == "l2":
        return weight * (t - s).square().sum(1)
    distance = 0.5 * (unit(t) - unit(s)).square().sum(1)
    if kind == "cosine":
        distance = torch.where(is_nonzero(t) & is_nonzero(s), distance, 1.0)
    return weight * distance


def unit_and_inverse_length(x: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """x / |x| and 1 / |x|, both 0 for the zero vector."""
    largest = x.abs().amax(dim, keepdim=True)
    nonzero = ~(largest <= TINY)
    scaled = x / torch.where(nonzero, largest, 1.0)
    inverse = torch.where(nonzero, 1.0 / (scaled.square().sum(dim, keepdim=True).sqrt() * largest), 0.0)
    return unit(x, dim), inverse


def cosine_gradients(upstream: Tensor, t: Tensor, s: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """∂(1 - c)/∂t = (c t̂ - ŝ)/|t| and ∂(1 - c)/∂s = (c ŝ - t̂)/|s|, both 0 where t or s is the zero vector."""
    (a, ia), (b, ib) = unit_and_inverse_length(t, dim), unit_and_inverse_length(s, dim)
    g = torch.where((ia > 0) & (ib > 0), upstream, 0.0)
    c = (a * b).sum(dim, keepdim=True)
    return g * ia * (c * a - b), g * ib * (c * b - a)


def pixel_discrepancy_gradients(
    upstream: Tensor, teacher: Tensor, student: Tensor, *, kind: str = "unit_l2", weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The gradients of `pixel_discrepancy` to teacher and student in closed form; upstream [N,H,W]."""
    t, s = wide(teacher), wide(student)
    g = weight * upstream.to(t.dtype)[:, None]
    to_teacher, to_student = (2 * g * (t - s), 2 * g * (s - t)) if kind == "l2" else cosine_gradients(g, t, s, 1)
    return to_teacher.to(teacher.dtype), to_student.to(student.dtype)


def flattened_cosine_gradients(upstream: Tensor, teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of `flattened_cosine` to teacher and student in closed form; upstream [N]."""
    t, s = wide(teacher), wide(student)
    to_teacher, to_student = cosine_gradients(upstream.to(t.dtype).view(-1, 1, 1, 1), t, s, (1, 2, 3))
    return to_teacher.to(teacher.dtype), to_student.to(student.dtype)


def flattened_cosine(teacher: Tensor, student: Tensor) -> Tensor:
    """1 - T·S/(|T||S|) with each sample's C·H·W values as one vector (RD4AD's code, MKD eq. 2). -> [N]."""
    t, s = wide(teacher).flatten(1), wide(student).flatten(1)
    distance = 0.5 * (unit(t) - unit(s)).square().sum(1)
    return torch.where(is_nonzero(t) & is_nonzero(s), distance, 1.0)


def dual_discrepancy(
    teacher: Tensor, a: Tensor, b: Tensor, *, kind: str = "unit_l2", weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The discrepancies of two students to one teacher."""
    return (
        pixel_discrepancy(teacher, a, kind=kind, weight=weight),
        pixel_discrepancy(teacher, b, kind=kind, weight=weight),
    )


def attention_weighting(teacher: Tensor, student: Tensor) -> Tensor:
    """(1 - cos)/2 · s per pixel (FractalAD, cosine-similarity attention); no gradient, dtype of the student."""
    with torch.no_grad():
        attention = 0.5 * pixel_discrepancy(teacher, student, kind="cosine")
        return (attention[:, None] * wide(student)).to(student.dtype)


def distillation_loss(
    teacher_taps: Sequence[Tensor],
    student_taps: Sequence[Tensor],
    *,
    kind: str = "unit_l2",
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Σ_k w_k · mean of the discrepancy of scale k (over n, h, w; over n for "flattened")."""
    total: Tensor | None = None
    for k, (t, s) in enumerate(zip(teacher_taps, student_taps, strict=True)):
        value = flattened_cosine(t, s) if kind == "flattened" else pixel_discrepancy(t, s, kind=kind)
        term = (1.0 if weights is None else weights[k]) * value.mean()
        total = term if total is None else total + term
    if total is None:
        raise ValueError("distillation_loss needs at least one scale; got none")
    return total


def dual_distillation_loss(
    teacher_taps: Sequence[Tensor],
    a_taps: Sequence[Tensor],
    b_taps: Sequence[Tensor],
    *,
    kind: str = "unit_l2",
    weights: Sequence[float] | None = None,
) -> Tensor:
    """The losses of two students against one teacher, added."""
    return distillation_loss(teacher_taps, a_taps, kind=kind, weights=weights) + distillation_loss(
        teacher_taps, b_taps, kind=kind, weights=weights
    )


def fuse_scales(
    maps: Sequence[Tensor], size: tuple[int, int], *, mode: str = "sum", align_corners: bool = False
) -> Tensor:
    """Sum or product over scales of the maps upsampled bilinearly to `size`: [N,h_k,w_k]... -> [N,H,W]."""
    fused: Tensor | None = None
    for m in maps:
        up = F.interpolate(wide(m)[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]
        fused = up if fused is None else fused * up if mode == "product" else fused + up
    if fused is None:
        raise ValueError("fuse_scales needs at least one map; got none")
    return fused


def upsampling_gradient(upstream: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The adjoint of upsampling [N,1,h,w] of `size` to that of `upstream`; in one order if that was asked for."""
    if upstream.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return upsampling_gradient_in_order(upstream, size, align_corners)
    shape = [*upstream.shape[:2], *size]
    back: Tensor = torch.ops.aten.upsample_bilinear2d_backward(
        upstream.contiguous(), upstream.shape[2:], shape, align_corners
    )
    return back


def upsampling_gradient_in_order(upstream: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The same by two matrix products: PyTorch's own adds with atomics on a GPU, and refuses when it must not."""
    down, across = (
        F.interpolate(
            torch.eye(length, dtype=upstream.dtype, device=upstream.device)[None, None],
            (to, length),
            mode="bilinear",
            align_corners=align_corners,
        )[0, 0]
        for length, to in zip(size, upstream.shape[2:], strict=True)
    )
    return down.T @ upstream @ across


def fuse_scales_gradients(
    upstream: Tensor, maps: Sequence[Tensor], *, mode: str = "sum", align_corners: bool = False
) -> list[Tensor]:
    """The gradients of `fuse_scales` to every map: the adjoint of each upsampling."""
    size = [upstream.shape[1], upstream.shape[2]]
    ups = [F.interpolate(wide(m)[:, None], size, mode="bilinear", align_corners=align_corners) for m in maps]
    gradients = []
    for k, m in enumerate(maps):
        g = upstream.to(ups[k].dtype)[:, None]
        if mode == "product":
            for i, up in enumerate(ups):
                g = g * up if i != k else g
        gradients.append(upsampling_gradient(g, (m.shape[1], m.shape[2]), align_corners)[:, 0].to(m.dtype))
    return gradients


def blur_radius(sigma: float) -> int:
    """scipy's default: the filter is cut off at 4σ."""
    return int(4.0 * sigma + 0.5)


def blur_weights(sigma: float, radius: int) -> list[float]:
    """exp(-i²/2σ²), i = -radius..radius, normalised to sum 1, in double precision."""
    i = torch.arange(-radius, radius + 1, dtype=torch.float64, device="cpu")
    weights = torch.exp(-0.5 * (i / sigma) ** 2)
    return [float(w) for w in weights / weights.sum()]


def reflected(length: int, radius: int, border: str) -> Tensor:
    """Source index of each position of a line padded by `radius`.

    scipy "reflect": d c b a | a b c d | d c b a. torch "reflect": d c b | a b c d | c b a. Bounces as often as needed.
    """
    i = torch.arange(-radius, length + radius, device="cpu")
    if border == "scipy":
        i = i.remainder(2 * length)
        return torch.minimum(i, 2 * length - 1 - i)
    if length == 1:
        return torch.zeros_like(i)
    i = i.remainder(2 * length - 2)
    return torch.minimum(i, 2 * length - 2 - i)


def blur_matrix(length: int, sigma: float, radius: int, border: str) -> Tensor:
    """G with G @ x the blur of a column of `length` values, the reflected borders folded in; float64."""
    source = reflected(length, radius, border)
    matrix = torch.zeros(length, length, dtype=torch.float64, device="cpu")
    rows = torch.arange(length, device="cpu")
    for k, weight in enumerate(blur_weights(sigma, radius)):
        matrix[rows, source[k : k + length]] += weight
    return matrix


def gaussian_blur_gradient(upstream: Tensor, sigma: float, *, border: str, radius: int) -> Tensor:
    """The gradient of `gaussian_blur`: Gᵀ g G."""
    down = blur_matrix(upstream.shape[1], sigma, radius, border).to(upstream)
    across = blur_matrix(upstream.shape[2], sigma, radius, border).to(upstream)
    return down.T @ upstream @ across


def gaussian_blur(maps: Tensor, sigma: float = 4.0, *, border: str = "scipy", radius: int | None = None) -> Tensor:
    """Separable Gaussian of [N,H,W], cut off at `radius`, with reflected borders."""
    x = wide(maps)[:, None]
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return gaussian_blur(maps, sigma, border=border, radius=radius)
    r = blur_radius(sigma) if radius is None else radius
    w = torch.tensor(blur_weights(sigma, r), dtype=x.dtype, device=x.device)
    x = x.index_select(2, reflected(x.shape[2], r, border).to(x.device))
    x = F.conv2d(x, w.view(1, 1, -1, 1))
    x = x.index_select(3, reflected(x.shape[3], r, border).to(x.device))
    return F.conv2d(x, w.view(1, 1, 1, -1))[:, 0]


def image_scores(maps: Tensor, rule: str = "max") -> Tensor:
    """The maximum or the mean of each map: [N,H,W] -> [N]."""
    x = wide(maps).flatten(1)
    return x.amax(1) if rule == "max" else x.mean(1)


def anomaly_map(
    teacher_taps: Sequence[Tensor],
    student_taps: Sequence[Tensor],
    size: tuple[int, int],
    *,
    kind: str = "unit_l2",
    weight: float = 1.0,
    mode: str = "sum",
    align_corners: bool = False,
    sigma: float | None = None,
    border: str = "scipy",
    score: str = "max",
    fuse_size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Discrepancy of every scale, fusion, optional blur, image score: the whole inference epilogue."""
    maps = [pixel_discrepancy(t, s, kind=kind, weight=weight) for t, s in zip(teacher_taps, student_taps, strict=True)]
    fused = fuse_scales(maps, fuse_size or size, mode=mode, align_corners=align_corners)
    if fuse_size is not None:
        fused = fuse_scales([fused], size, align_corners=align_corners)
    if sigma is not None:
        fused = gaussian_blur(fused, sigma, border=border)
    return fused, image_scores(fused, score)
