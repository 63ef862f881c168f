"""Layers of networks by the compiled C++ of cpp/: norms, their gradients, pooling, 3x3 convolutions.

Each raises MemoryError where the buffers that it works in cannot be had.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kdad_bench.kernels.cpp_path import floats, library

NONE, RELU, RESIDUAL = range(3)  # what follows an exact norm: y, relu(y), relu(y + identity)
WINOGRAD_TILE, WINOGRAD_LANES, WINOGRAD_APART = 4, 16, 16  # results across a tile; channels; of cpp/winograd.cpp
WINOGRAD_TAPS = (WINOGRAD_TILE + 2) ** 2
WEIGHT_TILES = 128  # that the gradient to a weight is summed over at a time


def norm_statistics(
    pieces: Iterable[Tensor],
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    running_mean: Tensor,
    running_variance: Tensor,
    momentum: float,
) -> Tensor:
    """[4, C]: mean, biased variance, scale and shift (y = x scale + shift) of a batch norm; moves the running ones.

    `pieces` [M, C], contiguous float32, are the batch together; each is read once, as it comes.
    """
    loaded, values, threads, channels = library(), 0, torch.get_num_threads(), weight.numel()
    sums = torch.zeros(2, channels, dtype=torch.float64, device="cpu")
    first, second = sums.data_ptr(), sums.data_ptr() + 8 * channels
    made = floats(5, channels)  # the four results and a pilot, from which deviations are measured
    found, pilot = made.data_ptr(), made.data_ptr() + 16 * channels
    for piece in pieces:
        if values == 0:
            made[4].copy_(piece[0])
        loaded.kdad_norm_moments(piece.data_ptr(), piece.shape[0], channels, pilot, first, second, threads)
        values += piece.shape[0]
    loaded.kdad_norm_finish(
        values, channels, weight.data_ptr(), bias.data_ptr(), epsilon, pilot, first, second, found,
        running_mean.data_ptr(), running_variance.data_ptr(), momentum,
    )  # fmt: skip
    return made[:4]


def norm_apply(x: Tensor, scale: Tensor, shift: Tensor, low: float, high: float) -> Tensor:
    """clamp(x * scale + shift, low, high) of `x` [N,C,H,W] in channels_last."""
    out, channels = torch.empty_like(x), x.shape[1]
    library().kdad_norm_apply(
        x.data_ptr(), out.data_ptr(), x.numel() // channels, channels, scale.data_ptr(), shift.data_ptr(),
        low, high, torch.get_num_threads(),
    )  # fmt: skip
    return out


def norm_sums(upstream: Tensor, x: Tensor, statistics: Tensor, facts: tuple[float, float, float]) -> Tensor:
    """[7, C]: the gradients to weight and bias, then the five terms of `norm_input_gradient`.

    `upstream` and `x` [N,C,H,W] in channels_last; `statistics` come from `norm_statistics`; `facts` are epsilon,
    low and high.
    """
    channels = statistics.shape[1]
    found = floats(7, channels)
    library().kdad_norm_sums(
        x.data_ptr(), upstream.data_ptr(), x.numel() // channels, channels, statistics.data_ptr(),
        *facts, found.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return found


def norm_input_gradient(
    upstream: Tensor, x: Tensor, terms: Tensor, facts: tuple[float, float, float], out: Tensor
) -> None:
    """Write the gradient to `x`, or to some of its pixels, into `out`, all channels last in memory."""
    channels = terms.shape[1]
    library().kdad_norm_input_gradient(
        x.data_ptr(), upstream.data_ptr(), out.data_ptr(), x.numel() // channels, channels, terms.data_ptr(),
        *facts[1:], torch.get_num_threads(),
    )  # fmt: skip


def depthwise_weight_gradient(
    upstream: Tensor, x: Tensor, size: int, stride: int, top: int, left: int
) -> Tensor | None:
    """Gradient [C,1,K,K] to the weight of a depthwise convolution, channels_last float32; None if it cannot.

    `top` and `left` are the pixels of zero padding before the image.
    """
    n, c, h, w = x.shape
    out = x.new_empty((c, 1, size, size))
    done = library().kdad_depthwise_weight_gradient(
        x.data_ptr(), upstream.data_ptr(), out.data_ptr(), n, h, w, *upstream.shape[2:], c,
        size, stride, top, left, torch.get_num_threads(),
    )  # fmt: skip
    if done < 0:
        raise MemoryError(f"no memory for the sums of {n} images of a depthwise gradient")
    return out if done else None


def exact_norm(
    x: Tensor,
    identity: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    momentum: float,
    running: tuple[Tensor, Tensor],
    kind: int,
    fused: bool,
) -> tuple[Tensor, Tensor]:
    """The answer of `residual.ExactNorm`, and [4, C]: mean, 1 / deviation, scale and shift; moves mean and variance.

    x and identity [N, C, H, W] in channels_last. `fused`: where PyTorch multiplies and adds it rounds once.
    """
    y, channels = torch.empty_like(x), x.shape[1]
    found = floats(4, channels)
    library().kdad_exact_norm(
        x.data_ptr(), 0 if identity is None else identity.data_ptr(), y.data_ptr(), x.numel() // channels, channels,
        weight.data_ptr(), bias.data_ptr(), epsilon, momentum, running[0].data_ptr(), running[1].data_ptr(),
        found.data_ptr(), kind, fused, torch.get_num_threads(),
    )  # fmt: skip
    return y, found


def exact_norm_gradients(
    upstream: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    found: Tensor,
    kind: int,
    fused: bool,
    wanted: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Gradients to x (None unless `wanted`), to identity (None without one), to weight and to bias.

    `y` and `found` are what `exact_norm` gave; all images in channels_last.
    """
    channels = x.shape[1]
    to_x = torch.empty_like(x) if wanted else None
    to_identity = torch.empty_like(x) if kind == RESIDUAL else None
    to_weight, to_bias = floats(channels), floats(channels)
    library().kdad_exact_norm_gradients(
        x.data_ptr(), upstream.data_ptr(), 0 if y is None else y.data_ptr(), x.numel() // channels, channels,
        weight.data_ptr(), found.data_ptr(), 0 if to_x is None else to_x.data_ptr(),
        0 if to_identity is None else to_identity.data_ptr(), to_weight.data_ptr(), to_bias.data_ptr(),
        kind, fused, torch.get_num_threads(),
    )  # fmt: skip
    return to_x, to_identity, to_weight, to_bias


def add_rectified(y: Tensor, other: Tensor) -> Tensor:
    """relu(y + other), written over `y`; both float32 and of one layout."""
    library().kdad_add_rectified(y.data_ptr(), other.data_ptr(), y.numel(), torch.get_num_threads())
    return y


def max_pool(x: Tensor) -> Tensor:
    """Maxima of windows of 3x3 at stride 2 with a border of 1 of `x` [N,C,H,W] in channels_last; NaN wins."""
    n, c, h, w = x.shape
    out = floats(n, c, (h + 1) // 2, (w + 1) // 2, memory_format=torch.channels_last)
    library().kdad_max_pool(x.data_ptr(), out.data_ptr(), n, h, w, c, torch.get_num_threads())
    return out


def winograd_weight(weight: Tensor, *, turned: bool) -> Tensor:
    """What `winograd` takes of `weight` [K, C, 3, 3]; `turned`: for the gradient to the image, from K channels to C."""
    strides = weight.stride()
    outputs, inputs = weight.shape[:2]
    if turned:
        outputs, inputs, strides = inputs, outputs, (strides[1], strides[0], *strides[2:])
    made = floats(WINOGRAD_TAPS, outputs, inputs)
    library().kdad_winograd_pack(
        weight.data_ptr(), outputs, inputs, *strides, turned, made.data_ptr(), torch.get_num_threads()
    )
    return made


def winograd(x: Tensor, transformed: Tensor, bias: Tensor | None, outputs: int, padding: int) -> Tensor:
    """A 3x3 convolution at stride 1 of `x` [N, C, H, W] in channels_last by a `winograd_weight`: [N, outputs, H', W'].

    Its buffers, a few MB, stay with each thread.
    """
    n, inputs, h, w = x.shape
    y = floats(n, outputs, h + 2 * padding - 2, w + 2 * padding - 2, memory_format=torch.channels_last)
    added = None if bias is None else bias.detach().contiguous()
    library().kdad_winograd(
        x.data_ptr(), transformed.data_ptr(), 0 if added is None else added.data_ptr(), y.data_ptr(),
        n, h, w, inputs, outputs, padding, tiles_at_a_time(inputs + outputs), torch.get_num_threads(),
    )  # fmt: skip
    return y


def tiles_at_a_time(channels: int) -> int:
    """How many tiles are transformed and multiplied at a time: as many as the second cache holds beside the weight; of
    a weight that is too large for any cache, so many that it is seldom read."""
    return 12 if channels <= 256 else 6 if channels <= 512 else 48


def winograd_weight_gradient(x: Tensor, upstream: Tensor, weight: Tensor, padding: int) -> Tensor:
    """The gradient to `weight` [K, C, 3, 3], in its layout, of x [N, C, H, W] and upstream [N, K, H', W'], both in
    channels_last."""
    n, inputs, h, w = x.shape
    outputs = len(weight)
    size = inputs * outputs + WEIGHT_TILES * (inputs + outputs) + 3 * WINOGRAD_APART
    spare, made = floats(WINOGRAD_TAPS, size), torch.empty_like(weight)
    library().kdad_winograd_weight(
        x.data_ptr(), upstream.data_ptr(), made.data_ptr(), spare.data_ptr(), n, h, w, inputs, outputs, padding,
        WEIGHT_TILES, *made.stride(), torch.get_num_threads(),
    )  # fmt: skip
    return made
