"""What a trained method costs: latency with and without the map, throughput, operations, weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kdad_bench.harness import clock
from kdad_bench.harness.job import Job
from kdad_bench.harness.protocol import PROTOCOL
from kdad_bench.harness.scoring import as_images
from kdad_bench.harness.windows import Windowed
from kdad_bench.leaderboard.measurement import CALLS_OF_TAIL
from kdad_bench.methods.protocol import Method
from kdad_bench.methods.resizing import resized

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
QUICK_BATCHES = (1, 8, 32)
BRIEF_WARMUP = clock.Budget(1, 0.2)  # of what was called before in another way, in the quick preset
# of each point of the throughput curve in presets other than `paper`; two calls will do where they agree
QUICK_CURVE = clock.Budget(3, 0.3, least=2, close=0.03)
ONE_THREAD_BATCH = 8  # of the throughput with one thread: larger ones bring it nothing
CURVE_WARMUP = clock.Budget(1, 0.2)  # on a GPU; on a CPU there is none


def cost_of(method: Method, pixels: Any, job: Job, *, timed: bool) -> dict[str, Any]:
    """The cost columns of a row: weights, operations and, if the job is to be `timed` itself, its speed.

    `pixels` are uint8 images [N, 3 M, R, R], of which as many as the largest batch are brought to the job's device.
    What cannot be measured is left out, with a warning: `networks` is called here first, after the training.
    """
    quick = is_quick(job)
    images = as_images(pixels[: max(batches_of(quick)) if timed else 1], torch.device(job.device))
    found: dict[str, Any] = weights(method)
    figures: dict[str, Callable[[], Mapping[str, Any]]] = {"operations": lambda: operations(method, images[:1])}
    if timed:
        figures["speed"] = lambda: speeds(method, images, job, job.device)
    for what, measure in figures.items():
        try:
            with torch.inference_mode():
                found |= measure()
        except Exception as error:  # a method's own code raises anything; its accuracy is known by now
            text = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"{job.label}: its row is complete, but for its {what} ({text})", stacklevel=2)
    return found


def speeds(method: Method, images: Tensor, job: Job, device: str) -> dict[str, Any]:
    """Latency and throughput of `method`, as `job` has it, with the threads that torch has."""
    found = latencies(method, images[:1].clone(), device, brief=is_brief(job))
    return found | throughput(method, images, device, 1000 / found["latency_ms"], quick=is_quick(job))


def operations(method: Method, one: Tensor) -> dict[str, float]:
    """Floating-point operations of the networks on one image, in 10^9."""
    return {"gflops": clock.flops(networks_on(method, one)) / 1e9}


def latencies(method: Method, one: Tensor, device: str, *, brief: bool) -> dict[str, Any]:
    """Milliseconds of one image through `score` and through the networks alone, in turn and by the same budget."""
    warmup, budget = budgets(brief)
    calls = {"score": lambda: method.score(one), "networks": networks_on(method, one)}
    timings = clock.interleaved(calls, device, warmup=warmup, budget=budget)
    return {
        "latency_ms": timings["score"].median_ms,
        "latency_p95_ms": p95(timings["score"]),
        "latency_p99_ms": p99(timings["score"]),
        "first_latency_ms": timings["score"].first_ms,
        "network_latency_ms": timings["networks"].median_ms,
        "latency_samples_ms": timings["score"].samples_ms,
    }


def one_thread(method: Method, images: Tensor, *, brief: bool) -> dict[str, float | None]:
    """The speed of `score` with one thread of the CPU: milliseconds at batch 1, images per second at a small batch."""
    warmup, budget = budgets(brief)
    warmup = BRIEF_WARMUP if brief else warmup
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = images[:1].clone()
        single = clock.latency(lambda: method.score(one), warmup=warmup, budget=budget)
        known = 1, 1000 / single.median_ms
        many = throughput_at(method, images, "cpu", (ONE_THREAD_BATCH,), quick=brief, known=known)
    finally:
        torch.set_num_threads(before)
    return {
        "one_thread_latency_ms": single.median_ms,
        "one_thread_latency_p95_ms": p95(single),
        "one_thread_latency_p99_ms": p99(single),
        "one_thread_images_per_second": many[-1][1],  # of a single image where so many would take long
    }


def p95(timing: clock.Timing) -> float | None:
    """The 95th percentile of the calls of `timing` in ms; None of so few that it is no more than the slowest."""
    return timing.p95_ms if timing.n >= CALLS_OF_TAIL["latency_p95_ms"] else None


def p99(timing: clock.Timing) -> float | None:
    """The same of the 99th percentile."""
    return timing.p99_ms if timing.n >= CALLS_OF_TAIL["latency_p99_ms"] else None


def is_quick(job: Job) -> bool:
    """Whether the throughput is that of few batches, each by few calls: in every preset but the papers'."""
    return not job.preset.startswith("paper")


def is_brief(job: Job) -> bool:
    """Whether latencies are by a tenth of the protocol's budget: in the quick preset."""
    return job.preset.startswith("quick")


def budgets(brief: bool) -> tuple[clock.Budget, clock.Budget]:
    """How long calls are repeated to warm up, and to be timed."""
    return (clock.QUICK_WARMUP, clock.QUICK_TIMED) if brief else (clock.WARMUP, clock.TIMED)


def batches_of(quick: bool) -> tuple[int, ...]:
    """The batches of the throughput curve."""
    return QUICK_BATCHES if quick else PROTOCOL.throughput_batches


def networks_on(method: Method, images: Tensor) -> Callable[[], object]:
    """A call that runs the networks alone, on what they see when `score` is given `images` [N, 3 M, R, R].

    That is the images at the method's `image_size`, under autocast for its precision: neither the resolution of the
    run nor a precision of its own is measured.
    """
    squares = method.windows(images) if isinstance(method, Windowed) else images
    seen = resized(squares, method.settings.image_size)
    half = HALVES.get(method.settings.precision)

    def networks() -> object:
        with torch.autocast(images.device.type, dtype=half, enabled=half is not None):
            return method.networks(seen)

    return networks


def throughput(method: Method, images: Tensor, device: str, single: float, *, quick: bool) -> dict[str, Any]:
    """Images per second over batches of `images`, repeated where there are too few, and the best batch.

    `single`: images per second of one at a time, which the latency has told.
    """
    larger = tuple(batch for batch in batches_of(quick) if batch > 1)
    curve = throughput_at(method, images, device, larger, quick=quick, known=(1, single))
    best = clock.best_batch(curve)
    return {
        "throughput": tuple({"batch": batch, "images_per_second": speed} for batch, speed in curve),
        "images_per_second": best[1] if best else None,
        "best_batch": best[0] if best else None,
    }


def throughput_at(
    method: Method,
    images: Tensor,
    device: str,
    batches: tuple[int, ...],
    *,
    quick: bool,
    known: tuple[int, float] | None = None,
) -> list[tuple[int, float]]:
    """(batch, images per second) of what is `known` and of each of `batches`, as far as `clock.throughput` goes."""

    def batch_of(size: int) -> Callable[[], Any]:
        batch = images[:size].repeat(-(-size // len(images)), 1, 1, 1)[:size].clone()
        return lambda: method.score(batch)

    budget = QUICK_CURVE if quick else clock.QUICK_TIMED
    warmup = CURVE_WARMUP if device.startswith("cuda") else clock.Budget(0, 0.0)
    return clock.throughput(batch_of, device, batches, warmup=warmup, budget=budget, known=known)


def weights(method: Method) -> dict[str, int]:
    """How many weights the method has, and how many of them it learnt."""
    parameters = list(method.module.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
