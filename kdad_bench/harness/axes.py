"""The axes of a job: with how few images it learns, how dirty they are, how corrupted the images are that it judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

from kdad_bench.datasets import SQUASH, Category
from kdad_bench.datasets.corruption import CORRUPTIONS, LEVELS, PHOTOGRAPHIC
from kdad_bench.datasets.lots import MOST_SHARE
from kdad_bench.harness.choices import SelectionError, suggestion

T = TypeVar("T")
MOST_IMAGES = 1_000_000
LONGEST = 40  # characters of a value, in what is read and in what is said about it


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """Where a job stands on each axis. None is the plain job, which has the identity that it had without axes."""

    train_images: int | None = None  # so many of the normal training images
    contamination: float | None = None  # so large a share of the images learnt from is defective
    corruption: str | None = None  # NAME:LEVEL of the test images

    @property
    def used(self) -> dict[str, Any]:
        """The axes on which the job is not the plain one."""
        return {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}

    @property
    def label(self) -> str:
        """How people read it: `corruption=blur:3,train_images=4`; nothing for the plain job."""
        return ",".join(f"{name}={value}" for name, value in sorted(self.used.items()))

    @property
    def columns(self) -> dict[str, Any]:
        """The same as columns of a row."""
        return {"k_shot": self.train_images, "contamination": self.contamination, "corruption": self.corruption}


PLAIN = Axes()


def axes_of(row: Mapping[str, Any]) -> Axes:
    """Where the job of a row stands; raises SelectionError for a corruption that there is not."""
    (corruption,) = corruptions_from([row["corruption"]])
    return Axes(train_images=row["k_shot"], contamination=row["contamination"], corruption=corruption)


def points(
    train_images: Sequence[int | None], contamination: Sequence[float | None], corruption: Sequence[str | None]
) -> tuple[Axes, ...]:
    """Every combination of the values, the plain one first: the same in whatever order they are given."""
    few = _sorted(train_images)
    shares = _sorted(contamination)
    worse = _sorted(corruption)
    return tuple(
        Axes(train_images=count, contamination=share, corruption=one)
        for count, share, one in product(few, shares, worse)
    )


def _sorted(values: Sequence[T | None]) -> list[T | None]:
    """The plain one first, then ascending; without any the plain one alone."""

    def place(value: Any) -> tuple[bool, Any]:
        return (value is not None, value)

    return sorted(values, key=place) or [None]


def counts_from(said: object) -> tuple[int | None, ...]:
    """`1,4,all` -> (1, 4, None). Raises SelectionError for what is no count and for one that is named twice."""
    return _each(said, "train-images", _count)


def shares_from(said: object) -> tuple[float | None, ...]:
    """`none,0,0.1` -> (None, 0.0, 0.1). Raises SelectionError for a share outside 0 to 0.4 or named twice."""
    return _each(said, "contamination", _share)


def corruptions_from(said: object) -> tuple[str | None, ...]:
    """`none,blur:3` -> (None, "blur:3"). Raises SelectionError for an unknown name, a level that is none, and twins."""
    return _each(said, "corruption", _corruption)


def _each(said: object, option: str, one: Callable[[str], T | None]) -> tuple[T | None, ...]:
    """The values of a list, or of a text with commas."""
    listed = said if isinstance(said, (list, tuple)) else str(said).split(",")
    if not listed:
        raise SelectionError(f"--{option}: an empty list chooses nothing; leave it out for the plain job, or name some")
    try:
        found = tuple(one("none" if part is None else str(part).strip()[:LONGEST]) for part in listed)
    except SelectionError as error:
        raise SelectionError(f"--{option} {error}") from error
    if len(set(found)) != len(found):
        raise SelectionError(f"--{option} '{','.join(map(str, listed))[:LONGEST]}' names a value twice")
    return found


def _count(text: str) -> int | None:
    if text in ("all", "none"):
        return None
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= MOST_IMAGES:
        raise SelectionError(f"'{text}' is no number of images from 1 to {MOST_IMAGES}, nor 'all'")
    return int(text)


def _share(text: str) -> float | None:
    if text == "none":
        return None
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= MOST_SHARE:
        raise SelectionError(f"'{text}' is no share from 0 to {MOST_SHARE:g}, nor 'none' for a training set as it is")
    return share + 0.0  # without the sign of -0.0


def _corruption(text: str) -> str | None:
    if text == "none":
        return None
    name, _, level = text.partition(":")
    if name not in CORRUPTIONS:
        raise SelectionError(f"'{text}': no corruption '{name}'{suggestion(name, CORRUPTIONS)}; have: {_names()}")
    if level not in map(str, LEVELS):
        raise SelectionError(f"'{text}': the level is one of 1 to 5, as in {name}:3")
    return text


def _names() -> str:
    return ", ".join(CORRUPTIONS)


def refuse_what_does_not_fit(axes: Axes, category: Category, fit: str = SQUASH) -> None:
    """Raises SelectionError for a corruption of photographs where a method sees none, and of pictures that are no
    squares."""
    if axes.corruption is not None and fit != SQUASH:
        raise SelectionError(f"--corruption {axes.corruption}: is defined on squares; not with --fit {fit}")
    name = (axes.corruption or "").partition(":")[0]
    if name in PHOTOGRAPHIC and category.modality == "depth":
        raise SelectionError(
            f"--corruption {axes.corruption}: is one of photographs, and --modality depth has none; "
            "take shift or rotation"
        )
