"""Archives that mean harm, made from single headers: what no library would write, and how each must be answered."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

HEAVY = 300 << 20  # more than the unpacked bytes at which a ratio is asked for


def entry(name: str | bytes, data: bytes = b"x", *, size: int | None = None, **fields: Any) -> bytes:
    """One member of a tar in raw bytes: the ustar header, then its padded data. `name` may be any bytes."""
    info = tarfile.TarInfo("placeholder")
    info.size = len(data) if size is None else size
    for key, value in fields.items():
        setattr(info, key, value)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT)[-512:])
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    block[:100] = raw[:100].ljust(100, b"\0")
    return summed(block) + padded(data)


def summed(block: bytes | bytearray) -> bytes:
    """A tar header with its checksum set right."""
    made = bytearray(block)
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> bytes:
    block = bytearray(entry(name, b"", type=kind)[:512])
    block[157:257] = to.encode()[:100].ljust(100, b"\0")
    return summed(block)


def pax(fields: dict[str, bytes], kind: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header."""
    body = b""
    for key, value in fields.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    return entry("pax", body, type=kind)


def named(name: bytes, data: bytes = b"x") -> bytes:
    """A member whose name stands in a GNU long name: any bytes, any length."""
    return entry("long", name + b"\0", type=tarfile.GNUTYPE_LONGNAME) + entry("short", data)


def tar(*members: bytes) -> bytes:
    return b"".join((entry("fine/one.txt"), *members)) + bytes(1024)


def library(write: Callable[[tarfile.TarFile], None]) -> bytes:
    """A tar as the standard library writes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        write(archive)
    return file.getvalue()


def long_links(archive: tarfile.TarFile) -> None:
    """Folders and links longer than PATH_MAX in sum, so that a resolved name is cut before the kernel cuts it."""
    long, path = "d" * 247, ""
    for step in "abcdefghijklmnop":
        for name, kind, to in ((path + long, tarfile.DIRTYPE, ""), (path + step, tarfile.SYMTYPE, long)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode = kind, to, 0o755
            archive.addfile(info)
        path += f"{long}/"
    chain = "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/" + "l" * 254
    for name, to in ((chain, "../" * 16), ("escape", f"{chain}/../../../victim")):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, to
        archive.addfile(info)
    info = tarfile.TarInfo("escape")
    info.size = 11
    archive.addfile(info, io.BytesIO(b"overwritten"))


def with_dictionary(size: int, data: bytes) -> bytes:
    """An xz file whose header asks for a dictionary of that size, as LZMA2 writes it in one byte."""
    made = bytearray(lzma.compress(data, preset=0))
    length = (made[12] + 1) * 4
    made[16] = size
    made[12 + length - 4 : 12 + length] = struct.pack("<L", zlib.crc32(made[12 : 12 + length - 4]))
    return bytes(made)


def bomb(compress: Callable[[bytes], bytes]) -> bytes:
    """A tar of one member of zeros, in as many compressed streams as megabytes."""
    return compress(entry("zeros", b"", size=HEAVY)) + compress(bytes(1 << 20)) * (HEAVY >> 20) + compress(bytes(1024))


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in (("fine/one.txt", b"x"), *members):
            archive.writestr(name, data)
    return file.getvalue()


def of_mode(name: str, mode: int, data: bytes = b"x") -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info, data


def zip_with(member: bytes = b"other.txt", *, central: dict[int, bytes], data: bytes = b"y" * 100) -> bytes:
    """A zip whose last directory entry has other bytes at some offsets."""
    made = bytearray(zipped((member.decode(), data)))
    at = made.rfind(b"PK\x01\x02")
    for offset, value in central.items():
        made[at + offset : at + offset + len(value)] = value
    return bytes(made)


def zip_end(changes: dict[int, bytes]) -> bytes:
    made = bytearray(zipped(("a", b"a")))
    at = made.rfind(b"PK\x05\x06")
    for offset, value in changes.items():
        made[at + offset : at + offset + len(value)] = value
    return bytes(made)


def overlapping() -> bytes:
    """A zip whose first member holds the others: the same bytes are unpacked again and again."""
    inner = zipped(("b.txt", bytes(2000)), method=zipfile.ZIP_STORED)
    at = inner.find(b"PK\x03\x04", 4)
    made = bytearray(inner)
    first = made.find(b"PK\x01\x02")
    reach = struct.pack("<L", at + 1000 - 30 - len("fine/one.txt"))
    made[first + 20 : first + 28] = reach + reach
    return bytes(made)


def same_bytes_twice() -> bytes:
    made = bytearray(zipped(("fine/two.txt", b"x")))
    last = made.rfind(b"PK\x01\x02")
    made[last + 42 : last + 46] = bytes(4)
    return bytes(made)


def zip64(offset: int, size: int = 1) -> bytes:
    """A zip whose second member gives its sizes and place in 64 bits."""
    made = bytearray(zipped(("a", b"a"), method=zipfile.ZIP_STORED))
    last, end = made.rfind(b"PK\x01\x02"), made.rfind(b"PK\x05\x06")
    extra = struct.pack("<2H3Q", 1, 24, size, size, offset)
    made[last + 20 : last + 28] = b"\xff" * 8
    made[last + 42 : last + 46] = b"\xff" * 4
    made[last + 30 : last + 32] = struct.pack("<H", len(extra))
    made[end + 12 : end + 16] = struct.pack("<L", struct.unpack_from("<L", made, end + 12)[0] + len(extra))
    made[end:end] = extra
    return bytes(made)


OUTSIDE = "would be written outside"
TARS: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent": (lambda: tar(entry("../outside.txt")), OUTSIDE),
    "hidden parent": (lambda: tar(entry("a/../../outside.txt")), OUTSIDE),
    "parent at the end": (lambda: tar(entry("a/..", b"", type=tarfile.DIRTYPE)), OUTSIDE),
    "absolute": (lambda: tar(entry("/tmp/kdad-outside.txt")), OUTSIDE),
    "absolute in pax": (lambda: tar(pax({"path": b"/tmp/kdad-outside"}) + entry("a")), OUTSIDE),
    "absolute in a long name": (lambda: tar(named(b"/tmp/kdad-outside")), OUTSIDE),
    "two slashes": (lambda: tar(entry("//tmp/kdad-outside.txt")), OUTSIDE),
    "drive": (lambda: tar(entry("C:\\outside.txt")), OUTSIDE),
    "drive without a backslash": (lambda: tar(entry("C:outside.txt")), OUTSIDE),
    "backslash": (lambda: tar(entry("..\\outside.txt")), OUTSIDE),
    "link out": (lambda: tar(link("link", "../../etc")), "is a symbolic link to '../../etc'"),
    "link inside": (lambda: tar(link("link", "fine/one.txt")), "is a symbolic link"),
    "link to the folder above": (lambda: tar(link("a", "."), link("a/b", ".."), entry("a/b/x")), "is a symbolic link"),
    "absolute link": (lambda: tar(link("link", "/etc/passwd")), "is a symbolic link"),
    "hard link": (lambda: tar(link("link", "/etc/passwd", tarfile.LNKTYPE)), "is a hard link"),
    "hard link inside": (lambda: tar(link("link", "fine/one.txt", tarfile.LNKTYPE)), "is a hard link"),
    "links longer than PATH_MAX": (lambda: library(long_links), "is a symbolic link"),
    "device": (lambda: tar(entry("dev", b"", type=tarfile.BLKTYPE, devmajor=8)), "is a device"),
    "character device": (lambda: tar(entry("dev", b"", type=tarfile.CHRTYPE, devmajor=1)), "is a device"),
    "pipe": (lambda: tar(entry("pipe", b"", type=tarfile.FIFOTYPE)), "is a pipe"),
    "sparse": (lambda: tar(entry("sparse", b"", type=tarfile.GNUTYPE_SPARSE)), "is a sparse file"),
    "sparse in pax": (lambda: tar(pax({"GNU.sparse.major": b"1"}) + entry("a")), "is a sparse file"),
    "contiguous file": (lambda: tar(entry("a", type=tarfile.CONTTYPE)), "of a kind that is not read"),
    "volume label": (lambda: tar(entry("a", b"", type=b"V")), "of a kind that is not read"),
    "NUL": (lambda: tar(pax({"path": b"a\0b"}) + entry("a")), "control characters"),
    "NUL in a long name": (lambda: tar(named(b"a\0../b")), "control characters|" + OUTSIDE),
    "line break": (lambda: tar(entry("a\nb")), "control characters"),
    "escape": (lambda: tar(entry("a\x1b[2Jb")), "control characters"),
    "right to left": (lambda: tar(entry("a\u202egnp.exe")), "control characters"),
    "not UTF-8": (lambda: tar(entry(b"a\xff\xfe.txt")), "not UTF-8"),
    "not UTF-8 in pax": (lambda: tar(pax({"path": b"a\xff"}) + entry("a")), "not UTF-8"),
    "half a surrogate pair": (lambda: tar(entry(b"a\xed\xa0\x80")), "not UTF-8"),
    "empty component": (lambda: tar(entry("a//b")), "an empty component"),
    "dot component": (lambda: tar(entry("a/./b")), "an empty component"),
    "no name": (lambda: tar(pax({"path": b""}) + entry("a")), "empty component"),
    "only a dot": (lambda: tar(entry(".")), "a file without a name"),
    "file with a slash": (lambda: tar(pax({"path": b"a/"}) + entry("a")), "empty component"),
    "trailing dot": (lambda: tar(entry("a./b")), "ends with a dot"),
    "trailing space": (lambda: tar(entry("a ")), "ends with a dot or a space"),
    "component of 256 bytes": (lambda: tar(named(b"a" * 256)), "component of 256 bytes"),
    "component of 256 bytes in 128 letters": (lambda: tar(named("é".encode() * 128)), "component of 256 bytes"),
    "name of 5,000 bytes": (lambda: tar(named(b"/".join([b"a" * 200] * 25))), "name of 5024 bytes"),
    "1,500 deep": (lambda: tar(named(b"/".join([b"d"] * 1500))), "lies 1500 folders deep"),
    "33 deep": (lambda: tar(named(b"/".join([b"d"] * 33))), "lies 33 folders deep"),
    "the same file twice": (lambda: tar(entry("fine/one.txt")), "clashes"),
    "file, then folder": (lambda: tar(entry("fine/one.txt", b"", type=tarfile.DIRTYPE)), "clashes"),
    "file, then folder on the way": (lambda: tar(entry("fine/one.txt/two")), "clashes"),
    "folder, then file": (lambda: tar(entry("fine")), "clashes"),
    "capitals": (lambda: tar(entry("fine/ONE.txt")), "clashes"),
    "capitals of a folder": (lambda: tar(entry("Fine/two.txt")), "clashes"),
    "sharp s": (lambda: tar(entry("straße"), entry("STRASSE")), "clashes"),
    "two forms of one letter": (lambda: tar(entry("\u00e9"), entry("e\u0301")), "clashes"),
    "setuid": (lambda: tar(entry("a", mode=0o4755)), "the rights of another user"),
    "setgid": (lambda: tar(entry("a", mode=0o2755)), "the rights of another user"),
    "2,000 pax headers": (lambda: tar(pax({"path": b"a"}) * 2000 + entry("a")), "more than 16 extended headers"),
    "2,000 long names": (lambda: tar(named(b"a")[:1024] * 2000 + entry("a")), "more than 16 extended headers"),
    "2,000 global headers": (lambda: tar(pax({"comment": b"a"}, b"g") * 2000), "more than 16 extended headers"),
    "pax header of 15 MB": (lambda: tar(pax({"path": b"a" * 15_000_000}) + entry("a")), "extended header of 15000015"),
    "long name of 15 MB": (lambda: tar(named(b"a" * 15_000_000)), "extended header of 15000001"),
    "global header of 1 GB": (lambda: tar(entry("g", b"", type=b"g", size=1 << 30)), "extended header of 1073741824"),
    "pax of 1 MB of keys": (lambda: tar(pax({"path": b"/" * 900_000}) + entry("a")), OUTSIDE),
    "global path": (lambda: tar(pax({"path": b"a"}, b"g")), "a global header that decides"),
    "negative size": (lambda: tar(entry("a", b"", size=-512)), "declares -512 bytes"),
    "negative header": (lambda: tar(entry("a", b"", size=-512, type=b"x")), "extended header of -512 bytes"),
    "size of 18 digits": (lambda: tar(pax({"size": b"9" * 18}) + entry("a")), "declares 9{18} bytes"),
    "size of 5,000 digits": (lambda: tar(pax({"size": b"9" * 5000}) + entry("a")), "damaged"),
    "size that is none": (lambda: tar(pax({"size": b"-1"}) + entry("a")), "damaged"),
    "folder with a size": (lambda: tar(entry("d", b"x" * 512, type=tarfile.DIRTYPE)), "a folder that declares"),
    "header without a member": (lambda: tar(pax({"path": b"a"})), "an extended header without a member"),
    "pax length of zero": (lambda: tar(entry("p", b"0 path=a\n", type=b"x") + entry("a")), "pax header that cannot"),
    "pax length too long": (lambda: tar(entry("p", b"99 path=a\n", type=b"x") + entry("a")), "pax header that cannot"),
    "no end mark": (lambda: tar()[:-1024], "without its end mark"),
    "cut in a member": (lambda: tar(entry("a", bytes(9000)))[:-2048], "cut short|damaged"),
    "size beyond the end": (lambda: tar(entry("a", b"", size=1 << 20)), "cut short"),
    "two archives in one": (lambda: tar() + tar(), "more data behind its end mark"),
    "wrong checksum": (lambda: tar(entry("a")[:148] + b"0000000\0" + entry("a")[156:]), "no tar header"),
    "nothing": (lambda: b"", "damaged"),
    "only an end": (lambda: bytes(1024), "no file in the archive"),
    "Zstandard": (lambda: b"\x28\xb5\x2f\xfd" + bytes(100), "a Zstandard file, which is not read"),
    "7-Zip": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(100), "a 7-Zip file, which is not read"),
    "xz dictionary of 4 GiB": (lambda: with_dictionary(40, tar()), "needs more memory"),
    "xz dictionary of 128 MiB": (lambda: with_dictionary(30, tar()), "needs more memory"),
    "xz cut": (lambda: lzma.compress(tar())[:-20], "damaged"),
    "xz with a flipped byte": (lambda: lzma.compress(tar())[:-40] + b"\0" + lzma.compress(tar())[-39:], "damaged"),
    "gzip cut": (lambda: gzip.compress(tar())[:-8], "damaged"),
    "gzip with a wrong checksum": (lambda: gzip.compress(tar())[:-8] + bytes(8), "damaged"),
    "gzip with rubbish behind": (lambda: gzip.compress(tar()) + b"rubbish", "damaged"),
    "bzip2 cut": (lambda: bz2.compress(tar())[:-8], "damaged"),
    "gzip of a zip": (lambda: gzip.compress(zipped()), "damaged"),
}
ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip: parent": (lambda: zipped(("../outside.txt", b"x")), OUTSIDE),
    "zip: absolute": (lambda: zipped(("/tmp/kdad-outside", b"x")), OUTSIDE),
    "zip: backslash": (lambda: zipped(("..\\outside.txt", b"x")), OUTSIDE),
    "zip: drive": (lambda: zipped(("C:/outside.txt", b"x")), OUTSIDE),
    "zip: link": (lambda: zipped(of_mode("l", stat.S_IFLNK | 0o777, b"/etc")), "is a symbolic link"),
    "zip: device": (lambda: zipped(of_mode("l", stat.S_IFBLK | 0o777)), "is a device or a pipe"),
    "zip: pipe": (lambda: zipped(of_mode("l", stat.S_IFIFO | 0o777)), "is a device or a pipe"),
    "zip: setuid": (lambda: zipped(of_mode("l", stat.S_IFREG | 0o4755)), "the rights of another user"),
    "zip: folder by its mode": (lambda: zipped(of_mode("l", stat.S_IFDIR | 0o755)), "and not by both"),
    "zip: file by its mode": (lambda: zipped(of_mode("l/", stat.S_IFREG | 0o644, b"")), "and not by both"),
    "zip: folder with a size": (lambda: zipped(("d/", b"x")), "a folder that declares"),
    "zip: control characters": (lambda: zipped(("a\x1b[2J", b"x")), "control characters"),
    "zip: not UTF-8": (lambda: zipped(("aaaa", b"x")).replace(b"aaaa", b"a\xff\xfea"), "not UTF-8"),
    "zip: 1,500 deep": (lambda: zipped(("d/" * 1500 + "a", b"x")), "1501 folders deep"),
    "zip: long name": (lambda: zipped(("a" * 300, b"x")), "component of 300 bytes"),
    "zip: capitals": (lambda: zipped(("fine/ONE.txt", b"x")), "clashes"),
    "zip: file, then folder": (lambda: zipped(("fine/one.txt/two", b"x")), "clashes"),
    "zip: twice": (lambda: zipped(("fine/two.txt", b"x")).replace(b"fine/two.txt", b"fine/one.txt"), "clashes"),
    "zip: encrypted": (lambda: zip_with(central={8: b"\1\0"}), "is encrypted"),
    "zip: strongly encrypted": (lambda: zip_with(central={8: b"\x41\0"}), "is encrypted"),
    "zip: unknown method": (lambda: zip_with(central={10: b"\x63\0"}), "compressed by method 99"),
    "zip: other method in the member": (lambda: zip_with(central={10: b"\0\0"}), "differs from the zip's directory"),
    "zip: other name in the member": (lambda: zip_with(central={46: b"../xx.txt"}), "differs|" + OUTSIDE),
    "zip: size too small": (lambda: zip_with(central={24: b"\x05\0\0\0"}), "another size or checksum"),
    "zip: size too large": (lambda: zip_with(central={24: b"\xff\0\0\0"}), "another size or checksum"),
    "zip: size of 3 GB": (lambda: zip_with(central={24: b"\0\0\0\xc0"}), "declares 3221225472 bytes"),
    "zip: packed size too large": (lambda: zip_with(central={20: b"\xff\xff\0\0"}), "reaches into the next one"),
    "zip: packed size too small": (lambda: zip_with(central={20: b"\1\0\0\0"}), "damaged"),
    "zip: wrong checksum": (lambda: zip_with(central={16: bytes(4)}), "another size or checksum"),
    "zip: member behind the end": (lambda: zip_with(central={42: b"\0\0\0\x7f"}), "begins behind"),
    "zip: overlapping": (overlapping, "reaches into the next one"),
    "zip: the same bytes twice": (same_bytes_twice, "two members share the same bytes"),
    "zip: cut": (lambda: zipped()[:-10], "cut short"),
    "zip: cut in a member": (lambda: zipped(("a", bytes(range(256)) * 9))[:60], "cut short"),
    "zip: only a beginning": (lambda: b"PK\3\4", "cut short"),
    "zip: rubbish behind": (lambda: zipped() + b"rubbish", "cut short"),
    "zip: nothing in it": (lambda: b"PK\5\6" + bytes(18), "no file in the archive"),
    "zip: several parts": (lambda: zip_end({4: b"\1\0"}), "in several parts"),
    "zip: more entries than there are": (lambda: zip_end({8: b"\x09\0\x09\0"}), "damaged"),
    "zip: fewer entries than there are": (lambda: zip_end({8: b"\1\0\1\0"}), "another length than it says"),
    "zip: directory elsewhere": (lambda: zip_end({16: b"\0\0\0\x10"}), "not where it should be"),
    "zip: zip64 without a record": (lambda: zip_end({8: b"\xff\xff\xff\xff"}), "zip64 record is missing"),
    "zip: zip64 offset of 2^64 - 1": (lambda: zip64((1 << 64) - 1), "begins behind"),
    "zip: zip64 size of 2^62": (lambda: zip64(0, 1 << 62), "declares 4611686018427387904 bytes"),
}
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "zip bomb": (lambda: zipped(("zeros", bytes(HEAVY))), "become more than"),
    "gzip bomb": (lambda: bomb(gzip.compress), "become more than"),
    "bzip2 bomb": (lambda: bomb(bz2.compress), "become more than"),
    "xz bomb": (lambda: bomb(lambda data: lzma.compress(data, preset=0)), "become more than"),
}
HOSTILE = TARS | ZIPS
