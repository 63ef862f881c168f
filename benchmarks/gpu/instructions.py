"""Instructions per pixel of what fusion and blur launch, in the code compiled for a GPU that need not be there.

    python benchmarks/gpu/instructions.py [--arch 90]

Counted in the disassembly by Triton's own nvdisasm: the code has no loop at these sizes. The way of a tile with a NaN,
sample by sample, is left out.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from kdad_bench.kernels import compile_check, triton_path

NVDISASM = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
CASES = (("sum", 4.0, 32), ("sum", 4.0, 1), ("product", None, 32), ("product", None, 1))  # rule, sigma, images


def launches(mode: str, sigma: float | None, batch: int) -> list[compile_check.Launch]:
    """What the maps of ResNet-18's taps are fused by at 256 x 256."""
    log: list[compile_check.Launch] = []
    maps = [torch.empty((batch, side, side), device="meta") for _, side in compile_check.RESNET18]
    scores = torch.empty(batch, device="meta")
    with compile_check.recording(log, mode):
        triton_path.fuse_blur_score(maps, (256, 256), mode, False, sigma, 16, "scipy", "max", scores)
    return log


def instructions(launch: compile_check.Launch, arch: int) -> int:
    """Instructions of one warp."""
    kernel = triton.compile(
        compile_check.source_of(launch), target=GPUTarget("cuda", arch, 32), options=dict(launch.options)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        done = subprocess.run([NVDISASM, "-c", file.name], capture_output=True, text=True, check=True)
    return len(re.findall(r"/\*[0-9a-f]{4,}\*/\s+[^;]+;", done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90)
    arch = parser.parse_args().arch
    print("| fusion | N | launches | tile | warps | registers | instructions of a thread per pixel |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for mode, sigma, batch in CASES:
        log = launches(mode, sigma, batch)
        for launch in log:
            usual = replace(launch, arguments=launch.arguments | {"EXACT": False})
            rows, columns, warps = launch.arguments["BLOCK_Y"], launch.arguments["BLOCK_X"], launch.options["num_warps"]
            per_pixel = instructions(usual, arch) * warps * 32 / (rows * columns)
            registers = compile_check.compiled(launch, arch).registers
            name = f"{mode}, blur" if sigma else mode
            print(f"| {name} | {batch} | {len(log)} | {rows} x {columns} | {warps} | {registers} | {per_pixel:.0f} |")


if __name__ == "__main__":
    main()
