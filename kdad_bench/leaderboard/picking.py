"""Rows of a table by their numbers, however much text a column of them holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MOST_IN_ONE = 2_000_000_000  # bytes of a column that Arrow takes from: where a text ends is a number of 32 bits


def picked(table: pa.Table, numbers: Any) -> pa.Table:
    """The rows of `table` with these numbers (a list or an array of whole numbers), in this order."""
    import pyarrow as pa

    at = pa.array(numbers, pa.int64())
    if all(column.nbytes <= MOST_IN_ONE for column in table.columns):
        return table.take(at)
    return pa.table([_picked(column, at) for column in table.columns], schema=table.schema)


def _picked(column: pa.ChunkedArray, at: pa.Array) -> pa.ChunkedArray:
    import pyarrow as pa

    if column.nbytes <= MOST_IN_ONE:
        return column.take(at)
    wide = column.cast(_wide(column.type)).take(at)
    cut = [piece for chunk in wide.chunks for piece in pieces(chunk, MOST_IN_ONE // 2)]
    # the ends of texts in a slice are counted from the start of the whole: taken once more, from its own
    own = [piece.take(pa.array(range(len(piece)), pa.int64())) for piece in cut]
    return pa.chunked_array([piece.cast(column.type) for piece in own], column.type)


def _wide(kind: pa.DataType) -> pa.DataType:
    """The type of the same values with ends of 64 bits."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_list(kind):
        return pa.large_list(kind.value_field.with_type(_wide(kind.value_type)))
    return kind


def pieces(whole: Any, most: int, lines: int | None = None) -> Iterator[Any]:
    """A table or an array in pieces of at most `most` bytes, and of at most `lines` rows, in their order.

    A single row is a piece, however large.
    """
    number = len(whole)
    if number < 2 or (whole.nbytes <= most and (lines is None or number <= lines)):
        yield whole
        return
    yield from pieces(whole.slice(0, number // 2), most, lines)
    yield from pieces(whole.slice(number // 2), most, lines)
