"""From discrepancy maps to an anomaly map: upsample, fuse, blur, score."""

from __future__ import annotations

from kdad_bench.kernels.reference import anomaly_map, fuse_scales, gaussian_blur, image_scores

__all__ = ["anomaly_map", "fuse_scales", "gaussian_blur", "image_scores"]
