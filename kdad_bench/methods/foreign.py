"""Code of others in this process: what it prints is no output of ours, and what it sets is put back."""

from __future__ import annotations

import io
import os
import pickle
import random
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import numpy as np
import torch


def set_environment(variables: Mapping[str, str]) -> None:
    """These variables and no others."""
    os.environ.clear()
    os.environ.update(variables)


def current_folder() -> str:
    """The folder that this process is in; nothing where it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def go_to(folder: str) -> None:
    """Back to a `current_folder`."""
    if folder:
        os.chdir(folder)


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


# what a method shares with whatever runs beside it -> how it is asked for, and put back
SHARED: Mapping[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch's random state": (
        lambda: torch.get_rng_state().numpy(),
        lambda kept: torch.set_rng_state(torch.from_numpy(kept)),
    ),
    "numpy's random state": (np.random.get_state, np.random.set_state),
    "Python's random state": (random.getstate, random.setstate),
    "torch's default type": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "whether gradients are kept": (torch.is_grad_enabled, torch.set_grad_enabled),
    "whether algorithms are deterministic": (
        torch.get_deterministic_debug_mode,  # with whether it only warns
        torch.set_deterministic_debug_mode,
    ),
    "the precision of products": (precision, set_precision),
    "the current folder": (current_folder, go_to),
    "environment variables": (lambda: dict(os.environ), set_environment),
}


@contextmanager
def process_as_it_was(but: Collection[str] = ()) -> Iterator[list[str]]:
    """Puts back whatever of SHARED, `but` for some, was changed inside; its names are then in what is given."""
    moved: list[str] = []
    shared = {name: one for name, one in SHARED.items() if name not in but}
    before = {name: ask() for name, (ask, _) in shared.items()}
    try:
        yield moved
    finally:
        moved += [name for name, (ask, _) in shared.items() if pickle.dumps(ask()) != pickle.dumps(before[name])]
        for name in moved:
            SHARED[name][1](before[name])


class Aside(io.TextIOBase):
    """Writes to stderr; whoever closes it closes nothing else."""

    def write(self, text: str) -> int:
        """The number of letters that were written."""
        return sys.stderr.write(text)


@contextmanager
def guarded() -> Iterator[None]:
    """Inside, code of others runs: its prints go to stderr unless people read stdout, which is for answers, and
    whatever of SHARED it changed is put back at the end, as others come after it."""
    watched = sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()
    with process_as_it_was(), nullcontext() if watched else redirect_stdout(Aside()):
        yield
