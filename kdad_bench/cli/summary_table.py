"""The table at the end of a run: accuracy beside speed, one line per method, the means of the leaderboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from kdad_bench.leaderboard.board import SEVERAL_VERSIONS, Board, boards_of
from kdad_bench.leaderboard.metric import HEADLINE, METRICS, shown_in
from kdad_bench.leaderboard.numbers import deviation, number
from kdad_bench.leaderboard.text import printable

COSTS = tuple(metric for metric in shown_in("end") if metric not in HEADLINE)


def summary_table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Mean over categories ± deviation over seeds; median speed. One table per board: unlike rows are not averaged.

    `rows` have the columns `board.DRAWN`. A mean over fewer categories than another method has says so.
    """
    found = boards_of(rows)
    failed = [] if found else [Table(title="no rows", title_justify="left", box=None)]
    return Group(*(table_of(board, name_of_all=len(found) > 1) for board in found), *failed)


def table_of(board: Board, *, name_of_all: bool) -> Table:
    """The table of one board; its title says what must not be mistaken, and with `name_of_all` which board it is."""
    table = Table(title=escape(title(board, name_of_all)), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("method", no_wrap=True)
    table.add_column("jobs", justify="right")
    for metric in (*HEADLINE, *COSTS):
        table.add_column(METRICS[metric].short, justify="right", no_wrap=True)
    failures = Counter(key for key, *_ in board.summary.failed)
    for entrant in board.summary.entrants:
        ok = len(board.rows.get(entrant.key, ()))
        cells = [mean(board, entrant.key, metric) for metric in HEADLINE]
        cells += [cost(board, entrant.key, metric) for metric in COSTS]
        table.add_row(escape(printable(entrant.key)), f"{ok}/{ok + failures[entrant.key]}", *cells)
    return table


def title(board: Board, name_of_all: bool) -> str:
    """Says what must not be mistaken: synthetic data, a preset's budget, rows of several versions."""
    about = board.title if name_of_all else f"preset {board.group.preset.partition('[')[0]}"
    synthetic = ", synthetic data" if board.group.synthetic else ""
    versions = f", {SEVERAL_VERSIONS}" if board.mixture else ""
    return printable(f"mean over categories ± deviation over seeds; {about}{synthetic}{versions}")


def mean(board: Board, key: str, metric: str) -> str:
    """`0.953 ± 0.004`, and over how many categories if another method has more."""
    return deviation(board.overall(key, metric)) + board.fewer(key, metric)


def cost(board: Board, key: str, metric: str) -> str:
    """The median over the jobs, flagged where they differ."""
    if key not in board.rows:
        return number(None)
    return number(board.typical(key, metric)) + (" ~" if board.unsteady(key, metric) else "")
