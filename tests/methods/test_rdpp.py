"""RD++ against its formulas in numpy: projections, pseudo-anomalies, the terms of its loss, and faulty ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import build
from kdad_bench.methods.distillation import Batch, Taps
from kdad_bench.methods.rdpp import (
    Outputs,
    ProjectedStudent,
    Projection,
    Rdpp,
    contrast,
    largest,
    least,
    noised_images,
    sinkhorn_divergence,
)
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.test_rd4ad import one_minus_cosine
from tests.methods.test_stfpm import taps
from tests.methods.toys import normals, small_method

WEIGHT = 0.2 / 1.11


def method_of(**changes: Any) -> Rdpp:
    found = small_method("rdpp", **changes)
    assert isinstance(found, Rdpp)
    return found


@pytest.mark.parametrize("channels", [24, 64, 256])
def test_a_projection_has_the_parameters_counted_by_hand(channels: int) -> None:
    widths = (channels, channels // 2, channels // 4, channels // 2, channels)
    expected = sum(9 * a * b + b for a, b in pairwise(widths))  # with biases, no norm's weights
    assert sum(parameter.numel() for parameter in Projection(channels).parameters()) == expected


def test_the_papers_projections_are_as_large_as_the_official_codes() -> None:
    with torch.device("meta"):
        student = ProjectedStudent(build("wide_resnet50_2"), signed=False)
    found = {name: sum(p.numel() for p in part.parameters()) for name, part in student.named_children()}
    assert found == {"projections": 15_486_912, "bottleneck": 58_885_120, "decoder": 24_917_504}


def test_a_projection_is_four_convolutions_each_normed_per_image_and_rectified() -> None:
    torch.manual_seed(0)
    projection, x = Projection(8), torch.randn(2, 8, 6, 6)
    y = x
    for layer in (module for module in projection if isinstance(module, nn.Conv2d)):
        y = nn.functional.conv2d(y, layer.weight, layer.bias, padding=1)
        y = (y - y.mean((2, 3), keepdim=True)) / (y.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        y = torch.where(y > 0, y, 0.01 * y)
    torch.testing.assert_close(projection(x), y, rtol=1e-4, atol=1e-5)
    alone = projection(x[:1])
    torch.testing.assert_close(alone, projection(x)[:1], rtol=1e-5, atol=1e-6)
    projection.eval()
    torch.testing.assert_close(projection(x), y, rtol=1e-4, atol=1e-5)  # the same at inference


def test_the_student_restores_from_projected_taps_and_projects_noised_ones_alike() -> None:
    student = ProjectedStudent(build("resnet18"), signed=False).eval()
    given = tuple(torch.randn(1, c, 64 // s, 64 // s) for c, s in ((64, 4), (128, 8), (256, 16)))
    with torch.no_grad():
        restored, projected, noised = student(given, tuple(2 * tap for tap in given))
        expected = student.decoder(student.bottleneck(projected))
        for index, one in enumerate(student.projections):
            torch.testing.assert_close(projected[index], one(given[index]))
            torch.testing.assert_close(noised[index], one(2 * given[index]))
            torch.testing.assert_close(restored[index], expected[index])
        assert student(given).noised == ()


Noised = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def check_noise(of: Noised) -> None:
    """Each image has one rectangle of its own, with sides of 10 to 31 px, that shows the field from its corner."""
    images, field = torch.full((40, 3, 256, 256), 0.95), 0.1 + torch.rand(3, 31, 31)
    found = of(images, field, torch.Generator().manual_seed(1))
    assert bool((images == 0.95).all())
    sides, corners = set(), set()
    for image in found:
        changed = (image != 0.95).all(0).nonzero()
        (top, left), (bottom, right) = changed.amin(0).tolist(), changed.amax(0).tolist()
        height, width = bottom - top + 1, right - left + 1
        assert len(changed) == height * width
        assert top >= 1
        assert left >= 1
        expected = 0.95 + field[:, :height, :width]  # beyond 1 where it is: not clipped
        torch.testing.assert_close(image[:, top : bottom + 1, left : right + 1], expected)
        sides |= {height, width}
        corners.add((top, left))
    assert min(sides) >= 10
    assert max(sides) <= 31
    assert len(sides) > 12
    assert len(corners) == len(images)


def test_a_pseudo_anomaly_is_a_rectangle_of_noise_that_is_added() -> None:
    check_noise(noised_images)


def at_one_place(images: Tensor, field: Tensor, generator: torch.Generator) -> Tensor:
    return noised_images(images[:1], field, generator).expand_as(images)


FAULTY_NOISE: dict[str, Noised] = {
    "none": lambda images, field, generator: images.clone(),
    "clipped": lambda images, field, generator: noised_images(images, field, generator).clamp(0, 1),
    "one place": at_one_place,
    "the field turned": lambda images, field, generator: noised_images(images, field.flip(1), generator),
    "twice": lambda images, field, generator: noised_images(noised_images(images, field, generator), field, generator),
    "in place": lambda images, field, generator: images.copy_(noised_images(images, field, generator)),
}


@pytest.mark.parametrize("name", FAULTY_NOISE)
def test_faulty_pseudo_anomalies_are_rejected(name: str) -> None:
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        check_noise(FAULTY_NOISE[name])


@pytest.mark.parametrize(("side", "low", "high"), [(32, 1, 4), (64, 2, 8), (128, 5, 16), (256, 10, 32), (512, 20, 64)])
def test_sizes_of_the_noise_are_those_of_256_px_scaled(side: int, low: int, high: int) -> None:
    assert (least(side), largest(side)) == (low, high)
    images = torch.zeros(30, 3, side, side)
    found = noised_images(images, torch.ones(3, high - 1, high - 1), torch.Generator().manual_seed(0))
    rows = (found[:, 0] > 0).any(2).sum(1)
    assert low <= int(rows.min()) <= int(rows.max()) < high


def test_noise_of_half_the_side_is_every_second_pixel_of_every_second_colour() -> None:
    """As the row says: not only sizes are scaled, the step from colour to colour is, too."""
    whole, half = (method_of(image_size=side).noise for side in (128, 64))
    side = half.shape[1]
    for colour in (0, 1):
        torch.testing.assert_close(half[colour], whole[2 * colour, ::2, ::2][:side, :side], rtol=0, atol=1e-6)
    said = method_of(image_size=64).settings.readings
    assert "noise: sizes as at 256 px, scaled to the image's side, and with them its step from colour to colour" in said
    assert not [one for one in replace(method_of().settings, image_size=256).readings if one.startswith("noise")]


def test_the_noise_is_a_fifth_of_the_field_and_follows_from_the_seed() -> None:
    first, again, other = (method_of(seed=seed).noise for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert tuple(first.shape) == (3, 7, 7)  # of 64 px: sides below 8
    assert 0.01 < float(first.abs().max()) < 0.2 * 2.4  # 1 + 0.6 + 0.36 + ... is below 2.4


def test_the_images_are_noised_by_the_batches_generator_alone() -> None:
    images, field = normals(4, seed=1), torch.ones(3, 7, 7)
    first, again, other = (noised_images(images, field, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def cosine(a: Tensor, b: Tensor) -> float:
    u, v = a.double().numpy().ravel(), b.double().numpy().ravel()
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


def check_contrast(of: Callable[[Taps, Taps], Tensor]) -> None:
    """max(0, cos - 1/2) of flattened maps, the mean over images and the sum over taps."""
    noised = taps(1)
    for share in (0.0, 0.4, 0.9):
        projected = tuple(share * n + (1 - share) * p for n, p in zip(noised, taps(2), strict=True))
        expected = sum(
            np.mean([max(cosine(n[i], p[i]) - 0.5, 0) for i in range(2)])
            for n, p in zip(noised, projected, strict=True)
        )
        assert float(of(noised, projected)) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_the_contrast_is_its_formula() -> None:
    check_contrast(contrast)


FAULTY_CONTRASTS: dict[str, Callable[[Taps, Taps], Tensor]] = {
    "no margin": lambda noised, projected: contrast(noised, projected) + 0.1,
    "towards": lambda noised, projected: -contrast(noised, projected),
    "the first tap alone": lambda noised, projected: contrast(noised[:1], projected[:1]),
    "the first image alone": lambda noised, projected: contrast(
        tuple(tap[:1] for tap in noised), tuple(tap[:1] for tap in projected)
    ),
}


@pytest.mark.parametrize("name", FAULTY_CONTRASTS)
def test_a_faulty_contrast_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_contrast(FAULTY_CONTRASTS[name])


def test_the_terms_are_their_formulas_with_their_weights() -> None:
    given, noised, restored, projected, undone = (taps(seed) for seed in range(5))
    projected = tuple(0.8 * n + 0.2 * p for n, p in zip(noised, projected, strict=True))
    method = method_of()
    method.student.forward = lambda *inputs: Outputs(restored, projected, undone)  # type: ignore[method-assign]
    found = {name: float(value) for name, value in method.terms(given, noised, torch.Generator()).items()}
    pairs = zip(undone, projected, strict=True)
    assert found == {
        "feature": pytest.approx(
            sum(one_minus_cosine(t, s, "flattened") for t, s in zip(given, restored, strict=True)), rel=1e-5
        ),
        "reconstruction": pytest.approx(
            WEIGHT * 0.01 * sum(one_minus_cosine(u, p, "cosine") for u, p in pairs), rel=1e-4
        ),
        "contrast": pytest.approx(WEIGHT * 0.1 * float(contrast(noised, projected)), rel=1e-5),
    }
    assert found["contrast"] > 0


def batch_of(count: int) -> Batch:
    images = normals(count, seed=1)
    return Batch(images=images, teacher=taps(1, count), step=1, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("count", "passes", "sizes"),
    [(8, 2, [4, 4]), (5, 2, [3, 2]), (8, 1, [8]), (3, 2, [3]), (2, 2, [2]), (1, 2, [1]), (9, 4, [3, 2, 2, 2])],
)
def test_a_step_is_the_sum_of_its_passes_and_no_pass_has_a_lone_image(
    count: int, passes: int, sizes: list[int]
) -> None:
    method, seen = method_of(passes=passes), []

    def terms(given: Taps, noised: Taps, generator: torch.Generator) -> dict[str, Tensor]:
        assert all(len(tap) == len(given[0]) for tap in (*given, *noised))
        seen.append(len(given[0]))
        return {"feature": torch.tensor(float(len(given[0])))}

    method.terms = terms  # type: ignore[method-assign]
    assert float(method.loss(batch_of(count))["feature"]) == count
    assert seen == sizes


def test_the_noised_features_are_the_teachers_of_noised_images() -> None:
    method, seen = method_of(passes=1), []
    method.terms = lambda given, noised, generator: seen.append((given, noised)) or {"feature": torch.zeros(())}  # type: ignore[func-returns-value,method-assign]
    batch = batch_of(2)
    method.loss(batch)
    noised = noised_images(batch.images, method.noise, torch.Generator().manual_seed(0))
    for found, expected in zip(seen[0][1], method.teacher(noised), strict=True):
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
    assert all(a is not b for a, b in zip(seen[0][0], seen[0][1], strict=True))


def test_the_projections_have_a_rate_of_their_own() -> None:
    method = method_of(learning_rate=0.3, projection_rate=0.07, betas=(0.5, 0.99))
    rest, projections = method.optimiser().param_groups
    parts = dict(method.student.named_children())
    assert (rest["lr"], projections["lr"], projections["betas"]) == (0.3, 0.07, (0.5, 0.99))
    assert {id(one) for one in projections["params"]} == {id(one) for one in parts["projections"].parameters()}


def test_every_convolution_learns() -> None:
    method = method_of(steps=2, batch_size=4)
    before = {name: value.clone() for name, value in method.student.named_parameters()}
    method.fit(normals(8, seed=1))
    still = [
        name
        for name, value in method.student.named_parameters()
        if torch.equal(value, before[name]) and not (name.startswith("projections") and name.endswith("bias"))
    ]  # an instance norm takes the bias before it away
    assert not still


def long_transport(cost: np.ndarray, blur: float) -> float:
    """Entropic transport of equal weights, many plain updates in float64."""
    n, m = cost.shape
    f, g, epsilon = np.zeros(n), np.zeros(m), blur**2
    for _ in range(1500):
        f = -epsilon * np.log(np.exp((g[None] - cost) / epsilon).mean(1))
        g = -epsilon * np.log(np.exp((f[:, None] - cost) / epsilon).mean(0))
    return float(f.mean() + g.mean())


def long_divergence(x: np.ndarray, y: np.ndarray) -> float:
    def cost(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        halves: np.ndarray = ((a[:, None] - b[None]) ** 2).sum(2) / 2
        return halves

    return (
        long_transport(cost(x, y), 0.05) - long_transport(cost(x, x), 0.05) / 2 - long_transport(cost(y, y), 0.05) / 2
    )


@pytest.mark.parametrize("scale", [0.01, 0.03, 0.1])
def test_the_divergence_and_its_gradient_are_those_of_long_updates(scale: float) -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = (scale * torch.randn(n, 4, generator=generator) + shift for n, shift in ((5, 0.0), (6, scale)))
    x.requires_grad_()
    y.requires_grad_()
    found = sinkhorn_divergence(x, y)
    a, b = x.detach().double().numpy(), y.detach().double().numpy()
    assert found.item() == pytest.approx(long_divergence(a, b), rel=1e-3, abs=1e-7)
    for values, gradient in zip((a, b), torch.autograd.grad(found, (x, y)), strict=True):
        step, largest_slope = 1e-4 * scale, float(gradient.abs().max())
        for place in ((0, 0), (3, 2)):
            sides = []
            for sign in (1, -1):
                values[place] += sign * step
                sides.append(long_divergence(a, b))
                values[place] -= sign * step
            slope = (sides[0] - sides[1]) / (2 * step)
            assert float(gradient[place]) == pytest.approx(slope, rel=0.02, abs=0.02 * largest_slope)


def test_a_cloud_in_another_order_is_the_same_cloud() -> None:
    """The official code's transport term: its value and its gradient vanish whatever the features are."""
    x = torch.randn(8, 30, generator=torch.Generator().manual_seed(1), requires_grad=True)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    found = sinkhorn_divergence(x, x[order])
    (gradient,) = torch.autograd.grad(found, x)
    assert abs(found.item()) < 1e-4
    assert float(gradient.abs().max()) < 1e-4
    (apart,) = torch.autograd.grad(sinkhorn_divergence(x[:4], x[4:]), x)
    assert float(apart.abs().max()) > 0.1


def test_single_points_are_half_their_squared_distance_apart() -> None:
    x, y = torch.tensor([[0.3, 0.0]]), torch.tensor([[0.0, 0.4]])
    assert float(sinkhorn_divergence(x, y)) == pytest.approx(0.125, rel=1e-5)


def test_the_loss_falls() -> None:
    seen = losses("rdpp", steps=10, batch_size=4)
    assert seen[-1] < 0.8 * seen[0]


def test_the_transport_between_halves_changes_what_is_learnt() -> None:
    assert_variants_differ("rdpp")


def test_a_small_image_and_half_precision_will_do() -> None:
    method = method_of(precision="bf16", steps=2, batch_size=2, image_size=32, transport="halves")
    method.fit(normals(2, seed=1))
    assert bool(method.score(normals(1, seed=2)).pixel.isfinite().all())
