"""What the Triton launchers launch: on which device, planned how often, with which offsets."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdad_bench.kernels import (
    compile_check,
    cpp_path,
    fusion_kernels,
    neighbours_triton,
    ranks_triton,
    reference,
    torch_path,
    triton_fusion,
    triton_kernels,
    triton_launch,
    triton_layout,
    triton_path,
)
from kdad_bench.kernels.triton_path import Layout
from tests.kernels.checks import CHANNELS_LAST, NCHW, assert_close, assert_same_direction, pair

META = torch.device("meta")
KERNELS = {
    name: getattr(module, name)
    for module in (triton_kernels, fusion_kernels)
    for name in dir(module)
    if name.endswith("_kernel")
}


def everything(batch: int = 8) -> None:
    """Every op of the path once, on tensors without memory."""
    for launches in (compile_check.feature_launches, lambda *_: compile_check.map_launches("resnet18", batch)):
        launches("resnet18", batch, "fp16", "channels_last")


# ---- devices ---------------------------------------------------------------------------------------------------------


def test_every_launch_makes_the_device_of_its_tensors_current(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    launched: list[str] = []

    @contextmanager
    def guarded(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    class Log(list[Any]):
        def append(self, one: compile_check.Launch) -> None:
            assert current == [META], f"{one.kernel} was launched without a guard"
            launched.append(one.kernel.__name__)

    monkeypatch.setattr(triton_launch, "guard", guarded)
    t, s = (compile_check.taps(compile_check.RESNET18, 2, torch.float32, CHANNELS_LAST) for _ in range(2))
    with compile_check.recording(Log(), "guards"):
        triton_path.pixel_maps(t, [[x, x] for x in s], "cosine", 1.0)
        triton_path.pixel_loss(t, [[x] for x in s], "l2", [1.0] * 3, (True, True))
        triton_path.flat_gradients(t[0], s[0], *triton_path.flat_sums(t, [[x] for x in s])[0][0], 1.0, (True, True))
        triton_path.attention_weighting(t, s)
        triton_path.scale_in_place(s, torch.empty((), device=META))
        triton_path.anomaly_map(t, s, (64, 64), "l2", 1.0, "sum", True, 4.0, 16, "torch", "max", (64, 64))
        triton_path.anomaly_map(t, s, (96, 96), "l2", 1.0, "sum", True, None, 0, "torch", "max", (64, 64))
    assert set(launched) == set(KERNELS)


def test_there_is_one_place_that_launches() -> None:
    modules = triton_launch, triton_path, triton_fusion, neighbours_triton, ranks_triton
    trees = [ast.parse(inspect.getsource(module)) for module in modules]
    for function in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        launches = [
            node
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Subscript)
            and "kernel" in ast.unparse(node.func)
        ]
        assert bool(launches) == (function.name == "launch" and function.args.args[0].arg != "self"), function.name
        if launches:  # inside its guard
            guarded = next(node for node in function.body if isinstance(node, ast.With))
            assert ast.unparse(guarded.items[0]).startswith("guard("), function.name
            assert set(launches) <= set(ast.walk(guarded)), function.name


def test_the_guard_of_a_second_gpu_is_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert triton_launch.guard(torch.device("cuda", 1)).idx == 1  # type: ignore[attr-defined]
    assert triton_launch.guard(torch.device("cuda", 0)) is triton_launch.UNGUARDED
    with triton_launch.guard(torch.device("cpu")), triton_launch.guard(META):
        assert True


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_on_the_second_gpu_are_computed_there() -> None:
    t, s = (x.to("cuda:1") for x in pair((2, 20, 5, 4)))
    found = triton_path.pixel_maps([t], [[s]], "unit_l2", 1.0)[0][0]
    assert found.device == t.device
    assert_close(found, reference.pixel_discrepancy(t.cpu().double(), s.cpu().double()), 2e-5)


# ---- plans -----------------------------------------------------------------------------------------------------------

PLANS = [
    triton_path.maps_plan,
    triton_path.gradient_plan,
    triton_path.flat_plan,
    triton_path.finish_plan,
    triton_path.flat_gradient_plan,
    triton_path.scale_plan,
    triton_fusion.fusion_of,
    triton_fusion.twofold_of,
    triton_fusion.steps_of,
]


def test_a_launch_is_planned_once_per_layout_of_its_tensors() -> None:
    for plan in PLANS:
        plan.cache_clear()
    everything()
    planned = [plan.cache_info().misses for plan in PLANS]
    assert all(count > 0 for count in planned)
    everything()
    assert [plan.cache_info().misses for plan in PLANS] == planned
    everything(batch=7)
    assert triton_path.maps_plan.cache_info().misses > planned[0]


@pytest.mark.parametrize("change", ["shape", "strides", "dtype", "kind", "scores"])
def test_other_tensors_have_another_plan(change: str) -> None:
    def log(changed: bool) -> list[compile_check.Launch]:
        now = change if changed else ""
        t, s = (torch.empty(2, 64, 8, 8, device=META) for _ in range(2))
        if now == "shape":
            t, s = t[:1], s[:1]
        if now == "strides":
            s = s.to(memory_format=CHANNELS_LAST)
        if now == "dtype":
            t, s = t.half(), s.half()
        scores = torch.empty(2, device=META) if now == "scores" else None
        found: list[compile_check.Launch] = []
        with compile_check.recording(found, "plans"):
            triton_path.launch_maps([t], [[s]], "l2" if now == "kind" else "unit_l2", 1.0, scores)
        return found

    def facts(launch: compile_check.Launch) -> str:
        named = {
            k: v for k, v in launch.arguments.items() if k not in ("teachers", "firsts", "seconds", "maps_a", "maps_b")
        }
        return repr({k: v for k, v in named.items() if not isinstance(v, Tensor)})

    log(False)
    log(True)
    (before,), (after,) = log(False), log(True)
    plans = triton_path.maps_plan.cache_info().currsize
    assert plans >= 2
    if change != "dtype":  # float16 differs in the layout's item size, here without consequence for the launch
        assert facts(before) != facts(after)


def test_what_is_remembered_is_bounded() -> None:
    for kept in (*PLANS, torch_path.blur_matrix, cpp_path.blur_table):
        assert kept.cache_info().maxsize is not None
    for k in range(200):  # as ECA-MSKDAD draws its sigmas
        cpp_path.blur_table(1.0 + k / 100, 4)
    assert cpp_path.blur_table.cache_info().currsize < 200


# ---- offsets beyond int32 --------------------------------------------------------------------------------------------

FAR = 1_200_000_000  # values between two samples, or two channels: two of them leave int32


@pytest.fixture
def at_offset(tmp_path: Path) -> Callable[[Tensor, tuple[int, ...]], Tensor]:
    """Copies a tensor to given strides, into the middle of a hole that 32-bit offsets, wrapped, stay inside.

    The hole is a sparse file: only what is touched takes room, and what is read beside the tensor is 0.
    """
    files = (tmp_path / f"{number}" for number in itertools.count())

    def placed(t: Tensor, stride: tuple[int, ...]) -> Tensor:
        reach = 2 * (2**32 + 2**20)
        hole = torch.from_file(str(next(files)), shared=True, size=reach, dtype=t.dtype)
        view = hole.as_strided(t.shape, stride, reach // 2)
        return view.copy_(t)

    return placed


def strided(shape: tuple[int, ...], dimension: int) -> tuple[int, ...]:
    """Dense strides of the other dimensions, FAR along this one."""
    dense = torch.empty(shape, device=META).stride()
    return tuple(FAR if k == dimension else stride for k, stride in enumerate(dense))


FAR_CASES = [((4, 3, 2, 5), 0), ((2, 4, 3, 2), 1), ((1, 3, 4, 2), 2), ((1, 2, 1, 4), 3), ((4, 1030, 1, 2), 0)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter; benchmarks/gpu/kernels.py has it on a GPU")
@pytest.mark.parametrize(("shape", "dimension"), FAR_CASES, ids=str)
def test_offsets_beyond_int32_reach_the_right_value(
    shape: tuple[int, ...], dimension: int, at_offset: Callable[[Tensor, tuple[int, ...]], Tensor]
) -> None:
    stride = strided(shape, dimension)
    t, s = (at_offset(x, stride) for x in pair(shape, torch.float16))
    assert max((n - 1) * k for n, k in zip(shape, stride, strict=True)) > 2**31
    wide = [x.double() for x in (t.contiguous(), s.contiguous())]
    found = triton_path.pixel_maps([t], [[s, s]], "unit_l2", 1.0)[0]
    for mine in found:
        assert_close(mine, reference.pixel_discrepancy(*wide), 2e-5, 1e-7)
    (sums, distance) = triton_path.flat_sums([t], [[s]])[0][0]
    assert_close(distance, reference.flattened_cosine(*wide), 2e-5)

    upstream = at_offset(torch.rand(shape[0], *shape[2:]), stride[:1] + stride[2:]) if dimension != 1 else None
    ones = torch.ones(shape[0], *shape[2:]) if upstream is None else upstream.contiguous()
    outs = [at_offset(torch.zeros(shape, dtype=torch.float16), stride) for _ in range(2)]
    triton_path.launch_gradient(t, s, *outs, upstream, triton_path.KINDS["l2"], 1.0)
    for mine, theirs in zip(outs, reference.pixel_discrepancy_gradients(ones.double(), *wide, kind="l2"), strict=True):
        assert_same_direction(mine.contiguous(), theirs, 1e-3)

    outs = [at_offset(torch.zeros(shape, dtype=torch.float16), stride) for _ in range(2)]
    above = at_offset(torch.rand(shape[0]) * 64, (FAR,))
    triton_path.launch_flat_gradient(t, s, *outs, sums, above, 1.0)
    expected = reference.flattened_cosine_gradients(above.double().contiguous(), *wide)
    for mine, theirs in zip(outs, expected, strict=True):
        assert_same_direction(mine.contiguous(), theirs, 1e-3)


@pytest.mark.parametrize(
    ("shape", "stride", "wide"),
    [
        ((1, 2, 1, 1), (0, 2**31 - 2**20 - 1, 1, 1), False),
        ((1, 2, 1, 1), (0, 2**31 - 2**20, 1, 1), True),
        ((1, 3, 1, 1), (0, 2**30, 1, 1), True),
        ((1, 1, 2, 2), (0, 0, 2**31 - 2**20 - 2, 1), False),
        ((1, 1, 2, 2), (0, 0, 2**31 - 2**20 - 1, 1), True),
        ((1, 512, 2048, 2048), (0, 2**22, 2**11, 1), True),
        ((1, 511, 2048, 2048), (0, 2**22, 2**11, 1), False),
        ((100, 64, 3000, 3000), (576_000_000, 9_000_000, 3000, 1), False),  # samples may lie as far as they like
    ],
)
def test_wide_offsets_are_those_that_leave_int32_inside_a_sample(
    shape: tuple[int, ...], stride: tuple[int, ...], wide: bool
) -> None:
    assert triton_path.is_wide(Layout(shape, stride, 2)) is wide


def test_the_sample_of_every_kernel_is_counted_in_64_bits() -> None:
    """A grid too large for the interpreter would be needed to see it where maps, not features, are read."""
    counted = 0
    for name, kernel in KERNELS.items():
        for line in inspect.getsource(kernel.fn).splitlines():
            if line.strip().startswith("n = "):
                assert line.rstrip().endswith(".to(tl.int64)"), f"{name}: {line.strip()}"
                counted += 1
    assert counted == 7


# ---- scores ----------------------------------------------------------------------------------------------------------


def whole_map(sigma: float | None, score: str = "max", weight: float = 1.0) -> list[compile_check.Launch]:
    t, s = (compile_check.taps(compile_check.RESNET18, 8, torch.float16, CHANNELS_LAST) for _ in range(2))
    log: list[compile_check.Launch] = []
    with compile_check.recording(log, "whole map"):
        triton_path.anomaly_map(t, s, (256, 256), "unit_l2", weight, "sum", False, sigma, 16, "scipy", score, None)
    return log


@pytest.mark.parametrize("sigma", [None, 4.0])
def test_the_first_launch_resets_the_scores_that_the_last_one_raises(sigma: float | None) -> None:
    first, *between, last = whole_map(sigma)
    assert first.arguments["SCORES"]
    assert last.arguments["MAXIMUM"]
    assert first.arguments["scores"] is last.arguments["scores"]
    assert not any(launch.arguments.get("MAXIMUM") for launch in between)


@pytest.mark.parametrize(("score", "weight"), [("mean", 1.0), ("max", -1.0)])
def test_scores_that_no_atomic_maximum_gives_are_not_raised(score: str, weight: float) -> None:
    first, *_, last = whole_map(4.0, score, weight)
    assert not first.arguments["SCORES"]
    assert not last.arguments["MAXIMUM"]
    assert last.arguments["MEAN"] == (score == "mean")


SHARED = ("scores", "losses", "partial", "parts")  # what programs of one launch write side by side


def test_programs_write_together_only_where_an_atomic_decides() -> None:
    """A race would show on a GPU only, and there not always: each has a place of its own, or an atomic maximum."""
    written: dict[str, set[str]] = {name: set() for name in SHARED}
    atomics = []
    for module in (triton_kernels, fusion_kernels):
        for call in (node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)):
            name, place = ast.unparse(call.func), ast.unparse(call.args[0]) if call.args else ""
            if name.startswith("tl.atomic"):
                atomics.append((name, place))
            if name in ("tl.store", "tl.load"):
                for shared in (shared for shared in SHARED if shared in place.split()):
                    written[shared].add(place)
    assert atomics == [("tl.atomic_max", "scores.to(tl.pointer_type(tl.int32)) + n")]
    assert written["scores"] == {"scores + pid"}
    assert written["losses"] == {"losses + pid"}
    assert written["partial"] == {"partial + n * programs + local"}
    assert not written["parts"]  # by `out`, five numbers from parts + 5 * pid on


# ---- losses ----------------------------------------------------------------------------------------------------------


def trained(students: int, scales: int, wants: tuple[bool, bool]) -> list[str]:
    """The kernels that one step of a loss launches: forward, and the backward that scales its gradients."""
    shapes = (*compile_check.RESNET18, *compile_check.ODD)[:scales]
    t, *several = (compile_check.taps(shapes, 2, torch.float32, CHANNELS_LAST) for _ in range(1 + students))
    log: list[compile_check.Launch] = []
    with compile_check.recording(log, "loss"):
        _, to_teachers, to_students = triton_path.pixel_loss(
            t, list(zip(*several, strict=True)), "unit_l2", [1.0] * scales, wants
        )
        written = [g for g in (*to_teachers, *itertools.chain(*to_students)) if g is not None]
        triton_path.scale_in_place(written, torch.empty((), device=META))
    return [launch.kernel.__name__ for launch in log]


@pytest.mark.parametrize(
    ("students", "scales", "wants", "gradients", "scalings"),
    [
        (1, 3, (False, True), 1, 1),
        (1, 3, (True, True), 1, 1),
        (1, 1, (False, True), 1, 1),
        (1, 3, (False, False), 1, 0),
        (2, 3, (False, True), 2, 1),
        (1, 5, (False, True), 2, 1),
    ],
)
def test_a_loss_of_all_scales_is_one_launch_and_its_scaling_another(
    students: int, scales: int, wants: tuple[bool, bool], gradients: int, scalings: int
) -> None:
    assert trained(students, scales, wants) == ["gradient_kernel"] * gradients + ["scale_kernel"] * scalings


def test_attention_weighting_of_all_scales_is_one_launch() -> None:
    t, s = (compile_check.taps(compile_check.RESNET18, 2, torch.float16, CHANNELS_LAST) for _ in range(2))
    log: list[compile_check.Launch] = []
    with compile_check.recording(log, "attention"):
        triton_path.attention_weighting(t, s)
    assert [launch.kernel.__name__ for launch in log] == ["gradient_kernel"]


# ---- programs --------------------------------------------------------------------------------------------------------


def programs(kernel: str, batch: int, dtype: str, layout: str) -> tuple[int, int]:
    """Values of one tensor in the first scale's tile, and warps of a launch over ResNet-18's taps."""
    for launch in compile_check.feature_launches("resnet18", batch, dtype, layout):
        if launch.kernel.__name__ == kernel:
            channels, pixels, _ = launch.arguments["BLOCKS"][:3]
            return channels * pixels, launch.options["num_warps"]
    raise AssertionError(f"{kernel} is not launched")


@pytest.mark.parametrize(
    ("kernel", "batch", "dtype", "layout", "expected"),
    [
        ("maps_kernel", 32, "fp32", "channels_last", (2048, 8)),
        ("maps_kernel", 1, "fp16", "channels_last", (2048, 8)),
        ("maps_kernel", 32, "fp32", "nchw", (4096, 4)),
        ("maps_kernel", 32, "fp16", "nchw", (4096, 2)),
        ("gradient_kernel", 32, "bf16", "channels_last", (2048, 8)),
        ("gradient_kernel", 1, "fp32", "nchw", (4096, 4)),
        ("gradient_kernel", 32, "bf16", "nchw", (4096, 2)),
    ],
)
def test_programs_are_those_that_a_gpu_was_quickest_with(
    kernel: str, batch: int, dtype: str, layout: str, expected: tuple[int, int]
) -> None:
    assert programs(kernel, batch, dtype, layout) == expected


def test_both_gradients_of_16_bits_have_registers_enough_and_many_channels_whole_sectors() -> None:
    """Two warps would spill with gradients to both; 512 channels in a tile of 4,096 values leave 16 bytes of each."""
    half = torch.float16
    taps = compile_check.taps(compile_check.RESNET18, 2, half, NCHW)
    layouts = tuple(map(triton_layout.layout, taps))
    both = triton_path.gradient_plan(layouts, layouts, layouts, layouts, None, False, 0, False)
    assert both.constants["num_warps"] == 4
    deep = tuple(map(triton_layout.layout, compile_check.taps(((512, 8),), 2, half, NCHW)))
    plan = triton_path.maps_plan(deep, deep, deep, "unit_l2", False, False)
    assert (plan.constants["BLOCKS"], plan.constants["num_warps"]) == ((512, 16, True), 8)
