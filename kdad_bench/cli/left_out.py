"""What a command could not read of the results: a line on stderr for each file or row that does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from kdad_bench.leaderboard.store import Results


def whole(found: Results) -> Results:
    """`found`, after what was left out of it was told."""
    for problem in found.problems:
        click.echo(printable(f"left out: {problem.file}: {problem.what}"), err=True)
    return found
