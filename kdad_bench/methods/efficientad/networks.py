"""EfficientAD's networks: the PDN that is imitated, the student, the autoencoder."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.methods.backbones.backbone import normalised
from kdad_bench.methods.backbones.names import IMAGENET_MEAN, IMAGENET_STD
from kdad_bench.methods.backbones.pdn import convolved, layers, through
from kdad_bench.methods.efficientad.settings import EfficientAdSettings, grid_of

DROPPED = 0.2  # of the decoder's values while it learns


class Autoencoder(nn.Module):
    """An image as one vector, and the teacher's features from it: the paper's Table 7, for images of any side."""

    def __init__(self, settings: EfficientAdSettings) -> None:
        super().__init__()
        width, side = settings.autoencoder, settings.image_size
        widths = (3, width // 2, width // 2, width, width, width)
        down = ((nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(inplace=True)) for a, b in pairwise(widths))
        self.encoder = nn.Sequential(*chain.from_iterable(down), nn.Conv2d(width, width, side // 32))
        # 3, 8, 15, 32, 63, 127 for 256 px; a kernel of 4 with a padding of 2 adds one
        sizes = (side // 64 - 1, side // 32, side // 16 - 1, side // 8, side // 4 - 1, side // 2 - 1)
        self.sizes = tuple(max(size, 1) for size in sizes)
        self.decoder = nn.ModuleList(nn.Conv2d(width, width, 4, padding=2) for _ in self.sizes)
        self.last = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, settings.features, 3, padding=1),
        )
        self.side = grid_of(settings)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, s, s] of normalised images, s as the PDN's."""
        return through(list(self.last)[-1:], self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """What the last layer sees."""
        x = through(self.encoder, x)
        for size, layer in zip(self.sizes, self.decoder, strict=True):
            x = convolved(layer, enlarged(x, size), rectified=True)
            x = F.dropout(x, DROPPED, self.training)
        return through(list(self.last)[:-1], enlarged(x, self.side))


class Outputs(NamedTuple):
    """What the networks say of images, [N, features, s, s] each."""

    teacher: Tensor
    student: Tensor  # of the teacher
    autoencoder: Tensor
    imitation: Tensor  # the student's, of the autoencoder


class Networks(nn.Module):
    """The PDN that is imitated, the student, the autoencoder, and what is known of normal images."""

    def __init__(self, settings: EfficientAdSettings) -> None:
        super().__init__()
        size, width, outputs, pad = settings.network, settings.width, settings.features, settings.padding
        self.descriptor: nn.Sequential = nn.Sequential(*layers(size, width, outputs, padding=pad))
        *shared, last = layers(size, width, 2 * outputs, padding=pad)
        assert isinstance(last, nn.Conv2d)
        self.student = nn.Sequential(*shared)
        # one layer of twice the outputs, in two, so that either half can be had alone: of the teacher, the autoencoder
        self.halves = nn.ModuleList(nn.Conv2d(last.in_channels, outputs, last.kernel_size[0]) for _ in range(2))
        self.autoencoder = Autoencoder(settings)
        if settings.initial == "he":
            initialise(self)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(IMAGENET_STD))
        self.register_buffer("centre", torch.zeros(outputs, 1, 1))  # of the features that the PDN is distilled from
        self.register_buffer("deviation", torch.ones(outputs, 1, 1))
        self.register_buffer("low", torch.zeros(2))  # of the student's map, of the autoencoder's
        self.register_buffer("span", torch.full((2,), torch.inf))  # before any fit a map is 0

    def normalised(self, images: Tensor) -> Tensor:
        """Images as the networks see them."""
        return normalised(images, self.get_buffer("mean"), self.get_buffer("std"))

    def described(self, x: Tensor) -> Tensor:
        """What the PDN says of normalised images."""
        return through(self.descriptor, x)

    def half_of(self, x: Tensor, which: int) -> Tensor:
        """The student's outputs of normalised images: those of the teacher (0) or of the autoencoder (1) alone."""
        return self.answers(through(self.student, x), which)

    def answers(self, hidden: Tensor, which: int) -> Tensor:
        """One half of the student's outputs."""
        return convolved(self.halves[which], hidden, rectified=False)

    def forward(self, images: Tensor) -> Outputs:
        """All of them of `images` [N, 3, S, S] in [0, 1]."""
        x = self.normalised(images)
        hidden = through(self.student, x)
        return Outputs(self.described(x), self.answers(hidden, 0), self.autoencoder(x), self.answers(hidden, 1))


def initialise(network: nn.Module) -> None:
    """He initialisation by fan-in, no biases: what passes through many layers keeps its size."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def enlarged(images: Tensor, side: int) -> Tensor:
    """[N, C, side, side], bilinear."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
