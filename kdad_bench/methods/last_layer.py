"""The last convolution of a network by least squares: what steps of an optimiser come to after a long time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 1e-4  # of the mean square of what the layer sees: keeps directions that hardly occur from large weights


@torch.no_grad()
def solve(layer: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set weight and bias of the convolution `layer` so that it makes y of x with the least mean squared error, plus
    RIDGE, over all `pairs` (x [N, C, h, w], y [N, D, h', w']), which are gone through once."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0
    for x, y in pairs:
        seen = F.unfold(x.float(), layer.kernel_size, padding=layer.padding).mT.flatten(0, 1)  # type: ignore[arg-type]
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        wanted = y.float().permute(0, 2, 3, 1).flatten(0, 2)
        squares = squares + (seen.mT @ seen).double()
        products = products + (seen.mT @ wanted).double()
    assert isinstance(squares, Tensor)
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=torch.float64, device=squares.device)
    found = torch.linalg.solve(squares + ridge, products).mT.float()
    layer.weight.copy_(found[:, :-1].reshape(layer.weight.shape))
    layer.bias.copy_(found[:, -1])
