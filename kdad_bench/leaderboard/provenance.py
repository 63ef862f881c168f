"""The versions behind the finished rows of a page: of this package, its libraries, the machine and the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PROVENANCE = (
    ("protocol", "protocol_version"),
    ("kdad-bench", "kdad_bench"),
    ("source commit", "git_commit"),
    ("Python", "python"),
    ("PyTorch", "torch"),
    ("Triton", "triton"),
    ("NumPy", "numpy"),
    ("platform", "platform"),
    ("teacher weights", "teacher_weights"),
    ("map resolution", "resolution"),
)


def provenance(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(what, its values) of the versions behind the finished rows; several values mean rows of different origin."""
    ok = [row for row in rows if row["status"] == "ok"]
    found = []
    for label, column in PROVENANCE:
        values = {
            f"{row[column]}{' (with uncommitted changes)' if column == 'git_commit' and row['git_dirty'] else ''}"
            for row in ok
            if row[column] not in (None, "")
        }
        if values:
            found.append((label, ", ".join(sorted(values, key=_by_number))))
    return found


def _by_number(value: str) -> tuple[int, str]:
    return (int(value) if value.isdecimal() else 0, value)
