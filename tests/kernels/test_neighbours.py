"""Exact nearest neighbours against the oracle in float64, on every path, and faulty ones that the checks reject."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdad_bench.kernels import dispatch, neighbours, neighbours_triton
from kdad_bench.kernels.neighbours import blocked, exhaustive, nearest
from tests.kernels.guards import between_nans

Nearest = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small searches go by products too; in Triton's interpreter a program costs more than what it does."""
    if "device" not in request.fixturenames:
        yield
        return
    monkeypatch.setattr(neighbours_triton, "DIRECT", 0)
    if not torch.cuda.is_available():
        monkeypatch.setattr(neighbours_triton, "LINES", 256)
    neighbours_triton.plans.cache_clear()
    yield
    neighbours_triton.plans.cache_clear()


def cloud(count: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(function: Nearest, queries: Tensor, memory: Tensor, k: int = 1) -> None:
    """Indices are the oracle's, distances within a rounding of them."""
    wanted, places = exhaustive(queries.cpu(), memory.cpu(), k)
    found, indices = function(queries, memory, k)
    assert indices.dtype == torch.int64
    assert found.shape == indices.shape == (len(queries), k)
    assert torch.equal(indices.cpu(), places), "another neighbour"
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=1e-6, atol=0)


def check_sizes(function: Nearest, device: torch.device) -> None:
    """Edges of tiles, groups and blocks."""
    for n, m, c in ((1, 1, 1), (31, 33, 3), (32, 32, 32), (33, 31, 65), (513, 65, 8), (3, 1025, 7), (65, 129, 31)):
        check(function, cloud(n, c, 1).to(device), cloud(m, c, 2).to(device))


def check_near_ties(function: Nearest, device: torch.device) -> None:
    """Neighbours that a product of float32 cannot tell apart, far from the origin."""
    middle, apart = cloud(1, 96, 3) * 10 + 300, 5 * cloud(1, 96, 4)  # two heaps: centring does not help
    memory = torch.cat([middle + apart + 1e-3 * cloud(129, 96, 5), middle - apart + 1e-3 * cloud(128, 96, 6)])
    queries = torch.cat([middle + apart + 1e-3 * cloud(20, 96, 7), middle - apart + 1e-3 * cloud(13, 96, 8)])
    check(function, queries.to(device), memory.to(device))


def check_ties(function: Nearest, device: torch.device) -> None:
    """Duplicates and points at equal distances: the lower index."""
    memory = torch.tensor([[2.0, 0], [0, 2], [1, 1], [1, 1], [0, 2], [-2, 0]]).repeat(40, 1)
    queries = torch.tensor([[1.0, 1], [0, 2], [0, 0], [0, -5], [-2, 0]])
    check(function, queries.to(device), memory.to(device))
    check(function, torch.zeros(3, 4, device=device), torch.zeros(70, 4, device=device))


def check_magnitudes(function: Nearest, device: torch.device) -> None:
    """No overflow or underflow decides: lengths from 1e-30 to 1e30, and both in one call."""
    for scale in (1e-30, 1e-15, 1e15, 1e30):
        found = function(scale * cloud(4, 9, 6).to(device), scale * cloud(70, 9, 7).to(device), 1)[1]
        assert torch.equal(found.cpu(), exhaustive(scale * cloud(4, 9, 6), scale * cloud(70, 9, 7))[1])
    queries = cloud(3, 9, 6) * torch.tensor([1e-12, 1.0, 1e25])[:, None]
    assert torch.equal(function(queries.to(device), cloud(70, 9, 7).to(device), 1)[1].cpu(),
                       exhaustive(queries, cloud(70, 9, 7))[1])  # fmt: skip


def check_extremes(function: Nearest, device: torch.device) -> None:
    """A number as large as its type goes, in one row or in most, on either side: its square and sums of it overflow."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        largest = torch.finfo(dtype).max
        for extremes in (slice(2, 3), slice(3, None)):
            queries, memory = cloud(5, 9, 6, dtype), cloud(70, 9, 7, dtype)
            memory[extremes] = largest
            queries[1] = -largest
            for asked in (queries, queries[2:]):
                with np.errstate(over="ignore", invalid="ignore"):  # Triton's interpreter computes by numpy
                    found = function(asked.to(device), memory.to(device), 1)[1]
                assert torch.equal(found.cpu(), exhaustive(asked, memory)[1])


CHECKS = (check_sizes, check_near_ties, check_ties, check_magnitudes, check_extremes)


@pytest.mark.parametrize("one", CHECKS)
def test_the_neighbours_are_the_oracles(one: Callable[..., None], device: torch.device) -> None:
    one(nearest, device)


@pytest.mark.parametrize("size", [1023, 1024, 1025])
def test_the_neighbours_are_the_oracles_at_whole_tiles(size: int, device: torch.device) -> None:
    check(nearest, cloud(size, 5, 1).to(device), cloud(size, 5, 2).to(device))


@pytest.mark.parametrize("width", [3, 1024])
@pytest.mark.parametrize("path", ["triton"], indirect=True)
def test_the_product_keeps_its_bound(width: int, device: torch.device) -> None:
    """Halves of squared distances, each query's shifted as it may be, differ by the bound at most from the true."""
    queries, memory = (100 + cloud(n, width, n) for n in (40, 90))
    queries[3] += 20 * cloud(1, width, 2)[0]
    search = neighbours_triton.Search.of(queries.to(device), memory.to(device))
    said = search.said(0, len(queries)).double().cpu()
    peak, radius = search.state[:2].view(torch.float32).cpu()
    power = 2.0 ** (neighbours_triton.TOP - 1 - float(peak.log2().floor()))
    shifts = said - (queries.double()[:, None] - memory.double()).square().sum(2) * (power**2 / 2)
    relative, extra = search.bound
    slack = relative * (search.asking.lengths.cpu() + radius + extra).square().double()
    wrong = (shifts.amax(1) - shifts.amin(1)) / slack
    assert wrong.max() < 1
    assert wrong.max() > 2.0**-12, "far too wide"


@pytest.mark.parametrize("path", ["triton"], indirect=True)
def test_what_is_unclear_is_settled_by_what_was_measured(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours_triton, "among_many", None)  # nothing is left to it
    memory = torch.cat([cloud(3, 40, 1), cloud(70, 40, 2), cloud(3, 40, 1), cloud(3, 40, 1) + 1e-6])
    queries = torch.cat([cloud(3, 40, 1) + 1e-5 * cloud(3, 40, 3), cloud(60, 40, 4)])
    check(nearest, queries.to(device), memory.to(device))


@pytest.mark.parametrize("direct", [0, 1 << 30])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("path", ["triton"], indirect=True)
def test_what_is_not_finite_is_refused_where_the_cpu_waits(
    k: int, direct: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours_triton, "DIRECT", direct)
    good, bad = cloud(20, 5, 1).to(device), cloud(600, 5, 2).to(device)
    bad[13, 2] = torch.nan if k == 1 else torch.inf
    with pytest.raises(ValueError, match="queries hold NaN or infinity"):
        nearest(bad, good, k)
    with pytest.raises(ValueError, match="memory hold NaN or infinity"):
        nearest(good, bad, k)


@pytest.mark.parametrize("far", [1e6, 1e-3])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("path", ["triton"], indirect=True)
def test_rows_unlike_those_that_the_scale_is_from_are_found_too(k: int, far: float, device: torch.device) -> None:
    memory = cloud(1200, 5, 1) if far > 1 else torch.zeros(1200, 5)
    memory[701] = far  # not of the sample
    check(nearest, memory[695:705].to(device), memory.to(device), k)


@pytest.mark.parametrize("k", [2, 9, 64, 65])
def test_several_neighbours_come_in_rising_order(k: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "COLUMNS", 64)  # several tiles, and more neighbours than a tile has columns
    memory = torch.cat([cloud(80, 6, 1), cloud(80, 6, 1)[:50]])  # some twice
    check(nearest, cloud(40, 6, 2).to(device), memory.to(device), k)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_exact_too(dtype: torch.dtype, device: torch.device) -> None:
    queries, memory = cloud(40, 33, 1, dtype).to(device), cloud(90, 33, 2, dtype).to(device)
    check(nearest, queries, memory)
    assert nearest(queries, memory)[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_it_reads_nothing_beyond_and_takes_any_strides(device: torch.device) -> None:
    queries, memory = cloud(21, 70, 1)[::2, ::2], cloud(35, 90, 2).T[::2][:35]
    check(nearest, between_nans(queries).to(device), between_nans(memory).to(device))


def test_nothing_is_written_beyond(guards: Any, device: torch.device) -> None:
    nearest(cloud(65, 9, 1).to(device), cloud(130, 9, 2).to(device))


def test_a_tile_is_the_most_that_is_held(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if path == "triton":
        assert (neighbours.ROWS, neighbours.GROUP) == (512, 64)  # its tile is in registers
        return
    monkeypatch.setattr(neighbours, "ROWS", 64)
    monkeypatch.setattr(neighbours, "COLUMNS", 128)
    largest = 0
    plain = torch.addmm

    def watched(*arguments: Any, **options: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, options["out"].untyped_storage().nbytes())
        return plain(*arguments, **options)

    monkeypatch.setattr(torch, "addmm", watched)
    check(nearest, cloud(300, 4, 1), cloud(1000, 4, 2))
    assert largest == 64 * 128 * 4


@pytest.mark.parametrize("apart", [0.0, 1e-4])
def test_thousands_of_equal_or_nearly_equal_rows_are_no_thousands_of_candidates(
    apart: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = cloud(1, 16, 1) + apart * cloud(600, 16, 2)  # a heap that the product of float32 sees as one point
    memory = torch.cat([flat[:300], 30 * cloud(40, 16, 3), flat[300:]])
    queries = torch.cat([flat[:40] + apart * cloud(40, 16, 4), 30 * cloud(24, 16, 5)])
    measured = 0
    plain = neighbours.distances

    def counting(one: Tensor, other: Tensor, row: Tensor, index: Tensor) -> Tensor:
        nonlocal measured
        measured += len(row)
        return plain(one, other, row, index)

    monkeypatch.setattr(neighbours, "distances", counting)
    check(nearest, queries.to(device), memory.to(device))
    assert measured <= 4 * len(queries)


@pytest.mark.parametrize("path", ["triton"], indirect=True)
@pytest.mark.parametrize("before", [0, 2**31 - 100])
def test_candidates_are_not_counted_once_there_are_too_many(
    before: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2^31 pairs, counted in int32, had places in front of their list: 65,536 queries of one outlying row do."""
    memory, searches, of = cloud(2000, 8, 1).to(device), [], neighbours_triton.Search.of
    memory[1::2] = memory[1]
    queries = memory[1].expand(64, 8).contiguous()

    def counted_before(queries: Tensor, memory: Tensor) -> neighbours_triton.Search:
        searches.append(of(queries, memory))
        if len(searches) == 1:
            searches[0].state[4] = before
        return searches[-1]

    monkeypatch.setattr(neighbours_triton.Search, "of", counted_before)
    check(nearest, queries, memory)
    _, unclear, candidates = searches[0].told()
    assert unclear == 64  # and 64,000 candidates: a list for 1,088, and a tile
    assert candidates == before if before else 1088 < candidates <= 1088 + 64 * 64


@pytest.mark.parametrize("path", ["triton"], indirect=True)
def test_more_candidates_than_are_ever_listed_are_looked_for_otherwise(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours_triton, "MOST_CANDIDATES", 8)
    memory = cloud(70, 8, 1).repeat(2, 1).to(device)
    check(nearest, memory[:9].clone(), memory)


def test_rows_whose_bits_have_equal_sums_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "arange", lambda *_, plain=torch.arange, **options: plain(*_, **options) * 0)
    memory = torch.tensor([[0.0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])  # without the numbers of columns: one sum
    found = neighbours.first_occurrences(memory)
    assert found is not None
    assert {0, 1} <= set(found.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_only_first_occurrences_are_searched(dtype: torch.dtype) -> None:
    memory = cloud(7, 5, 1, dtype)[[0, 1, 0, 2, 2, 2, 3, 1, 4, 0, 5, 6]]
    found = neighbours.first_occurrences(memory)
    assert found is not None
    assert found.tolist() == [0, 1, 3, 6, 8, 10, 11]
    assert neighbours.first_occurrences(cloud(50, 5, 1, dtype)) is None


def test_no_query_has_no_neighbour(device: torch.device) -> None:
    found, indices = nearest(torch.empty(0, 3, device=device), torch.zeros(5, 3, device=device), 2)
    assert (found.shape, indices.shape) == ((0, 2), (0, 2))
    assert (found.dtype, indices.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("queries", "memory", "k", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), 1, r"\[N, C\] and \[M, C\] with C > 0; got \(2, 3\) and \(2, 4\)"),
        (torch.zeros(3), torch.zeros(2, 3), 1, r"got \(3,\)"),
        (torch.zeros(2, 0), torch.zeros(2, 0), 1, "C > 0"),
        (torch.zeros(2, 3), torch.zeros(0, 3), 1, "the memory is empty"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 0, "k must be from 1 to the 4 rows of the memory; got 0"),
        (torch.zeros(2, 3), torch.zeros(4, 3), 5, "k must be from 1 to the 4 rows of the memory; got 5"),
        (torch.zeros(2, 3), torch.zeros(4, 3).double(), 1, "of one dtype and device; got torch.float32 on cpu and"),
        (torch.zeros(2, 3).int(), torch.zeros(4, 3).int(), 1, "floating point"),
        (torch.tensor([[0.0, torch.nan]]), torch.zeros(4, 2), 1, "queries hold NaN or infinity"),
        (torch.zeros(4, 2), torch.tensor([[0.0, torch.inf]]), 1, "memory hold NaN or infinity"),
        (torch.zeros(4, 2), torch.tensor([[0.0, -torch.inf]]).half().float(), 1, "memory hold NaN or infinity"),
        (
            torch.zeros(4, 2).double(),
            torch.full((3, 2), 1e155, dtype=torch.float64),
            1,
            "squared distances are beyond float64",
        ),
        (
            torch.full((4, 2), -1e200, dtype=torch.float64),
            torch.zeros(3, 2).double(),
            1,
            "squared distances are beyond float64",
        ),
    ],
)
def test_what_has_no_nearest_row_is_refused(queries: Tensor, memory: Tensor, k: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nearest(queries, memory, k)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 80), st.integers(1, 5), st.integers(0, 1000), st.booleans())
def test_any_small_case_agrees_with_the_oracle(n: int, m: int, c: int, seed: int, whole: bool) -> None:
    queries, memory = cloud(n, c, seed), cloud(m, c, seed + 1)
    if whole:  # many ties
        queries, memory = queries.round(), memory.round()
    check(blocked, queries, memory, 1 + seed % m)


def product_alone(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """|q|² - 2qm + |m|² in float32: cancellation decides."""
    squares = queries.square().sum(1)[:, None] - 2 * queries @ memory.T + memory.square().sum(1)
    return squares.topk(k, largest=False)


def half_products(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The product in bfloat16, distances recomputed: selects wrongly."""
    said = memory.square().sum(1) - 2 * (queries.bfloat16() @ memory.bfloat16().T).float()
    indices = said.topk(k, largest=False).indices
    return (queries[:, None] - memory[indices]).double().square().sum(2), indices


def higher_index(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    squares, indices = exhaustive(queries, memory.flip(0), k)
    return squares, len(memory) - 1 - indices


def forgets_the_last_row(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return exhaustive(queries, memory[: max(1, len(memory) - 1)], k)


def plain_distances(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Not squared."""
    squares, indices = exhaustive(queries, memory, k)
    return squares.sqrt(), indices


def in_float32(queries: Tensor, memory: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Direct, but squares overflow and vanish."""
    return (queries[:, None] - memory).square().sum(2).double().topk(k, largest=False)


@pytest.mark.parametrize(
    ("faulty", "one"),
    [
        (product_alone, check_near_ties),
        (half_products, check_sizes),
        (higher_index, check_ties),
        (forgets_the_last_row, check_sizes),
        (plain_distances, check_sizes),
        (in_float32, check_magnitudes),
    ],
)
def test_a_faulty_search_is_rejected(faulty: Nearest, one: Callable[..., None]) -> None:
    with pytest.raises(AssertionError):
        one(faulty, torch.device("cpu"))


@pytest.mark.parametrize("factor", [0.0, 1e-4])
def test_a_bound_that_is_too_small_is_noticed(
    factor: float, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = neighbours.Frame.slack
    monkeypatch.setattr(neighbours.Frame, "slack", lambda frame, rows, unit: plain(frame, rows, unit) * factor)
    with pytest.raises(AssertionError):
        check_near_ties(nearest, device)


def test_a_setting_that_rounds_products_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    plain = torch.addmm

    def rounded(halves: Tensor, q: Tensor, p: Tensor, **options: Any) -> Tensor:
        if q.dtype == torch.float32:
            q, p = q.bfloat16().float(), p.bfloat16().float()
        return plain(halves, q, p, **options)

    monkeypatch.setattr(torch, "addmm", rounded)
    monkeypatch.setenv("KDAD_KERNELS", "torch")
    check(nearest, cloud(70, 40, 1), cloud(200, 40, 2))


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_kernel_that_fails_is_replaced_with_one_warning(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fails(*given: object) -> None:
        calls.append(given)
        raise error("PTXAS error\nand more")

    monkeypatch.delenv("KDAD_KERNELS", raising=False)
    monkeypatch.setattr(dispatch, "_broken", {})
    monkeypatch.setattr(dispatch, "_told", set())
    monkeypatch.setattr(dispatch, "path", lambda device="cpu": "triton")
    monkeypatch.setattr(neighbours_triton, "nearest", fails)
    with pytest.warns(RuntimeWarning, match=rf"nearest failed \({error.__name__}: PTXAS error\); plain PyTorch"):
        check(nearest, cloud(3, 4, 1), cloud(9, 4, 2))
    check(nearest, cloud(3, 4, 1), cloud(9, 4, 2))
    assert len(calls) == 1
