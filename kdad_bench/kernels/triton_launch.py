"""What every Triton launch goes through: a plan made once per layout of its tensors, and the device of the tensors."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.compiler import CompiledKernel


class Plan(NamedTuple):
    """A launch but for its tensors: how many programs, which numbers, which constants and options.

    `ready` keeps what Triton compiled for it, by what the compiler assumed of the tensors. A plan is of one kernel.
    """

    programs: int
    numbers: tuple[Any, ...]
    constants: dict[str, Any]
    ready: dict[Any, Callable[..., None]]

    @classmethod
    def of(cls, programs: int, numbers: tuple[Any, ...], constants: dict[str, Any]) -> Plan:
        """With nothing compiled yet."""
        return cls(programs, numbers, constants, {})


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` current: Triton launches on the current device, whatever the tensors say."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(device)


def assumed(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """What Triton compiles the arguments for: dtype and alignment of a tensor; a float is any float."""
    found: list[Any] = []
    for given in tensors:
        for one in given if isinstance(given, tuple) else (given,):
            if isinstance(one, Tensor):
                found += one.dtype, one.data_ptr() & 15
            else:
                found.append(float if isinstance(one, float) else one)
    return tuple(found)


def bound(kernel: Any, plan: Plan, compiled: Any) -> Callable[..., None]:
    """Launches `compiled` on given tensors, the rest of its arguments being those of the plan."""
    rest = *plan.numbers, *(plan.constants[name] for name in kernel.arg_names if name in plan.constants)
    run = compiled[(plan.programs, 1, 1)]
    return lambda *tensors: run(*tensors, *rest)


def launch(kernel: Any, plan: Plan, *tensors: Any) -> None:
    """Launch `plan` on the device of the first tensor; no program, no launch. Every launch goes through here.

    Triton's own launch looks at every argument to find what it has compiled, which takes longer than all the rest; from
    the second time on that is known by the plan and by what is `assumed`.
    """
    if not plan.programs:
        return
    first = tensors[0][0] if isinstance(tensors[0], tuple) else tensors[0]
    with guard(first.device):
        key = first.device, assumed(tensors)
        if key in plan.ready:
            plan.ready[key](*tensors)
            return
        compiled = kernel[(plan.programs,)](*tensors, *plan.numbers, **plan.constants)
        if isinstance(compiled, CompiledKernel):  # nothing is compiled in Triton's interpreter
            plan.ready[key] = bound(kernel, plan, compiled)
