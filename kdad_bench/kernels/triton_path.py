"""Launches the Triton kernels that read features: allocation, tiles, strides.

The launch configurations are the small tables below; there is no autotuning. What a launch needs besides its tensors is
planned once per layout of the tensors and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kdad_bench.kernels import triton_kernels
from kdad_bench.kernels.triton_fusion import fuse_blur_score as fuse_blur_score
from kdad_bench.kernels.triton_launch import Plan, launch
from kdad_bench.kernels.triton_layout import (
    Layout,
    is_flat,
    is_wide,
    layout,
    least_pixels,
    loads_wide,
    strides,
)

Taps = tuple[Tensor, ...]
KINDS = {"unit_l2": 0, "cosine": 1, "l2": 2}
MOST_SCALES = 4  # in one launch, of maps or gradients
MOST_TENSORS = 8  # in one launch that scales them


class Tile(NamedTuple):
    """Channels and pixels of a program's tile, whether that is every channel."""

    block_c: int
    block_p: int
    single: bool


class Program(NamedTuple):
    """Values of one tensor in a program's tile, and its warps."""

    values: int
    warps: int


# What 32 images of ResNet-18 were quickest with on an H100. In channels_last warps lie side by side along pixels, and
# sums over channels stay inside few threads; in NCHW they lie along channels, and fewer of them meet less often.
CHANNELS_LAST, NCHW = Program(2048, 8), Program(4096, 4)
HALF_NCHW = Program(4096, 2)  # of 16 bits; with gradients to both, two warps have too few registers
DEEP = Program(8192, 8)  # NCHW of so many channels that a tile would have less of each than a memory sector
FLAT_WARPS = 4
MOST_REGISTERS = 255  # left to itself, ptxas spills a few bytes to fit one more program on a multiprocessor
MOST_CHANNELS = 1024  # more are read in blocks, twice
LOOP_C, LOOP_P = 128, 32
FLAT_C, FLAT_P = 64, 64
SCALE_BLOCK = 4096
FINISH_BLOCK = 128
MOST_PLANS = 1024  # launches that are remembered: a job needs a few, however many batches it has


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below `n`."""
    return 1 << (n - 1).bit_length()


def tile_of(channels: int, values: int, least_pixels: int) -> Tile:
    """The tile for `channels`; `least_pixels` is what one memory sector needs in NCHW, 1 in channels_last."""
    block_c = power_of_two(channels)
    if block_c > MOST_CHANNELS or values // block_c < least_pixels:
        return Tile(LOOP_C, LOOP_P, False)
    return Tile(max(block_c, 4), max(1, min(values // max(block_c, 4), 256)), True)


def program_of(tensors: Sequence[Layout], few_registers: bool) -> Program:
    """What a program of a launch over `tensors` takes on; `few_registers`: what it computes leaves two warps enough."""
    if all(least_pixels(t) == 1 for t in tensors):
        return CHANNELS_LAST
    if any(NCHW.values // power_of_two(t.shape[1]) < least_pixels(t) for t in tensors):
        return DEEP
    return HALF_NCHW if few_registers and all(t.itemsize == 2 for t in tensors) else NCHW


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
    everything = (*teachers, *firsts, *seconds)
    program = program_of(everything, True)
    blocks: list[int] = []
    sizes: list[int] = []
    starts = [0]
    for t, a, b in zip(teachers, firsts, seconds, strict=True):
        n, c, h, w = t.shape
        tile = tile_of(c, program.values, max(map(least_pixels, (t, a, b))))
        blocks += [tile.block_c, tile.block_p, tile.single]
        sizes += [c, h * w, w]
        starts.append(starts[-1] + n * -(-h * w // tile.block_p))
    numbers = tuple(sizes), *(tuple(x for t in some for x in strides(t)) for some in (teachers, firsts, seconds))
    constants = {
        "BLOCKS": tuple(blocks), "SCALES": len(teachers), "KIND": KINDS[kind], "DUAL": dual, "SCORES": scored,
        "FLAT": all(map(is_flat, everything)), "WIDE": any(map(is_wide, everything)),
        "num_warps": program.warps, "num_stages": 1, "maxnreg": MOST_REGISTERS,
    }  # fmt: skip
    return Plan.of(starts[-1], (*numbers, tuple(starts), teachers[0].shape[0]), constants)


class Maps(NamedTuple):
    """A launch of `maps_kernel` over up to four scales: its plan and the shapes of its maps."""

    plan: Plan
    shapes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, teachers: Taps, firsts: Taps, seconds: Taps, kind: str, scored: bool) -> Maps:
        """`seconds` are `firsts`, the same object, unless there are two students."""
        layouts = [tuple(map(layout, some)) for some in (teachers, firsts)]
        layouts.append(layouts[1] if seconds is firsts else tuple(map(layout, seconds)))
        shapes = tuple((t.shape[0], t.shape[2], t.shape[3]) for t in teachers)
        return cls(maps_plan(*layouts, kind, seconds is not firsts, scored), shapes)

    def empty(self, like: Tensor) -> Taps:
        """Maps to be written."""
        return tuple([like.new_empty(shape, dtype=torch.float32) for shape in self.shapes])

    def launch(
        self, teachers: Taps, firsts: Taps, seconds: Taps, weight: float, scores: Tensor | None
    ) -> tuple[Taps, Taps]:
        """The maps of both students, the same twice if there is one; sets `scores` to 0 if given."""
        maps_a = maps_b = self.empty(teachers[0])
        if seconds is not firsts:
            maps_b = self.empty(teachers[0])
        zeroed = maps_a[0] if scores is None else scores
        launch(triton_kernels.maps_kernel, self.plan, teachers, firsts, seconds, maps_a, maps_b, zeroed, weight)
        return maps_a, maps_b


def launch_maps(
    teachers: Sequence[Tensor], students: Sequence[Sequence[Tensor]], kind: str, weight: float, scores: Tensor | None
) -> list[list[Tensor]]:
    """Up to four scales in one launch, which also sets `scores` to 0 if given."""
    several = [tuple(taps) for taps in zip(*students, strict=True)]
    groups = tuple(teachers), several[0], several[-1]
    made = Maps.of(*groups, kind, scores is not None).launch(*groups, weight, scores)
    return [list(maps) for maps in zip(*made[: len(several)], strict=True)]


Layouts = tuple[Layout, ...]


@lru_cache(MOST_PLANS)
def gradient_plan(
    teachers: Layouts, students: Layouts, to_teachers: Layouts | None, to_students: Layouts | None,
    upstreams: tuple[tuple[int, ...], ...] | None, loss: bool, kind: int, attention: bool,
) -> Plan:  # fmt: skip
    """The launch of `gradient_kernel` over up to four scales; `upstreams` are the strides of gradients from above."""
    groups = teachers, students, to_teachers or students, to_students or students
    tensors = [t for group in groups for t in group]
    program = program_of(tensors, to_teachers is None or to_students is None)
    blocks: list[int] = []
    sizes: list[int] = []
    starts = [0]
    for t, s in zip(teachers, students, strict=True):
        n, c, h, w = s.shape
        tile = tile_of(c, program.values, max(least_pixels(t), least_pixels(s)))
        blocks += [tile.block_c, tile.block_p, tile.single]
        sizes += [c, h * w, w]
        starts.append(starts[-1] + n * -(-h * w // tile.block_p))
    numbers = tuple(sizes), *(tuple(x for t in group for x in strides(t)) for group in groups)
    above = tuple(x for strides in upstreams or ((0, 0, 0),) * len(teachers) for x in strides)
    constants = {
        "BLOCKS": tuple(blocks), "SCALES": len(teachers), "KIND": kind, "WANT_T": to_teachers is not None,
        "WANT_S": to_students is not None, "UPSTREAM": upstreams is not None, "LOSS": loss, "ATTENTION": attention,
        "FLAT": all(map(is_flat, tensors)), "WIDE": any(map(is_wide, tensors)),
        # narrow loads need more registers
        "num_warps": program.warps if all(map(loads_wide, tensors)) else DEEP.warps,
        "num_stages": 1, "maxnreg": MOST_REGISTERS,
    }  # fmt: skip
    return Plan.of(starts[-1], (*numbers, above, tuple(starts)), constants)


class Sweep(NamedTuple):
    """What one launch of `gradient_kernel` reads and writes, a tensor per scale; what is None is not touched."""

    teachers: tuple[Tensor, ...]
    students: tuple[Tensor, ...]
    to_teachers: tuple[Tensor, ...] | None
    to_students: tuple[Tensor, ...] | None
    upstreams: tuple[Tensor, ...] | None

    def plan(self, kind: int, loss: bool, attention: bool) -> Plan:
        """The launch's plan."""
        groups = (
            None if group is None else tuple(map(layout, group))
            for group in (self.teachers, self.students, self.to_teachers, self.to_students)
        )
        above = None if self.upstreams is None else tuple(u.stride() for u in self.upstreams)
        return gradient_plan(*groups, above, loss, kind, attention)

    def launch(self, plan: Plan, losses: Tensor | None, factors: Sequence[float]) -> None:
        """Launch it; program i writes its share of the loss to losses[i], if given."""
        teachers, students, to_teachers, to_students, upstreams = self
        launch(
            triton_kernels.gradient_kernel, plan, teachers, students, to_teachers or students, to_students or students,
            upstreams or students, students[0] if losses is None else losses, tuple(factors),
        )  # fmt: skip


def launch_gradient(
    teacher: Tensor,
    student: Tensor,
    to_teacher: Tensor | None,
    to_student: Tensor | None,
    upstream: Tensor | None,
    kind: int,
    factor: float,
) -> None:
    """One launch of `gradient_kernel` over one pair; what is not given is not read or written."""
    given = (None if x is None else (x,) for x in (to_teacher, to_student, upstream))
    sweep = Sweep((teacher,), (student,), *given)
    sweep.launch(sweep.plan(kind, False, False), None, [factor])


def pixel_gradients(
    teacher: Tensor, student: Tensor, upstream: Tensor, kind: str, weight: float, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to (teacher, student) of the map under the upstream gradient [N,H,W] float32."""
    to_teacher = torch.empty_like(teacher) if wants[0] else None
    to_student = torch.empty_like(student) if wants[1] else None
    launch_gradient(teacher, student, to_teacher, to_student, upstream, KINDS[kind], weight)
    return to_teacher, to_student


class Part(NamedTuple):
    """A launch of a loss: its scales, its student, its plan, the factors of the scales."""

    scales: slice
    student: int
    plan: Plan
    factors: tuple[float, ...]


class Loss(NamedTuple):
    """The launches of a loss and which gradients they write: up to four scales of a student in each.

    Two students and a gradient to the teacher exclude each other: the second student's would replace the first's.
    """

    parts: tuple[Part, ...]
    wants: tuple[bool, bool]

    @classmethod
    def of(
        cls, teachers: Taps, several: Sequence[Taps], kind: str, weights: Sequence[float], wants: tuple[bool, bool]
    ) -> Loss:
        """The taps of each student are one of `several`."""
        factors = [w / (t.shape[0] * t.shape[2] * t.shape[3]) for t, w in zip(teachers, weights, strict=True)]
        parts = []
        for i in range(0, len(teachers), MOST_SCALES):
            scales = slice(i, i + MOST_SCALES)
            t = tuple(map(layout, teachers[scales]))
            to_t = tuple(layout(torch.empty_like(x)) for x in teachers[scales]) if wants[0] else None
            for k, taps in enumerate(several):
                to_s = tuple(layout(torch.empty_like(x)) for x in taps[scales]) if wants[1] else None
                plan = gradient_plan(t, tuple(map(layout, taps[scales])), to_t, to_s, None, True, KINDS[kind], False)
                parts.append(Part(scales, k, plan, tuple(factors[scales])))
        return cls(tuple(parts), wants)

    def launch(self, teachers: Taps, several: Sequence[Taps]) -> tuple[Tensor, Taps | None, list[Taps | None]]:
        """The loss and the gradients, those of a student in a tuple; one sum of the programs' shares."""
        to_teachers = tuple([torch.empty_like(t) for t in teachers]) if self.wants[0] else None
        to_several = [tuple([torch.empty_like(s) for s in taps]) if self.wants[1] else None for taps in several]
        programs = [part.plan.programs for part in self.parts]
        losses = teachers[0].new_empty(sum(programs), dtype=torch.float32)
        shares = torch.split(losses, programs) if len(programs) > 1 else (losses,)
        for part, share in zip(self.parts, shares, strict=True):
            taps, to_taps = several[part.student][part.scales], to_several[part.student]
            Sweep(
                teachers[part.scales], taps, None if to_teachers is None else to_teachers[part.scales],
                None if to_taps is None else to_taps[part.scales], None,
            ).launch(part.plan, share, part.factors)  # fmt: skip
        return losses.sum(), to_teachers, to_several


def pixel_loss(
    teachers: Sequence[Tensor],
    students: Sequence[Sequence[Tensor]],
    kind: str,
    weights: Sequence[float],
    wants: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor | None], list[list[Tensor | None]]]:
    """The loss, and the gradients under an upstream gradient of 1; see `Loss`."""
    taps, several = tuple(teachers), [tuple(one) for one in zip(*students, strict=True)]
    loss, to_teachers, to_several = Loss.of(taps, several, kind, weights, wants).launch(taps, several)
    nothing: tuple[None, ...] = (None,) * len(taps)
    per_scale = zip(*(nothing if one is None else one for one in to_several), strict=True)
    return loss, list(nothing if to_teachers is None else to_teachers), [list(grads) for grads in per_scale]


@lru_cache(MOST_PLANS)
def flat_plan(teacher: Layout, student: Layout) -> Plan:
    """The launch of `flat_sums_kernel` over one pair."""
    n, c, h, w = teacher.shape
    blocks = -(-c // FLAT_C)
    constants = {
        "BLOCK_C": FLAT_C, "BLOCK_P": FLAT_P, "FLAT": is_flat(teacher) and is_flat(student),
        "WIDE": is_wide(teacher) or is_wide(student), "num_warps": FLAT_WARPS, "num_stages": 1,
    }  # fmt: skip
    return Plan.of(
        n * blocks * -(-h * w // FLAT_P), (c, h * w, w, blocks, *strides(teacher), *strides(student)), constants
    )


@lru_cache(MOST_PLANS)
def finish_plan(n: int, parts: int) -> Plan:
    """The launch of `flat_finish_kernel` over so many samples of so many parts."""
    return Plan.of(n, (parts,), {"BLOCK": FINISH_BLOCK, "num_warps": 4})


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
        launch(triton_kernels.flat_finish_kernel, finish_plan(n, plan.programs // n), parts, sums, distances)
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
        "num_warps": FLAT_WARPS, "num_stages": 1,
    }  # fmt: skip
    return Plan.of(n * blocks * -(-h * w // FLAT_P), numbers, constants)


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


class Weighting(NamedTuple):
    """A launch that weights up to four scales."""

    plan: Plan

    @classmethod
    def of(cls, teachers: Taps, students: Taps) -> Weighting:
        """Planned."""
        out = tuple(layout(torch.empty_like(s)) for s in students)
        layouts = (tuple(map(layout, taps)) for taps in (teachers, students))
        return cls(gradient_plan(*layouts, None, out, None, False, KINDS["cosine"], True))

    def launch(self, teachers: Taps, students: Taps) -> Taps:
        """The weighted features."""
        out = tuple([torch.empty_like(s) for s in students])
        Sweep(teachers, students, None, out, None).launch(self.plan, None, (1.0,) * len(out))
        return out


def attention_weighting(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> list[Tensor]:
    """(1 - cos)/2 · student, one launch per four scales."""
    outs: list[Tensor] = []
    for i in range(0, len(teachers), MOST_SCALES):
        t, s = (tuple(group[i : i + MOST_SCALES]) for group in (teachers, students))
        outs += Weighting.of(t, s).launch(t, s)
    return outs


@lru_cache(MOST_PLANS)
def scale_plan(counts: tuple[int, ...]) -> Plan:
    """The launch of `scale_kernel` over tensors of so many values."""
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + -(-count // SCALE_BLOCK))
    constants = {"TENSORS": len(counts), "BLOCK": SCALE_BLOCK, "num_warps": 4}
    return Plan.of(starts[-1], (counts, tuple(starts)), constants)


def scale_in_place(grads: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply dense gradients by the scalar `factor` in one launch; the GPU finds out itself whether that is 1."""
    for i in range(0, len(grads), MOST_TENSORS):
        some = tuple(grads[i : i + MOST_TENSORS])
        launch(triton_kernels.scale_kernel, scale_plan(tuple(g.numel() for g in some)), some, factor)


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
    """The whole map: one launch for the discrepancies, one for a blurred sum or any fusion without a blur."""
    scores = None
    if score == "max" and weight >= 0:
        scores = teachers[0].new_empty(teachers[0].shape[0], dtype=torch.float32)
    found = launch_maps(teachers, [[s] for s in students], kind, weight, scores)
    maps = [m[0] for m in found]
    out, made = fuse_blur_score(maps, size, mode, align_corners, sigma, radius, border, score, scores, fuse_size)
    assert made is not None
    return out, made
