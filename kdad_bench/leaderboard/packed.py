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
import stat
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from kdad_bench.files import cache_folder, sweep, write_whole
from kdad_bench.leaderboard.folder import Entry, Folder
from kdad_bench.leaderboard.picking import picked

if TYPE_CHECKING:
    import pyarrow as pa

LEAST = 200  # files to read one by one, from which on it pays
MOST = 100_000  # rows that are kept
MOST_BYTES = 1_000_000_000  # of their files: all that is in them is held at once
FOLDERS = 16  # results folders whose rows are kept
NAME, STAMP = "of the file", "stamp of the file"  # columns beside those of a row
CODE = b"kdad-bench checks"  # key of the metadata that says which code checked the rows
FOLDER = b"kdad-bench folder"  # key of the one that says whose they are
SOURCES = ("parquet", "text", *(f"leaderboard/{name}" for name in ("border", "metric", "packed", "reading", "row")))


def worth_it(entries: Sequence[Entry]) -> bool:
    """Whether rows of so many files are worth packing, and can be: there is a cache that takes them."""
    try:
        many = LEAST <= len(entries) <= MOST and sum(entry.size for entry in entries) <= MOST_BYTES
        return many and bool(_code()) and os.access(_home(), os.W_OK | os.X_OK)
    except _troubles():
        return False


def taken(place: Folder, entries: Sequence[Entry], schema: pa.Schema) -> tuple[list[Entry], pa.Table]:
    """Those of `entries` whose row is packed, and a table with `schema` of one row for each, in the same order."""
    try:
        table = _read(_path(_where(place)), [*schema.names, NAME, STAMP])
        there = {key: index for index, key in enumerate(_keys(table))}
        found = [(entry, there[key]) for entry in entries if (key := _key(entry)) in there]
        chosen = picked(table.select(schema.names), [index for _, index in found])
        return [entry for entry, _ in found], chosen.cast(schema)
    except _troubles():  # none yet, damaged, or of other code
        return [], schema.empty_table()


def keep(place: Folder, single: Mapping[Entry, int], table: pa.Table) -> None:
    """Pack rows of `table`, which has all columns: for each file of one row, where its row is.

    They stand for the folder: what was packed of it before is replaced. Best effort: without a cache nothing is kept.
    Nobody else can read them, as the results folder may be private too.
    """
    if 0 < len(single) <= MOST:
        try:
            where = _where(place)
            path, content = _path(where), _content(where, single, table)
            sweep(path.parent)
            _hide(path.parent)
            write_whole(path, lambda temporary: _write_privately(temporary, content))
            _forget(path.parent)
        except _troubles():
            return


def _troubles() -> tuple[type[Exception], ...]:
    """What may be wrong with a cache, and is no reason to read less of the folder itself."""
    import pyarrow as pa

    return OSError, ValueError, LookupError, MemoryError, pa.ArrowException


def _content(where: str, single: Mapping[Entry, int], table: pa.Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = picked(table, list(single.values()))
    names, stamps = zip(*map(_key, single), strict=True)
    table = table.append_column(NAME, pa.array(names, pa.binary()))
    table = table.append_column(STAMP, pa.array(stamps, pa.string()))
    marks = {CODE: _code(), FOLDER: os.fsencode(where)}
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({**(table.schema.metadata or {}), **marks}),
        sink,
        compression="zstd",
        compression_level=1,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _hide(home: Path) -> None:
    """Take the packs that earlier versions left to everybody from everybody: a file that is replaced keeps its mode."""
    for pack in home.glob("*.parquet"):
        with contextlib.suppress(OSError):  # another user's
            mode = pack.lstat().st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                pack.chmod(0o600)


def _write_privately(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def _read(path: Path, names: list[str]) -> pa.Table:
    """Columns of a packed file; raises ValueError where other code wrote it, KeyError where columns are missing."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        if (file.schema_arrow.metadata or {}).get(CODE) != _code():
            raise ValueError(f"{path}: packed by other code")
        return file.read(names).select(names)


def _keys(table: pa.Table) -> list[tuple[bytes, str]]:
    return list(zip(table[NAME].to_pylist(), table[STAMP].to_pylist(), strict=True))


def _key(entry: Entry) -> tuple[bytes, str]:
    """A file as it is named in a pack: its name need not be text."""
    return entry.name.encode("utf-8", "surrogatepass"), json.dumps(entry.stamp)


def _where(place: Folder) -> str:
    """The folder's URL, or its path without links."""
    return place.where if "://" in place.where else os.path.realpath(place.where)


def _home() -> Path:
    """The folder for packs, made if it is missing; raises CacheError and OSError without one."""
    home = cache_folder() / "rows"
    home.mkdir(exist_ok=True)
    return home


def _path(where: str) -> Path:
    """Where rows of a folder are packed; raises as `_home`."""
    return _home() / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:24]}.parquet"


@cache
def _code() -> bytes:
    """What checks rows, and their columns: other code might find other faults. Raises OSError where no source is."""
    package = resources.files("kdad_bench")
    sources = [package.joinpath(f"{name}.py").read_bytes() for name in SOURCES]
    return hashlib.sha256(b"".join(sources)).hexdigest().encode()


def _forget(home: Path) -> None:
    """Delete packs of folders that are gone, and what was packed longest ago, so that a few folders stay."""
    packs = sorted(home.glob("*.parquet"), key=lambda path: path.stat().st_mtime)
    gone = [path for path in packs if not _has_a_folder(path)]
    left = [path for path in packs if path not in gone]
    for old in (*gone, *left[:-FOLDERS]):
        old.unlink(missing_ok=True)


def _has_a_folder(pack: Path) -> bool:
    """Whether the folder whose rows these are is there, as far as can be told."""
    import pyarrow.parquet as pq

    try:
        where = os.fsdecode((pq.read_schema(pack).metadata or {})[FOLDER])
    except _troubles():
        return True
    return "://" in where or os.path.isdir(where)
