"""Write one row whole, read many, compact, verify, export: a results folder is the only thing that is kept."""

from __future__ import annotations

import hashlib
import io
import re
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from kdad_bench import files
from kdad_bench.leaderboard import measurement
from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.border import MOST_BYTES, MOST_ROWS, table_of
from kdad_bench.leaderboard.export import WRITERS
from kdad_bench.leaderboard.folder import Folder, LocalFolder, MissingFolder, StoreError, open_folder
from kdad_bench.leaderboard.picking import picked, pieces
from kdad_bench.leaderboard.reading import COMPACTED, Found, everything, load
from kdad_bench.leaderboard.row import COLUMNS, Row, plain

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Finished",
    "Problem",
    "Results",
    "StoreError",
    "Verification",
    "compact",
    "dated",
    "encoded",
    "export",
    "file_name",
    "find",
    "finished",
    "lost",
    "matching",
    "read",
    "verify",
    "write",
]

OF_ONE_JOB = re.compile(r"-s\d+-(?P<job>[0-9a-f]{16})(\.failed)?\.parquet")  # how the names of our single rows end


class Problem(NamedTuple):
    """A file, or a row of it, that was left out, and why. It is neither moved nor deleted."""

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
    with place.locked(exclusive=False):
        place.write(name, _encode([_after_others(row, place)]))
        if row.status == "ok":  # an earlier failure of the same job is history; a reader prefers the ok row anyway
            failed = name.removesuffix(".parquet") + ".failed.parquet"
            for entry in place.entries() if _exists(place, failed) else ():
                if entry.name == failed:
                    place.remove(entry)
    path = place.path(name)
    return Path(path) if isinstance(folder, Path) else path


def dated(row: Row, folder: str | Path) -> Row:
    """`row` with the date that `write` would give it there. Raises StoreError if the folder cannot be read."""
    try:
        return _after_others(row, open_folder(folder))
    except MissingFolder:
        return row


def _after_others(row: Row, place: Folder) -> Row:
    """`row`, dated after every row of its job that lies in a local folder, so that it replaces them.

    A clock that ran ahead, on another machine or once on this one, must not decide which of two results counts.
    """
    if not isinstance(place, LocalFolder):
        return row
    there = load(place, ("job_id", "created_at"), lambda name: _may_hold(name, row.job_id)).table
    dates = zip(there["job_id"].to_pylist(), there["created_at"].to_pylist(), strict=True)
    latest = max((rows.instant(date) for job, date in dates if job == row.job_id), default=rows.instant(None))
    if latest < rows.instant(row.created_at):
        return row
    after = (latest + timedelta(microseconds=1)).isoformat(timespec="microseconds")
    return row if rows.fault("created_at", after) else replace(row, created_at=after)


def _may_hold(name: str, *jobs: str) -> bool:
    """Whether a file of that name may hold a row of one of the jobs: its own, a compacted one, or one that somebody
    named."""
    found = OF_ONE_JOB.search(name)
    return found is None or found["job"] in jobs


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
        name: pa.array([plain(getattr(row, name)) for row in found], type=rows.SCHEMA.field(name).type)
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


def read(folder: str | Path, columns: Iterable[str] = COLUMNS) -> Results:
    """Every job of the folder once, `columns` only; subfolders are not looked at.

    Old files are filled up with nulls; torn, foreign and newer files are reported in `problems` and never counted. Of
    several rows of one job the ok one wins, then the newest. What rows share of a measurement of speed stands in each.

    Raises StoreError if the folder does not exist or cannot be listed.
    """
    place = open_folder(folder)
    wanted = tuple(columns)
    return _with_speed(place, load(place, (*wanted, "speed_key")), wanted)


class Finished(NamedTuple):
    """What a plan has to know of a job that has a row."""

    status: str  # "ok" or "failed"
    git_commit: str | None
    git_dirty: bool | None
    schema_version: int
    speed_key: str | None  # the measurement of speed that the row names
    preset: str
    dataset: str
    category: str
    data_fingerprint: str | None


def finished(folder: str | Path, jobs: Collection[str] | None = None) -> dict[str, Finished]:
    """job_id -> how it ended, of every readable row; empty if there is no such folder yet.

    With `jobs`, files that by their name are of none of these are not opened. Raises StoreError if there is a folder
    that cannot be listed: to start anew would be to lose what is finished.
    """
    place = open_folder(folder)
    wanted = ("job_id", *Finished._fields)
    looked_at = everything if jobs is None else lambda name: _may_hold(name, *jobs)
    try:
        table = _merge(place, load(place, wanted, looked_at), wanted).table
    except MissingFolder:
        return {}
    columns = (table[name].to_pylist() for name in Finished._fields)
    return dict(zip(table["job_id"].to_pylist(), map(Finished, *columns), strict=True))


def lost(found: Collection[Row], folder: str | Path) -> list[Row]:
    """Those of the rows that no row of their job in the folder stands for: one as good, and no older.

    Only files that may hold one are opened. Raises StoreError if there is a folder that cannot be listed.
    """
    jobs = {row.job_id for row in found}
    if not jobs:
        return []
    try:
        there = _best(load(open_folder(folder), (), lambda name: _may_hold(name, *jobs)).table)
    except MissingFolder:
        return list(found)
    return [row for row in found if row.job_id not in there or there[row.job_id][0] < _rank(row.status, row.created_at)]


def find(folder: str | Path, job: str) -> Row | None:
    """The row of the job with the id `job` that counts, wherever it lies; None without one or without a folder.

    Only the files that may hold it are opened, and a compaction meanwhile hides nothing. Raises StoreError.
    """
    place = open_folder(folder)
    try:
        found = load(place, COLUMNS, lambda name: _may_hold(name, job))
    except MissingFolder:
        return None
    for line in _merge(place, found, COLUMNS).rows():
        if line["job_id"] == job:
            return Row(**{name: _given(name, value) for name, value in line.items()})
    return None


def _given(name: str, value: Any) -> Any:
    """A value of a file as `Row` takes it: an older file has nulls where a row has empty lists and texts."""
    value = tuple(value) if isinstance(value, list) else value
    return rows.default(name) if value is None else value


def matching(folder: str | Path, beginning: str) -> list[dict[str, Any]]:
    """All columns of the rows whose job id begins so; of many, the identifying ones alone. Raises StoreError."""
    short = ("job_id", "method", "dataset", "category", "seed")
    chosen = [line for line in read(folder, short).rows() if line["job_id"].startswith(beginning)]
    if len(chosen) != 1:
        return chosen
    (job,) = (line["job_id"] for line in chosen)
    place = open_folder(folder)
    found = _with_speed(place, load(place, COLUMNS, lambda name: _may_hold(name, job)), COLUMNS)
    return [line for line in found.rows() if line["job_id"] == job]


def _with_speed(place: Folder, found: Found, columns: Iterable[str]) -> Results:
    """`_merge`, with the figures of the measurements that rows name, where a column that they fill is wanted."""
    wanted = set(columns)
    merged = _merge(place, found, {*wanted, "speed_key", "job_id"})
    if wanted.isdisjoint((*measurement.SHARED, "speed_key")):
        return replace(merged, table=merged.table.select([n for n in COLUMNS if n in wanted]))
    measured, problems = measurement.found(place)
    return replace(
        merged,
        table=measurement.joined(merged.table, measured).select([name for name in COLUMNS if name in wanted]),
        problems=(*merged.problems, *(Problem(file, what) for file, what in problems)),
    )


def _merge(place: Folder, found: Found, columns: Iterable[str]) -> Results:
    """The rows, each job once, sorted by (dataset, category, method, seed, job)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = set(columns)
    table = found.table
    winners = pa.array(_winners(table), pa.int64())
    keys = [(name, "ascending") for name in ("dataset", "category", "method", "seed", "job_id")]
    order = pc.sort_indices(table.select([name for name, _ in keys]).take(winners), sort_keys=keys)
    names = [name for name in COLUMNS if name in wanted]
    return Results(
        where=place.where,
        table=picked(table.select(names), winners.take(order)),
        problems=tuple(Problem(file.entry.name, what) for file in found.files for what in file.problems),
        superseded=table.num_rows - len(winners),
        files=len(found.files),
    )


def _winners(table: pa.Table) -> list[int]:
    """The row to keep of each job."""
    return sorted(index for _, index in _best(table).values())


def _best(table: pa.Table) -> dict[str, tuple[tuple[bool, datetime], int]]:
    """job_id -> (rank, index) of the row that counts."""
    best: dict[str, tuple[tuple[bool, datetime], int]] = {}
    columns = (table[name].to_pylist() for name in ("job_id", "status", "created_at"))
    for index, (job, status, created) in enumerate(zip(*columns, strict=True)):
        rank = _rank(status, created)
        if job not in best or rank > best[job][0]:
            best[job] = (rank, index)
    return best


def _rank(status: str, created: str | None) -> tuple[bool, datetime]:
    """Which of two rows of a job counts: ok before failed, then the newest."""
    return status == "ok", rows.instant(created)


def compact(folder: str | Path) -> tuple[int, tuple[Path | str, ...]]:
    """Put all rows into one file and delete the files they came from; returns (files replaced, the new file or none).

    More rows than a file may hold become several. Each new file is whole and on the disk before the first deletion, and
    a job that is in both counts once: a crash at any point loses nothing. Files with anything that was left out stay
    where they are. Raises StoreError.
    """
    place = open_folder(folder)
    place.entries()
    with place.locked(exclusive=True):
        found = load(place, COLUMNS, anew=True)
        merged = _merge(place, found, COLUMNS)
        sources = [file.entry for file in found.files if file.rows and not file.problems]
        place.sweep()
        if len(sources) < 2:
            return 0, ()
        written: list[str] = []
        for piece in pieces(merged.table, MOST_BYTES // 2, MOST_ROWS):
            content = encoded(piece)
            name = f"{COMPACTED}{hashlib.sha256(content).hexdigest()[:16]}.parquet"
            written.append(name)
            place.write(name, content)
            if not _reads_back(place, name, piece):
                new = set(written).difference(source.name for source in sources)
                for entry in place.entries():
                    if entry.name in new:
                        place.remove(entry)
                raise StoreError(f"{place.path(name)!r} does not read back as it was written; the folder is as it was")
        replaced = sum(place.remove(entry) for entry in sources if entry.name not in written)
    if not replaced and {source.name for source in sources}.issuperset(written):
        return 0, ()
    paths = map(place.path, written)
    return replaced, tuple(Path(path) if isinstance(folder, Path) else path for path in paths)


def encoded(table: pa.Table) -> bytes:
    """Many rows (all columns of `row.SCHEMA`) as one Parquet file: compressed, with a checksum for each page."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, row_group_size=65_536)
    return sink.getvalue()


def _reads_back(place: Folder, name: str, written: pa.Table) -> bool:
    import pyarrow as pa

    try:
        with place.open(name) as source:
            return bool(table_of(source, rows.SCHEMA).equals(written))
    except (pa.ArrowException, OSError, ValueError):
        return False


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
    """Read every column of every file with its checksums, look at each value, and count. Raises StoreError."""
    place = open_folder(folder)
    found = load(place, COLUMNS, anew=True)
    merged = _with_speed(place, found, COLUMNS)
    status = merged.table["status"].to_pylist()
    return Verification(
        where=place.where,
        files=merged.files,
        rows=found.table.num_rows,
        ok=status.count("ok"),
        failed=status.count("failed"),
        superseded=merged.superseded,
        problems=tuple(Problem(problem.file, f"left out: {problem.what}") for problem in merged.problems),
        unfinished=tuple(entry.name for entry in place.entries() if entry.unfinished),
    )


def export(folder: str | Path, path: Path, kind: str, found: Results | None = None) -> int:
    """Write all rows to `path` as "csv", "json" or "sqlite" (table `results`); returns their number.

    `found` is what `read` gave of the folder, where the caller has it. Lists are JSON text in CSV and SQLite. The file
    is put there whole. Raises StoreError; ValueError for another kind.
    """
    if kind not in WRITERS:
        raise ValueError(f"cannot export {kind!r}; have: {', '.join(WRITERS)}")
    table = (found or read(folder)).table
    if not table.num_rows:
        raise StoreError(f"{folder}: no row there; give a results folder")
    try:
        files.write_whole(path, lambda temporary: WRITERS[kind](table, temporary))
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot write {str(path)!r}: {why}; choose another place with --out") from error
    return int(table.num_rows)
