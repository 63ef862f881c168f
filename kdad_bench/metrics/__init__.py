"""Anomaly maps and scores in, numbers out: exact metrics, their formulas and the index of defect regions.

Importing this and evaluating arrays takes numpy alone; torch is needed for tensors, scipy to find regions.
"""

from __future__ import annotations

from kdad_bench.metrics.alarms import PRESORTED, clopper_pearson, two_sample_p
from kdad_bench.metrics.curves import AUPRO_LIMITS, FINER, IMAGE_METRICS, PIXEL_METRICS, MetricError
from kdad_bench.metrics.exact import all_finite, check_finite, image_metrics, mask_conflicts, pixel_metrics
from kdad_bench.metrics.finer import Finer, every_pixel_metric, threshold_of
from kdad_bench.metrics.regions import RegionIndex, Saturated, region_index

__all__ = [
    "AUPRO_LIMITS",
    "FINER",
    "IMAGE_METRICS",
    "PIXEL_METRICS",
    "PRESORTED",
    "Finer",
    "MetricError",
    "RegionIndex",
    "Saturated",
    "all_finite",
    "check_finite",
    "clopper_pearson",
    "every_pixel_metric",
    "image_metrics",
    "mask_conflicts",
    "pixel_metrics",
    "region_index",
    "threshold_of",
    "two_sample_p",
]
