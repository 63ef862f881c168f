"""The Triton kernels. `triton_path.py` launches them, `compile_check.py` compiles them for a GPU that is not there.

Offsets inside a sample are int32 unless the host says WIDE; the offset of the sample is always int64. A tile is
[BLOCK_C channels, BLOCK_P pixels] of one sample and stays in registers between the sums and the residual when all
channels fit (SINGLE); otherwise the channel blocks are read again, from the L2.
"""

from __future__ import annotations

import triton
import triton.language as tl

TINY = tl.constexpr(2.0**-100)  # as in reference.py: vectors not above it count as zero
FAR = tl.constexpr(2.0**40)  # as in reference.py: beyond it, 1/|x|² may leave float32
NEAR = tl.constexpr(2.0**-40)

UNIT_L2 = tl.constexpr(0)
COSINE = tl.constexpr(1)
L2 = tl.constexpr(2)


@triton.jit
def pixel_offsets(p, stride_h, stride_w, width, FLAT: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of pixels `p` inside a sample: p * stride_w if rows follow each other (FLAT), else by row and column."""
    if WIDE:
        p = p.to(tl.int64)
    if FLAT:
        return p * stride_w
    return (p // width) * stride_h + (p % width) * stride_w


@triton.jit
def load_tile(base, c, offsets, stride_c, channels, inside, WIDE: tl.constexpr):
    """[BLOCK_C, BLOCK_P] in float32; 0 beyond the last channel or pixel."""
    if WIDE:
        c = c.to(tl.int64)
    mask = (c < channels)[:, None] & inside[None, :]
    return tl.load(base + c[:, None] * stride_c + offsets[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_tile(base, c, offsets, stride_c, channels, inside, value, WIDE: tl.constexpr):
    """The counterpart of `load_tile`; converts to the dtype of the output."""
    if WIDE:
        c = c.to(tl.int64)
    mask = (c < channels)[:, None] & inside[None, :]
    tl.store(base + c[:, None] * stride_c + offsets[None, :], value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def reciprocal_or_zero(largest):
    """1/largest, 0 for a zero vector: the scale that keeps squares inside float32."""
    zero = largest <= TINY
    return tl.where(zero, 0.0, 1.0 / tl.where(zero, 1.0, largest))


@triton.jit
def inverse_length(largest, scale, squares):
    """1/|x| from Σ (x · scale)²; 0 for a zero vector, NaN if one entered."""
    zero = (largest <= TINY) & (squares == squares)
    return tl.where(
        zero, 0.0, scale * tl.rsqrt(tl.where(squares > 0.0, squares, tl.where(squares == squares, 1.0, squares)))
    )


@triton.jit
def lengths_of_tile(x, NARROW: tl.constexpr):
    """1/|x| per pixel of a tile that holds every channel.

    NARROW: x was float16, whose squares and their sums stay inside float32, so that no scale is needed.
    """
    if NARROW:
        squares = tl.sum(x * x, axis=0)
        return tl.where(squares == 0.0, 0.0, tl.rsqrt(tl.where(squares == 0.0, 1.0, squares)) + 0.0 * squares)
    largest = tl.max(tl.abs(x), axis=0)
    scale = reciprocal_or_zero(largest)
    scaled = x * scale[None, :]
    return inverse_length(largest, scale, tl.sum(scaled * scaled, axis=0))


@triton.jit
def apart(inverse, NARROW: tl.constexpr):
    """Two factors of 1/|x|, one of them 1: the first belongs to a coefficient and the second to x.

    The second is 1/|x| where x is far from ordinary, so that no 1/|x|² leaves float32; float16 has no such x (NARROW).
    """
    if NARROW:
        return inverse, tl.full(inverse.shape, 1.0, tl.float32)
    far = (inverse > FAR) | ((inverse < NEAR) & (inverse > 0.0))
    return tl.where(far, 1.0, inverse), tl.where(far, inverse, 1.0)


@triton.jit
def lengths_of_blocks(
    t_base, s_base, t_pixels, s_pixels, t_stride_c, s_stride_c, channels, inside,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """1/|t|, 1/|s|, 1 - cos per pixel, in one pass over channel blocks; sums are rescaled as the maximum grows."""
    t_most = tl.zeros([BLOCK_P], tl.float32)
    s_most = tl.zeros([BLOCK_P], tl.float32)
    t_sum = tl.zeros([BLOCK_P], tl.float32)
    s_sum = tl.zeros([BLOCK_P], tl.float32)
    product = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        t = load_tile(t_base, c, t_pixels, t_stride_c, channels, inside, WIDE)
        s = load_tile(s_base, c, s_pixels, s_stride_c, channels, inside, WIDE)
        t_new = tl.maximum(t_most, tl.max(tl.abs(t), axis=0))
        s_new = tl.maximum(s_most, tl.max(tl.abs(s), axis=0))
        t_scale = reciprocal_or_zero(t_new)
        s_scale = reciprocal_or_zero(s_new)
        t_shrink = t_most * t_scale
        s_shrink = s_most * s_scale
        t = t * t_scale[None, :]
        s = s * s_scale[None, :]
        t_sum = t_sum * t_shrink * t_shrink + tl.sum(t * t, axis=0)
        s_sum = s_sum * s_shrink * s_shrink + tl.sum(s * s, axis=0)
        product = product * t_shrink * s_shrink + tl.sum(t * s, axis=0)
        t_most = t_new
        s_most = s_new
    t_inverse = inverse_length(t_most, reciprocal_or_zero(t_most), t_sum)
    s_inverse = inverse_length(s_most, reciprocal_or_zero(s_most), s_sum)
    directed = (t_inverse != 0.0) & (s_inverse != 0.0)
    cosine = product * tl.rsqrt(tl.where(directed, t_sum, 1.0)) * tl.rsqrt(tl.where(directed, s_sum, 1.0))
    return t_inverse, s_inverse, tl.where(directed, 1.0 - cosine, 1.0)


@triton.jit
def distance_of(squares, t_inverse, s_inverse, KIND: tl.constexpr):
    """The discrepancy from Σ residual²."""
    if KIND == L2:
        return squares
    distance = 0.5 * squares
    if KIND == COSINE:
        distance = tl.where((t_inverse == 0.0) | (s_inverse == 0.0), 1.0, distance)
    return distance


@triton.jit
def distance_of_tile(s, unit, t_inverse, KIND: tl.constexpr, NARROW: tl.constexpr):
    """The discrepancy of a student's tile that holds every channel to the teacher's, of which `unit` is t/|t|."""
    s_inverse = tl.full([s.shape[1]], 1.0, tl.float32)
    if KIND != L2:
        s_inverse = lengths_of_tile(s, NARROW)
    residual = s * s_inverse[None, :] - unit
    return distance_of(tl.sum(residual * residual, axis=0), t_inverse, s_inverse, KIND)


@triton.jit
def distance_in_blocks(
    t_base, s_base, t_pixels, s_pixels, t_stride_c, s_stride_c, channels, inside,
    KIND: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The discrepancy of BLOCK_P pixels of one sample, whose channels are read in blocks, twice."""
    c = tl.arange(0, BLOCK_C)
    t_inverse = tl.full([BLOCK_P], 1.0, tl.float32)
    s_inverse = tl.full([BLOCK_P], 1.0, tl.float32)
    if KIND != L2:
        t_inverse, s_inverse, _q = lengths_of_blocks(
            t_base, s_base, t_pixels, s_pixels, t_stride_c, s_stride_c, channels, inside, BLOCK_C, BLOCK_P, WIDE
        )
    squares = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, channels, BLOCK_C):
        t = load_tile(t_base, start + c, t_pixels, t_stride_c, channels, inside, WIDE)
        s = load_tile(s_base, start + c, s_pixels, s_stride_c, channels, inside, WIDE)
        residual = s * s_inverse[None, :] - t * t_inverse[None, :]
        squares += tl.sum(residual * residual, axis=0)
    return distance_of(squares, t_inverse, s_inverse, KIND)


@triton.jit
def pixel_distances(
    t_base, a_base, b_base, t_pixels, a_pixels, b_pixels, t_stride_c, a_stride_c, b_stride_c, channels, inside,
    KIND: tl.constexpr, DUAL: tl.constexpr, SINGLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The discrepancies of BLOCK_P pixels of one sample to both students; the first's twice unless DUAL."""
    T_NARROW: tl.constexpr = t_base.dtype.element_ty == tl.float16
    A_NARROW: tl.constexpr = a_base.dtype.element_ty == tl.float16
    B_NARROW: tl.constexpr = b_base.dtype.element_ty == tl.float16
    if SINGLE:
        c = tl.arange(0, BLOCK_C)
        t = load_tile(t_base, c, t_pixels, t_stride_c, channels, inside, WIDE)
        a = load_tile(a_base, c, a_pixels, a_stride_c, channels, inside, WIDE)
        t_inverse = tl.full([BLOCK_P], 1.0, tl.float32)
        if KIND != L2:
            t_inverse = lengths_of_tile(t, T_NARROW)
        unit = t * t_inverse[None, :]
        to_a = distance_of_tile(a, unit, t_inverse, KIND, A_NARROW)
        to_b = to_a
        if DUAL:
            b = load_tile(b_base, c, b_pixels, b_stride_c, channels, inside, WIDE)
            to_b = distance_of_tile(b, unit, t_inverse, KIND, B_NARROW)
    else:
        to_a = distance_in_blocks(
            t_base, a_base, t_pixels, a_pixels, t_stride_c, a_stride_c, channels, inside, KIND, BLOCK_C, BLOCK_P, WIDE
        )
        to_b = to_a
        if DUAL:
            to_b = distance_in_blocks(
                t_base, b_base, t_pixels, b_pixels, t_stride_c, b_stride_c, channels, inside,
                KIND, BLOCK_C, BLOCK_P, WIDE,
            )  # fmt: skip
    return to_a, to_b


@triton.jit
def maps_kernel(
    teachers, firsts, seconds, maps_a, maps_b, scores, weight,
    sizes, t_strides, a_strides, b_strides, starts, samples,
    BLOCKS: tl.constexpr, SCALES: tl.constexpr, KIND: tl.constexpr, DUAL: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, SCORES: tl.constexpr,
):  # fmt: skip
    """Discrepancy maps of all scales in one launch.

    Program `starts[k] + n * tiles_k + i` does tile i of sample n of scale k. Per scale: sizes are channels, pixels,
    width; *_strides are n, c, h, w; BLOCKS are BLOCK_C, BLOCK_P, SINGLE. A second student (DUAL) meets the teacher's
    tile in registers. SCORES: also set the image scores to 0 for the maximum that follows in a later launch.
    """
    pid = tl.program_id(0)
    if SCORES:
        tl.store(scores + pid, 0.0, mask=pid < samples)
    for k in tl.static_range(SCALES):
        if (pid >= starts[k]) & (pid < starts[k + 1]):
            BLOCK_C: tl.constexpr = BLOCKS[3 * k]
            BLOCK_P: tl.constexpr = BLOCKS[3 * k + 1]
            SINGLE: tl.constexpr = BLOCKS[3 * k + 2]
            channels = sizes[3 * k]
            pixels = sizes[3 * k + 1]
            width = sizes[3 * k + 2]
            tiles = tl.cdiv(pixels, BLOCK_P)
            n = ((pid - starts[k]) // tiles).to(tl.int64)
            p = ((pid - starts[k]) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
            inside = p < pixels
            t_base = teachers[k] + n * t_strides[4 * k]
            a_base = firsts[k] + n * a_strides[4 * k]
            t_pixels = pixel_offsets(p, t_strides[4 * k + 2], t_strides[4 * k + 3], width, FLAT, WIDE)
            a_pixels = pixel_offsets(p, a_strides[4 * k + 2], a_strides[4 * k + 3], width, FLAT, WIDE)
            b_base = a_base
            b_pixels = a_pixels
            if DUAL:
                b_base = seconds[k] + n * b_strides[4 * k]
                b_pixels = pixel_offsets(p, b_strides[4 * k + 2], b_strides[4 * k + 3], width, FLAT, WIDE)
            to_a, to_b = pixel_distances(
                t_base, a_base, b_base, t_pixels, a_pixels, b_pixels,
                t_strides[4 * k + 1], a_strides[4 * k + 1], b_strides[4 * k + 1], channels, inside,
                KIND, DUAL, SINGLE, BLOCK_C, BLOCK_P, WIDE,
            )  # fmt: skip
            tl.store(maps_a[k] + n * pixels + p, to_a * weight, mask=inside)
            if DUAL:
                tl.store(maps_b[k] + n * pixels + p, to_b * weight, mask=inside)


@triton.jit
def gradient_tile(
    t_base, s_base, gt_base, gs_base, t_pixels, s_pixels, gt_pixels, gs_pixels,
    t_stride_c, s_stride_c, gt_stride_c, gs_stride_c, g, channels, inside,
    KIND: tl.constexpr, SINGLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
    WANT_T: tl.constexpr, WANT_S: tl.constexpr, ATTENTION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Writes the gradients of BLOCK_P pixels of one sample under `g` per pixel; returns their discrepancies."""
    T_NARROW: tl.constexpr = t_base.dtype.element_ty == tl.float16
    S_NARROW: tl.constexpr = s_base.dtype.element_ty == tl.float16
    c = tl.arange(0, BLOCK_C)
    t_inverse = tl.full([BLOCK_P], 1.0, tl.float32)
    s_inverse = tl.full([BLOCK_P], 1.0, tl.float32)
    q = tl.zeros([BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_P], tl.float32)

    if SINGLE:
        t = load_tile(t_base, c, t_pixels, t_stride_c, channels, inside, WIDE)
        s = load_tile(s_base, c, s_pixels, s_stride_c, channels, inside, WIDE)
        if KIND != L2:
            t_inverse = lengths_of_tile(t, T_NARROW)
            s_inverse = lengths_of_tile(s, S_NARROW)
        residual = s * s_inverse[None, :] - t * t_inverse[None, :]
        squares = tl.sum(residual * residual, axis=0)
        if KIND != L2:
            undirected = (t_inverse == 0.0) | (s_inverse == 0.0)
            q = tl.where(undirected, 1.0, 0.5 * squares)
            g = tl.where(undirected, 0.0, g)
        t_factor, t_rest = apart(t_inverse, T_NARROW)
        s_factor, s_rest = apart(s_inverse, S_NARROW)
        if ATTENTION:
            store_tile(gs_base, c, gs_pixels, gs_stride_c, channels, inside, (0.5 * q)[None, :] * s, WIDE)
        else:
            if WANT_S:
                k = g * s_inverse if KIND != L2 else 2.0 * g
                value = k[None, :] * residual - (k * q * s_factor)[None, :] * (s * s_rest[None, :])
                store_tile(gs_base, c, gs_pixels, gs_stride_c, channels, inside, value, WIDE)
            if WANT_T:
                k = g * t_inverse if KIND != L2 else 2.0 * g
                value = -k[None, :] * residual - (k * q * t_factor)[None, :] * (t * t_rest[None, :])
                store_tile(gt_base, c, gt_pixels, gt_stride_c, channels, inside, value, WIDE)
    else:
        if KIND != L2:
            t_inverse, s_inverse, q = lengths_of_blocks(
                t_base, s_base, t_pixels, s_pixels, t_stride_c, s_stride_c, channels, inside, BLOCK_C, BLOCK_P, WIDE
            )
            g = tl.where((t_inverse == 0.0) | (s_inverse == 0.0), 0.0, g)
        t_factor, t_rest = apart(t_inverse, T_NARROW)
        s_factor, s_rest = apart(s_inverse, S_NARROW)
        if ATTENTION:  # the direct residual first: q above has lost its digits where student and teacher agree
            for start in range(0, channels, BLOCK_C):
                t = load_tile(t_base, start + c, t_pixels, t_stride_c, channels, inside, WIDE)
                s = load_tile(s_base, start + c, s_pixels, s_stride_c, channels, inside, WIDE)
                residual = s * s_inverse[None, :] - t * t_inverse[None, :]
                squares += tl.sum(residual * residual, axis=0)
            q = distance_of(squares, t_inverse, s_inverse, COSINE)
        for start in range(0, channels, BLOCK_C):
            s = load_tile(s_base, start + c, s_pixels, s_stride_c, channels, inside, WIDE)
            if ATTENTION:
                store_tile(gs_base, start + c, gs_pixels, gs_stride_c, channels, inside, (0.5 * q)[None, :] * s, WIDE)
            else:
                t = load_tile(t_base, start + c, t_pixels, t_stride_c, channels, inside, WIDE)
                residual = s * s_inverse[None, :] - t * t_inverse[None, :]
                squares += tl.sum(residual * residual, axis=0)
                if WANT_S:
                    k = g * s_inverse if KIND != L2 else 2.0 * g
                    value = k[None, :] * residual - (k * q * s_factor)[None, :] * (s * s_rest[None, :])
                    store_tile(gs_base, start + c, gs_pixels, gs_stride_c, channels, inside, value, WIDE)
                if WANT_T:
                    k = g * t_inverse if KIND != L2 else 2.0 * g
                    value = -k[None, :] * residual - (k * q * t_factor)[None, :] * (t * t_rest[None, :])
                    store_tile(gt_base, start + c, gt_pixels, gt_stride_c, channels, inside, value, WIDE)
    return distance_of(squares, t_inverse, s_inverse, KIND)


@triton.jit
def gradient_kernel(
    teachers, students, to_teachers, to_students, upstreams, losses, factors,
    sizes, t_strides, s_strides, gt_strides, gs_strides, u_strides, starts,
    BLOCKS: tl.constexpr, SCALES: tl.constexpr, KIND: tl.constexpr,
    WANT_T: tl.constexpr, WANT_S: tl.constexpr, UPSTREAM: tl.constexpr, LOSS: tl.constexpr, ATTENTION: tl.constexpr,
    FLAT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients of all scales, and every tile's share of the mean loss, in one launch and one sweep.

    Programs, sizes, strides and BLOCKS as in `maps_kernel`; strides of an upstream gradient are n, h, w.
    ∂d/∂s = (c s/|s| - t/|t|)/|s| = (e - (1 - c) s/|s|)/|s| with e = s/|s| - t/|t|: nothing cancels when s is near t.
    LOSS: program i writes factor · Σ d of its pixels to losses[i]. UPSTREAM: a gradient per pixel, any strides (0 too);
    otherwise it is 1. ATTENTION: what is written to `to_students` is (1 - cos)/2 · s instead.
    """
    pid = tl.program_id(0)
    for k in tl.static_range(SCALES):
        if (pid >= starts[k]) & (pid < starts[k + 1]):
            BLOCK_C: tl.constexpr = BLOCKS[3 * k]
            BLOCK_P: tl.constexpr = BLOCKS[3 * k + 1]
            SINGLE: tl.constexpr = BLOCKS[3 * k + 2]
            channels = sizes[3 * k]
            pixels = sizes[3 * k + 1]
            width = sizes[3 * k + 2]
            tiles = tl.cdiv(pixels, BLOCK_P)
            n = ((pid - starts[k]) // tiles).to(tl.int64)
            p = ((pid - starts[k]) % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
            inside = p < pixels
            g = tl.full([BLOCK_P], 1.0, tl.float32) * factors[k]
            if UPSTREAM:
                u_pixels = pixel_offsets(p, u_strides[3 * k + 1], u_strides[3 * k + 2], width, False, WIDE)
                g = g * tl.load(upstreams[k] + n * u_strides[3 * k] + u_pixels, mask=inside, other=0.0)
            distance = gradient_tile(
                teachers[k] + n * t_strides[4 * k], students[k] + n * s_strides[4 * k],
                to_teachers[k] + n * gt_strides[4 * k], to_students[k] + n * gs_strides[4 * k],
                pixel_offsets(p, t_strides[4 * k + 2], t_strides[4 * k + 3], width, FLAT, WIDE),
                pixel_offsets(p, s_strides[4 * k + 2], s_strides[4 * k + 3], width, FLAT, WIDE),
                pixel_offsets(p, gt_strides[4 * k + 2], gt_strides[4 * k + 3], width, FLAT, WIDE),
                pixel_offsets(p, gs_strides[4 * k + 2], gs_strides[4 * k + 3], width, FLAT, WIDE),
                t_strides[4 * k + 1], s_strides[4 * k + 1], gt_strides[4 * k + 1], gs_strides[4 * k + 1],
                g, channels, inside, KIND, SINGLE, BLOCK_C, BLOCK_P, WANT_T, WANT_S, ATTENTION, WIDE,
            )  # fmt: skip
            if LOSS:
                tl.store(losses + pid, factors[k] * tl.sum(tl.where(inside, distance, 0.0), axis=0))


@triton.jit
def flat_sums_kernel(
    teacher, student, parts,
    channels, pixels, width, channel_blocks,
    t_stride_n, t_stride_c, t_stride_h, t_stride_w,
    s_stride_n, s_stride_c, s_stride_h, s_stride_w,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile's share of a sample's A, B and P.

    parts[program] = (max|t|, Σ(t/max)², max|s|, Σ(s/max)², |t̂ - ŝ|²) of the tile. P of the
    tile is √(AB)(1 - |t̂ - ŝ|²/2): the small difference is taken before anything large is added.
    """
    tiles = tl.cdiv(pixels, BLOCK_P)
    pid = tl.program_id(0)
    per_sample = tiles * channel_blocks
    n = (pid // per_sample).to(tl.int64)
    local = pid % per_sample
    p = (local % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = (local // tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = p < pixels
    t_pixels = pixel_offsets(p, t_stride_h, t_stride_w, width, FLAT, WIDE)
    s_pixels = pixel_offsets(p, s_stride_h, s_stride_w, width, FLAT, WIDE)
    t = load_tile(teacher + n * t_stride_n, c, t_pixels, t_stride_c, channels, inside, WIDE)
    s = load_tile(student + n * s_stride_n, c, s_pixels, s_stride_c, channels, inside, WIDE)
    t_most = tl.max(tl.max(tl.abs(t), axis=0), axis=0)
    s_most = tl.max(tl.max(tl.abs(s), axis=0), axis=0)
    t = t * reciprocal_or_zero(t_most)
    s = s * reciprocal_or_zero(s_most)
    t_sum = tl.sum(tl.sum(t * t, axis=0), axis=0)
    s_sum = tl.sum(tl.sum(s * s, axis=0), axis=0)
    t_root = tl.rsqrt(tl.where(t_sum > 0.0, t_sum, 1.0))
    s_root = tl.rsqrt(tl.where(s_sum > 0.0, s_sum, 1.0))
    residual = s * s_root - t * t_root
    squares = tl.sum(tl.sum(residual * residual, axis=0), axis=0)
    out = parts + pid.to(tl.int64) * 5
    tl.store(out, t_most)
    tl.store(out + 1, t_sum)
    tl.store(out + 2, s_most)
    tl.store(out + 3, s_sum)
    tl.store(out + 4, squares)


@triton.jit
def flat_finish_kernel(parts, sums, distances, count, BLOCK: tl.constexpr):
    """Adds the parts of one sample in float64, in a fixed order: sums[n] = (A, B, P), distances[n] = 1 - P/√(AB)."""
    n = tl.program_id(0).to(tl.int64)
    a = tl.zeros([BLOCK], tl.float64)
    b = tl.zeros([BLOCK], tl.float64)
    product = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        mask = i < count
        base = parts + (n * count + i) * 5
        t_most = tl.load(base, mask=mask, other=0.0).to(tl.float64)
        t_sum = tl.load(base + 1, mask=mask, other=0.0).to(tl.float64)
        s_most = tl.load(base + 2, mask=mask, other=0.0).to(tl.float64)
        s_sum = tl.load(base + 3, mask=mask, other=0.0).to(tl.float64)
        squares = tl.load(base + 4, mask=mask, other=0.0).to(tl.float64)
        a += t_most * t_most * t_sum
        b += s_most * s_most * s_sum
        product += t_most * s_most * tl.sqrt(t_sum) * tl.sqrt(s_sum) * (1.0 - 0.5 * squares)
    total_a = tl.sum(a, axis=0)
    total_b = tl.sum(b, axis=0)
    total = tl.sum(product, axis=0)
    tl.store(sums + n * 3, total_a)
    tl.store(sums + n * 3 + 1, total_b)
    tl.store(sums + n * 3 + 2, total)
    smallest = 2.0**-200
    zero = (total_a <= smallest) | (total_b <= smallest)
    root = tl.sqrt(tl.where(zero, 1.0, total_a)) * tl.sqrt(tl.where(zero, 1.0, total_b))
    distance = tl.where(zero, 1.0, 1.0 - total / root)
    tl.store(distances + n, tl.where(distance < 0.0, 0.0, distance).to(tl.float32))


@triton.jit
def flat_gradient_kernel(
    teacher, student, to_teacher, to_student, sums, upstream, factor,
    channels, pixels, width, channel_blocks,
    t_stride_n, t_stride_c, t_stride_h, t_stride_w,
    s_stride_n, s_stride_c, s_stride_h, s_stride_w,
    gt_stride_n, gt_stride_c, gt_stride_h, gt_stride_w,
    gs_stride_n, gs_stride_c, gs_stride_h, gs_stride_w,
    u_stride_n,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, WANT_T: tl.constexpr, WANT_S: tl.constexpr,
    FLAT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of ∂d/∂s = (P/√(AB)/B) s - t/√(AB) and its mirror image, with the A, B, P of the whole sample."""
    tiles = tl.cdiv(pixels, BLOCK_P)
    pid = tl.program_id(0)
    per_sample = tiles * channel_blocks
    n = (pid // per_sample).to(tl.int64)
    local = pid % per_sample
    p = (local % tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = (local // tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = p < pixels
    a = tl.load(sums + n * 3)
    b = tl.load(sums + n * 3 + 1)
    product = tl.load(sums + n * 3 + 2)
    g = (tl.load(upstream + n * u_stride_n) * factor).to(tl.float64)
    smallest = 2.0**-200
    zero = (a <= smallest) | (b <= smallest)
    a = tl.where(zero, 1.0, a)
    b = tl.where(zero, 1.0, b)
    g = tl.where(zero, 0.0, g)
    root = tl.sqrt(a) * tl.sqrt(b)
    _t_factor, t_rest = apart((1.0 / tl.sqrt(a)).to(tl.float32), False)
    _s_factor, s_rest = apart((1.0 / tl.sqrt(b)).to(tl.float32), False)
    t_wide = t_rest.to(tl.float64)
    s_wide = s_rest.to(tl.float64)
    t_alpha = (g / root / t_wide).to(tl.float32)
    s_alpha = (g / root / s_wide).to(tl.float32)
    t_beta = (g * product / root / a / t_wide).to(tl.float32)
    s_beta = (g * product / root / b / s_wide).to(tl.float32)
    t_pixels = pixel_offsets(p, t_stride_h, t_stride_w, width, FLAT, WIDE)
    s_pixels = pixel_offsets(p, s_stride_h, s_stride_w, width, FLAT, WIDE)
    t = load_tile(teacher + n * t_stride_n, c, t_pixels, t_stride_c, channels, inside, WIDE)
    s = load_tile(student + n * s_stride_n, c, s_pixels, s_stride_c, channels, inside, WIDE)
    t = t * t_rest
    s = s * s_rest
    if WANT_S:
        gs_pixels = pixel_offsets(p, gs_stride_h, gs_stride_w, width, FLAT, WIDE)
        value = s_beta * s - t_alpha * t
        store_tile(to_student + n * gs_stride_n, c, gs_pixels, gs_stride_c, channels, inside, value, WIDE)
    if WANT_T:
        gt_pixels = pixel_offsets(p, gt_stride_h, gt_stride_w, width, FLAT, WIDE)
        value = t_beta * t - s_alpha * s
        store_tile(to_teacher + n * gt_stride_n, c, gt_pixels, gt_stride_c, channels, inside, value, WIDE)


@triton.jit
def scale_kernel(tensors, factor, counts, starts, TENSORS: tl.constexpr, BLOCK: tl.constexpr):
    """Multiplies several dense tensors by one factor; nothing is read or written if it is 1.

    Program `starts[k] + i` does block i of tensor k.
    """
    pid = tl.program_id(0)
    by = tl.load(factor).to(tl.float32)
    if by != 1.0:
        for k in tl.static_range(TENSORS):
            if (pid >= starts[k]) & (pid < starts[k + 1]):
                i = (pid - starts[k]).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
                mask = i < counts[k]
                x = tl.load(tensors[k] + i, mask=mask, other=0.0).to(tl.float32)
                tl.store(tensors[k] + i, (x * by).to(tensors[k].dtype.element_ty), mask=mask)
