"""Late fusion: each modality's detector on its own channels, on one scale, units ignored."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdad_bench.harness.late_fusion import FusedModalities, calibrate
from kdad_bench.methods.protocol import Fitting, Scores, Settings


class Brightness:
    """A detector whose map is the mean channel, in `unit`s."""

    settings = Settings()

    def __init__(self, unit: float = 1.0) -> None:
        self.unit, self.module = unit, nn.Identity()
        self.learnt_from: Tensor | None = None

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        self.learnt_from = normal
        (fitting or Fitting()).log(1, {"loss": 0.0})

    def score(self, images: Tensor) -> Scores:
        maps = images.mean(1) * self.unit + self.unit
        return Scores(maps.amax((1, 2)), maps)

    def networks(self, images: Tensor) -> object:
        return images


def fused(*units: float, held_out: Tensor) -> FusedModalities:
    return FusedModalities([Brightness(unit) for unit in units], ["rgb", "depth"][: len(units)], held_out)


def pictures(count: int, channels: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gamma(2.0, size=(count, channels, 8, 8))).float()


def test_fusion_ignores_the_units_of_the_detectors() -> None:
    normal, held_out, test = pictures(4, 6, 0), pictures(9, 6, 1), pictures(5, 6, 2)
    found = []
    for units in ((1.0, 1.0), (1e-4, 1e3)):
        method = fused(*units, held_out=held_out)
        method.fit(normal)
        found.append(method.score(test))
    for first, second in zip(*found, strict=True):
        assert first.dtype == second.dtype == torch.float32
        assert torch.allclose(first, second, atol=1e-4)


def test_the_fused_verdict_is_the_mean_of_what_each_says_in_its_own_deviations() -> None:
    normal, held_out, test = pictures(4, 6, 0), pictures(9, 6, 1), pictures(5, 6, 2)
    method = fused(1.0, 50.0, held_out=held_out)
    method.fit(normal)
    image, pixel = [], []
    for part in (slice(0, 3), slice(3, 6)):
        held, maps = held_out[:, part].mean(1).double(), test[:, part].mean(1).double()
        pixel.append((maps - held.mean()) / held.std(correction=0))
        best = held.amax((1, 2))
        image.append((maps.amax((1, 2)) - best.mean()) / best.std(correction=0))
    scores = method.score(test)
    assert torch.allclose(scores.pixel.double(), sum(pixel) / 2, atol=1e-4)
    assert torch.allclose(scores.image.double(), sum(image) / 2, atol=1e-4)


def test_each_detector_learns_from_its_own_channels_and_its_log_says_which() -> None:
    normal, terms = pictures(4, 6, 0), []
    method = fused(1.0, 1.0, held_out=pictures(3, 6, 1))
    method.fit(normal, Fitting(log=lambda step, found: terms.extend(found)))
    assert [torch.equal(part.learnt_from, normal[:, 3 * k : 3 * k + 3]) for k, part in enumerate(method.parts)] == [
        True,
        True,
    ]
    assert terms == ["rgb loss", "depth loss"]


def test_fusion_of_one_detector_keeps_its_order() -> None:
    method, test = fused(7.0, held_out=pictures(3, 3, 1)), pictures(6, 3, 2)
    method.fit(pictures(4, 3, 0))
    alone, together = Brightness().score(test), method.score(test)
    assert torch.equal(alone.image.argsort(), together.image.argsort())
    assert torch.equal(alone.pixel.flatten().argsort(), together.pixel.flatten().argsort())


def test_fusion_without_held_out_normals_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out normal"):
        fused(1.0, 1.0, held_out=torch.zeros(0, 6, 8, 8))


def test_calibration_needs_finite_maps_and_survives_constant_ones() -> None:
    constant = calibrate(np.full((1, 2, 2), 0.1), [0.1])
    assert (constant.pixel_std, constant.score_std) == (1.0, 1.0)
    for maps, scores in (
        (np.zeros((0, 2, 2)), np.zeros(0)),
        (np.full((1, 2, 2), np.nan), [0.0]),
        (np.zeros((2, 2, 2)), [0.0]),
    ):
        with pytest.raises(ValueError, match="maps"):
            calibrate(maps, scores)
