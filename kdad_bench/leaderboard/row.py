"""One row per job: its columns, their units, which way is better, and the history of the schema."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

    SCHEMA: pa.Schema

SCHEMA_VERSION = 1
# version -> what changed. A reader accepts every version up to its own: columns that a file lacks are null.
SCHEMA_HISTORY: Mapping[int, str] = MappingProxyType({1: "The first published schema."})

STATUSES = ("ok", "failed")
# What makes a row one of ours: a Parquet file without these columns is foreign.
KEY_COLUMNS = ("job_id", "schema_version", "method", "dataset", "category", "seed", "preset", "status")


class Metric(NamedTuple):
    """How a number is shown and compared."""

    unit: str  # "" for a ratio in [0, 1]
    higher_is_better: bool
    label: str


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "image_auroc": Metric("", True, "image AUROC"),
        "image_ap": Metric("", True, "image AP"),
        "image_f1_max": Metric("", True, "image F1-max"),
        "image_auroc_max": Metric("", True, "image AUROC (map maximum)"),
        "pixel_auroc": Metric("", True, "pixel AUROC"),
        "pixel_ap": Metric("", True, "pixel AP"),
        "pixel_f1_max": Metric("", True, "pixel F1-max"),
        "aupro_30": Metric("", True, "AUPRO@0.3"),
        "aupro_05": Metric("", True, "AUPRO@0.05"),
        "train_seconds": Metric("s", False, "training"),
        "data_seconds": Metric("s", False, "data"),
        "score_seconds": Metric("s", False, "scoring"),
        "metric_seconds": Metric("s", False, "metrics"),
        "total_seconds": Metric("s", False, "total"),
        "latency_ms": Metric("ms", False, "ms/image"),
        "latency_p95_ms": Metric("ms", False, "ms/image (95th percentile)"),
        "network_latency_ms": Metric("ms", False, "networks only, ms/image"),
        "images_per_second": Metric("1/s", True, "images/s"),
        "peak_memory_mb": Metric("MB", False, "peak memory"),
        "parameters": Metric("", False, "parameters"),
        "trainable_parameters": Metric("", False, "trainable parameters"),
        "gflops": Metric("GFLOP", False, "GFLOP/image"),
    }
)
ACCURACY: tuple[str, ...] = tuple(name for name in METRICS if name.split("_")[0] in ("image", "pixel", "aupro"))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _is(type_name: str, what: str) -> dict[str, str]:
    """Field metadata: the column's Parquet type and its meaning."""
    return {"type": type_name, "what": what}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one job leaves behind. A column that was not measured is None, never a made-up number.

    Raises ValueError for an unknown status, a failed row without a reason, an ok row with one, and a metric that is not
    finite: a broken measurement is a failed job, not a cell to average.
    """

    # identity
    job_id: str = field(metadata=_is("string", "hash of everything that can change the result"))
    schema_version: int = field(default=SCHEMA_VERSION, metadata=_is("int32", "version of this schema"))
    protocol_version: str | None = field(default=None, metadata=_is("string", "version of the evaluation protocol"))
    created_at: str = field(default_factory=_now, metadata=_is("string", "when the row was made, ISO 8601, UTC"))
    method: str = field(metadata=_is("string", "registered name of the method"))
    title: str | None = field(default=None, metadata=_is("string", "name of the method in tables"))
    dataset: str = field(metadata=_is("string", "mvtec_ad, mvtec_3d_ad, folder:PATH or synthetic"))
    category: str = field(metadata=_is("string", "category of the data set"))
    seed: int = field(metadata=_is("int64", "seed of the job, set before the model is built"))
    preset: str = field(metadata=_is("string", "quick or paper"))
    modality: str = field(default="rgb", metadata=_is("string", "what the method sees: rgb, depth, ..."))
    status: str = field(default="ok", metadata=_is("string", "ok or failed"))
    reason: str | None = field(default=None, metadata=_is("string", "why the job failed; null when ok"))
    # what was run
    teacher: str | None = field(default=None, metadata=_is("string", "teacher network; null for a method without one"))
    teacher_weights: str | None = field(default=None, metadata=_is("string", "where the teacher's weights came from"))
    teacher_sha256: str | None = field(default=None, metadata=_is("string", "SHA-256 of the teacher's weights"))
    resolution: int | None = field(default=None, metadata=_is("int32", "side of the evaluated maps, pixels"))
    image_size: int | None = field(default=None, metadata=_is("int32", "side of the square the networks see, pixels"))
    steps: int | None = field(default=None, metadata=_is("int64", "optimiser steps done"))
    batch_size: int | None = field(default=None, metadata=_is("int32", "training batch"))
    precision: str | None = field(default=None, metadata=_is("string", "fp32, bf16 or fp16 autocast of the networks"))
    readings: tuple[str, ...] = field(
        default=(), metadata=_is("list<string>", "settings that no source settles: 'field: what was chosen'")
    )
    variant: str | None = field(
        default=None, metadata=_is("string", "named variant of the method; null for the default")
    )
    settings: str = field(default="{}", metadata=_is("string", "all settings of the method, JSON"))
    data_fingerprint: str | None = field(default=None, metadata=_is("string", "content hash of the category's files"))
    synthetic: bool = field(default=False, metadata=_is("bool", "the data are procedurally generated"))
    train_images: int | None = field(default=None, metadata=_is("int32", "normal images learnt from"))
    test_images: int | None = field(default=None, metadata=_is("int32", "images evaluated"))
    # accuracy
    image_auroc: float | None = field(default=None, metadata=_is("double", "image AUROC by the method's own score"))
    image_ap: float | None = field(default=None, metadata=_is("double", "image average precision"))
    image_f1_max: float | None = field(default=None, metadata=_is("double", "largest image F1 over all thresholds"))
    image_auroc_max: float | None = field(default=None, metadata=_is("double", "image AUROC by the maximum of the map"))
    pixel_auroc: float | None = field(default=None, metadata=_is("double", "pixel AUROC over all test images"))
    pixel_ap: float | None = field(default=None, metadata=_is("double", "pixel average precision"))
    pixel_f1_max: float | None = field(default=None, metadata=_is("double", "largest pixel F1 over all thresholds"))
    aupro_30: float | None = field(default=None, metadata=_is("double", "AUPRO up to a false positive rate of 0.3"))
    aupro_05: float | None = field(default=None, metadata=_is("double", "AUPRO up to a false positive rate of 0.05"))
    # cost
    train_seconds: float | None = field(default=None, metadata=_is("double", "seconds to learn"))
    data_seconds: float | None = field(default=None, metadata=_is("double", "seconds to load images"))
    score_seconds: float | None = field(default=None, metadata=_is("double", "seconds to score the test images"))
    metric_seconds: float | None = field(default=None, metadata=_is("double", "seconds to compute the metrics"))
    total_seconds: float | None = field(default=None, metadata=_is("double", "seconds of the whole job"))
    latency_ms: float | None = field(
        default=None, metadata=_is("double", "median ms per image at batch 1, map and score")
    )
    latency_p95_ms: float | None = field(default=None, metadata=_is("double", "95th percentile of the same"))
    network_latency_ms: float | None = field(
        default=None, metadata=_is("double", "median ms at batch 1, networks only")
    )
    images_per_second: float | None = field(default=None, metadata=_is("double", "throughput at the best batch"))
    best_batch: int | None = field(default=None, metadata=_is("int32", "the batch of that throughput"))
    peak_memory_mb: float | None = field(default=None, metadata=_is("double", "peak memory, 10^6 bytes"))
    parameters: int | None = field(default=None, metadata=_is("int64", "weights of all networks"))
    trainable_parameters: int | None = field(default=None, metadata=_is("int64", "weights that were learnt"))
    gflops: float | None = field(default=None, metadata=_is("double", "10^9 floating-point operations per image"))
    batch_invariance: float | None = field(
        default=None, metadata=_is("double", "largest difference of a map between batch 1 and batch N")
    )
    # raw measurements, from which the others can be derived again
    image_scores: tuple[float, ...] = field(default=(), metadata=_is("list<float>", "score of each test image"))
    image_labels: tuple[bool, ...] = field(default=(), metadata=_is("list<bool>", "true: the image is anomalous"))
    image_names: tuple[str, ...] = field(default=(), metadata=_is("list<string>", "name of each test image"))
    latency_samples_ms: tuple[float, ...] = field(default=(), metadata=_is("list<float>", "every timed call"))
    throughput: tuple[Mapping[str, float], ...] = field(
        default=(),
        metadata=_is("list<struct<batch:int32,images_per_second:double>>", "images/s by batch"),
    )
    losses: str = field(default="[]", metadata=_is("string", "loss terms by step, JSON"))
    # where
    device: str | None = field(default=None, metadata=_is("string", "cpu or cuda"))
    device_name: str | None = field(default=None, metadata=_is("string", "name of the processor or card"))
    threads: int | None = field(default=None, metadata=_is("int32", "CPU threads of the job"))
    python: str | None = field(default=None, metadata=_is("string", "version of Python"))
    torch: str | None = field(default=None, metadata=_is("string", "version of PyTorch"))
    triton: str | None = field(default=None, metadata=_is("string", "version of Triton"))
    numpy: str | None = field(default=None, metadata=_is("string", "version of NumPy"))
    kdad_bench: str | None = field(default=None, metadata=_is("string", "version of kdad-bench"))
    platform: str | None = field(default=None, metadata=_is("string", "operating system"))
    git_commit: str | None = field(default=None, metadata=_is("string", "commit of the source tree"))
    git_dirty: bool | None = field(default=None, metadata=_is("bool", "the tree had uncommitted changes"))
    environment: str = field(default="{}", metadata=_is("string", "everything else about the machine, JSON"))

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"row {self.job_id!r}: status {self.status!r} is not one of {', '.join(STATUSES)}")
        if self.status == "failed" and not self.reason:
            raise ValueError(f"row {self.job_id!r}: a failed row needs its reason")
        if self.status == "ok" and self.reason:
            raise ValueError(f"row {self.job_id!r}: status is ok but a reason is given: {self.reason!r}")
        for name in METRICS:
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"row {self.job_id!r}: {name} is {value}; record the job as failed instead")

    @classmethod
    def failed(cls, *, reason: str, **columns: Any) -> Row:
        """The row of a job that did not finish: `reason` in one line, and whatever else is known about the job."""
        return cls(status="failed", reason=" ".join(reason.split()) or "unknown", **columns)


COLUMNS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Row))
# The large ones: a table of results is drawn without them.
RAW_COLUMNS = (
    "image_scores",
    "image_labels",
    "image_names",
    "latency_samples_ms",
    "throughput",
    "losses",
    "environment",
)
TABLE_COLUMNS: tuple[str, ...] = tuple(name for name in COLUMNS if name not in RAW_COLUMNS)


def describe() -> list[tuple[str, str, str]]:
    """(column, Parquet type, meaning) of every column, in order."""
    return [(f.name, f.metadata["type"], f.metadata["what"]) for f in dataclasses.fields(Row)]


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "list<string>": pa.list_(pa.string()),
        "list<bool>": pa.list_(pa.bool_()),
        "list<float>": pa.list_(pa.float32()),
        "list<struct<batch:int32,images_per_second:double>>": pa.list_(
            pa.struct([("batch", pa.int32()), ("images_per_second", pa.float64())])
        ),
    }
    metadata = {"kdad_bench.schema_version": str(SCHEMA_VERSION)}
    return pa.schema([pa.field(name, types[kind]) for name, kind, _ in describe()], metadata=metadata)


def __getattr__(name: str) -> Any:
    """`SCHEMA`, made on first use: a `Row` can be built without loading pyarrow."""
    if name == "SCHEMA":
        made = globals()["SCHEMA"] = _schema()
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
