"""Kernels under what a caller may have set or asked for: torch's defaults, traces, transforms, threads, odd tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from kdad_bench import kernels
from kdad_bench.kernels import cpp_layers, layers, reference, residual
from kdad_bench.kernels.cpp_path import blur_table

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def features(*shape: int, seed: int = 0, layout: str = "channels_last") -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32, device="cpu")
    return drawn.to(memory_format=LAYOUTS[layout])


def pair(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    shapes = ((2, 16, 12, 10), (2, 24, 6, 5))
    return [features(*s, seed=seed) for s in shapes], [features(*s, seed=seed + 1) for s in shapes]


def learnt(loss: Callable[[list[Tensor], list[Tensor]], Tensor]) -> list[Tensor]:
    t, s = pair()
    for x in s:
        x.requires_grad_(True)
    value = loss(t, s)
    value.backward()  # type: ignore[no-untyped-call]
    return [value.detach(), *(x.grad for x in s if x.grad is not None)]


def normed() -> list[Tensor]:
    norm = nn.BatchNorm2d(16, dtype=torch.float32, device="cpu")
    x = features(2, 16, 12, 10).requires_grad_(True)
    y = layers.norm_clamp(norm, x, 0.0, 6.0)
    y.sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, norm.running_mean, norm.running_var]  # type: ignore[list-item]


def depthwise(weight: Tensor) -> list[Tensor]:
    x, weight = features(2, 16, 12, 11, seed=4).requires_grad_(True), weight.clone().requires_grad_(True)
    y = layers.depthwise_same(x, weight, 2, (1, 2), (0, 1) if weight.shape[2] == 3 else (1, 2))
    y.backward(features(*y.shape, seed=5))
    assert x.grad is not None
    assert weight.grad is not None, "such weights would never learn"
    return [y.detach(), x.grad, weight.grad]


CALLS: dict[str, Callable[[], list[Tensor]]] = {
    "pixel": lambda: [*kernels.pixel_discrepancies(*pair())],
    "cosine": lambda: [*kernels.pixel_discrepancies(*pair(), kind="cosine")],
    "two students": lambda: [y for one in kernels.dual_discrepancies(*pair(), pair(7)[1]) for y in one],
    "attention": lambda: [*kernels.attention_weightings(*pair())],
    "flattened": lambda: [kernels.flattened_cosine(pair()[0][0], pair()[1][0])],
    "map": lambda: [*kernels.anomaly_map(*pair(), (24, 20), sigma=1.5)],
    "map, mean": lambda: [*kernels.anomaly_map(*pair(), (24, 20), mode="product", score="mean")],
    "blur": lambda: [kernels.gaussian_blur(features(2, 24, 20, 1)[..., 0], 1.25)],
    "loss": lambda: learnt(kernels.distillation_loss),
    "loss, flattened": lambda: learnt(lambda t, s: kernels.distillation_loss(t, s, kind="flattened")),
    "norm": normed,
    "depthwise": lambda: depthwise(features(16, 1, 3, 3, seed=6, layout="nchw")),
    "nearest": lambda: [
        *kernels.nearest(features(6, 5, 1, 1).view(6, 5), features(20, 5, 1, 1, seed=3).view(20, 5), 3)
    ],
}


@contextmanager
def default(name: str) -> Iterator[None]:
    """torch makes new tensors of such a dtype, or on such a device, inside."""
    if name == "meta":
        with torch.device("meta"):
            yield
        return
    torch.set_default_dtype(getattr(torch, name))
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("setting", ["float64", "bfloat16", "meta"])
@pytest.mark.parametrize("name", CALLS)
def test_what_torch_makes_by_default_changes_nothing(name: str, setting: str) -> None:
    """Results that C++ writes are float32 on the CPU: in two bytes a value the heap would overflow."""
    wanted = CALLS[name]()
    blur_table.cache_clear()
    residual.multiplies_and_adds_at_once.cache_clear()
    with default(setting):
        found = CALLS[name]()
    for answer in (found, CALLS[name]()):  # nor does what was kept of it
        assert [(x.dtype, x.device) for x in answer] == [(x.dtype, x.device) for x in wanted]
        assert all(torch.equal(one, other) for one, other in zip(answer, wanted, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["unit_l2", "cosine", "l2"])
def test_what_is_not_finite_stays_visible(kind: str, layout: str) -> None:
    """An infinite feature has no direction; it is no zero vector, whose distance would be a finite number."""
    for channels, (one, other) in product((5, 16, 24), product(("", "inf", "-inf", "nan", "0"), repeat=2)):
        t, s = (features(1, channels, 2, 4, seed=seed, layout=layout) for seed in (1, 2))
        for x, value in ((t, one), (s, other)):
            if value:
                x[0, slice(None) if value == "0" else 3, 1, 1] = float(value)
        wide = t.double(), s.double()
        found, wanted = (f(*x, kind=kind, weight=1.0) for f, x in (
            (kernels.pixel_discrepancy, (t, s)), (reference.pixel_discrepancy, wide)
        ))  # fmt: skip
        assert torch.equal(found.isfinite(), wanted.isfinite()), (channels, one, other)
        losses = [
            f([a], [b.clone().requires_grad_(True)], kind=kind, weights=[1.0])
            for f, (a, b) in ((kernels.distillation_loss, (t, s)), (reference.distillation_loss, wide))
        ]
        assert losses[0].isfinite() == losses[1].isfinite(), (channels, one, other)


def test_scales_of_other_batches_and_devices_are_refused() -> None:
    """A kernel would read beyond the smaller ones, or at an address of another device."""
    t, s = pair()
    few = [t[0], t[1][:1]], [s[0], s[1][:1]]
    with pytest.raises(ValueError, match="all scales must be of one batch; got 2, 1 images"):
        kernels.anomaly_map(*few, (24, 20))
    gone = [t[0], t[1].to("meta")], [s[0], s[1].to("meta")]
    calls: list[Callable[..., Any]] = [
        kernels.pixel_discrepancies, kernels.distillation_loss, kernels.attention_weightings,
        lambda *x: kernels.dual_discrepancies(*x, x[1]), lambda *x: kernels.anomaly_map(*x, (24, 20)),
        lambda *x: kernels.dual_distillation_loss(*x, x[1]), lambda *x: kernels.distillation_loss(*x, kind="flattened"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="all scales must be on one device; got cpu, meta"):
            call(*gone)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pixel": lambda t, s: kernels.pixel_discrepancy(t, s),
    "attention": lambda t, s: kernels.attention_weighting(t, s),
    "flattened": lambda t, s: kernels.flattened_cosine(t, s),
    "map": lambda t, s: kernels.anomaly_map([t], [s], (24, 20), sigma=1.5)[0],
    "loss": lambda t, s: kernels.distillation_loss([t], [s]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_holds_what_was_computed(name: str) -> None:
    """Else it would answer with memory that nobody wrote."""
    call, (t, s) = FUNCTIONS[name], (pair()[0][0], pair()[1][0])
    other = features(*t.shape, seed=11), features(*t.shape, seed=12)
    for traced in (torch.jit.trace(call, (t, s), check_trace=False), make_fx(call)(t, s)):
        torch.testing.assert_close(traced(*other), call(*other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "attention"])  # which has no derivative at all
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forward_derivative_is_refused_and_not_lost(name: str) -> None:
    t, s = pair()[0][0], pair()[1][0]
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward derivative"):
        FUNCTIONS[name](t, forward_ad.make_dual(s, torch.ones_like(s)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tensor_that_is_to_be_negated_is_negated(name: str) -> None:
    t, s = pair()[0][0], pair()[1][0]
    torch.testing.assert_close(FUNCTIONS[name](t, torch._neg_view(s)), FUNCTIONS[name](t, -s))


def scaled_by(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    return norm.train().requires_grad_(False)


DIFFERENTIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "pixel": lambda s: kernels.pixel_discrepancy(pair()[0][0], s),
    "two students": lambda s: kernels.dual_discrepancy(pair()[0][0], s, pair(7)[0][0])[0],
    "flattened": lambda s: kernels.flattened_cosine(pair()[0][0], s),
    "map": lambda s: kernels.anomaly_map([pair()[0][0]], [s], (24, 20))[0],
    "loss": lambda s: kernels.distillation_loss([pair()[0][0]], [s]),
    "loss, flattened": lambda s: kernels.distillation_loss([pair()[0][0]], [s], kind="flattened"),
    "loss of float16": lambda s: kernels.distillation_loss([pair()[0][0].half()], [s.half()]),
    "norm": lambda s: layers.norm_clamp(scaled_by(nn.BatchNorm2d(16)), s, 0.0, 6.0),
    "exact norm": lambda s: kernels.norm_relu(scaled_by(nn.BatchNorm2d(16)), nn.ReLU(), s),
    "depthwise": lambda s: layers.depthwise_same(s, features(16, 1, 3, 3, seed=6, layout="nchw"), 1, (1, 1), (1, 1)),
    "3x3": lambda s: kernels.convolved(
        nn.Conv2d(32, 32, 3, padding=1).to(memory_format=torch.channels_last), torch.cat([s, s], 1).repeat(1, 1, 2, 2)
    ),
}


@pytest.mark.parametrize("path", ["cpp", "triton"])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_gradient_that_is_to_be_negated_or_has_no_memory_arrives(
    name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd makes such of losses by complex numbers; to read their memory as it lies turns the sign."""
    if path == "triton":
        pytest.importorskip("triton")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("KDAD_KERNELS", path)
    s = pair()[1][0].requires_grad_()
    torch.manual_seed(0)
    y = DIFFERENTIABLE[name](s)
    upstream = features(*y.shape, seed=5, layout="nchw") if y.dim() < 4 else features(*y.shape, seed=5)
    (wanted,) = torch.autograd.grad(y, s, -upstream, retain_graph=True)
    for _ in range(2):  # the early gradients of a loss are used up by the first
        (found,) = torch.autograd.grad(y, s, torch._neg_view(upstream), retain_graph=True)
        torch.testing.assert_close(found, wanted)
    (nothing,) = torch.autograd.grad(y, s, torch._efficientzerotensor(y.shape), retain_graph=True)
    assert not nothing.any()


@pytest.mark.parametrize("name", ["norm", "exact norm", "depthwise", "3x3"])
def test_what_saved_tensors_come_back_as_changes_no_gradient(name: str) -> None:
    """Hooks on them (checkpoints to main memory) keep values, and may give them another order in memory."""
    s = pair()[1][0].requires_grad_()
    found = []
    for unpack in (lambda t: t), (lambda t: t.contiguous()):
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            y = DIFFERENTIABLE[name](s)
        found += torch.autograd.grad(y, s, features(*y.shape, seed=5))
    torch.testing.assert_close(*found)


def test_features_without_memory_are_zeros() -> None:
    t, nothing = pair()[0][0], torch._efficientzerotensor((2, 16, 12, 10))
    for name in ("pixel", "flattened", "map"):
        torch.testing.assert_close(FUNCTIONS[name](t, nothing), FUNCTIONS[name](t, torch.zeros_like(t)))
    assert not layers.norm_clamp(nn.BatchNorm2d(16), nothing).any()


@pytest.mark.parametrize("sides", [(85, 85, 85), (100, 100, 50), (128, 64, 32), (16, 8, 4)])
@pytest.mark.parametrize("rule", ["max", "mean"])
def test_a_blurred_map_is_the_same_with_any_number_of_threads(sides: tuple[int, ...], rule: str) -> None:
    taps = [[features(1, 16, side, side, seed=k + n) for n, side in enumerate(sides)] for k in (0, 9)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 5, 8):
            torch.set_num_threads(threads)
            found.append(kernels.anomaly_map(*taps, (256, 256), sigma=4.0, score=rule))
    finally:
        torch.set_num_threads(before)
    for heat, score in found[1:]:
        assert torch.equal(heat, found[0][0])
        assert torch.equal(score, found[0][1])


@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_weights_learn_where_the_library_has_no_vectors(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers so if its compiler was an older GCC."""
    weight = features(16, 1, size, size, seed=6, layout="nchw")
    wanted = depthwise(weight)
    monkeypatch.setattr(cpp_layers, "depthwise_weight_gradient", lambda *given: None)
    for one, other in zip(depthwise(weight), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def frozen(**options: Any) -> nn.Conv2d:
    conv = nn.Conv2d(16, 16, 3, **options).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    with torch.no_grad():
        conv.weight.copy_(features(16, 16, 3, 3, seed=3))
    return conv


def scored(conv: nn.Conv2d, x: Tensor) -> Tensor | None:
    pad = conv.padding[0]
    assert isinstance(pad, int)
    return layers.inference_conv(conv, x, lambda _: ((pad, pad), (pad, pad)), None)


@torch.inference_mode()
def test_weights_in_the_place_of_others_are_packed_anew() -> None:
    """Also where the new ones lie at the address of the old and were written to as often."""
    conv, x = frozen(padding=1), features(1, 16, 8, 8)
    for seed in range(20):
        del conv.weight
        conv.weight = nn.Parameter(features(16, 16, 3, 3, seed=seed), requires_grad=False)
        found = scored(conv, x)
        assert found is not None
        torch.testing.assert_close(found, conv(x), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("options", [{"dilation": 2, "padding": 2}, {"padding_mode": "reflect", "padding": 1}], ids=str)
def test_a_convolution_of_another_kind_is_left_to_torch(options: dict[str, Any]) -> None:
    assert scored(frozen(**options), features(1, 16, 8, 8)) is None


@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize("op", ["pixel_discrepancy", "flattened_cosine", "fuse_scales"])
def test_a_fake_result_has_the_type_of_the_real_one(op: str, wide: int) -> None:
    given = [features(2, 8, 6, 5, seed=seed) for seed in (1, 2)]
    given[wide] = given[wide].double()
    if op == "fuse_scales":
        arguments: tuple[Any, ...] = ([x[:, 0].contiguous() for x in given], [12, 10], "sum", False)
    else:
        arguments = (*given, "l2", 1.0) if op == "pixel_discrepancy" else tuple(given)
    torch.library.opcheck(getattr(torch.ops.kdad, op).default, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (0, 3, 2, 4)])
def test_samples_without_pixels_are_zero_vectors(shape: tuple[int, ...]) -> None:
    found = kernels.flattened_cosine(torch.ones(shape), torch.ones(shape))
    assert found.tolist() == [1.0] * shape[0]
