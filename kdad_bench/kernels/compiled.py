"""The C++ parts as one ctypes library, refused unless it was built from the sources that lie beside it.

Importing this needs no torch: the metrics use the library without it.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

NAME = "_cpp"
_POINTER, _LONG, _INT, _REAL = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_double
_BYTES = ctypes.c_char_p
_DONE = ctypes.c_bool  # false where memory was short: raises MemoryError

# function -> (what it returns, its arguments), as the C++ sources declare them
SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "kdad_source": (ctypes.c_uint32, []),
    "kdad_use_gomp": (None, [_POINTER]),
    "kdad_sweep": (_DONE, [_BYTES, _INT, _INT, _INT, _POINTER]),
    "kdad_epilogue": (_DONE, [_BYTES, _INT]),
    "kdad_norm_moments": (_DONE, [_POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _INT]),
    "kdad_norm_finish": (None, [_LONG, _LONG, _POINTER, _POINTER, _REAL, *[_POINTER] * 6, _REAL]),
    "kdad_norm_apply": (_DONE, [_POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _REAL, _REAL, _INT]),
    "kdad_norm_sums": (_DONE, [_POINTER, _POINTER, _LONG, _LONG, _POINTER, _REAL, _REAL, _REAL, _POINTER, _INT]),
    "kdad_norm_input_gradient": (_DONE, [*[_POINTER] * 3, _LONG, _LONG, _POINTER, _REAL, _REAL, _INT]),
    "kdad_depthwise_weight_gradient": (_INT, [*[_POINTER] * 3, *[_LONG] * 10, _INT]),
    "kdad_exact_norm": (
        _DONE,
        [*[_POINTER] * 3, _LONG, _LONG, _POINTER, _POINTER, _REAL, _REAL, *[_POINTER] * 3, *[_INT] * 3],
    ),
    "kdad_exact_norm_gradients": (_DONE, [*[_POINTER] * 3, _LONG, _LONG, *[_POINTER] * 6, *[_INT] * 3]),
    "kdad_add_rectified": (_DONE, [_POINTER, _POINTER, _LONG, _INT]),
    "kdad_max_pool": (_DONE, [_POINTER, _POINTER, *[_LONG] * 4, _INT]),
    "kdad_winograd_pays": (_INT, []),
    "kdad_winograd_pack": (_DONE, [_POINTER, *[_LONG] * 6, _INT, _POINTER, _INT]),
    "kdad_winograd": (_DONE, [*[_POINTER] * 4, *[_LONG] * 7, _INT]),
    "kdad_winograd_weight": (_DONE, [*[_POINTER] * 4, *[_LONG] * 11, _INT]),
    "kdad_digest": (_DONE, [_POINTER, _POINTER, _LONG, _POINTER, _INT]),
    "kdad_tabulate": (None, [_POINTER, _LONG, _INT, _LONG, _POINTER, _LONG, _INT, _POINTER]),
    "kdad_count": (_INT, [_POINTER, _LONG, _INT, _POINTER, _LONG, _POINTER, _LONG, _INT, *[_POINTER, _INT, _POINTER]]),
    "kdad_sort_words": (_DONE, [_POINTER, _POINTER, _LONG]),
    "kdad_add_up": (None, [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _INT, _POINTER]),
}


def done(result: bool, function: Any, _arguments: Any) -> None:
    """What ctypes asks after a call that tells whether it had memory. Raises MemoryError if not."""
    if not result:
        raise MemoryError(f"no memory for what {function.__name__} holds while it computes")


class Missing(RuntimeError):
    """The compiled part cannot be used; says why and what to do."""


@cache
def library() -> ctypes.CDLL:
    """The library of this package, loaded once, its functions typed. Raises Missing as `load` does."""
    return load(Path(__file__).parent)


def built(folder: Path = Path(__file__).parent) -> Path | None:
    """The library in `folder`, whether it can be used or not; None if there is none."""
    return next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"{NAME}{suffix}").exists()), None)


def load(folder: Path) -> ctypes.CDLL:
    """The library that setup.py built into `folder` from `sources(folder)`.

    Raises Missing if it was not built, does not load, lacks a function, or was built from other sources than these.
    """
    file = built(folder)
    if file is None:
        raise Missing(
            f"the C++ library {NAME} was not built (no compiler at install?); run `pip install .` with a C++17 compiler"
        )
    try:
        loaded = ctypes.CDLL(str(file))
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
            if result is _DONE:
                function.errcheck = done
    except (OSError, AttributeError) as error:
        raise Missing(f"{file.name} does not load ({error}); reinstall the package") from error
    if loaded.kdad_source() != checksum(sources(folder)):
        raise Missing(f"{file.name} was built from other sources than {folder / 'cpp'} holds; reinstall the package")
    return loaded


def sources(folder: Path) -> list[Path]:
    """The C++ sources and headers in `folder`/cpp, by name."""
    return sorted(path for path in (folder / "cpp").iterdir() if path.suffix in (".cpp", ".h"))


def checksum(files: Sequence[Path]) -> int:
    """What setup.py compiles into the library as KDAD_SOURCE: the CRC-32 of its files, one after the other."""
    value = 0
    for file in files:
        value = zlib.crc32(file.read_bytes(), value)
    return value
