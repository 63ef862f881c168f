"""Curves over the axes on the page: an SVG drawing whose points can be reached and read aloud, and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from kdad_bench.leaderboard.axes import Curve, aside, looks, not_stretched, rows_of_labels
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.numbers import MISSING, interval
from kdad_bench.leaderboard.text import escape, without

WIDTHS = {"wide": 760, "narrow": 440}  # px, by class of the style sheet, which shows one of them
HEIGHT = 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 56
CHARACTER, LINE = 7, 15  # px of a label below the axis: of a character, at most, and from line to line
COLOURS = 8  # of the style sheet: --c0 .. --c7
DASHES = ("", "7 4", "2 3")  # where there are more entrants than colours


def sections(drawn: Sequence[Curve]) -> Iterator[str]:
    """The part of the page on curves; nothing without any."""
    if not drawn:
        return
    yield '<section id="curves" aria-labelledby="curves-title"><h2 id="curves-title">Curves</h2>'
    yield '<p class="soft">Means over the categories and seeds that a method has '
    yield "at every point; bars: 95 % interval, with fewer than six categories for these very ones, else for others of "
    yield "the same kind. Area: the mean height of the curve; methods are ranked by it. Boards "
    yield "that are points of a curve are drawn as curves alone; <code>leaderboard.csv</code> has all of them.</p>"
    for curve in drawn:
        about = escape(f"{curve.title}{curve.caveats}.{curve.left_out}{curve.unranked}")
        yield f"<h3>{escape(curve.name)}</h3><p>{about}</p>"
        for index, metric in enumerate(reversed(curve.metrics)):
            opened = " open" if index == 0 else ""
            yield f"<details{opened}><summary>{curve.heading(metric)} by {escape(curve.words)}</summary>"
            yield f"<figure>{drawing(curve, metric)}</figure>{table(curve, metric)}</details>"
    yield "</section>"


def drawing(curve: Curve, metric: str) -> str:
    """The curves of all entrants with their intervals, once for each width."""
    return "\n".join(_drawn(curve, metric, name, width) for name, width in WIDTHS.items())


def _drawn(curve: Curve, metric: str, name: str, wide: int) -> str:
    order = curve.order(metric)
    estimates = [one for key in order for one in curve.at(key, metric) if one is not None]
    lowest = min((one.shown or (one.mean,))[0] for one in estimates)
    low, high = not_stretched(lowest, max((one.shown or (one.mean,))[-1] for one in estimates))
    step = 0.1 if high - low > 0.4 else 0.05 if high - low > 0.15 else 0.01
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    ends = (curve.places[0].at, curve.places[-1].at)

    def x(at: float) -> float:
        return LEFT + 20 + (at - ends[0]) / (ends[1] - ends[0]) * (wide - LEFT - RIGHT - 40)

    widths = [CHARACTER * len(place.label) for place in curve.places]
    rows = rows_of_labels([x(place.at) for place in curve.places], widths)
    height = HEIGHT + LINE * max(rows)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value / step - first) / (last - first) * (HEIGHT - TOP - BOTTOM)

    label = f"{curve.heading(metric)} by {curve.words}"
    across = escape(curve.words) + (" (log scale)" if curve.axis == "train_images" else "")
    ticks = [
        *_ticks_up(wide, [(y(number * step), f"{number * step:.2f}") for number in range(first, last + 1)]),
        *(
            f'<text class="tick" x="{x(place.at):.1f}" y="{HEIGHT - BOTTOM + 18 + LINE * row}" text-anchor="middle">'
            f"{escape(place.label)}</text>"
            for place, row in zip(curve.places, rows, strict=True)
        ),
    ]
    shifts = aside(curve)
    lines = [
        line
        for key in order
        for line in _line(curve, metric, key, [x(place.at + shifts[key]) for place in curve.places], y)
    ]
    return "\n".join([
        f'<svg class="curve {name}" viewBox="0 0 {wide} {height}" role="group" aria-label="{escape(label)}" '
        f'style="width:100%;max-width:{wide + 100}px;height:auto">',
        *ticks,
        f'<text class="axis" x="{wide / 2:.1f}" y="{height - 14}" text-anchor="middle">{across}</text>',
        *lines,
        "</svg>",
    ])  # fmt: skip


def _ticks_up(wide: int, places: Sequence[tuple[float, str]]) -> Iterator[str]:
    for y, text in places:
        yield f'<line class="grid" x1="{LEFT}" x2="{wide - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _line(curve: Curve, metric: str, key: str, across: Sequence[float], y: object) -> Iterator[str]:
    """The line of an entrant, its intervals, and its points."""
    assert callable(y)
    found = [(x, place, one) for x, place, one in zip(across, curve.places, curve.at(key, metric), strict=True) if one]
    path = " ".join(f"{x:.1f},{y(one.mean):.1f}" for x, _, one in found)
    yield (
        f'<polyline points="{path}" fill="none" stroke="{_colour(curve, key)}" stroke-width="2" '
        f'stroke-dasharray="{_dash(curve, key)}"/>'
    )
    for x, place, one in found:
        said = f"{curve.labels[key]} at {place.label}: {METRICS[metric].label} {interval(one)}"
        bar = (
            ""
            if one.shown is None
            else f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{y(one.shown[0]):.1f}" '
            f'y2="{y(one.shown[1]):.1f}"/>'
        )
        yield (
            f'<g class="point" tabindex="0" role="img" aria-label="{escape(said)}" style="--c:{_colour(curve, key)}">'
            f'{bar}<circle cx="{x:.1f}" cy="{y(one.mean):.1f}" r="5"/></g>'
        )


def _colour(curve: Curve, key: str) -> str:
    return f"var(--c{looks(curve)[key] % COLOURS})"


def _dash(curve: Curve, key: str) -> str:
    return DASHES[looks(curve)[key] // COLOURS % len(DASHES)]


def table(curve: Curve, metric: str) -> str:
    """The points with their intervals, ranked by area; a line of each method's look beside its name."""
    heads = ["#", "method", *(place.label for place in curve.places), "area"]
    head = "".join(f'<th scope="col"{"" if title == "method" else " class=n"}>{escape(title)}</th>' for title in heads)
    rows = []
    for place, key in enumerate(curve.order(metric), 1):
        look = (
            f'<svg width="34" height="10" aria-hidden="true"><line x1="0" x2="34" y1="5" y2="5" stroke-width="3" '
            f'stroke="{_colour(curve, key)}" stroke-dasharray="{_dash(curve, key)}"/></svg> '
        )
        cells = "".join(
            f'<td class="n">{interval(found)}{without(failed)}</td>'
            for found, failed in zip(curve.at(key, metric), curve.failures(key, metric), strict=True)
        )
        cells += f'<td class="n">{interval(curve.area(key, metric))}</td>'
        rows.append(
            f'<tr><td class="n">{place if curve.ranked(key, metric) else MISSING}</td>'
            f'<th scope="row">{look}{escape(curve.labels[key])}</th>{cells}</tr>'
        )
    estimates = [one for key in curve.order(metric) for one in (*curve.at(key, metric), curve.area(key, metric)) if one]
    said = "mean with its 95 % interval" if any(one.shown for one in estimates) else "mean; one seed has no interval"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{curve.heading(metric)} by {escape(curve.words)}">'
        f"<table><caption>{curve.heading(metric)}, {said}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )
