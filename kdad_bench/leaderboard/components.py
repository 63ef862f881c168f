"""How much of the spread of a board's figures is category, seed, image sample, number of threads or device."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from statistics import fmean

import numpy as np

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.families import FLOOR
from kdad_bench.leaderboard.grouping import identity_of
from kdad_bench.leaderboard.metric import METRICS, RANKED
from kdad_bench.leaderboard.spread import Parts

SOURCES = {"category": "category", "seed": "seed", "image": "image sample"}  # component -> as shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Threads:
    """What another number of CPU threads does to a job's value; `deviation` is None where seeds hide it."""

    numbers: tuple[int, ...]
    deviation: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Devices:
    """What another device does to the same jobs."""

    of: str  # the title of their boards but for the device
    first: str
    second: str
    metric: str
    deviation: float
    jobs: int


def of_entrants(board: Board, metric: str) -> dict[str, Parts]:
    """The components of each entrant with a value, in the order of the ranking."""
    found = {key: board.summary.parts(key, metric) for key in board.order}
    return {key: one for key, one in found.items() if one is not None}


def pooled(board: Board, metric: str) -> Parts | None:
    """The mean of each variance over the entrants for which it is known; None without a value. A floor, which learns
    nothing that a seed could move, counts where nothing else does."""
    found = of_entrants(board, metric)
    every = [one for key, one in found.items() if board.family(key) != FLOOR] or list(found.values())
    if not every:
        return None
    means = []
    for name in Parts._fields:
        known = [value for one in every if (value := getattr(one, name)) is not None]
        means.append(float(np.mean(known)) if known else None)
    return Parts(*means)


def shares(parts: Parts) -> dict[str, tuple[float, float]]:
    """source -> (standard deviation, share of the sum of the variances), of the components that are known.

    What was estimated below zero is nothing. That comes last: means of estimates that were cut at zero are too large.
    """
    known = {SOURCES[name]: max(0.0, value) for name, value in parts._asdict().items() if value is not None}
    total = sum(known.values())
    return {name: (math.sqrt(value), value / total if total > 0 else 0.0) for name, value in known.items()}


def of_threads(board: Board, metric: str) -> Threads | None:
    """The part of the number of threads where jobs of one entrant and category differ in it, else None.

    One-way analysis of variance within each entrant and category, pooled: the variance between numbers of threads less
    what the seeds within one number put into it, none below zero.
    """
    between = within = groups = inner = sizes = 0.0
    numbers = set()
    for key, rows in board.rows.items():
        values = {(row["category"], row["seed"]): row["threads"] for row in rows if row["threads"]}
        place = board.summary.entrants.index(board.summary.entrant(key))
        for c, category in enumerate(board.summary.categories):
            by_number: dict[int, list[float]] = {}
            for s, seed in enumerate(board.summary.seeds):
                value = board.summary.values[metric][place, c, s]
                if not np.isnan(value) and (category, seed) in values:
                    by_number.setdefault(values[category, seed], []).append(float(value))
            if len(by_number) < 2:
                continue
            numbers |= {*by_number}
            every = [value for group in by_number.values() for value in group]
            mean = fmean(every)
            between += sum(len(group) * (fmean(group) - mean) ** 2 for group in by_number.values())
            within += sum(float(np.var(group)) * len(group) for group in by_number.values())
            groups += len(by_number) - 1
            inner += len(every) - len(by_number)
            sizes += len(every) - sum(len(group) ** 2 for group in by_number.values()) / len(every)
    if not groups:
        return None
    if not inner:
        return Threads(numbers=tuple(sorted(numbers)), deviation=None)
    variance = (between / groups - within / inner) / (sizes / groups)
    return Threads(numbers=tuple(sorted(numbers)), deviation=math.sqrt(max(0.0, variance)))


def of_devices(found: Sequence[Board]) -> Iterator[Devices]:
    """For every two boards that differ in the device alone: how far the same jobs come out apart.

    The standard deviation of one job's value over the two devices: root of half the mean squared difference.
    """
    apart = ("device", "device_name")
    for one, other in combinations(found, 2):
        names = [f.name for f in fields(one.group) if f.name not in (*apart, "synthetic")]
        if any(getattr(one.group, name) != getattr(other.group, name) for name in names):
            continue
        for metric in RANKED:
            values = [_by_job(board, metric) for board in (one, other)]
            common = [values[0][job] - values[1][job] for job in sorted(values[0].keys() & values[1].keys())]
            if common:
                deviation = math.sqrt(float(np.mean(np.square(common))) / 2)
                yield Devices(
                    of=one.title_but_machine,
                    first=one.machine,
                    second=other.machine,
                    metric=metric,
                    deviation=deviation,
                    jobs=len(common),
                )


def _by_job(board: Board, metric: str) -> dict[tuple[str, ...], float]:
    """(entrant, version of this package, category, seed, content of the files) -> value."""
    named = ("kdad_bench", "category", "seed", "data_fingerprint")
    return {
        (*identity_of(row), *(str(row[name]) for name in named)): row[metric]
        for rows in board.rows.values()
        for row in rows
        if row[metric] is not None
    }


LEFT_OUT_OF_EACH = (
    "The jobs of each board ran on one device: what another one adds is not in these shares, nor, where all ran with "
    "one number of threads, what another number adds."
)


def left_out(board: Board) -> str:
    """What the shares of a board leave out: the device, which is one, and threads unless its jobs differ in them."""
    numbers = sorted({row["threads"] for rows in board.rows.values() for row in rows if row["threads"]})
    if len(numbers) > 1:
        return "All these jobs ran on one device: what another one adds is not in these shares."
    threads = f" with {numbers[0]} thread{'s' if numbers[0] > 1 else ''}" if numbers else ""
    return (
        f"All these jobs ran on one device{threads}: what another one, or another number of threads, adds is not in "
        "these shares."
    )


def _unknown(known: Collection[str]) -> str:
    """Which sources the shares do not tell, and in whose part they lie."""
    lies = " and lies in the category's part" if "category" in known else ""
    said = [] if "category" in known else ["there is one category: what another one adds is not known"]
    said += [] if "seed" in known else [f"there is one seed: what another one adds is not known{lies}"]
    said += [] if "image sample" in known else [f"what the sample of images adds is not known{lies}"]
    return "".join(f"; {one}" for one in said)


def in_words(board: Board, metric: str) -> str:
    """One line: the shares of all sources, the largest first; "" where there is one value alone."""
    parts = pooled(board, metric)
    known = {} if parts is None else shares(parts)
    if len(known) < 2 and not any(deviation > 0 for deviation, _ in known.values()):
        return ""
    largest_first = sorted(known.items(), key=lambda item: -item[1][1])
    text = ", ".join(f"{name} {100 * share:.0f} % ({deviation:.3f})" for name, (deviation, share) in largest_first)
    told = f"{METRICS[metric].label}: {text}"
    told += _unknown(known)
    threads = of_threads(board, metric)
    if threads is not None:
        numbers = " and ".join(map(str, threads.numbers))
        told += f"; jobs with {numbers} threads: " + (
            "not told from the seed" if threads.deviation is None else f"{threads.deviation:.4f} between them"
        )
    return told
