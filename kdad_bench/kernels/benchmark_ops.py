"""The ops that are timed: ours, what people write instead, the oracle; their inputs and the bytes that must move."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import reference

RESNET18 = ((64, 64), (128, 32), (256, 16))  # channels and side of layer1-3 at 256 x 256
WIDE_RESNET50 = ((256, 64), (512, 32), (1024, 16))
SHAPES = {"resnet18": RESNET18, "wide_resnet50_2": WIDE_RESNET50}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SIZE = (256, 256)
SIGMA = 4.0
ROTATION = {"cpu": 96 << 20, "cuda": 512 << 20}  # bytes of inputs to rotate through, so that no cache serves a call


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is timed."""

    op: str
    shape: str
    batch: int
    dtype: str
    layout: str


# ---- what people write ---------------------------------------------------------------------------------------------


def paper_distance(t: Tensor, s: Tensor) -> Tensor:
    """As the papers' code has it: two normalised copies, their difference, its square."""
    return 0.5 * (F.normalize(t, dim=1) - F.normalize(s, dim=1)).square().sum(1)


def three_sum_distance(t: Tensor, s: Tensor) -> Tensor:
    """Three reductions and no normalised copy; cancels for near pairs."""
    return 1 - (t * s).sum(1) / ((t * t).sum(1) * (s * s).sum(1)).sqrt()


def paper_flat(t: Tensor, s: Tensor) -> Tensor:
    """The flattened cosine distance [N] by the library function."""
    return 1 - F.cosine_similarity(t.flatten(1), s.flatten(1))


def three_sum_flat(t: Tensor, s: Tensor) -> Tensor:
    """The same from three reductions."""
    dims = (1, 2, 3)
    return 1 - (t * s).sum(dims) / ((t * t).sum(dims) * (s * s).sum(dims)).sqrt()


def separable_blur(maps: Tensor, weights: Tensor) -> Tensor:
    """A padded convolution down and one across."""
    r = weights.numel() // 2
    x = F.pad(maps[:, None], (r, r, r, r), mode="reflect")
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))[:, 0]


def eager_fusion(maps: Sequence[Tensor], mode: str) -> Tensor:
    """Maps upsampled one by one, then added or multiplied."""
    ups = [F.interpolate(m[:, None], SIZE, mode="bilinear", align_corners=False)[:, 0] for m in maps]
    total = ups[0]
    for up in ups[1:]:
        total = total * up if mode == "product" else total + up
    return total


Taps = list[list[Tensor]]  # teacher, student, second student
Call = Callable[[Taps], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """An op and its two eager forms, as functions of the taps."""

    ours: Call
    paper: Call
    three_sum: Call | None
    oracle: Call
    transfers: int  # feature sets that must move
    output_maps: bool = False  # writes [N, 256, 256]
    scale_maps: int = 0  # writes or reads that many sets of per-scale maps
    trains: bool = False
    flattened: bool = False


def gradients(loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]) -> Call:
    """Forward and backward of a loss, to the student."""

    def call(taps: Taps) -> Any:
        students = [s.detach().requires_grad_() for s in taps[1]]
        value = loss(taps[0], students)
        return value.detach(), *torch.autograd.grad(value, students)

    return call


def mean_of(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Forward and backward of the mean of `distance` over all scales."""

    def loss(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> Tensor:
        return torch.stack([distance(t, s).float().mean() for t, s in zip(teachers, students, strict=True)]).sum()

    return gradients(loss)


def each(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """`distance` at every scale."""
    return lambda taps: [distance(t, s) for t, s in zip(taps[0], taps[1], strict=True)]


def both(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """`distance` of two students at every scale."""
    return lambda taps: [(distance(t, a), distance(t, b)) for t, a, b in zip(*taps, strict=True)]


def weighting(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Half the `distance` times the student's features, at every scale."""
    return lambda taps: [(0.5 * distance(t, s)[:, None] * s).to(s.dtype) for t, s in zip(taps[0], taps[1], strict=True)]


def whole(distance: Callable[[Tensor, Tensor], Tensor], mode: str, blurs: bool) -> Call:
    """Distances, fusion, blur and maximum: the map and its scores."""

    def call(taps: Taps) -> Any:
        fused = eager_fusion([distance(t, s).float() for t, s in zip(taps[0], taps[1], strict=True)], mode)
        if blurs:
            fused = separable_blur(fused, blur_kernel(fused.device))
        return fused, fused.amax((1, 2))

    return call


_weights: dict[torch.device, Tensor] = {}


def blur_kernel(device: torch.device) -> Tensor:
    """The weights of the eager blur."""
    if device not in _weights:
        radius = reference.blur_radius(SIGMA)
        _weights[device] = torch.tensor(reference.blur_weights(SIGMA, radius), dtype=torch.float32, device=device)
    return _weights[device]


def double(taps: Taps) -> Taps:
    """The taps in float64."""
    return [[x.double() for x in group] for group in taps]


WHOLE_MAP: dict[str, Any] = {"size": SIZE, "sigma": SIGMA, "border": "torch"}
PRODUCT_MAP: dict[str, Any] = {"size": SIZE, "mode": "product"}

NEAR = "discrepancy of near pairs"
OPS = {
    "discrepancy": Op(
        ours=lambda taps: kernels.pixel_discrepancies(taps[0], taps[1]),
        paper=each(paper_distance),
        three_sum=each(three_sum_distance),
        oracle=each(reference.pixel_discrepancy),
        transfers=2,
        scale_maps=1,
    ),
    NEAR: Op(  # the same, of a student that has learned: channels_last then reads the pixels a second time
        ours=lambda taps: kernels.pixel_discrepancies(taps[0], taps[1]),
        paper=each(paper_distance),
        three_sum=each(three_sum_distance),
        oracle=each(reference.pixel_discrepancy),
        transfers=2,
        scale_maps=1,
    ),
    "loss, forward and backward": Op(
        ours=gradients(kernels.distillation_loss),
        paper=mean_of(paper_distance),
        three_sum=mean_of(three_sum_distance),
        oracle=gradients(reference.distillation_loss),
        transfers=3,
        trains=True,
    ),
    "flattened loss, forward and backward": Op(
        ours=gradients(lambda t, s: kernels.distillation_loss(t, s, kind="flattened")),
        paper=mean_of(paper_flat),
        three_sum=mean_of(three_sum_flat),
        oracle=gradients(lambda t, s: reference.distillation_loss(t, s, kind="flattened")),
        transfers=3,  # where a sample's second reading comes from a cache
        trains=True,
        flattened=True,
    ),
    "two students": Op(
        ours=lambda taps: kernels.dual_discrepancies(*taps),
        paper=both(paper_distance),
        three_sum=both(three_sum_distance),
        oracle=lambda taps: [reference.dual_discrepancy(t, a, b) for t, a, b in zip(*taps, strict=True)],
        transfers=3,
        scale_maps=2,
    ),
    "attention weighting": Op(
        ours=lambda taps: kernels.attention_weightings(taps[0], taps[1]),
        paper=weighting(lambda t, s: 1 - F.cosine_similarity(t, s)),
        three_sum=weighting(three_sum_distance),
        oracle=lambda taps: [reference.attention_weighting(t, s) for t, s in zip(taps[0], taps[1], strict=True)],
        transfers=3,
    ),
    "map: product, max": Op(
        ours=lambda taps: kernels.anomaly_map(taps[0], taps[1], **PRODUCT_MAP),
        paper=whole(paper_distance, "product", False),
        three_sum=whole(three_sum_distance, "product", False),
        oracle=lambda taps: reference.anomaly_map(taps[0], taps[1], **PRODUCT_MAP),
        transfers=2,
        output_maps=True,
    ),
    "map: sum, blur, max": Op(
        ours=lambda taps: kernels.anomaly_map(taps[0], taps[1], **WHOLE_MAP),
        paper=whole(paper_distance, "sum", True),
        three_sum=whole(three_sum_distance, "sum", True),
        oracle=lambda taps: reference.anomaly_map(taps[0], taps[1], **WHOLE_MAP),
        transfers=2,
        output_maps=True,
    ),
}


def transfers_of(op: Op, case: Case, device: torch.device) -> int:
    """Feature sets that move: five where forward and backward read apart, as for a gradient in float16 and for the
    flattened loss on a GPU, whose sums of a whole sample come first."""
    apart = op.trains and (case.dtype == "fp16" or (op.flattened and device.type == "cuda"))
    return 5 if apart else op.transfers


def minimum_bytes(op: Op, case: Case, device: torch.device) -> int:
    """Bytes that must cross the memory bus."""
    features = sum(c * side * side for c, side in SHAPES[case.shape]) * case.batch * DTYPES[case.dtype].itemsize
    maps = sum(side * side for _, side in SHAPES[case.shape]) * case.batch * 4 * op.scale_maps
    return (
        transfers_of(op, case, device) * features + maps + (math.prod(SIZE) * case.batch * 4 if op.output_maps else 0)
    )


def inputs(case: Case, device: torch.device, copies: int | None = None) -> list[Taps]:
    """Sets of random taps to rotate through, `copies` of them if given.

    Only the first values differ between sets: the memory is what matters.

    The distance of a pixel is near 0.08, and near 2e-4 for near pairs.
    """
    apart = 0.02 if case.op == NEAR else 0.3
    generator = torch.Generator(device).manual_seed(0)

    def tap(c: int, side: int, like: Tensor | None) -> Tensor:
        x = torch.randn(case.batch, c, side, side, generator=generator, device=device)
        x = x if like is None else (1 - apart) * like.float() + apart * x
        return x.to(DTYPES[case.dtype], memory_format=LAYOUTS[case.layout])

    students = 2 if case.op == "two students" else 1
    teacher = [tap(c, side, None) for c, side in SHAPES[case.shape]]
    first = [
        teacher,
        *([tap(*cs, t) for cs, t in zip(SHAPES[case.shape], teacher, strict=True)] for _ in range(students)),
    ]
    size = sum(x.numel() * x.element_size() for group in first for x in group)
    if copies is None:
        copies = max(3, min(64, math.ceil(ROTATION[device.type] / size)))
    return [first, *([[x.clone() for x in group] for group in first] for _ in range(copies - 1))]
