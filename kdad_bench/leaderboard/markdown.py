"""leaderboard.md: the rows of a results folder as a page that reads well on GitHub. Only renderers round."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard import curve_tables, thresholds
from kdad_bench.leaderboard.axes import curves, shown_whole
from kdad_bench.leaderboard.board import MOST_LOAD, UNSTEADY, Board, boards
from kdad_bench.leaderboard.families import FAMILIES
from kdad_bench.leaderboard.floor import below_floor
from kdad_bench.leaderboard.images import SCORED
from kdad_bench.leaderboard.markdown_pairs import components_of, devices, who_beats_whom
from kdad_bench.leaderboard.markdown_parts import marked, table_of
from kdad_bench.leaderboard.markdown_published import published_and_measured
from kdad_bench.leaderboard.marks import RAN_AWAY, cell_marks, overall_marks
from kdad_bench.leaderboard.metric import ACCURACY, METRICS, RANKED, shown_in
from kdad_bench.leaderboard.numbers import MISSING, deviation, interval, large, number
from kdad_bench.leaderboard.provenance import provenance
from kdad_bench.leaderboard.store import Problem, Results
from kdad_bench.leaderboard.text import counted, without
from kdad_bench.leaderboard.text import markdown as _text

if TYPE_CHECKING:
    import pyarrow as pa


def leaderboard(results: Results) -> str:
    """The whole page. It depends on the rows alone: not on their order, the folder's name, or the day."""
    return page(boards(results.table), results.table, results.problems)


def page(found: Sequence[Board], table: pa.Table, problems: Sequence[Problem] = ()) -> str:
    """The page of the boards `found` in `table` (columns DRAWN, each job once)."""
    rows = table.drop_columns([name for name in SCORED if name in table.column_names]).to_pylist()
    drawn = curves(found)
    whole = shown_whole(found, drawn)
    notes = _notes(whole)
    failed = [(board, failure) for board in found for failure in board.summary.failed]
    parts = ["# Leaderboard", _overview(rows, len(failed))]
    if notes or any(board.rows for board in found):
        parts.append(LEGEND)
    parts += curve_tables.sections(drawn)
    for board in whole:
        if board.rows:
            parts += [f"## {_text(board.title)}", *_warning(board), *_board_sections(board, notes)]
    parts += devices(found)
    if failed:
        parts += ["## Failed jobs", _failed(failed)]
    left_out = [(board, problem) for board in found for problem in board.summary.problems]
    if problems or left_out:
        parts += ["## Left out", _left_out(problems, left_out)]
    origin = [f"- {label}: {_text(values)}" for label, values in provenance(rows)]
    if origin:
        parts += ["## How these numbers were made", "\n".join(origin)]
    if notes:
        parts.append("\n".join(f"[^{place}]: {text}" for text, place in notes.items()))
    return "\n\n".join(parts) + "\n"


LEGEND = """\
Rows that differ in data set, modality, resolution, preset, protocol, device or origin are never averaged: each such
group has its own section. Accuracies are in [0, 1], higher is better.

In the ranking, [low, high] is the 95 % interval of the mean: with six categories or more for other categories of the
same kind, by Student's t over the categories; with fewer, where that is nearly all from 0 to 1, for these very ones.
Methods whose intervals overlap may well be told apart, because they saw the same images. In the tables by category, ±
is the standard deviation over seeds (n − 1); without ± there was one seed.
**Bold** is the best value and <ins>underlined</ins> the second, only where it differs from the next one beyond noise:
for a mean by the corrected test of "Who beats whom", in one category by the 95 % interval of the paired difference."""


def _overview(rows: Sequence[Mapping[str, Any]], failed: int) -> str:
    if not rows:
        return "No results yet: `kdad-bench run --all` makes some."
    ok = [row for row in rows if row["status"] == "ok"]
    counts = (("method", "method"), ("data set", "dataset"), ("seed", "seed"))
    line = counted(len(ok), "finished job")
    if ok:
        line += ": " + ", ".join(counted(len({row[column] for row in ok}), what) for what, column in counts)
    return line + (f". **{counted(failed, 'job')} failed** (listed below)." if failed else ".")


def _warning(board: Board) -> list[str]:
    """What a reader must know before the first number."""
    lines = []
    if board.external:
        lines.append(
            "**External, protocol not verified**: other code made these maps, and only their scoring is this "
            "benchmark's. What it learnt from, and whether it saw test images, is not known."
        )
    if board.together:
        lines.append(
            "**Multi-class**: one model has learnt from all of these categories; numbers of a model for each are "
            "others. A training moves all categories at once: in intervals and tests it counts once."
        )
    if board.short:
        lines.append(f"**{_text(board.preset.capitalize())} preset**: {board.budget}.")
    if board.group.synthetic:
        lines.append("**Synthetic data**: procedurally generated images, no substitute for a real data set.")
    if board.mixture:
        lines.append(
            f"**Rows of several versions**: {_text(board.mixture)}. Running the older jobs again makes them alike."
        )
    return ["> [!WARNING]\n" + "\n>\n".join(f"> {line}" for line in lines)] if lines else []


def _board_sections(board: Board, notes: Mapping[str, int]) -> list[str]:
    parts = ["### Ranking", ranking(board, notes), "### Speed beside accuracy", speed(board, notes)]
    for metric in board.headline:
        parts += [f"### {METRICS[metric].label} by category", by_category(board, metric, notes)]
    parts.append(f"<details><summary>All accuracy metrics</summary>\n\n{_all_metrics(board, notes)}\n\n</details>")
    if trusted := thresholds.told(board):
        parts += ["### Thresholds from unseen normals", _thresholds(board, trusted)]
    if len(board.rows) > 1 and board.headline:
        parts += ["### Who beats whom", who_beats_whom(board)]
    if board.headline:
        parts += ["### Where the spread comes from", components_of(board)]
    parts += ["### Published and measured", published_and_measured(board)]
    return parts


def ranking(board: Board, notes: Mapping[str, int]) -> str:
    """The overall ranking: means with intervals over the headline metrics, ordered by average rank.

    Where there are several families each entrant has its place within its own beside that among all.
    """
    marks = {metric: overall_marks(board, metric) for metric in board.headline}
    apart = len(board.families) > 1
    header = ["#", *(["in family"] if apart else []), "method", *(["family"] if apart else []), "teacher"]
    left = (2, 3, 4) if apart else (1, 2)
    header += [*(board.heading(m) for m in board.headline), "average rank", "seeds", "categories"]
    every = len(board.everything)
    lines = []
    for key in board.order:
        rank = board.average_ranks.get(key)
        cells = [str(board.places.get(key, MISSING))]
        cells += [str(board.places_in_family.get(key, MISSING))] if apart else []
        cells += [_named(board, key, notes), *([_text(board.family(key))] if apart else []), _teacher(board, key)]
        for metric in board.headline:
            text = interval(board.overall(key, metric)) + board.fewer(key, metric)
            cells.append(marked(text, marks[metric].get(key, "")))
        covered = len(board.covered(key))
        cells += [
            f"{rank:.2f}" if rank is not None else MISSING,
            " to ".join(map(str, sorted({*board.seeds_of(key)}))),
            str(covered) if covered == every else f"{covered} of {every}",
        ]
        lines.append(cells)
    marked_so = any(found for found in marks.values())
    return f"{table_of(header, lines, left=left)}\n\n{_legend_of_ranking(board, marked_so)}"


def _legend_of_ranking(board: Board, marked_so: bool) -> str:
    """What ranks, intervals, marks and places mean, and how far ranks must lie apart to be told apart."""
    legend = board.rank_words
    if any((found := board.overall(key, m)) and found.shown for key in board.rows for m in board.headline):
        legend += f" [low, high]: 95 % interval of the mean{board.interval_words}"
        legend += "; none where neither seeds nor images tell." if _without_interval(board) else "."
    if marked_so:
        legend += (
            " **Bold**: the best, <ins>underlined</ins>: the second, only where the corrected paired test tells it "
            "from the next."
        )
    if len(board.families) > 1:
        legend += " In family: the place when only the entrants of one family are ranked ("
        legend += "; ".join(f"{name}: {FAMILIES[name]}" for name in board.families if name in FAMILIES) + ")."
    if board.headline and any(key not in board.average_ranks and key not in board.diverged for key in board.rows):
        legend += " A method that lacks a category is not ranked: its mean is over other data."
    if board.diverged & {*board.rows}:
        legend += f" A method {RAN_AWAY} is neither ranked nor marked: the mean of the others flatters it."
    ranks = [board.ranks(metric) for metric in RANKED if metric in board.headline]
    distances = {found.critical_difference for found in ranks if found.critical_difference is not None}
    if distances and len(board.rows) > 2:
        gaps = " and ".join(f"{value:.2f}" for value in sorted(distances))
        legend += f" In one metric, average ranks closer than the critical difference ({gaps}) are not told apart"
        widest = max(max(found.average.values()) - min(found.average.values()) for found in ranks if found.average)
        legend += ": here none is." if min(distances) > widest else "."
        if board.together:
            legend += " It takes categories for independent: other trainings may part ranks that lie further apart."
    return legend


def _without_interval(board: Board) -> bool:
    """Whether some mean has no interval."""
    every = [board.overall(key, metric) for key in board.rows for metric in board.headline]
    return any(found is not None and found.shown is None for found in every)


def speed(board: Board, notes: Mapping[str, int]) -> str:
    """What a method costs beside how well it does, the fastest first."""
    accuracy = [metric for metric in RANKED if metric in board.headline]
    costs = (*shown_in("speed"), *(shown_in("alone") if board.alone else ()))

    def latency(key: str) -> tuple[bool, float]:
        value = board.typical(key, "latency_ms")
        return (value is None, value or 0.0)

    lines = []
    for key in sorted(board.order, key=latency):
        cells = [_named(board, key, notes)]
        for metric in accuracy:
            found = board.overall(key, metric)
            cells.append((f"{found.mean:.3f}" if found else MISSING) + board.fewer(key, metric))
        lines.append([*cells, *(_cost(board, key, metric) for metric in costs)])
    headings = ["method", *(board.heading(metric) for metric in accuracy), *(METRICS[metric].short for metric in costs)]
    text = table_of(headings, lines, left=(0,))
    legend = "Medians over jobs. ms/image: batch 1, networks, map and score. images/s: at the best batch."
    legend += _of_speed(board)
    if " ~" in text:
        legend += f" ~: varies between jobs by more than {UNSTEADY * 100:g} % (standard deviation)"
        busy = f", or timed while other work held over {MOST_LOAD * 100:g} % of the processors"
        legend += busy * bool(board.alone) + "."
    return f"{text}\n\n{legend}"


def _of_speed(board: Board) -> str:
    """How speed was measured where it was measured alone; p95 and p99 are percentiles, the first image is cold."""
    if not board.alone:
        return ""
    known = any(board.typical(key, "one_thread_latency_ms") is not None for key in board.rows)
    single = ", and with one" if known else ""
    return (
        f" Speed: measured once per method and settings, with no job beside it, with {board.alone_words}{single}; p95, "
        "p99: percentiles of ms/image; first: the cold first image."
    )


def _cost(board: Board, key: str, metric: str) -> str:
    """The median over jobs, flagged where the jobs differ; a throughput with the batch that reached it."""
    value = board.typical(key, metric)
    text = (number if METRICS[metric].unit else large)(value) + (" ~" if board.unsteady(key, metric) else "")
    batch = board.typical(key, "best_batch") if metric == "images_per_second" else None
    return text + (f" (batch {batch:.0f})" if batch else "")


def by_category(board: Board, metric: str, notes: Mapping[str, int]) -> str:
    """One line per category and the mean, one column per method in the order of the ranking."""
    shown = [key for key in board.order if board.overall(key, metric)]
    categories = board.categories(metric)
    lines = []
    for category in categories:
        marks = cell_marks(board, metric, category)
        told = ((key, _in_category(board, key, category, metric)) for key in shown)
        lines.append([_text(category), *(marked(text, marks.get(key, "")) for key, text in told)])
    if len(categories) > 1:
        marks = overall_marks(board, metric)
        means = ((key, deviation(board.overall(key, metric)) + board.fewer(key, metric)) for key in shown)
        lines.append(["mean", *(marked(text, marks.get(key, "")) for key, text in means)])
    table = table_of(["category", *(_named(board, key, notes) for key in shown)], lines, left=(0,))
    below = below_floor(board, metric)
    return f"{table}\n\n{_text(below)}" if below else table


def _in_category(board: Board, key: str, category: str, metric: str) -> str:
    """The mean of one category with its deviation over seeds, and how many jobs it lacks that failed."""
    found = board.cell(key, category, metric)
    return deviation(found) + (without(board.failed_in(key, category)) if found else "")


def _all_metrics(board: Board, notes: Mapping[str, int]) -> str:
    metrics = [metric for metric in ACCURACY if board.measured(metric)]
    lines = [
        [
            _named(board, key, notes),
            *(deviation(board.overall(key, metric)) + board.fewer(key, metric) for metric in metrics),
        ]
        for key in board.order
    ]
    table = table_of(["method", *(board.heading(metric) for metric in metrics)], lines, left=(0,))
    seeds = " ± standard deviation of that mean over seeds" if " ± " in table else ""
    return f"{table}\n\nMean over categories{seeds}."


def _thresholds(board: Board, lines: Sequence[Sequence[str]]) -> str:
    table = table_of(thresholds.headings(board), [[_text(cell) for cell in line] for line in lines], left=(0,))
    return f"{table}\n\n{_text(thresholds.LEGEND)}"


def _failed(failed: Iterable[tuple[Board, tuple[str, str, int, str]]]) -> str:
    lines = [
        [
            _text(board.labels[key]),
            _text(board.dataset),
            _text(category),
            str(seed),
            _text(board.group.preset),
            _text(reason),
        ]
        for board, (key, category, seed, reason) in failed
    ]
    header = ["method", "data set", "category", "seed", "preset", "reason"]
    return "They count in no number above.\n\n" + table_of(header, lines, left=(0, 1, 2, 4, 5))


def _left_out(problems: Iterable[Problem], left_out: Iterable[tuple[Board, str]]) -> str:
    lines = [f"- {_text(board.title)}: {_text(problem)}" for board, problem in left_out]
    lines += [f"- file {_file(problem.file)}: {_text(problem.what)}" for problem in sorted(problems)]
    return "\n".join(lines)


def _file(name: str) -> str:
    """A file's name as code where nothing in it can end the code."""
    return f"`{name}`" if re.fullmatch(r"[\w.+-]+", name) else _text(name)


def _notes(found: Sequence[Board]) -> dict[str, int]:
    """The footnotes: text -> number, in the order in which the page calls them."""
    notes: dict[str, int] = {}
    for board in found:
        for key in board.order:
            for note in _notes_of(board, key):
                notes.setdefault(note, len(notes) + 1)
    return notes


def _notes_of(board: Board, key: str) -> list[str]:
    """What must be said of an entrant: what no source settles, and apart from it what a source settles otherwise."""
    title = _text(board.summary.entrant(key).title)
    said = (
        ("judged" if board.external else "its source leaves open, and is read here as", board.readings(key)),
        ("a source settles it, and these runs do otherwise", board.deviations(key)),
    )
    return [f"**{title}**: {what}: {'; '.join(map(_text, words))}." for what, words in said if words]


def _named(board: Board, key: str, notes: Mapping[str, int]) -> str:
    places = [notes[note] for note in _notes_of(board, key) if note in notes]
    return _text(board.labels[key]) + "".join(f"[^{place}]" for place in places)


def _teacher(board: Board, key: str) -> str:
    entrant = board.summary.entrant(key)
    if not entrant.teacher:
        return "unknown" if board.external else "none"
    return _text(entrant.teacher) + (" (random weights)" if entrant.teacher_weights == "random" else "")
