"""Rows of a table by their numbers, however much text a column of them holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

MOST_IN_ONE = 2_000_000_000  # bytes of a column that Arrow takes from: where a text ends is a number of 32 bits


def picked(table: pa.Table, numbers: Any) -> pa.Table:
    """The rows of `table` with these numbers (a list or an array of whole numbers), in this order.

    Of columns too large to be taken from, and where all rows are picked as they stand, nothing is copied.
    """
    import numpy as np
    import pyarrow as pa

    at = np.asarray(numbers, np.int64)
    if len(at) == len(table) and bool((at == np.arange(len(at))).all()):
        return table
    if all(column.nbytes <= MOST_IN_ONE for column in table.columns):
        return table.take(pa.array(at))
    return pa.table([_picked(column, at) for column in table.columns], schema=table.schema)


def _picked(column: pa.ChunkedArray, at: NDArray[np.int64]) -> pa.ChunkedArray:
    """The same of one column; of a large one the slices in which rows follow one another."""
    import numpy as np
    import pyarrow as pa

    if column.nbytes <= MOST_IN_ONE:
        return column.take(pa.array(at))
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    of = np.searchsorted(ends, at, side="right")  # [rows], the chunk that holds each
    breaks = np.flatnonzero((np.diff(at) != 1) | (np.diff(of) != 0)) + 1
    edges = [0, *breaks.tolist(), len(at)] if len(at) else [0]
    slices = []
    for start, end in pairwise(edges):
        chunk = column.chunk(int(of[start]))
        slices.append(chunk.slice(int(at[start] - ends[of[start]]) + len(chunk), end - start))
    return pa.chunked_array(slices, column.type)


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
