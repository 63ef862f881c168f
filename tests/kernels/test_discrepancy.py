"""Discrepancy, losses and their gradients: every path against the oracle in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kdad_bench import kernels
from kdad_bench.kernels import reference
from tests.kernels.checks import (
    CHANNELS_LAST,
    NCHW,
    check_loss_gradient,
    check_magnitudes,
    check_map,
    check_not_a_number_stays,
    check_not_a_number_stays_in_its_sample,
    check_orthogonal,
    check_precision,
    check_upstream,
    check_zero_gradients,
    check_zero_samples,
    check_zero_vectors,
    double,
    near_pair,
    pair,
)
from tests.kernels.guards import Guards, between_nans

SHAPES = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 33, 1, 1), (2, 64, 9, 4), (1, 100, 1, 17), (2, 17, 6, 1)]
DEEP = [(1, 1030, 3, 2), (1, 2048, 2, 1)]  # channels in blocks, read twice
KINDS = ("unit_l2", "cosine", "l2")
LAYOUTS = pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST], ids=["nchw", "channels_last"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])


@LAYOUTS
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_map_agrees_with_the_oracle_and_stays_inside_its_tensors(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, device: torch.device, guards: Guards
) -> None:
    t, s = (between_nans(x) for x in pair(shape, dtype, layout, device=device))
    for kind in KINDS:
        check_map(kernels.pixel_discrepancy, t, s, kind, weight=2.0)


@LAYOUTS
@pytest.mark.parametrize("shape", DEEP, ids=str)
def test_map_and_gradient_of_many_channels_agree_with_the_oracle(
    shape: tuple[int, ...], layout: torch.memory_format, device: torch.device, guards: Guards
) -> None:
    t, s = (between_nans(x) for x in pair(shape, torch.bfloat16, layout, device=device))
    for kind in KINDS:
        check_map(kernels.pixel_discrepancy, t, s, kind)
        check_loss_gradient(kernels.distillation_loss, [(t, s)], kind, teacher_too=True)


def test_near_pairs_keep_their_digits(device: torch.device) -> None:
    check_precision(kernels.pixel_discrepancy, device)


def test_near_pairs_of_many_channels_keep_their_digits(device: torch.device, guards: Guards) -> None:
    check_precision(kernels.pixel_discrepancy, device, channels=1030)


@LAYOUTS
@pytest.mark.parametrize("channels", [64, 100, 2048])
@pytest.mark.parametrize("distance", [0.02, 0.0313, 0.035, 0.1])
def test_digits_are_kept_on_both_sides_of_where_one_reading_is_enough(
    layout: torch.memory_format, channels: int, distance: float
) -> None:
    t, s = (x.contiguous(memory_format=layout) for x in near_pair((1, channels, 16, 25), distance, torch.device("cpu")))
    expected = reference.pixel_discrepancy(*double(t, s))
    found = kernels.pixel_discrepancy(t, s).double()
    torch.testing.assert_close(found, expected, rtol=3e-5, atol=0)
    for mine in kernels.dual_discrepancy(t, s, s.clone()):
        torch.testing.assert_close(mine.double(), expected, rtol=3e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@LAYOUTS
def test_all_scales_in_one_call_are_the_scales_one_by_one(
    kind: str, layout: torch.memory_format, device: torch.device, guards: Guards
) -> None:
    shapes = [(2, 20, 5, 4), (2, 33, 3, 3), (2, 70, 2, 1)]
    teachers, first = zip(*(pair(shape, layout=layout, seed=1, device=device) for shape in shapes), strict=True)
    second = [pair(shape, layout=layout, seed=2, device=device)[1] for shape in shapes]
    first[0][:, :, 0, 1] = 0
    teachers[0][:, :, 2, 1] = 0
    maps = kernels.pixel_discrepancies(teachers, first, kind=kind, weight=1.5)
    both = kernels.dual_discrepancies(teachers, first, second, kind=kind, weight=1.5)
    for k, (t, a, b) in enumerate(zip(teachers, first, second, strict=True)):
        for mine, student in ((maps[k], a), (both[k][0], a), (both[k][1], b)):
            torch.testing.assert_close(mine, kernels.pixel_discrepancy(t, student, kind=kind, weight=1.5))
    if kind == "cosine":
        for mine, t, a in zip(kernels.attention_weightings(teachers, first), teachers, first, strict=True):
            torch.testing.assert_close(mine, kernels.attention_weighting(t, a))
    with pytest.raises(ValueError, match="same number of scales"):
        kernels.pixel_discrepancies(teachers, first[:2])
    with pytest.raises(ValueError, match="same number of scales"):
        kernels.dual_discrepancies(teachers, first, second[1:])
    with pytest.raises(ValueError, match="must agree"):
        kernels.attention_weightings(teachers, first[::-1])


def test_all_scales_in_one_call_are_differentiable() -> None:
    pairs = [pair((1, 6, 3, 4)), pair((1, 9, 2, 2))]
    teachers, students = [t for t, _ in pairs], [s.requires_grad_() for _, s in pairs]
    total = sum(m.sum() for m in kernels.pixel_discrepancies(teachers, students))
    total = total + sum(m.sum() for maps in kernels.dual_discrepancies(teachers, students, students) for m in maps)
    for t, s, found in zip(teachers, students, torch.autograd.grad(total, students), strict=True):
        (expected,) = torch.autograd.grad(3 * kernels.pixel_discrepancy(t, s).sum(), s)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("mixed", [False, True], ids=["one layout", "two layouts"])
def test_flattened_gradients_of_few_and_many_samples_agree_with_the_oracle(
    batch: int, mixed: bool, device: torch.device
) -> None:
    shapes = [(batch, 20, 9, 8), (batch, 7, 3, 5)]
    pairs = [pair(shape, seed=k, device=device) for k, shape in enumerate(shapes)]
    if mixed:  # the second student then has another order of values than the teacher and the first one
        pairs = [(t, s.to(memory_format=CHANNELS_LAST)) for t, s in pairs]
    check_loss_gradient(kernels.distillation_loss, pairs, "flattened", weights=(1.0, 0.5))
    teachers, reversed_layout = [t for t, _ in pairs], [s.detach().requires_grad_() for _, s in pairs]
    plain = [s.detach().contiguous().requires_grad_() for _, s in pairs]
    loss = kernels.dual_distillation_loss(teachers, plain, reversed_layout, kind="flattened")
    found = torch.autograd.grad(loss, [*plain, *reversed_layout], retain_graph=True)
    again = torch.autograd.grad(loss, [*plain, *reversed_layout])
    single = kernels.distillation_loss(teachers, plain, kind="flattened")
    expected = torch.autograd.grad(single, plain)
    torch.testing.assert_close(loss, 2 * single)
    for k, wanted in enumerate([*expected, *expected]):
        torch.testing.assert_close(found[k], wanted)
        torch.testing.assert_close(again[k], wanted)


def test_near_samples_keep_their_digits_when_flattened(device: torch.device) -> None:
    for distance in (1e-2, 1e-4, 1e-6):
        t, s = near_pair((2, 40, 9, 7), distance, device)
        expected = reference.flattened_cosine(*double(t, s))
        torch.testing.assert_close(kernels.flattened_cosine(t, s).cpu().double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("channels", [6, 1030])  # in one block, and read twice
def test_zero_vectors_follow_the_stated_rule(channels: int, device: torch.device) -> None:
    check_zero_vectors(kernels.pixel_discrepancy, device, channels)


@pytest.mark.parametrize("channels", [6, 1030])
def test_zero_vectors_get_no_gradient_and_spread_none(channels: int, device: torch.device) -> None:
    check_zero_gradients(kernels.pixel_discrepancy, device, channels)


def test_zero_samples_are_at_distance_1_and_get_no_gradient(device: torch.device) -> None:
    check_zero_samples(kernels.flattened_cosine, device)


def test_not_a_number_is_not_hidden_when_flattened(device: torch.device) -> None:
    check_not_a_number_stays_in_its_sample(kernels.flattened_cosine, device)


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.0, 0.0, -3.0, 1e-30, float("nan")])
def test_the_gradient_written_early_is_scaled_by_any_factor(factor: float, device: torch.device) -> None:
    t, s = pair((2, 8, 4, 4), device=device)
    s.requires_grad_()
    expected = torch.autograd.grad(reference.distillation_loss([t], [s]), s)[0] * factor
    found = torch.autograd.grad(kernels.distillation_loss([t], [s]), s, torch.tensor(factor, device=device))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8, equal_nan=True)


def test_huge_and_tiny_features_neither_overflow_nor_vanish(device: torch.device) -> None:
    check_magnitudes(kernels.pixel_discrepancy, device)


def test_not_a_number_stays_where_it_is(device: torch.device) -> None:
    check_not_a_number_stays(kernels.pixel_discrepancy, device)


def views(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs whose memory is not what their shape suggests."""
    t, s = pair((4, 20, 9, 8), device=device)
    last_t, last_s = (x.to(memory_format=CHANNELS_LAST) for x in (t, s))
    return {
        "every other channel": (t[:, ::2], s[:, ::2]),
        "every other sample": (last_t[::2], last_s[::2]),
        "cropped": (t[:, :, 1:-2, 2:-1], s[:, :, 1:-2, 2:-1]),
        "cropped, channels last": (last_t[:, 3:11, 1:-2, 2:-1], last_s[:, 3:11, 1:-2, 2:-1]),
        "one teacher for all": (t[:1].expand(4, -1, -1, -1), s),
        "transposed": (t.transpose(2, 3), s.transpose(2, 3)),
        "two layouts": (t, last_s),
        "two layouts, the other way": (last_t, s),
        "two dtypes": (t.half(), last_s),
        "one column": (t[:, :, :, 3:4], s[:, :, :, 3:4]),
        "one row": (last_t[:, :, 2:3], last_s[:, :, 2:3]),
        "one pixel": (t[:, :, 2:3, 3:4], s[:, :, 2:3, 3:4]),
    }


def test_views_of_any_strides_are_read_as_they_are(device: torch.device) -> None:
    for t, s in views(device).values():
        check_map(kernels.pixel_discrepancy, t, s)


def test_gradients_of_views_of_any_strides_agree_with_the_oracle(device: torch.device, guards: Guards) -> None:
    for name in (
        "every other channel",
        "cropped, channels last",
        "two layouts",
        "transposed",
        "one column",
        "one pixel",
    ):
        t, s = views(device)[name]
        upstream = torch.rand(t.shape[0], t.shape[2], t.shape[3], device=device)
        check_upstream(kernels.pixel_discrepancy, upstream, t, s)


@LAYOUTS
@DTYPES
def test_backward_takes_upstream_gradients_of_any_strides(
    dtype: torch.dtype, layout: torch.memory_format, device: torch.device, guards: Guards
) -> None:
    t, s = pair((2, 12, 5, 6), dtype, layout, device=device)
    big = torch.rand(2, 7, 12, 3, device=device)
    for upstream in (
        torch.tensor(0.3, device=device).expand(2, 5, 6),
        big[:, 1:6, ::2, 1],
        torch.rand(2, 6, 5, device=device).transpose(1, 2),
        torch.rand(5, 6, device=device).expand(2, 5, 6),
        torch.rand(2, 1, 1, device=device).expand(2, 5, 6),
    ):
        check_upstream(kernels.pixel_discrepancy, upstream, t, s)
    check_upstream(kernels.pixel_discrepancy, big[:, 1:6, ::2, 1], t, s, "l2")


@pytest.mark.parametrize("kind", [*KINDS, "flattened"])
@LAYOUTS
@DTYPES
def test_loss_and_gradient_agree_with_the_oracle(
    kind: str, dtype: torch.dtype, layout: torch.memory_format, device: torch.device, guards: Guards
) -> None:
    pairs = [pair(shape, dtype, layout, seed, device) for seed, shape in enumerate([(2, 9, 6, 5), (2, 33, 3, 3)])]
    # float16 gradients of a mean need the loss scale that mixed precision brings
    scale = 1024.0 if dtype == torch.float16 else 1.0
    check_loss_gradient(kernels.distillation_loss, pairs, kind, upstream=scale)
    check_loss_gradient(kernels.distillation_loss, pairs, kind, upstream=3.0 * scale, weights=(0.5, 2.0))


@pytest.mark.parametrize("kind", ["l2", "cosine", "flattened"])
def test_loss_gives_gradients_to_teacher_and_student(kind: str, device: torch.device) -> None:
    pairs = [pair((2, 9, 4, 5), device=device), pair((2, 5, 3, 3), layout=CHANNELS_LAST, device=device)]
    check_loss_gradient(kernels.distillation_loss, pairs, kind, teacher_too=True)


def test_student_gradient_is_orthogonal_to_the_student(device: torch.device) -> None:
    check_orthogonal(kernels.pixel_discrepancy, *pair((2, 30, 4, 5), device=device))


def test_second_backward_through_a_kept_graph_gives_the_same_gradient(device: torch.device) -> None:
    t, s = pair((2, 8, 4, 4), device=device)
    s.requires_grad_()
    loss = kernels.distillation_loss([t], [s])
    (first,) = torch.autograd.grad(loss, s, torch.tensor(2.0, device=device), retain_graph=True)
    kept = first.clone()
    (second,) = torch.autograd.grad(loss, s, torch.tensor(2.0, device=device))
    torch.testing.assert_close(second, kept)
    torch.testing.assert_close(first, kept)


@pytest.mark.parametrize("kind", ["unit_l2", "flattened"])
def test_two_students_cost_one_call_and_give_the_sum_of_two_losses(kind: str, device: torch.device) -> None:
    scales = [(2, 8, 5, 4), (2, 16, 3, 2)]
    teachers, first = zip(*(pair(shape, seed=1, device=device) for shape in scales), strict=True)
    second = [pair(shape, seed=2, device=device)[1] for shape in scales]
    for teacher_too in (False, True):
        taps = [[x.detach().requires_grad_() for x in taps] for taps in (first, second)]
        above = [t.detach().requires_grad_(teacher_too) for t in teachers]
        wanted = [*taps[0], *taps[1], *(above if teacher_too else [])]
        both = kernels.dual_distillation_loss(above, *taps, kind=kind, weights=(1.0, 0.5))
        single = [kernels.distillation_loss(above, x, kind=kind, weights=(1.0, 0.5)) for x in taps]
        torch.testing.assert_close(both, single[0] + single[1])
        found = torch.autograd.grad(both, wanted)
        for mine, theirs in zip(found, torch.autograd.grad(single[0] + single[1], wanted), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_dual_maps_are_the_two_single_maps(device: torch.device) -> None:
    t, a = pair((2, 20, 5, 4), device=device)
    b = pair((2, 20, 5, 4), seed=9, device=device)[1].to(memory_format=CHANNELS_LAST)
    for kind in KINDS:
        found = kernels.dual_discrepancy(t, a, b, kind=kind, weight=1.5)
        for mine, student in zip(found, (a, b), strict=True):
            torch.testing.assert_close(mine, kernels.pixel_discrepancy(t, student, kind=kind, weight=1.5))


@LAYOUTS
@DTYPES
def test_attention_weighting_agrees_with_the_oracle_and_has_no_gradient(
    dtype: torch.dtype, layout: torch.memory_format, device: torch.device, guards: Guards
) -> None:
    for shape in ((2, 12, 5, 4), (1, 1030, 2, 2)):
        t, s = pair(shape, dtype, layout, device=device)
        s[:, :, 0, 1] = 0
        found = kernels.attention_weighting(t, s.requires_grad_())
        assert not found.requires_grad
        assert found.dtype == dtype
        expected = reference.attention_weighting(*double(t, s))
        tolerance = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=1e-6)


def test_flattened_cosine_gradient_under_strided_upstream_agrees_with_the_oracle(device: torch.device) -> None:
    t, s = (x.requires_grad_() for x in pair((3, 7, 4, 5), device=device))
    for upstream in (torch.rand(6, device=device)[::2], torch.tensor(0.5, device=device).expand(3)):
        found = torch.autograd.grad(kernels.flattened_cosine(t, s), (t, s), upstream)
        expected = reference.flattened_cosine_gradients(double(upstream)[0], *double(t, s))
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.cpu().double(), theirs, rtol=1e-4, atol=1e-8)


def test_flattened_cosine_of_huge_tiny_and_zero_samples_is_right(device: torch.device) -> None:
    t, s = pair((4, 6, 5, 5), device=device)
    scale = torch.tensor([1e20, 1e-20, 1.0, 0.0], device=device).view(4, 1, 1, 1)
    expected = reference.flattened_cosine(*double(t * scale, s))
    assert float(expected[3]) == 1
    torch.testing.assert_close(kernels.flattened_cosine(t * scale, s).cpu().double(), expected, rtol=1e-5, atol=1e-7)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 9), st.integers(1, 40)),
    layout=st.sampled_from([NCHW, CHANNELS_LAST]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_compiled_map_agrees_with_the_oracle_on_any_shape(
    cpp: object, shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, seed: int
) -> None:
    check_map(kernels.pixel_discrepancy, *pair(shape, dtype, layout, seed))


def test_result_does_not_depend_on_the_number_of_threads(cpp: object) -> None:
    t, s = pair((3, 64, 40, 40))
    s.requires_grad_()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = kernels.distillation_loss([t], [s])
            found.append((loss.detach(), *torch.autograd.grad(loss, s)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for mine, first in zip(other, found[0], strict=True):
            assert torch.equal(mine, first)


def test_result_of_a_sample_does_not_depend_on_its_batch(device: torch.device) -> None:
    t, s = pair((4, 24, 6, 5), device=device)
    whole = kernels.pixel_discrepancy(t, s)
    assert torch.equal(whole[2:3], kernels.pixel_discrepancy(t[2:3], s[2:3]))


def allocations(recorded: profile) -> list[int]:
    """Bytes of every allocation the profiler saw."""
    return [event.self_cpu_memory_usage for event in recorded.events() if event.self_cpu_memory_usage > 0]


def test_loss_allocates_the_gradient_and_no_normalised_copy(cpp: object) -> None:
    t, s = pair((4, 64, 32, 32))
    s.requires_grad_()
    kernels.distillation_loss([t], [s]).backward()  # whatever is allocated once, is by now
    s.grad = None
    feature = s.numel() * s.element_size()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kernels.distillation_loss([t], [s]).backward()
    taken = allocations(recorded)
    assert sum(size >= feature // 8 for size in taken) == 1
    assert sum(taken) < feature + 4096


def test_map_allocates_the_map_only(cpp: object) -> None:
    t, s = pair((4, 64, 32, 32))
    kernels.pixel_discrepancy(t, s)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kernels.pixel_discrepancy(t, s)
    taken = allocations(recorded)
    assert 0 < sum(taken) <= 4 * 32 * 32 * 4 + 4096


def test_empty_batch_gives_an_empty_map_and_no_loss(device: torch.device) -> None:
    t, s = pair((0, 4, 3, 3), device=device)
    assert kernels.pixel_discrepancy(t, s).shape == (0, 3, 3)
    assert kernels.flattened_cosine(t, s).shape == (0,)
    with pytest.raises(ValueError, match="mean over no pixels"):
        kernels.distillation_loss([t], [s])


def test_unusable_input_is_refused_with_its_reason() -> None:
    t, s = pair((1, 4, 3, 3))
    with pytest.raises(ValueError, match="kind 'l3' is not one of unit_l2, cosine, l2"):
        kernels.pixel_discrepancy(t, s, kind="l3")
    with pytest.raises(ValueError, match="must agree"):
        kernels.pixel_discrepancy(t, s[:, :2])
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        kernels.flattened_cosine(t[0], s[0])
    with pytest.raises(ValueError, match=r"got \[2, 1\]"):
        kernels.distillation_loss([t, t], [s])
    with pytest.raises(ValueError, match="1 weights for 2 scales"):
        kernels.distillation_loss([t, t], [s, s], weights=[1.0])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # Triton's interpreter is numpy
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_infinity_never_becomes_a_score(path: str, dtype: torch.dtype, device: torch.device) -> None:
    """It has no direction: NaN, not the 1 of a vector of zeros, also where no largest value is looked for (float16)."""
    for role in (0, 1):
        taps = [x.to(device) for x in pair((2, 8, 3, 4), dtype)]
        taps[role][0, 3, 1, 2] = torch.inf
        student = taps[1].requires_grad_()
        for kind in ("unit_l2", "cosine"):
            found = kernels.pixel_discrepancy(taps[0], student, kind=kind)
            assert found.isnan().nonzero().tolist() == [[0, 1, 2]]
            (gradient,) = torch.autograd.grad(found.sum(), student)
            assert gradient.isnan().nonzero().tolist() == [[0, c, 1, 2] for c in range(8)]
        for distance in kernels.dual_discrepancy(taps[0], student.detach(), student.detach()):
            assert distance.isnan().nonzero().tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("path", ["reference", None])
def test_nan_never_becomes_a_score(path: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 takes the reference whatever is asked for; a NaN that it hid would pass as an ordinary pixel."""
    if path:
        monkeypatch.setenv("KDAD_KERNELS", path)
    for role in (0, 1):
        taps = [torch.randn(2, 8, 3, 3, dtype=dtype) for _ in range(2)]
        taps[role][1, 5, 2, 0] = torch.nan
        for kind in ("unit_l2", "cosine", "l2"):
            found = kernels.pixel_discrepancy(*taps, kind=kind)
            assert found.isnan().nonzero().tolist() == [[1, 2, 0]]
        assert kernels.flattened_cosine(*taps).isnan().tolist() == [False, True]
        student = taps[1].clone().requires_grad_()
        kernels.flattened_cosine(taps[0], student).sum().backward()
        assert student.grad is not None
        assert student.grad[1].isnan().all()
        assert not student.grad[0].isnan().any()


LENGTHS = [(1.0, 1e-22), (1e-28, 1.0), (1e-25, 1e-25), (1e22, 1.0), (1.0, 1e30), (1e-27, 1e26)]  # of teacher, student


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_gradients_of_very_short_and_long_vectors_agree_with_the_oracle(
    lengths: tuple[float, float], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> None:
    t, s = pair((2, 40, 3, 3), layout=layout, device=device)
    t[0, :, 1, 1] *= lengths[0]  # beside ordinary ones
    s[0, :, 1, 1] *= lengths[1]
    usual = [(t.to(dtype), s.to(dtype))]
    for kind in ("unit_l2", "cosine"):
        for many in (usual, [(a[:, :, 1:2, 1:2], b[:, :, 1:2, 1:2]) for a, b in usual]):
            check_loss_gradient(kernels.distillation_loss, many, kind, teacher_too=True)
    t, s = pair((2, 40, 3, 3), layout=layout, device=device)
    far = (t * lengths[0]).to(dtype), (s * lengths[1]).to(dtype)
    check_loss_gradient(kernels.distillation_loss, [far], "flattened", teacher_too=True)


def test_gradients_of_very_short_vectors_of_many_channels_agree_with_the_oracle(device: torch.device) -> None:
    t, s = pair((1, 1030, 1, 2), device=device)
    check_loss_gradient(kernels.distillation_loss, [(t, s * 1e-22)], "cosine", teacher_too=True)
    check_loss_gradient(kernels.distillation_loss, [(t * 1e-22, s)], "cosine", teacher_too=True)
