"""Data sets drawn by the package itself: the same bytes on every machine, no download."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdad_bench.datasets import cache
from kdad_bench.datasets.category import GOOD, DatasetError, not_a_category
from kdad_bench.datasets.listing import hidden
from kdad_bench.datasets.synthetic.drawing import Canvas, Stream
from kdad_bench.datasets.synthetic.encoding import png, tiff
from kdad_bench.datasets.synthetic.solids import Solid
from kdad_bench.datasets.synthetic.subjects import Picture, Subject
from kdad_bench.files import write_text_whole

_sound: dict[Path, list[tuple[str, int, int, int, int]]] = {}  # folder -> its files as this process found them whole
MARKER = "kdad-bench.json"  # lies beside drawn categories and says what they are
SIZE = 256  # pixels, both ways
SCAN_SIZE = 192
TRAIN, TEST_GOOD, PER_DEFECT = 40, 12, 6
DRAFT = ".tmp"  # of a folder that is being drawn
COARSE = 384  # pixels a side on which the things of stand-ins are drawn
PIXELS_AT_ONCE = 4 << 20  # drawn at the same time by all threads: each needs some 300 bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensor:
    """The light and the camera: what differs between two images of the same thing."""

    gradient: float = 0.05  # relative brightness at the edges, to either side
    level: float = 0.04  # relative brightness, to either side
    cast: float = 0.012  # relative gain of a colour channel, to either side
    noise: float = 2.2  # standard deviation of a pixel, of 255


class Drawing(NamedTuple):
    """A finished drawing."""

    image: npt.NDArray[np.uint8]  # [H, W, 3]
    mask: npt.NDArray[np.bool_]  # [H, W]
    points: npt.NDArray[np.float32] | None  # [H, W, 3] metres, where the subject is a solid


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Some drawings of one folder: `<split>/<kind>` of the data set, with a defect of the subject or none."""

    split: str  # train | validation | test
    kind: str  # the name of the folder: good, or a defect
    defect: str | None  # what is drawn
    count: int


class Files(NamedTuple):
    """Where one drawing goes, relative to the folder of its category."""

    image: str
    mask: str | None = None  # if it has a defect or, for solids, is a test image
    scan: str | None = None
    value: int = 255  # of the mask where it marks


def files_of_solid(split: Split, index: int) -> Files:
    """The places of the MVTec 3D-AD layout."""
    place = f"{split.split}/{split.kind}"
    mask = f"{place}/gt/{index:03d}.png" if split.split == "test" else None
    return Files(f"{place}/rgb/{index:03d}.png", mask, f"{place}/xyz/{index:03d}.tiff")


def files_of_picture(split: Split, index: int) -> Files:
    """The places of the MVTec AD layout."""
    mask = f"ground_truth/{split.kind}/{index:03d}_mask.png" if split.defect is not None else None
    return Files(f"{split.split}/{split.kind}/{index:03d}.png", mask)


def exposed(picture: Picture, canvas: Canvas, look: Stream, sensor: Sensor = Sensor()) -> npt.NDArray[np.uint8]:
    """The photograph of `picture` as uint8 [H, W, 3]: uneven light, white balance, noise, rounding to the nearest."""
    a, b = look.between(-sensor.gradient, sensor.gradient), look.between(-sensor.gradient, sensor.gradient)
    level = 1.0 + look.between(-sensor.level, sensor.level)
    light = level + a * (canvas.x - 128.0) / 128.0 + b * (canvas.y - 128.0) / 128.0
    shared = look.grain(canvas.height, canvas.width) * (sensor.noise * 0.7)
    image = np.empty((canvas.height, canvas.width, 3), dtype=np.uint8)
    for channel in range(3):
        gain = 1.0 + look.between(-sensor.cast, sensor.cast)
        own = look.grain(canvas.height, canvas.width) * (sensor.noise * 0.7)
        value = np.floor(picture.image[:, :, channel] * light * gain + shared + own + 0.5)
        image[:, :, channel] = np.minimum(np.maximum(value, 0.0), 255.0).astype(np.uint8)
    return image


def drawn(subject: Subject | Solid, name: str, canvas: Canvas, defect: str | None, *, coarse: bool = False) -> Drawing:
    """The drawing called `name`; equal names give equal drawings.

    A defect that its place happens to hide (fewer than 12 pixels of 256 x 256) is drawn again elsewhere. With `coarse`
    the thing itself is drawn on at most COARSE pixels a side and enlarged; light and noise have every pixel.
    """
    if coarse and max(canvas.width, canvas.height) > COARSE:
        return _enlarged(subject, name, canvas, defect)
    smallest = 12.0 / (canvas.unit * canvas.unit)
    for attempt in range(100):
        look, flaw = Stream(f"{name}/look"), Stream(f"{name}/flaw/{attempt}")
        points = None
        if isinstance(subject, Solid):
            picture, points = subject.draw(canvas, look, defect, flaw)
        else:
            picture = subject.draw(canvas, look, defect, flaw)
        if defect is None or int(np.count_nonzero(picture.region)) >= smallest:
            return Drawing(exposed(picture, canvas, look), picture.region, points)
    raise DatasetError(f"{name}: no place for the defect '{defect}' on {canvas.width} x {canvas.height} pixels")


def _enlarged(subject: Subject | Solid, name: str, canvas: Canvas, defect: str | None) -> Drawing:
    factor = -(-max(canvas.width, canvas.height) // COARSE)
    small = Canvas(-(-canvas.width // factor), -(-canvas.height // factor))
    drawing = drawn(subject, name, small, defect)
    size = (canvas.width, canvas.height)
    image = np.asarray(Image.fromarray(drawing.image).resize(size, Image.Resampling.BICUBIC), dtype=np.float64)
    mask = np.asarray(Image.fromarray(drawing.mask).resize(size, Image.Resampling.NEAREST))
    points = None
    if drawing.points is not None:
        channels = [Image.fromarray(drawing.points[:, :, axis]) for axis in range(3)]
        points = np.stack([np.asarray(one.resize(size, Image.Resampling.NEAREST)) for one in channels], axis=2)
    return Drawing(exposed(Picture(image, mask), canvas, Stream(f"{name}/enlarged")), mask, points)


def write_category(
    folder: Path,
    subject: Subject | Solid,
    *,
    name: str,
    canvas: Canvas,
    splits: Sequence[Split],
    stand_in: bool = False,
    files: Callable[[Split, int], Files] | None = None,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Draw the `splits` of a category below `folder`, where `files` says: by default solids in the MVTec 3D-AD layout,
    others in that of MVTec AD.

    `name` names the random numbers; `done` is called after each image. A `stand_in` is drawn coarsely, for speed, and
    its PNG files are compressed, so that they cost what real ones cost.
    """
    files = files or (files_of_solid if isinstance(subject, Solid) else files_of_picture)
    jobs = [
        (files(split, index), f"{name}/{split.split}/{split.kind}/{index}", split.defect)
        for split in splits
        for index in range(split.count)
    ]
    for parent in {(folder / path).parent for job in jobs for path in job[0][:3] if path is not None}:
        parent.mkdir(parents=True, exist_ok=True)

    def draw(job: tuple[Files, str, str | None]) -> None:
        place, title, defect = job
        drawing = drawn(subject, title, canvas, defect, coarse=stand_in)
        _write(folder / place.image, drawing.image, compress=stand_in)
        if place.mask is not None:
            _write(folder / place.mask, drawing.mask.astype(np.uint8) * np.uint8(place.value), compress=stand_in)
        if place.scan is not None and drawing.points is not None:
            (folder / place.scan).write_bytes(tiff(drawing.points))

    threads = max(1, min(cache.workers(), PIXELS_AT_ONCE // (canvas.width * canvas.height)))
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(draw, jobs):
            done()


def _write(path: Path, pixels: npt.NDArray[np.uint8], *, compress: bool) -> None:
    """An image file of the kind that the suffix of `path` says."""
    if path.suffix == ".png":
        path.write_bytes(png(pixels, compress=compress))
    else:
        Image.fromarray(pixels).save(path)


def names_below(folder: Path) -> list[str]:
    """The relative names, with slashes, of the files below a folder that are not hidden, in the order of paths."""
    found: list[str] = []
    for place, _, names in os.walk(folder):
        inside = os.path.relpath(place, folder).replace(os.sep, "/")
        found += [name if inside == "." else f"{inside}/{name}" for name in names if not hidden(name)]
    return sorted(found, key=lambda name: name.split("/"))


def tree_hash(folder: Path, *, remembered: bool = False) -> str:
    """SHA-256 over the relative names and the bytes of every file below `folder` that is not hidden.

    Hashes of files may be `remembered` ones of the cache. Raises DatasetError for a file that cannot be read.
    """
    files = {name: folder / name for name in names_below(folder)}
    hashes = (
        cache.content_hashes(files.values()) if remembered else {one: cache.file_hash(one) for one in files.values()}
    )
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(f"{name}\0{hashes[path]}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """A data set that is drawn into the cache on first use; solids in the layout with scans, others in the plain."""

    name: str
    subjects: Mapping[str, Subject | Solid]
    sha256: Mapping[str, str]  # over the names and bytes of a category's files, in the order of their names

    @property
    def home(self) -> Path:
        """The folder in the cache where it lies; its name changes with the known hashes."""
        version = hashlib.sha256(repr(sorted(self.sha256.items())).encode()).hexdigest()[:12]
        return cache.folder() / self.name / version

    def draw(self, names: Sequence[str] = ()) -> Path:
        """Draw the categories `names`, or all of them, where they are not there as they were drawn; returns `home`.

        Raises DatasetError if they cannot be written, or if the bytes are not the known ones.
        """
        home = self.home
        try:
            self.generate(home, names)
        except OSError as error:
            raise DatasetError(f"{home}: the cache cannot be written ({error.strerror}); set KDAD_CACHE") from error
        return home

    def generate(self, target: Path, names: Sequence[str] = ()) -> None:
        """Draw categories into the folder `target`, with a marker beside them: each appears whole or not at all.

        One that is there with the known bytes is left alone, one with others is replaced. Raises DatasetError if the
        bytes drawn are not the known ones, and OSError if they cannot be written.
        """
        for name in names or tuple(self.subjects):
            if name not in self.subjects:
                raise DatasetError(not_a_category(name, self.name, self.subjects))
            final = target / name
            if self._is_whole(name, final):  # before a lock is asked for: the disk may be read-only by now
                continue
            target.mkdir(parents=True, exist_ok=True)
            with cache.only_builder(final) as alone:
                if not self._is_whole(name, final):
                    self._draw(name, final, tidy=alone)
        if not (target / MARKER).exists():
            with contextlib.suppress(OSError):  # read-only: what is there is used
                write_text_whole(target / MARKER, json.dumps({"synthetic": True, "like": self.name}) + "\n")

    def _is_whole(self, name: str, folder: Path) -> bool:
        """Whether a category is there as it was drawn: nothing in the cache is believed. Asks the disk for each file.

        Its hash is made once in a process, unless a size or a time of a file is another one by then.
        """
        known = self.sha256.get(name)
        if known is None or not folder.is_dir():
            return folder.is_dir()
        try:
            about = [(one, os.stat(folder / one)) for one in names_below(folder)]
            stamps = [(one, its.st_size, its.st_mtime_ns, its.st_ctime_ns, its.st_ino) for one, its in about]
            if _sound.get(folder) != stamps and tree_hash(folder, remembered=True) == known:
                _sound[folder] = stamps
        except (OSError, DatasetError):  # a file that cannot be read
            return False
        return _sound.get(folder) == stamps

    def _draw(self, name: str, final: Path, *, tidy: bool) -> None:
        if tidy:  # with the lock held nobody else is drawing this category
            remove_drafts(final.parent, name)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=DRAFT, dir=final.parent))
        side = SCAN_SIZE if isinstance(self.subjects[name], Solid) else SIZE
        try:
            write_category(
                draft / name,
                self.subjects[name],
                name=f"{self.name}/{name}",
                canvas=Canvas(side, side),
                splits=embedded_splits(self.subjects[name]),
            )
            self._check(name, draft / name)
            if final.exists():  # damaged
                os.rename(final, draft / "damaged")
            settle(draft / name, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _check(self, name: str, folder: Path) -> None:
        known, found = self.sha256.get(name), tree_hash(folder)
        if known is not None and found != known:
            raise DatasetError(
                f"{self.name}/{name}: drawn with sha256 {found} and not {known}: the arithmetic of this machine "
                "differs; report it with the output of `kdad-bench doctor`"
            )


def embedded_splits(subject: Subject | Solid) -> list[Split]:
    """The splits of a category of the embedded data sets."""
    splits = [Split(split="train", kind=GOOD, defect=None, count=TRAIN)]
    if isinstance(subject, Solid):
        splits.append(Split(split="validation", kind=GOOD, defect=None, count=8))
    splits.append(Split(split="test", kind=GOOD, defect=None, count=TEST_GOOD))
    splits += [Split(split="test", kind=defect, defect=defect, count=PER_DEFECT) for defect in subject.defects]
    return splits


def remove_drafts(parent: Path, name: str) -> None:
    """Remove what killed builders of a category left."""
    for left in parent.iterdir():
        if left.name.startswith(f".{name}.") and left.name.endswith(DRAFT):
            shutil.rmtree(left, ignore_errors=True)


def settle(draft: Path, final: Path) -> None:
    """Move a finished folder into place; where another process was faster, its equal result is kept."""
    try:
        os.rename(draft, final)
    except OSError:
        if not final.is_dir():
            raise
