"""Triton kernels of the nearest-neighbour search: rows split into halves, their products, distances of pairs.

A product of float32 is three of float16 on tensor cores: x = high + low with |x - high - low| <= 2^-22 |x| (2^-25 where
that is below float16's normal numbers), and low times low is left out. Rows are padded with zeros to whole BLOCK_C.
Numbers of rows are not compiled for: they are others with every call.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def split_kernel(
    values, centre, scale, high, low, lengths, n, c, padded,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """(x - centre) scale of BLOCK_R rows [n, c] as two float16 [n, padded], and each row's length.

    A row that float16 cannot hold (above LARGEST, infinite or NaN) is infinitely long.
    """
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    here = (rows < n)[:, None]
    power = tl.load(scale)
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
    tl.store(lengths + rows, tl.where(held, tl.sqrt(total), float("inf")).to(tl.float32), mask=rows < n)


@triton.jit
def said_of(
    q_high, q_low, p_high, p_low, halves, rows, n, columns, m, c,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """halves[j] - q_i.p_j for a tile of queries and points; infinite for columns beyond the last.

    Only BLOCK_C channels are summed by the tensor cores, which may cut digits off where others round; the sum over
    those pieces is one of float32. That keeps the error's bound from growing with the number of channels.
    """
    product = tl.zeros((BLOCK_Q, BLOCK_M), tl.float32)
    channels = tl.arange(0, BLOCK_C)
    for first in range(0, c, BLOCK_C):
        channel = first + channels
        q = rows[:, None].to(tl.int64) * c + channel[None, :]
        p = columns[None, :].to(tl.int64) * c + channel[:, None]
        upper_q = tl.load(q_high + q, mask=(rows < n)[:, None], other=0.0)
        lower_q = tl.load(q_low + q, mask=(rows < n)[:, None], other=0.0)
        upper_p = tl.load(p_high + p, mask=(columns < m)[None, :], other=0.0)
        lower_p = tl.load(p_low + p, mask=(columns < m)[None, :], other=0.0)
        piece = tl.dot(lower_q, upper_p)  # the small ones first
        piece = tl.dot(upper_q, lower_p, piece)
        product += tl.dot(upper_q, upper_p, piece)
    return tl.load(halves + columns, mask=columns < m, other=float("inf"))[None, :] - product


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
    best = tl.full((BLOCK_Q,), float("inf"), tl.float32)
    second = tl.full((BLOCK_Q,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_Q,), tl.int32)
    for start in range(split * per_split, min(split * per_split + per_split, m), BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        said = said_of(q_high, q_low, p_high, p_low, halves, rows, n, columns, m, c, BLOCK_Q, BLOCK_M, BLOCK_C)
        least = tl.min(said, axis=1)
        # a column that attains the minimum; the other numbers of the tile tell how near the next one is
        place = tl.min(tl.where(said == least[:, None], columns[None, :], FAR), axis=1)
        others = tl.min(tl.where(columns[None, :] == place[:, None], float("inf"), said), axis=1)
        second = tl.minimum(tl.maximum(best, least), tl.minimum(second, others))
        index = tl.where(least < best, place, index)
        best = tl.minimum(best, least)
    out = rows * splits + split
    tl.store(best_out + out, best, mask=rows < n)
    tl.store(index_out + out, index, mask=rows < n)
    tl.store(second_out + out, second, mask=rows < n)


@triton.jit(do_not_specialize=["n", "blocks"])
def said_kernel(
    q_high, q_low, p_high, p_low, halves, said_out, n, m, c, blocks,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """halves[j] - q_i.p_j, all of it: [n, m]. One program makes one tile."""
    rows = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    columns = tl.program_id(0) // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    said = said_of(q_high, q_low, p_high, p_low, halves, rows, n, columns, m, c, BLOCK_Q, BLOCK_M, BLOCK_C)
    out = said_out + rows[:, None].to(tl.int64) * m + columns[None, :]
    tl.store(out, said, mask=(rows < n)[:, None] & (columns < m)[None, :])


@triton.jit(do_not_specialize=["n", "m"])
def pairs_kernel(
    queries, memory, row, index, out, n, m, c,
    EVERY: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Squared distances, in float64, of BLOCK_P of n pairs (row, index); EVERY: of all pairs with m rows, in order.

    The order of a pair's sum depends on the width alone, so that equal rows are equally far.
    """
    pair = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    here = pair < n
    if EVERY:
        query, other = pair // m, pair % m
    else:
        query, other = tl.load(row + pair, mask=here, other=0), tl.load(index + pair, mask=here, other=0)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float64)
    for first in range(0, c, BLOCK_C):
        channel = first + tl.arange(0, BLOCK_C)
        inside = here[:, None] & (channel < c)[None, :]
        q = tl.load(queries + query[:, None] * c + channel[None, :], mask=inside, other=0.0).to(tl.float64)
        p = tl.load(memory + other[:, None] * c + channel[None, :], mask=inside, other=0.0).to(tl.float64)
        total += (q - p) * (q - p)
    tl.store(out + pair, tl.sum(total, axis=1), mask=here)
