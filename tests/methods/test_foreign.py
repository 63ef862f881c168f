"""Code of others in this process: what it prints and what it sets stays with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdad_bench.methods.foreign import SHARED, guarded, process_as_it_was

pytestmark = pytest.mark.usefixtures("precision_as_it_was")


def test_prints_go_to_stderr_and_whoever_closes_stdout_closes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        exec("print('theirs')")
        sys.stdout.close()
    exec("print('ours')")
    with guarded():
        exec("print('again')")
    assert capsys.readouterr() == ("ours\n", "theirs\nagain\n")


def spoil(folder: Path) -> None:
    """Set all that a process shares, and fail."""
    os.chdir(folder)
    del os.environ["KEPT"]
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.rand(3)
    raise ZeroDivisionError


def test_what_was_set_is_put_back_where_an_error_ends_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    before = {name: str(ask()) for name, (ask, _) in SHARED.items()}
    with pytest.raises(ZeroDivisionError), guarded():
        spoil(tmp_path)
    assert {name: str(ask()) for name, (ask, _) in SHARED.items()} == before


BACKENDS: Any = torch.backends  # its stubs lack most of it
PLACES = (
    ("generic", "all"), ("cuda", "all"), ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
    ("mkldnn", "all"), ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
)  # fmt: skip


def kept() -> dict[tuple[str, str], str]:
    """What torch itself goes by."""
    return {place: torch._C._get_fp32_precision_getter(*place) for place in PLACES}


def new(where: object, setting: str) -> Callable[[], None]:
    return lambda: setattr(where, "fp32_precision", setting)


def flag(where: object, value: bool) -> Callable[[], None]:
    return lambda: setattr(where, "allow_tf32", value)


WAYS: dict[str, Callable[[], object]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "products may be tf32": flag(BACKENDS.cuda.matmul, True),
    "convolutions may not": flag(BACKENDS.cudnn, False),
    "all tf32": new(BACKENDS, "tf32"),
    "all ieee": new(BACKENDS, "ieee"),
    "cuDNN ieee": new(BACKENDS.cudnn, "ieee"),
    "cuDNN tf32": new(BACKENDS.cudnn, "tf32"),
    "CUDA products tf32": new(BACKENDS.cuda.matmul, "tf32"),
    "CUDA convolutions ieee": new(BACKENDS.cudnn.conv, "ieee"),
    "oneDNN products bf16": new(BACKENDS.mkldnn.matmul, "bf16"),
    "oneDNN, by all": new(BACKENDS.mkldnn, "bf16"),
}
CONTRADICTING = ("all tf32", "CUDA products tf32", "oneDNN products bf16")  # of which the older ways know nothing


@pytest.mark.parametrize("inside", WAYS)
def test_a_precision_set_inside_is_put_back(inside: str) -> None:
    before = kept()
    with process_as_it_was() as moved:
        WAYS[inside]()
        changed = kept() != before
    assert kept() == before
    assert moved == (["the precision of products"] if changed else [])
    assert torch.get_float32_matmul_precision() == "highest"
    assert BACKENDS.cudnn.allow_tf32
    assert not BACKENDS.cuda.matmul.allow_tf32


@pytest.mark.parametrize("outside", CONTRADICTING)
@pytest.mark.parametrize("inside", WAYS)
def test_a_precision_that_torch_refuses_to_tell_fails_nothing(inside: str, outside: str) -> None:
    WAYS[outside]()
    with pytest.raises(RuntimeError):
        torch.get_float32_matmul_precision()
    before = kept()
    with guarded():
        WAYS[inside]()
    assert kept() == before


def test_what_went_by_all_devices_goes_by_them_again() -> None:
    BACKENDS.fp32_precision = "tf32"
    with guarded():
        BACKENDS.cudnn.rnn.fp32_precision = "ieee"
        BACKENDS.cuda.matmul.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "tf32"
    BACKENDS.fp32_precision = "none"
    assert BACKENDS.cuda.matmul.fp32_precision == "none"


def test_that_algorithms_only_warn_is_put_back() -> None:
    before = torch.get_deterministic_debug_mode()
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with process_as_it_was() as moved:
            torch.use_deterministic_algorithms(True)
        assert moved == ["whether algorithms are deterministic"]
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_deterministic_debug_mode(before)
