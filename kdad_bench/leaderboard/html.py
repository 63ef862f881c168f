"""leaderboard.html: one file that needs no network; tables sort and filter, charts answer to the keyboard."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench.leaderboard import curve_chart
from kdad_bench.leaderboard.axes import curves, shown_whole
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.gallery import NoPicture, thumbnail
from kdad_bench.leaderboard.html_board import sections
from kdad_bench.leaderboard.html_pairs import devices
from kdad_bench.leaderboard.html_parts import cell, table_of
from kdad_bench.leaderboard.images import SCORED
from kdad_bench.leaderboard.metric import METRICS, shown_in
from kdad_bench.leaderboard.provenance import provenance
from kdad_bench.leaderboard.store import Problem
from kdad_bench.leaderboard.text import counted, escape

if TYPE_CHECKING:
    import pyarrow as pa

HERE = Path(__file__).parent
LIBRARY = HERE / "vendor" / "datatables"  # DataTables, MIT licence: LICENSE beside it
GALLERY_BYTES = 1_200_000  # of embedded pictures; a page of a thousand rows stays under 3 MB
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
SPARE = 4  # digits beyond those shown: with one, what the browser rounds was rounded before, which shows
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
    rows = table.drop_columns([name for name in SCORED if name in table.column_names]).to_pylist()
    bent = curves(found)
    drawn = [board for board in shown_whole(found, bent) if board.rows]
    ok = sum(row["status"] == "ok" for row in rows)
    failed = sum(len(board.summary.failed) for board in found)
    parts = [
        '<a class="skip" href="#content">Skip to the results</a>',
        '<header><button id="theme" type="button" aria-pressed="false">Dark</button><h1>Leaderboard</h1>',
        f'<p class="soft">{counted(ok, "finished job")}'
        + (f", <strong>{failed} failed</strong>" if failed else "")
        + ". Drawn by kdad-bench from the rows alone.</p>",
        _navigation(drawn, pictures=bool(pictures), bent=bool(bent), failed=failed > 0),
        "</header><main id='content'>",
        ABOUT,
        *curve_chart.sections(bent),
    ]
    for index, board in enumerate(drawn):
        parts += sections(board, f"b{index}")
    parts += [devices(drawn), _jobs(rows, found), *_failures(found, problems), *_gallery(rows, found, pictures)]
    parts += ["</main>", _footer(rows), '<div id="tip" role="tooltip" hidden></div>']
    return "\n".join(part for part in parts if part)


ABOUT = """<details><summary>How to read this page</summary>
<p>Rows that differ in data set, modality, resolution, preset, protocol, device or origin are never averaged: each such
group has its own section. Accuracies are in [0, 1], higher is better. [low, high] is the 95 % interval of the mean:
with six categories or more for other categories of the same kind, by Student’s t over the categories; with fewer, where
that is nearly all from 0 to 1, for these very ones, with other seeds, if a method has several, and, of image figures,
other test images. Methods whose intervals overlap may well be told apart, because they saw the same images. ± is the
standard deviation over seeds (n − 1), absent with one seed. Bold is the best value and underlined the second, only
where it differs from the next one beyond noise: for a mean by the corrected test of “Who beats whom”, in one category
by the 95 % interval of the paired difference.</p></details>"""


def _navigation(drawn: Sequence[Board], *, pictures: bool, bent: bool, failed: bool) -> str:
    links = [("curves", "Curves")] if bent else []
    links += [(f"b{index}", board.title) for index, board in enumerate(drawn)]
    links += [("all-jobs", "All jobs")] + ([("failed", "Failed jobs")] if failed else [])
    links += [("gallery", "Pictures")] if pictures else []
    items = "".join(f'<li><a href="#{name}">{escape(title)}</a></li>' for name, title in links)
    return f'<nav aria-label="Sections"><ul>{items}</ul></nav>'


def _jobs(rows: Sequence[Mapping[str, Any]], found: Sequence[Board]) -> str:
    """All jobs, as data that the script draws."""
    labels = _labels_of_jobs(found)
    data = []
    for row in rows:
        line: list[Any] = []
        for column, _, digits in JOB_COLUMNS:
            value: Any = _label(row, labels) if column == "method" else row[column]
            line.append(round(value, digits + SPARE) if digits and value is not None else value)
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
        '<section id="all-jobs" aria-labelledby="jobs-title"><h2 id="jobs-title">All jobs</h2>'
        "<noscript><p>This table needs JavaScript; <code>kdad-bench results export</code> writes all jobs.</p>"
        "</noscript>"
        f'<div class="filters" role="group" aria-label="Filters">{"".join(selects)}</div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="All jobs"><table id="jobs">'
        "<caption>One line per job; <code>kdad-bench show JOB</code> "
        "tells all about it.</caption></table></div>"
        f'<script type="application/json" id="jobs-data">{text.replace("<", chr(92) + "u003c")}</script></section>'
    )


def _labels_of_jobs(found: Sequence[Board]) -> dict[str, str]:
    return {job: board.labels[key] for board in found for job, key in board.summary.entrant_of.items()}


def _label(row: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The name of a job's entrant; of one that has no job on any board what the row says."""
    title = row["title"] or row["method"]
    return labels.get(row["job_id"]) or (f"{title} ({row['variant']})" if row["variant"] else title)


def _failures(found: Sequence[Board], problems: Sequence[Problem]) -> Iterator[str]:
    failed = [(board, failure) for board in found for failure in board.summary.failed]
    if failed:
        lines = [
            f'<th scope="row">{escape(board.labels[key])}</th><td>{escape(board.dataset)}</td>'
            f"<td>{escape(category)}</td>{cell(str(seed))}<td>{escape(board.group.preset)}</td><td>{escape(reason)}</td>"
            for board, (key, category, seed, reason) in failed
        ]
        heads = [("method", ""), ("data set", ""), ("category", ""), ("seed", "n"), ("preset", ""), ("reason", "")]
        table = table_of("Failed jobs", heads, lines, "They count in no number.", "sortable")
        yield f'<section id="failed" aria-labelledby="failed-title"><h2 id="failed-title">Failed jobs</h2>{table}'
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
            place = (row["dataset"], row["preset"], row["category"], _label(row, labels))
            chosen.setdefault(place, row)
    yield '<section id="gallery" aria-labelledby="gallery-title"><h2 id="gallery-title">Pictures</h2>'
    yield '<p class="soft">Image, mask, anomaly map and overlay of the best, '
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
    items = "".join(f"<li>{escape(label)}: {escape(values)}</li>" for label, values in provenance(rows))
    return (
        f"<footer><h2>How these numbers were made</h2><ul>{items}</ul>"
        "<p>Tables by DataTables, copyright SpryMedia Limited, MIT licence.</p></footer>"
    )
