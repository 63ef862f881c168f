"""Text from outside, made safe for the place where it is shown: names and messages are input."""

from __future__ import annotations

import html
import re

# what moves a cursor, hides, reverses or cannot be encoded: control characters, invisible and direction marks, line
# separators, lone surrogates (the bytes of a file name that is not UTF-8)
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff"
    "\U000e0000-\U000e0fff]"
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # what spreadsheets take for a formula
# the signs of Markdown; an underscore only where it can begin or end something
_MARKDOWN = re.compile(r"[\\|<>*`\[\]~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|^[#+=-](?=\s|$)|^\d+[.)](?=\s)")


def printable(text: object) -> str:
    """`text` on one line, with every character that does not show as itself written as an escape: `\\x1b`."""
    return _UNPRINTABLE.sub(_escaped, str(text))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`, `3 categories`."""
    return f"{number} {noun if number == 1 else f'{noun[:-1]}ies' if noun.endswith('y') else f'{noun}s'}"


def is_printable(text: str) -> bool:
    """Whether `printable` leaves `text` as it is."""
    return _UNPRINTABLE.search(text) is None


def markdown(value: object) -> str:
    """`value` on one line, to be read as it stands in Markdown, inside a table as well."""
    return _MARKDOWN.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", printable(" ".join(str(value).split())))


def cell(value: object) -> object:
    """A value for a CSV file: text that a spreadsheet would run as a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" '\"").startswith(_FORMULA) else value


def escape(value: object) -> str:
    """`value` on one line, to be read as it stands in HTML, in the value of an attribute as well."""
    return html.escape(printable(value), quote=True)
