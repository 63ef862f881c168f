"""Maps and masks that are hard on metrics: heavy ties, all floats, touching regions, good images."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

KINDS = ("few levels", "continuous", "signed zeros", "subnormal", "huge", "all one value", "rounded blobs")


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Float32 maps [N, H, W] and boolean masks with at least one positive and one negative pixel."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(2, 9)))
    kind = draw(st.sampled_from(KINDS))
    masks = rng.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.8]))
    masks[rng.random(shape[0]) < 0.3] = False  # good images
    masks.reshape(-1)[0], masks.reshape(-1)[-1] = True, False
    return case(kind, masks, rng), masks


def case(kind: str, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Float32 maps of one kind for the masks."""
    levels = rng.integers(-2, 4, masks.shape)
    maps = {
        "few levels": levels / 4,
        "continuous": rng.normal(size=masks.shape) + masks,
        "signed zeros": np.copysign(0.0, levels) + np.maximum(levels - 2, 0),
        "subnormal": levels * 1.4e-45,
        "huge": levels * 1.1e38,
        "all one value": np.full(masks.shape, 0.25),
        "rounded blobs": np.round(rng.random(masks.shape) + 0.5 * masks, 1),
    }[kind]
    return maps.astype(np.float32)
