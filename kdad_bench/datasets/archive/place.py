"""Writing below one folder by opened folders only: no name of more than one component is ever given to the system."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

CAN = {os.open, os.mkdir} <= os.supports_dir_fd
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
FRESH = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class Below:
    """An opened folder, and the folders last entered below it. Raises OSError where it cannot be written."""

    def __init__(self, root: Path) -> None:
        self._names: list[str] = []
        self._opened = [os.open(root, FOLDER)]

    def __enter__(self) -> Below:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._opened:
            os.close(self._opened.pop())

    def enter(self, parts: tuple[str, ...]) -> int:
        """The descriptor of the folder `parts`, made where it is missing; a link on the way is an error."""
        same = next((n for n, pair in enumerate(zip(parts, self._names, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(parts), len(self._names)) if same is None else same
        while len(self._names) > same:
            self._names.pop()
            os.close(self._opened.pop())
        for name in parts[same:]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._opened[-1])
            self._opened.append(os.open(name, FOLDER, dir_fd=self._opened[-1]))
            self._names.append(name)
        return self._opened[-1]

    def write(self, parts: tuple[str, ...], chunks: Iterator[bytes]) -> None:
        """Make the new file `parts` of `chunks`; one that exists already is an error. No mode of the archive's."""
        descriptor = os.open(parts[-1], FRESH, 0o666, dir_fd=self.enter(parts[:-1]))
        with os.fdopen(descriptor, "wb") as file:
            file.writelines(chunks)
