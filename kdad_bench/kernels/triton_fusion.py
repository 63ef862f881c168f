"""Launches fusion and blur on a GPU: which tiles, which tables, in how many steps.

One launch makes any sum of maps, blurred or not, and any product that is not blurred. Two things take another launch
before the blur: a product, and maps larger than the result, which are read sample by sample. A filter that reaches over
more than MOST_ROWS rows of a map is applied along rows first, then along columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdad_bench.kernels import fusion_kernels
from kdad_bench.kernels.reference import blur_weights, reflected
from kdad_bench.kernels.sending import sent
from kdad_bench.kernels.triton_launch import Plan, launch

LARGE_BLOCK, SMALL_BLOCK = (32, 64), (16, 32)  # rows and columns of a program's tile
FEW = 264  # programs, two for each multiprocessor of an H100: with fewer large tiles, small ones are launched
WARPS = 4
MOST_ROWS = 128  # of one map that a tile reads at most
CHUNK_Y, CHUNK_X = (16, 64), 32  # rows (least, most) and columns of a map that one product takes
MULTIPLE = 4  # columns begin at one of these: 16 bytes, as wide as a load can be
TF32 = 0x1000, -0x2000  # what rounds the bits of a float32 to those of a TF32
MOST_TABLES = 64  # fusions whose tables are kept: a method may draw a new sigma for every image


Shapes = tuple[tuple[int, int], ...]  # rows and columns of each map


class Filter(NamedTuple):
    """A Gaussian along one axis; no filter if `sigma` is None."""

    sigma: float | None
    radius: int
    border: str


PLAIN = Filter(None, 0, "scipy")


class Axis(NamedTuple):
    """One axis of a map on its way into the result: lengths, tiles and filter."""

    source: int
    target: int
    align: bool
    block: int
    multiple: int
    blur: Filter


class Step(NamedTuple):
    """One launch: result size, rule, filters along columns (`down`) and rows (`across`)."""

    size: tuple[int, int]
    product: bool
    align: bool
    down: Filter
    across: Filter


class Fusion(NamedTuple):
    """A launch of `fuse_kernel` and its tables of each map, along columns and rows."""

    plan: Plan
    blocks: int
    downs: tuple[Tensor, ...]
    acrosses: tuple[Tensor, ...]


def ends_of(i: int, axis: Axis) -> tuple[int, int]:
    """The source indices that target position `i` is drawn from, as low and high; see `fusion_kernels.bilinear`."""
    over, under = i * (axis.source - 1), max(axis.target - 1, 1)
    if not axis.align:
        over, under = max((2 * i + 1) * axis.source - axis.target, 0), 2 * axis.target
    return min(over // under, axis.source - 1), min(-(-over // under), axis.source - 1)


def first_of(tile: int, axis: Axis) -> int:
    """The first source index that the table of a tile has; see `fusion_kernels.first_of`."""
    low, _ = ends_of(max(tile * axis.block - axis.blur.radius, 0), axis)
    return low - low % axis.multiple


def depth_of(axis: Axis) -> int:
    """Source indices that a tile draws from, at most."""
    lasts = (
        ends_of(min((tile + 1) * axis.block - 1 + axis.blur.radius, axis.target - 1), axis)[1]
        for tile in range(-(-axis.target // axis.block))
    )
    return max(last + 1 - first_of(tile, axis) for tile, last in enumerate(lasts))


def table_of(axis: Axis, depth: int) -> Tensor:
    """[tiles, 2, block, depth] float32: what each source index, from the tile's first on, gives to each position.

    Bilinear shares and filter, borders included, are added up in float64; their high parts, then their low ones.
    """
    blur = axis.blur
    weights = [1.0] if blur.sigma is None else blur_weights(blur.sigma, blur.radius)
    i = reflected(axis.target, blur.radius, blur.border).unfold(0, 2 * blur.radius + 1, 1)  # [target, taps]
    over, under = i * (axis.source - 1), max(axis.target - 1, 1)
    if not axis.align:
        over, under = ((2 * i + 1) * axis.source - axis.target).clamp_min(0), 2 * axis.target
    low = (over // under).clamp_max(axis.source - 1)
    part = (over - low * under).double() / under
    tiles = -(-axis.target // axis.block)
    first = torch.tensor([first_of(tile, axis) for tile in range(tiles)]).repeat_interleave(axis.block)
    table = torch.zeros(tiles * axis.block, depth, dtype=torch.float64)
    for index, share in ((low, 1 - part), ((low + (part > 0)).clamp_max(axis.source - 1), part)):
        place = index - first[: axis.target, None]
        table[: axis.target].scatter_add_(1, place, share * torch.tensor(weights, dtype=torch.float64))
    whole = table.view(tiles, axis.block, depth)
    high = ((whole.float().view(torch.int32) + TF32[0]) & TF32[1]).view(torch.float32)
    return torch.stack([high, (whole - high).float()], 1)


def chunk_of(depth: int) -> int:
    """Rows that one product takes of `depth`."""
    least, most = CHUNK_Y
    return max(least, min(most, 1 << (depth - 1).bit_length()))


def filled(depth: int, chunk: int) -> int:
    """`depth` up to a multiple of `chunk`."""
    return -(-depth // chunk) * chunk


def block_of(n: int, size: tuple[int, int]) -> tuple[int, int]:
    """Large tiles, unless they are too few to fill a GPU."""
    programs = n * math.prod(-(-side // block) for side, block in zip(size, LARGE_BLOCK, strict=True))
    return SMALL_BLOCK if programs < FEW else LARGE_BLOCK


def axes_of(shape: tuple[int, int], step: Step, block: tuple[int, int]) -> tuple[Axis, Axis]:
    """Columns and rows of a map of `shape` [h, w]."""
    down = Axis(shape[0], step.size[0], step.align, block[0], 1, step.down)
    return down, Axis(shape[1], step.size[1], step.align, block[1], MULTIPLE, step.across)


@lru_cache(MOST_TABLES)
def steps_of(shapes: Shapes, size: tuple[int, int], product: bool, align: bool, blur: Filter) -> tuple[Step, ...]:
    """The launches that make the result of maps of `shapes`."""
    product = product and len(shapes) > 1
    plain = Step(size, product, align, PLAIN, PLAIN)
    if blur.sigma is None:
        return (plain,)
    if product or any(larger(shape, size) for shape in shapes):
        return plain, *steps_of((size,), size, False, False, blur)
    whole = plain._replace(down=blur, across=blur)
    if max(depth_of(axes_of(shape, whole, LARGE_BLOCK)[0]) for shape in shapes) <= MOST_ROWS:
        return (whole,)
    return whole._replace(down=PLAIN), plain._replace(align=False, down=blur)


def larger(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a map has more rows or columns than the result."""
    return shape[0] > size[0] or shape[1] > size[1]


@lru_cache(MOST_TABLES)
def fusion_of(
    n: int, shapes: tuple[tuple[int, int], ...], step: Step, score: str | None, device: torch.device
) -> Fusion:
    """The launch of a step for `n` images; `score` is what it adds up: "max", "mean" or nothing."""
    block = block_of(n, step.size)
    blocks = -(-step.size[0] // block[0]), -(-step.size[1] // block[1])
    by_tables = not any(larger(shape, step.size) for shape in shapes)
    layout: list[int] = []
    tables: tuple[list[Tensor], list[Tensor]] = [], []
    for axes in (axes_of(shape, step, block) for shape in shapes if by_tables):
        depths = depth_of(axes[0]), depth_of(axes[1])
        chunks = chunk_of(depths[0]), CHUNK_X
        depths = filled(depths[0], chunks[0]), filled(depths[1], chunks[1])
        pair = [table_of(axis, depth) for axis, depth in zip(axes, depths, strict=True)]
        layout += [*depths, *chunks, *(bool(table[:, 1].any()) for table in pair)]
        for made, table in zip(tables, pair, strict=True):
            made.append(sent(table, device))
    numbers = (
        tuple(side for shape in shapes for side in shape),
        *step.size,
        *blocks,
        step.down.radius,
        step.across.radius,
    )
    constants: dict[str, Any] = {
        "MAPS": len(shapes), "PRODUCT": step.product, "ALIGN": step.align, "TABLES": by_tables,
        "EXACT": by_tables and step.down == step.across == PLAIN, "SHAPES": tuple(layout), "MULTIPLE": MULTIPLE,
        "MAXIMUM": score == "max", "MEAN": score == "mean", "BLOCK_Y": block[0], "BLOCK_X": block[1],
        "num_warps": WARPS, "num_stages": 1,
    }  # fmt: skip
    programs = math.prod(blocks)
    sides = tuple(side for shape in shapes for side in shape)
    numbers = sides, *step.size, *blocks, step.down.radius, step.across.radius
    return Fusion(Plan(n * programs, numbers, constants), programs, tuple(tables[0]), tuple(tables[1]))


_in_graphs: dict[int, Fusion] = {}  # what captured graphs read: never forgotten, whatever is planned after them


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def launched(
    maps: tuple[Tensor, ...], step: Step, score: str | None, scores: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The result of a step, and the partial sums of its programs [N, programs] if `score` is "mean"."""
    n, device = maps[0].shape[0], maps[0].device
    shapes = tuple((m.shape[1], m.shape[2]) for m in maps)
    found = fusion_of(n, shapes, step, score, device)
    if capturing(device):
        _in_graphs[id(found)] = found
    out = maps[0].new_empty((n, *step.size))
    partial = maps[0].new_empty((n, found.blocks)) if score == "mean" else None
    launch(
        fusion_kernels.fuse_kernel, found.plan, maps, found.downs or maps, found.acrosses or maps,
        out, out if scores is None else scores, out if partial is None else partial,
    )  # fmt: skip
    return out, partial


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
    """Upsample and fuse, blur unless `sigma` is None, score unless `score` is None; `steps_of` says in which launches.

    The maximum is taken inside the last launch if `scores` comes set to 0 and no map is negative; otherwise, and for
    the mean (whose partial sums are added in a fixed order), the score is one launch more.
    """
    kept = tuple(m.float().contiguous() for m in maps)
    blur = PLAIN if sigma is None else Filter(sigma, radius, border)
    shapes = tuple((m.shape[1], m.shape[2]) for m in kept)
    *before, last = steps_of(shapes, (size[0], size[1]), mode == "product", align_corners, blur)
    for step in before:
        kept = (launched(kept, step, None, None)[0],)
    inside = score if score == "mean" or (score == "max" and scores is not None) else None
    out, partial = launched(kept, last, inside, scores if inside == "max" else None)
    if score is None:
        return out, None
    if inside == "max":
        return out, scores
    return out, out.flatten(1).amax(1) if partial is None else partial.sum(1) / math.prod(size)
