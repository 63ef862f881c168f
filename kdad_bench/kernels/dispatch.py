"""Which implementation runs: Triton on CUDA, the compiled kernels on a CPU, never silently a slower one."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kdad_bench.kernels import compiled, cpp_path, torch_path
from kdad_bench.kernels.protocol import Path

# Triton 3.9 warns at its import when nobody chose whether a multiply and an add may fuse; here they may.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

PATHS = ("reference", "torch", "cpp", "triton")
SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)
T = TypeVar("T")
_broken: dict[str, str] = {}  # op -> why its Triton kernel is not used any more
_told: set[str] = set()


def forced() -> str | None:
    """The path named by KDAD_KERNELS, if any; raises ValueError for an unknown name."""
    name = os.environ.get("KDAD_KERNELS")
    if name and name not in PATHS:
        raise ValueError(f"KDAD_KERNELS={name!r} is not one of {', '.join(PATHS)}")
    return name or None


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def path(device: str | torch.device = "cpu") -> str:
    """The path that float32 tensors on `device` take: "reference", "torch", "cpp" or "triton".

    Raises ValueError if KDAD_KERNELS names no path, C++ for another device than a CPU, or Triton for a CPU outside
    Triton's interpreter.
    """
    cuda = torch.device(device).type == "cuda"
    wanted = forced()
    if wanted in ("reference", "torch"):
        return wanted
    if wanted == "triton" and not cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("KDAD_KERNELS=triton needs CUDA tensors, or TRITON_INTERPRET=1 set before the start")
    if wanted == "cpp" and torch.device(device).type != "cpu":
        raise ValueError(f"KDAD_KERNELS=cpp needs CPU tensors; these are on {device}")
    if cuda or wanted == "triton":
        if has_triton():
            return "triton"
        tell("Triton is not installed: the kernels run as plain PyTorch on CUDA")
        return "torch"
    if torch.device(device).type != "cpu":
        return "torch"
    why = cpp_path.missing()
    if why is None:
        return "cpp"
    if wanted == "cpp" or compiled.built() is not None:  # one was asked for, or is there and refused
        tell(f"{'KDAD_KERNELS=cpp: ' if wanted else ''}{why}; plain PyTorch is used")
    return "torch"


def path_of(tensor: Tensor) -> str:
    """The path `tensor` takes; dtypes other than float32, float16 and bfloat16 take the reference."""
    return path(tensor.device) if tensor.dtype in SUPPORTED else "reference"


def watched() -> bool:
    """Whether something follows each operation: a trace, compiler, transform, dispatch mode or forward-mode AD."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def held(upstream: Tensor) -> Tensor:
    """A gradient whose values lie in memory: autograd hands on some that are to be negated, as imaginary parts of
    conjugates are, and some that are zero everywhere and lie nowhere."""
    return upstream.clone() if upstream._is_zerotensor() else upstream.resolve_neg()


def uses_reference(*tensors: Tensor) -> bool:
    """Whether the eager formula runs: on request, and for float64."""
    if any(t.dtype not in SUPPORTED for t in tensors):
        return True
    return path(tensors[0].device) == "reference"


def tell(message: str) -> None:
    """Warn once per process."""
    if message not in _told:
        _told.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


def implementation(name: str) -> Path:
    """The module of a path's ops: "cpp", "triton", or plain PyTorch for any other name."""
    if name == "cpp":
        return cpp_path
    if name == "triton":
        from kdad_bench.kernels import triton_path  # imports triton: only when it is used

        return triton_path
    return torch_path


def ops_of(tensor: Tensor) -> Path:
    """The ops of the path that `tensor` takes. On Triton's, an op that fails is replaced unless the path is forced."""
    chosen = path_of(tensor)
    if chosen == "triton" and forced() != "triton":
        return cast(Path, Replacing())
    return implementation(chosen)


class Replacing:
    """Triton's ops; one that fails to compile or run gives way to PyTorch's, with one warning that says why."""

    def __getattr__(self, op: str) -> Callable[..., Any]:
        return partial(self.run, op)

    @staticmethod
    def run(op: str, *arguments: Any) -> Any:
        """Run `op` by Triton, or by PyTorch if Triton's failed, now or before; lack of memory is no failure."""
        if op not in _broken:
            made = attempted(op, getattr(implementation("triton"), op), *arguments)
            if op not in _broken:  # what it answers tells nothing: an op in place answers None
                return made
        return getattr(implementation("torch"), op)(*arguments)


def attempted(op: str, call: Callable[..., T], *arguments: Any, meant: tuple[type[Exception], ...] = ()) -> T | None:
    """What `call`, the Triton kernel of `op`, answers. None if it fails: PyTorch is for `op` then, now and later.

    `broken` has `op` then, and one warning says why. Lack of memory is no failure, nor are errors that are `meant` for
    the caller; where Triton is forced, every error is raised.
    """
    try:
        return call(*arguments)
    except torch.OutOfMemoryError:
        raise
    except meant:
        raise
    except Exception as error:
        if "out of memory" in str(error).lower():  # of Triton's launcher and of CUDA: a RuntimeError
            raise torch.OutOfMemoryError(str(error)) from error
        if forced() == "triton":
            raise
        _broken[op] = f"{type(error).__name__}: {first_line(str(error))}"
        tell(f"the Triton kernel of {op} failed ({_broken[op]}); plain PyTorch is used from now on")
        return None


def first_line(message: str) -> str:
    """The first line of an error's message."""
    return next(iter(message.strip().splitlines()), "no message")


def launching() -> str:
    """How Triton's kernels are launched in this process; see `triton_launch.way`."""
    from kdad_bench.kernels import triton_launch  # imports triton: only when it is used

    return triton_launch.way()


def broken() -> dict[str, str]:
    """Ops whose Triton kernel failed in this process, with the reason."""
    return dict(_broken)
