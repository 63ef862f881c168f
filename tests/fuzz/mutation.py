"""Sound inputs, spoilt: bytes anywhere, and values inside of what still is JSON or TOML."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from tests.datasets.fuzz_archives import KINDS, Edit, mutated

# what stands where something else belongs
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, -1e308, "", "x", "\u0000",
    "\x1b[31m", "a\nb", "\u202e", "../../x", "/etc/passwd", "x" * 5000, "NaN", [], {}, [[]], [None], {"": 0},
    [0] * 2000, [1e308, "x"],
)  # fmt: skip
RAW = ("NaN", "Infinity", "1e999", '"\\ud800"', "9" * 5000, "[" * 5000, "'", "", "\x00", "{", "# x", "0x", "1979-05-27")


def spoilt(draw: random.Random, data: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """`data` with one to eight changes of its bytes."""
    edits = [
        Edit(draw.choice(KINDS), draw.random() ** draw.choice((1, 3)), draw.choice((1, 2, 8, 100, 512)), value)
        for value in draw.randbytes(draw.choice((1, 1, 2, 3, 8)))
    ]
    return mutated(data, edits, draw.choice(others), repaired=False)


def spoilt_json(draw: random.Random, data: bytes) -> bytes:
    """A JSON text of which a value or a key was changed, or its bytes."""
    if draw.random() < 0.3:
        return spoilt(draw, data)
    content = json.loads(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content = changed(draw, content)
    text = json.dumps(content)
    if draw.random() < 0.2:  # a value that JSON does not have
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(RAW) + text[at + draw.randrange(6) :]
    return text.encode("utf-8", "surrogatepass")


def changed(draw: random.Random, content: Any) -> Any:
    """`content` with one value replaced, removed, doubled or renamed, anywhere in it."""
    if isinstance(content, dict) and content and draw.random() < 0.9:
        key = draw.choice(list(content))
        if draw.random() < 0.15:
            return {name: value for name, value in content.items() if name != key}
        if draw.random() < 0.1:
            return {(name if name != key else name + "x"): value for name, value in content.items()}
        return content | {key: changed(draw, content[key])}
    if isinstance(content, list) and content and draw.random() < 0.7:
        at = draw.randrange(len(content))
        return [*content[:at], changed(draw, content[at]), *content[at + 1 :]]
    return draw.choice(VALUES)


def spoilt_lines(draw: random.Random, data: bytes) -> bytes:
    """Lines of JSON, of TOML or of CSV: some changed, doubled, removed or moved."""
    if draw.random() < 0.3:
        return spoilt(draw, data)
    lines = data.decode("utf-8").splitlines(keepends=True)
    for _ in range(draw.choice((1, 2, 4))):
        at = draw.randrange(len(lines))
        one = lines[at]
        lines[at : at + 1] = draw.choice(([], [one, one], [one, lines[0]], *[[spoilt_value(draw, one)]] * 3))
        lines = lines or ["\n"]
    return "".join(lines).encode("utf-8", "surrogatepass")


def spoilt_value(draw: random.Random, line: str) -> str:
    """A line with another value after one of its separators."""
    places = [at for at, letter in enumerate(line) if letter in "=:,[ "]
    if not places:
        return draw.choice(RAW) + "\n"
    at = draw.choice(places) + 1
    text = draw.choice((draw.choice(RAW), json.dumps(draw.choice(VALUES))))
    end = next((end for end in range(at, len(line)) if line[end] in ",]}\n"), len(line))
    return line[:at] + text + line[end:]
