"""Image files -> uint8 arrays: every usual kind of file is converted, everything else ends in one clear line."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from kdad_bench.datasets.category import DatasetError

MAX_PIXELS = 8192 * 8192  # an image with more pixels is refused before it is decoded (a decompression bomb)
MAX_BYTES = 600_000_000  # no image within MAX_PIXELS needs a larger file: 8 bytes a pixel, 16-bit RGBA
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
# recognised by content, not by suffix; formats that start other programs are left out
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

U8 = npt.NDArray[np.uint8]


def read_bytes(path: Path) -> bytes:
    """The contents of `path`. Raises DatasetError if it is missing, unreadable, empty or above MAX_BYTES."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"{path}: {size} bytes, above the limit of {MAX_BYTES} for an image file; not read")
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); restore the file") from error
    if not data:
        raise DatasetError(f"{path}: the file is empty (0 bytes); restore it")
    return data


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise DatasetError if an image of width x height is beyond MAX_PIXELS or has no pixel."""
    if width * height > MAX_PIXELS:
        raise DatasetError(
            f"{path}: {width} x {height} pixels, above the limit of {MAX_PIXELS} pixels; reduce the image first"
        )
    if width < 1 or height < 1:
        raise DatasetError(f"{path}: {width} x {height} pixels: no image; restore the file")


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """The decoded image of `path`, turned upright by its EXIF orientation, in the mode of the file.

    `data` are the bytes of the file where the caller has read them. Raises DatasetError with one line.
    """
    if data is None:
        data = read_bytes(path)
    if data[:8] == PNG_SIGNATURE and len(data) >= 24:  # before Pillow sees it: its own bomb limit only warns
        check_pixels(path, *struct.unpack(">II", data[16:24]))
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        check_pixels(path, *image.size)
        image.load()
        if image.getexif().get(0x0112, 1) != 1:
            image = ImageOps.exif_transpose(image)
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        reason = str(error).replace(str(path), "").splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not one of " + ", ".join(FORMATS)
        raise DatasetError(f"{path}: not a readable image ({reason}); restore the file") from error
    return image


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as the file's header says, without decoding it. Raises DatasetError if it has none."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.size
    except Exception as error:  # Pillow's parsers raise almost anything on damaged files
        raise DatasetError(f"{path}: not a readable image; restore the file") from error


def as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """`image` in mode RGB: grey is repeated, 16-bit grey scaled from 65535 to 255, alpha dropped, CMYK converted."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise DatasetError(f"{path}: a floating-point image, not a picture; convert it to 8 or 16 bits")
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DatasetError(f"{path}: colour mode {image.mode} cannot be converted to RGB; convert the file") from error


def read_rgb(path: Path, resolution: int) -> tuple[U8, tuple[int, int]]:
    """`path` as uint8 [3, R, R] (Pillow's antialiased bilinear reduction, no crop) and its own (width, height)."""
    image = as_rgb(open_image(path), path)
    size = image.size
    if size != (resolution, resolution):
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1), size


def read_mask(path: Path, resolution: int | None, size: tuple[int, int] | None = None) -> npt.NDArray[np.bool_]:
    """`path` as bool [R, R], True where any colour is above 0, taken by nearest neighbour ([H, W] if R is None).

    Raises DatasetError if the mask has not the `size` (width, height) of its image.
    """
    image = open_image(path)
    if size is not None and image.size != size:
        raise DatasetError(
            f"{path}: the mask is {image.size[0]} x {image.size[1]} pixels and its image {size[0]} x {size[1]}; "
            "they must be equal"
        )
    if image.mode.startswith(("I", "F")):
        marked: npt.NDArray[np.bool_] = np.asarray(image) > 0
    elif image.mode in ("1", "L"):
        marked = np.asarray(image.convert("L")) > 0
    else:
        marked = np.asarray(as_rgb(image, path)).max(axis=2) > 0
    if resolution is None or marked.shape == (resolution, resolution):
        return marked
    reduced = Image.fromarray(marked.astype(np.uint8)).resize((resolution, resolution), Image.Resampling.NEAREST)
    return np.asarray(reduced) > 0
