"""Code of others in this process: what it prints and what it sets stays with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from kdad_bench.methods.foreign import SHARED, guarded


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
