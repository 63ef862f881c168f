"""Launches the Triton kernels: allocation, tiles, strides.

The launch configurations are the small tables below; there is no autotuning. What a launch needs besides its tensors is
planned once per layout of the tensors and kept. Every launch makes the device of its tensors current.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdad_bench.kernels import triton_kernels
from kdad_bench.kernels.reference import blur_weights
from kdad_bench.kernels.sending import sent

KINDS = {"unit_l2": 0, "cosine": 1, "l2": 2}
MOST_SCALES = 4


class Tile(NamedTuple):
    """Channels and pixels of a program's tile, whether that is every channel, warps."""

    block_c: int
    block_p: int
    single: bool
    warps: int


# Values of one tensor in a tile by number of programs: few images need many small programs to fill the GPU.
SMALL_TILE, LARGE_TILE = 4096, 8192
SMALL_WARPS, LARGE_WARPS = 4, 8
# The most there are: left to itself, ptxas spills a few bytes to fit one more program on a multiprocessor.
MOST_REGISTERS = 255
FILLING = 1 << 23  # values of one tensor from which on large tiles still give every multiprocessor several programs
MOST_CHANNELS = 1024  # more are read in blocks, twice
LOOP_C, LOOP_P = 128, 32
FLAT_C, FLAT_P = 64, 64
SCALE_BLOCK = 4096
FUSE_Y, FUSE_X, FUSE_WARPS = 16, 64, 4
BLUR_Y, BLUR_X, BLUR_CHUNK, BLUR_WARPS = 32, 64, 32, 8
BLUR_PRECISION = "tf32x3"  # three tensor-core products, as precise as float32 to about 1e-6
FINISH_BLOCK = 128
MOST_PLANS = 1024  # launches that are remembered: a job needs a few, however many batches it has
MOST_BLURS = 64  # a method may draw a new sigma for every image


class Layout(NamedTuple):
    """What a launch has to know of a tensor: everything but where it lies."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    itemsize: int


class Plan(NamedTuple):
    """A launch but for its tensors: how many programs, which numbers, which constants and options."""

    programs: int
    numbers: tuple[Any, ...]
    constants: dict[str, Any]


def layout(t: Tensor) -> Layout:
    """The layout of `t`."""
    return Layout(t.shape, t.stride(), t.element_size())


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` current: Triton launches on the current device, whatever the tensors say."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(device)


def launch(kernel: Any, plan: Plan, *tensors: Any) -> None:
    """Launch `plan` on the device of the first tensor; no program, no launch. Every launch goes through here."""
    if plan.programs:
        first = tensors[0][0] if isinstance(tensors[0], tuple) else tensors[0]
        with guard(first.device):
            kernel[(plan.programs,)](*tensors, *plan.numbers, **plan.constants)


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below `n`."""
    return 1 << (n - 1).bit_length()


def tile_of(channels: int, large: bool, least_pixels: int) -> Tile:
    """The tile for `channels`; `least_pixels` is what one memory sector needs in NCHW, 1 in channels_last."""
    values, warps = (LARGE_TILE, LARGE_WARPS) if large else (SMALL_TILE, SMALL_WARPS)
    block_c = power_of_two(channels)
    if block_c > MOST_CHANNELS or values // block_c < least_pixels:
        return Tile(LOOP_C, LOOP_P, False, warps)
    return Tile(max(block_c, 4), max(1, min(values // max(block_c, 4), 256)), True, warps)


def least_pixels(t: Layout) -> int:
    """Pixels that fill a 32-byte sector of a feature map in NCHW; any number will do when channels are contiguous."""
    if t.stride[1] == 1 and t.shape[1] > 1:
        return 1
    return 32 // t.itemsize


def loads_wide(t: Layout) -> bool:
    """Whether Triton may assume that every row starts at a multiple of 16 values, so that loads are vectors."""
    return all(stride == 1 or stride % 16 == 0 for stride in t.stride)


def is_large(tensors: Sequence[Layout]) -> bool:
    """Whether the launch has work enough for large tiles."""
    return sum(math.prod(t.shape) for t in tensors) >= FILLING


def is_flat(t: Layout) -> bool:
    """Whether pixel p of a sample lies at p times one stride."""
    h, w = t.shape[2], t.shape[3]
    return h == 1 or w == 1 or t.stride[2] == t.stride[3] * w


def strides(t: Layout) -> tuple[int, int, int, int]:
    """Strides of n, c, h and w; with one column the stride of a pixel is that of a row."""
    n, c, h, w = t.stride
    return n, c, h, h if t.shape[3] == 1 else w


def is_wide(t: Layout) -> bool:
    """Whether offsets inside one sample leave int32."""
    return sum((size - 1) * stride for size, stride in zip(t.shape[1:], t.stride[1:], strict=True)) >= 2**31 - 2**20


def pair_tile(teacher: Layout, student: Layout) -> Tile:
    """The tile for a launch over one pair."""
    return tile_of(student.shape[1], is_large([student]), max(least_pixels(teacher), least_pixels(student)))


def pixel_maps(
    teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float
) -> list[list[Tensor]]:
    """Maps [N,H,W] of each student (one or two per scale) to the teacher of its scale; one launch per four scales."""
    made = []
    for i in range(0, len(teachers), MOST_SCALES):
        made += launch_maps(teachers[i : i + MOST_SCALES], students[i : i + MOST_SCALES], kind, weight, None)
    return made


@lru_cache(MOST_PLANS)
def maps_plan(
    teachers: tuple[Layout, ...],
    firsts: tuple[Layout, ...],
    seconds: tuple[Layout, ...],
    kind: str,
    dual: bool,
    scored: bool,
) -> Plan:
    """The launch of `maps_kernel` over up to four scales; `seconds` are `firsts` unless `dual`."""
    large = is_large(teachers) and not dual
    everything = (*teachers, *firsts, *seconds)
    blocks: list[int] = []
    sizes: list[int] = []
    starts = [0]
    for t, a, b in zip(teachers, firsts, seconds, strict=True):
        n, c, h, w = t.shape
        tile = tile_of(c, large, max(map(least_pixels, (t, a, b))))
        blocks += [tile.block_c, tile.block_p, tile.single]
        sizes += [c, h * w, w]
        starts.append(starts[-1] + n * -(-h * w // tile.block_p))
    numbers = tuple(sizes), *(tuple(x for t in some for x in strides(t)) for some in (teachers, firsts, seconds))
    constants = {
        "BLOCKS": tuple(blocks), "SCALES": len(teachers), "KIND": KINDS[kind], "DUAL": dual, "SCORES": scored,
        "FLAT": all(map(is_flat, everything)), "WIDE": any(map(is_wide, everything)),
        "num_warps": LARGE_WARPS if large or dual else SMALL_WARPS, "num_stages": 1, "maxnreg": MOST_REGISTERS,
    }  # fmt: skip
    return Plan(starts[-1], (*numbers, tuple(starts), teachers[0].shape[0]), constants)


def launch_maps(
    teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float, scores: Tensor | None
) -> list[list[Tensor]]:
    """Up to four scales in one launch, which also sets `scores` to 0 if given."""
    maps = [
        [t.new_empty((t.shape[0], t.shape[2], t.shape[3]), dtype=torch.float32) for _ in s]
        for t, s in zip(teachers, students, strict=True)
    ]
    firsts, seconds = tuple(several[0] for several in students), tuple(several[-1] for several in students)
    layouts = [tuple(map(layout, some)) for some in (teachers, firsts, seconds)]
    plan = maps_plan(*layouts, kind, len(students[0]) == 2, scores is not None)
    maps_a, maps_b = tuple(m[0] for m in maps), tuple(m[-1] for m in maps)
    launch(
        triton_kernels.maps_kernel, plan, tuple(teachers), firsts, seconds, maps_a, maps_b,
        maps_a[0] if scores is None else scores, weight,
    )  # fmt: skip
    return maps


@lru_cache(MOST_PLANS)
def gradient_plan(
    teacher: Layout, student: Layout, to_teacher: Layout | None, to_student: Layout | None,
    upstream: tuple[int, ...] | None, loss: bool, kind: int, attention: bool,
) -> Plan:  # fmt: skip
    """The launch of `gradient_kernel` over one pair; `upstream` are the strides of the gradient from above."""
    n, c, h, w = student.shape
    tile = pair_tile(teacher, student)
    tensors = teacher, student, to_teacher or student, to_student or student
    numbers = c, h * w, w, *(x for t in tensors for x in strides(t)), *(upstream or (0, 0, 0))
    constants = {
        "KIND": kind, "SINGLE": tile.single, "BLOCK_C": tile.block_c, "BLOCK_P": tile.block_p,
        "WANT_T": to_teacher is not None, "WANT_S": to_student is not None, "UPSTREAM": upstream is not None,
        "LOSS": loss, "ATTENTION": attention, "FLAT": all(map(is_flat, tensors)), "WIDE": any(map(is_wide, tensors)),
        # narrow loads need more registers
        "num_warps": tile.warps if all(map(loads_wide, tensors)) else LARGE_WARPS,
        "num_stages": 1, "maxnreg": MOST_REGISTERS,
    }  # fmt: skip
    return Plan(n * -(-h * w // tile.block_p), numbers, constants)


def launch_gradient(
    teacher: Tensor,
    student: Tensor,
    to_teacher: Tensor | None,
    to_student: Tensor | None,
    upstream: Tensor | None,
    losses: Tensor | None,
    kind: int,
    factor: float,
    attention: bool = False,
) -> None:
    """One launch of `gradient_kernel`; what is not given is not read or written."""
    plan = gradient_plan(
        layout(teacher), layout(student),
        None if to_teacher is None else layout(to_teacher), None if to_student is None else layout(to_student),
        None if upstream is None else upstream.stride(), losses is not None, kind, attention,
    )  # fmt: skip
    absent = (student if x is None else x for x in (to_teacher, to_student, upstream, losses))
    launch(triton_kernels.gradient_kernel, plan, teacher, student, *absent, factor)


def pixel_gradients(
    teacher: Tensor, student: Tensor, upstream: Tensor, kind: str, weight: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the map under the upstream gradient [N,H,W] float32."""
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    launch_gradient(teacher, student, to_teacher, to_student, upstream, None, KINDS[kind], weight)
    return to_teacher, to_student


def pixel_loss(
    teachers: Sequence[Tensor],
    students: Sequence[Sequence[Tensor]],
    kind: str,
    weights: Sequence[float],
    wants: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor | None], list[list[Tensor | None]]]:
    """The loss, and the gradients under an upstream gradient of 1: a launch per pair, one sum of programs' shares."""
    programs = [
        [programs_of(layout(t), layout(s)) for s in several] for t, several in zip(teachers, students, strict=True)
    ]
    losses = teachers[0].new_empty(sum(map(sum, programs)), dtype=torch.float32)
    shares = iter(torch.split(losses, [count for counts in programs for count in counts]))
    to_teachers: list[Tensor | None] = []
    to_students: list[list[Tensor | None]] = []
    for t, several, weight in zip(teachers, students, weights, strict=True):
        n, _, h, w = t.shape
        to_teachers.append(torch.empty_like(t) if wants[0] else None)
        to_students.append([torch.empty_like(s) if wants[1] else None for s in several])
        for s, to_student in zip(several, to_students[-1], strict=True):
            share, factor = next(shares), weight / (n * h * w)
            launch_gradient(t, s, to_teachers[-1], to_student, None, share, KINDS[kind], factor)
    return losses.sum(), to_teachers, to_students


@lru_cache(MOST_PLANS)
def programs_of(teacher: Layout, student: Layout) -> int:
    """How many programs `gradient_plan` starts over a pair."""
    n, _, h, w = student.shape
    return n * -(-h * w // pair_tile(teacher, student).block_p)


@lru_cache(MOST_PLANS)
def flat_plan(teacher: Layout, student: Layout) -> Plan:
    """The launch of `flat_sums_kernel` over one pair."""
    n, c, h, w = teacher.shape
    blocks = -(-c // FLAT_C)
    constants = {
        "BLOCK_C": FLAT_C, "BLOCK_P": FLAT_P, "FLAT": is_flat(teacher) and is_flat(student),
        "WIDE": is_wide(teacher) or is_wide(student), "num_warps": SMALL_WARPS, "num_stages": 1,
    }  # fmt: skip
    return Plan(
        n * blocks * -(-h * w // FLAT_P), (c, h * w, w, blocks, *strides(teacher), *strides(student)), constants
    )


def flat_sums(teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """(A, B, P [N,3] float64, distance [N] float32) of each student; two launches per pair."""
    return [[flat_pair(t, s) for s in several] for t, several in zip(teachers, students, strict=True)]


def flat_pair(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B, P [N,3] float64, distance [N] float32) of one student."""
    n, plan = teacher.shape[0], flat_plan(layout(teacher), layout(student))
    parts = teacher.new_empty(max(plan.programs, 1) * 5, dtype=torch.float32)
    sums = teacher.new_empty((n, 3), dtype=torch.float64)
    distances = teacher.new_empty(n, dtype=torch.float32)
    launch(triton_kernels.flat_sums_kernel, plan, teacher, student, parts)
    if n:
        finish = Plan(n, (plan.programs // n,), {"BLOCK": FINISH_BLOCK, "num_warps": 4})
        launch(triton_kernels.flat_finish_kernel, finish, parts, sums, distances)
    return sums, distances


@lru_cache(MOST_PLANS)
def flat_gradient_plan(
    teacher: Layout, student: Layout, to_teacher: Layout | None, to_student: Layout | None, upstream: int
) -> Plan:
    """The launch of `flat_gradient_kernel`; `upstream` is the stride of the gradient from above."""
    n, c, h, w = student.shape
    blocks = -(-c // FLAT_C)
    tensors = teacher, student, to_teacher or student, to_student or student
    numbers = c, h * w, w, blocks, *(x for t in tensors for x in strides(t)), upstream
    constants = {
        "BLOCK_C": FLAT_C, "BLOCK_P": FLAT_P, "WANT_T": to_teacher is not None, "WANT_S": to_student is not None,
        "FLAT": all(map(is_flat, tensors)), "WIDE": any(map(is_wide, tensors)),
        "num_warps": SMALL_WARPS, "num_stages": 1,
    }  # fmt: skip
    return Plan(n * blocks * -(-h * w // FLAT_P), numbers, constants)


def flat_gradients(
    teacher: Tensor, student: Tensor, sums: Tensor, upstream: Tensor, factor: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the flattened cosine distance under the upstream gradient [N] float32."""
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    launch_flat_gradient(teacher, student, to_teacher, to_student, sums, upstream, factor)
    return to_teacher, to_student


def launch_flat_gradient(
    teacher: Tensor,
    student: Tensor,
    to_teacher: Tensor | None,
    to_student: Tensor | None,
    sums: Tensor,
    upstream: Tensor,
    factor: float,
) -> None:
    """One launch of `flat_gradient_kernel`; a gradient that is not given is not written."""
    plan = flat_gradient_plan(
        layout(teacher), layout(student),
        None if to_teacher is None else layout(to_teacher), None if to_student is None else layout(to_student),
        upstream.stride(0),
    )  # fmt: skip
    absent = (student if x is None else x for x in (to_teacher, to_student))
    launch(triton_kernels.flat_gradient_kernel, plan, teacher, student, *absent, sums, upstream, factor)


def attention_weighting(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> list[Tensor]:
    """(1 - cos)/2 · student, one launch per scale."""
    outs = [torch.empty_like(s) for s in students]
    for t, s, out in zip(teachers, students, outs, strict=True):
        launch_gradient(t, s, None, out, None, None, KINDS["cosine"], 1.0, attention=True)
    return outs


def scale_in_place(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply every (dense) gradient by the scalar `factor`; the GPU finds out itself whether that is 1."""
    for g in grads:
        plan = Plan(-(-g.numel() // SCALE_BLOCK), (g.numel(),), {"BLOCK": SCALE_BLOCK, "num_warps": 4})
        launch(triton_kernels.scale_kernel, plan, g, factor)


@lru_cache(MOST_BLURS)
def blur_table(sigma: float, radius: int, device: torch.device) -> Tensor:
    """The blur's weights on the device, kept for the latest sigmas: call once before a CUDA graph is captured."""
    return sent(torch.tensor(blur_weights(sigma, radius), dtype=torch.float32), device)


def fuse_blur_score(
    maps: Sequence[Tensor],
    size: tuple[int, int],
    mode: str,
    align_corners: bool,
    sigma: float | None,
    radius: int,
    border: str,
    score: str | None,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Upsample and fuse, blur unless `sigma` is None, score unless `score` is None: one launch, or two with a blur.

    The maximum is taken inside the last launch if `scores` comes set to 0 and no map is negative; otherwise, and for
    the mean (whose partial sums are added in a fixed order), the score is one launch more.
    """
    kept = tuple(m.float().contiguous() for m in maps)
    n, out = kept[0].shape[0], kept[0].new_empty((kept[0].shape[0], *size))
    maximum, mean = score == "max" and scores is not None, score == "mean"
    block = (FUSE_Y, FUSE_X) if sigma is None else (BLUR_Y, BLUR_X)
    blocks = -(-size[0] // block[0]), -(-size[1] // block[1])
    partial = kept[0].new_empty((n, math.prod(blocks))) if mean else out
    ends = out, scores if maximum else out, partial  # dummies where there are no scores: never written to
    common: dict[str, Any] = {"BLOCK_Y": block[0], "BLOCK_X": block[1]}
    fusing = {"MAPS": len(kept), "PRODUCT": mode == "product", "ALIGN": align_corners}
    scoring = {"MAXIMUM": maximum, "MEAN": mean}
    sizes, grid, programs = tuple(x for m in kept for x in m.shape[1:]), (*size, *blocks), n * math.prod(blocks)
    if sigma is None:
        constants = common | fusing | scoring | {"num_warps": FUSE_WARPS}
        launch(triton_kernels.fuse_kernel, Plan(programs, grid, constants), kept, sizes, *ends)
    else:
        weights, rows = blur_table(sigma, radius, out.device), torch.empty_like(out)
        common |= {"TORCH": border == "torch", "CHUNK": BLUR_CHUNK, "PRECISION": BLUR_PRECISION}
        common |= {"num_warps": BLUR_WARPS, "num_stages": 1}
        plan = Plan(programs, (radius, *grid), common | fusing)
        launch(triton_kernels.blur_x_kernel, plan, kept, sizes, rows, weights)
        plan = Plan(programs, (radius, *grid), common | scoring)
        launch(triton_kernels.blur_y_kernel, plan, rows, *ends, weights)
    if score is None:
        return out, None
    if maximum:
        return out, scores
    return out, partial.sum(1) / math.prod(size) if mean else out.flatten(1).amax(1)


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
    """The whole map: one launch for the discrepancies, one for fusion (and blur along x), one for blur along y."""
    scores = None
    if score == "max" and weight >= 0:
        scores = teachers[0].new_empty(teachers[0].shape[0], dtype=torch.float32)
    found = launch_maps(teachers, [[s] for s in students], kind, weight, scores)
    maps = [m[0] for m in found]
    if fuse_size is not None:
        maps = [fuse_blur_score(maps, fuse_size, mode, align_corners, None, 0, border, None)[0]]
    out, made = fuse_blur_score(maps, size, mode, align_corners, sigma, radius, border, score, scores)
    assert made is not None
    return out, made
