"""A script for a GPU, run without one: its whole course, with tiny sizes, in Triton's interpreter.

    KDAD_REHEARSAL=benchmarks/gpu/rehearse.py benchmarks/gpu/run.sh OUT     # or any script: rehearse.py SCRIPT ...

What torch has of CUDA is replaced by stand-ins on the CPU: a graph keeps the launches it captured and repeats them, an
event reads the clock. No figure that comes out means anything.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
os.environ["KDAD_KERNELS"] = "triton"
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import torch  # noqa: E402

from tests.kernels import interpreter  # noqa: E402

if interpreter.needs_remedy():
    interpreter.remedy()

from kdad_bench.kernels import (  # noqa: E402
    benchmark,
    benchmark_ops,
    dispatch,
    losses,
    ready,
    triton_fusion,
    triton_launch,
    triton_path,
)

CPU = torch.device("cpu")
Case = benchmark_ops.Case


class Event:
    """Reads the clock."""

    def __init__(self, **options: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is waited for on a CPU."""

    def elapsed_time(self, after: Event) -> float:
        return max(1e3 * (after.at - self.at), 1e-3)


class Graph:
    """Keeps launches and makes them again."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def replay(self) -> None:
        for launch in self.launches:
            LAUNCH(*launch)


LAUNCH: Callable[..., None] = triton_launch.launch
capturing: list[Graph] = []


def launch(*arguments: Any) -> None:
    """A launch, kept by the graph that is captured, if any."""
    for graph in capturing:
        graph.launches.append(arguments)
    LAUNCH(*arguments)


@contextmanager
def capture(graph: Graph) -> Iterator[None]:
    """As torch.cuda.graph."""
    capturing.append(graph)
    try:
        yield
    finally:
        capturing.remove(graph)


def stand_in() -> None:
    """Let CUDA be the CPU."""
    for module in (triton_path, triton_fusion):
        module.launch = launch  # type: ignore[attr-defined]
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, value in {
        "is_available": lambda: True, "synchronize": lambda *_: None, "Event": Event, "Stream": lambda: stream,
        "current_stream": lambda *_: stream, "stream": lambda _: nullcontext(), "CUDAGraph": Graph, "graph": capture,
        "get_device_name": lambda *_: "no GPU: a rehearsal", "mem_get_info": lambda *_: (1 << 40, 1 << 40),
        "memory_allocated": lambda *_: 0, "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None, "set_sync_debug_mode": lambda *_: None,
    }.items():  # fmt: skip
        setattr(torch.cuda, name, value)
    losses.is_one = lambda upstream: False  # nobody asks a GPU
    said = dispatch.path
    dispatch.path = lambda device="cpu": said("cuda")  # also where no path is forced
    ready.ON = {"cpu", "cuda"}


def started(call: Callable[[], object]) -> list[str]:
    """The kernels of a call: what was launched, in place of what a profiler saw."""
    seen = Graph()
    with capture(seen):
        call()
    return [kernel.__name__ for kernel, *_ in seen.launches]


def unrehearsed() -> str:
    """In place of what torch.compile and its op checks do: they look for CUDA by other ways."""
    return "NOT REHEARSED"


def tiny() -> None:
    """Sizes that an interpreter gets through."""
    import beyond_int32
    import checks

    checks.DEVICE, checks.started = CPU, started
    checks.SHAPES, checks.SIZES, checks.LARGE = [(2, 5, 3, 4)], [(16, 16), (13, 10)], (1, 4, 4, 4)
    checks.FAR = beyond_int32.Size(features=(2, 9, 7, 5), sample=(1, 33, 4, 6), maps=(2, 5, 4), fused=(20, 16))
    checks.MIDDLE, checks.TIMES = (8, 8), 1
    checks.SIDE_BY_SIDE["opcheck_and_compile"] = checks.CHECKS["opcheck_and_compile"] = unrehearsed
    checks.ROWS, checks.WIDTH, checks.IMAGES = (40, 30), 8, (2, 16, 16)
    small = (4, 4), (8, 2)
    benchmark_ops.RESNET18, benchmark_ops.SIZE = small, (16, 16)
    benchmark_ops.SHAPES.update(dict.fromkeys(benchmark_ops.SHAPES, small))
    benchmark_ops.WHOLE_MAP.update(size=(16, 16), sigma=1.0)
    benchmark_ops.PRODUCT_MAP.update(size=(16, 16))
    benchmark_ops.SIGMA = 1.0
    benchmark_ops.ROTATION = {"cpu": 1, "cuda": 1}
    benchmark.BASELINE, benchmark.ROUNDS, benchmark.FEWEST, benchmark.REPLAYS = 1 << 10, 1, 2, 1
    kinds = ("fp32", "nchw"), ("fp16", "channels_last")
    benchmark.cases = lambda device, *, quick: [
        Case(op=op, shape="resnet18", batch=1, dtype=dtype, layout=layout)
        for op in benchmark_ops.OPS
        for dtype, layout in kinds
    ]


def main() -> None:
    """Run the script that is named, as itself."""
    script, *rest = sys.argv[1:]
    os.environ["KDAD_REHEARSAL"] = str(HERE / "rehearse.py")
    stand_in()
    tiny()
    assert dispatch.path(CPU) == "triton"
    sys.argv = [script, *rest]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
