"""The table at the end of a run: accuracy beside speed, one line per method, the means of the leaderboard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.markup import escape
from rich.table import Table

from kdad_bench.cli.tables import WIDEST
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
    return Group(*(Fitting(board, len(found) > 1) for board in found), *failed)


@dataclass(frozen=True)
class Fitting:
    """The table of one board as wide as it is, or with each mean on lines of its own where there is no room for that:
    nothing of it is cut off. Its title says what must not be mistaken, and with `name_of_all` which board it is."""

    board: Board
    name_of_all: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table that fits."""
        wide = self.table(" ")
        width = console.measure(wide, options=options.update(width=WIDEST)).maximum
        yield wide if width <= options.max_width else self.table("\n")

    def table(self, between: str) -> Table:
        """The table with `between` a mean, its deviation and its remark."""
        padding = (0, 1) if between == " " else (0, 1, 0, 0)
        heading = escape(title(self.board, self.name_of_all))
        table = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, padding=padding)
        table.add_column("method", overflow="fold")
        for name in ("jobs", *map(self.board.heading, HEADLINE), *(METRICS[metric].short for metric in COSTS)):
            parts = re.findall(r"\(.*\)|\S+", name)
            table.add_column(between.join(parts), justify="right", overflow="fold")
        for entrant in self.board.summary.entrants:
            ok = len(self.board.rows.get(entrant.key, ()))
            jobs = f"{ok}/{ok + self.board.failures[entrant.key]}"
            cells = [between.join(mean(self.board, entrant.key, metric)) for metric in HEADLINE]
            cells += [cost(self.board, entrant.key, metric) for metric in COSTS]
            table.add_row(escape(printable(entrant.key)), jobs, *cells)
        return table


def title(board: Board, name_of_all: bool) -> str:
    """Says what must not be mistaken: synthetic data, a preset's budget, rows of several versions."""
    about = board.title if name_of_all else f"preset {board.group.preset.partition('[')[0]}"
    synthetic = ", synthetic data" if board.group.synthetic else ""
    versions = f", {SEVERAL_VERSIONS}" if board.mixture else ""
    return printable(f"mean over categories ± deviation over seeds; {about}{synthetic}{versions}")


def mean(board: Board, key: str, metric: str) -> list[str]:
    """`0.953`, `± 0.004`, and over how many categories if another method has more: `(2 of 3)`."""
    lacking = board.lacking(key, metric)
    return [*deviation(board.overall(key, metric)).split(" ", 1), *([f"({lacking})"] if lacking else [])]


def cost(board: Board, key: str, metric: str) -> str:
    """The median over the jobs, flagged where they differ."""
    if key not in board.rows:
        return number(None)
    return number(board.typical(key, metric)) + (" ~" if board.unsteady(key, metric) else "")
