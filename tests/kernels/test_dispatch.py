"""Which path runs, and that no slower one is taken without a word."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdad_bench import kernels
from kdad_bench.cli import doctor
from kdad_bench.kernels import compiled, cpp_path, dispatch, losses, protocol, reference, torch_path
from tests.kernels.checks import GRADIENT_TOLERANCE, assert_same_direction, double, pair


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_told", set())
    monkeypatch.setattr(dispatch, "_broken", {})
    monkeypatch.delenv("KDAD_KERNELS", raising=False)


def test_named_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reference", "torch"):
        monkeypatch.setenv("KDAD_KERNELS", name)
        assert kernels.path() == name
        assert kernels.path("cuda") == name


def test_unknown_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_KERNELS", "fast")
    with pytest.raises(ValueError, match="KDAD_KERNELS='fast' is not one of reference, torch, cpp, triton"):
        kernels.pixel_discrepancy(*pair((1, 2, 2, 2)))


def test_triton_on_a_cpu_is_refused_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        kernels.path("cpu")


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_compiled_kernels_are_refused_off_the_cpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_KERNELS", "cpp")
    with pytest.raises(ValueError, match=f"KDAD_KERNELS=cpp needs CPU tensors; these are on {device}"):
        kernels.path(device)


def test_missing_compiled_kernels_are_reported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_path, "missing", lambda: "the C++ kernels were not built")
    monkeypatch.setattr(compiled, "built", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.path() == "torch"
    monkeypatch.setenv("KDAD_KERNELS", "cpp")
    with pytest.warns(RuntimeWarning, match="the C\\+\\+ kernels were not built; plain PyTorch is used"):
        assert kernels.path() == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.path() == "torch"


def test_compiled_kernels_that_are_there_and_refused_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "_cpp.so was built from other sources than cpp holds; reinstall the package"
    monkeypatch.setattr(cpp_path, "missing", lambda: why)
    monkeypatch.setattr(compiled, "built", lambda: Path("_cpp.so"))
    with pytest.warns(RuntimeWarning, match=f"{why}; plain PyTorch is used"):
        assert kernels.path() == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.path() == "torch"
        found = next(doctor.kernels_found())
    assert (found.what, found.state, found.text) == ("kernels on cpu", "note", f"torch: {why}")
    monkeypatch.setenv("KDAD_KERNELS", "torch")
    assert next(doctor.kernels_found()).state == "ok"


def test_kernel_that_fails_to_compile_is_replaced_with_one_warning_that_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Failing:
        @staticmethod
        def pixel_maps(*_: object) -> None:
            raise RuntimeError("PTXAS error: too many registers\nand more")

    monkeypatch.setattr(dispatch, "path", lambda device="cpu": "triton")
    monkeypatch.setattr(dispatch, "implementation", lambda name: Failing if name == "triton" else torch_path)
    t, s = pair((1, 4, 3, 3))
    with pytest.warns(RuntimeWarning, match="pixel_maps failed \\(RuntimeError: PTXAS error: too many registers\\)"):
        first = kernels.pixel_discrepancy(t, s)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = kernels.pixel_discrepancy(t, s)
    torch.testing.assert_close(first, reference.pixel_discrepancy(t, s))
    torch.testing.assert_close(second, first)
    assert "too many registers" in dispatch.broken()["pixel_maps"]


OPS = sorted(name for name in vars(protocol.Path) if not name.startswith("_"))


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The route of every user who has one: Triton's ops, nothing forced."""
    monkeypatch.setattr(dispatch, "path", lambda device="cpu": "triton")
    monkeypatch.setattr(losses, "is_one", lambda upstream: False)  # nobody asks a GPU


@pytest.mark.parametrize("op", OPS)
def test_what_triton_has_done_is_not_done_again_whatever_it_answers(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    asked: list[str] = []

    def path_that_answers(name: str, answer: object) -> object:
        return SimpleNamespace(**{op: lambda *given: asked.append(name) or answer})

    for answer in (None, "its answer"):
        paths = {"triton": path_that_answers("triton", answer), "torch": path_that_answers("torch", "torch's")}
        monkeypatch.setattr(dispatch, "implementation", paths.__getitem__)
        assert getattr(dispatch.ops_of(torch.zeros(1)), op)(1, 2) == answer
    assert asked == ["triton", "triton"]


LOSSES: dict[str, Callable[..., Tensor]] = {
    "one student": lambda path, t, a, b: path.distillation_loss([t], [a], kind="cosine", weights=(0.5,)),
    "two students": lambda path, t, a, b: path.dual_distillation_loss([t], [a], [b], kind="unit_l2"),
    "flattened": lambda path, t, a, b: path.distillation_loss([t], [a], kind="flattened"),
    "a map": lambda path, t, a, b: path.pixel_discrepancy(t, a, kind="l2").mean(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gradient_is_multiplied_once_by_what_comes_from_above(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    t, a = pair((2, 6, 3, 3), dtype)
    given = (t, a, (t - a).to(dtype))
    factor = 0.0018 if dtype == torch.float32 else 3.0

    def gradients(path: Any, taps: tuple[Tensor, ...]) -> list[Tensor]:
        students = [x.detach().requires_grad_() for x in taps[1:]]
        (factor * LOSSES[name](path, taps[0], *students)).backward()
        return [s.grad for s in students if s.grad is not None]

    found, expected = gradients(kernels, given), gradients(reference, double(*given))
    assert not dispatch.broken()
    for mine, theirs in zip(found, expected, strict=True):
        assert_same_direction(mine, theirs, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError("Triton Error [CUDA]: out of memory")], ids=repr
)
def test_lack_of_memory_is_no_reason_to_change_the_path(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def pixel_maps(*_: object) -> None:
            raise error

    monkeypatch.setattr(dispatch, "path", lambda device="cpu": "triton")
    monkeypatch.setattr(dispatch, "implementation", lambda name: Full)
    with pytest.raises(torch.OutOfMemoryError):
        kernels.pixel_discrepancy(*pair((1, 4, 3, 3)))
    assert dispatch.broken() == {}


def test_float64_takes_the_reference_and_stays_float64() -> None:
    t, s = (x.double() for x in pair((1, 4, 3, 3)))
    assert kernels.pixel_discrepancy(t, s).dtype == torch.float64


def test_importing_the_kernels_does_not_import_triton() -> None:
    code = "import sys, kdad_bench.kernels; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


ENTRANCES = ["from kdad_bench.kernels import pixel_discrepancy", "from kdad_bench.kernels import path"]
ENTRANCES += [f"import kdad_bench.kernels.{module}" for module in ("discrepancy", "losses", "fusion", "ops")]


# each in a process that has torch and nothing of the kernels yet
ENTERED = """
import os, sys
import torch
for entrance in sys.argv[1:]:
    child = os.fork()
    if not child:
        exec(entrance)
        print(entrance, torch.ops.kdad.distillation_loss, torch.ops.kdad.gaussian_blur, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_the_ops_are_registered_whichever_way_the_kernels_are_entered() -> None:
    done = subprocess.run([sys.executable, "-c", ENTERED, *ENTRANCES], capture_output=True, text=True, check=False)
    said = [f"{entrance} kdad.distillation_loss kdad.gaussian_blur" for entrance in ENTRANCES]
    assert done.stdout.splitlines() == said, done.stderr


def test_every_public_name_is_there_when_it_is_asked_for() -> None:
    code = """
import sys
from kdad_bench import kernels
assert "torch" not in sys.modules
assert set(kernels.__all__) <= set(dir(kernels))
from kdad_bench.kernels import *
assert all(callable(globals()[name]) for name in kernels.__all__)
assert kernels.path is path and kernels.path.__module__ == "kdad_bench.kernels.dispatch"
assert not hasattr(kernels, "nonsense")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
