"""All methods on a device: training step, latency, throughput, top costs, and the time of a whole leaderboard.

    python benchmarks/gpu/methods.py --device cuda:0 --out OUT --seconds 440   # random weights where no others are
    python benchmarks/gpu/methods.py --device cpu --size 64 --steps 3   # the same on a CPU, to try the script
    python benchmarks/gpu/methods.py --device cpu --preset quick --compiled default   # does torch.compile pay here?

Every method is written to OUT as it is done, and after --seconds nothing more is begun: what is missing is named. If
one loses the GPU, a new process measures the rest (with --out): CUDA does nothing more in the old one.
Images are noise: times depend on shapes, not on content. Steps are timed inside `fit`, between two entries of its log,
after the teacher's feature cache is filled; STFPM's step is also timed as official codes write it, plain and under
torch.compile. The projection multiplies measured steps by the paper's budgets on MVTec AD's published image numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdad_bench.datasets.mvtec_ad import PUBLISHED as MVTEC_AD
from kdad_bench.files import write_text_whole
from kdad_bench.harness import clock
from kdad_bench.harness.environment import describe
from kdad_bench.harness.plain_loop import step as plain_step
from kdad_bench.harness.workforce import drawers_beside
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones import build
from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training.loop import planned_steps

BEGAN = time.perf_counter()
IMAGES = 64  # normals that a method is fitted on here
WARM_STEPS = 3


def teacher_of(settings: Any, source: str | None) -> tuple[Any, str]:
    """(teacher with weights where they can be had, where they are from): random weights take the same time."""
    try:
        network, info = load_teacher(settings.teacher, strides=settings.strides, source=source)
    except WeightsError:
        network, info = load_teacher(settings.teacher, strides=settings.strides, source="random")
    return network, info.source


def step_seconds(method: Any, normal: Tensor, device: torch.device, drawers: int = 0) -> float:
    """Median seconds of one optimiser step, the warm ones left out."""
    marks: list[float] = []

    def log(step: int, terms: Mapping[str, float]) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    method.fit(normal, Fitting(log=log, log_every=1, drawers=drawers))
    gaps = sorted(b - a for a, b in zip(marks[WARM_STEPS - 1 :], marks[WARM_STEPS:], strict=False))
    return gaps[len(gaps) // 2] if gaps else float("nan")


def top_costs(call: Callable[[], Any], device: torch.device) -> list[tuple[str, float]]:
    """The five operations with the largest own time in one profiled call, with their share of the total."""
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.type == "cuda"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)  # there is one cycle only
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as recorded:
            call()
            if on_cuda:
                torch.cuda.synchronize(device)
    field = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    rows = [(row.key, float(getattr(row, field))) for row in recorded.key_averages()]
    total = sum(value for _, value in rows) or 1.0
    return [(key, value / total) for key, value in sorted(rows, key=lambda one: -one[1])[:5]]


def plain_step_seconds(settings: Any, teacher: Any, device: torch.device, steps: int, compiled: bool) -> float:
    """Median seconds of an STFPM step as official codes write it, on the device; optionally under torch.compile."""
    student = build(teacher.name, strides=teacher.strides).to(device).train()
    optimiser = torch.optim.SGD(student.parameters(), 0.4, momentum=0.9, weight_decay=1e-4)
    networks = [torch.compile(network) if compiled else network for network in (teacher, student)]
    images = torch.rand(settings.batch_size, 3, settings.image_size, settings.image_size, device=device)
    with torch.device(device):
        timing = clock.latency(
            lambda: plain_step(networks[0], networks[1], optimiser, images),
            device,
            warmup=clock.Budget(WARM_STEPS, 60),
            budget=clock.Budget(steps, 30),
        )
    return timing.median_ms / 1000


def measure(name: str, given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything about one method."""
    found = entry(name)
    settings = found.presets[given.preset]
    changes: dict[str, Any] = {"steps": given.steps + WARM_STEPS}
    if found.needs_teacher and given.teacher:
        changes["teacher"] = given.teacher
    if given.size:
        changes["image_size"] = given.size
    paper, settings = settings, replace(settings, **changes)
    teacher, source = teacher_of(settings, given.weights) if found.needs_teacher else (None, "none")
    method = found.build(settings, teacher.to(device) if teacher is not None else None, device)
    side = given.size or 256
    normal = torch.rand(IMAGES, 3, side, side, device=device)
    began = time.perf_counter()
    seconds = step_seconds(method, normal, device, given.drawers)
    fit_seconds = time.perf_counter() - began
    one = normal[:1].clone()
    with torch.inference_mode():
        timing = clock.latency(lambda: method.score(one), device, warmup=clock.QUICK_WARMUP, budget=clock.QUICK_TIMED)
        curve = clock.throughput(lambda batch: lambda: method.score(normal[:batch]), device, (1, 8, 32, 64))
    best = clock.best_batch(curve)
    speed = best[1] if best else float("nan")
    row = {
        "method": name,
        "teacher": f"{settings.teacher} ({source})" if teacher is not None else "none",
        "image_size": settings.image_size,
        "batch": settings.batch_size,
        "step_ms": 1000 * seconds,
        "fit_seconds": fit_seconds,
        "latency_ms": timing.median_ms,
        "images_per_second": speed,
        "projected_hours": projected_hours(paper, seconds, speed, given.seeds),
        "compiled_ms": {
            mode: 1000 * compiled_step_seconds(found, settings, teacher, normal, mode, given.drawers)
            for mode in given.compiled
        },
        "top_costs": top_costs(lambda: method.fit(normal[: settings.batch_size]), device),
    }
    if name == "stfpm":
        row["plain_step_ms"] = 1000 * plain_step_seconds(settings, teacher, device, given.steps, compiled=False)
        if given.compiled:
            row["compiled_step_ms"] = 1000 * plain_step_seconds(settings, teacher, device, given.steps, compiled=True)
    return row


def compiled_step_seconds(found: Any, settings: Any, teacher: Any, normal: Tensor, mode: str, drawers: int) -> float:
    """Median seconds of a step with the student compiled; compiling itself falls on the warm steps."""
    method = found.build(replace(settings, compiled=mode), teacher, normal.device)
    return step_seconds(method, normal, normal.device, drawers)


def projected_hours(paper: Any, step: float, images_per_second: float, seeds: int) -> float:
    """Hours of training and scoring all 15 MVTec AD categories over `seeds` with the paper's budget."""
    if not hasattr(paper, "optimiser"):  # nothing is trained
        step = 0.0
    seconds = 0.0
    for counts in MVTEC_AD.values():
        steps = planned_steps(paper, counts.train)[0] if step else 0
        seconds += steps * step + (counts.test_good + counts.test_anomalous) / images_per_second
    return seconds * seeds / 3600


class OutOfTime(Exception):
    """Ends a method that is measured when the time is over."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside once so many seconds are over; at once if none are left."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime("out of time")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measured(names: Sequence[str], given: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each method, with its `problem` in place of figures where it has one."""
    ends = BEGAN + given.seconds
    for name in names:
        try:
            with limited(ends - time.perf_counter()):
                row = measure(name, given, device)
        except OutOfTime as problem:
            row = {"method": name, "problem": str(problem)}
        except Exception as problem:  # a method that fails must not take the others' figures with it
            text = " ".join(f"{type(problem).__name__}: {problem}".split())
            row = {"method": name, "problem": text[:500]}
        yield row


def loses_gpu(problem: str) -> bool:
    """Whether CUDA does nothing more in this process: every later method would fail of it."""
    return "CUDA" in problem and "OutOfMemoryError" not in problem


def go_on(given: argparse.Namespace, left: Sequence[str]) -> None:
    """Become a process that measures what is `left`, in what is left of the time."""
    kept: list[str] = []
    skipped = False
    for one in sys.argv[1:]:
        if one.startswith("--"):
            skipped = one.partition("=")[0] in ("--seconds", "--methods", "--after")
        if not skipped:
            kept.append(one)
    seconds = given.seconds - (time.perf_counter() - BEGAN)
    arguments = [*kept, "--after", "--seconds", f"{seconds:.0f}", "--methods", *left]
    os.execv(sys.executable, [sys.executable, __file__, *arguments])


def table(rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """What was measured, for people."""
    good = [row for row in rows if "problem" not in row]
    lines = ["| method | teacher | px | batch | step ms | ms/image | images/s | projected h |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    lines += [
        f"| {row['method']} | {row['teacher']} | {row['image_size']} | {row['batch']} | {row['step_ms']:.2f} "
        f"| {row['latency_ms']:.2f} | {row['images_per_second']:.0f} | {row['projected_hours']:.2f} |"
        for row in good
    ]
    hours = sum(row["projected_hours"] for row in good)
    lines.append(f"\n{len(good)} of {len(rows)} methods, 15 categories x {seeds} seeds: {hours:.1f} h")
    lines += [line for row in rows for line in notes(row)]
    return "\n".join(lines)


def notes(row: Mapping[str, Any]) -> list[str]:
    """What a row says beside the table."""
    if "problem" in row:
        return [f"{row['method']}: not measured: {row['problem']}"]
    name, step = row["method"], row["step_ms"]
    found = [
        f"{name} step with compiled={mode}: {taken:.2f} ms, {step / taken:.2f}x as fast"
        for mode, taken in row["compiled_ms"].items()
    ]
    found.append(f"{name} costs: " + ", ".join(f"{key} {100 * share:.0f} %" for key, share in row["top_costs"]))
    plain = {"plain": "plain_step_ms", "torch.compile": "compiled_step_ms"}
    ratios = [f"{words} {row[key] / step:.2f}x" for words, key in plain.items() if key in row]
    return [*found, f"{name} step against the eager code: {', '.join(ratios)}"] if ratios else found


def write(out: Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seeds: int) -> None:
    """All rows so far, whole or not at all: whoever is killed keeps what was measured by then."""
    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(out / "methods.json", json.dumps({"environment": machine, "rows": rows}, indent=2, default=str))
    write_text_whole(out / "methods.md", table(rows, seeds) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--teacher", help="for every method, in place of the paper's")
    parser.add_argument("--weights", help="a checkpoint of --teacher; without it what is found here, else random")
    parser.add_argument("--size", type=int, help="image side in place of the paper's")
    parser.add_argument("--steps", type=int, default=40, help="timed steps per method")
    parser.add_argument("--seconds", type=float, default=440.0, help="end after so long; what is left is named")
    parser.add_argument("--seeds", type=int, default=3, help="of the projection")
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name != "pixel_mean"])
    parser.add_argument("--preset", choices=("paper", "standard", "quick"), default="paper")
    parser.add_argument("--drawers", type=int, help="processes that draw samples ahead; default: by cores on a GPU")
    compiling = parser.add_mutually_exclusive_group()
    compiling.add_argument("--compiled", nargs="*", default=[], help="modes to time the setting `compiled` in, too")
    compiling.add_argument("--no-compile", dest="compiled", action="store_const", const=[], help="none (the default)")
    parser.add_argument("--after", action="store_true", help="keep the rows that are in OUT: goes on after a lost GPU")
    parser.add_argument("--out", type=Path, help="folder for methods.json and methods.md, written after each method")
    return parser.parse_args()


def main() -> int:
    """Measure one method after the other."""
    given, rows = arguments(), list[dict[str, Any]]()
    if given.after:
        rows += json.loads((given.out / "methods.json").read_text())["rows"]
    before = len(rows)
    device = torch.device(given.device)
    if given.drawers is None:
        given.drawers = drawers_beside(1) if device.type == "cuda" else 0
    machine = describe(given.device)
    print(
        f"{machine['device_name']}, torch {machine['torch']}, triton {machine['triton']}, "
        f"{machine['threads']} threads, {given.drawers} drawers",
        flush=True,
    )
    for row in measured(given.methods, given, device):
        rows.append(row)
        if given.out:
            write(given.out, machine, rows, given.seeds)
        seconds = time.perf_counter() - BEGAN
        print(f"{row['method']}: {row.get('problem', 'done')} ({seconds:.0f} s so far)", flush=True)
        left = given.methods[len(rows) - before :]
        if given.out and left and loses_gpu(row.get("problem", "")):
            go_on(given, left)
    print("\n" + table(rows, given.seeds), flush=True)
    return 1 if any("problem" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
