"""Launches the Triton kernels: allocation, tiles, strides.

The launch configurations are the small tables below; there is no autotuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kdad_bench.kernels import triton_kernels
from kdad_bench.kernels.reference import blur_weights

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


def least_pixels(t: Tensor) -> int:
    """Pixels that fill a 32-byte sector of a feature map in NCHW; any number will do when channels are contiguous."""
    if t.stride(1) == 1 and t.shape[1] > 1:
        return 1
    return 32 // t.element_size()


def loads_wide(t: Tensor) -> bool:
    """Whether Triton may assume that every row starts at a multiple of 16 values, so that loads are vectors."""
    return all(stride == 1 or stride % 16 == 0 for stride in t.stride())


def is_large(tensors: Sequence[Tensor]) -> bool:
    """Whether the launch has work enough for large tiles."""
    return sum(t.numel() for t in tensors) >= FILLING


def is_flat(t: Tensor) -> bool:
    """Whether pixel p of a sample lies at p times one stride."""
    h, w = t.shape[2], t.shape[3]
    return h == 1 or w == 1 or t.stride(2) == t.stride(3) * w


def strides(t: Tensor) -> tuple[int, int, int, int]:
    """Strides of n, c, h and w; with one column the stride of a pixel is that of a row."""
    n, c, h, w = t.stride()
    return n, c, h, h if t.shape[3] == 1 else w


def is_wide(t: Tensor) -> bool:
    """Whether offsets inside one sample leave int32."""
    return sum((size - 1) * stride for size, stride in zip(t.shape[1:], t.stride()[1:], strict=True)) >= 2**31 - 2**20


def pixel_maps(
    teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float
) -> list[list[Tensor]]:
    """Maps [N,H,W] of each student (one or two per scale) to the teacher of its scale; one launch per four scales."""
    made = []
    for i in range(0, len(teachers), MOST_SCALES):
        made += launch_maps(teachers[i : i + MOST_SCALES], students[i : i + MOST_SCALES], kind, weight, None)
    return made


def launch_maps(
    teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float, scores: Tensor | None
) -> list[list[Tensor]]:
    """Up to four scales in one launch, which also sets `scores` to 0 if given."""
    maps = [
        [t.new_empty((t.shape[0], t.shape[2], t.shape[3]), dtype=torch.float32) for _ in s]
        for t, s in zip(teachers, students, strict=True)
    ]
    dual = len(students[0]) == 2
    large = is_large(teachers) and not dual
    everything = [*teachers, *(s for several in students for s in several)]
    blocks: list[int] = []
    sizes: list[int] = []
    starts = [0]
    for t, several in zip(teachers, students, strict=True):
        n, c, h, w = t.shape
        tile = tile_of(c, large, max(least_pixels(x) for x in (t, *several)))
        blocks += [tile.block_c, tile.block_p, tile.single]
        sizes += [c, h * w, w]
        starts.append(starts[-1] + n * -(-h * w // tile.block_p))
    if starts[-1] == 0:
        return maps
    scales = len(teachers)
    firsts = [several[0] for several in students]
    seconds = [several[-1] for several in students]
    triton_kernels.maps_kernel[(starts[-1],)](
        tuple(teachers),
        tuple(firsts),
        tuple(seconds),
        tuple(m[0] for m in maps),
        tuple(m[-1] for m in maps),
        tuple(sizes),
        tuple(x for t in teachers for x in strides(t)),
        tuple(x for t in firsts for x in strides(t)),
        tuple(x for t in seconds for x in strides(t)),
        tuple(starts),
        maps[0][0] if scores is None else scores,
        teachers[0].shape[0],
        weight,
        BLOCKS=tuple(blocks),
        SCALES=scales,
        KIND=KINDS[kind],
        DUAL=dual,
        FLAT=all(map(is_flat, everything)),
        WIDE=any(map(is_wide, everything)),
        SCORES=scores is not None,
        num_warps=LARGE_WARPS if large or dual else SMALL_WARPS,
        num_stages=1,
        maxnreg=MOST_REGISTERS,
    )
    return maps


def launch_gradient(
    teacher: Tensor,
    student: Tensor,
    to_teacher: Tensor | None,
    to_student: Tensor | None,
    upstream: Tensor | None,
    losses: Tensor | None,
    tile: Tile,
    kind: int,
    factor: float,
    attention: bool = False,
) -> None:
    """One launch of `gradient_kernel`."""
    n, c, h, w = student.shape
    programs = n * -(-h * w // tile.block_p)
    if programs == 0:
        return
    gt, gs = student if to_teacher is None else to_teacher, student if to_student is None else to_student
    u = student if upstream is None else upstream
    u_strides = (0, 0, 0) if upstream is None else upstream.stride()
    tensors = (teacher, student, gt, gs)
    triton_kernels.gradient_kernel[(programs,)](
        teacher,
        student,
        gt,
        gs,
        u,
        student if losses is None else losses,
        c,
        h * w,
        w,
        factor,
        *strides(teacher),
        *strides(student),
        *strides(gt),
        *strides(gs),
        *u_strides,
        KIND=kind,
        SINGLE=tile.single,
        BLOCK_C=tile.block_c,
        BLOCK_P=tile.block_p,
        WANT_T=to_teacher is not None,
        WANT_S=to_student is not None,
        UPSTREAM=upstream is not None,
        LOSS=losses is not None,
        ATTENTION=attention,
        FLAT=all(map(is_flat, tensors)),
        WIDE=any(map(is_wide, tensors)),
        num_warps=tile.warps if all(map(loads_wide, tensors)) else LARGE_WARPS,  # narrow loads need more registers
        num_stages=1,
        maxnreg=MOST_REGISTERS,
    )


def pixel_gradients(
    teacher: Tensor, student: Tensor, upstream: Tensor, kind: str, weight: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the map under the upstream gradient [N,H,W] float32."""
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    tile = tile_of(student.shape[1], is_large([student]), max(least_pixels(teacher), least_pixels(student)))
    launch_gradient(teacher, student, to_teacher, to_student, upstream, None, tile, KINDS[kind], weight)
    return to_teacher, to_student


def pixel_loss(
    teachers: Sequence[Tensor],
    students: Sequence[Sequence[Tensor]],
    kind: str,
    weights: Sequence[float],
    wants: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor | None], list[list[Tensor | None]]]:
    """The loss, and the gradients under an upstream gradient of 1: a launch per pair, one sum of programs' shares."""
    plan = []
    total = 0
    for t, several, weight in zip(teachers, students, weights, strict=True):
        n, c, h, w = t.shape
        for i, s in enumerate(several):
            tile = tile_of(c, is_large([s]), max(least_pixels(t), least_pixels(s)))
            programs = n * -(-h * w // tile.block_p)
            plan.append((t, s, i, tile, total, total + programs, weight / (n * h * w)))
            total += programs
    losses = teachers[0].new_empty(total, dtype=torch.float32)
    to_teachers: list[Tensor | None] = []
    to_students: list[list[Tensor | None]] = []
    for t, s, i, tile, start, end, factor in plan:
        if i == 0:
            to_teachers.append(torch.empty_like(t) if wants[0] else None)
            to_students.append([])
        to_student = torch.empty_like(s) if wants[1] else None
        launch_gradient(t, s, to_teachers[-1], to_student, None, losses[start:end], tile, KINDS[kind], factor)
        to_students[-1].append(to_student)
    return losses.sum(), to_teachers, to_students


def flat_sums(teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """(A, B, P [N,3] float64, distance [N] float32) of each student; two launches per pair."""
    found = []
    for t, several in zip(teachers, students, strict=True):
        n, c, h, w = t.shape
        pairs = []
        for s in several:
            blocks = -(-c // FLAT_C)
            count = blocks * -(-h * w // FLAT_P)
            parts = t.new_empty(max(n * count, 1) * 5, dtype=torch.float32)
            sums = t.new_empty((n, 3), dtype=torch.float64)
            distances = t.new_empty(n, dtype=torch.float32)
            if n:
                triton_kernels.flat_sums_kernel[(n * count,)](
                    t,
                    s,
                    parts,
                    c,
                    h * w,
                    w,
                    blocks,
                    *strides(t),
                    *strides(s),
                    BLOCK_C=FLAT_C,
                    BLOCK_P=FLAT_P,
                    FLAT=is_flat(t) and is_flat(s),
                    WIDE=is_wide(t) or is_wide(s),
                    num_warps=SMALL_WARPS,
                    num_stages=1,
                )
                triton_kernels.flat_finish_kernel[(n,)](parts, sums, distances, count, BLOCK=FINISH_BLOCK, num_warps=4)
            pairs.append((sums, distances))
        found.append(pairs)
    return found


def flat_gradients(
    teacher: Tensor, student: Tensor, sums: Tensor, upstream: Tensor, factor: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the flattened cosine distance under the upstream gradient [N] float32."""
    n, c, h, w = student.shape
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    gt, gs = student if to_teacher is None else to_teacher, student if to_student is None else to_student
    blocks = -(-c // FLAT_C)
    if n:
        triton_kernels.flat_gradient_kernel[(n * blocks * -(-h * w // FLAT_P),)](
            teacher,
            student,
            gt,
            gs,
            sums,
            upstream,
            factor,
            c,
            h * w,
            w,
            blocks,
            *strides(teacher),
            *strides(student),
            *strides(gt),
            *strides(gs),
            upstream.stride(0),
            BLOCK_C=FLAT_C,
            BLOCK_P=FLAT_P,
            WANT_T=to_teacher is not None,
            WANT_S=to_student is not None,
            FLAT=all(map(is_flat, (teacher, student, gt, gs))),
            WIDE=any(map(is_wide, (teacher, student, gt, gs))),
            num_warps=SMALL_WARPS,
            num_stages=1,
        )
    return to_teacher, to_student


def attention_weighting(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> list[Tensor]:
    """(1 - cos)/2 · student, one launch per scale."""
    outs = [torch.empty_like(s) for s in students]
    for t, s, out in zip(teachers, students, outs, strict=True):
        tile = tile_of(s.shape[1], is_large([s]), max(least_pixels(t), least_pixels(s)))
        launch_gradient(t, s, None, out, None, None, tile, KINDS["cosine"], 1.0, attention=True)
    return outs


def scale_in_place(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply every (dense) gradient by the scalar `factor`; the GPU finds out itself whether that is 1."""
    for g in grads:
        if g.numel():
            programs = -(-g.numel() // SCALE_BLOCK)
            triton_kernels.scale_kernel[(programs,)](g, factor, g.numel(), BLOCK=SCALE_BLOCK, num_warps=4)


@cache
def blur_table(sigma: float, radius: int, device: torch.device) -> Tensor:
    """The blur's weights on the device. Made once per sigma: call the op once before a CUDA graph is captured."""
    return torch.tensor(blur_weights(sigma, radius), device=device, dtype=torch.float32)


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
    n, (height, width) = kept[0].shape[0], size
    out = kept[0].new_empty((n, height, width))
    blurs = sigma is not None
    block_y, block_x = (BLUR_Y, BLUR_X) if blurs else (FUSE_Y, FUSE_X)
    blocks_y, blocks_x = -(-height // block_y), -(-width // block_x)
    programs = blocks_y * blocks_x
    maximum, mean = score == "max" and scores is not None, score == "mean"
    partial = kept[0].new_empty((n, programs)) if mean else out
    # A dummy pointer where there are no scores: never written to.
    score_pointer = scores if maximum else out
    sizes = tuple(x for m in kept for x in m.shape[1:])
    flags = {"MAPS": len(kept), "PRODUCT": mode == "product", "ALIGN": align_corners}
    if n and not blurs:
        triton_kernels.fuse_kernel[(n * programs,)](
            kept, sizes, out, score_pointer, partial, height, width, blocks_y, blocks_x,
            **flags, MAXIMUM=maximum, MEAN=mean, BLOCK_Y=block_y, BLOCK_X=block_x, num_warps=FUSE_WARPS,
        )  # fmt: skip
    elif n and sigma is not None:
        weights = blur_table(sigma, radius, out.device)
        rows = torch.empty_like(out)
        shape = {"BLOCK_Y": block_y, "BLOCK_X": block_x, "CHUNK": BLUR_CHUNK, "PRECISION": BLUR_PRECISION}
        torch_border = border == "torch"
        triton_kernels.blur_x_kernel[(n * programs,)](
            kept, sizes, rows, weights, radius, height, width, blocks_y, blocks_x,
            **flags, TORCH=torch_border, **shape, num_warps=BLUR_WARPS, num_stages=1,
        )  # fmt: skip
        triton_kernels.blur_y_kernel[(n * programs,)](
            rows, out, score_pointer, partial, weights, radius, height, width, blocks_y, blocks_x,
            TORCH=torch_border, MAXIMUM=maximum, MEAN=mean, **shape, num_warps=BLUR_WARPS, num_stages=1,
        )  # fmt: skip
    if score is None:
        return out, None
    if maximum:
        return out, scores
    return out, partial.sum(1) / (height * width) if mean else out.flatten(1).amax(1)


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
