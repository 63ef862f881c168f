"""Run one job: load, learn, score, measure, time; one straight walk from a Job to its Row."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdad_bench import datasets
from kdad_bench.files import let_go
from kdad_bench.harness import clock, gpu_share, together
from kdad_bench.harness.audit import Audit
from kdad_bench.harness.cost import cost_of
from kdad_bench.harness.departures import departures_of
from kdad_bench.harness.determinism import choose_algorithms
from kdad_bench.harness.environment import describe, give_freed_memory_back, keep_freed_memory, memory_at_start_mb
from kdad_bench.harness.job import Job, TeacherWeights, fused_late
from kdad_bench.harness.judging import judged
from kdad_bench.harness.late_fusion import FusedModalities
from kdad_bench.harness.material import (
    categories_of,
    count_of,
    judged_category,
    normals,
    pictures,
    pictures_of,
    test_set,
    unseen_names,
)
from kdad_bench.harness.output import Work, checkpoint_path, keep_beside
from kdad_bench.harness.protocol import PROTOCOL_VERSION
from kdad_bench.harness.scoring import MOST_BYTES, as_images, batch_for, batch_invariance, let_go_of_scores, score_all
from kdad_bench.harness.speed_key import speed_key
from kdad_bench.harness.step_log import earlier_losses
from kdad_bench.harness.together import Learnt
from kdad_bench.harness.trust import figures_of, warn_of_a_difference, warn_of_darkness
from kdad_bench.harness.windows import all_windows, sources_of, windowed
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import entry
from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
from kdad_bench.methods.protocol import Fitting, Method, Scores
from kdad_bench.methods.resizing import resized
from kdad_bench.metrics import all_finite, check_finite, threshold_of

KEPT_LOSSES = 200  # points of the loss curve that enter the row; the log file has all of them

StepLog = Callable[[int, Mapping[str, float]], bool | None]  # false where the step has no line in the log


def run(job: Job, work: Work, log: StepLog) -> Row:
    """Carry out `job` and return its row; raises whatever stops it.

    The test files are opened after the training, unless `work` has it audited: then what they show is kept from it.
    """
    began = time.perf_counter()
    if job.category.faults:
        raise datasets.DatasetError(*job.category.faults)
    choose_algorithms(job.deterministic, job.device)
    gpu_share.keep_to_share(job.device, work.gpu_share)
    keep_freed_memory()
    give_freed_memory_back()  # of the job before in this process: its heap is none of this one's
    device = torch.device(job.device)
    memory_at_start_mb(device.type)  # before there are images
    curve = earlier_losses(job, work)
    unlogged: list[int] = []  # steps

    def remember(step: int, terms: Mapping[str, float]) -> None:
        curve[step] = {**curve.get(step, {}), "step": step, **terms}
        if log(step, terms) is False:
            unlogged.append(step)

    audit = Audit(job, work, device, lambda: test_set(job))
    before: list[float | None] = []  # seconds of the training until it was stopped, where it was
    start = time.perf_counter()
    shared = together.kept(job, work)  # what was learnt with another category, where one model serves several
    fit, held_out = normals(job, learning=shared is None)
    if job.category.modality == "rgb":
        warn_of_darkness(fit, f"the training images of {job.category.dataset}/{job.category.name}")
    held_out = as_images(held_out, device) if job.view.plain else held_out
    normal = learnable(job, squares(job, fit), device)
    data_seconds = time.perf_counter() - start
    if shared is None:
        fitting = Fitting(
            log=remember, checkpoint=checkpoint_path(job, work),
            checkpoint_every_seconds=work.checkpoint_every_seconds, may_keep=lambda: not unlogged,
            watch=audit.watch, watch_every=work.audit_every,
            drawers=work.drawers, place=place_of(job.device), resumed=before.append,
            sources=None if job.view.plain else sources_of(fit, job.view, job.resolution),
            categories=categories_of(job, len(fit)),
        )  # fmt: skip
        method, learnt = taught(
            job, work, normal, held_out, fitting, curve, lambda seconds: added(seconds - audit.seconds, before)
        )
    else:
        method, learnt = together.load(job, work, device), shared
    del normal
    give_freed_memory_back()

    with clock.peak_memory(job.device) as scoring:
        start = time.perf_counter()
        test = test_set(job)
        data_seconds += time.perf_counter() - start
        start = time.perf_counter()
        scores = score_all(method, pictures_of(test), job.name, device)
        synchronise(device)
        score_seconds = time.perf_counter() - start

    unseen, threshold = score_unseen(job, method, held_out)
    start = time.perf_counter()
    figures = judged(
        scores.image, scores.pixel, peaks_of(scores.pixel, test.sizes), test,
        category=judged_category(job.axes, job.category, job.seed), resolution=job.resolution, method=job.name,
        threshold=threshold,
    )  # fmt: skip
    normal_scores = tuple(sorted(unseen.image.tolist())) if unseen else ()
    figures |= figures_of(normal_scores, scores.image.cpu().numpy(), test.labels)
    metric_seconds = time.perf_counter() - start
    audit.conclude(figures)

    cost = cost_of(method, timed_on(job, pictures_of(test)), job, timed=work.time_every_job)
    if job.axes.corruption is None:  # corrupted test images are meant to differ
        warn_of_a_difference(figures, len(normal_scores), int((~test.labels).sum()), job.label)
    keep_beside(job, work, method, test, scores, unseen)
    invariance = batch_invariance(method, pictures_of(test), scores, job.name, device, test.names)
    return Row(
        **columns_of(job),
        **figures,
        **cost,
        **environment_columns(job),
        speed_key=speed_key(job, work),
        steps=int(learnt.losses[-1]["step"]) if learnt.losses else 0,
        train_images=learnt.images,
        test_images=len(test.labels),
        train_seconds=learnt.seconds,
        data_seconds=data_seconds,
        score_seconds=score_seconds,
        metric_seconds=metric_seconds,
        total_seconds=added(time.perf_counter() - began - audit.seconds, before),
        # an audit's memory is not the method's
        peak_memory_mb=None if audit.watch else max(learnt.peak_memory_mb, scoring.peak_mb),
        batch_invariance=invariance,
        image_scores=tuple(scores.image.cpu().tolist()),
        image_labels=tuple(bool(label) for label in test.labels),
        image_names=tuple(test.names),
        normal_scores=normal_scores,
        losses=json.dumps(learnt.losses),
        weights_sha256=learnt.sha256 or None,
    )


def place_of(device: str) -> str:
    """What the numbers of a training depend on besides its job, in words: a row is of one such place."""
    found = describe(device)
    kernels = f"kernels {found['environment']['kernels']}"
    threads = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    own = [torch.backends.cpu.get_cpu_capability(), threads]  # one name of processors has several sets of instructions
    # on CUDA threads only draw, with numbers that do not depend on them
    return ", ".join([str(found["device_name"]), *([] if device.startswith("cuda") else own), kernels])


def added(seconds: float, before: Sequence[float | None]) -> float | None:
    """`seconds` and those of what was done before a job was stopped; None where these are not known."""
    known = [one for one in before if one is not None]
    return seconds + sum(known) if len(known) == len(before) else None


def taught(
    job: Job,
    work: Work,
    normal: Tensor,
    held_out: Any,
    fitting: Fitting,
    curve: Mapping[int, dict[str, float]],
    whole: Callable[[float], float | None],
) -> tuple[Method, Learnt]:
    """The method of `job` after it has learnt from `normal`, kept for other categories where it serves them too.

    `whole`: the seconds of the training, from those that passed here.
    """
    with clock.peak_memory(job.device) as peak:
        method = build(job, normal.device, held_out)
        start = time.perf_counter()
        method.fit(normal, fitting)
        synchronise(normal.device)
        seconds = time.perf_counter() - start
    losses = thinned([curve[step] for step in sorted(curve)])
    learnt = Learnt(seconds=whole(seconds), images=count_of(job), losses=tuple(losses), peak_memory_mb=peak.peak_mb)
    if not job.together:
        return method, learnt
    learnt = together.keep(job, work, method, learnt)
    return together.load(job, work, normal.device), learnt


def squares(job: Job, images: Any) -> Any:
    """uint8 [K, 3 M, S, S]: what the method itself sees of images from `normals`."""
    return images if job.view.plain else all_windows(images, job.view, job.resolution)


def learnable(job: Job, pixels: Any, device: torch.device) -> Tensor:
    """uint8 [K, C, S, S] as a method learns from them. Many large ones are brought to the side that its networks see a
    few at a time, as it would do with all: they need not lie in memory as floats. Code not ours gets them as they are.
    """
    size = job.settings.image_size
    if job.code or pixels.shape[-1] <= size or 4 * pixels.size <= MOST_BYTES:
        return as_images(pixels, device)
    found, few = [], max(1, batch_for(pixels) // 4)
    for start in range(0, len(pixels), few):
        found.append(resized(as_images(pixels[start : start + few], device), size))
        let_go(pixels)
    return torch.cat(found)


def score_unseen(job: Job, method: Method, held_out: Any) -> tuple[Scores | None, float | None]:
    """The scores of normal images that nothing was learnt from, and the threshold of SegF1 from their maps.

    They are those held out, or a shipped validation split; None without either, and for a late fusion, which is brought
    to scale by those held out: they tell nothing of new ones. Raises MetricError for a NaN or an infinity in them.
    """
    if fused_late(job):
        return None, None
    images = held_out
    if not len(images) and job.category.validation:  # with several modalities some are held out
        plain = job.view.plain
        images = (
            datasets.load_validation(job.category, job.resolution)
            if plain
            else pictures(job, job.category, "validation")
        )
    if not len(images):
        return None, None
    found = score_all(method, images, job.name, torch.device(job.device))
    sizes = None if job.view.plain else np.array([one.shape[-2:] for one in images], np.int64)
    threshold = threshold_of(found.pixel, sizes)  # NaN where a pixel is not finite
    if not all_finite([*found.image.tolist(), threshold]):
        check_finite(found.image, found.pixel, sizes=sizes, names=unseen_names(job), method=job.name)
    return found, threshold


def peaks_of(maps: Tensor, sizes: Any) -> Tensor:
    """[N] the highest value of each map, of pictures that fill theirs in part the highest within."""
    if sizes is None and maps.nbytes <= MOST_BYTES:
        return maps.amax(dim=(1, 2))
    found = [one if sizes is None else one[: sizes[k, 0], : sizes[k, 1]] for k, one in enumerate(maps)]
    peaks = []
    for one in found:
        peaks.append(one.amax())
        let_go_of_scores(maps)
    return torch.stack(peaks)


def timed_on(job: Job, images: Any) -> Any:
    """uint8 [N, 3 M, h, w] that a method may be timed on: the first picture, where they are of many shapes."""
    return images if isinstance(images, np.ndarray) else np.ascontiguousarray(images[0])[None]


def build(job: Job, device: torch.device, held_out: Any) -> Method:
    """The untrained method of `job` on `device`, one per modality; raises WeightsError without teacher weights.

    A method that knows modalities is one for all of them. `held_out` is of `normals`: a late fusion is calibrated on
    it.
    """
    if not fused_late(job):
        return windowed(build_one(job, device), job.view, job.resolution)
    modalities = job.category.modality.split("+")
    apart = held_out if isinstance(held_out, Tensor) else as_images(squares(job, held_out), device)
    fused = FusedModalities([build_one(job, device) for _ in modalities], modalities, apart)
    return windowed(fused, job.view, job.resolution)


def build_one(job: Job, device: torch.device) -> Method:
    """One detector on three channels, its teacher loaded."""
    return built(job.method, job.settings, job.weights, device)


def built(name: str, settings: Any, weights: TeacherWeights | None, device: torch.device) -> Method:
    """The untrained method `name`, its teacher loaded where it has one.

    Raises WeightsError without the weights, and where their file is another than the one whose hash `weights` says;
    AttributeError for a method that lacks a part, before a training that may take hours.
    """
    found, teacher = entry(name), None
    if weights is not None:
        if weights.problem:
            raise WeightsError(weights.problem)
        source = weights.path or weights.source
        teacher, info = load_teacher(settings.teacher, strides=settings.strides, source=source)
        if weights.path is not None and info.sha256 != weights.sha256:
            raise WeightsError(
                f"{weights.path}: changed since the run was planned; run again, or put back what was there"
            )
        teacher = teacher.to(device)
    method = found.build(settings, teacher, device)
    lacking = [part for part in ("settings", "module", "fit", "score", "networks") if not hasattr(method, part)]
    if lacking:
        raise AttributeError(
            f"method '{name}' has no {' and no '.join(lacking)}; `check-method` goes through the rules"
        )
    return method


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
        "readings": job.readings,
        "deviations": (*job.deviations, *departures_of(job)),
        "settings": json.dumps(asdict(job.settings), sort_keys=True, default=str),
        "data_fingerprint": datasets.fingerprint(job.category),
        "synthetic": job.category.synthetic,
        "code_sha256": job.code or None,
        **job.axes.columns,
        **job.columns,
        **job.view.columns,
    }


def environment_columns(job: Job) -> dict[str, Any]:
    """The columns of a row that tell where it was measured."""
    found = describe(job.device)
    # torch tells what holds where the row is made, which for a failed one is outside of its job
    more = {"memory_at_start_mb": memory_at_start_mb(found["device"]), "deterministic": job.deterministic}
    return {**found, "environment": json.dumps(found["environment"] | more, sort_keys=True)}
