"""Launches fusion and blur on a GPU: which tiles, which tables, in how many steps.

One launch makes any sum of maps, blurred or not, any product, and maps that are fused at one size and upsampled to
another. Where a product with a filter would be made too often, by too many tiles, it takes a launch of its own before
the filter, and so do maps larger than the result, which are read sample by sample. A filter that reaches over more than
MOST_ROWS rows of a map is applied along rows first, then along columns.
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

FEW = 256  # programs, nearly two for each multiprocessor of an H100: fewer tiles than that are made smaller
MOST_ROWS = 128  # of one map that a tile reads at most
LEAST_CHUNK, MOST_CHUNK = 16, (32, 32)  # rows and columns of a map that one product takes
MOST_MADE = 3  # values of a fused map that a large tile makes for each of its own
MULTIPLE = 4  # columns begin at one of these: 16 bytes, as wide as a load can be
REST = 0x1FFF  # the bits of a float32 that a TF32 lacks
MOST_TABLES = 64  # fusions whose tables are kept: a method may draw a new sigma for every image


Shapes = tuple[tuple[int, int], ...]  # rows and columns of each map


class Tile(NamedTuple):
    """Rows and columns of a program's tile, and the warps that make it."""

    rows: int
    columns: int
    warps: int


Tiles = tuple[Tile, ...]  # from large to small

# On sm_90, Triton multiplies matrices of 64 rows and more by wgmma if there are four warps or more. A sum of 64 x 64 on
# eight warps ended in an illegal access there: no launch is to have both.
SAMPLED: Tiles = Tile(8, 128, 4), Tile(8, 64, 4)
SUMMED: Tiles = Tile(64, 64, 2), Tile(32, 64, 2), Tile(16, 32, 4)
UPSAMPLED: Tiles = Tile(32, 64, 4), Tile(4, 64, 4)  # of maps that are fused on the way; the smallest without tables
FILTERED: Tiles = Tile(32, 64, 4), Tile(16, 32, 4)
MOST_PIECE = 16, 32  # rows and columns of a fused map that are made at a time


class Filter(NamedTuple):
    """A Gaussian along one axis; no filter if `sigma` is None."""

    sigma: float | None
    radius: int
    border: str


PLAIN = Filter(None, 0, "scipy")


class Axis(NamedTuple):
    """One axis of a map on its way into the result: lengths, tiles, filter."""

    source: int
    target: int
    align: bool
    block: int
    multiple: int
    blur: Filter

    @property
    def starts(self) -> tuple[int, ...]:
        """The first target position of each tile."""
        return tuple(range(0, self.target, self.block))


class Step(NamedTuple):
    """One launch: result size, rule, filters along columns (`down`) and rows (`across`).

    Maps are fused at the size `middle` if given, and that is upsampled or filtered on the way to the result.
    """

    size: tuple[int, int]
    product: bool
    align: bool
    down: Filter
    across: Filter
    middle: tuple[int, int] | None = None


class Fusion(NamedTuple):
    """A launch and its tables along columns and along rows: of each map, or of the fused map."""

    kernel: str
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


def first_of(start: int, axis: Axis) -> int:
    """The first source index in the table of the tile that begins at `start`; see `fusion_kernels.first_of`."""
    low, _ = ends_of(max(start - axis.blur.radius, 0), axis)
    return low - low % axis.multiple


def depth_of(axis: Axis) -> int:
    """Source indices that a tile draws from, at most."""
    lasts = (ends_of(min(start + axis.block - 1 + axis.blur.radius, axis.target - 1), axis)[1] for start in axis.starts)
    return max(last + 1 - first_of(start, axis) for start, last in zip(axis.starts, lasts, strict=True))


def table_of(axis: Axis, depth: int) -> Tensor:
    """[tiles, block, depth] float32: what each source index, from the tile's first on, gives to each position.

    Bilinear shares and filter, borders included, are added up in float64.
    """
    blur = axis.blur
    weights = [1.0] if blur.sigma is None else blur_weights(blur.sigma, blur.radius)
    position = (torch.tensor(axis.starts, device="cpu")[:, None] + torch.arange(axis.block, device="cpu")).flatten()
    i = reflected(axis.target, blur.radius, blur.border).unfold(0, 2 * blur.radius + 1, 1)  # [target, taps]
    i = i[position.clamp_max(axis.target - 1)]
    over, under = i * (axis.source - 1), max(axis.target - 1, 1)
    if not axis.align:
        over, under = ((2 * i + 1) * axis.source - axis.target).clamp_min(0), 2 * axis.target
    low = (over // under).clamp_max(axis.source - 1)
    part = (over - low * under).double() / under
    first = torch.tensor([first_of(start, axis) for start in axis.starts], device="cpu").repeat_interleave(axis.block)
    taps = torch.tensor(weights, dtype=torch.float64, device="cpu") * (position < axis.target)[:, None]
    table = torch.zeros(len(position), depth, dtype=torch.float64, device="cpu")
    for index, share in ((low, 1 - part), ((low + (part > 0)).clamp_max(axis.source - 1), part)):
        table.scatter_add_(1, index - first[:, None], share * taps)
    return table.view(-1, axis.block, depth).float()


def chunk_of(depth: int, most: int) -> int:
    """Rows or columns that one product takes of `depth`: a power of two."""
    return max(LEAST_CHUNK, min(most, 1 << (depth - 1).bit_length()))


def filled(depth: int, chunk: int) -> int:
    """`depth` up to a multiple of `chunk`."""
    return -(-depth // chunk) * chunk


class Folding(NamedTuple):
    """The tables of one map along columns and rows, as `fusion_kernels.folded` takes them."""

    down: Axis
    across: Axis
    chunks: tuple[int, int]  # rows and columns of the map that are taken at a time
    depths: tuple[int, int]  # multiples of these

    @classmethod
    def of(cls, down: Axis, across: Axis, most: tuple[int, int]) -> Folding:
        """With chunks of at most so many rows and columns."""
        depths = depth_of(down), depth_of(across)
        chunks = chunk_of(depths[0], most[0]), chunk_of(depths[1], most[1])
        return cls(down, across, chunks, (filled(depths[0], chunks[0]), filled(depths[1], chunks[1])))

    def tables(self) -> tuple[tuple[int, ...], tuple[Tensor, ...]]:
        """The six constants of `fusion_kernels.folded`, and the tables."""
        pair = tuple(table_of(axis, depth) for axis, depth in zip(self[:2], self.depths, strict=True))
        return (*self.depths, *self.chunks, *(bool((table.view(torch.int32) & REST).any()) for table in pair)), pair


def tile_of(n: int, size: tuple[int, int], tiles: Tiles) -> Tile:
    """The largest tile of which there are not too few to fill a GPU, or the smallest one."""
    return next((tile for tile in tiles if n * math.prod(blocks_of(size, tile)) >= FEW), tiles[-1])


def blocks_of(size: tuple[int, int], tile: Tile) -> tuple[int, int]:
    """How many tiles a result has, down and across."""
    return -(-size[0] // tile.rows), -(-size[1] // tile.columns)


def axes_of(shape: tuple[int, int], step: Step, block: Sequence[int], multiple: int) -> tuple[Axis, Axis]:
    """Columns and rows of a map of `shape` [h, w] on the way to the result of a step."""
    down = Axis(shape[0], step.size[0], step.align, block[0], 1, step.down)
    return down, Axis(shape[1], step.size[1], step.align, block[1], multiple, step.across)


def outer_of(step: Step, tile: Tile) -> Folding:
    """How a tile of a step that fuses at a size in the middle draws from the fused map."""
    assert step.middle is not None
    return Folding.of(*axes_of(step.middle, step, tile, 1), MOST_PIECE)


def made_per_value(step: Step) -> float:
    """Values of the fused map that a large tile makes for each value of the result."""
    tile = (UPSAMPLED if step.down == step.across == PLAIN else FILTERED)[0]
    return math.prod(outer_of(step, tile).depths) / (tile.rows * tile.columns)


@lru_cache(MOST_TABLES)
def steps_of(
    shapes: Shapes, size: tuple[int, int], product: bool, align: bool, blur: Filter, middle: tuple[int, int] | None
) -> tuple[Step, ...]:
    """The launches that make the result of maps of `shapes`, which are fused at the size `middle` first if given."""
    product = product and len(shapes) > 1
    if middle == size:
        middle = None
    plain = Step(middle or size, product, align, PLAIN, PLAIN)
    if middle is None and blur.sigma is None:
        return (plain,)
    whole = Step(size, product, align, blur, blur)
    if middle or product:
        twofold = whole._replace(middle=middle or size)
        small = not larger(plain.size, size) and not any(larger(shape, plain.size) for shape in shapes)
        if small and made_per_value(twofold) <= MOST_MADE:
            return (twofold,)
        return plain, *steps_of((plain.size,), size, False, align, blur, None)
    if any(larger(shape, size) for shape in shapes):
        return plain, *steps_of((size,), size, False, False, blur, None)
    if max(depth_of(axes_of(shape, whole, SUMMED[0], 1)[0]) for shape in shapes) <= MOST_ROWS:
        return (whole,)
    return whole._replace(down=PLAIN), plain._replace(align=False, down=blur)


def larger(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a map has more rows or columns than the result."""
    return shape[0] > size[0] or shape[1] > size[1]


def folds_of(shapes: Shapes, step: Step, tile: Tile) -> list[Folding]:
    """How a tile of a filtered sum draws from each map."""
    return [Folding.of(*axes_of(shape, step, tile, MULTIPLE), MOST_CHUNK) for shape in shapes]


def summed_tile(n: int, shapes: Shapes, step: Step) -> Tile:
    """The tile of a filtered sum; the largest would not fit into registers where it takes a map in several chunks."""
    once = all(fold.depths == fold.chunks for fold in folds_of(shapes, step, SUMMED[0]))
    return tile_of(n, step.size, SUMMED if once else SUMMED[1:])


@lru_cache(MOST_TABLES)
def fusion_of(n: int, shapes: Shapes, step: Step, score: str | None, device: torch.device) -> Fusion:
    """The launch of a step for `n` images; `score` is what it adds up: "max", "mean" or nothing."""
    plain = step.down == step.across == PLAIN
    tile = tile_of(n, step.size, SAMPLED) if plain else summed_tile(n, shapes, step)
    folds = [] if plain else folds_of(shapes, step, tile)
    made = [fold.tables() for fold in folds]
    own = {"SHAPES": tuple(x for layout, _ in made for x in layout), "MULTIPLE": MULTIPLE, "TABLES": not plain}
    return fusion("fuse_kernel", n, shapes, step, score, tile, own, [pair for _, pair in made], device)


@lru_cache(MOST_TABLES)
def twofold_of(n: int, shapes: Shapes, step: Step, score: str | None, device: torch.device) -> Fusion:
    """The same for a step that fuses at a size in the middle."""
    plain = step.down == step.across == PLAIN
    tile = tile_of(n, step.size, UPSAMPLED if plain else FILTERED)
    sampled = plain and tile == UPSAMPLED[-1]
    layout, pair = ((), None) if sampled else outer_of(step, tile).tables()
    own = {"MIDDLE": step.middle, "OUTER": layout, "TABLES": not sampled, "EXACT": plain and not sampled}
    return fusion("twofold_kernel", n, shapes, step, score, tile, own, [] if pair is None else [pair], device)


def fusion(
    kernel: str, n: int, shapes: Shapes, step: Step, score: str | None, tile: Tile, own: dict[str, Any],
    tables: Sequence[tuple[Tensor, ...]], device: torch.device,
) -> Fusion:  # fmt: skip
    """A launch of `kernel` with `own` constants beside those that both kernels take."""
    constants: dict[str, Any] = {
        "SIDES": tuple(side for shape in shapes for side in shape), "HEIGHT": step.size[0], "WIDTH": step.size[1],
        "REACH": (step.down.radius, step.across.radius),
        "MAPS": len(shapes), "PRODUCT": step.product, "ALIGN": step.align,
        "MAXIMUM": score == "max", "MEAN": score == "mean", "BLOCK_Y": tile.rows, "BLOCK_X": tile.columns,
        "num_warps": tile.warps, "num_stages": 1,
    }  # fmt: skip
    blocks = math.prod(blocks_of(step.size, tile))
    downs, acrosses = (tuple(sent(pair[way], device) for pair in tables) for way in (0, 1))
    return Fusion(kernel, Plan.of(n * blocks, (), constants | own), blocks, downs, acrosses)


_in_graphs: dict[int, Fusion] = {}  # what captured graphs read: never forgotten, whatever is planned after them


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def launched(
    found: Fusion, size: tuple[int, int], maps: tuple[Tensor, ...], score: str | None, scores: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The result of a launch, and the partial sums of its programs [N, programs] if `score` is "mean"."""
    like = maps[0]
    n = like.shape[0]
    if capturing(like.device):
        _in_graphs[id(found)] = found
    out = like.new_empty((n, *size))
    partial = like.new_empty((n, found.blocks)) if score == "mean" else None
    downs, acrosses = found.downs or maps, found.acrosses or maps
    one = found.kernel == "twofold_kernel"
    launch(
        getattr(fusion_kernels, found.kernel), found.plan, maps, downs[0] if one else downs,
        acrosses[0] if one else acrosses, out, out if scores is None else scores,
        out if partial is None else partial,
    )  # fmt: skip
    return out, partial


class Fusing(NamedTuple):
    """The launches from maps to a map and its score, each with the size of its result.

    `score` is wanted: "max", "mean" or None; `inside` is the one that the last launch makes.
    """

    launches: tuple[tuple[Fusion, tuple[int, int]], ...]
    score: str | None
    inside: str | None

    @classmethod
    def of(
        cls, shapes: Shapes, n: int, device: torch.device, size: tuple[int, int], mode: str, align_corners: bool,
        sigma: float | None, radius: int, border: str, score: str | None, zeroed: bool,
        fuse_size: tuple[int, int] | None,
    ) -> Fusing:  # fmt: skip
        """For maps of `shapes`; see `fuse_blur_score`. `zeroed` says whether scores come set to 0."""
        blur = PLAIN if sigma is None else Filter(sigma, radius, border)
        middle = None if fuse_size is None else (fuse_size[0], fuse_size[1])
        steps = steps_of(shapes, (size[0], size[1]), mode == "product", align_corners, blur, middle)
        inside = score if score == "mean" or (score == "max" and zeroed) else None
        launches = []
        for step in steps:
            planned = fusion_of if step.middle is None else twofold_of
            launches.append((planned(n, shapes, step, inside if step is steps[-1] else None, device), step.size))
            shapes = (step.size,)
        return cls(tuple(launches), score, inside)

    def launch(self, maps: tuple[Tensor, ...], scores: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The map, and the scores unless none are wanted; `maps` are float32 and contiguous."""
        *before, (last, size) = self.launches
        for found, middle in before:
            maps = (launched(found, middle, maps, None, None)[0],)
        out, partial = launched(last, size, maps, self.inside, scores if self.inside == "max" else None)
        if self.score is None:
            return out, None
        if self.inside == "max":
            return out, scores
        return out, out.flatten(1).amax(1) if partial is None else partial.sum(1) / math.prod(size)


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
    fuse_size: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Upsample and fuse (at `fuse_size` first, if given), blur unless `sigma` is None, score unless `score` is None.

    `steps_of` says in which launches. The maximum is taken inside the last one if `scores` comes set to 0 and no map is
    negative; otherwise, and for the mean (whose partial sums are added in a fixed order), the score is one launch more.
    """
    kept = tuple(m.float().contiguous() for m in maps)
    shapes = tuple((m.shape[1], m.shape[2]) for m in kept)
    fusing = Fusing.of(
        shapes, kept[0].shape[0], kept[0].device, size, mode, align_corners, sigma, radius, border, score,
        scores is not None, fuse_size,
    )  # fmt: skip
    return fusing.launch(kept, scores)
