"""Seeded shares of the training images set apart: held out of the loop, or to bring maps to scale by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdad_bench.methods.protocol import Settings
from kdad_bench.methods.training.chance import chance


class Parts(NamedTuple):
    """The normals of a fit: no image is in two parts but a lone one."""

    learnt: Tensor  # [N, ...]
    apart: Mapping[str, Tensor]  # field of APART that asks for a share -> that share, [M, ...]
    overlapping: bool  # whether several are windows of one image


def learners(images: int, share: float) -> int:
    """How many of `images` are learnt from when a share is set apart: at least one on either side, and a lone one."""
    return images - min(max(round(share * images), 1), images - 1) if share and images > 1 else images


def learnt_from(images: int, settings: Settings) -> int:
    """How many of `images` normals the optimiser sees, when a method with `settings` has set all its shares apart."""
    for name in settings.APART:
        images = learners(images, getattr(settings, name))
    return images


def has_a_lone_image(images: int, settings: Settings) -> bool:
    """Whether a share is to be set apart of one image, which is then on both sides: of `images`, or of what another
    share leaves."""
    left = images
    for name in settings.APART:
        share = getattr(settings, name)
        if share and left == 1:
            return True
        left = learners(left, share)
    return False


def drawn_apart(images: Tensor, share: float, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
    """(the rest, a `share` of `images` [N, ...]), each in its order; N is two or more. `purpose` names the draw."""
    order = torch.randperm(len(images), generator=chance(seed, purpose, 0)).to(images.device)
    apart = len(images) - learners(len(images), share)
    return images[order[apart:].sort().values], images[order[:apart].sort().values]


def parted(images: Tensor, share: float, seed: int, purpose: str = "validation") -> tuple[Tensor, Tensor]:
    """(images to learn from, others): a seeded share of others, one at the least; all are both if there is one image or
    no share. `purpose` names the draw."""
    if not share or len(images) < 2:
        return images, images
    return drawn_apart(images, share, seed, purpose)


def set_apart(images: Tensor, settings: Settings, sources: Sequence[int] | None = None) -> Parts:
    """The shares of `images` [N, ...] that `settings` ask for, and what they leave, each in its order.

    `sources`: of which image each of `images` is a window. Windows of one overlap, so it is on one side with all of
    them; None: each is whole.
    """
    of = torch.tensor(range(len(images)) if sources is None else sources)
    left: Tensor = of.unique()  # type: ignore[no-untyped-call]
    apart: dict[str, Tensor] = {}
    overlapping = len(left) < len(of)
    for name in settings.APART:
        if share := getattr(settings, name):
            left, apart[name] = parted(left, share, settings.seed, name.replace("_", " "))

    def windows(some: Tensor) -> Tensor:
        places = torch.isin(of, some).nonzero()[:, 0]
        return images if len(places) == len(images) else images[places.to(images.device)]

    return Parts(windows(left), {name: windows(some) for name, some in apart.items()}, overlapping)
