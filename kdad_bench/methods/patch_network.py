"""STAD's networks, which describe every patch of an image by one vector: Bergmann et al. 2020, Bailer et al. 2017."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor, nn
from torch.nn import functional as F

POOL = 0  # in a layout: 2 x 2 max pooling
# side of the patch -> (side of the kernel, how many times the width), or POOL; the last has the descriptor's dimensions
LAYOUTS: Mapping[int, tuple[tuple[int, int], ...]] = {
    17: ((6, 1), (5, 2), (5, 2), (4, 0)),
    33: ((5, 1), (POOL, 0), (5, 2), (POOL, 0), (2, 2), (4, 0)),
    65: ((5, 1), (POOL, 0), (5, 1), (POOL, 0), (5, 2), (POOL, 0), (4, 2), (1, 0)),
}
SLOPE = 5e-3  # of the leaky ReLU


def random_layer(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that leaves the size of what it sees as it is: He et al. 2015, for the leaky ReLU; no bias yet."""
    layer = nn.Conv2d(inputs, outputs, kernel)
    nn.init.kaiming_normal_(layer.weight, a=SLOPE)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class PatchNetwork(nn.Module):
    """A descriptor [dimensions] of every patch of one size, at once: Bailer et al. 2017.

    Pooling halves the resolution only as far as `grid` allows; beyond that it moves pixel by pixel, and what follows
    looks at every second, fourth, eighth pixel. The answers are those of the plain network on each patch by itself.
    """

    def __init__(self, side: int, width: int, dimensions: int) -> None:
        super().__init__()
        self.side, inputs = side, 3
        self.layers = nn.ModuleList()
        for kernel, times in LAYOUTS[side]:
            if kernel != POOL:
                outputs = times * width or dimensions
                self.layers.append(random_layer(inputs, outputs, kernel))
                inputs = outputs
        self.spatial = max(k for k, layer in enumerate(self.layers) if layer.kernel_size != (1, 1))

    def forward(self, x: Tensor, grid: int) -> Tensor:
        """[N, 3, H, W] -> [N, dimensions, h, w]: of the patches whose corners are `grid` px apart."""
        x, step, apart = self.hidden(x, grid)
        return F.conv2d(x, self.last.weight, self.last.bias, step, dilation=apart)

    def hidden(self, x: Tensor, grid: int) -> tuple[Tensor, int, int]:
        """What the last layer looks at, and its step from place to place and the gaps between what it sees of one."""
        stride = apart = 1
        k = 0
        for kernel, _ in LAYOUTS[self.side]:
            if kernel == POOL:
                halved = 2 * stride <= grid
                x = F.max_pool2d(x, 2, 2 if halved else 1, dilation=apart)
                stride, apart = (2 * stride, apart) if halved else (stride, 2 * apart)
                continue
            layer = self.layers[k]
            step = grid // stride if k == self.spatial else 1
            if layer is self.last:
                break
            x = F.leaky_relu(F.conv2d(x, layer.weight, layer.bias, step, dilation=apart), SLOPE)  # type: ignore[arg-type]
            k += 1
        return x, step, apart

    @property
    def last(self) -> nn.Conv2d:
        """The layer that answers."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def inputs_of_last(self, x: Tensor, grid: int) -> Tensor:
        """[N, F, h, w]: for each patch all that its descriptor is an affine function of."""
        x, step, apart = self.hidden(x, grid)
        side = self.last.kernel_size[0]
        rows = F.unfold(x, side, dilation=apart, stride=step)
        height, width = ((end - apart * (side - 1) - 1) // step + 1 for end in x.shape[-2:])
        return rows.view(*rows.shape[:2], height, width)

    def of_images(self, images: Tensor, grid: int) -> Tensor:
        """[N, dimensions, H / grid, W / grid]: of patches about the middle of each `grid` x `grid` px."""
        found: Tensor = self(self.continued(images, grid), grid)
        height, width = (side // grid for side in images.shape[-2:])
        return found[..., :height, :width]

    def continued(self, images: Tensor, grid: int) -> Tensor:
        """`images` with as many of their outermost pixels beside them as the patches of `of_images` reach."""
        before = self.side // 2 - (grid - 1) // 2
        after = self.side - grid - before  # negative: the rest of the last cell is not looked at
        return F.pad(images, (before, after, before, after), mode="replicate")

    @property
    def pooled(self) -> int:
        """The grid at which nothing is computed twice."""
        return int(prod(2 for kernel, _ in LAYOUTS[self.side] if kernel == POOL))
