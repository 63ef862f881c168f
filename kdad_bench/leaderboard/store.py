"""Write one row whole, read many, compact, verify, export: a results folder is the only thing that is kept."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.folder import TEMPORARY, Entry, Folder, MissingFolder, StoreError, open_folder
from kdad_bench.leaderboard.row import COLUMNS, KEY_COLUMNS, SCHEMA_VERSION, STATUSES, Row

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Finished",
    "Problem",
    "Results",
    "StoreError",
    "Verification",
    "compact",
    "export",
    "file_name",
    "finished",
    "read",
    "verify",
    "write",
]

COMPACTED = "compacted-"
DRAWN = "leaderboard.parquet"  # written by the renderer, perhaps into the same folder: no result
ATTEMPTS = 20  # listings of a folder that other processes are rewriting


class Problem(NamedTuple):
    """A file that was left out, and why. It is neither moved nor deleted."""

    file: str
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What a folder holds: each job once, in an order that depends on nothing but the rows."""

    where: str
    table: pa.Table  # the columns asked for, in the types of SCHEMA
    problems: tuple[Problem, ...]
    superseded: int  # rows of jobs that were run again, or that a compaction has not cleared away yet
    files: int

    def rows(self) -> list[dict[str, Any]]:
        """The rows as plain dictionaries."""
        found: list[dict[str, Any]] = self.table.to_pylist()
        return found


def file_name(row: Row) -> str:
    """`<method>-<dataset>-<category>-s<seed>-<job_id>.parquet`; a failed job's ends in `.failed.parquet`.

    The two names differ so that a failure can never replace a finished result.
    """
    parts = (row.method, row.dataset, row.category, f"s{row.seed}", row.job_id)
    stem = "-".join(re.sub(r"[^A-Za-z0-9_.+]+", "_", part).strip(".") or "_" for part in parts)
    if len(stem) > 200:  # file systems stop at 255 bytes
        stem = f"{stem[:100]}-{hashlib.sha256(stem.encode()).hexdigest()[:12]}-{row.job_id[:64]}"
    return f"{stem}.failed.parquet" if row.status == "failed" else f"{stem}.parquet"


@overload
def write(row: Row, folder: Path) -> Path: ...
@overload
def write(row: Row, folder: str) -> str: ...
def write(row: Row, folder: str | Path) -> str | Path:
    """Put `row` into the folder (made if absent) as one Parquet file, whole or not at all; returns where it is.

    Any number of processes may write to one folder. Raises StoreError (disk full, read-only, unreachable).
    """
    place = open_folder(folder)
    name = file_name(row)
    content = _encode([row])
    with place.locked(exclusive=False):
        place.write(name, content)
        if row.status == "ok":  # an earlier failure of the same job is history; a reader prefers the ok row anyway
            failed = name.removesuffix(".parquet") + ".failed.parquet"
            for entry in place.entries() if _exists(place, failed) else ():
                if entry.name == failed:
                    place.remove(entry)
    path = place.path(name)
    return Path(path) if isinstance(folder, Path) else path


def _exists(place: Folder, name: str) -> bool:
    try:
        place.open(name).close()
    except OSError:
        return False
    return True


def _encode(found: Sequence[Row]) -> bytes:
    """The rows as one small Parquet file: no compression or statistics (slower for one row), checksums per page."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        name: pa.array([_plain(getattr(row, name)) for row in found], type=rows.SCHEMA.field(name).type)
        for name in COLUMNS
    }
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns, schema=rows.SCHEMA),
        sink,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _plain(value: Any) -> Any:
    """A tuple, or an array that came in its place, as a list; NumPy scalars as they are."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return value.tolist() if hasattr(value, "tolist") else list(value)


def read(folder: str | Path, columns: Iterable[str] = COLUMNS) -> Results:
    """Every job of the folder once, `columns` only; subfolders are not looked at.

    Old files are filled up with nulls; torn, foreign and newer files are reported in `problems` and never counted. Of
    several rows of one job the ok one wins, then the newest.

    Raises StoreError if the folder does not exist or cannot be listed.
    """
    place = open_folder(folder)
    wanted = tuple(columns)
    return _merge(place, _load(place, wanted), wanted)


class Finished(NamedTuple):
    """What a plan has to know of a job that has a row."""

    status: str  # "ok" or "failed"
    git_commit: str | None
    git_dirty: bool | None


def finished(folder: str | Path) -> dict[str, Finished]:
    """job_id -> how it ended, of every readable row; empty if there is no such folder yet.

    Raises StoreError if there is one that cannot be listed: to start anew would be to lose what is finished.
    """
    try:
        table = read(folder, ("job_id", *Finished._fields)).table
    except MissingFolder:
        return {}
    columns = (table[name].to_pylist() for name in Finished._fields)
    return dict(zip(table["job_id"].to_pylist(), map(Finished, *columns), strict=True))


class _Loaded(NamedTuple):
    entry: Entry
    table: pa.Table | None
    problem: str


def _load(place: Folder, columns: Iterable[str]) -> list[_Loaded]:
    """All result files of the folder. A file that vanishes while we read was compacted: list again."""
    import pyarrow as pa

    wanted = {*columns, *KEY_COLUMNS, "created_at"}
    schema = pa.schema([rows.SCHEMA.field(name) for name in COLUMNS if name in wanted])
    known: dict[Entry, _Loaded] = {}
    with ThreadPoolExecutor(place.readers) as pool:
        for _ in range(ATTEMPTS):
            listed = [entry for entry in place.entries() if _is_result(entry.name)]
            known = {entry: known[entry] for entry in listed if entry in known}
            missing = [entry for entry in listed if entry not in known]
            answers = list(pool.map(lambda entry: _load_one(place, entry, schema), missing))
            known.update((answer.entry, answer) for answer in answers if answer is not None)
            if None not in answers:
                return _checked([known[entry] for entry in listed])
    raise StoreError(f"the results folder {place.where!r} keeps changing; try again when it is at rest")


def _is_result(name: str) -> bool:
    return name.endswith(".parquet") and not name.startswith(".") and name != DRAWN


def _load_one(place: Folder, entry: Entry, schema: pa.Schema) -> _Loaded | None:
    """One file as a table with `schema`, or why it is none; None if it is gone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with place.open(entry.name) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True)
            have = set(file.schema_arrow.names)
            if not have.issuperset(KEY_COLUMNS):
                lacking = _few(set(KEY_COLUMNS) - have)
                return _Loaded(entry, None, f"not a kdad-bench result (columns missing: {lacking})")
            table = file.read([name for name in schema.names if name in have], use_threads=False)
        if not table.schema.equals(schema):
            table = _evolved(table, schema)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
        return _Loaded(entry, None, f"unreadable ({_first_line(error)})")
    return _Loaded(entry, table, "")


def _evolved(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """An older table in today's columns: absent ones are null, types are widened; raises if a value does not fit."""
    import pyarrow as pa

    have = set(table.column_names)
    arrays = [
        table[field.name].cast(field.type)
        if field.name in have
        else pa.chunked_array([pa.nulls(table.num_rows, field.type)])
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _checked(found: list[_Loaded]) -> list[_Loaded]:
    """`found` without the tables that hold no results: all at once, and one by one only if something is wrong."""
    import pyarrow as pa

    tables = [item.table for item in found if item.table is not None]
    if tables and all(table.num_rows for table in tables) and not _fault(pa.concat_tables(tables)):
        return found
    faults = [_fault(item.table) if item.table is not None else item.problem for item in found]
    return [
        item._replace(table=None if fault else item.table, problem=fault)
        for item, fault in zip(found, faults, strict=True)
    ]


def _fault(table: pa.Table) -> str:
    """Why the table holds no results, or ""."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if table.num_rows == 0:
        return "holds no row"
    if any(table[name].null_count for name in KEY_COLUMNS):
        return "not a kdad-bench result (an identity column holds nulls)"
    newest = pc.max(table["schema_version"]).as_py()
    if newest > SCHEMA_VERSION:
        return f"written by a newer kdad-bench (schema {newest}, this one reads up to {SCHEMA_VERSION}); upgrade"
    if not set(pc.unique(table["status"]).to_pylist()) <= set(STATUSES):
        return "not a kdad-bench result (unknown status)"
    try:
        table.validate(full=True)  # text that is not UTF-8 would only fail when shown
    except pa.ArrowException as error:
        return f"unreadable ({_first_line(error)})"
    return ""


def _few(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _merge(place: Folder, found: Sequence[_Loaded], columns: Iterable[str]) -> Results:
    """The tables as one, each job once, sorted by (dataset, category, method, seed, job)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = set(columns)
    names = [name for name in COLUMNS if name in wanted]
    tables = [item.table for item in found if item.table is not None]
    problems = tuple(Problem(item.entry.name, item.problem) for item in found if item.table is None)
    if not tables:
        empty = pa.schema([rows.SCHEMA.field(name) for name in names]).empty_table()
        return Results(where=place.where, table=empty, problems=problems, superseded=0, files=len(found))
    table = pa.concat_tables(tables).combine_chunks()
    chosen = table.take(pa.array(_winners(table), pa.int64()))
    keys = [(name, "ascending") for name in ("dataset", "category", "method", "seed", "job_id")]
    return Results(
        where=place.where,
        table=chosen.take(pc.sort_indices(chosen, sort_keys=keys)).select(names),
        problems=problems,
        superseded=table.num_rows - chosen.num_rows,
        files=len(found),
    )


def _winners(table: pa.Table) -> list[int]:
    """The row to keep of each job: ok before failed, then the newest."""
    best: dict[str, tuple[tuple[bool, str], int]] = {}
    columns = (table[name].to_pylist() for name in ("job_id", "status", "created_at"))
    for index, (job, status, created) in enumerate(zip(*columns, strict=True)):
        rank = (status == "ok", created or "")
        if job not in best or rank > best[job][0]:
            best[job] = (rank, index)
    return sorted(index for _, index in best.values())


def compact(folder: str | Path) -> tuple[int, Path | str | None]:
    """Put all rows into one file and delete the files they came from; returns (files replaced, the new file or None).

    The new file is whole and on the disk before the first deletion, and a job that is in both counts once: a crash at
    any point loses nothing. Unreadable files stay where they are. Raises StoreError.
    """
    import pyarrow.parquet as pq

    place = open_folder(folder)
    place.entries()
    with place.locked(exclusive=True):
        listed = place.entries()
        found = _load(place, COLUMNS)
        merged = _merge(place, found, COLUMNS)
        sources = [item.entry for item in found if item.table is not None]
        for entry in listed:
            if entry.name.startswith(TEMPORARY):  # its writer is dead: a live one would hold the lock
                place.remove(entry)
        if len(sources) < 2:
            return 0, None
        sink = io.BytesIO()
        pq.write_table(merged.table, sink, compression="zstd", write_page_checksum=True, row_group_size=65_536)
        content = sink.getvalue()
        name = f"{COMPACTED}{hashlib.sha256(content).hexdigest()[:16]}.parquet"
        place.write(name, content)
        written = Entry(name, ())
        again = _load_one(place, written, rows.SCHEMA)
        if again is None or again.table is None or not again.table.equals(merged.table):
            raise StoreError(f"{place.path(name)!r} does not read back as it was written; nothing was deleted")
        replaced = sum(place.remove(entry) for entry in sources if entry.name != name)
    path = place.path(name)
    return replaced, Path(path) if isinstance(folder, Path) else path


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a results folder holds, counted: every job once, every file either read or named in `problems`."""

    where: str
    files: int
    rows: int
    ok: int
    failed: int
    superseded: int
    problems: tuple[Problem, ...]
    unfinished: tuple[str, ...]  # writes that a crash interrupted; nobody reads them, `compact` clears them away

    @property
    def jobs(self) -> int:
        """The jobs that have a row."""
        return self.ok + self.failed

    @property
    def sound(self) -> bool:
        """Whether every result file was read and holds possible values."""
        return not self.problems


def verify(folder: str | Path) -> Verification:
    """Read every column of every file with its checksums, look at the values, and count. Raises StoreError."""
    place = open_folder(folder)
    found = _load(place, COLUMNS)
    merged = _merge(place, found, COLUMNS)
    problems = [Problem(problem.file, f"left out: {problem.what}") for problem in merged.problems]
    for item in found:
        if item.table is not None:
            problems += [
                Problem(item.entry.name, f"{what}, and counts all the same: redo the job with --force")
                for what in _impossible(item.table)
            ]
    status = merged.table["status"].to_pylist()
    return Verification(
        where=place.where,
        files=merged.files,
        rows=sum(item.table.num_rows for item in found if item.table is not None),
        ok=status.count("ok"),
        failed=status.count("failed"),
        superseded=merged.superseded,
        problems=tuple(problems),
        unfinished=tuple(entry.name for entry in place.entries() if entry.name.startswith(TEMPORARY)),
    )


def _impossible(table: pa.Table) -> list[str]:
    """Values that no job can have measured."""
    import pyarrow.compute as pc

    found = []
    for name in rows.METRICS:
        column = table[name].drop_null()
        if not len(column):
            continue
        low, high = (pc.min_max(column)[end].as_py() for end in ("min", "max"))
        if not bool(pc.all(pc.is_finite(column)).as_py()):
            found.append(f"{name} is not finite")
        elif low < 0 or (name in rows.ACCURACY and high > 1):
            found.append(f"{name} is {low if low < 0 else high}, which cannot be")
    return found


def export(folder: str | Path, path: Path, kind: str) -> int:
    """Write all rows to `path` as "csv", "json" or "sqlite" (table `results`); returns their number.

    Lists are JSON text in CSV and SQLite. The file is put there whole. Raises StoreError; ValueError for another kind.
    """
    writers = {"csv": _export_csv, "json": _export_json, "sqlite": _export_sqlite}
    if kind not in writers:
        raise ValueError(f"cannot export {kind!r}; have: {', '.join(writers)}")
    table = read(folder).table
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        writers[kind](table, temporary)
        temporary.replace(path)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {str(path)!r}: {error}; choose another place") from error
    return int(table.num_rows)


def _export_json(table: pa.Table, path: Path) -> None:
    path.write_text(json.dumps(table.to_pylist(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _export_csv(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows([_flat(value) for value in line.values()] for line in table.to_pylist())


def _export_sqlite(table: pa.Table, path: Path) -> None:
    import pyarrow as pa

    def affinity(kind: pa.DataType) -> str:
        if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            return "INTEGER"
        return "REAL" if pa.types.is_floating(kind) else "TEXT"

    columns = ", ".join(f'"{field.name}" {affinity(field.type)}' for field in table.schema)
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute(f"CREATE TABLE results ({columns}, PRIMARY KEY (job_id))")
        marks = ", ".join("?" * table.num_columns)
        base.executemany(
            f"INSERT INTO results VALUES ({marks})",
            ([_flat(value) for value in line.values()] for line in table.to_pylist()),
        )


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
