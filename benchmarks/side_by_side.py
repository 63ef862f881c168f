"""Wall time of `kdad-bench run`: jobs side by side, as it runs them by default, against one after another.

    python benchmarks/side_by_side.py                                  # every method, embedded data, one seed
    python benchmarks/side_by_side.py --busy 1                         # and the default once more beside a busy core
    python benchmarks/side_by_side.py --before FOLDER                  # and an earlier version, from its built checkout
    python benchmarks/side_by_side.py -- -m stfpm -c gear --steps 5    # other jobs: what follows `--` goes to `run`

Each way is a process of its own, from its start to its exit, in a results folder of its own; the data are drawn and the
caches filled before, by a run that is not timed. The old way is `--workers 1 --threads CORES --time-every-job`: one
process, all cores as threads, and the speed of every job timed beside its accuracy; without the timing it is listed
too, so that one sees what each of the two costs. The default computes with one thread per job and times each
configuration once, alone; `one at a time` is the same jobs with one thread and one after another, whose accuracies must
be those of the default to the last digit, which is checked. `accuracy alone` is the default without any timing: what is
above it is the price of the speed figures. Needs the machine for itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdad_bench import allowance
from kdad_bench.leaderboard import store

RUN = [sys.executable, "-m", "kdad_bench", "run"]
FIGURES = ("image_auroc", "pixel_auroc", "aupro_30", "image_scores", "losses")


DEFAULT, ALONE = "default: side by side", "one at a time, one thread"


def ways(cores: int, brief: bool) -> dict[str, list[str]]:
    """Name -> options."""
    every = {
        "old way: one process, all cores as threads, every job timed": [
            "--workers",
            "1",
            "--threads",
            str(cores),
            "--time-every-job",
        ],
        "old way, each configuration timed once": ["--workers", "1", "--threads", str(cores)],
        DEFAULT: [],
        ALONE: ["--workers", "1"],
        "accuracy alone: side by side, nothing timed": ["--no-measure-speed"],
    }
    return {name: every[name] for name in (next(iter(every)), DEFAULT)} if brief else every


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes beside, each of which holds a core."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


def seconds_of(chosen: list[str], out: Path, checkout: Path | None = None) -> float:
    """From the start of a run to its exit; of the code in `checkout` where one is given."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)
    began = time.perf_counter()
    ended = subprocess.run(
        [*RUN, *chosen, "--out", str(out)], capture_output=True, text=True, env=environment, cwd=checkout
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(chosen)}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return time.perf_counter() - began


def figures(out: Path) -> dict[str, tuple[object, ...]]:
    """Job -> what must not depend on how it ran."""
    return {row["job_id"]: tuple(row[name] for name in FIGURES) for row in store.read(out).rows()}


def measured(chosen: list[str], repeats: int, beside: int, compared: dict[str, list[str]]) -> dict[str, float]:
    """Way -> median seconds, the ways in turn; raises SystemExit where accuracies depend on the workers."""
    took: dict[str, list[float]] = {name: [] for name in compared}
    with busy(beside):
        for _ in range(repeats):
            found = {}
            for name, options in compared.items():
                with tempfile.TemporaryDirectory(prefix="kdad-side-by-side-") as folder:
                    took[name].append(seconds_of([*chosen, *options], Path(folder)))
                    found[name] = figures(Path(folder))
            if found[DEFAULT] != found.get(ALONE, found[DEFAULT]):
                raise SystemExit("the figures depend on how many jobs run side by side")
    return {name: statistics.median(values) for name, values in took.items()}


def earlier_seconds(chosen: list[str], repeats: int, checkout: Path) -> float:
    """Median seconds of the same jobs by the code in `checkout`, after `fill_caches`."""
    fill_caches(chosen, checkout)
    took = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="kdad-side-by-side-") as folder:
            took.append(seconds_of(chosen, Path(folder), checkout))
    return statistics.median(took)


def fill_caches(chosen: list[str], checkout: Path | None = None) -> None:
    """One step of each job, by each version for itself: a dry run decodes no image, and a job keeps what it decoded."""
    with tempfile.TemporaryDirectory(prefix="kdad-side-by-side-") as folder:
        try:
            seconds_of([*chosen, "--steps", "1"], Path(folder), checkout)
        except SystemExit:  # no method of these takes steps, or they say epochs
            seconds_of(chosen, Path(folder), checkout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--busy", type=int, default=0, help="also beside so many spinning processes")
    parser.add_argument(
        "--brief", action="store_true", help="the old way, or the version --before, and the default alone"
    )
    parser.add_argument("--before", type=Path, help="checkout of an earlier version, built: its default is timed too")
    parser.add_argument("jobs", nargs="*", help="options of `kdad-bench run`, after --")
    given = parser.parse_args()
    cores = allowance.cores()
    chosen = given.jobs or ["--all", "--seeds", "1", "--dataset", "synthetic", "--device", "cpu"]
    fill_caches(chosen)
    print(f"kdad-bench run {' '.join(chosen)}; {cores} cores, {given.repeats} runs each\n")
    print("| way | seconds | against the old way |\n|---|---:|---:|")
    compared = ways(cores, given.brief)
    if given.brief and given.before:
        compared = {DEFAULT: compared[DEFAULT]}
    idle = measured(chosen, given.repeats, 0, compared)
    old = next(iter(idle.values()))
    for name, seconds in idle.items():
        print(f"| {name} | {seconds:.1f} | {seconds / old:.2f} |", flush=True)
    if given.before:
        earlier = earlier_seconds(chosen, given.repeats, given.before.absolute())
        print(f"\n{given.before}: {earlier:.1f} s; the default takes {idle[DEFAULT] / earlier:.2f} of it")
    if given.busy:
        beside = measured(chosen, given.repeats, given.busy, {DEFAULT: compared[DEFAULT]})[DEFAULT]
        print(f"\ndefault beside {given.busy} busy: {beside:.1f} s, {beside / idle[DEFAULT]:.2f} of its idle time")


if __name__ == "__main__":
    main()
