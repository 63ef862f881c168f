"""The floor: what it computes, and that it is a floor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from kdad_bench.methods.pixel_mean import LEAST_DEVIATION, PixelMean, PixelMeanSettings
from tests.methods.toys import auroc, normals, score_all, small_method


def test_the_map_is_the_blurred_standardised_distance_to_the_mean_image() -> None:
    images, probe = normals(6, seed=1), normals(1, seed=2)
    method = small_method("pixel_mean")
    method.fit(images)
    stack = images.double().numpy()
    deviation = np.maximum(stack.std(0), LEAST_DEVIATION)
    distance = (np.abs(probe[0].double().numpy() - stack.mean(0)) / deviation).mean(0)
    scores = method.score(probe)
    np.testing.assert_allclose(scores.pixel[0].numpy(), gaussian_filter(distance, 4.0), rtol=1e-4)
    assert float(scores.image[0]) == float(scores.pixel.max())


def test_it_finds_a_black_square_on_a_scene_that_never_moves() -> None:
    noise = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    still = 0.5 + 0.01 * noise
    method = small_method("pixel_mean")
    method.fit(still)
    spotted = still.clone()
    spotted[:, :, 20:30, 20:30] = 0
    image, _ = score_all(method, torch.cat([still, spotted]))
    assert auroc(image, torch.arange(16) >= 8) == 1


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ValueError, match="N > 0"):
        small_method("pixel_mean").fit(torch.empty(0, 3, 64, 64))


def test_what_it_learns_lies_on_its_device() -> None:
    module = PixelMean(PixelMeanSettings(image_size=32), torch.device("meta")).module
    assert {name: buffer.device.type for name, buffer in module.named_buffers()} == {
        "mean": "meta",
        "deviation": "meta",
    }
