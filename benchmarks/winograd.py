"""3x3 convolutions in a quarter of the products, ours and PyTorch's, in turns: time and rounding.

    python benchmarks/winograd.py [--images 8] [--rounds 9] [--threads 1]

Shapes are those of ResNet-18 and VGG-16 at 256 px, channels_last. Printed are medians of wall time in ms, how many
times as fast ours is, and the root mean square of the errors of both against float64 (of the gradients to image, to
weight), in units of float32's rounding (2^-24) of the values' own root mean square. The transform of the weight is part
of the time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdad_bench.kernels import convolved, winograd

SHAPES = ((64, 64), (128, 32), (256, 16), (64, 256), (128, 128), (256, 64), (512, 32), (512, 16))  # channels, side
PARTS = ("answer", "gradients")
Call = Callable[[nn.Conv2d, Tensor], Tensor]


def by_pytorch(conv: nn.Conv2d, x: Tensor) -> Tensor:
    made: Tensor = conv(x)
    return made


def step(of: Call, conv: nn.Conv2d, x: Tensor, upstream: Tensor) -> tuple[list[Tensor], list[float]]:
    """The answer and the gradients to image and weight, and how long the answer and both gradients took, in s."""
    start = time.perf_counter()
    y = of(conv, x.requires_grad_())
    middle = time.perf_counter()
    gradients = torch.autograd.grad(y, [x, conv.weight], upstream)
    return [y.detach(), *gradients], [middle - start, time.perf_counter() - middle]


def error(found: Tensor, true: Tensor) -> float:
    return float((found - true).square().mean().sqrt() / true.square().mean().sqrt() * 2**24)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if min(vars(options).values()) < 1:
        parser.error("--images, --rounds and --threads: at least 1 each")
    if not winograd.pays():
        parser.error("the C++ kernels or AVX2 are missing here: PyTorch's convolutions run")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, threads {options.threads}, {options.images} images\n")
    print("| channels | side | | PyTorch, ms | ours, ms | as fast | errors, PyTorch's | ours |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|")
    for channels, side in SHAPES:
        conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        x, upstream = (
            torch.randn(options.images, channels, side, side).to(memory_format=torch.channels_last) for _ in range(2)
        )
        exact, _ = step(by_pytorch, copy.deepcopy(conv).double(), x.detach().double(), upstream.double())
        turns = []
        for _ in range(options.rounds):
            turns.append((step(by_pytorch, conv, x, upstream), step(convolved, conv, x, upstream)))
        for part, name in enumerate(PARTS):
            theirs, ours = (statistics.median(turn[who][1][part] for turn in turns) * 1e3 for who in (0, 1))
            errors = [[error(*pair) for pair in zip(turns[0][who][0], exact, strict=True)] for who in (0, 1)]
            said = [f"{one[0]:.1f}" if part == 0 else f"{one[1]:.1f}, {one[2]:.1f}" for one in errors]
            print(
                f"| {channels} | {side} | {name} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f}x | "
                + " | ".join(said) + " |",
                flush=True,
            )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
