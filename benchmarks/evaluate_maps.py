"""How fast maps of other code are read, checked and judged: python benchmarks/evaluate_maps.py [SIDE] [MAP_SIDE]."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from kdad_bench import datasets
from kdad_bench.harness.evaluate import Asked, evaluate
from kdad_bench.harness.options import options_from

MAPS = 83  # as MVTec AD's bottle has test images


def main(side: int, map_side: int) -> None:
    """Draw maps for the embedded data, then evaluate them three times and print the seconds of each."""
    options = options_from({"datasets": ("synthetic",), "categories": ("gear",), "resolution": side})
    (category,) = datasets.categories("synthetic", None)[:1]
    options = options.model_copy(update={"categories": (category.name,)})
    count = len(category.test)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for sample in category.test:
            path = Path(folder) / sample.defect / f"{sample.path.stem}.tiff"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, rng.random((map_side, map_side), np.float32))
        asked = Asked(maps=Path(folder), name="noise", options=options, pictures=False)
        for _ in range(3):
            start = time.perf_counter()
            evaluate(asked, dry_run=True)
            read = time.perf_counter() - start
            start = time.perf_counter()
            evaluate(asked)
            whole = time.perf_counter() - start
            pixels = count * map_side**2 / 1e6
            print(
                f"{count} maps of {map_side} px at {side} px: read and checked {read:.3f} s, "
                f"with judging {whole:.3f} s, {pixels / whole:.0f} MPixel/s; {MAPS} maps: {whole * MAPS / count:.3f} s"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256, int(sys.argv[2]) if len(sys.argv) > 2 else 256)
