"""What a Parquet file takes in memory, by its footer, which is read here.

pyarrow tells the same (`RowGroupMetaData.column`), but where a column's part of a damaged footer contradicts itself it
ends the process without a word: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift is
small, and so is Thrift's compact protocol, in which a footer is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

PHYSICAL = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
# bytes in memory of a value of a physical type; of a text where it ends
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "BYTE_ARRAY": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
DICTIONARIES = {2, 8}  # encodings by which a value is stored once and named any number of times
DEEPEST = 32  # structures in one another; a footer has six
TRUE, FALSE, BYTE, INT16, INT32, INT64, DOUBLE, TEXT, LIST, SET, MAP, STRUCTURE = range(1, 13)


class Chunk(NamedTuple):
    """A column of a row group."""

    path: str  # its name, and those of what lies inside it, joined by dots
    physical: str  # a name of PHYSICAL
    dictionary: bool  # whether values that repeat may be stored once
    values: int  # nulls too
    unpacked: int  # bytes of its pages, uncompressed


def chunks(source: Any) -> list[Chunk]:
    """The columns of each row group of a Parquet file that is open for reading. Raises ValueError for a damaged one."""
    size = source.seek(0, 2)
    source.seek(max(0, size - 8))
    length = int.from_bytes(source.read(8)[:4], "little")
    if length > size - 8:
        raise ValueError("the footer is longer than the file")
    source.seek(size - 8 - length)
    try:
        groups = _Thrift(source.read(length)).structure(0)[4]
        return [_chunk(column[3]) for group in groups for column in group[1]]
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the footer is damaged ({type(error).__name__})") from error


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
    """Values of Thrift's compact protocol, from the first byte on; a structure is a dictionary by the fields' ids."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def structure(self, depth: int) -> dict[int, Any]:
        if depth > DEEPEST:
            raise ValueError("the footer is damaged (too deep)")
        fields: dict[int, Any] = {}
        last = 0
        while head := self.byte():
            last = last + (head >> 4) if head >> 4 else self.signed()
            kind = head & 15
            fields[last] = kind == TRUE if kind in (TRUE, FALSE) else self.value(kind, depth)
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
            return [self.value(head & 15, depth + 1) for _ in range(self.fitting(number))]
        if kind == MAP:
            number = self.fitting(self.unsigned())
            kinds = self.byte() if number else 0
            return [(self.value(kinds >> 4, depth + 1), self.value(kinds & 15, depth + 1)) for _ in range(number)]
        if kind == STRUCTURE:
            return self.structure(depth + 1)
        raise ValueError(f"the footer is damaged (a value of type {kind})")

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
