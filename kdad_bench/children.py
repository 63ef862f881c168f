"""Processes that this one starts find modules where it finds them, and not first of all in the working folder.

Python puts that folder in front for a program given by `-c` or `-m`, which is how all of them begin: another version of
this package that lies there, or a person's file named as a module of Python, would take the place of what runs here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SAFE, MARK = "PYTHONSAFEPATH", "kdad-bench"  # the variable, and its value where it is ours


def command(*arguments: str) -> list[str]:
    """A program of this Python without the working folder; `search_path` is for its PYTHONPATH."""
    return [sys.executable, "-P", *arguments]


def search_path() -> str:
    """Where this process finds modules, each place in full: an empty one is the working folder, if there is one.

    A place with a separator in its name is left out: PYTHONPATH cannot name it, and its end would be another place.
    """
    places = []
    for place in sys.path:
        with suppress(FileNotFoundError):  # the working folder is gone
            places.append(os.path.abspath(place))
    return os.pathsep.join(place for place in places if os.pathsep not in place)


@contextmanager
def spawning() -> Iterator[None]:
    """Processes that multiprocessing spawns meanwhile begin so; they get `sys.path` from it, and call `spawned`."""
    if os.environ.get(SAFE):
        yield
        return
    os.environ[SAFE] = MARK
    try:
        yield
    finally:
        os.environ.pop(SAFE, None)


def spawned() -> None:
    """In such a process: what it starts in its turn, for a method of others, begins as it always does."""
    if os.environ.get(SAFE) == MARK:
        del os.environ[SAFE]
