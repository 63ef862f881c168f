"""The figures of one method by category beside what others report of it: a table for the method's own page."""

from __future__ import annotations

from collections.abc import Sequence

from kdad_bench.leaderboard import published
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.markdown_parts import table_of
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.numbers import MISSING, deviation, signed
from kdad_bench.leaderboard.text import markdown as _text


def measured(board: Board) -> dict[str, str]:
    """Method -> its table of the board: of its default, or of every variant that was run, a line per category."""
    methods = dict.fromkeys(board.summary.entrant(key).method for key in board.order)
    whole, found = published.beside(board)
    found = [one for one in found if not published.over_more(board, one.key, one.reported)]  # a mean of other data
    tables = {}
    for method in methods:
        keys = [key for key in board.order if board.summary.entrant(key).method == method]
        parts = [_measured(board, key, [one for one in found if one.key == key]) for key in keys]
        tables[method] = "\n\n".join([*parts, *([f"Not compared: {_text(whole)}."] if whole else [])])
    return tables


def _measured(board: Board, key: str, reported: Sequence[published.Verdict]) -> str:
    known = [metric for metric in board.headline if any(one.reported.measured == metric for one in reported)]
    header = ["category"]
    for metric in board.headline:
        header += [METRICS[metric].label, *(["published"] if metric in known else [])]
    covered = board.covered(key)
    lines = []
    for category in [*covered, *([published.MEAN] if len(covered) > 1 else [])]:
        cells = [_text(category)]
        for metric in board.headline:
            mean = category == published.MEAN
            ours = board.overall(key, metric) if mean else board.cell(key, category, metric)
            number = ours.categories if mean and ours else len(covered)
            cells.append(deviation(ours) + (f" ({number} of {len(covered)})" if number < len(covered) else ""))
            if metric in known:
                cells.append(_published(reported, category, metric))
        lines.append(cells)
    least, most = board.seeds_of(key)
    said = f"{_text(board.labels[key])}, {most if least == most else f'{least} to {most}'} seed{'s'[most == 1 :]}"
    said += "; ± is the standard deviation over seeds" if most > 1 else ""
    reasons = dict.fromkeys(f"\n- {_text(one.refusal)}" for one in reported if one.refusal)
    legend = "".join(["\n\nPublished values without a difference are not compared:\n", *reasons]) if reasons else ""
    return f"{said}:\n\n{table_of(header, lines, left=(0,))}{legend}"


def _published(reported: Sequence[published.Verdict], category: str, metric: str) -> str:
    """The published values, each with whose it is, of what network, and where it may be compared our difference."""
    cells = []
    for one in reported:
        if (one.reported.category, one.reported.measured) == (category, metric):
            difference = "" if one.difference is None else f", {signed(one.difference)}"
            cells.append(f"{one.reported.value:.3f} ({_whose(one.reported)}{difference})")
    return "<br>".join(dict.fromkeys(cells)) or MISSING


def _whose(one: published.Reported) -> str:
    whose = one.inside or one.origin
    return _text(whose if one.backbone in whose else f"{whose}, {one.backbone}")
