"""The ops in plain PyTorch, the residual taken directly, a bounded scratch: without compiler or Triton."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdad_bench.kernels import reference
from kdad_bench.kernels.reference import FAR, TINY
from kdad_bench.kernels.sending import sent

SCRATCH = {"cpu": 1 << 18, "cuda": 1 << 26}  # elements of a feature map that are widened and normalised at a time


def chunks(x: Tensor) -> Iterator[slice]:
    """Slices of the batch of `x` whose features fit the scratch."""
    per_sample = max(x[:1].numel(), 1)
    step = max(1, SCRATCH.get(x.device.type, 1 << 24) // per_sample)
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def inverse_length(x: Tensor) -> Tensor:
    """1/|x| over channels in float32, 0 for a zero vector; [n,1,h,w]. Scaled, so that no square over- or underflows."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=1, keepdim=True)
    nonzero = ~(largest <= TINY)
    scale = torch.where(nonzero, largest, 1.0).reciprocal()
    return torch.where(nonzero, scale / torch.linalg.vector_norm(x * scale, dim=1, keepdim=True), 0.0)


def apart(inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of 1/|x|, one of them 1: the first belongs to a coefficient and the second to x.

    The second is 1/|x| where x is far from ordinary, so that no 1/|x|² leaves float32.
    """
    far = (inverse > FAR) | ((inverse < 1 / FAR) & (inverse > 0))
    return torch.where(far, 1.0, inverse), torch.where(far, inverse, 1.0)


class Pair:
    """One chunk of teacher and student, widened, with what every pixel op needs."""

    def __init__(self, teacher: Tensor, student: Tensor, kind: str) -> None:
        self.t, self.s = teacher.float(), student.float()
        if kind == "l2":
            self.residual = self.s - self.t
            return
        self.it, self.is_ = inverse_length(self.t), inverse_length(self.s)
        self.residual = self.s * self.is_
        self.residual.addcmul_(self.t, self.it, value=-1)
        self.half = 0.5 * torch.linalg.vector_norm(self.residual, dim=1, keepdim=True).square()
        self.directed = (self.it != 0) & (self.is_ != 0)
        self.cosine_distance = torch.where(self.directed, self.half, 1.0)

    def distance(self, kind: str) -> Tensor:
        """[n,h,w]."""
        if kind == "l2":
            return self.residual.square().sum(1)
        return (self.half if kind == "unit_l2" else self.cosine_distance)[:, 0]

    def to_student(self, g: Tensor, kind: str) -> Tensor:
        """g · ∂d/∂s with g [n,1,h,w]."""
        if kind == "l2":
            return 2 * g * self.residual
        g = torch.where(self.directed, g * self.is_, 0.0)
        coefficient, rest = apart(self.is_)
        return g * self.residual - (g * self.cosine_distance * coefficient) * (self.s * rest)

    def to_teacher(self, g: Tensor, kind: str) -> Tensor:
        """g · ∂d/∂t with g [n,1,h,w]."""
        if kind == "l2":
            return -2 * g * self.residual
        g = torch.where(self.directed, g * self.it, 0.0)
        coefficient, rest = apart(self.it)
        return -g * self.residual - (g * self.cosine_distance * coefficient) * (self.t * rest)


def pixel_maps(
    teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float
) -> list[list[Tensor]]:
    """Maps [N,H,W] of each student (one or two per scale) to the teacher of its scale."""
    maps = []
    for t, several in zip(teachers, students, strict=True):
        n, _, h, w = t.shape
        outs = [torch.empty((n, h, w), dtype=torch.float32, device=t.device) for _ in several]
        for s, out in zip(several, outs, strict=True):
            for part in chunks(t):
                torch.mul(Pair(t[part], s[part], kind).distance(kind), weight, out=out[part])
        maps.append(outs)
    return maps


def pixel_gradients(
    teacher: Tensor, student: Tensor, upstream: Tensor, kind: str, weight: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the map under the upstream gradient [N,H,W] float32."""
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    for part in chunks(teacher):
        pair, g = Pair(teacher[part], student[part], kind), (upstream[part] * weight)[:, None]
        if to_teacher is not None:
            to_teacher[part] = pair.to_teacher(g, kind)
        if to_student is not None:
            to_student[part] = pair.to_student(g, kind)
    return to_teacher, to_student


def pixel_loss(
    teachers: Sequence[Tensor],
    students: Sequence[Sequence[Tensor]],
    kind: str,
    weights: Sequence[float],
    wants: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor | None], list[list[Tensor | None]]]:
    """The loss, and the gradients to teachers and students under an upstream gradient of 1."""
    loss = torch.zeros((), dtype=torch.float32, device=teachers[0].device)
    to_teachers: list[Tensor | None] = []
    to_students: list[list[Tensor | None]] = []
    for t, several, w in zip(teachers, students, weights, strict=True):
        factor = torch.tensor(
            w * t.shape[1] / t.numel(), dtype=torch.float32, device="cpu"
        )  # a CPU scalar: enters any device without a synchronisation
        to_teacher = torch.empty_like(t) if wants[0] else None
        grads = [torch.empty_like(s) if wants[1] else None for s in several]
        for s, grad in zip(several, grads, strict=True):
            for part in chunks(t):
                pair = Pair(t[part], s[part], kind)
                loss += pair.distance(kind).sum() * factor
                if grad is not None:
                    grad[part] = pair.to_student(factor, kind)
                if to_teacher is not None:
                    to_teacher[part] = pair.to_teacher(factor, kind)
        to_teachers.append(to_teacher)
        to_students.append(grads)
    return loss, to_teachers, to_students


def flat_distance(sums: Tensor) -> Tensor:
    """1 - P/√(AB) from [N,3] float64, 1 where a vector is zero; [N] float32."""
    a, b, p = sums.unbind(1)
    nonzero = ~((a <= TINY**2) | (b <= TINY**2))
    return torch.where(nonzero, 1 - p / (a.sqrt() * b.sqrt()), 1.0).clamp_min_(0).float()


def flat_sums(teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """(A, B, P [N,3] float64, distance [N] float32) of each student; float64 sums because 1 - P/√(AB) cancels."""
    found = []
    for t, several in zip(teachers, students, strict=True):
        pairs = []
        for s in several:
            out = torch.empty((t.shape[0], 3), dtype=torch.float64, device=t.device)
            for part in chunks(t):
                a, b = t[part].double(), s[part].double()
                out[part, 0], out[part, 1] = a.square().sum((1, 2, 3)), b.square().sum((1, 2, 3))
                out[part, 2] = (a * b).sum((1, 2, 3))
            pairs.append((out, flat_distance(out)))
        found.append(pairs)
    return found


def flat_gradients(
    teacher: Tensor, student: Tensor, sums: Tensor, upstream: Tensor, factor: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the flattened cosine distance under the upstream gradient [N] float32."""
    a, b, p = sums.unbind(1)
    nonzero = ~((a <= TINY**2) | (b <= TINY**2))
    root = a.sqrt() * b.sqrt()
    g = upstream.double() * factor
    rest_t, rest_s = (apart(torch.where(nonzero, x, 1.0).rsqrt().float())[1] for x in (a, b))
    coefficients = g / root / rest_t, g / root / rest_s, g * p / root / a / rest_t, g * p / root / b / rest_s
    alpha_t, alpha_s, beta_t, beta_s = (torch.where(nonzero, x, 0.0).float().view(-1, 1, 1, 1) for x in coefficients)
    rest_t, rest_s = rest_t.view(-1, 1, 1, 1), rest_s.view(-1, 1, 1, 1)
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    for part in chunks(teacher):
        t, s = teacher[part].float() * rest_t[part], student[part].float() * rest_s[part]
        if to_teacher is not None:
            to_teacher[part] = beta_t[part] * t - alpha_s[part] * s
        if to_student is not None:
            to_student[part] = beta_s[part] * s - alpha_t[part] * t
    return to_teacher, to_student


def attention_weighting(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> list[Tensor]:
    """(1 - cos)/2 · student at every scale."""
    outs = [torch.empty_like(s) for s in students]
    for teacher, student, out in zip(teachers, students, outs, strict=True):
        for part in chunks(teacher):
            pair = Pair(teacher[part], student[part], "cosine")
            out[part] = 0.5 * pair.cosine_distance * pair.s
    return outs


@lru_cache(64)  # a method may draw a new sigma for every image
def blur_matrix(length: int, sigma: float, radius: int, border: str, device: torch.device) -> Tensor:
    """The reference's blur matrix in float32 on the device."""
    return sent(reference.blur_matrix(length, sigma, radius, border).float(), device)


def fuse_blur_score(
    maps: Sequence[Tensor],
    size: tuple[int, int],
    mode: str,
    align_corners: bool,
    sigma: float | None,
    radius: int,
    border: str,
    score: str | None,
) -> tuple[Tensor, Tensor | None]:
    """Upsample and fuse the maps, blur unless `sigma` is None, score unless `score` is None."""
    with torch.autocast(maps[0].device.type, enabled=False):
        fused: Tensor | None = None
        for m in maps:
            if m.shape[1:] == tuple(size):  # interpolation makes no number of infinity times a share of nothing
                up = m.to(torch.float32, copy=True)
            else:
                up = F.interpolate(m.float()[:, None], size, mode="bilinear", align_corners=align_corners)[:, 0]
            fused = up if fused is None else fused.mul_(up) if mode == "product" else fused.add_(up)
        assert fused is not None
        if sigma is not None:  # two small matrix products cost a third of a separable convolution on a CPU
            down = blur_matrix(size[0], sigma, radius, border, fused.device)
            across = blur_matrix(size[1], sigma, radius, border, fused.device)
            blurred = down @ fused @ across.T
            if blurred.is_cpu and not bool(torch.isfinite(blurred).all()):  # a product spreads it over its map
                blurred = reference.gaussian_blur(fused.double(), sigma, border=border, radius=radius).float()
            fused = blurred
        if score is None:
            return fused, None
        return fused, fused.flatten(1).amax(1) if score == "max" else fused.flatten(1).mean(1)


def scale_in_place(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply every gradient by the scalar `factor`."""
    for g in grads:
        g.mul_(factor)


def anomaly_map(
    teachers: Sequence[Tensor],
    students: Sequence[Tensor],
    size: tuple[int, int],
    kind: str,
    weight: float,
    mode: str,
    align_corners: bool,
    sigma: float | None,
    radius: int,
    border: str,
    score: str,
    fuse_size: tuple[int, int] | None,
) -> tuple[Tensor, Tensor]:
    """The whole map: discrepancies, fusion (at `fuse_size` first, if given), blur, score."""
    maps = [m[0] for m in pixel_maps(teachers, [[s] for s in students], kind, weight)]
    if fuse_size is not None:
        maps = [fuse_blur_score(maps, fuse_size, mode, align_corners, None, 0, border, None)[0]]
    out, scores = fuse_blur_score(maps, size, mode, align_corners, sigma, radius, border, score)
    assert scores is not None
    return out, scores
