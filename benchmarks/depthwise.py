"""The gradient to the weights of depthwise convolutions, ours and PyTorch's, in turns.

    python benchmarks/depthwise.py [--images 8] [--rounds 15] [--threads 1]

Shapes are those of EfficientNet-Lite0 at 256 px, channels_last. Printed are medians of wall time in ms and their
ratio; where the two differ by more than 1e-4 of the largest value it says so and ends with 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kdad_bench.kernels import cpp_layers

SHAPES = (
    (3, 32, 128),
    (3, 144, 64),
    (5, 240, 32),
    (3, 240, 32),
    (3, 480, 16),
    (5, 480, 16),
    (5, 672, 16),
)  # kernel, channels, side


def seconds(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if min(vars(options).values()) < 1:
        parser.error("--images, --rounds and --threads: at least 1 each")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    wrong = 0
    print(f"torch {torch.__version__}, threads {options.threads}, {options.images} images\n")
    print("| kernel | channels | side | PyTorch, ms | ours, ms | as fast |\n|---|---:|---:|---:|---:|---:|")
    for size, channels, side in SHAPES:
        x, above = (
            torch.randn(options.images, channels, side, side).to(memory_format=torch.channels_last) for _ in range(2)
        )
        pads = (size // 2, size // 2)

        def ours(x: Tensor = x, above: Tensor = above, size: int = size, pads: tuple[int, int] = pads) -> Tensor:
            found = cpp_layers.depthwise_weight_gradient(above, x, size, 1, *pads)
            assert found is not None, "channels come in sixteens here"
            return found

        def theirs(x: Tensor = x, above: Tensor = above, shape: tuple[int, ...] = (channels, 1, size, size)) -> Tensor:
            return torch.nn.grad.conv2d_weight(x, shape, above, padding=shape[2] // 2, groups=shape[0])

        difference = ((ours().view(-1) - theirs().reshape(-1)).abs().max() / theirs().abs().max()).item()
        if difference > 1e-4:
            print(f"{size}x{size}, {channels} channels: the two differ by {difference:.1e} of the largest value")
            wrong = 1
        times = [(seconds(theirs), seconds(ours)) for _ in range(options.rounds)]
        other, own = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
        print(f"| {size}x{size} | {channels} | {side} | {other:.2f} | {own:.2f} | {other / own:.1f}x |", flush=True)
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
