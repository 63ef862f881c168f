"""Convolutions of 3x3 at stride 1 on CPUs in a quarter of the products; elsewhere PyTorch's own run.

Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray, CVPR 2016), forward and backward. PyTorch's library multiplies
each of the nine values of a kernel, at almost the speed that the CPU has. The results are float32's: their rounding
errors are about twice those of PyTorch's, those of the gradient to the weight about four times. An answer depends
neither on the images beside it in a batch nor on the number of threads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from kdad_bench.kernels import cpp_layers, cpp_path, dispatch
from kdad_bench.kernels.cpp_layers import WINOGRAD_LANES as LANES
from kdad_bench.kernels.cpp_layers import WINOGRAD_TILE as TILE
from kdad_bench.kernels.layers import PackedWeights, bare, fits, in_memory, unwatched

LEAST_CHANNELS = 32  # with fewer the transforms cost what the products save
LEAST_TILES = 16  # of one image: where there are fewer, the weight's transform costs most
LEAST_FOR_WEIGHT = 64  # tiles of all images from which the gradient to the weight pays
WASTE = 1.3  # results of whole tiles to those that are wanted
EXACT = ("none", "ieee")  # settings of PyTorch with which convolutions of float32 are of float32


class Winograd(torch.autograd.Function):
    """conv(x) of a 3x3 convolution at stride 1, padded by 0 to 2 zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        """x [N, C, H, W] in channels_last, weight [K, C, 3, 3], bias [K]; gives [N, K, H + 2 padding - 2, ...]."""
        ctx.save_for_backward(x, weight)
        ctx.facts = padding, bias is not None
        return cpp_layers.winograd(x, cpp_layers.winograd_weight(weight, turned=False), bias, len(weight), padding)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x, weight and bias."""
        x, weight = ctx.saved_tensors
        padding, biased = ctx.facts
        to_x, to_weight, to_bias = wants = ctx.needs_input_grad[:3]
        above = dispatch.held(upstream)
        if torch.is_grad_enabled() or not unwatched(above) or not unwatched(x):  # a double backward, or several at once
            return *backward_of_pytorch(upstream, x, weight, biased, padding, wants), None
        above, x = (t.contiguous(memory_format=torch.channels_last) for t in (above, x))  # hooks may have moved x
        if not fits(above) or not fits(x):
            return *backward_of_pytorch(upstream, x, weight, biased, padding, wants), None
        compiled_weight = to_weight and tiles(*above.shape[2:]) * len(x) >= LEAST_FOR_WEIGHT
        given = backward_of_pytorch(
            above, x, weight, biased, padding, [False, to_weight and not compiled_weight, bool(biased and to_bias)]
        )
        found_x = found_weight = None
        if to_x:
            turned = cpp_layers.winograd_weight(weight, turned=True)
            found_x = cpp_layers.winograd(above, turned, None, x.shape[1], 2 - padding)
        if compiled_weight:
            found_weight = cpp_layers.winograd_weight_gradient(x, above, weight, padding)
        return found_x, given[1] if found_weight is None else found_weight, given[2], None


def backward_of_pytorch(
    upstream: Tensor, x: Tensor, weight: Tensor, biased: bool, padding: int, wanted: Any
) -> tuple[Tensor | None, ...]:
    """The same gradients by PyTorch; None where they are not `wanted`."""
    if not any(wanted):
        return None, None, None
    sizes = [len(weight)] if biased else None
    made: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        upstream, x, weight, sizes, [1, 1], [padding, padding], [1, 1], False, [0, 0], 1, list(wanted)
    )
    return made


@cache
def pays() -> bool:
    """Whether this CPU has the instructions with which it is quicker than PyTorch's."""
    return cpp_path.missing() is None and bool(cpp_path.library().kdad_winograd_pays())


def tiles(rows: int, columns: int) -> int:
    """Of an image of results of that size."""
    return -(rows // -TILE) * -(columns // -TILE)


def wide(conv: nn.Conv2d) -> bool:
    """Whether `conv` is a 3x3 convolution at stride 1 of whole registers of channels, padded by zeros, unhooked."""
    return (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.padding in ((0, 0), (1, 1), (2, 2))
        and min(conv.in_channels, conv.out_channels) >= LEAST_CHANNELS
        and conv.in_channels % LANES == 0
        and conv.out_channels % LANES == 0
        and bare(conv)
    )


def holds(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether `tensor` holds so many float32 values on the CPU: attributes of a module do not bind its parameters."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.shape == shape
        and tensor.dtype == torch.float32
        and tensor.is_cpu
        and tensor.layout == torch.strided
        and in_memory(tensor)
    )


def taken(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether the compiled convolution takes `conv` and x: what it depends on is neither the batch nor the values."""
    if not wide(conv) or not fits(x) or x.is_contiguous() or x.shape[1] != conv.in_channels or not pays():
        return False
    if torch.is_autocast_enabled("cpu") or torch.backends.mkldnn.conv.fp32_precision not in EXACT:  # type: ignore[attr-defined]
        return False
    if not holds(conv.weight, (conv.out_channels, conv.in_channels, 3, 3)):
        return False
    if conv.bias is not None and not holds(conv.bias, (conv.out_channels,)):
        return False
    rows, columns = (side + 2 * int(conv.padding[0]) - 2 for side in x.shape[2:])
    needed = tiles(rows, columns)
    return min(rows, columns) > 0 and needed >= LEAST_TILES and needed * TILE**2 <= WASTE * rows * columns


def convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x) of x [N, C, H, W]; the weight's transform is kept on a frozen `conv`."""
    if not isinstance(conv, nn.Conv2d) or not taken(conv, x):
        y: Tensor = conv(x)
        return y
    weight, bias, padding = conv.weight, conv.bias, int(conv.padding[0])
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        made: Tensor = Winograd.apply(x, weight, bias, padding)  # type: ignore[no-untyped-call]
        return made
    if weight.requires_grad:  # of a network that learns: it will be another one the next time
        return cpp_layers.winograd(x, cpp_layers.winograd_weight(weight, turned=False), bias, len(weight), padding)
    packed = PackedWeights.of(conv, weight)
    transformed: Tensor | None = packed.get(TILE)
    if transformed is None:
        with torch.inference_mode(False), torch.no_grad():
            transformed = packed[TILE] = cpp_layers.winograd_weight(weight, turned=False)
    return cpp_layers.winograd(x, transformed, bias, len(weight), padding)
