"""Seeded draws of the training images: shares set apart, and the few of those learnt from that will do for a step."""

from __future__ import annotations

from collections import Counter
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
    # [N] int64 of those learnt from: their category, or which window of its image each is, or both; None: of one kind
    kinds: Tensor | None


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


def numbered(kinds: Tensor) -> Tensor:
    """[N] int64: how many of the same kind stand before each of `kinds` [N]."""
    before: Counter[int] = Counter()
    found = []
    for kind in kinds.tolist():
        found.append(before[kind])
        before[kind] += 1
    return torch.tensor(found)


def shuffled(count: int, kinds: Tensor | None, seed: int, purpose: str) -> Tensor:
    """[count] int64: the numbers below `count` in an order by the seed, of several `kinds` [count] one of each in turn,
    as long as there are any. `purpose` names the draw."""
    order = torch.randperm(count, generator=chance(seed, purpose, 0))
    return order if kinds is None else order[numbered(kinds[order]).argsort(stable=True)]


def drawn_apart(
    images: Tensor, share: float, seed: int, purpose: str, kinds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(the rest, a `share` of `images` [N, ...]), each in its order; N is two or more. `purpose` names the draw.

    Each of several `kinds` [N] gives as many as any other, or one more or less, as long as it has any.
    """
    order = shuffled(len(images), kinds, seed, purpose).to(images.device)
    apart = len(images) - learners(len(images), share)
    return images[order[apart:].sort().values], images[order[:apart].sort().values]


def parted(
    images: Tensor, share: float, seed: int, purpose: str = "validation", kinds: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(images to learn from, others): a seeded share of others, one at the least; all are both if there is one image or
    no share. `purpose` and `kinds` as of `drawn_apart`."""
    if not share or len(images) < 2:
        return images, images
    return drawn_apart(images, share, seed, purpose, kinds)


def drawn_evenly(images: Tensor, kinds: Tensor, count: int, seed: int, purpose: str) -> Tensor:
    """`count` of `images` [N, ...], in their order, or all where there are fewer: of each of `kinds` [N] as many as of
    any other, or one fewer, as far as there are any. `purpose` names the draw."""
    return images[shuffled(len(images), kinds, seed, purpose)[:count].sort().values.to(images.device)]


def kinds_of(sources: Tensor, categories: Sequence[int] | None) -> Tensor | None:
    """[N] int64: what may tell images apart that lie in a pattern, by a number; None where nothing does.

    It is their category of several, and where windows of one image follow each other, as `sources` [N] says, which of
    them each is.
    """
    places = numbered(sources)
    of = torch.zeros_like(places) if categories is None else torch.tensor(categories)
    kinds = of * (int(places.max()) + 1) + places
    return kinds if len(set(kinds.tolist())) > 1 else None


def set_apart(
    images: Tensor,
    settings: Settings,
    sources: Sequence[int] | None = None,
    categories: Sequence[int] | None = None,
) -> Parts:
    """The shares of `images` [N, ...] that `settings` ask for, and what they leave, each in its order.

    `sources`: of which image each of `images` is a window. Windows of one overlap, so it is on one side with all of
    them; None: each is whole. `categories`: of which category each of `images` is, and each category gives its part of
    every share; None: all are of one.
    """
    of = torch.tensor(range(len(images)) if sources is None else sources)
    left: Tensor = of.unique()  # type: ignore[no-untyped-call]
    apart: dict[str, Tensor] = {}
    kinds = kinds_of(of, categories)
    category = None if categories is None else dict(zip(of.tolist(), categories, strict=True))
    for name in settings.APART:
        if share := getattr(settings, name):
            alike = None if category is None else torch.tensor([category[image] for image in left.tolist()])
            left, apart[name] = parted(left, share, settings.seed, name.replace("_", " "), alike)

    def windows(some: Tensor) -> Tensor:
        places = torch.isin(of, some).nonzero()[:, 0]
        return images if len(places) == len(images) else images[places.to(images.device)]

    learnt = None if kinds is None else kinds[torch.isin(of, left)]
    return Parts(windows(left), {name: windows(some) for name, some in apart.items()}, learnt)
