"""A run outlives its terminal: what is said after it went away is said to nobody."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

GONE = frozenset({errno.EIO, errno.ENXIO})  # from a terminal that nobody holds any more


class Lasting(io.FileIO):
    """Output to a file descriptor that becomes output to nowhere once its terminal, or who read it there, is gone."""

    hung_up = False  # whether the end of the terminal was told

    def write(self, content: object) -> int:
        """Write, or drop what nobody can read; raises OSError for anything but a terminal that went away."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in GONE and not (error.errno == errno.EPIPE and Lasting.hung_up):
                raise
            silence(self.fileno())
            return super().write(content)  # type: ignore[arg-type]


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


def lasting(stream: object, descriptor: int) -> io.TextIOWrapper:
    """`stream` made to last, if it is the process's own output at `descriptor`; any other as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # type: ignore[return-value]
    try:
        if stream.fileno() != descriptor:
            return stream
        stream.flush()
    except (OSError, ValueError):  # no file, or closed
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(Lasting(descriptor, "wb", closefd=False)),
        encoding=stream.encoding, errors=stream.errors, line_buffering=True,
    )  # fmt: skip


def hang_up(number: int, frame: FrameType | None) -> None:
    """SIGHUP: the terminal is gone."""
    Lasting.hung_up = True
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            if os.isatty(descriptor):
                silence(descriptor)


def silence(descriptor: int) -> None:
    """Have `descriptor` lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
