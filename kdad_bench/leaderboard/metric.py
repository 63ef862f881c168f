"""What a job measures: one entry per figure, from which the row's columns, the tables, `show` and the docs are drawn.

A new metric is one entry here and the code that computes it; nothing else has to be touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

ACCURACIES, COSTS = "accuracy", "cost"  # the two sections of `show`


class Metric(NamedTuple):
    """One figure of a row."""

    section: str  # ACCURACIES or COSTS
    label: str
    what: str  # its meaning, in words
    computed: str  # the function it comes from
    unit: str = ""  # "" for a ratio in [0, 1], or a count
    higher_is_better: bool | None = True  # None: a fact beside another figure, never compared
    type: str = "double"  # its Parquet type
    heading: str = ""  # of a table's column, where shorter than the label
    digits: int = 4  # after the point, in the table of all jobs
    tables: tuple[str, ...] = ()  # of the pages that show it: headline, ranked, speed, ranking, jobs, end

    @property
    def short(self) -> str:
        """The heading of a table's column."""
        return self.heading or self.label


_IMAGE, _PIXEL = "metrics.exact.image_metrics", "metrics.exact.pixel_metrics"
_FINER = "metrics.finer.ap_by_size"
_TRUST = "harness.trust.figures_of"
_RUN, _TIMES, _ALONE = "harness.run.run", "harness.speed.figures_of", "harness.cost.one_thread"


def _seconds(label: str, what: str, **more: object) -> Metric:
    return Metric(COSTS, label, what, _RUN, "s", False, digits=1, **more)  # type: ignore[arg-type]


# name of the column -> the figure, in the order of the row
MEASURED: Mapping[str, Metric] = MappingProxyType({
    "image_auroc": Metric(
        ACCURACIES, "image AUROC", "image AUROC by the method's own score", _IMAGE,
        tables=("headline", "ranked", "jobs", "end"),
    ),
    "image_ap": Metric(ACCURACIES, "image AP", "image average precision", _IMAGE),
    "image_f1_max": Metric(ACCURACIES, "image F1-max", "largest image F1 over all thresholds", _IMAGE),
    "image_auroc_max": Metric(
        ACCURACIES, "image AUROC (map maximum)", "image AUROC by the maximum of the map", _IMAGE
    ),
    "pixel_auroc": Metric(
        ACCURACIES, "pixel AUROC", "pixel AUROC over all test images", _PIXEL, tables=("headline", "jobs", "end")
    ),
    "pixel_ap": Metric(ACCURACIES, "pixel AP", "pixel average precision", _PIXEL),
    "pixel_f1_max": Metric(ACCURACIES, "pixel F1-max", "largest pixel F1 over all thresholds", _PIXEL),
    "aupro_30": Metric(
        ACCURACIES, "AUPRO@0.3", "AUPRO up to a false positive rate of 0.3", _PIXEL,
        tables=("headline", "ranked", "jobs", "end"),
    ),
    "aupro_05": Metric(ACCURACIES, "AUPRO@0.05", "AUPRO up to a false positive rate of 0.05", _PIXEL),
    "pixel_ap_small": Metric(
        ACCURACIES, "pixel AP, small defects", "pixel AP of the third of the regions with the smallest area", _FINER
    ),
    "pixel_ap_middle": Metric(
        ACCURACIES, "pixel AP, middle defects", "pixel AP of the third of the regions with a middle area", _FINER
    ),
    "pixel_ap_large": Metric(
        ACCURACIES, "pixel AP, large defects", "pixel AP of the third of the regions with the largest area", _FINER
    ),
    "aupimo": Metric(
        ACCURACIES, "AUPIMO", "mean overlap of an image at false positive rates of normal images of 1e-5 to 1e-4",
        "metrics.finer.aupimo",
    ),
    "au_spro_05": Metric(
        ACCURACIES, "AU-sPRO@0.05", "saturated AUPRO up to a false positive rate of 0.05, mean over kinds of anomalies",
        "metrics.finer.au_spro",
    ),
    "seg_f1": Metric(
        ACCURACIES, "SegF1", "pixel F1 at mean + 3 standard deviations of unseen normal pixels", "metrics.finer.seg_f1"
    ),
    "pg2": Metric(
        ACCURACIES, "PG2", "share of the normal images below a threshold that misses at most 2 % of the anomalous ones",
        "metrics.alarms.presorted",
    ),
    "pb2": Metric(
        ACCURACIES, "PB2", "share of the anomalous images above a threshold with at most 2 % of the normal ones",
        "metrics.alarms.presorted",
    ),
    "false_alarm_floor": Metric(
        ACCURACIES, "smallest false-alarm rate", "the smallest rate that its n unseen normal images support, 1/(n + 1)",
        _TRUST, higher_is_better=None,
    ),
    "false_alarms": Metric(
        ACCURACIES, "false alarms", "share of the normal test images above the threshold for a false-alarm rate of 0.1",
        _TRUST, higher_is_better=None,
    ),
    "false_alarms_low": Metric(
        ACCURACIES, "false alarms, from", "lower end of its 95 % interval by Clopper and Pearson", _TRUST,
        higher_is_better=None,
    ),
    "false_alarms_high": Metric(
        ACCURACIES, "false alarms, to", "upper end of the same", _TRUST, higher_is_better=None
    ),
    "detected": Metric(
        ACCURACIES, "detected", "share of the anomalous test images above that threshold", _TRUST, higher_is_better=None
    ),
    "normals_p": Metric(
        ACCURACIES, "p of equal normals",
        "p of the exact Kolmogorov-Smirnov test on scores of unseen normals and of normal test images", _TRUST,
        higher_is_better=None,
    ),
    "train_seconds": _seconds(
        "training", "seconds to learn", heading="train s", tables=("speed", "ranking", "jobs", "end")
    ),
    "data_seconds": _seconds("data", "seconds to load images"),
    "score_seconds": _seconds("scoring", "seconds to score the test images"),
    "metric_seconds": _seconds("metrics", "seconds to compute the metrics"),
    "total_seconds": _seconds("total", "seconds of the whole job"),
    "latency_ms": Metric(
        COSTS, "ms/image", "median ms per image at batch 1, map and score", _TIMES, "ms", False, digits=2,
        tables=("speed", "ranking", "jobs", "end"),
    ),
    "latency_p95_ms": Metric(
        COSTS, "ms/image (95th percentile)", "95th percentile of the same", _TIMES, "ms", False,
        heading="p95", digits=2, tables=("alone",),
    ),
    "latency_p99_ms": Metric(
        COSTS, "ms/image (99th percentile)", "99th percentile of the same", _TIMES, "ms", False,
        heading="p99", digits=2, tables=("alone",),
    ),
    "first_latency_ms": Metric(
        COSTS, "first image, ms", "ms of the very first image, cold: what is made on first use included", _TIMES,
        "ms", False, heading="first", digits=2, tables=("alone",),
    ),
    "network_latency_ms": Metric(
        COSTS, "networks only, ms/image", "median ms at batch 1, networks only", _TIMES, "ms", False,
        heading="networks only", digits=2, tables=("speed",),
    ),
    "images_per_second": Metric(
        COSTS, "images/s", "throughput at the best batch", _TIMES, "1/s", digits=1,
        tables=("speed", "ranking", "jobs", "end"),
    ),
    "best_batch": Metric(
        COSTS, "best batch", "the batch of that throughput", _TIMES, higher_is_better=None, type="int32"
    ),
    "one_thread_latency_ms": Metric(
        COSTS, "one thread, ms/image", "median ms per image at batch 1 with one CPU thread", _ALONE, "ms", False,
        heading="one thread", digits=2, tables=("alone",),
    ),
    "one_thread_latency_p95_ms": Metric(
        COSTS, "one thread, ms/image (95th percentile)", "95th percentile of the same", _ALONE, "ms", False, digits=2
    ),
    "one_thread_latency_p99_ms": Metric(
        COSTS, "one thread, ms/image (99th percentile)", "99th percentile of the same", _ALONE, "ms", False, digits=2
    ),
    "one_thread_images_per_second": Metric(
        COSTS, "one thread, images/s", "throughput at batch 8 with one CPU thread", _ALONE, "1/s", digits=1
    ),
    "speed_load": Metric(
        COSTS, "other load", "share of the processors that other work held while speed was measured alone", _TIMES,
        higher_is_better=None,
    ),
    "peak_memory_mb": Metric(
        COSTS, "peak memory", "peak memory, 10^6 bytes", "harness.clock.peak_memory", "MB", False,
        heading="peak MB", digits=0, tables=("speed", "ranking"),
    ),
    "parameters": Metric(
        COSTS, "parameters", "weights of all networks", _RUN, "", False, "int64", digits=0,
        tables=("speed", "ranking"),
    ),
    "trainable_parameters": Metric(
        COSTS, "trainable parameters", "weights that were learnt", _RUN, "", False, "int64",
        heading="learnt", digits=0, tables=("speed",),
    ),
    "gflops": Metric(
        COSTS, "GFLOP/image", "10^9 floating-point operations per image", "harness.cost.operations", "GFLOP", False,
        heading="GFLOP", digits=2, tables=("speed",),
    ),
    "batch_invariance": Metric(
        ACCURACIES, "batch invariance",
        "largest difference of a map or an image score between batch 1 and batch N, of the first 4 test images",
        "harness.scoring.batch_invariance", higher_is_better=None,
    ),
})  # fmt: skip

# what can be compared: a figure of which more is better, or less
METRICS: Mapping[str, Metric] = MappingProxyType(
    {name: metric for name, metric in MEASURED.items() if metric.higher_is_better is not None}
)
ACCURACY: tuple[str, ...] = tuple(name for name, metric in METRICS.items() if metric.section == ACCURACIES)


def shown_in(table: str) -> tuple[str, ...]:
    """The metrics that a table of the pages shows, in the order of the row."""
    return tuple(name for name, metric in METRICS.items() if table in metric.tables)


HEADLINE = shown_in("headline")
RANKED = shown_in("ranked")  # detection and localisation, one metric each
