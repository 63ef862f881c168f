"""SPADE against its definition, one pixel at a time, and faulty ones that the check rejects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from kdad_bench.methods.backbones import build
from kdad_bench.methods.protocol import Scores
from kdad_bench.methods.spade import Spade, SpadeSettings
from tests.methods.test_stfpm import bilinear
from tests.methods.toys import CPU, normals, small_method

SIZE = 16
Judge = Callable[[Spade, tuple[Tensor, ...]], Scores]


def taps(seed: int, count: int) -> tuple[Tensor, ...]:
    """Random features shaped as Lite0's of 64 x 64 images, images that differ in their means."""
    generator = torch.Generator().manual_seed(seed)
    shifts = torch.randn(count, 1, 1, 1, generator=generator)
    return tuple(shifts + torch.randn(count, c, s, s, generator=generator) for c, s in ((24, 16), (40, 8), (112, 4)))


def fitted(known: tuple[Tensor, ...], **changes: object) -> Spade:
    method = small_method("spade", sigma=1.0, **changes)
    assert isinstance(method, Spade)
    method.taps_of = lambda images: iter([tuple(tap[:2] for tap in known), tuple(tap[2:] for tap in known)])  # type: ignore[method-assign]
    method.fit(normals(len(known[0]), seed=1))
    return method


def definition(known: tuple[Tensor, ...], probe: tuple[Tensor, ...], images: int, pixels: int) -> tuple[float, object]:
    """Image score and map [SIZE, SIZE] of a single image."""
    pooled = np.array([[channel.mean() for channel in image] for image in known[-1].double().numpy()])
    own = probe[-1][0].double().numpy().mean((1, 2))
    apart = np.sqrt(((pooled - own) ** 2).sum(1))
    order = np.argsort(apart, kind="stable")[:images]
    total = np.zeros((SIZE, SIZE))
    for tap, mine in zip(known, probe, strict=True):
        gallery = tap[torch.from_numpy(order)].double().permute(0, 2, 3, 1).reshape(-1, tap.shape[1]).numpy()
        at = np.empty(mine.shape[2:])
        for i, j in np.ndindex(at.shape):
            distances = np.sqrt(((gallery - mine[0, :, i, j].double().numpy()) ** 2).sum(1))
            at[i, j] = np.sort(distances)[:pixels].mean()
        total += bilinear(at, SIZE) / 3
    return float(apart[order].mean()), gaussian_filter(total, 1.0)


def check(judge: Judge, images: int, pixels: int = 1) -> None:
    """Two probes in one batch, each as its definition says."""
    known, probe = taps(1, 5), taps(2, 2)
    scores = judge(fitted(known, images=images, pixels=pixels), probe)
    for n in range(2):
        image, pixel = definition(known, tuple(tap[n : n + 1] for tap in probe), images, pixels)
        np.testing.assert_allclose(scores.image[n].numpy(), image, rtol=1e-5)
        np.testing.assert_allclose(scores.pixel[n].numpy(), pixel, rtol=1e-4)


@pytest.mark.parametrize(("images", "pixels"), [(1, 1), (2, 1), (3, 4), (5, 1), (50, 2), (1, 20)])
def test_scores_are_as_defined(images: int, pixels: int) -> None:
    check(lambda method, probe: method.judge(probe, (SIZE, SIZE)), images, pixels)


def whole_gallery(method: Spade, probe: tuple[Tensor, ...]) -> Scores:
    """Compares pixels with those of all images."""
    image = method.judge(probe, (SIZE, SIZE)).image
    method.settings = replace(method.settings, images=99)
    return Scores(image, method.judge(probe, (SIZE, SIZE)).pixel)


def one_gallery_for_the_batch(method: Spade, probe: tuple[Tensor, ...]) -> Scores:
    """Compares all pixels with the images nearest to the first of the batch."""
    scores = method.judge(probe, (SIZE, SIZE))
    first = tuple(torch.cat([tap[:-1], tap[:1]]) if k == 2 else tap for k, tap in enumerate(probe))
    return Scores(scores.image, method.judge(first, (SIZE, SIZE)).pixel)


def squares(method: Spade, probe: tuple[Tensor, ...]) -> Scores:
    scores = method.judge(probe, (SIZE, SIZE))
    return Scores(scores.image.square(), scores.pixel)


def maximum(method: Spade, probe: tuple[Tensor, ...]) -> Scores:
    """The image score is the map's maximum."""
    pixel = method.judge(probe, (SIZE, SIZE)).pixel
    return Scores(pixel.amax((1, 2)), pixel)


def transposed(method: Spade, probe: tuple[Tensor, ...]) -> Scores:
    scores = method.judge(probe, (SIZE, SIZE))
    return Scores(scores.image, scores.pixel.mT)


@pytest.mark.parametrize("faulty", [whole_gallery, one_gallery_for_the_batch, squares, maximum, transposed])
def test_a_faulty_score_is_rejected(faulty: Judge) -> None:
    with pytest.raises(AssertionError):
        check(faulty, images=2)


def test_the_deepest_tap_finds_the_images_and_the_three_before_it_the_pixels() -> None:
    method = Spade(SpadeSettings(image_size=64), build("resnet18", strides=(4, 8, 16, 32)), CPU)
    method.fit(normals(3, seed=1))
    shapes = {name: tuple(buffer.shape) for name, buffer in method.kept.named_buffers()}
    assert shapes == {
        "images": (3, 512), "pixels0": (3, 256, 64), "pixels1": (3, 64, 128), "pixels2": (3, 16, 256),
    }  # fmt: skip


def test_more_maps_than_taps_are_refused() -> None:
    with pytest.raises(ValueError, match="maps 4 is more than the 3 strides"):
        small_method("spade", maps=4)
