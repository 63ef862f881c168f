"""A run outlives its terminal: what is said after it went away is said to nobody."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from kdad_bench.streams import Lasting, lasting, silence


@contextlib.contextmanager
def outlived() -> Iterator[None]:
    """Inside, the end of the terminal (SIGHUP, writes that fail) stops nothing; `nohup` is left as it is."""
    own = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting(sys.stdout, 1), lasting(sys.stderr, 2)
    before = signal.getsignal(signal.SIGHUP)
    try:
        if before is not signal.SIG_IGN:
            with contextlib.suppress(ValueError):  # not in the main thread: signals are not ours
                signal.signal(signal.SIGHUP, hang_up)
        yield
    finally:
        for stream, old in zip((sys.stdout, sys.stderr), own, strict=True):
            if stream is not old:
                stream.flush()
        sys.stdout, sys.stderr = own
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGHUP, before)


def hang_up(number: int, frame: FrameType | None) -> None:
    """SIGHUP: the terminal is gone."""
    Lasting.hung_up = True
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(descriptor):
                silence(descriptor)
