"""Memory and time of `kdad-bench predict` on one large image that a model sees in tiles.

    python benchmarks/large_image.py                              # 4096 x 4096 px in tiles of 256
    python benchmarks/large_image.py --method patchcore --side 2048

The model learns from one image first, in a process of its own, with random weights: neither memory nor time of scoring
depends on what it has learnt. The figure is the peak of the whole process that scores, libraries, the decoded image and
the overlay's picture included, as the kernel counted it; the seconds are those of its processor.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np


def write(path: Path, side: int) -> None:
    """A noisy image of side x side with a bright square."""
    from PIL import Image

    pixels = np.random.default_rng(0).normal(120, 12, (side, side, 3)).clip(0, 255).astype(np.uint8)
    pixels[side // 2 : side // 2 + side // 16, side // 4 : side // 4 + side // 16] = 220
    Image.fromarray(pixels).save(path, compress_level=1)


def learn(folder: Path, given: argparse.Namespace) -> None:
    """A model of tiles, saved."""
    import kdad_bench

    settings = {"steps": 1} if given.steps else {}
    detector = kdad_bench.Detector(
        given.method, preset=given.preset, resolution=given.side, tile=given.tile, hold_out=0.0, weights="random",
        batch_size=4, **settings,
    )  # fmt: skip
    detector.fit([folder / "image.png"]).save(folder / "model")


def score(folder: Path, overlay: bool, found: multiprocessing.queues.Queue[tuple[float, float, float]]) -> None:
    """What `kdad-bench predict` does, and what it took: MB, processor seconds, the score."""
    from kdad_bench.harness.predict import predict

    said = predict(folder / "model", [str(folder / "image.png")], device="cpu", out=folder / "out" if overlay else None)
    used = resource.getrusage(resource.RUSAGE_SELF)
    found.put((used.ru_maxrss * 1024 / 1e6, used.ru_utime + used.ru_stime, said.images[0].score))


def measured(given: argparse.Namespace) -> tuple[float, float, float]:
    """(peak MB, processor seconds, score) of scoring one image in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "image.png", given.side)
        learner = spawn.Process(target=learn, args=(folder, given))
        learner.start()
        learner.join()
        if learner.exitcode:
            raise SystemExit(f"{given.method}: the training ended with exit code {learner.exitcode}")
        found = spawn.Queue()
        scorer = spawn.Process(target=score, args=(folder, given.overlay, found))
        scorer.start()
        result: tuple[float, float, float] = found.get(timeout=given.seconds)
        scorer.join()
    return result


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--no-steps", dest="steps", action="store_false", help="for methods that learn in no steps")
    parser.add_argument("--no-overlay", dest="overlay", action="store_false")
    parser.add_argument("--seconds", type=float, default=3600, help="give up after so many")
    return parser.parse_args(arguments)


def main() -> None:
    """Print one line."""
    given = parsed()
    megabytes, seconds, _ = measured(given)
    print(
        f"{given.method} ({given.preset}), one image of {given.side} x {given.side} px in tiles of {given.tile}: "
        f"peak {megabytes:.0f} MB, {seconds:.0f} processor seconds, {os.environ.get('OMP_NUM_THREADS', 'all')} threads"
    )


if __name__ == "__main__":
    sys.exit(main())
