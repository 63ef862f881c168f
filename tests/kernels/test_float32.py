"""What the factors of float32 products are rounded to, whichever of torch's two ways of saying it was used."""

from __future__ import annotations

import pytest
import torch

from kdad_bench.harness import environment
from kdad_bench.kernels import dispatch, float32, nearest, neighbours

GPU = torch.device("cuda", 0)


pytestmark = pytest.mark.usefixtures("precision_as_it_was")


@pytest.fixture(autouse=True)
def a_gpu_that_knows_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(float32.OVERRIDE, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


def both() -> tuple[str, str]:
    return float32.products(GPU), float32.convolutions(GPU)


def test_by_default_convolutions_alone_are_rounded() -> None:
    assert both() == ("fp32", "tf32")
    assert float32.products(torch.device("cpu")) == float32.convolutions(torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_the_setting_of_all_devices_is_heard(setting: str) -> None:
    torch.set_float32_matmul_precision(setting)
    assert both() == ("tf32", "tf32")
    assert float32.products(torch.device("cpu")) == {"high": "tf32", "medium": "bf16"}[setting]


def test_the_setting_of_a_backend_is_heard_where_the_flags_raise() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with pytest.raises(RuntimeError):
        assert torch.backends.cuda.matmul.allow_tf32
    assert both() == ("tf32", "fp32")
    nearest(torch.rand(3, 2), torch.rand(4, 2))  # a CPU cannot ask the setting of all devices either


@pytest.mark.parametrize(("override", "expected"), [("0", "fp32"), ("1", "tf32")])
def test_the_libraries_own_switch_comes_first(override: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high" if override == "0" else "highest")
    monkeypatch.setenv(float32.OVERRIDE, override)
    assert both() == (expected, expected)


def test_a_gpu_without_tf32_rounds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    torch.set_float32_matmul_precision("high")
    assert both() == ("fp32", "fp32")


def test_the_flags_of_an_older_torch_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in (True, False):
        old = type("Flags", (), {"allow_tf32": flag})
        assert (
            float32.on_tensor_cores(GPU, None, old)
            == float32.on_tensor_cores(GPU, old, old)
            == ("tf32" if flag else "fp32")
        )


def test_a_row_says_what_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    said = environment.describe("cuda:0")["environment"]
    assert (said["tf32"], said["cudnn_tf32"]) == (False, True)
    said = environment.describe("cpu")["environment"]
    assert (said["tf32"], said["cudnn_tf32"]) == (False, False)


def test_a_row_says_which_kernels_were_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(dispatch, "_broken", {})
    monkeypatch.setattr(dispatch, "_told", set())
    monkeypatch.delenv("KDAD_KERNELS", raising=False)
    assert "kernels_replaced" not in environment.describe("cuda:0")["environment"]

    def fails() -> None:
        raise RuntimeError("PTXAS error")

    with pytest.warns(RuntimeWarning, match="anomaly_map failed"):
        dispatch.attempted("anomaly_map", fails)
    said = environment.describe("cuda:0")["environment"]
    assert said["kernels_replaced"] == {"anomaly_map": "RuntimeError: PTXAS error"}
    assert "kernels_replaced" not in environment.describe("cpu")["environment"]


def test_the_search_goes_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(float32, "products", lambda device: asked.append(device) or "tf32")
    neighbours.blocked(torch.rand(3, 2), torch.rand(4, 2))
    assert asked == [torch.device("cpu")]
