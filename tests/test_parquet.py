"""What a Parquet file takes in memory: as pyarrow says, and without an end of the process where a footer is damaged."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdad_bench import parquet
from kdad_bench.datasets import DatasetError
from kdad_bench.datasets.table_layout import lines_of
from kdad_bench.harness.offers import OfferError, of_index
from kdad_bench.leaderboard import border
from kdad_bench.leaderboard.border import Foreign, table_of
from kdad_bench.leaderboard.row import KEY_COLUMNS, LONGEST

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = sorted((ROOT / "docs" / "results").rglob("*.parquet"))


def by_pyarrow(content: bytes) -> list[parquet.Chunk]:
    """What pyarrow says of a sound file."""
    footer = pq.ParquetFile(pa.BufferReader(content)).metadata
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    return [
        parquet.Chunk(
            path=chunk.path_in_schema,
            physical=chunk.physical_type,
            dictionary=any("DICTIONARY" in one for one in chunk.encodings),
            values=chunk.num_values,
            unpacked=chunk.total_uncompressed_size,
        )
        for group in groups
        for chunk in map(group.column, range(group.num_columns))
    ]


def encoded(table: pa.Table, **options: Any) -> bytes:
    pq.write_table(table, sink := io.BytesIO(), **options)
    return sink.getvalue()


def table_of_every_type(lines: int = 20) -> pa.Table:
    numbers = range(lines)
    return pa.table({
        "truth": [n % 2 == 0 for n in numbers], "small": pa.array(numbers, pa.int8()), "number": list(numbers),
        "single": pa.array(map(float, numbers), pa.float32()), "double": [n / 7 for n in numbers],
        "text": [f"text {n % 3}" for n in numbers], "bytes": [bytes(n) for n in numbers],
        "fixed": pa.array([b"four"] * lines, pa.binary(4)), "null": pa.nulls(lines),
        "moment": [datetime(2026, 1, 1, tzinfo=UTC)] * lines, "decimal": [Decimal("1.5")] * lines,
        "list": [list(range(n % 4)) for n in numbers], "nested": [[{"a": n, "b": [str(n)]}] for n in numbers],
        "map": pa.array([[("k", n)] for n in numbers], pa.map_(pa.string(), pa.int64())),
        "\N{GREEK SMALL LETTER ALPHA}.b": ["x", None] * (lines // 2),
        "dictionary": pa.array(["a"] * lines).dictionary_encode(),
    })  # fmt: skip


@pytest.mark.parametrize("options", [
    {}, {"compression": "zstd", "row_group_size": 3}, {"use_dictionary": False, "write_statistics": False},
    {"version": "1.0", "write_page_checksum": True}, {"store_schema": False, "write_page_index": True},
    {"use_deprecated_int96_timestamps": True, "data_page_version": "2.0"},
    {"compression": "gzip", "sorting_columns": [pq.SortingColumn(0)]},
])  # fmt: skip
def test_a_footer_says_what_pyarrow_says_of_it(options: dict[str, Any]) -> None:
    content = encoded(table_of_every_type(), **options)
    assert parquet.chunks(io.BytesIO(content)) == by_pyarrow(content)
    assert parquet.chunks(pa.BufferReader(content)) == by_pyarrow(content)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_footers_of_published_rows_are_read(path: Path) -> None:
    with pa.OSFile(str(path)) as source:
        assert parquet.chunks(source) == by_pyarrow(path.read_bytes())


@given(content=st.binary(max_size=80))
def test_any_bytes_are_a_footer_or_a_line(content: bytes) -> None:
    with contextlib.suppress(ValueError):
        parquet.chunks(io.BytesIO(content + len(content).to_bytes(4, "little") + b"PAR1"))


def test_a_footer_is_no_deeper_and_no_longer_than_its_bytes() -> None:
    deep = b"\x1c" * 5000
    endless = b"\x19\xf8" + b"\xff" * 9 + b"\x01"  # a list of 2^63 and more texts
    for footer in (deep, endless, b"\x15" + b"\xff" * 20, b"", b"\x00", b"\x1d"):
        content = footer + len(footer).to_bytes(4, "little") + b"PAR1"
        with pytest.raises(ValueError, match="footer"):
            parquet.chunks(io.BytesIO(content))
    with pytest.raises(ValueError, match="longer than the file"):
        parquet.chunks(io.BytesIO(b"PAR1\xff\xff\xff\x7fPAR1"))


READ = """
import sys, pyarrow as pa
sys.path.insert(0, {root!r})
from kdad_bench.leaderboard import border, row
content = bytearray(open({path!r}, "rb").read())
length = int.from_bytes(content[-8:-4], "little")
for place, bit in {places!r}:
    at = len(content) - 8 - length + place % length
    content[at] ^= 1 << bit
    try:
        border.table_of(pa.BufferReader(bytes(content)), row.SCHEMA)
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError):
        pass
    content[at] ^= 1 << bit
print("to the end")
"""


def test_no_flipped_bit_of_the_footer_of_many_rows_ends_the_process(tmp_path: Path) -> None:
    """Of some hundreds, pyarrow's own look at the columns ended it at two or three."""
    path = max(PUBLISHED, key=lambda path: path.stat().st_size)
    rng = random.Random(0)
    places = [(rng.randrange(1 << 30), rng.randrange(8)) for _ in range(400)]
    program = READ.format(root=str(ROOT), path=str(path), places=places)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "to the end\n", done.stderr[-400:]


def test_a_table_that_swells_is_refused_before_it_is_read_at_every_door(tmp_path: Path) -> None:
    """A megabyte of text is stored once and stands in 3000 lines: 50 KB become 3 GB."""
    path, lines = tmp_path / "x.parquet", 3000
    same = pa.DictionaryArray.from_arrays(pa.array([0] * lines, pa.int32()), pa.array(["x" * 2**20]))
    others = {name: ["a"] * lines for name in ("map", "split", "label")}
    pq.write_table(pa.table({"image": same, **others, "names": [["b", "c"]] * lines}), path, store_schema=False)
    for most, read in ((10**10, True), (2**26, False)):
        with path.open("rb") as source:
            found = parquet.unpacked_bytes(source, parquet.chunks(source), ["image", "names"], most)
            assert (found > 3 * 10**9) is not read  # what cannot pass the limit is not looked at
    with pytest.raises(OfferError, match="more than a table may hold"):
        list(of_index(path, ()))
    with pytest.raises(DatasetError, match="once it is read"):
        lines_of(path)
    rows = pa.table({**{name: ["a"] * lines for name in KEY_COLUMNS}, "environment": same})
    pq.write_table(rows, path, store_schema=False)
    with pa.OSFile(str(path)) as source, pytest.raises(Foreign, match="unpacks to more than 2000 MB"):
        table_of(source, pa.schema([(name, pa.string()) for name in rows.column_names]))


@pytest.mark.parametrize("lines", [1, 2])
def test_numbers_that_repeat_are_refused_before_they_are_read(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros are stored once: eight KB were any number of them."""
    number = 1_000_001 * lines
    table = pa.table({
        **{name: ["a"] * lines for name in KEY_COLUMNS},
        "image_scores": pa.ListArray.from_arrays(
            pa.array([0, *[number] * lines], pa.int32()), pa.array(np.zeros(number, np.float32))
        ),
    })  # fmt: skip
    pq.write_table(table, sink := pa.BufferOutputStream())
    content, zeros = sink.getvalue(), ["image_scores"]
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read"))
    for most, said in ((2 * 10**9, "column image_scores has .* entries; "), (10**6, "unpacks to more than 1 MB")):
        monkeypatch.setattr(border, "MOST_BYTES_OF_A_ROW" if lines == 1 else "MOST_BYTES", most)
        monkeypatch.setitem(LONGEST, "list", 10**6 if most > 10**6 else number)
        source = pa.BufferReader(content)
        assert parquet.unpacked_bytes(source, parquet.chunks(source), zeros, most) >= 4 * number > 100 * len(content)
        with pytest.raises(Foreign, match=said):
            table_of(source, pa.schema([*((name, pa.string()) for name in KEY_COLUMNS), table.schema.field(zeros[0])]))


def test_texts_that_repeat_in_the_lists_of_one_row_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name of 20 KB, stored once, stands 100,000 times: 2 GB of a list that is no longer than it may be."""
    number = 100_000
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(number, np.int32)), pa.array(["x" * 20_000]))
    table = pa.table({
        **{name: ["a"] for name in KEY_COLUMNS},
        "image_names": pa.ListArray.from_arrays(pa.array([0, number], pa.int32()), names),
    })  # fmt: skip
    pq.write_table(table, sink := pa.BufferOutputStream(), store_schema=False)
    monkeypatch.setattr(pq.ParquetFile, "read", lambda *_, **__: pytest.fail("read"))
    schema = pa.schema([*((name, pa.string()) for name in KEY_COLUMNS), ("image_names", pa.list_(pa.string()))])
    with pytest.raises(Foreign, match="unpacks to more than 200 MB"):
        table_of(pa.BufferReader(sink.getvalue()), schema)


def footer_or_fault(content: bytes, read: Any) -> Any:
    try:
        return read(io.BytesIO(content), NAMES)
    except ValueError:
        return None


NAMES = ("text", "list", "nested", "number", "null")


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "write_statistics": False, "compression": "none"}])
def test_footers_that_are_alike_are_read_as_each_alone(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one is damaged: whatever byte of it is another, it is as the walk through it says."""
    monkeypatch.setattr(parquet, "_layouts", [])
    contents = [encoded(table_of_every_type(2 * lines), **options) for lines in range(1, 40)]
    for content in contents:
        alone = parquet.chunks(io.BytesIO(content), NAMES)
        every = parquet.chunks(io.BytesIO(content))
        assert alone == [chunk for chunk in every if chunk.path.partition(".")[0] in NAMES]
        assert parquet.chunks_of_many(io.BytesIO(content), NAMES) == alone
    assert parquet._layouts
    rng = random.Random(0)
    for _ in range(2000):
        content = bytearray(rng.choice(contents))
        length = int.from_bytes(content[-8:-4], "little")
        content[len(content) - 8 - rng.randrange(1, length)] ^= rng.randrange(1, 256)
        alone = footer_or_fault(bytes(content), parquet.chunks)
        assert footer_or_fault(bytes(content), parquet.chunks_of_many) == alone


PLAIN = {"use_dictionary": False, "write_statistics": False, "compression": "none"}


@pytest.mark.parametrize("columns", [["number"], ["number", "list", "nested", "text"]])
def test_what_surely_fits_is_told_by_the_sums_of_all_columns(
    columns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last value and byte: each column may have all values, and each text be as long as all bytes."""
    monkeypatch.setattr(parquet, "_layouts", [])
    contents = [encoded(table_of_every_type(20).select(columns).slice(0, lines), **PLAIN) for lines in range(1, 20)]
    assert not parquet.surely_fits(io.BytesIO(contents[0]), 10**6, 10**9)  # its layout is not known yet
    for content in contents:
        parquet.chunks_of_many(io.BytesIO(content), columns)
    for content in contents:
        told = parquet.chunks(io.BytesIO(content))
        values, unpacked = sum(chunk.values for chunk in told), sum(chunk.unpacked for chunk in told)
        most = max(unpacked + 12 * values, values * unpacked)
        assert parquet.surely_fits(io.BytesIO(content), values, most)
        assert not parquet.surely_fits(io.BytesIO(content), values - 1, most)
        assert not parquet.surely_fits(io.BytesIO(content), values, most - 1)
        assert parquet.unpacked_bytes(io.BytesIO(content), told, columns, most) <= most


def test_a_damaged_footer_fits_only_where_the_walk_through_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number below 0 would make room for others."""
    monkeypatch.setattr(parquet, "_layouts", [])
    contents = [encoded(table_of_every_type(2 * lines), **PLAIN) for lines in range(1, 40)]
    for content in contents:
        parquet.chunks_of_many(io.BytesIO(content), NAMES)
    rng = random.Random(0)
    fitting = 0
    for _ in range(2000):
        content = bytearray(rng.choice(contents))
        length = int.from_bytes(content[-8:-4], "little")
        content[len(content) - 8 - rng.randrange(1, length)] ^= rng.randrange(1, 256)
        if parquet.surely_fits(io.BytesIO(content), 3000, 10**9):
            assert sum(chunk.values for chunk in parquet.chunks(io.BytesIO(content))) <= 3000
            fitting += 1
    assert fitting > 50
