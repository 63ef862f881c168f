"""The sums behind the pixel metrics on a GPU: how all pixels lie around each positive one, found in sorted scores.

The scores of all pixels are sorted, or of the negatives where these are much fewer, and beside them those of the
positives. A positive pixel finds by binary search how many lie below it and at it; its terms of all sums follow, and
are added program by program in a fixed order. Nothing waits for the GPU before the few numbers that leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdad_bench.kernels.counting import NotFinite
from kdad_bench.kernels.sending import constant
from kdad_bench.kernels.triton_launch import Plan, launch

BLOCK, WARPS = 512, 4  # positives of a program: four a thread, whose loads wait for memory together
PARTS = 1024  # partial sums that are added together
ROWS = 6  # AUROC, AP, F1 and both AUPRO, and ends that are not finite
MOST_PLANS = 32
NONE = tl.constexpr(-1)
BEYOND = tl.constexpr(2147483647)


@triton.jit
def larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def smaller(a, b):
    return tl.minimum(a, b)


@triton.jit
def first_of_tie(scores, start):
    """The first of the sorted `scores` that equals the one at `start`."""
    wanted = tl.load(scores + start)
    before = tl.load(scores + tl.maximum(start - 1, 0))
    length = tl.where((start > 0) & (before == wanted), start, 0)
    tied = length > 0
    base = length * 0
    while length > 1:
        half = length // 2
        base += tl.where(tl.load(scores + base + half - 1) < wanted, half, 0)
        length -= half
    base += (tl.load(scores + base) < wanted).to(base.dtype)
    return tl.where(tied, base, start)


@triton.jit
def end_of_tie(scores, end, count):
    """One behind the last of the sorted `scores` that equals the one before `end`."""
    wanted = tl.load(scores + end - 1)
    after = tl.load(scores + tl.minimum(end, count - 1))
    length = tl.where((end < count) & (after == wanted), count - end, 0)
    tied = length > 0
    base = end
    while length > 1:
        half = length // 2
        base += tl.where(tl.load(scores + base + half - 1) <= wanted, half, 0)
        length -= half
    base += (tl.load(scores + tl.minimum(base, count - 1)) <= wanted).to(base.dtype)
    return tl.where(tied, base, end)


@triton.jit(do_not_specialize=["positives", "count"])
def search_kernel(
    scores, keys, below, upto, ends, positives, count, ADDS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """How many of the `count` sorted `keys` lie below each of BLOCK positives' scores, and how many not above it.

    What `below` and `upto` hold is added to (ADDS) or written over. `ends` gets the first and the last key, which tell
    whether all are finite. Positives beyond the last one are not written.
    """
    program = tl.program_id(0)
    lane = program * BLOCK + tl.arange(0, BLOCK)
    here = lane < positives
    score = tl.load(scores + lane, mask=here, other=0)
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32)
    length = count
    while length > 1:
        half = length // 2
        middle = keys + half - 1
        low += tl.where(tl.load(middle + low) < score, half, 0)
        high += tl.where(tl.load(middle + high) <= score, half, 0)
        length -= half
    low += (tl.load(keys + low) < score).to(tl.int32)
    high += (tl.load(keys + high) <= score).to(tl.int32)
    low = low.to(below.dtype.element_ty)
    high = high.to(upto.dtype.element_ty)
    if ADDS:
        low += tl.load(below + lane, mask=here, other=0)
        high += tl.load(upto + lane, mask=here, other=0)
    tl.store(below + lane, low, mask=here)
    tl.store(upto + lane, high, mask=here)
    if program == 0:
        tl.store(ends, tl.load(keys).to(tl.float64))
        tl.store(ends + 1, tl.load(keys + count - 1).to(tl.float64))


@triton.jit
def area(x0, x1, slope, limit):
    """Below a ramp that rises from 0 at x0 to 1 at x1, cut at the limit; slope = 1/(x1 - x0), or 0 for a step."""
    top = tl.minimum(x1, limit)
    width = top - tl.minimum(x0, limit)
    return limit - top + width * width * slope / 2


@triton.jit(do_not_specialize=["positives", "negatives", "stride"])
def sums_kernel(
    scores, order, weights, below, upto, limits, partial, ends, positives, negatives, stride,
    MIXED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The terms of BLOCK positives, ascending, of the sums of AUROC, AP and both AUPRO, and the largest F1.

    `scores` [positives] ascending, of the positive `order`, of weight `weights`; `below` and `upto`, how many of the
    negatives, and of the positives too if MIXED, lie below and not above each. Row by row of `partial`, `stride` apart,
    one value a program; `ends` gets the first and the last score. Positives beyond the last one count for nothing.
    """
    program = tl.program_id(0)
    start = program * BLOCK
    lane = start + tl.arange(0, BLOCK)
    here = lane < positives
    score = tl.load(scores + lane, mask=here, other=0)
    weight = tl.load(weights + tl.load(order + lane, mask=here, other=0), mask=here, other=0.0)
    under = tl.load(below + lane, mask=here, other=0).to(tl.int64)
    equal = tl.load(upto + lane, mask=here, other=0).to(tl.int64) - under
    before = tl.load(scores + lane - 1, mask=here & (lane > 0), other=0)
    after = tl.load(scores + lane + 1, mask=lane + 1 < positives, other=0)
    first = tl.where((lane == 0) | (before != score), lane, NONE)
    first = tl.associative_scan(first, 0, larger)
    first = tl.where(first == NONE, first_of_tie(scores, start), first)
    last = tl.where((lane + 1 >= positives) | (after != score), lane + 1, BEYOND)
    last = tl.associative_scan(last, 0, smaller, reverse=True)
    end = tl.minimum(start + BLOCK, positives)
    last = tl.where(last == BEYOND, end_of_tie(scores, end, positives), last)

    if MIXED:
        under -= first
        equal -= last - first
    if program == 0:
        tl.store(ends, tl.load(scores).to(tl.float64))
        tl.store(ends + 1, tl.load(scores + positives - 1).to(tl.float64))
    true = (positives - first).to(tl.float64)
    false = (negatives - under).to(tl.float64)
    equal = tl.where(here, equal, 0).to(tl.float64)
    called = tl.where(here, true + false, 1.0)
    every = negatives.to(tl.float64)
    inverse = 1.0 / every
    x1 = false * inverse
    x0 = x1 - equal * inverse
    slope = tl.where(equal > 0, every / tl.where(equal > 0, equal, 1.0), 0.0)
    auroc = tl.where(here, every - false + equal / 2, 0.0)
    f1 = tl.where(here, 2 * true / (called + positives.to(tl.float64)), 0.0)
    tl.store(partial + program, tl.sum(auroc))
    tl.store(partial + stride + program, tl.sum(tl.where(here, true / called, 0.0)))
    tl.store(partial + 2 * stride + program, tl.max(f1))
    for k in tl.static_range(2):
        below_ramp = tl.where(here, weight * area(x0, x1, slope, tl.load(limits + k)), 0.0)
        tl.store(partial + (3 + k) * stride + program, tl.sum(below_ramp))


@triton.jit(do_not_specialize=["programs", "stride", "ends"])
def finish_kernel(partial, result, programs, stride, ends, PARTS: tl.constexpr):
    """A program for each row of `partial`: the sum, of row 2 the maximum, of row 5 how many `ends` are not finite.

    Parts beyond the last count as 0, which no F1 lies below.
    """
    row = tl.program_id(0)
    lane = tl.arange(0, PARTS)
    total = tl.zeros((PARTS,), tl.float64)
    most = tl.zeros((PARTS,), tl.float64)
    length = tl.where(row == 5, ends, programs)
    for start in range(0, length, PARTS):
        part = tl.load(partial + row * stride + start + lane, mask=start + lane < length, other=0.0)
        part = tl.where(row == 5, tl.where(tl.abs(part) < float("inf"), 0.0, 1.0), part)
        total += part
        most = tl.maximum(most, part)
    tl.store(result + row, tl.where(row == 2, tl.max(most), tl.sum(total)))


@lru_cache(MOST_PLANS)
def search_plan(positives: int, count: int, adds: bool) -> Plan:
    """The launch of `search_kernel`."""
    constants = {"ADDS": adds, "BLOCK": BLOCK, "num_warps": WARPS}
    return Plan.of(triton.cdiv(positives, BLOCK), (positives, count), constants)


@lru_cache(MOST_PLANS)
def sums_plan(positives: int, negatives: int, stride: int, mixed: bool) -> Plan:
    """The launch of `sums_kernel`."""
    constants = {"MIXED": mixed, "BLOCK": BLOCK, "num_warps": WARPS}
    return Plan.of(triton.cdiv(positives, BLOCK), (positives, negatives, stride), constants)


@lru_cache(MOST_PLANS)
def finish_plan(programs: int, stride: int, ends: int) -> Plan:
    """The launch of `finish_kernel`."""
    return Plan.of(ROWS, (programs, stride, ends), {"PARTS": PARTS, "num_warps": 4})


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream beside others of a GPU, of this process."""
    return torch.cuda.Stream(device)


def beside(
    first: Callable[[], Tensor], other: Callable[[], tuple[Tensor, ...]], device: torch.device
) -> tuple[Tensor, ...]:
    """What both return: on a GPU `other` runs beside `first`, and what is asked for next waits for both."""
    if device.type != "cuda":
        return first(), *other()
    here, there = torch.cuda.current_stream(device), side_stream(device)
    given = here.record_event()
    try:
        found = first()
        there.wait_event(given)  # for what both read, not for `first`
        with torch.cuda.stream(there):
            return found, *other()
    finally:
        here.wait_stream(there)


def sums(
    flat: Tensor, places: Tensor, others: Tensor | None, weights: Tensor, size: int, limits: tuple[float, float]
) -> tuple[float, ...]:
    """What `ranks.sums` returns and raises."""
    parts = torch.split(flat if others is None else others, size)

    def ascending(part: Tensor) -> Tensor:
        return torch.sort(part if others is None else flat.index_select(0, part)).values

    def positives() -> tuple[Tensor, Tensor]:
        scores, order = torch.sort(flat.index_select(0, places), stable=True)  # of equal ones always the same order
        return scores, order

    keys, scores, order = beside(lambda: ascending(parts[0]), positives, flat.device)
    chunks = chain([keys], map(ascending, parts[1:]))
    ranked = Ranked(scores, order, weights, len(flat) - len(places), others is None)
    *values, wrong = added_up(ranked, chunks, len(parts), limits).tolist()
    if wrong:
        raise NotFinite
    return tuple(values)


class Ranked(NamedTuple):
    """The positives, ascending, and what they are counted against."""

    scores: Tensor  # [P]
    order: Tensor  # [P] their numbers, int64
    weights: Tensor  # [P] float64, 1/|region|, by number
    negatives: int
    mixed: bool  # whether positives are among what they are counted against


def added_up(ranked: Ranked, chunks: Iterable[Tensor], count: int, limits: tuple[float, float]) -> Tensor:
    """[6] float64: the sums of AUROC and AP, the largest F1, both AUPRO sums, and how many ends are not finite.

    `chunks`: what the positives are counted against, in `count` chunks, each ascending.
    """
    scores, order, weights, negatives, mixed = ranked
    device, positives = scores.device, len(scores)
    programs = triton.cdiv(positives, BLOCK)
    stride, ends = programs + programs % 2, 2 * count + 2  # an even stride: whatever is stored there is aligned
    counts = torch.int32 if positives + negatives < 2**31 else torch.int64
    below, upto = (torch.empty(positives, dtype=counts, device=device) for _ in range(2))
    partial, result = (torch.empty(n, dtype=torch.float64, device=device) for n in (5 * stride + ends, ROWS))
    at = partial[5 * stride :].split(2)
    for number, keys in enumerate(chunks):
        plan = search_plan(positives, len(keys), number > 0)
        launch(search_kernel, plan, scores, keys, below, upto, at[number])
    bounds = constant(limits, device, torch.float64)
    plan = sums_plan(positives, negatives, stride, mixed)
    launch(sums_kernel, plan, scores, order, weights, below, upto, bounds, partial, at[count])
    launch(finish_kernel, finish_plan(programs, stride, ends), partial, result)
    return result
