"""Two methods, or two results folders, category by category: what differs, by how much, and what got worse."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdad_bench.leaderboard.board import Board, boards, boards_of
from kdad_bench.leaderboard.grouping import identity_of
from kdad_bench.leaderboard.images import METRICS as IMAGE_METRICS
from kdad_bench.leaderboard.images import Images, Job, Noise, of_jobs
from kdad_bench.leaderboard.measurement import SHARED
from kdad_bench.leaderboard.metric import ACCURACY, METRICS
from kdad_bench.leaderboard.pairs import compared
from kdad_bench.leaderboard.spread import NOTHING
from kdad_bench.leaderboard.summary import ran_away

if TYPE_CHECKING:
    import pyarrow as pa

TOLERANCE = 0.005  # of an accuracy: a smaller change is no news
ALONE = "all, measured once"  # stands for the categories that share a measurement of speed
FEW = 4  # jobs that a line names
ALIKE = "all alike"  # what an interval rests on where every seed has the same difference
DATA_DIFFER, RAN_AWAY = "data differ", "ran away"
UNJUDGED = (DATA_DIFFER, RAN_AWAY)  # verdicts that are none
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
    verdict: str  # worse | better | same | one of UNJUDGED

    @property
    def difference(self) -> float:
        """Second minus first."""
        return self.second - self.first

    @property
    def judged_by(self) -> str:
        """What the verdict rests on, in words."""
        return "not judged" if self.verdict in UNJUDGED else self.evidence or "tolerance alone"


Cells = Mapping[tuple[str, int], Mapping[str, Any]]  # (category, seed) -> row


class Sides(NamedTuple):
    """The jobs of one entrant, or of two, that are set against each other."""

    title: str  # of the board, or of both
    name: str
    first: Cells
    second: Cells
    together: bool  # one training of each seed serves all categories, on either side
    away: tuple[Sequence[str], Sequence[str]] = ((), ())  # the jobs of each that ran away to values that are not finite


def of_methods(table: pa.Table, first: str, second: str, metrics: Sequence[str], tolerance: float) -> list[Difference]:
    """Method `second` against `first` (names as `run --method` takes them) on every board that has both.

    An external result shares no board with a run: it is set against every board of the same data, modality, resolution,
    proportions and protocol, and the title of what comes of it says so. Raises NothingToCompare if nothing has both.
    """
    sides = list(_sides_of_methods(table, first, second))
    found = [one for pair in sides for one in _differences(pair, metrics, tolerance)]
    if sides and not found:
        raise NothingToCompare(f"{first!r} and {second!r} {_why_not(sides[0], metrics)}")
    if not found:
        where = "on one data set, preset and device"
        raise NothingToCompare(
            f"no finished jobs of both {first!r} and {second!r} {where}; {_there(table, first, second)}"
        )
    return _ordered(found)


def _there(table: pa.Table, first: str, second: str) -> str:
    """Where each of two entrants that share no board is, or, where one is nowhere, what there is."""
    every = boards(table)
    titles = {name: [board.title for board in every if _named(board, name)] for name in (first, second)}
    if all(titles.values()):
        said = "; ".join(f"{name!r} is on {' and on '.join(found[:FEW])}" for name, found in titles.items())
        return f"{said}; settings that were set make another preset"
    known = {key for board in every for key in board.rows}
    hints = "".join(f"; '{name}' is external:{name}" for name in titles if f"external:{name}" in known)
    return f"have: {', '.join(sorted(known)) or 'none'}{hints}"


def _sides_of_methods(table: pa.Table, first: str, second: str) -> Iterator[Sides]:
    """What `of_methods` sets against each other."""
    every = boards(table)
    for one, other in product(every, every):
        for a in _named(one, first) if _meet(one, other) else ():
            for b in _named(other, second):
                name = f"{other.labels[b]} against {one.labels[a]}"
                title = one.title if one is other else f"{other.title}; against {one.title}"
                together = one.summary.together or other.summary.together
                away = _away(one, a), _away(other, b)
                yield Sides(title, name, _cells(one, a), _cells(other, b), together, away)


def of_folders(first: pa.Table, second: pa.Table, metrics: Sequence[str], tolerance: float) -> list[Difference]:
    """The rows of `second` against those of `first`: same data set, preset, protocol, device, method and variant.

    A category whose files differ is listed and not judged. Raises NothingToCompare if nothing matches.
    """
    sides = [pair for pair in _sides_of_folders(first, second) if pair.first and pair.second]
    found = [one for pair in sides for one in _differences(pair, metrics, tolerance)]
    if sides and not found:
        raise NothingToCompare(f"{sides[0].name} of the two folders {_why_not(sides[0], metrics)}")
    if not found:
        have = [
            "; ".join(sorted(f"{board.title}: {', '.join(board.order)}" for board in boards(side)))
            or "no finished jobs"
            for side in (first, second)
        ]
        raise NothingToCompare(f"the two folders have nothing in common; first: {have[0]}; second: {have[1]}")
    return _ordered(found)


def _sides_of_folders(first: pa.Table, second: pa.Table) -> Iterator[Sides]:
    """What `of_folders` sets against each other, and each entrant of one folder alone with nothing."""
    old_rows, new_rows = first.to_pylist(), second.to_pylist()
    new_rows = _under_names_of(old_rows, new_rows)
    old_rows = _under_names_of(new_rows, old_rows)
    before, after = ({board.group: board for board in boards_of(side)} for side in (old_rows, new_rows))
    for group in dict.fromkeys((*after, *before)):
        old, new = before.get(group), after.get(group)
        board = new or old
        assert board is not None  # the group is of one of the two
        moved = old is not None and new is not None and old.machine != new.machine
        title = f"{board.title} (first: {old.machine})" if old is not None and moved else board.title
        for before_key, after_key in _matched(old, new):
            first = _cells(old, before_key) if old and before_key else {}
            second = _cells(new, after_key) if new and after_key else {}
            labels = [one.labels[key] for one, key in ((new, after_key), (old, before_key)) if one and key]
            together = any(one.summary.together for one in (old, new) if one is not None)
            away = _away(old, before_key), _away(new, after_key)
            yield Sides(title, labels[0] + _of_other_weights(first, second), first, second, together, away)


def _under_names_of(others: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`rows`, those of a preset that `others` have not under a name that they have, where the job is the same by it."""
    have = {(row["dataset"], row["preset"]) for row in others}
    found: list[Mapping[str, Any]] = []
    for row in rows:
        names = (row["preset"], *(row["also_presets"] or ()))
        found.append({**row, "preset": next((one for one in names if (row["dataset"], one) in have), row["preset"])})
    return found


def _matched(old: Board | None, new: Board | None) -> Iterator[tuple[str | None, str | None]]:
    """(key in `old`, key in `new`) of each entrant, None where one side lacks it.

    The same in everything first, then those of another code, then of other weights of the same teacher, as long as no
    other entrant could be meant: keys are those of one board, and say only what tells its own entrants apart.
    """
    before, after = (
        {key: identity_of(one.rows[key][0]) for key in one.order if key in one.rows} if one else {}
        for one in (old, new)
    )
    found: dict[str, str] = {}  # key in `new` -> key in `old`
    for length in (5, 4, 3):  # with weights and code, without the code, with the teacher's name alone
        known = [Counter(identity[:length] for identity in side.values()) for side in (before, after)]
        meant = {identity[:length]: key for key, identity in before.items()}
        for key, identity in list(after.items()):
            if all(side[identity[:length]] == 1 for side in known):
                found[key] = meant[identity[:length]]
                del after[key], before[found[key]]
    yield from ((found.get(key), key) for key in (new.order if new else ()) if key in found or key in after)
    yield from ((key, None) for key in before)


def _of_other_weights(first: Cells, second: Cells) -> str:
    """What a name says of a teacher whose weights are others on the two sides."""
    rows = [next(iter(side.values()), None) for side in (first, second)]
    if None in rows:
        return ""
    weights = [f"{row['teacher_weights'] or 'none'} {(row['teacher_sha256'] or '')[:8]}".strip() for row in rows if row]
    return "" if weights[0] == weights[1] else f" (the teacher's weights: {weights[0]}, second {weights[1]})"


def _why_not(sides: Sides, metrics: Sequence[str]) -> str:
    """Why jobs of one board have no difference, in words that follow their name."""
    if set(sides.first) & set(sides.second):
        return f"have no job with a value of {' or '.join(metrics)} on both sides; choose another --metric"
    has = [_few(f"{category} seed {seed}" for category, seed in sorted(side)) for side in (sides.first, sides.second)]
    return (
        f"have no category with a seed in common; first: {has[0]}; second: {has[1]}; run one of them with the --seeds "
        "of the other"
    )


def _few(names: Iterable[str]) -> str:
    """The first four of them."""
    every = list(names)
    return ", ".join(every[:FEW]) + (", ..." if len(every) > FEW else "")


def one_sided_of_methods(table: pa.Table, first: str, second: str, metrics: Sequence[str]) -> list[str]:
    """What of the boards that have both methods `of_methods` cannot compare: a line for each board that has such."""
    return _lines_of(_sides_of_methods(table, first, second), metrics)


def one_sided_of_folders(first: pa.Table, second: pa.Table, metrics: Sequence[str]) -> list[str]:
    """What only one of the folders has of jobs and figures: a line for each board and entrant that has such."""
    return _lines_of(_sides_of_folders(first, second), metrics)


def ran_away_of_methods(table: pa.Table, first: str, second: str) -> list[str]:
    """Why `of_methods` judges nothing of a board: a line for each side of which a job ran away."""
    return _lines_on_those_away(_sides_of_methods(table, first, second))


def ran_away_of_folders(first: pa.Table, second: pa.Table) -> list[str]:
    """Why `of_folders` does not judge an entrant: a line for each side of which a job ran away."""
    return _lines_on_those_away(_sides_of_folders(first, second))


def _lines_on_those_away(every: Iterable[Sides]) -> list[str]:
    return [
        f"Not judged, for jobs that ran away to values that are not finite on the {side} side: "
        f"{sides.name}, {sides.title}: {_few(names)}"
        for sides in every
        if set(sides.first) & set(sides.second)
        for side, names in zip((FIRST, SECOND), sides.away, strict=True)
        if names
    ]


def _lines_of(every: Iterable[Sides], metrics: Sequence[str]) -> list[str]:
    return [
        f"Not compared, as only the {side} side has it: {sides.name}, {sides.title}: {_few(names)}"
        for sides in every
        for side, names in zip((FIRST, SECOND), _one_sided(sides, metrics), strict=True)
        if names
    ]


def _one_sided(sides: Sides, metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """The jobs, and the figures of jobs of both, that the first side has alone, and those of the second."""
    found: tuple[list[str], list[str]] = [], []
    for category, seed in sorted({*sides.first, *sides.second}):
        rows = sides.first.get((category, seed)), sides.second.get((category, seed))
        job = f"{category} seed {seed}"
        for names, own, other in zip(found, rows, reversed(rows), strict=True):
            if own is not None and other is None:
                names.append(job)
            elif own is not None and other is not None:
                lone = [name for name in metrics if own[name] is not None and other[name] is None]
                names += [f"{name} of {job}" for name in lone]
    return found


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


def _away(board: Board | None, key: str | None) -> list[str]:
    """The jobs of an entrant that ran away to values that are not finite."""
    failed = board.summary.failed if board is not None else ()
    return [f"{category} seed {seed}" for one, category, seed, why in failed if one == key and ran_away(why)]


def _differences(sides: Sides, metrics: Sequence[str], tolerance: float) -> list[Difference]:
    """One difference per metric and category in common, and one for their mean; none is judged of a side that ran away,
    as on a board."""
    first, second = sides.first, sides.second
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
            one = _difference(sides, metric, category, {category: values}, noises, tolerance)
            found.append(one if category not in changed else _unjudged(one, DATA_DIFFER))
        same = {category: values for category, values in pairs.items() if category not in changed}
        if len(same) > 1:
            found.append(_difference(sides, metric, f"mean of {len(same)}", same, noises, tolerance))
    return [_unjudged(one, RAN_AWAY) if any(sides.away) and one.verdict != DATA_DIFFER else one for one in found]


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
    of: Sides,
    metric: str,
    category: str,
    pairs: Pairs,
    noises: Mapping[str, Noise | None],
    tolerance: float,
) -> Difference:
    """The paired difference over the categories of `pairs`, judged as the leaderboard judges a pair (`compared`)."""
    seeds = sorted({seed for values in pairs.values() for seed in values})
    lacking = (math.nan, math.nan)
    values = np.array([[of_seed.get(seed, lacking) for seed in seeds] for of_seed in pairs.values()])
    sign = 1 if METRICS[metric].higher_is_better else -1
    sides = (values[..., 1], values[..., 0])  # [categories, seeds]
    known = [noises[name] for name in pairs]
    found = compared(metric, (SECOND, FIRST), sides, seeds, known, sign, together=of.together)
    difference, low, high, evidence = found.difference or 0.0, found.low, found.high, found.evidence
    if low is None or high is None:  # nothing varies: over several seeds that is known, with one it is not
        alike = found.pairs > found.categories and _not_by_chance(metric, pairs, noises)
        low, high, evidence = (difference, difference, ALIKE) if alike else (None, None, NOTHING)
    first = float(np.nanmean(values[..., 0], axis=1).mean())
    limit = tolerance if metric in ACCURACY else COST_TOLERANCE * abs(first)
    sure = low is None or high is None or low > 0 or high < 0
    moved = sign * difference
    return Difference(
        board=of.title,
        method=of.name,
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


def _not_by_chance(metric: str, pairs: Pairs, noises: Mapping[str, Noise | None]) -> bool:
    """Whether seeds that tie are the same in the scores too: figures of a few whole images tie by chance."""
    return metric not in IMAGE_METRICS or all(
        (noise := noises[category]) is not None
        and all((side, seed) in noise.jobs for seed in values for side in (FIRST, SECOND))
        for category, values in pairs.items()
    )


def _unjudged(one: Difference, why: str) -> Difference:
    return replace(one, verdict=why, low=None, high=None, evidence=NOTHING)


def _ordered(found: Sequence[Difference]) -> list[Difference]:
    """Regressions first, the largest relative to its size at the top; then improvements, then the rest."""
    rank = {"worse": 0, "better": 1, **dict.fromkeys(UNJUDGED, 2), "same": 3}

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
