"""Warnings of this package as lines of their own words: where in its source they were raised helps nobody."""

from __future__ import annotations

import warnings
from pathlib import Path

from kdad_bench.leaderboard.text import printable

PLACE = str(Path(__file__).parents[1])
as_python_says = warnings.formatwarning


def say_plainly() -> None:
    """From here on this process shows its own UserWarnings as a line each, and those of others as Python does."""
    warnings.formatwarning = said


def said(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """What is shown of a warning, with the end of its line."""
    if issubclass(category, UserWarning) and filename.startswith(PLACE):
        return f"{printable(' '.join(str(message).split()))}\n"
    return as_python_says(message, category, filename, lineno, line)
