"""Weights and inputs that are formulas, for networks that are compared with an official code's.

They follow from the order of the layers, not from names as in `fixed_weights`: another code names its layers otherwise.
"""

from __future__ import annotations

from itertools import count
from math import prod

import torch
from torch import Tensor, nn


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    """float32 in [-1, 1], a sine over the flat index: without a period that fits any shape."""
    flat = torch.sin(torch.arange(prod(shape), dtype=torch.float64) * 12.9898 + phase)
    return flat.reshape(shape).float()


def with_fixed_weights(network: nn.Module) -> nn.Module:
    """`network` in eval mode; its k-th convolution or batch norm has the weights of the k-th phase."""
    numbers = count(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            k = next(numbers)
            fan_in = module.weight[0].numel()
            module.weight.data = wave(tuple(module.weight.shape), k) * (3 / fan_in) ** 0.5
            if module.bias is not None:
                module.bias.data = wave(tuple(module.bias.shape), k + 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            k = next(numbers)
            for tensor, part, scale in zip(
                (module.weight.data, module.bias.data, module.running_mean, module.running_var),
                (0.1, 0.2, 0.3, 0.4),
                (0.3, 0.3, 0.2, 0.4),
                strict=True,
            ):
                assert tensor is not None
                tensor.copy_(scale * wave(tuple(tensor.shape), k + part) + (1.0 if part in (0.1, 0.4) else 0.0))
    return network.eval()
