"""Names of members, judged by their letters alone: what a file system would make of them is never asked."""

from __future__ import annotations

import hashlib
import unicodedata

from kdad_bench.datasets.archive.limits import Refused, shown
from kdad_bench.datasets.listing import folded

NAME_BYTES = 1024  # of a whole name; Linux takes 4,096 with the folder before it
PART_BYTES = 255  # of one component: NAME_MAX of the usual file systems
DEPTH = 32  # folders in folders; the published data sets have five
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control and format signs, half surrogate pairs, line breaks


def parts(name: str, *, folder: bool) -> tuple[str, ...]:
    """The components of a member's name; none for the archive's own root (`./`).

    Raises Refused for whatever could lead out of the folder, mean two things to two systems, or not be a name at all.
    """
    if name.startswith("/") or any(sign in name for sign in "\\:"):
        raise _refused(name, "would be written outside of the folder (absolute, or with a backslash or a colon)")
    split = name.removesuffix("/").split("/") if folder else name.split("/")
    while split and split[0] == ".":
        del split[0]
    if not split and folder:
        return ()
    if not split:
        raise _refused(name, "is a file without a name")
    if len(split) > DEPTH:
        raise _refused(name, f"lies {len(split)} folders deep; limit {DEPTH}")
    if (length := len(name.encode("utf-8", "surrogateescape"))) > NAME_BYTES:
        raise _refused(name, f"has a name of {length} bytes; limit {NAME_BYTES}")
    for part in split:
        _examine(name, part)
    return tuple(split)


def _examine(name: str, part: str) -> None:
    if part == "..":
        raise _refused(name, "would be written outside of the folder")
    if part in ("", "."):
        raise _refused(name, "has an empty component in its name")
    if any(unicodedata.category(sign) in UNPRINTABLE for sign in part):
        raise _refused(name, "has a name with control characters, or one that is not UTF-8")
    if part[-1] in ". ":
        raise _refused(name, "has a name that ends with a dot or a space")
    if len(part.encode()) > PART_BYTES:
        raise _refused(name, f"has a component of {len(part.encode())} bytes in its name; limit {PART_BYTES}")


class Known:
    """The names that an archive has used: none may stand for two files, on any system.

    Names are compared without capitals and in one Unicode form, and only their digests are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._spelled: dict[bytes, bytes] = {}
        self._last: tuple[str, ...] = ()

    def add(self, name: str, parts: tuple[str, ...], *, folder: bool) -> None:
        """Take note of a member and the folders above it. Raises Refused for a clash or more than `most` entries."""
        above = parts if folder else parts[:-1]
        if above != self._last:
            for depth in range(1, len(above) + 1):
                self._take(name, above[:depth], b"folder")
            self._last = above
        if not folder:
            self._take(name, parts, b"file")

    def _take(self, name: str, parts: tuple[str, ...], kind: bytes) -> None:
        key, exact = _digest(folded("/".join(parts))), kind + _digest("/".join(parts))
        if self._spelled.get(key, exact) != exact or (kind == b"file" and key in self._spelled):
            raise _refused(
                name, "clashes with an earlier one (twice, file and folder, or alike but for capitals or form)"
            )
        self._spelled[key] = exact
        if len(self._spelled) > self._most:
            raise Refused(f"more than {self._most} files and folders")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _refused(name: str, why: str) -> Refused:
    return Refused(f"member '{shown(name)}' {why}")
