"""What code of others can set in this process for whoever comes after it, and how that is put back.

What belongs to torch adds `kdad_bench.methods.foreign` to it, once that is imported.
"""

from __future__ import annotations

import gc
import io
import locale
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageFile

from kdad_bench.interrupts import AT_ONCE, Interrupted, Terminated, by_a_person


def set_environment(variables: Mapping[str, str]) -> None:
    """These variables and no others."""
    os.environ.clear()
    os.environ.update(variables)


def current_folder() -> str:
    """The folder that this process is in; nothing where it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def go_to(folder: str) -> None:
    """Back to a `current_folder`, if that is still there."""
    if folder:
        with suppress(FileNotFoundError):
            os.chdir(folder)


def set_search_path(places: list[str]) -> None:
    """These places first, in the list that is there, as others hold it. New ones stay behind them, where they hide no
    module: libraries add some for themselves as they are imported, and look there later."""
    sys.path[:] = [*places, *(place for place in sys.path if place not in places)]


def filters() -> tuple[list[Any], Any]:
    """Which warnings are shown, and how."""
    return list(warnings.filters), warnings.showwarning


def set_filters(kept: tuple[list[Any], Any]) -> None:
    """As `filters` gave them."""
    warnings.filters[:], warnings.showwarning = kept  # type: ignore[index]  # a list, whatever its stubs say
    with warnings.catch_warnings():  # on its way out what was remembered of the filters is forgotten
        pass


def handlers() -> tuple[dict[int, Any], set[int], bool]:
    """What is done at each signal, which ones wait, and whether an alarm is set."""
    known = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
    waiting = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
    return known, waiting, signal.getitimer(signal.ITIMER_REAL)[0] > 0


def set_handlers(kept: tuple[dict[int, Any], set[int], bool]) -> None:
    """As `handlers` gave them; a handler that Python did not set cannot be set by it, nor one outside of the main
    thread."""
    known, waiting, alarm = kept
    if not alarm:
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in known.items() if in_main_thread() else ():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def in_main_thread() -> bool:
    """Whether this is the thread that signals interrupt."""
    return threading.current_thread() is threading.main_thread()


def umask() -> int:
    """Which permissions new files lack; it is told only to who sets it."""
    now = os.umask(0o077)
    os.umask(now)
    return now


def set_streams(kept: tuple[Any, Any]) -> None:
    """stdout and stderr."""
    sys.stdout, sys.stderr = kept


def set_collection(kept: tuple[bool, tuple[int, int, int]]) -> None:
    """Of objects in circles: whether, and how often."""
    (gc.enable if kept[0] else gc.disable)()
    gc.set_threshold(*kept[1])


def set_numpy_errors(kept: tuple[dict[str, Any], Any]) -> None:
    """What NumPy does at 0 / 0, and whom it calls."""
    np.seterr(**kept[0])
    np.seterrcall(kept[1])


def set_pictures(kept: tuple[bool, int | None]) -> None:
    """Whether Pillow takes cut pictures for whole, and of how many pixels it refuses one."""
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = kept


class Escaped(RuntimeError):
    """Code of others raised what would end this process: SystemExit, say. That is its cause."""


ENVIRONMENT = "environment variables"
SEARCH_PATH = "where modules are looked for"
FILTERS = "which warnings are shown"
SIGNALS = "what is done at signals"
FILTERING = threading.RLock()  # whoever sets filters for a while holds it: they are one for all threads
LOADED = (ENVIRONMENT, SEARCH_PATH)  # what a module may set for good as it is imported: libraries read them later
LATE = (FILTERS, SEARCH_PATH)  # what libraries set in the middle of a job, as they are imported there

# what code of others shares with whatever runs beside and after it -> how it is asked for, and put back
SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "numpy's random state": (np.random.get_state, np.random.set_state),
    "Python's random state": (random.getstate, random.setstate),
    "numpy's errors": (lambda: (np.geterr(), np.geterrcall()), set_numpy_errors),
    "how Pillow reads pictures": (
        lambda: (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS),
        set_pictures,
    ),
    "the current folder": (current_folder, go_to),
    ENVIRONMENT: (lambda: dict(os.environ), set_environment),
    SEARCH_PATH: (lambda: list(sys.path), set_search_path),
    FILTERS: (filters, set_filters),
    SIGNALS: (handlers, set_handlers),
    "the locale": (
        lambda: locale.setlocale(locale.LC_ALL),
        lambda kept: locale.setlocale(locale.LC_ALL, kept),
    ),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "the collection of garbage": (lambda: (gc.isenabled(), gc.get_threshold()), set_collection),
    "the permissions of new files": (umask, os.umask),
    "stdout and stderr": (lambda: (sys.stdout, sys.stderr), set_streams),
}


@contextmanager
def process_as_it_was(but: Collection[str] = ()) -> Iterator[list[str]]:
    """Puts back whatever of SHARED, `but` for some, was changed inside; its names are then in what is given.

    Where a person ends it by a signal, what is done at the next one stays as the first has set it. What cannot be put
    back keeps nothing else from it, and is a warning.
    """
    moved: list[str] = []
    shared = {name: one for name, one in SHARED.items() if name not in but}
    before = {name: ask() for name, (ask, _) in shared.items()}
    try:
        yield moved
    except (Interrupted, Terminated):
        shared.pop(SIGNALS, None)
        raise
    finally:
        moved += [name for name, (ask, _) in shared.items() if not same(ask(), before[name])]
        failed = []
        for name in moved:
            try:
                SHARED[name][1](before[name])
            except Exception as error:  # what is behind it is still to be put back
                failed.append(f"{name} ({type(error).__name__}: {error})")
        if failed:
            warnings.warn(f"not as it was before somebody's code: {', '.join(failed)}", stacklevel=2)


def same(one: Any, other: Any) -> bool:
    """Whether two values of SHARED are alike; arrays have no single answer to that."""
    try:
        return bool(one == other)
    except ValueError:
        return pickle.dumps(one) == pickle.dumps(other)


class Aside(io.TextIOBase):
    """Writes to stderr, as far as that takes it; whoever closes it closes nothing else."""

    def write(self, text: str) -> int:
        """The number of letters that were given."""
        with suppress(OSError, ValueError):  # a full disk, a reader who left, closed
            if sys.stderr is not None:
                sys.stderr.write(text)
        return len(text)


WAYS_OUT: dict[str, Callable[..., NoReturn]] = {"_exit": AT_ONCE, "abort": os.abort}


@contextmanager
def no_way_out() -> Iterator[None]:
    """Inside, `os._exit` and `os.abort` raise a SystemExit that names them: others' work would end with this process,
    and without a word. Processes that are forked off inside end as they like."""
    this = os.getpid()

    def raising(name: str, real: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
        def instead(*code: Any, **named: Any) -> NoReturn:
            if os.getpid() != this:
                real(*code, **named)
            raise SystemExit(f"os.{name}({', '.join(map(str, (*code, *named.values())))})")

        return instead

    before = {name: getattr(os, name) for name in WAYS_OUT}  # those of a block around this one, maybe
    for name, real in WAYS_OUT.items():
        setattr(os, name, raising(name, real))
    try:
        yield
    finally:
        for name, one in before.items():
            setattr(os, name, one)


@contextmanager
def aside(but: Collection[str] = ()) -> Iterator[None]:
    """Inside, code of others runs: what it prints goes to stderr, as stdout is for answers; what it sets is put
    back."""
    with process_as_it_was(but), redirect_stdout(Aside()), no_way_out():
        yield


@contextmanager
def kept_from_escaping() -> Iterator[None]:
    """Inside, code of others runs: what it raises is an Exception, whatever its class. Raises Escaped."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or by_a_person(error):
            raise
        raise Escaped(f"somebody's code raised {type(error).__name__}: {error}") from error


def loading() -> AbstractContextManager[None]:
    """`aside` for a module of others that is imported: it may set LOADED for good."""
    return aside(LOADED)
