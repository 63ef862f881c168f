"""Inference copies of networks: batch norms folded into the convolutions before them, memory laid out channels last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kdad_bench.kernels.digest import digests, extent, readable
from kdad_bench.kernels.layers import bare, seal


class Folded:
    """A network's inference copy, rebuilt whenever the network's weights or layers have changed since the last call.

    It relies on this room's convention that a batch norm directly after a convolution among a module's children is
    also applied directly after it. On a CPU the weights are read at each call, and any write to them is seen. On a GPU
    what PyTorch keeps no account of is not: writes through `tensor.data`, and steps of fused optimisers (the training
    loop counts its own). Nowhere are new values of plain attributes such as a norm's `eps`. Then call `forget`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._copy: nn.Module | None = None
        self._contents: Contents | None = None

    def __call__(self, *inputs: Any) -> Any:
        """The network's answer in eval mode; its weights receive no gradient, its inputs do.

        Images are laid out channels last first, where they are not: the first convolution is slower without.
        """
        return self.current()(*map(channels_last, inputs))

    def current(self) -> nn.Module:
        """The copy, up to date."""
        if self._copy is None or self._contents is None or not self._contents.unchanged():
            self._copy, self._contents = folded(self.network), Contents(self.network)
            seal(self._copy)
        return self._copy

    def forget(self) -> None:
        """Make the copy anew at the next call."""
        self._copy = self._contents = None

    def __getstate__(self) -> nn.Module:
        """The network alone: copies and files make their own inference copy."""
        return self.network

    def __setstate__(self, network: nn.Module) -> None:
        self.__init__(network)  # type: ignore[misc]


def channels_last(given: Any) -> Any:
    """A tensor [N, C, H, W] in that layout; anything else as it is."""
    if isinstance(given, Tensor) and given.dim() == 4:
        return given.contiguous(memory_format=torch.channels_last)
    return given


class Contents:
    """The layers and tensors of a network at one time, kept to see whether it still holds the same.

    Addresses and versions show moves and the writes that PyTorch counts, numbers of the bytes the others. Tensors of
    the inference mode keep no version; only those on a CPU are read.
    """

    def __init__(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self.tables: list[dict[str, Any]] = [
            table for module in modules for table in (module._parameters, module._buffers, module._modules)
        ]
        self.entries = list(entries(self.tables))  # kept alive, so that nothing new can have their identities
        self.identities = list(map(id, self.entries))
        self.tensors = [entry for entry in self.entries if isinstance(entry, Tensor)]
        self.counted = [tensor for tensor in self.tensors if not tensor.is_inference()]
        self.read = [tensor for tensor in self.tensors if readable(tensor)]
        self.sizes = list(map(extent, self.read))
        self.places, self.versions = self._places(), self._versions()
        self.digests = self._digests()

    def unchanged(self) -> bool:
        """Whether no layer or tensor was added, taken away, replaced, written to or moved."""
        return (
            list(map(id, entries(self.tables))) == self.identities
            and self._versions() == self.versions
            and self._places() == self.places
            and self._digests() == self.digests
        )

    def _places(self) -> list[Any]:
        """Where the tensors lie, and how those that are read are laid out."""
        return [
            *map(Tensor.data_ptr, self.tensors),
            *map(attrgetter("device", "dtype", "shape"), self.read),
            *map(Tensor.stride, self.read),
        ]

    def _versions(self) -> list[int]:
        return list(map(attrgetter("_version"), self.counted))

    def _digests(self) -> list[int]:
        """Numbers of what those tensors hold that can be read, at the places that they had at first."""
        return digests(list(map(Tensor.data_ptr, self.read)), self.sizes)


def entries(tables: list[dict[str, Any]]) -> Iterator[Any]:
    """All values of all `tables`."""
    return chain.from_iterable(map(dict.values, tables))


def folded(network: nn.Module) -> nn.Module:
    """A frozen copy of `network` in eval mode, norms folded, channels last; `network` itself stays as it is.

    A convolution or norm with hooks or a parametrisation (pruning, weight_norm, spectral_norm) is left as it is.
    """
    with torch.inference_mode(False), torch.no_grad():  # a copy made while scoring serves training too
        copy = copied(network).eval()
        for module in list(copy.modules()):
            for (_, first), (name, second) in pairwise(list(module.named_children())):
                if not isinstance(first, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(second, nn.BatchNorm2d):
                    continue
                if bare(first) and bare(second):
                    _fold(first, second)
                    setattr(module, name, nn.Identity())
        for tensor in chain(copy.parameters(), copy.buffers()):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return copy


def copied(module: nn.Module) -> nn.Module:
    """A copy with frozen parameters and buffers of its own; other attributes are shared."""
    made = module.__new__(type(module))
    made.__dict__ = {  # tables of hooks too: one that the original gets later is not for this copy
        name: value.copy() if isinstance(value, OrderedDict) else value for name, value in module.__dict__.items()
    }
    for of_the_original in ("_compiled_call_impl", "packed"):  # they would use its weights
        made.__dict__.pop(of_the_original, None)
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
