"""Text from outside, made safe for the place where it is shown: names and messages are input."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from kdad_bench.text import is_printable as is_printable
from kdad_bench.text import printable as printable

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # what spreadsheets take for a formula
# the signs of Markdown; an underscore only where it can begin or end something
_MARKDOWN = re.compile(r"[\\|<>*`\[\]~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|^[#+=-](?=\s|$)|^\d+[.)](?=\s)")

MOST_NAMED = 8  # that a line names


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`, `3 categories`."""
    return f"{number} {noun if number == 1 else f'{noun[:-1]}ies' if noun.endswith('y') else f'{noun}s'}"


def without(failed: int) -> str:
    """A remark on a figure that so many failed jobs are not in: ` (2 failed)`; "" for none."""
    return f" ({failed} failed)" if failed else ""


def markdown(value: object) -> str:
    """`value` on one line, to be read as it stands in Markdown, inside a table as well."""
    return _MARKDOWN.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", printable(" ".join(str(value).split())))


def cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" '\"").startswith(_FORMULA) else value


def escape(value: object) -> str:
    """`value` on one line, to be read as it stands in HTML, in the value of an attribute as well."""
    return html.escape(printable(value), quote=True)


def first_names(names: Sequence[str]) -> str:
    """The first MOST_NAMED names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
