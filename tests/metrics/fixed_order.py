"""What refuses operations of PyTorch whose result on a GPU depends on chance."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoChance(TorchDispatchMode):
    """Refuses what has no fixed order of additions on CUDA, by PyTorch's list, whatever device it runs on here."""

    ADDING = ("cumsum", "cumprod", "logcumsumexp")  # of floats
    ATOMIC = (
        "scatter_add",
        "scatter_reduce",
        "index_add",
        "index_put",
        "put_",
        "histc",
        "bincount",
        "kthvalue",
        "median",
    )

    def __torch_dispatch__(self, op: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = op._schema.name.removeprefix("aten::")
        floats = [x.is_floating_point() for x in arguments if isinstance(x, torch.Tensor)]
        assert not (name.startswith(self.ADDING) and any(floats)), f"{name} of floats"
        assert not name.startswith(self.ATOMIC), name
        return op(*arguments, **(options or {}))
