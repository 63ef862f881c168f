"""Fusion, blur, scores and the whole map: every path against the oracle, and against scipy."""

from __future__ import annotations

import re
from typing import Any

import pytest
import scipy.ndimage
import torch

from kdad_bench import kernels
from kdad_bench.kernels import compile_check, reference, triton_path
from tests.kernels.checks import (
    CHANNELS_LAST,
    assert_close,
    check_blur,
    check_fusion,
    check_scores,
    double,
    maps_of,
    pair,
)
from tests.kernels.guards import Guards, between_nans


def test_fusion_agrees_with_the_oracle_and_stays_inside_its_tensors(device: torch.device, guards: Guards) -> None:
    check_fusion(
        kernels.fuse_scales, [between_nans(m) for m in maps_of([(8, 8), (4, 4), (2, 2)], device=device)], (32, 32)
    )
    check_fusion(
        kernels.fuse_scales,
        [between_nans(m) for m in maps_of([(7, 5), (1, 1), (3, 9), (30, 41)], device=device)],
        (29, 37),
    )
    check_fusion(kernels.fuse_scales, maps_of([(5, 70)], device=device), (1, 1))


def test_blur_agrees_with_the_oracle_and_stays_inside_its_tensors(device: torch.device, guards: Guards) -> None:
    for size in ((33, 40), (1, 70), (5, 1), (9, 3)):
        check_blur(kernels.gaussian_blur, between_nans(maps_of([size], device=device)[0]), 4.0)
    check_blur(kernels.gaussian_blur, maps_of([(20, 31)], device=device)[0], 0.8)


def test_blur_is_scipys_gaussian_filter(device: torch.device) -> None:
    (maps,) = maps_of([(37, 45)], batch=1, device=device)
    for border, mode in (("scipy", "reflect"), ("torch", "mirror")):
        expected = scipy.ndimage.gaussian_filter(maps[0].cpu().double().numpy(), 4, mode=mode)
        found = kernels.gaussian_blur(maps, 4.0, border=border)[0].cpu().double()
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=2e-6, atol=1e-7)


def test_blur_takes_a_radius(device: torch.device) -> None:
    (maps,) = maps_of([(12, 14)], device=device)
    expected = reference.gaussian_blur(double(maps)[0], 4.0, radius=3)
    assert_close(kernels.gaussian_blur(maps, 4.0, radius=3), expected, 2e-5)
    torch.testing.assert_close(kernels.gaussian_blur(maps, 4.0, radius=0), maps)


def test_scores_agree_with_the_oracle(device: torch.device) -> None:
    maps = maps_of([(9, 35)], device=device)[0]
    maps[0, 8, 34] = 7.0
    check_scores(kernels.image_scores, maps)


WHOLE = [
    {},
    {"mode": "product"},
    {"mode": "product", "fuse_size": (13, 11), "weight": 2.0},
    {"sigma": 4.0, "align_corners": True, "kind": "cosine"},
    {"mode": "product", "sigma": 1.5, "border": "torch", "score": "mean"},
    {"kind": "l2", "score": "mean"},
    {"weight": -1.0, "mode": "sum"},
]


@pytest.mark.parametrize("options", WHOLE, ids=str)
def test_whole_map_agrees_with_the_oracle(options: dict[str, object], device: torch.device, guards: Guards) -> None:
    scales = [(2, 12, 9, 8), (2, 20, 5, 4), (2, 7, 2, 3)]
    pairs = [pair(shape, layout=CHANNELS_LAST, seed=k, device=device) for k, shape in enumerate(scales)]
    teachers, students = [t for t, _ in pairs], [s for _, s in pairs]
    expected = reference.anomaly_map(double(*teachers), double(*students), (33, 30), **options)
    found = kernels.anomaly_map(teachers, students, (33, 30), **options)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert_close(mine, theirs, 5e-5, 1e-7)


def test_more_scales_than_one_launch_takes_still_agree_with_the_oracle(device: torch.device) -> None:
    pairs = [pair((1, 4, side, side), seed=side, device=device) for side in (2, 3, 4, 5, 6)]
    teachers, students = [t for t, _ in pairs], [s for _, s in pairs]
    expected = reference.anomaly_map(double(*teachers), double(*students), (12, 12))
    for mine, theirs in zip(kernels.anomaly_map(teachers, students, (12, 12)), expected, strict=True):
        assert_close(mine, theirs, 5e-5, 1e-7)
    loss = kernels.distillation_loss(teachers, students)
    assert_close(loss, reference.distillation_loss(double(*teachers), double(*students)), 2e-5)


def test_not_a_number_reaches_map_and_score(device: torch.device) -> None:
    t, s = pair((2, 4, 6, 6), device=device)
    s[1, 0, 2, 2] = torch.nan
    found, scores = kernels.anomaly_map([t], [s], (12, 12))
    assert not found[0].isnan().any()
    assert found[1].isnan().any()
    assert scores.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("mode", "sigma", "fuse_size", "launches"),
    [
        ("sum", 4.0, None, 2),
        ("product", None, None, 2),
        ("sum", None, None, 2),
        ("product", 4.0, None, 2),
        ("product", None, (64, 64), 2),  # STFPM's code
    ],
)
def test_whole_map_of_three_scales_is_so_many_launches(
    mode: str, sigma: float | None, fuse_size: tuple[int, int] | None, launches: int
) -> None:
    t, s = (compile_check.taps(compile_check.RESNET18, 8, torch.float16, torch.channels_last) for _ in range(2))
    log: list[compile_check.Launch] = []
    with compile_check.recording(log, "whole map"):
        triton_path.anomaly_map(t, s, (256, 256), "unit_l2", 1.0, mode, False, sigma, 16, "scipy", "max", fuse_size)
    assert len(log) == launches


def test_whole_map_passes_gradients_to_the_features(device: torch.device) -> None:
    pairs = [pair((1, 5, 6, 6), device=device), pair((1, 4, 3, 3), seed=1, device=device)]
    teachers = [t for t, _ in pairs]
    students = [s.requires_grad_() for _, s in pairs]
    found, scores = kernels.anomaly_map(teachers, students, (12, 12), sigma=1.0, mode="product")
    gradients = torch.autograd.grad(found.sum() + scores.sum(), students)
    oracle = [s.requires_grad_() for s in double(*students)]
    expected, expected_scores = reference.anomaly_map(double(*teachers), oracle, (12, 12), sigma=1.0, mode="product")
    for mine, theirs in zip(
        gradients, torch.autograd.grad(expected.sum() + expected_scores.sum(), oracle), strict=True
    ):
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("size", "to"), [((3, 5), (12, 7)), ((9, 1), (4, 6)), ((1, 1), (1, 5))])
def test_the_gradient_of_upsampling_in_one_order_is_that_of_pytorch(
    size: tuple[int, int], to: tuple[int, int], align_corners: bool
) -> None:
    upstream = torch.randn(2, 1, *to, dtype=torch.float64)
    expected = reference.upsampling_gradient(upstream, size, align_corners)
    found = reference.upsampling_gradient_in_order(upstream, size, align_corners)
    torch.testing.assert_close(found, expected)


def test_unusable_maps_are_refused_with_their_reason() -> None:
    maps = maps_of([(4, 4)])
    with pytest.raises(ValueError, match="mode 'mean' is not one of sum, product"):
        kernels.fuse_scales(maps, (8, 8), mode="mean")
    with pytest.raises(ValueError, match="at least one map"):
        kernels.fuse_scales([], (8, 8))
    with pytest.raises(ValueError, match="size must be"):
        kernels.fuse_scales(maps, (0, 8))
    with pytest.raises(ValueError, match="sigma must be positive and finite; got 0"):
        kernels.gaussian_blur(maps[0], 0)
    with pytest.raises(ValueError, match="border 'zero' is not one of scipy, torch"):
        kernels.gaussian_blur(maps[0], border="zero")
    with pytest.raises(ValueError, match="rule 'min' is not one of max, mean"):
        kernels.image_scores(maps[0], "min")


WRONG: dict[str, dict[str, Any]] = {
    "size must be (height, width), both whole and at least 1; got (24,)": {"size": (24,)},
    "size must be (height, width), both whole and at least 1; got (24, 20, 2)": {"size": (24, 20, 2)},
    "size must be (height, width), both whole and at least 1; got (24.5, 20)": {"size": (24.5, 20)},
    "fuse_size must be (height, width), both whole and at least 1; got (9,)": {"size": (24, 20), "fuse_size": (9,)},
    "fuse_size must be (height, width), both whole and at least 1; got (0, 9)": {"size": (24, 20), "fuse_size": (0, 9)},
    "sigma must be positive and finite; got inf": {"size": (24, 20), "sigma": float("inf")},
}


@pytest.mark.parametrize("says", WRONG)
def test_a_wrong_size_of_a_map_is_refused_before_anything_runs(says: str, path: str) -> None:
    t, s = pair((1, 4, 6, 6))
    with pytest.raises(ValueError, match=re.escape(says)):
        kernels.anomaly_map([t], [s], **WRONG[says])


def test_an_infinite_blur_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="finite; got inf"):
        kernels.gaussian_blur(torch.rand(1, 8, 8), float("inf"))


@pytest.mark.parametrize("mode", ["sum", "product"])
def test_infinity_stays_what_it_is(mode: str, device: torch.device) -> None:
    """Squared distances overflow; an image's score would be no number by one path alone."""
    for k, place in ((0, (2, 2)), (1, (0, 0)), (0, (2, 0)), (1, (-1, -1))):
        maps = [m + 1 for m in maps_of([(6, 6), (3, 5)], device=device)]
        maps[k][0][place] = torch.inf
        found = kernels.fuse_scales(maps, (12, 12), mode=mode)
        expected = reference.fuse_scales(double(*maps), (12, 12), mode=mode)
        assert torch.equal(found.cpu().isnan(), expected.isnan()), place
        assert torch.equal(found.cpu().isinf(), expected.isinf()), place


@pytest.mark.parametrize("align", [False, True])
def test_positions_are_counted_beyond_int32(align: bool, device: torch.device) -> None:
    row = torch.linspace(0, 1, 1 << 21).view(1, 1, -1)
    found = kernels.fuse_scales([row.to(device)], (1, 1100), align_corners=align)
    assert_close(found, reference.fuse_scales([row.double()], (1, 1100), align_corners=align), 1e-3, 1e-6)


def test_infinity_stays_what_it_is_and_where_it_is_at_a_maps_own_size(device: torch.device) -> None:
    own, other = maps_of([(12, 9), (3, 5)], batch=1, device=device)
    own[0, 5, 4] = torch.inf
    assert torch.equal(kernels.fuse_scales([own], (12, 9)), own)
    for mode in ("sum", "product"):
        found = kernels.fuse_scales([other + 1, own], (12, 9), mode=mode)
        assert torch.equal(found.isinf(), own.isinf())
        assert not found.isnan().any()


@pytest.mark.parametrize("border", ["scipy", "torch"])
def test_a_blur_makes_no_nan_of_infinity(border: str, path: str) -> None:
    if path == "triton":
        pytest.skip("products of tiles spread it, as docs/kernels.md says")
    maps = maps_of([(40, 33)], batch=2)[0]
    maps[1, 20, 20] = torch.inf
    found = kernels.gaussian_blur(maps, 1.0, border=border)
    expected = reference.gaussian_blur(maps.double(), 1.0, border=border)
    assert torch.equal(found.isinf(), expected.isinf())
    assert_close(found, expected, 2e-5)
