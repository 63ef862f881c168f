"""Stand-ins of the published data sets in a short form: the layout of the real ones, a few images of each kind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets import stand_in

CATEGORY = {"mvtec_ad_2": "sheet_metal", "mvtec_loco": "pushpins", "visa": "pcb1", "btad": "03", "mpdd": "metal_plate"}
EVERY = {**CATEGORY, "mvtec_ad": "bottle", "mvtec_3d_ad": "bagel"}
SIDE = 64
WHOLE = {name: datasets.entry(name) for name in EVERY}


def short(name: str, out: Path, patch: pytest.MonkeyPatch, category: str = "") -> Path:
    """Draw one category of the stand-in for `name` with 4 + 2 normal images and an anomalous one or two of each kind.

    The table of the data set is shortened to it, so that `verify` compares with what was drawn. Returns its root.
    """
    category = category or EVERY[name]
    one = WHOLE[name]
    counts = one.drawn_counts.get(category) or one.published[category]
    few = replace(
        counts,
        train=4,
        validation=2 if counts.validation else 0,
        test_good=2,
        test_anomalous=max(2, len(counts.types)),
        unlabelled=4 if counts.unlabelled else 0,
    )
    module = ModuleType(f"short_{name}")
    module.SHORT = replace(  # type: ignore[attr-defined]
        one,
        published={category: few},
        subjects={category: one.subjects[category]},
        drawn_counts={},
        totals={key: getattr(few, key) for key in one.totals if hasattr(few, key)},
    )
    patch.setitem(sys.modules, module.__name__, module)
    patch.setitem(datasets.DATASETS, name, f"{module.__name__}:SHORT")
    return stand_in.generate(name, out, size=SIDE)


def pixels(path: Path) -> np.ndarray:
    """What an image file holds."""
    with Image.open(path) as image:
        return np.asarray(image)
