"""How a command ends when it does not end by itself: Ctrl-C, TERM, a reader who left, an error nobody expected."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click

from kdad_bench import __version__, streams
from kdad_bench.harness.plain_warnings import say_plainly
from kdad_bench.interrupts import AT_ONCE, Interrupted, Terminated

SHOW_CURSOR = b"\x1b[?25h"
MOST_LETTERS = 500  # of an error's text in its one line; the report has all of it


@contextlib.contextmanager
def orderly() -> Iterator[None]:
    """Inside, whatever ends the process leaves one line, an exit code and no traceback, and a warning is a line."""
    streams.hold()
    sys.stderr = streams.lasting(sys.stderr, streams.STDERR)  # an exit code is told whatever becomes of the words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows \xb1 for a plus-minus sign
    say_plainly()
    for number, handler in ((signal.SIGINT, first_interrupt), (signal.SIGTERM, terminate)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell sets it for what runs in its background
            signal.signal(number, handler)
    try:
        yield
    except KeyboardInterrupt:
        leave(130, "stopped by Ctrl-C")
    except Terminated as error:
        leave(143, "; ".join(["stopped by TERM", *getattr(error, "__notes__", ())]))
    except Exception as error:  # the one place that catches everything
        leave(1, said_of(error))


def leave(code: int, words: str) -> None:
    """Say why, and exit."""
    with contextlib.suppress(OSError, ValueError):  # nobody may be there to read it
        click.echo(f"kdad-bench: {words}", err=True)
    sys.exit(code)


def first_interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C: what runs puts itself in order; a second one waits for nothing."""
    signal.signal(signal.SIGINT, second_interrupt)
    raise Interrupted


def second_interrupt(number: int, frame: FrameType | None) -> None:
    """The process ends here and now, with a word; what was written is whole, its workers end with it."""
    with contextlib.suppress(OSError):
        os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + b"\nkdad-bench: stopped at once\n")
    AT_ONCE(130)


def terminate(number: int, frame: FrameType | None) -> None:
    """TERM: once; the next ends the process as it ends any other."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise Terminated


def reader_left() -> bool:
    """Whether nobody reads stdout any more: `| head` has seen enough."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # no stdout, or one that is no file
        return False


def silence_stdout() -> None:
    """What is still buffered has no place any more."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def said_of(error: Exception) -> str:
    """One line on an error that nobody expected, with the file that holds its traceback."""
    last = traceback.format_exception_only(error)[-1]
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in last).split())[:MOST_LETTERS]
    try:
        path = written(report_of(error))
    except OSError as problem:
        return f"unexpected {line} (no report could be written: {problem.strerror})"
    return f"unexpected {line}; the report is {path}"


def report_of(error: Exception) -> str:
    """What a person who mends this needs."""
    about = {
        "command": " ".join(map(ascii, sys.argv[1:])),
        "kdad-bench": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    head = "".join(f"{name}: {value}\n" for name, value in about.items())
    return f"{head}\n{''.join(traceback.format_exception(error))}"


def written(text: str) -> Path:
    """The new file that holds `text`: in the cache folder, else in the system's folder for such things."""
    from kdad_bench.files import CacheError, cache_folder, write_bytes_whole

    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    content = text.encode("utf-8", "backslashreplace")
    try:
        path = cache_folder() / "reports" / name
        write_bytes_whole(path, content)
    except (OSError, CacheError):
        path = Path(tempfile.gettempdir()) / f"kdad-bench-{name}"
        write_bytes_whole(path, content)
    return path
