"""The pieces that the tables of leaderboard.md are made of."""

from __future__ import annotations

from collections.abc import Sequence


def marked(text: str, mark: str) -> str:
    """The text in bold ("best"), underlined ("second") or as it is."""
    return {"best": f"**{text}**", "second": f"<ins>{text}</ins>"}.get(mark, text)


def table_of(header: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """A Markdown table whose source is aligned too; columns in `left` are text."""
    widths = [max(3, len(title), *(len(line[column]) for line in lines)) for column, title in enumerate(header)]

    def row(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column in left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([row(header), row(rule), *(row(line) for line in lines)])
