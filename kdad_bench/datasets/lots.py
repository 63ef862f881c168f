"""Lots that decide what is learnt from: a few of the normal images, or defective ones slipped in among them.

A lot depends on the seed and on the category alone: every method gets the same images, and so does every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdad_bench.datasets.category import Category, DatasetError, Sample
from kdad_bench.datasets.splits import held_out
from kdad_bench.datasets.synthetic.drawing import Stream

MOST_SHARE = 0.4  # of the images learnt from may be defective

Indices = npt.NDArray[np.int64]


class Lot(NamedTuple):
    """What is learnt from, and where each image stands among the n + d of them."""

    normals: Indices  # [n] into `Category.train`
    slipped: Indices  # [d] into `Category.test`: defective images that nobody says are defective
    places: Indices  # [n + d] the place of each normal and then of each slipped image, a permutation


def draw(category: Category, *, count: int | None, share: float | None, hold_out: float, seed: int) -> Lot:
    """The lot of `count` images (None: as many as there are) of which `share` are defective (None: no such lot).

    Normals that are held out (`hold_out` of train/good, where the data set ships no validation split) are in no lot.
    The lots of one seed are nested: a smaller count takes the first of a larger one, a smaller share replaces fewer
    of the same normals at the same places. Raises DatasetError in one line where there are too few images, and for a
    share that no whole number of them comes near.
    """
    there = left_to_learn_from(category, hold_out, seed)
    if count is not None and count > len(there):
        apart = f" ({len(category.train) - len(there)} more are held out)" if len(there) < len(category.train) else ""
        raise DatasetError(
            f"{_name(category)}: {count} training images were asked for and there are {len(there)}{apart}; "
            f"ask for at most {len(there)}"
        )
    chosen = order(category, "normals", len(category.train), seed)
    chosen = chosen[np.isin(chosen, there)]
    if share is None:
        normals = np.sort(chosen[:count])
        return Lot(normals, normals[:0], np.arange(len(normals)))
    aside = set_aside(category, seed)
    size = size_of(category, share=share, hold_out=hold_out, seed=seed) if count is None else count
    slipped = int(share * size + 0.5)
    if size < 1 or slipped > len(aside):
        raise DatasetError(
            f"{_name(category)}: {slipped} of {size} training images were to be defective and {len(aside)} of the test "
            f"images can be spared (half of each kind); take a smaller share or fewer images"
        )
    refuse_a_share_that_cannot_be(category, share, slipped, size)
    places = order(category, "places", size, seed)
    return Lot(chosen[slipped:size], aside[:slipped], np.concatenate([places[slipped:], places[:slipped]]))


def refuse_a_share_that_cannot_be(category: Category, share: float, slipped: int, size: int) -> None:
    """Raises DatasetError where the nearest whole number of images, `slipped` of `size`, is no `share` of them: none at
    all, or a quarter off."""
    asked = share * size
    if not asked or abs(slipped - asked) < asked / 4 - 1e-9:
        return
    near = [count for count in (int(asked), int(asked) + 1) if 0 < count <= MOST_SHARE * size]
    instead = f"a share of {' or '.join(f'{count / size:.3g}' for count in near)}, or " if near else ""
    raise DatasetError(
        f"{_name(category)}: a share of {share:g} of {size} training image{'s' * (size != 1)} is {asked:.2g} defective "
        f"ones, which would be {slipped or 'none'}; take {instead}more images"
    )


def size_of(category: Category, *, share: float | None, hold_out: float, seed: int) -> int:
    """How many images a lot has that is not asked for a number: all, or what can be filled to MOST_SHARE."""
    there = len(left_to_learn_from(category, hold_out, seed))
    return there if share is None else min(there, len(set_aside(category, seed)) * 10 // 4)


def left_to_learn_from(category: Category, hold_out: float, seed: int) -> Indices:
    """The training images, ascending, that are not held out."""
    if not hold_out or category.validation:
        return np.arange(len(category.train))
    return held_out(len(category.train), fraction=hold_out, seed=seed)[0]


def set_aside(category: Category, seed: int) -> Indices:
    """The defective test images that leave the test set for every share of a seed, in the order in which they slip in.

    Half of each kind of defect, rounded down: the test set keeps every kind.
    """
    taken: dict[str, int] = {}
    most = {kind: half(category.test, kind) for kind in {one.defect for one in category.test if one.label}}
    found = []
    for index in order(category, "slipped", len(category.test), seed).tolist():
        kind = category.test[index].defect
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= most.get(kind, 0):
            found.append(index)
    return np.array(found, dtype=np.int64)


def half(samples: tuple[Sample, ...], kind: str) -> int:
    """Half of the images of a kind of defect, rounded down."""
    return sum(one.defect == kind for one in samples) // 2


def order(category: Category, what: str, count: int, seed: int) -> Indices:
    """A permutation of 0 .. count - 1, the same on every machine and for every version of numpy."""
    words = Stream(f"lot/{what}/{category.name}/{count}/{seed}").words(count)
    return np.argsort(words, kind="stable").astype(np.int64)


def _name(category: Category) -> str:
    return f"{category.dataset}/{category.name}"
