"""Time a call on its device: latency, throughput, peak memory, floating-point operations. Raw samples are kept."""

from __future__ import annotations

import contextlib
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdad_bench.harness.protocol import PROTOCOL

if TYPE_CHECKING:
    import torch

Call = Callable[[], Any]

LEAST_CALLS = 3  # that are timed, however long they take
_REPEATS = 5  # consecutive parts of one timing whose medians are compared
_RESAMPLES = 2000
_SAMPLING_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to go on: until so many calls or so many seconds, whichever comes first, but at least `least` calls.

    With `close`, no longer than until all calls lie that near each other: (longest - shortest) / median.
    """

    calls: int
    seconds: float
    least: int = 1
    close: float | None = None

    def ends(self, samples: Sequence[float], spent: float) -> bool:
        """Whether so many calls, which took `spent` seconds together, are enough."""
        if len(samples) >= self.calls:
            return True
        if len(samples) < self.least:
            return False
        if spent >= self.seconds or self.close is None or len(samples) < 2:
            return spent >= self.seconds
        return max(samples) - min(samples) <= self.close * float(np.median(samples))


WARMUP = Budget(PROTOCOL.warmup_calls, PROTOCOL.warmup_seconds)
TIMED = Budget(PROTOCOL.timed_calls, PROTOCOL.timed_seconds, least=LEAST_CALLS)
QUICK_WARMUP = Budget(3, 0.2)  # of the quick preset: about a tenth of the protocol's budgets
QUICK_TIMED = Budget(20, 0.5, least=LEAST_CALLS)
# seconds of one call of a throughput curve: in so long a one nothing is left that a larger batch would share
LONGEST_BATCH = 2.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of repeated calls, in the order they were made, and what they say."""

    samples_ms: tuple[float, ...]
    first_ms: float  # the very first call: compilation, allocation and cold caches; not among the samples
    median_ms: float = field(init=False)
    p5_ms: float = field(init=False)
    p95_ms: float = field(init=False)
    p99_ms: float = field(init=False)
    interval_ms: tuple[float, float] = field(init=False)  # 95 % of the median, percentile bootstrap
    spread: float = field(init=False)  # (largest - smallest) / overall, of the medians of five consecutive parts

    def __post_init__(self) -> None:
        if not self.samples_ms:
            raise ValueError("no samples: a timing needs at least one call")
        values = np.asarray(self.samples_ms)
        p5, median, p95, p99 = (float(v) for v in np.percentile(values, [5, 50, 95, 99]))
        resampled = np.random.default_rng(0).choice(values, (_RESAMPLES, values.size))
        tail = 50 * (1 - PROTOCOL.interval)
        low, high = np.percentile(np.median(resampled, axis=1), [tail, 100 - tail])
        parts = [float(np.median(part)) for part in np.array_split(values, min(_REPEATS, values.size))]
        for name, value in (
            ("median_ms", median),
            ("p5_ms", p5),
            ("p95_ms", p95),
            ("p99_ms", p99),
            ("interval_ms", (float(low), float(high))),
            ("spread", (max(parts) - min(parts)) / median if median > 0 else 0.0),
        ):
            object.__setattr__(self, name, value)

    @property
    def n(self) -> int:
        """Timed calls."""
        return len(self.samples_ms)

    @property
    def steady(self) -> bool:
        """Whether the spread between parts of this one timing stays within 5 %; tables look at the spread over jobs."""
        return self.spread <= PROTOCOL.spread_limit


def latency(
    call: Call, device: str | torch.device = "cpu", *, warmup: Budget = WARMUP, budget: Budget = TIMED
) -> Timing:
    """Milliseconds of single calls of `call`, each between two synchronisations of `device`.

    The first call is timed apart, then the warm-up runs, then the samples are taken. On a CPU a first call as long as
    the warm-up stands for it; a GPU may have to record what is called a second time. The caller sets evaluation mode
    and `inference_mode`, and puts the input on the device.
    """
    return interleaved({"": call}, device, warmup=warmup, budget=budget)[""]


def interleaved(
    calls: Mapping[str, Call],
    device: str | torch.device = "cpu",
    *,
    warmup: Budget = WARMUP,
    budget: Budget = TIMED,
) -> dict[str, Timing]:
    """Timings of several calls taken in turn (A B C A B C ...), so that a drift of the machine meets all alike.

    The budgets are those of each call. Without any warm-up the first call is one of the samples. Raises ValueError for
    no calls.
    """
    if not calls:
        raise ValueError("no calls to time")
    synchronise = _synchroniser(device)
    first = {name: _milliseconds(call, synchronise) for name, call in calls.items()}
    on_gpu = str(device).startswith("cuda")
    for name, call in calls.items():
        if on_gpu or first[name] < 1000 * warmup.seconds:
            _repeat(call, synchronise, warmup)
    samples: dict[str, list[float]] = {name: [] if warmup.calls else [first[name]] for name in calls}
    spent = {name: sum(taken) / 1000 for name, taken in samples.items()}
    unfinished = {name: call for name, call in calls.items() if not budget.ends(samples[name], spent[name])}
    while unfinished:
        for name, call in list(unfinished.items()):
            taken = _milliseconds(call, synchronise)
            samples[name].append(taken)
            spent[name] += taken / 1000
            if budget.ends(samples[name], spent[name]):
                del unfinished[name]
    return {name: Timing(tuple(samples[name]), first[name]) for name in calls}


def throughput(
    call_for_batch: Callable[[int], Call],
    device: str | torch.device = "cpu",
    batches: Sequence[int] = PROTOCOL.throughput_batches,
    *,
    warmup: Budget = QUICK_WARMUP,
    budget: Budget = QUICK_TIMED,
    known: tuple[int, float] | None = None,
) -> list[tuple[int, float]]:
    """(batch, images per second at the median) for each batch size, ascending, behind a point that is `known`.

    `call_for_batch(b)` returns a call that handles b images. The curve ends early at a batch that does not fit into
    the memory of the GPU, and at one that takes longer than LONGEST_BATCH by the batch before it. `best_batch` picks
    the best point.
    """
    import torch

    curve = [] if known is None else [known]
    for batch in sorted(batches):
        if curve and batch > LONGEST_BATCH * curve[-1][1]:
            break
        try:
            timing = latency(call_for_batch(batch), device, warmup=warmup, budget=budget)
        except torch.OutOfMemoryError:
            break
        curve.append((batch, 1000 * batch / timing.median_ms))
    return curve


def best_batch(curve: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """The point of the highest throughput, the smaller batch where two are equal; None for an empty curve."""
    return max(curve, key=lambda point: (point[1], -point[0]), default=None)


@dataclass(slots=True)
class Peak:
    """What `peak_memory` found once its block is left."""

    peak_mb: float = 0.0  # the highest use inside the block, 10^6 bytes
    growth_mb: float = 0.0  # how far that lies above the use on entry
    how: str = ""


@contextlib.contextmanager
def peak_memory(device: str | torch.device = "cpu") -> Iterator[Peak]:
    """The peak memory of a block, in 10^6 bytes.

    On a GPU: what PyTorch's allocator gave out (`max_memory_allocated`, reset on entry). On a CPU: the resident memory
    of this process, all libraries included, from the kernel's high-water mark where it can be reset (Linux), else
    sampled every 2 ms, which may miss a short peak. `how` says which.
    """
    import torch

    found = Peak()
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.synchronize(chosen)
        before = torch.cuda.memory_allocated(chosen)
        torch.cuda.reset_peak_memory_stats(chosen)
        found.how = "CUDA allocator"
        with _ending(found, before, lambda: torch.cuda.max_memory_allocated(chosen)):
            yield found
        return
    before = _resident()
    if _reset_high_water():
        found.how = "high-water mark of resident memory"
        with _ending(found, before, lambda: max(_high_water(), before)):
            yield found
        return
    found.how = f"resident memory sampled every {1000 * _SAMPLING_SECONDS:g} ms"
    sampler = _Sampler()
    with _ending(found, before, lambda: sampler.peak), sampler:
        yield found


@contextlib.contextmanager
def _ending(found: Peak, before: int, peak: Callable[[], int]) -> Iterator[None]:
    """Fill in `found` when the block ends, also by an exception: the peak of a failed job is worth knowing."""
    try:
        yield
    finally:
        highest = peak()
        found.peak_mb = highest / 1e6
        found.growth_mb = (highest - before) / 1e6


def peak_memory_mb(call: Call, device: str | torch.device = "cpu") -> float:
    """The peak memory while `call` runs once: see `peak_memory`."""
    with peak_memory(device) as found:
        call()
    return found.peak_mb


def flops(call: Call) -> int:
    """Floating-point operations of one `call`, by torch's counter: two per multiply-add of convolutions and matrix
    products; elementwise work and fused kernels of this package are not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    with _compiler_left_alone(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@contextlib.contextmanager
def _compiler_left_alone() -> Iterator[None]:
    """Inside, torch's counter does not import torch's compiler (1.5 s) only to be kept out of what that compiles, as
    PyTorch 2.13 has it, where nobody has imported it."""
    from torch.utils import flop_counter

    mode: Any = getattr(flop_counter, "_FlopCounterMode", None)
    if mode is None or "torch._dynamo" in sys.modules:
        yield
        return
    kept_out = mode.__torch_dispatch__
    mode.__torch_dispatch__ = inspect.unwrap(kept_out)
    try:
        yield
    finally:
        mode.__torch_dispatch__ = kept_out


def _synchroniser(device: str | torch.device) -> Callable[[], None]:
    if str(device).startswith("cuda"):
        import torch

        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def _milliseconds(call: Call, synchronise: Callable[[], None]) -> float:
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return 1000 * (time.perf_counter() - start)


def _repeat(call: Call, synchronise: Callable[[], None], budget: Budget) -> None:
    spent = 0.0
    for _ in range(budget.calls):
        spent += _milliseconds(call, synchronise) / 1000
        if spent >= budget.seconds:
            return


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _reset_high_water() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _high_water() < 1.05 * _resident() + 1e6  # some sandboxes accept the write and ignore it
    except OSError:
        return False


def _high_water() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("no VmHWM")


class _Sampler:
    """The highest resident memory of this process while the block runs, looked up again and again by a thread."""

    def __enter__(self) -> _Sampler:
        self.peak = _resident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, _resident())

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLING_SECONDS):
            self.peak = max(self.peak, _resident())
