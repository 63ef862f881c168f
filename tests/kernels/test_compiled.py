"""The compiled part: built from these sources or refused, with a line that says why; loaded without torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from kdad_bench import kernels
from kdad_bench.kernels import compiled, cpp_path

HERE = Path(kernels.__file__).parent
needs_compiled = pytest.mark.skipif(cpp_path.missing() is not None, reason="the C++ library was not built")


def copied(folder: Path) -> Path:
    """A folder with the library and its sources."""
    shutil.copytree(HERE / "cpp", folder / "cpp")
    for file in HERE.glob("_cpp*"):
        shutil.copy(file, folder)
    return folder


def test_a_library_that_was_not_built_is_missing(tmp_path: Path) -> None:
    with pytest.raises(compiled.Missing, match="_cpp was not built"):
        compiled.load(tmp_path)


def test_a_damaged_library_is_missing(tmp_path: Path) -> None:
    (tmp_path / f"_cpp{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    with pytest.raises(compiled.Missing, match="does not load"):
        compiled.load(tmp_path)


@needs_compiled
@pytest.mark.parametrize("change", ["a source", "a header", "one more", "one less"])
def test_a_library_of_other_sources_is_missing(change: str, tmp_path: Path) -> None:
    compiled.load(copied(tmp_path))
    name = {"a source": "counting.cpp", "a header": "cpu.h", "one more": "new.cpp", "one less": "kinds.cpp"}[change]
    if change == "one less":
        (tmp_path / "cpp" / name).unlink()
    else:
        with (tmp_path / "cpp" / name).open("a") as file:
            file.write("// changed\n")
    with pytest.raises(compiled.Missing, match=r"was built from other sources than .*cpp holds"):
        compiled.load(tmp_path)


@needs_compiled
def test_a_library_that_lacks_a_function_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(compiled.SIGNATURES, "kdad_nonsense", (None, []))
    with pytest.raises(compiled.Missing, match="kdad_nonsense"):
        compiled.load(copied(tmp_path))


def test_every_exported_function_has_a_signature_of_as_many_arguments() -> None:
    exported = {}
    for source in compiled.sources(HERE):
        for name, arguments in re.findall(r"EXPORT \w+ (kdad_\w+)\(([^)]*)\)", source.read_text(encoding="utf-8")):
            exported[name] = arguments.count(",") + bool(arguments.strip())
    assert exported == {name: len(arguments) for name, (_, arguments) in compiled.SIGNATURES.items()}


MODULES = ["kdad_bench.kernels", "kdad_bench.kernels.compiled", "kdad_bench.kernels.counting", "kdad_bench.metrics"]


@pytest.mark.parametrize("module", MODULES)
def test_what_the_metrics_need_is_imported_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(str([m for m in ('torch', 'triton', 'scipy') if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_metrics_of_arrays_are_computed_without_torch() -> None:
    code = """
import sys
import numpy as np
from kdad_bench.metrics import image_metrics, pixel_metrics
maps, masks = np.arange(32.0, dtype=np.float32).reshape(2, 4, 4), np.arange(32).reshape(2, 4, 4) > 20
print(pixel_metrics(maps, masks)["pixel_auroc"], image_metrics(maps.max((1, 2)), [0, 1])["image_auroc"])
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["1.0", "1.0"]), done.stderr
