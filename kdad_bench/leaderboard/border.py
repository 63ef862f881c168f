"""The border where rows come in: columns and values are checked once, and what cannot be a row stays outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard import row as rows
from kdad_bench.leaderboard.row import KEY_COLUMNS, SCHEMA_VERSION
from kdad_bench.leaderboard.text import printable
from kdad_bench.parquet import chunks, chunks_of_many, surely_fits, unpacked_bytes

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS = 1_000_000  # of one file
MOST_BYTES = 2_000_000_000  # of the columns that are read of one file, unpacked
MOST_BYTES_OF_A_ROW = 200_000_000  # the same of a file that holds one
NAMED = 3  # bad rows of one file that are named one by one


class Foreign(ValueError):
    """A file that holds no rows of ours; the message says why."""


def table_of(source: pa.NativeFile, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` of a Parquet file, in its types: absent ones are null, numbers are widened.

    Its footer is looked at first: our columns, each once, in sizes that fit the memory.
    Raises Foreign, and what pyarrow raises for a file that is none.
    """
    import pyarrow.parquet as pq

    file = pq.ParquetFile(source, page_checksum_verification=True)
    single = file.metadata.num_rows == 1
    if single:  # thousands of such files are opened: what is read tells as much of its columns as the footer
        _refuse_swollen(source, set(schema.names), 1)
        table = file.read(schema.names, use_threads=False)
        if table.num_rows and table.schema.equals(schema):  # what the file lacks is left out
            return table
    there = file.schema_arrow
    _refuse_foreign(there.metadata or {}, there.names, file.metadata.num_rows)
    if not single:
        _refuse_swollen(source, set(schema.names), file.metadata.num_rows)
        table = file.read(schema.names, use_threads=False)
    return evolved(table, schema)


def _refuse_swollen(source: pa.NativeFile, names: set[str], number_of_rows: int) -> None:
    """Raises Foreign where the columns `names` of so many rows hold more values than lists may have, or more than fits
    the memory."""
    single = number_of_rows == 1
    most = MOST_BYTES_OF_A_ROW if single else MOST_BYTES
    if single and surely_fits(source, rows.LONGEST["list"], most):
        return
    told = chunks_of_many(source, names) if single else chunks(source, names)
    entries: Counter[str] = Counter()
    for chunk in told:
        entries[chunk.path] += chunk.values
    for path, number in entries.items():
        name = path.partition(".")[0]
        if number > number_of_rows * rows.LONGEST["list"]:
            raise Foreign(f"column {name} has {number} entries; {rows.LONGEST['list']} are the most of a row")
    if unpacked_bytes(source, told, names, most) > most:
        raise Foreign(f"unpacks to more than {most // 10**6} MB")


def _refuse_foreign(metadata: Mapping[bytes, bytes], have: Sequence[str], number: int) -> None:
    """Raises Foreign for a file of a newer version, without our columns or with one of them twice, or without rows."""
    version = metadata.get(rows.VERSION_KEY, b"0")
    if version.isdigit() and int(version[:9]) > SCHEMA_VERSION:
        raise Foreign(_newer(int(version[:9])))
    lacking = set(KEY_COLUMNS).difference(have)
    if lacking:
        raise Foreign(f"not a kdad-bench result (columns missing: {_few(lacking)})")
    doubled = {name for name in have if have.count(name) > 1} if len(set(have)) < len(have) else set()
    if doubled:
        raise Foreign(f"not a kdad-bench result (column {_few(doubled)} stands there twice)")
    if number == 0:
        raise Foreign("holds no row")
    if number > MOST_ROWS:
        raise Foreign(f"holds {number} rows; {MOST_ROWS} are the most of one file")


def evolved(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """An older table, or one of fewer columns, in those of `schema`; raises Foreign if a value does not fit."""
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    have = set(table.column_names)
    arrays = [
        _cast(table[field.name], field) if field.name in have else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    import pyarrow as pa

    if not _alike(column.type, field.type):
        raise Foreign(f"column {field.name} has the type {str(column.type)[:60]}, not {field.type}")
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise Foreign(f"column {field.name}: {first_line(error)}") from error


def _alike(have: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether values of type `have` may stand for `wanted`: text for text, a number for a number, a list for a list."""
    import pyarrow.types as kinds

    if have.equals(wanted) or kinds.is_null(have):
        return True
    if kinds.is_dictionary(have):
        return _alike(have.value_type, wanted)
    if kinds.is_list(wanted):
        return (kinds.is_list(have) or kinds.is_large_list(have)) and _alike(have.value_type, wanted.value_type)
    if kinds.is_string(wanted):
        return bool(kinds.is_large_string(have) or kinds.is_string_view(have))
    if kinds.is_floating(wanted):
        return bool(kinds.is_floating(have) or kinds.is_integer(have))
    return bool(kinds.is_integer(wanted) and kinds.is_integer(have)) or bool(
        kinds.is_struct(wanted) and kinds.is_struct(have)
    )


def faults(table: pa.Table) -> dict[int, str]:
    """index of a row -> `column NAME: why` for the rows that cannot be (columns as in `row.SCHEMA`)."""
    found: dict[int, str] = {}
    for index, version in enumerate(_values(table["schema_version"])):
        if isinstance(version, int) and version > SCHEMA_VERSION:
            found[index] = _newer(version)
    for name in table.column_names:
        for index, why in _faults_of(name, table[name]):
            found.setdefault(index, f"column {name} {why}")
    if {"status", "reason"} <= set(table.column_names):
        pairs = zip(_values(table["status"]), _values(table["reason"]), strict=True)
        for index, (status, reason) in enumerate(pairs):
            if index not in found and (status == "failed") != bool(reason):
                found[index] = f"column reason is {reason!r} of a job with status {status}"
    return found


def _faults_of(name: str, column: pa.ChunkedArray) -> Iterable[tuple[int, str]]:
    """(index, why) of the values that column `name` cannot hold."""
    if _surely_sound(name, column):
        return ()
    if str(column.type).startswith("list<"):
        return _faults_of_lists(name, column)
    values = _values(column)
    bad = {value: why for value in set(values) if (why := rows.fault(name, value))}
    return [(index, bad[value]) for index, value in enumerate(values) if value in bad]


def _faults_of_lists(name: str, column: pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """The same of a column of lists, two million entries at once as Python's own and none of one that is too long."""
    import numpy as np
    import pyarrow.compute as pc

    most = rows.LONGEST["list"]
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    long = lengths > most
    parts = np.cumsum(np.where(long, most, lengths), dtype=np.int64) // most
    starts = np.flatnonzero((np.diff(parts, prepend=-1) > 0) | long | np.roll(long, 1))
    for start, end in pairwise([*starts.tolist(), len(lengths)]):
        if long[start]:
            yield start, f"has {lengths[start]} entries; {most} are the most"
            continue
        for index, value in enumerate(_values(column.slice(start, end - start)), start):
            if why := rows.fault(name, value):
                yield index, why


def _surely_sound(name: str, column: pa.ChunkedArray) -> bool:
    """Whether a look at the whole column is enough: its extremes, or each of its different texts, can be."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if column.null_count and name in KEY_COLUMNS:
        return False
    if pa.types.is_list(kind):
        longest = pc.max(pc.list_value_length(column)).as_py() or 0
        inside = pc.list_flatten(column)
        if longest > rows.LONGEST["list"] or inside.null_count:
            return False
        if pa.types.is_boolean(kind.value_type):
            return True
        return (pa.types.is_string(kind.value_type) and _sound_texts("", inside)) or (
            pa.types.is_floating(kind.value_type) and bool(pc.all(pc.is_finite(inside), min_count=0).as_py())
        )
    if pa.types.is_string(kind):
        return _sound_texts(name, column)
    if pa.types.is_floating(kind) and not pc.all(pc.is_finite(column), min_count=0).as_py():
        return False
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        extremes = pc.min_max(column).as_py().values()
        return all(value is None or not rows.fault(name, value) for value in extremes)
    return bool(pa.types.is_boolean(kind))


def _sound_texts(name: str, column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    try:
        different = pc.unique(column).to_pylist()
    except UnicodeDecodeError:
        return False
    return all(value is None or not rows.fault(name or "reason", value) for value in different)


def _newer(version: int) -> str:
    return f"written by a newer kdad-bench (schema {version}, this one reads up to {SCHEMA_VERSION}); upgrade"


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values as Python's own; bytes that are not UTF-8 as lone surrogates."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        import pyarrow as pa

        kind = pa.binary() if pa.types.is_string(column.type) else pa.list_(pa.binary())
        values = [_decoded(value) for value in column.cast(kind).to_pylist()]
    return values


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    if value is None:
        return None
    return value.decode("utf-8", "surrogateescape")


def _few(names: Iterable[str]) -> str:
    listed = sorted(printable(name)[:60] for name in names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def first_line(error: BaseException) -> str:
    """What an error says, short, on one line."""
    return printable((str(error).strip().splitlines() or [type(error).__name__])[0][:160])
