"""The course of a fit: which images each step learns from and what its chance is, functions of the settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from kdad_bench.methods.training.chance import chance


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """Steps in all, their batches and their chance."""

    images: int  # that are learnt from
    size: int  # of a batch
    per_epoch: int  # steps
    total: int  # steps
    seed: int

    def chosen(self, step: int) -> Tensor:
        """int64 [B]: the images of step `step` (from 1). Every epoch is a new order, a function of seed and epoch."""
        epoch, position = divmod(step - 1, self.per_epoch)
        order = torch.randperm(self.images, generator=chance(self.seed, "order", epoch))
        return order[position * self.size : (position + 1) * self.size]

    def generator(self, step: int) -> torch.Generator:
        """All chance of a step's loss."""
        return chance(self.seed, "augmentation", step)


class Drawing(Protocol):
    """What a loss draws for a step on the CPU, apart from its method: it can be pickled and done in another process."""

    def __call__(self, chosen: Tensor, generator: torch.Generator, step: int) -> Any:
        """Numpy arrays and plain values for the images `chosen` (int64 [B]) of step `step` (from 1).

        They depend on the fields and arguments alone; `generator` is the step's, before anything was drawn.
        """
        ...
