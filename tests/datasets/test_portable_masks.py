"""Masks in portable maps, which say in their header how many bits they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdad_bench.datasets.decoding import mask_of


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mask_of_8_bits_in_a_portable_map_is_read(mode: str, tmp_path: Path) -> None:
    marked = np.zeros((8, 8), bool)
    marked[:3, :3] = True
    Image.fromarray((marked * 255).astype(np.uint8)).convert(mode).save(tmp_path / "mask", format="PPM")
    assert np.array_equal(mask_of(tmp_path / "mask").marked, marked)
