"""Single tables of leaderboard.md, drawn into another page between two markers: the README's, say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from kdad_bench.leaderboard.board import boards
from kdad_bench.leaderboard.markdown import by_category, ranking, speed
from kdad_bench.leaderboard.markdown_method import measured
from kdad_bench.leaderboard.markdown_published import published_and_measured
from kdad_bench.leaderboard.store import Results
from kdad_bench.leaderboard.text import markdown as _text

BEGIN = re.compile(r"<!-- leaderboard begin: (?P<section>[a-z0-9_]+)(?: of (?P<results>[^\s>]+))? -->\n")
END = "<!-- leaderboard end -->"


def sections(results: Results) -> dict[str, str]:
    """The tables that may be put into another page, by name.

    ranking, speed, published, one per headline metric, and for each method `measured_METHOD`: it alone.
    """
    parts: dict[str, list[str]] = {}
    for board in boards(results.table):
        if not board.rows:
            continue
        tables = {
            "ranking": ranking(board, {}),
            "speed": speed(board, {}),
            "published": published_and_measured(board),
        }
        tables |= {metric: by_category(board, metric, {}) for metric in board.headline}
        tables |= {f"measured_{method}": table for method, table in measured(board).items()}
        title = f"**{_text(board.title)}**" + (f" ({_text(', '.join(board.caveats))})" if board.caveats else "")
        for name, table in tables.items():
            parts.setdefault(name, []).append(f"{title}\n\n{table}")
    return {name: "\n\n".join(found) for name, found in parts.items()}


def refreshed(text: str, tables: Mapping[str, str], results: str = "") -> str:
    """`text` with each table between `<!-- leaderboard begin: NAME -->` and `<!-- leaderboard end -->` drawn anew.

    A marker `NAME of FOLDER` is of the results in that folder alone: one that `results`, the place of `tables`, does
    not end with stays as it is. Raises ValueError for a name that is not in `tables`, a marker that is not closed, and
    a text without any, or without any of these results.
    """
    markers = list(BEGIN.finditer(text))
    if not markers:
        raise ValueError(f"no marker '<!-- leaderboard begin: NAME -->'; put one there and '{END}' after it")
    own = [begin for begin in markers if _is_of(begin["results"], results)]
    if not own:
        others = ", ".join(dict.fromkeys(begin["results"] for begin in markers))
        raise ValueError(f"no table there is of these results; the markers name {others}")
    parts = []
    position = 0
    for begin in own:
        name = begin["section"]
        if name not in tables:
            raise ValueError(f"no table {name!r} in these results; have: {', '.join(tables) or 'none'}")
        end = text.find(END, begin.end())
        if end < 0 or any(begin.end() <= other.start() < end for other in markers):
            raise ValueError(f"the marker of table {name!r} is not closed with '{END}'")
        parts += [text[position : begin.end()], "\n", tables[name], "\n\n"]
        position = end
    return "".join(parts) + text[position:]


def _is_of(named: str | None, results: str) -> bool:
    """Whether a marker that names a folder, or none, is of the results in the folder `results`."""
    wanted = PurePath(named or "").parts
    return PurePath(results).parts[len(PurePath(results).parts) - len(wanted) :] == wanted
