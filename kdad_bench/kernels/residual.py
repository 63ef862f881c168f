"""What networks do between their convolutions on CPUs, to the bit what PyTorch does, in fewer readings of memory.

Batch norm in training alone, with ReLU, or with residual addition and ReLU; addition and ReLU of inference copies,
whose norms are folded; maximum pooling without gradient. Elsewhere PyTorch's own run, in double backwards too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from kdad_bench.kernels import cpp_layers, dispatch
from kdad_bench.kernels.cpp_layers import NONE, RELU, RESIDUAL
from kdad_bench.kernels.layers import bare, fits, takes_batch_statistics
from kdad_bench.kernels.winograd import convolved

LANES = 16  # PyTorch rounds otherwise in what is left of the channels beyond a whole register
BATCH_NORM, BATCH_NORM_BACKWARD = torch.ops.aten.native_batch_norm, torch.ops.aten.native_batch_norm_backward


class ExactNorm(torch.autograd.Function):
    """A batch norm that takes the batch's statistics and moves the running ones, with what follows it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, identity: Tensor | None, norm: nn.BatchNorm2d, kind: int
    ) -> Tensor:
        """norm(x), relu(norm(x)) or relu(norm(x) + identity), all [N, C, H, W] in channels_last."""
        fused = multiplies_and_adds_at_once()
        assert fused is not None  # `exact` asked
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        assert norm.num_batches_tracked is not None and norm.momentum is not None  # noqa: PT018
        running = norm.running_mean, norm.running_var
        y, found = cpp_layers.exact_norm(x, identity, weight, bias, norm.eps, norm.momentum, running, kind, fused)
        norm.num_batches_tracked.add_(1)
        ctx.save_for_backward(x, weight, found, None if kind == NONE else y)
        ctx.facts = norm.eps, kind, fused
        return y

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients to x, weight, bias and identity."""
        x, weight, found, y = ctx.saved_tensors
        epsilon, kind, fused = ctx.facts
        above = dispatch.held(above)
        wants = ctx.needs_input_grad
        images = [image for image in (above, x, y) if image is not None]  # hooks on saved ones may change their layout
        if torch.is_grad_enabled() or not all(map(exact, images)):  # a double backward, or another layout
            kept = above if kind == NONE else torch.ops.aten.threshold_backward(above, y, 0)
            to_x, to_weight, to_bias = BATCH_NORM_BACKWARD(
                kept, x, weight, None, None, found[0], found[1], True, epsilon, wants[:3]
            )
        else:
            to_x, kept, to_weight, to_bias = cpp_layers.exact_norm_gradients(
                above, x, y, weight, found, kind, fused, wants[0]
            )
        given = to_x, to_weight, to_bias, kept if kind == RESIDUAL else None
        return *(gradient if wanted else None for gradient, wanted in zip(given, wants[:4], strict=True)), None, None


def exact(x: Tensor) -> bool:
    """Whether the compiled norms take `x` [N, C, H, W]: in channels_last and no other order, whole registers wide."""
    return fits(x) and not x.is_contiguous() and x.shape[1] % LANES == 0 and not torch.is_autocast_enabled("cpu")


@cache
def multiplies_and_adds_at_once() -> bool | None:
    """Whether PyTorch's batch norm rounds once where it multiplies and adds; None if it rounds otherwise than ours.

    That depends on the instructions that PyTorch was compiled for and takes (ATEN_CPU_CAPABILITY), so it is tried on a
    small batch, forward and backward, in PyTorch with one thread. Nothing is drawn from torch's global generator.
    """
    for fused in (True, False):
        if all(map(torch.equal, small_norm_of_ours(fused), small_norm_of_pytorch())):
            return fused
    return None


def small_batch() -> tuple[Tensor, ...]:
    """x, upstream and identity [3, 32, 7, 9] in channels_last; weight, bias and running statistics [32]."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.randn((3, 32, 7, 9), generator=generator) * 2 + 0.5 for _ in range(3))
    rows = (torch.randn(32, generator=generator) for _ in range(3))
    moved = torch.rand(32, generator=generator)
    return *(x.contiguous(memory_format=torch.channels_last) for x in images), *rows, moved


def small_norm_of_ours(fused: bool) -> list[Tensor]:
    """The answer, the gradients to x, identity, weight and bias, and mean, 1 / deviation and running statistics."""
    x, above, identity, weight, bias, *running = small_batch()
    y, found = cpp_layers.exact_norm(x, identity, weight, bias, 1e-5, 0.1, (running[0], running[1]), RESIDUAL, fused)
    to_x, kept, to_weight, to_bias = cpp_layers.exact_norm_gradients(above, x, y, weight, found, RESIDUAL, fused, True)
    assert to_x is not None and kept is not None  # noqa: PT018
    return [y, to_x, kept, to_weight, to_bias, found[0], found[1], *running]


def small_norm_of_pytorch() -> list[Tensor]:
    """The same of PyTorch's operators with one thread."""
    x, above, identity, weight, bias, *running = small_batch()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            y, mean, inverse = BATCH_NORM(x, weight, bias, *running, True, 0.1, 1e-5)
            y = torch.relu_(y + identity)
            kept = torch.ops.aten.threshold_backward(above, y, 0)
            to_x, to_weight, to_bias = BATCH_NORM_BACKWARD(
                kept, x, weight, *running, mean, inverse, True, 1e-5, [True] * 3
            )
    finally:
        torch.set_num_threads(threads)
    return [y, to_x, kept, to_weight, to_bias, mean, inverse, *running]


def norm_relu(norm: nn.Module, relu: nn.Module | None, x: Tensor, identity: Tensor | None = None) -> Tensor:
    """relu(norm(x)), or relu(norm(x) + identity); norm(x) without `relu`. In training the running statistics move.

    Args: `norm` is a batch norm or what replaced it; x and identity [N, C, H, W]. `x` may be written over.
    """
    if relu is not None and (type(relu) is not nn.ReLU or not bare(relu)):
        return plain(norm, relu, x, identity)
    if identity is not None and (identity.shape != x.shape or not exact(identity)):
        return plain(norm, relu, x, identity)
    if type(norm) is nn.Identity and identity is not None and relu is not None:
        return add_relu(norm, relu, x, identity)
    if not isinstance(norm, nn.BatchNorm2d) or not takes_batch_statistics(norm, x, x.shape[1]) or not exact(x):
        return plain(norm, relu, x, identity)
    if multiplies_and_adds_at_once() is None:
        return plain(norm, relu, x, identity)
    kind = NONE if relu is None else RELU if identity is None else RESIDUAL
    made: Tensor = ExactNorm.apply(x, norm.weight, norm.bias, identity, norm, kind)  # type: ignore[no-untyped-call]
    return made


def plain(norm: nn.Module, relu: nn.Module | None, x: Tensor, identity: Tensor | None) -> Tensor:
    """What `norm_relu` gives, by PyTorch."""
    y: Tensor = norm(x)
    if identity is not None:
        y = y + identity
    return y if relu is None else relu(y)


def add_relu(norm: nn.Identity, relu: nn.ReLU, x: Tensor, identity: Tensor) -> Tensor:
    """relu(x + identity), in the memory of `x` where nothing has a gradient and the ReLU would write in place too."""
    learns = torch.is_grad_enabled() and (x.requires_grad or identity.requires_grad)
    if learns or not bare(norm) or not relu.inplace or not exact(x) or x.data_ptr() == identity.data_ptr():
        return plain(norm, relu, x, identity)
    return cpp_layers.add_rectified(x, identity)


def max_pool(pool: nn.Module, x: Tensor) -> Tensor:
    """pool(x); that of windows of 3x3 at stride 2 with a border of 1 without keeping the places of the maxima."""
    usual = type(pool) is nn.MaxPool2d and bare(pool) and not pool.return_indices and not pool.ceil_mode
    window: list[Any] = [pool.kernel_size, pool.stride, pool.padding, pool.dilation] if usual else []
    usual = window == [3, 2, 1, 1]
    learns = torch.is_grad_enabled() and x.requires_grad
    y: Tensor = pool(x) if not usual or learns or not fits(x) or x.is_contiguous() else cpp_layers.max_pool(x)
    return y


class Layers(nn.Sequential):
    """Layers one after the other: convolutions as `convolved` has them, and a norm takes the ReLU after it along."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.BatchNorm2d):
                followed = bool(layers) and isinstance(layers[0], nn.ReLU)
                x = norm_relu(layer, layers.pop(0) if followed else None, x)
            else:
                x = convolved(layer, x)
        return x
