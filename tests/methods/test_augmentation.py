"""Distortions of images: against their formulas in numpy, each image its own chance, each change as often as said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from torch import Tensor

from kdad_bench.methods.augmentation import Strengths, distorted, grey, hue_rotations
from tests.methods.toys import normals

LUMA = np.array([0.299, 0.587, 0.114])
YIQ = np.array([LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def by_hand(image: Tensor, chance: np.ndarray, strengths: Strengths) -> np.ndarray:
    """One image [3, H, W] distorted as the eight numbers of `chance` say, in numpy."""
    s, x = strengths, image.double().numpy()
    sway = 2 * chance[3:7] - 1
    if chance[0] < s.probability:
        x = np.clip(x * (1 + sway[0] * s.brightness), 0, 1)
        mean = np.tensordot(LUMA, x, 1).mean()
        x = np.clip(mean + (x - mean) * (1 + sway[1] * s.contrast), 0, 1)
        luma = np.tensordot(LUMA, x, 1)
        x = np.clip(luma + (x - luma) * (1 + sway[2] * s.saturation), 0, 1)
        angle = 2 * np.pi * sway[3] * s.hue
        turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        x = np.clip(np.tensordot(np.linalg.inv(YIQ) @ turn @ YIQ, x, 1), 0, 1)
    if chance[1] < s.probability:
        x = np.broadcast_to(np.tensordot(LUMA, x, 1), x.shape)
    if chance[2] < s.probability:
        sigma = s.sigma[0] + chance[7] * (s.sigma[1] - s.sigma[0])
        radius = max(round(s.radius * x.shape[-1]), 1)
        taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
        for axis in (1, 2):
            x = correlate1d(x, taps / taps.sum(), axis=axis, mode="mirror")
    return np.asarray(x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "strengths",
    [Strengths(), Strengths(probability=0.5, brightness=0.9, contrast=0.7, saturation=0.5, hue=0.4, sigma=(1.0, 1.5))],
)
def test_distortion_is_its_formula(strengths: Strengths, seed: int) -> None:
    images = torch.rand(6, 3, 40, 40, generator=torch.Generator().manual_seed(9))
    chance = torch.rand(8, 6, generator=torch.Generator().manual_seed(seed)).double().numpy()
    found = distorted(images, torch.Generator().manual_seed(seed), strengths)
    for k, image in enumerate(images):
        np.testing.assert_allclose(found[k].numpy(), by_hand(image, chance[:, k], strengths), atol=2e-5)


def test_the_strengths_are_simclrs() -> None:
    s = Strengths()
    assert (s.brightness, s.contrast, s.saturation, s.hue, s.sigma, s.probability) == (
        0.4,
        0.4,
        0.4,
        0.1,
        (0.1, 2),
        0.8,
    )
    assert round(s.radius * 256) == 11  # 23 taps
    half, whole = Strengths.simclr(0.5), Strengths.simclr(1.0)
    assert half == s
    assert (whole.brightness, whole.contrast, whole.saturation, whole.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (whole.sigma, whole.probability) == (s.sigma, s.probability)


def test_every_image_has_its_own_chance() -> None:
    same = normals(1, seed=1).expand(24, -1, -1, -1)
    found = distorted(same, torch.Generator().manual_seed(0), Strengths(probability=1)).flatten(1)
    apart = torch.cdist(found, found) + 1e9 * torch.eye(24)
    assert float(apart.min()) > 1e-3  # no two alike, though all were one image with everything done to it
    some = distorted(same, torch.Generator().manual_seed(0), Strengths(probability=0.5))
    greys = (some[:, 0] - some[:, 1]).abs().amax((1, 2)) < 1e-5
    assert 4 < int(greys.sum()) < 20


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
def test_grey_happens_as_often_as_said(probability: float) -> None:
    images = torch.rand(400, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    found = distorted(images, torch.Generator().manual_seed(2), Strengths(probability=probability))
    share = float(((found[:, 0] - found[:, 1]).abs().amax((1, 2)) < 1e-5).float().mean())
    assert share == pytest.approx(probability, abs=0.08)


def test_distortion_is_a_function_of_the_generator_and_stays_in_range() -> None:
    images = normals(6, seed=1)

    def once(seed: int) -> Tensor:
        return distorted(images, torch.Generator().manual_seed(seed), Strengths())

    assert torch.equal(once(1), once(1))
    assert not torch.equal(once(1), once(2))
    assert float(once(1).min()) >= 0
    assert float(once(1).max()) <= 1
    assert not any(torch.equal(a, b) for a, b in zip(once(1), images, strict=True))


def test_no_probability_means_no_change_and_certainty_means_grey() -> None:
    images = normals(3, seed=1)
    never = distorted(images, torch.Generator().manual_seed(0), Strengths(probability=0))
    assert torch.equal(never, images)
    always = distorted(images, torch.Generator().manual_seed(0), Strengths(probability=1))
    assert torch.allclose(always[:, :1], always[:, 1:2], atol=1e-5)


def test_a_hue_turn_keeps_greys_and_luma_and_a_full_turn_is_none() -> None:
    turned = hue_rotations(torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(
        turned @ torch.ones(3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64), atol=5e-3, rtol=0
    )
    torch.testing.assert_close(turned[0], torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(turned[2], torch.eye(3, dtype=torch.float64))
    colours = torch.rand(5, 3, 1, 1)
    rotated = torch.einsum("ij,njhw->nihw", turned[1].float(), colours)
    torch.testing.assert_close(grey(rotated), grey(colours), atol=2e-3, rtol=0)
    assert not torch.allclose(rotated, colours, atol=0.01)
