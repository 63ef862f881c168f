"""Image files -> uint8 arrays: every usual kind of file is converted, everything else ends in one clear line."""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from kdad_bench.datasets.category import DatasetError
from kdad_bench.datasets.marking import (
    FEW_VALUES,
    doubt_about,
    has_halo,
    lossy_format,
    nothing_marked,
    rim_of,
)
from kdad_bench.text import reason_of

MAX_PIXELS = 8192 * 8192  # an image with more pixels is refused before it is decoded (a decompression bomb)
MAX_BYTES = 600_000_000  # no image within MAX_PIXELS needs a larger file: 8 bytes a pixel, 16-bit RGBA
CHUNK = 1 << 20
BEYOND = 1 << 12  # bytes asked for beyond the size that a file says: whether it ends there
# recognised by content, not by suffix; formats that start other programs are left out
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
BEGINNINGS = (b"\x89PNG", b"\xff\xd8", b"BM", b"II", b"MM", b"RIFF", b"P")  # of files in these formats
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

U8 = npt.NDArray[np.uint8]


def _silence_libtiff() -> None:
    """Pillow's libtiff prints its thoughts on damaged files past every stream of ours; the error raised says enough."""
    for path in (Path(PIL.__file__).parent.parent / "pillow.libs").glob("libtiff*"):
        with suppress(OSError, AttributeError):  # another build of Pillow
            library = ctypes.CDLL(str(path))
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


_silence_libtiff()
logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it says of a bad file stands in the error
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # and so does this
# a picture that Pillow finds too large is refused as a damaged one is; it would only warn
warnings.simplefilter("error", Image.DecompressionBombWarning)


class Mask(NamedTuple):
    """What a file of ground truth marks."""

    marked: npt.NDArray[np.bool_]  # [H, W]
    doubt: str  # why it may not mean that, or nothing
    values: tuple[int, ...] = ()  # other than 0, ascending; the first FEW_VALUES + 1 of them
    rim: float = 0.0  # the share of the outermost pixels that is marked


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """`path` opened for reading, if it is a regular file: a pipe would block, a device would never end.

    Raises DatasetError with one line.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path}: cannot be read ({reason}); restore the file") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DatasetError(f"{path}: cannot be read (not a regular file); restore the file")
    with open(descriptor, "rb", buffering=0) as file:
        yield file


def read_bytes(path: Path, sha256: str | None = None, *, image: bool = True, most: int | None = None) -> bytes:
    """The contents of `path`, which have the given SHA-256 where one is given.

    Raises DatasetError if it is missing, unreadable, no regular file, empty, above `most` bytes (MAX_BYTES) or of other
    contents, and for a large file that does not begin as an `image` where one is meant.
    """
    with opened(path) as file:
        try:
            data = _within(file, path, image, MAX_BYTES if most is None else most)
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror or error}); restore the file") from error
    if not data:
        raise DatasetError(f"{path}: the file is empty (0 bytes); restore it")
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"{path}: changed while it was read; run again when nothing writes to it")
    return data


def _within(file: IO[bytes], path: Path, image: bool, most: int) -> bytes:
    """All bytes of an open file, which need not have the size that it says; none of a large one that is no `image`."""
    size, done = os.fstat(file.fileno()).st_size, 0
    if image and CHUNK < size <= most and not file.read(8).startswith(BEGINNINGS):
        raise DatasetError(f"{path}: not a readable image (not one of {', '.join(FORMATS)}); restore the file")
    file.seek(0)
    pieces: list[bytes] = []
    while size <= most and done <= most:
        piece = file.read(max(size - done, 0) + BEYOND)  # in one, so that nothing is held twice
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        done += len(piece)
    what = "an image file; not read" if image else "such a file; make it smaller"
    raise DatasetError(f"{path}: {max(size, done)} bytes, above the limit of {most} for {what}")


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
    image = header(path, io.BytesIO(read_bytes(path) if data is None else data))
    try:
        refuse_what_would_be_lost(path, image)
        image.load()
        image = positive(image)
        if image.getexif().get(ORIENTATION, 1) != 1:
            return ImageOps.exif_transpose(image)
    except DatasetError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise _damaged(path, error) from error
    return image


# numbers of TIFF tags
ORIENTATION, TURNED, ON_THEIR_SIDE = 274, range(2, 9), range(5, 9)
BITS, PHOTOMETRIC, SAMPLES, PLANES, EXTRA, SAMPLE_FORMAT = 258, 262, 277, 284, 338, 339
WHITE_IS_ZERO, SIGNED, SEPARATE, UNSPECIFIED = 0, 2, 2, 0
MOST_SAMPLES = 4  # of a pixel: three colours and an alpha channel, or CMYK


def refuse_what_would_be_lost(path: Path, image: Image.Image) -> None:
    """Raises DatasetError for a file of several pictures, of which one would be read, and for a TIFF file of more than
    MOST_SAMPLES channels, or with one that is neither colour nor alpha, of which Pillow would read the first few, of
    signed bytes, which it takes for unsigned ones, or of 16 bits plane by plane, which it misreads."""
    pictures = getattr(image, "n_frames", 1) if image.format in ("TIFF", "PNG", "WEBP") else 1
    if pictures > 1:
        raise DatasetError(f"{path}: holds {pictures} pictures, of which one would be read; keep one in a file")
    tags = getattr(image, "tag_v2", {})
    count = int(tags.get(SAMPLES, 1))
    if count > MOST_SAMPLES or UNSPECIFIED in _extra(tags):
        raise DatasetError(f"{path}: a TIFF file of {count} channels; save one of them, or three as RGB")
    if count > 1 and tags.get(PLANES) == SEPARATE and _bits(image) > 8:  # Pillow takes each byte for a sample
        raise DatasetError(f"{path}: a TIFF file of {_bits(image)} bits, plane by plane; save it pixel by pixel")
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and SIGNED in tags.get(SAMPLE_FORMAT, (1,)):
        raise DatasetError(f"{path}: a TIFF file of signed numbers; convert it to unsigned ones of 8 or 16 bits")


def _extra(tags: Any) -> tuple[int, ...]:
    """What a TIFF file says of its channels beside the colours, a number each; nothing where it says nothing."""
    found = tags.get(EXTRA, ())
    return tuple(found) if isinstance(found, tuple) else (found,)


def positive(image: Image.Image) -> Image.Image:
    """16-bit grey of a TIFF file in which 0 is white as one in which 0 is black: Pillow turns those of 8 bits alone."""
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        orientation = image.getexif()
        turned = Image.fromarray((65535 - np.asarray(image).astype(np.int64)).astype(np.uint16))
        turned.getexif().update(orientation)
        return turned
    return image


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as the file's header says, without decoding it. Raises DatasetError if it has none."""
    with opened(path) as file:
        return header(path, file).size


def refuse_by_header(path: Path) -> None:
    """Raises DatasetError for a file that no run takes for a picture, as its header says; no pixel is decoded."""
    with opened(path) as file:
        image = header(path, file)
        try:
            refuse_what_would_be_lost(path, image)
        except DatasetError:
            raise
        except Exception as error:  # Pillow's parsers raise almost anything on damaged files
            raise _damaged(path, error) from error
        refuse_floats(path, image)


class Upright(NamedTuple):
    """How an image lies, as told by the note of the camera in its file."""

    size: tuple[int, int]  # width, height as it is read
    stored: tuple[int, int]  # the same as the file has it
    turned: bool  # the note asks for a turn or a mirror


def upright(path: Path) -> Upright:
    """The size of an image as `open_image` gives it, without decoding it. Raises DatasetError if it has none."""
    with opened(path) as file:
        image = header(path, file)
        try:
            late = image.format == "PNG" and _notes_behind_pixels(file)
            note = (image.getexif() if late else Image.Image.getexif(image)).get(ORIENTATION, 1)
            stored = image.size if image.format != "TIFF" else _size_in_tags(image)
        except Exception as error:  # Pillow's parsers raise almost anything on damaged files
            raise _damaged(path, error) from error
    return Upright(stored[::-1] if note in ON_THEIR_SIDE else stored, stored, note in TURNED)


TURNED_APART = (
    "is turned by a note of the camera, or its image is, and not both; does it lie on the image as it is read?"
)


def turned_apart(image: Path, mask: Path) -> bool:
    """Whether a note turns an image or its mask and not both, where their sizes do not tell which of them was meant.

    Headers alone are read. Raises DatasetError for what has none.
    """
    one, other = upright(image), upright(mask)
    return one.turned != other.turned and one.size == one.stored and other.size == other.stored


def _size_in_tags(image: Any) -> tuple[int, int]:
    """Width and height of a TIFF image as they are stored: Pillow turns its size, since version 11."""
    return image.tag_v2[256], image.tag_v2[257]


def _notes_behind_pixels(file: IO[bytes]) -> bool:
    """Whether an open PNG file has words behind its pixels, which Pillow comes upon only as it decodes them."""
    place, passed, found = file.tell(), False, False
    file.seek(len(PNG_SIGNATURE))
    while len(start := file.read(8)) == 8 and not found:
        kind = start[4:]
        found, passed = passed and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"), passed or kind == b"IDAT"
        file.seek(int.from_bytes(start[:4], "big") + 4, os.SEEK_CUR)
    file.seek(place)
    return found


def header(path: Path, file: IO[bytes]) -> Image.Image:
    """The image in an open file, its size known and within the limit, its pixels not decoded.

    Raises DatasetError for what is none.
    """
    try:
        start = file.read(24)
        file.seek(0)
        if start[:8] == PNG_SIGNATURE and len(start) == 24:  # before Pillow sees it: it names its own limit
            check_pixels(path, *struct.unpack(">II", start[16:]))
        image: Image.Image = Image.open(file, formats=FORMATS)
    except DatasetError:
        raise
    except UnidentifiedImageError as error:
        if channels := _unknown_tiff(start, file):
            raise DatasetError(f"{path}: a TIFF file of {channels}") from error
        raise _damaged(path, error) from error
    except Exception as error:  # Pillow's parsers raise almost anything on damaged files
        raise _damaged(path, error) from error
    check_pixels(path, *image.size)
    return image


def _unknown_tiff(start: bytes, file: IO[bytes]) -> str:
    """What a TIFF file that Pillow does not know is made of, and what to do; nothing for another file."""
    if not start.startswith((b"II*\0", b"MM\0*")):
        return ""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        file.seek(0)
        page = tifffile.TiffFile(file, name="x.tiff").pages.first  # the name of an open file may be a number
        channels, bits, kind = int(page.samplesperpixel), int(page.bitspersample), page.dtype
        if channels > 1:
            return f"{channels} channels of {bits} bits; save one of them, or three as RGB"
        odd = kind is not None and (kind.kind not in "ui" or kind.itemsize > 2)
        return f"values of type {kind}; convert it to 8 or 16 bits" if odd else ""
    except Exception:  # a damaged file has many ways to be so; it is told as one
        return ""


def _damaged(path: Path, error: Exception) -> DatasetError:
    why = reason_of(error, but=str(path))
    if isinstance(error, UnidentifiedImageError):
        why = "not one of " + ", ".join(FORMATS)
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        why = f"above the limit of {MAX_PIXELS} pixels"
    return DatasetError(f"{path}: not a readable image ({why}); restore the file")


def as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """`image` in mode RGB: grey is repeated, 16-bit grey scaled from 65535 to 255, alpha dropped, CMYK converted."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DatasetError(
                f"{path}: grey values from {values.min()} to {values.max()}, beyond 16 bits; convert it to 8 or 16 bits"
            )
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    refuse_floats(path, image)
    if image.mode in ("P", "PA", "LA", "La", "RGBa"):
        image = image.convert("RGBA")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DatasetError(f"{path}: colour mode {image.mode} cannot be converted to RGB; convert the file") from error


def refuse_floats(path: Path, image: Image.Image) -> None:
    """Raises DatasetError for what is no picture but measured values."""
    if image.mode == "F":
        raise DatasetError(f"{path}: a floating-point image, not a picture; convert it to 8 or 16 bits")


def read_rgb(path: Path, shape: int | tuple[int, int], sha256: str | None = None) -> tuple[U8, tuple[int, int]]:
    """`path` as uint8 [3, H, W] (Pillow's antialiased bilinear reduction, no crop) and its own (width, height).

    `shape` is (H, W), or the side of a square. Raises DatasetError if it cannot be read, or has not the SHA-256 where
    one is given.
    """
    image = as_rgb(open_image(path, read_bytes(path, sha256)), path)
    return reduced_rgb(image, shape), image.size


def reduced_rgb(image: Image.Image, shape: int | tuple[int, int]) -> U8:
    """An image of mode RGB as uint8 [3, H, W] of that `shape`: Pillow's antialiased bilinear reduction, no crop."""
    height, width = (shape, shape) if isinstance(shape, int) else shape
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def read_mask(
    path: Path, shape: int | tuple[int, int] | None, size: tuple[int, int] | None = None
) -> npt.NDArray[np.bool_]:
    """`path` as bool [H, W] of that `shape`, or a square of that side, True where it marks a defect, taken by nearest
    neighbour (as large as it is if `shape` is None).

    Raises DatasetError if the mask has not the `size` (width, height) of its image.
    """
    return reduced(mask_of(path, size).marked, shape)


def mask_of(path: Path, size: tuple[int, int] | None = None, sha256: str | None = None) -> Mask:
    """What the mask `path` marks, at its own size: every pixel with a value above 0.

    A lossy format blurs edges: in one, and in a file that went through one (`marking.has_halo`), a pixel is marked
    above half of the highest value. Raises DatasetError if it cannot be read, has not the `size` (width, height) of
    its image, or not the SHA-256 where one is given.
    """
    data = read_bytes(path, sha256)
    stored = header(path, io.BytesIO(data))
    if _is_cut_to_bytes(stored, data):
        raise DatasetError(f"{path}: a mask of 16-bit colours, whose small values would be lost; save it as grey")
    image, lossy = open_image(path, data), lossy_format(stored, data)
    if size is not None and image.size != size:
        raise DatasetError(
            f"{path}: the mask is {image.size[0]} x {image.size[1]} pixels and its image {size[0]} x {size[1]}; "
            "they must be equal"
        )
    if image.mode.startswith(("I", "F")):
        values: npt.NDArray[Any] = np.asarray(image)
    elif image.mode in ("1", "L"):
        values = np.asarray(image.convert("L"))
    else:
        values = np.asarray(as_rgb(image, path)).max(axis=2)
    if values.dtype.kind in "if" and not bool((np.isfinite(values) & (values >= 0)).all()):
        raise DatasetError(f"{path}: a mask with values below 0 or not finite; save it with 0 and one value above it")
    found = _distinct(values)
    halo = not lossy and has_halo(values, found)
    marked: npt.NDArray[np.bool_] = 2 * values.astype(np.float64) > values.max() if lossy or halo else values > 0
    doubt = doubt_about(found, lossy=lossy, halo=halo) if marked.any() else nothing_marked(image)
    return Mask(marked, doubt, tuple(int(value) for value in found[: FEW_VALUES + 1]), rim_of(marked))


def _is_cut_to_bytes(image: Image.Image, data: bytes) -> bool:
    """Whether the samples of a file with these bytes have more than 8 bits, of which Pillow gives 8: anything but grey
    without alpha."""
    if image.format == "PNG":
        return data[24] > 8 and data[25] != 0  # bits, and the type of colour: 0 is grey
    if image.mode.startswith(("I", "F")):
        return False
    if image.format == "PPM":
        (tile,) = image.tile  # type: ignore[attr-defined]
        return isinstance(tile.args, tuple) and int(tile.args[-1]) > 255  # the highest value
    return _bits(image) > 8


def _bits(image: Image.Image) -> int:
    """Bits of a sample of a TIFF file; 1 of any other."""
    return int(max(getattr(image, "tag_v2", {}).get(BITS, (1,))))


def _distinct(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The values other than 0, ascending."""
    if values.dtype == np.uint8:  # counted, which is much faster than sorted
        return np.flatnonzero(np.bincount(values.ravel().astype(np.int64), minlength=1)[1:]) + 1
    return np.unique(values[values != 0])


def reduced(marked: npt.NDArray[np.bool_], shape: int | tuple[int, int] | None) -> npt.NDArray[np.bool_]:
    """A mask by nearest neighbour as one of that `shape` (H, W), or a square of that side; as it is for None."""
    wanted = (shape, shape) if isinstance(shape, int) else shape
    if wanted is None or marked.shape == wanted:
        return marked
    small = Image.fromarray(marked.astype(np.uint8)).resize((wanted[1], wanted[0]), Image.Resampling.NEAREST)
    return np.asarray(small) > 0
