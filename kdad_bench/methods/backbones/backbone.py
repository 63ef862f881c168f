"""What every backbone offers: images in [0, 1] in, the feature maps ("taps") at the strides asked for out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones.names import BackboneFacts


class Backbone(nn.Module):
    """A feature pyramid. Only the layers that the deepest tap needs are built.

    `strides` are the taps returned (shallow first), `channels` their widths, `mean` and `std` [3] the normalisation
    that its weights expect (buffers that are no part of the state_dict).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, facts: BackboneFacts, strides: tuple[int, ...]) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides)) or not set(strides) <= set(facts.channels):
            have = ", ".join(map(str, facts.channels))
            raise ValueError(f"strides {strides} of {facts.name}: must rise and be among {have}")
        self.name = facts.name
        self.strides = tuple(strides)
        self.signed = facts.signed
        self.channels = tuple(facts.channels[stride] for stride in strides)
        self.register_buffer("mean", torch.tensor(facts.mean), persistent=False)
        self.register_buffer("std", torch.tensor(facts.std), persistent=False)

    def normalise(self, images: Tensor) -> Tensor:
        """(images - mean) / std per channel; images [N, 3, H, W]."""
        return normalised(images, self.mean, self.std)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Taps of `images` [N, 3, H, W] in [0, 1]: one [N, C_k, H / stride_k, W / stride_k] per stride."""
        return self.taps(self.normalise(images))

    def taps(self, normalised: Tensor) -> tuple[Tensor, ...]:
        """Taps of images that are normalised already."""
        raise NotImplementedError(f"{type(self).__name__} defines no taps")


def normalised(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images - mean) / std; images [N, 3, H, W], mean and std [3]."""
    mean, std = mean.view(3, 1, 1), std.view(3, 1, 1)
    if images.is_cpu and images.is_contiguous(memory_format=torch.channels_last):
        # a whole row of both: the layout alone would have loops over three values
        width = images.shape[3]
        mean, std = (row.flatten().repeat(width).view(1, 1, width, 3).permute(0, 3, 1, 2) for row in (mean, std))
    return (images - mean).div_(std)
