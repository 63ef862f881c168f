"""What the file of a data set says of it: one `Entry`, from which every command takes what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kdad_bench.datasets.survey import Survey
from kdad_bench.datasets.synthetic.embedded import Files, Split
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Subject


class Layout(Protocol):
    """How the files of a data set lie on disk. Neither function opens an image."""

    @property
    def text(self) -> str:
        """One line on what lies where, for messages."""

    def categories(self, root: Path) -> dict[str, Path]:
        """Name -> folder of each category below `root`, in alphabetical order; of `root` itself where it is one."""

    def survey(self, folder: Path) -> Survey:
        """Sort the files of one category by their use: whatever is not hidden is used, or listed with a reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """Where a data set can be had, and how to know that it is the right one."""

    url: str
    algorithm: str  # sha256 | md5
    digest: str
    page: str  # for people: where to look when the link has moved
    download_bytes: int  # about
    unpacked_bytes: int  # about


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Number of images of one category and their size in pixels; None where no source says it."""

    train: int | None
    validation: int | None = 0
    test_good: int | None
    test_anomalous: int | None
    types: tuple[str, ...]  # folders of defects
    renamed: tuple[str, ...] = ()  # what known copies call them
    unlabelled: int = 0  # test images whose labels are not published
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """What a server evaluates where labels are not published: a map for each image, by its place in the data set."""

    page: str  # where submissions are made
    maps: str  # folder of anomaly maps, TIFF files of one channel of float16
    thresholded: str  # folder of decisions by pixel, PNG files of 0 and 255; may be left out
    splits: Mapping[str, str]  # folder of images without labels -> how names there end: NNN_<ending>


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A data set: how it is called, read, found, fetched, checked and drawn."""

    name: str  # as `--dataset` takes it
    title: str
    licence: str
    layouts: tuple[Layout, ...]  # tried in this order
    modalities: tuple[str, ...] = ("rgb",)
    folders: tuple[str, ...] = ()  # names under which its folder is found below a data root
    takes_path: bool = False  # named as NAME:PATH
    takes_file: bool = False  # PATH may be a file
    drawn: Callable[[Sequence[str]], Path] | None = None  # draws categories (all if none) and returns their folder
    drawn_names: tuple[str, ...] = ()  # the categories that `drawn` draws
    terms: str = ""  # what the licence asks for, shown before a download
    archive: Archive | None = None
    page: str = ""  # where a person can get it, if there is no archive that a program can fetch
    published: Mapping[str, Counts] = field(default_factory=dict)  # category -> what a complete copy holds
    closed: bool = False  # a tree with none of the published categories is another data set
    confirmed: bool = True  # whether the numbers of each category are; a run refuses fewer, else they are told
    upload: Upload | None = None  # where a server evaluates the images without labels
    # confirmed numbers of all categories together, by `Counts`; `masks` are those of anomalous images
    totals: Mapping[str, int] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # files of each published category that say how its masks are read
    subjects: Mapping[str, Subject | Solid] = field(default_factory=dict)  # category -> what its stand-in shows
    drawn_counts: Mapping[str, Counts] = field(default_factory=dict)  # of a stand-in, where they are not `published`
    drawn_files: Callable[[str, Split, int], Files] | None = None  # (category, split, number) -> where a drawing goes
    drawn_inside: Callable[[Path], None] | None = None  # (folder): writes what else lies in a category's folder
    # (root, category): writes what belongs to a category beside its folder; asked again whenever that is there already
    drawn_beside: Callable[[Path, str], None] | None = None

    @property
    def synthetic(self) -> bool:
        """Whether this package draws it."""
        return self.drawn is not None
