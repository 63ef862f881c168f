"""How far a student is from its teacher: per pixel, per sample, as a loss; forward and backward."""

from __future__ import annotations

from kdad_bench.kernels.reference import (
    attention_weighting,
    distillation_loss,
    dual_discrepancy,
    dual_distillation_loss,
    flattened_cosine,
    pixel_discrepancy,
)

__all__ = [
    "attention_weighting",
    "distillation_loss",
    "dual_discrepancy",
    "dual_distillation_loss",
    "flattened_cosine",
    "pixel_discrepancy",
]
