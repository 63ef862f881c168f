"""Dinomaly against its formulas: attention, bottleneck, groups, loosened loss, StableAdamW, map; faulty ones."""

from __future__ import annotations

from collections.abc import Callable
from math import erf, exp, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import build
from kdad_bench.methods.dinomaly import (
    DecoderLayer,
    Dinomaly,
    DinomalySettings,
    LinearAttention,
    NoisyBottleneck,
    PyramidTokens,
    Restorer,
    VitTokens,
    heads_of,
    loosened,
)
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training.settings import SCHEDULES
from kdad_bench.methods.training.stable_adamw import EPSILON, StableAdamW
from tests.methods.curves import losses
from tests.methods.test_distillation import Interrupted, stop_at
from tests.methods.toys import CPU, normals, small_method

VIT = "dinov2_vits14_reg"


def method_of(**changes: Any) -> Dinomaly:
    found = small_method("dinomaly", **changes)
    assert isinstance(found, Dinomaly)
    return found


def settings_of(**changes: Any) -> DinomalySettings:
    return DinomalySettings(**{"teacher": VIT, "image_size": 224, **changes})


def with_larger_weights(module: nn.Module) -> nn.Module:
    """Weights by which something happens."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize(
    ("teacher", "width", "count"),
    [("dinov2_vitb14_reg", 768, 61_425_408), (VIT, 384, 15_377_280), ("dinov2_vits14", 384, 15_377_280)],
)
def test_bottleneck_and_decoder_have_the_parameters_counted_by_hand(teacher: str, width: int, count: int) -> None:
    layer = 4 * width**2 + 4 * width + 8 * width**2 + 5 * width + 4 * width
    with torch.device("meta"):
        student = Restorer(build(teacher, strides=(14,)), DinomalySettings())
    assert sum(parameter.numel() for parameter in student.parameters()) == 8 * layer + 8 * width**2 + 5 * width == count
    assert len(student.decoder) == 8


@pytest.mark.parametrize(
    ("width", "heads"), [(384, 6), (768, 12), (152, 4), (176, 4), (448, 7), (1792, 28), (64, 1), (65, 5), (67, 67)]
)
def test_heads_are_as_wide_as_dinov2s_or_the_next_divisor_below(width: int, heads: int) -> None:
    assert heads_of(width) == heads


def test_first_weights_are_a_narrow_normal_distribution_cut_off() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = Restorer(build("resnet18", strides=(8, 16)), DinomalySettings(layers=2))
    for name, module in student.named_modules():
        if isinstance(module, nn.Linear):
            assert 0.0095 < float(module.weight.detach().std()) < 0.0101, name
            assert 0.028 < float(module.weight.detach().abs().max()) <= 0.03, name
            assert bool((module.bias == 0).all())
        elif isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-8


def feature(value: float) -> float:
    return value + 1 if value > 0 else exp(value)  # elu + 1


def attention_by_hand(attention: LinearAttention, tokens: Tensor) -> Tensor:
    """Every pair of places by itself: the mean of values by f(q) f(k), head by head."""
    count, length, width = tokens.shape
    each = width // attention.heads
    weight, bias = attention.qkv.weight.double(), attention.qkv.bias.double()
    found = torch.zeros(count, length, width, dtype=torch.float64)
    for n in range(count):
        q, k, v = (tokens[n].double() @ weight.T + bias).view(length, 3, width).unbind(1)
        for head in range(attention.heads):
            part = slice(head * each, (head + 1) * each)
            for t in range(length):
                weights = [
                    sum(feature(float(a)) * feature(float(b)) for a, b in zip(q[t, part], k[s, part], strict=True))
                    for s in range(length)
                ]
                total = sum(weights)
                found[n, t, part] = sum(w / total * v[s, part] for s, w in enumerate(weights))
    return (found @ attention.proj.weight.double().T + attention.proj.bias.double()).float()


def check_attention(attention: nn.Module, own: LinearAttention) -> None:
    tokens = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(attention(tokens), attention_by_hand(own, tokens), rtol=1e-4, atol=1e-5)


def own_attention() -> LinearAttention:
    found = with_larger_weights(LinearAttention(6, 2))
    assert isinstance(found, LinearAttention)
    return found


@torch.no_grad()
def test_linear_attention_is_its_definition_pair_by_pair() -> None:
    check_attention(own_attention(), own_attention())


@torch.no_grad()
@pytest.mark.parametrize("fault", ["softmax", "unnormalised", "one head", "relu"])
def test_faulty_attention_is_rejected(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, faulty = own_attention(), own_attention()
    if fault == "softmax":
        faulty.forward = lambda tokens: nn.functional.multi_head_attention_forward(  # type: ignore[method-assign]
            *(tokens.transpose(0, 1),) * 3, 6, 2, own.qkv.weight, own.qkv.bias, None, None,
            False, 0.0, own.proj.weight, own.proj.bias, need_weights=False,
        )[0].transpose(0, 1)  # fmt: skip
    elif fault == "one head":
        faulty.heads = 1
    elif fault == "relu":
        monkeypatch.setattr(nn.functional, "elu", torch.relu)
    else:
        monkeypatch.setattr(Tensor, "__truediv__", lambda values, by: values)
    with pytest.raises(AssertionError):
        check_attention(faulty, own)


def test_attention_to_nothing_is_finite() -> None:
    attention = LinearAttention(4, 1)
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.bias.fill_(-200)  # f is 0 in float32
        assert bool(attention(torch.randn(1, 3, 4)).isfinite().all())


def gelu(x: Tensor) -> Tensor:
    return (0.5 * x.double() * (1 + torch.erf(x.double() / sqrt(2)))).float()


@torch.no_grad()
def test_a_layer_adds_attention_and_perceptron_of_normed_tokens() -> None:
    layer = with_larger_weights(DecoderLayer(6))
    assert isinstance(layer, DecoderLayer)
    x = torch.randn(2, 5, 6)

    def normed(values: Tensor, norm: nn.LayerNorm) -> Tensor:
        middle = values - values.mean(2, keepdim=True)
        return middle / (middle.square().mean(2, keepdim=True) + 1e-8).sqrt() * norm.weight + norm.bias

    y = x + attention_by_hand(layer.attention, normed(x, layer.norm1))
    hidden = gelu(normed(y, layer.norm2) @ layer.perceptron.fc1.weight.T + layer.perceptron.fc1.bias)
    expected = y + hidden @ layer.perceptron.fc2.weight.T + layer.perceptron.fc2.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-3, atol=1e-4)
    assert gelu(torch.ones(1)).item() == pytest.approx(0.5 * (1 + erf(1 / sqrt(2))), rel=1e-6)


@torch.no_grad()
def test_the_bottleneck_drops_out_at_three_places_and_only_while_it_learns() -> None:
    bottleneck = with_larger_weights(NoisyBottleneck(8, 0.25))
    assert isinstance(bottleneck, NoisyBottleneck)
    x = torch.randn(4, 50, 8)
    plain = gelu(x @ bottleneck.fc1.weight.T + bottleneck.fc1.bias) @ bottleneck.fc2.weight.T + bottleneck.fc2.bias
    torch.testing.assert_close(bottleneck(x), plain, rtol=1e-4, atol=1e-4)
    bottleneck.train()
    seen: list[float] = []
    bottleneck.dropout.register_forward_hook(
        lambda module, given, answer: seen.append(float((answer == 0).float().mean()))
    )
    torch.manual_seed(0)
    assert float((bottleneck(x) == 0).float().mean()) == pytest.approx(0.25, abs=0.04)
    assert seen == [pytest.approx(0.25, abs=0.04)] * 3


def vit_taps(count: int = 2) -> tuple[Tensor, ...]:
    """Eight maps 3 x 2 and a row of class and registers, each of its own value."""
    maps = tuple(torch.full((count, 384, 3, 2), float(k)) + torch.arange(6.0).view(3, 2) / 100 for k in range(8))
    return (*maps, torch.full((count, 384, 1, 5), 50.0))


def described(name: str, strides: tuple[int, ...]) -> Any:
    with torch.device("meta"):
        return build(name, strides=strides)


def test_a_vits_decoder_sees_the_mean_of_all_layers_and_restores_two_halves() -> None:
    tokens, taps = VitTokens(described(VIT, (14,))), vit_taps()
    seen = tokens.seen(taps)
    assert tuple(seen.shape) == (2, 5 + 6, 384)
    assert bool((seen[:, :5] == 50).all())
    torch.testing.assert_close(seen[0, 5:, 0], 3.5 + torch.arange(6.0) / 100)
    shallow, deep = tokens.groups(taps)
    torch.testing.assert_close(shallow[0, 0].flatten(), 1.5 + torch.arange(6.0) / 100)
    torch.testing.assert_close(deep[0, 0].flatten(), 5.5 + torch.arange(6.0) / 100)
    back = tokens.restored((seen, seen), taps)
    torch.testing.assert_close(back[0], (shallow + deep) / 2)


def test_the_last_layers_restore_the_shallow_group() -> None:
    student = Restorer(described(VIT, (14,)), DinomalySettings(layers=4))
    student.bottleneck = nn.Identity()  # type: ignore[assignment]
    student.decoder = nn.ModuleList(Plus(2.0**k) for k in range(4))
    taps = vit_taps()
    shallow, deep = student(taps)  # after the layers: +1, +3, +7, +15
    mean = student.tokens.restored((student.tokens.seen(taps),) * 2, taps)[0]
    torch.testing.assert_close(deep, mean + 2)
    torch.testing.assert_close(shallow, mean + 11)


class Plus(nn.Module):
    """Adds a number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        return x + self.number


@pytest.mark.parametrize(("strides", "side", "split"), [((8, 16), 8, 40), ((4, 8, 16), 8, 64), ((4, 8, 16, 32), 8, 64)])
def test_a_pyramids_maps_lie_side_by_side_on_one_grid(strides: tuple[int, ...], side: int, split: int) -> None:
    teacher = described("efficientnet_lite0", strides)
    tokens = PyramidTokens(teacher)
    taps = tuple(torch.rand(2, c, 64 // s, 64 // s) for c, s in zip(teacher.channels, strides, strict=True))
    shallow, deep = tokens.groups(taps)
    grid = (64 // side, 64 // side)
    assert tuple(shallow.shape) == (2, split, *grid)
    assert tuple(deep.shape) == (2, sum(teacher.channels) - split, *grid)
    at = strides.index(side)
    first = sum(teacher.channels[:at])
    assert torch.equal(shallow[:, first : first + teacher.channels[at]], taps[at])  # on the grid already
    if strides[0] == 4:
        means = taps[0].view(2, 24, grid[0], 2, grid[1], 2).mean((3, 5))
        torch.testing.assert_close(shallow[:, :24], means)
    torch.testing.assert_close(deep[:, :112].mean((2, 3)), taps[strides.index(16)].mean((2, 3)), rtol=0.05, atol=0.05)
    seen = tokens.seen(taps)
    back = tokens.restored((seen, seen), taps)
    assert torch.equal(back[0], shallow)
    assert torch.equal(back[1], deep)


Loosen = Callable[[Tensor, Tensor, float, float], Tensor]


def check_loosened(of: Loosen) -> None:
    """Values stay; the gradient is `easy` times as large where 1 - cos is below that of the batch's hardest places."""
    generator = torch.Generator().manual_seed(2)
    target, restored = (torch.randn(2, 4, 3, 5, generator=generator) for _ in range(2))
    restored[1] = 0.8 * target[1] + 0.2 * restored[1]  # an image that is restored well has few hard places
    upstream = torch.randn(2, 4, 3, 5, generator=generator)
    t, r = target.double().numpy(), restored.double().numpy()
    distance = 1 - (t * r).sum(1) / np.linalg.norm(t, axis=1) / np.linalg.norm(r, axis=1)
    for share, hardest in ((0.0, 30), (0.45, 16), (0.9, 2), (0.99, 1)):  # 30 * (1 - 0.9) is below 3 in floats
        leaf = restored.clone().requires_grad_()
        found = of(target, leaf, share, 0.25)
        assert torch.equal(found, restored)
        (gradient,) = torch.autograd.grad(found, leaf, upstream)
        least = np.sort(distance.ravel())[-hardest]
        factor = torch.from_numpy(np.where(distance < least, 0.25, 1.0)).float()[:, None]
        torch.testing.assert_close(gradient, upstream * factor)


def test_the_loosened_gradient_is_its_definition() -> None:
    check_loosened(loosened)


FAULTY: dict[str, Loosen] = {
    "not at all": lambda target, restored, share, easy: restored * 1,
    "the hard ones": lambda target, restored, share, easy: loosened(-target, restored, share, easy),
    "image by image": lambda target, restored, share, easy: torch.cat(
        [loosened(t[None], r[None], share, easy) for t, r in zip(target, restored, strict=True)]
    ),
    "zero": lambda target, restored, share, easy: loosened(target, restored, share, 0.0),
    "the values too": lambda target, restored, share, easy: easy * restored,
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_loosening_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_loosened(FAULTY[name])


def test_the_share_of_easy_places_grows_as_in_the_official_code() -> None:
    method = method_of(mined=0.9, mining_steps=1000)
    assert [method.mined_at(step) for step in (1, 501, 1001, 5000)] == [0.0, pytest.approx(0.45), 0.9, 0.9]
    assert method_of(mining_steps=0).mined_at(1) == 0.9


def test_the_loss_is_the_mean_over_groups_of_one_minus_the_cosine_of_flattened_maps() -> None:
    method = method_of(batch_size=2)
    images = normals(2, seed=1)
    with torch.no_grad():
        taps = method.teacher(images)
        method.student.eval()
        pairs = zip(method.targets(taps), method.student(taps), strict=True)
        cosines = [
            float((t[i] * r[i]).sum() / t[i].norm() / r[i].norm()) for t, r in pairs for i in range(2)
        ]  # two groups of two images
    batch = Batch(images=images, teacher=taps, step=1, generator=torch.Generator())
    assert method.loss(batch)["feature"].item() == pytest.approx(1 - np.mean(cosines), rel=1e-4)


def test_easy_places_pull_less_on_the_decoder() -> None:
    """The gradient of the weights follows the mining: with everything easy it is a tenth of that with nothing easy."""
    norms = []
    for easy in (1.0, 0.1):
        method = method_of(batch_size=2, easy=easy, mined=0.999, mining_steps=0, dropout=0.0)
        taps = method.teacher(normals(2, seed=1))
        loss = method.loss(Batch(images=normals(2, seed=1), teacher=taps, step=1, generator=torch.Generator()))
        loss["feature"].backward()  # type: ignore[no-untyped-call]
        norms.append(
            float(torch.stack([p.grad.norm() for p in method.student.parameters() if p.grad is not None]).norm())
        )
    assert 0.1 < norms[1] / norms[0] < 0.5  # one place a group stays hard


def test_stable_adamw_is_its_formula_step_by_step() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (4,))
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    learnt = [nn.Parameter(weight.clone()) for weight in weights]
    optimiser = StableAdamW(learnt, 0.02, betas=(0.9, 0.999), weight_decay=0.01, clip=0.1)
    means, squares, largest = ([np.zeros(shape) for shape in shapes] for _ in range(3))
    expected = [weight.numpy().copy() for weight in weights]
    clipped = 0
    for step in range(1, 9):
        gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        gradients = [gradient * (3 if step == 5 else 0.01) for gradient in gradients]
        for parameter, gradient in zip(learnt, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()
        norm = np.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        for k, gradient in enumerate(gradients):
            g = gradient.numpy() * min(1, 0.1 / (norm + 1e-6))
            means[k] = 0.9 * means[k] + 0.1 * g
            squares[k] = 0.999 * squares[k] + 0.001 * g**2
            largest[k] = np.maximum(largest[k], squares[k])
            d = np.sqrt(largest[k] / (1 - 0.999**step)) + 1e-8
            excess = max(1.0, np.sqrt(np.mean((g / d) ** 2)))
            clipped += excess > 1
            expected[k] = (1 - 0.02 * 0.01) * expected[k] - 0.02 / excess / (1 - 0.9**step) * means[k] / d
        for parameter, right in zip(learnt, expected, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), right, rtol=1e-10, atol=1e-12)
    assert clipped


def test_the_rate_rises_over_a_fiftieth_and_falls_to_a_tenth() -> None:
    factor = SCHEDULES["warm_cosine"]
    assert [factor(0.0), factor(0.01), factor(0.02)] == [0.0, pytest.approx(0.5), pytest.approx(1.0)]
    assert factor(0.51) == pytest.approx(0.55)
    assert factor(1.0) == pytest.approx(0.1)


def rates(total: int, **changes: Any) -> list[float]:
    """The factor of the learning rate at every step."""
    method = method_of(**changes)
    return [SCHEDULES[method.settings.schedule](method.progress(step, total)) for step in range(1, total + 1)]


def test_the_rate_is_the_official_codes_at_every_step_of_the_paper() -> None:
    """numpy's linspace, which has both of its ends, and a cosine that begins at its height once more."""
    cosine = 0.1 + 0.45 * (1 + np.cos(np.pi * np.arange(4900) / 4900))
    np.testing.assert_allclose(rates(5000), [*np.linspace(0, 1, 100), *cosine], atol=1e-12)
    assert rates(50)[:3] == pytest.approx([0.0, 1.0, 0.1 + 0.45 * (1 + np.cos(np.pi / 49))])
    assert rates(200)[:5] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0, 1.0])
    assert rates(3, schedule="cosine") == pytest.approx([1.0, 0.75, 0.25])


def test_the_only_step_of_a_training_learns() -> None:
    assert rates(1) == pytest.approx([1.0])
    assert rates(51)[:2] == pytest.approx([0.0, 1.0])
    method = method_of(steps=1, batch_size=2)
    before = {name: value.clone() for name, value in method.student.state_dict().items()}
    method.fit(normals(2, seed=1))
    assert not all(torch.equal(value, before[name]) for name, value in method.student.state_dict().items())


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (1, "none, the only step has the full rate"),
        (2, "over the first fiftieth of the steps, a lone one of rate 0, as 100 are of 5000"),
        (50, "over the first fiftieth of the steps, a lone one of rate 0, as 100 are of 5000"),
        (51, "over the first fiftieth of the steps, as 100 are of 5000"),
        (None, "over the first fiftieth of the steps, as 100 are of 5000"),
        (5000, ""),
    ],
)
def test_a_row_says_how_the_rate_rises(steps: int | None, said: str) -> None:
    assert [one for one in settings_of(steps=steps).readings if "warm-up" in one] == [f"warm-up: {said}"] * bool(said)
    assert steps is None or (rates(steps)[0] > 0) is said.startswith("none")


def test_one_model_of_all_classes_is_compared_with_the_codes_own_of_all() -> None:
    """Which learns for 10,000 steps, rises over 100 of them, and has another epsilon; the one of a class: 5000."""

    def subjects(said: tuple[str, ...]) -> dict[str, str]:
        found = dict(line.split(": ", 1) for line in said)
        assert len(found) == len(said)
        return {name: found[name] for name in ("budget", "warm-up", "epsilon") if name in found}

    warm_up = "over the first fiftieth of the steps (official code: over the first 100 of 10000)"
    epsilon = "1e-8 in the optimiser's denominator (official code: 1e-10)"
    assert EPSILON == 1e-8
    for steps, budget in ((5000, "5000 steps (official code: 10000 steps)"), (10000, None)):
        settings = settings_of(steps=steps)
        expected = {"budget": budget, "warm-up": warm_up, "epsilon": epsilon}
        assert subjects(settings.deviations_together) == {name: said for name, said in expected.items() if said}
        assert settings.readings_together == tuple(one for one in settings.readings if not one.startswith("warm-up"))
    assert subjects(settings_of(steps=5000).deviations) == {}
    assert subjects(settings_of(steps=10000).deviations) == {"budget": "10000 steps (official code: 5000 steps)"}
    assert subjects(settings_of(steps=10000).readings).keys() == {"warm-up"}
    others = settings_of(steps=10000, schedule="constant", optimiser="adam").deviations_together
    assert subjects(others) == {}
    assert {"schedule", "optimiser"} <= {line.partition(":")[0] for line in others}
    alone = subjects(settings_of(steps=1).deviations_together)["warm-up"]
    assert alone == "none (official code: over the first 100 of 10000)"


def test_the_map_is_the_blurred_mean_of_both_groups_and_the_score_that_of_its_largest_pixels() -> None:
    method = method_of(sigma=4.0, radius=2, top=0.01)
    generator = torch.Generator().manual_seed(1)
    targets, restored = (tuple(torch.rand(2, 6, 4, 4, generator=generator) for _ in range(2)) for _ in range(2))
    scores = method.judge((targets, restored), (40, 40))
    maps = [1 - nn.functional.cosine_similarity(t, r) for t, r in zip(targets, restored, strict=True)]
    size = {"size": (40, 40), "mode": "bilinear", "align_corners": True}
    raw = torch.stack([nn.functional.interpolate(one[:, None], **size)[:, 0] for one in maps]).mean(0)  # type: ignore[arg-type]
    line = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / 32)
    kernel = (line[:, None] * line) / (line[:, None] * line).sum()
    blurred = nn.functional.conv2d(raw[:, None], kernel[None, None])[:, 0]  # without the border
    torch.testing.assert_close(scores.pixel[:, 2:-2, 2:-2], blurred, rtol=1e-4, atol=1e-5)
    largest = scores.pixel.flatten(1).sort(1, descending=True).values[:, :16].mean(1)  # a hundredth of 1600
    torch.testing.assert_close(scores.image, largest)
    tiny = method.judge((targets, restored), (4, 4))
    torch.testing.assert_close(tiny.image, tiny.pixel.amax((1, 2)))  # one pixel at the least


def test_on_a_vit_it_learns_scores_and_goes_on_after_a_stop(tmp_path: Any) -> None:
    """The smallest ViT with random weights: dropout's chance too is that of a fit which was never stopped."""
    settings = settings_of(image_size=28 * 2, steps=3, batch_size=2, layers=2, mining_steps=1)
    from kdad_bench.methods.backbones.weights import load_teacher

    teacher = load_teacher(VIT, source="random")[0]
    images, path = normals(4, seed=1, side=56), tmp_path / "fit.pt"
    whole, broken, resumed = (Dinomaly(settings, teacher, CPU) for _ in range(3))
    whole.fit(images)
    with pytest.raises(Interrupted):
        broken.fit(images, Fitting(log=stop_at(2), log_every=1, checkpoint=path, checkpoint_every_seconds=0))
    resumed.fit(images, Fitting(checkpoint=path))
    for name, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[name]), name
    scores = whole.score(images[:2])
    assert tuple(scores.pixel.shape) == (2, 56, 56)
    alone = whole.score(images[:1])
    torch.testing.assert_close(alone.pixel, scores.pixel[:1], rtol=1e-4, atol=1e-5)


def test_strides_follow_the_teacher() -> None:
    assert settings_of().strides == settings_of(strides=(4, 8, 16)).strides == (14,)
    assert DinomalySettings(teacher="resnet18", image_size=256).strides == (4, 8, 16)
    assert DinomalySettings(teacher="resnet18", image_size=256, strides=(8, 16)).strides == (8, 16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 3}, "layers 3 is not even"),
        ({"image_size": 256}, "image_size 256 is not a multiple of 14; teacher dinov2_vits14_reg takes 252 or 266"),
        ({"image_size": 40}, "image_size 40 is not a multiple of 14; teacher dinov2_vits14_reg takes 42$"),
        ({"teacher": "resnet18", "image_size": 392}, "image_size 392 is not a multiple of 32; take 384 or 416"),
        ({"teacher": "resnet18", "image_size": 256, "strides": (8,)}, "two groups take two strides"),
        ({"teacher": "resnet18", "image_size": 256, "strides": (7, 16)}, "strides 7 16 of teacher resnet18: must be"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings_of(**changes)


def test_the_loss_falls_and_other_optimisers_will_do() -> None:
    for optimiser in ("stable_adamw", "adamw"):
        seen = losses("dinomaly", steps=10, batch_size=4, optimiser=optimiser)
        assert seen[-1] < 0.6 * seen[0]


def test_half_precision_will_do() -> None:
    method = method_of(precision="bf16", steps=2, batch_size=2)
    method.fit(normals(2, seed=1))
    assert bool(method.score(normals(1, seed=2)).pixel.isfinite().all())
