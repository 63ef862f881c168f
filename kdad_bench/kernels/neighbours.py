"""Exact nearest neighbours by one blocked matrix product: the product only selects, what is answered is recomputed.

No distance matrix is ever held: a tile of it at most, from which a running minimum and the few that may be it are kept.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.kernels import dispatch, float32
from kdad_bench.kernels.discrepancy import plain

ROWS, COLUMNS = 512, 4096  # queries and memory rows of a tile: 8 MB of float32
GROUP = 64  # columns of a tile whose least value is looked at first; divides COLUMNS and GPU_COLUMNS
MANY = 8  # candidates per query of a tile from which on the tile's product is repeated in float64
PAIRS = 1 << 17  # values of each side that are recomputed at a time: 1 MB of float64, which stays in a cache
# The same on a GPU, where each launch costs a few microseconds and a small one leaves most of it idle:
GPU_ROWS, GPU_COLUMNS, GPU_PAIRS = 4096, 16384, 1 << 24  # 256 MB of float32, 128 MB of float64
LEAST = 1e-36  # float32 differences below this may be of numbers too small for it
SUPPORTED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OP = "nearest"  # among the ops whose Triton kernels may be broken


def nearest(queries: Tensor, memory: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The `k` nearest rows of `memory` to each row of `queries`, by squared Euclidean distance, nearest first.

    Exact: the distances that a matrix product gives are used only with a proven bound of their rounding error; whatever
    they cannot tell apart is compared by distances computed directly, in float64. Equal distances: the lower index.

    Args:
        queries: [N, C]; memory: [M, C]; float32, float16, bfloat16 or float64, of one dtype and device, any strides.
        k: neighbours wanted, from 1 to M.

    Returns: squared distances [N, k] float32 (float64 for float64), indices [N, k] int64. Not differentiable.

    Raises: ValueError for other ranks, widths, dtypes or devices that differ, an empty memory, vectors without values,
    a k outside 1..M, values that are not finite, and float64 ones whose squared distances are not.
    """
    if not plain(queries, memory):
        traced: tuple[Tensor, Tensor] = torch.ops.kdad.nearest(queries, memory, k)
        return traced
    _check(queries, memory, k)
    answer = torch.float64 if queries.dtype == torch.float64 else torch.float32
    if len(queries) == 0:
        check_finite(queries, memory)
        return queries.new_empty(0, k, dtype=answer), queries.new_empty(0, k, dtype=torch.int64)
    with torch.no_grad():
        squared, indices = _found(queries, memory, k)
    if answer == torch.float64 and not bool(squared.isfinite().all()):
        raise NoNearest("queries and memory are too far apart: their squared distances are beyond float64")
    return squared.to(answer), indices


def _check(queries: Tensor, memory: Tensor, k: int) -> None:
    shapes = f"got {tuple(queries.shape)} and {tuple(memory.shape)}"
    if queries.dim() != 2 or memory.dim() != 2 or queries.shape[1] != memory.shape[1] or queries.shape[1] == 0:
        raise ValueError(f"queries and memory must be [N, C] and [M, C] with C > 0; {shapes}")
    if queries.dtype != memory.dtype or queries.dtype not in SUPPORTED or queries.device != memory.device:
        kinds = f"{queries.dtype} on {queries.device} and {memory.dtype} on {memory.device}"
        raise ValueError(f"queries and memory must be floating point of one dtype and device; got {kinds}")
    if len(memory) == 0:
        raise ValueError("the memory is empty: there is no nearest row")
    if not 1 <= k <= len(memory):
        raise ValueError(f"k must be from 1 to the {len(memory)} rows of the memory; got {k}")


class NoNearest(ValueError):
    """The values have no nearest rows."""


def check_finite(queries: Tensor, memory: Tensor) -> None:
    """NoNearest for values that are not finite."""
    for name, values in (("queries", queries), ("memory", memory)):
        if len(values) and not all(bool(end.isfinite()) for end in torch.aminmax(values)):  # NaN is passed on
            raise NoNearest(f"{name} hold NaN or infinity: they have no nearest row")


def _found(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Squared distances float64 and indices, on the path of the device."""
    chosen = dispatch.path(queries.device)
    if chosen == "triton" and queries.dtype != torch.float64 and OP not in dispatch.broken():
        kernels = importlib.import_module("kdad_bench.kernels.neighbours_triton")  # imports triton: only when used
        found: tuple[Tensor, Tensor] | None = dispatch.attempted(
            OP, kernels.nearest, queries, memory, k, meant=(NoNearest,)
        )
        if found is not None:
            return found
    check_finite(queries, memory)
    if chosen == "reference":
        return exhaustive(queries, memory, k)
    firsts = first_occurrences(memory) if k == 1 else None
    if firsts is None:
        return blocked(queries, memory, k)
    squared, indices = blocked(queries, memory[firsts], k)
    return squared, firsts[indices]


def first_occurrences(memory: Tensor) -> Tensor | None:
    """Indices of the rows of `memory` that equal no earlier row, rising; None if all or nearly all are such.

    Flat parts of images have equal features by the thousand, and all would be candidates together. Equal rows have
    equal sums of their bits times odd numbers, in any order; rows of equal sums are compared.
    """
    bits = memory.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[memory.element_size()])
    odd = torch.arange(memory.shape[1], device=memory.device) * 0x5851F42D4C957F2E + 0x14057B7EF767814F
    size = max(1, GPU_PAIRS // memory.shape[1]) if memory.is_cuda else ROWS
    sums = torch.cat([(bits[at : at + size].long() * odd).sum(1) for at in range(0, len(memory), size)])
    ordered, order = sums.sort(stable=True)
    heads = torch.cat([ordered.new_ones(1, dtype=torch.bool), ordered[1:] != ordered[:-1]])
    if int(heads.sum()) > 0.9 * len(memory):
        return None
    head = order[heads][heads.cumsum(0) - 1]  # for each row in order, the first with its sum
    same = torch.cat(
        [(memory[order[at : at + size]] == memory[head[at : at + size]]).all(1) for at in range(0, len(order), size)]
    )
    return order[heads | ~same].sort().values


def exhaustive(queries: Tensor, memory: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """The oracle: every distance, directly and in float64; [N, k] squared distances and indices."""
    parts = []
    for query in queries:
        distances = (query.double() - memory.double()).square().sum(1)
        indices = distances.sort(stable=True).indices[:k]  # stable: the lower index first
        parts.append((distances[indices], indices))
    return torch.stack([d for d, _ in parts]), torch.stack([i for _, i in parts])


@dataclass(frozen=True, slots=True)
class Frame:
    """The memory as the product sees it: centred, so that lengths are small, and scaled to a radius near 1."""

    centre: Tensor  # [C], in the dtype that differences are taken in
    scale: float  # a power of two: scaling rounds nothing
    points: Tensor  # [M, C] float32, and rows of zeros up to a multiple of GROUP
    halves: Tensor  # [M] float32: half of each squared length; infinite for the rows of zeros
    radius: float  # the greatest length

    def of(self, values: Tensor) -> Tensor:
        """`values` [N, C] in this frame, float32."""
        return (values.to(self.centre.dtype) - self.centre).mul_(self.scale).float()

    def slack(self, rows: Tensor, unit: float) -> Tensor:
        """[N] float32: twice the most by which half a squared distance less half the query's own may be wrong.

        A product of C terms is off by C u |q||m| at most, in any order of its sums; centring, the halves and the last
        difference add a few u of the same size; 2 |q||m| + |m|² <= (|q| + |m|)². u is the unit of rounding.
        """
        reach = torch.linalg.vector_norm(rows, dim=1).double() * (1 + rows.shape[1] * 2.0**-24) + self.radius
        slack: Tensor = ((rows.shape[1] + 8) * 2 * unit * reach.square()).float() + LEAST
        return slack


def frame_of(memory: Tensor) -> Frame | None:
    """The frame of `memory` [M, C]; None where its mean, or a length about it, is too large for a number."""
    wide = torch.float64 if memory.dtype == torch.float64 else torch.float32
    centre = memory.to(wide).mean(0)
    points = memory.to(wide) - centre
    lengths = torch.linalg.vector_norm(points, dim=1, dtype=torch.float64)
    radius = float(lengths.max())
    if not math.isfinite(radius):
        return None
    scale = 2.0 ** -max(min(round(math.log2(radius)), 120), -120) if radius > 0 else 1.0
    filling = -len(memory) % GROUP
    points = F.pad(points.mul_(scale).float(), (0, 0, 0, filling))
    halves = F.pad((lengths * scale).square_().mul_(0.5).float(), (0, filling), value=torch.inf)
    return Frame(centre, scale, points, halves, radius * scale)


def blocked(queries: Tensor, memory: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """`nearest` by tiles of ROWS x COLUMNS: [N, k] squared distances float64 and indices; inputs are finite, N > 0."""
    frame, unit = frame_of(memory), float32.UNIT[float32.products(memory.device)]
    if frame is None:
        return exhaustive(queries, memory, k)
    height, width = (GPU_ROWS, GPU_COLUMNS) if memory.is_cuda else (ROWS, COLUMNS)
    tile = frame.points.new_empty(min(height, len(queries)), min(width, len(frame.points)))
    parts = [_block(rows, memory, k, frame, unit, tile) for rows in torch.split(queries, height)]
    return torch.cat([distances for distances, _ in parts]), torch.cat([indices for _, indices in parts])


def _block(rows: Tensor, memory: Tensor, k: int, frame: Frame, unit: float, tile: Tensor) -> tuple[Tensor, Tensor]:
    """The `k` nearest of as many queries as `tile`, the memory to work in, has rows at most."""
    framed = frame.of(rows)
    slack = frame.slack(framed, unit)
    least = framed.new_full((len(rows), k), torch.inf)  # the k smallest of what the product said so far
    pool = Pool.empty(rows, memory)
    width = tile.shape[1]
    for start in range(0, len(frame.points), width):
        points = frame.points[start : start + width]
        halves = frame.halves[start : start + width]
        said = tile.view(-1)[: len(rows) * len(points)].view(len(rows), len(points))
        torch.addmm(halves, framed, points.T, alpha=-1, out=said)  # half a squared distance, less half the query's own
        groups = said.view(len(rows), -1, GROUP)
        of_groups = groups.amin(2)
        least = _smallest(least, of_groups if k == 1 else said)
        row, index = _hits(groups, of_groups, least[:, -1] + slack)
        if len(row) > max(MANY, 2 * k) * len(rows):
            row, index = _hits_in_float64(rows, memory[start : start + width], k, frame)
        real = index + start < len(memory)
        pool = pool.with_hits(row[real], index[real] + start, k)
    return pool.table(k)


def _smallest(least: Tensor, said: Tensor) -> Tensor:
    """The smallest of both in each row, as many as `least` has columns, in rising order."""
    k = least.shape[1]
    if k == 1:
        return torch.minimum(least, said.amin(1, keepdim=True))
    here = said.topk(min(k, said.shape[1]), largest=False).values
    return torch.cat([least, here], 1).topk(k, largest=False).values


def _hits(groups: Tensor, of_groups: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of all that is not above its row's `limit` [N] in `groups` [N, n, GROUP]; rows, columns rise.

    What overflowed is NaN and may be anything, so it is not above either.
    """
    row, group = (of_groups > limit[:, None]).logical_not_().nonzero(as_tuple=True)
    inside = (groups[row, group] > limit[row, None]).logical_not_().nonzero()
    return row[inside[:, 0]], group[inside[:, 0]] * GROUP + inside[:, 1]


def _hits_in_float64(rows: Tensor, memory: Tensor, k: int, frame: Frame) -> tuple[Tensor, Tensor]:
    """Row and column of all of a tile's `memory` that may be among its `k` nearest, by a product of float64."""
    centre = frame.centre.double()
    queries, points = ((values.double() - centre) * frame.scale for values in (rows, memory))
    said = torch.addmm(points.square().sum(1) / 2, queries, points.T, alpha=-1)
    least = said.topk(min(k, len(points)), largest=False).values[:, -1]
    reach = torch.linalg.vector_norm(queries, dim=1) + torch.linalg.vector_norm(points, dim=1).max()
    limit = least + (rows.shape[1] + 8) * 2.0**-51 * reach.square()
    row, index = (said > limit[:, None]).logical_not_().nonzero(as_tuple=True)
    return row, index


@dataclass(frozen=True, slots=True)
class Pool:
    """The nearest found so far with their true distances, row by row."""

    rows: Tensor  # the queries, [N, C]
    memory: Tensor
    row: Tensor  # [n] int64, rising
    distance: Tensor  # [n] float64, rising within a row; equal ones by index
    index: Tensor  # [n] int64

    @classmethod
    def empty(cls, rows: Tensor, memory: Tensor) -> Pool:
        """Nothing found yet."""
        nothing = torch.empty(0, dtype=torch.int64, device=rows.device)
        return cls(rows, memory, nothing, nothing.double(), nothing)

    def with_hits(self, row: Tensor, index: Tensor, k: int) -> Pool:
        """This pool and the pairs (row, index), of which the `k` nearest per row stay."""
        distance = torch.cat([self.distance, distances(self.rows, self.memory, row, index)[:, 0]])
        row, index = torch.cat([self.row, row]), torch.cat([self.index, index])  # indices rise within a row
        if len(self.row) or len(row) > len(self.rows):
            order = distance.sort(stable=True).indices
            order = order[row[order].sort(stable=True).indices]
            row, distance, index = row[order], distance[order], index[order]
            places = torch.arange(len(row), device=row.device)
            firsts = torch.searchsorted(row, torch.arange(len(self.rows), device=row.device))
            kept = places - firsts[row] < k
            row, distance, index = row[kept], distance[kept], index[kept]
        return Pool(self.rows, self.memory, row, distance, index)

    def table(self, k: int) -> tuple[Tensor, Tensor]:
        """Distances and indices, [N, k] each."""
        return self.distance.view(-1, k), self.index.view(-1, k)


def distances(queries: Tensor, memory: Tensor, row: Tensor, index: Tensor) -> Tensor:
    """[n, 1] squared distances of the pairs (row, index), in float64 from the values themselves."""
    size = max(1, (GPU_PAIRS if queries.is_cuda else PAIRS) // queries.shape[1])
    made = torch.empty(len(row), 1, dtype=torch.float64, device=queries.device)
    for start in range(0, len(row), size):
        some = slice(start, start + size)
        made[some, 0] = (queries[row[some]].double() - memory[index[some]]).square_().sum(1)
    return made


@torch.library.custom_op("kdad::nearest", mutates_args=())
def nearest_op(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`nearest` as one opaque call of a trace."""
    return nearest(queries, memory, k)


@nearest_op.register_fake
def _(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    answer = torch.float64 if queries.dtype == torch.float64 else torch.float32
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=answer), queries.new_empty(shape, dtype=torch.int64)
