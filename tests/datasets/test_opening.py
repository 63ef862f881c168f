"""Only regular files of known formats are opened: nothing hangs, starts a program, or takes all memory."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from kdad_bench.datasets import cache, decoding
from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.depth import read_scan

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/owned) (w) file closefile\nshowpage\n"
WIDE = 60_000  # pixels a side


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return decoding.PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head


def tiff(width: int, height: int) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(tags))
        + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        + bytes(4)
    )


HEADERS = {"PNG": png, "BMP": bmp, "TIFF": tiff, "PPM": lambda width, height: f"P5 {width} {height} 255\n".encode()}
READERS: dict[str, Callable[[Path], object]] = {
    "image": decoding.open_image,
    "size": decoding.image_size,
    "bytes": decoding.read_bytes,
    "mask": decoding.mask_of,
    "scan": read_scan,
    "hash": cache.file_hash,
}


def refused(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(DatasetError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "endless", "folder", "link to one", "socket", "circle", "gone"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "link to one":
        path.symlink_to("/dev/zero")
    else:
        path = {"device": Path("/dev/null"), "endless": Path("/dev/zero"), "gone": path}[kind]
    assert "cannot be read" in refused(READERS[reader], path)


@pytest.mark.parametrize("reader", ["image", "size"])
@pytest.mark.parametrize("side", [9_000, 12_000, WIDE])  # Pillow itself is silent, warns, raises
@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_of_too_many_pixels_is_one_line(tmp_path: Path, kind: str, side: int, reader: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(HEADERS[kind](side, side))
    assert "above the limit" in refused(READERS[reader], path)


def test_a_sparse_giant_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with open(path, "wb") as file:
        file.truncate(1 << 42)
    for name in ("image", "bytes", "scan"):
        assert "above the limit" in refused(READERS[name], path)


def test_a_file_that_grows_while_it_is_read_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bytes(3_000_000))
    monkeypatch.setattr(decoding, "MAX_BYTES", 2_000_000)
    monkeypatch.setattr(cache, "MAX_BYTES", 2_000_000)
    assert "above the limit" in refused(READERS["bytes"], path)
    assert "more than 2000000 bytes" in refused(READERS["hash"], path)
    real = os.fstat

    class Small:
        def __init__(self, about: os.stat_result) -> None:
            self.st_mode, self.st_size = about.st_mode, 0

    monkeypatch.setattr(decoding.os, "fstat", lambda one: Small(real(one)))  # as of a file that says 0, as in /proc
    assert "above the limit" in refused(READERS["bytes"], path)


@pytest.mark.parametrize("data", [EPS, b"\xc5\xd0\xd3\xc6" + bytes(26) + EPS, b"%PDF-1.4\n", b"GIF89a" + bytes(20)])
def test_other_formats_start_no_program(tmp_path: Path, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program is started"))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for name in ("image", "size", "mask"):
        assert "not one of PNG" in refused(READERS[name], path)


MEMORY = """
import resource, sys
from pathlib import Path
from kdad_bench.datasets import decoding
from kdad_bench.datasets.category import DatasetError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decoding.open_image(Path(sys.argv[1]))
except DatasetError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("target", ["/dev/zero", "sparse", "header"])
def test_an_endless_file_takes_no_memory_and_one_line(tmp_path: Path, target: str) -> None:
    path = tmp_path / "a.png"
    if target == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    elif target == "header":
        path.write_bytes(bmp(12_000, 12_000))  # of which Pillow would warn
    else:
        path.symlink_to(target)
    command = [sys.executable, "-c", MEMORY, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line, kilobytes = done.stdout.splitlines()
    assert str(path) in line
    assert int(kilobytes) < 50_000
    assert done.stderr == ""


def test_a_sound_image_is_read_by_every_reader(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(path)
    for name in ("image", "size", "bytes", "mask", "hash"):
        assert READERS[name](path) is not None


def test_nothing_but_the_refusal_is_said_of_a_damaged_tiff(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff would print lines of its own to the terminal."""
    for compression in ("tiff_lzw", "tiff_adobe_deflate"):
        path = tmp_path / f"{compression}.tif"
        Image.effect_noise((64, 64), 90).save(path, compression=compression)
        data = bytearray(path.read_bytes())
        data[20:420] = bytes(400)
        path.write_bytes(data)
        with pytest.raises(DatasetError, match="not a readable image"):
            decoding.read_rgb(path, 32)
    assert capfd.readouterr() == ("", "")


# --- kinds of pictures: each is converted as docs/data.md says, or refused --------------------------------------------

LEVELS = np.array([[0, 255, 256, 4095, 32768, 65535]] * 6, np.uint16)
BYTES = (LEVELS >> 8).astype(np.uint8)
ROUNDED = [0, 1, 1, 16, 128, 255]  # of 65535, to the nearest
HIGH = [0, 0, 1, 15, 128, 255]


def png_of_16_bit_colours(levels: np.ndarray) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = levels.shape
    rows = b"".join(b"\0" + np.stack([row] * 3, 1).astype(">u2").tobytes() for row in levels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return decoding.PNG_SIGNATURE + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def tifffile_of(values: np.ndarray, **more: object) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, values, **more)


CONVERTED: dict[str, tuple[str, Callable[[Path], object], list[int]]] = {
    "16-bit grey PNG": ("a.png", lambda path: Image.fromarray(LEVELS).save(path), ROUNDED),
    "16-bit grey TIFF": ("a.tif", tifffile_of(LEVELS), ROUNDED),
    "16-bit grey PPM": ("a.pgm", lambda path: Image.fromarray(LEVELS).save(path), ROUNDED),
    "16-bit colour TIFF": ("a.tif", tifffile_of(np.stack([LEVELS] * 3, 2), photometric="rgb"), HIGH),
    "16-bit colour PNG": ("a.png", lambda path: path.write_bytes(png_of_16_bit_colours(LEVELS)), HIGH),
    "32-bit grey within 16": ("a.tif", tifffile_of(LEVELS.astype(np.int32)), ROUNDED),
    "grey": ("a.png", lambda path: Image.fromarray(BYTES).save(path), HIGH),
    "grey and alpha": ("a.png", lambda path: Image.fromarray(np.stack([BYTES, BYTES // 2], 2), "LA").save(path), HIGH),
    "colour and alpha": (
        "a.png", lambda path: Image.fromarray(np.stack([BYTES] * 3 + [BYTES // 2], 2)).save(path), HIGH,
    ),
    "one bit": ("a.png", lambda path: Image.fromarray(BYTES > 9).save(path), [0, 0, 0, 255, 255, 255]),
}  # fmt: skip
SIDE_BY_SIDE = {"photometric": "minisblack", "planarconfig": "contig"}
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "32-bit grey beyond 16": (
        "a.tif", tifffile_of(LEVELS.astype(np.int32) * 2), "grey values from 0 to 131070, beyond 16 bits",
    ),
    "signed grey": ("a.tif", tifffile_of(LEVELS.astype(np.int32).astype(np.int16)), "beyond 16 bits"),
    "floats of 64 bits": (
        "a.tif", tifffile_of(LEVELS.astype(np.float64)), "a TIFF file of values of type float64; convert it to 8 or",
    ),
    "integers of 64 bits": ("a.tif", tifffile_of(LEVELS.astype(np.uint64)), "a TIFF file of values of type uint64"),
    "floats": ("a.tif", tifffile_of(LEVELS.astype(np.float32)), "a floating-point image"),
    "four channels": (
        "a.tif", tifffile_of(np.stack([BYTES] * 4, 2), **SIDE_BY_SIDE), "a TIFF file of 4 channels of 8 bits",
    ),
    "seven channels of 16 bits": (
        "a.tif", tifffile_of(np.stack([LEVELS] * 7, 2), **SIDE_BY_SIDE), "7 channels of 16 bits; save one",
    ),
    "planes": (
        "a.tif", tifffile_of(np.stack([BYTES] * 5), photometric="minisblack", planarconfig="separate"), "5 channels",
    ),
    "pages": ("a.tif", tifffile_of(np.stack([BYTES] * 3), photometric="minisblack"), "holds 3 pictures"),
    "an animation": (
        "a.png",
        lambda path: Image.fromarray(BYTES).save(path, save_all=True, append_images=[Image.fromarray(BYTES // 2)]),
        "holds 2 pictures",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVERTED)
def test_a_picture_is_converted_as_the_page_says(tmp_path: Path, case: str) -> None:
    name, write, expected = CONVERTED[case]
    write(tmp_path / name)
    pixels, size = decoding.read_rgb(tmp_path / name, 6)
    assert size == (6, 6)
    assert pixels.tolist() == [[expected] * 6] * 3


@pytest.mark.parametrize("case", REFUSED)
def test_a_picture_that_would_lose_something_is_refused(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name, write, said = REFUSED[case]
    write(tmp_path / name)
    with pytest.raises(DatasetError, match=said):
        decoding.read_rgb(tmp_path / name, 6)
    assert capfd.readouterr() == ("", "")


def test_small_numbers_in_a_mask_of_16_bits_are_kept_or_refused(tmp_path: Path) -> None:
    Image.fromarray((LEVELS == 256).astype(np.uint16)).save(tmp_path / "grey.png")
    assert decoding.mask_of(tmp_path / "grey.png").marked.sum() == 6
    (tmp_path / "colour.png").write_bytes(png_of_16_bit_colours((LEVELS == 256).astype(np.uint16)))
    with pytest.raises(DatasetError, match="a mask of 16-bit colours"):
        decoding.mask_of(tmp_path / "colour.png")
