"""Numbers that others reported, with their source, beside ours: compared within one protocol, refused across two."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.inference import CONFIDENCE
from kdad_bench.leaderboard.metric import ACCURACY
from kdad_bench.leaderboard.student_t import student_quantile
from kdad_bench.leaderboard.text import without

HERE = Path(__file__).parent
TOLERANCE = 0.01  # in AUROC: about what seeds, versions and image resizing move, so no news below it
WIDEST = 0.03  # half of an interval over seeds that still says that two numbers agree
ROUNDED = 0.001 + 1e-9  # by which a mean may miss that of its rows where all were rounded to three digits
DATASETS = {"MVTec AD": "mvtec_ad"}
ORIGINS = ("paper", "authors' code", "other code")
MEAN = "mean"  # the category of a number over all categories of a data set
CATEGORIES = {"mvtec_ad": 15}
# teacher -> how the SHA-256 of its published weights begins, torchvision's
WEIGHTS = {"resnet18": "f37072fd", "vgg16": "397923af", "wide_resnet50_2": "95faca4d"}
NOT_TOLD, NOT_JUDGED = "not told apart", "not judged"
RAN_AWAY = "a job of ours ran away to values that are not finite: the mean of the others flatters it"
LEGEND = (
    f"“agrees”: within {TOLERANCE}, where the 95 % interval over our seeds is no wider than ±{WIDEST}; “{NOT_TOLD}”: "
    f"within that interval, which tells no more; “{NOT_JUDGED}”: fewer than two of our seeds have a value (of a "
    "mean: in every category), and one says nothing of others."
)
PAPER = "paper"
BESIDE = "standard"  # the preset whose figures stand beside published ones without a comparison
SIZES = ("resolution", "image_size", "hold_out")  # changes that make images, or their number, others
# column -> why no published number is for jobs whose rows have a value there: all rows of a board have the same
ELSEWHERE = {
    "corruption": "test images with {}: the published numbers are for images as they are",
    "contamination": "a contamination of {:g}: the published numbers are for clean normals and the whole test set",
    "k_shot": "--train-images {}: the published numbers are for all normal images",
    "setting": "one model for several categories: the published numbers are for one of each",
    "fit": "--fit {}: the published numbers are for squares",
    "tile": "tiles of {} px: the published numbers are for whole images",
}


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
    variant: str | None  # of ours, where the source does what a variant does; None: the default
    teacher: str  # our name of the network
    measured: str  # our metric; "" if there is none
    refusal: str  # why the source's protocol is another one; "" if it is none that is known
    otherwise: str  # why the default is not compared where a variant follows the source

    @property
    def inside(self) -> str:
        """What the source's name of the method has in brackets: whose code it is; "" without any."""
        return self.reported[self.reported.index("(") + 1 : -1] if self.reported.endswith(")") else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """A reported number beside a measured one, or why there is no difference to show."""

    reported: Reported
    key: str  # the entrant of the board
    measured: float | None
    difference: float | None
    verdict: str  # agrees | not told apart | higher | lower | not judged | "" with a refusal
    refusal: str
    half: float | None = None  # half of the 95 % interval over our seeds; None where it is not known


@cache
def reported() -> tuple[Reported, ...]:
    """All reported numbers, in the order of their file; raises ValueError if one has no rule of comparison, or a table
    is damaged."""
    try:
        rules, lines = (_lines(HERE / name) for name in ("comparability.csv", "reported_results.csv"))
        return _with_means_checked([_reported(line, rules) for line in lines])
    except (LookupError, TypeError, AttributeError, ValueError, csv.Error) as error:  # a column, or the end of a line
        raise ValueError(
            f"{HERE}: a table of published numbers is damaged ({error}); install the package again"
        ) from error


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _reported(line: dict[str, str], rules: Sequence[dict[str, str]]) -> Reported:
    known = {rule["reported"] for rule in rules}
    found = dict.fromkeys(rules[0], "") | {"origin": "paper", "refusal": "not part of this benchmark"}
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
        variant=found["variant"] or None,
        teacher=found["teacher"],
        measured=found["measured"] or (line["metric"] if line["metric"] in ACCURACY else ""),
        refusal=found["refusal"],
        otherwise=found["otherwise"],
    )


def _with_means_checked(found: Sequence[Reported]) -> tuple[Reported, ...]:
    """`found`, with a refusal of each mean that is not that of the same source's rows, where all of them are known."""
    rows: dict[tuple[str, ...], list[float]] = {}
    for one in found:
        if not one.category.startswith(MEAN):
            rows.setdefault(_table_of(one), []).append(one.value)

    def checked(one: Reported) -> Reported:
        values = rows.get(_table_of(one), [])
        if one.category != MEAN or len(values) < CATEGORIES[one.dataset] or abs(fmean(values) - one.value) <= ROUNDED:
            return one
        why = f"its printed mean, {one.value:g}, is not that of its rows, {fmean(values):.3f}"
        return replace(one, refusal=f"{one.refusal}; {why}" if one.refusal else why)

    return tuple(map(checked, found))


def _table_of(one: Reported) -> tuple[str, ...]:
    return one.reported, one.backbone, one.dataset, one.metric, one.source


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
    if board.external:
        return "maps of other code: how they were made is not verified"
    if elsewhere(board):
        return elsewhere(board)
    if not any(_of_the_paper(board, key) for key in board.order):
        return _another_preset(board)
    return ""


def elsewhere(board: Board) -> str:
    """Why no paper has jobs like those of this board, whatever their preset: they see other images; "" if one may."""
    row = next((row for rows in board.rows.values() for row in rows), {})
    return "; ".join(why.format(row[name]) for name, why in ELSEWHERE.items() if row.get(name) is not None)


def _of_other_sizes(board: Board) -> bool:
    """Whether a run changed the sizes of its preset, or trained on a part of the images."""
    changes = board.group.preset.partition("[")[2].removesuffix("]").split(",")
    return any(change.partition("=")[0] in SIZES for change in changes)


def _another_preset(board: Board) -> str:
    return f"preset {board.group.preset}: the published numbers are for each paper's own sizes and budget"


def _of_the_paper(board: Board, key: str) -> bool:
    """Whether an entrant's jobs are those of its paper preset, by that name or as the very same job under another."""
    return PAPER in (board.group.preset, *board.also_presets(key))


def beside(board: Board) -> tuple[str, list[Verdict]]:
    """Why nothing published is shown beside this board, or "" and what is.

    The standard preset has the papers' sizes: what is published for the very categories stands beside its figures, and
    is compared only with those of a method whose paper preset is the same. Beside a paper preset stand the means, and
    the categories with a job of the method. Nothing stands beside jobs on other images.
    """
    whole = refusal(board)
    if whole and (board.preset != BESIDE or elsewhere(board) or _of_other_sizes(board)):
        return whole, []
    found = [one for one in verdicts(board) if not one.reported.measured or board.measured(one.reported.measured)]
    found = [
        one for one in found
        if one.reported.category.startswith(MEAN) or one.reported.category in board.covered(one.key)
    ]  # fmt: skip
    if board.preset == BESIDE:
        found = [one for one in found if one.measured is not None and not over_more(board, one.key, one.reported)]
    return "", found


def nothing(board: Board) -> str:
    """What a page says where nothing stands beside a board."""
    known = board.group.dataset in DATASETS.values()
    return f"Nothing published is known here for {'these methods' if known else f'data set {board.dataset}'}."


def verdicts(board: Board) -> list[Verdict]:
    """Every reported number beside ours, in the order of the file.

    Ours is the default of its method and, where a variant does what the source did, that variant too.

    One from another protocol, of a method whose architecture is a reading, or beside a run that departs from its source
    or has another teacher, is listed with the reason and without a difference.
    """
    whole = refusal(board)
    found = []
    for one in reported():
        if one.dataset != board.group.dataset or one.method is None:
            continue
        for key in board.order:
            entrant = board.summary.entrant(key)
            if entrant.method == one.method and entrant.variant in (None, one.variant):
                found.append(_verdict(board, key, one, whole))
    return found


def _verdict(board: Board, key: str, one: Reported, whole: str) -> Verdict:
    why = whole or one.refusal or _not_the_same(board, key, one) or (RAN_AWAY if key in board.diverged else "")
    value, half = _measured(board, key, one)
    if value is None:
        why = why or "not measured here"
    why = why or over_more(board, key, one)
    if why or value is None:
        return Verdict(reported=one, key=key, measured=value, difference=None, verdict="", refusal=why)
    difference = value - one.value
    word = _word(difference, half)
    return Verdict(reported=one, key=key, measured=value, difference=difference, verdict=word, refusal="", half=half)


def _word(difference: float, half: float | None) -> str:
    """What a difference says whose interval over seeds has that half: seeds that scatter widely agree with nothing, and
    one seed with nothing either."""
    if half is None:
        return NOT_JUDGED
    if abs(difference) > max(TOLERANCE, half):
        return "higher" if difference > 0 else "lower"
    return "agrees" if abs(difference) <= TOLERANCE and half <= WIDEST else NOT_TOLD


def beside_ours(board: Board, one: Verdict) -> str:
    """A remark on our number: the categories that it lacks, and the jobs that failed and are not in it."""
    if one.reported.category == MEAN:
        return board.fewer(one.key, one.reported.measured)
    return without(board.failed_in(one.key, one.reported.category))


def over_more(board: Board, key: str, one: Reported) -> str:
    """Why a reported mean is of more than ours; "" if it is not."""
    found = board.overall(key, one.measured) if one.measured else None
    covered = found.categories if found else len(board.covered(key))
    if one.category != MEAN or covered >= CATEGORIES[one.dataset]:
        return ""
    return f"the reported mean is over {CATEGORIES[one.dataset]} categories, ours over {covered}"


def _not_the_same(board: Board, key: str, one: Reported) -> str:
    """Why this entrant did not do what the source did; "" if nothing is known against it."""
    entrant = board.summary.entrant(key)
    if not _of_the_paper(board, key):
        return _another_preset(board)
    if entrant.variant != one.variant:
        return one.otherwise
    if board.deviations(key):
        return f"our run departs from its source: {_listed(board.deviations(key))}"
    row = board.rows[key][0]  # code and weights are those of all: of others it would be another entrant
    if row["code_sha256"]:
        return f"our method is code from a file (its hash begins {row['code_sha256'][:8]}), not this benchmark's"
    teacher = entrant.teacher or "none"
    if one.teacher != teacher:
        return f"reported with teacher {one.teacher}, measured with {teacher}"
    if entrant.teacher_weights == "random":
        return "our teacher has random weights"
    begins = WEIGHTS.get(teacher, "")
    if teacher != "none" and not (begins and (row["teacher_sha256"] or "").startswith(begins)):
        known = f", whose hash begins {begins}" if begins else ""
        return f"our teacher has the weights {entrant.teacher_weights}, not known to be the published ones{known}"
    return ""


def _listed(words: Sequence[str]) -> str:
    return "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")


def _measured(board: Board, key: str, one: Reported) -> tuple[float | None, float | None]:
    """Our mean, and half of its 95 % interval over seeds (the categories are the same ones): None where fewer than two
    seeds have every category."""
    if not one.measured:
        return None, None
    if one.category == MEAN:
        found = board.overall(key, one.measured)
        seeds = len(board.summary.means_of_seeds(key, one.measured))  # those of the deviation: a category may have more
    else:
        found = board.cell(key, one.category, one.measured) if one.category in board.summary.categories else None
        seeds = found.seeds if found else 0
    if found is None or found.std is None or seeds < 2:
        return (found.mean if found else None), None
    return found.mean, student_quantile(seeds - 1, CONFIDENCE) * found.std / seeds**0.5
