"""Run one job: load, learn, score, measure, time; one straight walk from a Job to its Row."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdad_bench import datasets
from kdad_bench.datasets.splits import FRACTION
from kdad_bench.harness import clock
from kdad_bench.harness.decision import Decision
from kdad_bench.harness.environment import describe, keep_freed_memory
from kdad_bench.harness.job import Job
from kdad_bench.harness.late_fusion import FusedModalities
from kdad_bench.harness.protocol import PROTOCOL, PROTOCOL_VERSION
from kdad_bench.harness.work import Work, checkpoint_path, earlier_losses
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods import entry
from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
from kdad_bench.methods.protocol import Fitting, Method, Scores
from kdad_bench.metrics.exact import image_metrics, mask_conflicts, pixel_metrics, region_index

SCORE_BATCH = 16
SMALLER_SCORE_BATCH = 2  # tried once when a GPU is out of memory
INVARIANCE_IMAGES = 4  # maps of so many images at batch 1 are compared with those of the full batch
KEPT_LOSSES = 200  # points of the loss curve that enter the row; the log file has all of them
QUICK_BATCHES = (1, 8, 32)

StepLog = Callable[[int, Mapping[str, float]], None]


class ScoreError(ValueError):
    """A method answered with scores that break the protocol: shape, dtype or a value that is not finite."""


def run(job: Job, work: Work, log: StepLog) -> Row:
    """Carry out `job` and return its row; raises whatever stops it. The test files are opened after the training."""
    began = time.perf_counter()
    torch.use_deterministic_algorithms(job.deterministic)
    keep_freed_memory()
    device = torch.device(job.device)
    curve = earlier_losses(job, work)

    def remember(step: int, terms: Mapping[str, float]) -> None:
        curve[step] = {**curve.get(step, {}), "step": step, **terms}
        log(step, terms)

    start = time.perf_counter()
    normal, held_out = (as_images(pixels, device) for pixels in normals(job))
    data_seconds = time.perf_counter() - start
    with clock.peak_memory(job.device) as peak:
        method = build(job, device, held_out)
        start = time.perf_counter()
        method.fit(normal, Fitting(log=remember, checkpoint=checkpoint_path(job, work),
                                   checkpoint_every_seconds=work.checkpoint_every_seconds))  # fmt: skip
        synchronise(device)
        train_seconds = time.perf_counter() - start
        train_images = len(normal)
        del normal

        start = time.perf_counter()
        test = test_set(job)
        images = as_images(test.images, device)
        data_seconds += time.perf_counter() - start
        start = time.perf_counter()
        scores = score_all(method, images, job)
        synchronise(device)
        score_seconds = time.perf_counter() - start

    losses = [curve[step] for step in sorted(curve)]
    start = time.perf_counter()
    figures: dict[str, Any] = image_metrics(scores.image, test.labels, names=test.names, method=job.name)
    common = image_metrics(scores.pixel.amax(dim=(1, 2)), test.labels, names=test.names, method=job.name)
    figures["image_auroc_max"] = common["image_auroc"]
    warn_of_conflicts(test, job)
    regions = None if test.masks is None else region_index(test.masks, region_key(job))
    figures |= pixel_metrics(scores.pixel, test.masks, region_index=regions, names=test.names, method=job.name)
    metric_seconds = time.perf_counter() - start

    cost = time_method(method, images, job)
    try:
        keep_beside(job, work, method, test, scores, held_out)
    except OSError as error:  # what lies beside a row must not cost the row
        warnings.warn(f"{job.label}: {error}; its row is complete, what was to be kept beside it is not", stacklevel=1)
    return Row(
        **columns_of(job),
        **figures,
        **cost,
        **environment_columns(job),
        steps=int(losses[-1]["step"]) if losses else 0,
        train_images=train_images,
        test_images=len(test.labels),
        train_seconds=train_seconds,
        data_seconds=data_seconds,
        score_seconds=score_seconds,
        metric_seconds=metric_seconds,
        total_seconds=time.perf_counter() - began,
        peak_memory_mb=peak.peak_mb,
        parameters=sum(p.numel() for p in method.module.parameters()),
        trainable_parameters=sum(p.numel() for p in method.module.parameters() if p.requires_grad),
        batch_invariance=batch_invariance(method, images, scores),
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
        return images, images[:0]
    fraction = job.hold_out or FRACTION
    found = [datasets.load_normals(part, job.resolution, fraction=fraction, seed=job.seed) for part in parts]
    return np.concatenate([one.fit for one in found], 1), np.concatenate([one.held_out for one in found], 1)


def test_set(job: Job) -> datasets.TestSet:
    """The test images, the modalities stacked along the channels."""
    found = [datasets.load_test(part, job.resolution) for part in datasets.single_modalities(job.category)]
    return found[0]._replace(images=np.concatenate([one.images for one in found], 1)) if len(found) > 1 else found[0]


def build(job: Job, device: torch.device, held_out: Tensor) -> Method:
    """The untrained method of `job` on `device`, one per modality; raises WeightsError without teacher weights."""
    modalities = job.category.modality.split("+")
    if len(modalities) == 1:
        return build_one(job, device)
    return FusedModalities([build_one(job, device) for _ in modalities], modalities, held_out)


def build_one(job: Job, device: torch.device) -> Method:
    """One detector on three channels, its teacher loaded."""
    found = entry(job.method)
    if job.weights is None:
        return found.build(job.settings, None, device)
    if job.weights.problem:
        raise WeightsError(job.weights.problem)
    source = job.weights.path or job.weights.source
    teacher, _ = load_teacher(job.settings.teacher, strides=job.settings.strides, source=source)
    return found.build(job.settings, teacher.to(device), device)


def as_images(pixels: Any, device: torch.device) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 in [0, 1] on `device`."""
    return torch.from_numpy(np.array(pixels)).to(device).float().div_(255)  # a copy: the cache is read-only


def score_all(method: Method, images: Tensor, job: Job) -> Scores:
    """Scores of all images, in batches; a GPU out of memory gets one more try with smaller ones."""
    try:
        return scored(method, images, SCORE_BATCH, job)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return scored(method, images, SMALLER_SCORE_BATCH, job)


def scored(method: Method, images: Tensor, batch: int, job: Job) -> Scores:
    """Scores of all images in batches of at most `batch`, each checked at the border.

    The batches are as equal as can be: every new shape costs the convolutions a preparation.
    """
    parts = []
    with torch.inference_mode():
        for chunk in torch.chunk(images, max(1, -(-len(images) // batch))):
            parts.append(checked(method.score(chunk), chunk, job))
    return Scores(torch.cat([part.image for part in parts]), torch.cat([part.pixel for part in parts]))


def checked(scores: Scores, images: Tensor, job: Job) -> Scores:
    """`scores` if they keep the protocol; raises ScoreError naming the method and what is wrong.

    That values are finite is checked with the metrics, which can name the image.
    """
    shapes = {"image": images.shape[:1], "pixel": (len(images), *images.shape[2:])}
    for name, shape in shapes.items():
        value = getattr(scores, name)
        if tuple(value.shape) != tuple(shape) or value.dtype != torch.float32:
            raise ScoreError(
                f"method '{job.name}': {name} scores are {value.dtype} {tuple(value.shape)}, not float32 {tuple(shape)}"
            )
    return scores


def batch_invariance(method: Method, images: Tensor, scores: Scores) -> float:
    """The largest difference between a map scored alone and within its batch, over the first few images."""
    with torch.inference_mode():
        alone = [method.score(images[i : i + 1]).pixel[0] for i in range(min(INVARIANCE_IMAGES, len(images)))]
    return max(float((one - scores.pixel[i]).abs().max()) for i, one in enumerate(alone))


def time_method(method: Method, images: Tensor, job: Job) -> dict[str, Any]:
    """Latency at batch 1 (with and without the map), throughput over batches and operations per image."""
    quick = job.preset.startswith("quick")
    warmup = clock.QUICK_WARMUP if quick else clock.WARMUP
    budget = clock.QUICK_TIMED if quick else clock.TIMED
    batches = QUICK_BATCHES if quick else PROTOCOL.throughput_batches
    one = images[:1].clone()

    def batch_of(size: int) -> Callable[[], Any]:
        batch = images.repeat(-(-size // len(images)), 1, 1, 1)[:size].clone()
        return lambda: method.score(batch)

    with torch.inference_mode():
        timings = clock.interleaved(
            {"score": lambda: method.score(one), "networks": lambda: method.networks(one)},
            job.device,
            warmup=warmup,
            budget=budget,
        )
        throughput_budget = clock.Budget(3, 0.3) if quick else clock.QUICK_TIMED
        curve = clock.throughput(batch_of, job.device, batches, warmup=clock.Budget(1, 0.2), budget=throughput_budget)
        operations = clock.flops(lambda: method.networks(one))
    best = clock.best_batch(curve)
    return {
        "latency_ms": timings["score"].median_ms,
        "latency_p95_ms": timings["score"].p95_ms,
        "network_latency_ms": timings["networks"].median_ms,
        "latency_samples_ms": timings["score"].samples_ms,
        "throughput": tuple({"batch": batch, "images_per_second": speed} for batch, speed in curve),
        "images_per_second": best[1] if best else None,
        "best_batch": best[0] if best else None,
        "gflops": operations / 1e9,
    }


def synchronise(device: torch.device) -> None:
    """Wait for a GPU, so that a wall clock around it tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warn_of_conflicts(test: datasets.TestSet, job: Job) -> None:
    """One line on images whose mask and label disagree: the pixel metrics then mean less than they seem to."""
    marked, unmarked = mask_conflicts(test.masks, test.labels, names=test.names)
    where = f"{job.category.dataset}/{job.category.name} at {job.resolution} px"
    if marked:
        warnings.warn(f"{where}: defect pixels in {len(marked)} good images ({listed(marked)})", stacklevel=2)
    if unmarked:
        warnings.warn(
            f"{where}: no defect pixel in the masks of {len(unmarked)} anomalous images ({listed(unmarked)}); they "
            "count as anomalous in the image metrics and as normal in the pixel metrics; a higher --resolution helps",
            stacklevel=2,
        )


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def region_key(job: Job) -> str:
    """Names the cached region index of a category's masks at a resolution."""
    return f"{job.category.dataset}-{job.category.name}-{job.resolution}"


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
        "variant": job.variant or None,
        "dataset": job.category.dataset,
        "category": job.category.name,
        "seed": job.seed,
        "preset": job.preset,
        "modality": job.category.modality,
        "teacher": job.settings.teacher if job.weights else None,
        "teacher_weights": job.weights.source if job.weights else None,
        "teacher_sha256": job.weights.sha256 if job.weights else None,
        "resolution": job.resolution,
        "image_size": job.settings.image_size,
        "batch_size": job.settings.batch_size,
        "precision": job.settings.precision,
        "readings": tuple(job.settings.readings),
        "deviations": tuple(job.settings.deviations),
        "settings": json.dumps(asdict(job.settings), sort_keys=True, default=str),
        "data_fingerprint": job.category.fingerprint(),
        "synthetic": job.category.synthetic,
    }


def environment_columns(job: Job) -> dict[str, Any]:
    """The columns of a row that tell where it was measured."""
    found = describe(job.device)
    return {**found, "environment": json.dumps(found["environment"], sort_keys=True)}


def keep_beside(job: Job, work: Work, method: Method, test: datasets.TestSet, scores: Scores, held_out: Tensor) -> None:
    """Write what was asked for beside the rows: contact sheet, model, raw maps."""
    if work.beside is None:
        return
    if work.pictures:
        from kdad_bench.harness.pictures import contact_sheet

        folder = work.beside / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        contact_sheet(
            test.images[:, :3], test.masks, scores.pixel.cpu().numpy(), scores.image.cpu().numpy(), test.names,
            folder / f"{job.id}.png", labels=test.labels, title=f"{job.label} [{job.preset}]",
        )  # fmt: skip
    if work.save_models:
        from kdad_bench.methods.checkpoint import save

        name = f"{job.name.replace(':', '-')}-{job.category.name}-s{job.seed}-{job.id}"
        folder = work.beside / "models" / name
        save(job.method, method, folder)
        normals = scored(method, held_out, SCORE_BATCH, job) if len(held_out) else None
        Decision(
            category=job.category.name,
            resolution=job.resolution,
            normal_scores=tuple(sorted(normals.image.tolist())) if normals else (),
            normal_map_peak=float(normals.pixel.max()) if normals else None,
        ).write(folder)
    if work.save_maps:
        folder = work.beside / "maps"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / f"{job.id}.npz", maps=scores.pixel.cpu().numpy().astype(np.float16), names=np.array(test.names)
        )
