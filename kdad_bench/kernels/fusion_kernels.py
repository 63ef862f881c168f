"""The Triton kernels of fusion and blur; `triton_fusion.py` launches them.

Without a filter a value is made of four samples of each map, which are read one by one.

Upsampling and blur are linear along each axis: a tile of a filtered sum is Σ_k A_k M_k B_kᵀ with the map M_k of scale k
and two matrices that hold bilinear shares and filter together. Both are banded, so that a tile needs few rows and
columns of M_k, and its share of each matrix is a small dense block: a table that the host makes once per layout.

Sizes are constants of a kernel: division by what is known takes a few instructions, by anything else dozens.
"""

from __future__ import annotations

import triton
import triton.language as tl

FEW_ROWS = tl.constexpr(4)  # that are read sample by sample at a time
BEYOND = tl.constexpr(1024)  # target positions that a tile at the edge has beyond it, at most


@triton.jit
def bilinear(i, SOURCE: tl.constexpr, TARGET: tl.constexpr, ALIGN: tl.constexpr):
    """Low and high source index, in exact integer arithmetic, and the high one's share at target positions `i`."""
    UNDER: tl.constexpr = 2 * TARGET if not ALIGN else (TARGET - 1 if TARGET > 1 else 1)
    if 2 * SOURCE * (TARGET + BEYOND) >= 1 << 31:
        i = i.to(tl.int64)
    over = i * (SOURCE - 1) if ALIGN else tl.maximum((2 * i + 1) * SOURCE - TARGET, 0)
    low = tl.minimum(over // UNDER, SOURCE - 1)
    part = (over - low * UNDER).to(tl.float32) * (1.0 / UNDER)
    low = low.to(tl.int32)
    return low, tl.minimum(low + 1, SOURCE - 1), part


@triton.jit
def first_of(start, SOURCE: tl.constexpr, TARGET: tl.constexpr, MULTIPLE: tl.constexpr, ALIGN: tl.constexpr):
    """The first source index in the table of a tile that draws from target positions from `start` on.

    As `triton_fusion.first_of` has it; a start before the first position is that.
    """
    low, _high, _part = bilinear(tl.maximum(start, 0), SOURCE, TARGET, ALIGN)
    return (low // MULTIPLE) * MULTIPLE


@triton.jit
def between(a, b, c, d, fy, fx):
    """What lies between `a`, `b` above and `c`, `d` below: shares, not differences, so that no digit is lost."""
    return (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy


@triton.jit
def fused_at(
    maps, n, y, x, SIDES: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """The sum or product of maps at the positions `y`, `x` (of one shape) of [HEIGHT, WIDTH], sample by sample."""
    value = tl.full(y.shape, 1.0 if PRODUCT else 0.0, tl.float32)
    for k in tl.static_range(MAPS):
        base = maps[k] + n * (SIDES[2 * k] * SIDES[2 * k + 1])
        if SIDES[2 * k] == HEIGHT and SIDES[2 * k + 1] == WIDTH:  # no infinite neighbour has a share
            one = tl.load(base + (y * WIDTH + x))
        else:
            y0, y1, fy = bilinear(y, SIDES[2 * k], HEIGHT, ALIGN)
            x0, x1, fx = bilinear(x, SIDES[2 * k + 1], WIDTH, ALIGN)
            y0 *= SIDES[2 * k + 1]
            y1 *= SIDES[2 * k + 1]
            one = between(
                tl.load(base + (y0 + x0)), tl.load(base + (y0 + x1)),
                tl.load(base + (y1 + x0)), tl.load(base + (y1 + x1)), fy, fx,
            )  # fmt: skip
        value = value * one if PRODUCT else value + one
    return value


@triton.jit
def fused_between(
    maps, n, y, x, SIDES: tl.constexpr, MIDDLE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """Bilinear samples at `y`, `x` of [HEIGHT, WIDTH] of the maps fused at the size MIDDLE."""
    y0, y1, fy = bilinear(y, MIDDLE[0], HEIGHT, ALIGN)
    x0, x1, fx = bilinear(x, MIDDLE[1], WIDTH, ALIGN)
    a = fused_at(maps, n, y0, x0, SIDES, MIDDLE[0], MIDDLE[1], MAPS, PRODUCT, ALIGN)
    b = fused_at(maps, n, y0, x1, SIDES, MIDDLE[0], MIDDLE[1], MAPS, PRODUCT, ALIGN)
    c = fused_at(maps, n, y1, x0, SIDES, MIDDLE[0], MIDDLE[1], MAPS, PRODUCT, ALIGN)
    d = fused_at(maps, n, y1, x1, SIDES, MIDDLE[0], MIDDLE[1], MAPS, PRODUCT, ALIGN)
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
def folded(
    base, down, across, row, column, H: tl.constexpr, W: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, DEPTH_Y: tl.constexpr, DEPTH_X: tl.constexpr,
    CHUNK_Y: tl.constexpr, CHUNK_X: tl.constexpr, LOW_Y: tl.constexpr, LOW_X: tl.constexpr,
):  # fmt: skip
    """down · M · acrossᵀ for the rows of M from `row` on and its columns from `column` on; beyond M both tables are 0.

    LOW_*: as `times_across` has it.
    """
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    for at_y in range(0, DEPTH_Y, CHUNK_Y):
        rows = row + at_y + tl.arange(0, CHUNK_Y)
        inner = tl.zeros([CHUNK_Y, BLOCK_X], tl.float32)
        for at_x in range(0, DEPTH_X, CHUNK_X):
            columns = column + at_x + tl.arange(0, CHUNK_X)
            here = (rows < H)[:, None] & (columns < W)[None, :]
            m = tl.load(base + rows[:, None] * W + columns[None, :], mask=here, other=0.0)
            inner = times_across(inner, m, across_at(across, at_x, BLOCK_X, DEPTH_X, CHUNK_X), LOW_X)
        value = times_down(value, inner, down_at(down, at_y, BLOCK_Y, DEPTH_Y, CHUNK_Y), LOW_Y)
    return value


@triton.jit
def summed(
    maps, n, downs, acrosses, block_y, block_x, SIDES: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    REACH: tl.constexpr, MAPS: tl.constexpr, ALIGN: tl.constexpr, SHAPES: tl.constexpr, MULTIPLE: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """A tile of the sum of maps at [HEIGHT, WIDTH], filtered, by the tile's blocks of downs[k] and acrosses[k].

    SHAPES: the six last constants of `folded` for each map; REACH: the filter's radii.
    """
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    for k in tl.static_range(MAPS):
        value += folded(
            maps[k] + n * (SIDES[2 * k] * SIDES[2 * k + 1]),
            downs[k] + block_y * BLOCK_Y * SHAPES[6 * k],
            acrosses[k] + block_x * BLOCK_X * SHAPES[6 * k + 1],
            first_of(block_y * BLOCK_Y - REACH[0], SIDES[2 * k], HEIGHT, 1, ALIGN),
            first_of(block_x * BLOCK_X - REACH[1], SIDES[2 * k + 1], WIDTH, MULTIPLE, ALIGN),
            SIDES[2 * k], SIDES[2 * k + 1], BLOCK_Y, BLOCK_X, SHAPES[6 * k], SHAPES[6 * k + 1],
            SHAPES[6 * k + 2], SHAPES[6 * k + 3], SHAPES[6 * k + 4], SHAPES[6 * k + 5],
        )  # fmt: skip
    return value


@triton.jit
def refolded(
    maps, n, down, across, block_y, block_x, SIDES: tl.constexpr, MIDDLE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, OUTER: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """A tile of maps that are fused at the size MIDDLE, then upsampled or filtered (or both).

    It fuses what it draws from, sample by sample, in pieces of the size that OUTER says: the six last constants of
    `folded`, for the tables `down` and `across` from the fused map to the result, which are 0 beyond the fused map.
    """
    DEPTH_Y: tl.constexpr = OUTER[0]
    DEPTH_X: tl.constexpr = OUTER[1]
    PIECE_Y: tl.constexpr = OUTER[2]
    PIECE_X: tl.constexpr = OUTER[3]
    row = first_of(block_y * BLOCK_Y - REACH[0], MIDDLE[0], HEIGHT, 1, ALIGN)
    column = first_of(block_x * BLOCK_X - REACH[1], MIDDLE[1], WIDTH, 1, ALIGN)
    down += block_y * BLOCK_Y * DEPTH_Y
    across += block_x * BLOCK_X * DEPTH_X
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    for at_y in range(0, DEPTH_Y, PIECE_Y):
        inner = tl.zeros([PIECE_Y, BLOCK_X], tl.float32)
        for at_x in range(0, DEPTH_X, PIECE_X):
            at = tl.arange(0, PIECE_Y * PIECE_X)
            y = tl.minimum(row + at_y + at // PIECE_X, MIDDLE[0] - 1)
            x = tl.minimum(column + at_x + at % PIECE_X, MIDDLE[1] - 1)
            some = fused_at(maps, n, y, x, SIDES, MIDDLE[0], MIDDLE[1], MAPS, PRODUCT, ALIGN)
            some = tl.reshape(some, [PIECE_Y, PIECE_X])
            inner = times_across(inner, some, across_at(across, at_x, BLOCK_X, DEPTH_X, PIECE_X), OUTER[5])
        value = times_down(value, inner, down_at(down, at_y, BLOCK_Y, DEPTH_Y, PIECE_Y), OUTER[4])
    return value


@triton.jit
def most_and_total(value, inside):
    """The maximum of values >= 0 as an integer, and their sum: their bits order as integers, NaN above all."""
    kept = tl.where(inside, value, 0.0)
    return tl.max(kept.to(tl.int32, bitcast=True)), tl.sum(kept)


@triton.jit
def score_tile(scores, partial, n, local, programs, most, total, MAXIMUM: tl.constexpr, MEAN: tl.constexpr):
    """Take a tile's `most_and_total` into its image's score."""
    if MAXIMUM:
        tl.atomic_max(scores.to(tl.pointer_type(tl.int32)) + n, most)
    if MEAN:
        tl.store(partial + n * programs + local, total)


@triton.jit
def fuse_kernel(
    maps, downs, acrosses, out, scores, partial,
    SIDES: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, TABLES: tl.constexpr,
    SHAPES: tl.constexpr, MULTIPLE: tl.constexpr, MAXIMUM: tl.constexpr, MEAN: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One tile of the fused map, and its share of the image score. SIDES: rows and columns of each map.

    TABLES: a sum, filtered, as `summed` makes it; otherwise without a filter, sample by sample.
    """
    BLOCKS_X: tl.constexpr = (WIDTH + BLOCK_X - 1) // BLOCK_X
    PROGRAMS: tl.constexpr = BLOCKS_X * ((HEIGHT + BLOCK_Y - 1) // BLOCK_Y)
    pid = tl.program_id(0)
    n = (pid // PROGRAMS).to(tl.int64)
    local = pid % PROGRAMS
    block_y = local // BLOCKS_X
    block_x = local % BLOCKS_X
    at = tl.arange(0, BLOCK_Y * BLOCK_X)  # neighbours in a row are neighbours in a warp
    y = block_y * BLOCK_Y + at // BLOCK_X
    x = block_x * BLOCK_X + at % BLOCK_X
    if TABLES:
        y = block_y * BLOCK_Y + tl.arange(0, BLOCK_Y)[:, None]
        x = block_x * BLOCK_X + tl.arange(0, BLOCK_X)[None, :]
        value = summed(
            maps, n, downs, acrosses, block_y, block_x, SIDES, HEIGHT, WIDTH, REACH, MAPS, ALIGN, SHAPES, MULTIPLE,
            BLOCK_Y, BLOCK_X,
        )  # fmt: skip
    else:
        at_y = tl.minimum(y, HEIGHT - 1)
        at_x = tl.minimum(x, WIDTH - 1)
        value = fused_at(maps, n, at_y, at_x, SIDES, HEIGHT, WIDTH, MAPS, PRODUCT, ALIGN)
    inside = (y < HEIGHT) & (x < WIDTH)
    tl.store(out + n * (HEIGHT * WIDTH) + (y * WIDTH + x), value, mask=inside)
    most, total = most_and_total(value, inside)
    score_tile(scores, partial, n, local, PROGRAMS, most, total, MAXIMUM, MEAN)


@triton.jit
def twofold_kernel(
    maps, down, across, out, scores, partial,
    SIDES: tl.constexpr, MIDDLE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, REACH: tl.constexpr,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, TABLES: tl.constexpr, EXACT: tl.constexpr,
    OUTER: tl.constexpr, MAXIMUM: tl.constexpr, MEAN: tl.constexpr, BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """One tile of maps that are fused at the size MIDDLE, then upsampled or filtered (or both), and its share of the
    score.

    The fused maps exist in registers alone, and neighbouring tiles make what they have in common each for itself.
    TABLES: as `refolded` does it; otherwise without a filter, sample by sample. EXACT: so, too, where a tile came out
    with a NaN, which a product of matrices spreads over its tile.
    """
    BLOCKS_X: tl.constexpr = (WIDTH + BLOCK_X - 1) // BLOCK_X
    PROGRAMS: tl.constexpr = BLOCKS_X * ((HEIGHT + BLOCK_Y - 1) // BLOCK_Y)
    pid = tl.program_id(0)
    n = (pid // PROGRAMS).to(tl.int64)
    local = pid % PROGRAMS
    block_y = local // BLOCKS_X
    block_x = local % BLOCKS_X
    y = block_y * BLOCK_Y + tl.arange(0, BLOCK_Y)
    x = block_x * BLOCK_X + tl.arange(0, BLOCK_X)
    inside = (y < HEIGHT)[:, None] & (x < WIDTH)[None, :]
    by_sample = not TABLES
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    if TABLES:
        value = refolded(
            maps, n, down, across, block_y, block_x, SIDES, MIDDLE, HEIGHT, WIDTH, REACH, MAPS, PRODUCT, ALIGN, OUTER,
            BLOCK_Y, BLOCK_X,
        )  # fmt: skip
        if EXACT:
            by_sample = tl.max((value != value).to(tl.int32)) > 0
    most, total = most_and_total(value, inside)
    if by_sample:
        most = tl.zeros([], tl.int32)
        total = tl.zeros([], tl.float32)
        for row in range(0, BLOCK_Y, FEW_ROWS):  # all rows at once would not fit into registers
            at = tl.arange(0, FEW_ROWS * BLOCK_X)
            few_y = block_y * BLOCK_Y + row + at // BLOCK_X
            few_x = block_x * BLOCK_X + at % BLOCK_X
            here = (few_y < HEIGHT) & (few_x < WIDTH)
            some = fused_between(
                maps, n, tl.minimum(few_y, HEIGHT - 1), tl.minimum(few_x, WIDTH - 1), SIDES, MIDDLE, HEIGHT, WIDTH,
                MAPS, PRODUCT, ALIGN,
            )  # fmt: skip
            tl.store(out + n * (HEIGHT * WIDTH) + (few_y * WIDTH + few_x), some, mask=here)
            most_of_some, total_of_some = most_and_total(some, here)
            most = tl.maximum(most, most_of_some)
            total += total_of_some
    else:
        tl.store(out + n * (HEIGHT * WIDTH) + y[:, None] * WIDTH + x[None, :], value, mask=inside)
    score_tile(scores, partial, n, local, PROGRAMS, most, total, MAXIMUM, MEAN)
