"""What a choice of the checkpoint on test images would have won: a job's curve on its test set, in a file of its own.

Such a file is no row and lies in audits/. Nothing that ranks, compares or counts can come by it: the leaderboard's room
does not know this one. Of the training that is watched nothing changes (`methods/training/watching.py`).
"""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdad_bench.files import DamagedError, read_json, write_text_whole
from kdad_bench.harness.job import Job
from kdad_bench.harness.judging import region_file
from kdad_bench.harness.material import judged_category, pictures_of
from kdad_bench.harness.output import Work, checkpoints
from kdad_bench.harness.scoring import ScoreError, score_all
from kdad_bench.harness.windows import windowed
from kdad_bench.leaderboard.row import ROUNDING
from kdad_bench.metrics import MetricError, image_metrics, pixel_metrics, region_index

if TYPE_CHECKING:
    import torch

    from kdad_bench.datasets import TestSet

FORMAT = 1
FOLDER = "audits"  # in a results folder
FIGURES = ("image_auroc", "pixel_auroc", "aupro_30")
ABOUT = ("method", "dataset", "category", "modality", "preset", "point", "device")  # texts that say what a curve is of
Point = dict[str, Any]  # step, then FIGURES; None where a test set has no such figure or it could not be had


class AuditError(ValueError):
    """There are no audits to read; one line that says what to do."""


class Audit:
    """The curve of one job, written anew with each point: a training that goes on after a kill goes on with it."""

    def __init__(self, job: Job, work: Work, device: torch.device, test_set: Callable[[], TestSet]) -> None:
        """`test_set` is called when the first point is due, not before."""
        self.job, self.work, self.device, self.load = job, work, device, test_set
        self.path = audit_path(job, work) if work.audit else None
        self.seconds = 0.0  # that the training did not have
        self.test: TestSet | None = None
        self.curve = earlier_points(job, work, self.path)

    @property
    def watch(self) -> Callable[[int, Any], None] | None:
        """What a fit is to tell of its state; None for a job that is not audited."""
        return None if self.path is None else self.look

    def look(self, step: int, method: Any) -> None:
        """Evaluate `method` on the test set and write the curve down."""
        began = time.perf_counter()
        self.curve[step] = {"step": step, **self.figures_of(method)}
        self.write(None)
        self.seconds += time.perf_counter() - began

    def figures_of(self, method: Any) -> Point:
        """FIGURES of `method`; None where it answers with what no figure can be had from."""
        if self.test is None:
            self.test = self.load()
        try:
            seen = windowed(method, self.job.view, self.job.resolution)
            scores = score_all(seen, pictures_of(self.test), self.job.name, self.device)
            return figures(scores.image, scores.pixel, self.test, self.job)
        except (MetricError, ScoreError):  # the row would fail if the training ended like this; it need not
            return dict.fromkeys(FIGURES)

    def conclude(self, row: Mapping[str, Any]) -> None:
        """Write down what the row says of the state that is kept, whose columns are in `row`."""
        if self.path is not None:
            self.write({name: row[name] for name in FIGURES})

    def write(self, kept: Mapping[str, Any] | None) -> None:
        """The whole file; where it cannot be written one warning, and the job goes on."""
        if self.path is None:
            return
        content = about(self.job) | {"every": self.work.audit_every, "kept": kept}
        content["curve"] = [self.curve[step] for step in sorted(self.curve)]
        try:
            write_text_whole(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        except OSError as error:
            reason = error.strerror or error
            warnings.warn(f"{self.path}: no audit is kept there ({reason}); the job goes on", stacklevel=2)
            self.path = None


def figures(image: Any, pixel: Any, test: TestSet, job: Job) -> Point:
    """FIGURES of scores [N] and maps [N, H, W], as the row has them."""
    found = image_metrics(image, test.labels, names=test.names, method=job.name)
    index = None
    if test.masks is not None:
        category = judged_category(job.axes, job.category, job.seed)
        index = region_index(test.masks, region_file(category, job.resolution, test))
    found |= pixel_metrics(pixel, None, region_index=index, sizes=test.sizes, names=test.names, method=job.name)
    return {name: found[name] for name in FIGURES}


def about(job: Job) -> dict[str, Any]:
    """What a curve is of."""
    return {
        "format": FORMAT,
        "job": job.id,
        "method": job.name,
        "dataset": job.category.dataset,
        "category": job.category.name,
        "modality": job.category.modality,
        "seed": job.seed,
        "preset": job.preset,
        "resolution": job.resolution,
        "point": ",".join(one for one in (job.axes.label, job.view.label) if one),
        "device": job.device.partition(":")[0],
    }


def audit_path(job: Job, work: Work) -> Path | None:
    """audits/<job id>.json in a local results folder."""
    return work.beside / FOLDER / f"{job.id}.json" if work.beside else None


def earlier_points(job: Job, work: Work, path: Path | None) -> dict[int, Point]:
    """The points that an interrupted training of `job` left; none where it starts anew or was watched otherwise."""
    if path is None or not checkpoints(job, work):
        return {}
    try:
        content = checked(path)
    except (OSError, DamagedError):  # its points are had again from where the training goes on
        return {}
    same = content["job"] == job.id and content.get("every") == work.audit_every
    return {point["step"]: point for point in content["curve"]} if same else {}


def checked(path: Path) -> dict[str, Any]:
    """The content of an audit; raises DamagedError for what is none, OSError where it cannot be read."""
    content = read_json(path, dict)
    texts = (content.get(name) for name in (*ABOUT, "job"))
    curve, kept = content.get("curve"), content.get("kept")
    whole = (
        content.get("format") == FORMAT
        and all(isinstance(text, str) for text in texts)
        and isinstance(curve, list)
        and all(type(point) is dict and type(point.get("step")) is int and has_figures(point) for point in curve)
        and (kept is None or (type(kept) is dict and has_figures(kept)))
    )
    if not whole:
        raise DamagedError(f"{path}: damaged (not what an audit of format {FORMAT} holds); delete it")
    return content


def has_figures(point: Mapping[str, Any]) -> bool:
    """Whether each of FIGURES is there, a ratio as a row may hold it or None."""

    def is_ratio(value: object) -> bool:
        return value is None or (type(value) in (int, float) and 0 <= value <= 1 + ROUNDING)  # type: ignore[operator]

    return all(name in point and is_ratio(point[name]) for name in FIGURES)


def read_audits(folder: Path) -> Iterator[dict[str, Any]]:
    """Every audit of a results folder by name; raises AuditError where there is none, DamagedError, OSError."""
    if not folder.is_dir():
        raise AuditError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; name a results folder")
    paths = sorted((folder / FOLDER).glob("*.json"))
    if not paths:
        command = f"kdad-bench run --all --audit --out {shlex.quote(str(folder))}"
        raise AuditError(f"{folder}: no audits; `{command}` makes them, of finished jobs with --force")
    return map(checked, paths)


def gaps(audit: Mapping[str, Any]) -> dict[str, float]:
    """Of each figure that there is: the best of the curve and of the state that is kept, less that of the latter.

    Each figure has a best step of its own, so that no single choice wins all of them. {} of an unfinished audit, and
    of one without a curve: nothing was trained.
    """
    kept = audit["kept"] or {}
    found = {}
    for name in FIGURES:
        values = [point[name] for point in audit["curve"] if point[name] is not None]
        if values and kept.get(name) is not None:
            found[name] = max((*values, kept[name])) - kept[name]
    return found
