"""Student's t distribution from its formula: importing SciPy for it would take longer than drawing the page."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist


@cache
def student_quantile(freedom: float, level: float) -> float:
    """The t with P(|T| <= t) = `level` in (0, 1) for T with `freedom` >= 1 degrees; relative error about 1e-10.

    Raises ValueError outside of these ranges.
    """
    if freedom < 1 or not 0 < level < 1:
        raise ValueError(f"no Student quantile for {freedom} degrees of freedom at level {level}")
    value = NormalDist().inv_cdf((1 + level) / 2)  # below the root; the tail is convex, so Newton's steps stay below it
    constant = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    for _ in range(200):
        density = math.exp(constant - (freedom + 1) / 2 * math.log1p(value * value / freedom))
        step = (student_tail(value, freedom) - (1 - level)) / (2 * density)
        value += step
        if abs(step) <= 1e-13 * value:
            break
    return value


def student_tail(value: float, freedom: float) -> float:
    """P(|T| >= value) for `value` >= 0 and T with `freedom` >= 1 degrees, whole or not; relative error about 1e-10.

    The regularised incomplete beta function I_x(freedom / 2, 1 / 2) at x = freedom / (freedom + value^2): Abramowitz &
    Stegun, 26.7.1 with 26.5.27.
    """
    x = freedom / (freedom + value * value)
    a, b = freedom / 2, 0.5
    if x >= 1:
        return 1.0
    if x <= 0:
        return 0.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(x, a, b) / a
    return 1 - front * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function, from its front: A. & S., 26.5.8, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + term / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
