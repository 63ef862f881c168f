"""Layers of the networks themselves that PyTorch is slow at on CPUs; elsewhere PyTorch's own run.

Batch norm with the clamp after it in two readings forward and two backward, without the copy that an in-place ReLU6
keeps; depthwise convolutions whose asymmetric padding costs no copy of the image and whose 5x5 weight gradient is not
left to a generic loop; convolutions of an inference copy by oneDNN with packed weights, bias and clamp in one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from kdad_bench.kernels import cpp_layers, cpp_path, dispatch
from kdad_bench.kernels.digest import digests, extent, readable

Padding = tuple[int, int]  # pixels of zeros before and after
PIECE = 1 << 18  # values between a 1x1 convolution and its norm that are handled at a time: 1 MiB
LEAST_PIECE = 1024  # pixels; smaller matrix products are slow
LANES = 16  # channels that the compiled weight gradient takes at a time


def fits(x: Tensor) -> bool:
    """Whether the compiled layers take `x`: a float32 CPU tensor in channels_last that is `unwatched`."""
    return unwatched(x) and dense(x) and dispatch.path("cpu") == "cpp"


def dense(x: Tensor) -> bool:
    """Whether `x` holds float32 values on the CPU in channels_last."""
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def unwatched(x: Tensor) -> bool:
    """Whether an operation on `x` is only that: nothing follows or replaces it, it is no subclass or parameter, and
    `in_memory`."""
    return type(x) is Tensor and not dispatch.watched() and not replaced() and in_memory(x)


def replaced() -> bool:
    """Whether a TorchFunctionMode may put something else in the place of PyTorch's functions; one that only says where
    new tensors go does not."""
    if torch._C._len_torch_function_stack() == 0:
        return False
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return any(type(mode) is not DeviceContext for mode in modes)


def in_memory(x: Tensor) -> bool:
    """Whether the values of `x` lie where it says, as they are: it is not to be negated, no zeros without memory, no
    batch of gradients (`is_grads_batched`), and its memory was not taken away (as FSDP does)."""
    batched: bool = torch._C._functorch.is_legacy_batchedtensor(x)
    return not batched and not x.is_neg() and not x._is_zerotensor() and (x.numel() == 0 or x.data_ptr() != 0)


def bare(module: nn.Module) -> bool:
    """Whether calling `module` is calling its class's forward: no hooks of its own (pruning has some) or of all
    modules, no parametrisation, no forward of its own (accelerate puts one)."""
    return not (
        _has_any_global_hook()  # type: ignore[no-untyped-call]
        or "forward" in module.__dict__
        or "_conv_forward" in module.__dict__  # which tiling patches of others replace
        or module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "parametrizations" in module._modules
    )


class NormClamp(torch.autograd.Function):
    """clamp(norm(x), low, high) of a batch norm that takes the batch's statistics and moves the running ones."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, low: float, high: float
    ) -> Tensor:
        """The normalised, clamped x [N, C, H, W] in channels_last."""
        found = batch_statistics(norm, [pixels(x)])
        ctx.save_for_backward(x, found)
        ctx.facts = norm.eps, low, high
        return cpp_layers.norm_apply(x, found[2], found[3], low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x, weight and bias."""
        x, statistics = as_saved(ctx.saved_tensors)
        above = dispatch.held(upstream).contiguous(memory_format=torch.channels_last)
        found = cpp_layers.norm_sums(above, x, statistics, ctx.facts)
        to_x = torch.empty_like(x)
        cpp_layers.norm_input_gradient(above, x, found[2:], ctx.facts, to_x)
        return to_x, found[0], found[1], None, None, None


class PointwiseNormClamp(torch.autograd.Function):
    """NormClamp of a 1x1 convolution, a piece of the image at a time: what lies between the two stays in the cache."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d, low: float, high: float
    ) -> Tensor:
        """The convolved, normalised, clamped x [N, K, H, W] in channels_last."""
        between = cpp_path.floats(x.shape[0], len(kernel), *x.shape[2:], memory_format=torch.channels_last)
        matrix, size = kernel[:, :, 0, 0].t(), piece_of(kernel)
        parts = zip(torch.split(pixels(x), size), torch.split(pixels(between), size), strict=True)
        products = (torch.mm(part, matrix, out=out) for part, out in parts)
        found = batch_statistics(norm, products)
        ctx.save_for_backward(x, kernel, between, found)
        ctx.facts = norm.eps, low, high
        return cpp_layers.norm_apply(between, found[2], found[3], low, high)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x, kernel, weight and bias."""
        x, kernel, between, statistics = as_saved(ctx.saved_tensors)
        above = dispatch.held(upstream).contiguous(memory_format=torch.channels_last)
        found = cpp_layers.norm_sums(above, between, statistics, ctx.facts)
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        matrix, size = kernel[:, :, 0, 0], piece_of(kernel)
        to_matrix = torch.zeros_like(matrix)
        tensors = (above, between, x, x if to_x is None else to_x)
        buffer = above.new_empty(min(size, above.numel() // len(kernel)), len(kernel))
        for given, product, part, out in zip(*(torch.split(pixels(tensor), size) for tensor in tensors), strict=True):
            gradient = buffer[: len(given)]
            cpp_layers.norm_input_gradient(given, product, found[2:], ctx.facts, gradient)
            to_matrix.addmm_(gradient.t(), part)
            if to_x is not None:
                torch.mm(gradient, matrix, out=out)
        return to_x, to_matrix[:, :, None, None], found[0], found[1], None, None, None


def as_saved(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Saved tensors with images in channels_last: hooks on them may give back another order of memory."""
    return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]


def batch_statistics(norm: nn.BatchNorm2d, pieces: Iterable[Tensor]) -> Tensor:
    """`cpp_layers.norm_statistics` of a norm that `takes_batch_statistics`; counts the batch."""
    mean, variance, tracked, momentum = norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum
    assert mean is not None and variance is not None  # noqa: PT018
    assert tracked is not None and momentum is not None  # noqa: PT018
    found = cpp_layers.norm_statistics(pieces, norm.weight, norm.bias, norm.eps, mean, variance, momentum)
    tracked.add_(1)
    return found


def pixels(x: Tensor) -> Tensor:
    """x [N, C, H, W] in channels_last as a matrix [N H W, C]; no copy."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def piece_of(kernel: Tensor) -> int:
    """How many pixels of the answer of a 1x1 convolution by `kernel` are handled at a time."""
    return max(PIECE // len(kernel), LEAST_PIECE)


def norm_clamp(norm: nn.Module, x: Tensor, low: float = -float("inf"), high: float = float("inf")) -> Tensor:
    """clamp(norm(x), low, high): ReLU6 is (0, 6), none (-inf, inf). In training the running statistics move.

    Args: `norm`, or what replaced it; x [N, C, H, W]. Returns the shape of x.
    """
    if not isinstance(norm, nn.BatchNorm2d) or not takes_batch_statistics(norm, x, x.shape[1]) or not fits(x):
        y: Tensor = norm(x)
        return y if low == -high == -float("inf") else F.hardtanh(y, low, high)
    made: Tensor = NormClamp.apply(x, norm.weight, norm.bias, norm, low, high)  # type: ignore[no-untyped-call]
    return made


def pointwise_norm_clamp(conv: nn.Conv2d, norm: nn.Module, x: Tensor, low: float, high: float) -> Tensor | None:
    """norm_clamp(norm, conv(x), low, high) of a 1x1 convolution in training; None where it does not apply.

    It applies to a convolution without bias, groups, stride or padding whose norm takes the batch's statistics, for an
    x [N, C, H, W] that the compiled layers take, outside autocast, with no hooks on either.
    """
    plain = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and conv.bias is None
    if not plain or conv.padding != (0, 0) or not isinstance(norm, nn.BatchNorm2d) or not bare(conv):
        return None
    if not takes_batch_statistics(norm, x, conv.out_channels) or torch.is_autocast_enabled("cpu") or not fits(x):
        return None
    made: Tensor = PointwiseNormClamp.apply(  # type: ignore[no-untyped-call]
        x, conv.weight, norm.weight, norm.bias, norm, low, high
    )
    return made


def takes_batch_statistics(norm: nn.BatchNorm2d, x: Tensor, channels: int) -> bool:
    """Whether `norm` is in training, with everything that a usual one of `channels` has, and `x` has several pixels."""
    if type(norm) is not nn.BatchNorm2d or not norm.training or not norm.track_running_stats or not bare(norm):
        return False
    if norm.momentum is None or norm.num_batches_tracked is None or x.numel() <= x.shape[1]:
        return False
    return all(
        row is not None
        and row.dtype == torch.float32
        and row.device.type == "cpu"
        and row.numel() == channels
        and row.is_contiguous()
        for row in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )


class DepthwiseSame(torch.autograd.Function):
    """A depthwise convolution with zero padding (before, after) per axis, `after` equal to `before` or one more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, rows: Padding, columns: Padding) -> Tensor:
        """The convolved x [N, C, H, W]."""
        wider = widened(weight, rows, columns)
        ctx.save_for_backward(x, weight)
        ctx.facts = stride, rows, columns
        return torch.conv2d(x, wider, None, stride, (rows[1], columns[1]), 1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x and weight."""
        x, weight = as_saved(ctx.saved_tensors)
        stride, rows, columns = ctx.facts
        above = dispatch.held(upstream).contiguous(memory_format=torch.channels_last)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = torch.ops.aten.convolution_backward(
                above, x, widened(weight, rows, columns), None, [stride, stride], [rows[1], columns[1]], [1, 1],
                False, [0, 0], x.shape[1], [True, False, False],
            )[0]  # fmt: skip
        if ctx.needs_input_grad[1]:
            to_weight = cpp_layers.depthwise_weight_gradient(above, x, weight.shape[2], stride, rows[0], columns[0])
            if to_weight is None:  # the library was built by a compiler without vectors
                wide = F.pad(x, (*columns, *rows))
                to_weight = torch.ops.aten.convolution_backward(
                    above, wide, weight, None, [stride, stride], [0, 0], [1, 1], False, [0, 0], x.shape[1],
                    [False, True, False],
                )[1]  # fmt: skip
        return to_x, to_weight, None, None, None


def widened(weight: Tensor, rows: Padding, columns: Padding) -> Tensor:
    """A kernel with zeros before it where the padding is one more after the image than before it.

    With symmetric padding by `after` it gives what the kernel gives with (before, after).
    """
    if rows[0] == rows[1] and columns[0] == columns[1]:
        return weight
    return F.pad(weight, (columns[1] - columns[0], 0, rows[1] - rows[0], 0))


def depthwise_same(x: Tensor, weight: Tensor, stride: int, rows: Padding, columns: Padding) -> Tensor:
    """A depthwise convolution without bias of x [N, C, H, W] by weight [C, 1, K, K].

    The zero padding is (before, after) per axis; `after` must be `before` or one more, as TensorFlow's "SAME" has it.
    """
    size = weight.shape[2]
    compiled = size == weight.shape[3] and size in (3, 5) and x.shape[1] % LANES == 0 and len(weight) == x.shape[1]
    if compiled and torch.is_grad_enabled() and fits(x) and not torch.is_autocast_enabled("cpu"):
        made: Tensor = DepthwiseSame.apply(x, weight, stride, rows, columns)  # type: ignore[no-untyped-call]
        return made
    if rows[0] != rows[1] or columns[0] != columns[1]:
        return F.conv2d(F.pad(x, (*columns, *rows)), weight, None, stride, groups=x.shape[1])
    return F.conv2d(x, weight, None, stride, (rows[0], columns[0]), groups=x.shape[1])


class PackedWeights(dict[Any, Any]):
    """A convolution's packed weights by padding and by image size, or its transform, and what they were made from.

    A write of any kind to the weight is seen, unless `seal` said that there is none. Copies are empty.
    """

    made_from: tuple[Any, ...] = ()
    sealed: Tensor | None = None  # the weight that nobody writes to
    memory: Tensor | None = None  # held, so that no other comes to lie there: `Module.to` gives a tensor new memory

    def __reduce__(self) -> tuple[type[PackedWeights], tuple[()]]:
        return PackedWeights, ()

    @staticmethod
    def of(conv: nn.Conv2d, weight: Tensor) -> PackedWeights:
        """Those kept on `conv`, dropped if its weight has changed since; nothing is kept of one that cannot be read."""
        kept: PackedWeights | None = conv.__dict__.get("packed")
        if kept is not None and kept.sealed is weight and kept.made_from == place(weight):
            return kept
        if not readable(weight) or not in_memory(weight):
            return PackedWeights()
        found = content(weight)
        if kept is None or kept.made_from != found:
            kept = PackedWeights()  # another one: a thread that is packing the old weight does not write into it
            kept.made_from = found
            conv.__dict__["packed"] = kept
        return kept


def content(weight: Tensor) -> tuple[Any, ...]:
    """What `weight` holds: a number of its bytes, and how they are read."""
    found = digests([weight.data_ptr()], [extent(weight)])
    return *found, weight.dtype, weight.shape, weight.stride()


def place(weight: Tensor) -> tuple[int, int]:
    """Where `weight` lies, and how many writes PyTorch counted."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def seal(network: nn.Module) -> None:
    """Say that nobody writes to the weights of `network`, an inference copy: what is packed of them is kept without
    reading them again, as long as they lie where they are."""
    for module in network.modules():
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Conv2d) and weight is not None:
            packed = PackedWeights()
            packed.sealed, packed.memory, packed.made_from = weight, weight.detach(), place(weight)
            module.__dict__["packed"] = packed


class PackedWeight:
    """A frozen convolution's weight as oneDNN wants it, with asymmetric padding turned into symmetric."""

    def __init__(self, conv: nn.Conv2d, rows: Padding, columns: Padding) -> None:
        self.padding = [rows[1], columns[1]]
        self.stride = list(conv.stride)
        self.groups = conv.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            widened(conv.weight.detach(), rows, columns).contiguous(), self.padding, self.stride, [1, 1], self.groups
        )
        self.run = torch.ops.mkldnn._convolution_pointwise.default  # the overload: choosing it costs at each call

    def __call__(self, x: Tensor, bias: Tensor | None, high: float | None) -> Tensor:
        how: tuple[str, list[float]] = ("none", []) if high is None else ("hardtanh", [0.0, high])
        y: Tensor = self.run(x, self.weight, bias, self.padding, self.stride, [1, 1], self.groups, *how, "")
        return y


@cache
def has_onednn() -> bool:
    """Whether this PyTorch has oneDNN's fused convolutions (its own compiler uses them)."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def inference_conv(
    conv: nn.Conv2d, x: Tensor, padding_of: Callable[[Tensor], tuple[Padding, Padding]], high: float | None
) -> Tensor | None:
    """The frozen `conv` of an inference copy, clamped to [0, high] unless that is None.

    `padding_of(x)` gives the zero padding (before, after) of rows and of columns, `after` equal to `before` or one
    more; it must be a function of the height and width. The packed weight is kept on `conv`. Returns None where it does
    not apply: with gradients to image or weight, under autocast, a trace or a dispatch mode, with hooks, off the CPU,
    in other dtypes, dilated or padded by anything but zeros, and where KDAD_KERNELS forced another path when such an
    image first came.
    """
    weight, bias = conv._parameters.get("weight"), conv._parameters["bias"]  # quicker than the attributes
    if weight is None or not unwatched(x) or not dense(x) or not bare(conv) or weight.dtype != torch.float32:
        return None
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return None
    if torch.is_autocast_enabled("cpu"):
        return None
    packed = PackedWeights.of(conv, weight)
    found = packed.get(x.shape[2:])
    if found is None:
        if not has_onednn() or dispatch.forced() in ("reference", "torch"):
            return None
        if conv.dilation != (1, 1) or conv.padding_mode != "zeros":
            return None
        padding = padding_of(x)
        with torch.inference_mode(False), torch.no_grad():
            found = packed.get(padding) or packed.setdefault(padding, PackedWeight(conv, *padding))
        packed[x.shape[2:]] = found
    made: Tensor = found(x, bias, high)
    return made
