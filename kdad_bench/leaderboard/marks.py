"""Which entrants of a board are marked as the best and the second: where a test tells them from the next one."""

from __future__ import annotations

from typing import Literal

import numpy as np

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.metric import METRICS

RAN_AWAY = "of which a job ran away to values that are not finite"  # why a method is neither ranked, marked nor judged
VISIBLE = 0.0005  # half of the last digit that tables show: a smaller difference is none

Mark = Literal["best", "second", ""]


def cell_marks(board: Board, metric: str, category: str) -> dict[str, Mark]:
    """The best and second of one category, each only if the 95 % interval of its paired difference to the next one
    lies on its side of zero and the difference would be seen. By images and seeds, or seeds alone (`pairs`).
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    values = board.summary.values[metric][:, board.summary.categories.index(category)]  # [entrants, seeds]
    means = {
        entrant.key: sign * float(np.nanmean(row))
        for entrant, row in zip(board.summary.entrants, values, strict=True)
        if not np.isnan(row).all() and entrant.key not in board.diverged
    }
    order = sorted(means, key=lambda key: (-means[key], key))
    marks: dict[str, Mark] = {}
    names: tuple[Mark, Mark] = ("best", "second")
    for place, name in enumerate(names):
        if len(order) > place + 1 and not (place and _alike(means[order[0]], means[order[1]])):
            found = board.summary.in_category(order[place], order[place + 1], metric, category)
            if found.low is None or found.high is None or abs(found.difference or 0.0) < VISIBLE:
                continue
            if min(sign * found.low, sign * found.high) > 0:
                marks[order[place]] = name
    return marks


def overall_marks(board: Board, metric: str) -> dict[str, Mark]:
    """The best and second overall mean, each only if the corrected test finds it better than the next one.

    The test is of the seeds that both have: where one has more of them it may find the other way round.
    """
    means = {
        key: found.mean
        for key in board.rows
        if (found := board.overall(key, metric)) is not None and found.complete and key not in board.diverged
    }
    sign = -1 if METRICS[metric].higher_is_better else 1
    order = sorted(means, key=lambda key: (sign * means[key], key))
    marks: dict[str, Mark] = {}
    names: tuple[Mark, Mark] = ("best", "second")
    for place, name in enumerate(names):
        if place and len(order) > place and _alike(means[order[0]], means[order[1]]):
            continue  # of two equal best ones none is the second
        if len(order) > place + 1 and surely_better(board, order[place], order[place + 1], metric):
            marks[order[place]] = name
    return marks


def surely_better(board: Board, key: str, other: str, metric: str) -> bool:
    """Whether the corrected test finds one entrant better than another on what both have."""
    found = board.summary.comparison(key, other, metric)
    sign = 1 if METRICS[metric].higher_is_better else -1
    return found.significant and sign * (found.difference or 0.0) > 0


def _alike(one: float, other: float) -> bool:
    """Whether two values look the same in a table."""
    return abs(one - other) < VISIBLE
