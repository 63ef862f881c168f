"""torchvision without its compiled operators, which fit one build of PyTorch only: its networks need none of them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

DECLARED = ("nms", "qnms")  # operators that torchvision asks for while it is imported; no network calls them
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def torchvision() -> ModuleType:
    """The module, with its operators at least declared; skips the test that asks where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        if "torchvision::" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in DECLARED:
        torch.library.define(f"torchvision::{operator}", SIGNATURE)
    return importlib.import_module("torchvision")
