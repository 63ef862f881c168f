"""Weights that are a function of name and position alone, so that what a network says of them can be written down.

No generator of random numbers takes part: they differ between versions of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import FACTS, Backbone

PERIOD = 4099  # a prime, so that no layer's shape is a multiple of it
TABLE = torch.sin(1.7 * torch.arange(PERIOD, dtype=torch.float64)).float()
# of a phase that rises ever faster: neighbours have nothing to do with one another, so that layer after layer keeps
# the size of what it sees, where the plain sine's weights cancel out
CHIRP = torch.sin(1.7 * torch.arange(PERIOD, dtype=torch.float64).square()).float()


def wave(count: int, name: str, table: Tensor = TABLE) -> Tensor:
    """[count] float32 in [-1, 1]: sines of a rising phase that begins where `name` says."""
    start = crc32(name.encode()) % PERIOD
    return table.repeat((start + count) // PERIOD + 1)[start : start + count]


def filled(make: Callable[[], nn.Module], table: Tensor = TABLE) -> nn.Module:
    """What `make` makes, in eval mode, with weights as large as trained ones: norms near identity, others by fan-in."""
    with torch.device("meta"):  # random weights of a large network would take longer than its answer
        network = make()
    network = network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, Backbone):
            module.mean, module.std = torch.tensor(FACTS[module.name].mean), torch.tensor(FACTS[module.name].std)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(value_of(name, tensor, table) if tensor.is_floating_point() else torch.zeros_like(tensor))
    return network.eval()


def value_of(name: str, tensor: Tensor, table: Tensor = TABLE) -> Tensor:
    """The fixed value of the parameter or buffer `name`."""
    values = wave(tensor.numel(), name, table).view(tensor.shape)
    if name.endswith("running_var"):
        return 1 + 0.3 * values
    if tensor.dim() == 1:
        return 1 + 0.2 * values if name.endswith("weight") else 0.1 * values
    return values * (3.0 / tensor[0].numel()) ** 0.5


def tensor_of(*shape: int, name: str, table: Tensor = TABLE) -> Tensor:
    """A float32 input of that shape, in [0, 1]."""
    count = 1
    for side in shape:
        count *= side
    return (0.5 + 0.5 * wave(count, name, table)).view(shape)


def summary(tensor: Tensor) -> list[float]:
    """Three numbers that a change of any layer moves: mean, root of the mean square, and a sum with signed weights."""
    values = tensor.detach().double().flatten()
    weighted = (values * wave(len(values), "weights of the sum")).sum() / len(values) ** 0.5
    return [float(values.mean()), float(values.square().mean().sqrt()), float(weighted)]
