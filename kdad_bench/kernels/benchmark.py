"""Times the ops against what people write instead and against this run's memory bandwidth. Prints nothing.

On a GPU the time is that of a CUDA graph's replay, which holds the kernels alone; what Python takes to start them has a
column of its own.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import dispatch
from kdad_bench.kernels.benchmark_ops import (
    LAYOUTS,
    OPS,
    Call,
    Case,
    Taps,
    double,
    inputs,
    minimum_bytes,
)

ROUNDS = 3  # the implementations are timed in turn, so that a drift of the machine meets all alike
SECONDS = 0.2  # per implementation and round, and at least FEWEST calls
FEWEST = 4
# With one thread: count the thread's CPU time, which other work on the machine does not lengthen.
SHARED_MACHINE = False
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1.6e-2}  # of outputs in that dtype; maps are float32 always
BASELINE = 1 << 28  # float32 values that are copied and read on a GPU: 1 GiB, which no cache holds
REPLAYS = 4  # of a graph, between two events


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One implementation in one case."""

    case: Case
    implementation: str
    median_us: float
    p20_us: float
    p80_us: float
    calls: int
    minimum_bytes: int  # what must move, whoever computes it
    copy_gb_per_s: float  # measured in this run; on a CPU over buffers of the same size
    read_gb_per_s: float
    host_us: float | None  # of starting the work of an eager call on a GPU; None on a CPU, which is the host
    relative_error: float | None  # of the largest output, against float64; None if it was not checked

    @property
    def gb_per_s(self) -> float:
        """Minimum bytes over median time."""
        return self.minimum_bytes / self.median_us / 1e3


# ---- clocks ----------------------------------------------------------------------------------------------------------


def cpu_samples(call: Call, sets: list[Taps]) -> list[float]:
    """Microseconds of each of several calls on the CPU, over the sets in turn."""
    for k in range(3):
        call(sets[k % len(sets)])
    samples: list[float] = []
    end = time.perf_counter() + SECONDS
    clock = time.thread_time if torch.get_num_threads() == 1 and SHARED_MACHINE else time.perf_counter
    while len(samples) < FEWEST or time.perf_counter() < end:
        taps = sets[len(samples) % len(sets)]
        start = clock()
        call(taps)
        samples.append((clock() - start) * 1e6)
    return samples


def device_microseconds(work: Callable[[], object]) -> float:
    """What a GPU takes for `work`, between two events."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) * 1e3


def captured(call: Call, sets: list[Taps]) -> Callable[[], object]:
    """Replays the call on every set in turn, captured in one CUDA graph after a call of each that compiles kernels."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for taps in sets[:3]:
            call(taps)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call(taps) for taps in sets]
    return partial(replay, graph, kept)


def replay(graph: torch.cuda.CUDAGraph, kept: list[Any]) -> None:
    """Replay the graph, whose outputs are `kept` so that their memory is not given to others."""
    graph.replay()


def graph_samples(call: Call, sets: list[Taps]) -> list[float]:
    """Microseconds per call of several replays of a graph of all sets."""
    again = captured(call, sets)
    device_microseconds(again)
    return sampled(lambda: device_microseconds(lambda: [again() for _ in range(REPLAYS)]) / (REPLAYS * len(sets)))


def queue_samples(call: Call, sets: list[Taps]) -> list[float]:
    """Microseconds per call of queues of eager calls on a GPU, so that starting one overlaps with running another."""
    for k in range(3):
        call(sets[k % len(sets)])
    torch.cuda.synchronize()
    return sampled(lambda: device_microseconds(lambda: [call(taps) for taps in sets]) / len(sets))


def sampled(measure_once: Callable[[], float]) -> list[float]:
    """At least FEWEST measurements, and as many as SECONDS have room for."""
    end = time.perf_counter() + SECONDS
    samples: list[float] = []
    while len(samples) < FEWEST or time.perf_counter() < end:
        samples.append(measure_once())
    return samples


def host_microseconds(call: Call, sets: list[Taps]) -> float:
    """What the host takes to start an eager call on a GPU, without waiting for it: the median over the sets."""
    taken = []
    for taps in sets:
        start = time.perf_counter()
        call(taps)
        taken.append((time.perf_counter() - start) * 1e6)
    torch.cuda.synchronize()
    return statistics.median(taken)


def timed(call: Call, sets: list[Taps], device: torch.device, graphs: bool = False) -> list[float]:
    """Microseconds per call: on the CPU's clock; on a GPU of a graph's replays, or of a queue without `graphs`."""
    if device.type == "cpu":
        return cpu_samples(call, sets)
    return graph_samples(call, sets) if graphs else queue_samples(call, sets)


# ---- bandwidth -------------------------------------------------------------------------------------------------------


def bandwidth(sets: list[Taps], device: torch.device) -> tuple[float, float]:
    """GB/s of copying and of reading: on a CPU buffers of the size of a set, rotating like the ops do."""
    if device.type != "cpu":
        return baseline(device, BASELINE)
    flat = [torch.cat([x.flatten()[: x.numel()] for group in taps for x in group]) for taps in sets[:8]]
    return speeds([[[x.view(torch.float32)]] for x in flat], device)


@cache
def baseline(device: torch.device, values: int) -> tuple[float, float]:
    """GB/s of copying and of reading two buffers of so many float32 values in turn, measured once per process."""
    return speeds([[[torch.randn(values, device=device)]] for _ in range(2)], device)


def speeds(buffers: list[Taps], device: torch.device) -> tuple[float, float]:
    """GB/s of copying and of reading the float32 `buffers` in turn; the faster of two reductions reads."""
    target = torch.empty_like(buffers[0][0][0])
    size = target.numel() * target.element_size()
    copy, *reads = (
        statistics.median(timed(call, buffers, device, graphs=True))
        for call in (
            lambda taps: target.copy_(taps[0][0]),
            lambda taps: taps[0][0].sum(),
            lambda taps: taps[0][0].amax(),
        )
    )
    return 2 * size / copy / 1e3, size / min(reads) / 1e3


# ---- comparison ------------------------------------------------------------------------------------------------------


def flattened(result: Any) -> list[Tensor]:
    """The tensors of a nested result, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in flattened(part)]


def errors(found: Any, expected: Any) -> list[float]:
    """|found - expected| / |expected| of each output, in the norm of the output; infinite if shapes differ."""
    pairs = list(zip(flattened(found), flattened(expected), strict=True))
    if any(f.shape != e.shape for f, e in pairs):
        return [math.inf] * len(pairs)
    return [float((f.double() - e).norm() / e.norm().clamp_min(1e-30)) for f, e in pairs]


def relative_error(found: Any, expected: Any) -> float:
    """The largest of the `errors`."""
    return max(errors(found, expected))


def rounded(found: Any, expected: Any) -> list[Tensor]:
    """The float64 outputs as the dtypes of those `found` can hold them at best."""
    pairs = zip(flattened(found), flattened(expected), strict=True)
    return [e.detach().to(f.dtype) for f, e in pairs]


def checked(case: Case, taps: Taps) -> float:
    """The relative error of ours against float64; raises ArithmeticError if it is too large.

    Allowed is, for each output, the error of float64's result rounded to the output's dtype, and TOLERANCE. Without a
    loss scale the gradient of a mean lies among the subnormals of float16, where rounding alone costs a quarter of it.
    """
    op = OPS[case.op]
    ours, oracle = op.ours(taps), op.oracle(double(taps))
    usual = TOLERANCE[case.dtype] if op.trains or case.op == "attention weighting" else TOLERANCE["fp32"]
    allowed = [usual + unavoidable for unavoidable in errors(rounded(ours, oracle), oracle)]
    found = errors(ours, oracle)
    for error, most in zip(found, allowed, strict=True):
        if not error <= most:
            raise ArithmeticError(f"{case}: relative error {error:.2e} against float64, {most:.2e} allowed")
    return max(found)


def implementations(case: Case, device: torch.device, compiled: bool) -> dict[str, Call]:
    """What is timed in a case, ours first; `compiled` adds torch.compile of the eager forms."""
    op = OPS[case.op]
    calls: dict[str, Call] = {f"kdad ({kernels.path(device)})": op.ours, "eager as papers": op.paper}
    if op.three_sum is not None:
        calls["eager three sums"] = op.three_sum
    if compiled:
        calls["compiled as papers"] = compiled_call(op.paper)
        if op.three_sum is not None:
            calls["compiled three sums"] = compiled_call(op.three_sum)
    return calls


def measure(
    case: Case,
    device: torch.device,
    *,
    check: bool = True,
    compiled: bool = True,
    told: Callable[[str], object] = lambda line: None,
) -> Iterator[Timing]:
    """Time every implementation of a case, ours first; raises ArithmeticError if `check` and ours is wrong.

    One that cannot be compiled here is `told` and left out. On a GPU every eager form is timed as a CUDA graph, steps
    of a training too; compiled ones as they run.
    """
    op, sets = OPS[case.op], inputs(case, device)
    error = checked(case, sets[0]) if check else None
    copy, read = bandwidth(sets, device)
    calls = implementations(case, device, compiled)
    for name in [name for name in calls if name.startswith("compiled")]:
        try:
            calls[name](sets[0])
        except Exception as problem:  # no compiler, or one that fails
            said = next(iter(str(problem).splitlines()), "")[:200]
            told(f"{case.op}, {name}: left out ({type(problem).__name__}: {said})")
            del calls[name]
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name] += timed(call, sets, device, graphs=not name.startswith("compiled"))
    for name, call in calls.items():
        cuts = statistics.quantiles(taken[name], n=5)
        yield Timing(
            case=case,
            implementation=name,
            median_us=statistics.median(taken[name]),
            p20_us=cuts[0],
            p80_us=cuts[3],
            calls=len(taken[name]),
            minimum_bytes=minimum_bytes(op, case, device),
            copy_gb_per_s=copy,
            read_gb_per_s=read,
            host_us=None if device.type == "cpu" else host_microseconds(call, sets),
            relative_error=error if call is op.ours else None,
        )


def compiled_call(call: Call) -> Call:
    """torch.compile of the forward; the backward of a compiled loss is compiled with it."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Call = torch.compile(call)
    return made


def cases(device: torch.device, *, quick: bool) -> list[Case]:
    """What is timed by default: the taps of ResNet-18 at 256 x 256; on a GPU more batches, dtypes and WideResNet-50."""
    cuda = device.type == "cuda"
    if quick:
        chosen = [("resnet18", 32 if cuda else 8, "fp32", "nchw")]
        names = ["discrepancy", "loss, forward and backward", "map: sum, blur, max"]
    else:
        dtypes = ("fp32", "fp16") if cuda else ("fp32",)
        batches = (1, 8, 32)
        chosen = [("resnet18", n, d, layout) for n in batches for d in dtypes for layout in LAYOUTS]
        chosen.append(("wide_resnet50_2", 32 if cuda else 4, "bf16" if cuda else "fp32", "channels_last"))
        names = list(OPS)
    return [Case(op=o, shape=s, batch=n, dtype=d, layout=x) for o in names for s, n, d, x in chosen]


def environment(device: torch.device) -> dict[str, str]:
    """Where the numbers come from."""
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": str(torch.get_num_threads()),
        "clock": "CPU time of one thread" if SHARED_MACHINE else "wall",
        "path": kernels.path(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if dispatch.has_triton():
        from importlib.metadata import version

        found["triton"] = version("triton")
        found["launches"] = dispatch.launching()
    if dispatch.broken():
        found["broken kernels"] = "; ".join(f"{op}: {why}" for op, why in dispatch.broken().items())
    return found


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def ratio(x: float) -> str:
    """Two digits after the point where they tell which of two is faster."""
    return f"{x:.1f}" if x >= 3 else f"{x:.2f}"


def table(timings: Sequence[Timing]) -> str:
    """One markdown row per case: ours, and how many times slower the others are."""
    head = ["op", "taps", "N", "dtype", "layout", "ms per image", "GB/s", "of copy", "of read"]
    others = list(dict.fromkeys(t.implementation for t in timings if not t.implementation.startswith("kdad (")))
    hosted = any(t.host_us is not None for t in timings)
    head += ["host us"] if hosted else []
    lines = ["| " + " | ".join([*head, *(f"x {o}" for o in others)]) + " |"]
    lines.append("|" + " --- |" * len(head) + " ---: |" * len(others))
    for case in dict.fromkeys(t.case for t in timings):
        mine = {t.implementation: t for t in timings if t.case == case}
        ours = next(t for name, t in mine.items() if name.startswith("kdad ("))
        row = [
            case.op,
            case.shape,
            str(case.batch),
            case.dtype,
            case.layout,
            f"{ours.median_us / 1e3 / case.batch:.4f}",
            f"{ours.gb_per_s:.1f}",
            f"{ours.gb_per_s / ours.copy_gb_per_s:.0%}",
            f"{ours.gb_per_s / ours.read_gb_per_s:.0%}",
        ]
        if hosted:
            row.append("" if ours.host_us is None else f"{ours.host_us:.0f}")
        row += [ratio(mine[o].median_us / ours.median_us) if o in mine else "" for o in others]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
