"""Milliseconds per image of a saved model in each runtime that is installed, side by side in one process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from kdad_bench.harness import decision
from kdad_bench.harness.environment import describe
from kdad_bench.harness.export import refuse_windows
from kdad_bench.harness.export_graph import graph_of
from kdad_bench.harness.export_images import calibration_of, drawn, normals_of
from kdad_bench.harness.export_runtimes import TARGETS, Graph, missing, opened_graph, write_graph
from kdad_bench.harness.exported import refuse_other_method
from kdad_bench.harness.scoring import as_images
from kdad_bench.methods import checkpoint
from kdad_bench.methods.protocol import Method

CPU = torch.device("cpu")
WARM_UP = 5  # calls
PYTORCH = "kdad-bench (PyTorch)"
Call = Callable[[NDArray[np.uint8]], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """The latency of one runtime."""

    runtime: str
    ms: float | None  # median per image at batch 1; None where it was not measured
    ratio: float | None  # how many times as fast as the model in this package
    why: str = ""  # it was not measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """All runtimes, and where they were measured."""

    method: str
    side: int
    rounds: int
    environment: str
    timings: tuple[Timing, ...]


def speeds_of(model: Path, *, rounds: int, data_root: Path | None = None, method: str | None = None) -> Speeds:
    """Time one image at a time, from uint8 to score and map, the runtimes taking turns in each of the `rounds`.

    Raises ModelError, DecisionError, ExportError, and SelectionError for a model that cannot be exported.
    """
    name, learnt = checkpoint.load(model, CPU)
    refuse_other_method(model, name, method)
    kept = decision.read(model)
    refuse_windows(model, kept)
    graph = graph_of(learnt, kept.resolution)
    images, _ = calibration_of(normals_of(model, kept, data_root), [drawn(kept.resolution)])
    with tempfile.TemporaryDirectory() as folder:
        calls, missed = runners(graph, Path(folder), images)
        calls = {PYTORCH: by_method(learnt), **calls}
        milliseconds = in_turns(calls, drawn(kept.resolution).pixels[-1:], rounds)
    machine = describe("cpu")
    return Speeds(
        method=name,
        side=kept.resolution,
        rounds=rounds,
        environment=f"{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}",
        timings=(
            *(Timing(runtime=one, ms=ms, ratio=milliseconds[PYTORCH] / ms) for one, ms in milliseconds.items()),
            *(Timing(runtime=one, ms=None, ratio=None, why=why) for one, why in missed.items()),
        ),
    )


def runners(graph: Graph, folder: Path, images: list[NDArray[np.uint8]]) -> tuple[dict[str, Call], dict[str, str]]:
    """(what runs the graph, why it cannot be run), by runtime; files go to `folder`."""
    calls: dict[str, Call] = {}
    missed: dict[str, str] = {}
    for target, int8 in (*((target, False) for target in TARGETS), ("openvino", True)):
        name = f"{target} int8" if int8 else target
        lacking = missing(target, int8=int8)
        if lacking:
            missed[name] = lacking
            continue
        place = folder / name.replace(" ", "-")
        place.mkdir()
        try:
            write_graph(graph, target, place, images if int8 else ())
            calls[name] = opened_graph(target, place, graph.batch)
        except Exception as error:  # converters raise anything; the others are measured all the same
            missed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return calls, missed


def by_method(method: Method) -> Call:
    """The model as `predict` runs it."""

    def run(images: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            found = method.score(as_images(images, CPU))
        return found.image.numpy(), found.pixel.numpy()

    return run


def in_turns(calls: dict[str, Call], image: NDArray[np.uint8], rounds: int) -> dict[str, float]:
    """The median milliseconds of each call; what else the machine does falls on all of them alike."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call(image)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call(image)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: median(times) for name, times in taken.items()}
