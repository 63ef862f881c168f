"""Zip archives: the directory is read entry by entry, and every byte of the file belongs to one member at most."""

from __future__ import annotations

import itertools
import stat
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from kdad_bench.datasets.archive.limits import STEP, Damaged, Limits, Member, Refused, shown
from kdad_bench.datasets.archive.streams import File, Inflate, decode

SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")  # of an archive with and without members
STORED, DEFLATED = 0, 8
ENCRYPTED = 0x1 | 0x40 | 0x2000  # the member, strongly, or the directory
END = struct.Struct("<4s4H2LH")
END64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
ENTRY = struct.Struct("<4s4B4HL2L5H2L")
LOCAL = struct.Struct("<4s2B4HL2L2H")
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _Directory:
    start: int
    size: int
    entries: int


@dataclass(frozen=True, slots=True)
class _Entry:
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int

    @property
    def name(self) -> str:
        """The name; tools that do not set the flag for UTF-8 mostly write it all the same."""
        return self.raw_name.decode("utf-8", "surrogateescape")


def members(file: File, limits: Limits) -> Iterator[Member]:
    """The files and folders of a zip archive, in the order of its directory. Raises Refused or Damaged.

    The directory is read twice: to see where members begin, so that none can reach into the next, and to unpack.
    """
    directory = _directory(file)
    if directory.entries > limits.members:
        raise Refused(f"more than {limits.members} files and folders")
    starts, expanded = array("Q"), 0
    for entry in _entries(file, directory):
        _refuse(entry, limits)
        if entry.offset >= directory.start:
            raise Damaged(f"member '{shown(entry.name)}' begins behind the members")
        starts.append(entry.offset)
        expanded += entry.size
    if expanded > limits.expanded(file.size):
        raise Refused(f"its {file.size} bytes become more than {limits.expanded(file.size)}")
    starts = array("Q", sorted(starts))
    if any(one == other for one, other in itertools.pairwise(starts)):
        raise Refused("two members share the same bytes")
    starts.append(directory.start)
    for entry in _entries(file, directory):
        chunks = _contents(file, entry, starts[bisect_right(starts, entry.offset)])
        yield Member(name=entry.name, size=entry.size, folder=entry.name.endswith("/"), chunks=chunks)


def _directory(file: File) -> _Directory:
    """Where the central directory is: right before the end records, which are at the very end of the file."""
    tail_at = max(0, file.size - END.size - FULL16)
    file.seek(tail_at)
    tail = file.read(END.size + FULL16)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0 and (len(tail) - at < END.size or at + END.size + END.unpack_from(tail, at)[7] != len(tail)):
        at = tail.rfind(b"PK\x05\x06", 0, at + 3)
    if at < 0:
        raise Damaged("a zip without its directory: cut short")
    _, disk, first_disk, here, entries, size, start, _ = END.unpack_from(tail, at)
    end = tail_at + at
    if FULL16 in (here, entries) or FULL32 in (size, start):
        end, (disk, first_disk, here, entries, size, start) = _directory64(file, end)
    if (disk, first_disk) != (0, 0) or here != entries:
        raise Refused("one part of a zip in several parts")
    if start + size != end:
        raise Damaged("the directory of the zip is not where it should be")
    return _Directory(start, size, entries)


def _directory64(file: File, end: int) -> tuple[int, tuple[int, ...]]:
    """The fields of the zip64 end record, and where it begins."""
    file.seek(max(0, end - LOCATOR.size))
    signature, _, at, _ = LOCATOR.unpack(_exactly(file, LOCATOR.size))
    if signature != b"PK\x06\x07" or at > end - LOCATOR.size - END64.size:
        raise Damaged("a zip64 record is missing")
    file.seek(at)
    signature, length, _, _, *fields = END64.unpack(_exactly(file, END64.size))
    if signature != b"PK\x06\x06" or at + 12 + length != end - LOCATOR.size:
        raise Damaged("a zip64 record that cannot be read")
    return at, tuple(fields)


def _entries(file: File, directory: _Directory) -> Iterator[_Entry]:
    """The directory's entries, one in memory at a time; the file may be read elsewhere in between."""
    position, end = directory.start, directory.start + directory.size
    for _ in range(directory.entries):
        file.seek(position)
        fields = ENTRY.unpack(_exactly(file, ENTRY.size))
        flags, method, crc, packed, size = fields[5], fields[6], fields[9], fields[10], fields[11]
        name_length, extra_length, comment_length = fields[12:15]
        raw, extra = _exactly(file, name_length), _exactly(file, extra_length)
        position += ENTRY.size + name_length + extra_length + comment_length
        if fields[0] != b"PK\x01\x02" or position > end:
            raise Damaged("an entry of the zip's directory cannot be read")
        size, packed, offset = _sizes64(extra, size, packed, fields[18])
        yield _Entry(raw, flags, method, crc, packed, size, offset, fields[17] >> 16)
    if position != end:
        raise Damaged("the zip's directory has another length than it says")


def _sizes64(extra: bytes, *sizes: int) -> tuple[int, ...]:
    """Size, packed size and offset, taken from the zip64 field where they do not fit into 32 bits."""
    if FULL32 not in sizes:
        return sizes
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        position += 4
        wide = sizes.count(FULL32)
        if tag == 1 and 8 * wide <= length <= len(extra) - position:
            values = iter(struct.unpack_from(f"<{wide}Q", extra, position))
            return tuple(next(values) if size == FULL32 else size for size in sizes)
        position += length
    raise Damaged("a zip64 field is missing")


def _refuse(entry: _Entry, limits: Limits) -> None:
    """Everything that is not a plain file or folder of a plausible size."""
    name, folder = f"member '{shown(entry.name)}'", entry.name.endswith("/")
    kind = stat.S_IFMT(entry.mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a device or a pipe"
        raise Refused(f"{name} is {what}")
    if folder != (kind == stat.S_IFDIR) and kind:
        raise Refused(f"{name} is a folder by its name or by its mode, and not by both")
    if entry.flags & ENCRYPTED:
        raise Refused(f"{name} is encrypted; pack it without a password")
    if entry.method not in (STORED, DEFLATED):
        raise Refused(f"{name} is compressed by method {entry.method}, which is not read; pack it with deflate")
    if not folder and entry.mode & 0o6000:
        raise Refused(f"{name} wants to run with the rights of another user (mode {entry.mode & 0o7777:o})")
    if folder and entry.size:
        raise Refused(f"{name} is a folder that declares {entry.size} bytes")
    if entry.size > limits.member_bytes:
        raise Refused(f"{name} declares {entry.size} bytes; limit {limits.member_bytes}")


def _contents(file: File, entry: _Entry, end: int) -> Iterator[bytes]:
    """A member's bytes, which lie before `end`, with its size and checksum compared."""
    file.seek(entry.offset)
    fields = LOCAL.unpack(_exactly(file, LOCAL.size))
    name = _exactly(file, fields[10])
    position = entry.offset + LOCAL.size + fields[10] + fields[11]
    if fields[0] != b"PK\x03\x04" or name != entry.raw_name or fields[4] != entry.method:
        raise Damaged(f"member '{shown(entry.name)}' differs from the zip's directory")
    if position + entry.packed > end:
        raise Refused(f"member '{shown(entry.name)}' reaches into the next one")
    crc = done = 0
    for chunk in _decoded(file, entry, position):
        crc, done = zlib.crc32(chunk, crc), done + len(chunk)
        if done > entry.size:
            break
        yield chunk
    if done != entry.size or crc != entry.crc:
        raise Damaged(f"member '{shown(entry.name)}' has another size or checksum than declared")


def _decoded(file: File, entry: _Entry, position: int) -> Iterator[bytes]:
    packed = _packed(file, position, entry.packed)
    if entry.method == STORED:
        yield from packed
        return
    decoder = Inflate(-15)
    for data in itertools.chain(packed, itertools.repeat(b"")):
        out = decode(decoder, data)
        while out:
            yield out
            out = b"" if decoder.eof else decode(decoder, b"")
        if decoder.eof:
            return
        if not data:
            raise Damaged(f"member '{shown(entry.name)}' is cut short")


def _packed(file: File, position: int, size: int) -> Iterator[bytes]:
    while size:
        file.seek(position)  # the directory is read from the same file in between
        chunk = _exactly(file, min(size, STEP))
        position, size = position + len(chunk), size - len(chunk)
        yield chunk


def _exactly(file: File, size: int) -> bytes:
    read = file.read(size)
    if len(read) < size:
        raise Damaged("cut short")
    return read
