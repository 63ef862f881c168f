"""Maps and masks that are hard on metrics: heavy ties, all floats, touching regions, good images."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from kdad_bench.metrics import Saturated
from tests.metrics.finer_by_definition import Regions

KINDS = ("few levels", "continuous", "signed zeros", "subnormal", "huge", "all one value", "rounded blobs")
Drawn = tuple[np.ndarray, np.ndarray]
Marked = tuple[np.ndarray, np.ndarray, Regions, list[str], np.ndarray]


@st.composite
def cases(draw: st.DrawFn) -> Drawn:
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


def normal_of(masks: np.ndarray) -> np.ndarray:
    return ~masks.any(axis=(1, 2))


@st.composite
def marked_regions(draw: st.DrawFn) -> Marked:
    """Maps, union masks, regions that may overlap and fall apart, kinds and normal images in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, height, width = draw(st.integers(1, 5)), draw(st.integers(1, 7)), draw(st.integers(2, 7))
    kinds = [draw(st.sampled_from(["good", "logical", "structural", "x"])) for _ in range(count)]
    regions: Regions = []
    for image, kind in enumerate(kinds):
        for _ in range(draw(st.integers(1, 3)) if kind != "good" else 0):
            mask = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 0.5]))
            regions.append((image, mask, draw(st.sampled_from([1.0, 0.5, 0.3, 1e-3, 0.77]))))
    masks = np.zeros((count, height, width), bool)
    for image, mask, _ in regions:
        masks[image] |= mask
    maps = case(draw(st.sampled_from(KINDS)), masks, rng)
    return maps, masks, regions, kinds, np.array([kind == "good" for kind in kinds])


def packed(regions: Regions, shape: tuple[int, ...]) -> Saturated:
    return Saturated(
        np.array([mask for _, mask, _ in regions], bool).reshape(-1, *shape),
        np.array([image for image, _, _ in regions], np.int64),
        np.array([share for _, _, share in regions]),
    )
