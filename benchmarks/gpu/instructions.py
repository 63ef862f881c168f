"""Instructions per pixel of what fusion and blur launch, in the code compiled for a GPU that need not be there.

    python benchmarks/gpu/instructions.py [--arch 90]

Counted in the disassembly by Triton's own nvdisasm. What lies in a loop, over pieces of a map or of a fused one, is
counted as often as that runs. The way of a tile with a NaN, sample by sample, is left out.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from kdad_bench.kernels import compile_check, fusion_kernels, triton_fusion, triton_path

NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
CASES = (  # rule, sigma, size at which maps are fused, images
    ("sum", 4.0, None, 32), ("sum", 4.0, None, 1), ("product", None, None, 32), ("product", None, None, 1),
    ("product", 4.0, None, 32), ("product", 4.0, None, 1),
    ("product", None, (64, 64), 32), ("product", None, (64, 64), 1),
)  # fmt: skip
ONE_LAUNCH_MORE = 0  # of `triton_fusion.MOST_MADE`: then products are fused in a launch of their own


def launches(mode: str, sigma: float | None, middle: tuple[int, int] | None, batch: int) -> list[compile_check.Launch]:
    """What the maps of ResNet-18's taps are fused by at 256 x 256."""
    log: list[compile_check.Launch] = []
    maps = [torch.empty((batch, side, side), device="meta") for _, side in compile_check.RESNET18]
    scores = torch.empty(batch, device="meta")
    with compile_check.recording(log, mode):
        triton_path.fuse_blur_score(maps, (256, 256), mode, False, sigma, 16, "scipy", "max", scores, middle)
    return log


def trips(launch: compile_check.Launch) -> list[int]:
    """How often each loop runs in the order of the code, an outer one before its inner one; once is no loop."""
    given = launch.arguments
    if launch.kernel is fusion_kernels.twofold_kernel and not given["TABLES"]:
        every = [given["BLOCK_Y"] // fusion_kernels.FEW_ROWS.value]
        return [times for times in every if times > 1]
    tables = given.get("OUTER") or given.get("SHAPES") or ()  # six constants of `fusion_kernels.folded` for each map
    every = (tables[at + way] // tables[at + 2 + way] for at in range(0, len(tables), 6) for way in (0, 1))
    return [times for times in every if times > 1]


def instructions(launch: compile_check.Launch, arch: int) -> int:
    """Instructions of one warp."""
    kernel = triton.compile(
        compile_check.source_of(launch), target=GPUTarget("cuda", arch, 32), options=dict(launch.options)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        done = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True)
    return carried_out(done.stdout, trips(launch))


def carried_out(disassembly: str, trips: Sequence[int]) -> int:
    """Instructions of `disassembly`, each as often as the loops around it run.

    Raises ValueError where it has other loops than are said: the compiler unrolled one, or knows more of them.
    """
    code: list[str] = []
    places: dict[str, int] = {}
    for line in disassembly.splitlines():
        if found := re.search(r"/\*[0-9a-f]{4,}\*/\s+([^;]+);", line):
            code.append(found[1])
        elif found := re.match(r"\s*(\.L_x_\d+):", line):
            places[found[1]] = len(code)
    jumps = ((re.search(r"BRA.*(\.L_x_\d+)", one), at) for at, one in enumerate(code))
    # a jump to itself is where every code ends
    loops = sorted((places[to[1]], -at) for to, at in jumps if to and places[to[1]] < at)
    if len(loops) != len(trips):
        raise ValueError(f"{len(loops)} loops in the code in place of {len(trips)}")
    times = [1] * len(code)
    for (first, last), each in zip(loops, trips, strict=True):
        for at in range(first, 1 - last):
            times[at] *= each
    return sum(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90)
    arch = parser.parse_args().arch
    print("| fusion | N | launch | tile | warps | registers | instructions of a thread per pixel |")
    print("| --- | ---: | --- | --- | ---: | ---: | ---: |")
    for case in CASES:
        for most in {triton_fusion.MOST_MADE, ONE_LAUNCH_MORE} if case[0] == "product" else {triton_fusion.MOST_MADE}:
            with patch.object(triton_fusion, "MOST_MADE", most):
                triton_fusion.steps_of.cache_clear()
                log = launches(*case)
            if most == ONE_LAUNCH_MORE and len(log) == 1:
                continue
            for number, launch in enumerate(log, 1):
                print(row(case, f"{number} of {len(log)}", launch, arch), flush=True)


def row(case: tuple[Any, ...], which: str, launch: compile_check.Launch, arch: int) -> str:
    """A launch's row of the table."""
    mode, sigma, middle, batch = case
    usual = replace(launch, arguments=launch.arguments | {"EXACT": False})
    rows, columns, warps = launch.arguments["BLOCK_Y"], launch.arguments["BLOCK_X"], launch.options["num_warps"]
    per_pixel = instructions(usual, arch) * warps * 32 / (rows * columns)
    registers = compile_check.compiled(launch, arch).registers
    name = mode + (", blur" if sigma else "") + (f", fused at {middle[0]} x {middle[1]}" if middle else "")
    return f"| {name} | {batch} | {which} | {rows} x {columns} | {warps} | {registers} | {per_pixel:.0f} |"


if __name__ == "__main__":
    main()
