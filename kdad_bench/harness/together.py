"""One model for several categories: learnt once, by whichever of its jobs comes first, and kept until all have a row.

Each category is a job of its own with a row of its own. What is learnt lies beside the rows, in a folder that is named
by the training; a run that is killed between two categories goes on with that model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdad_bench.files import DamagedError, cache_folder, read_json, write_text_whole
from kdad_bench.harness.job import Job
from kdad_bench.harness.output import Work
from kdad_bench.leaderboard import store

if TYPE_CHECKING:
    import torch

    from kdad_bench.methods.protocol import Method

RECORD = "learnt.json"  # written last: with it the model is whole
DONE = ".row"  # of a file for each job that has its row; it names the call that wrote it


class OtherModel(ValueError):
    """The model of a training was lost, and learning it anew gave another than the one that finished rows are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learnt:
    """What a training took, and which weights it left where several jobs share them."""

    seconds: float | None  # None: it was stopped, and how long it had taken is not known
    images: int
    losses: tuple[dict[str, float], ...]
    peak_memory_mb: float
    sha256: str = ""
    call: str = ""  # `Work.call` of the run that learnt what several jobs share


def place(job: Job, work: Work) -> Path:
    """Where the model of `job` is kept: among the checkpoints, or in the cache where results go to a URL."""
    return (work.beside / "checkpoints" if work.beside else cache_folder() / "trainings") / job.training


def lock_of(job: Job, work: Work) -> Path:
    """The file whose lock holds the training of `job` against other runners."""
    if work.beside is not None:
        return work.beside / ".locks" / f"{job.training}.lock"
    return place(job, work).with_suffix(".lock")


def kept(job: Job, work: Work) -> Learnt | None:
    """What is kept of the training of `job`; None for a job that shares none, or whose model is not there whole.

    A forced run does all again: what another call has learnt is none of it.
    """
    if not job.together:
        return None
    folder = place(job, work)
    try:
        said = read_json(folder / RECORD, dict)
        found = Learnt(**{**said, "losses": tuple(said["losses"])})
        if work.force and found.call != work.call:
            return None
        return found if (_sha256(folder), _described(folder)) == (found.sha256, found.sha256) else None
    except (DamagedError, OSError, TypeError, KeyError):  # it is learnt again
        return None


def keep(job: Job, work: Work, method: Method, learnt: Learnt) -> Learnt:
    """Save the model for the other categories; returns what was learnt with the hash of its weights.

    Raises OtherModel where rows of other categories are of other weights, OSError where it cannot be written.
    """
    folder = place(job, work)
    save_into(job, method, folder)
    made = replace(learnt, sha256=_sha256(folder), call=work.call)
    if not work.force:
        refuse_another_model(job, work, made.sha256)
    write_text_whole(folder / RECORD, json.dumps(asdict(made)))
    return made


def save_into(job: Job, method: Method, folder: Path) -> None:
    """Write the fitted method of `job`; raises OSError."""
    from kdad_bench.methods.checkpoint import save

    save(job.method, method, folder)


def load(job: Job, work: Work, device: torch.device) -> Method:
    """The kept model: what every category is judged with, the one that learnt it too."""
    from kdad_bench.methods.checkpoint import load as loaded

    return loaded(place(job, work), device)[1]


def refuse_another_model(job: Job, work: Work, sha256: str) -> None:
    """Raises OtherModel if the finished row of a category is of other weights."""
    for one in job.siblings:
        row = store.find(work.out, one.id)
        if row is not None and row.status == "ok" and row.weights_sha256 != sha256:
            raise OtherModel(
                f"{one.category.name} has a row of another model ({str(row.weights_sha256)[:12]}, now {sha256[:12]}); "
                "--force judges all categories with one"
            )


def done(job: Job, work: Work) -> None:
    """Note that `job` has its row; once all categories have theirs the model is deleted. Raises OSError."""
    folder = place(job, work)
    if not job.together or not folder.is_dir():
        return
    (folder / f"{job.id}{DONE}").write_text(work.call)
    if all(has_row(one, work) for one in job.siblings):
        shutil.rmtree(folder, ignore_errors=True)


def has_row(job: Job, work: Work) -> bool:
    """Whether a job has the row that this model was kept for; in a forced run the one of this very call."""
    mark = place(job, work) / f"{job.id}{DONE}"
    if mark.exists() and (not work.force or mark.read_text() == work.call):
        return True
    row = None if work.force else store.find(work.out, job.id)
    return row is not None and row.status == "ok"


def _described(folder: Path) -> object:
    """Which weights the description beside them is of; raises DamagedError or OSError."""
    from kdad_bench.methods.checkpoint import DESCRIPTION, DIGEST

    return read_json(folder / DESCRIPTION, dict).get(DIGEST)


def _sha256(folder: Path) -> str:
    from kdad_bench.methods.checkpoint import WEIGHTS

    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
