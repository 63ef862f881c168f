"""The Pareto chart of the page as inline SVG: points that can be reached with the keyboard and read aloud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.numbers import interval, large, number
from kdad_bench.leaderboard.text import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 16, 52
COLOURS = 8  # of the style sheet: --c0 .. --c7


class Point(NamedTuple):
    """One entrant of a speed/accuracy chart."""

    key: str
    label: str
    latency_ms: float
    value: float
    low: float | None
    high: float | None


def points(board: Board, metric: str) -> list[Point]:
    """The entrants with a latency and a value in every category, the fastest first."""
    found = []
    for key in board.order:
        estimate = board.overall(key, metric)
        latency = board.typical(key, "latency_ms")
        if estimate is not None and estimate.complete and latency:
            found.append(Point(key, board.labels[key], latency, estimate.mean, estimate.low, estimate.high))
    return sorted(found, key=lambda point: (point.latency_ms, -point.value, point.key))


def front(found: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both speed and value (the Pareto front), the fastest first."""
    best: list[Point] = []
    for point in sorted(found, key=lambda point: (point.latency_ms, -point.value, point.key)):
        if not best or point.value > best[-1].value:
            best.append(point)
    return best


def pareto(board: Board, metric: str) -> str:
    """The chart of `metric` against ms/image as an SVG element, or "" if nothing was timed."""
    found = points(board, metric)
    if not found:
        return ""
    across = _log_ticks(min(p.latency_ms for p in found), max(p.latency_ms for p in found))
    lows = [p.value if p.low is None else p.low for p in found]
    highs = [p.value if p.high is None else p.high for p in found]
    up = _ticks(min(lows), min(1.0, max(highs)))

    def x(value: float) -> float:
        low, high = math.log10(across[0]), math.log10(across[-1])
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)

    title = f"{METRICS[metric].label} against milliseconds per image"
    parts = [
        f'<svg class="pareto" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(title)}">',
        *(f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>' for t in across),
        *(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in up),
        *(
            f'<text class="tick" x="{x(t):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{t:g}</text>'
            for t in across
        ),
        *(
            f'<text class="tick" x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{_decimal(t, up)}</text>'
            for t in up
        ),
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 10}" text-anchor="middle">'
        "ms per image at batch 1 (log scale; left is faster)</text>",
        f'<text class="axis" transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(METRICS[metric].label)}</text>',
    ]
    best = front(found)
    path = [f"M{x(best[0].latency_ms):.1f} {y(best[0].value):.1f}"]
    path += [f"H{x(point.latency_ms):.1f} V{y(point.value):.1f}" for point in best[1:]]
    parts.append(f'<path class="front" d="{" ".join(path)} H{WIDTH - RIGHT}"/>')
    labels = _labels([p.label for p in found], [(x(p.latency_ms), y(p.value)) for p in found])
    for point, label in zip(found, labels, strict=True):
        ends = None if point.low is None or point.high is None else (y(point.low), y(point.high))
        parts.append(_mark(board, metric, point, (x(point.latency_ms), y(point.value)), ends, label))
    return "\n".join([*parts, "</svg>"])


def _mark(
    board: Board,
    metric: str,
    point: Point,
    place: tuple[float, float],
    ends: tuple[float, float] | None,
    label: Label,
) -> str:
    """A point with its interval, its name, and what is said when it is reached."""
    colour = f"--c:var(--c{board.look(point.key) % COLOURS})"
    said = escape(describe(board, metric, point))
    x, y = place
    bar = (
        ""
        if ends is None
        else f'<line class="interval" x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>'
    )
    anchor = "end" if label.end else "start"
    return (
        f'<g class="point" tabindex="0" role="img" aria-label="{said}" style="{colour}">'
        f'{bar}<circle cx="{x:.1f}" cy="{y:.1f}" r="7"/>'
        f'<text text-anchor="{anchor}" x="{label.x:.1f}" y="{label.y:.1f}">{escape(point.label)}</text></g>'
    )


def describe(board: Board, metric: str, point: Point) -> str:
    """What the chart says about a point: one line."""
    memory = board.typical(point.key, "peak_memory_mb")
    return (
        f"{point.label}: {METRICS[metric].label} {interval(board.overall(point.key, metric))}, "
        f"{number(point.latency_ms)} ms/image, {number(board.typical(point.key, 'images_per_second'))} images/s, "
        f"{large(board.typical(point.key, 'parameters'))} parameters"
        + (f", {number(memory)} MB" if memory is not None else "")
    )


class Label(NamedTuple):
    """Where a point's name stands: beside it, left or right, moved up or down where it would cover something."""

    x: float
    y: float
    end: bool  # the text ends at x


def _labels(texts: Sequence[str], places: Sequence[tuple[float, float]]) -> list[Label]:
    """A place for the name of each point (x, y) that covers no other name or point, as far as there is one."""
    boxes: list[tuple[float, float, float, float]] = []
    markers = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    found = []
    for index, (text, (x, y)) in enumerate(zip(texts, places, strict=True)):
        width = 7.2 * len(text)
        others = [box for other, box in enumerate(markers) if other != index]
        best: tuple[int, Label, tuple[float, float, float, float]] | None = None
        for shift in (0, 15, -15, 30, -30, 45, -45):
            for end in (False, True):
                left = x - 12 - width if end else x + 12
                box = (left, y + shift - 7, left + width, y + shift + 7)
                covered = sum(_overlap(box, other) for other in (*boxes, *others))
                outside = 5 * (left < LEFT or left + width > WIDTH or not TOP - 8 < y + shift < HEIGHT - BOTTOM + 2)
                if best is None or covered + outside < best[0]:
                    best = (covered + outside, Label(x - 12 if end else x + 12, y + shift + 4, end), box)
        assert best is not None
        found.append(best[1])
        boxes.append(best[2])
    return found


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... from below `low` to above `high`, both above zero; at least two."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    steps = [round(m * 10.0**e, 12 - min(e, 0)) for e in range(first, last + 1) for m in (1, 2, 5)]
    below = [step for step in steps if step <= low * 0.95]
    above = [step for step in steps if step >= high * 1.05]
    return [step for step in steps if below[-1] <= step <= above[0]]


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round values around [low, high]; the ends of the axis."""
    span = max(high - low, 0.002)
    step = min((m * 10.0**e for e in range(-5, 1) for m in (1, 2, 5)), key=lambda s: abs(span / s - 5))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def _decimal(value: float, ticks: Sequence[float]) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))}f}"
