"""The nearest rows on a GPU: what launches the kernels, and the bound of what their products say.

There is no autotuning; the launch configuration is the constants below. A search for one neighbour is six launches and
one wait of the CPU; where the product cannot tell some queries' two least apart, three launches and a wait more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kdad_bench.kernels import neighbours, neighbours_kernels, triton_launch
from kdad_bench.kernels.triton_launch import Plan, guard


class Shape(NamedTuple):
    """Of a tile: queries, rows of the memory, channels that tensor cores sum; warps and stages of the pipeline."""

    queries: int
    points: int
    channels: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        """Of a kernel that multiplies."""
        names = ("BLOCK_Q", "BLOCK_M", "BLOCK_C", "num_warps", "num_stages")
        return dict(zip(names, self, strict=True))


HOPPER = Shape(128, 128, 64, 8, 3)  # wgmma from shared memory, 192 KB of it; others spill registers by it
OTHERS = Shape(128, 64, 32, 8, 3)
FEW = Shape(64, 64, 32, 4, 3)  # for what is left unclear
WIDE = 64  # channels of a program that does not multiply; whole blocks of all shapes
LINES = 16  # and its rows or pairs
LARGEST = 60000.0  # of what is held in float16
TOP = 10  # 2^TOP is above the memory's values: float16 has room below it for small ones, above it for far queries
FAR = (1 << 31) - 1  # no row is so far
PROCESSORS = 132  # multiprocessors of an H100, where there is no device
SPLITS = 64  # at most so many of the memory
SAMPLE = 256  # rows whose mean is the centre: any centre is exact
SPARE = 8  # of several neighbours, so many more are measured
CANDIDATES = 16  # for an unclear query, on average; of more, equal rows are looked for
MOST_CANDIDATES = 1 << 30  # of all queries: they are counted in int32, with room for the tiles of running programs
DIRECT = 1 << 24  # values of all pairs up to which each is measured without a product
TILE = 1 << 26  # products that are held at a time: 256 MB
INFINITE = 0x7F800000  # bits of float32 from which on nothing is finite


# ---- launches --------------------------------------------------------------------------------------------------------


@lru_cache
def facts(device: torch.device) -> tuple[int, Shape]:
    """Multiprocessors of the device and the shape of a tile."""
    if device.type != "cuda":
        return PROCESSORS, HOPPER
    found = torch.cuda.get_device_properties(device)
    return found.multi_processor_count, shape_of(found.major)


def shape_of(generation: int) -> Shape:
    """Of a tile on GPUs of a generation, the compute capability's first figure."""
    return HOPPER if generation == 9 else OTHERS


def splits_of(blocks: int, tiles: int, processors: int) -> tuple[int, int]:
    """(splits, tiles of a split) of the memory: few rounds of all multiprocessors, none of them nearly idle."""
    rounds = {
        -(-tiles // each): -(-blocks * -(-tiles // each) // processors) * each
        for each in {-(-tiles // splits) for splits in range(1, min(SPLITS, tiles) + 1)}
    }
    splits = min(rounds, key=lambda splits: (rounds[splits], splits))
    return splits, -(-tiles // splits)


class Plans(NamedTuple):
    """Of the launches that every search of its sizes makes."""

    centre: Plan
    asking: Plan
    points: Plan
    least: Plan
    answer: Plan
    splits: int


@lru_cache(maxsize=64)
def plans(n: int, m: int, c: int, device: torch.device, bound: tuple[float, float]) -> Plans:
    """For n queries and m rows of c values."""
    processors, shape = facts(device)
    step = max(1, m // SAMPLE)
    blocks = triton.cdiv(n, shape.queries)
    splits, tiles = splits_of(blocks, triton.cdiv(m, shape.points), processors)
    block = {"BLOCK_R": LINES, "BLOCK_C": WIDE, "LARGEST": LARGEST, "TOP": TOP, "num_warps": 4}
    pairs = {"FAR": FAR, "BLOCK_P": LINES, "BLOCK_C": WIDE, "num_warps": 4}
    return Plans(
        Plan.of(triton.cdiv(c, 32), (triton.cdiv(m, step), step, c), {"BLOCK_R": 128, "BLOCK_C": 32, "num_warps": 4}),
        Plan.of(triton.cdiv(n, LINES), (n, c, padded(c)), {**block, "POINTS": False}),
        Plan.of(triton.cdiv(m, LINES), (m, c, padded(c)), {**block, "POINTS": True}),
        Plan.of(
            blocks * splits, (n, m, padded(c), tiles * shape.points, splits, blocks), {**shape.constants, "FAR": FAR}
        ),
        Plan.of(triton.cdiv(n, LINES), (n, c, splits, *bound), pairs),
        splits,
    )  # fmt: skip


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Launch on the device of the first argument; Triton's own launch, for calls that differ in their numbers."""
    with guard(arguments[0].device):
        kernel[(programs,)](*arguments, **constants)


def padded(c: int) -> int:
    """Channels with the zeros that make whole blocks."""
    return -(-c // WIDE) * WIDE


# ---- what the product says -------------------------------------------------------------------------------------------


def bound(c: int, shape: Shape) -> tuple[float, float]:
    """(relative, extra): relative (|q| + radius + extra)² is twice the most by which half a squared distance less half
    the query's own may be wrong.

    With S = |q||m| and S + |m|²/2 <= reach²/2, reach = |q| + radius: tensor cores add the products of some channels, in
    groups of four or more, and may cut each sum off: below 3/2 channels 2^-23 S. Float32 adds C / channels of such
    sums: 2^-24 S each. Centring, the remainders of the halves, the products of both, |m|²/2 and the last difference
    take below 24 2^-24 reach²/2. All of that is taken with a third more at least. A half below float16's normal numbers
    is off by 2^-25: another 2^-23 C^½ reach + 2^-48 C, which `extra` is for.
    """
    sums = max(one.channels + 2 * c / one.channels for one in (shape, FEW))
    relative = (sums + 16) * 2.0**-22 * (1 + 2.0**-18)
    return relative, sqrt(c) * 2.0**-24 / relative + sqrt(c * 2.0**-48 / relative)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows, centred and scaled, as sums of two float16."""

    high: Tensor  # [n, padded(C)] float16
    low: Tensor
    lengths: Tensor  # [n] float32, infinite where float16 does not hold the row; of the memory half their squares

    @classmethod
    def empty(cls, values: Tensor) -> Rows:
        """For `values` [n, C]."""
        n, c = values.shape
        high, low = (torch.empty(n, padded(c), dtype=torch.float16, device=values.device) for _ in range(2))
        return cls(high, low, torch.empty(n, dtype=torch.float32, device=values.device))


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched, and what the kernels tell of it."""

    queries: Tensor  # [N, C], contiguous
    memory: Tensor  # [M, C], contiguous
    asking: Rows
    points: Rows
    state: Tensor  # see neighbours_kernels
    bound: tuple[float, float]
    plans: Plans

    @classmethod
    def of(cls, queries: Tensor, memory: Tensor) -> Search:
        """Centred, scaled and split. Nothing of it is known to the CPU."""
        (n, c), m, device = queries.shape, len(memory), queries.device
        limits = bound(c, facts(device)[1])
        made = cls(
            queries, memory, Rows.empty(queries), Rows.empty(memory),
            torch.zeros(8, dtype=torch.int32, device=device), limits, plans(n, m, c, device, limits),
        )  # fmt: skip
        centre = torch.empty(c, dtype=torch.float32, device=device)
        triton_launch.launch(neighbours_kernels.centre_kernel, made.plans.centre, memory, made.state, centre)
        for values, plan, rows in (
            (memory, made.plans.points, made.points),
            (queries, made.plans.asking, made.asking),
        ):
            triton_launch.launch(
                neighbours_kernels.split_kernel, plan, values, centre, made.state, rows.high, rows.low, rows.lengths
            )
        return made

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """What the kernels that multiply begin with."""
        return self.asking.high, self.asking.low, self.points.high, self.points.low, self.points.lengths

    def told(self) -> tuple[bool, int, int]:
        """Whether float16 held all rows, queries that are not clear, candidates for them (or a number above the
        capacity of their list). The CPU waits for it."""
        _, radius, longest, unclear, candidates, *_ = self.state.tolist()
        return max(radius, longest) < INFINITE, unclear, candidates

    def least(self) -> tuple[Tensor, Tensor, Tensor]:
        """[N, splits] each: least, its index (int32) and second least of halves[j] - q_i.p_j in a split."""
        shape = len(self.queries), self.plans.splits
        best, second = (torch.empty(shape, dtype=torch.float32, device=self.queries.device) for _ in range(2))
        index = torch.empty(shape, dtype=torch.int32, device=self.queries.device)
        triton_launch.launch(
            neighbours_kernels.least_kernel, self.plans.least, *self.factors, best, index, second
        )  # fmt: skip
        return best, index, second

    def said(self, first: int, count: int) -> Tensor:
        """halves[j] - q_i.p_j for queries from the `first`: [n, M]."""
        some = slice(first, first + count)
        high, low, *points = self.factors
        n, m = len(high[some]), len(self.memory)
        made = torch.empty(n, m, dtype=torch.float32, device=self.queries.device)
        shape = facts(made.device)[1]
        blocks = triton.cdiv(n, shape.queries)
        launch(
            neighbours_kernels.said_kernel, blocks * triton.cdiv(m, shape.points),
            high[some], low[some], *points, made, n, m, padded(self.queries.shape[1]), blocks, **shape.constants,
        )  # fmt: skip
        return made


# ---- the search ------------------------------------------------------------------------------------------------------


def nearest(queries: Tensor, memory: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The `k` nearest rows of `memory` to each of `queries`: [N, k] squared distances float64 and indices; N > 0.

    ValueError for values that are not finite: that is asked where the CPU waits anyhow.
    """
    queries, memory = queries.contiguous(), memory.contiguous()
    if len(queries) * memory.numel() <= DIRECT:
        return directly(queries, memory, k)
    search = Search.of(queries, memory)
    return one(search) if k == 1 else several(search, k)


class Answers(NamedTuple):
    """What is found, and what is not yet."""

    distances: Tensor  # [N] squared, float64
    indices: Tensor  # [N] int64
    limits: Tensor  # [N] float32: no nearest row is said to be above
    unclear: Tensor  # [N] int32: queries, as many as are told


def one(search: Search) -> tuple[Tensor, Tensor]:
    """[N, 1] distances and indices of the nearest; of queries whose two least lie too close, of all that may be it."""
    found = answered(search)
    held, count, _ = search.told()
    if not held:
        neighbours.check_finite(search.queries, search.memory)
    if count:
        capacity = settle(search, found, count)
        if search.told()[2] > capacity:
            some = found.unclear[:count].long()
            distance, index = among_many(search.queries[some], search.memory)
            found.distances[some], found.indices[some] = distance[:, 0], index[:, 0]
    return found.distances[:, None], found.indices[:, None]


def answered(search: Search) -> Answers:
    """The nearest, where it is clear."""
    kinds = torch.float64, torch.int64, torch.float32, torch.int32
    found = Answers(*(torch.empty(len(search.queries), dtype=kind, device=search.queries.device) for kind in kinds))
    triton_launch.launch(
        neighbours_kernels.answer_kernel, search.plans.answer, search.queries, search.memory, search.asking.lengths,
        *search.least(), search.state, *found,
    )  # fmt: skip
    return found


def settle(search: Search, found: Answers, count: int) -> int:
    """Measure what may be nearest to the first `count` of the unclear: right if no more than so many candidates."""
    capacity, m, c = min(CANDIDATES * count + 64, MOST_CANDIDATES), len(search.memory), search.queries.shape[1]
    device, programs, blocks = search.state.device, triton.cdiv(capacity, LINES), triton.cdiv(count, FEW.queries)
    row, index = (torch.empty(capacity, dtype=torch.int32, device=device) for _ in range(2))
    measured = torch.empty(capacity, dtype=torch.int64, device=device)
    distances = found.distances.view(torch.int64)  # bits, which rise as the distances do
    launch(
        neighbours_kernels.candidates_kernel, blocks * triton.cdiv(m, FEW.points),
        *search.factors, found.limits, found.unclear, search.state, row, index,
        count, m, padded(c), blocks, capacity, **FEW.constants,
    )  # fmt: skip
    launch(
        neighbours_kernels.closest_kernel, programs, search.queries, search.memory, row, index, search.state,
        measured, distances, capacity, c, BLOCK_P=LINES, BLOCK_C=WIDE, num_warps=4,
    )  # fmt: skip
    launch(
        neighbours_kernels.first_kernel, programs, row, index, search.state, measured, distances, found.indices,
        capacity, BLOCK_P=LINES, num_warps=4,
    )  # fmt: skip
    return capacity


def among_many(queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """[N, 1] distances and indices where many may be nearest: equal rows are searched once, near ones in float64."""
    firsts = neighbours.first_occurrences(memory)
    if firsts is None:
        return neighbours.blocked(queries, memory)
    distances, index = nearest(queries, memory[firsts])
    return distances, firsts[index]


def several(search: Search, k: int) -> tuple[Tensor, Tensor]:
    """[N, k] distances and indices among a few more than k that the product says are nearest; by tiles, where there
    may be others."""
    queries, memory, (relative, extra) = search.queries, search.memory, search.bound
    slack = (search.asking.lengths + (search.state[1:2].view(torch.float32) + extra)).square() * relative
    width = min(k + SPARE, len(memory))
    found = []
    for first, said in pieces(search):
        least, index = said.topk(width, largest=False)
        row = torch.arange(first, first + len(said), device=said.device)
        unclear = (least[:, -1] > least[:, k - 1] + slack[row]).logical_not_() & (width < len(memory))
        index = index.sort(1).values  # of equals the lower first
        distance = pairs(queries, memory, row.repeat_interleave(width), index.view(-1)).view_as(index)
        ordered, place = distance.sort(dim=1, stable=True)
        found.append((ordered[:, :k], index.gather(1, place[:, :k]), unclear))
    distances, indices, unclear = (torch.cat(parts) for parts in zip(*found, strict=True))
    some = unclear.nonzero()[:, 0]
    if not search.told()[0]:
        neighbours.check_finite(queries, memory)
        some = torch.arange(len(queries), device=queries.device)
    if len(some):
        distances[some], indices[some] = neighbours.blocked(queries[some], memory, k)
    return distances, indices


def pieces(search: Search) -> Iterator[tuple[int, Tensor]]:
    """First query and what the product says, for as many queries at a time as a TILE holds."""
    size = max(1, TILE // len(search.memory))
    for first in range(0, len(search.queries), size):
        yield first, search.said(first, size)


def directly(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` nearest by the distances of all pairs."""
    distances = pairs(queries, memory, None, None).view(len(queries), len(memory))
    if not bool(distances.isfinite().all()):
        neighbours.check_finite(queries, memory)
    if k == 1:
        least, index = distances.min(1, keepdim=True)  # the first of equals
        return least, index
    ordered, index = distances.sort(dim=1, stable=True)
    return ordered[:, :k].contiguous(), index[:, :k].contiguous()


def pairs(queries: Tensor, memory: Tensor, row: Tensor | None, index: Tensor | None) -> Tensor:
    """[n] squared distances float64 of the pairs (row, index), int64; without them of all pairs, in order."""
    m, c = memory.shape
    n = len(queries) * m if row is None else len(row)
    made = torch.empty(n, dtype=torch.float64, device=memory.device)
    unused = torch.empty(0, dtype=torch.int64, device=memory.device)
    launch(
        neighbours_kernels.pairs_kernel, triton.cdiv(n, LINES), queries, memory,
        unused if row is None else row, unused if index is None else index, made, n, m, c,
        EVERY=row is None, BLOCK_P=LINES, BLOCK_C=WIDE, num_warps=4,
    )  # fmt: skip
    return made
