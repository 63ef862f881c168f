"""Instructions per pixel of what fusion and blur launch, in the code compiled for a GPU that need not be there.

    python benchmarks/gpu/instructions.py [--arch 90]

Counted in the disassembly by Triton's own nvdisasm. The one loop here is that over pieces of a fused map; what
lies in it is counted as often as it runs. The way of a tile with a NaN, sample by sample, is left out.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget

from kdad_bench.kernels import compile_check, triton_fusion, triton_path

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


def repeats(launch: compile_check.Launch) -> int:
    """How often the loop over pieces of the fused map runs."""
    rows, columns, piece_rows, piece_columns, *_ = launch.arguments.get("OUTER", (1, 1, 1, 1))
    return int(rows * columns // (piece_rows * piece_columns))


def instructions(launch: compile_check.Launch, arch: int) -> int:
    """Instructions of one warp."""
    kernel = triton.compile(
        compile_check.source_of(launch), target=GPUTarget("cuda", arch, 32), options=dict(launch.options)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        done = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True)
    code: list[str] = []
    places: dict[str, int] = {}
    for line in done.stdout.splitlines():
        if found := re.search(r"/\*[0-9a-f]{4,}\*/\s+([^;]+);", line):
            code.append(found[1])
        elif found := re.match(r"\s*(\.L_x_\d+):", line):
            places[found[1]] = len(code)
    jumps = ((re.search(r"BRA.*(\.L_x_\d+)", one), at) for at, one in enumerate(code))
    loops = [at + 1 - places[to[1]] for to, at in jumps if to and places[to[1]] < at]
    return len(code) + (repeats(launch) - 1) * max(loops, default=0)


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
