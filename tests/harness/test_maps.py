"""Files of maps: what is read, and what is refused before it can do harm."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from kdad_bench.datasets import decoding
from kdad_bench.harness import maps
from kdad_bench.harness.maps import MapError, read_map, read_stack, resampled
from kdad_bench.harness.plain_tiff import plain_page

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4) / 8  # exact in float16


def png(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


WRITTEN: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "float32 TIFF": ("a.tiff", lambda path: tifffile.imwrite(path, VALUES)),
    "float16 TIFF": ("a.tif", lambda path: tifffile.imwrite(path, VALUES.astype(np.float16))),
    "deflated TIFF": ("a.tiff", lambda path: tifffile.imwrite(path, VALUES.astype(np.float16), compression="zlib")),
    "big-endian TIFF": ("a.tiff", lambda path: tifffile.imwrite(path, VALUES, byteorder=">")),
    "TIFF by Pillow": ("a.TIFF", lambda path: Image.fromarray(VALUES).save(path, format="TIFF")),
    "float64 NPY": ("a.npy", lambda path: np.save(path, VALUES.astype(np.float64))),
    "NPY by columns": ("a.npy", lambda path: np.save(path, np.asfortranarray(VALUES))),
    "big-endian NPY": ("a.npy", lambda path: np.save(path, VALUES.astype(">f4"))),
    "NPY with axes of one": ("a.npy", lambda path: np.save(path, VALUES[None, :, :, None])),
    "NPZ": ("a.npz", lambda path: np.savez(path, anything=VALUES)),
    "TIFF that says it is upright": (
        "a.tiff",
        lambda path: tifffile.imwrite(path, VALUES, extratags=[(274, "H", 1, 1, True)]),
    ),
    "packed NPZ": ("a.npz", lambda path: np.savez_compressed(path, VALUES)),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_each_kind_of_file_gives_its_values(kind: str, tmp_path: Path) -> None:
    name, write = WRITTEN[kind]
    write(tmp_path / name)
    found = read_map(tmp_path / name)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VALUES)


LAYOUTS: list[dict[str, Any]] = [
    {**layout, "compression": packing}
    for layout in ({}, {"rowsperstrip": 7}, {"tile": (16, 32)})
    for packing in (None, "zlib")
]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        *((kind, layout) for kind in ("f2", "f4", "f8", "u1", "u2") for layout in LAYOUTS),
        *((kind, {"compression": "zlib", "predictor": 2}) for kind in ("u1", "u2")),  # differences
    ],
    ids=str,
)
def test_pixels_are_those_that_the_reader_of_the_format_gives(
    order: str, kind: str, layout: dict[str, Any], tmp_path: Path
) -> None:
    values = (np.random.default_rng(0).random((45, 50)) * 200).astype(kind)
    tifffile.imwrite(tmp_path / "a.tiff", values, byteorder=order, **layout)
    np.testing.assert_array_equal(read_map(tmp_path / "a.tiff"), tifffile.imread(tmp_path / "a.tiff"))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "u1", "u2"])
@pytest.mark.parametrize("rows", [None, 7])
def test_a_plain_tiff_needs_no_parser_and_a_damaged_one_gives_what_the_parser_says(
    kind: str, order: str, rows: int | None, tmp_path: Path
) -> None:
    chance = np.random.default_rng(0)
    values = (chance.random((45, 50)) * 200).astype(kind)
    tifffile.imwrite(tmp_path / "a.tiff", values, byteorder=order, rowsperstrip=rows)
    whole = (tmp_path / "a.tiff").read_bytes()
    np.testing.assert_array_equal(plain_page(whole, values.size), values)
    assert plain_page(whole, values.size - 1) is None
    directory = int.from_bytes(whole[4:8], "little" if order == "<" else "big")
    for _ in range(40):
        data = bytearray(whole)
        data[chance.integers(directory, directory + 200)] ^= 1 << int(chance.integers(8))
        found = plain_page(bytes(data), values.size)
        if found is not None:
            np.testing.assert_array_equal(found, maps.parsed_tiff(bytes(data)))
    assert plain_page(whole[:-1], values.size) is None or len(whole) > tifffile_end(whole)


def tifffile_end(data: bytes) -> int:
    """Where the pixels of a TIFF file end."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        return max(start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True))


def test_a_packed_piece_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tiff", VALUES, compression="zlib")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda self: pytest.fail("unpacked a second time"))
    np.testing.assert_array_equal(read_map(tmp_path / "a.tiff"), VALUES)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_png_of_8_or_16_bits_gives_its_integers(kind: Any, tmp_path: Path) -> None:
    values = (np.arange(12).reshape(3, 4) * (np.iinfo(kind).max // 11)).astype(kind)
    png(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_map(tmp_path / "a.png"), values.astype(np.float32))


def zipped(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def npy(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def lying_npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (63 - (len(header) + 10) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def swollen_tiff(path: Path) -> None:
    """A TIFF of 4 x 3 px whose only strip unpacks to 64 MB."""
    tifffile.imwrite(path, VALUES, compression="zlib")
    with tifffile.TiffFile(path) as file:
        tags = file.pages.first.tags
        places = {name: tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")}
        kinds = {name: "<H" if tags[name].dtype.name == "SHORT" else "<I" for name in places}
    data, bomb = bytearray(path.read_bytes()), zlib.compress(bytes(64 << 20))
    for name, value in (("StripOffsets", len(data)), ("StripByteCounts", len(bomb))):
        struct.pack_into(kinds[name] if kinds[name] == "<I" else "<H", data, places[name], value & 0xFFFFFFFF)
    path.write_bytes(bytes(data) + bomb)


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "NaN": ("a.npy", lambda path: np.save(path, np.where(VALUES == 0.5, np.nan, VALUES)), "nan at row 1, column 0"),
    "infinity": ("a.npy", lambda path: np.save(path, np.where(VALUES == 0.5, np.inf, VALUES)), "inf at row 1"),
    "beyond float32": ("a.npy", lambda path: np.save(path, VALUES.astype(np.float64) * 1e300), "finite in float32"),
    "whole numbers that float64 rounds": (
        "a.npy",
        lambda path: np.save(path, VALUES.astype(np.int64) + (2**62 + 1)),
        "int64 that float64 would round; save them as float64",
    ),
    "three channels": ("a.npy", lambda path: np.save(path, np.stack([VALUES] * 3)), "shape (3, 3, 4)"),
    "a vector": ("a.npy", lambda path: np.save(path, VALUES[0]), "shape (4,)"),
    "empty": ("a.npy", lambda path: np.save(path, VALUES[:0]), "a map is H x W"),
    "truth values": ("a.npy", lambda path: np.save(path, VALUES > 1), "type bool"),
    "complex": ("a.npy", lambda path: np.save(path, VALUES * 1j), "type complex"),
    "text": ("a.npy", lambda path: np.save(path, np.array([["a"]])), "type <U1"),
    "no bytes": ("a.npy", lambda path: path.write_bytes(b""), "is not readable"),
    "no NPY": ("a.npy", lambda path: path.write_bytes(b"hello, world"), "is not readable"),
    "cut off": ("a.npy", lambda path: path.write_bytes(npy(VALUES)[:-8]), "cut off: 40 of 48 bytes"),
    "huge by its header": ("a.npy", lambda path: path.write_bytes(lying_npy("(100000, 100000)")), "are the most"),
    "negative": ("a.npy", lambda path: path.write_bytes(lying_npy("(-3, 4)")), "are the most"),
    "objects": (
        "a.npy",
        lambda path: np.save(path, np.array([[{}]], dtype=object), allow_pickle=True),
        "holds Python objects",
    ),
    "a pickle": ("a.npy", lambda path: path.write_bytes(pickle.dumps({})), "is not readable"),
    "two arrays": ("a.npz", lambda path: np.savez(path, a=VALUES, b=VALUES), "the arrays a, b"),
    "no array": ("a.npz", lambda path: zipped(path, {}), "the arrays none"),
    "twenty arrays": (
        "a.npz",
        lambda path: zipped(path, {f"{i}.npy": npy(VALUES) for i in range(20)}),
        "holds 20 arrays",
    ),
    "bzip2": ("a.npz", lambda path: zipped(path, {"a.npy": npy(VALUES)}, zipfile.ZIP_BZIP2), "NumPy does not"),
    "zip bomb": (
        "a.npz",
        lambda path: zipped(path, {"a.npy": lying_npy("(100000, 100000)", bytes(1 << 24))}),
        "are the most",
    ),
    "no zip": ("a.npz", lambda path: path.write_bytes(npy(VALUES)), "is not readable"),
    "no TIFF": ("a.tiff", lambda path: path.write_bytes(b"II*\x00" + bytes(20)), "is not readable"),
    "TIFF in colour": ("a.tiff", lambda path: tifffile.imwrite(path, np.zeros((3, 4, 3), np.uint8)), "(3, 4, 3)"),
    "several pages": (
        "a.tiff",
        lambda path: tifffile.imwrite(path, np.stack([VALUES] * 3), photometric="minisblack"),
        "holds 3 pages, of which one would be read",
    ),
    **{
        f"TIFF in which 0 is white, {packing}": (
            "a.tiff",
            partial(tifffile.imwrite, data=VALUES, photometric="miniswhite", compression=packing),
            "0 is white",
        )
        for packing in (None, "zlib")
    },
    **{
        f"TIFF of orientation {turn}": (
            "a.tiff",
            partial(tifffile.imwrite, data=VALUES, extratags=[(274, "H", 1, turn, True)]),
            "turned or mirrored",
        )
        for turn in (2, 3, 6)
    },
    "swollen TIFF": ("a.tiff", swollen_tiff, "unpacks to more"),
    "TIFF by LZW": (
        "a.tiff",
        lambda path: Image.fromarray(VALUES).save(path, compression="tiff_lzw"),
        "is packed with LZW",
    ),
    "PNG in colour": ("a.png", lambda path: png(path, np.zeros((3, 4, 3), np.uint8)), "colour mode RGB"),
    "PNG of bits": ("a.png", lambda path: png(path, VALUES > 1), "colour mode 1"),
    "JPEG": ("a.png", lambda path: Image.fromarray(np.zeros((3, 4), np.uint8)).save(path, "JPEG"), "is no PNG file"),
    "no suffix": ("a", lambda path: path.write_bytes(npy(VALUES)), "is no file of a map; they end in .tif"),
    "a text": ("a.txt", lambda path: path.write_bytes(npy(VALUES)), "is no file of a map; they end in .tif"),
    "a folder": ("a.tiff", lambda path: path.mkdir(), "not a regular file"),
    "a pipe": ("a.npy", os.mkfifo, "not a regular file"),
    "a link to nothing": ("a.npz", lambda path: path.symlink_to("nowhere"), "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_map_is_refused_in_words_that_say_why(kind: str, tmp_path: Path) -> None:
    name, write, words = BAD[kind]
    write(tmp_path / name)
    with pytest.raises(MapError) as caught:
        read_map(tmp_path / name)
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".tiff", ".npy", ".npz", ".png"])
def test_a_file_of_more_pixels_than_the_limit_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a{suffix}"
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    {".tiff": tifffile.imwrite, ".npy": np.save, ".npz": np.savez, ".png": png}[suffix](path, values)
    read_map(path)
    for module in (maps, decoding):
        monkeypatch.setattr(module, "MAX_PIXELS", 11)
    with pytest.raises(MapError, match="11"):
        read_map(path)


def test_a_map_is_resampled_only_where_its_size_differs() -> None:
    assert resampled(VALUES[:, :3], 3) is not None
    square = np.ascontiguousarray(VALUES[:, :3])
    assert resampled(square, 3) is square
    large = np.repeat(np.repeat(square, 4, 0), 4, 1)
    small = resampled(large, 3)
    assert small.shape == (3, 3)
    assert small[1, 1] == pytest.approx(square[1, 1], abs=0.01)  # symmetric about the centre


def test_values_that_float32_would_round_are_kept_as_float64(tmp_path: Path) -> None:
    far = VALUES.astype(np.float64) * 8 + 1e9
    np.save(tmp_path / "a.npy", far)
    np.testing.assert_array_equal(read_map(tmp_path / "a.npy"), far)
    np.save(tmp_path / "b.npy", far.astype(np.uint32))
    np.testing.assert_array_equal(read_map(tmp_path / "b.npy"), far)


@pytest.mark.parametrize("far", [0.0, 1e9, -1e9])
def test_a_map_is_resampled_alike_wherever_its_values_lie(far: float) -> None:
    values = np.random.default_rng(0).integers(0, 100, (32, 32)).astype(np.float64)
    wanted = resampled(values.astype(np.float32), 16)
    np.testing.assert_allclose(resampled(values + far, 16) - far, wanted, atol=1e-4)


@pytest.mark.parametrize("corner", [0.0, -3e9, 1e12])
def test_a_float64_map_is_resampled_unrounded_whatever_else_stands_in_it(corner: float) -> None:
    values = np.random.default_rng(0).random((32, 32))
    far = values + 1e9
    far[0, 0] = corner
    far.setflags(write=False)  # as the array of a file is
    found = resampled(far, 16)
    assert found.dtype == np.float64
    wanted = resampled(values.astype(np.float32), 16)
    np.testing.assert_allclose(found[2:, 2:] - 1e9, wanted[2:, 2:], atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 9), (64, 48), (40, 5)])
def test_float64_is_resampled_by_the_filter_of_float32(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random((33, 21))
    np.testing.assert_allclose(resampled(values, shape), resampled(values.astype(np.float32), shape), atol=1e-6)


def test_a_stack_has_maps_names_and_perhaps_scores(tmp_path: Path) -> None:
    path = tmp_path / "all.npz"
    np.savez(path, maps=np.stack([VALUES, VALUES]), names=np.array(["a/0.png", "a/1.png"]), scores=np.array([1.0, 2.0]))
    found = read_stack(path)
    assert found is not None
    assert found.names == ("a/0.png", "a/1.png")
    assert found.scores == (1.0, 2.0)
    np.savez(path, one=VALUES)
    assert read_stack(path) is None


def test_names_of_a_stack_do_not_swell_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = np.array(["a/0.png", "a/" + "1" * 500])
    np.savez_compressed(tmp_path / "all.npz", maps=np.stack([VALUES, VALUES]), names=names)
    monkeypatch.setattr(maps, "MOST_TEXT", names.nbytes)
    assert read_stack(tmp_path / "all.npz") is not None
    monkeypatch.setattr(maps, "MOST_TEXT", names.nbytes - 1)
    with pytest.raises(MapError, match=r"2 names of up to 502 letters; 4015 bytes are the most"):
        read_stack(tmp_path / "all.npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"maps": VALUES, "names": np.array(["a", "b", "c"])}, "not [N, H, W], [N] and [N]"),
        ({"maps": VALUES[None], "names": np.array(["a", "b"])}, "names (2,)"),
        ({"maps": VALUES[None], "names": np.array(["a"]), "scores": np.array([1.0, 2.0])}, "scores (2,)"),
        ({"maps": VALUES[None], "names": np.array([1])}, "names of type int64"),
        ({"maps": VALUES[None], "names": np.array(["a"]), "scores": np.zeros(0)}, "scores (0,)"),
        ({"maps": VALUES[None], "names": np.array(["a"]), "scores": np.array(["1"])}, "holds scores of type <U1; save"),
        ({"maps": VALUES[None], "names": np.array(["a"]), "sizes": np.array(["1"])}, "holds sizes of type <U1; save"),
        (
            {"maps": VALUES[None], "names": np.array(["a"]), "sizes": np.array([[3, 5]])},
            "of 3 x 4 holds a picture of 3 x 5",
        ),
        ({"maps": VALUES[None], "names": np.array(["a"]), "sizes": np.array([[0, 4]])}, "holds a picture of 0 x 4"),
        (
            {"maps": VALUES[None], "names": np.array(["a"]), "sizes": np.array([3, 4])},
            "holds sizes (2,) of int64, not (1, 2)",
        ),
        ({"maps": VALUES[None], "names": np.array(["a"]), "sizes": np.ones((1, 2))}, "of float64, not (1, 2) of whole"),
    ],
)
def test_a_stack_whose_arrays_do_not_fit_is_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **arrays)
    with pytest.raises(MapError) as caught:
        read_stack(tmp_path / "all.npz")
    assert words in str(caught.value)
