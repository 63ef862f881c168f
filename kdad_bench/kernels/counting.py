"""How many scores lie between and at the entries of a sorted list of scores: compiled, or with a sort in numpy."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdad_bench.kernels import compiled

_PARTS = 2048  # of the range of wanted keys: what is known of each stays in the L1 cache
_ENTRIES = 2  # table entries per wanted score; more miss the cache, fewer leave more to compare
_MOST_ENTRIES = 1 << 21
_PIECE = 1 << 23  # scores that are copied and sorted at a time without the compiled counting
_MOST = 1 << 31  # scores counted by one call: counts of a thread are 32-bit


@cache
def library() -> ctypes.CDLL | None:
    """The compiled counting; None if it was not built, or not from this, or if KDAD_COUNTING=numpy turns it off."""
    if os.environ.get("KDAD_COUNTING") == "numpy":
        return None
    try:
        return compiled.library()
    except compiled.Missing:
        return None


class NotFinite(ArithmeticError):
    """Some score is NaN or infinite."""


class Counter:
    """Counts float32 (float64) scores against `wanted`, ascending distinct int32 (int64) keys as of `keys`."""

    def __init__(self, wanted: NDArray[Any]) -> None:
        self.wanted = wanted
        self.compiled = library()
        if self.compiled is None:
            return
        self._padded = np.append(wanted, wanted.dtype.type(np.iinfo(wanted.dtype).max))
        span = int(wanted[-1]) - int(wanted[0])
        entries = min(_ENTRIES * wanted.size, _MOST_ENTRIES)
        self._shift = max(0, span.bit_length() - (_PARTS.bit_length() - 1))
        number = (span >> self._shift) + 1
        self._parts = np.empty((number + 1, 2), np.int32)
        self._table = np.empty(entries + number + 2, np.int32)
        self.compiled.kdad_tabulate(
            self._padded.ctypes.data, wanted.size, wanted.itemsize, entries, self._parts.ctypes.data, number,
            self._shift, self._table.ctypes.data,
        )  # fmt: skip

    def __call__(self, scores: NDArray[Any], threads: int) -> NDArray[np.int64]:
        """Counts [2 M + 1] of `scores` [n], of the type the keys are of, by at most so many threads.

        Raises NotFinite, and MemoryError where there is no memory to count in.

        Those between wanted[j - 1] and wanted[j] stand at 2 j, those equal to wanted[j] at 2 j + 1.
        """
        scores = np.ascontiguousarray(scores)
        total = np.zeros(2 * self.wanted.size + 1, np.int64)
        if self.compiled is None:
            pieces = threads * max(1, -(-scores.size // (threads * _PIECE)))
            edges = [scores.size * k // pieces for k in range(pieces + 1)]
            some = (scores[begin:end] for begin, end in pairwise(edges))
            with ThreadPoolExecutor(threads) as pool:  # sorting and searching do not hold the interpreter's lock
                for found in pool.map(self._by_sorting, some):
                    total += found
            return total
        for start in range(0, scores.size, _MOST):
            part = scores[start : start + _MOST]
            finite = self.compiled.kdad_count(
                part.ctypes.data, part.size, part.itemsize, self._padded.ctypes.data, self.wanted.size,
                self._parts.ctypes.data, len(self._parts) - 1, self._shift, self._table.ctypes.data, threads,
                total.ctypes.data,
            )  # fmt: skip
            if finite < 0:
                raise MemoryError(f"no {8 * self.wanted.size} bytes to count pixels in")
            if not finite:
                raise NotFinite
        return total

    def _by_sorting(self, scores: NDArray[Any]) -> NDArray[np.int64]:
        ordered = keys(scores)
        ordered.sort()
        lowest, highest = keys(np.array([-np.inf, np.inf], scores.dtype))
        if ordered.size and not (ordered[0] > lowest and ordered[-1] < highest):
            raise NotFinite
        upto = np.empty(2 * self.wanted.size + 2, np.int64)
        upto[0], upto[-1] = 0, ordered.size
        upto[1:-1:2] = np.searchsorted(ordered, self.wanted)
        upto[2:-1:2] = np.searchsorted(ordered, self.wanted, side="right")
        return np.diff(upto)


def sort_words(words: NDArray[np.int64]) -> None:
    """Sort `words` [n] in place, ascending; a second array of the size is held meanwhile.

    Raises MemoryError where there is none for it.
    """
    loaded = library()
    if loaded is None or not words.flags.c_contiguous:
        words.sort()
        return
    spare = np.empty_like(words)
    loaded.kdad_sort_words(words.ctypes.data, spare.ctypes.data, words.size)


def add_up(
    loaded: ctypes.CDLL,
    counts: NDArray[np.int64],
    ranks: NDArray[np.int64],
    mass: NDArray[np.float64] | None,
    limits: Sequence[float],
) -> tuple[float, ...]:
    """By the library `loaded`: `metrics.curves.partial_sums` over all distinct positive scores.

    `counts` [2 M + 1] of all pixels, `ranks` [M + 1] of the positives, `mass` [M].
    """
    found, upto = np.empty(3 + len(limits)), np.array(limits, np.float64)
    loaded.kdad_add_up(
        counts.ctypes.data, ranks.ctypes.data, None if mass is None else mass.ctypes.data, ranks.size - 1,
        int(counts.sum()), upto.ctypes.data, upto.size, found.ctypes.data,
    )  # fmt: skip
    return tuple(found.tolist())


def keys(scores: NDArray[Any]) -> NDArray[Any]:
    """Signed integers in the order of the float32 or float64 `scores`; 0.0 and -0.0 share one key.

    Integers are sorted and searched faster than floats and know no NaN, and subnormal scores stay apart whatever the
    processor's flush-to-zero mode.
    """
    found: NDArray[Any] = scores.view(np.int32 if scores.dtype == np.float32 else np.int64).copy()
    negative = found < 0
    if negative.any():
        found[negative] ^= np.iinfo(found.dtype).max
        found[found == -1] = 0  # where -0.0 lands
    return found
