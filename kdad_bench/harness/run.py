"""Run one job: load, learn, score, measure, time; one straight walk from a Job to its Row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdad_bench import datasets
from kdad_bench.datasets.splits import FRACTION
from kdad_bench.harness import clock
from kdad_bench.harness.audit import Audit
from kdad_bench.harness.cost import cost_of
from kdad_bench.harness.environment import describe, give_freed_memory_back, keep_freed_memory
from kdad_bench.harness.job import Job, TeacherWeights
from kdad_bench.harness.judging import judged
from kdad_bench.harness.late_fusion import FusedModalities
from kdad_bench.harness.material import judged_category, judged_on, learnt_from
from kdad_bench.harness.output import Work, checkpoint_path, keep_beside
from kdad_bench.harness.protocol import PROTOCOL_VERSION
from kdad_bench.harness.scoring import as_images, batch_invariance, score_all
from kdad_bench.harness.speed_key import speed_key
from kdad_bench.harness.step_log import earlier_losses
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import entry
from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
from kdad_bench.methods.protocol import Fitting, Method

KEPT_LOSSES = 200  # points of the loss curve that enter the row; the log file has all of them

StepLog = Callable[[int, Mapping[str, float]], None]


def run(job: Job, work: Work, log: StepLog) -> Row:
    """Carry out `job` and return its row; raises whatever stops it.

    The test files are opened after the training, unless `work` has it audited: then what they show is kept from it.
    """
    began = time.perf_counter()
    torch.use_deterministic_algorithms(job.deterministic)
    keep_freed_memory()
    device = torch.device(job.device)
    curve = earlier_losses(job, work)

    def remember(step: int, terms: Mapping[str, float]) -> None:
        curve[step] = {**curve.get(step, {}), "step": step, **terms}
        log(step, terms)

    audit = Audit(job, work, device, lambda: test_set(job))
    start = time.perf_counter()
    normal, held_out = (as_images(pixels, device) for pixels in normals(job))
    data_seconds = time.perf_counter() - start
    with clock.peak_memory(job.device) as peak:
        method = build(job, device, held_out)
        start = time.perf_counter()
        method.fit(normal, Fitting(log=remember, checkpoint=checkpoint_path(job, work),
                                   checkpoint_every_seconds=work.checkpoint_every_seconds,
                                   watch=audit.watch, watch_every=work.audit_every))  # fmt: skip
        synchronise(device)
        train_seconds = time.perf_counter() - start - audit.seconds
        train_images = len(normal)
        del normal
        give_freed_memory_back()

        start = time.perf_counter()
        test = test_set(job)
        data_seconds += time.perf_counter() - start
        start = time.perf_counter()
        scores = score_all(method, test.images, job.name, device)
        synchronise(device)
        score_seconds = time.perf_counter() - start

    losses = [curve[step] for step in sorted(curve)]
    unseen = normal_maps(job, method, held_out)
    start = time.perf_counter()
    figures = judged(
        scores.image, scores.pixel, scores.pixel.amax(dim=(1, 2)), test,
        category=judged_category(job.axes, job.category, job.seed), resolution=job.resolution, method=job.name,
        normal_maps=unseen,
    )  # fmt: skip
    metric_seconds = time.perf_counter() - start
    audit.conclude(figures)

    cost = cost_of(method, test.images, job, timed=work.time_every_job)
    keep_beside(job, work, method, test, scores, held_out)
    return Row(
        **columns_of(job),
        **figures,
        **cost,
        **environment_columns(job),
        speed_key=speed_key(job, work),
        steps=int(losses[-1]["step"]) if losses else 0,
        train_images=train_images,
        test_images=len(test.labels),
        train_seconds=train_seconds,
        data_seconds=data_seconds,
        score_seconds=score_seconds,
        metric_seconds=metric_seconds,
        total_seconds=time.perf_counter() - began - audit.seconds,
        peak_memory_mb=None if audit.watch else peak.peak_mb,  # an audit's memory is not the method's
        batch_invariance=batch_invariance(method, test.images, scores, device),
        image_scores=tuple(scores.image.cpu().tolist()),
        image_labels=tuple(bool(label) for label in test.labels),
        image_names=tuple(test.names),
        losses=json.dumps(thinned(losses)),
    )


def normals(job: Job) -> tuple[Any, Any]:
    """uint8 (images to learn from, held-out images) [N, 3 M, R, R], the M modalities stacked along the channels.

    Normals are held out where a threshold or a late fusion needs them: the validation split that the data set ships,
    else a share of the training images drawn by the job's seed.
    """
    parts = datasets.single_modalities(job.category)
    if not job.hold_out and len(parts) == 1:
        images = datasets.load_train(job.category, job.resolution)
        return learnt_from(job, images), images[:0]
    fraction = job.hold_out or FRACTION
    found = [datasets.load_normals(part, job.resolution, fraction=fraction, seed=job.seed) for part in parts]
    fit = np.concatenate([one.fit for one in found], 1)
    return learnt_from(job, fit), np.concatenate([one.held_out for one in found], 1)


def normal_maps(job: Job, method: Method, held_out: Tensor) -> Tensor | None:
    """The maps of normal images that the method has not seen: those held out, or a validation split that is shipped."""
    images = held_out
    if not len(images) and job.category.validation:  # a late fusion holds them out, so that there is one modality
        images = as_images(datasets.load_validation(job.category, job.resolution), held_out.device)
    return score_all(method, images, job.name).pixel if len(images) else None


def test_set(job: Job) -> datasets.TestSet:
    """The test images, the modalities stacked along the channels, as the axes of the job say."""
    found = [datasets.load_test(part, job.resolution) for part in datasets.single_modalities(job.category)]
    stacked = found[0]._replace(images=np.concatenate([one.images for one in found], 1)) if found[1:] else found[0]
    return judged_on(job.axes, job.category, job.seed, stacked)


def build(job: Job, device: torch.device, held_out: Tensor) -> Method:
    """The untrained method of `job` on `device`, one per modality; raises WeightsError without teacher weights."""
    modalities = job.category.modality.split("+")
    if len(modalities) == 1:
        return build_one(job, device)
    return FusedModalities([build_one(job, device) for _ in modalities], modalities, held_out)


def build_one(job: Job, device: torch.device) -> Method:
    """One detector on three channels, its teacher loaded."""
    return built(job.method, job.settings, job.weights, device)


def built(name: str, settings: Any, weights: TeacherWeights | None, device: torch.device) -> Method:
    """The untrained method `name`, its teacher loaded where it has one; raises WeightsError without the weights."""
    found = entry(name)
    if weights is None:
        return found.build(settings, None, device)
    if weights.problem:
        raise WeightsError(weights.problem)
    teacher, _ = load_teacher(settings.teacher, strides=settings.strides, source=weights.path or weights.source)
    return found.build(settings, teacher.to(device), device)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU, so that a wall clock around it tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def thinned(losses: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most KEPT_LOSSES points of the loss curve, the last one among them."""
    every = -(-len(losses) // KEPT_LOSSES) or 1
    return losses[::-1][::every][::-1]


def columns_of(job: Job) -> dict[str, Any]:
    """The columns of a row that are known before the job runs."""
    return {
        "job_id": job.id,
        "protocol_version": PROTOCOL_VERSION,
        "method": job.method,
        "title": entry(job.method).title,
        "family": entry(job.method).family,
        "variant": job.variant or None,
        "dataset": job.category.dataset,
        "category": job.category.name,
        "seed": job.seed,
        "preset": job.preset,
        "also_presets": job.also_presets,
        "modality": job.category.modality,
        "teacher": job.settings.teacher if job.weights else None,
        "teacher_weights": job.weights.source if job.weights else None,
        "teacher_sha256": job.weights.sha256 if job.weights else None,
        "resolution": job.resolution,
        "image_size": job.settings.image_size,
        "batch_size": job.settings.batch_size,
        "precision": job.settings.precision,
        "readings": tuple(job.settings.readings),
        "deviations": job.deviations,
        "settings": json.dumps(asdict(job.settings), sort_keys=True, default=str),
        "data_fingerprint": datasets.fingerprint(job.category),
        "synthetic": job.category.synthetic,
        "code_sha256": job.code or None,
        **job.axes.columns,
    }


def environment_columns(job: Job) -> dict[str, Any]:
    """The columns of a row that tell where it was measured."""
    found = describe(job.device)
    return {**found, "environment": json.dumps(found["environment"], sort_keys=True)}
