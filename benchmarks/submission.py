"""Memory, time and size of a submission at the real size of the images of MVTec AD 2.

    python benchmarks/submission.py                                    # sheet_metal, 4224 x 1056 px
    python benchmarks/submission.py --category rice --private 10       # 2448 x 2048 px

A stand-in of one category is drawn in the layout and the sizes of the real one, with its 19 validation images and a few
of each other kind. Then the commands of docs/data.md follow, each in a process of its own: `run --save-models`,
`results submission`, `results submission --check`. Figures are the peak of the whole process, libraries included, as
the kernel counted it, and the seconds of its processor.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

LIKE, NAME = "mvtec_ad_2", "synthetic_mvtec_ad_2"
Answer = tuple[float, float]  # peak MB, processor seconds


def shortened(given: argparse.Namespace) -> None:
    """In this process the data set has one category, of a few images."""
    from kdad_bench import datasets

    one = datasets.entry(LIKE)
    counts = replace(
        one.published[given.category],
        train=8,
        validation=19,
        test_good=2,
        test_anomalous=6,
        unlabelled=2 * given.private,
    )
    module = ModuleType("short_submission")
    module.SHORT = replace(  # type: ignore[attr-defined]
        one, published={given.category: counts}, subjects={given.category: one.subjects[given.category]},
        drawn_counts={}, totals={},
    )  # fmt: skip
    sys.modules[module.__name__] = module
    datasets.DATASETS[LIKE] = f"{module.__name__}:SHORT"


def draw(given: argparse.Namespace, folder: Path) -> None:
    """The stand-in."""
    from kdad_bench.datasets import stand_in

    stand_in.generate(LIKE, folder)


def run(given: argparse.Namespace, folder: Path) -> None:
    """Learn, evaluate the public images, keep the model."""
    command(
        "run", "--method", given.method, "--preset", given.preset, "--dataset", NAME, "--data-root", folder,
        "--seeds", 1, "--out", folder / "out", "--save-models", "--no-pictures", "--no-measure-speed",
        "--executor", "in-process",
    )  # fmt: skip


def submit(given: argparse.Namespace, folder: Path) -> None:
    """Maps and decisions of the private images."""
    where = ("--dataset", NAME, "--data-root", folder, "--out", folder / "sub.tar.gz")
    command("results", "submission", folder / "out", *where)


def check(given: argparse.Namespace, folder: Path) -> None:
    """Examine the file against the images."""
    command("results", "submission", "--check", folder / "sub.tar.gz", "--dataset", NAME, "--data-root", folder)


def command(*arguments: object) -> None:
    """What the command line does."""
    from kdad_bench.cli import cli

    cli.main([str(one) for one in arguments], standalone_mode=False)


def alone(step: Callable[[argparse.Namespace, Path], None], given: argparse.Namespace, folder: Path) -> Answer:
    """What one step takes in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    found = spawn.Queue()
    process = spawn.Process(target=measured, args=(step, given, folder, found))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{step.__name__} ended with exit code {process.exitcode}")
    answer: Answer = found.get(timeout=60)
    return answer


def measured(
    step: Callable[[argparse.Namespace, Path], None], given: argparse.Namespace, folder: Path,
    found: multiprocessing.queues.Queue[Answer],
) -> None:  # fmt: skip
    """Do a step and say what it took."""
    shortened(given)
    try:
        step(given, folder)
    except SystemExit as left:
        if left.code:
            raise
    used = resource.getrusage(resource.RUSAGE_SELF)
    found.put((used.ru_maxrss * 1024 / 1e6, used.ru_utime + used.ru_stime))


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--category", default="sheet_metal")
    parser.add_argument("--private", type=int, default=4, help="images of each private split")
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--preset", default="quick")
    return parser.parse_args(arguments)


def main() -> None:
    """Print a line for each step."""
    given = parsed()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone(draw, given, folder)
        for step in (run, submit, check):
            megabytes, seconds = alone(step, given, folder)
            print(f"{step.__name__}: peak {megabytes:.0f} MB, {seconds:.0f} processor seconds", flush=True)
        size = (folder / "sub.tar.gz").stat().st_size / 1e6 / (2 * given.private)
        print(f"{given.category}: {size:.1f} MB of the file for each private image")


if __name__ == "__main__":
    sys.exit(main())
