"""What speed was measured alone: one file for each configuration, whose figures all rows that name it share.

Speed depends neither on the category nor on the seed, and beside running jobs it would be that of a busy machine. So it
is measured once for each method with its settings on a machine, and joined to the rows when they are read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.folder import Folder, MissingFolder, open_folder
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1  # of these files
MOST_BYTES = 16_000_000  # of one of them
MOST_COVERED = 1_000_000  # rows that one of them speaks for
KEY = re.compile(r"[0-9a-f]{16}")
NAME = re.compile(r"speed-.*\.json")
# calls behind a percentile: of fewer it is no more than the slowest
CALLS_OF_TAIL = {"latency_p95_ms": 20, "latency_p99_ms": 100}
# the columns of a row that a measurement fills, each of them or none
SHARED: tuple[str, ...] = (
    "latency_ms", "latency_p95_ms", "latency_p99_ms", "first_latency_ms", "network_latency_ms", "images_per_second",
    "best_batch", "one_thread_latency_ms", "one_thread_latency_p95_ms", "one_thread_latency_p99_ms",
    "one_thread_images_per_second", "speed_load", "speed_threads", "latency_samples_ms", "throughput",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """The speed of one configuration on one machine. Raises ValueError for a value that cannot be.

    `covers` holds the ids of rows that name no measurement and have figures of their own which this one replaces.
    """

    key: str  # 16 hex digits: hash of everything that speed depends on
    created_at: str  # ISO 8601, UTC
    method: str
    title: str
    configuration: Mapping[str, Any]  # what the key is the hash of
    how: str  # what the timed model had learnt
    figures: Mapping[str, Any]  # column -> value; columns of SHARED
    covers: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        why = next(_faults(self), "")
        if why:
            raise ValueError(f"measurement {printable(str(self.key))[:40]!r}: {why}")

    @property
    def file_name(self) -> str:
        """`speed-<method>-<key>.json`."""
        return f"speed-{re.sub(r'[^A-Za-z0-9_.+]+', '_', self.method)[:100]}-{self.key}.json"

    @property
    def content(self) -> bytes:
        """The file."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _faults(made: Measurement) -> Iterator[str]:
    """What is wrong with a measurement, in words that follow its name."""
    texts = {name: getattr(made, name) for name in ("key", "created_at", "method", "title", "how")}
    for name, value in texts.items():
        column = name if name == "created_at" else "reason"
        why = rows.fault(column, value) if value is not None else "is missing"
        if why:
            yield f"{name} {why}"
    if isinstance(made.key, str) and not KEY.fullmatch(made.key):
        yield "its key is not 16 hex digits"
    for name in ("configuration", "figures", "environment"):
        if not isinstance(getattr(made, name), Mapping):
            yield f"{name} is no object"
            return
    for name, value in made.figures.items():
        why = rows.fault(name, list(value) if isinstance(value, tuple) else value) if name in SHARED else "is none"
        if why:
            yield f"figure {printable(str(name))[:60]} {why}"
    if len(made.covers) > MOST_COVERED or not all(isinstance(job, str) for job in made.covers):
        yield "covers is no list of job ids"


def write(made: Measurement, folder: str | Path) -> str:
    """Put `made` into the results folder as one file, whole or not at all; returns where. Raises StoreError."""
    place = open_folder(folder)
    with place.locked(exclusive=False):
        place.write(made.file_name, made.content)
    return place.path(made.file_name)


def read(folder: str | Path) -> dict[str, Measurement]:
    """key -> measurement of the results folder; empty if there is none yet. Raises StoreError."""
    try:
        return found(open_folder(folder))[0]
    except MissingFolder:
        return {}


def found(place: Folder) -> tuple[dict[str, Measurement], list[tuple[str, str]]]:
    """(key -> its newest measurement, (file, why it is left out) of those that are none). Raises StoreError."""
    newest: dict[str, Measurement] = {}
    problems = []
    for entry in place.entries():
        if not NAME.fullmatch(entry.name):
            continue
        try:
            made = _read(place, entry.name)
        except FileNotFoundError:  # replaced meanwhile under another name, or deleted
            continue
        except (OSError, ValueError, TypeError, RecursionError) as error:
            why = printable((str(error).splitlines() or [type(error).__name__])[0])[:200]
            problems.append((entry.name, f"unreadable measurement ({why})"))
            continue
        if made.key not in newest or _age(made) > _age(newest[made.key]):
            newest[made.key] = made
    return newest, problems


def _age(made: Measurement) -> tuple[datetime, str]:
    """What sorts measurements from the oldest to the newest."""
    return rows.instant(made.created_at), made.key


def _read(place: Folder, name: str) -> Measurement:
    with place.open(name) as source:
        content = source.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES} bytes")
    said = json.loads(bytes(content).decode("utf-8"))
    if not isinstance(said, dict):
        raise ValueError("no object")
    if type(said.get("version", VERSION)) is not int:
        raise ValueError(f"version {str(said['version'])[:20]!r} is no whole number")
    if said.get("version", VERSION) > VERSION:
        raise ValueError(f"version {said['version']}, this kdad-bench reads up to {VERSION}; upgrade")
    known = {one.name for one in fields(Measurement)}
    if set(said) != known:
        raise ValueError(f"not the fields {', '.join(sorted(known))}")
    if not isinstance(said["covers"], list):
        raise ValueError("covers is no list of job ids")
    return Measurement(**{**said, "covers": tuple(said["covers"])})


def joined(table: pa.Table, measured: Mapping[str, Measurement]) -> pa.Table:
    """`table` (with `speed_key` and `job_id`) with the figures of `measured` in the rows that name them or are covered.

    A row that names a measurement which is not there has no figures; one that names none and is not covered keeps its
    own. Covered rows name their measurement afterwards: of several that cover one the newest, which was made with other
    versions or on other cores.
    """
    import pyarrow as pa

    covering = {job: made for made in sorted(measured.values(), key=_age) for job in made.covers}
    keys = table["speed_key"].to_pylist()
    pairs = zip(keys, table["job_id"].to_pylist(), strict=True)
    shared = [measured.get(key) if key else covering.get(job) for key, job in pairs]
    if not any(keys) and not any(shared):
        return table
    for name in (name for name in table.column_names if name in (*SHARED, "speed_key")):
        values = [
            own if made is None else made.key if name == "speed_key" else figure_of(made, name)
            for own, made in zip(table[name].to_pylist(), shared, strict=True)
        ]
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    return table


def figure_of(made: Measurement, name: str) -> Any:
    """A figure as a column takes it: a percentile of enough calls only, floats where JSON writes 1.0 as 1."""
    value, calls = made.figures.get(name), made.figures.get("latency_samples_ms")
    if name in CALLS_OF_TAIL and calls is not None and len(calls) < CALLS_OF_TAIL[name]:
        return None
    return [float(entry) for entry in value] if name == "latency_samples_ms" and value is not None else value


def measured_alone(row: Mapping[str, Any]) -> bool:
    """Whether a row has figures of a measurement that it names."""
    return bool(row.get("speed_key")) and any(row.get(name) is not None for name in SHARED)


def distinct(members: Sequence[Mapping[str, Any]], column: str) -> list[Any]:
    """The values of `column` in `members`, what they share of one measurement once; none of those without a value.

    Where something was measured alone, what jobs timed as they ran, with their own number of threads and beside others,
    does not count.
    """
    return [row[column] for row in telling(members, column)]


def telling(members: Sequence[Mapping[str, Any]], column: str) -> list[Mapping[str, Any]]:
    """The rows of `members` whose values of `column` are those of `distinct`, one for each value."""
    alone = column in SHARED and any(map(measured_alone, members))
    once: dict[str, Mapping[str, Any]] = {}
    for row in members:
        key = row.get("speed_key") if alone else row["job_id"]
        if key and row.get(column) is not None:
            once.setdefault(key, row)
    return list(once.values())
