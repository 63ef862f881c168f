"""Batches of images of every kind that is taken are the same pixels; everything else is one clear error."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdad_bench.api.images import PART, Images, ImagesError
from kdad_bench.datasets.decoding import read_rgb

SIDE = 32
CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
LARGE = RANDOM.integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)


def written(pixels: np.ndarray, folder: Path) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(len(pixels))]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


KINDS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "array": lambda pixels, folder: pixels,
    "array of another order": lambda pixels, folder: pixels.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1),
    "arrays": lambda pixels, folder: list(pixels),
    "a tuple of PIL images": lambda pixels, folder: tuple(map(Image.fromarray, pixels)),
    "files": written,
    "names of files": lambda pixels, folder: list(map(str, written(pixels, folder))),
    "an array of names": lambda pixels, folder: np.array(written(pixels, folder), object),
    "uint8 tensor": lambda pixels, folder: torch.from_numpy(pixels).permute(0, 3, 1, 2),
    "uint8 tensors": lambda pixels, folder: [torch.from_numpy(one).permute(2, 0, 1) for one in pixels],
    "a mixture": lambda pixels, folder: [pixels[0], *map(Image.fromarray, pixels[1:-1]), written(pixels, folder)[-1]],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pixels", [PIXELS, LARGE], ids=["of that size", "reduced"])
def test_every_kind_gives_the_pixels_that_a_data_set_gives(kind: str, pixels: np.ndarray, tmp_path: Path) -> None:
    found = Images(KINDS[kind](pixels, tmp_path)).all(SIDE, CPU)
    wanted = np.stack([read_rgb(path, SIDE)[0] for path in written(pixels, tmp_path)])
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.from_numpy(wanted).float() / 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_tensor_of_floats_is_taken_as_it_is(dtype: torch.dtype) -> None:
    floats = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).to(dtype) / 255
    found = Images(floats).all(SIDE, CPU)
    assert torch.equal(found, floats.float())
    assert Images(floats).all(16, CPU).shape == (5, 3, 16, 16)
    assert not Images(floats.requires_grad_()).all(SIDE, CPU).requires_grad


def test_grey_alpha_palette_and_turned_pictures_are_read_as_files_are(tmp_path: Path) -> None:
    grey = PIXELS[0, :, :, 0]
    turned = Image.fromarray(LARGE[0])
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    first, second = map(Image.fromarray, LARGE[:2])
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    pictures = [Image.fromarray(grey), first.convert("RGBA"), second.convert("P"), deep]
    names = []
    for number, picture in enumerate(pictures):
        names.append(tmp_path / f"{number}.png")
        picture.save(names[-1])
    files = Images([*names, tmp_path / "turned.jpg"]).all(SIDE, CPU)
    assert torch.equal(Images([*pictures, Image.open(tmp_path / "turned.jpg")]).all(SIDE, CPU), files)
    assert torch.equal(Images([grey]).all(SIDE, CPU), files[:1])


def test_a_long_batch_comes_in_parts_and_in_order() -> None:
    many = np.zeros((PART + 3, 2, 2, 3), np.uint8)
    many[:, 0, 0, 0] = np.arange(PART + 3) % 251
    parts = list(Images(many).parts(2, CPU))
    assert [len(part) for part in parts] == [PART, 3]
    assert torch.equal((torch.cat(parts)[:, 0, 0, 0] * 255).round().to(torch.uint8), torch.from_numpy(many[:, 0, 0, 0]))


FLOATS = PIXELS.astype(np.float32) / 255
TENSOR = torch.from_numpy(FLOATS).permute(0, 3, 1, 2)
BAD: dict[str, tuple[Any, str]] = {
    "None": (None, "images of type NoneType are not taken: give a uint8 array"),
    "a number": (3, "images of type int are not taken"),
    "a dict": ({}, "images of type dict are not taken"),
    "one name": ("a.png", "one str is not a batch: give a list"),
    "one path": (Path("a.png"), "is not a batch: give a list"),
    "one PIL image": (Image.new("RGB", (4, 4)), "one Image is not a batch: give a list"),
    "an empty list": ([], "no images: give at least one"),
    "an empty array": (PIXELS[:0], "no images"),
    "an empty tensor": (TENSOR[:0], "no images"),
    "an array of floats": (FLOATS, "an array of float32 (5, 32, 32, 3) is not uint8: round"),
    "an array of int64": (PIXELS.astype(np.int64), "int64"),
    "truth values": (PIXELS > 9, "it holds no pixels"),
    "one image": (PIXELS[0], "(32, 32, 3) is one image or has no colours: give [N, H, W, 3]"),
    "channels first": (PIXELS.transpose(0, 3, 1, 2), "give images.transpose(0, 2, 3, 1)"),
    "four channels": (np.zeros((2, 8, 8, 4), np.uint8), "(2, 8, 8, 4) is not [N, H, W, 3]"),
    "a flat array": (PIXELS.reshape(5, -1), "(5, 3072) is not [N, H, W, 3]"),
    "images without pixels": (np.zeros((2, 0, 8, 3), np.uint8), "has no pixel"),
    "one tensor": (TENSOR[0], "(3, 32, 32) is one image: give a batch [N, 3, H, W], images[None]"),
    "channels last": (TENSOR.permute(0, 2, 3, 1), "give images.permute(0, 3, 1, 2)"),
    "a tensor of int64": (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "give uint8, or floats in [0, 1]"),
    "normalised": (TENSOR * 4 - 2, "has values from -2 to 2: give [0, 1]"),
    "in 0 .. 255": (TENSOR * 255, "to 255: give [0, 1]"),
    "NaN": (TENSOR * float("nan"), "has values from nan to nan"),
    "a list of float tensors": (list(TENSOR), "torch.stack(images)"),
    "a list with None": ([PIXELS[0], None], "image 1 is of type NoneType"),
    "a list of float arrays": (list(FLOATS), "image 0: an array of float32 (32, 32, 3) is not uint8"),
    "pairs of image and label": ([(PIXELS[0], 0)], "image 0 is of type tuple"),
    "a PIL image without pixels": ([Image.new("RGB", (0, 4))], "image 0: 4 x 0 has no pixel"),
    "a grey array without pixels": ([np.zeros((0, 4), np.uint8)], "image 0: 0 x 4 has no pixel"),
    "a sparse tensor": (TENSOR.to_sparse(), "holds no plain pixels (torch.sparse_coo, cpu)"),
    "a tensor without values": (TENSOR.to("meta"), "holds no plain pixels (torch.strided, meta)"),
    "a folder": ([Path(__file__).parent], "is the folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_batch_is_one_line_with_its_value_and_the_remedy(case: str) -> None:
    given, words = BAD[case]
    with pytest.raises(ImagesError) as error:
        Images(given)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "give" in str(error.value)


def test_a_picture_that_is_read_too_late_is_one_line_with_its_number() -> None:
    sink = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(sink, format="PNG")
    closed, cut = Image.open(sink), Image.open(io.BytesIO(sink.getvalue()[:-60]))
    closed.close()
    for late in (closed, cut):
        given = Images([PIXELS[0], late])
        with pytest.raises(ImagesError, match=r"^image 1: its pixels cannot be read \(.+\): open its file again, or"):
            given.all(16, torch.device("cpu"))
