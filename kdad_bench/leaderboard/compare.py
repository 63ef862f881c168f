"""Two methods, or two results folders, category by category: what differs, by how much, and what got worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard.board import Board, boards
from kdad_bench.leaderboard.inference import CONFIDENCE
from kdad_bench.leaderboard.measurement import SHARED
from kdad_bench.leaderboard.metric import ACCURACY, METRICS
from kdad_bench.leaderboard.student_t import student_quantile

if TYPE_CHECKING:
    import pyarrow as pa

TOLERANCE = 0.005  # of an accuracy: a smaller change is no news
ALONE = "all, measured once"  # stands for the categories that share a measurement of speed
COST_TOLERANCE = 0.10  # of a cost, relative: timings of another day differ by that


class NothingToCompare(ValueError):
    """The two sides share nothing that may be compared; the message says what each has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One category (or the mean over those in common): the second side minus the first, paired by seed."""

    board: str
    method: str
    metric: str
    category: str
    first: float
    second: float
    low: float | None  # 95 % interval of the mean difference over seeds; None with fewer than two pairs
    high: float | None
    pairs: int
    verdict: str  # worse | better | same | "data differ"

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


Cells = Mapping[tuple[str, int], Mapping[str, Any]]  # (category, seed) -> row


def of_methods(table: pa.Table, first: str, second: str, metrics: Sequence[str], tolerance: float) -> list[Difference]:
    """Method `second` against `first` (names as `run --method` takes them) on every board that has both.

    An external result shares no board with a run: it is set against every board of the same data, modality, resolution
    and protocol, and the title of what comes of it says so. Raises NothingToCompare if nothing has both.
    """
    found: list[Difference] = []
    every = boards(table)
    known = {key for board in every for key in board.rows}
    for one, other in product(every, every):
        for a in _named(one, first) if _meet(one, other) else ():
            for b in _named(other, second):
                name = f"{other.labels[b]} against {one.labels[a]}"
                title = one.title if one is other else f"{other.title}; against {one.title}"
                found += _differences(title, name, _cells(one, a), _cells(other, b), metrics, tolerance)
    if not found:
        raise NothingToCompare(
            f"no finished jobs of both {first!r} and {second!r} on one data set, preset and device; have: "
            + (", ".join(sorted(known)) or "none")
        )
    return _ordered(found)


def of_folders(first: pa.Table, second: pa.Table, metrics: Sequence[str], tolerance: float) -> list[Difference]:
    """The rows of `second` against those of `first`: same data set, preset, protocol, device, method and variant.

    A category whose files differ is listed and not compared. Raises NothingToCompare if nothing matches.
    """
    before = {board.group: board for board in boards(first)}
    found: list[Difference] = []
    for board in boards(second):
        old = before.get(board.group)
        for key in board.order if old else ():
            if old is not None and key in old.rows:
                cells = _cells(old, key), _cells(board, key)
                title = board.title if old.machine == board.machine else f"{board.title} (first: {old.machine})"
                found += _differences(title, board.labels[key], *cells, metrics, tolerance)
    if not found:
        have = [
            "; ".join(sorted(f"{board.title}: {', '.join(board.order)}" for board in side)) or "no finished jobs"
            for side in (before.values(), boards(second))
        ]
        raise NothingToCompare(f"the two folders have nothing in common; first: {have[0]}; second: {have[1]}")
    return _ordered(found)


def _meet(one: Board, other: Board) -> bool:
    """Whether results of the two boards may be set side by side: one board, or a run and an external result."""
    if one is other:
        return True
    same = ("dataset", "modality", "resolution", "protocol_version")
    return one.external != other.external and all(getattr(one.group, n) == getattr(other.group, n) for n in same)


def _named(board: Board, name: str) -> list[str]:
    """The entrants of a board that `name` (method or method:variant) means."""
    method, _, variant = name.partition(":")
    found = []
    for key in board.order:
        entrant = board.summary.entrant(key)
        if key == name or (entrant.method, entrant.variant or "") == (method, variant):
            found.append(key)
    return found


def _cells(board: Board, key: str) -> Cells:
    return {(row["category"], row["seed"]): row for row in board.rows[key]}


def _differences(
    board: str, method: str, first: Cells, second: Cells, metrics: Sequence[str], tolerance: float
) -> list[Difference]:
    """One difference per metric and category in common, and one for their mean."""
    found = []
    places = sorted(set(first) & set(second))
    changed = {c for c, seed in places if first[c, seed]["data_fingerprint"] != second[c, seed]["data_fingerprint"]}
    for metric in metrics:
        pairs: Pairs = {}
        for category, seed in places:
            a, b = first[category, seed][metric], second[category, seed][metric]
            if a is not None and b is not None:
                pairs.setdefault(category, {})[seed] = (a, b)
        pairs = _measured_once(pairs, first, second) if metric in SHARED else pairs
        for category, values in pairs.items():
            one = _difference(board, method, metric, category, list(values.values()), tolerance)
            found.append(one if category not in changed else _unjudged(one))
        same = [values for category, values in pairs.items() if category not in changed]
        seeds = sorted(set.intersection(*(set(values) for values in same))) if same else []
        if len(same) > 1 and seeds:
            means = [(fmean(v[seed][0] for v in same), fmean(v[seed][1] for v in same)) for seed in seeds]
            found.append(_difference(board, method, metric, f"mean of {len(same)}", means, tolerance))
    return found


Pairs = dict[str, dict[int, tuple[float, float]]]  # category -> seed -> the two values


def _measured_once(pairs: Pairs, first: Cells, second: Cells) -> Pairs:
    """`pairs` of a figure of speed, those of one measurement on either side once: repeating it tells nothing."""
    once: dict[Any, tuple[str, int]] = {}
    for category, values in pairs.items():
        for seed in values:
            keys = first[category, seed]["speed_key"], second[category, seed]["speed_key"]
            once.setdefault(keys if all(keys) else (category, seed), (category, seed))
    if len(once) == sum(map(len, pairs.values())):
        return pairs
    return {ALONE: {number: pairs[category][seed] for number, (category, seed) in enumerate(once.values())}}


def _difference(
    board: str, method: str, metric: str, category: str, values: Sequence[tuple[float, float]], tolerance: float
) -> Difference:
    """The paired difference of (first, second) values with its interval and its verdict."""
    first, second = fmean(a for a, _ in values), fmean(b for _, b in values)
    changes = [b - a for a, b in values]
    low = high = None
    if len(changes) > 1:
        half = student_quantile(len(changes) - 1, CONFIDENCE) * stdev(changes) / len(changes) ** 0.5
        low, high = fmean(changes) - half, fmean(changes) + half
    limit = tolerance if metric in ACCURACY else COST_TOLERANCE * abs(first)
    moved = fmean(changes) if METRICS[metric].higher_is_better else -fmean(changes)
    sure = low is None or high is None or low > 0 or high < 0
    verdict = "same" if abs(moved) <= limit or not sure else "better" if moved > 0 else "worse"
    return Difference(
        board=board,
        method=method,
        metric=metric,
        category=category,
        first=first,
        second=second,
        low=low,
        high=high,
        pairs=len(values),
        verdict=verdict,
    )


def _unjudged(one: Difference) -> Difference:
    return replace(one, verdict="data differ")


def _ordered(found: Sequence[Difference]) -> list[Difference]:
    """Regressions first, the largest relative to its size at the top; then improvements, then the rest."""
    rank = {"worse": 0, "better": 1, "data differ": 2, "same": 3}

    def place(one: Difference) -> tuple[Any, ...]:
        size = abs(one.difference) if one.metric in ACCURACY else abs(one.difference) / (abs(one.first) or 1)
        return (
            rank[one.verdict],
            -size if rank[one.verdict] < 2 else 0,
            one.board,
            one.method,
            one.metric,
            one.category,
        )

    return sorted(found, key=place)
