"""Is the file of an image whole? Its beginning and its end tell: pixels are decoded of a JPEG without its end alone.

What a broken copy leaves behind is found so before anything is learnt. Never is a file called torn that can be decoded;
damage inside of a file shows only there.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

from PIL import Image

from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.decoding import header, opened

Size = tuple[int, int]  # width, height
TORN = "cut short"
EMPTY = "empty (0 bytes)"
PNG_END = b"\0\0\0\0IEND\xaeB\x60\x82"
PNG_SPARED = 8  # bytes at the end of its pixels without which a decoder may have them all
JPEG_END = b"\xff\xd9"
JPEG_SCAN = 0xDA  # the segment after which compressed pixels follow
BMP_PLAIN = (0, 3)  # kinds of compression that are none
TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_OFFSETS, TIFF_SIZES = (273, 324), (279, 325)  # of strips and of tiles


def fault_of(path: Path) -> tuple[str, Size]:
    """(what is wrong with the file of an image, in a few words, or nothing; its width and height, 0 where unknown)."""
    try:
        with opened(path) as file:
            if not _size(file):
                return EMPTY, (0, 0)
            image = header(path, file)
            ending = ENDINGS.get(image.format or "")
            return (TORN if ending is not None and ending(file, image) else ""), image.size
    except DatasetError as error:
        return str(error).removeprefix(f"{path}: ").rpartition(";")[0], (0, 0)
    except (OSError, ValueError, struct.error, TypeError, OverflowError):  # tags that make no sense: decoding tells
        return "", (0, 0)


def fault_of_scan(path: Path) -> str:
    """What is wrong with a file that is no image, in a few words, or nothing: the numbers of a TIFF file may lack."""
    try:
        with opened(path) as file:
            if not _size(file):
                return EMPTY
            return TORN if _bytes(file, 0, 4) in TIFF_BEGINNINGS and _lacks_numbers(file) else ""
    except DatasetError as error:
        return str(error).removeprefix(f"{path}: ").rpartition(";")[0]


def _lacks_numbers(file: IO[bytes]) -> bool:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    file.seek(0)
    try:
        page = tifffile.TiffFile(file, name="x.tiff").pages.first  # the name of an open file may be a number
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    except Exception:  # a damaged file has many ways to be so; reading it tells
        return False
    return any(first + count > _size(file) for first, count in parts)


def _bytes(file: IO[bytes], first: int, count: int = -1) -> bytes:
    """`count` bytes of a file (all if -1) from place `first` on, from its end where that is negative."""
    size = _size(file)
    file.seek(max(0, size + first) if first < 0 else first)
    return file.read(size if count < 0 else count)


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _png(file: IO[bytes], _: Image.Image) -> bool:
    """Whether pixels are announced beyond the end of a file that does not end as it should."""
    if _bytes(file, -len(PNG_END)) == PNG_END:
        return False
    size, place, seen = _size(file), 8, False
    while place + 8 <= size:
        length, kind = struct.unpack(">I4s", _bytes(file, place, 8))
        if kind == b"IEND":
            return False
        seen = seen or kind == b"IDAT"
        if place + 8 + length > size:
            return not seen or (kind == b"IDAT" and place + 8 + length > size + PNG_SPARED)
        place += 12 + length
    return not seen


def _jpeg(file: IO[bytes], image: Image.Image) -> bool:
    """Whether no end follows the first compressed pixels, and the file cannot be decoded without it."""
    if _bytes(file, -len(JPEG_END)) == JPEG_END:
        return False
    data, place = _bytes(file, 0), 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        if data[place + 1] == JPEG_SCAN:
            return JPEG_END not in data[place:] and not _decodes(image)
        place += 1 if data[place + 1] == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return True


def _decodes(image: Image.Image) -> bool:
    """Whether all pixels of an image can be had: where the mark of its end alone lacks, they may be there."""
    try:
        image.load()
    except Exception:  # Pillow's decoders raise almost anything on damaged files
        return False
    return True


def _bmp(file: IO[bytes], _: Image.Image) -> bool:
    """Whether rows without compression reach beyond the end."""
    start, size, width, height, _planes, bits, packed = struct.unpack("<I I i i H H I", _bytes(file, 10, 24))
    if size < 40 or packed not in BMP_PLAIN:  # an old header, or a compression of its own
        return False
    row = (abs(width) * bits + 31) // 32 * 4
    return bool(start + row * (abs(height) - 1) + (abs(width) * bits + 7) // 8 > _size(file))


def _ppm(file: IO[bytes], image: Image.Image) -> bool:
    """Whether binary pixels reach beyond the end."""
    kind, tile = _bytes(file, 0, 2), image.tile[0]  # type: ignore[attr-defined]
    width, height = image.size
    least = {b"P4": (width + 7) // 8 * height, b"P5": width * height, b"P6": 3 * width * height}.get(kind, 0)
    deep = image.mode.startswith("I") or (tile.codec_name == "ppm" and tile.args[-1] > 255)
    return bool(tile.offset + least * (1 + deep) > _size(file))


def _tiff(file: IO[bytes], image: Image.Image) -> bool:
    """Whether a strip or a tile reaches beyond the end; none is taken for longer than all pixels are."""
    tags, size = image.tag_v2, _size(file)  # type: ignore[attr-defined]
    samples, bits = int(tags.get(277, 1)), max(tags.get(258, (1,)))
    most = (image.size[0] * samples * bits + 7) // 8 * image.size[1] if tags.get(259, 1) == 1 else size
    for offsets, counts in zip(TIFF_OFFSETS, TIFF_SIZES, strict=True):
        parts = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if any(first + min(count, most) > size for first, count in parts):
            return True
    return False


def _webp(file: IO[bytes], _: Image.Image) -> bool:
    """Whether the container is announced to be longer than the file."""
    return int.from_bytes(_bytes(file, 4, 4), "little") + 8 > _size(file) + 1


ENDINGS: dict[str, Callable[[IO[bytes], Image.Image], bool]] = {
    "PNG": _png, "JPEG": _jpeg, "MPO": _jpeg, "BMP": _bmp, "PPM": _ppm, "TIFF": _tiff, "WEBP": _webp,
}  # fmt: skip
