"""The affine map of least squares and its components, against numpy on all rows at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kdad_bench.methods.least_squares import Sums, affine, components

Fitted = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def rows(seed: int = 0, count: int = 90) -> tuple[Tensor, Tensor]:
    """Inputs [n, 7] far from 0 and outputs [n, 4] that mostly follow from them."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(count, 7, generator=generator).cumsum(1) + 50
    wanted = seen @ torch.randn(7, 4, generator=generator) + 0.3 * torch.randn(count, 4, generator=generator) - 9
    return seen, wanted


def summed(seen: Tensor, wanted: Tensor, size: int = 13) -> Sums:
    sums = Sums()
    for some, of_them in zip(seen.split(size), wanted.split(size), strict=True):
        sums.add(some, of_them)
    return sums


def by_sums(seen: Tensor, wanted: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    return affine(summed(seen, wanted), ridge)


def check_affine(fitted: Fitted) -> None:
    """As numpy solves the rows centred, with the ridge as further rows."""
    seen, wanted = rows()
    x, y = seen.double().numpy(), wanted.double().numpy()
    for ridge in (0.0, 0.1):
        held = ridge * x.var(0).mean() * len(x)
        more = np.vstack([x - x.mean(0), np.sqrt(held) * np.eye(7)])
        expected = np.linalg.lstsq(more, np.vstack([y - y.mean(0), np.zeros((7, 4))]), rcond=None)[0].T
        weight, bias = fitted(seen, wanted, ridge)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(bias.numpy(), y.mean(0) - expected @ x.mean(0), rtol=1e-4, atol=1e-2)


def test_the_map_is_that_of_least_squares_however_the_rows_come() -> None:
    check_affine(by_sums)


FAULTY: dict[str, Fitted] = {
    "no ridge": lambda seen, wanted, ridge: by_sums(seen, wanted, 0.0),
    "the ridge by itself": lambda seen, wanted, ridge: by_sums(seen, wanted, ridge / float(seen.var(0).mean())),
    "the first rows alone": lambda seen, wanted, ridge: by_sums(seen[:13], wanted[:13], ridge),
    "no bias": lambda seen, wanted, ridge: (by_sums(seen, wanted, ridge)[0], torch.zeros(4)),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_map_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_affine(FAULTY[name])


def test_components_are_the_outputs_principal_ones() -> None:
    seen, wanted = rows()
    weight, bias = by_sums(seen, wanted, 0.1)
    said = (seen.double() @ weight.T + bias).numpy()
    _, expected, across = np.linalg.svd(said - said.mean(0), full_matrices=False)
    directions, deviations = components(summed(seen, wanted), weight, 3)
    np.testing.assert_allclose(deviations.numpy(), expected[:3] / np.sqrt(len(said)), rtol=1e-4)
    np.testing.assert_allclose(np.abs(across[:3] @ directions.numpy()), np.eye(3), atol=1e-4)


@pytest.mark.parametrize(("varying", "kept"), [(0, 0), (1, 1), (2, 2)])
def test_what_does_not_vary_is_no_component(varying: int, kept: int) -> None:
    seen, wanted = rows()
    wanted = wanted.clone()
    wanted[:, varying:] = 3.0
    sums = summed(seen, wanted)
    directions, deviations = components(sums, affine(sums, 0.1)[0], 4)
    assert directions.shape == (4, kept)
    assert deviations.shape == (kept,)
