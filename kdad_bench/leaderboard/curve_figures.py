"""Curves over the axes as figures: one for image AUROC and one for the last headline metric of each curve."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from kdad_bench.leaderboard.axes import Curve, aside, looks, rows_of_labels
from kdad_bench.leaderboard.figure_parts import empty, in_legend, legend_beside, look_of, not_magnified
from kdad_bench.leaderboard.metric import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 100  # characters of a file's name
WIDTH, CHARACTER = 400, 8  # px of the axis, which a long legend narrows, and of a character of its labels


def plan(drawn: Sequence[Curve]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(file name, figure) of all curves."""
    taken: dict[str, int] = {}
    for curve in drawn:
        for metric in dict.fromkeys((curve.metrics[0], curve.metrics[-1]) if curve.metrics else ()):
            group = curve.group
            about = (
                f"{curve.axis} {METRICS[metric].label} {curve.places[0].board.dataset} {group.preset} {group.device}"
            )
            stem = f"curve-{re.sub(r'[^a-z0-9]+', '-', about.lower()).strip('-')}"[:LONGEST]
            taken[stem] = taken.get(stem, 0) + 1
            name = stem if taken[stem] == 1 else f"{stem}-{taken[stem]}"
            yield name, lambda curve=curve, metric=metric: figure(curve, metric)  # type: ignore[misc]


def figure(curve: Curve, metric: str) -> Figure:
    """The curve of each entrant with 95 % intervals, the largest area first in the legend."""
    known = "\n".join(filter(None, (f"{curve.heading(metric)} by {curve.words}", curve.caveats.strip())))
    made, axes = empty(known, below=curve.title)
    styles, shifts = looks(curve), aside(curve)
    for key in curve.order(metric):
        found = [
            (place.at + shifts[key], one) for place, one in zip(curve.places, curve.at(key, metric), strict=True) if one
        ]
        area = curve.area(key, metric)
        label = curve.labels[key] + (f"  {area.mean:.3f}" if area and curve.ranked(key, metric) else "")
        style = look_of(styles[key])
        axes.plot(
            [at for at, _ in found],
            [one.mean for _, one in found],
            ms=6,
            lw=1.4,
            mec="white",
            label=in_legend(label),
            **style,
        )
        for at, one in found:
            if one.shown is not None:
                axes.vlines(at, *one.shown, color=style["color"], alpha=0.35)
    not_magnified(axes, "y")
    axes.set_xticks([place.at for place in curve.places], _labels(curve))
    axes.set_xlabel(curve.words + (" (log scale)" if curve.axis == "train_images" else ""))
    axes.set_ylabel(curve.heading(metric))
    legend_beside(made, axes, "method, area")
    return made


def _labels(curve: Curve) -> list[str]:
    """The labels of the points, on further lines where one would touch another."""
    first, last = curve.places[0].at, curve.places[-1].at
    centres = [WIDTH * (place.at - first) / (last - first) for place in curve.places]
    rows = rows_of_labels(centres, [CHARACTER * len(place.label) for place in curve.places])
    return ["\n" * row + place.label for row, place in zip(rows, curve.places, strict=True)]
