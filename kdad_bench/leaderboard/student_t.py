"""Student's t quantile from finite sums: importing SciPy for it would take longer than drawing the page."""

from __future__ import annotations

import math
from functools import cache


@cache
def student_quantile(freedom: int, level: float) -> float:
    """The t with P(|T| <= t) = `level` in (0, 1) for T with `freedom` >= 1 degrees; accurate to about 1e-12.

    Raises ValueError outside of these ranges. Source of the distribution: Abramowitz & Stegun, 26.7.3 and 26.7.4.
    """
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"no Student quantile for {freedom} degrees of freedom at level {level}")
    low, high = 0.0, math.pi / 2  # of theta = atan(t / sqrt(freedom))
    for _ in range(200):
        middle = (low + high) / 2
        if _inside(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return math.tan((low + high) / 2) * math.sqrt(freedom)


def _inside(theta: float, freedom: int) -> float:
    """P(|T| <= t) as a finite sum in theta = atan(t / sqrt(freedom))."""
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(2 if odd else 1, freedom, 2):  # cos + 2/3 cos^3 + ... or 1 + 1/2 cos^2 + ...
        total += term
        term *= cosine * cosine * step / (step + 1)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
