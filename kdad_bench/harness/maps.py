"""Files of anomaly maps that other code wrote -> float32 arrays. They are untrusted: bounded, and never unpickled."""

from __future__ import annotations

import io
import logging
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kdad_bench.datasets import DatasetError
from kdad_bench.datasets.decoding import MAX_PIXELS, PNG_SIGNATURE, open_image, opened, read_bytes
from kdad_bench.harness.plain_tiff import ORIENTATION, PHOTOMETRIC, plain_page
from kdad_bench.text import reason_of

MOST_VALUES = 1 << 30  # of a stack of maps in one file
MOST_TEXT = 1 << 28  # bytes of their names, each of which takes as much as the longest
MOST_MEMBERS = 16  # arrays of one .npz file
DEFLATE = (8, 32946)  # TIFF's numbers for zlib
WHITE = "says that 0 is white, so that higher values are darker; save it with 0 as black"
TURNED = "says that it is to be turned or mirrored (tag Orientation); save it upright"
GREY = ("L", "I", "I;16", "I;16B", "I;16L")  # modes of Pillow with one channel of 8 or 16 bits
STACK = ("maps", "names")  # the arrays that a file of all maps has at least, as `run --save-maps` writes it
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs what it also raises

Floats = NDArray[np.floating[Any]]  # float32 or float64


class MapError(ValueError):
    """A file holds no usable anomaly map: what is wrong, in words that follow its path."""


class Stack(NamedTuple):
    """All maps of a test set from one file."""

    maps: NDArray[Any]  # [N, H, W]
    names: tuple[str, ...]
    scores: tuple[float, ...]  # () without image scores
    sizes: tuple[tuple[int, int], ...] = ()  # height and width of each, from the upper left corner; (): all fill H x W


def read_map(path: Path) -> Floats:
    """The map in `path`, `plain`, by the suffix of the file. Raises MapError for anything else."""
    if path.suffix.lower() not in READERS:
        raise MapError(f"is no file of a map; they end in {', '.join(READERS)}")
    return plain(said(lambda: READERS[path.suffix.lower()](path)))


def plain(array: NDArray[Any]) -> Floats:
    """`array` [H, W] as float32, or as float64 where float32 would round it; axes of length 1 are dropped.

    Raises MapError where it is no map of numbers that are finite in float32.
    """
    flat = array.reshape([side for side in array.shape if side != 1]) if array.ndim > 2 else array
    if flat.ndim != 2 or flat.size == 0:
        raise MapError(f"holds an array of shape {array.shape}; a map is H x W")
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(flat, dtype=np.float32)
    least, most = float(values.min()), float(values.max())  # NaN goes through both
    if not (math.isfinite(least) and math.isfinite(most)):
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise MapError(f"holds {values[row, column]} at row {row}, column {column}; a map is finite in float32")
    if np.can_cast(flat.dtype, np.float32):
        return values
    with np.errstate(invalid="ignore"):  # whole numbers beyond those of 64 bits, on the way back
        whole = np.ascontiguousarray(flat, dtype=np.float64)
        if not np.array_equal(whole.astype(flat.dtype), flat):
            raise MapError(f"holds values of type {flat.dtype} that float64 would round; save them as float64")
    return values if np.array_equal(values, whole) else whole


def resampled(values: Floats, shape: int | tuple[int, int]) -> Floats:
    """A map of that `shape` (height, width), or of a square's side, in its own type: as it is where it has that size,
    else by an antialiased bilinear resize, Pillow's of float32 and PyTorch's of float64, which Pillow has not.
    """
    height, width = (shape, shape) if isinstance(shape, int) else shape
    if values.shape == (height, width):
        return values
    if values.dtype == np.float64:
        return in_float64(values, height, width)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)


def in_float64(values: Floats, height: int, width: int) -> Floats:
    """float64 `values` [H, W] resampled to [height, width], by the same triangle filter as Pillow's."""
    import torch  # late: maps of float32 need none of it

    whole = torch.tensor(values)[None, None]  # a copy: what a file gave may be read-only
    small = torch.nn.functional.interpolate(whole, (height, width), mode="bilinear", antialias=True)
    return np.asarray(small[0, 0].numpy())


def said(read: Callable[[], Any]) -> Any:
    """What `read` returns; whatever a parser raises on a damaged file becomes one MapError."""
    try:
        return read()
    except MapError:
        raise
    except DatasetError as error:
        raise MapError(str(error).partition(": ")[2]) from error
    except Exception as error:  # parsers of files raise almost anything on damaged ones
        raise MapError(f"is not readable ({reason_of(error)[:160]}); write it again") from error


def numbers(kind: np.dtype[Any]) -> np.dtype[Any]:
    """`kind` if it is one of numbers; raises MapError for truth values, objects, text."""
    if kind.hasobject:
        raise MapError("holds Python objects, which are not read from files of others; save an array of numbers")
    if kind.kind not in "fui":
        raise MapError(f"holds values of type {kind}; a map holds floats or whole numbers")
    return kind


def read_array(stream: IO[bytes], most: int, kinds: Callable[[np.dtype[Any]], Any] = numbers) -> NDArray[Any]:
    """The array of an open .npy file: its header is judged before a value is read. Raises MapError."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise MapError(f"is an .npy file of version {version[0]}.{version[1]}; save it with numpy.save")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_column, kind = header(stream)
    kinds(kind)
    count = math.prod(shape)
    if count > most or min(shape, default=1) < 0:
        raise MapError(f"says it holds {count} values of shape {shape}; {most} are the most")
    if kind.kind == "U" and count * kind.itemsize > MOST_TEXT:
        raise MapError(
            f"says it holds {count} names of up to {kind.itemsize // 4} letters; {MOST_TEXT} bytes are the most"
        )
    data = stream.read(count * kind.itemsize)
    if len(data) != count * kind.itemsize:
        raise MapError(f"is cut off: {len(data)} of {count * kind.itemsize} bytes are there; write it again")
    return np.frombuffer(data, kind).reshape(shape, order="F" if by_column else "C")


def buffered(file: IO[bytes]) -> IO[bytes]:
    """An open file whose `read` gives all that was asked for, where there is so much."""
    return io.BufferedReader(cast(io.RawIOBase, file))


def of_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file."""
    with opened(path) as file, buffered(file) as stream:
        return read_array(stream, MAX_PIXELS)


def of_npz(path: Path) -> NDArray[Any]:
    """The only array of an .npz file."""
    with opened(path) as file, buffered(file) as whole, zipfile.ZipFile(whole) as archive:
        names = members(archive)
        if len(names) != 1:
            raise MapError(f"holds the arrays {', '.join(names) or 'none'}; a map's file holds one")
        with unpacking(archive, names[next(iter(names))]) as stream:
            return read_array(stream, MAX_PIXELS)


def read_stack(path: Path) -> Stack | None:
    """All maps of a test set from one .npz file with the arrays `maps` [N, H, W], `names` [N] ("<defect>/<file name>")
    and perhaps `scores` [N] and `sizes` [N, 2] (height, width of a picture that fills its map in part); None for an
    .npz file of other arrays. Raises MapError."""

    def read() -> Stack | None:
        with opened(path) as file, buffered(file) as whole, zipfile.ZipFile(whole) as archive:
            names = members(archive)
            if not set(STACK) <= set(names):
                return None
            with unpacking(archive, names["names"]) as stream:
                called = read_array(stream, MOST_VALUES // 1024, texts)
            with unpacking(archive, names["maps"]) as stream:
                maps = read_array(stream, MOST_VALUES)
            scores = None
            if "scores" in names:
                with unpacking(archive, names["scores"]) as stream:
                    scores = read_array(stream, MOST_VALUES // 1024, figures)
            sizes = None
            if "sizes" in names:
                with unpacking(archive, names["sizes"]) as stream:
                    sizes = read_array(stream, MOST_VALUES // 1024, partial(figures, what="sizes"))
        if maps.ndim != 3 or called.shape != maps.shape[:1] or (scores is not None and scores.shape != called.shape):
            given = "no scores" if scores is None else f"scores {scores.shape}"
            raise MapError(f"holds maps {maps.shape}, names {called.shape} and {given}, not [N, H, W], [N] and [N]")
        own = () if sizes is None else sizes_of(sizes, maps.shape)
        return Stack(maps, tuple(map(str, called)), () if scores is None else tuple(map(float, scores)), own)

    found: Stack | None = said(read)
    return found


def sizes_of(sizes: NDArray[Any], shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(height, width) of each map of a stack of that `shape` [N, H, W]; raises MapError for what does not lie in it."""
    if sizes.shape != (shape[0], 2) or sizes.dtype.kind not in "ui":
        raise MapError(f"holds sizes {sizes.shape} of {sizes.dtype}, not {(shape[0], 2)} of whole numbers")
    outside = ((sizes < 1) | (sizes > np.array(shape[1:]))).any(axis=1)
    if outside.any():
        height, width = sizes[outside][0]
        raise MapError(f"says that a map of {shape[1]} x {shape[2]} holds a picture of {height} x {width}")
    return tuple((int(height), int(width)) for height, width in sizes)


def texts(kind: np.dtype[Any]) -> None:
    """Raises MapError for an array of names that holds something else than text."""
    if kind.kind != "U":
        raise MapError(f"holds names of type {kind}; save them as an array of text")


def figures(kind: np.dtype[Any], what: str = "scores") -> None:
    """Raises MapError for an array of image scores, or of `what` else, that holds something else than numbers."""
    if kind.kind not in "fui":
        raise MapError(f"holds {what} of type {kind}; save them as an array of numbers")


def members(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """name of an array -> its place in an .npz file."""
    found = {one.filename.removesuffix(".npy"): one for one in archive.infolist()}
    if len(archive.infolist()) > MOST_MEMBERS or len(found) < len(archive.infolist()):
        raise MapError(f"holds {len(archive.infolist())} arrays, more than {MOST_MEMBERS} or some of one name")
    return found


def unpacking(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A member opened for reading; only of the two kinds of packing that can be unpacked in bounded pieces."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MapError("is packed in a way that NumPy does not; save it with numpy.savez or savez_compressed")
    return archive.open(member)


def of_png(path: Path) -> NDArray[Any]:
    """The grey values of a PNG file of 8 or 16 bits."""
    data = read_bytes(path)
    if not data.startswith(PNG_SIGNATURE):
        raise MapError("is no PNG file; write it again")
    image = open_image(path, data)
    if image.mode not in GREY:
        raise MapError(f"has colour mode {image.mode}: a picture of a map, not a map; save one channel of 8 or 16 bits")
    return np.asarray(image)


def of_tiff(path: Path) -> NDArray[Any]:
    """The only page of a TIFF file."""
    data = read_bytes(path)
    found = plain_page(data, MAX_PIXELS)
    if found is not None:
        return found
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = len(file.pages)
    if pages > 1:
        raise MapError(f"holds {pages} pages, of which one would be read; save one map in a file")
    return parsed_tiff(data)


def tiff_of(data: bytes) -> NDArray[Any]:
    """The first page of a TIFF, one channel; not packed, or with deflate, whose size is known beforehand."""
    found = plain_page(data, MAX_PIXELS)
    return parsed_tiff(data) if found is None else found


def parsed_tiff(data: bytes) -> NDArray[Any]:
    """The same of any TIFF file, by tifffile."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        shape, kind = tuple(page.shape), page.dtype
        if kind is None:
            raise MapError("holds values of an unknown type; save float16 or float32")
        numbers(np.dtype(kind))
        if math.prod(shape) > MAX_PIXELS:
            raise MapError(f"says it holds {math.prod(shape)} pixels; {MAX_PIXELS} are the most")
        tags = {tag: page.tags[tag].value for tag in (PHOTOMETRIC, ORIENTATION) if tag in page.tags}
        if tags.get(PHOTOMETRIC, 1) == 0:
            raise MapError(WHITE)
        if tags.get(ORIENTATION, 1) != 1:
            raise MapError(TURNED)
        packing = int(page.compression)
        stored = np.dtype(kind).newbyteorder(file.byteorder)
        if packing in DEFLATE:
            pieces = unpacked(page, data, stored.itemsize)
        elif packing == 1:
            pieces = [memoryview(data)[start : start + size] for start, size in extents(page)]
        else:
            raise MapError(f"is packed with {page.compression.name}; save it unpacked or with zlib")
        if pieces and [len(one) for one in pieces] == plain_strips(page, stored.itemsize):
            whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            found = np.frombuffer(whole, stored).reshape(shape)
        else:
            found = np.asarray(page.asarray())
    if found.size != math.prod(shape):
        raise MapError(f"holds {found.size} values and says {math.prod(shape)}; write it again")
    return found


def extents(page: Any) -> Iterator[tuple[int, int]]:
    """(start, size) in the file of each piece of a page."""
    return zip(page.dataoffsets, page.databytecounts, strict=True)


def unpacked(page: Any, data: bytes, item: int) -> list[bytes | memoryview]:
    """The pieces of a packed page; raises MapError for one of more bytes than a piece of its page can hold."""
    most = math.prod(page.chunks) * item
    if most > MAX_PIXELS * item:
        raise MapError("is packed in pieces larger than any map; write it again")
    pieces: list[bytes | memoryview] = []
    for start, size in extents(page):
        packed = zlib.decompressobj()
        pieces.append(packed.decompress(data[start : start + size], most + 1))
        if len(pieces[-1]) > most:
            raise MapError("unpacks to more than the size it states; write it again")
        if not packed.eof:
            raise MapError("is cut off or damaged; write it again")
    return pieces


def plain_strips(page: Any, item: int) -> list[int]:
    """The bytes of each piece of a page whose pieces, one after the other, are its pixels row by row; else none."""
    facts = (page.is_tiled, page.predictor, page.fillorder, page.samplesperpixel, page.imagedepth, page.bitspersample)
    if facts != (False, 1, 1, 1, 1, 8 * item) or page.rowsperstrip < 1:
        return []
    starts = range(0, page.imagelength, page.rowsperstrip)
    return [min(page.rowsperstrip, page.imagelength - first) * page.imagewidth * item for first in starts]


READERS: Mapping[str, Callable[[Path], NDArray[Any]]] = {
    ".tif": of_tiff,
    ".tiff": of_tiff,
    ".npy": of_npy,
    ".npz": of_npz,
    ".png": of_png,
}
