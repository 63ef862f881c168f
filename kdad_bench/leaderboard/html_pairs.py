"""Who beats whom, and where the spread comes from, in leaderboard.html."""

from __future__ import annotations

from collections.abc import Sequence

from kdad_bench.leaderboard import components, deciding
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.html_parts import cell, small, table_of
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.numbers import MISSING, signed
from kdad_bench.leaderboard.text import escape


def matrix(board: Board, metric: str) -> str:
    """Row minus column with the corrected p below it; a cell says more under the mouse."""
    keys = deciding.shown(board, metric)
    sign = 1 if METRICS[metric].higher_is_better else -1
    lines = []
    for place, key in enumerate(keys, 1):
        cells = [cell(str(place), place), f'<th scope="row">{escape(board.labels[key])}</th>']
        cells += [_pair(board, key, other, metric, sign) for other in keys]
        wins, losses = deciding.standing(board, key, metric)
        lines.append("".join([*cells, cell(str(wins), wins), cell(str(losses), losses)]))
    heads = [("#", "n"), ("method", ""), *((str(place), "n") for place in range(1, len(keys) + 1))]
    heads += [("beats", "n"), ("loses to", "n")]
    said = f"{METRICS[metric].label}: {deciding.counted(board, metric)}. {deciding.power(board, metric)}"
    colours = "Colour: the row (blue) or the column (orange) is surely better."
    caption = f"{deciding.READ} {colours} {deciding.room(board, keys)}".rstrip()
    title = f"Who beats whom: {METRICS[metric].label}"
    return f"<p>{escape(said)}</p>" + table_of(title, heads, lines, caption, "pairs")


def _pair(board: Board, key: str, other: str, metric: str, sign: int) -> str:
    if key == other:
        return '<td class="n">·</td>'
    found = board.summary.comparison(key, other, metric)
    if found.difference is None:
        return cell(MISSING)
    better = "" if not found.significant else " won" if sign * found.difference > 0 else " lost"
    return (
        f'<td class="n{better}" title="{escape(deciding.told(board, found))}">{signed(found.difference)} '
        f"{small(f'p {escape(deciding.p_of(found))}')}</td>"
    )


def components_of(board: Board) -> str:
    """The shares of all methods together, and each method's standard deviations."""
    told = [line for metric in board.headline if (line := components.in_words(board, metric))]
    if not told:
        return '<p class="soft">One value of each method: nothing to compare with.</p>'
    lines = []
    for metric in board.headline:
        for key, parts in components.of_entrants(board, metric).items():
            known = components.shares(parts)
            cells = [_part(known.get(name)) for name in components.SOURCES.values()]
            lines.append(
                f'<th scope="row">{escape(board.labels[key])}</th><td>{METRICS[metric].label}</td>{"".join(cells)}'
            )
    heads = [("method", ""), ("metric", ""), *((name, "n") for name in components.SOURCES.values())]
    caption = "Standard deviation of one job's value by each source, and its share of the variance."
    items = "".join(f"<li>{escape(line)}</li>" for line in told)
    table = table_of("Spread by method", heads, lines, caption, "sortable searchable")
    return (
        "<p>Share of the variance of one job's value, and its standard deviation, mean over the methods:</p>"
        f"<ul>{items}</ul><p>{components.left_out(board)}</p><details><summary>By method</summary>{table}</details>"
    )


def _part(found: tuple[float, float] | None) -> str:
    if found is None:
        return cell(MISSING)
    return cell(f"{found[0]:.3f} {small(f'{100 * found[1]:.0f} %')}", found[0])


def devices(found: Sequence[Board]) -> str:
    """What the device does to the same jobs, where some ran on two."""
    lines = [
        f'<th scope="row">{escape(one.of)}</th><td>{escape(one.first)}</td><td>{escape(one.second)}</td>'
        f"<td>{METRICS[one.metric].label}</td>"
        + cell(f"{one.deviation:.4f}", one.deviation)
        + cell(str(one.jobs), one.jobs)
        for one in components.of_devices(found)
    ]
    if not lines:
        return ""
    heads = [("jobs of", ""), ("first", ""), ("second", ""), ("metric", ""), ("standard deviation", "n"), ("jobs", "n")]
    caption = "Standard deviation of one job's value over the two devices."
    title = "The same jobs on two devices"
    table = table_of(title, heads, lines, caption, "sortable")
    return f'<section id="devices" aria-labelledby="devices-title"><h2 id="devices-title">{title}</h2>{table}</section>'
