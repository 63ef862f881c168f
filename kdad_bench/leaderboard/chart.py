"""The Pareto chart of the page as inline SVG: points that can be reached with the keyboard and read aloud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from kdad_bench.leaderboard.axes import not_stretched
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.chart_names import MOST_NAMES, Name, named
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.numbers import interval, large, number
from kdad_bench.leaderboard.text import escape

CHARACTER = 8  # px of a character of a tick
COLOURS = 8  # of the style sheet: --c0 .. --c7
LEAST_MS = 1e-12  # what is faster, which no machine is, stands at the edge


class Layout(NamedTuple):
    """The size of a drawing and its margins, px of a page that shows it at its own size."""

    name: str  # class of the style sheet, which shows one of the layouts
    width: int
    height: int
    left: int = 64
    right: int = 28
    top: int = 20
    bottom: int = 52

    def x(self, share: float) -> float:
        """The place of a share of the axis across."""
        return self.left + share * (self.width - self.left - self.right)

    def y(self, share: float) -> float:
        """The place of a share of the axis up."""
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


LAYOUTS = (Layout("wide", 1100, 460), Layout("narrow", 480, 420))


class Point(NamedTuple):
    """One entrant of a speed/accuracy chart."""

    key: str
    label: str
    latency_ms: float
    value: float
    low: float | None
    high: float | None


def points(board: Board, metric: str) -> list[Point]:
    """The entrants with a latency and a value in every category, the fastest first; none of which a job ran away."""
    found = []
    for key in (key for key in board.order if key not in board.diverged):
        estimate = board.overall(key, metric)
        latency = board.typical(key, "latency_ms")
        if estimate is not None and estimate.complete and latency:
            found.append(Point(key, board.labels[key], latency, estimate.mean, *(estimate.shown or (None, None))))
    return sorted(found, key=lambda point: (point.latency_ms, -point.value, point.key))


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both speed and value (the Pareto front), the fastest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda point: (point.latency_ms, -point.value, point.key)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def pareto(board: Board, metric: str) -> str:
    """The chart of `metric` against ms/image, once for each layout, as SVG elements; "" if nothing was timed."""
    found = points(board, metric)
    return "\n".join(_drawing(board, metric, found, layout) for layout in LAYOUTS) if found else ""


def _drawing(board: Board, metric: str, found: Sequence[Point], layout: Layout) -> str:
    across = log_ticks(min(p.latency_ms for p in found), max(p.latency_ms for p in found))
    lows = [p.value if p.low is None else p.low for p in found]
    highs = [p.value if p.high is None else p.high for p in found]
    up = _ticks(*not_stretched(max(0.0, min(lows)), min(1.0, max(highs))))
    written = with_room(across, layout.x(1) - layout.x(0), CHARACTER)

    def x(value: float) -> float:
        low, high = math.log10(across[0]), math.log10(across[-1])
        return layout.x((math.log10(max(value, across[0])) - low) / (high - low))

    def y(value: float) -> float:
        return layout.y((min(max(value, up[0]), up[-1]) - up[0]) / (up[-1] - up[0]))

    title = f"{board.heading(metric)} against milliseconds per image"
    top, bottom, left, right = layout.y(1), layout.y(0), layout.x(0), layout.x(1)
    parts = [
        f'<svg class="pareto {layout.name}" viewBox="0 0 {layout.width} {layout.height}" role="group" '
        f'aria-label="{escape(title)}">',
        *(f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{bottom}"/>' for t in across),
        *(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in up),
        *(f'<text class="tick" x="{x(t):.1f}" y="{bottom + 18}" text-anchor="middle">{t:g}</text>' for t in written),
        *(
            f'<text class="tick" x="{left - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{_decimal(t, up)}</text>'
            for t in up
        ),
        f'<text class="axis" x="{(left + right) / 2:.1f}" y="{layout.height - 10}" text-anchor="middle">'
        "ms per image at batch 1 (log scale; left is faster)</text>",
        f'<text class="axis" transform="translate(16 {(top + bottom) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(board.heading(metric))}</text>',
    ]
    best = front(found)
    steps = [(x(point.latency_ms), y(point.value)) for point in best]
    path = [f"M{steps[0][0]:.1f} {steps[0][1]:.1f}", *(f"H{across:.1f} V{down:.1f}" for across, down in steps[1:])]
    parts.append(f'<path class="front" d="{" ".join(path)} H{right}"/>')
    places = [(x(p.latency_ms), y(p.value)) for p in found]
    ends = [None if p.low is None or p.high is None else (y(p.high), y(p.low)) for p in found]
    bars = [(place[0] - 3, end[0], place[0] + 3, end[1]) for place, end in zip(places, ends, strict=True) if end]
    bars += _beside(steps, right)
    texts = [p.label if p.key in board.order[:MOST_NAMES] else "" for p in found]
    names = named(texts, places, (left + 2, 2, layout.width - 2, bottom - 2), bars)
    for point, place, end, name in zip(found, places, ends, names, strict=True):
        parts.append(_mark(board, metric, point, place, end, name))
    return "\n".join([*parts, "</svg>"])


def _beside(steps: Sequence[tuple[float, float]], right: float) -> list[tuple[float, float, float, float]]:
    """Boxes around the lines of a front that goes across from each step to the next one, then up: names avoid them."""
    after = [*steps[1:], (right, steps[-1][1])]
    across = [(x, y - 2, x_next, y + 2) for (x, y), (x_next, _) in zip(steps, after, strict=True)]
    upwards = [(x_next - 2, y_next, x_next + 2, y) for (_, y), (x_next, y_next) in pairwise(steps)]
    return across + upwards


def _mark(
    board: Board,
    metric: str,
    point: Point,
    place: tuple[float, float],
    ends: tuple[float, float] | None,
    name: Name | None,
) -> str:
    """A point with its interval, its name where there is room, and what is said when it is reached."""
    colour = f"--c:var(--c{board.look(point.key) % COLOURS})"
    said = escape(describe(board, metric, point))
    x, y = place
    drawn = [f'<g class="point" tabindex="0" role="img" aria-label="{said}" style="{colour}">']
    if ends is not None:
        drawn.append(f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>')
    if name is not None and name.line is not None:
        x1, y1, x2, y2 = name.line
        drawn.append(f'<line class="leader" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
    drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7"/>')
    if name is not None:
        drawn.append(
            f'<text text-anchor="{name.anchor}" x="{name.x:.1f}" y="{name.y:.1f}">{escape(point.label)}</text>'
        )
    return "".join([*drawn, "</g>"])


def describe(board: Board, metric: str, point: Point) -> str:
    """What the chart says about a point: one line."""
    memory = board.typical(point.key, "peak_memory_mb")
    return (
        f"{point.label}: {METRICS[metric].label} {interval(board.overall(point.key, metric))}, "
        f"{number(point.latency_ms)} ms/image, {number(board.typical(point.key, 'images_per_second'))} images/s, "
        f"{large(board.typical(point.key, 'parameters'))} parameters"
        + (f", {number(memory)} MB" if memory is not None else "")
    )


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from below `low` to above `high`, both above zero; at least two, and none below LEAST_MS."""
    low, high = max(low, LEAST_MS), max(high, LEAST_MS)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    steps = [round(m * 10.0**e, 12 - min(e, 0)) for e in range(first, last + 1) for m in (1, 2, 5)]
    below = [step for step in steps if step <= low * 0.95]
    above = [step for step in steps if step >= high * 1.05]
    return [step for step in steps if below[-1] <= step <= above[0]]


def with_room(ticks: Sequence[float], width: float, character: float) -> list[float]:
    """Those of the `ticks` of a logarithmic axis of `width` px whose labels do not touch: all, or the powers of ten, or
    every second, third, ... of these."""
    powers = [tick for tick in ticks if f"{tick:e}".startswith("1.0")]
    choices = [list(ticks), *(powers[::step] for step in range(1, len(powers) + 1))]
    return next((chosen for chosen in choices if not _touch(chosen, ticks, width, character)), choices[-1])


def _touch(chosen: Sequence[float], ticks: Sequence[float], width: float, character: float) -> bool:
    scale = width / math.log10(ticks[-1] / ticks[0])
    return any(
        scale * math.log10(b / a) < character * (1 + (len(f"{a:g}") + len(f"{b:g}")) / 2) for a, b in pairwise(chosen)
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round values around [low, high]; the ends of the axis."""
    span = max(high - low, 0.002)
    step = min((m * 10.0**e for e in range(-5, 1) for m in (1, 2, 5)), key=lambda s: abs(span / s - 5))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def _decimal(value: float, ticks: Sequence[float]) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))}f}"
