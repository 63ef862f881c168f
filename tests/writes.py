"""Ways to write new values into a weight, of which PyTorch counts some."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


def by_numpy(weight: Tensor, new: Tensor) -> None:
    weight.detach().numpy()[...] = new.numpy()


def by_address(weight: Tensor, new: Tensor) -> None:
    assert weight.stride() == new.stride()
    ctypes.memmove(weight.data_ptr(), new.data_ptr(), new.numel() * new.element_size())


def by_storage(weight: Tensor, new: Tensor) -> None:
    assert weight.stride() == new.stride()
    weight.untyped_storage().copy_(new.clone().untyped_storage())


def by_dlpack(weight: Tensor, new: Tensor) -> None:
    np.copyto(np.from_dlpack(weight.detach()), new.numpy())


def by_fused_optimiser(weight: Tensor, new: Tensor) -> None:
    learning = weight.detach().requires_grad_()
    learning.grad = learning.detach() - new
    torch.optim.SGD([learning], 1.0, fused=True).step()


def loaded(weight: Tensor, new: Tensor) -> None:
    holder = nn.Module()
    holder.register_buffer("weight", weight)
    holder.load_state_dict({"weight": new})


def averaged(weight: Tensor, new: Tensor) -> None:
    weight.data.mul_(0.5).add_(new, alpha=0.5)


def to_and_fro(weight: Tensor, new: Tensor) -> None:
    weight.data = new.to(torch.float64)
    weight.data = weight.data.to(torch.float32)


@torch.no_grad()
def in_place(weight: Tensor, new: Tensor) -> None:
    weight.copy_(new)


@torch.no_grad()
def taken_over(weight: Tensor, new: Tensor) -> None:
    weight.set_(new.clone())  # type: ignore[call-overload]


WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "in place": in_place,
    "data.mul_.add_": averaged,
    "data.add_": lambda weight, new: weight.data.add_(new),
    "data.copy_": lambda weight, new: weight.data.copy_(new),
    "data.neg_": lambda weight, _: weight.data.neg_(),
    "data = ": lambda weight, new: setattr(weight, "data", new.clone()),
    "data = and back": to_and_fro,
    "set_": taken_over,
    "detach": lambda weight, new: weight.detach().copy_(new),
    "detach.data": lambda weight, new: weight.detach().data.copy_(new),
    "foreach": lambda weight, new: torch._foreach_lerp_([weight.data], [new], 0.25),
    "numpy": by_numpy,
    "dlpack": by_dlpack,
    "address": by_address,
    "storage": by_storage,
    "fused optimiser": by_fused_optimiser,
    "load_state_dict": loaded,
}
