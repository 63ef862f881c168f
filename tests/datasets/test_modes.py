"""Grey, 16-bit, palette, alpha, CMYK and n-channel files: one table of what becomes of each, at every door."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from kdad_bench import datasets
from kdad_bench.api.images import Images
from kdad_bench.datasets import DatasetError
from kdad_bench.datasets.decoding import mask_of, open_image, read_rgb, upright
from kdad_bench.datasets.verify import verify
from kdad_bench.harness.predict import Judge

SIDE = 16
GREY = np.kron(np.array([[0, 100], [200, 255]], np.uint8), np.ones((8, 8), np.uint8))
RGB = np.stack([GREY, GREY // 2, 255 - GREY], -1)
WIDE, WIDE_RGB = GREY.astype(np.uint16) * 257, RGB.astype(np.uint16) * 257
DARK = (GREY.astype(np.uint16) * 16).clip(max=4095)  # 12 bits in a file of 16
ALPHA = np.full((SIDE, SIDE, 1), 90, np.uint8)


def pillow(kind: str, mode: str = "", **options: Any) -> Callable[[np.ndarray], bytes]:
    def encode(pixels: np.ndarray) -> bytes:
        file, image = io.BytesIO(), Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(file, format=kind, **options)
        return file.getvalue()

    return encode


def tiff(**options: Any) -> Callable[[np.ndarray], bytes]:
    def encode(pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, **options)
        return file.getvalue()

    return encode


def png16(colour_type: int) -> Callable[[np.ndarray], bytes]:
    """A PNG file of 16 bits a channel, which Pillow does not write."""

    def encode(pixels: np.ndarray) -> bytes:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
        parts = ((b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, colour_type, 0, 0, 0)),
                 (b"IDAT", zlib.compress(rows)), (b"IEND", b""))  # fmt: skip
        chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    return encode


def alike(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3)


COLOURS = RGB.transpose(2, 0, 1)
BLACK_OR_WHITE = np.where(GREY > 127, 255, 0).astype(np.uint8)
# name -> (encoder, pixels, what they become)
BECOMES: dict[str, tuple[Callable[[np.ndarray], bytes], np.ndarray, np.ndarray]] = {
    **{f"{kind} grey": (pillow(kind), GREY, alike(GREY)) for kind in ("PNG", "TIFF", "BMP")},
    **{f"{kind} RGB": (pillow(kind), RGB, COLOURS) for kind in ("PNG", "TIFF", "BMP")},
    **{f"{kind} 1 bit": (pillow(kind, "1"), BLACK_OR_WHITE, alike(BLACK_OR_WHITE)) for kind in ("PNG", "TIFF", "BMP")},
    **{f"{kind} alpha": (pillow(kind), np.dstack([RGB, ALPHA]), COLOURS) for kind in ("PNG", "TIFF", "BMP")},
    **{f"{kind} grey, alpha": (pillow(kind), np.dstack([GREY, ALPHA]), alike(GREY)) for kind in ("PNG", "TIFF")},
    **{f"{kind} palette": (pillow(kind, "P"), GREY, alike(GREY)) for kind in ("PNG", "TIFF", "BMP")},
    **{f"{kind} 16-bit grey": (pillow(kind), WIDE, alike(GREY)) for kind in ("PNG", "TIFF")},
    "PNG 12 bits in 16": (pillow("PNG"), DARK, alike(((DARK.astype(int) * 255 + 32767) // 65535).astype(np.uint8))),
    "PNG 16-bit RGB": (png16(2), WIDE_RGB, COLOURS),
    "PNG 16-bit RGB, alpha": (png16(6), np.dstack([WIDE_RGB, WIDE]), COLOURS),
    "PNG 16-bit grey, alpha": (png16(4), np.dstack([WIDE, WIDE // 3]), alike(GREY)),
    "TIFF 16-bit RGB": (tiff(photometric="rgb"), WIDE_RGB, COLOURS),
    "TIFF 16-bit grey, big end first": (tiff(byteorder=">"), WIDE, alike(GREY)),
    "TIFF 32-bit grey within 16": (tiff(), WIDE.astype(np.uint32), alike(GREY)),
    "TIFF signed 16-bit grey": (
        tiff(),
        (WIDE // 2).astype(np.int16),
        alike(((WIDE // 2) / 257).round().astype(np.uint8)),
    ),
    "TIFF multiplied by alpha": (
        tiff(photometric="rgb", extrasamples=["assocalpha"]),
        np.dstack([RGB // 5, np.full((SIDE, SIDE), 51, np.uint8)]),
        COLOURS // 5 * 5,
    ),
    "TIFF grey and alpha": (
        tiff(photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]),
        np.dstack([GREY, 255 - GREY]),
        alike(GREY),
    ),
    "TIFF 8-bit grey, 0 is white": (tiff(photometric="miniswhite"), GREY, alike(255 - GREY)),
    "TIFF 16-bit grey, 0 is white": (tiff(photometric="miniswhite"), WIDE, alike(255 - GREY)),
    "TIFF channel by channel": (tiff(photometric="rgb", planarconfig="separate"), COLOURS, COLOURS),
    "TIFF CMYK": (pillow("TIFF", "CMYK"), RGB, COLOURS),
    "JPEG grey": (pillow("JPEG", quality=100), GREY, alike(GREY)),
    "JPEG and another behind it": (
        pillow("MPO", save_all=True, append_images=[Image.fromarray(255 - RGB)], quality=100, subsampling=0),
        RGB,
        COLOURS,
    ),
    "JPEG CMYK": (pillow("JPEG", "CMYK", quality=100), RGB, COLOURS),
}
REFUSED: dict[str, tuple[Callable[[np.ndarray], bytes], np.ndarray, str]] = {
    "TIFF float": (tiff(), WIDE.astype(np.float32), "a floating-point image, not a picture; convert it to 8 or 16"),
    "TIFF 5 channels": (tiff(photometric="minisblack", planarconfig="contig"), np.zeros((16, 16, 5), np.uint8),
                        "a TIFF file of 5 channels of 8 bits; save one of them, or three as RGB"),
    "TIFF RGB and 3 more": (tiff(photometric="rgb", extrasamples=["unspecified"] * 3), np.zeros((16, 16, 6), np.uint8),
                            "a TIFF file of 6 channels; save one of them, or three as RGB"),
    "TIFF CMYK and 1 more": (tiff(photometric="separated", planarconfig="contig", extrasamples=["unspecified"]),
                             np.zeros((16, 16, 5), np.uint8), "a TIFF file of 5 channels; save one"),
    "TIFF grey and another grey": (tiff(photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"]),
                                   np.dstack([GREY, 255 - GREY]), "a TIFF file of 2 channels; save one"),
    "TIFF RGB and infrared": (tiff(photometric="rgb", extrasamples=["unspecified"]), np.dstack([RGB, GREY]),
                              "a TIFF file of 4 channels; save one of them, or three as RGB"),
    "TIFF signed bytes": (tiff(), (GREY // 2).astype(np.int8), "a TIFF file of signed numbers; convert it to unsigned"),
    "TIFF 16 bits channel by channel": (tiff(photometric="rgb", planarconfig="separate"), COLOURS.astype(np.uint16),
                                        "a TIFF file of 16 bits, plane by plane; save it pixel by pixel"),
    "TIFF below 0": (tiff(), WIDE.astype(np.int16), "grey values from -[0-9]+ to [0-9]+, beyond 16 bits"),
    "TIFF beyond 16 bits": (tiff(), WIDE.astype(np.uint32) * 2, "grey values from 0 to 131070, beyond 16 bits"),
}  # fmt: skip


@pytest.fixture
def at_doors(tmp_path: Path) -> Callable[[bytes], list[Callable[[], np.ndarray]]]:
    """The ways in which an image file comes in: of a data set, of `predict`, of a Detector."""

    def doors(content: bytes) -> list[Callable[[], np.ndarray]]:
        for place in ("train/good/0.png", "test/good/0.png", "test/bad/0.png"):
            path = tmp_path / "part" / place
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
        (category,) = datasets.categories(f"folder:{tmp_path}", None)
        judge = Judge(name="x", method=None, resolution=SIDE, device=torch.device("cpu"))  # type: ignore[arg-type]

        def predicted() -> np.ndarray:
            found = judge.pixels(path)
            if found is None:
                raise DatasetError(judge.failed[-1].reason)
            return found

        def given() -> np.ndarray:
            return (Images([path]).all(SIDE, torch.device("cpu"))[0] * 255).round().to(torch.uint8).numpy()

        return [
            lambda: read_rgb(path, SIDE)[0],
            lambda: datasets.load_train(category, SIDE)[0],
            lambda: datasets.load_test(category, SIDE).images[0],
            lambda: datasets.load_pictures(category, "train", SIDE, datasets.SHORT_SIDE)[0],
            predicted,
            given,
        ]

    return doors


@pytest.mark.parametrize("name", BECOMES)
def test_what_a_file_becomes_is_the_same_at_every_door(name: str, at_doors: Any) -> None:
    encode, pixels, expected = BECOMES[name]
    worst = 3 if name.startswith("JPEG") else 0
    for door in at_doors(encode(pixels)):
        assert int(np.abs(door().astype(int) - expected.astype(int)).max()) <= worst


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_lose_something_is_refused_in_one_line_at_every_door(name: str, at_doors: Any) -> None:
    encode, pixels, words = REFUSED[name]
    for door in at_doors(encode(pixels)):
        with pytest.raises(DatasetError, match=words) as found:
            door()
        assert "0.png: " in str(found.value)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", REFUSED)
def test_verify_refuses_an_image_in_the_words_of_a_job(name: str, tmp_path: Path) -> None:
    encode, pixels, _ = REFUSED[name]
    for place in ("train/good/0.png", "test/good/0.png", "test/bad/0.png"):
        path = tmp_path / "part" / place
        path.parent.mkdir(parents=True)
        path.write_bytes(encode(pixels))
    (category,) = datasets.categories(f"folder:{tmp_path}", None)
    with pytest.raises(DatasetError) as failed:
        datasets.load_train(category, SIDE)
    report = verify(tmp_path, against="none")
    assert report.exit_code == 2
    assert str(failed.value) in report.categories[0].problems
    assert report.categories[0].refused == 3


LABEL = np.zeros((SIDE, SIDE), np.uint16)
LABEL[:4, :4] = 1  # the high byte of which is 0
LABELS = np.dstack([LABEL] * 3)


def ppm(kind: str, highest: int) -> Callable[[np.ndarray], bytes]:
    def encode(pixels: np.ndarray) -> bytes:
        head = f"{kind} {SIDE} {SIDE} {highest}\n".encode()
        if kind in ("P2", "P3"):
            return head + " ".join(map(str, pixels.ravel().tolist())).encode() + b"\n"
        return head + pixels.astype(">u2").tobytes()

    return encode


EXACT = {
    "PNG grey": pillow("PNG"), "TIFF grey": tiff(), "TIFF grey, packed": tiff(compression="zlib"),
    "TIFF grey, big end first": tiff(byteorder=">"), "P5": ppm("P5", 65535), "P5, 12 bits": ppm("P5", 4095),
    "P2": ppm("P2", 65535),
}  # fmt: skip
CUT: dict[str, tuple[Callable[[np.ndarray], bytes], np.ndarray]] = {
    "PNG colours": (png16(2), LABELS),
    "PNG colours, alpha": (png16(6), np.dstack([LABELS, LABEL])),
    "PNG grey, alpha": (png16(4), np.dstack([LABEL, LABEL])),
    "TIFF colours": (tiff(photometric="rgb"), LABELS),
    "TIFF colours, packed": (tiff(photometric="rgb", compression="zlib"), LABELS),
    "TIFF colours, big end first": (tiff(photometric="rgb", byteorder=">"), LABELS),
    "TIFF colours, alpha": (tiff(photometric="rgb", extrasamples=["unassalpha"]), np.dstack([LABELS, LABEL])),
    "TIFF CMYK": (tiff(photometric="separated"), np.dstack([LABELS, LABEL])),
    "P6": (ppm("P6", 65535), LABELS),
    "P6, 12 bits": (ppm("P6", 4095), LABELS),
    "P3": (ppm("P3", 65535), LABELS),
}


@pytest.mark.parametrize("name", EXACT)
def test_a_mask_of_16_bits_that_is_read_exactly_marks_a_small_label(name: str, tmp_path: Path) -> None:
    (tmp_path / "mask").write_bytes(EXACT[name](LABEL))
    assert np.array_equal(mask_of(tmp_path / "mask").marked, LABEL > 0)


@pytest.mark.parametrize("name", CUT)
def test_a_mask_of_16_bits_that_is_cut_to_8_is_refused(name: str, tmp_path: Path) -> None:
    encode, pixels = CUT[name]
    (tmp_path / "mask").write_bytes(encode(pixels))
    read_rgb(tmp_path / "mask", SIDE)  # a photograph may be so
    with pytest.raises(DatasetError, match="mask: a mask of 16-bit colours, whose small values would be lost; save it"):
        mask_of(tmp_path / "mask")


def test_16_bits_are_scaled_by_the_format_and_not_by_the_range_of_the_image(tmp_path: Path) -> None:
    for top in (255, 257, 4095, 65535):
        path = tmp_path / "one.png"
        path.write_bytes(pillow("PNG")(np.full((8, 8), top, np.uint16)))
        assert int(read_rgb(path, 8)[0].max()) == round(top * 255 / 65535)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "white"])
def test_the_camera_s_orientation_turns_image_and_mask_alike(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:4, :4] = 255
    path = tmp_path / "one.img"
    if kind == "white":  # 16-bit grey with white zeros
        tifffile.imwrite(path, 65535 - pixels.astype(np.uint16) * 257, photometric="miniswhite",
                         extratags=[(0x0112, "H", 1, orientation, True)])  # fmt: skip
    else:
        Image.fromarray(pixels).save(path, format=kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    image, size = read_rgb(path, (16, 8) if orientation > 4 else (8, 16))
    assert size == ((8, 16) if orientation > 4 else (16, 8))
    marked = image[0] > 127
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert marked.sum() == 16
    assert marked[corner[orientation]]
    assert np.array_equal(mask_of(path, size).marked, marked)
    assert upright(path) == (size, (16, 8), orientation > 1)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_note_behind_the_pixels_of_a_png_turns_it_too(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "one.png"
    Image.fromarray(np.zeros((8, 16), np.uint8)).save(path, exif=exif)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + int.from_bytes(data[start : start + 4], "big") + 12
    last = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert upright(path) == (open_image(path).size, (16, 8), orientation > 1)


def test_a_detector_says_how_16_bits_become_8() -> None:
    from kdad_bench.api.images import ImagesError

    with pytest.raises(ImagesError, match=r"uint16 .* is not uint8: scale 16 bits with \(images / 257\)"):
        Images(np.zeros((1, 8, 8, 3), np.uint16))
