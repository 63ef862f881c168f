"""Tensors with canaries on both sides, to catch reads and writes beyond them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

PAD = 64  # elements on each side
CANARY = 12345.0


def span(t: Tensor) -> int:
    """Elements from the first to the last of a view."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0


def between_nans(t: Tensor) -> Tensor:
    """A copy of `t`, strides and all, in a buffer of NaN: whoever reads beyond it gets NaN into its result."""
    buffer = torch.full((span(t) + 2 * PAD,), torch.nan, dtype=t.dtype, device=t.device)
    copy = buffer.as_strided(t.shape, t.stride(), PAD)
    copy.copy_(t)
    return copy


class Guards:
    """Replaces torch's allocators of uninitialised tensors by ones that leave canaries around what they return."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.watched: list[tuple[Tensor, Tensor]] = []
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
            monkeypatch.setattr(owner, name, self.guarding(getattr(owner, name)))

    def guarding(self, allocate: Any) -> Any:
        def guarded(*arguments: Any, **options: Any) -> Tensor:
            plain = allocate(*arguments, **options)
            if not plain.is_floating_point():
                return plain
            buffer = torch.full((span(plain) + 2 * PAD,), CANARY, dtype=plain.dtype, device=plain.device)
            view = buffer.as_strided(plain.shape, plain.stride(), PAD)
            self.watched.append((buffer, view))
            return view

        return guarded

    def check(self) -> None:
        """Fails if a canary was overwritten."""
        for buffer, view in self.watched:
            end = PAD + span(view)
            expected = torch.full((), CANARY, dtype=buffer.dtype)
            assert bool((buffer[:PAD] == expected).all()), "written before the start of a tensor"
            assert bool((buffer[end:] == expected).all()), "written beyond the end of a tensor"
