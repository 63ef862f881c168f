"""What a row says of the networks is measured on what the networks see when images are scored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdad_bench.harness import clock
from kdad_bench.harness.cost import networks_on
from kdad_bench.harness.late_fusion import FusedModalities
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.protocol import Method
from tests.methods.toys import SIDE, normals, small_method

RESOLUTIONS = (SIDE // 2, SIDE, SIDE * 3 // 2)


class Recorder(TorchDispatchMode):
    """Counts convolutions, matrix products and this package's kernels, with the shapes and types of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Any] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        if any(word in name for word in ("convolution", "aten.mm", "aten.addmm", "aten.bmm", "kdad")):
            inputs = tuple((tuple(one.shape), one.dtype) for one in args if isinstance(one, torch.Tensor))
            self.seen[name, inputs] += 1
        return function(*args, **(kwargs or {}))


def work_of(call: Callable[[], object]) -> Counter[Any]:
    with torch.no_grad(), Recorder() as recorder:
        call()
    return recorder.seen


def flops_of(method: Method, resolution: int) -> int:
    with torch.inference_mode():
        return clock.flops(networks_on(method, normals(1, seed=1, side=resolution)))


@pytest.mark.parametrize("name", METHODS)
def test_the_networks_are_part_of_the_whole_at_every_resolution(name: str) -> None:
    method = small_method(name)
    if entry(name).family == "yardstick":  # they have nothing to score by before a fit
        method.fit(normals(3, seed=2))
    for resolution in RESOLUTIONS:
        images = normals(1, seed=1, side=resolution)
        alone, whole = work_of(networks_on(method, images)), work_of(lambda: method.score(images))  # noqa: B023
        assert alone <= whole, f"at {resolution} px the networks alone do what scoring does not: {alone - whole}"
        assert alone or name == "pixel_mean"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_networks_are_measured_in_the_precision_in_which_they_score(precision: str) -> None:
    method = small_method("stfpm", precision=precision)
    images = normals(1, seed=1)
    assert work_of(networks_on(method, images)) <= work_of(lambda: method.score(images))


@pytest.mark.parametrize("name", METHODS)
def test_operations_do_not_depend_on_the_resolution_of_the_run(name: str) -> None:
    method = small_method(name)
    counts = {resolution: flops_of(method, resolution) for resolution in RESOLUTIONS}
    assert len(set(counts.values())) == 1, counts


def test_two_modalities_cost_the_networks_of_both() -> None:
    parts = [small_method("stfpm", seed=seed) for seed in (0, 1)]
    fused = FusedModalities(parts, ("rgb", "depth"), torch.rand(2, 6, SIDE, SIDE))
    with torch.inference_mode():
        found = clock.flops(networks_on(fused, torch.rand(1, 6, 96, 96)))
    assert found == 2 * flops_of(parts[0], SIDE) > 0
