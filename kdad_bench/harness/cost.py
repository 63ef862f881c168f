"""What a trained method costs: latency with and without the map, throughput, operations, weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdad_bench.harness import clock
from kdad_bench.harness.job import Job
from kdad_bench.harness.protocol import PROTOCOL
from kdad_bench.methods.protocol import Method
from kdad_bench.methods.resizing import resized

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
QUICK_BATCHES = (1, 8, 32)
QUICK_CURVE = clock.Budget(3, 0.3)  # of each point of the throughput curve in the `quick` preset
CURVE_WARMUP = clock.Budget(1, 0.2)


def cost_of(method: Method, images: Tensor, job: Job) -> dict[str, Any]:
    """The cost columns of a row, measured on `images` [N, 3 M, R, R] on the job's device."""
    quick = not job.preset.startswith("paper")
    with torch.inference_mode():
        latency = latencies(method, images[:1].clone(), job.device, quick=quick)
        return {**latency, **throughput(method, images, job.device, quick=quick), **weights(method)}


def latencies(method: Method, one: Tensor, device: str, *, quick: bool) -> dict[str, Any]:
    """Milliseconds of one image through `score` and through the networks alone, and the networks' operations."""
    warmup, budget = (clock.QUICK_WARMUP, clock.QUICK_TIMED) if quick else (clock.WARMUP, clock.TIMED)
    calls = {"score": lambda: method.score(one), "networks": networks_on(method, one)}
    timings = clock.interleaved(calls, device, warmup=warmup, budget=budget)
    return {
        "latency_ms": timings["score"].median_ms,
        "latency_p95_ms": timings["score"].p95_ms,
        "network_latency_ms": timings["networks"].median_ms,
        "latency_samples_ms": timings["score"].samples_ms,
        "gflops": clock.flops(calls["networks"]) / 1e9,
    }


def networks_on(method: Method, images: Tensor) -> Callable[[], object]:
    """A call that runs the networks alone, on what they see when `score` is given `images` [N, 3 M, R, R].

    That is the images at the method's `image_size`, under autocast for its precision: neither the resolution of the
    run nor a precision of its own is measured.
    """
    seen = resized(images, method.settings.image_size)
    half = HALVES.get(method.settings.precision)

    def networks() -> object:
        with torch.autocast(images.device.type, dtype=half, enabled=half is not None):
            return method.networks(seen)

    return networks


def throughput(method: Method, images: Tensor, device: str, *, quick: bool) -> dict[str, Any]:
    """Images per second over batches of `images`, repeated where there are too few, and the best batch."""

    def batch_of(size: int) -> Callable[[], Any]:
        batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size].clone()
        return lambda: method.score(batch)

    batches, budget = (QUICK_BATCHES, QUICK_CURVE) if quick else (PROTOCOL.throughput_batches, clock.QUICK_TIMED)
    curve = clock.throughput(batch_of, device, batches, warmup=CURVE_WARMUP, budget=budget)
    best = clock.best_batch(curve)
    return {
        "throughput": tuple({"batch": batch, "images_per_second": speed} for batch, speed in curve),
        "images_per_second": best[1] if best else None,
        "best_batch": best[0] if best else None,
    }


def weights(method: Method) -> dict[str, int]:
    """How many weights the method has, and how many of them it learnt."""
    parameters = list(method.module.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
    }
