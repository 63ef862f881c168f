"""Times the ops against what people write instead and against this run's memory bandwidth. Prints nothing."""

from __future__ import annotations

import math
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import dispatch, reference

RESNET18 = ((64, 64), (128, 32), (256, 16))  # channels and side of layer1-3 at 256 x 256
WIDE_RESNET50 = ((256, 64), (512, 32), (1024, 16))
SHAPES = {"resnet18": RESNET18, "wide_resnet50_2": WIDE_RESNET50}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
SIZE = (256, 256)
SIGMA = 4.0
ROTATION = {"cpu": 96 << 20, "cuda": 512 << 20}  # bytes of inputs to rotate through, so that no cache serves a call
ROUNDS = 3  # the implementations are timed in turn, so that a drift of the machine meets all alike
SECONDS = 0.2  # per implementation and round, and at least FEWEST calls
FEWEST = 4
# With one thread: count the thread's CPU time, which other work on the machine does not lengthen.
SHARED_MACHINE = False
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1.6e-2}  # of outputs in that dtype; maps are float32 always


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is timed."""

    op: str
    shape: str
    batch: int
    dtype: str
    layout: str


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
    copy_gb_per_s: float  # measured in this run, over buffers of the same size
    read_gb_per_s: float
    relative_error: float | None  # of the largest output, against float64; None if it was not checked

    @property
    def gb_per_s(self) -> float:
        """Minimum bytes over median time."""
        return self.minimum_bytes / self.median_us / 1e3


# ---- what people write ---------------------------------------------------------------------------------------------


def paper_distance(t: Tensor, s: Tensor) -> Tensor:
    """As the papers' code has it: two normalised copies, their difference, its square."""
    return 0.5 * (F.normalize(t, dim=1) - F.normalize(s, dim=1)).square().sum(1)


def three_sum_distance(t: Tensor, s: Tensor) -> Tensor:
    """Three reductions and no normalised copy; cancels for near pairs."""
    return 1 - (t * s).sum(1) / ((t * t).sum(1) * (s * s).sum(1)).sqrt()


def paper_flat(t: Tensor, s: Tensor) -> Tensor:
    """The flattened cosine distance [N] by the library function."""
    return 1 - F.cosine_similarity(t.flatten(1), s.flatten(1))


def three_sum_flat(t: Tensor, s: Tensor) -> Tensor:
    """The same from three reductions."""
    dims = (1, 2, 3)
    return 1 - (t * s).sum(dims) / ((t * t).sum(dims) * (s * s).sum(dims)).sqrt()


def separable_blur(maps: Tensor, weights: Tensor) -> Tensor:
    """A padded convolution down and one across."""
    r = weights.numel() // 2
    x = F.pad(maps[:, None], (r, r, r, r), mode="reflect")
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))[:, 0]


def eager_fusion(maps: Sequence[Tensor], mode: str) -> Tensor:
    """Maps upsampled one by one, then added or multiplied."""
    ups = [F.interpolate(m[:, None], SIZE, mode="bilinear", align_corners=False)[:, 0] for m in maps]
    total = ups[0]
    for up in ups[1:]:
        total = total * up if mode == "product" else total + up
    return total


Taps = list[list[Tensor]]  # teacher, student, second student
Call = Callable[[Taps], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """An op and its two eager forms, as functions of the taps."""

    ours: Call
    paper: Call
    three_sum: Call | None
    oracle: Call
    transfers: int  # feature sets that must move
    output_maps: bool = False  # writes [N, 256, 256]
    scale_maps: int = 0  # writes or reads that many sets of per-scale maps
    trains: bool = False


def gradients(loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]) -> Call:
    """Forward and backward of a loss, to the student."""

    def call(taps: Taps) -> Any:
        students = [s.detach().requires_grad_() for s in taps[1]]
        value = loss(taps[0], students)
        return value.detach(), *torch.autograd.grad(value, students)

    return call


def mean_of(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Forward and backward of the mean of `distance` over all scales."""

    def loss(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> Tensor:
        return torch.stack([distance(t, s).float().mean() for t, s in zip(teachers, students, strict=True)]).sum()

    return gradients(loss)


def each(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """`distance` at every scale."""
    return lambda taps: [distance(t, s) for t, s in zip(taps[0], taps[1], strict=True)]


def both(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """`distance` of two students at every scale."""
    return lambda taps: [(distance(t, a), distance(t, b)) for t, a, b in zip(*taps, strict=True)]


def weighting(distance: Callable[[Tensor, Tensor], Tensor]) -> Call:
    """Half the `distance` times the student's features, at every scale."""
    return lambda taps: [(0.5 * distance(t, s)[:, None] * s).to(s.dtype) for t, s in zip(taps[0], taps[1], strict=True)]


def whole(distance: Callable[[Tensor, Tensor], Tensor], mode: str, blurs: bool) -> Call:
    """Distances, fusion, blur and maximum: the map and its scores."""

    def call(taps: Taps) -> Any:
        fused = eager_fusion([distance(t, s).float() for t, s in zip(taps[0], taps[1], strict=True)], mode)
        if blurs:
            fused = separable_blur(fused, blur_kernel(fused.device))
        return fused, fused.amax((1, 2))

    return call


_weights: dict[torch.device, Tensor] = {}


def blur_kernel(device: torch.device) -> Tensor:
    """The weights of the eager blur."""
    if device not in _weights:
        radius = reference.blur_radius(SIGMA)
        _weights[device] = torch.tensor(reference.blur_weights(SIGMA, radius), dtype=torch.float32, device=device)
    return _weights[device]


def double(taps: Taps) -> Taps:
    """The taps in float64."""
    return [[x.double() for x in group] for group in taps]


WHOLE_MAP: dict[str, Any] = {"size": SIZE, "sigma": SIGMA, "border": "torch"}
PRODUCT_MAP: dict[str, Any] = {"size": SIZE, "mode": "product"}

NEAR = "discrepancy of near pairs"
OPS = {
    "discrepancy": Op(
        ours=lambda taps: kernels.pixel_discrepancies(taps[0], taps[1]),
        paper=each(paper_distance),
        three_sum=each(three_sum_distance),
        oracle=each(reference.pixel_discrepancy),
        transfers=2,
        scale_maps=1,
    ),
    NEAR: Op(  # the same, of a student that has learned: channels_last then reads the pixels a second time
        ours=lambda taps: kernels.pixel_discrepancies(taps[0], taps[1]),
        paper=each(paper_distance),
        three_sum=each(three_sum_distance),
        oracle=each(reference.pixel_discrepancy),
        transfers=2,
        scale_maps=1,
    ),
    "loss, forward and backward": Op(
        ours=gradients(kernels.distillation_loss),
        paper=mean_of(paper_distance),
        three_sum=mean_of(three_sum_distance),
        oracle=gradients(reference.distillation_loss),
        transfers=3,
        trains=True,
    ),
    "flattened loss, forward and backward": Op(
        ours=gradients(lambda t, s: kernels.distillation_loss(t, s, kind="flattened")),
        paper=mean_of(paper_flat),
        three_sum=mean_of(three_sum_flat),
        oracle=gradients(lambda t, s: reference.distillation_loss(t, s, kind="flattened")),
        transfers=3,  # where a sample's second reading comes from a cache
        trains=True,
    ),
    "two students": Op(
        ours=lambda taps: kernels.dual_discrepancies(*taps),
        paper=both(paper_distance),
        three_sum=both(three_sum_distance),
        oracle=lambda taps: [reference.dual_discrepancy(t, a, b) for t, a, b in zip(*taps, strict=True)],
        transfers=3,
        scale_maps=2,
    ),
    "attention weighting": Op(
        ours=lambda taps: kernels.attention_weightings(taps[0], taps[1]),
        paper=weighting(lambda t, s: 1 - F.cosine_similarity(t, s)),
        three_sum=weighting(three_sum_distance),
        oracle=lambda taps: [reference.attention_weighting(t, s) for t, s in zip(taps[0], taps[1], strict=True)],
        transfers=3,
    ),
    "map: product, max": Op(
        ours=lambda taps: kernels.anomaly_map(taps[0], taps[1], **PRODUCT_MAP),
        paper=whole(paper_distance, "product", False),
        three_sum=whole(three_sum_distance, "product", False),
        oracle=lambda taps: reference.anomaly_map(taps[0], taps[1], **PRODUCT_MAP),
        transfers=2,
        output_maps=True,
    ),
    "map: sum, blur, max": Op(
        ours=lambda taps: kernels.anomaly_map(taps[0], taps[1], **WHOLE_MAP),
        paper=whole(paper_distance, "sum", True),
        three_sum=whole(three_sum_distance, "sum", True),
        oracle=lambda taps: reference.anomaly_map(taps[0], taps[1], **WHOLE_MAP),
        transfers=2,
        output_maps=True,
    ),
}


# ---- measuring -----------------------------------------------------------------------------------------------------


def minimum_bytes(op: Op, case: Case) -> int:
    """Bytes that must cross the memory bus."""
    features = sum(c * side * side for c, side in SHAPES[case.shape]) * case.batch * DTYPES[case.dtype].itemsize
    maps = sum(side * side for _, side in SHAPES[case.shape]) * case.batch * 4 * op.scale_maps
    return op.transfers * features + maps + (math.prod(SIZE) * case.batch * 4 if op.output_maps else 0)


def inputs(case: Case, device: torch.device) -> list[Taps]:
    """Sets of random taps to rotate through. Only the first values differ between sets: the memory is what matters.

    The distance of a pixel is near 0.08, and near 2e-4 for near pairs.
    """
    apart = 0.02 if case.op == NEAR else 0.3
    generator = torch.Generator(device).manual_seed(0)

    def tap(c: int, side: int, like: Tensor | None) -> Tensor:
        x = torch.randn(case.batch, c, side, side, generator=generator, device=device)
        x = x if like is None else (1 - apart) * like.float() + apart * x
        return x.to(DTYPES[case.dtype], memory_format=LAYOUTS[case.layout])

    students = 2 if case.op == "two students" else 1
    teacher = [tap(c, side, None) for c, side in SHAPES[case.shape]]
    first = [
        teacher,
        *([tap(*cs, t) for cs, t in zip(SHAPES[case.shape], teacher, strict=True)] for _ in range(students)),
    ]
    size = sum(x.numel() * x.element_size() for group in first for x in group)
    copies = max(3, min(64, math.ceil(ROTATION[device.type] / size)))
    return [first, *([[x.clone() for x in group] for group in first] for _ in range(copies - 1))]


def timed(call: Call, sets: list[Taps], device: torch.device) -> list[float]:
    """Microseconds per call. On a GPU between events around a queue of calls, so that launching overlaps with
    running.
    """
    for k in range(3):
        call(sets[k % len(sets)])
    samples: list[float] = []
    if device.type == "cpu":
        end = time.perf_counter() + SECONDS
        clock = time.thread_time if torch.get_num_threads() == 1 and SHARED_MACHINE else time.perf_counter
        while len(samples) < FEWEST or time.perf_counter() < end:
            taps = sets[len(samples) % len(sets)]
            start = clock()
            call(taps)
            samples.append((clock() - start) * 1e6)
        return samples
    torch.cuda.synchronize()
    queue, at = 10, 0
    end = time.perf_counter() + SECONDS
    while len(samples) < FEWEST or time.perf_counter() < end:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        for _ in range(queue):
            call(sets[at % len(sets)])
            at += 1
        after.record()
        after.synchronize()
        samples.append(before.elapsed_time(after) * 1e3 / queue)
    return samples


def as_graph(call: Call, sets: list[Taps]) -> Call:
    """The call on every set in turn, captured in one CUDA graph;
    a replay counts as len(sets) calls (see `timed_graph`).
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for taps in sets[:3]:
            call(taps)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call(taps) for taps in sets]
    return lambda _, graph=graph, kept=kept: graph.replay()  # type: ignore[misc]


def bandwidth(sets: list[Taps], device: torch.device) -> tuple[float, float]:
    """GB/s of copying and of reading buffers of the size of a set, rotating like the ops do."""
    flat = [torch.cat([x.flatten()[: x.numel()] for group in taps for x in group]) for taps in sets[:8]]
    target = torch.empty_like(flat[0])
    size = flat[0].numel() * flat[0].element_size()
    wrapped = [[[x]] for x in flat]
    # Reading: the maximum of 32-bit integers vectorises everywhere and computes next to nothing.
    views = [[[x.view(torch.int32)]] if x.numel() * x.element_size() % 4 == 0 else [[x]] for x in flat]
    copy = statistics.median(timed(lambda taps: target.copy_(taps[0][0]), wrapped, device))
    floats = [[[v[0][0].view(torch.float32)]] for v in views]
    read = min(
        statistics.median(timed(lambda taps: taps[0][0].sum(), floats, device)),
        statistics.median(timed(lambda taps: taps[0][0].amax(), floats, device)),
    )
    return 2 * size / copy / 1e3, size / read / 1e3


def flattened(result: Any) -> list[Tensor]:
    """The tensors of a nested result, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in flattened(part)]


def relative_error(found: Any, expected: Any) -> float:
    """The largest |found - expected| / |expected| over the outputs, in the norm of each output."""
    pairs = list(zip(flattened(found), flattened(expected), strict=True))
    if any(f.shape != e.shape for f, e in pairs):
        return math.inf
    return max(float((f.double() - e).norm() / e.norm().clamp_min(1e-30)) for f, e in pairs)


def measure(
    case: Case, device: torch.device, *, check: bool = True, compiled: bool = True, graphs: bool = False
) -> Iterator[Timing]:
    """Time every implementation of a case, ours first; raises ArithmeticError if `check` and ours is wrong."""
    op = OPS[case.op]
    sets = inputs(case, device)
    error = None
    if check:
        error = relative_error(op.ours(sets[0]), op.oracle(double(sets[0])))
        writes_features = op.trains or case.op == "attention weighting"
        allowed = TOLERANCE[case.dtype] if writes_features else TOLERANCE["fp32"]
        if case.dtype == "fp16" and op.trains:
            allowed = 0.1  # the gradient of a mean without loss scale sits among the subnormals of float16
        if not error <= allowed:
            raise ArithmeticError(f"{case}: relative error {error:.1e} against float64, {allowed:.0e} allowed")
    copy, read = bandwidth(sets, device)
    shown = kernels.path(device)
    calls: dict[str, Call] = {f"kdad ({shown})": op.ours, "eager as papers": op.paper}
    if op.three_sum is not None:
        calls["eager three sums"] = op.three_sum
    if compiled:
        calls["compiled as papers"] = compiled_call(op.paper)
        if op.three_sum is not None:
            calls["compiled three sums"] = compiled_call(op.three_sum)
    if graphs and not op.trains:
        calls["kdad, CUDA graph"] = as_graph(op.ours, sets)
        calls["eager as papers, CUDA graph"] = as_graph(op.paper, sets)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            taken[name] += timed(call, sets, device)
    for name, call in calls.items():
        samples = [x / len(sets) for x in taken[name]] if "graph" in name else taken[name]
        cuts = statistics.quantiles(samples, n=5)
        yield Timing(
            case=case,
            implementation=name,
            median_us=statistics.median(samples),
            p20_us=cuts[0],
            p80_us=cuts[3],
            calls=len(samples),
            minimum_bytes=minimum_bytes(op, case),
            copy_gb_per_s=copy,
            read_gb_per_s=read,
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
        row += [ratio(mine[o].median_us / ours.median_us) if o in mine else "" for o in others]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)
