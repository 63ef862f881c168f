"""What Python takes to start the kernels of an eager call, on a machine without a GPU: the launch itself does nothing.

    python benchmarks/gpu/host.py [--calls 60] [--profile OP]

Kernels are compiled for sm_90 and never loaded; tensors lie on the CPU. Counted is the process's CPU time of everything
before the driver's call, the least of several rounds: with it, with the CUDA allocator and with the change of device
come a few microseconds per launch.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kdad_bench import kernels
from kdad_bench.kernels import benchmark_ops, dispatch, losses, ready

ROUNDS = 25


class NoLauncher:
    """Takes a launch and does nothing."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.launched = 0

    def __call__(self, gridX: int, gridY: int, gridZ: int, stream: int, function: int, *arguments: Any) -> None:
        self.launched += 1


class NoDriver:
    """What Triton asks of a driver, of a GPU that is not there."""

    launcher_cls = NoLauncher
    utils = SimpleNamespace(
        load_binary=lambda *_: (1, 1, 32, 0, 1024),
        unload_module=lambda _: None,
        get_device_properties=lambda _: {"max_shared_mem": 232_448},
    )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def stub() -> None:
    """Let tensors of the CPU take Triton's path, whose launches go nowhere."""
    driver.set_active(NoDriver())
    dispatch.path = lambda device="cpu": "triton"
    losses.is_one = lambda upstream: False  # nobody asks a GPU
    ready.ON = {"cpu"}


def microseconds(call: Any, taps: Any, calls: int) -> float:
    """CPU time of a call, the least of several rounds."""
    call(taps)
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(calls):
            call(taps)
        found.append((time.process_time() - start) / calls * 1e6)
    return min(found)


def trained(taps: Any) -> Any:
    """Forward and backward of a loss of two students."""
    several = [[s.detach().requires_grad_() for s in group] for group in taps[1:]]
    return torch.autograd.grad(kernels.dual_distillation_loss(taps[0], *several), [*several[0], *several[1]])


MAPS = [torch.rand(1, side, side) for _, side in benchmark_ops.RESNET18]
OPS: dict[str, Any] = {
    "pixel_discrepancy": lambda taps: kernels.pixel_discrepancy(taps[0][0], taps[1][0]),
    "pixel_discrepancies": benchmark_ops.OPS["discrepancy"].ours,
    "dual_discrepancies": benchmark_ops.OPS["two students"].ours,
    "flattened_cosine": lambda taps: kernels.flattened_cosine(taps[0][0], taps[1][0]),
    "attention_weightings": benchmark_ops.OPS["attention weighting"].ours,
    "fuse_scales": lambda taps: kernels.fuse_scales(MAPS, benchmark_ops.SIZE),
    "gaussian_blur": lambda taps: kernels.gaussian_blur(MAPS[0], 4.0),
    "anomaly_map, product": benchmark_ops.OPS["map: product, max"].ours,
    "anomaly_map, sum and blur": benchmark_ops.OPS["map: sum, blur, max"].ours,
    "distillation_loss": lambda taps: kernels.distillation_loss(taps[0], taps[1]),
    "distillation_loss and backward": benchmark_ops.OPS["loss, forward and backward"].ours,
    "flattened distillation_loss and backward": benchmark_ops.OPS["flattened loss, forward and backward"].ours,
    "dual_distillation_loss and backward": trained,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=60, help="per round")
    parser.add_argument("--profile", help="also where the time of this op goes")
    given = parser.parse_args()
    stub()
    torch.set_num_threads(1)
    print("| op | us of CPU |\n| --- | ---: |")
    case = benchmark_ops.Case(op="two students", shape="resnet18", batch=1, dtype="fp32", layout="channels_last")
    taps = benchmark_ops.inputs(case, torch.device("cpu"), copies=1)[0]
    for name, call in OPS.items():
        print(f"| {name} | {microseconds(call, taps, given.calls):.1f} |", flush=True)
        if given.profile == name:
            with cProfile.Profile() as profile:
                for _ in range(given.calls):
                    call(taps)
            pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
