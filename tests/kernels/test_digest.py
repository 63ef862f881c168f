"""Numbers of the bytes of tensors: another one after any write, the same one on any number of threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdad_bench.kernels import cpp_path
from kdad_bench.kernels.digest import digests, extent, readable

PIECE = 1 << 16  # values that a thread takes at a time
COUNTS = (1, 2, 63, 64, 65, 127, 129, 1000, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 65)  # 64 are taken up at a time


@pytest.fixture(params=["compiled", "python"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(cpp_path, "missing", lambda: "as if it had not been built")
    elif cpp_path.missing() is not None:
        pytest.skip("the C++ library was not built")


def number(tensor: Tensor) -> int:
    return digests([tensor.data_ptr()], [extent(tensor)])[0]


def drawn(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("count", COUNTS)
def test_every_bit_counts(count: int) -> None:
    """Of the first values, the last, and those at the borders of what is taken up at a time."""
    words = drawn(count).view(torch.int32)
    before = number(words)
    for place in sorted({0, 63, 64, PIECE - 1, PIECE, count // 2, count - 1} & set(range(count))):
        for bit in range(32):
            flip = 1 << bit if bit < 31 else -(1 << 31)
            words[place] ^= flip
            assert number(words) != before, (place, bit)
            words[place] ^= flip
    assert number(words) == before


def swapped(x: Tensor) -> None:
    x[[0, 64]] = x[[64, 0]]


def pieces_swapped(x: Tensor) -> None:
    x[: 2 * PIECE] = x[: 2 * PIECE].view(2, PIECE).flip(0).view(-1)


def two_signs(x: Tensor) -> None:
    x[[0, 64]] *= -1


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "all signs": Tensor.neg_,
    "two signs": two_signs,
    "doubled": lambda x: x.mul_(2),
    "turned about": lambda x: x.copy_(x.flip(0)),
    "moved by one": lambda x: x.copy_(x.roll(1)),
    "moved by what is taken up at a time": lambda x: x.copy_(x.roll(64)),
    "two swapped": swapped,
    "two pieces swapped": pieces_swapped,
    "all zeros": Tensor.zero_,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_that_a_sum_or_an_exclusive_or_would_miss_are_seen(change: str) -> None:
    x = drawn(2 * PIECE + 65)
    before = number(x)
    CHANGES[change](x)
    assert number(x) != before


def test_zeros_of_either_sign_and_numbers_of_zeros_differ() -> None:
    zeros = torch.zeros(3 * PIECE)
    found = [number(zeros[:count]) for count in COUNTS]
    found.append(number(-zeros[:1000]))
    assert len(set(found)) == len(found)


def test_the_number_is_the_same_on_any_number_of_threads_and_wherever_the_bytes_lie() -> None:
    x, before = drawn(5 * PIECE + 7), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found += [number(x), number(x.clone()), number(torch.cat([x[:1], x])[1:])]
    finally:
        torch.set_num_threads(before)
    assert set(found) == {number(x)}


def test_several_are_numbered_at_once_each_for_itself_and_what_lies_nowhere_is_0() -> None:
    tensors = [drawn(count) for count in COUNTS]
    together = digests([*(x.data_ptr() for x in tensors), 0], [*map(extent, tensors), 64])
    assert together == [*map(number, tensors), 0]
    assert digests([], []) == []


@pytest.mark.parametrize("count", range(1, 10))
def test_values_of_one_and_two_bytes_count_to_the_last(count: int) -> None:
    for dtype in (torch.uint8, torch.float16):
        x = torch.ones(count + 1, dtype=dtype)
        before = number(x[:count])
        x[count] = 2
        assert number(x[:count]) == before
        x[count - 1] = 2
        assert number(x[:count]) != before


def test_the_extent_reaches_from_the_first_value_to_the_last() -> None:
    x = torch.zeros(4, 6)
    assert extent(x) == 96
    assert extent(x.t()) == 96
    assert extent(x[1:3, 2:4]) == 4 * (6 + 2)
    assert extent(x[:, 0]) == 4 * (18 + 1)
    assert extent(torch.zeros(3).expand(5, 3)) == 12
    assert extent(torch.zeros(0, 3)) == 0
    assert extent(torch.zeros((), dtype=torch.int64)) == 8


def test_only_plain_tensors_of_the_cpu_are_read() -> None:
    class Own(Tensor):
        pass

    assert readable(torch.zeros(3))
    assert readable(nn.Parameter(torch.zeros(3)))
    assert not readable(torch.zeros(3).as_subclass(Own))
    assert not readable(torch.zeros(3, device="meta"))
    assert not readable(torch.zeros(3).to_sparse())
