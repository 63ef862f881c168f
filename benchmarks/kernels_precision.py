"""The largest relative error per pixel against float64, near and far: `python benchmarks/kernels_precision.py`.

With TRITON_INTERPRET=1 the Triton kernels are measured too, on fewer pixels.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import cpp_path, reference
from kdad_bench.kernels.benchmark_ops import three_sum_distance

DISTANCES = (1e-2, 1e-4, 1e-6)


def near_pair(distance: float, batch: int) -> tuple[Tensor, Tensor]:
    """256 channels, 1 - cos about `distance` everywhere, lengths that differ."""
    generator = torch.Generator().manual_seed(1)
    t, noise = (torch.randn(batch, 256, 16, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    noise -= (noise * t).sum(1, keepdim=True) / t.square().sum(1, keepdim=True) * t
    noise *= (t.square().sum(1, keepdim=True) / noise.square().sum(1, keepdim=True)).sqrt() * (2 * distance) ** 0.5
    return t.float(), (1.7 * (t + noise)).float()


def worst(found: Tensor, expected: Tensor) -> str:
    return f"{float(((found.double() - expected) / expected).abs().max()):.1e}"


def main() -> None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    paths = ["torch", *(["cpp"] if cpp_path.missing() is None else []), *(["triton"] if interpreted else [])]
    print("| d | three sums in float32 | " + " | ".join(f"{p}: pixel, flattened" for p in paths) + " |")
    print("|" + " --- |" * (2 + len(paths)))
    for distance in DISTANCES:
        t, s = near_pair(distance, 1 if interpreted else 4)
        expected = reference.pixel_discrepancy(t.double(), s.double())
        flat = reference.flattened_cosine(t.double(), s.double())
        row = [f"{distance:.0e}", worst(three_sum_distance(t, s), expected)]
        for path in paths:
            os.environ["KDAD_KERNELS"] = path
            row.append(
                f"{worst(kernels.pixel_discrepancy(t, s), expected)}, {worst(kernels.flattened_cosine(t, s), flat)}"
            )
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
