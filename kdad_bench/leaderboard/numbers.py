"""How numbers are written in pages: this is the only place that rounds."""

from __future__ import annotations

import math

from kdad_bench.leaderboard.published import NOT_TOLD
from kdad_bench.leaderboard.summary import Estimate

MISSING = "–"


def interval(found: Estimate | None) -> str:
    """The mean with its 95 % interval: 0.953 [0.941, 0.962]."""
    if found is None:
        return MISSING
    return f"{found.mean:.3f} {ends(found)}".rstrip()


def ends(found: Estimate) -> str:
    """The interval alone: [0.941, 0.962]; nothing where there is none."""
    return "" if found.shown is None else f"[{found.shown[0]:.3f}, {found.shown[1]:.3f}]"


def deviation(found: Estimate | None) -> str:
    """The mean with its standard deviation over seeds: 0.953 ± 0.004."""
    if found is None:
        return MISSING
    return f"{found.mean:.3f}" + ("" if found.std is None else f" ± {found.std:.3f}")


def signed(value: float) -> str:
    """A difference of accuracies with its sign; 0.000 has none."""
    text = f"{value:+.3f}"
    return text[1:] if text[1:] == "0.000" else text


def judged(verdict: str, half: float | None) -> str:
    """A verdict on a difference; what an interval left open with the half of it: not told apart (±0.18)."""
    return f"{verdict} (±{half:.2f})" if verdict == NOT_TOLD and half is not None else verdict


def number(value: float | None) -> str:
    """Three significant digits, two decimals where that is fewer but one significant digit at least, no exponent."""
    if value is None:
        return MISSING
    if 0 < value < 0.01:
        return f"{value:.{-math.floor(math.log10(value))}f}"
    if round(value, 1) >= 100:  # as it would be written
        return f"{value:,.0f}"
    return f"{value:.1f}" if round(value, 2) >= 10 else f"{value:.2f}"


def large(value: float | None) -> str:
    """A count of weights: 1.23 M, 456 k, 78."""
    if value is None:
        return MISSING
    if round(value / 1e3) >= 1000:  # as it would be written: 999,999 are no 1000 k
        return f"{value / 1e6:.2f} M"
    return f"{value / 1e3:.0f} k" if round(value) >= 1000 else f"{value:.0f}"
