"""Curves over the axes in leaderboard.md: a table for each metric, ranked by the area under the curve."""

from __future__ import annotations

from collections.abc import Sequence

from kdad_bench.leaderboard.axes import Curve
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.numbers import MISSING, interval
from kdad_bench.leaderboard.text import markdown as _text

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
        parts.append(f"### {_text(curve.name)}\n\n{_text(curve.title + curve.caveats)}.{_text(curve.left_out)}")
        parts += [
            f"{METRICS[metric].label} by {_text(curve.words)}:\n\n{table(curve, metric)}" for metric in curve.metrics
        ]
    return parts


def table(curve: Curve, metric: str) -> str:
    """One line per method, the largest area first."""
    header = ["#", "method", *(_text(place.label) for place in curve.places), "area"]
    lines = []
    for place, key in enumerate(curve.order(metric), 1):
        area = curve.area(key, metric)
        ranked = area is not None and area.complete
        means = [MISSING if found is None else f"{found.mean:.3f}" for found in curve.at(key, metric)]
        lines.append([str(place) if ranked else MISSING, _text(curve.labels[key]), *means, interval(area)])
    rules = ["---" if title == "method" else "--:" for title in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *lines))
