"""What a call on a GPU was found to be is kept for calls alike: a small batch takes less than the checks and plans do.

Calls are alike if they have the same options and if their tensors agree in all but where they lie. A call that is kept
goes straight to its launches; one of them that fails is forgotten and made the long way, which says what is wrong and
what runs instead. Only calls that Triton's kernels answer are kept, the latest `MOST` layouts of every op.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kdad_bench.kernels import dispatch

MOST = 64  # layouts of an op: their tables of fusion and blur lie on the device
ON = {"cuda"}  # devices: on a CPU a call takes longer than this saves
Answer = Callable[[Sequence[Tensor]], Any]
_kept: dict[str, dict[Any, Answer]] = defaultdict(dict)


def alike(options: tuple[Any, ...], tensors: Sequence[Tensor]) -> Any:
    """The key of a call; None where nothing is kept: on CPUs, and while something follows what is done."""
    if not tensors or tensors[0].device.type not in ON or dispatch.watched():
        return None
    described = [(type(t), t.shape, t.stride(), t.dtype, t.device, t.requires_grad, t.is_neg()) for t in tensors]
    return options, torch.is_grad_enabled(), os.environ.get("KDAD_KERNELS"), tuple(described)


def answer(op: str, key: Any, tensors: Sequence[Tensor]) -> Any:
    """What a call returns that is kept; None if it is not."""
    call = _kept[op].get(key) if key is not None else None
    if call is None:
        return None
    try:
        return call(tensors)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # the long way raises it again, or replaces the kernel and says why
        _kept[op].pop(key, None)
        return None


def keep(op: str, key: Any, tensors: Sequence[Tensor], plan: Callable[[], Answer]) -> None:
    """Keep the call that `plan` returns, after the long way has answered one alike by Triton."""
    if key is None or dispatch.path_of(tensors[0]) != "triton" or dispatch.broken():
        return
    calls = _kept[op]
    if len(calls) >= MOST:
        calls.pop(next(iter(calls)), None)
    calls[key] = plan()
