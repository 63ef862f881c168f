"""Small tensors on their way from the CPU to a device."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def sent(values: Tensor | NDArray[Any], device: torch.device) -> Tensor:
    """`values` of the CPU on `device`. A GPU is not waited for: the memory that it reads is kept until it has."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@lru_cache(64)
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """[len(values)], sent once; not to be changed."""
    with torch.inference_mode(False):  # a training may need it after a score did
        return torch.tensor(values, dtype=dtype, device=device)
