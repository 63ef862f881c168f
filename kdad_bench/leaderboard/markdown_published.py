"""Published and measured, in leaderboard.md."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from itertools import count, product

from kdad_bench.leaderboard import published
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.markdown_parts import table_of
from kdad_bench.leaderboard.numbers import MISSING, judged, signed
from kdad_bench.leaderboard.text import markdown as _text


def published_and_measured(board: Board) -> str:
    """What papers and other codes report beside what was measured; across protocols without a difference.

    The standard preset has the papers' sizes: its figures stand beside the published ones, and those alone are compared
    whose method has the same paper preset.
    """
    whole, found = published.beside(board)
    if whole:
        return f"Not compared: {_text(whole)}."
    if not found:
        return _text(published.nothing(board))
    reasons = _reasons(found)
    means, others = _lines(board, found, reasons)
    header = ["method", "category", "metric", *published.ORIGINS, "ours", "difference", "verdict"]
    text = table_of(header, means, left=(0, 1, 2, 9)) if means else ""
    if others:
        table = table_of(header, others, left=(0, 1, 2, 9))
        text += f"\n\n<details><summary>By category</summary>\n\n{table}\n\n</details>"
    text += f"\n\nThe difference is to the first comparable number from the left. {published.LEGEND}"
    if reasons:
        text += "\n\nNot compared:\n\n" + "\n".join(f"- {mark} {_text(why)}" for why, mark in reasons.items())
    sources = dict.fromkeys(f"- {_text(one.reported.reported)}: {_text(one.reported.source)}" for one in found)
    listed = "\n".join(sources)
    return f"{text.strip()}\n\n<details><summary>Sources</summary>\n\n{listed}\n\n</details>"


def _reasons(found: Sequence[published.Verdict]) -> dict[str, str]:
    """Why a number is not compared -> the mark beside it: `(a)` to `(z)`, then `(aa)`, `(ab)` and so on."""
    why = dict.fromkeys(one.refusal for one in found if one.refusal)
    letters = string.ascii_lowercase
    marks = ("".join(many) for length in count(1) for many in product(letters, repeat=length))
    return {reason: f"({mark})" for reason, mark in zip(why, marks)}  # noqa: B905 - the marks never end


def _lines(
    board: Board, found: Sequence[published.Verdict], reasons: Mapping[str, str]
) -> tuple[list[list[str]], list[list[str]]]:
    """The cells of (means over categories, single categories), a line for each entrant, category and metric."""
    places: dict[tuple[int, str, str], list[published.Verdict]] = {}
    for one in found:
        place = (board.order.index(one.key), one.reported.category, one.reported.metric)
        places.setdefault(place, []).append(one)
    means: list[list[str]] = []
    others: list[list[str]] = []
    for (position, category, metric), group in sorted(places.items(), key=lambda item: (item[0][0], item[0][2])):
        title = board.labels[board.order[position]]
        line = [_text(title), _text(category), _text(metric), *_beside(board, group, reasons)]
        (means if category == published.MEAN else others).append(line)
    return means, others


def _beside(board: Board, group: Sequence[published.Verdict], reasons: Mapping[str, str]) -> list[str]:
    """What each kind of source reports, then ours, the difference and the verdict."""
    cells = []
    for origin in published.ORIGINS:
        values = [one for one in group if one.reported.origin == origin]
        cells.append(
            "<br>".join(f"{_reported(one)} {reasons.get(one.refusal, '')}".strip() for one in values) or MISSING
        )
    from_the_left = sorted(group, key=lambda one: published.ORIGINS.index(one.reported.origin))
    first = next((one for one in from_the_left if one.difference is not None), group[0])
    measured = first.measured if first.reported.measured else None
    return [
        *cells,
        MISSING if measured is None else f"{measured:.3f}{published.beside_ours(board, first)}",
        MISSING if first.difference is None else signed(first.difference),
        judged(first.verdict, first.half) or "not compared",
    ]


def _reported(one: published.Verdict) -> str:
    """The number as printed, with the network where the source has several."""
    inside = one.reported.inside
    backbone = "" if one.reported.teacher or not inside else one.reported.backbone
    about = ", ".join(part for part in (inside, backbone) if part)
    return f"{one.reported.value:.3f}" + (f" {_text(about)}" if about else "")
