"""Every method with the paper's budget on real categories: rows as they come, packed as they come, within a budget.

    KDAD_DATA=... python benchmarks/gpu/leaderboard.py --out OUT --seconds 440      # resumes where it stopped

Rows lie in OUT/results, one file each, as jobs end. OUT/results.tar.gz holds them, their logs and pictures; it is made
anew as jobs end, so that one file is enough to carry away, whenever this is stopped.
"""

from __future__ import annotations

import argparse
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import kdad_bench
from kdad_bench.files import sweep, write_whole

PACK_SECONDS = 20.0  # at least between two archives, so that packing takes little of the time
HEAVY = ("checkpoints", "models", "maps", ".locks")  # what is not packed


def packed(results: Path) -> None:
    """`results` as an archive beside it, whole or not at all."""

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w:gz") as archive:
            archive.add(results, results.name, filter=lambda one: None if Path(one.name).name in HEAVY else one)

    write_whole(results.with_name(f"{results.name}.tar.gz"), write)


def teller(results: Path) -> Callable[[str], None]:
    """Prints each job's line and packs what there is, now and then."""
    last = [time.perf_counter()]

    def tell(line: str) -> None:
        print(line, flush=True)
        if time.perf_counter() - last[0] > PACK_SECONDS:
            packed(results)
            last[0] = time.perf_counter()

    return tell


def stopped_after(seconds: float) -> None:
    """Ctrl-C after so long, or at TERM: what a run answers by ending its processes and keeping its rows."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results-gpu"))
    parser.add_argument("--seconds", type=float, default=440.0, help="end after so long; run again to go on")
    parser.add_argument("--dataset", default="mvtec_ad")
    parser.add_argument("--categories", nargs="*", default=["bottle"])
    parser.add_argument("--methods", nargs="*", default=[], help="default: all")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--teacher", help="for every method, in place of the preset's")
    parser.add_argument("--weights", help="the file of that teacher's weights")
    parser.add_argument("--steps", type=int, help="in place of the preset's budget")
    parser.add_argument("--workers", type=int, default=1, help="jobs side by side on the one device")
    return parser.parse_args()


def main() -> int:
    """Run what is left of the leaderboard; 0 once all of it is there."""
    given = arguments()
    results = given.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    sweep(given.out)
    options = {name: getattr(given, name) for name in ("teacher", "steps") if getattr(given, name) is not None}
    stopped_after(given.seconds)
    done = False
    try:
        kdad_bench.run(
            given.methods, given.dataset, given.categories, everything=True, seeds=given.seeds, preset=given.preset,
            device=given.device, out=results, weights=given.weights, workers=given.workers, progress=teller(results),
            checkpoint_every_seconds=20.0, **options,
        )  # fmt: skip
        done = True
    except KeyboardInterrupt:
        print("stopped; the same command goes on", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        packed(results)
    found = kdad_bench.Results(results)
    print(found.leaderboard() if len(found) else "no row yet", flush=True)
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
