"""Calls that are kept for calls alike: the same bits as the long way, for calls alike only, and none that failed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from kdad_bench import kernels
from kdad_bench.kernels import dispatch, ready, triton_calls, triton_launch, triton_path
from tests.kernels.checks import CHANNELS_LAST, pair

SHAPES = ((2, 12, 6, 5), (2, 20, 3, 4))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where Triton answers


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls are kept on the CPU too, where Triton's interpreter answers them."""
    monkeypatch.setenv("KDAD_KERNELS", "triton")
    monkeypatch.setattr(ready, "ON", {"cpu", "cuda"})
    ready._kept.clear()
    yield
    ready._kept.clear()


def taps(dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Teacher and two students at two scales, of different layouts."""
    made: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for k, shape in enumerate(SHAPES):
        t, s = pair(shape, dtype, seed=seed + k, device=DEVICE)
        made[0].append(t.to(memory_format=CHANNELS_LAST))
        made[1].append(s)
        made[2].append((t - s).to(dtype))
    return made


def flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [x for part in result for x in flat(part)]


def trained(loss: Callable[..., Tensor], factor: float = 1.0) -> Callable[..., Any]:
    """The loss and its gradients to all taps that are given after the teacher's."""

    def call(teachers: list[Tensor], *several: list[Tensor], **options: Any) -> Any:
        students = [[s.detach().requires_grad_() for s in group] for group in several]
        value = loss(teachers, *students, **options)
        return value.detach(), torch.autograd.grad(factor * value, [s for group in students for s in group])

    return call


CALLS: dict[str, tuple[str, int, Callable[..., Any]]] = {
    "maps": ("maps", 2, kernels.pixel_discrepancies),
    "maps of l2": ("maps", 2, lambda t, a: kernels.pixel_discrepancies(t, a, kind="l2", weight=2.5)),
    "two students": ("dual_maps", 3, lambda t, a, b: kernels.dual_discrepancies(t, a, b, weight=0.5)),
    "weighting": ("weighting", 2, kernels.attention_weightings),
    "sum": ("whole_map", 2, lambda t, a: kernels.anomaly_map(t, a, (24, 20))),
    "blurred product": ("whole_map", 2, lambda t, a: kernels.anomaly_map(t, a, (24, 20), mode="product", sigma=1.0)),
    "mean": ("whole_map", 2, lambda t, a: kernels.anomaly_map(t, a, (24, 20), sigma=2.0, score="mean", weight=2.0)),
    "below 0": ("whole_map", 2, lambda t, a: kernels.anomaly_map(t, a, (24, 20), weight=-1.0)),
    "fused below": ("whole_map", 2, lambda t, a: kernels.anomaly_map(t, a, (12, 10), fuse_size=(8, 8), border="torch")),
    "loss alone": ("loss", 2, lambda t, a: kernels.distillation_loss(t, a, weights=(1.0, 0.5))),
    "loss": ("loss", 2, trained(kernels.distillation_loss, 3.0)),
    "loss of two": ("loss", 3, trained(kernels.dual_distillation_loss)),
    "weighted": ("loss", 2, trained(lambda t, a: kernels.distillation_loss(t, a, kind="l2", weights=(2.0, 0.25)))),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_call_that_is_kept_returns_the_bits_of_the_long_way(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    op, groups, call = CALLS[name]
    first, other = taps(dtype)[:groups], taps(dtype, 10)[:groups]
    expected = [flat(call(*given)) for given in (first, other) if ready._kept.clear() is None]
    assert len(ready._kept[op]) == 1
    monkeypatch.setattr(dispatch, "ops_of", unless_kept(name))
    for given, wanted in ((other, expected[1]), (first, expected[0]), (other, expected[1])):
        found = flat(call(*given))
        assert [x.dtype for x in found] == [x.dtype for x in wanted]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert len(ready._kept[op]) == 1


def unless_kept(name: str) -> Callable[[Tensor], Any]:
    """In place of the ops: nothing but what a backward needs."""

    class Backward:
        scale_in_place = staticmethod(triton_path.scale_in_place)
        pixel_gradients = staticmethod(triton_path.pixel_gradients)

        def __getattr__(self, op: str) -> Any:
            raise AssertionError(f"{name} went the long way, to {op}")

    return lambda tensor: Backward()


DIFFERENT: dict[str, Callable[..., Any]] = {
    "kind": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), kind="l2"),
    "weight": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), weight=2.0),
    "mode": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), mode="product"),
    "align_corners": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), align_corners=True),
    "sigma": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), sigma=1.0),
    "other sigma": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), sigma=2.0),
    "border": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), sigma=2.0, border="torch"),
    "score": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), score="mean"),
    "fuse_size": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), fuse_size=(7, 7)),
    "size": lambda t, a, **o: kernels.anomaly_map(t, a, (8, 9)),
    "one scale": lambda t, a, **o: kernels.anomaly_map(t[:1], a[:1], (9, 8)),
    "batch": lambda t, a, **o: kernels.anomaly_map([x[:1] for x in t], [x[:1] for x in a], (9, 8)),
    "strides": lambda t, a, **o: kernels.anomaly_map([x.contiguous() for x in t], a, (9, 8)),
    "dtype": lambda t, a, **o: kernels.anomaly_map([x.half() for x in t], [x.half() for x in a], (9, 8)),
    "student's dtype": lambda t, a, **o: kernels.anomaly_map(t, [x.bfloat16() for x in a], (9, 8)),
}


def test_calls_that_differ_in_anything_are_kept_apart() -> None:
    t, a, _ = taps()
    usual = kernels.anomaly_map(t, a, (9, 8))
    expected = {name: call(t, a) for name, call in DIFFERENT.items()}
    assert len(ready._kept["whole_map"]) == 1 + len(DIFFERENT)
    options = set(inspect.signature(kernels.anomaly_map).parameters) - {"teacher_taps", "student_taps"}
    assert options <= set(DIFFERENT)
    for name, call in DIFFERENT.items():
        assert all(torch.equal(x, y) for x, y in zip(call(t, a), expected[name], strict=True)), name
    assert all(torch.equal(x, y) for x, y in zip(kernels.anomaly_map(t, a, (9, 8)), usual, strict=True))
    kernels.anomaly_map([x.requires_grad_() for x in t], a, (9, 8))[0].sum().backward()  # not the call without
    assert t[0].grad is not None


KEPT: dict[str, Callable[..., Any]] = {
    "maps": kernels.pixel_discrepancies,
    "dual_maps": lambda t, a: kernels.dual_discrepancies(t, a, t),
    "weighting": kernels.attention_weightings,
    "whole_map": lambda t, a: kernels.anomaly_map(t, a, (9, 8), sigma=1.0),
    "loss": kernels.distillation_loss,
}


@pytest.mark.parametrize("op", KEPT)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where forward derivatives begin
def test_what_the_long_way_looks_for_is_not_passed_by(op: str) -> None:
    t, a, _ = taps()
    usual = flat(KEPT[op](t, a))
    assert len(ready._kept[op]) == 1
    negated = flat(KEPT[op](t, [torch._neg_view(-x) for x in a]))
    for mine, theirs in zip(negated, usual, strict=True):
        torch.testing.assert_close(mine, theirs)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, torch.ones_like(x)) for x in a]
        if op == "weighting":  # which has no derivative at all
            assert all(forward_ad.unpack_dual(x).tangent is None for x in flat(KEPT[op](t, duals)))
        else:
            with pytest.raises(NotImplementedError, match="no forward derivative"):
                KEPT[op](t, duals)
    assert len(ready._kept[op]) == 1


def test_what_wants_a_gradient_is_part_of_a_loss() -> None:
    for wants in ((False, True), (True, False), (True, True), (False, False), (False, True)):
        t, a, _ = taps()
        for group, wish in zip((t, a), wants, strict=True):
            for x in group:
                x.requires_grad_(wish)
        for _ in range(2):
            loss = kernels.distillation_loss(t, a)
            assert loss.requires_grad == any(wants)
            if any(wants):
                loss.backward()
        assert [x.grad is not None for x in (*t, *a)] == [wants[0]] * 2 + [wants[1]] * 2
        with torch.no_grad():
            assert not kernels.distillation_loss(t, a).requires_grad
    assert len(ready._kept["loss"]) == 8


def test_a_loss_that_is_kept_can_be_differentiated_twice_over() -> None:
    t, a, _ = taps()
    a = [x.requires_grad_() for x in a]
    kernels.distillation_loss(t, a)
    loss = kernels.distillation_loss(t, a)
    first, again = (torch.autograd.grad(loss, a, retain_graph=True) for _ in range(2))
    for mine, theirs in zip(first, again, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("op", ["maps", "whole_map", "loss"])
def test_a_wrong_call_is_refused_however_many_were_kept(op: str) -> None:
    t, a, b = taps()
    calls: dict[str, Callable[..., Any]] = {
        "maps": kernels.pixel_discrepancies,
        "whole_map": lambda t, a, **o: kernels.anomaly_map(t, a, (9, 8), **o),
        "loss": kernels.distillation_loss,
    }
    call = calls[op]
    call(t, a)
    for wrong in ((t, a[:1]), (t[:1], [*a, *b[:1]]), ([], []), (t, [a[0], a[0]])):
        with pytest.raises(ValueError, match=r"scales|agree"):
            call(*wrong)
    with pytest.raises(ValueError, match="kind"):
        call(t, a, kind="cosinus")


def test_students_of_other_lengths_are_not_those_that_were_kept() -> None:
    t, a, b = taps()
    kernels.dual_distillation_loss(t, a, b)
    kernels.dual_discrepancies(t, a, b)
    for call in (kernels.dual_distillation_loss, kernels.dual_discrepancies):
        with pytest.raises(ValueError, match="scales"):
            call(t, [*a, b[0]], b[1:])


def test_a_call_that_fails_is_forgotten_and_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    t, a, _ = taps()
    expected = kernels.pixel_discrepancies(t, a)
    (key,) = ready._kept["maps"]

    def failing(*given: Any) -> Any:
        raise RuntimeError("no such kernel")

    ready._kept["maps"][key] = failing
    assert all(torch.equal(x, y) for x, y in zip(kernels.pixel_discrepancies(t, a), expected, strict=True))
    assert ready._kept["maps"][key] is not failing  # kept anew
    monkeypatch.setattr(triton_launch, "launch", failing)
    monkeypatch.setattr(triton_path, "launch", failing)
    with pytest.raises(RuntimeError, match="no such kernel"):
        kernels.pixel_discrepancies(t, a)
    assert not ready._kept["maps"]

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    ready._kept["maps"][key] = full
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        kernels.pixel_discrepancies(t, a)


def test_nothing_is_kept_where_triton_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    t, a, _ = taps()
    five = [t * 3, a * 3]
    kernels.pixel_discrepancies(*five)  # six scales are two launches
    kernels.pixel_discrepancies([x.double() for x in t], [x.double() for x in a])
    monkeypatch.setenv("KDAD_KERNELS", "torch")
    kernels.pixel_discrepancies(t, a)
    monkeypatch.setenv("KDAD_KERNELS", "triton")
    monkeypatch.setitem(dispatch._broken, "pixel_maps", "spills")
    kernels.pixel_discrepancies(t, a)
    monkeypatch.setattr(ready, "ON", {"cuda", "cpu"} - {DEVICE.type})
    kernels.pixel_discrepancies(t, a)
    assert not ready._kept["maps"]


def test_the_latest_layouts_are_kept_and_no_tensor_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "MOST", 3)
    monkeypatch.setattr(triton_calls, "maps", lambda everything, *rest: lambda given: (rest, len(given)))
    t, a, _ = taps()
    for weight in range(5):
        kernels.pixel_discrepancies(t[1:], a[1:], weight=weight)
    assert [key[0][1] for key in ready._kept["maps"]] == [2, 3, 4]
