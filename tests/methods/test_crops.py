"""Crops that show what no normal image does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdad_bench.methods.crops import altered_crops
from tests.methods.toys import normals


def made(seed: int, count: int = 12, side: int = 33, images: Tensor | None = None) -> Tensor:
    images = normals(4, seed=1) if images is None else images
    return altered_crops(images, side, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "side", "of"), [(1, 17, 64), (3, 65, 64), (4, 33, 24), (13, 33, 64)])
def test_there_are_as_many_as_asked_for_in_the_range_of_images(count: int, side: int, of: int) -> None:
    crops = made(0, count, side, normals(2, seed=1, side=of))
    assert tuple(crops.shape) == (count, 3, side, side)
    assert float(crops.min()) >= 0
    assert float(crops.max()) <= 1


def test_they_are_the_generators_and_differ_from_one_another() -> None:
    crops = made(3)
    assert torch.equal(crops, made(3))
    assert not torch.equal(crops, made(4))
    pairs = (crops[:, None] - crops[None]).abs().mean((2, 3, 4)) + torch.eye(len(crops))
    assert float(pairs.min()) > 0.01


def test_they_show_more_colours_than_the_images() -> None:
    images = normals(4, seed=1)
    colours = made(5, 40, images=images).mean((2, 3))
    usual = images.mean((2, 3))
    beyond = ((colours < usual.amin(0) - 0.05) | (colours > usual.amax(0) + 0.05)).any(1)
    assert float(beyond.float().mean()) > 0.5


def test_half_of_the_second_layers_are_flat() -> None:
    """A flat layer is a colour that many pixels of the crop have to the last bit; noise gives no two the same."""
    flat = 0
    for crop in made(6, 60):
        _, counts = crop.flatten(1).unique(dim=1, return_counts=True)
        flat += int(counts.max() > 50)
    assert 10 < flat < 45
