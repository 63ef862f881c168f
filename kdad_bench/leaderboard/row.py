"""One row per job: its columns, what each may hold, and the history of the schema."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard.metric import ACCURACY, MEASURED
from kdad_bench.leaderboard.text import is_printable, printable

if TYPE_CHECKING:
    import pyarrow as pa

    SCHEMA: pa.Schema

SCHEMA_VERSION = 7
# version -> what changed. A reader accepts every version up to its own: columns that a file lacks are null.
SCHEMA_HISTORY: Mapping[int, str] = MappingProxyType(
    {
        1: "The first published schema.",
        2: "Column `deviations`: where a source settles something and the run does otherwise.",
        3: "Columns `origin`, of results only judged here, and `code_sha256`, of methods from outside the package.",
        4: "Columns `family`, by which entrants are also ranked apart, and `speed_key`: speed is measured once per "
        "configuration, alone, and shared; more of its figures.",
        5: "Finer pixel metrics: `pixel_ap_small`, `_middle` and `_large`, `aupimo`, `au_spro_05`, `seg_f1`.",
        6: "Columns `k_shot`, `contamination` and `corruption`: where a job stands on the axes.",
        7: "Columns `also_presets`, the other presets of a method whose job this is as well, `setting`, "
        "`learnt_together` and `weights_sha256`, of one model for several categories, and `fit`, `tile` and "
        "`tile_overlap`: how an image comes to the resolution, and tiles. How far thresholds can "
        "be trusted: `normal_scores`, `false_alarm_floor`, `false_alarms` with its interval, `detected`, "
        "`normals_p`; `pg2` and `pb2`.",
    }
)

# what jobs measure since version 7; older rows, and those of before it was settled, lack all of it
SINCE_7 = (
    "pg2", "pb2", "false_alarm_floor", "false_alarms", "false_alarms_low", "false_alarms_high", "detected", "normals_p",
)  # fmt: skip

VERSION_KEY = b"kdad_bench.schema_version"  # in the metadata of a file

STATUSES = ("ok", "failed")
EXTERNAL = "external, protocol not verified"  # origin of a row whose maps other code made
UNAVAILABLE = "unavailable"  # source and hash of a teacher's weights that could not be had: such a job fails
# What makes a row one of ours: a Parquet file without these columns is foreign.
KEY_COLUMNS = ("job_id", "schema_version", "method", "dataset", "category", "seed", "preset", "status")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _is(type_name: str, what: str) -> dict[str, str]:
    """Field metadata: the column's Parquet type and its meaning."""
    return {"type": type_name, "what": what}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """Which job a row is of, and what was run."""

    # identity
    job_id: str = field(metadata=_is("string", "hash of everything that can change the result"))
    schema_version: int = field(default=SCHEMA_VERSION, metadata=_is("int32", "version of this schema"))
    protocol_version: str | None = field(default=None, metadata=_is("string", "version of the evaluation protocol"))
    created_at: str = field(default_factory=_now, metadata=_is("string", "when the row was made, ISO 8601, UTC"))
    method: str = field(metadata=_is("string", "registered name of the method"))
    title: str | None = field(default=None, metadata=_is("string", "name of the method in tables"))
    family: str | None = field(
        default=None, metadata=_is("string", "family of the method: floor, yardstick or student-teacher")
    )
    dataset: str = field(
        metadata=_is("string", "name of the data set as `list datasets` has it, with :PATH where it takes one")
    )
    category: str = field(metadata=_is("string", "category of the data set"))
    seed: int = field(metadata=_is("int64", "seed of the job, set before the model is built"))
    preset: str = field(
        metadata=_is("string", "quick, standard or paper, what was changed in brackets; external: maps of other code")
    )
    also_presets: tuple[str, ...] = field(
        default=(),
        metadata=_is("list<string>", "other presets of the method with the same settings: the job is theirs as well"),
    )
    modality: str = field(default="rgb", metadata=_is("string", "what the method sees: rgb, depth, ..."))
    status: str = field(default="ok", metadata=_is("string", "ok or failed"))
    reason: str | None = field(default=None, metadata=_is("string", "why the job failed; null when ok"))
    origin: str | None = field(
        default=None,
        metadata=_is("string", f"null: a run of this benchmark; '{EXTERNAL}': maps of other code, only judged here"),
    )
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
    deviations: tuple[str, ...] = field(
        default=(),
        metadata=_is("list<string>", "where a source settles it and this run differs: 'field: value (source)'"),
    )
    code_sha256: str | None = field(
        default=None, metadata=_is("string", "SHA-256 of the code of a method from outside the package")
    )
    variant: str | None = field(
        default=None, metadata=_is("string", "named variant of the method; null for the default")
    )
    settings: str = field(default="{}", metadata=_is("string", "all settings of the method, JSON"))
    data_fingerprint: str | None = field(default=None, metadata=_is("string", "content hash of the category's files"))
    synthetic: bool = field(default=False, metadata=_is("bool", "the data are procedurally generated"))
    train_images: int | None = field(default=None, metadata=_is("int32", "normal images learnt from"))
    test_images: int | None = field(default=None, metadata=_is("int32", "images evaluated"))
    # where the job stands on the axes
    k_shot: int | None = field(
        default=None, metadata=_is("int32", "training images that --train-images asked for; null: all there are")
    )
    contamination: float | None = field(
        default=None, metadata=_is("double", "share of the images learnt from that is defective; null: not asked for")
    )
    corruption: str | None = field(
        default=None, metadata=_is("string", "NAME:LEVEL of the test images' corruption; null: as they are")
    )
    # one model for several categories
    setting: str | None = field(
        default=None, metadata=_is("string", "multi-class: one model for several categories; null: one for each")
    )
    learnt_together: tuple[str, ...] = field(
        default=(), metadata=_is("list<string>", "'category=fingerprint' of all that such a model has learnt from")
    )
    weights_sha256: str | None = field(
        default=None, metadata=_is("string", "SHA-256 of such a model's weights, which its categories share")
    )
    # how the job sees an image
    fit: str | None = field(
        default=None,
        metadata=_is("string", "proportions kept: short-side or pad; null: squeezed into a square of the resolution"),
    )
    tile: int | None = field(
        default=None, metadata=_is("int32", "side of the tiles that the method sees, px; null: whole images")
    )
    tile_overlap: int | None = field(
        default=None, metadata=_is("int32", "least overlap of windows, px; null: a quarter of one, where there are any")
    )


# One column per figure of the table in metric.py. A checker of types sees the base as Any: it takes any of their names.
_Measured: Any = make_dataclass(
    "_Measured",
    [
        (name, "float | None", field(default=None, metadata=_is(metric.type, metric.what)))
        for name, metric in MEASURED.items()
    ],
    bases=(_Job,),
    frozen=True,
    kw_only=True,
    slots=True,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row(_Measured, _Job):  # type: ignore[misc]
    """What one job leaves behind. A column that was not measured is None, never a made-up number.

    Characters that do not show as themselves are written as escapes. Raises ValueError for an unknown status, a failed
    row without a reason, an ok row with one, and a value outside of what its column may hold (`fault`): a broken
    measurement is a failed job, not a cell to average.
    """

    # raw measurements, from which the others can be derived again
    image_scores: tuple[float, ...] = field(default=(), metadata=_is("list<float>", "score of each test image"))
    image_labels: tuple[bool, ...] = field(default=(), metadata=_is("list<bool>", "true: the image is anomalous"))
    image_names: tuple[str, ...] = field(default=(), metadata=_is("list<string>", "name of each test image"))
    normal_scores: tuple[float, ...] = field(
        default=(), metadata=_is("list<float>", "scores of normal images that nothing was learnt from, ascending")
    )
    latency_samples_ms: tuple[float, ...] = field(default=(), metadata=_is("list<float>", "every timed call"))
    throughput: tuple[Mapping[str, float], ...] = field(
        default=(),
        metadata=_is("list<struct<batch:int32,images_per_second:double>>", "images/s by batch"),
    )
    losses: str = field(default="[]", metadata=_is("string", "loss terms by step, JSON"))
    # the measurement of speed that this row shares with others; it fills these columns when rows are read
    speed_key: str | None = field(
        default=None, metadata=_is("string", "the shared measurement of speed; null: this job's own, if any")
    )
    speed_threads: int | None = field(
        default=None, metadata=_is("int32", "CPU threads of the shared measurement, its one-thread figures aside")
    )
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
        for name, kind, _ in describe():
            if kind in ("string", "list<string>"):
                object.__setattr__(self, name, _cleaned(getattr(self, name)))
        if self.status not in STATUSES:
            raise ValueError(f"row {self.job_id!r}: status {self.status!r} is not one of {', '.join(STATUSES)}")
        if self.status == "failed" and not self.reason:
            raise ValueError(f"row {self.job_id!r}: a failed row needs its reason")
        if self.status == "ok" and self.reason:
            raise ValueError(f"row {self.job_id!r}: status is ok but a reason is given: {self.reason!r}")
        for name in COLUMNS:
            why = fault(name, plain(getattr(self, name)))
            if why:
                remedy = "; record the job as failed instead" if name in MEASURED else ""
                raise ValueError(f"row {self.job_id!r}: {name} {why}{remedy}")

    @classmethod
    def failed(cls, *, reason: str, **columns: Any) -> Row:
        """The row of a job that did not finish: `reason` in one line, and whatever else is known about the job."""
        line = " ".join(reason.split()) or "unknown"
        return cls(
            status="failed", reason=line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} ...", **columns
        )


COLUMNS: tuple[str, ...] = tuple(f.name for f in dataclasses.fields(Row))


def default(name: str) -> Any:
    """What column `name` of a row is if nobody says; None for a column that must be given."""
    value = _DEFAULTS[name]
    return None if value is dataclasses.MISSING else value


def instant(date: str | None) -> datetime:
    """The moment that `created_at` names, UTC where it names no zone; long ago without one. Texts of one moment differ
    by zone, and do not sort as moments do."""
    found = datetime.fromisoformat(date or "1970-01-01")
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def describe() -> list[tuple[str, str, str]]:
    """(column, Parquet type, meaning) of every column, in order."""
    return list(_DESCRIBED)


# ---- what a column may hold: the same rules when a row is made and when one is read

LONGEST_REASON = 2000  # characters; an exception may bring a whole log
LONGEST = {"string": 20_000, "json": 4_000_000, "list": 1_000_000}  # characters, characters, entries
DEEPEST = 50  # brackets within brackets of JSON
LARGEST = 1e12  # of a cost: a thousand times what any machine can show
MOST_FLOAT = 3.4028234663852886e38  # of scores and what maps differ by: beyond it float32 has no number
ROUNDING = 1e-9  # by which a ratio of sums may pass 1
JSON: Mapping[str, type] = MappingProxyType({"settings": dict, "environment": dict, "losses": list})
_JOB_ID = re.compile(r"[\w+-][\w.+@-]{0,199}")  # it names files
_INTEGERS = {"int32": 2**31 - 1, "int64": 2**63 - 1}


def fault(name: str, value: Any) -> str:
    """Why column `name` cannot hold `value` (None: null; a list: a list), in words that follow the column; or ""."""
    if value is None:
        return "holds nulls" if name in KEY_COLUMNS else ""
    kind = _TYPES[name]
    if name in MEASURED:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return _wrong_figure(name, value) if number else f"is no number: {_few(value)}"
    if kind == "double":
        share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
        return "" if share else f"is {_few(value)}, not a share from 0 to 1"
    if kind.startswith("list<"):
        return _wrong_list(kind, value)
    if kind == "string":
        return _wrong_text(name, value)
    if kind == "bool":
        return "" if isinstance(value, bool) else f"is no truth value: {_few(value)}"
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _INTEGERS[kind]:
        return f"is {_few(value)}, not a whole number from 0 to {_INTEGERS[kind]}"
    return ""


def _wrong_figure(name: str, value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}"
    most = 1 + ROUNDING if name in ACCURACY else _INTEGERS.get(_TYPES[name], LARGEST)
    most = MOST_FLOAT if name == "batch_invariance" else most
    if not 0 <= value <= most:  # a whole number of JSON may be beyond what a float holds
        return f"is {f'{value:g}' if abs(value) <= MOST_FLOAT else _few(value)}, which cannot be"
    return "" if _TYPES[name] == "double" or value == int(value) else f"is {value:g}, not a whole number"


def _wrong_list(kind: str, value: Any) -> str:
    if not isinstance(value, (list, tuple)):
        return f"is no list: {_few(value)}"
    if len(value) > LONGEST["list"]:
        return f"has {len(value)} entries; {LONGEST['list']} are the most"
    what = kind[len("list<") : -1]
    for entry in value:
        if what == "string":
            why = _wrong_text("", entry) if entry is not None else "holds nulls"
        elif what == "bool":
            why = "" if isinstance(entry, bool) else "holds something else than true and false"
        elif what == "float":
            number = isinstance(entry, (int, float)) and not isinstance(entry, bool) and abs(entry) <= MOST_FLOAT
            why = "" if number else f"holds {_few(entry)}"
        else:
            why = "" if _is_point(entry) else f"holds {_few(entry)}"
        if why:
            return why
    return ""


def _is_point(entry: Any) -> bool:
    """Whether it is one point of the throughput curve."""
    if not isinstance(entry, Mapping) or set(entry) != {"batch", "images_per_second"}:
        return False
    batch, speed = entry["batch"], entry["images_per_second"]
    numbers = isinstance(batch, int) and isinstance(speed, (int, float)) and bool not in (type(batch), type(speed))
    return numbers and 0 < batch < 2**31 and 0 <= speed <= LARGEST


def _wrong_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return f"is no text: {_few(value)}"
    longest = LONGEST["json" if name in JSON else "string"]
    if len(value) > longest:
        return f"is {len(value)} characters long; {longest} are the most"
    if not is_printable(value):
        return f"has characters that do not show: {_few(value)}"
    if name == "status" and value not in STATUSES:
        return f"has the unknown status {_few(value)}"
    if name == "method" and ":" in value.removeprefix("external:"):
        return f"has a colon, which stands before a variant: {_few(value)}"
    if name == "job_id" and not _JOB_ID.fullmatch(value):
        return f"is no id: {_few(value)}"
    if name == "created_at" and not _is_date(value):
        return f"is no date: {_few(value)}"
    return _wrong_json(value, JSON[name]) if name in JSON else ""


def _is_date(value: str) -> bool:
    try:
        return 2000 <= datetime.fromisoformat(value).year < 2200
    except ValueError:
        return False


def _wrong_json(value: str, kind: type) -> str:
    depth = 0
    for bracket in re.findall(r"[\[{\]}]", value):
        depth += 1 if bracket in "[{" else -1
        if depth > DEEPEST:
            return f"is JSON nested more than {DEEPEST} deep"
    try:
        found = json.loads(value or "{}")
    except ValueError:
        return f"is no JSON: {_few(value)}"
    return "" if isinstance(found, kind) or not value else f"is JSON, but no {kind.__name__}: {_few(value)}"


def _few(value: Any) -> str:
    """A value, shortened, as it may stand in a message."""
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:60]}..."


def plain(value: Any) -> Any:
    """A tuple, or an array that came in its place, as a list; a NumPy scalar as Python's own."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return value.tolist() if hasattr(value, "tolist") else list(value)


def _cleaned(value: Any) -> Any:
    """Text, or each text of a list, with what does not show written as escapes."""
    if isinstance(value, str):
        return printable(value)
    if not isinstance(value, (tuple, list)):
        return value
    return tuple(printable(entry) if isinstance(entry, str) else entry for entry in value)


_DESCRIBED = tuple((f.name, f.metadata["type"], f.metadata["what"]) for f in dataclasses.fields(Row))
_DEFAULTS = {f.name: f.default for f in dataclasses.fields(Row)}
_TYPES = {name: kind for name, kind, _ in _DESCRIBED}


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
    metadata = {VERSION_KEY: str(SCHEMA_VERSION)}
    return pa.schema([pa.field(name, types[kind]) for name, kind, _ in describe()], metadata=metadata)


def __getattr__(name: str) -> Any:
    """`SCHEMA`, made on first use: a `Row` can be built without loading pyarrow."""
    if name == "SCHEMA":
        made = globals()["SCHEMA"] = _schema()
        return made
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
