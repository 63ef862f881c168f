"""How fast maps of other code are read, checked and judged.

    python benchmarks/evaluate_maps.py [SIDE] [MAP_SIDE]                    # the embedded data, resized to SIDE
    KDAD_DATA=FOLDER python benchmarks/evaluate_maps.py --category bottle   # MVTec AD, as it lies in FOLDER

Maps are smooth, as methods make them, and noise, the slowest case for the metrics. Seconds by the clock are those of
the machine at its load; the CPU seconds of all threads say what the work costs on an idle one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kdad_bench.allowance import cores
from kdad_bench.datasets import Category
from kdad_bench.harness.evaluate import evaluate
from kdad_bench.harness.known_maps import Asked
from kdad_bench.harness.options import RunOptions, options_from
from kdad_bench.harness.selection import categories_of

REPEATS = 7
MAPS = 83  # as MVTec AD's bottle has test images


class Took(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Took:
    """Of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def drawn(kind: str, side: int, seed: int) -> NDArray[np.float32]:
    """A map [side, side]."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.random((side, side), np.float32)
    coarse = Image.fromarray(rng.random((side // 16 + 1, side // 16 + 1), np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)


def measure(kind: str, category: Category, options: RunOptions, map_side: int) -> None:
    """Print a line for maps of one kind: the first time and the median of the others."""
    with tempfile.TemporaryDirectory() as folder:
        for number, sample in enumerate(category.test):
            path = Path(folder) / sample.defect / f"{sample.path.stem}.tiff"
            path.parent.mkdir(exist_ok=True)
            tifffile.imwrite(path, drawn(kind, map_side, number))
        asked = Asked(maps=Path(folder), name="drawn", options=options, pictures=False)
        first = timed(lambda: evaluate(asked))
        every = [timed(lambda: evaluate(asked)) for _ in range(REPEATS)]
        dry = [timed(lambda: evaluate(asked, dry_run=True)) for _ in range(REPEATS)]
    count = len(category.test)
    pixels = count * map_side**2 / 1e6
    wall, cpu = (sorted(column)[REPEATS // 2] for column in zip(*every, strict=True))
    best = min(one.wall for one in every)
    read = sorted(one.wall for one in dry)[REPEATS // 2]
    print(
        f"{kind:6} {count} maps of {map_side} px at {options.resolution} px: first {first.wall:.3f} s, then {wall:.3f} "
        f"s (best {best:.3f}, reading and checking {read:.3f}), {cpu:.3f} CPU s: {pixels / wall:.0f} MPixel/s "
        f"(best {pixels / best:.0f}), {pixels / cpu:.0f} per CPU second; {MAPS} maps: {wall * MAPS / count:.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", type=int, nargs="?", default=256)
    parser.add_argument("map_side", type=int, nargs="?", default=256)
    parser.add_argument("--category", help="of MVTec AD below KDAD_DATA; without it the embedded gear")
    given = parser.parse_args()
    chosen = {"datasets": ("synthetic",), "categories": ("gear",)}
    if given.category:
        chosen = {"datasets": ("mvtec_ad",), "categories": (given.category,)}
    root = {"data_root": Path(os.environ["KDAD_DATA"])} if given.category else {}
    options = options_from({**chosen, **root, "resolution": given.side})
    (category,) = categories_of(options)
    print(f"{cores()} cores, load {os.getloadavg()[0]:.1f}")
    for kind in ("smooth", "noise"):
        measure(kind, category, options, given.map_side)


if __name__ == "__main__":
    main()
