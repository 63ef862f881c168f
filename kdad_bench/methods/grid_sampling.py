"""`grid_sample` where its gradient must not depend on the order in which a GPU adds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sampled(maps: Tensor, grid: Tensor) -> Tensor:
    """[N, C, h, w]: `maps` [N, C, H, W] where `grid` [N, h, w, 2] points (x, y from -1 to 1, border to border).

    Bilinear, zero beyond the border.
    """
    if order_matters(maps):
        return gathered(maps, grid)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def order_matters(maps: Tensor) -> bool:
    """Whether torch would refuse the gradient: it has none on a GPU that adds in one order."""
    return maps.is_cuda and torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled()


def gathered(maps: Tensor, grid: Tensor) -> Tensor:
    """The same from four gathered corners, whose gradient torch can add in one order; in float32 at the least."""
    high, wide = maps.shape[-2:]
    values = maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32))  # [N, C, H W]
    x, y = (((grid.to(values.dtype)[..., axis] + 1) * side - 1) / 2 for axis, side in enumerate((wide, high)))
    left, top = x.detach().floor(), y.detach().floor()
    found = values.new_zeros((*values.shape[:2], *grid.shape[1:3]))
    for column, across in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, down in ((top, 1 - (y - top)), (top + 1, y - top)):
            inside = (column >= 0) & (column < wide) & (row >= 0) & (row < high)
            place = row.clamp(0, high - 1) * wide + column.clamp(0, wide - 1)
            index = place.long().flatten(1)[:, None].expand(-1, values.shape[1], -1)
            corner = values.gather(2, index).view(found.shape)
            found = found + corner * (across * down * inside)[:, None]
    return found.to(maps.dtype)
