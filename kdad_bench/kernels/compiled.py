"""The C++ parts as ctypes libraries, refused unless they were built from the sources that lie beside them."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path


class Missing(RuntimeError):
    """A compiled part cannot be used; says why and what to do."""


def load(folder: Path, name: str, sources: Sequence[str]) -> ctypes.CDLL:
    """The library `name` of `folder`, built by setup.py from the files `sources` of the same folder.

    Raises Missing if it was not built, does not load, or was built from sources other than these.
    """
    built = next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"{name}{suffix}").exists()), None)
    if built is None:
        raise Missing(
            f"the C++ library {name} was not built (no compiler at install?); run `pip install .` with a C++17 compiler"
        )
    try:
        loaded = ctypes.CDLL(str(built))
        made_from = loaded.kdad_source
    except (OSError, AttributeError) as error:
        raise Missing(f"{built.name} does not load ({error}); reinstall the package") from error
    made_from.restype = ctypes.c_uint32
    if made_from() != checksum([folder / source for source in sources]):
        raise Missing(f"{built.name} was built from other sources than {', '.join(sources)}; reinstall the package")
    return loaded


def checksum(files: Sequence[Path]) -> int:
    """What setup.py compiles into a library as KDAD_SOURCE: the CRC-32 of its files, one after the other."""
    value = 0
    for file in files:
        value = zlib.crc32(file.read_bytes(), value)
    return value
