"""Curves over the axes in leaderboard.md: a table for each metric, ranked by the area under the curve."""

from __future__ import annotations

from collections.abc import Sequence

from kdad_bench.leaderboard.axes import Curve
from kdad_bench.leaderboard.numbers import MISSING, interval
from kdad_bench.leaderboard.text import markdown as _text
from kdad_bench.leaderboard.text import without

LEGEND = (
    "Means over categories and seeds that a method has at every point. Area: the mean height of the curve, with its "
    "95 % interval (with fewer than six categories for these very ones, with other seeds; else for others of the same "
    "kind); methods are ranked by it."
)
WHOLE = (
    "Boards that are points of a curve are drawn as curves alone: their costs and other metrics are in "
    "`leaderboard.csv`. Of a curve without its plain end one point has its section below."
)


def sections(drawn: Sequence[Curve]) -> list[str]:
    """The part of the page on curves; nothing without any."""
    if not drawn:
        return []
    parts = ["## Curves", f"{LEGEND} {WHOLE}"]
    for curve in drawn:
        about = _text(f"{curve.title}{curve.caveats}.{curve.left_out}{curve.unranked}")
        parts.append(f"### {_text(curve.name)}\n\n{about}")
        parts += [
            f"{curve.heading(metric)} by {_text(curve.words)}:\n\n{table(curve, metric)}" for metric in curve.metrics
        ]
    return parts


def table(curve: Curve, metric: str) -> str:
    """One line per method, the largest area first."""
    header = ["#", "method", *(_text(place.label) for place in curve.places), "area"]
    lines = []
    for place, key in enumerate(curve.order(metric), 1):
        means = [
            (MISSING if found is None else f"{found.mean:.3f}") + without(failed)
            for found, failed in zip(curve.at(key, metric), curve.failures(key, metric), strict=True)
        ]
        number = str(place) if curve.ranked(key, metric) else MISSING
        lines.append([number, _text(curve.labels[key]), *means, interval(curve.area(key, metric))])
    rules = ["---" if title == "method" else "--:" for title in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *lines))
