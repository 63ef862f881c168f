"""Compiled parts: built from these sources or refused, with a line that says why."""

from __future__ import annotations

import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from kdad_bench import kernels
from kdad_bench.kernels import compiled, cpp_path

HERE = Path(kernels.__file__).parent
SOURCES = ("cpu.cpp", "training.cpp", "cpu.h")


def test_a_library_that_was_not_built_is_missing(tmp_path: Path) -> None:
    with pytest.raises(compiled.Missing, match="_cpu was not built"):
        compiled.load(tmp_path, "_cpu", SOURCES)


def test_a_damaged_library_is_missing(tmp_path: Path) -> None:
    (tmp_path / f"_cpu{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    with pytest.raises(compiled.Missing, match="does not load"):
        compiled.load(tmp_path, "_cpu", SOURCES)


@pytest.mark.skipif(cpp_path.missing() is not None, reason="no compiled CPU kernels")
def test_a_library_of_other_sources_is_missing(tmp_path: Path) -> None:
    for file in (*HERE.glob("_cpu*"), *(HERE / source for source in SOURCES)):
        shutil.copy(file, tmp_path)
    compiled.load(tmp_path, "_cpu", SOURCES)
    with (tmp_path / "cpu.h").open("a") as header:
        header.write("// changed\n")
    with pytest.raises(compiled.Missing, match=r"was built from other sources than cpu\.cpp, training\.cpp, cpu\.h"):
        compiled.load(tmp_path, "_cpu", SOURCES)
