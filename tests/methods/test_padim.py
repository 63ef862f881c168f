"""PaDiM against its formulas in numpy, and faulty Gaussians that the check rejects."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from kdad_bench.methods.backbones import build
from kdad_bench.methods.padim import Padim, PadimSettings, by_tap, embedding, whitening_of
from tests.methods.toys import CPU, normals, small_method

REGULARISER = 0.01


def taps(seed: int, count: int) -> tuple[Tensor, ...]:
    """Random features shaped as Lite0's of 64 x 64 images."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, c, s, s, generator=generator) for c, s in ((24, 16), (40, 8), (112, 4)))


def fitted(known: tuple[Tensor, ...], **changes: object) -> Padim:
    """PaDiM that has learnt from `known` taps, whatever the images."""
    method = small_method("padim", sigma=1.0, **changes)
    assert isinstance(method, Padim)
    method.taps_of = lambda images: iter([known])  # type: ignore[method-assign]
    method.fit(normals(1, seed=1))
    return method


def naive_embedding(features: tuple[Tensor, ...], channels: list[int]) -> np.ndarray:
    """[N, D, 16, 16], one number at a time."""
    owners = [(k, c) for k, tap in enumerate(features) for c in range(tap.shape[1])]
    answer = np.empty((len(features[0]), len(channels), 16, 16))
    for n, d, i, j in np.ndindex(answer.shape):
        k, c = owners[channels[d]]
        side = features[k].shape[-1]
        answer[n, d, i, j] = features[k][n, c, i * side // 16, j * side // 16]
    return answer


@pytest.mark.parametrize("channels", [[0, 23, 24, 63, 64, 175], [5], [30, 40], [64], [0, 175]])
def test_the_embedding_is_the_chosen_channels_each_at_the_finest_tap(channels: list[int]) -> None:
    features = taps(1, 2)
    found = embedding(features, by_tap(torch.tensor(channels), [24, 40, 112]))
    np.testing.assert_array_equal(found.numpy(), naive_embedding(features, channels).astype(np.float32))


def test_the_channels_of_each_tap_are_those_that_were_learnt_last() -> None:
    method = fitted(taps(1, 4), channels=7)
    first, again = method.parts(), method.parts()
    assert first is again
    method.kept.keep(channels=torch.tensor([1, 24, 63, 64]))
    assert [part.tolist() for part in method.parts()] == [[1], [0, 39], [0]]
    method.kept.get_buffer("channels")[3] = 65  # written to where it lies
    assert [part.tolist() for part in method.parts()] == [[1], [0, 39], [1]]
    assert [part.tolist() for part in by_tap(torch.tensor([30]), [24, 40, 112])] == [[], [6], []]


def test_the_map_is_the_blurred_mahalanobis_distance_to_the_gaussian_of_each_position() -> None:
    known, probe = taps(1, 12), taps(2, 1)
    method = fitted(known, channels=7)
    channels = method.kept.get_buffer("channels").tolist()
    x, y = naive_embedding(known, channels), naive_embedding(probe, channels)[0]
    distance = np.empty((16, 16))
    for i, j in np.ndindex(distance.shape):
        samples = x[:, :, i, j]
        covariance = np.cov(samples, rowvar=False) + REGULARISER * np.eye(7)
        apart = y[:, i, j] - samples.mean(0)
        distance[i, j] = np.sqrt(apart @ np.linalg.inv(covariance) @ apart)
    scores = method.judge(probe, (16, 16))
    np.testing.assert_allclose(scores.pixel[0].numpy(), gaussian_filter(distance, 1.0), rtol=1e-4)
    assert float(scores.image[0]) == float(scores.pixel.max())


def check_distance(whitening: Callable[[Tensor, float], Tensor]) -> None:
    """|W x|² is the squared Mahalanobis distance of numpy, at each position; more channels than samples too."""
    generator = torch.Generator().manual_seed(3)
    for samples, width in ((9, 4), (3, 6)):
        features = torch.randn(samples, width, 5, generator=generator) * torch.tensor([1.0, 5, 0.1, 2, 1])
        x = torch.randn(width, generator=generator)
        found = whitening(features, REGULARISER)
        for p in range(5):
            covariance = np.cov(features[:, :, p].double().numpy(), rowvar=False) + REGULARISER * np.eye(width)
            expected = x.double().numpy() @ np.linalg.inv(covariance) @ x.double().numpy()
            assert float((found[p] @ x).square().sum()) == pytest.approx(expected, rel=1e-3)


def test_whitening_gives_the_mahalanobis_distance() -> None:
    check_distance(whitening_of)


FAULTY: dict[str, Callable[[Tensor, float], Tensor]] = {
    "transposed": lambda features, r: whitening_of(features, r).mT,
    "no regulariser": lambda features, r: whitening_of(features, 1e-9),
    "divided by N": lambda features, r: whitening_of(features * ((len(features) - 1) / len(features)) ** 0.5, r),
    "not centred": lambda features, r: whitening_of(torch.cat([features, -features]), r),
    "variances only": lambda features, r: torch.diag_embed((features.var(0).T + r).rsqrt()),
    "one Gaussian": lambda features, r: whitening_of(features, r).mean(0, keepdim=True).expand(5, -1, -1),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_gaussian_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_distance(FAULTY[name])


def test_the_channels_follow_from_the_seed_alone() -> None:
    chosen = [fitted(taps(1, 3), seed=seed).kept.get_buffer("channels") for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert len(chosen[0].unique()) == 100
    assert chosen[0][:8].tolist() == [0, 1, 3, 6, 7, 8, 9, 15]  # rows already measured were drawn so


def test_the_papers_network_gives_448_channels_at_64_positions_a_side() -> None:
    method = Padim(PadimSettings(image_size=64), build("resnet18"), CPU)
    method.fit(normals(2, seed=1))
    shapes = {name: tuple(buffer.shape) for name, buffer in method.kept.named_buffers()}
    assert shapes == {"channels": (100,), "mean": (100, 256), "whitening": (256, 100, 100)}
    assert sum(method.teacher.network.channels) == 448
    assert int(method.kept.get_buffer("channels").max()) < 448


def test_more_channels_than_the_teacher_has_are_refused() -> None:
    with pytest.raises(ValueError, match="channels 177: teacher efficientnet_lite0 has 176 in all its taps"):
        small_method("padim", channels=177)


def test_the_number_of_channels_is_a_deviation_where_the_paper_has_another() -> None:
    assert not any(one.startswith("channels") for one in PadimSettings().deviations)
    assert "channels: 50 (paper: 100 with this teacher)" in PadimSettings(channels=50).deviations
    wide = PadimSettings(teacher="wide_resnet50_2", channels=100)
    assert "channels: 100 (paper: 550 with this teacher)" in wide.deviations
    assert [one.partition(":")[0] for one in PadimSettings(teacher="wide_resnet50_2", channels=550).deviations] == [
        "input"
    ]
