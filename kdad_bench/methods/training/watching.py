"""A look at a method in the middle of its training, of which the training notices nothing."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training.chance import seeded

LOOKS = 20  # at a training: official codes that choose on test images evaluate each 10 of 200 epochs


def due(step: int, total: int, fitting: Fitting) -> bool:
    """Whether `fitting.watch` is to be told of step `step` (from 1) of `total`; it is always told of the last one."""
    every = fitting.watch_every or -(-total // LOOKS)
    return fitting.watch is not None and (step % every == 0 or step == total)


def show(method: Any, step: int, fitting: Fitting) -> None:
    """Hand `fitting.watch` a copy of `method` in eval mode.

    The copy has weights, buffers and modes of its own, all but the frozen teacher's; what it does to torch's random
    state is undone.
    """
    if fitting.watch is None:
        return
    with seeded(method.settings.seed, method.device):
        copy = deepcopy(method, {id(method.teacher): method.teacher})
        copy.student.eval()
        fitting.watch(step, copy)
