"""Text from outside on one line of a terminal or a table: what does not show as itself is written as an escape."""

from __future__ import annotations

import re

# what moves a cursor, hides, reverses or cannot be encoded: control characters, invisible and direction marks, line
# separators, lone surrogates (the bytes of a file name that is not UTF-8)
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff"
    "\U000e0000-\U000e0fff]"
)


def printable(text: object) -> str:
    """`text` on one line, with every character that does not show as itself written as an escape: `\\x1b`."""
    return _UNPRINTABLE.sub(_escaped, str(text))


def is_printable(text: str) -> bool:
    """Whether `printable` leaves `text` as it is."""
    return _UNPRINTABLE.search(text) is None


def reason_of(error: BaseException, *, but: str = "", last: bool = False) -> str:
    """The first line that `error` says, or the `last`, without the text `but`; the name of its class where it says
    nothing else: an assertion often does not."""
    lines = [line.strip() for line in str(error).replace(but, "").splitlines() if line.strip()]
    return lines[-1 if last else 0] if lines else type(error).__name__


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
