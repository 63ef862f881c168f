"""Random changes of colour and sharpness of image batches, every one a function of the generator that is handed in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdad_bench.kernels import gaussian_blur
from kdad_bench.kernels.sending import constant, sent

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))  # NTSC 1953


@dataclass(frozen=True, kw_only=True, slots=True)
class Strengths:
    """How strong each change is and how often it happens; the defaults are SimCLR's at its strength 0.5."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1  # of a full turn
    sigma: tuple[float, float] = (0.1, 2.0)  # of the Gaussian filter, px
    radius: float = 11 / 256  # of the Gaussian filter, relative to the side: 23 taps at 256 px
    probability: float = 0.8  # of colour distortion, greyscale and filter, each on its own

    @classmethod
    def simclr(cls, strength: float) -> Strengths:
        """Colour distortion of SimCLR's `strength` (0.5: its CIFAR setting), the rest by default."""
        return cls(brightness=0.8 * strength, contrast=0.8 * strength, saturation=0.8 * strength, hue=0.2 * strength)


def distorted(images: Tensor, generator: torch.Generator, strengths: Strengths) -> Tensor:
    """Colour distortion, greyscale and Gaussian filter of `images` [N, 3, H, W] float32 in [0, 1], each image its own.

    `generator` (CPU) gives all chance, so that the result does not depend on the device's random numbers.
    """
    count, s = len(images), strengths
    chance = torch.rand(8, count, generator=generator)
    happens = chance[:3] < s.probability
    sway = 2 * chance[3:7] - 1  # brightness, contrast, saturation, hue in [-1, 1)
    factors = 1 + sway[:3] * torch.tensor([s.brightness, s.contrast, s.saturation])[:, None]
    turns = sway[3] * s.hue

    def per_image(values: Tensor) -> Tensor:
        return sent(values, images.device)[:, None, None, None]

    jittered = jitter(images, per_image(factors[0]), per_image(factors[1]), per_image(factors[2]), turns)
    images = torch.where(per_image(happens[0]), jittered, images)
    images = torch.where(per_image(happens[1]), grey(images).expand_as(images), images)
    sigmas = s.sigma[0] + chance[7] * (s.sigma[1] - s.sigma[0])
    radius = max(round(s.radius * images.shape[-1]), 1)
    blurred = [
        gaussian_blur(image, float(sigma), border="torch", radius=radius) if blur else image
        for image, sigma, blur in zip(images, sigmas, happens[2], strict=True)
    ]
    return torch.stack(blurred)


def grey(images: Tensor) -> Tensor:
    """Luma [N, 1, H, W]."""
    return (images * constant(LUMA, images.device, images.dtype)[:, None, None]).sum(1, keepdim=True)


def jitter(images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, turns: Tensor) -> Tensor:
    """Brightness, contrast, saturation (factors [N, 1, 1, 1]), then hue (`turns` [N] of the YIQ plane)."""
    x = (images * brightness).clamp(0, 1)
    mean = grey(x).mean((2, 3), keepdim=True)
    x = (mean + (x - mean) * contrast).clamp(0, 1)
    luma = grey(x)
    x = (luma + (x - luma) * saturation).clamp(0, 1)
    matrices = sent(hue_rotations(turns).to(x.dtype), x.device)
    return torch.einsum("nij,njhw->nihw", matrices, x).clamp(0, 1)


def hue_rotations(turns: Tensor) -> Tensor:
    """RGB matrices [N, 3, 3] that turn the colour plane of YIQ by `turns` [N] of a full circle."""
    angles = 2 * torch.pi * turns.double()
    rotation = torch.zeros(len(turns), 3, 3, dtype=torch.float64)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angles.cos()
    rotation[:, 2, 1], rotation[:, 1, 2] = angles.sin(), -angles.sin()
    to_yiq = torch.tensor(TO_YIQ, dtype=torch.float64)
    turned: Tensor = torch.linalg.inv(to_yiq) @ rotation @ to_yiq
    return turned
