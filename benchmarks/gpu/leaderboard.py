"""Methods with the paper's budget on real categories: rows as they come, packed as they come, within a budget.

    KDAD_DATA=... python benchmarks/gpu/leaderboard.py --out OUT --seconds 440      # resumes where it stopped

Rows lie in OUT/results, one file each, as jobs end. OUT/results.tar.gz holds them, their logs and pictures; it is made
anew as jobs end, so that one file is enough to carry away, whenever this is stopped. Jobs begin method by method, those
first that take little time, so that what is there at the end are whole tables of some methods; those of the methods of
`--then` follow, seed by seed, so that there is something of each. With `--workers` they run side by side;
OUT/projection.md says how long all of MVTec AD would take, from the jobs as they were measured.
"""

from __future__ import annotations

import argparse
import json
import signal
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import kdad_bench
from kdad_bench.api.keywords import fields_of
from kdad_bench.api.running import measure_speed
from kdad_bench.datasets.mvtec_ad import PUBLISHED as MVTEC_AD
from kdad_bench.files import sweep, write_text_whole, write_whole
from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.endings import line, put_back
from kdad_bench.harness.executors import outcomes
from kdad_bench.harness.options import RunOptions, options_from
from kdad_bench.interrupts import Interrupted
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import entry
from kdad_bench.methods.training.loop import planned_steps

# Those with few steps and small networks first. Left out, because one job takes minutes or more: EfficientAD with
# 70,000 steps, STAD with an image a step, AST at 768 px; and Dinomaly, whose teacher is of another kind.
METHODS = ("pixel_mean", "padim", "stfpm", "patchcore", "spade", "eca_mskdad")
THEN = ("mkd", "rdpp", "dskd", "bmkd", "rd4ad", "fractalad", "destseg")
MEASURED = ("method", "settings", "steps", "train_images", "train_seconds", "total_seconds", "status", "preset")
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

    def tell(said: str) -> None:
        print(said, flush=True)
        if time.perf_counter() - last[0] > PACK_SECONDS:
            packed(results)
            last[0] = time.perf_counter()

    return tell


def stopped_after(seconds: float) -> None:
    """Ctrl-C after so long, or at TERM, once: what a run answers by ending its processes and keeping its rows."""
    numbers = signal.SIGALRM, signal.SIGTERM

    def stop(number: int, frame: object) -> None:
        for one in numbers:  # the process group and the script both hand TERM on
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted  # a plain KeyboardInterrupt might be a method's: its signals would be put back around it

    for number in numbers:
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def asked(given: argparse.Namespace, results: Path) -> RunOptions:
    """What the command line asks of a run."""
    options = {name: getattr(given, name) for name in ("teacher", "steps", "weights") if getattr(given, name)}
    teachers = dict(one.split("=", 1) for one in given.teacher_of)
    said = {
        "methods": [*given.methods, *given.then], "datasets": given.dataset, "categories": given.categories,
        "seeds": given.seeds, "preset": given.preset, "device": given.device, "out": results, "workers": given.workers,
        "pictures": given.pictures, "measure_speed": None if given.speed else False, "audit": given.audit,
        "settings": {name: {"teacher": teacher} for name, teacher in teachers.items()}, **options,
    }  # fmt: skip
    return options_from(fields_of(said))


def carried_out(options: RunOptions, methods: Sequence[str], tell: Callable[[str], None]) -> bool:
    """Run what is left: `methods` one after the other, then the others in the order of the plan; whether all left a
    row that is no failure."""
    found = agenda(options)
    places = {name: place for place, name in enumerate(methods)}
    jobs = sorted(found.left, key=lambda job: places.get(job.name, len(places)))  # stable
    endings = []
    try:
        with closing(outcomes(jobs, found.work, lambda _: None, options, in_order=True)) as stream:
            for job, ended in stream:
                endings.append((job, ended))
                tell(line(job, ended))
    finally:
        put_back(endings, found.work)
    for remark in [*found.remarks, *measure_speed(found, endings, options, tell)]:
        tell(remark)
    return not found.incomplete and all(isinstance(ended, Row) and ended.status == "ok" for _, ended in endings)


def projection(rows: Iterable[Mapping[str, Any]], workers: int, seeds: int) -> str:
    """Hours for all of MVTec AD by the steps, images and seconds of finished jobs: a table for people."""
    every: dict[str, list[float]] = {}
    for row in rows:
        if row["status"] == "ok" and row["total_seconds"] is not None:  # else it was stopped, for how long is unknown
            every.setdefault(row["method"], []).append(hours_like(row, seeds))
    means = {method: sum(hours) / len(hours) for method, hours in every.items()}
    lines = [f"| method | jobs | h, one after another | h, {workers} side by side |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {name} | {len(every[name])} | {hours:.2f} | {hours / workers:.2f} |" for name, hours in means.items()]
    total = sum(means.values())
    lines.append(f"| all {len(means)} | | {total:.2f} | {total / workers:.2f} |")
    said = f"15 categories x {seeds} seeds of MVTec AD, by the seconds of jobs that ran {workers} side by side"
    return "\n".join([said, "", *lines])


def hours_like(row: Mapping[str, Any], seeds: int) -> float:
    """Hours of 15 categories by one job of a method: its seconds a step for their steps, the rest of its time as it is.

    What is trained in no steps takes as long for each image.
    """
    kind: Any = type(next(iter(entry(row["method"]).presets.values())))
    settings = kind(**{name: unlisted(value) for name, value in json.loads(row["settings"]).items()})
    seconds = 0.0
    for counts in MVTEC_AD.values():
        share = (counts.train or 0) / row["train_images"]
        if row["steps"]:
            share = planned_steps(settings, counts.train or 0)[0] / row["steps"]
        seconds += row["total_seconds"] + (share - 1) * row["train_seconds"]
    return float(seconds * seeds / 3600)


def unlisted(value: Any) -> Any:
    """A setting from JSON, where tuples are lists."""
    return tuple(value) if isinstance(value, list) else value


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results-gpu"))
    parser.add_argument("--seconds", type=float, default=440.0, help="end after so long; run again to go on")
    parser.add_argument("--dataset", default="mvtec_ad")
    parser.add_argument("--categories", nargs="*", default=["bottle"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), help="in the order in which they begin")
    parser.add_argument("--then", nargs="*", default=list(THEN), help="methods that follow, seed by seed")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--teacher", help="for every method, in place of the preset's")
    parser.add_argument(
        "--teacher-of", nargs="*", default=[], metavar="METHOD=TEACHER", help="another one for a method"
    )
    parser.add_argument("--weights", help="the file of that teacher's weights")
    parser.add_argument("--steps", type=int, help="in place of the preset's budget")
    parser.add_argument("--workers", type=int, default=1, help="jobs side by side on the one device")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="no contact sheets")
    parser.add_argument("--audit", action="store_true", help="judge each training on its test set as it goes (audits/)")
    parser.add_argument("--speed", action="store_true", help="measure the speed of each method, too, after all jobs")
    return parser.parse_args()


def main() -> int:
    """Run what is left of the leaderboard; 0 once all of it is there, 1 where it was stopped or a job failed."""
    given = arguments()
    results = given.out / "results"
    results.mkdir(parents=True, exist_ok=True)
    sweep(given.out)
    stopped_after(given.seconds)
    done = False
    try:
        done = carried_out(asked(given, results), given.methods, teller(results))
    except KeyboardInterrupt:
        print("stopped; the same command goes on", flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        packed(results)
    found = kdad_bench.Results(results)
    print(found.leaderboard() if len(found) else "no row yet", flush=True)
    if len(found):
        table = projection(found.frame(MEASURED).to_pylist(), given.workers, given.seeds)
        write_text_whole(given.out / "projection.md", table + "\n")
        print(table, flush=True)
    return 0 if done else 1


if __name__ == "__main__":
    raise SystemExit(main())
