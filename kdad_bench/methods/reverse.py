"""Reverse distillation's bottleneck embedding and decoder, and its anomaly map (Deng & Li, CVPR 2022).

Any teacher with taps at strides 4, 8, 16 will do: widths are its taps', block types those of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, cat, nn

from kdad_bench.kernels import Layers, anomaly_map
from kdad_bench.methods.backbones import FACTS, Backbone, facts_of
from kdad_bench.methods.backbones.resnet import LAYOUTS, initialise
from kdad_bench.methods.backbones.resnet import BasicBlock as Basic
from kdad_bench.methods.backbones.resnet import Bottleneck as Narrow
from kdad_bench.methods.protocol import Scores
from kdad_bench.methods.training.settings import DistillationSettings, Taps

DEFAULT_BLOCKS = (2, 2, 2, 2)  # families that are no ResNets get ResNet-18's blocks


def halved(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution with stride 2, norm, ReLU."""
    return Layers(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def layout_of(teacher: Backbone) -> tuple[bool, tuple[int, int, int, int], int]:
    """(bottleneck blocks?, blocks per stage, widening) of the teacher's family."""
    return LAYOUTS.get(teacher.name, (False, DEFAULT_BLOCKS, 1))


def in_words(settings: DistillationSettings) -> str:
    """What bottleneck and decoder have of a teacher, or of taps, that reverse distillation's sources do not have."""
    facts = FACTS.get(settings.teacher)
    parts = [] if facts is None or settings.teacher in LAYOUTS else [f"ResNet-18's blocks for {facts.title}'s taps"]
    if settings.taps == "standardised" or (facts is not None and facts.signed):
        parts.append("taps that can be negative are restored before the ReLU")
    return ", ".join(parts)


def three_taps(settings: DistillationSettings) -> str:
    """Why these networks cannot be built on the taps of `settings`, in words; "" if they can."""
    first = settings.strides[0]
    fits = tuple(settings.strides) == (first, 2 * first, 4 * first)
    return "" if fits else "bottleneck and decoder take three taps, each at twice the stride before"


def halved_evenly(settings: DistillationSettings) -> str:
    """Why the decoder would restore taps of other sizes than those of `settings`, in words; "" if it does not."""
    multiple, side = 2 * settings.strides[-1], settings.image_size
    if side % multiple == 0:
        return ""
    below = side // multiple * multiple
    near = f"{below} or {below + multiple}" if below else f"{multiple}"
    return f"must be a multiple of {multiple}, twice the deepest stride, as the bottleneck halves that tap; take {near}"


# of the settings of a method with this bottleneck and decoder
REFUSED: Mapping[str, Callable[[Any], str]] = {"strides": three_taps, "image_size": halved_evenly}


class Fusion(nn.Module):
    """MFF: the shallower taps are convolved down to the size and width of the deepest, and all are concatenated.

    With `fed` 2 each tap comes with as many channels again, those of a second network.
    """

    def __init__(self, teacher: Backbone, fed: int = 1) -> None:
        super().__init__()
        shallow, middle, deep = teacher.channels
        self.shallow = nn.Sequential(halved(fed * shallow, middle), halved(middle, deep))
        self.middle = halved(fed * middle, deep)
        self.outputs = (2 + fed) * deep

    def forward(self, taps: Taps) -> Tensor:
        """Taps at strides 4, 8, 16 -> [N, (2 + fed) C_16, H / 16, W / 16]."""
        return cat([self.shallow(taps[0]), self.middle(taps[1]), taps[2]], dim=1)


class Embedding(nn.Module):
    """OCE: one more residual stage of the teacher's kind, at stride 2; the code from which everything is restored."""

    def __init__(self, teacher: Backbone, inputs: int) -> None:
        super().__init__()
        narrow, blocks, widen = layout_of(teacher)
        block = Narrow if narrow else Basic
        planes = facts_of(teacher.name).channels[32] // block.expansion
        self.blocks = nn.Sequential(
            *(
                block(inputs if k == 0 else planes * block.expansion, planes, 2 if k == 0 else 1, widen, None)
                for k in range(blocks[3])
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H / 16, W / 16] -> [N, C_32, H / 32, W / 32]."""
        code: Tensor = self.blocks(x)
        return code


class Bottleneck(nn.Module):
    """MFF followed by OCE."""

    def __init__(self, teacher: Backbone, fed: int = 1) -> None:
        super().__init__()
        self.fusion = Fusion(teacher, fed)
        self.embedding = Embedding(teacher, self.fusion.outputs)
        initialise(self)

    def forward(self, taps: Taps) -> Tensor:
        code: Tensor = self.embedding(self.fusion(taps))
        return code


class DecoderBlock(nn.Module):
    """A residual block whose first of a stage doubles the resolution by 2x2 transposed convolutions; no last ReLU."""

    def __init__(self, inputs: int, outputs: int, *, double: bool, inner: int | None) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if inner is not None:  # bottleneck: 1x1 before and after
            layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True)]
        wide, width = (inputs, outputs) if inner is None else (inner, inner)
        layers.append(
            nn.ConvTranspose2d(wide, width, 2, 2, bias=False) if double else nn.Conv2d(wide, width, 3, 1, 1, bias=False)
        )
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        last = (
            nn.Conv2d(width, outputs, 3, 1, 1, bias=False)
            if inner is None
            else nn.Conv2d(width, outputs, 1, bias=False)
        )
        layers += [last, nn.BatchNorm2d(outputs)]
        self.layers = Layers(*layers)
        self.shortcut = (
            Layers(nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False), nn.BatchNorm2d(outputs))
            if double
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x) + self.shortcut(x)
        return y


class Decoder(nn.Module):
    """The mirrored ResNet: [N, C_32, H / 32, W / 32] -> taps at strides 4, 8, 16, shallow first.

    Where the teacher's taps can be negative (`signed`) a tap is read before the ReLU that the next stage sees.
    """

    def __init__(self, teacher: Backbone, *, signed: bool) -> None:
        super().__init__()
        narrow, blocks, widen = layout_of(teacher)
        self.signed = signed
        self.relu = nn.ReLU()
        self.stages = nn.ModuleList()
        inputs = facts_of(teacher.name).channels[32]
        for outputs, count in zip(reversed(teacher.channels), blocks[:3], strict=True):
            stage = nn.ModuleList()
            for k in range(count):
                inner = outputs // Narrow.expansion * widen if narrow else None
                stage.append(DecoderBlock(inputs if k == 0 else outputs, outputs, double=k == 0, inner=inner))
            self.stages.append(stage)
            inputs = outputs
        initialise(self)

    def forward(self, code: Tensor) -> Taps:
        x, found = code, []
        for stage in self.stages:
            for block in stage:  # type: ignore[attr-defined]
                y = block(x)
                x = self.relu(y)
            found.append(y if self.signed else x)
        return tuple(reversed(found))


def restoration_scores(teacher: Taps, restored: Taps, size: tuple[int, int], sigma: float) -> Scores:
    """Eq. 3 and RD4AD's official test code: per-pixel 1 - cos, upsampled to `size` with aligned corners, summed over
    scales and blurred by `sigma` px; the image score is the maximum."""
    pixel, image = anomaly_map(
        teacher, restored, size, kind="cosine", mode="sum", align_corners=True, sigma=sigma, border="scipy"
    )
    return Scores(image, pixel)
