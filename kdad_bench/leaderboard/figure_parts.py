"""The pieces that every figure is made of: a canvas with its labels, names that fit, a legend, logarithmic axes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from kdad_bench.leaderboard import chart
from kdad_bench.leaderboard.axes import not_stretched
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a8457f", "#7a5c00", "#2b7fb0", "#6b4fa0", "#444444")
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "p")
FONT = "DejaVu Sans"  # comes with matplotlib
STYLE: Any = {
    "svg.hashsalt": "kdad-bench",  # ids that do not change from run to run
    "svg.fonttype": "path",
    "font.family": FONT,
    "font.size": 10,
    "text.parse_math": False,  # names are drawn as they stand: two dollar signs would make a formula of one
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.facecolor": "white",
}
SIZE = (7.0, 4.2)  # inches
NAME = 40  # characters of a line of a name
MOST_LINES = 8  # of one name
BELOW = 110  # characters of a line below a figure
LEAST_WIDTH, CHARACTER = 4.0, 8  # inches of the axes beside a legend, at least; px of a character of a tick
BESIDE, AROUND = 0.9, 1.2  # inches beside, above and below the axes: title, ticks, labels
LEGEND_LINES = 28  # of a column of the legend


def look_of(place: int) -> dict[str, Any]:
    """Colour and marker number `place`: no two of the first 64 are alike in both."""
    turn, colour = divmod(place, len(COLOURS))
    return {"color": COLOURS[colour], "marker": MARKERS[(colour + turn) % len(MARKERS)]}


def empty(
    title: str, size: tuple[float, float] = SIZE, *, caveats: Iterable[str] = (), below: str = ""
) -> tuple[Figure, Axes]:
    """A figure and its axes without data. The title has caveats that none may miss, `below` says of what."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    known = ", ".join(caveats)
    # of the figure, not of the axes: the names beside these may reach up to its height
    figure.suptitle(f"{title}  [{known}]" if known else title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    if below:
        figure.supxlabel(folded(below, BELOW), x=0.01, ha="left", fontsize=8, color="#555555")
    return figure, figure.add_subplot()


def folded(name: str, width: int = NAME) -> str:
    """A name on as many lines of at most `width` characters as it takes, but for what MOST_LINES do not hold."""
    return "\n".join(textwrap.wrap(printable(name), width, max_lines=MOST_LINES, placeholder=" …")) or " "


def in_legend(label: str) -> str:
    """A name as legends show it: matplotlib leaves out those that begin with an underscore."""
    text = folded(label)
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def legend_beside(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """The names of what is drawn, to the right of the axes; the figure grows where they need more than it has."""
    lines = sum(label.count("\n") + 1 for label in axes.get_legend_handles_labels()[1])
    columns = max(1, math.ceil(lines / LEGEND_LINES))
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, title=title, ncols=columns)
    wide, high = size_of(figure, legend)
    make_room(figure, wide + LEAST_WIDTH + BESIDE, high + AROUND)


def size_of(figure: Figure, artist: Any) -> tuple[float, float]:
    """Width and height of what is drawn, inches."""
    box = artist.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    return box.width / figure.dpi, box.height / figure.dpi


def make_room(figure: Figure, width: float, height: float) -> None:
    """Make a figure as large as that, inches, where it is smaller."""
    old = figure.get_size_inches()
    figure.set_size_inches(max(width, old[0]), max(height, old[1]))


def log_axis(axes: Axes, which: Literal["x", "y"], values: Iterable[float]) -> None:
    """A logarithmic axis around `values` with 1, 2, 5, 10, ... written as people do, where they have room."""
    from matplotlib.ticker import NullLocator

    known = [*values]
    ticks = chart.log_ticks(min(known), max(known))
    axes.set(**{f"{which}lim": (ticks[0], ticks[-1])})
    shown = chart.with_room(ticks, 100 * LEAST_WIDTH, CHARACTER) if which == "x" else ticks
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_minor_locator(NullLocator())


def not_magnified(axes: Axes, which: Literal["x", "y"]) -> None:
    """Widen an axis of accuracies that is drawn by now where it shows too little for what its noise may be."""
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    wider = not_stretched(low, high)
    axes.set(**{f"{which}lim": (min(low, wider[0]), max(high, wider[1]))})


@cache
def _drawable() -> frozenset[int]:
    """The characters that the font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


def not_drawable(names: Iterable[str]) -> str:
    """The characters of `names` that figures show as boxes, as FONT has none of them; each once, sorted."""
    return "".join(sorted({one for name in names for one in printable(name) if ord(one) not in _drawable()}))
