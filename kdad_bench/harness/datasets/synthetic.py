"""A data set in the MVTec AD layout, drawn by the package itself: the same bytes on every machine, no download."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdad_bench.harness.datasets import cache, mvtec_ad
from kdad_bench.harness.datasets.category import GOOD, Category, DatasetError
from kdad_bench.harness.datasets.drawing import Canvas, Stream
from kdad_bench.harness.datasets.png import encode
from kdad_bench.harness.datasets.subjects import Capsule, Fabric, Gear, Picture, Subject, Wood

VERSION = 1  # of the drawings: a change of any pixel is a new version and a new SHA256
SIZE = 256
TRAIN, TEST_GOOD, PER_DEFECT = 40, 12, 6
SUBJECTS: dict[str, Subject] = {"capsule": Capsule(), "fabric": Fabric(), "gear": Gear(), "wood": Wood()}
# SHA-256 over the names and bytes of a category's files, in the order of their names
SHA256: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensor:
    """The light and the camera: what differs between two images of the same thing."""

    gradient: float = 0.05  # relative brightness at the edges, to either side
    level: float = 0.04  # relative brightness, to either side
    cast: float = 0.012  # relative gain of a colour channel, to either side
    noise: float = 2.2  # standard deviation of a pixel, of 255


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


def drawn(
    subject: Subject, name: str, canvas: Canvas, defect: str | None
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Image uint8 [H, W, 3] and mask bool [H, W] of the drawing called `name`.

    A defect that its place happens to hide (fewer than 12 pixels of 256 x 256 units) is drawn again elsewhere.
    """
    smallest = 12.0 / (canvas.unit * canvas.unit)
    for attempt in range(100):
        look = Stream(f"{name}/look")
        picture = subject.draw(canvas, look, defect, Stream(f"{name}/flaw/{attempt}"))
        if defect is None or int(np.count_nonzero(picture.region)) >= smallest:
            return exposed(picture, canvas, look), picture.region
    raise AssertionError(f"{name}: no place for the defect {defect}")


def write_category(
    folder: Path,
    subject: Subject,
    *,
    name: str,
    seed: int,
    canvas: Canvas,
    train: int,
    test: Sequence[tuple[str, str | None, int]],
    compress: bool = False,
) -> None:
    """Draw a category in the MVTec AD layout; `test` gives (folder, defect of the subject, number of images)."""
    jobs: list[tuple[Path, Path | None, str, str | None]] = []
    for index in range(train):
        jobs.append((folder / "train" / GOOD / f"{index:03d}.png", None, f"{name}/{seed}/train/{index}", None))
    for kind, defect, count in test:
        for index in range(count):
            mask = folder / "ground_truth" / kind / f"{index:03d}_mask.png" if defect is not None else None
            jobs.append((folder / "test" / kind / f"{index:03d}.png", mask, f"{name}/{seed}/{kind}/{index}", defect))
    for parent in {path.parent for job in jobs for path in job[:2] if path is not None}:
        parent.mkdir(parents=True, exist_ok=True)

    def draw(job: tuple[Path, Path | None, str, str | None]) -> None:
        path, mask_path, title, defect = job
        image, mask = drawn(subject, title, canvas, defect)
        path.write_bytes(encode(image, compress=compress))
        if mask_path is not None:
            mask_path.write_bytes(encode(mask.astype(np.uint8) * 255, compress=compress))

    with ThreadPoolExecutor(cache.workers()) as pool:
        for _ in pool.map(draw, jobs):
            pass


def tree_hash(folder: Path) -> str:
    """SHA-256 over the relative names and the bytes of every file below `folder`."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0{cache.file_hash(path)}\n".encode())
    return digest.hexdigest()


def generate(target: Path, names: Sequence[str] = ()) -> None:
    """Draw the embedded data set (or the categories `names` of it) into the folder `target`, one category at a time.

    Every category appears whole or not at all. Raises DatasetError if the bytes are not the known ones.
    """
    for name in names or tuple(SUBJECTS):
        if name not in SUBJECTS:
            raise DatasetError(f"category '{name}' not in synthetic; have: {', '.join(SUBJECTS)}")
        final = target / name
        with cache.only_builder(final):
            if final.is_dir():
                continue
            subject = SUBJECTS[name]
            kinds = [(GOOD, None, TEST_GOOD), *((defect, defect, PER_DEFECT) for defect in subject.defects)]
            draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=target))
            try:
                write_category(
                    draft / name, subject, name=name, seed=VERSION, canvas=Canvas(SIZE, SIZE), train=TRAIN, test=kinds
                )
                known = SHA256.get(name)
                found = tree_hash(draft / name)
                if known is not None and found != known:
                    raise DatasetError(
                        f"{final}: drawn with sha256 {found} and not {known}: this machine's arithmetic differs; "
                        "report it with the output of `kdad-bench doctor`"
                    )
                os.rename(draft / name, final)
            finally:
                shutil.rmtree(draft, ignore_errors=True)


def home() -> Path:
    """The folder in the cache where the embedded data set lies."""
    path = cache.folder() / f"synthetic-v{VERSION}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def categories(names: Sequence[str] = ()) -> list[Category]:
    """The embedded data set, drawn into the cache where it is not there yet."""
    generate(home(), names)
    return [mvtec_ad.category("synthetic", home() / name, synthetic=True) for name in names or tuple(SUBJECTS)]
