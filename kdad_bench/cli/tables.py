"""Tables of which nothing is cut off: a path or a number with an ellipsis in it is lost to whoever reads it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

WIDEST = 100_000  # columns of a pipe or a file


def show(table: Table) -> None:
    """Print `table` on stdout: folded where a terminal is too narrow, as wide as it is into a pipe or a file."""
    for column in table.columns:
        column.overflow = "fold"
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(1, console.measure(table, options=console.options.update(width=WIDEST)).maximum)
    console.print(table)
