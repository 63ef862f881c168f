"""Build a backbone by name, with random weights."""

from __future__ import annotations

from kdad_bench.methods.backbones.attention import Attention
from kdad_bench.methods.backbones.backbone import Backbone
from kdad_bench.methods.backbones.efficientnet_lite import EfficientNetLite
from kdad_bench.methods.backbones.names import facts_of
from kdad_bench.methods.backbones.pdn import SIZES, Pdn
from kdad_bench.methods.backbones.resnet import LAYOUTS, ResNet
from kdad_bench.methods.backbones.vgg import Vgg
from kdad_bench.methods.backbones.vit import Vit

DEFAULT_STRIDES = (4, 8, 16)


def build(
    name: str,
    *,
    strides: tuple[int, ...] = DEFAULT_STRIDES,
    attention: Attention | None = None,
    batch_norm: bool = False,
) -> Backbone:
    """A randomly initialised backbone that returns taps at `strides`, of those that it has (4, 8, 16, 32; a ViT 14, a
    patch description network 4); torch's global RNG.

    `attention` is put into a student's blocks; `batch_norm` gives a VGG batch norms (ResNets and EfficientNets have
    them always, ViTs and patch description networks never). Without `attention` and `batch_norm` the state_dict's keys
    are those of the published weights. Raises ValueError for an unknown name or stride, and for attention in a ViT or a
    patch description network.
    """
    if facts_of(name).weights_from == "dinov2":
        if attention is not None:
            raise ValueError(f"{name} takes no attention in its blocks: it has its own")
        return Vit(name, strides)
    if name in SIZES:
        if attention is not None:
            raise ValueError(f"{name} takes no attention: it has no blocks with norms")
        return Pdn(name, strides)
    if name in LAYOUTS:
        return ResNet(name, strides, attention)
    if name == "vgg16":
        return Vgg(name, strides, attention, batch_norm)
    return EfficientNetLite(name, strides, attention)
