"""Images as notebooks hold them -> float32 [n, 3, R, R] in [0, 1], decoded and reduced as those of data sets are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.datasets import fitted
from kdad_bench.datasets.decoding import as_rgb, open_image, positive, reduced_rgb
from kdad_bench.harness.scoring import as_images
from kdad_bench.harness.view import View
from kdad_bench.methods.resizing import resized

TAKEN = (
    "a uint8 array [N, H, W, 3], a list of files, of PIL images or of uint8 arrays [H, W, 3] or [H, W], "
    "or a torch tensor [N, 3, H, W] in [0, 1]"
)
PART = 512  # images decoded at a time


class ImagesError(ValueError):
    """What was given is no batch of images: one line that names its type, shape or values, and the remedy."""


class Images:
    """A batch of images of any kind that is taken, looked at once and decoded part by part.

    Raises ImagesError where it is none; DatasetError, from `parts`, for a file that is no readable image.
    """

    def __init__(self, given: Any) -> None:
        if isinstance(given, Tensor):
            self.given: Any = batch_of_tensor(given)
        elif isinstance(given, np.ndarray) and given.dtype != object:
            self.given = batch_of_array(given)
        elif isinstance(given, (str, os.PathLike, Image.Image)):
            raise ImagesError(f"one {kind(given)} is not a batch: give a list, [image]")
        elif isinstance(given, (Sequence, np.ndarray)):
            self.given = [one_of_list(one, number) for number, one in enumerate(given)]
        else:
            raise ImagesError(f"images of type {kind(given)} are not taken: give {TAKEN}")
        if len(self.given) == 0:
            raise ImagesError(f"no images: give at least one, as {TAKEN}")

    def __len__(self) -> int:
        return len(self.given)

    def pictures(self, view: View, resolution: int, device: torch.device) -> Iterator[Tensor]:
        """float32 [1, 3, h, w] in [0, 1] on `device`, each of the shape that `view` gives it, in their order."""
        for number, one in enumerate(self.given):
            if isinstance(one, Tensor) and one.is_floating_point():
                shape = fitted((one.shape[-1], one.shape[-2]), resolution, view.fit, Path(f"image {number}"))
                yield F.interpolate(
                    one[None].to(device, torch.float32), shape, mode="bilinear", align_corners=False, antialias=True
                )
                continue
            image = rgb(one, number)
            shape = fitted(image.size, resolution, view.fit, one if isinstance(one, Path) else Path(f"image {number}"))
            yield as_images(reduced_rgb(image, shape)[None], device)

    def parts(self, side: int, device: torch.device) -> Iterator[Tensor]:
        """float32 [n, 3, side, side] in [0, 1] on `device`, at most PART images at a time, in their order."""
        for start in range(0, len(self), PART):
            some = self.given[start : start + PART]
            if isinstance(some, Tensor) and some.is_floating_point():
                yield resized(some.to(device, torch.float32), side)
            else:
                yield as_images(np.stack([pixels(one, side, start + i) for i, one in enumerate(some)]), device)

    def all(self, side: int, device: torch.device) -> Tensor:
        """All of them in one tensor."""
        return torch.cat(list(self.parts(side, device)))


def pixels(image: Any, side: int, number: int) -> NDArray[np.uint8]:
    """One image of a checked batch as uint8 [3, side, side]."""
    if isinstance(image, np.ndarray) and image.shape == (side, side, 3):
        return image.transpose(2, 0, 1)
    return reduced_rgb(rgb(image, number), side)


def rgb(image: Any, number: int) -> Image.Image:
    """One image of a checked batch, upright and in mode RGB, at its own size."""
    if isinstance(image, Path):
        return as_rgb(open_image(image), image)
    if isinstance(image, Tensor):
        image = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image))
    try:
        image.load()  # a file that Pillow has opened is read only now
    except Exception as error:  # closed since, or damaged in any of many ways
        why = (str(error).splitlines() or [kind(error)])[0]
        raise ImagesError(
            f"image {number}: its pixels cannot be read ({why}): open its file again, or restore it"
        ) from error
    return as_rgb(ImageOps.exif_transpose(positive(image)), Path(f"image {number}"))


def one_of_list(image: Any, number: int) -> Any:
    """An image of a list in one of the three kinds that `pixels` takes: a Path, a PIL image or a uint8 array."""
    if isinstance(image, (str, os.PathLike)):
        path = Path(image).expanduser()
        if path.is_dir():
            raise ImagesError(f"image {number} is the folder {path}: give its files, sorted(Path(...).glob('*.png'))")
        return path
    if isinstance(image, Image.Image) or (
        isinstance(image, np.ndarray) and image.ndim == 2 and image.dtype == np.uint8
    ):
        shape = image.size[::-1] if isinstance(image, Image.Image) else image.shape
        if 0 in shape:
            raise ImagesError(f"image {number}: {shape[0]} x {shape[1]} has no pixel: give images of at least 1 x 1")
        return image
    if isinstance(image, Tensor):
        checked = batch_of_tensor(image[None], f"image {number}")[0]
        return checked if checked.dtype == torch.uint8 else refuse_floats(number)
    if isinstance(image, np.ndarray):
        return batch_of_array(image[None], f"image {number}")[0]
    raise ImagesError(f"image {number} is of type {kind(image)}: give {TAKEN}")


def refuse_floats(number: int) -> None:
    """Raises ImagesError for a list of floating-point tensors: they are one batch, and one size, when stacked."""
    raise ImagesError(f"image {number} is a tensor of floats in a list: give them as one batch, torch.stack(images)")


def batch_of_array(array: NDArray[Any], what: str = "images") -> NDArray[np.uint8]:
    """`array` if it is uint8 [N, H, W, 3] with pixels."""
    shape = tuple(array.shape) if what == "images" else tuple(array.shape[1:])
    said = f"{what}: an array of {array.dtype} {shape}"
    if array.dtype != np.uint8:
        how = "round images in [0, 255] with .astype('uint8')" if array.dtype.kind in "fiu" else "it holds no pixels"
        how = "scale 16 bits with (images / 257).round().astype('uint8')" if array.dtype == np.uint16 else how
        raise ImagesError(
            f"{said} is not uint8: {how}, or give a torch tensor [N, 3, H, W] in [0, 1] for images in [0, 1]"
        )
    if array.ndim == 3:
        raise ImagesError(f"{said} is one image or has no colours: give [N, H, W, 3], for one image images[None]")
    if array.ndim != 4 or array.shape[-1] != 3:
        turned = "images.transpose(0, 2, 3, 1)" if array.ndim == 4 and array.shape[1] == 3 else "RGB in the last axis"
        raise ImagesError(f"{said} is not [N, H, W, 3]: give {turned}")
    if 0 in array.shape[1:]:
        raise ImagesError(f"{said} has no pixel: give images of at least 1 x 1")
    return array


def batch_of_tensor(tensor: Tensor, what: str = "images") -> Tensor:
    """`tensor` if it is [N, 3, H, W], uint8 or floats in [0, 1]."""
    shape = tuple(tensor.shape) if what == "images" else tuple(tensor.shape[1:])
    tensor = tensor.detach()
    said = f"{what}: a tensor of {str(tensor.dtype).removeprefix('torch.')} {shape}"
    if tensor.ndim == 3:
        raise ImagesError(f"{said} is one image: give a batch [N, 3, H, W], images[None]")
    if tensor.ndim != 4 or tensor.shape[1] != 3:
        turned = "images.permute(0, 3, 1, 2)" if tensor.ndim == 4 and tensor.shape[-1] == 3 else "RGB in axis 1"
        raise ImagesError(f"{said} is not [N, 3, H, W]: give {turned}")
    if 0 in tensor.shape[1:]:
        raise ImagesError(f"{said} has no pixel: give images of at least 1 x 1")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise ImagesError(
            f"{said} holds no plain pixels ({tensor.layout}, {tensor.device}): give a dense tensor of values"
        )
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise ImagesError(f"{said}: give uint8, or floats in [0, 1]")
    if tensor.numel():
        low, high = float(tensor.min()), float(tensor.max())
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ImagesError(
                f"{said} has values from {low:g} to {high:g}: give [0, 1]; methods normalise by themselves"
            )
    return tensor


def kind(value: Any) -> str:
    """The type of a value in words."""
    return type(value).__name__
