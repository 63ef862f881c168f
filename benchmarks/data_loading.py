"""Time to load a category: a single-threaded Pillow loop, the first load, and the load from the cache.

    python benchmarks/data_loading.py                       # 250 images of 1024 x 1024
    python benchmarks/data_loading.py --images 60 --side 512 --repeats 5

Draws the images into a temporary folder, with the contents and the compression of the stand-ins. The three ways are
timed in turn, `--repeats` times; the first load gets an empty cache each time. All of them end with every byte read,
and their arrays are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets import cache, synthetic_2d
from kdad_bench.datasets.synthetic.drawing import Canvas
from kdad_bench.datasets.synthetic.embedded import drawn
from kdad_bench.datasets.synthetic.encoding import png


def draw_tree(root: Path, images: int, side: int) -> None:
    """A category of `images` training images: ten drawings, each shifted by another number of pixels."""
    subjects = list(synthetic_2d.DRAWN.subjects.items())
    canvas = Canvas(side, side)

    def base(index: int) -> np.ndarray:
        name, subject = subjects[index % len(subjects)]
        return drawn(subject, f"benchmark/{name}/{index}", canvas, None, coarse=True).image

    with ThreadPoolExecutor(cache.workers()) as pool:
        bases = list(pool.map(base, range(min(10, images))))

        def write(index: int) -> None:
            shifted = np.roll(bases[index % len(bases)], index, axis=(0, 1))
            (root / "train" / "good" / f"{index:03d}.png").write_bytes(png(shifted, compress=True))

        for folder in ("train/good", "test/good", "test/defect"):
            (root / folder).mkdir(parents=True)
        list(pool.map(write, range(images)))
    for folder in ("good", "defect"):
        shutil.copy(root / "train" / "good" / "000.png", root / "test" / folder / "000.png")


def pillow_loop(files: tuple[Path, ...], resolution: int) -> np.ndarray:
    """What a plain script does: open, convert, resize, stack."""
    loaded = []
    for path in files:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((resolution, resolution), Image.Resampling.BILINEAR)
        loaded.append(np.asarray(small).transpose(2, 0, 1))
    return np.stack(loaded)


def timed(call: Callable[[], np.ndarray]) -> tuple[float, int]:
    """Seconds until every byte has been read, and a checksum."""
    began = time.perf_counter()
    total = int(np.asarray(call()).sum(dtype=np.uint64))
    return time.perf_counter() - began, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=250)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kdad-data-loading-") as name:
        root = Path(name)
        draw_tree(root / "category", given.images, given.side)
        (category,) = datasets.categories(f"folder:{root / 'category'}", None)
        paths = [sample.path for sample in category.train]
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        seconds: dict[str, list[float]] = {"Pillow loop": [], "first load": [], "from the cache": []}
        for repeat in range(given.repeats):
            os.environ["KDAD_CACHE"] = str(root / f"cache-{repeat}")
            sums = set()
            for label in seconds:
                took, total = timed(
                    (lambda: pillow_loop(paths, given.resolution))
                    if label == "Pillow loop"
                    else lambda: datasets.load_train(category, given.resolution)
                )
                seconds[label].append(took)
                sums.add(total)
            if len(sums) != 1:
                raise SystemExit(f"the three ways disagree: {sums}")
            shutil.rmtree(root / f"cache-{repeat}")
    print(
        f"{given.images} PNG files of {given.side} x {given.side}, {megabytes:.0f} MB, to {given.resolution} px; "
        f"{cache.workers()} threads; Pillow {Image.__version__}; median of {given.repeats}"
    )
    baseline = statistics.median(seconds["Pillow loop"])
    print("\n| way | seconds | fastest .. slowest | images/s | x Pillow loop |\n|---|---|---|---|---|")
    for label, took in seconds.items():
        middle = statistics.median(took)
        print(
            f"| {label} | {middle:.4f} | {min(took):.4f} .. {max(took):.4f} | {given.images / middle:.0f} "
            f"| {baseline / middle:.2f} |"
        )


if __name__ == "__main__":
    main()
