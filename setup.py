"""Builds the optional C++ parts; everything else is in pyproject.toml. No compiler, plain Python paths, no error."""

from __future__ import annotations

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FLAGS = ["-O3", "-std=c++17", "-fvisibility=hidden"]
# Sums may be reordered into lanes; NaN and infinity keep their meaning.
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-ffp-contract=fast"]


class BuildWithFallback(build_ext):
    """Tries one copy of each loop per instruction set first;
    compilers that cannot do that build for the plain machine.
    """

    def build_extension(self, extension: Extension) -> None:
        try:
            super().build_extension(extension)
        except CompileError:
            extension.define_macros.append(("KDAD_NO_CLONES", "1"))
            super().build_extension(extension)


HERE = Path(__file__).parent
# the package's own function, which reads it back; the package itself may not be importable yet
checksum = runpy.run_path(str(HERE / "kdad_bench" / "kernels" / "compiled.py"))["checksum"]


setup(
    ext_modules=[
        Extension(
            name,
            sources,
            depends=depends,
            define_macros=[("KDAD_SOURCE", f"{checksum([HERE / file for file in sources + depends])}u")],
            language="c++",
            extra_compile_args=FLAGS,
            optional=True,
        )
        for name, sources, depends in (  # loaded with ctypes: no Python headers are needed
            (
                "kdad_bench.kernels._cpu",
                ["kdad_bench/kernels/cpu.cpp", "kdad_bench/kernels/training.cpp"],
                ["kdad_bench/kernels/cpu.h"],
            ),
            ("kdad_bench.kernels._counting", ["kdad_bench/kernels/counting.cpp"], []),
        )
    ],
    cmdclass={"build_ext": BuildWithFallback},
)
