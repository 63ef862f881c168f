"""What EfficientAD draws for a step on the CPU: images of nothing, and how images differ in colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdad_bench.kernels.sending import sent
from kdad_bench.methods.augmentation import grey, jitter
from kdad_bench.methods.drawn_images import drawn_images

SWAY = 0.2  # of a factor about 1: what the autoencoder's images differ by in brightness, contrast or saturation
GREY_CROPS, GREY_PENALTY = 0.1, 0.3  # how often an image loses its colour before the PDN learns, and in the penalty


class Drawn(NamedTuple):
    """One step's."""

    changes: NDArray[np.float32] | None  # [3, N]; None for the PDN
    pictures: NDArray[np.float32] | None  # [N, 3, S, S] in [0, 1]; None without a penalty
    greys: NDArray[np.bool_]  # of each image that may lose its colour


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficientAdDrawing:
    """A function of the step's generator: up to `boundary` for the PDN, then for student and autoencoder."""

    side: int
    boundary: int
    penalised: bool

    def __call__(self, chosen: Tensor, generator: torch.Generator, step: int) -> Drawn:
        draw = self.for_descriptor if step <= self.boundary else self.for_students
        return draw(len(chosen), generator)

    def for_descriptor(self, count: int, generator: torch.Generator) -> Drawn:
        """Of a step in which the PDN learns `count` images and as many drawn ones."""
        pictures = drawn_images(count, self.side, generator).numpy()
        return Drawn(None, pictures, drawn_greys(2 * count, GREY_CROPS, generator).numpy())

    def for_students(self, count: int, generator: torch.Generator) -> Drawn:
        """Of a step in which student and autoencoder learn `count` images."""
        changes = drawn_changes(count, generator).numpy()
        if not self.penalised:
            return Drawn(changes, None, np.zeros(0, np.bool_))
        pictures = drawn_images(count, self.side, generator).numpy()
        return Drawn(changes, pictures, drawn_greys(count, GREY_PENALTY, generator).numpy())


def drawn_changes(count: int, generator: torch.Generator) -> Tensor:
    """[3, count]: factors of brightness, contrast and saturation, one of them 0.8 to 1.2, the others 1."""
    which = torch.randint(3, (count,), generator=generator)
    factors = 1 + SWAY * (2 * torch.rand(count, generator=generator) - 1)
    return torch.stack([torch.where(which == kind, factors, 1.0) for kind in range(3)])


def drawn_greys(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """bool [count]: true with that probability."""
    return torch.rand(count, generator=generator) < probability


def recoloured(images: Tensor, changes: Tensor | NDArray[np.float32]) -> Tensor:
    """`images` [N, 3, H, W], brightness, contrast and saturation of each times its `changes` [3, N]."""
    brightness, contrast, saturation = sent(changes, images.device)[..., None, None, None]
    return jitter(images, brightness, contrast, saturation, torch.zeros(len(images)))


def sometimes_grey(images: Tensor, happens: Tensor | NDArray[np.bool_]) -> Tensor:
    """`images` [N, 3, H, W], those without their colour of which it `happens` (bool [N])."""
    return torch.where(sent(happens, images.device)[:, None, None, None], grey(images), images)
