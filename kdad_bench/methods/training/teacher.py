"""The frozen teacher, and the cache of its features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import Backbone
from kdad_bench.methods.backbones.folding import Folded
from kdad_bench.methods.training.settings import Taps

CACHE_BYTES = 4 << 30  # teacher features above this are recomputed per batch; a constant, so that results repeat
CACHE_CHUNK = 32  # images per teacher pass when the cache is filled
LEAST_DEVIATION = 1e-6  # what never varies is centred and not scaled


class Teacher(nn.Module):
    """The frozen teacher, always in eval mode; its folded copy does the work, its taps are standardised if asked for.

    `network` stays as it was handed in, bit for bit; nothing of a teacher is ever trained.
    """

    def __init__(self, network: Backbone, standardise: bool) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.standardise = standardise
        self.folded = Folded(network)
        for k, channels in enumerate(network.channels):
            self.register_buffer(f"centre{k}", torch.zeros(channels))
            self.register_buffer(f"deviation{k}", torch.ones(channels))

    def train(self, mode: bool = True) -> Teacher:
        """Eval mode whatever is asked for: its batch norms' buffers are frozen too."""
        return super().train(False)

    def forward(self, images: Tensor) -> Taps:
        """Taps of `images` [N, 3 M, S, S] in [0, 1], of their first three channels.

        No gradient reaches the teacher's weights, the images' flows.
        """
        found = []
        for k, tap in enumerate(self.folded(photographs(images))):
            if self.standardise:
                centre, deviation = getattr(self, f"centre{k}"), getattr(self, f"deviation{k}")
                tap = (tap - centre.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
            found.append(tap)
        return tuple(found)

    @torch.no_grad()
    def learn_statistics(self, images: Tensor) -> None:
        """Set centre and deviation of every channel from the raw taps of `images` (normals, nothing else)."""
        sums: list[Tensor] = []
        squares: list[Tensor] = []
        counts: list[int] = []
        for chunk in chunks(images, CACHE_CHUNK):
            for k, tap in enumerate(self.folded(photographs(chunk))):
                if k == len(sums):
                    sums.append(torch.zeros_like(getattr(self, f"centre{k}"), dtype=torch.float64))
                    squares.append(torch.zeros_like(sums[k]))
                    counts.append(0)
                sums[k] += tap.double().sum((0, 2, 3))
                squares[k] += tap.double().square().sum((0, 2, 3))
                counts[k] += tap.numel() // tap.shape[1]
        for k, (total, square, count) in enumerate(zip(sums, squares, counts, strict=True)):
            mean = total / count
            getattr(self, f"centre{k}").copy_(mean)
            getattr(self, f"deviation{k}").copy_(deviation_of(mean, square / count))


def deviation_of(mean: Tensor, square: Tensor) -> Tensor:
    """The standard deviation of values by their mean and the mean of their squares; 1 where nothing varies."""
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return torch.where(deviation > LEAST_DEVIATION, deviation, 1.0)


def photographs(images: Tensor) -> Tensor:
    """The first three channels: what else is stacked behind them is of another modality, which no teacher knows."""
    return images if images.shape[1] == 3 else images[:, :3]


def chunks(images: Tensor, size: int) -> Iterator[Tensor]:
    """`images` in order, at most `size` at a time."""
    return (images[start : start + size] for start in range(0, len(images), size))


def cached_taps(teacher: Teacher, images: Tensor) -> Taps:
    """The teacher's taps of all `images`, channels last; () if they would take more than CACHE_BYTES."""
    one = teacher(images[:1])
    if sum(tap.numel() * tap.element_size() for tap in one) * len(images) > CACHE_BYTES:
        return ()
    cache = tuple(
        torch.empty(
            (len(images), *tap.shape[1:]), dtype=tap.dtype, device=tap.device, memory_format=torch.channels_last
        )
        for tap in one
    )
    for start in range(0, len(images), CACHE_CHUNK):
        for whole, part in zip(cache, teacher(images[start : start + CACHE_CHUNK]), strict=True):
            whole[start : start + CACHE_CHUNK] = part
    return cache
