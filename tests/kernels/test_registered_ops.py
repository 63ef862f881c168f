"""The ops as torch.library knows them: schema, fake kernels, autograd, torch.compile, autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import reference
from tests.kernels.checks import CHANNELS_LAST, pair

OPS = torch.ops.kdad
DOUBLE = torch.float64


def triple(dtype: torch.dtype, layout: torch.memory_format) -> list[Tensor]:
    return [pair((2, 6, 5, 4), dtype, layout, seed)[1].detach().requires_grad_() for seed in range(3)]


CASES = {
    "float32": (torch.float32, torch.contiguous_format),
    "float32 channels_last": (torch.float32, CHANNELS_LAST),
    "float64": (torch.float64, torch.contiguous_format),
    "float16": (torch.float16, torch.contiguous_format),
}


@pytest.mark.parametrize("case", CASES)
def test_feature_ops_pass_opcheck(case: str) -> None:
    t, a, b = triple(*CASES[case])
    upstream = torch.rand(2, 5, 4, dtype=DOUBLE if t.dtype == DOUBLE else torch.float32)
    torch.library.opcheck(OPS.pixel_discrepancy, (t, a, "unit_l2", 1.0))
    torch.library.opcheck(OPS.dual_discrepancy, (t, a, b, "l2", 2.0))
    torch.library.opcheck(OPS.flattened_cosine, (t, a))
    torch.library.opcheck(OPS.attention_weighting, (t.detach(), a.detach()))
    torch.library.opcheck(
        OPS.pixel_discrepancy_gradients, (upstream, t.detach(), a.detach(), "cosine", 1.0, True, True)
    )
    early = t.dtype != torch.float16
    torch.library.opcheck(OPS.distillation_loss, (t.detach(), a, "cosine", 0.5, False, early))


def test_map_ops_pass_opcheck() -> None:
    maps = [torch.rand(2, 5, 4, requires_grad=True), torch.rand(2, 3, 3, requires_grad=True)]
    for mode in ("sum", "product"):
        torch.library.opcheck(OPS.fuse_scales, (maps, [9, 8], mode, False))
    for border in ("scipy", "torch"):
        torch.library.opcheck(OPS.gaussian_blur, (maps[0], 1.5, border, 6))


def test_reference_passes_gradcheck_in_float64() -> None:
    t, s = (x.double().requires_grad_() for x in pair((2, 5, 3, 2)))
    maps = [torch.rand(2, h, 3, dtype=DOUBLE, requires_grad=True) for h in (4, 2)]
    for kind in ("unit_l2", "cosine", "l2"):
        assert torch.autograd.gradcheck(lambda a, b, k=kind: kernels.pixel_discrepancy(a, b, kind=k), (t, s))
        assert torch.autograd.gradcheck(lambda a, b, k=kind: kernels.distillation_loss([a], [b], kind=k), (t, s))
    assert torch.autograd.gradcheck(kernels.flattened_cosine, (t, s))
    for mode in ("sum", "product"):
        assert torch.autograd.gradcheck(lambda a, b, m=mode: kernels.fuse_scales([a, b], (5, 6), mode=m), maps)
    for border in ("scipy", "torch"):
        assert torch.autograd.gradcheck(lambda a, b=border: kernels.gaussian_blur(a, 1.0, border=b), maps[0])


def test_registered_ops_pass_gradcheck_in_float64() -> None:
    t, s = (x.double().requires_grad_() for x in pair((2, 5, 3, 2)))
    maps = [torch.rand(2, h, 3, dtype=DOUBLE, requires_grad=True) for h in (4, 2)]
    assert torch.autograd.gradcheck(lambda a, b: OPS.pixel_discrepancy(a, b, "unit_l2", 2.0), (t, s))
    assert torch.autograd.gradcheck(lambda a, b: OPS.dual_discrepancy(a, b, b * b, "cosine", 1.0), (t, s))
    assert torch.autograd.gradcheck(lambda a, b: OPS.flattened_cosine(a, b)[0], (t, s))
    assert torch.autograd.gradcheck(lambda a, b: OPS.distillation_loss(a, b, "l2", 1.0, False, False)[0], (t, s))
    assert torch.autograd.gradcheck(lambda a, b: OPS.distillation_loss(a, b, "cosine", 1.0, True, True)[0], (t, s))
    assert torch.autograd.gradcheck(lambda a, b: OPS.fuse_scales([a, b], [5, 6], "product", True), maps)
    assert torch.autograd.gradcheck(lambda a: OPS.gaussian_blur(a, 1.0, "torch", 4), maps[0])


def everything(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    found, scores = kernels.anomaly_map([t.detach(), t.detach()], [a, b], (12, 12), sigma=1.0)
    loss = kernels.distillation_loss([t], [a]) + kernels.distillation_loss([t], [b], kind="flattened")
    both = kernels.dual_discrepancy(t, a, b)
    loss = loss + kernels.dual_distillation_loss([t], [a], [b], kind="l2", weights=[0.5]) + both[0].mean()
    return (
        loss
        + scores.sum()
        + found.mean()
        + kernels.attention_weighting(t, a).sum()
        + kernels.flattened_cosine(t, b).sum()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_compile_traces_every_op_without_a_graph_break(dtype: torch.dtype) -> None:
    inputs = triple(dtype, CHANNELS_LAST)
    expected = everything(*inputs)
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    found = compiled(*inputs)
    torch.testing.assert_close(found, expected)
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
    theirs = torch.autograd.grad(expected * 64, inputs)
    for mine, other in zip(torch.autograd.grad(found * 64, inputs), theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


def test_ops_are_not_touched_by_autocast() -> None:
    t, s = pair((2, 8, 6, 6))
    outside = kernels.anomaly_map([t], [s], (12, 12), sigma=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = kernels.anomaly_map([t], [s], (12, 12), sigma=2.0)
        blurred = reference.gaussian_blur(outside[0], 2.0)
    assert blurred.dtype == torch.float32
    for mine, other in zip(inside, outside, strict=True):
        assert torch.equal(mine, other)


def wrong_arguments() -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    """An op, arguments that do not fit together, and what is said of them."""
    t, s = pair((2, 6, 5, 4))
    one, deep, map_, sums = s[:1], torch.rand(2, 64, 5, 4), torch.rand(2, 5, 4), torch.zeros(2, 3, dtype=DOUBLE)
    agree, upstream = "teacher and student must agree", "an upstream gradient of"
    return {
        "another student": (OPS.pixel_discrepancy, (t, one, "l2", 1.0), agree),
        "more channels": (OPS.pixel_discrepancy, (deep, s, "l2", 1.0), agree),
        "a kind": (OPS.pixel_discrepancy, (t, s, "l3", 1.0), "kind 'l3' is not one of"),
        "gradients": (OPS.pixel_discrepancy_gradients, (map_, t, one, "l2", 1.0, True, True), agree),
        "an upstream": (OPS.pixel_discrepancy_gradients, (map_[:1], t, s, "l2", 1.0, True, True), upstream),
        "two students": (OPS.dual_discrepancy, (t, s, one, "l2", 1.0), agree),
        "a weighting": (OPS.attention_weighting, (t, one), agree),
        "a flattened one": (OPS.flattened_cosine, (t, one), agree),
        "its upstream": (OPS.flattened_cosine_gradients, (map_[0, 0], t, s, sums, True, True), upstream),
        "its sums": (OPS.flattened_cosine_gradients, (map_[:, 0, 0], t, s, sums.float(), True, True), "sums must be"),
        "few sums": (OPS.flattened_cosine_gradients, (map_[:, 0, 0], t, s, sums[:1], True, True), "sums must be"),
        "a loss": (OPS.distillation_loss, (t, one, "l2", 1.0, False, True), agree),
        "no loss": (OPS.distillation_loss, (t[:0], s[:0], "l2", 1.0, False, True), "no pixels is undefined"),
        "batches": (OPS.fuse_scales, ([map_, map_[:1]], [9, 8], "sum", False), "maps must be"),
        "no maps": (OPS.fuse_scales, ([map_[:, :0]], [9, 8], "sum", False), "maps must be"),
        "a mode": (OPS.fuse_scales, ([map_], [9, 8], "mean", False), "mode 'mean' is not one of"),
        "a size": (OPS.fuse_scales, ([map_], [9, 0], "sum", False), "size must be"),
        "their upstream": (OPS.fuse_scales_gradients, (map_, [map_], [9, 8], "sum", False), upstream),
        "a blur": (OPS.gaussian_blur, (map_[0], 1.0, "scipy", 4), "maps must be"),
        "a radius": (OPS.gaussian_blur, (map_, 1.0, "scipy", -4), "radius must not be negative"),
        "a blur's upstream": (OPS.gaussian_blur_gradients, (map_[:1], map_, 1.0, "scipy", 4), upstream),
    }


@pytest.mark.parametrize("name", wrong_arguments())
def test_an_op_refuses_what_does_not_fit_together(name: str, path: str) -> None:
    """A graph that holds it may be given other tensors than it was made with."""
    op, arguments, says = wrong_arguments()[name]
    with pytest.raises(ValueError, match=says):
        op(*arguments)
