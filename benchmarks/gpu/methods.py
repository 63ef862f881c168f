"""All methods on a device: training step, latency, throughput, top costs, and the time of a whole leaderboard.

    python benchmarks/gpu/methods.py --device cuda:0 --out OUT          # random weights where there are no others
    python benchmarks/gpu/methods.py --device cpu --size 64 --steps 3   # the same on a CPU, to try the script
    python benchmarks/gpu/methods.py --device cpu --preset quick --compiled default   # does torch.compile pay here?

Images are noise: times depend on shapes, not on content. Steps are timed inside `fit`, between two entries of its log,
after the teacher's feature cache is filled; STFPM's step is also timed as official codes write it, plain and under
torch.compile. The projection multiplies measured steps by the paper's budgets on MVTec AD's published image numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdad_bench.datasets.mvtec_ad import PUBLISHED as MVTEC_AD
from kdad_bench.harness import clock
from kdad_bench.harness.environment import describe
from kdad_bench.harness.plain_loop import step as plain_step
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones import build
from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training.loop import planned_steps

IMAGES = 64  # normals that a method is fitted on here
WARM_STEPS = 3


def teacher_of(settings: Any, source: str | None) -> tuple[Any, str]:
    """(teacher with weights where they can be had, where they are from): random weights take the same time."""
    try:
        network, info = load_teacher(settings.teacher, strides=settings.strides, source=source)
    except WeightsError:
        network, info = load_teacher(settings.teacher, strides=settings.strides, source="random")
    return network, info.source


def step_seconds(method: Any, normal: Tensor, device: torch.device, steps: int) -> float:
    """Median seconds of one optimiser step, the warm ones left out."""
    marks: list[float] = []

    def log(step: int, terms: Mapping[str, float]) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter())

    method.fit(normal, Fitting(log=log, log_every=1))
    gaps = sorted(b - a for a, b in zip(marks[WARM_STEPS - 1 :], marks[WARM_STEPS:], strict=False))
    return gaps[len(gaps) // 2] if gaps else float("nan")


def top_costs(call: Callable[[], Any], device: torch.device) -> list[tuple[str, float]]:
    """The five operations with the largest own time in one profiled call, with their share of the total."""
    from torch.profiler import ProfilerActivity, profile

    on_cuda = device.type == "cuda"
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
    seconds = step_seconds(method, normal, device, given.steps)
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
            mode: 1000 * compiled_step_seconds(found, settings, teacher, normal, mode, given.steps)
            for mode in given.compiled
        },
        "top_costs": top_costs(lambda: method.fit(normal[: settings.batch_size]), device),
    }
    if name == "stfpm":
        row["plain_step_ms"] = 1000 * plain_step_seconds(settings, teacher, device, given.steps, compiled=False)
        if not given.no_compile:
            row["compiled_step_ms"] = 1000 * plain_step_seconds(settings, teacher, device, given.steps, compiled=True)
    return row


def compiled_step_seconds(found: Any, settings: Any, teacher: Any, normal: Tensor, mode: str, steps: int) -> float:
    """Median seconds of a step with the student compiled; compiling itself falls on the warm steps."""
    return step_seconds(
        found.build(replace(settings, compiled=mode), teacher, normal.device), normal, normal.device, steps
    )


def projected_hours(paper: Any, step: float, images_per_second: float, seeds: int) -> float:
    """Hours of training and scoring all 15 MVTec AD categories over `seeds` with the paper's budget."""
    if not hasattr(paper, "optimiser"):  # nothing is trained
        step = 0.0
    seconds = 0.0
    for counts in MVTEC_AD.values():
        steps = planned_steps(paper, counts.train)[0] if step else 0
        seconds += steps * step + (counts.test_good + counts.test_anomalous) / images_per_second
    return seconds * seeds / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--teacher", help="for every method, in place of the paper's")
    parser.add_argument("--weights", help="a checkpoint of --teacher; without it what is found here, else random")
    parser.add_argument("--size", type=int, help="image side in place of the paper's")
    parser.add_argument("--steps", type=int, default=40, help="timed steps per method")
    parser.add_argument("--seeds", type=int, default=3, help="of the projection")
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name != "pixel_mean"])
    parser.add_argument("--preset", choices=("paper", "quick"), default="paper")
    parser.add_argument("--compiled", nargs="*", help="modes to time the setting `compiled` in; default: all on a GPU")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--out", type=Path, help="folder for methods.json")
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.compiled is None:
        given.compiled = [] if given.no_compile or device.type != "cuda" else ["default", "reduce-overhead"]
    machine = describe(given.device)
    print(
        f"{machine['device_name']}, torch {machine['torch']}, triton {machine['triton']}, {machine['threads']} threads"
    )
    rows = []
    for name in given.methods:
        rows.append(measure(name, given, device))
        print(f"{name}: done", flush=True)
    print("\n| method | teacher | px | batch | step ms | ms/image | images/s | projected h |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['method']} | {row['teacher']} | {row['image_size']} | {row['batch']} | {row['step_ms']:.2f} "
            f"| {row['latency_ms']:.2f} | {row['images_per_second']:.0f} | {row['projected_hours']:.2f} |"
        )
    print(f"\nall of these, 15 categories x {given.seeds} seeds: {sum(row['projected_hours'] for row in rows):.1f} h")
    for row in rows:
        for mode, taken in row["compiled_ms"].items():
            print(f"{row['method']} step with compiled={mode}: {taken:.2f} ms, {row['step_ms'] / taken:.2f}x as fast")
        print(f"{row['method']} costs: " + ", ".join(f"{key} {100 * share:.0f} %" for key, share in row["top_costs"]))
        if "plain_step_ms" in row:
            ratios = [f"plain {row['plain_step_ms'] / row['step_ms']:.2f}x"]
            if "compiled_step_ms" in row:
                ratios.append(f"torch.compile {row['compiled_step_ms'] / row['step_ms']:.2f}x")
            print(f"stfpm step against the eager code: {', '.join(ratios)}")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "methods.json").write_text(json.dumps({"environment": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
