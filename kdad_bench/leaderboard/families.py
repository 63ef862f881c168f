"""The families of entrants: what is ranked apart, because it answers another question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

FLOOR = "floor"
# family -> what it is for, in the order in which it is shown
FAMILIES: Mapping[str, str] = MappingProxyType({
    "student-teacher": "what this benchmark is of",
    "yardstick": "frozen features and no student, to measure the others by",
    FLOOR: "what every method must beat",
})  # fmt: skip
EXTERNAL, UNKNOWN = "external", "unknown"
# Rows older than schema 4 do not say it: the methods that there were.
_OF_OLD_ROWS = MappingProxyType(
    dict.fromkeys(("padim", "spade", "patchcore"), "yardstick")
    | dict.fromkeys(("stfpm", "rd4ad", "mkd", "eca_mskdad", "dskd", "bmkd", "fractalad"), "student-teacher")
    | {"pixel_mean": FLOOR}
)


def family_of(row: Mapping[str, Any]) -> str:
    """The family of a row's method: one of FAMILIES where it is known."""
    if row.get("family"):
        return str(row["family"])
    if row.get("origin"):
        return EXTERNAL
    return UNKNOWN if row.get("code_sha256") else _OF_OLD_ROWS.get(row["method"], UNKNOWN)


def in_order(found: Iterable[str]) -> tuple[str, ...]:
    """Each family once, as FAMILIES has them, the others after them by name."""
    known = list(FAMILIES)
    return tuple(sorted(set(found), key=lambda name: (known.index(name) if name in known else len(known), name)))
