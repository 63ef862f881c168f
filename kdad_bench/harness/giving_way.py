"""Threads that wait for each other sleep soon while other work holds the cores, and spin while those are free.

At every parallel step the threads of OpenMP (GNU's, torch's on Linux) wait for the last one, spinning for milliseconds.
On free cores that is best; where other work holds a core, the late thread needs the very core that spins
(docs/performance.md). GNU's threads spin a thousandth as long while there are more of them than processors. So as long
as others hold the cores, a few idle threads are kept beside those that compute. How many compute, and with that how
sums are rounded, stays as it was: no number changes.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

from kdad_bench import allowance

LOOK_SECONDS = 0.5  # between two looks at the other work
MUCH = 0.4  # cores that computing threads and other work both claim, from which threads give way
LITTLE = 0.15  # below which they take the cores back


@dataclass(frozen=True, slots=True)
class Use:
    """Processor time so far, in seconds: of everything on the processors that this process may use, and its own."""

    at: float
    everybody: float
    ours: float


def use() -> Use:
    """Now."""
    own = psutil.Process().cpu_times()
    return Use(time.monotonic(), allowance.processor_seconds()[1], own.user + own.system)


def cores_of_others(before: Use, after: Use) -> float:
    """Cores that other processes held between two looks."""
    elapsed = max(after.at - before.at, 1e-3)
    return max(0.0, (after.everybody - before.everybody - (after.ours - before.ours)) / elapsed)


def gives_way(others: float, threads: int, cores: int, already: bool) -> bool:
    """Whether `threads` should sleep soon beside work that holds `others` of `cores`; `already`: whether they do."""
    claimed_twice = others + threads - cores
    return claimed_twice > (LITTLE if already else MUCH)


@dataclass
class Guests:
    """Idle threads of torch's OpenMP beside those that compute: while they are there, waiting threads sleep soon."""

    count: int
    release: threading.Event | None = None
    thread: threading.Thread | None = field(default=None, repr=False)

    @property
    def here(self) -> bool:
        """Whether they are."""
        return self.thread is not None

    def come(self) -> None:
        """Start them; nothing where torch does not compute with GNU's OpenMP."""
        parallel = gnu_parallel()
        if self.here or parallel is None:
            return
        there, self.release = threading.Event(), threading.Event()
        arguments = (parallel, self.count + 1, there, self.release)
        self.thread = threading.Thread(target=host, args=arguments, name="kdad-guests", daemon=True)
        self.thread.start()
        there.wait()

    def go(self) -> None:
        """End them."""
        if self.thread is not None and self.release is not None:
            self.release.set()
            self.thread.join()
        self.thread = self.release = None


def host(parallel: Callable[..., None], threads: int, there: threading.Event, release: threading.Event) -> None:
    """Have OpenMP make a pool for this thread, by a parallel step that does nothing; it goes with the thread."""
    nothing = ctypes.cast(ctypes.CDLL(None).free, ctypes.c_void_p)  # free(NULL)
    parallel(nothing, None, threads, 0)
    there.set()
    release.wait()


def gnu_parallel() -> Callable[..., None] | None:
    """GOMP_parallel of the library that torch computes with; None where that is another."""
    from kdad_bench.kernels.cpp_path import torch_thread_pool

    address = torch_thread_pool() if sys.platform == "linux" else None
    if address is None or address.value is None:
        return None
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return kind(address.value)


@dataclass
class Watch:
    """Looks at the other work again and again and has the threads of this process wait accordingly."""

    threads: int
    cores: int
    guests: Guests
    look: Callable[[], Use] = use
    before: Use | None = None

    def step(self) -> None:
        """One look."""
        now = self.look()
        if self.before is not None:
            others = cores_of_others(self.before, now)
            if gives_way(others, self.threads, self.cores, self.guests.here):
                self.guests.come()
            else:
                self.guests.go()
        self.before = now


@contextmanager
def giving_way() -> Iterator[None]:
    """Inside, this process' threads give way to other work while there is some; one thread waits for nobody."""
    import torch

    threads, processors = torch.get_num_threads(), len(allowance.cpus())
    if threads == 1:
        yield
        return
    watch = Watch(threads, allowance.cores(), Guests(max(1, processors - threads + 1)))
    over = threading.Event()

    def look_on() -> None:
        while not over.is_set():
            watch.step()
            over.wait(LOOK_SECONDS)

    looking = threading.Thread(target=look_on, name="kdad-watch", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
        watch.guests.go()


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    import torch

    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
