"""Compiles every kernel, as its launcher would launch it, for a GPU that is not there.

The launchers of `triton_path.py` run on tensors without memory (device "meta"); what they would launch is recorded and
specialised by Triton's own rules, so that what ships is what is checked. Run it in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kdad_bench.kernels import (
    fusion_kernels,
    neighbours_kernels,
    ranks_triton,
    triton_fusion,
    triton_kernels,
    triton_path,
)
from kdad_bench.kernels import neighbours_triton as neighbours

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
SHARED_LIMIT = 232_448  # bytes a block may use on sm_90
RESNET18 = ((64, 64), (128, 32), (256, 16))  # channels and side of the taps at 256 x 256
WIDE_RESNET50 = ((256, 64), (512, 32), (1024, 16))
DEEP = ((2048, 8),)
ODD = ((24, 7), (3, 31))  # no stride divisible by 16: the narrow loads


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one compiled kernel needs."""

    kernel: str
    case: str
    arch: int
    registers: int
    stack_bytes: int  # spills live here: 0 is wanted
    shared_bytes: int
    widest_load_bytes: int
    loads: int
    wide_loads: int  # of 16 bytes
    atomics: int  # read-modify-write instructions on global memory
    warpgroup_products: int  # wgmma, of sm_90 alone
    raises: bool  # whether it takes the images' maxima, the one thing that programs write together
    warps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """A recorded launch."""

    case: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


@contextmanager
def recording(log: list[Launch], case: str) -> Iterator[None]:
    """Within it the launchers of this room launch nothing and write into `log`."""

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Callable[..., None]:
            def record(*positional: Any, **named: Any) -> None:
                options = {name: named.pop(name) for name in OPTIONS if name in named}
                arguments = dict(zip(self.kernel.arg_names, positional, strict=False)) | named
                log.append(Launch(case=case, kernel=self.kernel, arguments=arguments, options=options))

            return record

    def recorders(kernels: Any) -> SimpleNamespace:
        names = [name for name in dir(kernels) if name.endswith("_kernel")]
        return SimpleNamespace(**{name: Recorder(getattr(kernels, name)) for name in names})

    places = (
        (triton_path, "triton_kernels", triton_kernels, recorders(triton_kernels)),
        (triton_fusion, "fusion_kernels", fusion_kernels, recorders(fusion_kernels)),
        (neighbours, "neighbours_kernels", neighbours_kernels, recorders(neighbours_kernels)),
        *(
            (ranks_triton, name, getattr(ranks_triton, name), Recorder(getattr(ranks_triton, name)))
            for name in dir(ranks_triton)
            if name.endswith("_kernel")
        ),
    )
    for module, name, _, recorder in places:
        setattr(module, name, recorder)
    try:
        yield
    finally:
        for module, name, real, _ in places:
            setattr(module, name, real)


def specialised(value: Any, place: tuple[int, ...], constants: dict[Any, Any], hints: dict[Any, Any]) -> Any:
    """The type of an argument in a kernel's signature; constants and hints go into the two dictionaries."""
    if isinstance(value, tuple):
        return tuple(specialised(v, (*place, i), constants, hints) for i, v in enumerate(value))
    if isinstance(value, Tensor):
        hints[place] = [["tt.divisibility", 16]]  # torch allocates to 64 bytes or more
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1:
        constants[place] = 1
        return "constexpr"
    if value % 16 == 0:
        hints[place] = [["tt.divisibility", 16]]
    return integer(value)


def integer(value: int) -> str:
    """Its type in a signature."""
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def source_of(launch: Launch) -> ASTSource:
    """What the JIT would compile for a launch."""
    signature: dict[str, Any] = {}
    constants: dict[Any, Any] = {}
    hints: dict[Any, Any] = {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif parameter.do_not_specialize:
            signature[parameter.name] = integer(value)
        else:
            signature[parameter.name] = specialised(value, (i,), constants, hints)
    return ASTSource(launch.kernel, signature, constants, hints)


def as_on(launch: Launch, arch: int) -> Launch:
    """As a GPU of this generation would launch it: tiles of the search for neighbours have a shape for each."""
    if launch.arguments.get("BLOCK_Q") != neighbours.HOPPER.queries:
        return launch
    shape = neighbours.shape_of(arch // 10).constants
    options = {name: shape.get(name, value) for name, value in launch.options.items()}
    arguments = {name: shape.get(name, value) for name, value in launch.arguments.items()}
    return Launch(case=launch.case, kernel=launch.kernel, arguments=arguments, options=options)


def compiled(launch: Launch, arch: int) -> Report:
    """Compile a launch for compute capability `arch` (80, 90, 100)."""
    launch = as_on(launch, arch)
    kernel = triton.compile(source_of(launch), target=GPUTarget("cuda", arch, 32), options=dict(launch.options))
    usage = resource_usage(kernel.asm["cubin"])
    widths = [
        load_bytes(match) for match in re.finditer(r"ld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s", kernel.asm["ptx"])
    ]
    return Report(
        kernel=launch.kernel.__name__,
        case=launch.case,
        arch=arch,
        registers=usage["REG"],
        stack_bytes=usage["STACK"] + usage["LOCAL"],
        shared_bytes=kernel.metadata.shared,
        widest_load_bytes=max(widths, default=0),
        loads=len(widths),
        wide_loads=sum(w >= 16 for w in widths),
        atomics=len(re.findall(r"\b(?:atom|red)\.\S*global\S*", kernel.asm["ptx"])),
        warpgroup_products=kernel.asm["ptx"].count("wgmma.mma_async"),
        raises=bool(launch.arguments.get("MAXIMUM", False)),
        warps=kernel.metadata.num_warps,
    )


def load_bytes(match: re.Match[str]) -> int:
    """Bytes of a load in PTX: elements of a vector times their bits."""
    return int(match[1] or 1) * int(match[2]) // 8


def resource_usage(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a cubin, by the cuobjdump in Triton's wheel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", done.stdout)}


def taps(
    shapes: tuple[tuple[int, int], ...], batch: int, dtype: torch.dtype, layout: torch.memory_format
) -> list[Tensor]:
    """Feature maps without memory."""
    return [torch.empty((batch, c, h, h), dtype=dtype, device="meta", memory_format=layout) for c, h in shapes]


LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHAPES = {"resnet18": RESNET18, "wide_resnet50": WIDE_RESNET50, "deep": DEEP, "odd": ODD}


def feature_launches(shape: str, batch: int, dtype: str, layout: str) -> list[Launch]:
    """Every launch that reads features, for one set of taps."""
    log: list[Launch] = []
    t = taps(SHAPES[shape], batch, DTYPES[dtype], LAYOUTS[layout])
    s, b = [torch.empty_like(x) for x in t], [torch.empty_like(x) for x in t]
    label = f"{shape} N={batch} {dtype} {layout}"
    with recording(log, label):
        for kind in ("unit_l2", "l2"):
            triton_path.pixel_maps(t, [[x] for x in s], kind, 1.0)
            triton_path.pixel_loss(t, [[x] for x in s], kind, [1.0] * len(t), (False, True))
    with recording(log, label + " two students"):
        triton_path.pixel_maps(t, list(map(list, zip(s, b, strict=True))), "cosine", 1.0)
    with recording(log, label + " both gradients"):
        for x, y in zip(t, s, strict=True):
            above = torch.empty((), device="meta").expand(x.shape[0], x.shape[2], x.shape[3])
            triton_path.pixel_gradients(x, y, above, "cosine", 1.0, (True, True))
    with recording(log, label + " attention"):
        triton_path.attention_weighting(t, s)
    with recording(log, label + " flattened"):
        sums = triton_path.flat_sums(t, [[x] for x in s])
        above = torch.empty((), device="meta").expand(t[0].shape[0])
        triton_path.flat_gradients(t[0], s[0], sums[0][0][0], above, 1.0, (True, True))
    with recording(log, label + " scaled"):
        triton_path.scale_in_place([s[0]], torch.empty((), device="meta"))
    return log


def map_launches(shape: str, batch: int, rules: tuple[str, ...] = ("max", "mean")) -> list[Launch]:
    """Every launch that reads maps: fusion, blur, scores."""
    log: list[Launch] = []
    maps = [torch.empty((batch, h, h), device="meta") for _, h in SHAPES[shape]]
    scores = torch.empty(batch, device="meta")
    for mode, align in (("product", False), ("sum", True)):
        for sigma in (None, 4.0):
            for rule in rules:
                with recording(log, f"{shape} N={batch} {mode} {rule}{' blur' if sigma else ''}"):
                    triton_path.fuse_blur_score(maps, (256, 256), mode, align, sigma, 16, "scipy", rule, scores)
    with recording(log, f"{shape} N={batch} product at its first map's size"):
        middle = (maps[0].shape[1], maps[0].shape[2])
        triton_path.fuse_blur_score(maps, (256, 256), "product", False, None, 0, "scipy", "max", scores, middle)
    with recording(log, f"{shape} N={batch} product with a wider filter"):
        triton_path.fuse_blur_score(maps, (256, 256), "product", False, 6.0, 24, "scipy", "max", scores)
    with recording(log, f"{shape} N={batch} blur alone, torch border"):
        triton_path.fuse_blur_score(
            maps[:1], (maps[0].shape[1], maps[0].shape[2]), "sum", False, 4.0, 16, "torch", None
        )
    with recording(log, f"{shape} N={batch} a filter as wide as the map"):
        triton_path.fuse_blur_score(maps, (256, 256), "sum", False, 40.0, 160, "scipy", "max", scores)
    with recording(log, f"{shape} N={batch} larger maps"):
        triton_path.fuse_blur_score(maps, (6, 6), "product", False, None, 0, "scipy", "max", scores)
    return log


def neighbour_launches(n: int, c: int, answered_only: bool = False) -> list[Launch]:
    """The launches of a nearest-neighbour search, n queries of c values: for one clear neighbour, or all there are."""
    log: list[Launch] = []
    with recording(log, f"nearest {n} x 4096 x {c}"):
        queries, memory = torch.empty(n, c, device="meta"), torch.empty(4096, c, device="meta")
        search = neighbours.Search.of(queries, memory)
        found = neighbours.answered(search)
        if answered_only:
            return log[1:]  # without the centre, which is no work
        neighbours.settle(search, found, 100)
        search.said(0, n)
        neighbours.pairs(queries, memory, None, None)
        row = torch.empty(n, dtype=torch.int64, device="meta")
        neighbours.pairs(queries, memory, row, row)
    return log


def rank_launches() -> list[Launch]:
    """Every launch of the pixel metrics: maps in one chunk and in several, of either dtype."""
    log: list[Launch] = []
    order, weights = (torch.empty(9, dtype=dtype, device="meta") for dtype in (torch.int64, torch.float64))
    for dtype in (torch.float32, torch.float64):
        scores = torch.empty(9, dtype=dtype, device="meta")
        for chunks in (1, 2):
            ranked = ranks_triton.Ranked(scores, order, weights, 9, chunks == 1)
            with recording(log, f"ranks in {chunks} chunks, {dtype}"):
                ranks_triton.added_up(ranked, [scores] * chunks, chunks, (0.3, 0.05))
    return log


def distinct(launches: list[Launch]) -> list[Launch]:
    """The launches that differ in what is compiled."""
    seen: dict[Any, Launch] = {}
    for launch in launches:
        source = source_of(launch)
        key = (
            launch.kernel.__name__,
            str(source.signature),
            str(source.constants),
            str(source.attrs),
            str(launch.options),
        )
        seen.setdefault(key, launch)
    return list(seen.values())


# Both tile sizes and the channel loop, each in one of two pairs of dtype and layout.
QUICK = ((("resnet18", 32),), (("resnet18", 1), ("deep", 8)))


def shipped(quick: bool = False) -> list[Launch]:
    """Every configuration of the launch tables; `quick`: each with one or two of the six pairs of dtype and layout."""
    pairs = [(dtype, layout) for dtype in DTYPES for layout in LAYOUTS]
    if quick:
        pairs = [("fp32", "nchw"), ("bf16", "channels_last")]
    log: list[Launch] = []
    for i, (dtype, layout) in enumerate(pairs):
        for shape, batch in (("resnet18", 1), ("resnet18", 32), ("deep", 8), ("wide_resnet50", 8), ("odd", 2)):
            if not quick or (shape, batch) in QUICK[i]:
                log += feature_launches(shape, batch, dtype, layout)
    log += map_launches("resnet18", 32, ("max",)) if quick else map_launches("resnet18", 32)
    log += neighbour_launches(40_000, 1024, answered_only=quick) + rank_launches()
    if not quick:
        log += neighbour_launches(40_000, 65)
        log += map_launches("resnet18", 1) + map_launches("odd", 2)
    return distinct(log)
