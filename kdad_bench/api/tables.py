"""Small tables for a notebook's page and for a terminal: texts in, HTML or aligned text out."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from kdad_bench.leaderboard.text import printable

STYLE = "text-align: right; padding: 0.1em 0.8em"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A caption, headings, and lines of as many cells."""

    caption: str
    heading: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    @property
    def html(self) -> str:
        """A table without scripts; every text is escaped."""
        caption = f'<caption style="text-align: left">{shown(self.caption)}</caption>'
        body = "".join(f"<tr>{cells_of(line, 'td')}</tr>" for line in self.lines)
        return f"<table>{caption}<thead><tr>{cells_of(self.heading, 'th')}</tr></thead><tbody>{body}</tbody></table>"

    @property
    def text(self) -> str:
        """Aligned columns under the caption."""
        cells = [[printable(text) for text in line] for line in (self.heading, *self.lines)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        aligned = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in cells
        ]
        return "\n".join([printable(self.caption), *aligned])


def cells_of(line: tuple[str, ...], tag: str) -> str:
    """The cells of one line of HTML."""
    return "".join(f'<{tag} style="{STYLE}">{shown(text)}</{tag}>' for text in line)


def shown(text: str) -> str:
    """`text` as HTML shows it."""
    return escape(printable(text))


def html_of(tables: tuple[Table, ...], nothing: str) -> str:
    """All tables, or `nothing` said in a paragraph."""
    return "".join(table.html for table in tables) or f"<p>{shown(nothing)}</p>"


def text_of(tables: tuple[Table, ...], nothing: str) -> str:
    """All tables, or `nothing`."""
    return "\n\n".join(table.text for table in tables) or nothing
