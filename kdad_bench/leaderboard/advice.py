"""Which entrants of a results folder are on the front of accuracy and latency, and which of them keep given limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.families import FLOOR
from kdad_bench.leaderboard.inference import SIGNIFICANCE
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.pairs import Comparison
from kdad_bench.leaderboard.spread import CATEGORIES, ONE_TRAINING
from kdad_bench.leaderboard.summary import FEW
from kdad_bench.leaderboard.text import counted

LIMITS = {"latency_ms": "ms", "memory_mb": "MB"}  # what can be limited -> its unit
AXES = ("k_shot", "contamination", "corruption")
AT_START = "memory_at_start_mb"  # in the column `environment`: memory of a job's process as it began
WEIGHT_BYTES = 4  # of a weight: float32
VIEWS = ("fit", "tile")  # columns that say of images seen otherwise than squeezed whole into a square


class NothingKnown(ValueError):
    """The rows cannot say anything: one line that names what lacks and the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One entrant with what it does and costs."""

    key: str  # as `run --method` takes it
    title: str
    accuracy: float
    low: float | None  # of the interval that tables show
    high: float | None
    latency_ms: float  # median, batch 1
    latency_p95_ms: float | None
    memory_mb: float | None  # of the job, training included: beyond its process as it began where rows know that
    process_mb: float | None  # of the whole process, libraries included
    beyond_start: bool  # whether they do; on a GPU nothing lies there before
    weights_mb: float | None  # of the weights alone: inference cannot do with less
    unsteady: bool  # its time varies, or other work was disturbing
    front: bool = False  # nothing is both faster and better

    @property
    def shown(self) -> str:
        """The accuracy with its interval."""
        return f"{self.accuracy:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")

    def perhaps(self, limits: Mapping[str, float]) -> bool:
        """Whether nothing but its memory may pass the limits, and nothing says that inference needs as much."""
        least = limits.get("memory_mb", 0.0)
        return {*self.over(limits)} == {"memory_mb"} and self.weights_mb is not None and self.weights_mb <= least

    def over(self, limits: Mapping[str, float]) -> dict[str, float]:
        """limit -> by how many times its value is passed; without memory a limit of it cannot be kept."""
        found = {}
        for name, limit in limits.items():
            value = getattr(self, name)
            if value is None or value > limit:
                found[name] = float("inf") if value is None else value / limit
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What one board says."""

    board: Board
    metric: str
    limits: Mapping[str, float]
    candidates: tuple[Candidate, ...]  # the most accurate first
    best: Candidate | None  # the most accurate within the limits
    fast: Candidate | None  # the fastest of those within them that are not found worse than `best`, if another
    apart: Comparison | None  # `best` against `fast`
    nearest: Candidate | None  # where none is within the limits
    untested: tuple[Candidate, ...]  # faster within the limits, of which no test could find that they are worse
    perhaps: tuple[Candidate, ...]  # more accurate than `best`, of which rows do not know whether they keep the memory
    left_out: tuple[str, ...]  # a line for each kind of row that has no part in it

    @property
    def front(self) -> tuple[Candidate, ...]:
        """Those that nothing beats in both, the fastest first."""
        return tuple(sorted((one for one in self.candidates if one.front), key=lambda one: one.latency_ms))


def advise(found: Sequence[Board], metric: str, limits: Mapping[str, float]) -> Advice:
    """What the rows behind the boards `found` advise under `limits` (of LIMITS; none is none).

    One board speaks, as nothing is compared across boards: real data before synthetic ones, the longer budget before
    the shorter, plain jobs before points of an axis and other views of an image, the one with the most entrants. Raises
    NothingKnown.
    """
    finished = [board for board in found if board.rows]
    ours = [board for board in finished if not board.external]
    if not ours:
        only = "only rows of other code, whose speed is not known" if finished else "no finished jobs"
        raise NothingKnown(f"{only}; make some with `kdad-bench run --all`")
    told = {board.group: _candidates(board, metric) for board in ours}
    board = min(ours, key=lambda one: _place(one, len(told[one.group])))
    candidates = told[board.group]
    if not candidates:
        raise NothingKnown(_lack(ours, metric))
    within = [one for one in candidates if not one.over(limits)]
    best = within[0] if within else None
    fast = _not_found_worse(board, metric, best, within) if best else None
    faster = [one for one in within if best and one.latency_ms < (fast or best).latency_ms]
    return Advice(
        board=board,
        metric=metric,
        limits=limits,
        candidates=candidates,
        best=best,
        fast=fast,
        apart=board.summary.comparison(best.key, fast.key, metric) if best and fast else None,
        nearest=None if best else min(candidates, key=lambda one: max(one.over(limits).values())),
        untested=tuple(
            one for one in faster if best and not _could_tell(board.summary.comparison(best.key, one.key, metric))
        ),
        perhaps=tuple(one for one in candidates[: candidates.index(best) if best else None] if one.perhaps(limits)),
        left_out=tuple(_left_out(board, found, len(candidates))),
    )


def _candidates(board: Board, metric: str) -> tuple[Candidate, ...]:
    """The entrants with a value in every category and a latency, the floors aside, the most accurate first."""
    found: list[Candidate] = []
    sign = 1 if METRICS[metric].higher_is_better else -1
    for key in board.order:
        accuracy, latency = board.overall(key, metric), board.typical(key, "latency_ms")
        lacks = accuracy is None or not accuracy.complete or key in board.diverged
        if board.family(key) == FLOOR or accuracy is None or lacks or latency is None:
            continue
        low, high = accuracy.shown or (None, None)
        weights, process = board.typical(key, "parameters"), board.typical(key, "peak_memory_mb")
        added = process if board.group.device == "cuda" else _beyond_start(board.rows[key])
        found.append(Candidate(
            key=key, title=board.labels[key], accuracy=accuracy.mean, low=low, high=high, latency_ms=latency,
            latency_p95_ms=board.typical(key, "latency_p95_ms"), memory_mb=process if added is None else added,
            process_mb=process, beyond_start=added is not None,
            weights_mb=None if weights is None else weights * WEIGHT_BYTES / 1e6,
            unsteady=board.unsteady(key, "latency_ms"),
        ))  # fmt: skip
    ordered = sorted(found, key=lambda one: (-sign * one.accuracy, one.latency_ms, one.key))
    return tuple(
        replace(one, front=all(other.latency_ms > one.latency_ms for other in ordered[:place]))
        for place, one in enumerate(ordered)
    )


def _beyond_start(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The median over `rows` of what a job added to its process, 10^6 bytes; None where no row knows how that began."""
    added = []
    for row in rows:
        peak, start = row["peak_memory_mb"], json.loads(row.get("environment") or "{}").get(AT_START)
        if peak is not None and type(start) in (int, float) and 0 <= start <= peak:
            added.append(peak - start)
    return median(added) if added else None


def _place(board: Board, candidates: int) -> tuple[object, ...]:
    """What a board is worth to somebody with images of their own; the least is asked."""
    row = next(iter(board.rows.values()))[0]
    off_the_plain = any(row.get(name) is not None for name in (*AXES, *VIEWS))
    budget = ("paper", "standard").index(board.preset) if board.preset in ("paper", "standard") else 2
    return (
        candidates == 0, off_the_plain, board.group.synthetic, board.together > 0, budget, -candidates,
        -len(board.summary.categories), board.group,
    )  # fmt: skip


def _not_found_worse(board: Board, metric: str, best: Candidate, within: Sequence[Candidate]) -> Candidate | None:
    """The fastest candidate that its own paired test, which could, does not find worse than the best; None if none of
    them is faster than that.

    Of equally fast ones it is the most accurate: the same method with other weights shares one measurement of speed.
    `within` is in that order, and `min` keeps the first. Nothing is corrected for the number of entrants: every one
    more in a folder would let worse ones pass.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1

    def worse(one: Candidate) -> bool:
        found = board.summary.comparison(best.key, one.key, metric)
        if not _could_tell(found):
            return True
        return (found.p or 0.0) < SIGNIFICANCE and sign * (found.difference or 0.0) > 0

    fastest = min((one for one in within if one is best or not worse(one)), key=lambda one: one.latency_ms)
    return None if fastest is best else fastest


def _could_tell(found: Comparison) -> bool:
    """Whether a test was made that can find a difference: Wilcoxon's over n categories gives no p below 2^(1 - n)."""
    if found.p is None:
        return False
    return found.evidence not in (CATEGORIES, ONE_TRAINING) or 2.0 ** (1 - found.categories) < SIGNIFICANCE


def _lack(ours: Sequence[Board], metric: str) -> str:
    """Why no entrant is a candidate."""
    entrants = [(board, key) for board in ours for key in board.rows if board.family(key) != FLOOR]
    if not entrants:
        return "only rows of the floor, which is no advice; make some of other methods with `kdad-bench run`"
    if all(board.typical(key, "latency_ms") is None for board, key in entrants):
        return "no row has a latency; `kdad-bench run ... --measure-speed` with the same --out measures it"
    return f"no method has both a latency and {METRICS[metric].label} in every category; finish the run first"


def _left_out(board: Board, found: Sequence[Board], candidates: int) -> Iterator[str]:
    """A line for each kind of row that has no part in the advice."""
    external = sum(len(rows) for one in found if one.external for rows in one.rows.values())
    if external:
        what = f"{counted(external, 'row')} of other code"
        yield f"left out: {what}, whose speed is not known and whose protocol nobody checked"
    others = [one for one in found if not one.external and one is not board and one.rows]
    if others:
        rows = sum(len(rows) for one in others for rows in one.rows.values())
        what = f"{counted(rows, 'row')} on other data, budgets, settings or machines"
        yield f"left out: {what}: nothing is compared across these"
    lacking = len(board.rows) - candidates
    if lacking:
        ran_away = ", or with a job that was not finite" if board.diverged else ""
        lack = f"floors, or without a latency or a category{ran_away}"
        yield f"left out: {lacking} of {counted(len(board.rows), 'method')}: {lack}"


def limits_of_evidence(advice: Advice) -> Iterator[str]:
    """Where the evidence of the board ends, a line for each limit."""
    board = advice.board
    categories = len(board.summary.categories)
    if board.group.synthetic:
        yield "synthetic images: no statement about any real part"
    if board.short:
        yield f"{board.preset} preset: {board.budget}"
    if categories < FEW:
        yield f"{categories} categor{'y' if categories == 1 else 'ies'}: another kind of part may turn the order round"
    once = [one.key for one in advice.candidates if board.seeds_of(one.key)[1] < 2]
    if once:
        whose = f" of {', '.join(once)}" if len(once) < len(advice.candidates) else ""
        yield f"one seed{whose}: another training of the same method may differ more than two methods do"
    if board.together:
        yield f"one model for {board.together} categories: one for each may do better"
    rows = [row for members in board.rows.values() for row in members]
    if any(row.get(name) is not None for row in rows for name in AXES):
        yield "few, contaminated or corrupted images: points of an axis, not the plain setting"
    if any(row.get(name) is not None for row in rows for name in VIEWS):
        yield "images with their proportions or in tiles: squeezed into squares they may rank otherwise"
    if any(row["teacher_weights"] == "random" for row in rows):
        yield "random teacher weights: real ones change every accuracy"
    if any(one.unsteady for one in advice.candidates):
        yield "some times (~) varied by more than 5 %, or were taken while other work held the machine"
    if advice.untested:
        names = ", ".join(one.key for one in advice.untested)
        yield (
            f"no test can tell whether {names} (faster) are worse: no seed in common, or one seed, no scores of images "
            "for this metric and too few categories"
        )
    if advice.fast is not None:
        yield "what a test does not find worse may be worse: its interval says by how much, as far as these rows tell"
    if "latency_ms" in advice.limits:
        yield (
            f"latency begins with the pixels at {board.group.resolution} px: reading, decoding and reducing a file, "
            "and its way to a GPU, come on top"
        )
    if "memory_mb" in advice.limits:
        yield from _limits_of_memory(advice)
    yield f"images at {board.group.resolution} px: another size changes both speed and accuracy"


def _limits_of_memory(advice: Advice) -> Iterator[str]:
    """What the memory of the candidates holds."""
    known = [one for one in advice.candidates if one.process_mb is not None and one.memory_mb is not None]
    starts = [(one.process_mb or 0.0) - (one.memory_mb or 0.0) for one in known if one.beyond_start]
    if advice.board.group.device == "cuda":
        yield "memory is the peak of what a job had on the GPU, training included: inference alone needs less"
        return
    if starts:
        yield (
            "memory is the peak of a job beyond its process as it began, training and images included: inference alone "
            f"needs less, and Python with its libraries took {median(starts):.0f} MB more"
        )
    if len(starts) < len(known):
        what = "memory of a whole process" if starts else "memory is that of the whole process: it"
        yield f"{what} holds Python, its libraries, images and training; rows of new runs know what the job added"


def images_learnt_from(board: Board) -> int | None:
    """How many normals of a category the trainings behind a board had, in the middle."""
    known = [row["train_images"] for rows in board.rows.values() for row in rows if row["train_images"]]
    return int(median(known) / max(1, board.together)) if known else None
