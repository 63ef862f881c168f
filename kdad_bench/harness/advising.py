"""How many normal images lie in a folder, and how many a false-alarm rate needs: what advice asks of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdad_bench.datasets import DatasetError, located, named
from kdad_bench.datasets.decoding import refuse_by_header
from kdad_bench.datasets.photographs import photographs
from kdad_bench.harness.decision import needed_for


@dataclass(frozen=True, kw_only=True, slots=True)
class Normals:
    """The normal images of one category."""

    category: str
    train: int
    validation: int = 0  # a split of their own, which nothing learns from
    unreadable: int = 0  # files that should be among them and are no pictures by their headers
    bare: bool = False  # a folder of nothing but normals, as no run takes it


def normals_at(data: str, data_root: Path | None = None) -> tuple[Normals, ...]:
    """The normals of each category of a data set (`folder:PATH` or a name), or of a folder that holds nothing else.

    No image is decoded, and none but the normals is asked for. Raises DatasetError in one line.
    """
    try:
        place = located(data, data_root)
    except DatasetError:
        alone = _alone(data)
        if alone is None:
            raise
        return (alone,)
    surveys = {name: place.layout.survey(folder) for name, folder in place.categories.items()}
    found = []
    for name, one in surveys.items():
        train, validation = ([sample.path for sample in split] for split in (one.train, one.validation))
        found.append(counted(place.root / name, name, train, validation))
    return tuple(found)


def counted(folder: Path, name: str, train: Sequence[Path], validation: Sequence[Path] = ()) -> Normals:
    """Those of the files that are images by their headers. Raises DatasetError without any."""
    images = [sum(map(is_image, files)) for files in (train, validation)]
    wrong = len(train) + len(validation) - sum(images)
    if not sum(images):
        files = f" that can be read ({wrong} files are none)" if wrong else ""
        raise DatasetError(f"{folder}: no normal images there{files}; put them into train/good")
    return Normals(category=name, train=images[0], validation=images[1], unreadable=wrong)


def is_image(path: Path) -> bool:
    """Whether a file has the header of a picture that a run would read."""
    try:
        refuse_by_header(path)
    except DatasetError:
        return False
    return True


def _alone(data: str) -> Normals | None:
    """The images of a folder without splits; None where it is no such folder."""
    name, path = named(data)
    if name != "folder" or not path or not Path(path).expanduser().is_dir():
        return None
    found = photographs([path])
    if not found.files:
        return None
    known = counted(Path(path), Path(path).name, found.files)
    return replace(known, unreadable=known.unreadable + len(found.bad), bare=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortage:
    """What a category lacks for a false-alarm rate."""

    normals: Normals
    needed: int  # held out
    more_at_least: int  # with one image left to learn from
    more_like_rows: int | None  # with as many to learn from as the rows had

    @property
    def hold_out(self) -> float | None:
        """The share to hold out where there are enough; None where there are not, or a split is shipped."""
        if self.more_at_least or self.normals.validation:
            return None
        share = -(-1000 * self.needed // self.normals.train) / 1000
        return share if share <= 0.9 else None


def shortage(normals: Normals, false_alarms: float, learnt_from: int | None) -> Shortage:
    """What `normals` lack for `false_alarms` in (0, 1), if the rows learnt from `learnt_from` images."""
    count = needed_for(false_alarms)

    def more(left: int) -> int:
        if normals.validation:  # the split is what is held out
            return max(0, count - normals.validation) + max(0, left - normals.train)
        return max(0, count + left - normals.train)

    like_rows = None if learnt_from is None else more(learnt_from)
    return Shortage(normals=normals, needed=count, more_at_least=more(1), more_like_rows=like_rows)
