"""Networks without their random weights, where others take their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS: frozenset[Callable[..., Any]] = frozenset(
    (
        nn.init.normal_,
        nn.init.trunc_normal_,
        nn.init.uniform_,
        nn.init.kaiming_normal_,
        nn.init.kaiming_uniform_,
        nn.init.xavier_normal_,
        nn.init.xavier_uniform_,
        Tensor.normal_,
        Tensor.uniform_,
    )
)


class Undrawn(TorchFunctionMode):
    """Inside, what would draw random values into a tensor leaves it as it is, uninitialised.

    Only for networks whose every drawn weight is given afterwards, or whose shapes alone are asked for: on device
    "meta" a draw also loads torch's compiler, seconds of a process. Torch's random state is not moved on.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func in DRAWS:
            return args[0] if args else named["tensor"]
        return func(*args, **named)
