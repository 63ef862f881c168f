"""The Triton kernel of fusion and blur; `triton_fusion.py` launches it.

Upsampling and blur are linear along each axis: a tile of the result is Σ_k A_k M_k B_kᵀ with the map M_k of scale k and
two matrices that hold bilinear shares and filter together. Both are banded, so that a tile needs few rows and
columns of M_k, and its share of each matrix is a small dense block: a table that the host makes once per layout.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
def first_of(start, reach, source, target, MULTIPLE: tl.constexpr, ALIGN: tl.constexpr):
    """The first source index in the table of the tile that begins at `start`, as `triton_fusion.first_of` has it."""
    low, _high, _part = bilinear(tl.maximum(start - reach, 0), source, target, ALIGN)
    return (low // MULTIPLE) * MULTIPLE


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
    top = a + fx[None, :] * (b - a)
    bottom = c + fx[None, :] * (d - c)
    return top + fy[:, None] * (bottom - top)


@triton.jit
def split(x):
    """x = high + low with a high that has the 11 bits of TF32, rounded; NaN and infinity leave a NaN in `low`."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def folded(
    base, h, w, down, across, row, column,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, DEPTH_Y: tl.constexpr, DEPTH_X: tl.constexpr,
    CHUNK_Y: tl.constexpr, CHUNK_X: tl.constexpr, LOW_Y: tl.constexpr, LOW_X: tl.constexpr,
):  # fmt: skip
    """down · M · acrossᵀ for the rows of M from `row` on and its columns from `column` on; beyond M both tables are 0.

    A table has the high parts of its tile [BLOCK, DEPTH], then the low ones; LOW_*: some of these are not 0. Products
    of two high parts and of a high and a low one are added: what is left out is less than 2⁻²² of a term.
    """
    y = tl.arange(0, BLOCK_Y)
    x = tl.arange(0, BLOCK_X)
    in_y = tl.arange(0, CHUNK_Y)
    in_x = tl.arange(0, CHUNK_X)
    value = tl.zeros([BLOCK_Y, BLOCK_X], tl.float32)
    for at_y in range(0, DEPTH_Y, CHUNK_Y):
        rows = row + at_y + in_y
        inner = tl.zeros([CHUNK_Y, BLOCK_X], tl.float32)
        for at_x in range(0, DEPTH_X, CHUNK_X):
            columns = column + at_x + in_x
            here = (rows < h)[:, None] & (columns < w)[None, :]
            high, low = split(tl.load(base + rows[:, None] * w + columns[None, :], mask=here, other=0.0))
            place = across + x[None, :] * DEPTH_X + at_x + in_x[:, None]
            right = tl.load(place)
            inner = tl.dot(low, right, inner, input_precision="tf32")
            if LOW_X:
                inner = tl.dot(high, tl.load(place + BLOCK_X * DEPTH_X), inner, input_precision="tf32")
            inner = tl.dot(high, right, inner, input_precision="tf32")
        place = down + y[:, None] * DEPTH_Y + at_y + in_y[None, :]
        left = tl.load(place)
        high, low = split(inner)
        value = tl.dot(left, low, value, input_precision="tf32")
        if LOW_Y:
            value = tl.dot(tl.load(place + BLOCK_Y * DEPTH_Y), high, value, input_precision="tf32")
        value = tl.dot(left, high, value, input_precision="tf32")
    return value


@triton.jit
def score_tile(scores, partial, n, local, programs, value, inside, MAXIMUM: tl.constexpr, MEAN: tl.constexpr):
    """Take a tile into its image's score. Maximum of values >= 0: their bits order as integers, NaN above all."""
    if MAXIMUM:
        most = tl.max(tl.max(tl.where(inside, value, 0.0).to(tl.int32, bitcast=True), axis=0), axis=0)
        tl.atomic_max(scores.to(tl.pointer_type(tl.int32)) + n, most)
    if MEAN:
        total = tl.sum(tl.sum(tl.where(inside, value, 0.0), axis=0), axis=0)
        tl.store(partial + n * programs + local, total)


@triton.jit
def fuse_kernel(
    maps, downs, acrosses, out, scores, partial, map_sizes, height, width, blocks_y, blocks_x, reach_y, reach_x,
    MAPS: tl.constexpr, PRODUCT: tl.constexpr, ALIGN: tl.constexpr, TABLES: tl.constexpr, EXACT: tl.constexpr,
    SHAPES: tl.constexpr, MULTIPLE: tl.constexpr, MAXIMUM: tl.constexpr, MEAN: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
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
    value = tl.full([BLOCK_Y, BLOCK_X], 1.0 if PRODUCT else 0.0, tl.float32)
    by_sample = not TABLES
    if TABLES:
        for k in tl.static_range(MAPS):
            h = map_sizes[2 * k]
            w = map_sizes[2 * k + 1]
            one = folded(
                maps[k] + n * h * w, h, w,
                downs[k] + block_y * 2 * BLOCK_Y * SHAPES[6 * k],
                acrosses[k] + block_x * 2 * BLOCK_X * SHAPES[6 * k + 1],
                first_of(block_y * BLOCK_Y, reach_y, h, height, 1, ALIGN),
                first_of(block_x * BLOCK_X, reach_x, w, width, MULTIPLE, ALIGN),
                BLOCK_Y, BLOCK_X, SHAPES[6 * k], SHAPES[6 * k + 1], SHAPES[6 * k + 2], SHAPES[6 * k + 3],
                SHAPES[6 * k + 4], SHAPES[6 * k + 5],
            )  # fmt: skip
            value = value * one if PRODUCT else value + one
        if EXACT:
            by_sample = tl.max(tl.max((value != value).to(tl.int32), axis=0), axis=0) > 0
    if by_sample:
        value = tl.full([BLOCK_Y, BLOCK_X], 1.0 if PRODUCT else 0.0, tl.float32)
        for k in tl.static_range(MAPS):
            h = map_sizes[2 * k]
            w = map_sizes[2 * k + 1]
            at_y = tl.minimum(y, height - 1)
            at_x = tl.minimum(x, width - 1)
            one = interpolated(maps[k] + n * h * w, h, w, at_y, at_x, height, width, ALIGN)
            value = value * one if PRODUCT else value + one
    tl.store(out + n * height * width + y[:, None] * width + x[None, :], value, mask=inside)
    score_tile(scores, partial, n, local, programs, value, inside, MAXIMUM, MEAN)
