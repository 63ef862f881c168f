"""leaderboard.html: one file that needs no network; tables sort and filter, charts answer to the keyboard."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard import chart, curve_chart, published
from kdad_bench.leaderboard.axes import curves, shown_whole
from kdad_bench.leaderboard.board import MOST_LOAD, UNSTEADY, VISIBLE, Board, Mark
from kdad_bench.leaderboard.gallery import NoPicture, thumbnail
from kdad_bench.leaderboard.measurement import SHARED
from kdad_bench.leaderboard.metric import METRICS, RANKED, shown_in
from kdad_bench.leaderboard.numbers import MISSING, deviation, large, number, signed
from kdad_bench.leaderboard.row import EXTERNAL
from kdad_bench.leaderboard.store import Problem
from kdad_bench.leaderboard.summary import Estimate
from kdad_bench.leaderboard.text import escape

if TYPE_CHECKING:
    import pyarrow as pa

HERE = Path(__file__).parent
LIBRARY = HERE / "vendor" / "datatables"  # DataTables, MIT licence: LICENSE beside it
GALLERY_BYTES = 1_200_000  # of embedded pictures; a page of a thousand rows stays under 3 MB
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
# the table of all jobs: column, title, digits (None for text)
JOB_COLUMNS: tuple[tuple[str, str, int | None], ...] = (
    ("method", "method", None),
    ("dataset", "data set", None),
    ("category", "category", None),
    ("seed", "seed", 0),
    ("preset", "preset", None),
    ("status", "status", None),
    *((name, METRICS[name].short, METRICS[name].digits) for name in shown_in("jobs")),
    ("device_name", "device", None),
    ("job_id", "job", None),
)
FILTERED = ("method", "dataset", "category", "preset", "status")


def page(
    found: Sequence[Board],
    table: pa.Table,
    problems: Sequence[Problem] = (),
    pictures: Mapping[str, Path] | None = None,
) -> str:
    """The whole page of the boards `found` in `table` (columns DRAWN); `pictures`: job -> contact sheet, a PNG file."""
    style = (LIBRARY / "dataTables.dataTables.min.css").read_text(encoding="utf-8")
    library = (LIBRARY / "dataTables.min.js").read_text(encoding="utf-8")
    own = {name: (HERE / "page" / name).read_text(encoding="utf-8") for name in ("style.css", "script.js")}
    return "\n".join([
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<title>kdad-bench leaderboard</title>",
        f"<style>{style}</style>",
        f"<style>{own['style.css']}</style>",
        "</head><body>",
        body(found, table, problems, pictures or {}),
        f"<script>{_inside_script(library)}</script>",
        f"<script>{_inside_script(own['script.js'])}</script>",
        "</body></html>\n",
    ])  # fmt: skip


def _inside_script(code: str) -> str:
    """Code that cannot end its own script element."""
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def body(found: Sequence[Board], table: pa.Table, problems: Sequence[Problem], pictures: Mapping[str, Path]) -> str:
    """What stands between the style and the scripts."""
    rows = table.to_pylist()
    bent = curves(found)
    drawn = [board for board in shown_whole(found, bent) if board.rows]
    ok = sum(row["status"] == "ok" for row in rows)
    failed = sum(len(board.summary.failed) for board in found)
    parts = [
        '<a class="skip" href="#content">Skip to the results</a>',
        '<header><button id="theme" type="button" aria-pressed="false">Dark</button><h1>Leaderboard</h1>',
        f'<p class="soft">{ok} finished jobs'
        + (f", <strong>{failed} failed</strong>" if failed else "")
        + ". Drawn by kdad-bench from the rows alone.</p>",
        _navigation(drawn, bool(pictures), bool(bent)),
        "</header><main id='content'>",
        ABOUT,
        *curve_chart.sections(bent),
    ]
    for index, board in enumerate(drawn):
        parts += _board(board, f"b{index}")
    parts += [_jobs(rows, found), *_failures(found, problems), *_gallery(rows, found, pictures)]
    parts += ["</main>", _footer(rows), '<div id="tip" role="tooltip" hidden></div>']
    return "\n".join(part for part in parts if part)


ABOUT = """<details><summary>How to read this page</summary>
<p>Rows that differ in data set, modality, resolution, preset, protocol, device or origin are never averaged: each
such group has its own section. Accuracies are in [0, 1], higher is better. [low, high] is the 95 % interval of the
mean, by a bootstrap over categories and seeds; ± is the standard deviation over seeds (n − 1), absent with one seed.
Bold is the best value and underlined the second, only where it differs from the next one beyond noise: for a mean, by
a Wilcoxon signed-rank test over categories, Holm-corrected, at 0.05 (a few categories can never reach that); in one
category, by the 95 % interval of the paired difference over seeds.</p></details>"""


def _navigation(drawn: Sequence[Board], pictures: bool, bent: bool) -> str:
    links = [("curves", "Curves")] if bent else []
    links += [(f"b{index}", board.title) for index, board in enumerate(drawn)]
    links += [("all-jobs", "All jobs")] + ([("gallery", "Pictures")] if pictures else [])
    items = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in links)
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def _board(board: Board, name: str) -> Iterator[str]:
    """The sections of one board."""
    yield f'<section id="{name}"><h2>{escape(board.title)}</h2>'
    for caveat in board.caveats:
        words = CAVEATS.get(caveat) or f"{board.budget[0].upper()}{board.budget[1:]}."
        yield f'<p class="warning"><span class="badge">{escape(caveat)}</span>{words}</p>'
    yield "<h3>Ranking</h3>" + _ranking(board)
    charts = [(metric, chart.pareto(board, metric)) for metric in reversed(board.headline)]
    if any(drawing for _, drawing in charts):
        yield "<h3>Speed against accuracy</h3><div>"
        yield _choice(f"{name}-pareto", [metric for metric, drawing in charts if drawing])
        for metric, drawing in charts:
            if drawing:
                yield (
                    f'<figure data-metric="{metric}">{drawing}<figcaption>{METRICS[metric].label}. Dashed: the front, '
                    "which no method beats in both. Bars: 95 % interval. Methods that lack a category are left out."
                    "</figcaption></figure>"
                )
        yield "</div>"
    yield "<h3>By category</h3><div>" + _choice(f"{name}-heat", board.headline)
    for metric in board.headline:
        yield f'<div data-metric="{metric}">{_heat(board, metric)}</div>'
    yield "</div>"
    yield "<h3>Ablations</h3>" + _ablations(board)
    yield "<h3>Published and measured</h3>" + _published(board)
    yield from _words(board)
    yield "</section>"


CAVEATS = {
    EXTERNAL: (
        "Other code made these maps, and only their scoring is this benchmark's. What it learnt from, and whether it "
        "saw test images, is not known."
    ),
    "synthetic data": "Procedurally generated images, no substitute for a real data set.",
}


def _choice(name: str, metrics: Sequence[str]) -> str:
    """Radio buttons that pick one of the parts with `data-metric` beside them."""
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{metric}"{" checked" if index == 0 else ""}> '
        f"{METRICS[metric].label}</label>"
        for index, metric in enumerate(metrics)
    )
    return f'<fieldset class="choice"><legend>Metric</legend>{buttons}</fieldset>'


FLAG = f' <abbr title="varies by more than {UNSTEADY * 100:g} % between jobs">~</abbr>'
FLAG_ALONE = f' <abbr title="timed while other work held over {MOST_LOAD:.0%} of the processors, or varies">~</abbr>'


def _ranking(board: Board) -> str:
    """Accuracy and cost in one sortable table."""
    marks = {metric: board.overall_marks(metric) for metric in board.headline}
    costs = shown_in("ranking")
    heads = [("#", "n"), ("method", ""), ("teacher", ""), *((METRICS[metric].label, "n") for metric in board.headline)]
    heads += [("average rank", "n"), *((METRICS[metric].short, "n") for metric in costs), ("jobs", "n")]
    lines = []
    place = 0
    for position, key in enumerate(board.order, 1):
        rank = board.average_ranks.get(key)
        if position == 1 or rank != board.average_ranks.get(board.order[position - 2]):
            place = position
        entrant = board.summary.entrant(key)
        cells = [
            _cell(str(place) if rank is not None else MISSING, place if rank is not None else 9999),
            f'<th scope="row">{escape(board.labels[key])}</th>',
            f"<td>{escape(entrant.teacher or ('unknown' if board.external else 'none'))}</td>",
        ]
        for metric in board.headline:
            cells.append(
                _accuracy(board.overall(key, metric), marks[metric].get(key, ""), len(board.categories(metric)))
            )
        cells.append(_cell(MISSING if rank is None else f"{rank:.2f}", 9999 if rank is None else rank))
        for column in costs:
            value = board.typical(key, column)
            shown = (number if METRICS[column].unit else large)(value)
            flag = FLAG_ALONE if board.alone and column in SHARED else FLAG
            cells.append(_cell(shown + (flag if board.unsteady(key, column) else ""), value))
        cells.append(_cell(str(len(board.rows[key]))))
        lines.append("".join(cells))
    caption = (
        "Average rank: over the categories, of "
        + " and ".join(METRICS[m].label for m in RANKED if m in board.headline)
        + "."
        " Costs are medians over jobs; ms/image at batch 1, images/s at the best batch. "
        + ("Speed is measured once per method and settings, with no job beside it. " if board.alone else "")
        + "Click a heading to sort."
    )
    return _table(heads, lines, caption, "sortable searchable")


def _accuracy(found: Estimate | None, mark: Mark, categories: int) -> str:
    if found is None:
        return _cell(MISSING)
    around = "" if found.low is None else f' <span class="interval-text">[{found.low:.3f}, {found.high:.3f}]</span>'
    few = "" if found.complete else f' <span class="interval-text">{found.categories} of {categories} categories</span>'
    return _cell(f"{found.mean:.3f}{around}{few}", found.mean, mark)


def _heat(board: Board, metric: str) -> str:
    """Categories against methods; the colour repeats the number, it does not replace it."""
    shown = [key for key in board.order if board.overall(key, metric)]
    cells = {
        (key, category): board.cell(key, category, metric) for key in shown for category in board.categories(metric)
    }
    values = [found.mean for found in cells.values() if found]
    low, high = min(values), max(values)
    lines = []
    for category in board.categories(metric):
        marks = board.cell_marks(metric, category)
        line = [f'<th scope="row">{escape(category)}</th>']
        for key in shown:
            found = cells[key, category]
            style = "" if found is None else f' style="--v:{(found.mean - low) / ((high - low) or 1):.2f}"'
            line.append(_cell(deviation(found), found.mean if found else None, marks.get(key, ""), style))
        lines.append("".join(line))
    heads = [("category", ""), *((board.labels[key], "n") for key in shown)]
    colours = f"Colour: {low:.3f} (pale) to {high:.3f} (strong)."
    caption = f"{METRICS[metric].label}, mean ± standard deviation over seeds. {colours}"
    return _table(heads, lines, caption, "sortable heat")


def _ablations(board: Board) -> str:
    """Each variant against the default of its method, paired by category and seed."""
    lines = []
    for key in board.order:
        entrant = board.summary.entrant(key)
        if entrant.variant is None:
            continue
        for base in board.order:
            default = board.summary.entrant(base)
            if default.method != entrant.method or default.variant is not None:
                continue
            for metric in board.headline:
                found = board.summary.comparison(key, base, metric)
                if found.difference is None:
                    continue
                tone = "" if abs(found.difference) < VISIBLE else "up" if found.difference > 0 else "down"
                p = MISSING if found.p_holm is None else f"{found.p_holm:.3f}"
                lines.append(
                    f'<th scope="row">{escape(board.labels[key])}</th><td>{escape(board.labels[base])}</td>'
                    f"<td>{METRICS[metric].label}</td>"
                    + _cell(f'<span class="{tone}">{signed(found.difference)}</span>', found.difference)
                    + _cell(f"{found.a_better} of {found.categories}", found.a_better)
                    + _cell(p, found.p_holm)
                )
    if not lines:
        return '<p class="soft">No variant was run here: <code>kdad-bench run --method NAME:VARIANT</code>.</p>'
    heads = [("variant", ""), ("against", ""), ("metric", ""), ("difference", "n"), ("categories won", "n"), ("p", "n")]
    caption = "Mean paired difference; p: Wilcoxon signed-rank test over categories, Holm-corrected over all pairs."
    return _table(heads, lines, caption, "sortable searchable")


def _published(board: Board) -> str:
    """Reported numbers beside ours, or why there is no comparison."""
    whole = published.refusal(board)
    if whole:
        return f'<p class="soft">Not compared: {escape(whole)}.</p>'
    found = [
        one for one in published.verdicts(board) if not one.reported.measured or board.measured(one.reported.measured)
    ]
    if not found:
        return '<p class="soft">Nothing published is known here for these methods.</p>'
    lines = []
    for one in found:
        reported = one.reported
        said = escape(one.verdict) if one.verdict else f"not compared: {escape(one.refusal)}"
        lines.append(
            f'<th scope="row" class="wrap">{escape(reported.reported)} '
            f'<span class="interval-text">{escape(reported.backbone)}</span></th>'
            f"<td>{escape(board.labels[one.key])}</td>"
            f"<td>{escape(reported.category)}</td><td>{escape(reported.metric)}</td><td>{escape(reported.origin)}</td>"
            + _cell(f"{reported.value:.3f}", reported.value)
            + _cell(MISSING if one.measured is None else f"{one.measured:.3f}", one.measured)
            + _cell(MISSING if one.difference is None else signed(one.difference), one.difference)
            + f'<td class="prose">{said}</td>'
        )
    heads = [("reported", ""), ("beside our", ""), ("category", ""), ("metric", ""), ("origin", ""), ("value", "n")]
    heads += [("ours", "n"), ("difference", "n"), ("verdict", "")]
    caption = (
        f"agrees: within {published.TOLERANCE} or the 95 % interval over our seeds. Other protocols are not compared."
    )
    table = _table(heads, lines, caption, "sortable searchable")
    compared = sum(one.difference is not None for one in found)
    sources = dict.fromkeys(f"<li>{escape(one.reported.reported)}: {escape(one.reported.source)}</li>" for one in found)
    return (
        f'<details class="long"><summary>{len(found)} reported numbers, {compared} of them comparable</summary>{table}'
        f"<h4>Sources</h4><ul>{''.join(sources)}</ul></details>"
    )


def _words(board: Board) -> Iterator[str]:
    """What no source settles, and apart from it what a source settles and these runs do otherwise."""
    said = (
        ("How the maps were judged" if board.external else "Readings: what the sources leave open", board.readings),
        ("Deviations: what a source settles and these runs do otherwise", board.deviations),
    )
    for title, words in said:
        items = "".join(
            f"<li><strong>{escape(board.labels[key])}</strong>: {escape('; '.join(words(key)))}</li>"
            for key in board.order
            if words(key)
        )
        if items:
            yield f"<details><summary>{title}</summary><ul>{items}</ul></details>"


def _jobs(rows: Sequence[Mapping[str, Any]], found: Sequence[Board]) -> str:
    """All jobs, as data that the script draws."""
    labels = _labels_of_jobs(found)
    data = []
    for row in rows:
        line: list[Any] = []
        for column, _, digits in JOB_COLUMNS:
            value = labels.get(row["job_id"], row["method"]) if column == "method" else row[column]
            line.append(round(value, digits + 1) if digits and value is not None else value)
        data.append(line)
    selects = []
    for index, (column, title, _) in enumerate(JOB_COLUMNS):
        if column in FILTERED:
            values = sorted({str(line[index]) for line in data if line[index] is not None})
            options = "".join(f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
            selects.append(
                f'<label>{title} <select data-column="{index}"><option value="">all</option>{options}</select></label>'
            )
    columns = [[title, digits] for _, title, digits in JOB_COLUMNS]
    text = json.dumps({"columns": columns, "rows": data}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (
        '<section id="all-jobs"><h2>All jobs</h2>'
        f'<div class="filters" role="group" aria-label="Filters">{"".join(selects)}</div>'
        '<div class="scroll"><table id="jobs"><caption>One line per job; <code>kdad-bench show JOB</code> '
        "tells all about it.</caption></table></div>"
        f'<script type="application/json" id="jobs-data">{text.replace("<", chr(92) + "u003c")}</script></section>'
    )


def _labels_of_jobs(found: Sequence[Board]) -> dict[str, str]:
    return {
        row["job_id"]: board.labels[key] for board in found for key, members in board.rows.items() for row in members
    }


def _failures(found: Sequence[Board], problems: Sequence[Problem]) -> Iterator[str]:
    failed = [(board, failure) for board in found for failure in board.summary.failed]
    if failed:
        lines = [
            f'<th scope="row">{escape(board.labels.get(key, key))}</th><td>{escape(board.dataset)}</td>'
            f"<td>{escape(category)}</td>{_cell(str(seed))}<td>{escape(board.group.preset)}</td><td>{escape(reason)}</td>"
            for board, (key, category, seed, reason) in failed
        ]
        heads = [("method", ""), ("data set", ""), ("category", ""), ("seed", "n"), ("preset", ""), ("reason", "")]
        yield "<section id='failed'><h2>Failed jobs</h2>" + _table(heads, lines, "They count in no number.", "sortable")
        yield "</section>"
    left_out = [f"{board.title}: {problem}" for board in found for problem in board.summary.problems]
    left_out += [f"file {problem.file}: {problem.what}" for problem in sorted(problems)]
    if left_out:
        yield (
            "<section><h2>Left out</h2><ul>"
            + "".join(f"<li>{escape(text)}</li>" for text in left_out)
            + "</ul></section>"
        )


def _gallery(rows: Sequence[Mapping[str, Any]], found: Sequence[Board], pictures: Mapping[str, Path]) -> Iterator[str]:
    """Contact sheets, small, one per method and category, while there is room; the files beside the page are whole.

    One picture is open at a time, and none any more once there is no room.
    """
    if not pictures:
        return
    labels = _labels_of_jobs(found)
    chosen: dict[tuple[str, ...], Mapping[str, Any]] = {}
    for row in sorted(
        rows, key=lambda row: (row["dataset"], row["preset"], row["category"], row["method"], row["seed"])
    ):
        if row["job_id"] in pictures:
            place = (row["dataset"], row["preset"], row["category"], labels.get(row["job_id"], row["method"]))
            chosen.setdefault(place, row)
    yield '<section id="gallery"><h2>Pictures</h2><p class="soft">Image, mask, anomaly map and overlay of the best, '
    yield "median and worst cases by score, first seed. One colour scale per sheet. The files in <code>pictures</code> "
    yield 'are larger.</p><div class="gallery">'
    room = GALLERY_BYTES
    unread = []
    waiting = list(chosen.items())
    while waiting and room > 0:
        (dataset, preset, category, label), row = waiting.pop(0)
        try:
            picture = base64.b64encode(thumbnail(pictures[row["job_id"]])).decode()
        except NoPicture as error:
            unread.append(str(error))
            continue
        room -= len(picture)
        if room < 0:
            waiting.insert(0, ((dataset, preset, category, label), row))
            break
        what = f"{label}, {dataset}/{category}, {preset}, seed {row['seed']}"
        yield (
            f'<figure><img loading="lazy" alt="{escape(f"Contact sheet of {what}")}" '
            f'src="data:image/jpeg;base64,{picture}"><figcaption>{escape(what)}<br><code>{escape(row["job_id"])}</code>'
            "</figcaption></figure>"
        )
    yield "</div>"
    if waiting:
        yield f'<p class="soft">{len(waiting)} more are in the folder <code>pictures/</code>.</p>'
    if unread:
        more = f"; and {len(unread) - 3} more" if len(unread) > 3 else ""
        yield f'<p class="soft">Not shown: {escape("; ".join(unread[:3]))}{more}.</p>'
    yield "</section>"


def _footer(rows: Sequence[Mapping[str, Any]]) -> str:
    """The versions behind the finished rows, and the library of the page."""
    from kdad_bench.leaderboard.markdown import provenance

    items = "".join(f"<li>{escape(label)}: {escape(values)}</li>" for label, values in provenance(rows))
    return (
        f"<footer><h2>How these numbers were made</h2><ul>{items}</ul>"
        "<p>Tables by DataTables, copyright SpryMedia Limited, MIT licence.</p></footer>"
    )


def _cell(text: str, order: float | None = None, mark: Mark = "", style: str = "") -> str:
    """A numeric cell; `order` is what it sorts by, nothing sorting last."""
    key = "" if order is None and text != MISSING else f' data-order="{-1 if order is None else order:.9g}"'
    return f'<td class="n {mark}"{key}{style}>{text}</td>' if mark else f'<td class="n"{key}{style}>{text}</td>'


def _table(heads: Sequence[tuple[str, str]], lines: Sequence[str], caption: str, kind: str) -> str:
    head = "".join(f'<th scope="col"{f" class={name}" if name else ""}>{escape(title)}</th>' for title, name in heads)
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table class="{kind}"><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
