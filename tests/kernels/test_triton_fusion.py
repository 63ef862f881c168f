"""Fusion and blur on a GPU: tables, steps, tiles of either size; in Triton's interpreter against the oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdad_bench.kernels import compile_check, reference, triton_fusion, triton_path
from kdad_bench.kernels.triton_fusion import MULTIPLE, PLAIN, Axis, Filter
from tests.kernels.checks import MAP_RTOL, assert_close, double, maps_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
META = torch.device("meta")


# ---- tables ----------------------------------------------------------------------------------------------------------


def dense(axis: Axis) -> Tensor:
    """The whole matrix [target, source] of an axis, by the oracle."""
    unit = torch.eye(axis.source, dtype=torch.float64)[:, :, None]  # a map of one column per source index
    up = reference.fuse_scales([unit], (axis.target, 1), align_corners=axis.align)[:, :, 0].T
    if axis.blur.sigma is None:
        return up
    return reference.blur_matrix(axis.target, axis.blur.sigma, axis.blur.radius, axis.blur.border) @ up


def spread(axis: Axis) -> Tensor:
    """The same matrix from its table."""
    depth = triton_fusion.depth_of(axis)
    table = triton_fusion.table_of(axis, depth).double()
    found = torch.zeros(axis.target, axis.source + depth, dtype=torch.float64)
    for start, parts in zip(axis.starts, table, strict=True):
        first = triton_fusion.first_of(start, axis)
        assert first % axis.multiple == 0
        rows = slice(start, start + axis.block)
        found[rows, first : first + depth] = parts[: found[rows].shape[0]]
        assert not parts[found[rows].shape[0] :].any()
    assert not found[:, axis.source :].any()
    return found[:, : axis.source]


BLURS = st.one_of(
    st.just(PLAIN),
    st.builds(Filter, st.floats(0.3, 30), st.integers(0, 70), st.sampled_from(["scipy", "torch"])),
)


@settings(max_examples=25)
@given(
    source=st.integers(1, 90),
    target=st.integers(1, 130),
    align=st.booleans(),
    block=st.sampled_from([16, 32, 64]),
    multiple=st.sampled_from([1, MULTIPLE]),
    blur=BLURS,
)
def test_a_table_is_upsampling_and_filter_together(
    source: int, target: int, align: bool, block: int, multiple: int, blur: Filter
) -> None:
    axis = Axis(source, target, align, block, multiple, blur)
    torch.testing.assert_close(spread(axis), dense(axis), rtol=0, atol=3e-7)


def test_a_tile_reads_no_more_of_a_map_than_it_draws_from() -> None:
    for source, blur, rows in ((64, Filter(4.0, 16, "scipy"), 18), (64, PLAIN, 10), (16, PLAIN, 4), (256, PLAIN, 32)):
        assert triton_fusion.depth_of(Axis(source, 256, False, 32, 1, blur)) <= rows


# ---- launches --------------------------------------------------------------------------------------------------------


def fusions(
    mode: str, sigma: float | None, batch: int, radius: int = 16, middle: tuple[int, int] | None = None
) -> list[compile_check.Launch]:
    """What fusion at 256 x 256 launches; no tensor has memory."""
    log: list[compile_check.Launch] = []
    maps = [torch.empty((batch, h, h), device=META) for h in (64, 32, 16)]
    with compile_check.recording(log, "fusion"):
        triton_path.fuse_blur_score(
            maps, (256, 256), mode, False, sigma, radius, "scipy", "max", torch.empty(batch, device=META), middle
        )
    return log


FUSE, TWOFOLD = "fuse_kernel", "twofold_kernel"


@pytest.mark.parametrize(
    ("mode", "sigma", "radius", "middle", "kernels"),
    [
        ("sum", None, 0, None, [FUSE]),
        ("product", None, 0, None, [FUSE]),
        ("sum", 4.0, 16, None, [FUSE]),
        ("sum", 40.0, 160, None, [FUSE]),
        ("product", 4.0, 16, None, [TWOFOLD]),
        ("product", None, 0, (64, 64), [TWOFOLD]),  # as STFPM's code has it
        ("sum", 4.0, 16, (64, 64), [TWOFOLD]),
        ("sum", 4.0, 16, (256, 256), [FUSE]),  # the middle is the result
        ("product", 6.0, 24, None, [FUSE, FUSE]),  # tiles would make eight times as many values as the result has
        ("product", None, 0, (32, 32), [FUSE, FUSE]),  # a map is larger than the middle
        ("product", 4.0, 16, (512, 256), [FUSE, FUSE, FUSE]),  # the middle is larger than the result
    ],
)
@pytest.mark.parametrize("batch", [1, 32])
def test_fusion_and_blur_are_so_many_launches(
    mode: str, sigma: float | None, radius: int, middle: tuple[int, int] | None, kernels: list[str], batch: int
) -> None:
    assert [launch.kernel.__name__ for launch in fusions(mode, sigma, batch, radius, middle)] == kernels


def test_a_wide_filter_goes_along_rows_and_then_along_columns() -> None:
    blur = Filter(40.0, 160, "scipy")
    first, second = triton_fusion.steps_of(((256, 256),), (256, 256), False, False, blur, None)
    assert (first.down, first.across) == (PLAIN, blur)
    assert (second.down, second.across) == (blur, PLAIN)


@pytest.mark.parametrize(("batch", "summed"), [(1, 2), (8, 1), (32, 0)])
def test_few_images_get_small_tiles(batch: int, summed: int) -> None:
    (one,) = fusions("sum", 4.0, batch)
    tile = triton_fusion.SUMMED[summed]
    assert (one.arguments["BLOCK_Y"], one.arguments["BLOCK_X"], one.options["num_warps"]) == tile


@pytest.mark.parametrize("tiles", ["SAMPLED", "SUMMED", "UPSAMPLED", "FILTERED"])
def test_no_tile_is_larger_than_needed_to_fill_a_gpu(tiles: str) -> None:
    kinds = getattr(triton_fusion, tiles)
    for batch in (1, 2, 8, 32):
        tile = triton_fusion.tile_of(batch, (256, 256), kinds)
        programs = batch * (256 // tile.rows) * (256 // tile.columns)
        assert programs >= triton_fusion.FEW or tile == kinds[-1]
        assert programs >= 128  # of the 132 multiprocessors of an H100


def test_tables_that_a_captured_graph_reads_are_never_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_fusion, "_in_graphs", {})
    monkeypatch.setattr(triton_fusion, "capturing", lambda device: True)
    fusions("sum", 3.0, 1)
    (kept,) = triton_fusion._in_graphs.values()
    monkeypatch.setattr(triton_fusion, "capturing", lambda device: False)
    fusions("sum", 2.5, 1)
    triton_fusion.fusion_of.cache_clear()  # as many other sigmas would
    assert list(triton_fusion._in_graphs.values()) == [kept]
    assert not triton_fusion.capturing(torch.device("cpu"))


# ---- results ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[-1, 0], ids=["small tiles", "large tiles"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of one size, however few there are."""

    def forget() -> None:
        for plans in (triton_fusion.fusion_of, triton_fusion.twofold_of):
            plans.cache_clear()

    forget()
    monkeypatch.setattr(triton_fusion, "tile_of", lambda n, size, tiles: tiles[request.param])
    yield
    forget()


CASES = [  # maps, result, rule, corners, filter, size at which maps are fused
    ([(9, 8), (5, 4), (2, 3)], (35, 67), "sum", True, Filter(4.0, 16, "scipy"), None),
    ([(12, 17), (3, 9)], (33, 70), "sum", False, Filter(1.3, 5, "torch"), None),
    ([(12, 9), (3, 9)], (30, 18), "product", False, Filter(2.0, 8, "torch"), None),
    ([(16, 20), (8, 8), (4, 5)], (70, 45), "product", True, Filter(4.0, 16, "scipy"), None),
    ([(12, 9), (3, 9)], (30, 18), "product", False, Filter(9.0, 36, "torch"), None),
    ([(40, 70)], (40, 70), "sum", False, Filter(40.0, 150, "scipy"), None),
    ([(3, 140)], (3, 140), "sum", False, Filter(35.0, 140, "torch"), None),
    ([(30, 41), (7, 5)], (29, 37), "sum", True, Filter(4.0, 16, "scipy"), None),
    ([(30, 41), (1, 1)], (29, 37), "product", False, PLAIN, None),
    ([(33, 65), (17, 1)], (33, 65), "product", True, PLAIN, None),
    ([(16, 20), (8, 10)], (70, 80), "product", False, PLAIN, (16, 20)),
    ([(8, 10), (5, 3), (2, 1)], (37, 70), "product", True, PLAIN, (20, 70)),
    ([(16, 20), (8, 10)], (70, 80), "sum", True, Filter(1.5, 6, "torch"), (17, 33)),
    ([(16, 20), (8, 10)], (33, 35), "product", False, Filter(1.5, 6, "scipy"), (9, 40)),
    ([(5, 96), (3, 48)], (6, 200), "product", False, Filter(4.0, 16, "torch"), None),  # pieces that begin apart
]


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("shapes", "size", "mode", "align", "blur", "middle"), CASES, ids=str)
def test_every_kind_of_launch_agrees_with_the_oracle(
    shapes: list[tuple[int, int]],
    size: tuple[int, int],
    mode: str,
    align: bool,
    blur: Filter,
    middle: tuple[int, int] | None,
) -> None:
    maps = maps_of(shapes, batch=1, device=DEVICE)
    scores = torch.zeros(1, device=DEVICE)
    expected = reference.fuse_scales(double(*maps), middle or size, mode=mode, align_corners=align)
    expected = reference.fuse_scales([expected], size, align_corners=align)
    if blur.sigma is not None:
        expected = reference.gaussian_blur(expected, blur.sigma, border=blur.border, radius=blur.radius)
    found, most = triton_path.fuse_blur_score(maps, size, mode, align, *blur, "max", scores, middle)
    assert most is scores
    assert_close(found, expected, MAP_RTOL, 1e-7)
    torch.testing.assert_close(most, found.amax((1, 2)), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("middle", [None, (16, 16)], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_where_it_is_drawn_from(value: float, middle: tuple[int, int] | None) -> None:
    maps = maps_of([(8, 8), (4, 16)], batch=2, device=DEVICE)
    maps[0][1, 2, 3] = value
    for mode in ("sum", "product"):
        found, scores = triton_path.fuse_blur_score(
            maps, (32, 64), mode, False, None, 0, "scipy", "max", torch.zeros(2, device=DEVICE), middle
        )
        expected = reference.fuse_scales(double(*maps), middle or (32, 64), mode=mode)
        expected = reference.fuse_scales([expected], (32, 64))
        assert torch.equal(found.isfinite().cpu(), expected.isfinite())
        assert scores is not None
        assert scores.isfinite().tolist() == [True, False]
