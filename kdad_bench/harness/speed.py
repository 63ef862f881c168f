"""The speed of a configuration, measured alone: with all cores and with one thread, cold and warm."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from kdad_bench import allowance
from kdad_bench.allowance import processor_seconds
from kdad_bench.harness.cost import batches_of, is_brief, is_quick, one_thread, speeds
from kdad_bench.harness.determinism import choose_algorithms
from kdad_bench.harness.environment import MOST_BUSY, describe, keep_freed_memory
from kdad_bench.harness.giving_way import computing_with, giving_way
from kdad_bench.harness.graphs import Graphed, graphed
from kdad_bench.harness.job import Job
from kdad_bench.harness.material import count_of, normals
from kdad_bench.harness.run import build, squares, synchronise, timed_on
from kdad_bench.harness.scoring import as_images
from kdad_bench.harness.speed_key import configuration, key_of
from kdad_bench.harness.windows import Windowed
from kdad_bench.leaderboard.measurement import CALLS_OF_TAIL, Measurement
from kdad_bench.leaderboard.text import printable
from kdad_bench.methods import entry
from kdad_bench.methods.protocol import Method

FEW_BATCHES = 2  # of images for a training that only gives the networks their shapes: a method can keep some out
LEARNT_FROM = "images_learnt_from"  # in the environment of a measurement
AGAIN_SECONDS = 30.0  # a measurement that took longer is not repeated


def measure(job: Job, covers: Sequence[str] = ()) -> Measurement:
    """Time the method of `job` with nothing of ours beside it; raises whatever stops it.

    While other work held much of the processors it is done once more, unless it took long, and the less disturbed of
    the two counts.
    """
    choose_algorithms(job.deterministic, job.device)
    keep_freed_memory()
    with computing_with(allowance.cores()), giving_way():  # in this order: who gives way has to know how many compute
        method, pixels, how = fitted(job)
        method = graphed(method, job.device)
        images = as_images(pixels[: max(batches_of(is_quick(job)))], torch.device(job.device))
        began = time.perf_counter()
        figures = figures_of(method, images, job)
        short = time.perf_counter() - began < AGAIN_SECONDS
        if short and (figures["speed_load"] or 0.0) > MOST_BUSY:
            again = figures_of(method, images, job)
            again["first_latency_ms"] = figures["first_latency_ms"]  # the second time it is not cold
            figures = min(figures, again, key=lambda one: one["speed_load"])
        found = describe(job.device)
    return Measurement(
        key=key_of(job),
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        method=job.name,
        title=entry(job.method).title,
        configuration={
            name: printable(value) if name in ("dataset", "category") else value
            for name, value in json.loads(json.dumps(configuration(job), default=str)).items()
        },
        how=how + by_graphs(method) + by_few(len(figures["latency_samples_ms"])),
        figures=figures,
        covers=tuple(sorted(covers)),
        environment=json.loads(json.dumps({**found, "openmp": openmp(), LEARNT_FROM: count_of(job)}, default=str)),
    )


def by_graphs(method: Method) -> str:
    """What is to be said of a method whose calls were timed as CUDA graphs; nothing if none was."""
    inner = method.inner if isinstance(method, Windowed) else method
    if not isinstance(inner, Graphed):
        return ""
    count, networks = inner.recorded("score"), inner.recorded("networks") > 0
    if not count:
        return "; the networks alone by CUDA graphs" if networks else ""
    said = f"; scored by CUDA graphs, recorded for {count} batch sizes"
    return said if networks else f"{said}; the networks alone without"


def by_few(calls: int) -> str:
    """What is to be said of a latency by few calls; nothing of one by enough."""
    without = [name for name, least in CALLS_OF_TAIL.items() if calls < least]
    if not without:
        return ""
    told = "percentiles" if len(without) == len(CALLS_OF_TAIL) else "the 99th percentile"
    return f"; latency by {calls} calls, too few for {told}"


def openmp() -> dict[str, str]:
    """The settings of OpenMP that decide how threads wait for each other."""
    return {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ}


def fitted(job: Job) -> tuple[Method, Any, str]:
    """(a method that costs what one of `job` costs, uint8 images to time it on, what it learnt, in words).

    Learnt weights change no cost, so a step on a few images will do. Where a fit changed the size of what the method
    keeps, the cost may follow the images: then it learns from all the normal images of the category.
    """
    normal, held_out = normals(job)
    short = replace(job, settings=job.settings.shortest)
    few = min(len(normal), max(2, FEW_BATCHES * short.settings.batch_size))
    method, grew = learnt(short, normal[:few], held_out[:few])
    one = f"{len(job.together)} categories" if job.together else job.category.name
    place = printable(f"{job.category.dataset}/{one}")
    if not grew:
        return (
            method,
            timed_on(job, normal),
            f"1 step on {few} normal images of {place}: weights change no cost",
        )
    if len(normal) > few or job.code:
        method, _ = learnt(job, normal, held_out)
    return (
        method,
        timed_on(job, normal),
        f"all {len(normal)} normal images of {place}: what is kept of them decides the cost",
    )


def learnt(job: Job, normal: Any, held_out: Any) -> tuple[Method, bool]:
    """(the method after it has learnt from `normal` images, whether what it keeps has changed its size by that)."""
    device = torch.device(job.device)
    method = build(job, device, held_out)
    before = kept_values(method)
    method.fit(as_images(squares(job, normal), device))
    synchronise(device)
    return method, kept_values(method) != before


def kept_values(method: Method) -> int:
    """How many numbers a saved model would hold."""
    return sum(value.numel() for value in method.module.state_dict().values() if isinstance(value, Tensor))


def figures_of(method: Method, images: Tensor, job: Job) -> dict[str, Any]:
    """The figures of one measurement, with the share of the processors that other work held meanwhile."""
    on_cpu = not job.device.startswith("cuda")
    load = OtherLoad()
    with torch.inference_mode():
        found = speeds(method, images, job, job.device)
        threads = torch.get_num_threads()
        if on_cpu:
            found |= one_thread(method, images, brief=is_brief(job))
    return {**found, "speed_load": load.share(), "speed_threads": threads}


class OtherLoad:
    """What other processes take of the processors that this one may use, from when it is made until it is asked."""

    def __init__(self) -> None:
        self.total, self.busy = processor_seconds()
        self.own = time.process_time()

    def share(self) -> float | None:
        """Their share of these processors, 0 to 1; None where the system tells nothing."""
        total, busy = processor_seconds()
        if total <= self.total:
            return None
        others = busy - self.busy - (time.process_time() - self.own)
        return min(1.0, max(0.0, others / (total - self.total)))
