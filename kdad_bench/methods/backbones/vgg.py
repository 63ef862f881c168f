"""VGG-16 (Simonyan & Zisserman, ICLR 2015), configuration D, with torchvision's keys (`features.N`).

Taps: the outputs of the poolings 2 to 5 (strides 4, 8, 16, 32), the critical layers of MKD's code.
"""

from __future__ import annotations

from torch import Tensor, nn

from kdad_bench.kernels import Layers
from kdad_bench.methods.backbones.attention import Attention, attention_at
from kdad_bench.methods.backbones.backbone import Backbone
from kdad_bench.methods.backbones.names import facts_of
from kdad_bench.methods.backbones.resnet import initialise

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and convolutions between poolings


class Vgg(Backbone):
    """The convolutional trunk; a student's has batch norms (vgg16_bn's layout), as it learns from random weights."""

    def __init__(
        self, name: str, strides: tuple[int, ...], attention: Attention | None = None, batch_norm: bool = False
    ) -> None:
        super().__init__(facts_of(name), strides)
        self.features = Layers()
        self.ends: list[int] = []  # index after each pooling
        inputs = 3
        for index, (width, count) in enumerate(STAGES):
            if 2 << index > strides[-1]:
                break
            for position in range(count):
                self.features.append(nn.Conv2d(inputs, width, 3, padding=1))
                if batch_norm:
                    self.features.append(nn.BatchNorm2d(width))
                attended = attention_at(attention, width, last=position == count - 1)
                if attended is not None:
                    self.features.append(attended)
                self.features.append(nn.ReLU(inplace=True))
                inputs = width
            self.features.append(nn.MaxPool2d(2))
            self.ends.append(len(self.features))
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def taps(self, normalised: Tensor) -> tuple[Tensor, ...]:
        x, start, found = normalised, 0, []
        for index, end in enumerate(self.ends):
            x = self.features[start:end](x)
            start = end
            if 2 << index in self.strides:
                found.append(x)
        return tuple(found)
