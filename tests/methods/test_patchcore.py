"""PatchCore against its formulas in numpy: patch features, coreset, scores, and faulty ones that the checks reject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import ceil, log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.methods.backbones import build
from kdad_bench.methods.patchcore import (
    Patchcore,
    PatchcoreSettings,
    coreset,
    farthest_first,
    farthest_of_all,
    mean_of_patches,
    pooled_patches,
    projected,
    weight,
)
from tests.methods.test_stfpm import bilinear
from tests.methods.toys import CPU, normals, small_method, small_settings


def taps(seed: int, count: int) -> tuple[Tensor, ...]:
    """Random features shaped as Lite0's of 64 x 64 images, of the taps at strides 8 and 16."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, c, s, s, generator=generator) for c, s in ((40, 8), (112, 4)))


def fitted(known: tuple[Tensor, ...], **changes: object) -> Patchcore:
    method = small_method("patchcore", **{"sigma": 1.0, "coreset": 1.0, **changes})
    assert isinstance(method, Patchcore)
    method.taps_of = lambda images: iter([known])  # type: ignore[method-assign]
    method.fit(normals(len(known[0]), seed=1))
    return method


def neighbourhood(tap: np.ndarray, i: int, j: int, side: int = 3) -> np.ndarray:
    """[C, side²]: side x side values of each channel, zeros beyond the border."""
    beyond = (side - 1) // 2
    padded = np.pad(tap, ((0, 0), (beyond, beyond), (beyond, beyond)))
    return padded[:, i : i + side, j : j + side].reshape(len(tap), side * side)


def adaptive(values: np.ndarray, width: int) -> np.ndarray:
    """Means over `width` stretches that cover all values, each from floor to ceiling."""
    n = len(values)
    return np.array([values[i * n // width : ceil((i + 1) * n / width)].mean() for i in range(width)])


@pytest.mark.parametrize(("side", "width"), [(3, 7), (3, 40), (3, 64), (3, 500), (1, 40), (5, 40), (7, 64)])
def test_a_patch_feature_pools_channel_and_neighbourhood_in_one_row(side: int, width: int) -> None:
    tap = taps(1, 1)[0]
    found, means = pooled_patches(tap, side, width), mean_of_patches(tap, side)
    for i, j in ((0, 0), (3, 5), (7, 7)):
        around = neighbourhood(tap[0].double().numpy(), i, j, side)
        np.testing.assert_allclose(found[0, :, i, j].numpy(), adaptive(around.ravel(), width), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(means[0, :, i, j].numpy(), around.mean(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["adaptive", "mean"])
def test_the_embedding_is_that_of_the_code_it_follows(pooling: str) -> None:
    features, width = taps(1, 1), 32
    method = small_method("patchcore", pooling=pooling, width=width)
    assert isinstance(method, Patchcore)
    maps = []
    for tap in features:
        values, side = tap[0].double().numpy(), tap.shape[-1]
        rows = [neighbourhood(values, i, j) for i in range(side) for j in range(side)]
        flat = np.array([row.ravel() if pooling == "adaptive" else row.mean(1) for row in rows])
        grids = flat.T.reshape(-1, side, side)
        maps.append(np.array([grid if side == 8 else bilinear(grid, 8) for grid in grids]))
    found = method.embed(features)[0].numpy()
    for i, j in np.ndindex(8, 8):
        rows = [one[:, i, j] for one in maps]
        if pooling == "adaptive":
            expected = adaptive(np.concatenate([adaptive(row, width) for row in rows]), width)
        else:
            expected = np.concatenate(rows)
        np.testing.assert_allclose(found[:, i, j], expected, rtol=1e-4, atol=1e-5)


def test_adaptive_pooling_gives_1024_values_per_patch_of_stride_8() -> None:
    settings = PatchcoreSettings(image_size=64, coreset=0.25, pooling="adaptive")
    method = Patchcore(settings, build("resnet18", strides=(8, 16)), CPU)
    method.fit(normals(2, seed=1))
    assert tuple(method.kept.get_buffer("memory").shape) == (32, 1024)  # a quarter of 2 x 64


@pytest.mark.parametrize(
    ("teacher", "strides", "width", "pooled"),
    [
        ("wide_resnet50_2", (8, 16), 1024, "adaptive"),
        ("resnet50", (8, 16), 1024, "adaptive"),
        ("wide_resnet50_2", (8, 16), 1025, "mean"),
        ("wide_resnet50_2", (4, 8), 1024, "mean"),
        ("resnet18", (8, 16), 1024, "mean"),
        ("resnet18", (8, 16), 256, "adaptive"),
        ("vgg16", (8, 16), 1024, "mean"),
        ("efficientnet_lite0", (8, 16), 1024, "mean"),
    ],
)
def test_by_default_taps_too_narrow_for_adaptive_pooling_are_averaged(
    teacher: str, strides: tuple[int, ...], width: int, pooled: str
) -> None:
    settings = PatchcoreSettings(teacher=teacher, strides=strides, width=width)
    assert settings.pooled == pooled
    assert replace(settings, pooling="adaptive").pooled == "adaptive"
    assert replace(settings, pooling="mean").pooled == "mean"


def values_averaged(channels: int, width: int) -> float:
    """How many of a patch's 9 neighbours a value of the adaptive pooling averages, at the least."""
    rows = torch.eye(9).repeat(1, channels)  # a neighbour's row is 1 where its values stand
    weights = F.adaptive_avg_pool1d(rows[None], width)[0]
    return float((weights > 0).sum(0).min())


def test_adaptive_pooling_smooths_the_papers_network_and_not_a_narrow_one() -> None:
    assert values_averaged(1024, 1024) == 9
    assert values_averaged(512, 1024) >= 4
    assert values_averaged(256, 1024) <= 3
    assert values_averaged(128, 1024) <= 2


Greedy = Callable[[Tensor, int, int], Tensor]


def naive_greedy(points: Tensor, count: int, first: int) -> Tensor:
    """Algorithm 1, all distances at each step."""
    chosen = [first]
    values = points.double()
    while len(chosen) < count:
        apart = (values[:, None] - values[chosen]).square().sum(2).amin(1)
        apart[chosen] = -1
        chosen.append(int(apart.argmax()))
    return torch.tensor(chosen)


def check_greedy(greedy: Greedy) -> None:
    """Heaps, a line and duplicates, of whole numbers so that equal distances are equal."""
    generator = torch.Generator().manual_seed(1)
    heaps = torch.randint(0, 8, (120, 3), generator=generator) + 100 * torch.randint(
        0, 3, (120, 1), generator=generator
    )
    line = torch.arange(50.0)[:, None].square()
    for points in (heaps.float(), line, torch.ones(9, 2)):
        for count in (1, 2, 7, len(points)):
            assert torch.equal(greedy(points, count, 4), naive_greedy(points, count, 4))


@pytest.mark.parametrize("greedy", [farthest_first, farthest_of_all])
def test_the_coreset_is_that_of_the_plain_greedy_search(greedy: Greedy) -> None:
    check_greedy(greedy)


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 1000))
def test_any_small_coreset_is_that_of_the_plain_greedy_search(n: int, d: int, seed: int) -> None:
    points = torch.randint(-20, 20, (n, d), generator=torch.Generator().manual_seed(seed)).float()
    wanted = naive_greedy(points, 1 + seed % n, seed % n)
    assert torch.equal(farthest_first(points, 1 + seed % n, seed % n), wanted)
    assert torch.equal(farthest_of_all(points, 1 + seed % n, seed % n), wanted)


def nearest_first(points: Tensor, count: int, first: int) -> Tensor:
    order = (points - points[first]).square().sum(1).argsort(stable=True)
    return order[:count]


def at_random(points: Tensor, count: int, first: int) -> Tensor:
    return torch.randperm(len(points), generator=torch.Generator().manual_seed(1))[:count]


def farthest_from_the_last(points: Tensor, count: int, first: int) -> Tensor:
    """Forgets all but the last centre."""
    chosen = [first]
    while len(chosen) < count:
        apart = (points - points[chosen[-1]]).square().sum(1)
        apart[chosen] = -1
        chosen.append(int(apart.argmax()))
    return torch.tensor(chosen)


@pytest.mark.parametrize("faulty", [nearest_first, at_random, farthest_from_the_last])
def test_a_faulty_coreset_is_rejected(faulty: Greedy) -> None:
    with pytest.raises(AssertionError):
        check_greedy(faulty)


def test_the_projection_keeps_distances_and_is_sparse() -> None:
    features = torch.randn(200, 2000, generator=torch.Generator().manual_seed(1))
    low = projected(features, 0.9, torch.Generator().manual_seed(2))
    assert low.shape == (200, int(4 * log(200) / (0.9**2 / 2 - 0.9**3 / 3)))
    ratio = torch.pdist(low).square() / torch.pdist(features).square()
    assert 0.1 < float(ratio.min()) < float(ratio.max()) < 1.9
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)
    axes = projected(torch.eye(2000), 0.9, torch.Generator().manual_seed(2))
    assert float((axes != 0).float().mean()) == pytest.approx(2000**-0.5, rel=0.1)


@pytest.mark.parametrize("epsilon", [1e-300, 1e-160, 1e-9])
def test_next_to_no_distortion_is_no_projection(epsilon: float) -> None:
    features = torch.rand(50, 8)
    assert projected(features, epsilon, torch.Generator()) is features
    assert small_settings("patchcore", epsilon=epsilon).kept_bytes(10) == small_settings(
        "patchcore", epsilon=1e-4
    ).kept_bytes(10)


def test_few_channels_are_not_projected() -> None:
    features = torch.randn(300, 20)
    assert projected(features, 0.9, torch.Generator()) is features


def test_the_coreset_follows_from_the_seed() -> None:
    features = torch.randn(100, 8, generator=torch.Generator().manual_seed(1))
    first, again, other = (coreset(features, 10, 0.9, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == 10


def check_weight(of: Callable[[Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """Eq. 7 in numpy."""
    generator = torch.Generator().manual_seed(4)
    memory, x = torch.randn(30, 5, generator=generator), torch.randn(6, 5, generator=generator) * 2
    star = torch.cdist(x, memory).argmin(1)
    for count in (2, 3, 9, 99):
        found = of(x, memory, star, count)
        for n in range(6):
            m = memory.double().numpy()
            around = np.argsort(((m - m[star[n]]) ** 2).sum(1), kind="stable")[:count]
            apart = np.sqrt(((m - x[n].double().numpy()) ** 2).sum(1))
            assert float(found[n]) == pytest.approx(1 - np.exp(apart[star[n]]) / np.exp(apart[around]).sum(), rel=1e-4)


def test_the_weight_is_equation_7() -> None:
    check_weight(weight)


def around_the_patch(x: Tensor, memory: Tensor, star: Tensor, count: int) -> Tensor:
    """The neighbours of the patch, not of its nearest."""
    apart = torch.cdist(x, memory)
    around = apart.topk(min(count, len(memory)), largest=False).values
    return 1 - (apart.gather(1, star[:, None])[:, 0] - around.logsumexp(1)).exp()


FAULTY_WEIGHTS: dict[str, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {
    "none": lambda x, memory, star, count: torch.ones(len(x)),
    "around the patch": around_the_patch,
    "one neighbour more": lambda x, memory, star, count: weight(x, memory, star, count + 1),
    "complement": lambda x, memory, star, count: 1 - weight(x, memory, star, count),
}


@pytest.mark.parametrize("name", FAULTY_WEIGHTS)
def test_a_faulty_weight_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_weight(FAULTY_WEIGHTS[name])


def test_distances_far_beyond_exp_have_a_weight() -> None:
    memory = torch.tensor([[0.0], [1000.0], [2000.0]])
    assert float(weight(torch.tensor([[-500.0]]), memory, torch.tensor([0]), 3)) == pytest.approx(1.0)


@pytest.mark.parametrize("reweighted", [0, 3])
def test_map_and_score_are_distances_to_the_memory(reweighted: int) -> None:
    known, probe = taps(1, 3), taps(2, 2)
    method = fitted(known, reweighted=reweighted)
    memory = method.embed(known).permute(0, 2, 3, 1).reshape(-1, 152).double().numpy()
    np.testing.assert_array_equal(method.kept.get_buffer("memory").double().numpy(), memory)
    features = method.embed(probe).double().numpy()
    scores = method.judge(probe, (8, 8))
    for n in range(2):
        every = np.sqrt(((features[n].reshape(152, 64).T[:, None] - memory) ** 2).sum(2))
        distance = every.min(1)
        np.testing.assert_allclose(scores.pixel[n].numpy(), gaussian_filter(distance.reshape(8, 8), 1.0), rtol=1e-4)
        worst = int(distance.argmax())
        expected = distance[worst]
        if reweighted:
            star = int(every[worst].argmin())
            around = np.argsort(((memory - memory[star]) ** 2).sum(1), kind="stable")[:reweighted]
            expected *= 1 - np.exp(every[worst, star]) / np.exp(every[worst, around]).sum()
        assert float(scores.image[n]) == pytest.approx(expected, rel=1e-4)


def test_by_a_memory_of_one_patch_the_score_is_the_greatest_distance() -> None:
    known, probe = taps(1, 1), taps(2, 2)
    method = fitted(known, coreset=0.001)
    assert len(method.kept.get_buffer("memory")) == 1
    plain = fitted(known, coreset=0.001, reweighted=0).judge(probe, (8, 8))
    assert torch.equal(method.judge(probe, (8, 8)).image, plain.image)
    assert float(plain.image.min()) > 0


def test_the_variants_give_other_scores() -> None:
    known, probe = taps(1, 3), taps(2, 2)
    plain = fitted(known).judge(probe, (8, 8))
    for changes in ({"pooling": "adaptive", "width": 64}, {"coreset": 0.05}, {"patch": 1}):
        assert not torch.equal(fitted(known, **changes).judge(probe, (8, 8)).pixel, plain.pixel)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch": 4}, "patch 4 is not odd"),
        ({"reweighted": 1}, "reweighted 1: a single neighbour"),
        ({"coreset": 0.0}, "coreset 0.0 is not in"),
        ({"pooling": "max"}, "pooling 'max' is not known; have: by_width, adaptive, mean"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        small_method("patchcore", **changes)


def test_readings_follow_from_the_settings() -> None:
    said = " ".join(PatchcoreSettings().readings)
    assert "b = 9" in said
    assert "drawn by the seed" in said
    other = " ".join(PatchcoreSettings(reweighted=0, coreset=1.0).readings)
    assert "plain maximum" in other
    assert "drawn" not in other
