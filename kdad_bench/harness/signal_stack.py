"""The stack that signals are handled on, which some libraries exchange and then give back in the wrong order."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """This thread handles signals on the same stack afterwards as before; nothing but Linux has to be told.

    Each model that OpenVINO compiles brings a stack and puts back, when it goes, the one that it found. Of two models
    that found one another's, the older goes first, the younger puts back a stack that is no more, and the next signal,
    Ctrl-C say, ends the process with a segmentation fault. A model that was compiled in here found the process's own.
    """
    if sys.platform != "linux":
        yield
        return
    exchange = ctypes.CDLL(None).sigaltstack
    before = Stack()
    exchange(None, ctypes.byref(before))
    try:
        yield
    finally:
        exchange(ctypes.byref(before), None)
