"""Figures for papers and pages, SVG and PNG, the same bytes for the same rows: matplotlib is loaded only here."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdad_bench import files
from kdad_bench.leaderboard import chart, curve_figures, measurement
from kdad_bench.leaderboard.axes import curves, shown_whole
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.figure_parts import (
    FONT,
    LEAST_WIDTH,
    SIZE,
    STYLE,
    empty,
    folded,
    in_legend,
    legend_beside,
    log_axis,
    look_of,
    make_room,
    not_drawable,
    not_magnified,
    size_of,
)
from kdad_bench.leaderboard.folder import StoreError
from kdad_bench.leaderboard.metric import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 0.2  # inches from line to line of a name
MOST_RANKS = 16  # numbers on an axis of ranks
LONGEST_STEM = 100  # characters of a file name, which gets a few more


def draw(found: Sequence[Board], rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write every figure that the boards have data for into `folder` as SVG and PNG; returns the files.

    `rows` are those behind the boards with the column `throughput`. Raises StoreError if the folder cannot be written.
    """
    import matplotlib as mpl

    paths = []
    try:
        with mpl.rc_context(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # `boxes` tells of them
            mpl.rcdefaults()  # a person's matplotlibrc would draw white on white, or ask for LaTeX
            mpl.rcParams.update(STYLE)
            for name, make in _plan(found, rows):
                figure = make()
                for kind in ("svg", "png"):
                    path = folder / f"{name}.{kind}"
                    files.write_whole(path, partial(_save, figure, kind))
                    paths.append(path)
    except OSError as error:
        raise StoreError(f"cannot write figures to {files.why_not_written(error, folder)}") from error
    return paths


def boxes(found: Sequence[Board]) -> str:
    """A line on the characters of what is drawn that the font of figures lacks; "" if it has all of them."""
    names = {name for board in found for name in (board.title, *board.labels.values())}
    lacking = not_drawable(names)
    return f"figures show boxes in place of what their font, {FONT}, lacks: {lacking}" if lacking else ""


def left_over(drawn: Sequence[Path]) -> list[str]:
    """The names of figures beside those just drawn that are of other rows: of entrants or boards that are gone."""
    kinds = re.compile(r"(?:(?:pareto|seeds|ranks|batch|curve)-.*|size)\.(?:svg|png)")
    names = {path.name for folder in {path.parent for path in drawn} for path in folder.iterdir()}
    return sorted(name for name in names - {path.name for path in drawn} if kinds.fullmatch(name))


def _save(figure: Figure, kind: str, path: Path) -> None:
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(path, format=kind, metadata=metadata, bbox_inches="tight")


def _stems(found: Sequence[Board]) -> list[str]:
    """The part of the file names that tells each board from the others: with resolution and protocol, and a number at
    last, only where it takes them."""
    short = [_stem(board) for board in found]
    many = Counter(short)
    longer = [
        stem if many[stem] == 1 else _stem(board, f"{board.group.resolution} protocol {board.group.protocol_version}")
        for board, stem in zip(found, short, strict=True)
    ]
    return [
        stem if longer.index(stem) == place else f"{stem}-{longer[: place + 1].count(stem)}"
        for place, stem in enumerate(longer)
    ]


def _stem(board: Board, further: str = "") -> str:
    """What a board is of as a part of a file name, as long as any file system takes."""
    seen = "" if board.group.modality in ("", "rgb") else board.group.modality
    made = "external" if board.external else f"{board.group.preset} {board.group.device}"
    about = f"{board.dataset} {seen} {made} {further}".lower()
    stem = re.sub(r"[^a-z0-9]+", "-", about).strip("-")
    return (
        stem if len(stem) <= LONGEST_STEM else f"{stem[:LONGEST_STEM]}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    )


def _plan(found: Sequence[Board], rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """(file name, figure) of all figures with something to show."""
    drawn = curves(found)
    whole = [board for board in shown_whole(found, drawn) if board.rows]
    for board, stem in zip(whole, _stems(whole), strict=True):
        metric = board.headline[-1] if board.headline else ""  # AUPRO where there are masks
        if metric and chart.points(board, metric):
            yield f"pareto-{stem}", lambda board=board, metric=metric: pareto(board, metric)  # type: ignore[misc]
        if metric:
            yield f"seeds-{stem}", lambda board=board, metric=metric: seeds(board, metric)  # type: ignore[misc]
            if board.ranks(metric).critical_difference is not None:
                yield f"ranks-{stem}", lambda board=board, metric=metric: ranks(board, metric)  # type: ignore[misc]
        if batches(board, rows):
            yield f"batch-{stem}", lambda board=board: batch_growth(board, rows)  # type: ignore[misc]
    yield from curve_figures.plan(drawn)
    if len(sizes(found)) > 0:
        yield "size", lambda: size_growth(found)


def _figure(
    board: Board, title: str, size: tuple[float, float] = SIZE, *, timed: bool = False, also: str = ""
) -> tuple[Figure, Axes]:
    """An empty figure of a board; `timed` where it shows speed, `also`: what else is said below it."""
    below = f"{board.title}; speed with {board.alone_words}" if timed and board.alone else board.title
    return empty(title, size, caveats=board.caveats, below=below + also)


def _look(board: Board, key: str) -> dict[str, Any]:
    return look_of(board.look(key))


def pareto(board: Board, metric: str) -> Figure:
    """ms/image at batch 1 (log) against the metric with its 95 % interval; dashed: the Pareto front."""
    figure, axes = _figure(board, f"{board.heading(metric)} against speed", timed=True)
    found = chart.points(board, metric)
    for point in found:
        if point.low is not None and point.high is not None:
            axes.vlines(point.latency_ms, point.low, point.high, color=_look(board, point.key)["color"], alpha=0.5)
        axes.plot(
            point.latency_ms,
            point.value,
            ls="",
            ms=8,
            mec="white",
            label=in_legend(point.label),
            **_look(board, point.key),
        )
    best = chart.front(found)
    axes.step(
        [p.latency_ms for p in best], [p.value for p in best], where="post", ls="--", lw=1, color="#777777", zorder=1
    )
    axes.set_xscale("log")
    log_axis(axes, "x", [point.latency_ms for point in found])
    not_magnified(axes, "y")
    axes.set_xlabel("ms per image, batch 1 (log scale; left is faster)")
    axes.set_ylabel(board.heading(metric))
    legend_beside(figure, axes)
    return figure


def seeds(board: Board, metric: str) -> Figure:
    """The mean over categories of each seed (dots) with the mean and its standard deviation over seeds."""
    shown = [key for key in board.order if board.overall(key, metric)]
    names = [folded(board.labels[key] + board.fewer(key, metric)) for key in shown]
    step = max(0.42, *(LINE * (name.count("\n") + 1) for name in names))
    figure, axes = _figure(board, f"{board.heading(metric)} over seeds", (SIZE[0], 0.9 + step * len(shown) + 0.8))
    for place, key in enumerate(reversed(shown)):
        estimate = board.overall(key, metric)
        means = board.summary.means_of_seeds(key, metric)
        colour = _look(board, key)["color"]
        axes.plot(means, np.full(len(means), place), "o", ms=5, color=colour, alpha=0.55, mec="none")
        if estimate is not None:
            axes.errorbar(estimate.mean, place, xerr=estimate.std, fmt="|", ms=14, mew=2, capsize=4, color=colour)
    axes.set_yticks(range(len(shown)), names[::-1])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    not_magnified(axes, "x")
    axes.set_xlabel(f"{board.heading(metric)}: mean over categories; bar: mean ± standard deviation over seeds")
    return figure


def ranks(board: Board, metric: str) -> Figure:
    """The critical-difference diagram: average ranks, and bars that join methods which are not told apart."""
    found = board.ranks(metric)
    order = sorted(found.average, key=lambda key: (found.average[key], key))
    names = {key: folded(board.labels[key]) for key in order}
    distance = found.critical_difference or 0.0
    half = (len(order) + 1) // 2
    step = max(0.75, *(0.55 * (name.count("\n") + 1) for name in names.values()))  # from name to name, ranks
    also = f"; {found.categories} categories, Nemenyi test at 0.05; 1 is best"
    title = f"Average rank in {METRICS[metric].label}"
    figure, axes = _figure(board, title, (7.5, 1.7 + 0.4 * step * half), also=also)
    top = 0.0
    count = max(len(order), 2)
    axes.set_xlim(1 - 0.05 * count, count + 0.05 * count)
    axes.grid(False)
    axes.hlines(top, 1, count, color="#222222", lw=1.2)
    for tick in range(1, count + 1):
        axes.vlines(tick, top, top + 0.18, color="#222222", lw=1.2)
        if (tick - 1) % math.ceil(count / MOST_RANKS) == 0:
            axes.text(tick, top + 0.3, str(tick), ha="center", va="bottom", fontsize=9)
    groups = joined(found.average, distance)
    for level, (low, high) in enumerate(groups):
        axes.hlines(top - 0.35 - 0.28 * level, low - 0.03, high + 0.03, color="#222222", lw=4)
    below = top - 0.5 - 0.28 * len(groups)
    sides: tuple[list[Any], list[Any]] = ([], [])  # the names on either side
    for place, key in enumerate(order):
        left = place < half
        y = below - step * (place if left else len(order) - 1 - place)
        edge = 1 - 0.03 * count if left else count + 0.03 * count
        colour = _look(board, key)["color"]
        axes.plot([found.average[key], found.average[key], edge], [top, y, y], color=colour, lw=1.2)
        beside = partial(axes.annotate, xy=(edge, y), textcoords="offset points", va="center", fontsize=10)
        # apart from its number: one that is read from the right would carry it to its other end
        beside(f"{found.average[key]:.2f}", xytext=(-4 if left else 4, 0), ha="right" if left else "left")
        sides[left].append(beside(names[key], xytext=(-44 if left else 44, 0), ha="right" if left else "left"))
    axes.hlines(top + 1.25, 1, 1 + distance, color="#222222", lw=2)
    axes.text(1 + distance / 2, top + 1.4, f"critical difference {distance:.2f}", ha="center", va="bottom", fontsize=9)
    axes.set_ylim(below - step * (half - 1) - 0.6, top + 2.1)
    axes.axis("off")
    widest = [max((size_of(figure, name)[0] for name in side), default=0.0) for side in sides]
    make_room(figure, sum(widest) + LEAST_WIDTH + 2, 0)
    return figure


def joined(average: Mapping[str, float], distance: float) -> list[tuple[float, float]]:
    """The largest groups of at least two methods whose average ranks lie within `distance`: (lowest, highest) rank."""
    values = sorted(average.values())
    found: list[tuple[float, float]] = []
    for start, low in enumerate(values):
        inside = [value for value in values[start:] if value - low <= distance]
        if len(inside) > 1 and not any(a <= low and inside[-1] <= b for a, b in found):
            found.append((low, inside[-1]))
    return found


def batches(board: Board, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """entrant -> (batch, median images/s over jobs with a throughput curve); what jobs share counts once."""
    curves = {row["job_id"]: row["throughput"] for row in rows if row.get("throughput")}
    found = {}
    for key in board.order:
        by_batch: dict[int, list[float]] = {}
        members = [{**row, "throughput": curves.get(row["job_id"])} for row in board.rows[key]]
        for curve in measurement.distinct(members, "throughput"):
            for point in curve:
                by_batch.setdefault(point["batch"], []).append(point["images_per_second"])
        if len(by_batch) > 1:
            found[key] = [(batch, float(np.median(by_batch[batch]))) for batch in sorted(by_batch)]
    return found


def batch_growth(board: Board, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Images per second against the batch."""
    figure, axes = _figure(board, "Throughput against batch", timed=True)
    for key, points in batches(board, rows).items():
        axes.plot(*zip(*points, strict=True), ms=6, lw=1.4, label=in_legend(board.labels[key]), **_look(board, key))
    _log_axes(axes, [point for points in batches(board, rows).values() for point in points])
    axes.set_xlabel("batch")
    axes.set_ylabel("images per second (median over jobs)")
    legend_beside(figure, axes)
    return figure


Curve = tuple[str, str]  # (what its points share but their size, in words; method with its variant and teacher)
SIZES = ("image_size=", "resolution=")  # changes of a preset that are of the size
# columns of jobs whose cost is not that of a size alone
OTHERWISE = ("fit", "tile", "k_shot", "contamination", "corruption", "setting")


def sizes(found: Sequence[Board]) -> dict[Curve, list[tuple[int, float]]]:
    """Curve -> (image side, median ms/image) where the same method was timed at several image sizes.

    Whatever else two boards differ in makes other lines: data set, modality, preset, protocol, machine. The maps of one
    line are all as large as its images, or all of one size.
    """
    samples: dict[Curve, dict[int, list[float]]] = {}
    for _, place, row in _timed(found):
        samples.setdefault(place, {}).setdefault(row["image_size"], []).append(row["latency_ms"])
    return {
        place: [(size, float(np.median(by_size[size]))) for size in sorted(by_size)]
        for place, by_size in sorted(samples.items())
        if len(by_size) > 1
    }


def _timed(found: Sequence[Board]) -> Iterator[tuple[Board, Curve, Mapping[str, Any]]]:
    """(board, line of `sizes`, row) of every time that is of the size of its images alone."""
    protocols = {board.group.protocol_version for board in found if board.rows}
    for board in found:
        for key in board.order:
            name = board.name(board.summary.entrant(key))
            teacher = f", {board.summary.entrant(key).teacher}" if board.summary.entrant(key).teacher else ""
            for row in measurement.telling(board.rows[key], "latency_ms"):
                if row["image_size"] and row["latency_ms"] and not any(row.get(name) is not None for name in OTHERWISE):
                    for where in _wheres(board, row, several=len(protocols) > 1):
                        yield board, (where, name + teacher), row


def _wheres(board: Board, row: Mapping[str, Any], several: bool) -> list[str]:
    """What a timed row shares with those of other image sizes; with its protocol if there are several.

    A row whose maps are as large as its images may share that, or the number of their pixels.
    """
    group = board.group
    seen = "" if group.modality in ("", "rgb") else f" ({group.modality})"
    made = f"{board.dataset}{seen}, {group.origin or _but_size(group.preset) + ' preset'}"
    end = board.clocked(row) + (f", protocol {group.protocol_version or 'unknown'}" if several else "")
    maps = ["", f", maps of {group.resolution} px"]
    shared = maps if group.resolution == row["image_size"] else maps[1:] if group.resolution else maps[:1]
    return [f"{made}{one}, {end}" for one in shared]


def _but_size(preset: str) -> str:
    """The name of a preset without the changes that are of the size of the images."""
    name, _, inside = preset.partition("[")
    kept = [part for part in inside.removesuffix("]").split(",") if part and not part.startswith(SIZES)]
    return f"{name}[{','.join(kept)}]" if kept else name


def size_growth(found: Sequence[Board]) -> Figure:
    """ms/image at batch 1 against the side of the image, one line per Curve."""
    curves = sizes(found)
    caveats = sorted({caveat for board, place, _ in _timed(found) if place in curves for caveat in board.caveats})
    wheres = {where for where, _ in curves}
    figure, axes = empty(
        "Cost against image size",
        caveats=[f"with {', '.join(caveats)}"] if caveats else [],
        below=next(iter(wheres)) if len(wheres) == 1 else "",
    )
    for place, ((where, name), points) in enumerate(curves.items()):
        label = name if len(wheres) == 1 else f"{name}; {where}"
        axes.plot(*zip(*points, strict=True), ms=6, lw=1.4, label=in_legend(label), **look_of(place))
    _log_axes(axes, [point for points in curves.values() for point in points])
    axes.set_xlabel("side of the image, px")
    axes.set_ylabel("ms per image, batch 1 (median over jobs)")
    legend_beside(figure, axes)
    return figure


def _log_axes(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Both axes logarithmic, with the measured places written out across."""
    from matplotlib.ticker import NullFormatter

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    places = sorted({place for place, _ in points})
    axes.set_xticks(places, [str(place) for place in places])
    axes.xaxis.set_minor_formatter(NullFormatter())
    log_axis(axes, "y", [value for _, value in points])
