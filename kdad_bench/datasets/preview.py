"""A contact sheet: normal images and one row for each kind of defect, masks outlined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from kdad_bench.datasets.category import GOOD, Category, DatasetError, Sample
from kdad_bench.datasets.decoding import as_rgb, open_image, read_mask

LABEL = 14  # pixels above a row
OUTLINE = (255, 0, 0)


def contact_sheet(category: Category, *, columns: int = 6, side: int = 160) -> Image.Image:
    """Up to `columns` images of train/good, test/good and each kind of defect, `side` pixels wide, one kind a row.

    For the modality rgb+depth each image is followed by the relief of its scan. Raises DatasetError for a damaged file.
    """
    if not 1 <= columns <= 50 or not 16 <= side <= 1024:
        raise DatasetError(f"{columns} columns of {side} pixels: must lie within 1 .. 50 and 16 .. 1024")
    kinds = sorted({sample.defect for sample in category.test} - {GOOD})
    rows: list[tuple[str, Sequence[Sample]]] = [(f"train/{GOOD} ({len(category.train)})", category.train[:columns])]
    for kind in [GOOD, *kinds]:
        samples = [sample for sample in category.test if sample.defect == kind]
        rows.append((f"test/{kind} ({len(samples)})", samples[:columns]))
    pictures = 2 if category.modality == "rgb+depth" else 1
    sheet = Image.new("RGB", (columns * side * pictures, len(rows) * (side + LABEL)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for place, (title, images) in enumerate(rows):
        top = place * (side + LABEL)
        draw.text((2, top + 1), f"{category.name} {title}", fill=(0, 0, 0))
        for column, sample in enumerate(images):
            for shift, picture in enumerate(_pictures(category, sample)):
                left = (column * pictures + shift) * side
                sheet.paste(_outlined(picture, sample.masks, side), (left, top + LABEL))
    return sheet


def _pictures(category: Category, sample: Sample) -> list[Image.Image]:
    shown: list[Image.Image] = []
    if category.modality != "depth":
        shown.append(as_rgb(open_image(sample.path), sample.path))
    if category.modality != "rgb" and sample.scan is not None:
        from kdad_bench.datasets.depth import render
        from kdad_bench.datasets.loading import highest_relief

        shown.append(Image.fromarray(render(sample.scan, highest_relief(category))))
    return shown


def _outlined(picture: Image.Image, masks: Sequence[Path], side: int) -> Image.Image:
    small = picture.resize((side, side), Image.Resampling.BILINEAR)
    pixels = np.asarray(small).copy()
    for mask in masks:
        pixels[_edge(read_mask(mask, side, picture.size))] = OUTLINE
    return Image.fromarray(pixels)


def _edge(marked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The pixels of a region that touch something else."""
    padded = np.pad(marked, 1)
    inner = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return marked & ~inner
