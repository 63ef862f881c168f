"""Backbones for teachers and students. The names are free of torch; the rest loads it on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdad_bench.methods.backbones.names import BACKBONES, FACTS, PYRAMIDS, BackboneFacts, facts_of

if TYPE_CHECKING:
    from kdad_bench.methods.backbones.attention import Attention, Cbam, Eca
    from kdad_bench.methods.backbones.backbone import Backbone
    from kdad_bench.methods.backbones.family import build

__all__ = [
    "BACKBONES",
    "FACTS",
    "PYRAMIDS",
    "Attention",
    "Backbone",
    "BackboneFacts",
    "Cbam",
    "Eca",
    "build",
    "facts_of",
]

_LAZY = {
    "Attention": "attention",
    "Backbone": "backbone",
    "Cbam": "attention",
    "Eca": "attention",
    "build": "family",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
