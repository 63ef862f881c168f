"""The ground floor: discrepancy, scale fusion and smoothing, forward and backward. Tensors in, tensors out."""

from __future__ import annotations

from kdad_bench.kernels import ops as _ops  # registers torch.ops.kdad
from kdad_bench.kernels.discrepancy import (
    attention_weighting,
    attention_weightings,
    distillation_loss,
    dual_discrepancies,
    dual_discrepancy,
    dual_distillation_loss,
    flattened_cosine,
    pixel_discrepancies,
    pixel_discrepancy,
)
from kdad_bench.kernels.dispatch import path
from kdad_bench.kernels.fusion import anomaly_map, fuse_scales, gaussian_blur, image_scores
from kdad_bench.kernels.layers import depthwise_same, inference_conv, norm_clamp, pointwise_norm_clamp
from kdad_bench.kernels.neighbours import nearest

__all__ = [
    "anomaly_map",
    "attention_weighting",
    "attention_weightings",
    "depthwise_same",
    "distillation_loss",
    "dual_discrepancies",
    "dual_discrepancy",
    "dual_distillation_loss",
    "flattened_cosine",
    "fuse_scales",
    "gaussian_blur",
    "image_scores",
    "inference_conv",
    "nearest",
    "norm_clamp",
    "path",
    "pixel_discrepancies",
    "pixel_discrepancy",
    "pointwise_norm_clamp",
]

del _ops
