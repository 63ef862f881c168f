"""What one job costs in memory against the number of test images and their size: python benchmarks/memory.py.

    python benchmarks/memory.py                                   # the whole table
    python benchmarks/memory.py --images 1056 --side 256           # one cell of it, for each method
    python benchmarks/memory.py --images 400 --side 1448 --method pixel_mean   # 2 megapixels, beyond the table

Each cell is one job, as `kdad-bench run` runs it, in a process of its own; the figure is the peak of the whole process,
libraries and pages of mapped files included, as the kernel counted it; the seconds of its phases go to stderr. Images
are loaded and judged at `side` px; the
networks see what the quick preset says. The category is generated: noise, and noise with a square as defects.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

METHODS = ("pixel_mean", "stfpm")
TRAIN = 64  # normal images to learn from
IMAGES = (66, 264, 1056)
MOST_PIXELS = 1056 * 512 * 512  # of the maps of a cell: 1.1 GB; a dash stands for larger ones
SIDES = (256, 512, 1024)
STEPS = "4"
PHASES = ("data_seconds", "train_seconds", "score_seconds", "metric_seconds", "total_seconds")
STEADY_KINDS = 16  # different pictures of a category: the others are copies under other names


def category(root: Path, side: int, test: int) -> None:
    """A category in the MVTec AD layout: `TRAIN` normal images, `test` of which half are defective."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder, count in (("train/good", TRAIN), ("test/good", test - test // 2), ("test/square", test // 2)):
        place = root / "noise" / folder
        place.mkdir(parents=True)
        for kind in range(min(STEADY_KINDS, count)):
            pixels = rng.normal(120, 12, (side, side, 3))
            mask = np.zeros((side, side), bool)
            if folder.endswith("square"):
                x, y = rng.integers(0, side - side // 8, 2)
                mask[y : y + side // 8, x : x + side // 8] = True
                pixels[mask] += 70
            first = place / f"{kind:05}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(first, compress_level=1)
            names = [f"{number:05}" for number in range(kind, count, STEADY_KINDS)]
            for name in names[1:]:
                (place / f"{name}.png").write_bytes(first.read_bytes())
            if mask.any():
                masks = root / "noise" / "ground_truth" / "square"
                masks.mkdir(parents=True, exist_ok=True)
                for name in names:
                    Image.fromarray((mask * 255).astype(np.uint8)).save(masks / f"{name}_mask.png", compress_level=1)


def cell(method: str, side: int, test: int, root: Path, cache: Path) -> float:
    """The peak memory of one job in MB, 10^6 bytes."""
    command = [sys.executable, __file__, "--one", method, str(side), str(root)]
    environment = {**os.environ, "KDAD_CACHE": str(cache)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    said = json.loads(done.stdout.splitlines()[-1])
    if said["status"] != "ok" or said["test_images"] != test:
        raise SystemExit(f"{method} at {side} px: {said}")
    print(", ".join(f"{name} {said[name]:.0f}" for name in PHASES), file=sys.stderr)
    return float(said["peak_mb"])


def one(method: str, side: int, root: Path) -> None:
    """Run one job in this process and print its peak."""
    from kdad_bench.harness.agenda import agenda
    from kdad_bench.harness.options import options_from
    from kdad_bench.harness.perform import perform
    from kdad_bench.leaderboard.row import Row

    with tempfile.TemporaryDirectory() as out:
        said = {
            "methods": [method], "datasets": [f"folder:{root}"], "seeds": "1", "preset": "quick", "device": "cpu",
            "resolution": side, "out": out, "steps": int(STEPS), "pictures": False,
        }  # fmt: skip
        found = agenda(options_from(said))
        row = perform(found.jobs[0], found.work)
    assert isinstance(row, Row), row
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    said = {name: getattr(row, name) for name in ("status", "reason", "test_images", *PHASES)}
    print(json.dumps({**said, "peak_mb": peak}))


def main() -> None:
    """Print the table, a line for each method and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=None)
    parser.add_argument("--side", type=int, nargs="+", default=SIDES)
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "SIDE", "ROOT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.one[0], int(given.one[1]), Path(given.one[2]))
        return
    most = MOST_PIXELS if given.images is None else None
    given.images = given.images or IMAGES
    print(f"| method | side, px | {' | '.join(f'{count} images, MB' for count in given.images)} |")
    print(f"| --- | ---: | {' | '.join('---:' for _ in given.images)} |")
    found: dict[tuple[str, int, int], float] = {}
    for side, count in itertools.product(given.side, given.images):
        if most is not None and count * side * side > most:
            continue
        with tempfile.TemporaryDirectory() as place:
            root, cache = Path(place) / "data", Path(place) / "cache"
            category(root, side, count)
            for method in given.method:
                found[method, side, count] = cell(method, side, count, root, cache)
                print(f"{method}, {side} px, {count} images: {found[method, side, count]:.0f} MB", file=sys.stderr)
    for method, side in itertools.product(given.method, given.side):
        peaks = [found.get((method, side, count)) for count in given.images]
        cells = " | ".join("-" if peak is None else f"{peak:.0f}" for peak in peaks)
        print(f"| `{method}` | {side} | {cells} |")


if __name__ == "__main__":
    main()
