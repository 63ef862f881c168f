"""MKD's cloner, loss, saliency maps, switches and learning."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from kdad_bench.methods.backbones import PYRAMIDS, Backbone, build, facts_of
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.mkd import (
    MKD,
    Cloner,
    Mkd,
    MkdSettings,
    discrepancy,
    grey_opening,
    guided_relu,
    input_gradient,
    smooth_saliency,
    stretched,
)
from kdad_bench.methods.protocol import Fitting
from tests.methods.phased_weights import wave, with_fixed_weights
from tests.methods.toys import CPU, auroc, normals, teacher_of, with_defects

TINY = MkdSettings(teacher="efficientnet_lite0", strides=(4, 8), scored=1, image_size=32, steps=3, batch_size=4)
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)


@cache
def source(name: str, strides: tuple[int, ...] = (4, 8)) -> Backbone:
    torch.manual_seed(3)
    return build(name, strides=strides).eval()


def detector(**changes: object) -> Mkd:
    settings = replace(TINY, **changes)
    return MKD.build(settings, source(settings.teacher, settings.strides), CPU)  # type: ignore[return-value]


def numpy_loss(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Direction and value of one layer per image, from the formulas."""
    flat_a, flat_b = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    cosine = (flat_a * flat_b).sum(1) / np.sqrt((flat_a**2).sum(1) * (flat_b**2).sum(1))
    return 1 - cosine, ((flat_a - flat_b) ** 2).mean(1)


def test_the_loss_of_each_image_is_what_numpy_makes_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    taps = [torch.randn(2, 3, c, n, n, generator=generator) for c, n in ((4, 6), (7, 3))]
    terms = discrepancy([t[0] for t in taps], [t[1] for t in taps])
    layers = [numpy_loss(t[0].numpy(), t[1].numpy()) for t in taps]
    np.testing.assert_allclose(terms.direction.numpy(), sum(d for d, _ in layers), rtol=1e-5)
    np.testing.assert_allclose(terms.value.numpy(), sum(v for _, v in layers), rtol=1e-5)


def test_training_and_scoring_weigh_the_value_and_score_only_the_deepest_layers() -> None:
    method = detector(value_weight=0.25)
    images = normals(4, 1, 32)
    with torch.no_grad():
        taps = method.teacher(images)
        cloned = method.student(method.teacher.network.normalise(images))  # eval mode, as in scoring
        terms = method.loss(Batch(images=images, teacher=taps, step=1, generator=torch.Generator()))
    layers = [numpy_loss(a.numpy(), b.numpy()) for a, b in zip(taps, cloned, strict=True)]
    assert terms["direction"].item() == pytest.approx(sum(d.mean() for d, _ in layers), rel=1e-4)
    assert terms["value"].item() == pytest.approx(0.25 * sum(v.mean() for _, v in layers), rel=1e-4)
    deepest_direction, deepest_value = layers[-1]
    np.testing.assert_allclose(method.score(images).image, deepest_direction + 0.25 * deepest_value, rtol=1e-4)


def test_the_loss_reaches_every_weight_of_the_cloner_and_none_of_the_source() -> None:
    method = detector()
    method.student.train()
    images = normals(4, 1, 32)
    with torch.no_grad():
        taps = method.teacher(images)
    sum(method.loss(Batch(images=images, teacher=taps, step=1, generator=torch.Generator())).values()).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and bool(p.grad.any()) for p in method.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


def test_training_leaves_the_source_bit_for_bit() -> None:
    method = detector()
    before = {key: value.clone() for key, value in method.teacher.network.state_dict().items()}
    method.fit(normals(6, 2, 32))
    assert all(torch.equal(method.teacher.network.state_dict()[key], value) for key, value in before.items())


def facts(name: str) -> Any:
    """What a cloner needs to know of a source, without its weights."""
    widths = facts_of(name).channels
    return SimpleNamespace(strides=tuple(widths), channels=tuple(widths.values()), signed=facts_of(name).signed)


PARAMETERS = {  # source -> of each block of cloner B and of cloner A; VGG-16's row counted from the official code too
    "resnet18": ((2_768, 11_552, 30_016, 57_664, 112_960), (38_720, 147_712, 1_033_216, 4_130_816, 5_900_288)),
    "resnet34": ((2_768, 11_552, 30_016, 57_664, 112_960), (38_720, 147_712, 1_033_216, 4_130_816, 5_900_288)),
    "resnet50": ((2_768, 39_200, 112_960, 223_552, 444_736), (38_720, 368_896, 2_360_320, 9_439_232, 16_517_120)),
    "wide_resnet50_2": (
        (2_768, 39_200, 112_960, 223_552, 444_736),
        (38_720, 368_896, 2_360_320, 9_439_232, 16_517_120),
    ),
    "vgg16": ((2_768, 20_768, 57_664, 112_960, 149_824), (38_720, 221_440, 1_475_584, 5_900_288, 7_079_936)),
    "efficientnet_lite0": ((2_768, 5_792, 11_584, 24_256, 64_576), (38_720, 101_632, 738_304, 3_061_760, 4_352_000)),
}
GOLDEN = (  # the official cloner's taps with these very weights: mean, 4 channels at the first and at the last pixel
    (0.027638, (0.08285, 0.0, 0.06222, 0.0), (0.02272, 0.01414, 0.02192, 0.02251)),
    (0.014657, (0.00243, 0.0, 0.0, 0.0), (0.00609, 0.0, 0.0, 0.0)),
    (0.008034, (0.00353, 0.0, 0.0, 0.00142), (0.01206, 0.00093, 0.0, 0.0)),
    (0.020886, (0.0, 0.0, 0.00644, 0.03857), (0.00639, 0.0, 0.0, 0.01333)),
)


@pytest.mark.parametrize("name", PYRAMIDS)
@pytest.mark.parametrize("full_width", [False, True])
def test_every_block_of_the_cloner_has_its_number_of_parameters(name: str, full_width: bool) -> None:
    cloner = Cloner(facts(name), full_width=full_width, signed=facts_of(name).signed)
    counts = tuple(sum(p.numel() for p in block.parameters()) for block in cloner.blocks)
    assert counts == PARAMETERS[name][full_width]


def test_taps_of_fixed_weights_are_the_official_cloners() -> None:
    cloner = with_fixed_weights(Cloner(facts("vgg16"), full_width=False, signed=False))
    with torch.no_grad():
        taps = cloner(wave((1, 3, 64, 64), 0.0).abs())
    for tap, (mean, first, last) in zip(taps, GOLDEN, strict=True):
        channels = slice(None, None, tap.shape[1] // 4)
        assert tap.mean().item() == pytest.approx(mean, abs=2e-6)
        torch.testing.assert_close(tap[0, channels, 0, 0], torch.tensor(first), atol=2e-5, rtol=0)
        torch.testing.assert_close(tap[0, channels, -1, -1], torch.tensor(last), atol=2e-5, rtol=0)


def test_the_cloners_first_weights_are_xaviers_uniform_ones() -> None:
    torch.manual_seed(5)
    for layer in Cloner(facts("vgg16"), full_width=False, signed=False).modules():
        if isinstance(layer, nn.Conv2d):
            bound = (6 / (9 * (layer.in_channels + layer.out_channels))) ** 0.5
            assert 0.97 * bound < float(layer.weight.detach().abs().max()) <= bound
            assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_the_cloner_has_the_published_widths_and_norms() -> None:
    cloner = Cloner(source("vgg16", (4, 8, 16, 32)), full_width=False, signed=False)
    convolutions = [m for m in cloner.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 16, 16, 128, 16, 16, 256, 16, 16, 512, 16, 16, 512]
    assert all(b.in_channels == a.out_channels for a, b in pairwise(convolutions))
    assert all(c.bias is None for c in convolutions)
    normed = [m.num_features for m in cloner.modules() if isinstance(m, nn.BatchNorm2d)]
    assert normed == [16] * 8  # all but the last of each block
    full = Cloner(source("vgg16", (4, 8, 16, 32)), full_width=True, signed=False)
    assert [c.out_channels for c in full.modules() if isinstance(c, nn.Conv2d)][-3:] == [512, 512, 512]


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "efficientnet_lite0"])
def test_the_cloner_answers_with_the_shapes_of_any_source_and_its_signs(name: str) -> None:
    method = detector(teacher=name)
    taps, cloned = method.networks(normals(2, 1, 32))
    assert [t.shape for t in taps] == [c.shape for c in cloned]
    assert any(bool((c < 0).any()) for c in cloned) == (name == "efficientnet_lite0")


def test_the_map_is_the_gradient_through_source_and_cloner_both() -> None:
    """Against central differences of the score in float64; a gradient through the cloner alone would fail."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(3, 3, 3, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=generator)

    def score(x: Tensor) -> Tensor:
        terms = discrepancy([nn.functional.conv2d(x, a).relu()], [nn.functional.conv2d(x, b).relu()])
        return terms.direction + 0.5 * terms.value

    def through_the_cloner_alone(x: Tensor) -> Tensor:
        terms = discrepancy([nn.functional.conv2d(x, a).relu().detach()], [nn.functional.conv2d(x, b).relu()])
        return terms.direction + 0.5 * terms.value

    scores, gradient = input_gradient(score, images)
    torch.testing.assert_close(scores, score(images))
    assert not torch.allclose(gradient, input_gradient(through_the_cloner_alone, images)[1], rtol=0.1)
    for n, c, i, j in ((0, 0, 2, 2), (0, 2, 5, 1), (1, 1, 0, 4)):
        step = torch.zeros_like(images)
        step[n, c, i, j] = 1e-4
        difference = (score(images + step) - score(images - step)).sum() / 2e-4
        assert gradient[n, c, i, j].item() == pytest.approx(difference.item(), rel=1e-3, abs=1e-6)


def test_a_detectors_map_is_its_gradient_summed_over_colours_blurred_and_opened() -> None:
    method = detector()
    method.fit(normals(6, 2, 32))
    images = normals(2, 3, 32).requires_grad_()
    taps, cloned = method.teacher(images), method.student(method.teacher.network.normalise(images))
    layers = [(taps[-1], cloned[-1])]
    score = sum(
        (1 - nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))) + 0.5 * (a - b).square().mean((1, 2, 3))
        for a, b in layers
    )
    score.sum().backward()  # type: ignore[union-attr]
    assert images.grad is not None
    saliency = images.grad.abs().sum(1).numpy()
    expected = [
        ndimage.grey_opening(ndimage.gaussian_filter(m, 4, truncate=4.0), footprint=CROSS, mode="nearest")
        for m in saliency.astype(np.float64)
    ]
    answer = method.score(images.detach()).pixel.numpy()
    np.testing.assert_allclose(answer[:, 1:-1, 1:-1], np.stack(expected)[:, 1:-1, 1:-1], rtol=2e-3)


def test_guided_backpropagation_passes_only_positive_gradients_through_positive_units() -> None:
    """A net of two layers by hand: y = w2 . relu(W1 x), once with a unit of negative weight."""
    first = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 1.0], [2.0, 1.0]])
    second = np.array([1.0, -3.0, 2.0, 0.5])
    x = np.array([1.5, 1.0])
    hidden = first @ x  # -0.5, 1.75, -0.5, 4: units 1 and 3 are on
    passed = np.where(hidden > 0, np.maximum(second, 0), 0)  # guided: the negative weight of unit 1 stops
    vanilla = np.where(hidden > 0, second, 0)
    for relu, expected in ((guided_relu, passed @ first), (torch.relu, vanilla @ first)):
        image = torch.tensor(x, requires_grad=True)
        (torch.tensor(second) * relu(torch.tensor(first) @ image)).sum().backward()
        np.testing.assert_allclose(image.grad, expected)
    assert not np.allclose(passed @ first, vanilla @ first)


def test_smooth_grad_is_the_mean_of_the_maps_of_noisy_copies() -> None:
    """Of maps, not of gradients: signs that change from copy to copy do not cancel (official code)."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(2, 3, 4, 4, generator=generator)
    noise = torch.randn(5, 3, 4, 4, generator=generator)
    deviation = torch.tensor([0.1, 0.7])
    answer = smooth_saliency(lambda x: (x**3).abs().sum(1), images, noise, deviation)
    x, n, d = images.numpy(), noise.numpy(), deviation.numpy()
    expected = np.mean([np.abs((x + d[:, None, None, None] * sample) ** 3).sum(1) for sample in n], axis=0)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_the_official_smooth_grad_averages_stretched_maps_and_stretches_their_mean() -> None:
    """Every noisy copy's map alone is clipped and stretched; the mean is stretched again, not clipped."""
    method = detector(saliency="smooth_grad", smooth_noise="official", stretch=True)
    images = normals(2, 3, 32)
    with torch.enable_grad():
        deviation = method.deviation(images)
        copies = [images + deviation.view(-1, 1, 1, 1) * sample for sample in method.noise(images)]
        gradients = [input_gradient(method.loss_of_images, copy)[1].abs().sum(1).numpy() for copy in copies]
    for n in range(2):
        tops = [(np.percentile(g[n], 99), g[n].min()) for g in gradients]
        maps = [np.clip((g[n] - low) / (top - low), 0, 1) for g, (top, low) in zip(gradients, tops, strict=True)]
        mean = np.mean(maps, axis=0)
        expected = (mean - mean.min()) / (mean.max() - mean.min())
        with torch.enable_grad():
            answer = method.smoothed(images)[n].numpy()
        assert (answer.min(), answer.max()) == (0, 1)
        np.testing.assert_allclose(answer, expected, atol=2e-3)


def test_the_noise_of_smooth_grad_follows_the_range_or_the_official_slip() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 1.0, 0.5
    assert detector().deviation(images).tolist() == pytest.approx([0.05, 0.025])
    assert detector(smooth_noise="official").deviation(images).tolist() == pytest.approx([0.0025, 0.01])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 5), (32, 31)])
def test_one_grey_opening_is_all_binary_openings_of_the_thresholded_maps(shape: tuple[int, int]) -> None:
    maps = torch.rand(2, *shape, generator=torch.Generator().manual_seed(6))
    opened = grey_opening(maps)
    for threshold in (0.1, 0.35, 0.5, 0.8):
        for m, o in zip(maps.numpy(), opened.numpy(), strict=True):
            eroded = ndimage.binary_erosion(m > threshold, CROSS, border_value=1)  # beyond the border is ignored
            assert np.array_equal(o > threshold, ndimage.binary_dilation(eroded, CROSS))


def test_a_stretched_map_is_clipped_at_its_percentile_and_fills_the_unit_interval() -> None:
    maps = torch.rand(2, 20, 20, generator=torch.Generator().manual_seed(7)) * torch.tensor([1.0, 50.0]).view(2, 1, 1)
    for m, s in zip(maps.numpy(), stretched(maps, 0.99).numpy(), strict=True):
        top = np.percentile(m, 99)
        np.testing.assert_allclose(s, (np.minimum(m, top) - m.min()) / (top - m.min()), atol=1e-5)


SWITCHES = (
    {"saliency": "smooth_grad"},
    {"saliency": "guided_backprop"},
    {"stretch": True},
    {"loss": "direction_only"},
    {"value_weight": 0.01},
    {"scored": 2},
    {"cloner": "A"},
    {"normalised": True},
)


@pytest.mark.parametrize(
    ("teacher", "taps", "signed"),
    [("efficientnet_lite0", "raw", True), ("resnet18", "raw", False), ("resnet18", "standardised", True)],
)
def test_the_cloner_has_the_signs_of_what_it_clones(teacher: str, taps: str, signed: bool) -> None:
    method = Mkd(MkdSettings(teacher=teacher, taps=taps), source(teacher, (4, 8, 16, 32)), CPU)
    assert method.student.signed == signed


def test_every_switch_changes_the_result() -> None:
    images, test = normals(6, 2, 32), normals(2, 9, 32)

    def maps(**changes: object) -> Tensor:
        method = detector(**changes)
        method.fit(images)
        return method.score(test).pixel

    plain = maps()
    for change in SWITCHES:
        assert not torch.allclose(plain, maps(**change), rtol=1e-3), change
    noises = [maps(saliency="smooth_grad", smooth_noise=kind) for kind in ("relative", "official")]
    assert not torch.allclose(*noises, rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [("saliency", "cam"), ("cloner", "C"), ("loss", "mse"), ("smooth_noise", "none"), ("scored", 3), ("scored", 0)],
)
def test_an_unknown_choice_is_refused_with_those_there_are(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} '?{value}"):
        detector(**{field: value})


@pytest.mark.parametrize("normalised", [False, True])
def test_both_networks_see_the_raw_image_or_both_the_normalised_and_the_source_given_is_untouched(
    normalised: bool,
) -> None:
    given = source("efficientnet_lite0")
    mean = given.mean.clone()
    method = detector(normalised=normalised)
    images = normals(2, 1, 32)
    taps, cloned = method.networks(images)
    seen = given.normalise(images) if normalised else images
    torch.testing.assert_close(taps[0], given.taps(seen)[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cloned[0], method.student(seen)[0], atol=1e-4, rtol=1e-4)
    assert torch.equal(given.mean, mean)


@pytest.mark.parametrize("saliency", ["gradient", "smooth_grad", "guided_backprop"])
def test_scoring_under_inference_mode_leaves_no_trace_and_ignores_the_batch(saliency: str) -> None:
    method = detector(saliency=saliency)
    images = normals(3, 4, 32)
    before = {key: value.clone() for key, value in method.module.state_dict().items()}
    with torch.inference_mode():
        method.networks(images)  # builds the inference copies first, as a clock might
        together = method.score(images)
        alone = [method.score(images[i : i + 1]) for i in range(3)]
    again = method.score(images)
    torch.testing.assert_close(again.pixel, together.pixel)
    largest = together.pixel.max().item()
    torch.testing.assert_close(together.pixel, torch.cat([a.pixel for a in alone]), atol=1e-4 * largest, rtol=1e-3)
    torch.testing.assert_close(together.image, torch.cat([a.image for a in alone]), atol=1e-5, rtol=1e-5)
    assert all(p.grad is None for p in method.module.parameters())
    assert all(torch.equal(method.module.state_dict()[key], value) for key, value in before.items())
    assert not together.pixel.requires_grad
    assert not together.image.requires_grad


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    images = normals(6, 2, 32)
    scores = []
    for seed in (1, 1, 2):
        method = detector(seed=seed, saliency="smooth_grad")
        torch.rand(3)  # the caller's random state must not matter
        method.fit(images)
        scores.append(method.score(normals(3, 9, 32)))
    assert torch.equal(scores[0].pixel, scores[1].pixel)
    assert torch.equal(scores[0].image, scores[1].image)
    assert not torch.equal(scores[0].image, scores[2].image)


def test_maps_come_at_the_size_of_the_images_given() -> None:
    scores = detector().score(normals(2, 4, 48))
    assert scores.pixel.shape == (2, 48, 48)
    assert scores.image.shape == (2,)
    assert scores.pixel.dtype == scores.image.dtype == torch.float32
    assert (scores.pixel >= 0).all()


def test_training_lowers_the_loss_and_finds_defects_that_the_untrained_cloner_does_not() -> None:
    settings = replace(MKD.presets["quick"], image_size=64, strides=(4, 8, 16), scored=2, steps=60, batch_size=8)
    method = MKD.build(settings, teacher_of("efficientnet_lite0"), CPU)
    good, (bad, masks) = normals(12, 70), with_defects(12, 71)
    bad = normals(12, 71).lerp(bad, 0.25)  # faint, for an untrained cloner finds the plain ones
    labels = torch.arange(24) >= 12

    def judged() -> tuple[float, float]:
        scores = method.score(torch.cat([good, bad]))
        return auroc(scores.image, labels), auroc(scores.pixel[12:], masks)

    before = judged()
    seen: list[float] = []
    method.fit(normals(24, 2), Fitting(log_every=1, log=lambda step, terms: seen.append(terms["loss"])))
    image, pixel = judged()
    assert np.mean(seen[-5:]) < 0.6 * np.mean(seen[:5])
    assert image > 0.9
    assert image > before[0] + 0.1
    assert pixel > max(0.9, before[1])
