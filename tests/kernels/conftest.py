"""Without a GPU the Triton kernels run in Triton's interpreter, on CPU tensors; with one, on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import torch

from kdad_bench.kernels import cpp_path
from tests.kernels import interpreter

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    if interpreter.needs_remedy():
        interpreter.remedy()

from tests.kernels.guards import Guards

PATHS = [
    pytest.param("cpp", marks=pytest.mark.skipif(cpp_path.missing() is not None, reason="no compiled CPU kernels")),
    "torch",
    "triton",
]


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every implementation in turn."""
    monkeypatch.setenv("KDAD_KERNELS", request.param)
    return str(request.param)


@pytest.fixture
def device(path: str) -> torch.device:
    """Where `path` can run."""
    return torch.device("cuda" if path == "triton" and torch.cuda.is_available() else "cpu")


@pytest.fixture
def guards(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guards]:
    """Canaries around every tensor allocated during the test; checked at its end."""
    watched = Guards(monkeypatch)
    yield watched
    assert path == "torch" or watched.watched, "no allocation was watched"
    watched.check()


@pytest.fixture
def cpp(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The compiled CPU kernels, or a skip."""
    if cpp_path.missing() is not None:
        pytest.skip("no compiled CPU kernels")
    monkeypatch.setenv("KDAD_KERNELS", "cpp")
    return lambda: None


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What PyTorch rounds depends on the number of threads: one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
