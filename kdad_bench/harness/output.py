"""What lies beside the rows: logs, models, maps, pictures and checkpoints."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench.files import write_whole
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.decision import Decision
from kdad_bench.harness.job import Job
from kdad_bench.harness.options import RunOptions

if TYPE_CHECKING:
    from torch import Tensor

    from kdad_bench.datasets import TestSet
    from kdad_bench.methods.protocol import Method, Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Where results go and what is kept beside them."""

    out: str  # results folder: a local path or an fsspec URL
    force: bool = False  # redo jobs that have a row
    retry_failed: bool = False  # redo jobs whose row is a failure
    pictures: bool = False  # a contact sheet per job under pictures/
    save_models: bool = False  # the trained model per job under models/
    save_maps: bool = False  # the raw anomaly maps per job as float16 under maps/
    tensorboard: bool = False  # the loss terms as TensorBoard events under tensorboard/
    checkpoint_every_seconds: float = 60.0

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
        checkpoint_every_seconds=options.checkpoint_every_seconds,
    )
    if work.beside is not None and options.dry_run:
        refuse_a_file(work.beside)
    elif work.beside is not None:
        refuse_what_cannot_be_written(work.beside)
    return work


def refuse_a_file(folder: Path) -> None:
    """Raises SelectionError where something stands at `folder` that is none."""
    if folder.exists() and not folder.is_dir():
        raise SelectionError(f"{folder}: not a folder; choose another --out")


def refuse_what_cannot_be_written(folder: Path) -> None:
    """Make `folder`; raises SelectionError if no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            return
    except OSError as error:
        raise SelectionError(f"{folder}: no results can be written there ({error.strerror}); choose --out") from error


def lacking(finished: Collection[str], work: Work) -> dict[str, int]:
    """What `work` asks for beside rows ("model", "map") -> how many of the `finished` job ids lack it."""
    if work.beside is None:
        return {}
    asked = {"model": (work.save_models, "models/*-{}"), "map": (work.save_maps, "maps/{}.npz")}
    return {
        what: sum(not any(work.beside.glob(file.format(id))) for id in finished)
        for what, (wanted, file) in asked.items()
        if wanted
    }


def checkpoint_path(job: Job, work: Work) -> Path | None:
    """Where an unfinished training of `job` is kept; None when results go to a URL."""
    return work.beside / "checkpoints" / f"{job.id}.pt" if work.beside else None


def checkpoints(job: Job, work: Work) -> list[Path]:
    """What is kept of an unfinished training of `job`: one file, or one per modality."""
    path = checkpoint_path(job, work)
    return [] if path is None else sorted(path.parent.glob(f"{job.id}*.pt"))


def tensorboard_writer(job: Job, work: Work) -> Any:
    """A TensorBoard writer for `job`, None unless asked for; raises ModuleNotFoundError without the package."""
    if not work.tensorboard or work.beside is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(work.beside / "tensorboard" / job.id))


def earlier_losses(job: Job, work: Work) -> dict[int, dict[str, float]]:
    """step -> loss terms that an interrupted training of `job` logged before it was stopped."""
    if work.beside is None or not checkpoints(job, work):
        return {}
    found: dict[int, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError):  # a log that is torn or gone costs only its own lines
        for text in (work.beside / "logs" / f"{job.id}.jsonl").read_text(encoding="utf-8").splitlines():
            content = json.loads(text)
            if content.pop("event") == "step":
                step = int(content["step"])
                found[step] = {**found.get(step, {}), **content}
    return found


@contextlib.contextmanager
def step_log(job: Job, work: Work) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function that appends one JSON line per call (`step`, then the loss terms) to logs/<job id>.jsonl."""
    if work.beside is None:
        yield lambda step, terms: None
        return
    path = work.beside / "logs" / f"{job.id}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = tensorboard_writer(job, work)
    resumed = bool(checkpoints(job, work))  # then the log goes on as well
    with path.open("a" if resumed else "w", encoding="utf-8", buffering=1) as file:

        def write(event: str, **content: Any) -> None:
            file.write(json.dumps({"event": event, **content}) + "\n")

        def log(step: int, terms: Mapping[str, float]) -> None:
            write("step", step=step, **terms)
            if writer is not None:
                for name, value in terms.items():
                    writer.add_scalar(f"loss/{name}", value, step)

        write("start", job=job.id, **{key: value for key, value in job.identity.items() if key != "settings"})
        try:
            yield log
        except BaseException as error:
            write("failed", error=f"{type(error).__name__}: {error}")
            raise
        else:
            write("end")
        finally:
            if writer is not None:
                writer.close()


def keep_beside(job: Job, work: Work, method: Method, test: TestSet, scores: Scores, held_out: Tensor) -> None:
    """Write what was asked for beside the rows: contact sheet, model, raw maps; raises OSError."""
    if work.beside is None:
        return
    if work.pictures:
        keep_picture(job, work.beside, test, scores)
    if work.save_models:
        keep_model(job, work.beside, method, held_out)
    if work.save_maps:
        keep_maps(work.beside / "maps" / f"{job.id}.npz", scores, test.names)


def keep_picture(job: Job, folder: Path, test: TestSet, scores: Scores) -> None:
    """The contact sheet of `job` in pictures/."""
    from kdad_bench.harness.pictures import contact_sheet

    contact_sheet(
        test.images[:, :3], test.masks, scores.pixel.cpu().numpy(), scores.image.cpu().numpy(), test.names,
        folder / "pictures" / f"{job.id}.png", labels=test.labels, title=f"{job.label} [{job.preset}]",
    )  # fmt: skip


def keep_model(job: Job, folder: Path, method: Method, held_out: Tensor) -> None:
    """The trained model of `job` in models/, with its scores of the held-out normals."""
    from kdad_bench.harness.scoring import score_all
    from kdad_bench.methods.checkpoint import save

    place = folder / "models" / f"{job.name.replace(':', '-')}-{job.category.name}-s{job.seed}-{job.id}"
    save(job.method, method, place)
    normals = score_all(method, held_out, job.name) if len(held_out) else None
    Decision(
        category=job.category.name,
        resolution=job.resolution,
        normal_scores=tuple(sorted(normals.image.tolist())) if normals else (),
        normal_map_peak=float(normals.pixel.max()) if normals else None,
    ).write(place)


def keep_maps(path: Path, scores: Scores, names: tuple[str, ...]) -> None:
    """The raw maps as float16, and the names of their images, in one NumPy archive."""
    import numpy as np

    maps = scores.pixel.cpu().numpy().astype(np.float16)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a path, savez would add a suffix of its own
            np.savez(file, maps=maps, names=np.array(names))

    write_whole(path, write)
