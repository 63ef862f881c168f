"""What all that draws samples in numpy shares: the types of its arrays, and the one way in which it draws a number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """One number uniform in [low, high), by `Generator.random` alone."""
    return low + (high - low) * rng.random()
