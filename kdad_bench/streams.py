"""The standard streams: their numbers lead somewhere, and what is said there costs nobody a result."""

from __future__ import annotations

import errno
import io
import os
import sys

STDERR = 2
GONE = frozenset({errno.EIO, errno.ENXIO})  # from a terminal that nobody holds any more


def hold() -> None:
    """Have a standard stream that is closed, as daemons begin with, lead nowhere, here and in processes started later.

    The next file, pipe or lock that is opened would get its number, and what a library prints would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            silence(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


def silence(descriptor: int) -> None:
    """Have `descriptor` lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    os.set_inheritable(descriptor, True)


class Lasting(io.FileIO):
    """Output to a file descriptor that becomes output to nowhere once its terminal, or who read it there, is gone.

    stderr is a log: what it cannot take is dropped.
    """

    hung_up = False  # whether the end of the terminal was told

    def write(self, content: object) -> int:
        """Write, or drop what nobody can read; raises OSError for anything but a terminal that went away, of stdout."""
        try:
            return super().write(content)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno in GONE or (error.errno == errno.EPIPE and Lasting.hung_up):
                silence(self.fileno())
                return super().write(content)  # type: ignore[arg-type]
            if self.fileno() != STDERR:
                raise
            return memoryview(content).nbytes  # type: ignore[arg-type]


def lasting(stream: object, descriptor: int) -> io.TextIOWrapper:
    """`stream` made to last, if it is the process's own output at `descriptor`; any other as it is."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # type: ignore[return-value]
    try:
        if stream.fileno() != descriptor or isinstance(getattr(stream.buffer, "raw", None), Lasting):
            return stream
        stream.flush()
    except (OSError, ValueError):  # no file, or closed
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(Lasting(descriptor, "wb", closefd=False)),
        encoding=stream.encoding, errors=stream.errors, line_buffering=True,
    )  # fmt: skip
