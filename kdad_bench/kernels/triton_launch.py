"""What every Triton launch goes through: a plan made once per layout of its tensors, and the device of the tensors.

Triton's own launch looks at every argument to find what it has compiled, which takes longer than all the rest. So only
the first launch of a plan is Triton's own. The next ones hand the same arguments in the same order to the kernel that
it returned, by that kernel's own `[grid]`, which asks for the stream and calls the hooks as usual. That is done only
where Triton is as it was read (`READ`, `LIKE`, `doubt`); otherwise, or with KDAD_TRITON_LAUNCH=official, every launch
stays Triton's own. `way` tells which.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

SWITCH = "KDAD_TRITON_LAUNCH"  # "planned", unless it says "official"
READ = ("3.6", "3.9")  # the versions of Triton whose launch was read, and compared argument by argument
# What their launch is made of, and its parameters.
LIKE = {
    "JITFunction.run": (JITFunction, "run", "(self, *args, grid, warmup, **kwargs)"),
    "CompiledKernel.__getitem__": (CompiledKernel, "__getitem__", "(self, grid)"),
    "CompiledKernel.launch_metadata": (CompiledKernel, "launch_metadata", "(self, grid, stream, *args)"),
}
RUNNER = "(*args, stream=None)"  # what a compiled kernel's [grid] returns
LAUNCHER = ("gridX", "gridY", "gridZ", "stream", "function")  # what that hands on, before the kernel's arguments
_doubts: list[str] = []  # what was found, at a launch, not to be as it was read: the end of launches from plans


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


UNGUARDED = nullcontext()


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` current: Triton launches on the current device, whatever the tensors say."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return UNGUARDED
    return torch.cuda.device(device)


# ---- whether launches may go round Triton's look-up ------------------------------------------------------------------


@cache
def refusal() -> str | None:
    """Why every launch is Triton's own, as far as that shows before the first one; None if nothing speaks against."""
    wanted = os.environ.get(SWITCH) or "planned"
    if wanted != "planned":
        return f"{SWITCH}={wanted}"
    version = str(triton.__version__)
    if ".".join(version.split(".")[:2]) not in READ:
        return f"the launch of Triton {version} was not read, only that of {' and '.join(READ)}"
    unlike = [name for name, (owner, part, like) in LIKE.items() if parameters(getattr(owner, part, None)) != like]
    return f"Triton's {unlike[0]} is not as it was read" if unlike else None


def parameters(call: Any) -> str:
    """The names of a function's parameters, as in a signature without types; "" for what has none."""
    try:
        found = inspect.signature(call)
    except (TypeError, ValueError):
        return ""
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in found.parameters.values()]
    return str(inspect.Signature(plain))


def current_device() -> int:
    """The device that Triton would launch on."""
    return int(triton.runtime.driver.active.get_current_device())


def doubt(kernel: Any, given: tuple[Any, ...], plan: Plan, arguments: tuple[Any, ...], compiled: Any) -> str | None:
    """What of a compiled kernel is not as it was read; None if Triton would hand on the same `arguments` itself."""
    try:
        if kernel.pre_run_hooks:
            return "somebody hooked into the launch"
        if parameters(compiled[(plan.programs, 1, 1)]) != RUNNER:
            return "a compiled kernel's [grid] is not as it was read"
        launcher = list(inspect.signature(compiled.run).parameters)
        if tuple(launcher[: len(LAUNCHER)]) != LAUNCHER:
            return f"the launcher takes {', '.join(launcher[: len(LAUNCHER)])}"
        binder = kernel.device_caches[current_device()][-1]
        bound = tuple(binder(*given, *plan.numbers, **plan.constants)[0].values())
    except Exception as problem:  # whatever is missing is a reason to leave launching to Triton
        return f"{type(problem).__name__}: {problem}"
    same = len(bound) == len(arguments) and all(a is b for a, b in zip(bound, arguments, strict=True))
    return None if same else "Triton orders the arguments in another way"


def way() -> str:
    """How kernels are launched in this process from the second time on: "from plans", or by Triton, and why."""
    why = refusal() or next(iter(_doubts), None)
    return "from plans" if why is None else f"by Triton's own launch: {why}"


# ---- launching -------------------------------------------------------------------------------------------------------


def assumed(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """What Triton compiles the arguments for: dtype and alignment of a tensor; a float is any float."""
    found: list[Any] = []
    for given in tensors:
        for one in given if isinstance(given, tuple) else (given,):
            if isinstance(one, Tensor):
                found += one.dtype, one.data_ptr() & 15
            else:
                found += (float,) if isinstance(one, float) else (type(one), one)
    return tuple(found)


def keep(kernel: Any, plan: Plan, key: Any, tensors: tuple[Any, ...], compiled: Any) -> None:
    """Let the plan launch `compiled` for tensors alike, the rest of its arguments being those of the plan."""
    rest = *plan.numbers, *(plan.constants[name] for name in kernel.arg_names if name in plan.constants)
    why = doubt(kernel, tensors, plan, (*tensors, *rest), compiled)
    if why is not None:
        _doubts.append(why)
        return
    run = compiled[(plan.programs, 1, 1)]
    plan.ready[key] = lambda *again: run(*again, *rest)


def launch(kernel: Any, plan: Plan, *tensors: Any) -> None:
    """Launch `plan` on the device of the first tensor; no program, no launch. Every launch goes through here."""
    if not plan.programs:
        return
    first = tensors[0][0] if isinstance(tensors[0], tuple) else tensors[0]
    with guard(first.device):
        key = first.device, assumed(tensors)
        if key in plan.ready and not _doubts:
            try:
                plan.ready[key](*tensors)
                return
            except (TypeError, AttributeError) as problem:  # it does not take what was read that it takes
                _doubts.append(f"{type(problem).__name__}: {problem}")
        compiled = kernel[(plan.programs,)](*tensors, *plan.numbers, **plan.constants)
        # nothing is compiled in Triton's interpreter
        if isinstance(compiled, CompiledKernel) and key not in plan.ready and refusal() is None and not _doubts:
            keep(kernel, plan, key, tensors, compiled)
