"""A training step and a scoring of ResNet-18 with and without the joined norms, additions and pooling, in turns.

    python benchmarks/joined_norms.py [--images 16] [--side 256] [--rounds 6] [--threads 1]

Without them PyTorch's own run (`kernels/residual.py` is told that no tensor suits it), in the same process and with the
same weights. The step is forward and backward of the student's part of the network, taps at strides 4, 8 and 16, with
the mean of squares as the loss; the scoring is that of the folded copy without gradients. Printed are medians of CPU
seconds and their ratio; the answers have to be equal to the last bit, else it says so and ends with 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor

from kdad_bench.harness.environment import keep_freed_memory
from kdad_bench.kernels import residual
from kdad_bench.methods.backbones.folding import folded
from kdad_bench.methods.backbones.resnet import ResNet


@contextmanager
def turned_off() -> Iterator[None]:
    """Inside, nothing is joined."""
    with patch.multiple(residual, exact=lambda x: False, fits=lambda x: False):
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    keep_freed_memory()  # as every job does
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    network = ResNet("resnet18", (4, 8, 16)).to(memory_format=torch.channels_last)
    scorer = folded(network.eval())
    images = torch.rand(given.images, 3, given.side, given.side).contiguous(memory_format=torch.channels_last)
    network.train()

    def step() -> list[Tensor]:
        network.zero_grad()
        torch.stack([(tap * tap).mean() for tap in network.taps(images)]).sum().backward()
        return [value.grad.clone() for value in network.parameters() if value.grad is not None]

    def score() -> list[Tensor]:
        with torch.inference_mode():
            return [tap.clone() for tap in scorer.taps(images)]

    print(f"{given.images} images of {given.side} px, {given.threads} thread(s), {given.rounds} rounds, CPU seconds\n")
    print("| what | PyTorch's | joined | as fast |\n|---|---:|---:|---:|")
    alike = True
    for name, work in (("training step", step), ("scoring", score)):
        took, same = in_turns(work, given.rounds)
        alike = alike and same
        plain, joined = (statistics.median(seconds) for seconds in took)
        print(f"| {name} | {plain:.3f} | {joined:.3f} | {plain / joined:.2f}x |")
    if not alike:
        print("\nthe answers differ")
    return 0 if alike else 1


def in_turns(work: Callable[[], list[Tensor]], rounds: int) -> tuple[tuple[list[float], list[float]], bool]:
    """((CPU seconds without, with the joined kernels), whether both answered the same to the last bit)."""
    took: tuple[list[float], list[float]] = [], []
    found: list[list[Tensor]] = [[], []]
    for turn in range(rounds + 1):
        for way, during in enumerate((turned_off, nullcontext)):
            with during():
                began = time.process_time()
                found[way] = work()
                if turn:  # the first is cold
                    took[way].append(time.process_time() - began)
    return took, all(map(torch.equal, *found))


if __name__ == "__main__":
    raise SystemExit(main())
