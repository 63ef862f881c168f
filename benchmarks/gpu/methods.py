"""All methods on a device: training step, latency, throughput, and the projected time of a whole leaderboard.

    python benchmarks/gpu/methods.py --device cuda:0 --out OUT --seconds 100   # random weights where no others are
    python benchmarks/gpu/methods.py --device cpu --size 64 --steps 3   # the same on a CPU, to try the script
    python benchmarks/gpu/methods.py --device cpu --preset quick --compiled default   # does torch.compile pay here?

As many methods are begun, in their order, as get --least seconds each of the --seconds that are left; the others are
named. What is left is shared out anew before each one: steps and batches end when its share is over, and what was
measured by then is shown. Imports and the start of CUDA belong to nobody's share. Every row is written to OUT as it is
done. If one loses the GPU, a new process measures the rest (with --out): CUDA does nothing more in the old one.
`stfpm@fp16` is STFPM in that precision.
Images are noise, already on the device: times depend on shapes, not on content. Steps are timed inside `fit`, between
two entries of its log, after the teacher's feature cache is filled; STFPM's step is also timed as official codes write
it. Scores come from CUDA graphs where they can be recorded, as `predict` has them; the latency without stands beside
it. The projection multiplies measured steps by the paper's budgets on MVTec AD's published image numbers.
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
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdad_bench.datasets.mvtec_ad import PUBLISHED as MVTEC_AD
from kdad_bench.files import write_text_whole
from kdad_bench.harness import clock
from kdad_bench.harness.environment import describe
from kdad_bench.harness.graphs import Graphed, graphed
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
LOGGED = 4  # steps from one look at the clock to the next: between them a GPU is not waited for, as in a run
BATCHES = (8, 32, 64, 128)  # of the throughput, ascending
# shares of a method's time: until its steps end, its fit is stopped wherever it is, its costs are looked into
FITTING, STOPPED, COSTS = 0.5, 0.65, 0.85
OVERDUE, LEAST = 2.0, 0.5  # shares after which a method is stopped wherever it is, and that it leaves the others each
SLACK = 0.1  # of --least, that a method may lack: stopping the one before takes a moment, too
# Those whose figures are asked for most, and those that take little time. EfficientAD's is the least latency.
FIRST = ("stfpm", "padim", "patchcore", "rd4ad", "efficientad", "stfpm@fp16", "eca_mskdad", "mkd", "spade")
LAST = ("dinomaly", "fractalad", "destseg", "ast", "stad")  # large teachers, samples that are drawn, a step an image
NOT_BEGUN = "not begun"
UNKNOWN = float("nan")
FIGURES = ("step_ms", "latency_ms", "eager_ms", "images_per_second", "projected_hours")


def teacher_of(settings: Any, source: str | None) -> tuple[Any, str]:
    """(teacher with weights where they can be had, where they are from): random weights take the same time."""
    try:
        network, info = load_teacher(settings.teacher, strides=settings.strides, source=source)
    except WeightsError:
        network, info = load_teacher(settings.teacher, strides=settings.strides, source="random")
    return network, info.source


class Enough(BaseException):
    """Ends a fit whose steps have been timed for long enough. Not for anyone on the way to catch, as OutOfTime."""


class Share(NamedTuple):
    """What a method may take of the time: about `seconds`, and never more than `most`."""

    seconds: float
    most: float


def share_of(left: float, methods: int, least: float) -> Share | None:
    """The next one's share of what is left, where so many are to come; None where that is not enough for any."""
    fitting = min(methods, int(left / least + SLACK))
    if fitting < 1:
        return None
    seconds = left / fitting
    kept = max(min(least, seconds), LEAST * seconds) * (fitting - 1)
    return Share(seconds, min(OVERDUE * seconds, left - kept))


Marks = list[tuple[int, float]]  # (step, when it was done), of steps that are not warm any more


def median_step(marks: Marks) -> float:
    """Median seconds of an optimiser step; unknown before there are two marks."""
    each = sorted((b - a) / (later - step) for (step, a), (later, b) in pairwise(marks))
    return each[len(each) // 2] if each else UNKNOWN


def timed_fit(method: Any, normal: Tensor, device: torch.device, drawers: int, marks: Marks, ends: float) -> bool:
    """Fit until `ends`, with a mark after the steps that are looked at; whether the fit came to its own end."""

    def log(step: int, terms: Mapping[str, float]) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if step >= WARM_STEPS:
            marks.append((step, time.perf_counter()))
            if len(marks) > 1 and marks[-1][1] > ends:
                raise Enough

    try:
        method.fit(normal, Fitting(log=log, log_every=LOGGED, drawers=drawers))
    except Enough:
        return False
    return True


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


def settings_of(name: str, given: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(entry, settings of the preset, the same as they are timed) of `stfpm` or `stfpm@fp16`."""
    method, _, precision = name.partition("@")
    found = entry(method)
    paper = found.presets[given.preset]
    changes: dict[str, Any] = {"steps": given.steps + WARM_STEPS}
    if found.needs_teacher and given.teacher:
        changes["teacher"] = given.teacher
    if given.size:
        changes["image_size"] = given.size
    if precision:
        changes["precision"] = precision
    return found, paper, replace(paper, **changes)


def measure(name: str, given: argparse.Namespace, device: torch.device, row: dict[str, Any], share: Share) -> None:
    """Everything about one method into `row`, as it is found, in about its share of the time."""
    began = time.perf_counter()
    found, paper, settings = settings_of(name, given)
    row |= {"image_size": settings.image_size, "batch": settings.batch_size, "compiled_ms": {}, "top_costs": []}
    row["stages"] = {"building": 0.0}  # seconds after which each began
    teacher, source = teacher_of(settings, given.weights) if found.needs_teacher else (None, "none")
    teacher = teacher.to(device) if teacher is not None else None
    row["teacher"] = f"{settings.teacher} ({source})" if teacher is not None else "none"
    side = given.size or 256
    normal = torch.rand(IMAGES, 3, side, side, device=device)
    method = fitted(found, settings, teacher, normal, given.drawers, row, share, began)
    row["stages"]["scoring"] = time.perf_counter() - began
    rest = (COSTS - STOPPED) * share.seconds  # also where fitting took longer than it should
    scoring(method, normal, device, row, max(began + COSTS * share.seconds, time.perf_counter() + rest))
    step = row["step_ms"] / 1000
    row["projected_hours"] = projected_hours(paper, step, row["images_per_second"], given.seeds)
    row["stages"]["comparing"] = time.perf_counter() - began
    for mode in given.compiled:
        compiled = compiled_step_seconds(found, settings, teacher, normal, mode, given.drawers)
        row["compiled_ms"][mode] = 1000 * compiled
    if name == "stfpm":
        row["plain_step_ms"] = 1000 * plain_step_seconds(settings, teacher, device, given.steps, compiled=False)
        if given.compiled:
            row["compiled_step_ms"] = 1000 * plain_step_seconds(settings, teacher, device, given.steps, compiled=True)
    if given.costs:
        row["top_costs"] = top_costs(lambda: method.fit(normal[: settings.batch_size]), device)


def fitted(
    found: Any, settings: Any, teacher: Any, normal: Tensor, drawers: int, row: dict[str, Any], share: Share,
    began: float,
) -> Any:  # fmt: skip
    """A method that scores, its step's time in `row`. One whose fit lasts is stopped, so that it can be scored, too."""
    device, marks, whole = normal.device, Marks(), False
    method = found.build(settings, teacher, device)
    row["stages"]["fitting"] = time.perf_counter() - began
    latest = began + share.most - (1 - STOPPED) * share.seconds
    try:
        with limited(latest - time.perf_counter()):
            whole = timed_fit(method, normal, device, drawers, marks, began + FITTING * share.seconds)
    except OutOfTime:
        row["stopped"] = f"its fit was stopped after {time.perf_counter() - began:.1f} s"
    finally:
        row["step_ms"] = 1000 * median_step(marks)
    if not whole:  # what follows the last step is part of what scores
        method = found.build(replace(settings, steps=1), teacher, device)
        method.fit(normal[: max(2, settings.batch_size)])
    return method


def scoring(method: Any, normal: Tensor, device: torch.device, row: dict[str, Any], ends: float) -> None:
    """Latency and throughput into `row`: no batch is begun that would not be done by `ends`."""
    one, fast = normal[:1].clone(), graphed(method, device)

    def timed(scorer: Any, images: Tensor) -> float:
        share = max((ends - time.perf_counter()) / 4, 0.0)
        budget = clock.Budget(clock.QUICK_TIMED.calls, min(share, clock.QUICK_TIMED.seconds))
        warmup = clock.Budget(clock.QUICK_WARMUP.calls, min(share, clock.QUICK_WARMUP.seconds))
        with torch.inference_mode():
            return clock.latency(lambda: scorer.score(images), device, warmup=warmup, budget=budget).median_ms

    row["eager_ms"] = timed(method, one)
    row["latency_ms"] = timed(fast, one) if isinstance(fast, Graphed) else row["eager_ms"]
    row["graphs"] = isinstance(fast, Graphed) and fast.recorded("score") > 0
    each = row["latency_ms"] / 1000  # seconds of an image
    row |= {"images_per_second": 1 / each, "throughput": {1: 1 / each}}
    for batch in BATCHES:
        if time.perf_counter() + 3 * batch * each > ends:
            break
        images = normal[:batch].repeat(-(-batch // len(normal)), 1, 1, 1)[:batch].clone()
        try:
            each = timed(fast, images) / 1000 / batch
        except torch.OutOfMemoryError:
            break
        row["throughput"][batch] = 1 / each
        row["images_per_second"] = max(row["throughput"].values())


def compiled_step_seconds(found: Any, settings: Any, teacher: Any, normal: Tensor, mode: str, drawers: int) -> float:
    """Median seconds of a step with the student compiled; compiling itself falls on the warm steps."""
    method, marks = found.build(replace(settings, compiled=mode), teacher, normal.device), Marks()
    timed_fit(method, normal, normal.device, drawers, marks, float("inf"))
    return median_step(marks)


def projected_hours(paper: Any, step: float, images_per_second: float, seeds: int) -> float:
    """Hours of training and scoring all 15 MVTec AD categories over `seeds` with the paper's budget."""
    if not hasattr(paper, "optimiser"):  # nothing is trained
        step = 0.0
    seconds = 0.0
    for counts in MVTEC_AD.values():
        steps = planned_steps(paper, counts.train)[0] if step else 0
        seconds += steps * step + (counts.test_good + counts.test_anomalous) / images_per_second
    return seconds * seeds / 3600


class OutOfTime(BaseException):
    """Ends a method that is measured when the time is over. No plain Exception: it may come inside a kernel's launch,
    and must not be taken for a fault of that kernel."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside once so many seconds are over; at once if none are left. A limit around it still holds."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime("out of time")

    began, outer = time.perf_counter(), signal.getitimer(signal.ITIMER_REAL)[0]
    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(min(seconds, outer or seconds), 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.perf_counter() - began), 1e-6))


def start(names: Sequence[str], device: torch.device) -> None:
    """What is done once for all methods: their imports, and the start of CUDA and its libraries."""
    for name in names:
        with suppress(Exception):  # whoever cannot be imported is measured, too, and its row says why
            entry(name.partition("@")[0])
    if device.type == "cuda":
        images = torch.rand(2, 4, 16, 16, device=device)
        network = torch.nn.Conv2d(4, 4, 3, device=device)
        (network(images).flatten(1) @ images.flatten(1)[:, :784].T).sum().backward()
        torch.cuda.synchronize(device)


def measured(names: Sequence[str], given: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each method, with its `problem` where it has one: what it had measured before that stands beside it."""
    ends = BEGAN + given.seconds
    for place, name in enumerate(names):
        left = ends - time.perf_counter()
        share = share_of(left, len(names) - place, given.least)
        if share is None and left > 0 and not place and not given.after:  # better a part of one than nothing at all
            share = Share(left, left)
        row: dict[str, Any] = {"method": name, **dict.fromkeys(FIGURES, UNKNOWN), "teacher": "–"}
        row |= {"problem": NOT_BEGUN} if share is None else problem_of(name, given, device, row, share)
        yield row


def problem_of(
    name: str, given: argparse.Namespace, device: torch.device, row: dict[str, Any], share: Share
) -> dict[str, str]:
    """Measure one method into `row`; what kept it from being measured whole."""
    try:
        with limited(share.most):
            measure(name, given, device, row, share)
    except OutOfTime as problem:
        return {"problem": f"{problem} while {list(row.get('stages', ['beginning']))[-1]}"}
    except Exception as problem:  # a method that fails must not take the others' figures with it
        text = " ".join(f"{type(problem).__name__}: {problem}".split())
        return {"problem": text[:500]}
    return {"problem": row["stopped"]} if "stopped" in row else {}


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
    lines = ["| method | teacher | px | batch | step ms | ms/image | without graphs | images/s | projected h |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    lines += [
        f"| {row['method']} | {row['teacher']} | {row['image_size']} | {row['batch']} | {shown(row['step_ms'], 2)} "
        f"| {shown(row['latency_ms'], 2)} | {shown(row['eager_ms'], 2)} | {shown(row['images_per_second'], 0)} "
        f"| {shown(row['projected_hours'], 2)} |"
        for row in rows
        if row["eager_ms"] == row["eager_ms"] or row["step_ms"] == row["step_ms"]
    ]
    done = [row for row in rows if row["projected_hours"] == row["projected_hours"] and "@" not in row["method"]]
    hours = sum(row["projected_hours"] for row in done)
    every = sum("@" not in row["method"] for row in rows)
    lines.append(f"\n{len(done)} of {every} methods, 15 categories x {seeds} seeds: {hours:.1f} h")
    lines += [line for row in rows for line in notes(row)]
    never = [row["method"] for row in rows if row.get("problem") == NOT_BEGUN]
    lines += [f"{NOT_BEGUN}, as too little time was left: {', '.join(never)}"] if never else []
    return "\n".join(lines)


def shown(value: float, digits: int) -> str:
    """A figure, or a dash where there is none."""
    return f"{value:.{digits}f}" if value == value else "–"


def notes(row: Mapping[str, Any]) -> list[str]:
    """What a row says beside the table."""
    name, step = row["method"], row["step_ms"]
    found = [f"{name}: not all measured: {row['problem']}"] if row.get("problem", NOT_BEGUN) != NOT_BEGUN else []
    found += [
        f"{name} step with compiled={mode}: {taken:.2f} ms, {step / taken:.2f}x as fast"
        for mode, taken in row.get("compiled_ms", {}).items()
    ]
    if row.get("throughput"):
        speeds = ", ".join(f"{speed:.0f} at batch {batch}" for batch, speed in row["throughput"].items())
        found.append(f"{name} images/s: {speeds}" + ("; by CUDA graphs" if row.get("graphs") else ""))
    if row.get("top_costs"):
        found.append(
            f"{name} costs: " + ", ".join(f"{key[:80]} {100 * share:.0f} %" for key, share in row["top_costs"])
        )
    plain = {"plain": "plain_step_ms", "torch.compile": "compiled_step_ms"}
    ratios = [f"{words} {row[key] / step:.2f}x" for words, key in plain.items() if key in row]
    return [*found, f"{name} step against the eager code: {', '.join(ratios)}"] if ratios else found


def write(out: Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], seeds: int) -> None:
    """All rows so far, whole or not at all: whoever is killed keeps what was measured by then."""
    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(out / "methods.json", json.dumps({"environment": machine, "rows": rows}, indent=2, default=str))
    write_text_whole(out / "methods.md", table(rows, seeds) + "\n")


def every_method() -> list[str]:
    """Every method, FIRST first and LAST last."""
    others = [name for name in METHODS if name not in (*FIRST, *LAST, "pixel_mean")]
    return [*FIRST, *others, *LAST]


def positive(text: str) -> float:
    """A number above 0."""
    if not (found := float(text)) > 0:
        raise ValueError
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--teacher", help="for every method, in place of the paper's")
    parser.add_argument("--weights", help="a checkpoint of --teacher; without it what is found here, else random")
    parser.add_argument("--size", type=int, help="image side in place of the paper's")
    parser.add_argument("--steps", type=int, default=40, help="timed steps per method")
    parser.add_argument("--seconds", type=float, default=440.0, help="end after so long; what is left is named")
    parser.add_argument("--least", type=positive, default=10.0, help="seconds that a method needs to be begun")
    parser.add_argument("--seeds", type=int, default=3, help="of the projection")
    parser.add_argument("--methods", nargs="*", default=every_method())
    parser.add_argument("--preset", choices=("paper", "standard", "quick"), default="paper")
    parser.add_argument("--drawers", type=int, help="processes that draw samples ahead; default: by cores on a GPU")
    compiling = parser.add_mutually_exclusive_group()
    compiling.add_argument("--compiled", nargs="*", default=[], help="modes to time the setting `compiled` in, too")
    compiling.add_argument("--no-compile", dest="compiled", action="store_const", const=[], help="none (the default)")
    parser.add_argument("--costs", action="store_true", help="also show the operations that a step spends most on")
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
    start(given.methods, device)
    print(
        f"{machine['device_name']}, torch {machine['torch']}, triton {machine['triton']}, "
        f"{machine['threads']} threads, {given.drawers} drawers, started in {time.perf_counter() - BEGAN:.1f} s",
        flush=True,
    )
    for row in measured(given.methods, given, device):
        rows.append(row)
        if given.out:
            write(given.out, machine, rows, given.seeds)
        seconds = time.perf_counter() - BEGAN
        if row.get("problem") != NOT_BEGUN:  # the table names them
            print(f"{row['method']}: {row.get('problem', 'done')} ({seconds:.0f} s so far)", flush=True)
        left = given.methods[len(rows) - before :]
        if given.out and left and loses_gpu(row.get("problem", "")):
            go_on(given, left)
    print("\n" + table(rows, given.seeds), flush=True)
    return 1 if any("problem" in row for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
