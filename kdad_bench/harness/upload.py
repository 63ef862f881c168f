"""`results submission`: maps of the images without labels, in one file that the server of their data set takes.

Of all images one at a time is in memory at its full size; nothing is seen at `out` before everything is right.
"""

from __future__ import annotations

import gzip
import io
import math
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kdad_bench import datasets
from kdad_bench.datasets import Category, Entry
from kdad_bench.datasets.decoding import upright
from kdad_bench.datasets.sealing import looked_at, told
from kdad_bench.files import write_whole
from kdad_bench.harness.decision import above, images, shortfall, supported
from kdad_bench.harness.predict import Answer, Judge, judge_of
from kdad_bench.harness.trust import floor_words
from kdad_bench.harness.upload_check import SHOWN, Size, UploadError, check, expected_of, published_by
from kdad_bench.leaderboard import store
from kdad_bench.metrics.finer import DEVIATIONS, Moments

WANTED_RATE = 0.01  # a false-alarm rate that inspection lines ask for: what can be said of it stands in the report
HALF = float(np.finfo(np.float16).max)
COMPRESSION = 1  # of gzip: maps hardly shrink

F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Which models score which data."""

    results: str
    out: Path
    dataset: str
    data_root: Path | None = None
    method: tuple[str, str] | None = None  # (name, variant)
    seed: int | None = None
    preset: str | None = None
    device: str = "auto"
    progress: Callable[[int, int], object] = field(default=lambda done, total: None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What was made of one category."""

    category: str
    job: str
    maps: int
    validation: int  # normal images that the threshold comes from
    threshold: float
    power: int  # the maps were multiplied by 2 to it, which moves no order
    clipped: int  # pixels above the largest float16
    called: float  # share of the pixels above the threshold
    seg_f1: float | None  # of the row, on the public test images
    aupro_05: float | None

    @property
    def lines(self) -> tuple[str, ...]:
        """The same in words: the maps, the threshold, and what images so few can promise."""
        known = [("SegF1", self.seg_f1), ("AUPRO@0.05", self.aupro_05)]
        public = ", ".join(f"{name} {value:.4f}" for name, value in known if value is not None)
        clipped = f", {self.clipped} pixels cut at the largest float16" if self.clipped else ""
        few = not supported(self.validation, WANTED_RATE)
        return (
            f"{self.category}: {self.maps} maps of job {self.job}, times 2^{self.power}{clipped}; on the public test "
            f"images: {public or 'not measured'}",
            f"{self.category}: pixels above {self.threshold:g} are called defective, {self.called:.2%} of them: mean + "
            f"{DEVIATIONS:g} standard deviations of the pixels of {images(self.validation, 'validation ')}",
            f"{self.category}: " + (shortfall(self.validation, WANTED_RATE) if few else floor_words(self.validation)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What was packed."""

    out: str
    dataset: str
    page: str  # where it is submitted
    drawn: bool  # of a stand-in, which no server takes
    maps: int
    bytes: int
    parts: tuple[Part, ...]


def submit(asked: Asked) -> Submission:
    """Score the images without labels with the saved models of a results folder and pack what the server takes.

    Raises UploadError (or DatasetError, StoreError, ModelError, ScoreError, SelectionError) before `out` is touched.
    """
    one, found, drawn = data_of(asked)
    upload = one.upload
    assert upload is not None  # data_of refuses a data set without
    models = models_of(asked, found)
    refuse_what_cannot_be_sent(one, found)
    sizes = expected_of(found)
    parts: list[Part] = []

    def write(temporary: Path) -> None:
        with (
            temporary.open("wb") as file,
            gzip.GzipFile("", "wb", COMPRESSION, file, mtime=0) as packed,  # without the name and the day
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            folder = asked.out.name.split(".")[0] or "submission"
            for category in found:
                row, model = models[category.name]
                put = Writer(archive, f"{folder}/{upload.maps}", f"{folder}/{upload.thresholded}")
                done = sum(part.maps for part in parts)
                parts.append(part_of(category, row, model, sizes, put, asked, done))
        check(temporary, one, found, called=asked.out)

    write_whole(asked.out, write)
    return Submission(
        out=str(asked.out), dataset=asked.dataset, page=upload.page, drawn=drawn, maps=len(sizes),
        bytes=asked.out.stat().st_size, parts=tuple(parts),
    )  # fmt: skip


def data_of(asked: Asked) -> tuple[Entry, list[Category], bool]:
    """(entry, all categories, whether they are drawn) of the data set; raises UploadError for what cannot be sent."""
    place = datasets.located(asked.dataset, asked.data_root)
    one = place.entry
    if one.upload is None:
        have = ", ".join(datasets.entries(lambda entry: entry.upload))
        raise UploadError(f"{asked.dataset}: no server evaluates it; have: {have}, or a stand-in of it")
    found = datasets.categories(asked.dataset, asked.data_root)
    lacking = sorted(set(one.published) - {category.name for category in found})
    if lacking and not place.synthetic:
        raise UploadError(f"{place.root}: the server takes all categories; not there: {', '.join(lacking)}")
    lines = [
        f"{category.root}: no {what} there; restore the data set"
        for category in found
        for what, there in (("image without labels", category.unlabelled), ("validation image", category.validation))
        if not there
    ]
    if lines:
        raise UploadError(*lines)
    return one, found, place.synthetic


def refuse_what_cannot_be_sent(one: Entry, found: Sequence[Category]) -> None:
    """Raises UploadError for images without labels that are damaged, missing or others than the server knows: before
    hours of scoring, not after."""
    lines: list[str] = []
    for category in found:
        looked = looked_at((*category.unlabelled, *(sample.path for sample in category.validation)))
        lines += told(category.root, {path: why for path, (why, _) in looked.items() if why})
        have = {f"{category.name}/{path.relative_to(category.root).with_suffix('')}" for path in category.unlabelled}
        known = set(published_by(one, [category.name]))
        for names, what in ((known - have, "are not there"), (have - known, "are not known to the server")):
            if names:
                shown = ", ".join(sorted(names)[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
                about = f"{len(names)} images without labels {what} ({shown})"
                lines.append(f"{category.root}: {about}; restore the data set")
    if lines:
        raise UploadError(*lines)


def models_of(asked: Asked, found: Sequence[Category]) -> dict[str, tuple[Mapping[str, Any], Path]]:
    """Category -> (row, folder of its model); raises UploadError where there is none, or more than one."""
    if "://" in asked.results:
        raise UploadError(f"{asked.results}: models lie beside rows on this machine; give a local folder")
    there = store.read(asked.results)
    rows = [row for row in there.rows() if is_asked_for(row, asked)]
    lines: list[str] = []
    models: dict[str, tuple[Mapping[str, Any], Path]] = {}
    for category in found:
        own = [
            (row, folder)
            for row in rows
            if row["category"] == category.name
            for folder in Path(asked.results).glob(f"models/*-{row['job_id']}")
        ]
        if len(own) != 1:
            lines.append(f"{asked.results}: {not_one(category.name, [row for row, _ in own])}")
        elif own[0][0]["data_fingerprint"] != datasets.fingerprint(datasets.sealed(category)):
            lines.append(f"{category.root}: not the files that job {own[0][0]['job_id']} saw; run it again")
        else:
            models[category.name] = own[0]
    if lines:
        raise UploadError(*lines, *(f"{asked.results}: {one.file} is left out: {one.what}" for one in there.problems))
    return models


def is_asked_for(row: Mapping[str, Any], asked: Asked) -> bool:
    """Whether a row is that of a finished job on the data set, and of the method, seed and preset asked for."""
    return (
        row["status"] == "ok"
        and row["dataset"] == asked.dataset
        and (asked.method is None or (row["method"], row["variant"] or "") == asked.method)
        and (asked.seed is None or row["seed"] == asked.seed)
        and (asked.preset is None or row["preset"] == asked.preset)
    )


def not_one(category: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Why no single model stands for a category, and what to do."""
    if not rows:
        return f"no model of {category} there that was asked for; `run --save-models` keeps one"
    names = sorted(
        f"{row['method']}{':' + row['variant'] if row['variant'] else ''} seed {row['seed']} {row['preset']}"
        for row in rows
    )
    return f"{len(rows)} models of {category} ({'; '.join(names)}); choose with --method, --seed or --preset"


@dataclass(frozen=True, slots=True)
class Writer:
    """Puts files into the archive, the same bytes on every machine and day."""

    archive: tarfile.TarFile
    maps: str
    thresholded: str

    def put(self, name: str, data: bytes) -> None:
        """One file."""
        about = tarfile.TarInfo(name)
        about.size = len(data)
        self.archive.addfile(about, io.BytesIO(data))

    def map(self, stem: str, half: NDArray[np.float16], called: NDArray[np.bool_]) -> None:
        """The map of an image and its decisions [H, W]."""
        content = io.BytesIO()
        tifffile.imwrite(content, half, photometric="minisblack", metadata=None)
        self.put(f"{self.maps}/{stem}.tiff", content.getvalue())
        content = io.BytesIO()
        Image.fromarray(called.astype(np.uint8) * 255).save(content, format="PNG")
        self.put(f"{self.thresholded}/{stem}.png", content.getvalue())


def part_of(
    category: Category, row: Mapping[str, Any], model: Path, sizes: Mapping[str, Size], out: Writer, asked: Asked,
    done: int,
) -> Part:  # fmt: skip
    """Score one category and put its maps into the archive; raises UploadError for an image that has no map."""
    judge, _ = judge_of(model, asked.device)
    normal = Moments()
    for answer in sound(judge, [sample.path for sample in category.validation]):
        normal.add(enlarged(answer.heat, upright(answer.path).size))
    power = scale_of(normal.threshold)
    clipped = called = pixels = 0
    for number, answer in enumerate(sound(judge, category.unlabelled), 1):
        stem = f"{category.name}/{answer.path.relative_to(category.root).with_suffix('').as_posix()}"
        whole = enlarged(answer.heat, sizes[stem])
        bad, scaled = above(whole, normal.threshold), np.ldexp(whole, power)
        out.map(stem, np.clip(scaled, -HALF, HALF).astype(np.float16), bad)
        clipped += int(np.count_nonzero(np.abs(scaled) > HALF))
        called, pixels = called + int(bad.sum()), pixels + bad.size
        asked.progress(done + number, len(sizes))
    return Part(
        category=category.name, job=row["job_id"], maps=len(category.unlabelled),
        validation=len(category.validation), threshold=normal.threshold, power=power, clipped=clipped,
        called=called / pixels, seg_f1=row["seg_f1"], aupro_05=row["aupro_05"],
    )  # fmt: skip


def sound(judge: Judge, files: Sequence[Path]) -> Iterator[Answer]:
    """The answers to all files; raises UploadError for the first that has none."""
    for answer in judge.each(files):
        yield answer
        refuse(judge)
    refuse(judge)


def refuse(judge: Judge) -> None:
    """Raises UploadError if an image could not be judged."""
    if judge.failed:
        raise UploadError(judge.failed[0].reason)


def enlarged(heat: F32, size: Size) -> F32:
    """A map at the size of its image, bilinear."""
    return np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR), np.float32)


def scale_of(threshold: float) -> int:
    """The power of two that brings the threshold into [1, 2): there float16 tells most values apart."""
    return -math.floor(math.log2(threshold)) if threshold > 0 and math.isfinite(threshold) else 0
