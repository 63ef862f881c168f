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
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "the precision of products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
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
