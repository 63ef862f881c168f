"""Tar archives, read forwards: the standard library parses single headers, what they may add up to is decided here."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator

from kdad_bench.datasets.archive.limits import STEP, Damaged, Limits, Member, Refused, shown
from kdad_bench.datasets.archive.streams import Stream

BLOCK = 512
HEADER_BYTES = 1 << 20  # of one extended header (pax, GNU long name); extended attributes may be long
HEADERS = 16  # extended headers before one member
TRAILING_BYTES = 16 << 20  # zeros after the end mark: tapes and tar's blocking factor
PAX, GLOBAL, LONG_NAME, LONG_LINK = (b"x", b"X"), b"g", b"L", b"K"
DECIDING = ("path", "linkpath", "size")  # pax keys that say what a member is; the others only describe it
RECORD = re.compile(rb"([0-9]{1,7}) ([^=]{1,255})=")  # of a pax header: its length and its key
KINDS = {
    tarfile.LNKTYPE: "is a hard link",
    tarfile.SYMTYPE: "is a symbolic link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a pipe",
    tarfile.GNUTYPE_SPARSE: "is a sparse file",
}


def members(stream: Stream, limits: Limits) -> Iterator[Member]:
    """The files and folders of a tar stream, in its order. Raises Refused or Damaged."""
    while (header := _member_header(stream)) is not None:
        folder = _is_folder(header)
        if not 0 <= header.size <= limits.member_bytes:
            raise Refused(f"member '{shown(header.name)}' declares {header.size} bytes; limit {limits.member_bytes}")
        chunks = _contents(stream, header.size)
        yield Member(name=header.name, size=header.size, folder=folder, chunks=chunks)
        for _ in chunks:  # what was not asked for must not be taken for a header
            continue
    _finish(stream)


def _member_header(stream: Stream) -> tarfile.TarInfo | None:
    """The next member with the name and size that its extended headers give; None at the end mark."""
    fields: dict[str, str] = {}
    for number in range(HEADERS + 1):
        header = _header(stream)
        if header is None:
            if number:
                raise Damaged("an extended header without a member")
            return None
        if header.type in PAX:
            fields |= _pax_fields(_body(stream, header.size))
        elif header.type == GLOBAL:
            if _pax_fields(_body(stream, header.size)):
                raise Refused("a global header that decides over names or sizes")
        elif header.type in (LONG_NAME, LONG_LINK):
            text = _body(stream, header.size).rstrip(b"\0").decode("utf-8", "surrogateescape")
            fields["path" if header.type == LONG_NAME else "linkpath"] = text
        else:
            return _completed(header, fields)
    raise Refused(f"more than {HEADERS} extended headers before one member")


def _header(stream: Stream) -> tarfile.TarInfo | None:
    block = stream.read(BLOCK)
    if len(block) < BLOCK:
        raise Damaged("it ends without its end mark" if block == b"" else "no tar header")
    if not any(block):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Damaged(f"no tar header: {error}") from error


def _completed(header: tarfile.TarInfo, fields: dict[str, str]) -> tarfile.TarInfo:
    header.name = fields.get("path", header.name)
    header.linkname = fields.get("linkpath", header.linkname)
    if "sparse" in fields:
        raise Refused(f"member '{shown(header.name)}' is a sparse file")
    if "size" in fields:
        if not re.fullmatch("[0-9]{1,18}", fields["size"]):
            raise Damaged(f"a size of '{shown(fields['size'])}'")
        header.size = int(fields["size"])
    return header


def _body(stream: Stream, size: int) -> bytes:
    """The contents of an extended header, without the padding that follows."""
    if not 0 <= size <= HEADER_BYTES:
        raise Refused(f"an extended header of {size} bytes; limit {HEADER_BYTES}")
    return b"".join(_contents(stream, size))


def _pax_fields(body: bytes) -> dict[str, str]:
    """What a pax header decides: path, linkpath, size, and `sparse` where any key of sparse files is used."""
    fields: dict[str, str] = {}
    position = 0
    while position < len(body) and body[position]:
        match = RECORD.match(body, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(body) or body[end - 1] != 0x0A:
            raise Damaged("a pax header that cannot be read")
        key = match[2].decode("utf-8", "surrogateescape")
        if key in DECIDING:
            fields[key] = body[match.end() : end - 1].decode("utf-8", "surrogateescape")
        elif key.startswith("GNU.sparse."):
            fields["sparse"] = key
        position = end
    return fields


def _is_folder(header: tarfile.TarInfo) -> bool:
    """True for a folder, False for a regular file, Refused for everything else."""
    folder = header.type == tarfile.DIRTYPE
    name = f"member '{shown(header.name)}'"
    if not folder and header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind = KINDS.get(header.type, f"is of a kind that is not read ({header.type!r})")
        to = f" to '{shown(header.linkname)}'" if header.linkname else ""
        raise Refused(f"{name} {kind}{to}")
    if folder and header.size:
        raise Refused(f"{name} is a folder that declares {header.size} bytes")
    if not folder and header.mode & 0o6000:
        raise Refused(f"{name} wants to run with the rights of another user (mode {header.mode:o})")
    return folder


def _contents(stream: Stream, size: int) -> Iterator[bytes]:
    """The next `size` bytes, and past the padding behind them."""
    left = size
    while left:
        chunk = stream.read(min(left, STEP))
        if not chunk:
            raise Damaged("cut short")
        left -= len(chunk)
        yield chunk
    padding = -size % BLOCK
    if len(stream.read(padding)) < padding:
        raise Damaged("cut short")


def _finish(stream: Stream) -> None:
    """Read to the end, so that checksums of the compression are compared, and see that nothing was passed over."""
    trailing = 0
    while chunk := stream.read(STEP):
        trailing += len(chunk)
        if any(chunk) or trailing > TRAILING_BYTES:
            raise Refused("more data behind its end mark")
