"""Every launcher once, on shapes that fill no tile: for NVIDIA's compute-sanitizer, under which a GPU is slow.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 KDAD_KERNELS=triton \
    compute-sanitizer --tool memcheck python benchmarks/gpu/sanitise.py     # and --tool racecheck
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import neighbours_triton
from kdad_bench.metrics.device import pixel_metrics_on_device
from kdad_bench.metrics.regions import region_index

DEVICE = torch.device("cuda")
NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
FEATURES = (
    (torch.float32, NCHW, (2, 33, 5, 7)),
    (torch.float16, CHANNELS_LAST, (3, 64, 9, 4)),
    (torch.float16, NCHW, (2, 100, 6, 8)),
    (torch.float32, CHANNELS_LAST, (1, 1030, 3, 2)),
)
MAPS = (
    {"sigma": 4.0},
    {"mode": "product"},
    {"sigma": 1.5, "border": "torch", "score": "mean"},
    {"mode": "product", "fuse_size": (16, 16)},
)
SIZES = ((37, 41), (64, 64))  # of whole maps
ROWS = (70, 130, 50)  # queries, memory, values


def drawn(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Noise on the device."""
    return torch.randn(*shape, generator=generator, device=DEVICE)


def features(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Maps, losses and gradients of every shape; returns the last teacher and students."""
    for dtype, layout, shape in FEATURES:
        t, a, b = (drawn(shape, generator).to(dtype, memory_format=layout) for _ in range(3))
        kernels.pixel_discrepancy(t, a)
        kernels.dual_discrepancy(t, a, b)
        kernels.attention_weighting(t, a)
        for kind in ("unit_l2", "flattened"):
            teacher, student = (x.clone().requires_grad_() for x in (t, a))
            (kernels.distillation_loss([teacher], [student], kind=kind) * 3).backward()
    return t, a, b


def maps(t: Tensor, a: Tensor, b: Tensor) -> None:
    """Whole maps by every rule."""
    for options in MAPS:
        for size in SIZES:
            kernels.anomaly_map([t, t], [a, b], size, **options)


def others(generator: torch.Generator) -> None:
    """Nearest rows, by every pair and by products, some of them of rows alike, and pixel metrics."""
    queries, memory = (drawn((rows, ROWS[2]), generator) for rows in ROWS[:2])
    memory[1] = memory[0] + 1e-7
    queries[:3] = memory[0]
    for most in (neighbours_triton.DIRECT, 0):
        neighbours_triton.DIRECT = most
        kernels.nearest(queries, memory)
        kernels.nearest(queries, memory, 3)
    flat = np.zeros((3, 40, 40), dtype=bool)
    flat[:, 5:20, 7:30] = True
    pixel_metrics_on_device(drawn(flat.shape, generator), region_index(flat))


def main() -> None:
    """All of it; prints a line at the end."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    maps(*features(generator))
    others(generator)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
