"""A remedy for Triton's interpreter with a numpy newer than it knows; nothing here touches a GPU.

numpy 2.4 turned `int(array)` of a one-element array with dimensions from a warning into a TypeError. Triton 3.6
does that wherever a kernel uses a scalar as a Python number, as in `range(0, n, BLOCK)`, so that loops over an argument
fail with "only 0-dimensional arrays can be converted to Python scalars". Triton 3.9 squeezes
first; so does this.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any


def needs_remedy() -> bool:
    """Whether the installed Triton and numpy disagree."""
    if find_spec("triton") is None:
        return False
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    return triton < (3, 9) and numpy >= (2, 4)


def remedy() -> None:
    """Let a tensor of one element be a Python number again, in the interpreter only."""
    from triton.runtime import interpreter

    plain = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched
