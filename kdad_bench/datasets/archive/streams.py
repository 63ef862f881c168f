"""A file's bytes, decompressed in bounded memory: xz, gzip, bzip2 or none, told by the first bytes."""

from __future__ import annotations

import bz2
import lzma
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

from kdad_bench.datasets.archive.limits import STEP, Damaged, Limits, Refused

OTHERS = {
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"LZIP": "lzip",
    b"\x5d\x00\x00": "LZMA",
    b"\x1f\x9d": "compress",
}


class Decoder(Protocol):
    """What bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class Inflate:
    """zlib's decompressor with the interface of the other two; `wbits` 31 is gzip, -15 a member of a zip."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits=wbits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class File:
    """An archive's own bytes. Whatever goes wrong in reading them is Damaged, so that OSError means writing."""

    def __init__(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise Damaged(f"cannot be read: {error.strerror}") from error
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise Damaged("not a regular file")
        self._file: IO[bytes] = os.fdopen(descriptor, "rb")
        self.size = facts.st_size

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        try:
            return self._file.read(size)
        except OSError as error:
            raise Damaged(f"cannot be read: {error.strerror}") from error

    def seek(self, offset: int) -> None:
        """Go to a position that the archive itself may have named."""
        if not 0 <= offset <= self.size:
            raise Damaged(f"it names byte {offset} of {self.size}")
        self._file.seek(offset)

    def close(self) -> None:
        self._file.close()


class Stream:
    """The decompressed contents of `file`, read once and forwards.

    Raises Refused where a decompressor wants more memory, or the contents more bytes, than `limits` allow, and for
    formats that are not read; Damaged where the data are not what they should be.
    """

    def __init__(self, file: File, limits: Limits) -> None:
        self._file, self._limits = file, limits
        self._most = limits.expanded(file.size)
        self._total = 0
        self._input = file.read(STEP)
        self._made = _maker(self._input, limits)
        self._decoder = self._made() if self._made else None
        self._ready = bytearray()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end. Callers bound `size`."""
        while len(self._ready) < size and (more := self._some()):
            self._ready += more
        taken = bytes(self._ready[:size])
        del self._ready[:size]
        return taken

    def _some(self) -> bytes:
        """The next bytes, at most STEP; empty at the end."""
        if self._made is None or self._decoder is None:
            return self._raw()
        while True:
            if self._decoder.eof:
                following = self._next_stream()
                if following is None:
                    return b""
                self._input, self._decoder = following, self._made()
            data = self._raw() if self._decoder.needs_input else b""
            ended = self._decoder.needs_input and not data
            out = decode(self._decoder, data)
            self._total += len(out)
            if self._total > self._most:
                raise Refused(f"its {self._file.size} bytes become more than {self._most}")
            if out:
                return out
            if ended and not self._decoder.eof:
                raise Damaged("cut short")

    def _raw(self) -> bytes:
        taken, self._input = self._input or self._file.read(STEP), b""
        return taken

    def _next_stream(self) -> bytes | None:
        """What follows a compressed stream but for padding; None at the end of the file."""
        rest = self._decoder.unused_data.lstrip(b"\0") if self._decoder else b""
        while not rest:
            rest = self._raw()
            if not rest:
                return None
            rest = rest.lstrip(b"\0")
        return rest


def decode(decoder: Decoder, data: bytes) -> bytes:
    """One bounded step of a decompressor; its many kinds of errors as Damaged or Refused."""
    try:
        return decoder.decompress(data, STEP)
    except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
        if "Memory usage limit" in str(error):
            raise Refused("it needs more memory to be decompressed than any ordinary archive") from error
        raise Damaged(str(error) or type(error).__name__) from error


def _maker(start: bytes, limits: Limits) -> Callable[[], Decoder] | None:
    if start.startswith(b"\xfd7zXZ\x00"):
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=limits.decoder_bytes)
    if start.startswith(b"\x1f\x8b"):
        return lambda: Inflate(31)
    if start.startswith(b"BZh"):
        return bz2.BZ2Decompressor
    for signature, title in OTHERS.items():
        if start.startswith(signature):
            raise Refused(f"a {title} file, which is not read; pack it as .tar.xz, .tar.gz, .tar or .zip")
    return None
