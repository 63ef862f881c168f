"""The section of one board in leaderboard.html."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kdad_bench.leaderboard import chart, deciding, published, thresholds
from kdad_bench.leaderboard.board import SEVERAL_VERSIONS, Board
from kdad_bench.leaderboard.families import FAMILIES
from kdad_bench.leaderboard.floor import below_floor
from kdad_bench.leaderboard.html_pairs import components_of, matrix
from kdad_bench.leaderboard.html_parts import FLAG, FLAG_ALONE, accuracy, cell, choice, deviated, small, table_of
from kdad_bench.leaderboard.marks import RAN_AWAY, VISIBLE, cell_marks, overall_marks
from kdad_bench.leaderboard.measurement import SHARED
from kdad_bench.leaderboard.metric import METRICS, shown_in
from kdad_bench.leaderboard.numbers import MISSING, judged, large, number, signed
from kdad_bench.leaderboard.row import EXTERNAL
from kdad_bench.leaderboard.text import escape

CAVEATS = {
    EXTERNAL: (
        "Other code made these maps, and only their scoring is this benchmark's. What it learnt from, and whether it "
        "saw test images, is not known."
    ),
    "multi-class": (
        "One model has learnt from all of these categories; numbers of a model for each are others. A training moves "
        "all categories at once: in intervals and tests it counts once."
    ),
    "synthetic data": "Procedurally generated images, no substitute for a real data set.",
}


def sections(board: Board, name: str) -> Iterator[str]:
    """The sections of a board; `name` is its place on the page."""
    yield f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{escape(board.title)}</h2>'
    for caveat in board.caveats:
        words = CAVEATS.get(caveat) or _sentence(escape(board.mixture) if caveat == SEVERAL_VERSIONS else board.budget)
        yield f'<p class="warning"><span class="badge">{escape(caveat)}</span>{words}</p>'
    yield "<h3>Ranking</h3>" + _rankings(board, name)
    charts = [(metric, METRICS[metric].label, _chart(board, metric)) for metric in reversed(board.headline)]
    if any(drawing for _, _, drawing in charts):
        yield "<h3>Speed against accuracy</h3>"
        yield choice(f"{name}-pareto", "Metric", [part for part in charts if part[2]])
    yield "<h3>By category</h3>"
    yield choice(f"{name}-heat", "Metric", [(m, METRICS[m].label, _heat(board, m)) for m in board.headline])
    if trusted := thresholds.told(board):
        heads = [(title, "") for title in thresholds.headings(board)]
        lines = [
            f'<th scope="row">{escape(method)}</th>' + "".join(f"<td>{escape(text)}</td>" for text in cells)
            for method, *cells in trusted
        ]
        title = "Thresholds from unseen normals"
        yield f"<h3>{title}</h3>" + table_of(title, heads, lines, thresholds.LEGEND, "")
    if len(board.rows) > 1 and board.headline:
        yield "<h3>Who beats whom</h3>"
        parts = [(metric, METRICS[metric].label, matrix(board, metric)) for metric in board.headline]
        yield choice(f"{name}-pairs", "Metric", parts)
    if board.headline:
        yield "<h3>Where the spread comes from</h3>" + components_of(board)
    yield "<h3>Ablations</h3>" + _ablations(board)
    yield "<h3>Published and measured</h3>" + _published(board)
    yield from _words(board)
    yield "</section>"


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _chart(board: Board, metric: str) -> str:
    """The chart of a metric with what it shows in words; "" if nothing was timed."""
    drawing = chart.pareto(board, metric)
    away = ", or of which a job ran away," if board.diverged else ""
    return drawing and (
        f"<figure>{drawing}<figcaption>{board.heading(metric)}. Dashed: the front, which no method beats in both. "
        f"Bars: 95 % interval. {_of_speed(board)}A point says what it is under the mouse and with Tab, also "
        f"one without room for its name. Methods that lack a category or a measured speed{away} are left out."
        "</figcaption></figure>"
    )


def _of_speed(board: Board) -> str:
    """How speed was measured where it was measured alone: perhaps with other threads than the jobs had."""
    if not board.alone:
        return ""
    return f"Speed is measured once per method and settings, with no job beside it, with {board.alone_words}. "


def _rankings(board: Board, name: str) -> str:
    """All entrants together, and each family apart where there are several."""
    together = _ranking(board, "Ranking", board.order, board.places, board.average_ranks)
    if len(board.families) < 2:
        return together
    parts = [("all", "all", together)]
    for family in board.families:
        about = f'<p class="soft">{escape(FAMILIES[family].capitalize())}.</p>' if family in FAMILIES else ""
        title = f"Ranking: {family}"
        apart = _ranking(board, title, board.members(family), board.places_in_family, board.ranks_in_family)
        parts.append((escape(family), family, about + apart))
    return choice(f"{name}-family", "Family", parts)


def _ranking(
    board: Board, title: str, keys: Sequence[str], places: Mapping[str, int], ranks: Mapping[str, float]
) -> str:
    """Accuracy and cost of some entrants in one sortable table."""
    marks = {metric: overall_marks(board, metric) for metric in board.headline}
    costs, away = shown_in("ranking"), board.diverged & {*keys}
    heads = [("#", "n"), ("method, teacher", ""), *((_unbroken(board.heading(m)), "n") for m in board.headline)]
    heads += [("average rank", "n"), *((METRICS[metric].short, "n") for metric in costs), ("jobs", "n")]
    lines = []
    for key in keys:
        rank = ranks.get(key)
        family = f"{board.family(key)}, " if len(board.families) > 1 else ""
        teacher = board.summary.entrant(key).teacher or ("unknown" if board.external else "none")
        cells = [
            cell(str(places.get(key, MISSING)), places.get(key)),
            f'<th scope="row" data-order="{escape(board.labels[key])}">{escape(board.labels[key])} '
            f"{small(escape(family + teacher))}</th>",
        ]
        for metric in board.headline:
            found = board.overall(key, metric)
            count = len(board.categories(metric))
            cells.append(accuracy(found, marks[metric].get(key, ""), count, board.failed(key, metric)))
        cells.append(cell(MISSING if rank is None else f"{rank:.2f}", rank))
        for column in costs:
            value = board.typical(key, column)
            shown = (number if METRICS[column].unit else large)(value)
            flag = FLAG_ALONE if board.alone and column in SHARED else FLAG
            cells.append(cell(shown + (flag if board.unsteady(key, column) else ""), value))
        cells.append(cell(str(len(board.rows[key]))))
        lines.append("".join(cells))
    caption = (
        f"{board.rank_words} Costs are medians over jobs; ms/image at batch 1, images/s at the best batch. "
        + _of_speed(board)
        + (f"A method {RAN_AWAY} is neither ranked nor marked." if away else "")
    ).strip()
    return table_of(title, heads, lines, caption, "sortable searchable ranking")


def _unbroken(heading: str) -> str:
    """A heading of which no line ends within its brackets."""
    name, bracket, inside = heading.partition("(")
    return name + bracket + inside.replace(" ", "\N{NO-BREAK SPACE}")


def _heat(board: Board, metric: str) -> str:
    """Methods against categories; the colour repeats the number, it does not replace it."""
    shown = [key for key in board.order if board.overall(key, metric)]
    categories = board.categories(metric)
    cells = {(key, category): board.cell(key, category, metric) for key in shown for category in categories}
    marks = {category: cell_marks(board, metric, category) for category in categories}
    of_means = overall_marks(board, metric)
    values = [found.mean for found in cells.values() if found]
    low, high = min(values), max(values)
    lines = []
    for key in shown:
        line = [f'<th scope="row">{escape(board.labels[key])}</th>']
        for category in categories:
            found = cells[key, category]
            style = "" if found is None else f' style="--v:{(found.mean - low) / ((high - low) or 1):.2f}"'
            line.append(deviated(found, marks[category].get(key, ""), style, board.failed_in(key, category)))
        if len(categories) > 1:
            mark = of_means.get(key, "")
            line.append(accuracy(board.overall(key, metric), mark, len(categories), board.failed(key, metric)))
        lines.append("".join(line))
    heads = [("method", ""), *((category, "n") for category in categories)]
    heads += [("mean", "n")] if len(categories) > 1 else []
    colours = f"Colour: the higher the bluer, {low:.3f} to {high:.3f}."
    below = below_floor(board, metric)
    several = any(found and found.std is not None for found in cells.values())
    over = "mean ± standard deviation over seeds" if several else "one seed each"
    caption = f"{METRICS[metric].label}, {over}. {colours}{below and f' {below}'}"
    return table_of(f"{METRICS[metric].label} by category", heads, lines, caption, "sortable heat")


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
                p = deciding.p_of(found)
                lines.append(
                    f'<th scope="row">{escape(board.labels[key])}</th><td>{escape(board.labels[base])}</td>'
                    f"<td>{METRICS[metric].label}</td>"
                    + cell(f'<span class="{tone}">{signed(found.difference)}</span>', found.difference)
                    + cell(f"{found.a_better} of {found.categories}", found.a_better)
                    + cell(escape(p), found.p_holm)
                )
    if not lines:
        return '<p class="soft">No variant was run here: <code>kdad-bench run --method NAME:VARIANT</code>.</p>'
    heads = [("variant", ""), ("against", ""), ("metric", ""), ("difference", "n"), ("categories won", "n"), ("p", "n")]
    caption = "Mean paired difference; p as in “Who beats whom”, Holm-corrected over all pairs."
    return table_of("Ablations", heads, lines, caption, "sortable searchable")


def _published(board: Board) -> str:
    """Reported numbers beside ours, or why there is no comparison."""
    whole, found = published.beside(board)
    if whole:
        return f'<p class="soft">Not compared: {escape(whole)}.</p>'
    if not found:
        return f'<p class="soft">{escape(published.nothing(board))}</p>'
    lines = []
    for one in found:
        reported = one.reported
        ours = MISSING if one.measured is None else f"{one.measured:.3f}{published.beside_ours(board, one)}"
        said = escape(judged(one.verdict, one.half) or f"not compared: {one.refusal}")
        lines.append(
            f'<th scope="row">{escape(reported.reported)} '
            f'<span class="interval-text">{escape(reported.backbone)}</span></th>'
            f"<td>{escape(board.labels[one.key])}</td>"
            f"<td>{escape(reported.category)}</td><td>{escape(reported.metric)}</td><td>{escape(reported.origin)}</td>"
            + cell(f"{reported.value:.3f}", reported.value)
            + cell(ours, one.measured)
            + cell(MISSING if one.difference is None else signed(one.difference), one.difference)
            + f'<td class="prose">{said}</td>'
        )
    heads = [("reported", ""), ("beside our", ""), ("category", ""), ("metric", ""), ("origin", ""), ("value", "n")]
    heads += [("ours", "n"), ("difference", "n"), ("verdict", "")]
    caption = f"{published.LEGEND} Other protocols are not compared."
    table = table_of("Published and measured", heads, lines, caption, "sortable searchable")
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
