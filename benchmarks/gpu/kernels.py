"""What only a GPU can tell: results there, launches, graph capture, memory, offsets beyond 2^31, and the tables.

Started by run.sh. Checks come first, each in a process of its own, side by side, because compiling takes most of their
time. Then every case is written to OUT as it is measured (kernels.jsonl, kernels.md), until --seconds are over.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import beyond_int32 as far_offsets  # beside this file
import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.files import write_text_whole
from kdad_bench.kernels import benchmark, benchmark_ops, reference

DEVICE = torch.device("cuda")
BEGAN = time.perf_counter()
NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last


def pair(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    t = torch.randn(*shape, generator=generator, device=DEVICE)
    s = 0.7 * t + 0.5 * torch.randn(*shape, generator=generator, device=DEVICE)
    return t.to(dtype, memory_format=layout), s.to(dtype, memory_format=layout)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the norm of the whole tensor."""
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-300))


class Checklist:
    """Runs checks, prints each outcome, remembers failures."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def run(self, name: str, check: Callable[[], str]) -> None:
        start = time.perf_counter()
        try:
            outcome = check()
        except Exception as problem:  # every check must get its turn on a machine that is hard to come by
            self.failed.append(name)
            outcome = f"FAILED: {type(problem).__name__}: {str(problem).strip()[:500]}"
        print(f"{name}: {outcome} ({time.perf_counter() - start:.1f} s)", flush=True)


def demand(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def maps_and_gradients() -> str:
    """Maps, losses and gradients of every kind, dtype and layout against float64."""
    worst = 0.0
    shapes = [(2, 64, 33, 31), (1, 3, 7, 5), (3, 100, 1, 1), (2, 512, 9, 8), (1, 2048, 8, 8), (4, 256, 16, 16)]
    for dtype, allowed in ((torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
        for layout in (NCHW, CHANNELS_LAST):
            for shape in shapes:
                t, s = pair(shape, dtype, layout)
                for kind in ("unit_l2", "cosine", "l2"):
                    found = kernels.pixel_discrepancy(t, s, kind=kind)
                    expected = reference.pixel_discrepancy(t.double(), s.double(), kind=kind)
                    worst = max(worst, error(found, expected))
                    demand(
                        error(found, expected) < 1e-5, f"map {kind} {shape} {dtype} {layout}: {error(found, expected)}"
                    )
                for kind in ("unit_l2", "l2", "flattened"):
                    mine = [x.detach().requires_grad_() for x in (t, s)]
                    loss = kernels.distillation_loss([mine[0]], [mine[1]], kind=kind)
                    gradients = torch.autograd.grad(loss * 4096, mine)
                    oracle = [x.double().requires_grad_() for x in (t, s)]
                    expected_loss = reference.distillation_loss([oracle[0]], [oracle[1]], kind=kind)
                    for g, e in zip(gradients, torch.autograd.grad(expected_loss * 4096, oracle), strict=True):
                        demand(error(g, e) < allowed, f"gradient {kind} {shape} {dtype} {layout}: {error(g, e)}")
    return f"worst map error {worst:.1e}"


def precision() -> str:
    """Near pairs, element by element."""
    found = []
    for distance in (1e-2, 1e-4, 1e-6):
        generator = torch.Generator(DEVICE).manual_seed(1)
        t, noise = (
            torch.randn(2, 256, 16, 16, generator=generator, device=DEVICE, dtype=torch.float64) for _ in range(2)
        )
        noise -= (noise * t).sum(1, True) / t.square().sum(1, True) * t
        s = 1.7 * (t + noise * (t.square().sum(1, True) / noise.square().sum(1, True)).sqrt() * (2 * distance) ** 0.5)
        t, s = t.float(), s.float()
        expected = reference.pixel_discrepancy(t.double(), s.double())
        relative = float(((kernels.pixel_discrepancy(t, s).double() - expected) / expected).abs().max())
        demand(relative < 1e-4, f"d = {distance}: {relative}")
        found.append(f"d={distance:.0e}: {relative:.1e}")
    return ", ".join(found)


def magnitudes() -> str:
    """Huge, tiny and zero features."""
    t, s = pair((2, 256, 8, 8), torch.float32, NCHW)
    for a, b in ((1e-20, 1.0), (3e36, 1e-25), (1e18, 1e18)):
        found = kernels.pixel_discrepancy(t * a, s * b)
        demand(error(found, reference.pixel_discrepancy((t * a).double(), (s * b).double())) < 1e-5, f"{a}, {b}")
    high = (torch.randn(2, 512, 4, 4, device=DEVICE).sign() * 6e4).half()
    found = kernels.pixel_discrepancy(high, -high)
    demand(float((found - 2).abs().max()) < 1e-5, "float16 at 6e4")
    zero = torch.zeros_like(t)
    demand(float((kernels.pixel_discrepancy(t, zero) - 0.5).abs().max()) < 1e-6, "zero student")
    demand(float(kernels.pixel_discrepancy(zero, zero).abs().max()) == 0, "both zero")
    return "as in float64"


def whole_maps() -> str:
    """Fusion, blur, scores."""
    worst = 0.0
    taps = [pair((3, c, side, side), torch.float16, CHANNELS_LAST, c) for c, side in benchmark_ops.RESNET18]
    t, s = [x for x, _ in taps], [x for _, x in taps]
    wide = [[x.double() for x in group] for group in (t, s)]
    for options in (
        {"mode": "product"},
        {"mode": "product", "fuse_size": (64, 64)},
        {"mode": "product", "sigma": 4.0},
        {"mode": "product", "fuse_size": (64, 64), "sigma": 2.0, "border": "torch"},
        {"sigma": 4.0, "align_corners": True},
        {"sigma": 4.0, "border": "torch", "score": "mean"},
        {"kind": "l2", "score": "mean"},
    ):
        for size in ((256, 256), (251, 130)):
            for mine, theirs in zip(
                kernels.anomaly_map(t, s, size, **options), reference.anomaly_map(*wide, size, **options), strict=True
            ):
                worst = max(worst, error(mine, theirs))
                demand(error(mine, theirs) < 2e-5, f"{options} {size}: {error(mine, theirs)}")
    return f"worst error {worst:.1e}"


def started(call: Callable[[], object]) -> list[str]:
    """The kernels that a warm call starts, by the profiler."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        call()
        torch.cuda.synchronize()
    return [e.name for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]


def launches() -> str:
    """Kernels of a whole map with blur, and of a training step's loss."""
    taps = [pair((1, c, side, side), torch.float32, NCHW, c) for c, side in benchmark_ops.RESNET18]
    t, s = [x for x, _ in taps], [x for _, x in taps]
    for options in ({"sigma": 4.0}, {"sigma": 4.0, "mode": "product"}, {"mode": "product", "fuse_size": (64, 64)}):
        names = started(lambda options=options: kernels.anomaly_map(t, s, (256, 256), **options))
        demand(0 < len(names) <= 2, f"{options}: {len(names)} launches: {names}")
    students = [x.requires_grad_() for x in s]
    step = started(lambda: torch.autograd.grad(kernels.distillation_loss(t, students), students))
    for kernel in ("gradient_kernel", "scale_kernel"):
        demand(sum(kernel in name for name in step) == 1, f"{kernel} of a loss: {step}")
    return f"map {len(names)}: {', '.join(names)}; loss {len(step)}: {', '.join(step)}"


def graph() -> str:
    """A captured whole-map call follows its inputs, without a synchronisation on the way."""
    taps = [pair((2, c, side, side), torch.float32, NCHW, c) for c, side in benchmark_ops.RESNET18]
    t, s = [x for x, _ in taps], [x for _, x in taps]
    kernels.anomaly_map(t, s, (256, 256), sigma=4.0)  # its tables are copied to the device
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.anomaly_map(t, s, (256, 256), sigma=4.0)
        captured = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(captured):
            found, scores = kernels.anomaly_map(t, s, (256, 256), sigma=4.0)
        for k, x in enumerate(s):
            x.copy_(pair(tuple(x.shape), torch.float32, NCHW, 100 + k)[1])
        captured.replay()
        torch.cuda.synchronize()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_scores = reference.anomaly_map(
        [x.double() for x in t], [x.double() for x in s], (256, 256), sigma=4.0
    )
    demand(error(found, expected) < 2e-5 and error(scores, expected_scores) < 2e-5, f"{error(found, expected)}")
    return f"error after replay {error(found, expected):.1e}"


def memory() -> str:
    """Peak memory of a training step's loss beyond its gradient."""
    t, s = pair((32, 256, 64, 64), torch.float32, CHANNELS_LAST)
    s.requires_grad_()
    kernels.distillation_loss([t], [s]).backward()
    s.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kernels.distillation_loss([t], [s]).backward()
    extra = torch.cuda.max_memory_allocated() - before
    feature = s.numel() * 4
    demand(extra < 1.1 * feature, f"{extra / feature:.2f} feature maps")
    return f"{extra / feature:.3f} feature maps (the gradient is one)"


def beyond_int32() -> str:
    """Tensors whose samples, or whose channels, lie beyond what int32 counts; everything twice."""
    free, _ = torch.cuda.mem_get_info()
    if free < 40e9:
        return "skipped: less than 40 GB free"
    return far_offsets.run(far_offsets.Size(), DEVICE)


def opcheck_and_compile() -> str:
    """The registered ops on CUDA tensors, and a traced call."""
    t, s = pair((2, 32, 9, 8), torch.float32, NCHW)
    s.requires_grad_()
    torch.library.opcheck(torch.ops.kdad.pixel_discrepancy, (t, s, "unit_l2", 1.0))
    torch.library.opcheck(torch.ops.kdad.distillation_loss, (t, s, "unit_l2", 1.0, False, True))
    torch.library.opcheck(torch.ops.kdad.flattened_cosine, (t, s))
    compiled = torch.compile(lambda a, b: kernels.distillation_loss([a], [b]), fullgraph=True)
    demand(error(compiled(t, s), kernels.distillation_loss([t], [s]).double()) < 1e-5, "compiled loss differs")
    return "pass"


def gradient_in_forward() -> str:
    """The loss that writes its gradient early against forward and backward apart (5 transfers)."""
    t, s = pair((32, 256, 64, 64), torch.float32, CHANNELS_LAST)
    s.requires_grad_()

    def early() -> None:
        torch.autograd.grad(kernels.distillation_loss([t], [s]), s)

    def apart() -> None:
        torch.autograd.grad(kernels.pixel_discrepancy(t, s).mean(), s)

    times = []
    for call in (early, apart):
        samples = sorted(benchmark.timed(lambda _, call=call: call(), [[]], DEVICE))
        times.append(samples[len(samples) // 2])
    return f"one sweep {times[0]:.0f} us, apart {times[1]:.0f} us, ratio {times[1] / times[0]:.2f}"


CHECKS = {
    check.__name__: check
    for check in (
        maps_and_gradients,
        precision,
        magnitudes,
        whole_maps,
        launches,
        graph,
        memory,
        beyond_int32,
        opcheck_and_compile,
        gradient_in_forward,
    )
}
ALONE = "gradient_in_forward"  # what is timed


def check_process(name: str, out: Path) -> subprocess.Popen[str]:
    """A process that runs one check and prints its outcome; exit code 1 if it fails."""
    command = [sys.executable, __file__, "--out", str(out), "--check", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def checked(names: Sequence[str], out: Path, ends: float) -> list[str]:
    """Run checks side by side until `ends` on the clock; prints each outcome and returns those that failed."""
    running = {name: check_process(name, out) for name in names}
    failed = []
    for name, process in running.items():
        try:
            said = process.communicate(timeout=max(1.0, ends - time.perf_counter()))[0]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[0] + f"{name}: FAILED: out of time\n"
        print(said, end="", flush=True)
        if process.returncode != 0:
            failed.append(name)
    return failed


def ordered(compiled: bool) -> list[tuple[benchmark_ops.Case, bool]]:
    """What is measured, what matters most first, and whether torch.compile is timed beside it."""
    cases = benchmark.cases(DEVICE, quick=False)
    first = ("discrepancy", "map: sum, blur, max", "loss, forward and backward")
    cases.sort(key=lambda c: (c.op not in first, -c.batch))
    return [(c, compiled and c.layout == "channels_last" and c.batch == 32) for c in cases]


def write(out: Path, timings: Sequence[benchmark.Timing], where: dict[str, str]) -> str:
    """All cases so far, whole or not at all: whoever is killed keeps what was measured by then."""
    rows = [json.dumps({**dataclasses.asdict(one), "gb_per_s": one.gb_per_s, **where}) for one in timings]
    write_text_whole(out / "kernels.jsonl", "".join(row + "\n" for row in rows))
    text = "\n".join([", ".join(f"{k} {v}" for k, v in where.items()), "", benchmark.table(timings)])
    write_text_whole(out / "kernels.md", text + "\n")
    return text


def measured(out: Path, ends: float, compiled: bool) -> list[str]:
    """Measure and write case after case until `ends` on the clock; returns those that failed."""
    timings: list[benchmark.Timing] = []
    failed = []
    cases = ordered(compiled)
    for number, (case, beside) in enumerate(cases):
        if time.perf_counter() > ends:
            print(f"out of time: {len(cases) - number} of {len(cases)} cases not measured")
            break
        try:
            timings += benchmark.measure(case, DEVICE, compiled=beside)
        except Exception as problem:  # a case that fails must not take the others' figures with it
            failed.append(f"{case}: {type(problem).__name__}: {str(problem)[:300]}")
            print(f"FAILED {failed[-1]}", flush=True)
            continue
        text = write(out, timings, benchmark.environment(DEVICE))
        print(text.splitlines()[-1], flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=440.0, help="end after so long; half of it for the checks")
    parser.add_argument("--check", choices=CHECKS, help="only this check, in this process")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile of the eager forms")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU: nothing was run")
        return 2
    checks = Checklist()
    if given.check:
        checks.run(given.check, CHECKS[given.check])
        return 1 if checks.failed else 0
    given.out.mkdir(parents=True, exist_ok=True)
    middle, ends = BEGAN + given.seconds / 2, BEGAN + given.seconds
    failed = checked([name for name in CHECKS if name != ALONE], given.out, middle)
    failed += checked([ALONE], given.out, middle)
    failed += measured(given.out, ends, given.compile)
    for failure in failed:
        print(f"FAILED {failure}")
    print(f"{len(failed)} failed, {time.perf_counter() - BEGAN:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
