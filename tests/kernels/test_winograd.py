"""Convolutions of 3x3 in a quarter of the products: float32's results, whatever lies beside them, or PyTorch's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, vector_to_parameters
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from kdad_bench.kernels import Layers, convolved, cpp_layers, cpp_path, winograd
from kdad_bench.kernels.layers import PackedWeights
from kdad_bench.methods.backbones.resnet import ResNet
from kdad_bench.methods.backbones.vgg import Vgg
from tests.writes import WRITES

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(cpp_path.missing() is not None, reason="the C++ kernels were not built"),
    pytest.mark.skipif(not winograd.pays(), reason="this CPU lacks AVX2, so that PyTorch's convolutions run"),
]
UNIT = 2.0**-24
NAN, INFINITY = float("nan"), float("inf")


def features(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last)


def conv_of(inputs: int, outputs: int, seed: int = 1, **options: Any) -> nn.Conv2d:
    made = nn.Conv2d(inputs, outputs, **{"kernel_size": 3, "padding": 1, **options})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / (9 * inputs) ** 0.5)
    return made.to(memory_format=torch.channels_last)


def step(of: Callable[[nn.Module, Tensor], Tensor], conv: nn.Conv2d, x: Tensor) -> list[Tensor]:
    """The answer, and the gradients to image, weight and bias, under one upstream gradient."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = of(conv, x)
    upstream = features(*y.shape, seed=3).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *conv.parameters()], upstream)]


def by_pytorch(conv: nn.Module, x: Tensor) -> Tensor:
    made: Tensor = conv(x)
    return made


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: object, **__: object) -> None:
        raise AssertionError("the compiled convolution was called")

    for name in ("winograd", "winograd_weight", "winograd_weight_gradient"):
        monkeypatch.setattr(cpp_layers, name, called)


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    """The arguments of each call of cpp_layers's function `name` from now on."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(cpp_layers, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append((*arguments, named))
        return original(*arguments, **named)

    monkeypatch.setattr(cpp_layers, name, counted)
    return calls


@settings(max_examples=25)
@given(
    images=st.integers(1, 5),
    inputs=st.sampled_from([32, 48, 80, 272]),
    outputs=st.sampled_from([32, 48, 112]),
    rows=st.integers(15, 30),
    columns=st.integers(15, 30),
    padding=st.integers(0, 2),
    plain=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_answers_and_gradients_are_those_of_float64_to_float32s_rounding(
    images: int, inputs: int, outputs: int, rows: int, columns: int, padding: int, plain: bool, seed: int
) -> None:
    conv = conv_of(inputs, outputs, seed, padding=padding)
    if plain:
        conv.to(memory_format=torch.contiguous_format)
    x = features(images, inputs, rows, columns, seed=seed + 1)
    exact = step(by_pytorch, copy.deepcopy(conv).double(), x.double())
    found = step(convolved, conv, x)
    for name, ours, true in zip(("y", "x", "weight", "bias"), found, exact, strict=True):
        assert ours.shape == true.shape
        error = (ours - true).square().mean().sqrt() / true.square().mean().sqrt()
        assert error < 40 * UNIT, (name, float(error / UNIT))
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_kernels_of_a_single_one_shift_the_image() -> None:
    """Every tap and every border, told apart."""
    x = torch.randint(-8, 9, (2, 32, 18, 23), generator=torch.Generator().manual_seed(0)).float()
    x = x.contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(32, 32, 3, padding=1, bias=False).requires_grad_(False)
    for row in range(3):
        for column in range(3):
            conv.weight.zero_()
            for channel in range(32):
                conv.weight[channel, (channel * 7 + 3) % 32, row, column] = 1
            wanted = conv(x)
            assert float((convolved(conv, x) - wanted).abs().max()) < 1e-4, (row, column)
            assert winograd.taken(conv, x)


@pytest.mark.parametrize("channels", [32, 256, 512])
def test_an_answer_depends_neither_on_the_batch_nor_on_the_threads(channels: int) -> None:
    conv, x = conv_of(channels, 48), features(7, channels, 17, 19)
    whole = step(convolved, conv, x)
    alone = torch.cat([step(convolved, conv, x[i : i + 1])[0] for i in range(7)])
    assert torch.equal(whole[0], alone)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, step(convolved, conv, x), whole)), threads


def test_blocks_of_any_size_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_of(64, 32).requires_grad_(False), features(3, 64, 17, 19)
    wanted = convolved(conv, x)
    for tiles in (1, 5, 11, 1000):
        monkeypatch.setattr(cpp_layers, "tiles_at_a_time", lambda _, tiles=tiles: tiles)
        assert torch.equal(convolved(conv, x), wanted), tiles


def hooked(conv: nn.Conv2d) -> nn.Conv2d:
    conv.register_forward_hook(lambda *_: None)
    return conv


class Other(nn.Conv2d):
    """Somebody's own convolution."""


ASIDE: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "stride": lambda: (conv_of(32, 32, stride=2), features(2, 32, 33, 33)),
    "dilation": lambda: (conv_of(32, 32, dilation=2, padding=2), features(2, 32, 20, 20)),
    "groups": lambda: (conv_of(64, 64, groups=2), features(2, 64, 20, 20)),
    "another border": lambda: (conv_of(32, 32, padding_mode="reflect"), features(2, 32, 20, 20)),
    "a named border": lambda: (conv_of(32, 32, padding="same"), features(2, 32, 20, 20)),
    "a wider border": lambda: (conv_of(32, 32, padding=3), features(2, 32, 20, 20)),
    "an uneven border": lambda: (conv_of(32, 32, padding=(1, 0)), features(2, 32, 20, 20)),
    "5x5": lambda: (conv_of(32, 32, kernel_size=5, padding=2), features(2, 32, 20, 20)),
    "1x1": lambda: (conv_of(32, 32, kernel_size=1, padding=0), features(2, 32, 20, 20)),
    "few inputs": lambda: (conv_of(16, 32), features(2, 16, 20, 20)),
    "few outputs": lambda: (conv_of(32, 16), features(2, 32, 20, 20)),
    "inputs in part": lambda: (conv_of(40, 32), features(2, 40, 20, 20)),
    "outputs in part": lambda: (conv_of(32, 40), features(2, 32, 20, 20)),
    "small images": lambda: (conv_of(32, 32), features(64, 32, 12, 12)),
    "wasted tiles": lambda: (conv_of(32, 32), features(2, 32, 17, 17)),
    "a narrow image": lambda: (conv_of(32, 32), features(2, 32, 2, 64)),
    "channels first": lambda: (conv_of(32, 32), features(2, 32, 20, 20).contiguous()),
    "float64": lambda: (conv_of(32, 32).double(), features(2, 32, 20, 20).double()),
    "half": lambda: (conv_of(32, 32).bfloat16(), features(2, 32, 20, 20).bfloat16()),
    "a hook": lambda: (hooked(conv_of(32, 32)), features(2, 32, 20, 20)),
    "a parametrisation": lambda: (parametrizations.weight_norm(conv_of(32, 32)), features(2, 32, 20, 20)),
    "another class": lambda: (Other(32, 32, 3, padding=1), features(2, 32, 20, 20)),
    "no convolution": lambda: (nn.BatchNorm2d(32), features(2, 32, 20, 20)),
}


@pytest.mark.parametrize("case", ASIDE)
def test_it_steps_aside_for_what_it_is_not_for(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = ASIDE[case]()
    forbid(monkeypatch)
    assert torch.equal(convolved(module, x), module(x))


def bfloat16(_: pytest.MonkeyPatch) -> AbstractContextManager[Any]:
    torch.backends.mkldnn.conv.fp32_precision = "bf16"  # type: ignore[attr-defined]
    return nullcontext()


def by_path(monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[Any]:
    monkeypatch.setenv("KDAD_KERNELS", "torch")
    return nullcontext()


AROUND: dict[str, Callable[[pytest.MonkeyPatch], AbstractContextManager[Any]]] = {
    "autocast": lambda _: torch.autocast("cpu", torch.bfloat16),
    "a counter of operations": lambda _: FlopCounterMode(display=False),
    "products of bfloat16": bfloat16,
    "PyTorch's path": by_path,
}


@pytest.mark.usefixtures("precision_as_it_was")
@pytest.mark.parametrize("how", AROUND)
def test_it_steps_aside_where_something_follows_or_other_results_are_asked_for(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv, x = conv_of(32, 32), features(2, 32, 20, 20)
    forbid(monkeypatch)
    with AROUND[how](monkeypatch):
        assert torch.equal(convolved(conv, x), conv(x))


def test_a_trace_holds_pytorchs_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, x = Layers(conv_of(32, 32)).requires_grad_(False), features(2, 32, 20, 20)
    forbid(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the exports of people still come by it
        traced = torch.jit.trace(layers, x, check_trace=False)  # type: ignore[no-untyped-call]
    assert "_convolution" in str(traced.inlined_graph)
    assert "conv2d" in str(torch.export.export(layers, (x,)).graph)


@pytest.mark.parametrize("wants", ["x", "weight", "bias", "x bias", "weight bias"])
def test_only_what_learns_has_a_gradient_and_is_worked_out(wants: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_of(32, 48), features(8, 32, 20, 20)
    whole = dict(zip(("x", "weight", "bias"), step(convolved, conv, x)[1:], strict=True))
    x.requires_grad_("x" in wants)
    for name, tensor in conv.named_parameters():
        tensor.requires_grad_(name in wants.split())
    turned = calls_of(monkeypatch, "winograd_weight")
    gradients = calls_of(monkeypatch, "winograd_weight_gradient")
    y = convolved(conv, x)
    given: dict[str, Tensor] = {"x": x, "weight": conv.weight, "bias": conv.bias}  # type: ignore[dict-item]
    y.backward(features(*y.shape, seed=3))
    for name, tensor in given.items():
        if name in wants.split():
            assert tensor.grad is not None and torch.equal(tensor.grad, whole[name])  # noqa: PT018
        else:
            assert tensor.grad is None
    assert [named["turned"] for *_, named in turned] == [False] + [True] * ("x" in wants.split())
    assert len(gradients) == ("weight" in wants)


def test_few_tiles_leave_the_gradient_to_the_weight_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    conv = conv_of(32, 32)
    for images, compiled in ((winograd.LEAST_FOR_WEIGHT // 16 - 1, 0), (winograd.LEAST_FOR_WEIGHT // 16, 1)):
        x = features(images, 32, 16, 16)
        calls = calls_of(monkeypatch, "winograd_weight_gradient")
        found = step(convolved, conv, x)
        assert len(calls) == compiled
        for ours, theirs in zip(found, step(by_pytorch, conv, x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_upstream_gradients_in_another_order_of_memory_and_expanded_ones_are_taken() -> None:
    conv, x = conv_of(32, 32), features(4, 32, 20, 20).requires_grad_()
    for upstream in (torch.randn(4, 32, 20, 20), torch.ones(()).expand(4, 32, 20, 20)):
        wanted = torch.autograd.grad(conv(x), [x, conv.weight], upstream)
        found = torch.autograd.grad(convolved(conv, x), [x, conv.weight], upstream)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_double_backward_is_pytorchs() -> None:
    conv, x = conv_of(32, 32), features(2, 32, 16, 16).requires_grad_()

    def twice(of: Callable[[nn.Module, Tensor], Tensor]) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(of(conv, x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, conv.weight])

    for ours, theirs in zip(twice(convolved), twice(by_pytorch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_a_weight_that_changed_before_the_backward_is_refused_as_by_pytorch() -> None:
    conv, x = conv_of(32, 32), features(2, 32, 16, 16)
    y = convolved(conv, x)
    with torch.no_grad():
        conv.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_transform_of_a_frozen_weight_is_kept_until_the_weight_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_of(32, 32).requires_grad_(False), features(2, 32, 20, 20)
    calls = calls_of(monkeypatch, "winograd_weight")
    first = convolved(conv, x)
    assert torch.equal(convolved(conv, x[:1]), first[:1])
    assert len(calls) == 1
    with torch.no_grad():
        conv.weight.mul_(2)
        conv.bias.mul_(2)  # type: ignore[union-attr]
    assert torch.equal(convolved(conv, x), 2 * first)
    conv.weight = nn.Parameter(conv.weight / 2, requires_grad=False)
    conv.bias = nn.Parameter(conv.bias / 2, requires_grad=False)  # type: ignore[operator]
    assert torch.equal(convolved(conv, x), first)
    assert len(calls) == 3
    assert not copy.deepcopy(conv).__dict__["packed"]


def test_a_learning_network_that_is_only_asked_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_of(32, 32), features(2, 32, 20, 20)
    wanted = convolved(conv, x).detach()
    with torch.no_grad():
        assert torch.equal(convolved(conv, x), wanted)
        conv.weight.data.mul_(2)  # which PyTorch does not count
        assert not torch.equal(convolved(conv, x), wanted)
    assert "packed" not in conv.__dict__


def test_weights_of_the_inference_mode_are_taken() -> None:
    with torch.inference_mode():
        conv, x = conv_of(32, 32), features(2, 32, 20, 20)
        torch.testing.assert_close(convolved(conv, x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
def test_values_that_are_not_finite_reach_every_result_that_pytorchs_reach(bad: float) -> None:
    """And others of the same tile: none may be lost."""
    conv, x = conv_of(32, 32), features(2, 32, 20, 20)
    x[1, 5, 7, 11] = bad
    for ours, theirs in zip(step(convolved, conv, x), step(by_pytorch, conv, x), strict=True):
        assert not torch.isfinite(ours[~torch.isfinite(theirs)]).any()
    assert torch.isfinite(convolved(conv, x)[0]).all()  # the other image keeps its values


def test_residual_networks_and_vgg_take_it_where_they_are_wide_and_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = features(1, 3, 256, 256)
    for network, wanted in ((ResNet("resnet18", (4, 8, 16)), 10), (Vgg("vgg16", (4, 8)), 6)):
        network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with monkeypatch.context() as patched:
            calls = calls_of(patched, "winograd")
            ours = network.taps(images)
            assert len(calls) == wanted
        with monkeypatch.context() as patched:
            forbid(patched)
            patched.setattr(winograd, "pays", lambda: False)
            theirs = network.taps(images)
        for a, b in zip(ours, theirs, strict=True):
            assert float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_what_saved_tensors_come_back_as_changes_no_gradient() -> None:
    conv, x = conv_of(32, 32), features(4, 32, 20, 20)
    wanted = step(convolved, conv, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        found = step(convolved, conv, x)
    assert all(map(torch.equal, found, wanted))


def test_several_gradients_at_once_are_pytorchs() -> None:
    conv, x = conv_of(32, 32), features(4, 32, 20, 20).requires_grad_()
    upstream = torch.stack([features(4, 32, 20, 20, seed=k) for k in (3, 4)])
    found = torch.autograd.grad(convolved(conv, x), [x, conv.weight], upstream, is_grads_batched=True)
    wanted = torch.autograd.grad(conv(x), [x, conv.weight], upstream, is_grads_batched=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def with_weight(weight: Tensor) -> nn.Conv2d:
    conv = conv_of(32, 32).requires_grad_(False)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    return conv


def emptied() -> nn.Conv2d:
    conv = conv_of(32, 32).requires_grad_(False)
    conv.weight.untyped_storage().resize_(0)
    return conv


def with_bias(size: int) -> nn.Conv2d:
    conv = conv_of(32, 32).requires_grad_(False)
    conv.bias = nn.Parameter(torch.zeros(size), requires_grad=False)
    return conv


def patched() -> nn.Conv2d:
    conv = conv_of(32, 32).requires_grad_(False)
    conv._conv_forward = lambda x, *_: x  # type: ignore[method-assign]
    return conv


@pytest.mark.parametrize(
    "made",
    [
        lambda: with_weight(torch.randn(40, 32, 3, 3)),
        lambda: with_weight(torch.randn(32, 32, 1, 1)),
        lambda: with_weight(torch.randn(32, 16, 3, 3)),
        lambda: with_weight(torch._efficientzerotensor((32, 32, 3, 3))),
        lambda: with_weight(TwoTensor(torch.randn(32, 32, 3, 3), torch.randn(32, 32, 3, 3))),
        emptied,
        lambda: with_bias(16),
        patched,
    ],
    ids=["more outputs", "1x1", "fewer inputs", "zeros", "a subclass", "taken away", "a short bias", "patched"],
)
def test_parameters_that_are_not_what_the_module_says_are_left_to_pytorch(
    made: Callable[[], nn.Conv2d], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory beyond them would be read, and written."""
    conv, x = made(), features(2, 32, 20, 20)
    forbid(monkeypatch)
    try:
        wanted: object = conv(x)
    except RuntimeError as error:
        wanted = type(error)
    try:
        found: object = convolved(conv, x)
    except RuntimeError as error:
        found = type(error)
    assert type(found) is type(wanted)


def to_and_fro(conv: nn.Conv2d) -> None:
    conv.to(torch.bfloat16).to(torch.float32)


def into_data(conv: nn.Conv2d) -> None:
    conv.weight.data = conv.weight.data * 3


def by_vector(conv: nn.Conv2d) -> None:
    vector_to_parameters(torch.cat([tensor.reshape(-1) for tensor in conv.parameters()]) * 3, conv.parameters())


def loaded(conv: nn.Conv2d) -> None:
    conv.load_state_dict(conv_of(32, 32, seed=9).state_dict())


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
@pytest.mark.parametrize("change", [to_and_fro, into_data, by_vector, loaded])
def test_a_frozen_weight_that_moves_or_is_loaded_gives_another_answer(
    change: Callable[[nn.Conv2d], None], inference: bool
) -> None:
    with torch.inference_mode(inference):
        conv, x = conv_of(32, 32).requires_grad_(False), features(2, 32, 20, 20)
        before = convolved(conv, x)
        change(conv)
        found = convolved(conv, x)
        assert not torch.equal(found, before)
        torch.testing.assert_close(found, conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference mode"])
@pytest.mark.parametrize("write", WRITES)
def test_no_write_to_a_frozen_weight_goes_unseen(write: str, inference: bool) -> None:
    conv, x = conv_of(32, 32).requires_grad_(False), features(2, 32, 20, 20)
    new = conv_of(32, 32, seed=9).weight.detach()
    with torch.inference_mode(inference):
        before = convolved(conv, x)
    WRITES[write](conv.weight, new)
    with torch.inference_mode(inference):
        found, wanted = convolved(conv, x), convolved(copy.deepcopy(conv), x)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, before)


def test_the_same_bytes_read_in_another_order_are_another_weight() -> None:
    conv, x = conv_of(32, 32).requires_grad_(False), features(2, 32, 20, 20)
    convolved(conv, x)
    conv.weight.data = conv.weight.data.transpose(0, 1)
    torch.testing.assert_close(convolved(conv, x), conv(x), rtol=1e-4, atol=1e-5)


def test_a_thread_that_still_packs_an_old_weight_spoils_no_new_one() -> None:
    conv = conv_of(32, 32).requires_grad_(False)
    old = PackedWeights.of(conv, conv.weight)
    conv.weight = nn.Parameter(conv.weight * 2, requires_grad=False)
    new = PackedWeights.of(conv, conv.weight)
    old[winograd.TILE] = "the old transform"
    assert not new
