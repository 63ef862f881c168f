"""Rows of many small files as they were read before, packed into one file of the cache folder.

A file of a results folder costs milliseconds to open and to check, and a folder may hold thousands of one row each. A
row is taken from here only where its file has the stamp that it had, by code that checks rows as it did; `verify` and
`compact` look at the files themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kdad_bench.files import CacheError, cache_folder, write_bytes_whole
from kdad_bench.leaderboard import border, metric, text
from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.folder import Entry, Folder

if TYPE_CHECKING:
    import pyarrow as pa

LEAST = 200  # files to read one by one, from which on it pays
MOST = 100_000  # rows that are kept
FOLDERS = 16  # results folders whose rows are kept
NAME, STAMP = "of the file", "stamp of the file"  # columns beside those of a row
CODE = b"kdad-bench checks"  # key of the metadata that says which code checked the rows


def taken(place: Folder, entries: Sequence[Entry], schema: pa.Schema) -> tuple[list[Entry], pa.Table]:
    """Those of `entries` whose row is packed, and a table with `schema` of one row for each, in the same order."""
    import pyarrow as pa

    try:
        table = _read(_path(place), [*schema.names, NAME, STAMP])
    except (CacheError, OSError, ValueError, LookupError, pa.ArrowException):  # none yet, damaged, or of other code
        return [], schema.empty_table()
    there = {key: index for index, key in enumerate(_keys(table))}
    found = [(entry, there[key]) for entry in entries if (key := _key(entry)) in there]
    chosen = table.select(schema.names).take(pa.array([index for _, index in found], pa.int64()))
    return [entry for entry, _ in found], chosen.cast(schema)


def keep(place: Folder, entries: Sequence[Entry], table: pa.Table) -> None:
    """Pack the rows of `table`, which has all columns: one for each of `entries`, in the same order.

    They stand for the folder: what was packed of it before is replaced. Best effort: without a cache nothing is kept.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not 0 < len(entries) <= MOST:
        return
    beside = [(NAME, [entry.name for entry in entries]), (STAMP, [json.dumps(entry.stamp) for entry in entries])]
    for name, values in beside:
        table = table.append_column(pa.field(name, pa.string()), pa.array(values, pa.string()))
    sink = io.BytesIO()
    marked = table.replace_schema_metadata({**(table.schema.metadata or {}), CODE: _code()})
    pq.write_table(marked, sink, compression="zstd", compression_level=1, write_page_checksum=True)
    with contextlib.suppress(CacheError, OSError):
        path = _path(place)
        write_bytes_whole(path, sink.getvalue())
        _forget(path.parent)


def _read(path: Path, names: list[str]) -> pa.Table:
    """Columns of a packed file; raises ValueError where other code wrote it, KeyError where columns are missing."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if (file.schema_arrow.metadata or {}).get(CODE) != _code():
            raise ValueError(f"{path}: packed by other code")
        return file.read(names).select(names)


def _keys(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table[NAME].to_pylist(), table[STAMP].to_pylist(), strict=True))


def _key(entry: Entry) -> tuple[str, str]:
    return entry.name, json.dumps(entry.stamp)


def _path(place: Folder) -> Path:
    """Where rows of the folder are packed; raises CacheError without a cache folder."""
    where = place.where if "://" in place.where else os.path.realpath(place.where)
    return cache_folder() / "rows" / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:24]}.parquet"


@cache
def _code() -> bytes:
    """What checks rows, and their columns: other code might find other faults."""
    sources = [Path(str(module.__file__)) for module in (border, rows, metric, text)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest().encode()


def _forget(folder: Path) -> None:
    """Delete what was packed longest ago, so that a few folders stay."""
    for old in sorted(folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime)[:-FOLDERS]:
        old.unlink(missing_ok=True)
