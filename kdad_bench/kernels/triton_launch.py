"""What every Triton launch goes through: a plan made once per layout of its tensors, and the device of the tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch


class Plan(NamedTuple):
    """A launch but for its tensors: how many programs, which numbers, which constants and options."""

    programs: int
    numbers: tuple[Any, ...]
    constants: dict[str, Any]


def guard(device: torch.device) -> AbstractContextManager[Any]:
    """Makes `device` current: Triton launches on the current device, whatever the tensors say."""
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(device)


def launch(kernel: Any, plan: Plan, *tensors: Any) -> None:
    """Launch `plan` on the device of the first tensor; no program, no launch. Every launch goes through here."""
    if plan.programs:
        first = tensors[0][0] if isinstance(tensors[0], tuple) else tensors[0]
        with guard(first.device):
            kernel[(plan.programs,)](*tensors, *plan.numbers, **plan.constants)
