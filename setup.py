"""Builds the optional C++ library; everything else is in pyproject.toml. No compiler, plain Python paths, no error."""

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
KERNELS = HERE / "kdad_bench" / "kernels"
# the package's own functions, which read the library back; the package itself may not be importable yet
compiled = runpy.run_path(str(KERNELS / "compiled.py"))
files = compiled["sources"](KERNELS)


setup(
    ext_modules=[
        Extension(  # loaded with ctypes: no Python headers are needed
            f"kdad_bench.kernels.{compiled['NAME']}",
            [str(file.relative_to(HERE)) for file in files if file.suffix == ".cpp"],
            depends=[str(file.relative_to(HERE)) for file in files if file.suffix == ".h"],
            define_macros=[("KDAD_SOURCE", f"{compiled['checksum'](files)}u")],
            language="c++",
            extra_compile_args=FLAGS,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildWithFallback},
)
