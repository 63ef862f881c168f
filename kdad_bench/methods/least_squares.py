"""The best affine map from inputs to outputs, from sums that are added up a few rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-3  # of the greatest deviation: components that vary less are not told from rounding


class Sums:
    """What is needed of all rows: their count, sum and products, about the mean of the first rows."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, seen: Tensor, wanted: Tensor) -> None:
        """Rows `seen` [n, F] and what is wanted for each [n, D], float32."""
        both = torch.cat([seen, wanted], 1)
        if not self.count:
            self.inputs, self.shift = seen.shape[1], both.mean(0)
            self.sum = torch.zeros_like(self.shift, dtype=torch.float64)
            self.products = torch.diag(self.sum)
        away = both - self.shift
        self.sum += away.sum(0).double()
        self.products += (away.T @ away).double()
        self.count += len(both)

    @property
    def mean(self) -> Tensor:
        """[F + D] float64."""
        return self.shift.double() + self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """[F + D, F + D] float64."""
        away = self.sum / self.count
        return self.products / self.count - torch.outer(away, away)


def affine(sums: Sums, ridge: float) -> tuple[Tensor, Tensor]:
    """(weight [D, F], bias [D]) float64 of least squared error, with `ridge` times the inputs' mean variance on the
    diagonal; the bias is not held back."""
    inputs, covariance, mean = sums.inputs, sums.covariance, sums.mean
    have = covariance[:inputs, :inputs]
    held = ridge * have.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    among = have + torch.diag(held.expand(inputs))
    weight = torch.linalg.solve(among, covariance[:inputs, inputs:]).T
    return weight, mean[inputs:] - weight @ mean[:inputs]


def components(sums: Sums, weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(directions [D, k], deviations [k]) of the outputs of `weight` [D, F], greatest first, k <= `most`.

    They are the best `most` numbers to say the outputs by, and are not correlated with one another.
    """
    values, directions = torch.linalg.eigh(weight @ sums.covariance[: sums.inputs, : sums.inputs] @ weight.T)
    deviations = values.flip(0)[:most].clamp_min(0).sqrt()
    kept = deviations > LEAST * deviations[0]
    return directions.flip(1)[:, :most][:, kept], deviations[kept]
