"""The layers of the networks against PyTorch's own in float64, and that they step aside where they must."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from kdad_bench.kernels import (
    convolved,
    cpp_path,
    depthwise_same,
    inference_conv,
    layers,
    norm_clamp,
    norm_relu,
    pointwise_norm_clamp,
)
from tests.writes import WRITES

needs_compiled = pytest.mark.skipif(cpp_path.missing() is not None, reason="the C++ kernels were not built")
INFINITY = float("inf")
CLAMPS = {"none": (-INFINITY, INFINITY), "relu": (0.0, INFINITY), "relu6": (0.0, 6.0)}


def features(*shape: int, seed: int = 0, mean: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator) * 2 + mean
    return drawn.contiguous(memory_format=torch.channels_last)


def prune_weight(module: nn.Module) -> nn.Module:
    return prune.l1_unstructured(module, "weight", 0.5)  # type: ignore[no-any-return,no-untyped-call]


def norms(channels: int) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """A norm and its copy in float64."""
    own = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.2).train()
    with torch.no_grad():
        own.weight.copy_(torch.linspace(0.5, 1.5, channels))
        own.bias.copy_(torch.linspace(-1, 1, channels))
    other = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.2).double().train()
    other.load_state_dict(own.state_dict())
    return own, other


@needs_compiled
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (1, 40, 1, 9), (3, 700, 4, 4), (16, 24, 33, 31), (2, 1, 2, 2)], ids=str
)
def test_batch_norm_with_clamp_agrees_with_float64_forward_backward_and_in_its_statistics(
    clamp: str, shape: tuple[int, ...]
) -> None:
    low, high = CLAMPS[clamp]
    own, other = norms(shape[1])
    x = features(*shape).requires_grad_()
    double = x.detach().double().requires_grad_()
    upstream = features(*shape, seed=1)
    assert layers.fits(x)
    found, expected = norm_clamp(own, x, low, high), other(double).clamp(low, high)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    mine = torch.autograd.grad(found, [x, own.weight, own.bias], upstream)
    theirs = torch.autograd.grad(expected, [double, other.weight, other.bias], upstream.double())
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).norm() / b.norm().clamp_min(1e-3)) < 2e-5
    torch.testing.assert_close(own.running_mean.double(), other.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(own.running_var.double(), other.running_var, rtol=1e-5, atol=1e-6)
    assert int(own.num_batches_tracked) == 1


@needs_compiled
def test_batch_norm_keeps_the_variance_of_values_far_from_zero() -> None:
    own, other = norms(8)
    x = features(4, 8, 9, 9, mean=1e4)
    torch.testing.assert_close(norm_clamp(own, x).double(), other(x.double()), rtol=1e-3, atol=1e-2)


@needs_compiled
def test_batch_norm_lets_not_a_number_through_and_takes_strided_gradients() -> None:
    own, other = norms(4)
    x = features(2, 4, 3, 3).requires_grad_()
    double = x.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(norm_clamp(own, x, 0, 6).sum(), x)
    (expected,) = torch.autograd.grad(other(double).clamp(0, 6).sum(), double)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    broken = x.detach().clone(memory_format=torch.channels_last)
    broken[1, 2, 1, 1] = float("nan")
    assert bool(norm_clamp(own, broken, 0, 6)[:, 2].isnan().all())
    assert not bool(norm_clamp(own, broken, 0, 6)[:, :2].isnan().any())


@needs_compiled
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("pieces", ["one", "many"])
@pytest.mark.parametrize(
    ("shape", "answers"), [((2, 3, 5, 7), 8), ((1, 40, 1, 9), 1), ((3, 24, 33, 31), 144), ((2, 1, 2, 2), 3)], ids=str
)
def test_a_1x1_convolution_with_norm_and_clamp_agrees_with_float64(
    clamp: str, pieces: str, shape: tuple[int, ...], answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces == "many":
        monkeypatch.setattr(layers, "PIECE", 1)
        monkeypatch.setattr(layers, "LEAST_PIECE", 5)
    torch.manual_seed(0)
    low, high = CLAMPS[clamp]
    own, other = norms(answers)
    conv = nn.Conv2d(shape[1], answers, 1, bias=False)
    double_conv = nn.Conv2d(shape[1], answers, 1, bias=False).double()
    double_conv.load_state_dict(conv.state_dict())
    x = features(*shape).requires_grad_()
    double = x.detach().double().requires_grad_()
    upstream = features(shape[0], answers, *shape[2:], seed=1)
    found, expected = pointwise_norm_clamp(conv, own, x, low, high), other(double_conv(double)).clamp(low, high)
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    mine = torch.autograd.grad(found, [x, conv.weight, own.weight, own.bias], upstream)
    theirs = torch.autograd.grad(expected, [double, double_conv.weight, other.weight, other.bias], upstream.double())
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == b.shape
        assert float((a - b).norm() / b.norm().clamp_min(0.1)) < 1e-4  # a norm cancels some gradients
    torch.testing.assert_close(own.running_mean.double(), other.running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own.running_var.double(), other.running_var, rtol=1e-4, atol=1e-5)
    assert int(own.num_batches_tracked) == 1


@needs_compiled
def test_a_1x1_convolution_with_norm_steps_aside_where_it_does_not_apply() -> None:
    def applies(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> bool:
        return pointwise_norm_clamp(conv, norm, x, 0.0, 6.0) is not None

    x, norm, conv = features(2, 4, 3, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False)
    assert applies(conv, norm, x)
    others = {"kernel_size": 3, "bias": True, "groups": 2, "stride": 2, "padding": 1}
    for field, value in others.items():
        assert not applies(nn.Conv2d(4, 4, **{"kernel_size": 1, "bias": False} | {field: value}), norm, x), field
    assert not applies(conv, nn.Identity(), x)
    assert not applies(conv, nn.BatchNorm2d(4).eval(), x)
    assert not applies(conv, norm, x.double())
    assert not applies(conv, norm, x.contiguous())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not applies(conv, norm, x)
    with FlopCounterMode(display=False):
        assert not applies(conv, norm, x)


@needs_compiled
def test_a_1x1_convolution_whose_image_needs_no_gradient_gives_the_weights_theirs() -> None:
    torch.manual_seed(0)
    conv, norm, x = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), features(2, 4, 5, 5)
    y = pointwise_norm_clamp(conv, norm, x, 0.0, 6.0)
    assert y is not None
    (y * features(*y.shape, seed=3)).sum().backward()
    assert conv.weight.grad is not None
    expected = nn.Conv2d(4, 6, 1, bias=False)
    expected.load_state_dict(conv.state_dict())
    other = nn.BatchNorm2d(6)
    (other(expected(x)).clamp(0, 6) * features(*y.shape, seed=3)).sum().backward()
    assert expected.weight.grad is not None
    torch.testing.assert_close(conv.weight.grad, expected.weight.grad, rtol=1e-4, atol=1e-4)


@needs_compiled
def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    results = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        own, _ = norms(48)
        x = features(5, 48, 40, 40).requires_grad_()
        weight = features(48, 1, 5, 5, seed=2).contiguous().requires_grad_()
        y = depthwise_same(norm_clamp(own, x, 0, 6), weight, 2, (1, 2), (1, 2))
        results.append(torch.autograd.grad(y.square().sum(), [own.weight, own.bias, weight, x]))
    torch.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [(1, 1), (2, 7), (9, 8), (16, 3)], ids=str)
@pytest.mark.parametrize("channels", [16, 48, 20])
def test_depthwise_convolution_agrees_with_padding_the_image(
    size: int, stride: int, side: tuple[int, int], channels: int
) -> None:
    x = features(3, channels, *side).requires_grad_()
    weight = torch.randn(channels, 1, size, size, generator=torch.Generator().manual_seed(3), requires_grad=True)
    double_x, double_weight = (t.detach().double().requires_grad_() for t in (x, weight))
    pads = []
    for length in side:
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads.append((total // 2, total - total // 2))
    found = depthwise_same(x, weight, stride, pads[0], pads[1])
    padded = F.pad(double_x, (*pads[1], *pads[0]))
    expected = F.conv2d(padded, double_weight, None, stride, groups=channels)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    mine = torch.autograd.grad(found, [x, weight], upstream)
    theirs = torch.autograd.grad(expected, [double_x, double_weight], upstream.double())
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "stride", "groups"), [*product([1, 3, 5], [1, 2], [1, 16])])
@pytest.mark.parametrize("high", [None, 6.0])
def test_an_inference_convolution_agrees_with_convolution_and_clamp(
    size: int, stride: int, groups: int, high: float | None
) -> None:
    conv = nn.Conv2d(16, 32 if groups == 1 else 16, size, stride, groups=groups).requires_grad_(False)
    x = features(2, 16, 12, 10)
    pads = [(t // 2, t - t // 2) for t in (max((-(-n // stride) - 1) * stride + size - n, 0) for n in x.shape[2:])]
    found = inference_conv(conv, x, lambda _: (pads[0], pads[1]), high)
    if not layers.has_onednn():
        assert found is None
        return
    expected = conv(F.pad(x, (*pads[1], *pads[0])))
    assert found is not None
    other = features(2, 16, 7, 13, seed=5)  # another size has another padding
    pads = [(t // 2, t - t // 2) for t in (max((-(-n // stride) - 1) * stride + size - n, 0) for n in other.shape[2:])]
    second = inference_conv(conv, other, lambda _: (pads[0], pads[1]), high)
    wanted = conv(F.pad(other, (*pads[1], *pads[0])))
    torch.testing.assert_close(second, wanted if high is None else wanted.clamp(0, high), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected if high is None else expected.clamp(0, high), rtol=1e-4, atol=1e-5)


def test_an_inference_convolution_steps_aside_for_gradients_counters_and_other_dtypes() -> None:
    conv = nn.Conv2d(16, 16, 1).requires_grad_(False)
    x = features(1, 16, 4, 4)

    def none(_: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        return (0, 0), (0, 0)

    assert inference_conv(conv, x.clone().requires_grad_(), none, None) is None
    assert inference_conv(conv.double(), x.double(), none, None) is None
    with FlopCounterMode(display=False):
        assert inference_conv(conv.float(), x, none, None) is None


def test_plain_pytorch_runs_where_the_kernels_are_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_KERNELS", "torch")
    x = features(2, 16, 6, 6)
    own, other = norms(16)
    assert not layers.fits(x)
    torch.testing.assert_close(norm_clamp(own, x, 0, 6).double(), other(x.double()).clamp(0, 6), rtol=1e-4, atol=1e-5)
    assert int(own.num_batches_tracked) == 1


def test_batch_norm_in_eval_mode_uses_the_running_statistics() -> None:
    own, _ = norms(16)
    x = features(2, 16, 6, 6)
    torch.testing.assert_close(norm_clamp(own.eval(), x, 0, 6), F.relu6(own(x)))
    assert int(own.num_batches_tracked) == 0


def padding_none(_: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    return (0, 0), (0, 0)


def test_an_inference_convolution_steps_aside_for_weights_that_learn_hooks_autocast_and_other_paths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, conv = features(1, 16, 4, 4), nn.Conv2d(16, 16, 1)
    assert inference_conv(conv, x, padding_none, None) is None
    conv.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert inference_conv(conv, x, padding_none, None) is None
    handle = conv.register_forward_hook(lambda *_: None)
    assert inference_conv(conv, x, padding_none, None) is None
    handle.remove()
    monkeypatch.setenv("KDAD_KERNELS", "torch")
    assert inference_conv(conv, x, padding_none, None) is None
    monkeypatch.delenv("KDAD_KERNELS")
    assert (inference_conv(conv, x, padding_none, None) is not None) == layers.has_onednn()


@pytest.mark.skipif(not layers.has_onednn(), reason="this PyTorch has no oneDNN")
def test_an_inference_convolution_follows_its_weight() -> None:
    x, conv = features(1, 16, 4, 4), nn.Conv2d(16, 16, 1).requires_grad_(False)
    other = nn.Parameter(torch.randn(16, 16, 1, 1), requires_grad=False)
    for change in (lambda: conv.weight.mul_(2), lambda: conv.bias.add_(1), lambda: setattr(conv, "weight", other)):
        inference_conv(conv, x, padding_none, None)
        change()
        torch.testing.assert_close(inference_conv(conv, x, padding_none, None), conv(x), rtol=1e-4, atol=1e-5)
    assert not copy.deepcopy(conv).packed
    assert not pickle.loads(pickle.dumps(conv)).packed


@pytest.mark.skipif(not layers.has_onednn(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("tensor", ["weight", "bias"])
@pytest.mark.parametrize("write", WRITES)
def test_no_write_to_the_weight_of_an_inference_convolution_goes_unseen(write: str, tensor: str) -> None:
    x, conv = features(1, 16, 4, 4), nn.Conv2d(16, 16, 1).requires_grad_(False)
    before = inference_conv(conv, x, padding_none, None)
    WRITES[write](getattr(conv, tensor), getattr(nn.Conv2d(16, 16, 1), tensor).detach())
    found, wanted = (inference_conv(one, x, padding_none, None) for one in (conv, copy.deepcopy(conv)))
    assert found is not None
    assert wanted is not None
    assert before is not None
    assert torch.equal(found, wanted)
    assert not torch.equal(found, before)


@pytest.mark.skipif(not layers.has_onednn(), reason="this PyTorch has no oneDNN")
def test_what_cannot_be_read_is_packed_anew_each_time() -> None:
    class Own(nn.Parameter):
        pass

    x, conv = features(1, 16, 4, 4), nn.Conv2d(16, 16, 1)
    conv.weight = Own(conv.weight.detach(), requires_grad=False)
    conv.requires_grad_(False)
    inference_conv(conv, x, padding_none, None)
    conv.weight.data.mul_(2)
    torch.testing.assert_close(inference_conv(conv, x, padding_none, None), conv(x), rtol=1e-4, atol=1e-5)
    assert "packed" not in conv.__dict__


@needs_compiled
@pytest.mark.parametrize("normalise", [prune_weight, nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_reparametrised_convolutions_train_as_in_plain_pytorch(
    normalise: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for path in ("cpp", "torch"):
        monkeypatch.setenv("KDAD_KERNELS", path)
        torch.manual_seed(0)
        conv, norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        normalise(conv)
        optimiser = torch.optim.SGD([*conv.parameters(), *norm.parameters()], 0.1)
        for step in range(3):
            x = features(2, 4, 5, 5, seed=step)
            y = pointwise_norm_clamp(conv, norm, x, 0.0, 6.0)
            y = norm_clamp(norm, conv(x), 0.0, 6.0) if y is None else y
            optimiser.zero_grad()
            (y * features(*y.shape, seed=9)).mean().backward()
            optimiser.step()
        found.append([p.detach() for p in conv.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@needs_compiled
def test_hooks_of_convolutions_and_norms_are_called() -> None:
    called: list[nn.Module] = []
    conv, norm, x = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), features(2, 4, 5, 5)
    norm.register_forward_hook(lambda module, *_: called.append(module))
    assert pointwise_norm_clamp(conv, norm, x, 0.0, 6.0) is None
    norm_clamp(norm, conv(x), 0.0, 6.0)
    assert called == [norm]
    conv.register_forward_pre_hook(lambda *_: None)
    assert pointwise_norm_clamp(conv, nn.BatchNorm2d(6), x, 0.0, 6.0) is None


def odd_norms() -> dict[str, nn.BatchNorm2d]:
    strided, unstepped, uncounted, wide, half = (nn.BatchNorm2d(4) for _ in range(5))
    strided.weight = nn.Parameter(torch.arange(8.0)[::2])
    unstepped.running_mean = unstepped.running_var = None
    uncounted.num_batches_tracked = None
    return {
        "strided": strided,
        "no running statistics": unstepped,
        "no count": uncounted,
        "float64": wide.double(),
        "bfloat16": half.bfloat16(),
        "other channels": nn.BatchNorm2d(5),
    }


@pytest.mark.parametrize("name", odd_norms())
def test_odd_norms_do_what_pytorch_does_with_them(name: str) -> None:
    norm, other, x = odd_norms()[name], odd_norms()[name], features(2, 4, 3, 3)
    try:
        expected = other(x)
    except (RuntimeError, ValueError) as error:
        with pytest.raises(type(error)):
            norm_clamp(norm, x)
        return
    torch.testing.assert_close(norm_clamp(norm, x), expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(norm.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_compiled
def test_a_call_that_fails_counts_no_batch() -> None:
    conv, norm = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
    with pytest.raises(RuntimeError):
        pointwise_norm_clamp(conv, norm, features(2, 5, 3, 3), 0.0, 6.0)
    assert int(norm.num_batches_tracked or 0) == 0


@needs_compiled
@pytest.mark.parametrize("bad", [float("nan"), INFINITY])
def test_a_value_that_is_not_finite_shows_in_all_of_its_channel_and_in_the_running_statistics(bad: float) -> None:
    x = features(2, 4, 3, 3)
    x[1, 2, 1, 1] = bad
    norm, other = norms(4)
    found, expected = norm_clamp(norm, x, 0.0, 6.0), other(x.double()).clamp(0, 6)
    assert torch.equal(found.isnan(), expected.isnan())
    assert found[:, 2].isnan().all()
    assert torch.equal(norm.running_var.isnan(), other.running_var.isnan())


@needs_compiled
def test_the_parameters_of_a_norm_may_change_before_the_backward() -> None:
    gradients = []
    for changes in (False, True):
        norm, x = norms(4)[0], features(2, 4, 3, 3).requires_grad_()
        y = norm_clamp(norm, x, 0.0, 6.0)
        if changes:
            with torch.no_grad():
                norm.weight.mul_(3)
                norm.bias.add_(1)
        gradients.append(torch.autograd.grad(y.square().sum(), [x, norm.weight, norm.bias]))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_depthwise_convolutions_step_aside_under_autocast_and_for_several_outputs_per_channel() -> None:
    x, weight = features(2, 16, 6, 6), torch.randn(16, 1, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_same(x, weight, 1, (1, 1), (1, 1))
    (found,) = torch.autograd.grad(y, weight, torch.ones_like(y))
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1, groups=16).sum(), weight)
    assert float((found - expected).norm() / expected.norm()) < 0.02
    double = torch.randn(32, 1, 3, 3, requires_grad=True)
    (found,) = torch.autograd.grad(depthwise_same(x, double, 1, (1, 1), (1, 1)).sum(), double)
    (expected,) = torch.autograd.grad(F.conv2d(x, double, padding=1, groups=16).sum(), double)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_the_layers_step_aside_for_traces_and_transforms() -> None:
    x = features(2, 16, 4, 4)
    seen = []
    torch.jit.trace(lambda image: seen.append(layers.unwatched(image)) or image * 2, x, check_trace=False)
    torch.func.grad(lambda image: (seen.append(layers.unwatched(image)), image.sum())[1])(x)
    assert layers.unwatched(x)
    assert not any(seen)
    assert len(seen) >= 2


def test_hooks_of_all_modules_are_called() -> None:
    norm, relu, x = nn.BatchNorm2d(16), nn.ReLU(), torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    called: list[nn.Module] = []
    handle = register_module_forward_hook(lambda module, *_: called.append(module))
    try:
        norm_relu(norm, relu, x)
    finally:
        handle.remove()
    assert called == [norm, relu]


def test_a_forward_that_was_put_in_place_of_the_class_s_is_called() -> None:
    norm, x = nn.BatchNorm2d(16), torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    norm.forward = lambda x: x * 0  # type: ignore[method-assign]
    assert float(norm_relu(norm, None, x).abs().max()) == 0


@pytest.mark.parametrize("momentum", [0.999, 1.0])
def test_running_statistics_that_move_far_keep_the_digits_of_small_ones(momentum: float) -> None:
    own = nn.BatchNorm2d(16, momentum=momentum)
    own.running_mean.fill_(100.0)
    other = copy.deepcopy(own).double()
    x = features(4, 16, 8, 8, mean=0.0) * 1e-3
    norm_clamp(own, x)
    other(x.double())
    torch.testing.assert_close(own.running_var.double(), other.running_var, rtol=1e-6, atol=0)
    torch.testing.assert_close(own.running_mean.double(), other.running_mean, rtol=1e-6, atol=1e-9)


def test_an_infinite_running_variance_stays_infinite() -> None:
    norm = nn.BatchNorm2d(16)
    norm.running_var.fill_(torch.inf)
    norm_clamp(norm, features(2, 16, 4, 4))
    assert norm.running_var.isinf().all()


class Doubled(TorchFunctionMode):
    """Convolutions and norms give twice what they give."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        return 2 * made if function in (F.conv2d, torch.conv2d, F.batch_norm) else made


def test_the_layers_step_aside_for_modes_that_replace_functions_but_not_for_a_default_device() -> None:
    norm, x = nn.BatchNorm2d(16), features(2, 16, 4, 4)
    conv = nn.Conv2d(32, 32, 3, padding=1).requires_grad_(False).to(memory_format=torch.channels_last)
    image = features(1, 32, 32, 32)
    plain, convolution = norm(x), conv(image)
    with Doubled():
        torch.testing.assert_close(norm_clamp(norm, x), 2 * plain)
        assert torch.equal(convolved(conv, image), 2 * convolution)
    with torch.device("cpu"):
        assert layers.unwatched(image)
