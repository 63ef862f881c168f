"""Is a submission of anomaly maps what the server of its data set takes? Every kind of fault is told, with its count.

The file is untrusted: its members are read one by one by `datasets.archive`, none larger than a map can be, and nothing
is unpacked to disk.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import tifffile

from kdad_bench.datasets import Category, DatasetError, Entry
from kdad_bench.datasets.archive import tar
from kdad_bench.datasets.archive.limits import Damaged, Limits, Refused
from kdad_bench.datasets.archive.streams import File, Stream
from kdad_bench.datasets.category import printable
from kdad_bench.datasets.decoding import MAX_PIXELS, open_image, upright
from kdad_bench.datasets.entry import Upload
from kdad_bench.datasets.stand_in import PREFIX
from kdad_bench.harness.maps import TURNED, WHITE, MapError, said, tiff_of

SHOWN = 3  # names in a line
MOST_BYTES = 2 * MAX_PIXELS + 4096  # of a member: float16, not packed
MOST_LETTERS = 200  # of a name in a line
# a map of zeros shrinks to a thousandth, the most that gzip can: nothing of it is kept
LIMITS = Limits(member_bytes=MOST_BYTES, ratio=1100)
GZIP = b"\x1f\x8b"
Size = tuple[int, int]  # width, height


class UploadError(ValueError):
    """A submission that cannot be made, or that the server would refuse: a line for each kind of fault."""

    def __init__(self, *lines: str) -> None:
        self.lines = tuple(map(printable, lines))
        super().__init__("; ".join(self.lines))


class Member(NamedTuple):
    """A file of a submission."""

    name: str
    data: bytes | None  # None: too large to be one of its maps, no file, or not asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What a sound submission holds."""

    maps: int
    thresholded: int
    drawn: bool  # of a stand-in, which no server takes


@dataclass(slots=True)
class Findings:
    """Faults by kind, with the names of those that have them."""

    kinds: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Note a fault."""
        short = name if len(name) <= MOST_LETTERS else f"{name[:MOST_LETTERS]}..."
        self.kinds.setdefault(kind, []).append(short)

    def lines(self, file: Path) -> Iterator[str]:
        """One line for each kind."""
        for kind, names in self.kinds.items():
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            yield f"{file}: {len(names)} {'file' if len(names) == 1 else 'files'}: {kind} ({shown})"


def expected_of(found: Sequence[Category]) -> dict[str, Size]:
    """`<category>/<split>/<stem>` -> size of each image without labels. Raises DatasetError for one without a size."""
    return {
        f"{one.name}/{path.relative_to(one.root).with_suffix('').as_posix()}": upright(path).size
        for one in found
        for path in one.unlabelled
    }


def published_by(one: Entry, names: Sequence[str]) -> dict[str, Size]:
    """The same by the published numbers, for categories `names` that may be those of a stand-in, drawn in any size."""
    assert one.upload is not None
    found: dict[str, Size] = {}
    for name in names:
        counts = one.published[name.removeprefix(PREFIX)]
        size = (0, 0) if name.startswith(PREFIX) else (counts.width, counts.height)
        for split, ending in one.upload.splits.items():
            for number in range(counts.unlabelled // len(one.upload.splits)):
                found[f"{name}/{split}/{number:03d}_{ending}"] = size
    return found


def check(file: Path, one: Entry, found: Sequence[Category] = (), *, called: Path | None = None) -> Checked:
    """Examine the submission `file`, a .tar.gz or the folder that one is made of.

    It must hold a map for each image without labels of `found`, or without them for each that is published, and
    nothing else. Raises UploadError with a line for each kind of fault, where the file may be `called` otherwise.
    """
    upload = one.upload
    if upload is None:
        raise UploadError(f"{one.name}: no server evaluates it; nothing to submit")
    expected = expected_of(found) if found else published_by(one, names_in(file, one, upload))
    wrong, seen = Findings(), {upload.maps: set[str](), upload.thresholded: set[str]()}
    folders: dict[str, str] = {}  # above those of maps and decisions, with a file of each
    for member in members(file):
        above, kind, stem, suffix = parts_of(member.name, upload)
        if kind is not None:
            folders.setdefault(above, member.name)
        if kind is None:
            wrong.add("part of no submission", member.name)
        elif stem not in expected or suffix != (".tiff" if kind == upload.maps else ".png"):
            wrong.add("a name that no image without labels has", member.name)
        elif stem in seen[kind]:
            wrong.add("there twice", member.name)
        else:
            seen[kind].add(stem)
            judge = fault_of_map if kind == upload.maps else fault_of_decisions
            why = "no regular file, or larger than any map" if member.data is None else judge(
                member.data, expected[stem]
            )  # fmt: skip
            if why:
                wrong.add(why, member.name)
    for name in folders.values() if len(folders) > 1 else ():
        wrong.add("one in each folder that maps lie below; pack a single one", name)
    above = next(iter(folders), "")
    for kind, suffix in ((upload.maps, ".tiff"), (upload.thresholded, ".png")):
        if kind == upload.maps or seen[kind]:  # decisions may be left out, all of them
            for stem in sorted(set(expected) - seen[kind]):
                wrong.add("missing", (PurePosixPath(above) / kind / f"{stem}{suffix}").as_posix())
    if wrong.kinds:
        raise UploadError(*wrong.lines(called or file))
    drawn = any(stem.startswith(PREFIX) for stem in expected)
    return Checked(maps=len(seen[upload.maps]), thresholded=len(seen[upload.thresholded]), drawn=drawn)


def names_in(file: Path, one: Entry, upload: Upload) -> list[str]:
    """The categories of a submission: those of a stand-in where its first map is drawn, else all published ones."""
    stems = (stem for stem in (parts_of(name, upload).stem for name in names_of(file)) if stem)
    if not next(stems, "").startswith(PREFIX):
        return list(one.published)
    there = {parts_of(name, upload).stem.partition("/")[0] for name in names_of(file)}
    return [name for name in sorted(there) if name.removeprefix(PREFIX) in one.published]


def names_of(file: Path) -> Iterator[str]:
    """The names of the files in a submission."""
    if file.is_dir():
        yield from (path.relative_to(file).as_posix() for path in sorted(file.rglob("*")) if not path.is_dir())
        return
    yield from (one.name for one in archived(file, contents=False))


def members(file: Path) -> Iterator[Member]:
    """The files of a submission, one at a time. Raises UploadError for a file that is no archive."""
    if file.is_dir():
        for name in names_of(file):
            path = file / name
            sound = path.is_file() and path.stat().st_size <= MOST_BYTES
            yield Member(name, path.read_bytes() if sound else None)
        return
    yield from archived(file, contents=True)


def archived(file: Path, *, contents: bool) -> Iterator[Member]:
    """The files of an archive, up to its checksum. Raises UploadError for a damaged one and for links and the like."""
    try:
        with closing(File(file)) as packed:
            if packed.read(len(GZIP)) != GZIP:
                raise Damaged("not packed by gzip")
            packed.seek(0)
            for number, one in enumerate(tar.members(Stream(packed, LIMITS), LIMITS)):
                if number == LIMITS.members:
                    raise Refused(f"more than {number} files and folders")
                if not one.folder:
                    yield Member(one.name, b"".join(one.chunks) if contents else None)
    except (Refused, Damaged) as error:
        raise UploadError(f"{file}: no readable .tar.gz ({error}); give one of `results submission`") from error


class Parts(NamedTuple):
    """What the name of a file in a submission says."""

    above: str  # the folder that all lie below, or nothing
    kind: str | None  # the folder of maps or of decisions; None: it lies in neither
    stem: str  # `<category>/<split>/<stem>`
    suffix: str


def parts_of(name: str, upload: Upload) -> Parts:
    """The parts of a name, below one folder or none."""
    path = PurePosixPath(name)
    places = [place for place in (0, 1) if path.parts[place : place + 1] in ((upload.maps,), (upload.thresholded,))]
    if not places or ".." in path.parts or path.is_absolute():
        return Parts("", None, "", "")
    *above, kind = path.parts[: places[0] + 1]
    rest = PurePosixPath(*path.parts[places[0] + 1 :])
    return Parts("".join(above), kind, rest.with_suffix("").as_posix() if rest.name else "", rest.suffix)


def fault_of_map(data: bytes, size: Size) -> str:
    """What is wrong with a map, in a few words; or nothing."""
    try:
        values, pages = said(lambda: (tiff_of(data), len(tifffile.TiffFile(io.BytesIO(data)).pages)))
    except MapError as error:
        return {WHITE: "0 is white in it", TURNED: "to be turned"}.get(str(error), "no readable TIFF")
    if pages != 1:
        return "more than one page"
    if values.ndim != 2:
        return "more than one channel"
    if values.dtype.newbyteorder("=") != np.float16:
        return f"{values.dtype.newbyteorder('=')}, not float16"
    if size != (0, 0) and values.shape != (size[1], size[0]):
        return "another size than its image"
    return "" if np.isfinite(values).all() else "a NaN or an infinite value"


def fault_of_decisions(data: bytes, size: Size) -> str:
    """What is wrong with the decisions of an image, in a few words; or nothing."""
    try:
        image = open_image(Path("."), data)
    except DatasetError:
        return "no readable PNG"
    if image.format != "PNG" or image.mode != "L":
        return "no PNG of one channel of 8 bits"
    if size != (0, 0) and image.size != size:
        return "another size than its image"
    return "" if set(np.unique(np.asarray(image)).tolist()) <= {0, 255} else "other values than 0 and 255"
