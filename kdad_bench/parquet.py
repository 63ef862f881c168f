"""What a Parquet file takes in memory, by its footer, which is read here.

pyarrow tells the same (`RowGroupMetaData.column`), but where a column's part of a damaged footer contradicts itself it
ends the process without a word: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift is
small, and so is Thrift's compact protocol, in which a footer is written.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple

PHYSICAL = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
# bytes in memory of a value of a physical type; of a text where it ends
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "BYTE_ARRAY": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
DICTIONARIES = {2, 8}  # encodings by which a value is stored once and named any number of times
VARINT = rb"[\x80-\xff]{0,9}[\x00-\x7f]"  # a number of a footer: seven bits a byte, the last of them below 128
DEEPEST = 32  # structures in one another; a footer has six
TRUE, FALSE, BYTE, INT16, INT32, INT64, DOUBLE, TEXT, LIST, SET, MAP, STRUCTURE = range(1, 13)


class Chunk(NamedTuple):
    """A column of a row group."""

    path: str  # its name, and those of what lies inside it, joined by dots
    physical: str  # a name of PHYSICAL
    dictionary: bool  # whether values that repeat may be stored once
    values: int  # nulls too
    unpacked: int  # bytes of its pages, uncompressed


def chunks(source: Any, names: Collection[str] | None = None) -> list[Chunk]:
    """The columns of each row group of a Parquet file that is open for reading, or only those of the columns `names`.

    Raises ValueError for a damaged one.
    """
    footer = _footer(source)
    parsed = _Thrift(footer)
    try:
        columns = _columns(parsed)
        return [_chunk(column) for column in columns if names is None or _name(column) in names]
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the footer is damaged ({type(error).__name__})") from error


def chunks_of_many(source: Any, names: Collection[str]) -> list[Chunk]:
    """`chunks` of one of many files whose footers have other numbers and are alike else: the rows of a folder.

    What a footer is like is learnt once; then it is a regular expression, ten times faster than the walk through it.
    """
    footer = _footer(source)
    for layout in _layouts:
        if found := layout.pattern.fullmatch(footer):
            told = [
                (chunk, found[2 * at + 1], found[2 * at + 2]) for at, name, chunk in layout.columns if name in names
            ]
            return [Chunk(*chunk[:3], _number(values), _number(unpacked)) for chunk, values, unpacked in told]
    if next(_walks) % LEARNING == LEARNING - 1 and len(_layouts) < MOST_LAYOUTS:
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # as the walk below will say
            _layouts.append(_layout(footer))
    return chunks(source, names)


def surely_fits(source: Any, values: int, most: int) -> bool:
    """Whether the columns of such a file have together, and so each of them, no more `values`, nor bytes than `most`
    as `unpacked_bytes` counts them. False where its layout is not known: look at its `chunks_of_many`."""
    footer = _footer(source)
    told = next((found.groups() for layout in _layouts if (found := layout.pattern.fullmatch(footer))), None)
    if told is None:
        return False
    numbers = [_signed(coded) for coded in told]
    total, unpacked = sum(numbers[::2]), sum(numbers[1::2])
    stored = unpacked + total * max(WIDTHS.values())
    return min(numbers, default=0) >= 0 and total <= values and max(stored, total * unpacked) <= most


class Layout(NamedTuple):
    """What footers are like that differ in their numbers alone."""

    pattern: re.Pattern[bytes]  # two groups for each chunk: its values, and its bytes unpacked
    columns: list[tuple[int, str, Chunk]]  # number of the chunk, name of its column, and what all say alike


LEARNING = 8  # footers that are walked through before one is learnt from
MOST_LAYOUTS = 16  # how often that is done: each version of the schema and of pyarrow writes its own
_layouts: list[Layout] = []
_walks = count()


def _layout(footer: bytes) -> Layout:
    """What the footers are like of which this is one."""
    parsed = _Thrift(footer)
    columns = _columns(parsed)
    told = {column[-field] for column in columns for field in (5, 6)}  # their places among the numbers
    pattern, end = [], 0
    for place, (start, after) in enumerate(parsed.numbers):
        pattern += [re.escape(footer[end:start]), b"(%b)" % VARINT if place in told else VARINT]
        end = after
    pattern.append(re.escape(footer[end:]))
    if sorted(told) != [column[-field] for column in columns for field in (5, 6)]:
        raise ValueError("the footer's fields do not stand in their order")
    named = [(at, _name(column), _chunk(column)) for at, column in enumerate(columns)]
    return Layout(re.compile(b"".join(pattern), re.DOTALL), named)


def _number(coded: bytes) -> int:
    """A number of a footer; raises ValueError for one below 0."""
    found = _signed(coded)
    if found < 0:
        raise ValueError("the footer is damaged (a number below 0)")
    return found


@lru_cache(maxsize=4096)
def _signed(coded: bytes) -> int:
    return _Thrift(coded).signed()


def _footer(source: Any) -> bytes:
    size = source.seek(0, 2)
    source.seek(max(0, size - 8))
    length = int.from_bytes(source.read(8)[:4], "little")
    if length > size - 8:
        raise ValueError("the footer is longer than the file")
    source.seek(size - 8 - length)
    return bytes(source.read(length))


def _columns(parsed: _Thrift) -> list[dict[int, Any]]:
    """What the footer says of each column of each row group, by the ids of ColumnMetaData."""
    return [column[3] for group in parsed.structure(0)[4] for column in group[1]]


def _name(column: dict[int, Any]) -> str:
    return str(column[3][0].decode())


def _chunk(told: dict[int, Any]) -> Chunk:
    chunk = Chunk(
        path=".".join(part.decode() for part in told[3]),
        physical=PHYSICAL[told[1]],
        dictionary=not DICTIONARIES.isdisjoint(told[2]),
        values=told[5],
        unpacked=told[6],
    )
    if min(told[1], chunk.values, chunk.unpacked) < 0:
        raise ValueError("the footer is damaged (a number below 0)")
    return chunk


class _Thrift:
    """Values of Thrift's compact protocol, from the first byte on; a structure is a dictionary by the fields' ids.

    Under -id stands which of `numbers`, the (start, end) of all of 64 bits, a field is.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.numbers: list[tuple[int, int]] = []

    def structure(self, depth: int) -> dict[int, Any]:
        if depth > DEEPEST:
            raise ValueError("the footer is damaged (too deep)")
        fields: dict[int, Any] = {}
        last = 0
        while head := self.byte():
            last = last + (head >> 4) if head >> 4 else self.signed()
            kind = head & 15
            start = self.at
            fields[last] = kind == TRUE if kind in (TRUE, FALSE) else self.value(kind, depth)
            if kind == INT64:
                fields[-last] = len(self.numbers)
                self.numbers.append((start, self.at))
        return fields

    def value(self, kind: int, depth: int) -> Any:
        if kind in (TRUE, FALSE, BYTE):  # a truth value in a list
            return self.byte()
        if kind in (INT16, INT32, INT64):
            return self.signed()
        if kind == DOUBLE:
            return self.taken(8)
        if kind == TEXT:
            return self.taken(self.unsigned())
        if kind in (LIST, SET):
            head = self.byte()
            number = self.unsigned() if head >> 4 == 15 else head >> 4
            return [self.entry(head & 15, depth + 1) for _ in range(self.fitting(number))]
        if kind == MAP:
            number = self.fitting(self.unsigned())
            kinds = self.byte() if number else 0
            return [(self.value(kinds >> 4, depth + 1), self.value(kinds & 15, depth + 1)) for _ in range(number)]
        if kind == STRUCTURE:
            return self.structure(depth + 1)
        raise ValueError(f"the footer is damaged (a value of type {kind})")

    def entry(self, kind: int, depth: int) -> Any:
        """A value of a list: of how many entries and nulls pages have, a histogram is told so."""
        start = self.at
        found = self.value(kind, depth)
        if kind == INT64:
            self.numbers.append((start, self.at))
        return found

    def fitting(self, number: int) -> int:
        """A number of values, each of which takes a byte or more."""
        if number > len(self.data) - self.at:
            raise ValueError("the footer is damaged (it ends too soon)")
        return number

    def taken(self, number: int) -> bytes:
        found = self.data[self.at : self.at + self.fitting(number)]
        self.at += number
        return found

    def byte(self) -> int:
        found = self.data[self.at]
        self.at += 1
        return found

    def unsigned(self) -> int:
        found = 0
        for place in range(0, 70, 7):
            part = self.byte()
            found |= (part & 127) << place
            if part < 128:
                return found
        raise ValueError("the footer is damaged (a number without end)")

    def signed(self) -> int:
        found = self.unsigned()
        return (found >> 1) ^ -(found & 1)


def unpacked_bytes(source: Any, told: Iterable[Chunk], names: Collection[str], most: int) -> int:
    """Bytes of the columns `names` of a Parquet file, open in `source`, once they are read; `told` are its `chunks`.

    The footer's sizes, or what as many values take in memory where that is more: a number that repeats is stored once.
    Where columns of text could come to more than `most`, because a text is stored once and stands in any number of
    lines, the length of the texts of all lines. Raises what pyarrow raises.
    """
    import pyarrow.parquet as pq

    wanted = [chunk for chunk in told if chunk.path.partition(".")[0] in names]
    total = sum(max(chunk.unpacked, chunk.values * WIDTHS.get(chunk.physical, 0)) for chunk in wanted)
    doubtful = {
        chunk.path
        for chunk in wanted
        if chunk.physical == "BYTE_ARRAY" and chunk.dictionary and chunk.values * chunk.unpacked > most
    }
    if doubtful and total <= most:
        source.seek(0)
        coded = pq.ParquetFile(source, read_dictionary=sorted(doubtful))
        for batch in coded.iter_batches(columns=sorted(doubtful), use_threads=False):
            total += sum(map(_bytes_of_texts, batch.columns))
    return total


def _bytes_of_texts(array: Any) -> int:
    """The bytes of the texts of an Arrow array of dictionary type, in lists or not."""
    import pyarrow.compute as pc

    while hasattr(array, "flatten") and not hasattr(array, "dictionary"):
        array = array.flatten()
    return int(pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0)
