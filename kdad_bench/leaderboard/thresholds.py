"""What a board knows of thresholds from unseen normal images: a line for each entrant, which both pages share."""

from __future__ import annotations

from collections.abc import Sequence

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.numbers import MISSING, deviation

PROMISED = 0.1  # the false-alarm rate that a row's threshold is fitted for
LEVEL = 0.01  # of the test that compares unseen normals with those of the test set
HEADINGS = (
    "method", "SegF1", "AUPRO@0.05", "smallest rate supported", f"false alarms at {PROMISED:.0%}", "too many",
    "detected", "normals differ",
)  # fmt: skip
LEGEND = (
    "Where normal images were unseen in training (a validation split, or what is held out). Smallest rate supported: "
    "1/(n + 1) of n such images. False alarms: the share of the normal test images above the threshold that promises "
    f"{PROMISED:.0%}, mean and range over jobs; too many: jobs whose exact 95 % interval lies above the promise. "
    "Detected: anomalous test images above it. Normals differ: jobs whose scores of unseen and of test normals differ "
    f"(exact Kolmogorov-Smirnov test, p below {LEVEL:g}): there the promise need not hold. None of this is ranked."
)


def told(board: Board) -> list[tuple[str, ...]]:
    """A line for each entrant with unseen normals, in the order of the ranking, in the order of HEADINGS."""
    return [line for key in board.order if (line := _line(board, key))]


def _line(board: Board, key: str) -> tuple[str, ...]:
    rows = [row for row in board.rows[key] if row["false_alarm_floor"] is not None]
    if not rows:
        return ()
    measured = [row for row in rows if row["false_alarms"] is not None]
    least = [row["false_alarms_low"] for row in measured if row["false_alarms_low"] is not None]
    tested = [row["normals_p"] for row in rows if row["normals_p"] is not None]
    return (
        board.labels[key],
        *(deviation(board.overall(key, metric)) + board.fewer(key, metric) for metric in ("seg_f1", "aupro_05")),
        _range([row["false_alarm_floor"] for row in rows]),
        _range([row["false_alarms"] for row in measured], mean=True),
        _of(sum(low > PROMISED for low in least), len(least)),
        _range([row["detected"] for row in measured if row["detected"] is not None], mean=True),
        _of(sum(p < LEVEL for p in tested), len(tested)),
    )


def _range(shares: Sequence[float], *, mean: bool = False) -> str:
    """Shares in per cent: their mean and range, or their range."""
    if not shares:
        return MISSING
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    between = low if low == high else f"{low} to {high}"
    return f"{sum(shares) / len(shares):.1%} ({between})" if mean and low != high else between


def _of(count: int, total: int) -> str:
    return f"{count} of {total}" if total else MISSING
