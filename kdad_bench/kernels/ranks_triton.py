"""The sums behind the pixel metrics on a GPU: how all pixels lie around each positive one, counted in sorted scores.

The scores of all pixels are sorted without indices (`torch.unique`, which counts equal ones), those of the positives
with them. A positive pixel then finds by binary search how many pixels lie below it and at it; its terms of all sums
follow, and are added block by block in a fixed order. Nothing but a few numbers leaves the GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from kdad_bench.kernels.counting import NotFinite
from kdad_bench.kernels.sending import constant
from kdad_bench.kernels.triton_launch import guard

BLOCK, WARPS = 512, 4  # positives of a program: four a thread, whose searches wait for memory together
PARTS, PARTS_WARPS = 1024, 4  # partial sums that are added together
NONE = tl.constexpr(-1)


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


@triton.jit
def area(x0, x1, slope, limit):
    """Below a ramp that rises from 0 at x0 to 1 at x1, cut at the limit; slope = 1/(x1 - x0), or 0 for a step."""
    top = tl.minimum(x1, limit)
    width = top - tl.minimum(x0, limit)
    return limit - top + width * width * slope / 2


@triton.jit(do_not_specialize=["positives", "distinct", "pixels", "programs", "chunk"])
def ranks_kernel(
    scores, order, weights, keys, upto_keys, limits, below_before, upto_before, ends, partial,
    positives, distinct, pixels, programs, chunk,
    ADDS: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The terms of BLOCK positives, ascending, of the sums of AUROC, AP and both AUPRO, and the largest F1.

    `scores` [positives] ascending, of the pixel `order`, of weight `weights`; `keys` [distinct] are the distinct scores
    of a chunk of all pixels, ascending, `upto_keys` how many of its pixels are not above each. Counts of the chunks
    before are added (ADDS); only the LAST chunk has the sums, the others leave their counts. Positives beyond the last
    one are not written and count for nothing.
    """
    program = tl.program_id(0)
    start = program * BLOCK
    lane = start + tl.arange(0, BLOCK)
    here = lane < positives
    score = tl.load(scores + lane, mask=here, other=0)

    place = tl.zeros((BLOCK,), tl.int32)
    length = distinct
    while length > 1:
        half = length // 2
        place += tl.where(tl.load(keys + place + half - 1) < score, half, 0)
        length -= half
    place += (tl.load(keys + place) < score).to(tl.int32)
    equals = tl.load(keys + place, mask=place < distinct, other=0) == score
    below = tl.load(upto_keys + place - 1, mask=place > 0, other=0).to(tl.int64)
    upto = tl.load(upto_keys + place, mask=(place < distinct) & equals, other=0).to(tl.int64)
    upto = tl.maximum(upto, below)
    if program == 0:
        tl.store(ends + 2 * chunk, tl.load(keys).to(tl.float64))
        tl.store(ends + 2 * chunk + 1, tl.load(keys + distinct - 1).to(tl.float64))
    if ADDS:
        below += tl.load(below_before + lane, mask=here, other=0)
        upto += tl.load(upto_before + lane, mask=here, other=0)
    if LAST:
        before = tl.load(scores + lane - 1, mask=here & (lane > 0), other=0)
        after = tl.load(scores + lane + 1, mask=lane + 1 < positives, other=0)
        first = tl.where((lane == 0) | (before != score), lane, NONE)
        first = tl.associative_scan(first, 0, larger)
        first = tl.where(first == NONE, first_of_tie(scores, start), first)
        last = tl.where((lane + 1 >= positives) | (after != score), lane + 1, 2147483647)
        last = tl.associative_scan(last, 0, smaller, reverse=True)
        end = tl.minimum(start + BLOCK, positives)
        last = tl.where(last == 2147483647, end_of_tie(scores, end, positives), last)

        weight = tl.load(weights + tl.load(order + lane, mask=here, other=0), mask=here, other=0.0)
        negatives = (pixels - positives).to(tl.float64)
        true = (positives - first).to(tl.float64)
        false = (pixels - below).to(tl.float64) - true
        equal = tl.where(here, upto - below - (last - first), 0).to(tl.float64)
        called = tl.where(here, true + false, 1.0)
        x1 = false / negatives
        x0 = x1 - equal / negatives
        slope = tl.where(equal > 0, 1.0 / tl.where(equal > 0, x1 - x0, 1.0), 0.0)
        auroc = negatives - false + equal / 2
        f1 = 2 * true / (called + positives.to(tl.float64))
        tl.store(partial + program, tl.sum(tl.where(here, auroc, 0.0)))
        tl.store(partial + programs + program, tl.sum(tl.where(here, true / called, 0.0)))
        tl.store(partial + 2 * programs + program, tl.max(tl.where(here, f1, 0.0)))
        for k in tl.static_range(2):
            below_ramp = weight * area(x0, x1, slope, tl.load(limits + k))
            tl.store(partial + (3 + k) * programs + program, tl.sum(tl.where(here, below_ramp, 0.0)))
    else:
        tl.store(below_before + lane, below, mask=here)
        tl.store(upto_before + lane, upto, mask=here)


@triton.jit(do_not_specialize=["programs", "chunks"])
def finish_kernel(partial, ends, result, programs, chunks, PARTS: tl.constexpr):
    """The partial sums of all programs added, the largest F1, and how many chunks have an end that is not finite.

    One program; parts beyond the last count as 0, which no F1 lies below.
    """
    lane = tl.arange(0, PARTS)
    for row in tl.static_range(5):
        total = tl.zeros((PARTS,), tl.float64)
        for start in range(0, programs, PARTS):
            part = tl.load(partial + row * programs + start + lane, mask=start + lane < programs, other=0.0)
            total = tl.maximum(total, part) if row == 2 else total + part
        tl.store(result + row, tl.max(total) if row == 2 else tl.sum(total))
    wrong = tl.zeros((PARTS,), tl.float64)
    for start in range(0, 2 * chunks, PARTS):
        value = tl.load(ends + start + lane, mask=start + lane < 2 * chunks, other=0.0)
        wrong += tl.where(tl.abs(value) < float("inf"), 0.0, 1.0)
    tl.store(result + 5, tl.sum(wrong))


def launch(
    scores: Tensor,
    order: Tensor,
    weights: Tensor,
    chunks: Iterable[tuple[Tensor, Tensor]],
    pixels: int,
    size: int,
    limits: tuple[float, float],
) -> Tensor:
    """[6] float64: the sums of AUROC and AP, the largest F1, both AUPRO sums, and how many ends are not finite.

    `scores` [P] ascending, of the positives numbered `order` [P], whose 1/|region| are `weights` [P]. `chunks`: of
    `size` of the `pixels` at a time, the distinct scores, ascending, and how many pixels are not above each.
    """
    device, positives = scores.device, len(scores)
    programs, count = triton.cdiv(positives, BLOCK), triton.cdiv(pixels, size)
    seen = [torch.empty(positives if count > 1 else 0, dtype=torch.int64, device=device) for _ in range(2)]
    partial, ends, result = (
        torch.empty(values, dtype=torch.float64, device=device) for values in (5 * programs, 2 * count, 6)
    )
    bounds = constant(limits, device, torch.float64)
    with guard(device):
        for number, (keys, upto) in enumerate(chunks):
            ranks_kernel[(programs,)](
                scores, order, weights, keys, upto, bounds, *seen, ends, partial,
                positives, len(keys), pixels, programs, number,
                ADDS=number > 0, LAST=number + 1 == count, BLOCK=BLOCK, num_warps=WARPS,
            )  # fmt: skip
        finish_kernel[(1,)](partial, ends, result, programs, count, PARTS=PARTS, num_warps=PARTS_WARPS)
    return result


def counted(flat: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For `size` values of `flat` at a time: the distinct ones, ascending, and how many are not above each (int64)."""
    for part in torch.split(flat, size):
        keys, counts = torch.unique(part, return_counts=True)
        yield keys, counts.cumsum(0)


def sums(flat: Tensor, places: Tensor, weights: Tensor, size: int, limits: tuple[float, float]) -> tuple[float, ...]:
    """What `ranks.sums` returns and raises."""
    chunks = counted(flat, size)
    first = next(chunks)  # the host waits for its length; what follows it prepares while the GPU sorts the positives
    scores, order = torch.sort(flat.index_select(0, places), stable=True)  # of equal ones always the same order
    found = launch(scores, order, weights, chain([first], chunks), len(flat), size, limits)
    *values, wrong = found.tolist()
    if wrong:
        raise NotFinite
    return tuple(values)
