"""Numbers that others reported, with their source, beside ours: compared within one protocol, refused across two."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.row import ACCURACY
from kdad_bench.leaderboard.student_t import student_quantile
from kdad_bench.leaderboard.summary import CONFIDENCE

HERE = Path(__file__).parent
TOLERANCE = 0.01  # in AUROC: about what seeds, versions and image resizing move, so no news below it
DATASETS = {"MVTec AD": "mvtec_ad"}
ORIGINS = ("paper", "authors' code", "other code")
MEAN = "mean"  # the category of a number over all categories of a data set
CATEGORIES = {"mvtec_ad": 15}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """One number as its source prints it, and whether it may stand beside ours."""

    reported: str  # method as the source names it
    backbone: str
    dataset: str  # our name of the data set
    category: str  # or MEAN
    metric: str  # as the source names it
    value: float
    source: str
    origin: str  # paper | authors' code | other code
    method: str | None  # our name; None for a method that is not part of this benchmark
    teacher: str  # our name of the network
    measured: str  # our metric; "" if there is none
    refusal: str  # why the source's protocol is another one; "" if it is none that is known


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A reported number beside a measured one, or why there is no difference to show."""

    reported: Reported
    measured: float | None
    difference: float | None
    verdict: str  # agrees | higher | lower | "" with a refusal
    refusal: str


@cache
def reported() -> tuple[Reported, ...]:
    """All reported numbers, in the order of their file; raises ValueError if one has no rule of comparison."""
    with (HERE / "comparability.csv").open(encoding="utf-8", newline="") as file:
        rules = list(csv.DictReader(file))
    with (HERE / "reported_results.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_reported(line, rules) for line in csv.DictReader(file))


def _reported(line: dict[str, str], rules: Sequence[dict[str, str]]) -> Reported:
    known = {rule["reported"] for rule in rules}
    found = {"origin": "paper", "method": "", "teacher": "", "measured": "", "refusal": "not part of this benchmark"}
    if line["method"] in known:
        matching = [rule for rule in rules if _applies(rule, line)]
        if len(matching) != 1:
            raise ValueError(
                f"comparability.csv: {len(matching)} rules, not one, for {line['method']!r} {line['metric']!r} "
                f"of {line['source']!r}"
            )
        found = matching[0]
    return Reported(
        reported=line["method"],
        backbone=line["backbone"],
        dataset=DATASETS[line["dataset"]],
        category=line["category"],
        metric=line["metric"],
        value=float(line["value"]),
        source=line["source"],
        origin=found["origin"],
        method=found["method"] or None,
        teacher=found["teacher"],
        measured=found["measured"] or (line["metric"] if line["metric"] in ACCURACY else ""),
        refusal=found["refusal"],
    )


def _applies(rule: dict[str, str], line: dict[str, str]) -> bool:
    # a recomputed mean of a table has the protocol of that table, whatever its source line starts with
    source = line["source"].removeprefix("recomputed from ")
    return (
        rule["reported"] == line["method"]
        and rule["backbone"] in ("*", line["backbone"])
        and rule["metric"] in ("*", line["metric"])
        and source.startswith(rule["source_starts"])
    )


def refusal(board: Board) -> str:
    """Why nothing on this board may be compared with a published number; "" if it may."""
    group = board.group
    if group.synthetic:
        return "synthetic data: nothing is published for them"
    if group.dataset not in DATASETS.values():
        return f"nothing published for data set {board.dataset} is known here"
    if group.modality not in ("", "rgb"):
        return f"the published numbers are for RGB images, not {group.modality}"
    if group.preset != "paper":
        return f"preset {group.preset}: the published numbers are for each paper's own sizes and budget"
    return ""


def verdicts(board: Board) -> list[Verdict]:
    """Every reported number of the methods on this board (default variants) beside ours, in the order of the file.

    One from another protocol, or measured with another teacher, is listed with the reason and without a difference.
    """
    whole = refusal(board)
    found = []
    for one in reported():
        if one.dataset != board.group.dataset or one.method is None:
            continue
        for key in board.order:
            entrant = board.summary.entrant(key)
            if entrant.method == one.method and entrant.variant is None:
                found.append(_verdict(board, key, one, whole))
    return found


def _verdict(board: Board, key: str, one: Reported, whole: str) -> Verdict:
    why = whole or one.refusal
    teacher = board.summary.entrant(key).teacher or "none"
    if not why and one.teacher != teacher:
        why = f"reported with teacher {one.teacher}, measured with {teacher}"
    value, half = _measured(board, key, one)
    if value is None:
        why = why or "not measured here"
    elif one.category == MEAN and (covered := len(board.covered(key))) < CATEGORIES[one.dataset]:
        why = why or f"the reported mean is over {CATEGORIES[one.dataset]} categories, ours over {covered}"
    if why or value is None:
        return Verdict(reported=one, measured=value, difference=None, verdict="", refusal=why)
    difference = value - one.value
    word = "agrees" if abs(difference) <= max(TOLERANCE, half) else "higher" if difference > 0 else "lower"
    return Verdict(reported=one, measured=value, difference=difference, verdict=word, refusal="")


def _measured(board: Board, key: str, one: Reported) -> tuple[float | None, float]:
    """Our mean, and half of its 95 % interval over seeds (the categories are the same ones): 0 with one seed."""
    if not one.measured:
        return None, 0.0
    if one.category == MEAN:
        found = board.overall(key, one.measured)
    else:
        found = board.cell(key, one.category, one.measured) if one.category in board.summary.categories else None
    if found is None or found.std is None or found.seeds < 2:
        return (found.mean if found else None), 0.0
    return found.mean, student_quantile(found.seeds - 1, CONFIDENCE) * found.std / found.seeds**0.5
