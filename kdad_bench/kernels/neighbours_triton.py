"""The nearest rows on a GPU: what launches the kernels, and the bound of what their products say.

There is no autotuning; the launch configuration is the constants below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, sqrt
from typing import Any

import torch
import triton
from torch import Tensor

from kdad_bench.kernels import neighbours, neighbours_kernels
from kdad_bench.kernels.triton_launch import guard

BLOCK_Q, BLOCK_M, BLOCK_C = 128, 128, 64  # of a tile: queries, rows of the memory, channels that tensor cores sum
WARPS = 8
STAGE = 2 * (BLOCK_Q + BLOCK_M) * BLOCK_C * 2  # bytes of a stage of the pipeline: two float16 of all that is multiplied
LINES, WIDE = 16, 64  # rows or pairs, and channels, of a program that does not multiply
PROCESSORS, SHARED = 132, 227 << 10  # of an H100: multiprocessors, bytes a block may have
SPLITS = 64  # at most so many of the memory
SPARE = 8  # of several neighbours, so many more are measured
SAMPLE = 512  # rows whose mean is the centre: any centre is exact
TOP = 10  # 2^TOP is above all values of the memory: float16 has room below it for small ones, above it for far queries
LARGEST = 60000.0  # of what is held in float16
DIRECT = 1 << 24  # values of all pairs up to which each is measured without a product
FAR = (1 << 31) - 1  # no column is so far
TILE = 1 << 26  # products that are held at a time: 256 MB


# ---- launches --------------------------------------------------------------------------------------------------------


@lru_cache
def facts(device: torch.device) -> tuple[int, int]:
    """Multiprocessors of the device and bytes of shared memory that a block may have."""
    if device.type != "cuda":
        return PROCESSORS, SHARED
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, getattr(found, "shared_memory_per_block_optin", 96 << 10)


def stages(device: torch.device) -> int:
    """Of the pipeline that loads: what fits."""
    return max(1, min(3, facts(device)[1] // STAGE))


def splits_of(blocks: int, tiles: int, processors: int) -> tuple[int, int]:
    """(splits, tiles of a split) of the memory: few rounds of all multiprocessors, none of them nearly idle."""
    rounds = {
        -(-tiles // each): -(-blocks * -(-tiles // each) // processors) * each
        for each in {-(-tiles // splits) for splits in range(1, min(SPLITS, tiles) + 1)}
    }
    splits = min(rounds, key=lambda splits: (rounds[splits], splits))
    return splits, -(-tiles // splits)


def tile(device: torch.device) -> dict[str, int]:
    """The constants of a kernel that multiplies."""
    return {
        "BLOCK_Q": BLOCK_Q, "BLOCK_M": BLOCK_M, "BLOCK_C": BLOCK_C, "num_warps": WARPS, "num_stages": stages(device),
    }  # fmt: skip


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch on the device of the first argument. Triton's own launch: few calls are alike in all their numbers."""
    with guard(arguments[0].device):
        kernel[(programs,)](*arguments, **constants)


def padded(c: int) -> int:
    """Channels with the zeros that make whole blocks."""
    whole = max(BLOCK_C, WIDE)
    return -(-c // whole) * whole


# ---- rows as the product sees them -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows, centred and scaled, as sums of two float16."""

    high: Tensor  # [n, padded(C)] float16
    low: Tensor
    lengths: Tensor  # [n] float32; infinite where float16 does not hold the row

    def some(self, which: Tensor) -> Rows:
        """The rows `which`."""
        return Rows(self.high[which], self.low[which], self.lengths[which])


@dataclass(frozen=True, slots=True)
class View:
    """How the memory is centred and scaled; nothing of it is known to the CPU."""

    centre: Tensor  # [C] float32
    spread: Tensor  # greatest less smallest value of the memory
    scale: Tensor  # [1] float32: a power of two

    @classmethod
    def of(cls, memory: Tensor) -> View:
        """Of all rows of `memory` for the scale, of some for the centre."""
        low, high = torch.aminmax(memory)
        spread = high.float() - low.float()
        exponent = TOP - torch.frexp(spread).exponent  # kept where differences that a GPU flushes to 0 stay harmless
        scale = ((127 + exponent.clamp(-100, 100)).int() << 23).view(1).view(torch.float32)
        centre = memory[:: max(1, len(memory) // SAMPLE)].float().mean(0)
        return cls(centre, spread, scale)

    def rows(self, values: Tensor) -> Rows:
        """`values` [n, C], contiguous, seen so."""
        n, c = values.shape
        high, low = (torch.empty(n, padded(c), dtype=torch.float16, device=values.device) for _ in range(2))
        made = Rows(high, low, torch.empty(n, dtype=torch.float32, device=values.device))
        launch(
            neighbours_kernels.split_kernel, triton.cdiv(n, LINES),
            values, self.centre, self.scale, made.high, made.low, made.lengths, n, c, padded(c),
            BLOCK_R=LINES, BLOCK_C=WIDE, LARGEST=LARGEST, num_warps=4,
        )  # fmt: skip
        return made


def slack_of(lengths: Tensor, radius: Tensor, c: int) -> Tensor:
    """[N] float32: twice the most by which half a squared distance less half the query's own may be wrong.

    With S = |q||m| and S + |m|²/2 <= reach²/2: tensor cores add BLOCK_C products, in groups of four or more, and may
    cut each sum off: below 3/2 BLOCK_C 2^-23 S. Float32 adds C / BLOCK_C of such sums: 2^-24 S each. Centring, the
    remainders of the halves, the products of both, |m|²/2 and the last difference take below 24 2^-24 reach²/2. All of
    that is taken with a third more at least; where a half is rounded below float16's normal numbers, by 2^-25, another
    2^-25 C^½ reach.
    """
    reach = (lengths.double() + radius) * (1 + 2.0**-20)
    relative = (BLOCK_C + 2 * c / BLOCK_C + 16) * 2.0**-22
    slack: Tensor = reach.square() * relative + reach * (sqrt(c) * 2.0**-23) + c * 2.0**-48
    return (slack * (1 + 2.0**-20)).float()


# ---- the search ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched, and where."""

    queries: Tensor  # [N, C], contiguous
    memory: Tensor  # [M, C]
    asking: Rows
    points: Rows
    halves: Tensor  # [M] float32: half of each squared length
    slack: Tensor  # [N] float32

    @classmethod
    def of(cls, queries: Tensor, memory: Tensor, view: View) -> Search:
        """Of contiguous rows."""
        asking, points = view.rows(queries), view.rows(memory)
        slack = slack_of(asking.lengths, points.lengths.amax(), queries.shape[1])
        return cls(queries, memory, asking, points, points.lengths.double().square().mul_(0.5).float(), slack)

    def least(self) -> tuple[Tensor, Tensor, Tensor]:
        """[N] each: least, its index int64 and second least of halves[j] - q_i.p_j."""
        device, (n, c), m = self.queries.device, self.asking.high.shape, len(self.memory)
        blocks = triton.cdiv(n, BLOCK_Q)
        splits, tiles = splits_of(blocks, triton.cdiv(m, BLOCK_M), facts(device)[0])
        best, second = (torch.empty(n, splits, dtype=torch.float32, device=device) for _ in range(2))
        index = torch.empty(n, splits, dtype=torch.int32, device=device)
        launch(
            neighbours_kernels.least_kernel, blocks * splits,
            self.asking.high, self.asking.low, self.points.high, self.points.low, self.halves, best, index, second,
            n, m, c, tiles * BLOCK_M, splits, blocks, FAR=FAR, **tile(device),
        )  # fmt: skip
        if splits == 1:
            return best[:, 0], index[:, 0].long(), second[:, 0]
        least, split = best.min(1, keepdim=True)
        others = best.scatter(1, split, torch.inf).amin(1)
        return least[:, 0], index.gather(1, split)[:, 0].long(), torch.minimum(others, second.amin(1))

    def said(self, some: Rows) -> Tensor:
        """halves[j] - q_i.p_j for some queries: [n, M]."""
        (n, c), m = some.high.shape, len(self.memory)
        made = torch.empty(n, m, dtype=torch.float32, device=self.queries.device)
        blocks = triton.cdiv(n, BLOCK_Q)
        launch(
            neighbours_kernels.said_kernel, blocks * triton.cdiv(m, BLOCK_M),
            some.high, some.low, self.points.high, self.points.low, self.halves, made,
            n, m, c, blocks, **tile(made.device),
        )  # fmt: skip
        return made

    def pieces(self, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Queries, as many of `which` at a time as a TILE holds, and what the product says of them."""
        for some in torch.split(which, max(1, TILE // len(self.memory))):
            yield some, self.said(self.asking.some(some))


def nearest(queries: Tensor, memory: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The `k` nearest rows of `memory` to each of `queries`: [N, k] squared distances float64 and indices; N > 0.

    Queries for which the two least lie too close for the product to tell apart are answered by distances of all that
    may be the nearest. ValueError for values that are not finite: that is asked where the CPU waits anyhow.
    """
    queries, memory = queries.contiguous(), memory.contiguous()
    if len(queries) * memory.numel() <= DIRECT:
        return directly(queries, memory, k)
    view = View.of(memory)
    search = Search.of(queries, memory, view)
    distances, index, unclear = among_spare(search, k) if k > 1 else among_two(search)
    state = torch.stack([view.spread, search.slack.amax(), unclear.sum().float()]).tolist()  # the CPU waits here
    if not all(isfinite(one) for one in state):
        neighbours.check_finite(queries, memory)
    if state[2]:
        some = unclear.nonzero()[:, 0]
        distances[some], index[some] = among_many(queries[some], memory, k) if k > 1 else resolved(search, some)
    return distances, index


def among_two(search: Search) -> tuple[Tensor, Tensor, Tensor]:
    """[N, 1] distances and indices of the rows that the product says are nearest, and [N] whether they may not be."""
    least, index, second = search.least()
    clear = second > least + search.slack
    return pairs(search.queries, search.memory, None, index)[:, None], index[:, None], clear.logical_not_()


def among_spare(search: Search, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """[N, k] distances and indices among a few more than k that the product says are nearest, and [N] whether there
    may be others."""
    width = min(k + SPARE, len(search.memory))
    found = []
    for some, said in search.pieces(torch.arange(len(search.queries), device=search.queries.device)):
        least, index = said.topk(width, largest=False)
        clear = least[:, -1] > least[:, k - 1] + search.slack[some]
        index = index.sort(1).values  # of equals the lower first
        distance = pairs(search.queries, search.memory, some.repeat_interleave(width), index.view(-1)).view_as(index)
        ordered, place = distance.sort(dim=1, stable=True)
        unclear = clear.logical_not_() & (width < len(search.memory))
        found.append((ordered[:, :k], index.gather(1, place[:, :k]), unclear))
    distances, indices, unclear = (torch.cat(parts) for parts in zip(*found, strict=True))
    return distances, indices, unclear


def resolved(search: Search, unclear: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 1] distances and indices of the nearest to the queries `unclear`, among all that may be it."""
    found = []
    for some, said in search.pieces(unclear):
        limit = said.amin(1) + search.slack[some]
        row, index = (said > limit[:, None]).logical_not_().nonzero(as_tuple=True)
        if len(row) > neighbours.MANY * len(unclear):
            return among_many(search.queries[unclear], search.memory, 1)
        distance = pairs(search.queries, search.memory, some[row], index)
        least = distance.new_full((len(some),), torch.inf).scatter_reduce_(0, row, distance, "amin")
        index = torch.where(distance == least[row], index, len(search.memory))
        found.append((least, index.new_full((len(some),), len(search.memory)).scatter_reduce_(0, row, index, "amin")))
    distances, indices = (torch.cat(parts)[:, None] for parts in zip(*found, strict=True))
    return distances, indices


def among_many(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and indices where many rows may be the nearest: equal ones are searched once, near ones in float64."""
    firsts = neighbours.first_occurrences(memory) if k == 1 else None
    if firsts is None:
        return neighbours.blocked(queries, memory, k)
    distances, index = nearest(queries, memory[firsts])
    return distances, firsts[index]


def directly(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` nearest by the distances of all pairs."""
    distances = pairs(queries, memory, None, None).view(len(queries), len(memory))
    if not bool(distances.isfinite().all()):
        neighbours.check_finite(queries, memory)
    if k == 1:
        least, index = distances.min(1, keepdim=True)  # the first of equals
        return least, index
    ordered, index = distances.sort(dim=1, stable=True)
    return ordered[:, :k], index[:, :k]


def pairs(queries: Tensor, memory: Tensor, row: Tensor | None, index: Tensor | None) -> Tensor:
    """[n] squared distances float64 of the pairs (row, index); of row i and index[i]; of all, in order."""
    m, c = memory.shape
    if index is None:
        row = index = torch.empty(0, dtype=torch.int64, device=memory.device)
        n, every = len(queries) * m, True
    else:
        n, every = len(index), False
        row = torch.arange(n, device=memory.device) if row is None else row
    made = torch.empty(n, dtype=torch.float64, device=memory.device)
    launch(
        neighbours_kernels.pairs_kernel, triton.cdiv(n, LINES), queries, memory, row, index, made, n, m, c,
        EVERY=every, BLOCK_P=LINES, BLOCK_C=WIDE, num_warps=4,
    )  # fmt: skip
    return made
