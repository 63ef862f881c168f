"""Under deterministic algorithms: no method asks a GPU for what torch then refuses, and what stands in is the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdad_bench.methods import METHODS, grid_sampling
from kdad_bench.methods.grid_sampling import gathered, sampled
from tests.methods.toys import normals, small_method

# what torch refuses on a GPU under deterministic algorithms: the list of torch.use_deterministic_algorithms, in ATen's
# words. Not among them are bilinear interpolation and replication padding of 2 dimensions: torch.nn.functional takes
# other ways there by itself.
REFUSED = re.compile(
    r"(adaptive_(avg|max)_pool\dd|avg_pool3d|max_pool3d_with_indices|fractional_max_pool\dd|grid_sampler_\dd|"
    r"reflection_pad\dd|upsample_(linear1d|bicubic2d|trilinear3d|bilinear2d_aa|bicubic2d_aa))_backward|"
    r"max_unpool|nll_loss|ctc_loss|embedding_bag|aten\.put|histc|bincount|kthvalue|median\.dim|scatter_reduce|"
    r"cum(sum|prod).* of floats"
)


class Recorder(TorchDispatchMode):
    """The names of all operations inside, those of backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        floats = any(isinstance(one, torch.Tensor) and one.is_floating_point() for one in args)
        self.seen.add(str(func) + " of floats" * floats)
        return func(*args, **(kwargs or {}))

    @property
    def refused(self) -> list[str]:
        return sorted(filter(REFUSED.search, self.seen))


QUICKLY = ("fractalad", "dinomaly")  # the first samples a grid, the second pools adaptively
CASES = [pytest.param(name, marks=() if name in QUICKLY else pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("name", CASES)
def test_no_method_asks_for_what_a_gpu_refuses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid_sampling, "order_matters", lambda maps: True)
    changes = {"batch_size": 2, "steps": 2} | ({"turned": "full"} if name == "destseg" else {})
    method = small_method(name, source="random", **changes)
    with Recorder() as recorded:
        method.fit(normals(3, seed=1))
        method.score(normals(1, seed=2))
    assert len(recorded.seen) > 10
    assert recorded.refused == []


def test_the_record_knows_what_is_refused() -> None:
    maps = torch.rand(1, 2, 5, 4, requires_grad=True)
    grid = torch.rand(1, 3, 3, 2)
    with Recorder() as recorded:
        F.grid_sample(maps, grid, align_corners=False).sum().backward()
        F.adaptive_avg_pool2d(maps, 2).sum().backward()
        maps.cumsum(0)
        torch.ones(3, dtype=torch.int64).cumsum(0)
    assert len(recorded.refused) == 3


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("sides", [(1, 1), (5, 1), (4, 7)])
def test_gathered_corners_are_grid_samples_values_and_gradients(sides: tuple[int, int], scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, *sides, generator=generator, dtype=torch.float64, requires_grad=True)
    grid = (scale * torch.randn(2, 6, 5, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    upstream = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    expected = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    found = gathered(maps, grid)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(x, (maps, grid), upstream) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_only_a_gpu_that_adds_in_one_order_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, grid = torch.rand(1, 1, 4, 4, dtype=torch.float16), torch.zeros(1, 2, 2, 2, dtype=torch.float16)
    taken = []
    monkeypatch.setattr(grid_sampling, "gathered", lambda maps, grid: taken.append(1))
    sampled(maps.float(), grid.float())
    assert not taken
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    sampled(maps.float(), grid.float())
    assert not taken  # a CPU adds in one order anyway

    class Cuda:
        is_cuda = True

    assert grid_sampling.order_matters(Cuda())  # type: ignore[arg-type]
    with torch.no_grad():
        assert not grid_sampling.order_matters(Cuda())  # type: ignore[arg-type]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
    assert not grid_sampling.order_matters(Cuda())  # type: ignore[arg-type]
    assert gathered(maps, grid).dtype == torch.float16
