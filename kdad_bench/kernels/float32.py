"""What torch rounds the factors of float32 products and convolutions to: on tensor cores it need not be float32."""

from __future__ import annotations

import os
from typing import Any

import torch

OVERRIDE = "NVIDIA_TF32_OVERRIDE"  # NVIDIA's libraries heed it before any setting: 0 is never, 1 always
UNIT = {"fp32": 2.0**-24, "tf32": 2.0**-11, "bf16": 2.0**-8}  # of rounding
NAMED = {"highest": "fp32", "high": "tf32", "medium": "bf16"}  # torch's settings for all devices
NEW = {"ieee": "fp32", "none": "fp32", "tf32": "tf32", "bf16": "bf16"}  # by backend


def products(device: torch.device) -> str:
    """fp32, tf32 or bf16: what the factors of a matrix product of float32 may be rounded to."""
    if device.type != "cuda":
        return by_name()
    return on_tensor_cores(device, torch.backends.cuda.matmul, torch.backends.cuda.matmul)


def convolutions(device: torch.device) -> str:
    """The same of a convolution. cuDNN takes tf32 unless it is told otherwise; a CPU goes by torch's setting."""
    if device.type != "cuda":
        return by_name()
    return on_tensor_cores(device, getattr(torch.backends.cudnn, "conv", None), torch.backends.cudnn)


def by_name() -> str:
    """By the one setting of all devices; the coarsest where backends were told different things."""
    try:
        return NAMED[torch.get_float32_matmul_precision()]
    except RuntimeError:
        return "bf16"


def on_tensor_cores(device: torch.device, by_backend: Any, by_flag: Any) -> str:
    """fp32 or tf32, by the setting of a backend, or the flag that came before there were such settings."""
    override = os.environ.get(OVERRIDE)
    if torch.cuda.get_device_capability(device) < (8, 0) or override == "0":
        return "fp32"
    if override == "1":
        return "tf32"
    setting = getattr(by_backend, "fp32_precision", None)
    if setting is None:
        return "tf32" if by_flag.allow_tf32 else "fp32"
    return NEW.get(setting, "tf32")
