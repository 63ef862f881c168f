"""The ground floor: discrepancy, scale fusion and smoothing, forward and backward. Tensors in, tensors out.

The functions are imported when one is first asked for: `kernels.counting`, which the metrics use, costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdad_bench.kernels.discrepancy import (
        attention_weighting,
        attention_weightings,
        dual_discrepancies,
        dual_discrepancy,
        flattened_cosine,
        pixel_discrepancies,
        pixel_discrepancy,
    )
    from kdad_bench.kernels.dispatch import path
    from kdad_bench.kernels.fusion import anomaly_map, fuse_scales, gaussian_blur, image_scores
    from kdad_bench.kernels.layers import depthwise_same, inference_conv, norm_clamp, pointwise_norm_clamp
    from kdad_bench.kernels.losses import distillation_loss, dual_distillation_loss
    from kdad_bench.kernels.neighbours import nearest
    from kdad_bench.kernels.residual import Layers, max_pool, norm_relu
    from kdad_bench.kernels.winograd import convolved

__all__ = [
    "Layers",
    "anomaly_map",
    "attention_weighting",
    "attention_weightings",
    "convolved",
    "depthwise_same",
    "distillation_loss",
    "dual_discrepancies",
    "dual_discrepancy",
    "dual_distillation_loss",
    "flattened_cosine",
    "fuse_scales",
    "gaussian_blur",
    "image_scores",
    "inference_conv",
    "max_pool",
    "nearest",
    "norm_clamp",
    "norm_relu",
    "path",
    "pixel_discrepancies",
    "pixel_discrepancy",
    "pointwise_norm_clamp",
]


_MODULES = ("discrepancy", "dispatch", "fusion", "layers", "losses", "neighbours", "residual", "winograd")


def __getattr__(name: str) -> Any:
    """A public function, from the module that has it."""
    if name in __all__:
        for module in (import_module(f"{__name__}.{one}") for one in _MODULES):
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
