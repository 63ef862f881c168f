"""What a data set is made of: samples and categories. Imports nothing of this package."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from kdad_bench.text import printable as printable

GOOD = "good"
MODALITIES = ("rgb", "depth", "rgb+depth")
# what no name has: control characters, undecodable bytes, line ends and marks that turn the direction of writing
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_name(found: object) -> bool:
    """Whether a folder, a category or a kind of defect may be called so: names stand in rows and in names of files."""
    return (
        isinstance(found, str)
        and found.strip() not in ("", ".", "..")
        and not any(sign in found for sign in "/\\:")
        and not UNPRINTABLE.search(found)
    )


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known word, capitals apart, or nothing."""
    folded = {one.casefold(): one for one in known}
    close = get_close_matches(word.casefold(), folded, n=1)
    return f" (did you mean '{folded[close[0]]}'?)" if close else ""


def each_by_itself(name: str, option: str) -> str:
    """How several are named, where an unknown `name` has a comma as if it were several; or nothing."""
    return f"give each by itself, in a list or as `{option} A {option} B`; " if "," in name else ""


def not_a_category(name: str, dataset: str, have: Collection[str]) -> str:
    """That `dataset` has no category `name`, in one line."""
    several = each_by_itself(name, "--category")
    return f"category '{name}'{suggestion(name, have)} not in {dataset}; {several}have: {', '.join(have)}"


class DatasetError(ValueError):
    """A data set cannot be used: a printable line that names the path, what is wrong and what to do.

    Where several kinds of things are wrong there is one of the `lines` for each; the text has them all.
    """

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(map(printable, lines))
        super().__init__("; ".join(self.lines))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image: its file, its defect type ("good" if normal), the files that mark the defect, and its scan."""

    path: Path  # the photograph, whatever the modality
    defect: str = GOOD
    masks: tuple[Path, ...] = ()  # marked is what any of them marks; none for a normal image
    scan: Path | None = None  # the xyz file that belongs to the photograph

    @property
    def label(self) -> bool:
        """True if the image is anomalous."""
        return self.defect != GOOD


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """One category of a data set: the normal images to learn from and the test images to be judged."""

    dataset: str
    name: str
    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    validation: tuple[Sample, ...] = ()  # normal images shipped as a split of their own
    synthetic: bool = False
    modality: str = "rgb"  # rgb | depth | rgb+depth
    has_masks: bool = True
    has_scans: bool = False  # True if a scan belongs to every image
    by_table: bool = False  # True if a table, and not the folder, says what each image is for
    saturation: Path | None = None  # MVTec LOCO's defects_config.json: the area at which a region counts as found
    faults: tuple[str, ...] = field(default=(), compare=False)  # of files, a line for each kind: no job of it can run
    departure: str = field(default="", compare=False)  # what it holds, and the published data set of its name does not
    blank: tuple[Path, ...] = field(default=(), compare=False)  # masks of normal images, which should mark nothing
    unlabelled: tuple[Path, ...] = field(default=(), compare=False)  # test images whose labels are not published
    remarks: tuple[str, ...] = field(default=(), compare=False)  # a line for each kind of thing that is not used
    code: str = ""  # SHA-256 of the code that sorted the files, where it is not this package's
    # relative name -> SHA-256 of each file as a plan saw it (`sealing.sealed`); loading refuses a file that has changed
    seal: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def splits(self) -> Iterator[tuple[str, Sample]]:
        """(split, sample) of every image."""
        for split, samples in (("train", self.train), ("validation", self.validation), ("test", self.test)):
            for sample in samples:
                yield split, sample

    def files(self) -> Iterator[Path]:
        """Every file that the modality reads."""
        for _, sample in self.splits():
            yield sample.path
            yield from sample.masks
            if self.modality != "rgb" and sample.scan is not None:
                yield sample.scan
        if self.saturation is not None:
            yield self.saturation
