"""The contact sheet of one job: image, mask, map and overlay of its best, median and worst cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kdad_bench.files import let_go, write_whole

TILE = 160  # px
GAP = 6
CAPTION = 16
HEADER = 44
COLUMNS = ("image", "mask", "map", "overlay")
PER_KIND = 2
BLOCK = 1 << 20  # pixels that are coloured at a time
MOST_PIXELS = 1 << 26  # of maps that the ends of the colour scale are taken from
CEILING = 99.9  # percentile of all map pixels at which the colour scale ends; one hot pixel must not darken the rest
INK, PAPER = (20, 20, 20), (255, 255, 255)
RUNS = 3  # zlib's strategy Z_RLE: a twenty-fifth of the time that its best takes, 1 to 7 % more bytes


def contact_sheet(
    images: NDArray[np.uint8],
    masks: NDArray[np.bool_] | None,
    maps: NDArray[np.float32],
    scores: NDArray[np.float32],
    names: Sequence[str],
    path: Path,
    *,
    labels: NDArray[np.bool_],
    sizes: NDArray[np.int64] | None = None,
    title: str = "",
) -> None:
    """Write the sheet as a PNG to `path`.

    `images` uint8 [N, 3, H, W], `masks` bool [N, H, W] or None, `maps` [N, H, W] and `scores` [N] floats, `names` and
    `labels` (true: anomalous) of N. `sizes` [N, 2] are the heights and widths of pictures that fill H x W in part, from
    the upper left corner. All maps share one colour scale, from the least map value of the test set to its
    99.9th percentile; the sheet says which values those are. Raises OSError if it cannot be written.
    """
    cases = chosen(scores, labels)
    low, high = scale(maps, sizes)
    width = len(COLUMNS) * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEADER + len(cases) * (TILE + CAPTION + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 4), title, fill=INK)
    pen.text((GAP, 17), f"colours of maps: {low:.3g} (black) to {high:.3g} (yellow, and above)", fill=INK)
    for column, name in enumerate(COLUMNS):
        pen.text((GAP + column * (TILE + GAP), 30), name, fill=INK)
    for row, (kind, index) in enumerate(cases):
        top = HEADER + row * (TILE + CAPTION + GAP)
        pen.text((GAP, top), f"{kind}: {names[index]}, score {scores[index]:.4g}", fill=INK)
        own = (slice(None), slice(None)) if sizes is None else tuple(map(slice, sizes[index]))
        mask = None if masks is None else masks[index][own]
        for column, tile in enumerate(tiles(images[index][:, *own], mask, maps[index][own], low, high)):
            sheet.paste(tile, (GAP + column * (TILE + GAP), top + CAPTION))
    write_whole(path, lambda temporary: sheet.save(temporary, format="PNG", compress_type=RUNS))


def scale(maps: NDArray[np.float32], sizes: NDArray[np.int64] | None) -> tuple[float, float]:
    """The least value of all maps and their CEILING; of very many pixels every so many-th is looked at."""
    every = max(1, maps.size // MOST_PIXELS)
    found = []
    for number, one in enumerate(maps):
        own = one if sizes is None else one[: sizes[number, 0], : sizes[number, 1]]
        found.append(own.reshape(-1)[::every].copy())
        let_go(maps)
    some = np.concatenate(found)
    return float(some.min()), float(np.percentile(some, CEILING))


def chosen(scores: NDArray[Any], labels: NDArray[np.bool_]) -> list[tuple[str, int]]:
    """(what it shows, index): anomalous images with the highest, middle and lowest scores, then normal images with the
    highest and lowest; each image once."""
    anomalous = np.flatnonzero(labels)[np.argsort(scores[labels], kind="stable")]
    normal = np.flatnonzero(~labels)[np.argsort(scores[~labels], kind="stable")]
    middle = max((len(anomalous) - PER_KIND) // 2, 0)
    groups = (
        ("best found", anomalous[::-1][:PER_KIND]),
        ("median", anomalous[middle : middle + PER_KIND]),
        ("worst, missed first", anomalous[:PER_KIND]),
        ("normal, highest score", normal[::-1][:PER_KIND]),
        ("normal, lowest score", normal[:1]),
    )
    found: dict[int, str] = {}
    for kind, indices in groups:
        for index in indices:
            found.setdefault(int(index), kind)
    return [(kind, index) for index, kind in found.items()]


def tiles(
    image: NDArray[np.uint8], mask: NDArray[np.bool_] | None, heat: NDArray[np.float32], low: float, high: float
) -> list[Image.Image]:
    """The four pictures of one case, each TILE x TILE."""
    picture = resized(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))))
    truth = Image.new("RGB", (TILE, TILE), (127, 127, 127))  # grey: this data set has no masks
    if mask is not None:
        truth = resized(Image.fromarray((mask * 255).astype(np.uint8)), Image.Resampling.NEAREST).convert("RGB")
    coloured = resized(Image.fromarray(colours(heat, low, high)))
    return [picture, truth, coloured, Image.blend(picture, coloured, 0.5)]


def resized(picture: Image.Image, how: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """`picture` as a tile."""
    return picture.resize((TILE, TILE), how)


def colours(heat: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    """`heat` [H, W] as uint8 [H, W, 3] in the inferno colours, black at `low` and bright yellow from `high` on."""
    import matplotlib

    found = np.empty((*heat.shape, 3), np.uint8)
    rows = max(1, BLOCK // max(1, heat.shape[1]))
    for start in range(0, len(heat), rows):  # the table answers in float64, 32 bytes for a pixel
        scaled = np.clip((heat[start : start + rows] - low) / max(high - low, 1e-12), 0, 1)
        table: NDArray[np.float64] = matplotlib.colormaps["inferno"](scaled)
        found[start : start + rows] = table[..., :3] * 255
    return found
