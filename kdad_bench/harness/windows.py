"""A method that sees squares, on pictures of any shape: windows are cut, scored, and their maps stitched together.

Along a side of L px lie windows of S px that overlap by at least O px: n = ceil((L - S) / (S - O)) + 1 of them, begun
at round(k (L - S) / (n - 1)), so that they end where the picture ends. A side shorter than a window is mirrored about
its borders on both ends; what was mirrored is in no map that leaves this module.

The map at a pixel is the mean of the windows there, weighed by the product over both directions of
min(1, (i + 1/2) / O, (S - i - 1/2) / O), i the place in the window: a window fades out towards its borders, the weights
of two that overlap by O add up to one, and where one window lies alone its map is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdad_bench.datasets import PAD
from kdad_bench.harness.view import View
from kdad_bench.methods.protocol import Fitting, Method, Scores

BATCH = 16  # windows that are scored at once
PROBES = 2  # drawn pictures that a method is asked how its score follows from its map


class Along(NamedTuple):
    """The windows along one side of a picture."""

    places: tuple[NDArray[np.int64], ...]  # [S] each: the pixels that a window takes, some of them mirrored
    kept: tuple[slice, ...]  # the part of each window that lies in the picture
    at: tuple[slice, ...]  # where that part lies
    weights: tuple[NDArray[np.float32], ...]  # of that part; at each pixel of the picture they add up to 1


@lru_cache(maxsize=256)
def along(length: int, side: int, overlap: int) -> Along:
    """The windows of `side` px along `length` px, which overlap by at least `overlap` px."""
    begins = [-((side - length) // 2)] if length <= side else begun(length, side, overlap)
    inside = np.arange(side)
    fade = np.minimum(1.0, np.minimum(inside + 0.5, side - inside - 0.5) / max(overlap, 0.5))
    total = np.zeros(length)
    kept, at = [], []
    for begin in begins:
        first, last = max(begin, 0), min(begin + side, length)
        at.append(slice(first, last))
        kept.append(slice(first - begin, last - begin))
        total[at[-1]] += fade[kept[-1]]
    weights = tuple((fade[own] / total[place]).astype(np.float32) for own, place in zip(kept, at, strict=True))
    return Along(tuple(mirrored(inside + begin, length) for begin in begins), tuple(kept), tuple(at), weights)


def begun(length: int, side: int, overlap: int) -> list[int]:
    """Where the windows begin along a length that is longer than one."""
    count = -(-(length - side) // (side - overlap)) + 1
    return [(2 * k * (length - side) + count - 1) // (2 * (count - 1)) for k in range(count)]


def mirrored(places: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """`places` reflected at the borders, which are repeated, into 0 .. length - 1."""
    around = np.mod(places, 2 * length)
    return np.where(around < length, around, 2 * length - 1 - around)


def cut(picture: Any, view: View, resolution: int) -> Iterator[Any]:
    """The windows [C, S, S] of a picture [C, h, w], an array or a tensor, row by row."""
    rows, columns = sides(picture.shape[-2:], view, resolution)
    for down in rows.places:
        for right in columns.places:
            yield picture[:, down[:, None], right]


def sides(shape: Sequence[int], view: View, resolution: int) -> tuple[Along, Along]:
    """The windows down and across a picture of that (height, width)."""
    side, overlap = view.side(resolution), view.least_overlap(resolution)
    return along(int(shape[0]), side, overlap), along(int(shape[1]), side, overlap)


def all_windows(pictures: Sequence[NDArray[np.uint8]], view: View, resolution: int) -> NDArray[np.uint8]:
    """uint8 [K, C, S, S]: the windows of all pictures [C, h, w], in their order."""
    counts = counted(pictures, view, resolution)
    side, channels = view.side(resolution), len(pictures[0]) if len(pictures) else 3
    found = np.empty((sum(counts), channels, side, side), np.uint8)
    place = 0
    for picture in pictures:
        for window in cut(picture, view, resolution):
            found[place] = window
            place += 1
    return found


def counted(pictures: Iterable[Any], view: View, resolution: int) -> list[int]:
    """How many windows each picture [C, h, w] has."""
    found = (sides(one.shape[-2:], view, resolution) for one in pictures)
    return [len(down.places) * len(across.places) for down, across in found]


def sources_of(pictures: Iterable[Any], view: View, resolution: int) -> tuple[int, ...]:
    """Of which of `pictures` [C, h, w] each of their windows is, in the order of `all_windows` and `windows_of`."""
    return tuple(k for k, count in enumerate(counted(pictures, view, resolution)) for _ in range(count))


def windows_of(images: Iterable[Tensor], view: View, resolution: int) -> Tensor:
    """[K, C, S, S]: the windows of `images` [C, h, w] each, in their order."""
    return torch.stack([window for image in images for window in cut(image, view, resolution)])


class Windowed:
    """A `Method` on pictures [N, C, H, W] of any one shape, around one that sees squares of the view's side."""

    def __init__(self, inner: Method, view: View, resolution: int) -> None:
        self.inner, self.view, self.resolution, self.batch = inner, view, resolution, BATCH
        self.settings: Any = inner.settings
        self.module: nn.Module = inner.module
        self.rule: str | None = None  # of `rule_of`, once it was asked

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        """Learn from the windows of `normal` [N, C, H, W], or from `normal` as they are if `fitting.sources` says that
        they are windows: as large as the view's, or brought to the side that the networks see."""
        self.rule, fitting = None, fitting or Fitting()
        if fitting.sources is None:
            sources, categories = sources_of(normal, self.view, self.resolution), fitting.categories
            of = None if categories is None else tuple(categories[k] for k in sources)
            fitting = replace(fitting, sources=sources, categories=of)
            normal = self.windows(normal)
        self.inner.fit(normal, fitting)

    def windows(self, images: Tensor) -> Tensor:
        """[K, C, S, S]: the windows of `images` [N, C, H, W]."""
        return windows_of(images, self.view, self.resolution)

    def score(self, images: Tensor) -> Scores:
        """Stitched maps [N, H, W] and image scores of `images` [N, C, H, W], each for itself.

        Where the method's score is its map's maximum or mean, the image score is that of the stitched map. Otherwise
        it is the highest score of a window; with padding, which a window's score would count, the map's maximum.
        """
        if self.rule is None:
            self.rule = rule_of(self.inner, images.shape[1], images.device)
        found = [self._scored(image) for image in images]
        return Scores(torch.stack([score for score, _ in found]), torch.stack([heat for _, heat in found]))

    def _scored(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image score and stitched map [H, W] of one picture [C, H, W]; memory beside the map is that of a batch."""
        rows, columns = sides(image.shape[-2:], self.view, self.resolution)
        grid = [(down, across) for down in range(len(rows.places)) for across in range(len(columns.places))]
        whole, highest = image.new_zeros(image.shape[-2:]), []
        for start in range(0, len(grid), self.batch):
            some = grid[start : start + self.batch]
            chunk = [image[:, rows.places[down][:, None], columns.places[across]] for down, across in some]
            scores = self.inner.score(torch.stack(chunk))
            highest.append(scores.image.amax())
            for (down, across), heat in zip(some, scores.pixel, strict=True):
                weight = np.outer(rows.weights[down], columns.weights[across])
                part = heat[rows.kept[down], columns.kept[across]]
                whole[rows.at[down], columns.at[across]] += part * torch.from_numpy(weight).to(heat.device)
        if self.rule == "mean":
            return whole.mean(), whole
        if self.rule == "max" or self.view.fit == PAD:
            return whole.amax(), whole
        return torch.stack(highest).amax(), whole

    def networks(self, images: Tensor) -> object:
        """The networks of the method, on its windows alone."""
        return self.inner.networks(images)


def rule_of(method: Method, channels: int, device: torch.device) -> str:
    """max or mean: how a fitted method's image score follows from its map, found on drawn pictures; "" if otherwise."""
    side = method.settings.image_size
    noise = np.random.Generator(np.random.Philox(0)).random((PROBES, channels, side, side), dtype=np.float32)
    with torch.inference_mode():
        scores = method.score(torch.from_numpy(noise).to(device))
    maps = scores.pixel.flatten(1)
    if torch.equal(scores.image, maps.amax(1)):
        return "max"
    return "mean" if torch.allclose(scores.image, maps.mean(1), rtol=1e-5, atol=0.0) else ""


def windowed(method: Method, view: View, resolution: int) -> Method:
    """`method` as it is for whole squares, else on windows."""
    return method if view.plain else Windowed(method, view, resolution)
