"""What code does beside computing: the files that it opens, the machines that it asks, the processes that it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch

# files of images and arrays: a method sees the images that it is given and opens none
PICTURES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jp2", ".exr", ".pfm", ".raw",
    ".npy", ".npz", ".h5", ".hdf5", ".parquet", ".tfrecord",
)  # fmt: skip
A_FEW_BYTES = 4096  # what counts of the system hold; images are larger
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STARTS = frozenset({"subprocess.Popen", "os.system", "os.posix_spawn", "os.fork", "os.forkpty", "os.exec", "os.spawn"})
# modules that start compilers or ask what machine this is, for any method
STARTERS = ("torch._inductor", "torch.utils.cpp_extension", "triton", "platform", "ctypes.util", "uuid")
COMPILERS = (
    "__pycache__",
    "torchinductor",
    ".triton",
    "/dev/",
    "/proc/",
)  # what Python and PyTorch write by themselves


class Opened(NamedTuple):
    """Paths of files that were opened."""

    read: list[str]  # of images and arrays, or below the data root
    written: list[str]
    asked: list[str]  # machines
    started: list[str]  # processes
    most: list[int]  # bytes of the other files that Python opened to be read, each at most


class _Watch:
    """Notes files that are opened, machines that are asked and processes that are started, while it is told to; an
    audit hook cannot be taken away again. What libraries in C do by themselves raises no event of Python's."""

    def __init__(self) -> None:
        self.found: Opened | None = None
        self.hooked = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.found is None:
            return
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.fsdecode(arguments[0])
            if arguments[2] & WRITING:
                self.wrote(path)
            elif path.lower().endswith(PICTURES) or in_data_root(path):
                self.found.read.append(path)
            else:
                self.found.most.append(size_of(path))
        elif event == "socket.getaddrinfo":
            self.found.asked.append(as_text(arguments[0]))
        elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):  # a path: this machine
            self.found.asked.append(as_text(arguments[1][0]))
        elif event in STARTS and not by_itself():
            self.found.started.append(program_of(event, arguments))

    def wrote(self, path: str) -> None:
        """Note a file that was written, unless Python or PyTorch did that by itself."""
        if self.found is not None and not any(name in path for name in COMPILERS):
            self.found.written.append(os.path.abspath(path))


def size_of(path: str) -> int:
    """Bytes of a file; 0 where it cannot be asked."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def bytes_read() -> int:
    """Bytes that this process has read so far by any library, also in C; 0 where the system does not count them. What
    is mapped into memory is not among them."""
    try:
        with open("/proc/self/io", encoding="ascii") as counts:
            return int(counts.readline().removeprefix("rchar:"))
    except (OSError, ValueError):
        return 0


def in_data_root(path: str) -> bool:
    """Whether a file that is no code lies in the folder of data sets, where one is named."""
    root = os.environ.get("KDAD_DATA", "")
    if not root or path.endswith((".py", ".pyc", ".so")):
        return False
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(root), ""))


def by_itself() -> bool:
    """Whether it is PyTorch or Python that starts the process at hand, to compile something or to know the machine."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = f"{frame.f_globals.get('__name__', '')}."
        if name.startswith(tuple(f"{one}." for one in STARTERS)):
            return True
        frame = frame.f_back
    return False


def program_of(event: str, arguments: tuple[Any, ...]) -> str:
    """What was started: the program's name, where the audit event says it."""
    named = event not in ("os.fork", "os.forkpty")
    said = arguments[1 if event == "os.spawn" else 0] if named and arguments else None
    words = os.fsdecode(said).split() if isinstance(said, (str, bytes, os.PathLike)) else []
    return f"the program {os.path.basename(words[0])}" if words else "a process of its own"


def as_text(host: object) -> str:
    """The name of a machine, as a call spelled it."""
    return os.fsdecode(host) if isinstance(host, (str, bytes)) else str(host)


_WATCH = _Watch()


@contextmanager
def opened_files() -> Iterator[Opened]:
    """The files that are opened inside, of images and arrays and to be written, the machines that are asked and the
    processes that are started."""
    if not _WATCH.hooked:
        sys.addaudithook(_WATCH)
        _WATCH.hooked = True
    found = _WATCH.found = Opened([], [], [], [], [])
    keep = torch.save

    def noted(what: Any, place: Any, *more: Any, **options: Any) -> None:  # its files are opened past Python
        keep(what, place, *more, **options)
        if isinstance(place, (str, os.PathLike)):
            _WATCH.wrote(os.fspath(place))

    torch.save = noted  # type: ignore[assignment]  # of more general arguments
    try:
        yield found
    finally:
        torch.save = keep
        _WATCH.found = None
