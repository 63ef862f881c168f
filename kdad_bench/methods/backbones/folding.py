"""Inference copies of networks: batch norms folded into the convolutions before them, memory laid out channels last."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class Folded:
    """A network's inference copy, rebuilt whenever the network's weights have changed since the last call.

    It relies on this room's convention that a batch norm directly after a convolution among a module's children is
    also applied directly after it.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._copy: nn.Module | None = None
        self._tensors: list[Tensor] = []
        self._stamp: list[tuple[int, int]] = []

    def __call__(self, *inputs: Any) -> Any:
        """The network's answer in eval mode; its weights receive no gradient, its inputs do."""
        return self.current()(*inputs)

    def current(self) -> nn.Module:
        """The copy, up to date. A stamp of address and version per tensor tells in-place changes and moves."""
        if self._copy is None or self._stamp != list(_stamps(self._tensors)):
            self._copy = folded(self.network)
            self._tensors = [*self.network.parameters(), *self.network.buffers()]
            self._stamp = list(_stamps(self._tensors))
        return self._copy


def _stamps(tensors: list[Tensor]) -> Iterator[tuple[int, int]]:
    return ((tensor.data_ptr(), tensor._version) for tensor in tensors)


def folded(network: nn.Module) -> nn.Module:
    """A frozen copy of `network` in eval mode, norms folded, channels last; `network` itself stays as it is."""
    with torch.inference_mode(False), torch.no_grad():  # a copy made while scoring serves training too
        copy = copied(network).eval()
        for module in list(copy.modules()):
            for (_, first), (name, second) in pairwise(list(module.named_children())):
                if isinstance(first, nn.Conv2d | nn.ConvTranspose2d) and isinstance(second, nn.BatchNorm2d):
                    _fold(first, second)
                    setattr(module, name, nn.Identity())
        for tensor in chain(copy.parameters(), copy.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return copy


def copied(module: nn.Module) -> nn.Module:
    """A copy with frozen parameters and buffers of its own; other attributes are shared."""
    made = module.__new__(type(module))
    made.__dict__ = dict(module.__dict__)
    made.__dict__.pop("_compiled_call_impl", None)  # of the original, whose weights it would use
    made._parameters = {
        name: None if tensor is None else nn.Parameter(tensor.detach().clone(), requires_grad=False)
        for name, tensor in module._parameters.items()
    }
    made._buffers = {
        name: None if tensor is None else tensor.detach().clone() for name, tensor in module._buffers.items()
    }
    made._modules = {name: None if child is None else copied(child) for name, child in module._modules.items()}
    return made


def _fold(convolution: nn.Conv2d | nn.ConvTranspose2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )
    convolution.requires_grad_(False)
