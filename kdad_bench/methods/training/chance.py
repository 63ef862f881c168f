"""Chance that is a function of the seed, so that a fit repeats bit for bit, resumed or not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's random state is a function of `seed` inside, and what it was before outside."""
    devices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    deterministic = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng(devices=devices):
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        try:
            torch.manual_seed(seed)
            yield
        finally:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic


def chance(seed: int, purpose: str, index: int) -> torch.Generator:
    """A CPU generator that is a function of its three arguments, so that a resumed fit needs no generator's state."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
