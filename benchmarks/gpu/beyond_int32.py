"""What offsets beyond 2^31 could break, compared with float64 where the offsets are: maps, gradients, losses, fusion.

Every check is run twice and must give the same bits: a race would show, which Triton's interpreter cannot see. The
shapes are arguments, so that tests run the same checks small, without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.kernels import reference

ROWS = 2  # of the last sample, that are compared


class Size(NamedTuple):
    """Shapes of the checks; the defaults take about 30 GB at once."""

    features: tuple[int, int, int, int] = (5, 64, 3000, 3000)  # sample 4 begins at 2.3e9
    sample: tuple[int, int, int, int] = (1, 512, 2056, 2056)  # channel 511 begins at 2.2e9
    maps: tuple[int, int, int] = (5, 375, 375)
    fused: tuple[int, int] = (24_000, 24_000)  # sample 4 of the result begins at 2.3e9


def far(shape: tuple[int, ...]) -> bool:
    """Whether the last sample begins, or the last channel of a single one, beyond what int32 counts."""
    strides = torch.empty(shape, device="meta").stride()
    return max((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) > 2**31


def error(found: Tensor, expected: Tensor) -> float:
    """Relative error in the norm of the whole tensor."""
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-300))


def same_twice(call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What the call returns; raises AssertionError if a second call returns other bits."""
    first = call()
    for k, (mine, again) in enumerate(zip(first, call(), strict=True)):
        if not torch.equal(mine, again):
            raise AssertionError(f"output {k} differs between two calls")
    return first


def pair(shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """float16 teacher and student that resemble each other, filled in place."""
    t = torch.empty(shape, device=device, dtype=torch.float16).normal_(generator=torch.Generator(device).manual_seed(0))
    s = torch.empty_like(t).normal_(generator=torch.Generator(device).manual_seed(1))
    return t, s.add_(t)


def last_rows(x: Tensor) -> Tensor:
    """The last rows of the last sample, in float64."""
    return x.detach()[-1:, ..., -ROWS:, :].double()


def checked(name: str, found: Tensor, expected: Tensor, allowed: float) -> str:
    """A line on the agreement; raises AssertionError for more than `allowed`."""
    apart = error(found, expected)
    if not apart <= allowed:
        raise AssertionError(f"{name}: relative error {apart:.1e}, {allowed:.0e} allowed")
    return f"{name} {apart:.1e}"


def maps_and_gradients(shape: tuple[int, int, int, int], device: torch.device) -> list[str]:
    """Discrepancy maps, their gradient, the loss with its value and its gradient."""
    t, s = pair(shape, device)
    wide = last_rows(t), last_rows(s)
    (found,) = same_twice(lambda: (kernels.pixel_discrepancy(t, s),))
    lines = [checked("map", found[-1:, -ROWS:], reference.pixel_discrepancy(*wide), 1e-5)]
    mean = float(found.double().mean())
    del found
    s.requires_grad_()
    (found,) = same_twice(lambda: torch.autograd.grad(kernels.pixel_discrepancy(t, s).sum(), s))
    one = torch.ones((), device=device, dtype=torch.float64).expand(1, ROWS, shape[3])
    expected = reference.pixel_discrepancy_gradients(one, *wide)[1]
    lines.append(checked("gradient", found[-1:, :, -ROWS:], expected, 1e-3))
    del found

    def loss() -> tuple[Tensor, ...]:
        value = kernels.distillation_loss([t], [s])
        scale = float(shape[0] * shape[2] * shape[3])  # undoes the mean, which float16 gradients do not survive
        return value.detach(), *torch.autograd.grad(value * scale, s)

    value, found = same_twice(loss)
    lines.append(checked("loss", value.cpu(), torch.tensor(mean, dtype=torch.float64), 1e-5))
    lines.append(checked("gradient of the loss", found[-1:, :, -ROWS:], expected, 1e-3))
    return lines


def flattened(shape: tuple[int, int, int, int], device: torch.device) -> list[str]:
    """Distances of whole samples and their gradient, against sums of the last sample alone."""
    t, s = pair(shape, device)
    s.requires_grad_()
    scale = float(t[0].numel())  # without it the gradients of so long a vector are no float16 numbers

    def both() -> tuple[Tensor, ...]:
        distance = kernels.flattened_cosine(t, s)
        return distance.detach(), *torch.autograd.grad(distance.sum() * scale, s)

    distance, found = same_twice(both)
    a = b = product = 0.0
    for channel in range(shape[1]):  # one channel in float64 at a time
        x, y = t[-1, channel].double(), s.detach()[-1, channel].double()
        a, b, product = a + float((x * x).sum()), b + float((y * y).sum()), product + float((x * y).sum())
    root = (a * b) ** 0.5
    lines = [checked("flattened", distance[-1:].cpu(), torch.tensor([1 - product / root], dtype=torch.float64), 1e-5)]
    expected = scale * (product / root / b * last_rows(s) - last_rows(t) / root)
    return [*lines, checked("gradient of flattened", found[-1:, :, -ROWS:], expected, 2e-3)]


def fusion(maps: tuple[int, int, int], size: tuple[int, int], device: torch.device) -> list[str]:
    """The last rows of the last fused map: the rows of the source that they are drawn from, alone."""
    source = torch.rand(maps, generator=torch.Generator(device).manual_seed(2), device=device)
    (found,) = same_twice(lambda: (kernels.fuse_scales([source], size),))
    step = size[0] // maps[1]
    expected = reference.fuse_scales([source[-1:].double()[:, -3:]], (3 * step, size[1]))[:, -ROWS:]
    return [checked("fusion", found[-1:, -ROWS:], expected, 1e-5)]


def run(size: Size, device: torch.device) -> str:
    """All of it; raises AssertionError for what does not agree."""
    lines = maps_and_gradients(size.features, device)
    lines += [f"{line} in one sample" for line in maps_and_gradients(size.sample, device)]
    return ", ".join([*lines, *flattened(size.features, device), *fusion(size.maps, size.fused, device)])
