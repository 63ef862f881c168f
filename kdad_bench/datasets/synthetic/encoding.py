"""PNG and TIFF files whose bytes depend on the values alone, on every machine and with every version of a library."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

BLOCK = 65535  # longest stored block of DEFLATE (RFC 1951, 3.2.4)


def png(pixels: npt.NDArray[np.uint8], *, compress: bool = False) -> bytes:
    """The PNG file of uint8 `pixels` [H, W] (grey) or [H, W, 3] (RGB).

    By default the pixels are stored and not compressed, because the output of a compressor differs between versions;
    with `compress` the file is as small as usual, its pixels are fixed and its bytes are not.
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    if compress:
        filtered = rows.copy()
        filtered[1:] -= rows[:-1]  # filter 2, "up", modulo 256
        lines = np.concatenate([np.full((height, 1), 2, np.uint8), filtered], axis=1).tobytes()
        packed = zlib.compress(lines, 4)
    else:
        lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1).tobytes()
        packed = _stored(lines)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _stored(data: bytes) -> bytes:
    """A zlib stream (RFC 1950) made of stored blocks."""
    parts = [b"\x78\x01"]
    for start in range(0, len(data), BLOCK):
        block = data[start : start + BLOCK]
        last = start + BLOCK >= len(data)
        parts.append(struct.pack("<BHH", int(last), len(block), len(block) ^ 0xFFFF) + block)
    parts.append(struct.pack(">I", zlib.adler32(data)))
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(points: npt.NDArray[np.float32]) -> bytes:
    """The uncompressed little-endian TIFF file (TIFF 6.0, sections 2 and 19) of float32 `points` [H, W, 3]."""
    height, width, channels = points.shape
    data = np.ascontiguousarray(points, dtype="<f4").tobytes()
    entries = 11
    behind = 8 + 2 + 12 * entries + 4  # header, directory, no further directory
    start = behind + 12  # two arrays of three shorts
    short, long = 3, 4
    directory = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, channels, behind),  # bits per sample
        (259, short, 1, 1),  # no compression
        (262, short, 1, 2),  # RGB
        (273, long, 1, start),  # one strip
        (277, short, 1, channels),
        (278, long, 1, height),
        (279, long, 1, len(data)),
        (284, short, 1, 1),  # x, y, z side by side
        (339, short, channels, behind + 6),  # sample format
    ]
    parts = [struct.pack("<2sHIH", b"II", 42, 8, entries)]
    parts += [struct.pack("<HHII", tag, kind, count, value) for tag, kind, count, value in directory]
    parts += [struct.pack("<I", 0), struct.pack("<3H", 32, 32, 32), struct.pack("<3H", 3, 3, 3), data]
    return b"".join(parts)
