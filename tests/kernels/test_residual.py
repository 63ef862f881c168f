"""What lies between the convolutions of residual networks: PyTorch's own bits, and PyTorch where that cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdad_bench.kernels import Layers, cpp_layers, cpp_path, max_pool, norm_relu, residual

pytestmark = pytest.mark.usefixtures("one_thread")
needs_compiled = pytest.mark.skipif(cpp_path.missing() is not None, reason="the C++ kernels were not built")
KINDS = ("norm", "relu", "residual")
NAN, INFINITY = float("nan"), float("inf")


def features(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.5
    return drawn.contiguous(memory_format=torch.channels_last)


def norm_of(channels: int, **settings: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **settings).train()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for row in (norm.weight, norm.bias, norm.running_mean):
            if row is not None:
                row.copy_(torch.randn(channels, generator=generator))
    return norm


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same bits and order of memory; signs of zeros and NaN too."""
    if a.dtype != b.dtype or a.shape != b.shape or a.stride() != b.stride():
        return False
    return torch.equal(*(t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b)))


def by_pytorch(norm: nn.Module, relu: nn.Module | None, x: Tensor, identity: Tensor | None) -> Tensor:
    y: Tensor = norm(x)
    if identity is not None:
        y = y + identity
    return y if relu is None else relu(y)


def step(
    of: Callable[..., Tensor], kind: str, x: Tensor, norm: nn.BatchNorm2d, upstream: Tensor, *, wants: str = "xiwb"
) -> list[Tensor]:
    """Answer, statistics and gradients of a norm of `kind`: to x, identity, weight and bias, where `wants` has them."""
    relu = None if kind == "norm" else nn.ReLU(inplace=True)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_("x" in wants)
    identity = features(*x.shape, seed=5).requires_grad_("i" in wants) if kind == "residual" else None
    for row, name in ((norm.weight, "w"), (norm.bias, "b")):
        row.requires_grad_(name in wants)
    y = of(norm, relu, x, identity)
    learning = [t for t in (x, identity, norm.weight, norm.bias) if t is not None and t.requires_grad]
    gradients = torch.autograd.grad(y, learning, upstream.expand_as(y)) if learning else ()
    return [y.detach(), *gradients, *(row.clone() for row in norm.buffers())]


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the compiled parts fail where they are called."""

    def called(*_: object) -> None:
        raise AssertionError("the compiled part was called")

    for name in ("exact_norm", "exact_norm_gradients", "add_rectified", "max_pool"):
        monkeypatch.setattr(cpp_layers, name, called)


@needs_compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(2, 16, 1, 2), (3, 64, 7, 9), (1, 128, 2, 3), (2, 512, 3, 3), (5, 48, 20, 21)], ids=str
)
@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3, "momentum": 0.37}, {"momentum": 0.01}], ids=str)
def test_batch_norms_have_the_bits_of_pytorch_forward_backward_and_in_their_statistics(
    kind: str, shape: tuple[int, ...], settings: dict[str, float]
) -> None:
    x, upstream = features(*shape), features(*shape, seed=1)
    ours = step(norm_relu, kind, x, norm_of(shape[1], **settings), upstream)
    theirs = step(by_pytorch, kind, x, norm_of(shape[1], **settings), upstream)
    assert len(ours) == len(theirs)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert same(a, b), number


@needs_compiled
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_the_norms_are_compiled_ones_with_both_kinds_of_pytorchs_kernels(capability: str) -> None:
    """PyTorch's kernels for AVX2 round once where they multiply and add, those for any machine twice."""
    code = (
        "import torch; from kdad_bench.kernels import residual; "
        "print(torch.backends.cpu.get_cpu_capability(), residual.multiplies_and_adds_at_once())"
    )
    told = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    printed = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True).stdout
    have, found = printed.split()
    if have in ("DEFAULT", "AVX2"):  # others may round as they like: then it is PyTorch's own that runs
        assert found == str(have == "AVX2")


@needs_compiled
def test_the_trial_of_the_norms_draws_nothing_leaves_the_threads_and_finds_what_differs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    found = residual.multiplies_and_adds_at_once.__wrapped__()
    assert found == residual.multiplies_and_adds_at_once()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    usual = residual.small_norm_of_pytorch()
    for number in range(len(usual)):
        other = [row.clone() for row in usual]
        other[number][..., -1] += 1e-6 + abs(other[number][..., -1]) * 1e-6
        monkeypatch.setattr(residual, "small_norm_of_pytorch", lambda other=other: other)
        assert residual.multiplies_and_adds_at_once.__wrapped__() is None, number


@needs_compiled
def test_norms_that_round_otherwise_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "multiplies_and_adds_at_once", lambda: None)
    forbid(monkeypatch)
    x, upstream = features(2, 16, 3, 3), features(2, 16, 3, 3, seed=1)
    for kind in KINDS:
        ours, theirs = (step(of, kind, x, norm_of(16), upstream) for of in (norm_relu, by_pytorch))
        assert all(map(same, ours, theirs))


@needs_compiled
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_do_not_depend_on_the_number_of_threads(kind: str) -> None:
    x, upstream = features(3, 80, 17, 19), features(3, 80, 17, 19, seed=1)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(step(norm_relu, kind, x, norm_of(80), upstream))
    for other in found[1:]:
        assert all(map(same, found[0], other))


@needs_compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wants", ["x", "w", "b", "i", "xw", "ib", ""])
def test_only_what_learns_has_a_gradient(kind: str, wants: str) -> None:
    x, upstream = features(2, 32, 5, 4), features(2, 32, 5, 4, seed=1)
    ours, theirs = (step(of, kind, x, norm_of(32), upstream, wants=wants) for of in (norm_relu, by_pytorch))
    assert len(ours) == len(theirs)
    assert all(map(same, ours, theirs))


@needs_compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["rows", "one value", "strided"])
def test_gradients_in_other_orders_of_memory_are_pytorchs(kind: str, layout: str) -> None:
    x, drawn = features(2, 32, 5, 4), features(2, 32, 5, 8, seed=1)
    upstream = {"rows": drawn[..., :4].contiguous(), "one value": drawn[:1, :1, :1, :1], "strided": drawn[..., ::2]}
    ours, theirs = (step(of, kind, x, norm_of(32), upstream[layout]) for of in (norm_relu, by_pytorch))
    assert all(map(same, ours, theirs))


@needs_compiled
@pytest.mark.parametrize("kind", KINDS)
def test_a_double_backward_is_pytorchs(kind: str) -> None:
    found = []
    for of in (norm_relu, by_pytorch):
        norm, x = norm_of(16), features(2, 16, 3, 4).requires_grad_()
        identity = features(2, 16, 3, 4, seed=5).requires_grad_() if kind == "residual" else None
        y = of(norm, None if kind == "norm" else nn.ReLU(inplace=True), x, identity)
        upstream = features(2, 16, 3, 4, seed=1).requires_grad_()
        first = torch.autograd.grad(y, [x, norm.weight], upstream, create_graph=True)
        whole = sum((gradient.square().sum() for gradient in first), torch.zeros(()))
        found.append([*first, *torch.autograd.grad(whole, [x, norm.weight, upstream])])
    assert len(found[0]) == 5
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def left_to_pytorch() -> dict[str, tuple[nn.Module, Tensor]]:
    """What the compiled norms do not take: a norm and an image."""
    x = features(2, 16, 3, 4)
    hooked = norm_of(16)
    hooked.register_forward_hook(lambda *_: None)
    return {
        "rows": (norm_of(16), x.contiguous()),
        "one pixel": (norm_of(16), features(3, 16, 1, 1)),
        "float64": (norm_of(16).double(), x.double()),
        "bfloat16": (norm_of(16).bfloat16(), x.bfloat16()),
        "24 channels": (norm_of(24), features(2, 24, 3, 4)),
        "eval": (norm_of(16).eval(), x),
        "mean of all batches": (norm_of(16, momentum=None), x),
        "no parameters": (norm_of(16, affine=False), x),
        "no running statistics": (norm_of(16, track_running_stats=False), x),
        "hook": (hooked, x),
        "another norm": (nn.InstanceNorm2d(16), x),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", left_to_pytorch())
def test_other_norms_and_layouts_are_left_to_pytorch(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    found = []
    for of in (norm_relu, by_pytorch):
        norm, x = left_to_pytorch()[name]
        relu = None if kind == "norm" else nn.ReLU(inplace=True)
        identity = x.detach().clone() + 1 if kind == "residual" else None
        y = of(norm, relu, x.requires_grad_(), identity)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), x)
        found.append([y.detach(), gradient, *norm.buffers()])
    assert all(map(same, *found))


@pytest.mark.parametrize("how", ["autocast", "dispatch mode", "compiler", "kernels of torch", "relu6", "hooked relu"])
def test_the_norms_step_aside(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    x, relu = features(2, 16, 3, 4), nn.ReLU(inplace=True)
    if how == "compiler":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    elif how == "kernels of torch":
        monkeypatch.setenv("KDAD_KERNELS", "torch")
    elif how == "hooked relu":
        relu.register_forward_hook(lambda *_: None)
    contexts = {"autocast": torch.autocast("cpu", torch.bfloat16), "dispatch mode": FlopCounterMode(display=False)}
    with contexts.get(how, torch.enable_grad()):
        last = nn.ReLU6() if how == "relu6" else relu
        y = norm_relu(norm_of(16), last, x, features(2, 16, 3, 4, seed=2))
    assert same(y.detach(), by_pytorch(norm_of(16), last, x, features(2, 16, 3, 4, seed=2)).detach())


@needs_compiled
@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (2, 16, 1, 4), (2, 1, 3, 4)])
def test_an_identity_of_another_shape_is_added_as_pytorch_adds_it(shape: tuple[int, ...]) -> None:
    x, identity = features(2, 16, 3, 4), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = []
    for of in (norm_relu, by_pytorch):
        try:
            found.append(of(norm_of(16), nn.ReLU(inplace=True), x, identity).detach())
        except RuntimeError as error:
            found.append(str(error))
    if isinstance(found[0], Tensor):
        assert same(*found)
    else:
        assert found[0] == found[1]


@needs_compiled
def test_deterministic_algorithms_change_no_bit() -> None:
    x, upstream = features(2, 32, 5, 4), features(2, 32, 5, 4, seed=1)
    usual = step(norm_relu, "residual", x, norm_of(32), upstream)
    torch.use_deterministic_algorithms(True)
    try:
        assert all(map(same, usual, step(norm_relu, "residual", x, norm_of(32), upstream)))
    finally:
        torch.use_deterministic_algorithms(False)


@needs_compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [NAN, INFINITY, -INFINITY])
def test_values_that_are_not_finite_end_where_pytorch_has_them(kind: str, bad: float) -> None:
    x, upstream = features(2, 16, 3, 4), features(2, 16, 3, 4, seed=1)
    x[1, 2, 1, 1] = bad
    ours, theirs = (step(of, kind, x, norm_of(16), upstream) for of in (norm_relu, by_pytorch))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@needs_compiled
def test_a_norm_whose_weight_changed_before_the_backward_is_refused_as_by_pytorch() -> None:
    norm, x = norm_of(16), features(2, 16, 3, 4).requires_grad_()
    y = norm_relu(norm, nn.ReLU(), x)
    with torch.no_grad():
        norm.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def odd_values() -> Tensor:
    """Every pair of signs, zeros, infinities and NaN lies at one place of this and of `features(2, 16, 5, 7)`."""
    x = features(2, 16, 5, 7, seed=3)
    values = torch.tensor([0.0, -0.0, NAN, INFINITY, -INFINITY, 1e-45, -1e-45])
    x[0, :7, 0, 0] = values
    x[1, :7, 4, 6] = values.flip(0)
    return x


@needs_compiled
def test_the_addition_of_an_inference_copy_has_pytorchs_bits_in_the_memory_of_its_input() -> None:
    identity = features(2, 16, 5, 7)
    identity[0, :4, 0, 0] = torch.tensor([-0.0, -0.0, 1.0, -INFINITY])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        x = odd_values()
        expected = torch.relu(x + identity)
        with torch.inference_mode():
            found = norm_relu(nn.Identity(), nn.ReLU(inplace=True), x, identity)
        assert same(found, expected)
        assert found.data_ptr() == x.data_ptr()
    large, other = features(1, 64, 33, 31), features(1, 64, 33, 31, seed=1)
    assert same(norm_relu(nn.Identity(), nn.ReLU(inplace=True), large.clone(), other), torch.relu(large + other))


@pytest.mark.parametrize("how", ["gradient", "gradient of the identity", "another memory", "itself", "rows", "hook"])
def test_an_addition_that_must_not_write_over_its_input_is_pytorchs(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    x, identity, norm = features(2, 16, 3, 4), features(2, 16, 3, 4, seed=1), nn.Identity()
    if how == "hook":
        norm.register_forward_hook(lambda *_: None)
    if how == "rows":
        x = x.contiguous()
    other = x if how == "itself" else identity
    x.requires_grad_(how == "gradient")
    identity.requires_grad_(how == "gradient of the identity")
    kept = x.detach().clone()
    y = norm_relu(norm, nn.ReLU(inplace=how != "another memory"), x, other)
    assert same(y.detach(), torch.relu(kept + other.detach()))
    assert torch.equal(x.detach(), kept)


@needs_compiled
@pytest.mark.parametrize("shape", [(1, 64, 2, 1), (2, 16, 5, 8), (2, 64, 16, 15), (1, 3, 2, 2), (3, 7, 1, 4)], ids=str)
def test_maximum_pooling_has_pytorchs_bits(shape: tuple[int, ...]) -> None:
    pool = nn.MaxPool2d(3, 2, 1)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for x in (features(*shape), features(*shape).relu_().mul_(-1), torch.full_like(features(*shape), -INFINITY)):
            assert same(max_pool(pool, x), pool(x))
        x = features(*shape)
        x[0, 0, 0, 0], x[-1, 1, -1, -1], x[-1, -1, -1, -1] = NAN, NAN, INFINITY  # the first and the last of a window
        assert same(max_pool(pool, x), pool(x))


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2}, {"stride": 1}, {"padding": 0}, {"dilation": 2}, {"return_indices": True},
        {"ceil_mode": True}, {"kernel_size": (3, 2)},
    ],
    ids=str,
)  # fmt: skip
def test_other_poolings_are_pytorchs(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    pool = nn.MaxPool2d(**{"kernel_size": 3, "stride": 2, "padding": 1} | settings)
    x = features(2, 16, 8, 9)
    found, expected = max_pool(pool, x), pool(x)
    if settings.get("return_indices"):
        found, expected = found[0], expected[0]
    assert same(found, expected)


def test_pooling_with_a_gradient_or_in_another_order_of_memory_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch)
    pool, x = nn.MaxPool2d(3, 2, 1), features(2, 16, 8, 9)
    assert same(max_pool(pool, x.contiguous()), pool(x.contiguous()))
    assert max_pool(pool, x.requires_grad_()).requires_grad


def test_layers_do_what_a_sequence_does_with_the_same_names_and_hooks() -> None:
    def made(kind: type[nn.Sequential]) -> nn.Sequential:
        torch.manual_seed(0)
        parts = [nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Conv2d(32, 16, 1)]
        return kind(*parts, nn.BatchNorm2d(16), nn.BatchNorm2d(16), nn.ReLU(), nn.ReLU6()).to(
            memory_format=torch.channels_last
        )

    found = []
    for kind in (Layers, nn.Sequential):
        network, x = made(kind), features(2, 16, 6, 5).requires_grad_()
        y = network(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in network.parameters()), *network.buffers()])
    assert all(map(same, *found))
    assert made(Layers).state_dict().keys() == made(nn.Sequential).state_dict().keys()
    assert type(made(Layers)[1:3]) is Layers
    called: list[nn.Module] = []
    hooked = made(Layers)
    for layer in hooked:
        layer.register_forward_hook(lambda module, *_: called.append(module))
    hooked(features(2, 16, 6, 5))
    assert called == list(hooked)
