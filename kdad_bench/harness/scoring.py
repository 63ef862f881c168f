"""Images -> checked scores: the one scoring path of `run`, `predict` and `bench`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdad_bench.files import CacheError, let_go, scratch
from kdad_bench.harness.decision import Decision
from kdad_bench.harness.view import WHOLE, View
from kdad_bench.harness.windows import Windowed
from kdad_bench.methods.protocol import Method, Scores
from kdad_bench.metrics.curves import image_name

Pixels: TypeAlias = Tensor | NDArray[np.uint8]
Pictures: TypeAlias = Sequence[NDArray[np.uint8]]  # [C, h, w] each, of any shapes
CPU = torch.device("cpu")
SCORE_BATCH = 16
SMALLER_SCORE_BATCH = 2  # tried once when a GPU is out of memory
BATCH_PIXELS = 8 << 20  # of larger images, fewer are scored at once
MOST_BYTES = 1 << 29  # of maps that are kept in memory; more go to a file that is mapped
INVARIANCE_IMAGES = 4  # so many images at batch 1 are compared with those of the full batch
MOST_APART = 0.05  # of the spread of scores or maps; rounding in 16 bits and the order of sums stay below
ROUNDING = 2**-7  # of the largest value, where all are nearly equal: two steps of bfloat16


class Scorer(Protocol):
    """What answers with scores: a method, or a graph that one was exported as."""

    def score(self, images: Tensor) -> Scores:
        """As `Method.score`."""
        ...


class ScoreError(ValueError):
    """A method answered with scores that break the protocol: shape, dtype or a value that is not finite."""


def as_images(pixels: Any, device: torch.device) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 in [0, 1] on `device`."""
    return torch.from_numpy(np.array(pixels)).to(device).float().div_(255)  # a copy: the cache is read-only


def score_all(method: Scorer, images: Pixels | Pictures, name: str, device: torch.device = CPU) -> Scores:
    """Scores of all images, in batches; a GPU out of memory gets one more try with smaller ones.

    `images` [N, C, H, W] are a float32 tensor, or uint8 pixels that come to `device` a batch at a time; or pictures
    [C, h, w], each of which is scored by itself into the upper left corner of its map.
    """
    if not isinstance(images, (Tensor, np.ndarray)):
        return scored_pictures(method, images, name, device)
    try:
        return scored(method, images, batch_for(images), name, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return scored(method, images, SMALLER_SCORE_BATCH, name, device)


def scored(method: Scorer, images: Pixels, batch: int, name: str, device: torch.device = CPU) -> Scores:
    """Scores of all images in batches of at most `batch`, each checked at the border.

    The batches are as equal as can be: every new shape costs the convolutions a preparation. The maps are put into one
    tensor as they come: at no time do they lie in memory twice.
    """
    size = -(-len(images) // max(1, -(-len(images) // batch)))  # as torch.chunk divides
    whole: Scores | None = None
    with torch.inference_mode():
        for start in range(0, len(images) or 1, size or 1):
            chunk = on_device(images[start : start + size], device)
            part = checked(method.score(chunk), chunk, name)
            whole = whole or Scores(*(room_for((len(images), *value.shape[1:]), value) for value in part))
            for all_of_it, value in zip(whole, part, strict=True):
                all_of_it[start : start + size] = value
            let_go_of(images)
            let_go_of_scores(whole.pixel)
    assert whole is not None
    return whole


def batch_for(images: Pixels) -> int:
    """How many of `images` [..., H, W] are scored at once: a batch of large ones takes no more memory than of small."""
    return max(1, min(SCORE_BATCH, BATCH_PIXELS // max(1, images.shape[-2] * images.shape[-1])))


def room_for(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty tensor; for maps on the CPU that are larger than MOST_BYTES one in a nameless file that is mapped."""
    if like.device.type != "cpu" or math.prod(shape) * like.element_size() <= MOST_BYTES:
        return like.new_empty(shape)
    try:
        mapped = scratch(
            math.prod(shape) * like.element_size(), lambda found: np.frombuffer(found, np.uint8).ctypes.data
        )
    except CacheError:  # nowhere to put a file: they must fit into memory
        return like.new_empty(shape)
    return torch.frombuffer(mapped, dtype=like.dtype).reshape(shape)


def let_go_of_scores(maps: Tensor) -> None:
    """Take the pages of maps that lie in a file out of this process."""
    if maps.device.type == "cpu":
        let_go(maps.numpy())


def scored_pictures(method: Scorer, images: Pictures, name: str, device: torch.device = CPU) -> Scores:
    """Scores of pictures of any shapes, one after the other: image scores [N], maps [N, H, W] that hold the largest,
    zero beside the others."""
    height, width = (max(one.shape[axis] for one in images) for axis in (1, 2))
    found, whole = [], None
    with torch.inference_mode():
        for number, picture in enumerate(images):
            chunk = on_device(picture[None], device)
            part = checked(method.score(chunk), chunk, name)
            whole = room_for((len(images), height, width), part.pixel).zero_() if whole is None else whole
            whole[number, : picture.shape[1], : picture.shape[2]] = part.pixel[0]
            found.append(part.image)
            let_go_of(picture)
            let_go_of_scores(whole)
    assert whole is not None
    return Scores(torch.cat(found), whole)


def let_go_of(images: Pixels) -> None:
    """Take the pages of a mapped file out of this process; they stay in the system's cache, to be read again."""
    if not isinstance(images, Tensor):
        let_go(images)


def on_device(images: Pixels, device: torch.device) -> Tensor:
    """A float32 tensor as it is; uint8 pixels as float32 in [0, 1] on `device`."""
    return images if isinstance(images, Tensor) else as_images(images, device)


def decision_from(
    unseen: Scores | None,
    *,
    category: str,
    resolution: int,
    view: View = WHOLE,
    copies: int = 0,
    test_normals: Iterable[float] = (),
) -> Decision:
    """What a decision needs of a fitted method: its scores of normals that it never saw, None without any.

    So many of the normals are `copies` of what it saw, or of one another. The scores of `test_normals` only serve to
    tell how a threshold does on them.
    """
    return Decision(
        category=category,
        resolution=resolution,
        fit=view.fit,
        tile=view.tile,
        overlap=view.overlap,
        normal_scores=tuple(sorted(unseen.image.tolist())) if unseen else (),
        copies=copies,
        normal_map_peak=float(unseen.pixel.max()) if unseen else None,
        test_normal_scores=tuple(sorted(test_normals)),
    )


def checked(scores: Scores, images: Tensor, name: str) -> Scores:
    """`scores` if they keep the protocol; raises ScoreError naming the method and what is wrong.

    That values are finite is checked with the metrics, which can name the image.
    """
    if not (hasattr(scores, "image") and hasattr(scores, "pixel")):
        raise ScoreError(f"method '{name}': `score` gives {type(scores).__name__}, not Scores(image, pixel)")
    shapes = {"image": images.shape[:1], "pixel": (len(images), *images.shape[2:])}
    for part, shape in shapes.items():
        value = getattr(scores, part)
        if not isinstance(value, Tensor):
            raise ScoreError(f"method '{name}': {part} scores are {type(value).__name__}, not a torch.Tensor")
        if tuple(value.shape) != tuple(shape) or value.dtype != torch.float32:
            raise ScoreError(
                f"method '{name}': {part} scores are {value.dtype} {tuple(value.shape)}, not float32 {tuple(shape)}"
            )
        if value.is_meta:
            raise ScoreError(f"method '{name}': {part} scores lie on the device meta, which holds no numbers")
    return scores


def finite(scores: Scores) -> Tensor:
    """[N] bool: whether score and map of each image hold neither a NaN nor an infinity."""
    return torch.isfinite(scores.image) & torch.isfinite(scores.pixel).flatten(1).all(1)


def batch_invariance(
    method: Method,
    images: Pixels | Pictures,
    scores: Scores,
    name: str,
    device: torch.device = CPU,
    names: Sequence[str] | None = None,
) -> float:
    """The largest difference between a map or an image score alone and within its batch, over the first few images; of
    a method on windows, between the first image's with its windows scored one by one and together. At most the largest
    float32. A warning says where either is more than rounding.

    Raises ScoreError, naming the method and the image (`names` [N]), for what is finite only in its batch.
    """
    if isinstance(method, Windowed):  # whose images are scored one after the other whatever the batch
        found = [windows_one_by_one(method, images[:1], name, device)]
    else:
        few = on_device(cast("Pixels", images[:INVARIANCE_IMAGES]), device)  # pictures are for windows alone
        with torch.inference_mode():
            found = [checked(method.score(few[i : i + 1]), few[i : i + 1], name) for i in range(len(few))]
    for number, one in enumerate(found):
        if not bool(finite(one).all()):
            raise ScoreError(
                f"method '{name}': score or map of {image_name(names, number)} holds a NaN or an infinity when it is "
                "scored alone, and none in its batch; no answer may depend on the other images of a batch"
            )
    most = []
    for part, together, alone in (
        ("maps", scores.pixel[: len(found)], [one.pixel[0] for one in found]),
        ("image scores", scores.image, [one.image[0] for one in found]),
    ):
        most.append(max(difference(one, together[number]) for number, one in enumerate(alone)))
        warn_of_the_batch(most[-1], [together, *alone], f"method '{name}': its {part}")
    return max(most)


def warn_of_the_batch(apart: float, values: Sequence[Tensor], what: str) -> None:
    """One line where answers are `apart` alone and in their batch, by a share of the spread of `values` of any shapes
    that rounding does not explain."""
    low, high = min(float(one.min()) for one in values), max(float(one.max()) for one in values)
    if apart > MOST_APART * (high - low) and apart > ROUNDING * max(abs(low), abs(high)):
        warnings.warn(
            f"{what} depend on the other images of the batch, by up to {apart:.3g} where they lie {high - low:.3g} "
            "apart; figures made of them are those of no detector that judges one image",
            stacklevel=3,
        )


def windows_one_by_one(method: Windowed, first: Pixels | Pictures, name: str, device: torch.device) -> Scores:
    """The scores of the `first` image, [1, C, H, W] or a list of one picture [C, h, w]."""
    together, method.batch = method.batch, 1
    try:
        return score_all(method, first, name, device)
    finally:
        method.batch = together


def difference(alone: Tensor, together: Tensor) -> float:
    """The largest difference of two maps, [h, w] and that in the upper left corner of [H, W], or of two scores []."""
    corner = together[tuple(slice(size) for size in alone.shape)]
    return min(float((alone - corner).abs().max()), torch.finfo(torch.float32).max)
