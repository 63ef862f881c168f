"""Code of others in this process: what it prints is no output of ours, and what it sets is put back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch

from kdad_bench.process import SHARED, Aside, kept_from_escaping, no_way_out, process_as_it_was, set_environment

__all__ = ["SHARED", "guarded", "process_as_it_was", "set_environment"]


# where torch keeps what float32 products and convolutions are rounded to; the general ones first, as the others go by
# them. Not oneDNN's own general one: what is set there torch takes for that of all devices.
BACKENDS: Any = torch.backends  # its stubs lack most of it
PRECISIONS: tuple[Any, ...] = (
    BACKENDS,
    BACKENDS.cudnn,
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
    BACKENDS.mkldnn.rnn,
)


def set_convolutions(tf32: bool) -> None:
    """As torch said it before there were PRECISIONS."""
    torch.backends.cudnn.allow_tf32 = tf32


# the older ways to say the same, which torch keeps apart
OLDER: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (lambda: torch.backends.cudnn.allow_tf32, set_convolutions),
)


def said(ask: Callable[[], Any]) -> Any:
    """None where torch refuses to tell, as PRECISIONS contradict it."""
    try:
        return ask()
    except RuntimeError:
        return None


def precision() -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """OLDER and PRECISIONS as they are."""
    return tuple(said(ask) for ask, _ in OLDER), tuple(one.fp32_precision for one in PRECISIONS)


def set_precision(kept: tuple[tuple[Any, ...], tuple[str, ...]]) -> None:
    """The same once more. OLDER first: they set some of PRECISIONS, too."""
    for (_, put), value in zip(OLDER, kept[0], strict=True):
        if value is not None:
            put(value)
    for where, value in zip(PRECISIONS, kept[1], strict=True):
        for setting in ("none", value):  # "none" goes by the general one
            if where.fp32_precision != value:
                where.fp32_precision = setting


def keeps_denormals() -> bool:
    """Whether numbers too small for a whole mantissa are kept, and not taken for zero."""
    return bool(torch.tensor(1e-310, dtype=torch.float64, device="cpu") * 0.5)


def set_device(device: torch.device) -> None:
    """Where tensors are made that nobody says a place for; the processor is what torch takes by itself."""
    torch.set_default_device(None if device.type == "cpu" else device)


# flags of torch's libraries; each of the ways to attention has a function to ask and one to set
FLAGS: tuple[tuple[Any, str], ...] = (
    (BACKENDS.cudnn, "enabled"),
    (BACKENDS.cudnn, "benchmark"),
    (BACKENDS.cudnn, "deterministic"),
    (BACKENDS.mkldnn, "enabled"),
    (BACKENDS.mkldnn, "deterministic"),
    (BACKENDS.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    (BACKENDS.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    (BACKENDS.cuda.matmul, "allow_fp16_accumulation"),
)
ATTENTION = ("flash", "mem_efficient", "math", "cudnn")


def libraries() -> tuple[list[Any], list[bool]]:
    """FLAGS and ATTENTION as they are."""
    ways = [getattr(BACKENDS.cuda, f"{name}_sdp_enabled")() for name in ATTENTION]
    return [getattr(where, name) for where, name in FLAGS], ways


def set_libraries(kept: tuple[list[Any], list[bool]]) -> None:
    """The same once more."""
    for (where, name), value in zip(FLAGS, kept[0], strict=True):
        if getattr(where, name) != value:
            setattr(where, name, value)
    for name, value in zip(ATTENTION, kept[1], strict=True):
        getattr(BACKENDS.cuda, f"enable_{name}_sdp")(value)


KINDS = ("cpu", "cuda")  # of devices, each with an autocast of its own


def autocasts() -> list[tuple[bool, torch.dtype]]:
    """Whether operations are cast by themselves, and to what, by KINDS."""
    return [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in KINDS]


def set_autocasts(kept: list[tuple[bool, torch.dtype]]) -> None:
    """The same once more."""
    for kind, (enabled, dtype) in zip(KINDS, kept, strict=True):
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def set_anomalies(kept: tuple[bool, bool]) -> None:
    """Whether torch looks for NaN in gradients."""
    torch.autograd.set_detect_anomaly(*kept)


SHARED.update(
    {
        "torch's random state": (
            lambda: torch.get_rng_state().numpy(),
            lambda kept: torch.set_rng_state(torch.from_numpy(kept)),
        ),
        "torch's default type": (torch.get_default_dtype, torch.set_default_dtype),
        "torch's default device": (torch.get_default_device, set_device),
        "torch's threads": (torch.get_num_threads, torch.set_num_threads),
        "torch's denormals": (keeps_denormals, lambda kept: torch.set_flush_denormal(not kept)),
        "torch's autocast": (autocasts, set_autocasts),
        "torch's search for NaN": (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            set_anomalies,
        ),
        "whether gradients are kept": (torch.is_grad_enabled, torch.set_grad_enabled),
        "whether algorithms are deterministic": (
            torch.get_deterministic_debug_mode,  # with whether it only warns
            torch.set_deterministic_debug_mode,
        ),
        "torch's libraries": (libraries, set_libraries),
        "the precision of products": (precision, set_precision),
    }
)


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, code of others runs: its prints go to stderr unless people read stdout, which is for answers,
    whatever of SHARED it changed is put back at the end, as others come after it, and what it raises is an Exception.
    Raises Escaped."""
    watched = sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()
    printing = nullcontext() if watched else redirect_stdout(Aside())
    with kept_from_escaping(), process_as_it_was(), no_way_out(), printing:
        yield
