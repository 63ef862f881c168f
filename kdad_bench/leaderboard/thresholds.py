"""What a board knows of thresholds from unseen normal images: a line for each entrant, which both pages share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, lgamma
from typing import Any

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.numbers import MISSING, deviation

PROMISED = 0.1  # the false-alarm rate that a row's threshold is fitted for
TAIL = 0.025  # chance below which false alarms are too many
LEVEL = 0.01  # of the test that compares unseen normals with those of the test set
FINER = ("seg_f1", "aupro_05")
HEADINGS = (
    "smallest rate supported", f"false alarms at {PROMISED:.0%}", "too many", "detected", "normals differ",
)  # fmt: skip
LEGEND = (
    "Where normal images were unseen in training (a validation split, or what is held out). Smallest rate supported: "
    "1/(n + 1) of n such images. False alarms: the share of the normal test images above the threshold that promises "
    f"{PROMISED:.0%}, mean and range over jobs. That is promised of the mean over draws of the unseen images, and the "
    "threshold of one draw has a rate of its own. Too many: jobs with more false alarms than all but one of forty have "
    "whose unseen and test normals are alike (beta-binomial). "
    "Detected: anomalous test images above it. Normals differ: jobs whose scores of unseen and of test normals differ "
    f"(exact Kolmogorov-Smirnov test, p below {LEVEL:g}): there the promise need not hold. None of this is ranked."
)


def headings(board: Board) -> tuple[str, ...]:
    """What stands above the columns of `told`."""
    return ("method", *map(board.heading, FINER), *HEADINGS)


def told(board: Board) -> list[tuple[str, ...]]:
    """A line for each entrant with unseen normals, in the order of the ranking, in the order of `headings`."""
    return [line for key in board.order if (line := _line(board, key))]


def _line(board: Board, key: str) -> tuple[str, ...]:
    rows = [row for row in board.rows[key] if row["false_alarm_floor"] is not None]
    if not rows:
        return ()
    measured = [row for row in rows if row["false_alarms"] is not None]
    chances = [chance for row in measured if (chance := _chance(row)) is not None]
    tested = [row["normals_p"] for row in rows if row["normals_p"] is not None]
    return (
        board.labels[key],
        *(deviation(board.overall(key, metric)) + board.fewer(key, metric) for metric in FINER),
        _range([row["false_alarm_floor"] for row in rows]),
        _range([row["false_alarms"] for row in measured], mean=True),
        _of(sum(chance < TAIL for chance in chances), len(chances)),
        _range([row["detected"] for row in measured if row["detected"] is not None], mean=True),
        _of(sum(p < LEVEL for p in tested), len(tested)),
    )


def _chance(row: Mapping[str, Any]) -> float | None:
    """The chance of so many false alarms of a row, or more, if all normals are alike; None where it is not known."""
    normals, floor = list(row.get("image_labels") or ()).count(False), row["false_alarm_floor"]
    if not normals or not 0 < floor <= PROMISED:
        return None
    return chance_of_alarms(round(row["false_alarms"] * normals), normals, round(1 / floor) - 1)


def chance_of_alarms(alarms: int, normals: int, unseen: int) -> float:
    """The chance that at least `alarms` of `normals` lie above the threshold for PROMISED from 9 or more `unseen` ones.

    All scores are drawn from one continuous distribution. The threshold is the a-th largest of the unseen scores, so
    that its rate is Beta(a, unseen + 1 - a), and the alarms are beta-binomial.
    """
    a = (unseen + 1) * round(100 * PROMISED) // 100
    below = unseen + 1 - a
    every = _log_beta(a, below)
    return sum(
        exp(_log_beta(above + a, normals - above + below) - every - _log_beta(above + 1, normals - above + 1))
        / (normals + 1)
        for above in range(alarms, normals + 1)
    )


def _log_beta(one: float, other: float) -> float:
    return lgamma(one) + lgamma(other) - lgamma(one + other)


def _range(shares: Sequence[float], *, mean: bool = False) -> str:
    """Shares in per cent: their mean and range, or their range."""
    if not shares:
        return MISSING
    low, high = f"{min(shares):.1%}", f"{max(shares):.1%}"
    between = low if low == high else f"{low} to {high}"
    return f"{sum(shares) / len(shares):.1%} ({between})" if mean and low != high else between


def _of(count: int, total: int) -> str:
    return f"{count} of {total}" if total else MISSING
