"""Who beats whom, and where the spread comes from, in leaderboard.md."""

from __future__ import annotations

from collections.abc import Sequence

from kdad_bench.leaderboard import components, deciding
from kdad_bench.leaderboard.board import Board
from kdad_bench.leaderboard.markdown_parts import marked, table_of
from kdad_bench.leaderboard.metric import METRICS
from kdad_bench.leaderboard.numbers import MISSING, signed
from kdad_bench.leaderboard.text import counted
from kdad_bench.leaderboard.text import markdown as _text


def who_beats_whom(board: Board) -> str:
    """What was told apart in each headline metric, what could have been seen, and a matrix of all pairs."""
    lines = []
    for metric in board.headline:
        line = f"- **{METRICS[metric].label}**: {_text(deciding.counted(board, metric))}."
        lines.append(f"{line} {deciding.power(board, metric)}".rstrip())
    parts = ["\n".join(lines), deciding.READ]
    for metric in board.headline:
        summary = f"<summary>{METRICS[metric].label}: every pair of methods</summary>"
        parts.append(f"<details>{summary}\n\n{matrix(board, metric)}\n\n</details>")
    return "\n\n".join(parts)


def matrix(board: Board, metric: str) -> str:
    """Row minus column with the corrected p below it, and how many the row surely beats and loses to."""
    keys = deciding.shown(board, metric)
    lines = []
    for place, key in enumerate(keys, 1):
        cells = [str(place), _text(board.labels[key])]
        for other in keys:
            if other == key:
                cells.append("·")
                continue
            found = board.summary.comparison(key, other, metric)
            if found.difference is None:
                cells.append(MISSING)
                continue
            p = deciding.p_of(found).replace("<", "&lt;")
            told = marked(signed(found.difference), "best" if found.significant else "")
            cells.append(f"{told}<br><sub>p {p}</sub>")
        lines.append([*cells, *map(str, deciding.standing(board, key, metric))])
    header = ["#", "method", *(str(place) for place in range(1, len(keys) + 1)), "beats", "loses to"]
    text = table_of(header, lines, left=(1,))
    few = deciding.room(board, keys)
    return text + (f"\n\n{few}" if few else "")


def components_of(board: Board) -> str:
    """The shares of all methods together, and each method's standard deviations."""
    told = [line for metric in board.headline if (line := components.in_words(board, metric))]
    if not told:
        return "One value of each method: nothing to compare with."
    lines = []
    for metric in board.headline:
        for key, parts in components.of_entrants(board, metric).items():
            known = components.shares(parts)
            lines.append([
                _text(board.labels[key]), METRICS[metric].label,
                *(_part(known.get(name)) for name in components.SOURCES.values()),
            ])  # fmt: skip
    table = table_of(["method", "metric", *components.SOURCES.values()], lines, left=(0, 1))
    return (
        "Share of the variance of one job's value, and its standard deviation, mean over the methods:\n\n"
        + "\n".join(f"- {line}" for line in told)
        + f"\n\n{components.left_out(board)}"
        + f"\n\n<details><summary>By method</summary>\n\n{table}\n\n</details>"
    )


def _part(found: tuple[float, float] | None) -> str:
    return MISSING if found is None else f"{found[0]:.3f} ({100 * found[1]:.0f} %)"


def devices(found: Sequence[Board]) -> list[str]:
    """A section on what the device does to the same jobs, where some ran on two."""
    lines = [
        f"- {_text(one.of)}: {_text(one.first)} and {_text(one.second)}, {METRICS[one.metric].label}: "
        f"{one.deviation:.4f} ({counted(one.jobs, 'job')})"
        for one in components.of_devices(found)
    ]
    if not lines:
        return []
    return ["## The same jobs on two devices", "Standard deviation of one job's value:\n\n" + "\n".join(lines)]
