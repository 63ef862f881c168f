"""What lies beside the rows: logs, models, maps, pictures and checkpoints."""

from __future__ import annotations

import os
import secrets
import tempfile
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench.files import FULL, sweep, write_whole
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import Job
from kdad_bench.harness.options import RunOptions

if TYPE_CHECKING:
    from kdad_bench.datasets import TestSet
    from kdad_bench.methods.protocol import Method, Scores

BESIDE = ("audits", "checkpoints", "figures", "logs", "maps", "models", "pictures")  # folders of a results folder
ROW_BYTES = 1 << 16  # more than a row of a thousand images takes


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Where results go and what is kept beside them."""

    out: str  # results folder: a local path or an fsspec URL
    force: bool = False  # redo jobs that have a row
    call: str = field(default_factory=lambda: secrets.token_hex(8), compare=False)  # names what all jobs of it share
    retry_failed: bool = False  # redo jobs whose row is a failure
    pictures: bool = False  # a contact sheet per job under pictures/
    save_models: bool = False  # the trained model per job under models/
    save_maps: bool = False  # the raw anomaly maps per job under maps/
    tensorboard: bool = False  # the loss terms as TensorBoard events under tensorboard/
    audit: bool = False  # the curve of each training on its test set under audits/
    audit_every: int | None = None  # steps between two points of it; None: a twentieth of the training
    checkpoint_every_seconds: float = 60.0
    time_every_job: bool = False  # each job times itself as it runs, in place of one measurement alone
    drawers: int = 0  # processes that draw samples ahead of each training; no number depends on it
    gpu_share: float | None = None  # of a GPU's memory that a job may take; None: all of it

    @property
    def beside(self) -> Path | None:
        """The local folder for what is kept beside the rows; None when results go to a URL."""
        return None if "://" in self.out else Path(self.out)

    def redoes(self, status: str | None) -> bool:
        """Whether a job is to be run whose row says `status`; None: it has no row."""
        return status is None or self.force or (status == "failed" and self.retry_failed)


def work_of(options: RunOptions) -> Work:
    """Where and how results are kept; raises SelectionError for a folder that cannot be written."""
    work = Work(
        out=options.out if "://" in options.out else str(Path(options.out).absolute()),
        force=options.force,
        retry_failed=options.retry_failed,
        pictures=options.pictures,
        save_models=options.save_models,
        save_maps=options.save_maps,
        tensorboard=options.tensorboard,
        audit=options.audit,
        audit_every=options.audit_every,
        checkpoint_every_seconds=options.checkpoint_every,
        time_every_job=options.time_every_job,
    )
    if work.beside is not None and options.dry_run:
        refuse_what_will_not_be_written(work.beside)
    elif work.beside is not None:
        refuse_what_cannot_be_written(work.beside)
        sweep_all(work.beside)
    return work


def sweep_all(folder: Path) -> None:
    """Remove what killed runs left half written in a results folder and in what lies beside its rows."""
    deeper = (place for name in ("models", "checkpoints") for place in (folder / name).glob("*/"))
    for place in (folder, *(folder / name for name in BESIDE), *deeper):
        sweep(place)


def refuse_a_file(folder: Path) -> None:
    """Raises SelectionError where something stands at `folder` that is none."""
    if folder.exists() and not folder.is_dir():
        raise SelectionError(f"{folder}: not a folder; choose another --out")


def refuse_what_cannot_be_written(folder: Path) -> None:
    """Make `folder`; raises SelectionError if no file of a row's size can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:  # without a name: nothing is left of it
            left = ROW_BYTES
            while left:  # a write takes what there is room for; the next one tells why it was no more
                left -= probe.write(bytes(left))
    except OSError as error:
        remedy = "free some space or choose another with --out" if error.errno in FULL else "choose --out"
        raise SelectionError(f"{folder}: no results can be written there ({error.strerror}); {remedy}") from error


def refuse_what_will_not_be_written(folder: Path) -> None:
    """The same before a run: a `folder` that is not there yet is not made, what it would be made in is asked."""
    refuse_a_file(folder)
    if folder.exists():
        refuse_what_cannot_be_written(folder)
        return
    above = next(one for one in folder.absolute().parents if one.exists())
    if not above.is_dir():
        raise SelectionError(f"{above}: not a folder; choose another --out")
    if not os.access(above, os.W_OK | os.X_OK):
        raise SelectionError(f"{folder}: cannot be made in {above}, where nothing can be written; choose --out")


def lacking(finished: Collection[str], work: Work) -> dict[str, int]:
    """What `work` asks for beside rows ("model", "map") -> how many of the `finished` job ids lack it."""
    if work.beside is None:
        return {}
    asked = {"model": (work.save_models, "models/*-{}"), "map": (work.save_maps, "maps/{}.npz")}
    asked["audit"] = (work.audit, "audits/{}.json")
    return {
        what: sum(not any(work.beside.glob(file.format(id))) for id in finished)
        for what, (wanted, file) in asked.items()
        if wanted
    }


def checkpoint_path(job: Job, work: Work) -> Path | None:
    """Where an unfinished training of `job` is kept; None when results go to a URL."""
    return work.beside / "checkpoints" / f"{job.training}.pt" if work.beside else None


def checkpoints(job: Job, work: Work) -> list[Path]:
    """What is kept of an unfinished training of `job`: one file, or one per modality."""
    path = checkpoint_path(job, work)
    return [] if path is None else sorted(path.parent.glob(f"{job.training}*.pt"))


def keep_beside(job: Job, work: Work, method: Method, test: TestSet, scores: Scores, unseen: Scores | None) -> None:
    """Write what was asked for beside the rows: contact sheet, model, raw maps. What cannot be is one warning each."""
    folder = work.beside
    if folder is None:
        return
    kept: dict[str, tuple[bool, Callable[[], object]]] = {
        "picture": (work.pictures, lambda: keep_picture(job, folder, test, scores)),
        "model": (work.save_models, lambda: keep_model(job, folder, method, test, scores, unseen)),
        "maps": (work.save_maps, lambda: keep_maps(folder / "maps" / f"{job.id}.npz", scores, test)),
    }
    for what, (asked, keep) in kept.items():
        try:
            if asked:
                keep()
        except Exception as error:  # each library raises its own; what lies beside a row must not cost the row
            text = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"{job.label}: its row is complete, its {what} is not kept ({text})", stacklevel=2)


def keep_picture(job: Job, folder: Path, test: TestSet, scores: Scores) -> None:
    """The contact sheet of `job` in pictures/."""
    from kdad_bench.harness.pictures import contact_sheet

    contact_sheet(
        test.images[:, :3], test.masks, scores.pixel.cpu().numpy(), scores.image.cpu().numpy(), test.names,
        folder / "pictures" / f"{job.id}.png", labels=test.labels, sizes=test.sizes,
        title=f"{job.label} [{job.preset}]",
    )  # fmt: skip


def keep_model(job: Job, folder: Path, method: Method, test: TestSet, scores: Scores, unseen: Scores | None) -> None:
    """The trained model of `job` in models/, with its scores of the `unseen` normals and of the normal test images."""
    from kdad_bench.harness.graphs import plain
    from kdad_bench.harness.material import copies_of
    from kdad_bench.harness.scoring import decision_from
    from kdad_bench.methods.checkpoint import save

    place = folder / "models" / f"{job.name.replace(':', '-')}-{job.category.name}-s{job.seed}-{job.id}"
    save(job.method, plain(method), place)
    normal = scores.image.cpu().numpy()[~test.labels]
    decision_from(
        unseen,
        category=job.category.name,
        resolution=job.resolution,
        view=job.view,
        copies=copies_of(job),
        test_normals=normal.tolist(),
    ).write(place)


def keep_maps(path: Path, scores: Scores, test: TestSet) -> None:
    """The raw maps as float32, from which the figures of the row follow, and the names of their images.

    Where pictures fill their maps in part, also their sizes.
    """
    import numpy as np

    maps, names = scores.pixel.cpu().numpy(), np.array(test.names)
    more: dict[str, Any] = {} if test.sizes is None else {"sizes": test.sizes}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, savez would add a suffix of its own
            np.savez(file, maps=maps, names=names, **more)  # text and numbers: nothing is pickled

    write_whole(path, write)
