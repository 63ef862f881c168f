"""What an archive may hold before it is refused, and the words for refusing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

STEP = 1 << 16  # bytes that are read, decompressed or written at a time


class Refused(Exception):
    """The archive holds something that is never unpacked; the message names the member and why."""


class Damaged(Exception):
    """The archive cannot be read as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an archive may ask for before it is taken for a bomb; MVTec 3D-AD has 12,500 files and some 30 GB."""

    total_bytes: int = 80 << 30
    member_bytes: int = 1 << 30
    members: int = 200_000  # files and folders, those that are only implied by a name too
    ratio: int = 200  # of unpacked to packed bytes; images compress two- or threefold
    ratio_from: int = 256 << 20  # unpacked bytes below which any ratio is allowed
    decoder_bytes: int = 128 << 20  # memory of a decompressor; `xz -9` needs 65 MiB

    def expanded(self, packed: int) -> int:
        """The bytes that a file of `packed` bytes may become."""
        return max(self.ratio_from, self.ratio * packed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A regular file or a folder in an archive; `chunks` brings exactly `size` bytes, or raises Damaged."""

    name: str
    size: int
    folder: bool
    chunks: Iterator[bytes]


def shown(name: str) -> str:
    """Foreign text, short, on one line and without signs that a terminal obeys."""
    return name.encode("unicode_escape").decode()[:120]
