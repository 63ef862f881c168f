"""The images that an exported graph is compared with its model on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdad_bench import datasets
from kdad_bench.datasets import Category, DatasetError
from kdad_bench.datasets.decoding import read_rgb
from kdad_bench.datasets.lots import Lot, draw
from kdad_bench.datasets.photographs import photographs
from kdad_bench.datasets.splits import FRACTION
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.decision import Decision
from kdad_bench.harness.job import hold_out_of
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row

CALIBRATION = 128  # images at most that the ranges of 8-bit graphs are measured on


class Images(NamedTuple):
    """Images of one kind."""

    what: str
    names: tuple[str, ...]
    pixels: NDArray[np.uint8]  # [N, 3, R, R]
    real: bool = True  # photographs, whose decisions matter


class Normals(NamedTuple):
    """The normals of its category that the model learnt from, and those it never saw; or why there are none."""

    fit: NDArray[np.uint8] | None
    held_out: Images | None
    why: str


def normals_of(model: Path, kept: Decision, data_root: Path | None) -> Normals:
    """The normal images of a saved `model`, found again by the row beside it and the data set.

    Nothing but the row says which they were: whether they are still the same is for the caller to see in their scores.
    """
    row = row_of(model)
    if row is None:
        return Normals(None, None, f"{model}: no row beside it says what it learnt from")
    share = hold_out_of(row.preset)
    try:
        category = category_of(row.dataset, row.category, data_root)
        if datasets.fingerprint(category) != row.data_fingerprint:
            return Normals(None, None, f"{row.dataset}/{row.category}: other images than {model} learnt from")
        fit = datasets.load_train(category, kept.resolution)[lot_of(row, category, share).normals]
        if not kept.normal_scores or not (share or category.validation):
            return Normals(fit, None, f"{model}: has no held-out normals")
        fraction = share or FRACTION
        apart = datasets.load_normals(category, kept.resolution, fraction=fraction, seed=row.seed).held_out
    except (DatasetError, SelectionError) as error:
        return Normals(None, None, str(error))
    names = tuple(f"held-out normal {k}" for k in range(len(apart)))
    what = f"held-out normals of {row.dataset.partition(':')[0]}/{row.category}"
    return Normals(fit, Images(what, names, apart), "")


def lot_of(row: Row, category: Category, hold_out: float) -> Lot:
    """What the model of `row` learnt from in its own category; raises DatasetError.

    Of categories that were learnt together each gave as many images.
    """
    together = len(row.learnt_together)
    count = (row.train_images or 0) // together if together else row.k_shot
    return draw(category, count=count, share=row.contamination, hold_out=hold_out, seed=row.seed)


def row_of(model: Path) -> Row | None:
    """The row of the job that a folder under models/ is of."""
    folder = model.resolve()
    try:
        return store.find(folder.parent.parent, folder.name.rpartition("-")[2])
    except store.StoreError:
        return None


def category_of(dataset: str, name: str, data_root: Path | None) -> Category:
    """A category by name; raises DatasetError."""
    (found,) = datasets.categories(dataset, data_root, [name])
    return found


def asked_for(names: Sequence[str], resolution: int, data_root: Path | None) -> list[Images]:
    """The images of each of `names`: a file, folder or pattern, or DATASET/CATEGORY for a category's test images.

    Raises SelectionError or DatasetError for one that stands for none, and for an image that cannot be read.
    """
    return [of_category(name, resolution, data_root) or of_files(name, resolution) for name in names]


def of_category(name: str, resolution: int, data_root: Path | None) -> Images | None:
    """The test images of DATASET/CATEGORY; None where a file of that name is there, or no such data set."""
    dataset, _, category = name.rpartition("/")
    if Path(name).exists() or not is_data_set(dataset, data_root):
        return None
    found = datasets.load_test(category_of(dataset, category, data_root), resolution)
    return Images(f"test images of {name}", found.names, found.images)


def is_data_set(name: str, data_root: Path | None) -> bool:
    """Whether a data set is called so: one of this package, an installed one, that of a file, or a drawn stand-in.

    Raises DatasetError for a file whose code cannot be used.
    """
    return datasets.known(datasets.named(name)[0]) or bool(datasets.names_at_hand(name, data_root))


def of_files(name: str, resolution: int) -> Images:
    """The photographs that a path stands for."""
    found = photographs([name])
    if found.bad or not found.files:
        raise SelectionError(found.bad[0].why if found.bad else found.none_of([name]))
    pixels = np.stack([read_rgb(path, resolution)[0] for path in found.files])
    return Images(f"images of {name}", tuple(map(str, found.files)), pixels)


def drawn(side: int) -> Images:
    """Black, white, a ramp, noise: what cameras show at their worst, and where a division may go wrong."""
    ramp = np.broadcast_to(np.linspace(0, 255, side).astype(np.uint8), (3, side, side))
    noise = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    found = {"black": np.zeros_like(noise), "white": np.full_like(noise, 255), "ramp": ramp, "noise": noise}
    return Images("drawn images", tuple(found), np.stack(list(found.values())), real=False)


def calibration_of(normals: Normals, checked_on: Sequence[Images]) -> tuple[list[NDArray[np.uint8]], str]:
    """([1, 3, R, R] each, in words) to measure the ranges of an 8-bit graph on: normals that the model learnt from."""
    if normals.fit is not None and len(normals.fit):
        what, pixels = "normals that the model learnt from", normals.fit
    else:
        what, pixels = f"{checked_on[0].what}, which it was also compared on", checked_on[0].pixels
    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(CALIBRATION, len(pixels))).round().astype(int))
    return [np.ascontiguousarray(pixels[k : k + 1]) for k in chosen], f"{len(chosen)} {what}"
