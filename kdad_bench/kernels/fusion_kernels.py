"""The Triton kernel of fusion and blur; `triton_fusion.py` launches it.

Upsampling and blur are linear along each axis: a tile of the result is Σ_k A_k M_k B_kᵀ with the map M_k of scale k and
two matrices that hold bilinear shares and filter together. Both are banded, so that a tile needs few rows and
columns of M_k, and its share of each matrix is a small dense block: a table that the host makes once per layout.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

FEW_ROWS = tl.constexpr(4)  # that are read sample by sample at a time


@triton.jit
def bilinear(i, source, target, ALIGN: tl.constexpr):
    """Low and high source index and the high one's share at target positions `i`, in exact integer arithmetic."""
    if ALIGN:
        over = i * (source - 1)
        under = tl.maximum(target - 1, 1)
    else:
        over = tl.maximum((2 * i + 1) * source - target, 0)
        under = 2 * target
    low = tl.minimum(over // under, source - 1)
    part = (over - low * under).to(tl.float32) / under.to(tl.float32)
    return low, tl.minimum(low + 1, source - 1), part


@triton.jit
def first_of(start, source, target, MULTIPLE: tl.constexpr, ALIGN: tl.constexpr):
    """The first source index in the table of a tile that draws from target positions from `start` on.

    As `triton_fusion.first_of` has it; a start before the first position is that.
    """
    low, _high, _part = bilinear(tl.maximum(start, 0), source, target, ALIGN)
    return (low // MULTIPLE) * MULTIPLE


@triton.jit
def between(a, b, c, d, fy, fx):
    """What lies between `a`, `b` above and `c`, `d` below: shares, not differences, so that no digit is lost."""
    top = a * (1 - fx)[None, :] + b * fx[None, :]
    bottom = c * (1 - fx)[None, :] + d * fx[None, :]
    return top * (1 - fy)[:, None] + bottom * fy[:, None]


@triton.jit
def interpolated(base, h, w, y, x, height, width, ALIGN: tl.constexpr):
    """Bilinear samples of one map at rows `y` and columns `x` (inside the result), read one by one."""
    y0, y1, fy = bilinear(y, h, height, ALIGN)
    x0, x1, fx = bilinear(x, w, width, ALIGN)
    upper = base + y0[:, None] * w
    lower = base + y1[:, None] * w
    a = tl.load(upper + x0[None, :])
    b = tl.load(upper + x1[None, :])
    c = tl.load(lower + x0[None, :])
    d = tl.load(lower + x1[None, :])
    return between(a, b, c, d, fy, fx)


@triton.jit
def fused_at(
    maps, map_sizes, n, y, x, height, width, MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """The sum or product of maps at rows `y` and columns `x` of [height, width], sample by sample."""
    value = tl.full([BLOCK_Y, BLOCK_X], 1.0 if PRODUCT else 0.0, tl.float32)
    for k in tl.static_range(MAPS):
        h = map_sizes[2 * k]
        w = map_sizes[2 * k + 1]
        one = interpolated(maps[k] + n * h * w, h, w, y, x, height, width, ALIGN)
        value = value * one if PRODUCT else value + one
    return value


@triton.jit
def fused_between(
    maps, map_sizes, n, y, x, middle_height, middle_width, height, width,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Bilinear samples at rows `y` and columns `x` of [height, width] of the maps fused at [middle_height, ...]."""
    y0, y1, fy = bilinear(y, middle_height, height, ALIGN)
    x0, x1, fx = bilinear(x, middle_width, width, ALIGN)
    a = fused_at(maps, map_sizes, n, y0, x0, middle_height, middle_width, MAPS, PRODUCT, ALIGN, BLOCK_Y, BLOCK_X)
    b = fused_at(maps, map_sizes, n, y0, x1, middle_height, middle_width, MAPS, PRODUCT, ALIGN, BLOCK_Y, BLOCK_X)
    c = fused_at(maps, map_sizes, n, y1, x0, middle_height, middle_width, MAPS, PRODUCT, ALIGN, BLOCK_Y, BLOCK_X)
    d = fused_at(maps, map_sizes, n, y1, x1, middle_height, middle_width, MAPS, PRODUCT, ALIGN, BLOCK_Y, BLOCK_X)
    return between(a, b, c, d, fy, fx)


@triton.jit
def split(x):
    """x = high + low with a high that has the 11 bits of TF32, rounded; NaN and infinity leave a NaN in `low`."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def times_across(total, m, table, LOW: tl.constexpr):
    """total + m · table; LOW: the table has more bits than a TF32.

    Products of two high parts and of a high and a low one are added: what is left out is less than 2⁻²² of a term.
    """
    high, low = split(m)
    if LOW:
        table, rest = split(table)
        total = tl.dot(high, rest, total, input_precision="tf32")
    total = tl.dot(low, table, total, input_precision="tf32")
    return tl.dot(high, table, total, input_precision="tf32")


@triton.jit
def times_down(total, m, table, LOW: tl.constexpr):
    """total + table · m; the counterpart of `times_across`."""
    high, low = split(m)
    if LOW:
        table, rest = split(table)
        total = tl.dot(rest, high, total, input_precision="tf32")
    total = tl.dot(table, low, total, input_precision="tf32")
    return tl.dot(table, high, total, input_precision="tf32")


@triton.jit
def across_at(table, at, BLOCK_X: tl.constexpr, DEPTH_X: tl.constexpr, CHUNK_X: tl.constexpr):
    """[CHUNK_X, BLOCK_X]: source columns from `at` on of a tile's table [BLOCK_X, DEPTH_X]."""
    return tl.load(table + tl.arange(0, BLOCK_X)[None, :] * DEPTH_X + at + tl.arange(0, CHUNK_X)[:, None])


@triton.jit
def down_at(table, at, BLOCK_Y: tl.constexpr, DEPTH_Y: tl.constexpr, CHUNK_Y: tl.constexpr):
    """[BLOCK_Y, CHUNK_Y]: source rows from `at` on of a tile's table [BLOCK_Y, DEPTH_Y]."""
    return tl.load(table + tl.arange(0, BLOCK_Y)[:, None] * DEPTH_Y + at + tl.arange(0, CHUNK_Y)[None, :])


@triton.jit
def map_at(base, h, w, row, column, CHUNK_Y: tl.constexpr, CHUNK_X: tl.constexpr):
    """[CHUNK_Y, CHUNK_X] of a map from `row` and `column` on; beyond it 0, as both tables are there."""
    rows = row + tl.arange(0, CHUNK_Y)
    columns = column + tl.arange(0, CHUNK_X)
    here = (rows < h)[:, None] & (columns < w)[None, :]
    return tl.load(base + rows[:, None] * w + columns[None, :], mask=here, other=0.0)


@triton.jit
def folded(
    base, h, w, down, across, row, column,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, DEPTH_Y: tl.constexpr, DEPTH_X: tl.constexpr,
    CHUNK_Y: tl.constexpr, CHUNK_X: tl.constexpr, LOW_Y: tl.constexpr, LOW_X: tl.constexpr,
):  # fmt: skip
    """down · M · acrossᵀ for the rows of M from `row` on and its columns from `column` on.

    LOW_*: as `times_across` has it.
    """
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    for at_y in range(0, DEPTH_Y, CHUNK_Y):
        inner = tl.zeros([CHUNK_Y, BLOCK_X], tl.float32)
        for at_x in range(0, DEPTH_X, CHUNK_X):
            m = map_at(base, h, w, row + at_y, column + at_x, CHUNK_Y, CHUNK_X)
            inner = times_across(inner, m, across_at(across, at_x, BLOCK_X, DEPTH_X, CHUNK_X), LOW_X)
        value = times_down(value, inner, down_at(down, at_y, BLOCK_Y, DEPTH_Y, CHUNK_Y), LOW_Y)
    return value


@triton.jit
def folded_once(
    m, down, across, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, DEPTH_Y: tl.constexpr, LOW_Y: tl.constexpr,
    LOW_X: tl.constexpr,
):  # fmt: skip
    """down · m · across for blocks that were read before; `across` is transposed already."""
    inner = times_across(tl.zeros([DEPTH_Y, BLOCK_X], tl.float32), m, across, LOW_X)
    return times_down(tl.zeros([BLOCK_Y, BLOCK_X], tl.float32), inner, down, LOW_Y)


@triton.jit
def fused_piece(
    maps, map_sizes, n, downs, acrosses, piece_y, piece_x, row, column, height, width,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, SHAPES: tl.constexpr, MULTIPLE: tl.constexpr,
    FIRST: tl.constexpr, DEPENDENT: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Rows from `row` on and columns from `column` on of the sum or product of maps at [height, width].

    By tables number `piece_y` of downs[k] and `piece_x` of acrosses[k], which begin there; 0 beyond the last row or
    column. FIRST: no map has more than one chunk, and all is read before the first product. DEPENDENT: this kernel was
    launched before the one that makes the maps was over, and waits for it.
    """
    value = tl.full([BLOCK_Y, BLOCK_X], 1.0 if PRODUCT else 0.0, tl.float32)
    tables = ()
    if FIRST:
        for k in tl.static_range(MAPS):
            down = downs[k] + piece_y * BLOCK_Y * SHAPES[6 * k]
            across = acrosses[k] + piece_x * BLOCK_X * SHAPES[6 * k + 1]
            tables += (
                across_at(across, 0, BLOCK_X, SHAPES[6 * k + 1], SHAPES[6 * k + 1]),
                down_at(down, 0, BLOCK_Y, SHAPES[6 * k], SHAPES[6 * k]),
            )
    if DEPENDENT:
        gdc_wait()
    parts = ()
    if FIRST:
        for k in tl.static_range(MAPS):
            h = map_sizes[2 * k]
            w = map_sizes[2 * k + 1]
            parts += (
                map_at(
                    maps[k] + n * h * w, h, w, first_of(row, h, height, 1, ALIGN),
                    first_of(column, w, width, MULTIPLE, ALIGN), SHAPES[6 * k], SHAPES[6 * k + 1],
                ),
            )  # fmt: skip
    for k in tl.static_range(MAPS):
        if FIRST:
            one = folded_once(
                parts[k], tables[2 * k + 1], tables[2 * k],
                BLOCK_Y, BLOCK_X, SHAPES[6 * k], SHAPES[6 * k + 4], SHAPES[6 * k + 5],
            )  # fmt: skip
        else:
            h = map_sizes[2 * k]
            w = map_sizes[2 * k + 1]
            one = folded(
                maps[k] + n * h * w, h, w,
                downs[k] + piece_y * BLOCK_Y * SHAPES[6 * k],
                acrosses[k] + piece_x * BLOCK_X * SHAPES[6 * k + 1],
                first_of(row, h, height, 1, ALIGN),
                first_of(column, w, width, MULTIPLE, ALIGN),
                BLOCK_Y, BLOCK_X, SHAPES[6 * k], SHAPES[6 * k + 1], SHAPES[6 * k + 2], SHAPES[6 * k + 3],
                SHAPES[6 * k + 4], SHAPES[6 * k + 5],
            )  # fmt: skip
        value = value * one if PRODUCT else value + one
    return value


@triton.jit
def most_and_total(value, inside):
    """The maximum of values >= 0 as an integer, and their sum: their bits order as integers, NaN above all."""
    kept = tl.where(inside, value, 0.0)
    most = tl.max(tl.max(kept.to(tl.int32, bitcast=True), axis=0), axis=0)
    return most, tl.sum(tl.sum(kept, axis=0), axis=0)


@triton.jit
def score_tile(scores, partial, n, local, programs, most, total, MAXIMUM: tl.constexpr, MEAN: tl.constexpr):
    """Take a tile's `most_and_total` into its image's score."""
    if MAXIMUM:
        tl.atomic_max(scores.to(tl.pointer_type(tl.int32)) + n, most)
    if MEAN:
        tl.store(partial + n * programs + local, total)


@triton.jit
def fuse_kernel(
    maps, downs, acrosses, out, scores, partial, map_sizes, height, width, blocks_y, blocks_x, reach_y, reach_x,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, TABLES: tl.constexpr, EXACT: tl.constexpr,
    SHAPES: tl.constexpr, MULTIPLE: tl.constexpr, FIRST: tl.constexpr, DEPENDENT: tl.constexpr,
    MAXIMUM: tl.constexpr, MEAN: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One tile of the fused and blurred map, and its share of the image score.

    TABLES: by two products per scale with the tile's blocks of downs[k] and acrosses[k] (SHAPES: the six constants of
    `folded` for each scale); `reach_y`, `reach_x` are the filter's radii. Otherwise sample by sample, without a
    filter. EXACT: sample by sample, too, where a tile came out with a NaN, which a product spreads over its tile.
    """
    pid = tl.program_id(0)
    programs = blocks_y * blocks_x
    n = (pid // programs).to(tl.int64)
    local = pid % programs
    block_y = local // blocks_x
    block_x = local % blocks_x
    y = block_y * BLOCK_Y + tl.arange(0, BLOCK_Y)
    x = block_x * BLOCK_X + tl.arange(0, BLOCK_X)
    inside = (y < height)[:, None] & (x < width)[None, :]
    by_sample = not TABLES
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    if TABLES:
        value = fused_piece(
            maps, map_sizes, n, downs, acrosses, block_y, block_x,
            block_y * BLOCK_Y - reach_y, block_x * BLOCK_X - reach_x, height, width,
            MAPS, PRODUCT, ALIGN, SHAPES, MULTIPLE, FIRST, DEPENDENT, BLOCK_Y, BLOCK_X,
        )  # fmt: skip
        if EXACT:
            by_sample = tl.max(tl.max((value != value).to(tl.int32), axis=0), axis=0) > 0
    elif DEPENDENT:
        gdc_wait()
    if by_sample:
        at_y = tl.minimum(y, height - 1)
        at_x = tl.minimum(x, width - 1)
        value = fused_at(maps, map_sizes, n, at_y, at_x, height, width, MAPS, PRODUCT, ALIGN, BLOCK_Y, BLOCK_X)
    tl.store(out + n * height * width + y[:, None] * width + x[None, :], value, mask=inside)
    most, total = most_and_total(value, inside)
    score_tile(scores, partial, n, local, programs, most, total, MAXIMUM, MEAN)


@triton.jit
def refolded(
    maps, downs, acrosses, down, across, map_sizes, n, block_y, block_x, middle_height, middle_width,
    height, width, reach_y, reach_x,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, SHAPES: tl.constexpr, OUTER: tl.constexpr,
    MULTIPLE: tl.constexpr, FIRST: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """A tile of the maps that are fused at [middle_height, middle_width], then upsampled or blurred (or both).

    It makes what it draws from in pieces of the size that OUTER says: the six constants of `folded`, for the tables
    `down` and `across` from the fused map to the result.
    """
    DEPTH_Y: tl.constexpr = OUTER[0]
    DEPTH_X: tl.constexpr = OUTER[1]
    PIECE_Y: tl.constexpr = OUTER[2]
    PIECE_X: tl.constexpr = OUTER[3]
    row = first_of(block_y * BLOCK_Y - reach_y, middle_height, height, 1, ALIGN)
    column = first_of(block_x * BLOCK_X - reach_x, middle_width, width, 1, ALIGN)
    down += block_y * BLOCK_Y * DEPTH_Y
    across += block_x * BLOCK_X * DEPTH_X
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    for at_y in range(0, DEPTH_Y, PIECE_Y):
        inner = tl.zeros([PIECE_Y, BLOCK_X], tl.float32)
        for at_x in range(0, DEPTH_X, PIECE_X):
            fused = fused_piece(
                maps, map_sizes, n, downs, acrosses,
                block_y * (DEPTH_Y // PIECE_Y) + at_y // PIECE_Y, block_x * (DEPTH_X // PIECE_X) + at_x // PIECE_X,
                row + at_y, column + at_x, middle_height, middle_width,
                MAPS, PRODUCT, ALIGN, SHAPES, MULTIPLE, FIRST, False, PIECE_Y, PIECE_X,
            )  # fmt: skip
            inner = times_across(inner, fused, across_at(across, at_x, BLOCK_X, DEPTH_X, PIECE_X), OUTER[5])
        value = times_down(value, inner, down_at(down, at_y, BLOCK_Y, DEPTH_Y, PIECE_Y), OUTER[4])
    return value


@triton.jit
def twofold_kernel(
    maps, downs, acrosses, down, across, out, scores, partial, map_sizes, middle_height, middle_width,
    height, width, blocks_y, blocks_x, reach_y, reach_x,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, TABLES: tl.constexpr, EXACT: tl.constexpr,
    SHAPES: tl.constexpr, OUTER: tl.constexpr, MULTIPLE: tl.constexpr, FIRST: tl.constexpr, DEPENDENT: tl.constexpr,
    MAXIMUM: tl.constexpr, MEAN: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One tile of maps that are fused at one size, then upsampled or blurred (or both), and its share of the score.

    The fused maps exist in registers alone: a tile makes what it draws from in pieces of the size that OUTER says
    (the six constants of `folded`, for the tables `down` and `across` from the fused map to the result), and
    neighbouring tiles make their common rows and columns each for itself. SHAPES, EXACT and the rest as in
    `fuse_kernel`.
    """
    pid = tl.program_id(0)
    programs = blocks_y * blocks_x
    n = (pid // programs).to(tl.int64)
    local = pid % programs
    block_y = local // blocks_x
    block_x = local % blocks_x
    y = tl.arange(0, BLOCK_Y)
    x = tl.arange(0, BLOCK_X)
    if DEPENDENT:
        gdc_wait()
    by_sample = not TABLES
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    if TABLES:
        value = refolded(
            maps, downs, acrosses, down, across, map_sizes, n, block_y, block_x, middle_height, middle_width,
            height, width, reach_y, reach_x,
            MAPS, PRODUCT, ALIGN, SHAPES, OUTER, MULTIPLE, FIRST, BLOCK_Y, BLOCK_X,
        )  # fmt: skip
        if EXACT:
            by_sample = tl.max(tl.max((value != value).to(tl.int32), axis=0), axis=0) > 0
    y += block_y * BLOCK_Y
    x += block_x * BLOCK_X
    inside = (y < height)[:, None] & (x < width)[None, :]
    most, total = most_and_total(value, inside)
    if by_sample:
        most = tl.zeros([], tl.int32)
        total = tl.zeros([], tl.float32)
        for at in range(0, BLOCK_Y, FEW_ROWS):  # all rows at once would not fit into registers
            rows = block_y * BLOCK_Y + at + tl.arange(0, FEW_ROWS)
            here = (rows < height)[:, None] & (x < width)[None, :]
            some = fused_between(
                maps, map_sizes, n, tl.minimum(rows, height - 1), tl.minimum(x, width - 1),
                middle_height, middle_width, height, width, MAPS, PRODUCT, ALIGN, FEW_ROWS, BLOCK_X,
            )  # fmt: skip
            tl.store(out + n * height * width + rows[:, None] * width + x[None, :], some, mask=here)
            most_of_some, total_of_some = most_and_total(some, here)
            most = tl.maximum(most, most_of_some)
            total += total_of_some
    else:
        tl.store(out + n * height * width + y[:, None] * width + x[None, :], value, mask=inside)
    score_tile(scores, partial, n, local, programs, most, total, MAXIMUM, MEAN)
