"""The nearest row on a GPU: a matrix product whose running minimum stays in registers, and its launcher.

There is no autotuning; the launch configuration is the constants below.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.kernels import neighbours
from kdad_bench.kernels.triton_launch import guard

BLOCK_Q, BLOCK_M, BLOCK_C, WARPS, STAGES = 64, 64, 32, 4, 3  # 156 registers on sm_90, no spill on sm_80 either
PRECISION = "tf32x3"  # three tensor-core products, as precise as float32 but for the product of both rests
UNIT = 2.0**-20  # of rounding, for all of a product's errors together
PROGRAMS = 264  # two for each multiprocessor of an H100: few queries share the memory out among so many


@triton.jit
def nearest_kernel(
    queries, points, halves, best_out, index_out, second_out,
    n, m, c, per_split, splits,
    BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """min, argmin and second smallest of halves[j] - q_i.p_j over one split of the memory, for BLOCK_Q queries.

    One program walks its split in tiles of BLOCK_M rows; only three numbers per query leave it. Rows beyond the memory
    count as infinitely far, queries beyond the last are read as zeros and not written.
    """
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    split = tl.program_id(1)
    here = rows < n
    best = tl.full((BLOCK_Q,), float("inf"), tl.float32)
    second = tl.full((BLOCK_Q,), float("inf"), tl.float32)
    index = tl.zeros((BLOCK_Q,), tl.int32)
    channels = tl.arange(0, BLOCK_C)
    for start in range(split * per_split, min(split * per_split + per_split, m), BLOCK_M):
        columns = start + tl.arange(0, BLOCK_M)
        inside = columns < m
        product = tl.zeros((BLOCK_Q, BLOCK_M), tl.float32)
        for first in range(0, c, BLOCK_C):
            channel = first + channels
            q = tl.load(
                queries + rows[:, None].to(tl.int64) * c + channel[None, :],
                mask=here[:, None] & (channel[None, :] < c),
                other=0.0,
            )
            p = tl.load(
                points + columns[None, :].to(tl.int64) * c + channel[:, None],
                mask=inside[None, :] & (channel[:, None] < c),
                other=0.0,
            )
            product = tl.dot(q, p, product, input_precision=PRECISION)
        said = tl.load(halves + columns, mask=inside, other=float("inf"))[None, :] - product
        least = tl.min(said, axis=1)
        # a column that attains the minimum; the other numbers of the tile tell how near the next one is
        place = tl.min(tl.where(said == least[:, None], columns[None, :], 2147483647), axis=1)
        others = tl.min(tl.where(columns[None, :] == place[:, None], float("inf"), said), axis=1)
        second = tl.minimum(tl.maximum(best, least), tl.minimum(second, others))
        index = tl.where(least < best, place, index)
        best = tl.minimum(best, least)
    out = rows * splits + split
    tl.store(best_out + out, best, mask=here)
    tl.store(index_out + out, index, mask=here)
    tl.store(second_out + out, second, mask=here)


def launch(queries: Tensor, points: Tensor, halves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N, splits] each: least, its index (int32) and second least of halves[j] - q_i.p_j in a split of the memory."""
    n, m, c = len(queries), len(points), queries.shape[1]
    blocks = triton.cdiv(n, BLOCK_Q)
    splits = max(1, min(triton.cdiv(PROGRAMS, blocks), triton.cdiv(m, BLOCK_M)))
    per_split = triton.cdiv(triton.cdiv(m, splits), BLOCK_M) * BLOCK_M
    splits = triton.cdiv(m, per_split)
    best, second = (torch.empty(n, splits, dtype=torch.float32, device=queries.device) for _ in range(2))
    index = torch.empty(n, splits, dtype=torch.int32, device=queries.device)
    with guard(queries.device):
        nearest_kernel[(blocks, splits)](
            queries, points, halves, best, index, second, n, m, c, per_split, splits,
            BLOCK_Q=BLOCK_Q, BLOCK_M=BLOCK_M, BLOCK_C=BLOCK_C, PRECISION=PRECISION, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return best, index, second


def nearest(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest row of `memory` to each of `queries`: [N, 1] squared distances float64 and indices; N > 0, finite.

    Queries for which the two least lie too close for the product to tell apart are answered by `neighbours.blocked`.
    """
    frame = neighbours.frame_of(memory)
    framed = frame.of(queries).contiguous()
    filling = (0, -queries.shape[1] % BLOCK_C)  # channels of zeros change no product and make wide loads of rows
    points = F.pad(frame.points[: len(memory)], filling)
    best, index, second = launch(F.pad(framed, filling), points, frame.halves[: len(memory)])
    least, split = best.min(1, keepdim=True)
    found = index.gather(1, split).long()
    others = best.scatter(1, split, torch.inf).amin(1)
    clear = torch.minimum(others, second.amin(1)) > least[:, 0] + frame.slack(framed, UNIT)
    distances = neighbours.distances(queries, memory, torch.arange(len(queries), device=queries.device), found[:, 0])
    unclear = clear.logical_not().nonzero()[:, 0]
    if len(unclear):
        distances[unclear], found[unclear] = neighbours.blocked(queries[unclear], memory)
    return distances, found
