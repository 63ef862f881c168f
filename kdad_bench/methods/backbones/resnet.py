"""ResNet (He et al., CVPR 2016) and Wide ResNet (Zagoruyko & Komodakis, BMVC 2016), with torchvision's keys.

Bottlenecks carry their stride in the 3x3 convolution, as torchvision's published weights do. Taps: the outputs of
layer1 to layer4 (strides 4, 8, 16, 32).
"""

from __future__ import annotations

from torch import Tensor, nn

from kdad_bench.kernels import Layers, convolved, max_pool, norm_relu
from kdad_bench.methods.backbones.attention import Attention, attention_at
from kdad_bench.methods.backbones.backbone import Backbone
from kdad_bench.methods.backbones.names import facts_of

# name -> (bottleneck?, blocks per layer, width of a bottleneck's inner convolutions relative to its planes)
LAYOUTS: dict[str, tuple[bool, tuple[int, int, int, int], int]] = {
    "resnet18": (False, (2, 2, 2, 2), 1),
    "resnet34": (False, (3, 4, 6, 3), 1),
    "resnet50": (True, (3, 4, 6, 3), 1),
    "wide_resnet50_2": (True, (3, 4, 6, 3), 2),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection; `attention` sits after the last norm, before the addition."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int, widen: int, attention: nn.Module | None) -> None:
        super().__init__()
        if widen != 1:
            raise ValueError(f"a basic block cannot be widened (got {widen})")
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention
        self.downsample = shortcut(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = norm_relu(self.bn1, self.relu, convolved(self.conv1, x))
        return joined(self, self.bn2, convolved(self.conv2, y), x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a residual connection; `attention` as in `BasicBlock`."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int, widen: int, attention: nn.Module | None) -> None:
        super().__init__()
        width, outputs = planes * widen, planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.attention = attention
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = norm_relu(self.bn1, self.relu, convolved(self.conv1, x))
        y = norm_relu(self.bn2, self.relu, convolved(self.conv2, y))
        return joined(self, self.bn3, self.conv3(y), x)


def joined(block: BasicBlock | Bottleneck, norm: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """The end of a `block` of x: `norm` of its last convolution y, attention, the residual addition and ReLU."""
    if block.attention is not None:
        y, norm = block.attention(norm(y)), nn.Identity()
    identity = x if block.downsample is None else block.downsample(x)
    return norm_relu(norm, block.relu, y, identity)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """The projection of a residual connection whose shape changes; None where it does not."""
    if stride == 1 and inputs == outputs:
        return None
    return Layers(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(Backbone):
    """Stem and as many of layer1..layer4 as the deepest stride needs; `attention` as in `backbones.build`."""

    def __init__(self, name: str, strides: tuple[int, ...], attention: Attention | None = None) -> None:
        super().__init__(facts_of(name), strides)
        bottleneck, blocks, widen = LAYOUTS[name]
        block = Bottleneck if bottleneck else BasicBlock
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for index, (planes, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True)):
            if 4 << index > strides[-1]:
                break
            layer = nn.Sequential()
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                attended = attention_at(attention, planes * block.expansion, last=position == count - 1)
                layer.append(block(inputs, planes, stride, widen, attended))
                inputs = planes * block.expansion
            self.add_module(f"layer{index + 1}", layer)
        initialise(self)

    def taps(self, normalised: Tensor) -> tuple[Tensor, ...]:
        x = max_pool(self.maxpool, norm_relu(self.bn1, self.relu, self.conv1(normalised)))
        found = []
        for index, stride in enumerate((4, 8, 16, 32)):
            if stride > self.strides[-1]:
                break
            x = getattr(self, f"layer{index + 1}")(x)
            if stride in self.strides:
                found.append(x)
        return tuple(found)


def initialise(network: nn.Module) -> None:
    """He initialisation by fan-out, norms at identity: torchvision's ResNet, and RD4AD's decoder and bottleneck."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
