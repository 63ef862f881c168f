"""Two methods, or two results folders, category by category: what differs, by how much, and what got worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from kdad_bench.leaderboard.board import Board, boards
from kdad_bench.leaderboard.images import METRICS as IMAGE_METRICS
from kdad_bench.leaderboard.images import Images, Job, Noise, of_jobs
from kdad_bench.leaderboard.measurement import SHARED
from kdad_bench.leaderboard.metric import ACCURACY, METRICS
from kdad_bench.leaderboard.pairs import compared
from kdad_bench.leaderboard.spread import NOTHING

if TYPE_CHECKING:
    import pyarrow as pa

TOLERANCE = 0.005  # of an accuracy: a smaller change is no news
ALONE = "all, measured once"  # stands for the categories that share a measurement of speed
ALIKE = "all alike"  # what an interval rests on where every seed has the same difference
FIRST, SECOND = "first", "second"  # the two sides, as jobs of one category
COST_TOLERANCE = 0.10  # of a cost, relative: timings of another day differ by that


class NothingToCompare(ValueError):
    """The two sides share nothing that may be compared; the message says what each has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One category (or the mean over those in common): the second side minus the first, paired by seed and image."""

    board: str
    method: str
    metric: str
    category: str
    first: float
    second: float
    low: float | None  # 95 % interval of the difference; None where neither images nor seeds tell
    high: float | None
    pairs: int  # (category, seed)
    evidence: str  # what the interval rests on: images and seeds | images | seeds | all alike; "" without one
    verdict: str  # worse | better | same | "data differ"

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first


Cells = Mapping[tuple[str, int], Mapping[str, Any]]  # (category, seed) -> row


def of_methods(table: pa.Table, first: str, second: str, metrics: Sequence[str], tolerance: float) -> list[Difference]:
    """Method `second` against `first` (names as `run --method` takes them) on every board that has both.

    An external result shares no board with a run: it is set against every board of the same data, modality, resolution,
    proportions and protocol, and the title of what comes of it says so. Raises NothingToCompare if nothing has both.
    """
    found: list[Difference] = []
    every = boards(table)
    known = {key for board in every for key in board.rows}
    apart = []
    for one, other in product(every, every):
        for a in _named(one, first) if _meet(one, other) else ():
            for b in _named(other, second):
                name = f"{other.labels[b]} against {one.labels[a]}"
                title = one.title if one is other else f"{other.title}; against {one.title}"
                made = _differences(title, name, _cells(one, a), _cells(other, b), metrics, tolerance)
                found += made
                apart += [] if made else [(_cells(one, a), _cells(other, b))]
    if apart and not found:
        raise NothingToCompare(f"{first!r} and {second!r} {_why_not(*apart[0], metrics)}")
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
    apart = []
    for board in boards(second):
        old = before.get(board.group)
        for key in board.order if old else ():
            if old is not None and key in old.rows:
                cells = _cells(old, key), _cells(board, key)
                title = board.title if old.machine == board.machine else f"{board.title} (first: {old.machine})"
                made = _differences(title, board.labels[key], *cells, metrics, tolerance)
                found += made
                apart += [] if made else [(key, cells)]
    if apart and not found:
        raise NothingToCompare(f"{apart[0][0]!r} of the two folders {_why_not(*apart[0][1], metrics)}")
    if not found:
        have = [
            "; ".join(sorted(f"{board.title}: {', '.join(board.order)}" for board in side)) or "no finished jobs"
            for side in (before.values(), boards(second))
        ]
        raise NothingToCompare(f"the two folders have nothing in common; first: {have[0]}; second: {have[1]}")
    return _ordered(found)


def _why_not(first: Cells, second: Cells, metrics: Sequence[str]) -> str:
    """Why jobs of one board have no difference, in words that follow their name."""
    if set(first) & set(second):
        return f"have no job with a value of {' or '.join(metrics)} on both sides; choose another --metric"
    has = [", ".join(f"{category} seed {seed}" for category, seed in sorted(side)[:4]) for side in (first, second)]
    return (
        f"have no category with a seed in common; first: {has[0]}{', ...' if len(first) > 4 else ''}; second: {has[1]}"
        f"{', ...' if len(second) > 4 else ''}; run one of them with the --seeds of the other"
    )


def _meet(one: Board, other: Board) -> bool:
    """Whether results of the two boards may be set side by side: one board, or a run and an external result that were
    judged on the same images, in the same proportions."""
    if one is other:
        return True
    same = ("dataset", "modality", "resolution", "protocol_version")
    alike = one.external != other.external and all(getattr(one.group, n) == getattr(other.group, n) for n in same)
    return alike and _judged_on(one) == _judged_on(other)


def _judged_on(board: Board) -> tuple[Any, ...]:
    """What makes the test images of a board others than those of a plain one."""
    row: Mapping[str, Any] = next((row for rows in board.rows.values() for row in rows), {})
    return tuple(row.get(name) for name in ("fit", "corruption", "contamination"))


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
    images = _images(first, second, places)
    for metric in metrics:
        pairs: Pairs = {}
        for category, seed in places:
            a, b = first[category, seed][metric], second[category, seed][metric]
            if a is not None and b is not None:
                pairs.setdefault(category, {})[seed] = (a, b)
        pairs = _measured_once(pairs, first, second) if metric in SHARED else pairs
        noises = {category: _noise(metric, values, images.get(category)) for category, values in pairs.items()}
        for category, values in pairs.items():
            one = _difference(board, method, metric, category, {category: values}, noises, tolerance)
            found.append(one if category not in changed else _unjudged(one))
        same = {category: values for category, values in pairs.items() if category not in changed}
        if len(same) > 1:
            found.append(_difference(board, method, metric, f"mean of {len(same)}", same, noises, tolerance))
    return found


Pairs = dict[str, dict[int, tuple[float, float]]]  # category -> seed -> the two values


def _images(first: Cells, second: Cells, places: Sequence[tuple[str, int]]) -> dict[str, Images]:
    """category -> the images that both sides have scores of."""
    rows: dict[str, list[tuple[Job, Mapping[str, Any]]]] = {}
    for category, seed in places:
        both = [((FIRST, seed), first[category, seed]), ((SECOND, seed), second[category, seed])]
        rows.setdefault(category, []).extend(both)
    found = {category: of_jobs(members) for category, members in rows.items()}
    return {category: images for category, images in found.items() if images is not None}


def _noise(metric: str, values: Mapping[int, tuple[float, float]], images: Images | None) -> Noise | None:
    """What the images of a category do to the values of both sides; None where the rows do not tell."""
    if images is None or metric not in IMAGE_METRICS:
        return None
    return images.noise(
        metric, {(side, seed): pair[i] for seed, pair in values.items() for i, side in enumerate((FIRST, SECOND))}
    )


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
    board: str,
    method: str,
    metric: str,
    category: str,
    pairs: Pairs,
    noises: Mapping[str, Noise | None],
    tolerance: float,
) -> Difference:
    """The paired difference over the categories of `pairs`, judged as the leaderboard judges a pair (`compared`)."""
    seeds = sorted({seed for values in pairs.values() for seed in values})
    lacking = (math.nan, math.nan)
    values = np.array([[of.get(seed, lacking) for seed in seeds] for of in pairs.values()])  # [categories, seeds, 2]
    sign = 1 if METRICS[metric].higher_is_better else -1
    sides = (values[..., 1], values[..., 0])
    found = compared(metric, (SECOND, FIRST), sides, seeds, [noises[name] for name in pairs], sign)
    difference, low, high, evidence = found.difference or 0.0, found.low, found.high, found.evidence
    if low is None or high is None:  # nothing varies: over several seeds that is known, with one it is not
        repeated = found.pairs > found.categories
        low, high, evidence = (difference, difference, ALIKE) if repeated else (None, None, NOTHING)
    first = float(np.nanmean(values[..., 0], axis=1).mean())
    limit = tolerance if metric in ACCURACY else COST_TOLERANCE * abs(first)
    sure = low is None or high is None or low > 0 or high < 0
    moved = sign * difference
    return Difference(
        board=board,
        method=method,
        metric=metric,
        category=category,
        first=first,
        second=float(np.nanmean(values[..., 1], axis=1).mean()),
        low=low,
        high=high,
        pairs=found.pairs,
        evidence=evidence,
        verdict="same" if abs(moved) <= limit or not sure else "better" if moved > 0 else "worse",
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
