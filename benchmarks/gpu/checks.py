"""What only a GPU can tell of the kernels' results: launches, graph capture, memory, offsets beyond 2^31.

`kernels.py` runs every check in a process of its own. A check returns a line, or raises for what is not as it should
be. DEVICE and the sizes below are those of a GPU; `rehearse.py` sets others.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import beyond_int32 as far_offsets  # beside this file
import numpy as np
import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import benchmark, benchmark_ops, dispatch, neighbours, ready, reference

DEVICE = torch.device("cuda")
NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
SHAPES = [(2, 64, 33, 31), (1, 3, 7, 5), (3, 100, 1, 1), (2, 512, 9, 8), (1, 2048, 8, 8), (4, 256, 16, 16)]
SIZES = [(256, 256), (251, 130)]  # of whole maps
MIDDLE = (64, 64)  # where some are fused
TIMES = 4  # that a launch from a plan is made on the same tensors
LARGE = (32, 256, 64, 64)  # features whose memory and time are looked at
FAR = far_offsets.Size()
FREE = 40e9  # bytes that FAR needs
ROWS, WIDTH = (8192, 4096), 1024  # queries, memory and values of a nearest-neighbour search
IMAGES = (83, 256, 256)  # maps whose metrics are computed
WORKERS = 4  # processes that share the cases of `agreement`


def pair(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    t = torch.randn(*shape, generator=generator, device=DEVICE)
    s = 0.7 * t + 0.5 * torch.randn(*shape, generator=generator, device=DEVICE)
    return t.to(dtype, memory_format=layout), s.to(dtype, memory_format=layout)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the norm of the whole tensor."""
    found, expected = found.detach(), expected.detach()
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-300))


def demand(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def maps_and_gradients(dtype: torch.dtype, allowed: float, layout: torch.memory_format) -> str:
    """Maps, losses and gradients of every kind against float64, in one dtype and layout; gradients also where no path
    is forced, as nobody does who trains."""
    worst = 0.0
    for shape in SHAPES:
        t, s = pair(shape, dtype, layout)
        for kind in ("unit_l2", "cosine", "l2"):
            found = kernels.pixel_discrepancy(t, s, kind=kind)
            wrong = error(found, reference.pixel_discrepancy(t.double(), s.double(), kind=kind))
            worst = max(worst, wrong)
            demand(wrong < 1e-5, f"map {kind} {shape}: {wrong}")
        for kind in ("unit_l2", "l2", "flattened"):
            oracle = [x.double().requires_grad_() for x in (t, s)]
            expected_loss = reference.distillation_loss([oracle[0]], [oracle[1]], kind=kind)
            expected = torch.autograd.grad(expected_loss * 4096, oracle)
            for path in ("triton", ""):
                mine = [x.detach().requires_grad_() for x in (t, s)]
                with forced(path):
                    loss = kernels.distillation_loss([mine[0]], [mine[1]], kind=kind)
                    gradients = torch.autograd.grad(loss * 4096, mine)
                for g, e in zip(gradients, expected, strict=True):
                    wrong = error(g, e)
                    demand(wrong < allowed, f"gradient {kind} {shape}, {path or 'no'} path forced: {wrong}")
                demand(not dispatch.broken(), f"kernels were replaced: {dispatch.broken()}")
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
    high[1, 7, 2, 3] = torch.inf
    for kind in ("unit_l2", "cosine"):
        found = kernels.pixel_discrepancy(high, high, kind=kind).isnan().nonzero().tolist()
        demand(found == [[1, 2, 3]], f"an infinite value of float16 is NaN at {found}")
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
        {"mode": "product", "fuse_size": MIDDLE},
        {"mode": "product", "sigma": 4.0},
        {"mode": "product", "fuse_size": MIDDLE, "sigma": 2.0, "border": "torch"},
        {"sigma": 4.0, "align_corners": True},
        {"sigma": 4.0, "border": "torch", "score": "mean"},
        {"kind": "l2", "score": "mean"},
    ):
        for size in SIZES:
            for mine, theirs in zip(
                kernels.anomaly_map(t, s, size, **options), reference.anomaly_map(*wide, size, **options), strict=True
            ):
                worst = max(worst, error(mine, theirs))
                demand(error(mine, theirs) < 2e-5, f"{options} {size}: {error(mine, theirs)}")
    return f"worst error {worst:.1e}"


def started(call: Callable[[], object]) -> list[str]:
    """The kernels, copies and fills that a warm call starts, by the profiler but without what it notes of itself."""
    call()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)  # there is one cycle only
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
            call()
            torch.cuda.synchronize()
    names = [e.name for e in recorded.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in names if "kernel" in name or name.startswith("Mem")]


def launches() -> str:
    """Kernels of a whole map with blur, and of a training step's loss."""
    taps = [pair((1, c, side, side), torch.float32, NCHW, c) for c, side in benchmark_ops.RESNET18]
    t, s = [x for x, _ in taps], [x for _, x in taps]
    for options in ({"sigma": 4.0}, {"sigma": 4.0, "mode": "product"}, {"mode": "product", "fuse_size": MIDDLE}):
        names = started(lambda options=options: kernels.anomaly_map(t, s, SIZES[0], **options))
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
    kernels.anomaly_map(t, s, SIZES[0], sigma=4.0)  # its tables are copied to the device
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.anomaly_map(t, s, SIZES[0], sigma=4.0)
        captured = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(captured):
            found, scores = kernels.anomaly_map(t, s, SIZES[0], sigma=4.0)
        for k, x in enumerate(s):
            x.copy_(pair(tuple(x.shape), torch.float32, NCHW, 100 + k)[1])
        captured.replay()
        torch.cuda.synchronize()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, expected_scores = reference.anomaly_map(
        [x.double() for x in t], [x.double() for x in s], SIZES[0], sigma=4.0
    )
    demand(error(found, expected) < 2e-5 and error(scores, expected_scores) < 2e-5, f"{error(found, expected)}")
    return f"error after replay {error(found, expected):.1e}"


def memory() -> str:
    """Peak memory of a training step's loss beyond its gradient."""
    t, s = pair(LARGE, torch.float32, CHANNELS_LAST)
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
    if free < FREE:
        return f"SKIPPED: {free / 1e9:.0f} GB of memory are free, {FREE / 1e9:.0f} needed"
    return far_offsets.run(FAR, DEVICE)


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
    t, s = pair(LARGE, torch.float32, CHANNELS_LAST)
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


def cases() -> list[benchmark_ops.Case]:
    """What is measured, what matters most first: large batches and single images of what the figures are about."""
    found = [case for case in benchmark.cases(DEVICE, quick=False) if case.op != benchmark_ops.NEAR]  # as "discrepancy"
    first = ("discrepancy", "map: sum, blur, max", "loss, forward and backward", "map: product, max")
    return sorted(found, key=lambda c: (c.batch == 8, c.op not in first, c.batch != 32))


def agreement(part: int) -> str:
    """Every case that is measured against float64; its kernels are compiled by the way, before anything is timed."""
    worst = 0.0
    wrong: list[str] = []
    for case in cases()[part::WORKERS]:
        try:
            worst = max(worst, benchmark.checked(case, benchmark_ops.inputs(case, DEVICE, copies=1)[0]))
        except ArithmeticError as problem:
            wrong.append(str(problem))
    demand(not wrong, "; ".join(wrong))
    return f"{len(cases()[part::WORKERS])} cases, worst error {worst:.1e}"


@contextmanager
def launched_by(way: str) -> Iterator[None]:
    """Launches from plans, of calls that are kept ("planned"), or nothing but Triton's own ("official")."""
    from kdad_bench.kernels import triton_launch

    on, said = ready.ON, os.environ.get(triton_launch.SWITCH)
    os.environ[triton_launch.SWITCH] = way
    ready.ON = {DEVICE.type} if way == "planned" else set()
    triton_launch.refusal.cache_clear()
    try:
        yield
    finally:
        ready.ON = on
        os.environ.pop(triton_launch.SWITCH) if said is None else os.environ.update({triton_launch.SWITCH: said})
        triton_launch.refusal.cache_clear()


def launching() -> str:
    """Launches from plans give the bits of Triton's own, for every op."""
    made: dict[str, list[Tensor]] = {}
    for way, times in (("official", 1), ("planned", TIMES)):
        with launched_by(way):
            for dtype, layout in (("fp32", "nchw"), ("fp16", "channels_last")):
                for op in benchmark_ops.OPS:
                    case = benchmark_ops.Case(op=op, shape="resnet18", batch=1, dtype=dtype, layout=layout)
                    sets = benchmark_ops.inputs(case, DEVICE, copies=2)
                    for taps in sets * times:
                        found = benchmark.flattened(benchmark_ops.OPS[op].ours(taps))
                        usual = made.setdefault(f"{op} {dtype} {taps is sets[0]}", found)
                        same = all(torch.equal(a, b) for a, b in zip(found, usual, strict=True))
                        demand(same, f"{op} {dtype} {layout}: launches from plans give other bits")
            said = dispatch.launching()
    return said


def seconds(call: Callable[[], object]) -> float:
    """The least of several calls, each waited for."""
    found = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def nearest_rows() -> str:
    """The nearest row of a memory: the tiles' answer, and the time of a distance matrix and its minimum."""
    generator = torch.Generator(DEVICE).manual_seed(3)
    queries, memory = (torch.randn(n, WIDTH, generator=generator, device=DEVICE) for n in ROWS)
    queries[: len(memory) // 4] = memory[: len(memory) // 4] + 1e-3 * queries[: len(memory) // 4]
    distances, indices = kernels.nearest(queries, memory)
    expected, places = neighbours.blocked(queries, memory)
    demand(torch.equal(indices, places), "another row than by tiles")
    demand(error(distances, expected) < 1e-6, f"distances: {error(distances, expected)}")
    mine = seconds(lambda: kernels.nearest(queries, memory))
    matrix = seconds(lambda: torch.cdist(queries, memory).min(1))
    return f"nearest {1e3 * mine:.2f} ms, cdist and its minimum {1e3 * matrix:.2f} ms, ratio {matrix / mine:.2f}"


def device_metrics() -> str:
    """All pixel metrics on the device, in units of sorting the maps; with torch's own operations the same values."""
    from kdad_bench.metrics.device import pixel_metrics_on_device  # what the metrics need costs this check alone
    from kdad_bench.metrics.regions import region_index

    maps = torch.rand(IMAGES, generator=torch.Generator(DEVICE).manual_seed(4), device=DEVICE)
    sort = seconds(lambda: torch.sort(maps.flatten()))
    said = [f"torch.sort {1e3 * sort:.2f} ms"]
    for part in (2, 10):  # of each side: a quarter and a hundredth of the pixels
        defects = np.zeros(IMAGES, dtype=bool)
        defects[:, IMAGES[1] // 4 :, IMAGES[2] // 4 :][:, : IMAGES[1] // part, : IMAGES[2] // part] = True
        index = region_index(defects)
        first, again = (pixel_metrics_on_device(maps, index) for _ in range(2))
        demand(first == again, "two runs differ")
        with forced("torch"):
            plain = pixel_metrics_on_device(maps, index)
        apart = max(abs(float(first[name] or 0) - float(plain[name] or 0)) for name in plain)
        demand(apart < 1e-12, f"torch's own operations give other values: {apart:.1e}")
        mine = seconds(lambda index=index: pixel_metrics_on_device(maps, index))
        said.append(f"{defects.mean():.0%} defective {1e3 * mine:.2f} ms, ratio {mine / sort:.2f}")
    return ", ".join(said) + " (at most 1.2 wanted)"


@contextmanager
def forced(path: str) -> Iterator[None]:
    """KDAD_KERNELS is `path`; no path is forced if that is empty."""
    said = os.environ.get("KDAD_KERNELS")
    os.environ["KDAD_KERNELS"] = path
    try:
        yield
    finally:
        os.environ.pop("KDAD_KERNELS") if said is None else os.environ.update(KDAD_KERNELS=said)


# Each part compiles kernels of its own: one after the other they took more than 110 s on an H100, side by side 40 s.
PARTS = {
    f"maps_and_gradients {name} {order}": partial(maps_and_gradients, dtype, allowed, layout)
    for name, dtype, allowed in (
        ("fp32", torch.float32, 1e-5), ("fp16", torch.float16, 1e-3), ("bf16", torch.bfloat16, 8e-3),
    )
    for order, layout in (("nchw", NCHW), ("channels_last", CHANNELS_LAST))
}  # fmt: skip
SIDE_BY_SIDE: dict[str, Callable[[], str]] = {
    **PARTS,
    **{f"agreement {part}": partial(agreement, part) for part in range(WORKERS)},
    **{
        check.__name__: check
        for check in (
            precision, magnitudes, whole_maps, launches, graph, memory, beyond_int32, opcheck_and_compile,
        )
    },
}  # fmt: skip
# One after the other: what is timed, and what decides how the rest is launched.
ALONE: dict[str, Callable[[], str]] = {
    check.__name__: check for check in (gradient_in_forward, nearest_rows, device_metrics)
}
CHECKS = {"launching": launching, **SIDE_BY_SIDE, **ALONE}
