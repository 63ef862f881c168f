"""Boards that differ in one axis alone -> curves, with the area under each; entrants ranked by it.

A curve compares like with like: of each entrant only the categories and seeds that have a value at every one of its
points count, at each point and in the area. An entrant is the same at all points: a method with other teacher weights
is another one. So is a category with other files, of which the newest count.

The area is that of the trapezoids between the points, divided by the width of the axis: the mean height of the curve,
in [0, 1]. Its interval is made like that of a mean on a board, from the areas by category and seed; what the sample of
images adds is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, pairwise
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdad_bench.leaderboard.board import SEVERAL_VERSIONS, Board
from kdad_bench.leaderboard.grouping import entrants_of, identity_of
from kdad_bench.leaderboard.metric import HEADLINE, METRICS
from kdad_bench.leaderboard.row import instant
from kdad_bench.leaderboard.summary import Entrant, Estimate, Group, Summary

LEAST_HEIGHT = 0.05  # of the axis up of a curve's drawing
# axis -> (the column of a row, the axis in words); each kind of corruption is an axis of its own
COLUMNS = {"train_images": "k_shot", "contamination": "contamination", "corruption": "corruption"}
WORDS = {
    "train_images": "number of training images",
    "contamination": "share of the training images that is defective",
}


NEXT, MOST_ASIDE = 0.012, 0.045  # of an axis: between entrants drawn beside each other, and between the outermost


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One point of an axis: where it stands, how it is written, and its board."""

    at: float  # in the units of the axis: log2 of a number of images, a share, a level
    label: str
    board: Board


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Boards along one axis, at least two, in the order of the axis."""

    axis: str  # train_images, contamination, or the name of a corruption
    group: Group  # what all points share: the preset is the one without the axis
    places: tuple[Place, ...]

    @property
    def words(self) -> str:
        """What the axis is."""
        each = " of each category" if self.axis == "train_images" and self.places[0].board.together else ""
        return WORDS.get(self.axis, f"level of {self.axis} in the test images") + each

    @property
    def name(self) -> str:
        """The axis in a heading."""
        return {"train_images": "Training images", "contamination": "Contamination"}.get(
            self.axis, f"Corruption: {self.axis}"
        )

    @property
    def title(self) -> str:
        """One line that says what the points share."""
        first = self.places[0].board
        return first.title.replace(first.group.preset, self.group.preset)

    @property
    def caveats(self) -> str:
        """What a reader must know before the first number, in brackets behind a title; or nothing."""
        said = dict.fromkeys(caveat for place in self.places for caveat in place.board.caveats)
        if len({row["kdad_bench"] or "unknown" for row in self._rows}) > 1:
            said[SEVERAL_VERSIONS] = None
        return f" ({', '.join(said)})" if said else ""

    @property
    def left_out(self) -> str:
        """A sentence on values that are of other files than the newest of their category; "" without any."""
        stale = [f"{category} at {place.label}" for place, categories in self._stale for category in categories]
        return f" Left out, made from other files than the newest rows: {', '.join(stale)}." if stale else ""

    @property
    def unranked(self) -> str:
        """A sentence on the entrants that `diverged`; "" without any."""
        names = ", ".join(self.labels[key] for key in sorted(self.diverged))
        return f" Not ranked, as a job ran away to values that are not finite: {names}." if names else ""

    @cached_property
    def labels(self) -> dict[str, str]:
        """entrant -> its name in tables."""
        names = {key: f"{one.title} ({one.variant})" if one.variant else one.title for key, one in self._makers.items()}
        return {key: name if list(names.values()).count(name) == 1 else key for key, name in names.items()}

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The headline metrics that every point has, and some entrant a value of that counts."""
        everywhere = [metric for metric in HEADLINE if all(place.board.measured(metric) for place in self.places)]
        return tuple(metric for metric in everywhere if not np.isnan(self._counting(self._values(metric))).all())

    def heading(self, metric: str) -> str:
        """The name of a metric, with its categories where it lacks some of another one: `AUPRO@0.3 (1 of 2)`."""
        known, every = len(self._known[metric]), len({*chain(*self._known.values())})
        return METRICS[metric].label + (f" ({known} of {every})" if known < every else "")

    @cached_property
    def _known(self) -> dict[str, tuple[str, ...]]:
        """metric -> the categories in which some entrant has values that count."""
        found = {}
        for metric in self.metrics:
            there = np.any(~np.isnan(self._counting(self._values(metric))), axis=(0, 1, 3)).tolist()
            found[metric] = tuple(name for name, known in zip(self._categories, there, strict=True) if known)
        return found

    def at(self, key: str, metric: str) -> tuple[Estimate | None, ...]:
        """The mean with its interval at each point, over what the entrant has at all its points."""
        return self._estimates(metric)[key][:-1]

    def area(self, key: str, metric: str) -> Estimate | None:
        """The area under the curve of an entrant; None where it lacks a point."""
        return self._estimates(metric)[key][-1]

    def ranked(self, key: str, metric: str) -> bool:
        """Whether the area of an entrant says what it is worth: no category is lacking, and no job of any point ran
        away to values that are not finite, for the mean of the others flatters it."""
        found = self.area(key, metric)
        return found is not None and found.complete and key not in self.diverged

    @cached_property
    def diverged(self) -> frozenset[str]:
        """The entrants of which a job of some point ran away to values that are not finite."""
        return frozenset(
            key
            for place, own in zip(self.places, self._keys, strict=True)
            for key, there in own.items()
            if there in place.board.diverged
        )

    def failures(self, key: str, metric: str) -> tuple[int, ...]:
        """How many jobs of an entrant failed at each point that its mean lacks."""
        return tuple(
            place.board.failed(own[key], metric) if key in own else 0
            for place, own in zip(self.places, self._keys, strict=True)
        )

    def order(self, metric: str) -> tuple[str, ...]:
        """The entrants, the largest area first; after them, by name, those that cannot be ranked by it."""
        areas = {
            key: found.mean for key in self.labels if self.ranked(key, metric) and (found := self.area(key, metric))
        }
        return tuple(sorted(self.labels, key=lambda key: (-areas.get(key, -1.0), key)))

    def _estimates(self, metric: str) -> dict[str, tuple[Estimate | None, ...]]:
        """entrant -> its estimates at the points, and that of the area."""
        if metric not in self._made:
            whole = self._values(metric)  # [points, entrants, categories, seeds]
            values = self._counting(whole)
            areas = self._summary(metric, _areas(values, np.array([place.at for place in self.places])))
            points = [self._summary(metric, one) for one in values]
            found: dict[str, tuple[Estimate | None, ...]] = {}
            for index, key in enumerate(self._makers):
                means = [
                    place.board.overall(own[key], metric)  # the interval that the section of the board has
                    if key in own and np.array_equal(all_there, counting, equal_nan=True)
                    else point.overall(key, metric)
                    for place, own, point, all_there, counting in zip(
                        self.places, self._keys, points, whole[:, index], values[:, index], strict=True
                    )
                ]
                found[key] = (*means, areas.overall(key, metric))
            self._made[metric] = found
        return self._made[metric]

    def _counting(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """`values` [points, entrants, categories, seeds] without those of old files, and of single points."""
        return _in_common(np.where(self._current, values, np.nan))

    @cached_property
    def _made(self) -> dict[str, dict[str, tuple[Estimate | None, ...]]]:
        return {}

    @cached_property
    def _rows(self) -> list[Mapping[str, Any]]:
        """The rows of all points, the oldest first."""
        every = (row for place in self.places for rows in place.board.rows.values() for row in rows)
        return sorted(every, key=lambda row: (instant(row["created_at"]), row["job_id"]))

    @cached_property
    def _makers(self) -> dict[str, Entrant]:
        """The entrants of all points by their keys, in the order of these."""
        return {one.key: one for one in sorted(entrants_of(self._rows).values(), key=lambda one: one.key)}

    @cached_property
    def _keys(self) -> tuple[dict[str, str], ...]:
        """For each point, entrant -> its key on the board there: where a board has one of two twins it is shorter."""
        named = entrants_of(self._rows)
        return tuple(
            {named[identity_of(rows[0])].key: key for key, rows in place.board.rows.items()} for place in self.places
        )

    @cached_property
    def _stale(self) -> tuple[tuple[Place, tuple[str, ...]], ...]:
        """For each point, the categories whose rows there are of other files than the newest row of any point."""
        newest = {row["category"]: row["data_fingerprint"] for row in self._rows if row["data_fingerprint"] is not None}
        found = []
        for place in self.places:
            there = {(r["category"], r["data_fingerprint"]) for rows in place.board.rows.values() for r in rows}
            found.append(
                (place, tuple(sorted(name for name, content in there if content not in (None, newest.get(name)))))
            )
        return tuple(found)

    @cached_property
    def _current(self) -> NDArray[np.bool_]:
        """[points, 1, categories, 1]: whether the rows are of the newest files."""
        stale = [[name in categories for name in self._categories] for _, categories in self._stale]
        return ~np.array(stale)[:, None, :, None]

    @cached_property
    def _categories(self) -> tuple[str, ...]:
        return tuple(sorted({name for place in self.places for name in place.board.summary.categories}))

    @cached_property
    def _seeds(self) -> tuple[int, ...]:
        return tuple(sorted({seed for place in self.places for seed in place.board.summary.seeds}))

    def _values(self, metric: str) -> NDArray[np.float64]:
        """The values of all points in one array [points, entrants, categories, seeds], NaN where there is none."""
        places = {key: index for index, key in enumerate(self._makers)}
        found = np.full((len(self.places), len(places), len(self._categories), len(self._seeds)), np.nan)
        for values, place, own in zip(found, self.places, self._keys, strict=True):
            summary = place.board.summary
            keys = [one.key for one in summary.entrants]
            kept, rows = [keys.index(key) for key in own.values()], [places[key] for key in own]
            columns = [self._categories.index(name) for name in summary.categories]
            seeds = [self._seeds.index(seed) for seed in summary.seeds]
            values[np.ix_(rows, columns, seeds)] = summary.values[metric][kept]
        return found

    def _summary(self, metric: str, values: NDArray[np.float64]) -> Summary:
        """`values` [entrants, categories, seeds] as a summary, which knows how to estimate."""
        first = self.places[0].board.summary
        return replace(
            first,
            entrants=tuple(self._makers.values()),
            categories=self._categories,
            seeds=self._seeds,
            values={metric: values},
            jobs={},  # these and the images are of the first point
            images={},
        )


def _in_common(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values of the categories and seeds that an entrant has at every point at which it has any."""
    known = ~np.isnan(values)
    there = known.any(axis=(2, 3), keepdims=True)  # [points, entrants, 1, 1]
    common = (known | ~there).all(axis=0)  # [entrants, categories, seeds]
    return np.where(common, values, np.nan)


def _areas(values: NDArray[np.float64], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """[entrants, categories, seeds]: the mean height of the polygon through the points; NaN where one is missing."""
    widths = np.diff(at)[:, None, None, None]
    found: NDArray[np.float64] = ((values[1:] + values[:-1]) / 2 * widths).sum(axis=0) / (at[-1] - at[0])
    return found


def curves(found: Sequence[Board]) -> tuple[Curve, ...]:
    """The curves that boards are points of: those that share everything but one axis, at least two of them."""
    plain = {board.group: board for board in found if board.rows}
    points: dict[tuple[Group, str], dict[float, Place]] = {}
    for board in plain.values():
        for axis, at, label, shared in _axes_of(board):
            group = replace(board.group, preset=shared)
            points.setdefault((group, axis), {})[at] = Place(at=at, label=label, board=board)
    for (group, axis), places in points.items():
        end = _plain_end(axis, plain.get(group))
        if end is not None:
            places.setdefault(end.at, end)
    made = (
        Curve(axis=axis, group=group, places=tuple(places[at] for at in sorted(places)))
        for (group, axis), places in sorted(points.items(), key=lambda item: (item[0][0], item[0][1]))
        if len(places) > 1
    )
    return tuple(curve for curve in made if curve.metrics)


def _axes_of(board: Board) -> list[tuple[str, float, str, str]]:
    """(axis, place, how it is written, the preset without it) of each axis on which the jobs of a board stand."""
    row = next(iter(board.rows.values()))[0]
    found = []
    for part, column in COLUMNS.items():
        value = row.get(column)
        shared = _without(board.group.preset, f"{part}={value}")
        if value is None or shared is None:
            continue
        axis, at, label = _place(part, value)
        found.append((axis, at, label, shared))
    return found


def _place(part: str, value: Any) -> tuple[str, float, str]:
    """(axis, where on it, in words) of a value."""
    if part == "train_images":
        return part, float(np.log2(max(value, 1))), str(value)
    if part == "contamination":
        return part, float(value), f"{value:g}"
    name, _, level = value.partition(":")
    return name, float(level) if level.isdecimal() else 0.0, level


def _plain_end(axis: str, board: Board | None) -> Place | None:
    """The board of the plain jobs as a point of the axis; for a contamination there is none, its test set is larger."""
    if board is None or axis == "contamination":
        return None
    if axis != "train_images":
        return Place(at=0.0, label="none", board=board)
    counts = [row.get("train_images") for rows in board.rows.values() for row in rows]
    known = [count / max(1, board.together) for count in counts if count]  # of each category that is learnt together
    return Place(at=float(np.log2(median(known))), label=f"all ({median(known):g})", board=board) if known else None


def _without(preset: str, part: str) -> str | None:
    """The name of a preset without one of its changes; None if that is not among them."""
    name, bracket, inside = preset.partition("[")
    parts = inside.removesuffix("]").split(",")
    if not bracket or part not in parts:
        return None
    parts.remove(part)
    return f"{name}[{','.join(parts)}]" if parts else name


def shown_whole(found: Sequence[Board], drawn: Sequence[Curve]) -> list[Board]:
    """The boards without those that are points of a curve; of each curve that leaves none, its first point stays."""
    plain = {board.group for board in found if board.rows and not _axes_of(board)}
    points = {place.board.group for curve in drawn for place in curve.places} - plain
    kept = {curve.places[0].board.group for curve in drawn if curve.group not in plain}
    return [board for board in found if board.group not in points or board.group in kept]


def aside(curve: Curve) -> Mapping[str, float]:
    """entrant -> how far aside of its points it is drawn, in units of the axis, so that intervals do not cover each
    other: all of them within a third of the smallest gap between two points and a few hundredths of the axis."""
    at = [place.at for place in curve.places]
    gap, width = min(after - before for before, after in pairwise(at)), at[-1] - at[0]
    count = len(curve.labels)
    step = min(NEXT * width, gap / 3 / max(1, count), MOST_ASIDE * width / max(1, count))
    return {key: (place - (count - 1) / 2) * step for place, key in enumerate(sorted(curve.labels))}


def not_stretched(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis up, at least LEAST_HEIGHT apart and within [0, 1]: a drawing that stretched a thousandth to
    its full height would show noise as a trend.
    """
    short = max(0.0, LEAST_HEIGHT - (high - low)) / 2
    low, high = low - short, high + short
    over, under = max(0.0, high - 1), max(0.0, -low)
    return max(0.0, low - over), min(1.0, high + under)


def rows_of_labels(centres: Sequence[float], widths: Sequence[float], apart: float = 8) -> list[int]:
    """The row, 0 first, in which each label below an axis stands so that none touches another, `apart` px between."""
    ends: list[float] = []
    found = []
    for centre, width in zip(centres, widths, strict=True):
        row = next((row for row, end in enumerate(ends) if end + apart <= centre - width / 2), len(ends))
        ends[row : row + 1] = [centre + width / 2]
        found.append(row)
    return found


def looks(curve: Curve) -> Mapping[str, int]:
    """entrant -> a number that says how it is drawn: the same on all curves of the same entrants."""
    return {key: place for place, key in enumerate(sorted(curve.labels))}
