"""The sums behind the pixel metrics on a GPU, by Triton's kernels where they run."""

from __future__ import annotations

import importlib

from torch import Tensor

from kdad_bench.kernels import dispatch
from kdad_bench.kernels.counting import NotFinite

OP = "ranks"


def sums(
    flat: Tensor, places: Tensor, others: Tensor | None, weights: Tensor, size: int, limits: tuple[float, float]
) -> tuple[float, ...] | None:
    """The sums of AUROC and AP, the largest F1 and the AUPRO sums of both `limits`; None where no kernel runs.

    `flat` [N] float32 or float64, the scores of all pixels, of which `size` are sorted at a time; `places` [P] int32 or
    int64, where the positives are, and `weights` [P] float64, their 1/|region|; `others` [N - P], where the negatives
    are, or None: then all pixels are sorted in their place, which pays if few are positive. 0 < P < N. Raises
    NotFinite.
    """
    if dispatch.path(flat.device) != "triton" or OP in dispatch.broken() or len(places) >= 2**31:
        return None
    kernels = importlib.import_module("kdad_bench.kernels.ranks_triton")  # imports triton: only when it is used
    found: tuple[float, ...] | None = dispatch.attempted(
        OP, kernels.sums, flat, places, others, weights, size, limits, meant=(NotFinite,)
    )
    return found
