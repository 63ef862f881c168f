"""Triton kernels of the nearest-neighbour search: rows split into halves, their products, distances of what is near.

A product of float32 is three of float16 on tensor cores: x = high + low with |x - high - low| <= 2^-22 |x| (2^-25 where
that is below float16's normal numbers), and low times low is left out. Rows are padded with zeros to whole BLOCK_C.
What kernels tell each other and the CPU is in `state`, int32: the PEAK, RADIUS and LONGEST are bits of float32, which
rise as the numbers do. Numbers of rows are not compiled for: they are others with every call.
"""

from __future__ import annotations

import triton
import triton.language as tl

PEAK = tl.constexpr(0)  # greatest of |x - centre| in a sample of the memory
RADIUS = tl.constexpr(1)  # length of the longest row of the memory, centred and scaled
LONGEST = tl.constexpr(2)  # and of the queries
UNCLEAR = tl.constexpr(3)  # queries whose two least lie too close
CANDIDATES = tl.constexpr(4)  # pairs that may be nearest


@triton.jit(do_not_specialize=["n", "step"])
def centre_kernel(values, state, centre, n, step, c, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """The mean of n rows [., c], each `step` after the last, and how far they are from it: BLOCK_C channels."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rows = tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, n, BLOCK_R):
        inside = (first + rows < n)[:, None] & (channel < c)[None, :]
        place = ((first + rows).to(tl.int64) * step)[:, None] * c + channel[None, :]
        total += tl.sum(tl.load(values + place, mask=inside, other=0.0).to(tl.float32), axis=0)
    middle = total / n
    tl.store(centre + channel, middle, mask=channel < c)
    peak = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, n, BLOCK_R):
        inside = (first + rows < n)[:, None] & (channel < c)[None, :]
        place = ((first + rows).to(tl.int64) * step)[:, None] * c + channel[None, :]
        x = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
        peak = tl.maximum(peak, tl.max(tl.where(inside, tl.abs(x - middle[None, :]), 0.0), axis=0))
    tl.atomic_max(state + PEAK, tl.max(peak, axis=0).to(tl.int32, bitcast=True))


@triton.jit(do_not_specialize=["n"])
def split_kernel(
    values, centre, state, high, low, lengths, n, c, padded,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, LARGEST: tl.constexpr, TOP: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """(x - centre) scale of BLOCK_R rows [n, c] as two float16 [n, padded], and each row's length.

    The scale brings the PEAK below 2^TOP. A row that float16 cannot hold (above LARGEST, infinite or NaN) is infinitely
    long. POINTS: half the squared length is written in place of the length.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    here = (rows < n)[:, None]
    peak = tl.load(state + PEAK)
    exponent = tl.where(peak == 0, 0, TOP + 126 - (peak >> 23))
    # kept where what a GPU flushes to 0 stays harmless
    power = ((127 + tl.minimum(tl.maximum(exponent, -100), 100)) << 23).to(tl.float32, bitcast=True)
    total = tl.zeros((BLOCK_R,), tl.float64)
    held = rows >= 0
    for first in range(0, padded, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = here & (channel < c)[None, :]
        x = tl.load(values + rows[:, None].to(tl.int64) * c + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        middle = tl.load(centre + channel, mask=channel < c, other=0.0)
        x = tl.where(inside, (x - middle[None, :]) * power, 0.0)
        held = held & (tl.sum((tl.abs(x) <= LARGEST).to(tl.int32), axis=1) == BLOCK_C)
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
        upper = x.to(tl.float16)
        out = rows[:, None].to(tl.int64) * padded + channel[None, :]
        tl.store(high + out, upper, mask=here)
        tl.store(low + out, (x - upper.to(tl.float32)).to(tl.float16), mask=here)
        total += tl.sum(x.to(tl.float64) * x.to(tl.float64), axis=1)
    length = tl.where(held, tl.sqrt(total), float("inf")).to(tl.float32)
    longest = tl.max(tl.where(rows < n, length, 0.0), axis=0).to(tl.int32, bitcast=True)
    if POINTS:
        tl.atomic_max(state + RADIUS, longest)
        tl.store(lengths + rows, tl.where(held, total / 2, float("inf")).to(tl.float32), mask=rows < n)
    else:
        tl.atomic_max(state + LONGEST, longest)
        tl.store(lengths + rows, length, mask=rows < n)


@triton.jit
def said_of(
    q_high, q_low, p_high, p_low, halves, rows, here, columns, inside, c,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """halves[j] - q_i.p_j for a tile of queries and points; infinite for columns that are not inside.

    Only BLOCK_C channels are summed by the tensor cores, which may cut digits off where others round; the sum over
    those pieces is one of float32. That keeps the error's bound from growing with the number of channels.
    """
    product = tl.zeros((BLOCK_Q, BLOCK_M), tl.float32)
    channels = tl.arange(0, BLOCK_C)
    for first in range(0, c, BLOCK_C):
        channel = first + channels
        q = rows[:, None].to(tl.int64) * c + channel[None, :]
        p = columns[None, :].to(tl.int64) * c + channel[:, None]
        upper_q = tl.load(q_high + q, mask=here[:, None], other=0.0)
        lower_q = tl.load(q_low + q, mask=here[:, None], other=0.0)
        upper_p = tl.load(p_high + p, mask=inside[None, :], other=0.0)
        lower_p = tl.load(p_low + p, mask=inside[None, :], other=0.0)
        piece = tl.dot(lower_q, upper_p)  # the small ones first
        piece = tl.dot(upper_q, lower_p, piece)
        product += tl.dot(upper_q, upper_p, piece)
    return tl.load(halves + columns, mask=inside, other=float("inf"))[None, :] - product


@triton.jit(do_not_specialize=["n", "m", "splits", "blocks"])
def least_kernel(
    q_high, q_low, p_high, p_low, halves, best_out, index_out, second_out,
    n, m, c, per_split, splits, blocks,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, FAR: tl.constexpr,
):  # fmt: skip
    """min, argmin and second smallest of halves[j] - q_i.p_j over one split of the memory, for BLOCK_Q queries.

    One program walks its split in tiles of BLOCK_M rows; only three numbers per query leave it. Rows beyond the memory
    count as infinitely far, queries beyond the last are read as zeros and not written.
    """
    rows = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    split = tl.program_id(0) // blocks
    here = rows < n
    best = tl.full((BLOCK_Q,), float("inf"), tl.float32)
    second = tl.full((BLOCK_Q,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_Q,), tl.int32)
    for start in range(split * per_split, min(split * per_split + per_split, m), BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        said = said_of(
            q_high, q_low, p_high, p_low, halves, rows, here, columns, columns < m, c, BLOCK_Q, BLOCK_M, BLOCK_C
        )
        least = tl.min(said, axis=1)
        # a column that attains the minimum; the other numbers of the tile tell how near the next one is
        place = tl.min(tl.where(said == least[:, None], columns[None, :], FAR), axis=1)
        others = tl.min(tl.where(columns[None, :] == place[:, None], float("inf"), said), axis=1)
        second = tl.minimum(tl.maximum(best, least), tl.minimum(second, others))
        index = tl.where(least < best, place, index)
        best = tl.minimum(best, least)
    out = rows * splits + split
    tl.store(best_out + out, best, mask=here)
    tl.store(index_out + out, index, mask=here)
    tl.store(second_out + out, second, mask=here)


@triton.jit
def measured(queries, memory, query, other, here, c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Squared distances in float64 of BLOCK_P pairs of rows, from the values themselves; 0 where not `here`.

    The order of a sum depends on the width alone, so that equal rows are equally far.
    """
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float64)
    for first in range(0, c, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = here[:, None] & (channel < c)[None, :]
        q = tl.load(queries + query[:, None].to(tl.int64) * c + channel[None, :], mask=inside, other=0.0)
        p = tl.load(memory + other[:, None].to(tl.int64) * c + channel[None, :], mask=inside, other=0.0)
        difference = q.to(tl.float64) - p.to(tl.float64)
        total += difference * difference
    return tl.sum(total, axis=1)


@triton.jit(do_not_specialize=["n", "splits"])
def answer_kernel(
    queries, memory, lengths, best_in, index_in, second_in, state, distances, indices, limits, unclear,
    n, c, splits, relative, extra,
    FAR: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The splits' answers together, for BLOCK_P queries: squared distance float64 and index of the nearest row.

    Where the second least lies too close, the query is appended to `unclear`; its distance is infinite and its index
    FAR until `closest_kernel` and `first_kernel` know better. `limits` are what no nearest row is said to be above.
    """
    rows = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    here = rows < n
    best = tl.full((BLOCK_P,), float("inf"), tl.float32)
    second = tl.full((BLOCK_P,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_P,), tl.int32)
    for split in range(splits):
        place = rows * splits + split
        least = tl.load(best_in + place, mask=here, other=0.0)
        next_least = tl.load(second_in + place, mask=here, other=0.0)
        second = tl.minimum(tl.maximum(best, least), tl.minimum(second, next_least))
        index = tl.where(least < best, tl.load(index_in + place, mask=here, other=0), index)
        best = tl.minimum(best, least)
    radius = tl.load(state + RADIUS).to(tl.float32, bitcast=True)
    reach = tl.load(lengths + rows, mask=here, other=0.0) + (radius + extra)
    limit = best + reach * reach * relative
    tl.store(limits + rows, limit, mask=here)
    clear = second > limit
    distance = measured(queries, memory, rows, index, here, c, BLOCK_P, BLOCK_C)
    tl.store(distances + rows, tl.where(clear, distance, float("inf")), mask=here)
    tl.store(indices + rows, tl.where(clear, index, FAR).to(tl.int64), mask=here)
    asked = here & (clear == 0)
    slot = tl.atomic_add(state + UNCLEAR + tl.zeros((BLOCK_P,), tl.int32), 1, mask=asked)
    tl.store(unclear + slot, rows, mask=asked & (slot < n))


@triton.jit(do_not_specialize=["n", "m", "blocks", "capacity"])
def candidates_kernel(
    q_high, q_low, p_high, p_low, halves, limits, unclear, state, row_out, index_out, n, m, c, blocks, capacity,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pairs, in any order, of the n queries `unclear` and all rows that are not said to be above their limits.

    As many as `capacity` are written. All are counted until there are more: then what was found is of no use, and
    programs that begin later do nothing, so that the int32 of the count is above `capacity` by the tiles of those that
    run at a time at most. One program makes one tile.
    """
    if tl.load(state + CANDIDATES) > capacity:
        return
    asked = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    here = asked < n
    rows = tl.load(unclear + asked, mask=here, other=0)
    columns = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = columns < m
    said = said_of(q_high, q_low, p_high, p_low, halves, rows, here, columns, inside, c, BLOCK_Q, BLOCK_M, BLOCK_C)
    limit = tl.load(limits + rows, mask=here, other=0.0)
    near = (here[:, None] & inside[None, :]) & ((said > limit[:, None]) == 0)
    if tl.sum(tl.sum(near.to(tl.int32), axis=1), axis=0) > 0:
        slot = tl.atomic_add(state + CANDIDATES + tl.zeros((BLOCK_Q, BLOCK_M), tl.int32), 1, mask=near)
        kept = near & (slot < capacity)
        tl.store(row_out + slot, tl.broadcast_to(rows[:, None], (BLOCK_Q, BLOCK_M)), mask=kept)
        tl.store(index_out + slot, tl.broadcast_to(columns[None, :], (BLOCK_Q, BLOCK_M)), mask=kept)


@triton.jit(do_not_specialize=["capacity"])
def closest_kernel(
    queries, memory, row, index, state, found, distances, capacity, c, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Squared distances in float64 of BLOCK_P candidates, as int64 bits, which rise as they do; `distances` of their
    queries become the least. Nothing is done where the list is not complete."""
    pair = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    count = tl.load(state + CANDIDATES)
    here = pair < tl.where(count > capacity, 0, count)
    query = tl.load(row + pair, mask=here, other=0)
    other = tl.load(index + pair, mask=here, other=0)
    distance = measured(queries, memory, query, other, here, c, BLOCK_P, BLOCK_C).to(tl.int64, bitcast=True)
    tl.store(found + pair, distance, mask=here)
    tl.atomic_min(distances + query, distance, mask=here)


@triton.jit(do_not_specialize=["capacity"])
def first_kernel(row, index, state, found, distances, indices, capacity, BLOCK_P: tl.constexpr):
    """The lowest index among the candidates at the least distance becomes their query's."""
    pair = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    count = tl.load(state + CANDIDATES)
    here = pair < tl.where(count > capacity, 0, count)
    query = tl.load(row + pair, mask=here, other=0)
    least = tl.load(distances + query, mask=here, other=0)
    attains = here & (tl.load(found + pair, mask=here, other=0) == least)
    tl.atomic_min(indices + query, tl.load(index + pair, mask=here, other=0).to(tl.int64), mask=attains)


@triton.jit(do_not_specialize=["n", "blocks"])
def said_kernel(
    q_high, q_low, p_high, p_low, halves, said_out, n, m, c, blocks,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """halves[j] - q_i.p_j, all of it: [n, m]. One program makes one tile."""
    rows = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    here, inside = rows < n, columns < m
    said = said_of(q_high, q_low, p_high, p_low, halves, rows, here, columns, inside, c, BLOCK_Q, BLOCK_M, BLOCK_C)
    out = said_out + rows[:, None].to(tl.int64) * m + columns[None, :]
    tl.store(out, said, mask=here[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["n", "m"])
def pairs_kernel(
    queries, memory, row, index, out, n, m, c,
    EVERY: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Squared distances, in float64, of BLOCK_P of n pairs (row, index); EVERY: of all pairs with m rows, in order."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    here = pair < n
    if EVERY:
        query, other = pair // m, pair % m
    else:
        query, other = tl.load(row + pair, mask=here, other=0), tl.load(index + pair, mask=here, other=0)
    tl.store(out + pair, measured(queries, memory, query, other, here, c, BLOCK_P, BLOCK_C), mask=here)
