"""`results pack`: the rows of a folder, the hashes of their models and maps, and perhaps the maps, in one file."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kdad_bench import __version__
from kdad_bench.files import write_whole
from kdad_bench.harness.maps import MapError, Stack, read_stack
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import EXTERNAL, fault

FORMAT = 1
MANIFEST, ROWS, MAPS = "manifest.json", "rows.parquet", "maps"
MODEL_FILES = ("model.safetensors", "model.json", "decision.json")
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # of every member: the same results give the same bytes


class SubmissionError(ValueError):
    """Results that cannot be packed, or a file that is no pack: one line with the remedy."""


def _an_id(job: str) -> str:
    """`job`, whose name finds files; raises ValueError for what is no id of a job."""
    if why := fault("job_id", job):
        raise ValueError(why)
    return job


class Beside(BaseModel):
    """What lies beside the row of a job: SHA-256 of its files, whether or not they are in the pack."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    maps: str | None = None
    model: dict[str, str] = Field(default_factory=dict)  # file -> SHA-256


class Manifest(BaseModel):
    """manifest.json: what the pack holds."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: int
    kdad_bench: str = Field(max_length=100)
    files: dict[str, str]  # name in the pack -> SHA-256
    jobs: dict[Annotated[str, AfterValidator(_an_id)], Beside]  # job id -> what lies beside its row


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What was packed."""

    jobs: int
    maps: int
    without_maps: int  # finished runs whose maps were asked for and are not there
    external: int  # rows of maps that other code made: those are not kept in a results folder
    sha256: str  # of the pack


def pack(folder: str, out: Path, *, maps: bool = False) -> Packed:
    """Put the rows of a results folder, and with `maps` their anomaly maps, into the file `out`, whole or not at all.

    Raises SubmissionError for a folder with rows that do not count or without any, and for maps that are not those of
    their row; StoreError for a folder that cannot be read; OSError where `out` cannot be written.
    """
    found = store.read(folder)
    if found.problems:
        first = found.problems[0]
        raise SubmissionError(
            f"{folder}: files or rows do not count ({len(found.problems)}), the first is {first.file}: {first.what}; "
            "`results verify` lists them, mend or remove them"
        )
    rows = found.rows()
    if not rows:
        raise SubmissionError(f"{folder}: no row there; give a results folder")
    if maps and "://" in folder:
        raise SubmissionError(f"{folder}: maps lie beside rows on this machine; pack without --maps, or a local folder")
    place = None if "://" in folder else Path(folder)
    beside = {row["job_id"]: Beside() if place is None else beside_row(place, row["job_id"]) for row in rows}
    finished = [row for row in rows if row["status"] == "ok"]
    with_maps = [row for row in finished if place is not None and maps and beside[row["job_id"]].maps]
    for row in with_maps:
        refuse_other_maps(maps_file(Path(folder), row["job_id"]), row)
    without = [row for row in finished if not beside[row["job_id"]].maps]
    content = store.encoded(found.table)
    files = {f"{MAPS}/{row['job_id']}.npz": str(beside[row["job_id"]].maps) for row in with_maps}
    manifest = Manifest(
        format=FORMAT, kdad_bench=__version__, files={ROWS: hashlib.sha256(content).hexdigest(), **files}, jobs=beside
    )
    write_whole(out, lambda temporary: write_pack(temporary, manifest, content, Path(folder)))
    return Packed(
        jobs=len(rows),
        maps=len(files),
        without_maps=sum(row["origin"] != EXTERNAL for row in without) if maps else 0,
        external=sum(row["origin"] == EXTERNAL for row in without) if maps else 0,
        sha256=sha256_of(out),
    )


def write_pack(path: Path, manifest: Manifest, rows: bytes, folder: Path) -> None:
    """The zip file: the manifest first, then what it names, in its order."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member(MANIFEST), json.dumps(manifest.model_dump(), indent=1) + "\n")
        archive.writestr(member(ROWS), rows)
        for name in manifest.files:
            if name != ROWS:
                with (folder / name).open("rb") as source, archive.open(member(name), "w", force_zip64=True) as target:
                    shutil.copyfileobj(source, target, 1 << 20)


def member(name: str) -> zipfile.ZipInfo:
    """A member of a pack, the same on every machine and day."""
    info = zipfile.ZipInfo(name, LONG_AGO)
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
    return info


def beside_row(folder: Path, job: str) -> Beside:
    """The hashes of what lies beside the row of `job` in a results folder."""
    maps = maps_file(folder, job)
    models = sorted(folder.glob(f"models/*-{job}"))
    files = {name: models[0] / name for name in MODEL_FILES if models and (models[0] / name).is_file()}
    return Beside(
        maps=sha256_of(maps) if maps.is_file() else None,
        model={name: sha256_of(path) for name, path in files.items()},
    )


def maps_file(folder: Path, job: str) -> Path:
    """Where the maps of a job lie."""
    return folder / MAPS / f"{job}.npz"


def refuse_other_maps(path: Path, row: Mapping[str, Any]) -> None:
    """Raises SubmissionError for maps that cannot give the figures of the row."""
    try:
        maps_of(path, row)
    except MapError as error:
        raise SubmissionError(f"{path}: {error}; run the job again with --save-maps --force") from error


def maps_of(path: Path, row: Mapping[str, Any]) -> Stack:
    """The maps of a row in the order of its images; raises MapError where they are not."""
    stack = read_stack(path)
    side = row["resolution"]
    if stack is None:
        raise MapError("holds no stack of maps with names")
    if list(stack.names) != list(row["image_names"] or ()):
        raise MapError("holds maps of other images than the row names")
    squares = row["fit"] is None  # the data say what other shapes there are
    if stack.maps.dtype != np.float32 or (squares and stack.maps.shape[1:] != (side, side)):
        raise MapError(f"holds {stack.maps.dtype} maps {stack.maps.shape[1:]}, not float32 {(side, side)}")
    return stack


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file, which is read now: a file may have changed since it was last looked at."""
    with path.open("rb") as file:
        return digest_of(file)


def digest_of(file: BinaryIO) -> str:
    """Hex SHA-256 of what an open file holds."""
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def listed_below(folder: Path) -> Iterator[str]:
    """The files below a folder, by their names from there."""
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            yield path.relative_to(folder).as_posix()
