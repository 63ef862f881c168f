"""STFPM on one category twice: once by a plain loop, once by this harness; seconds by part, and both sides' metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kdad_bench import datasets
from kdad_bench.datasets import Category, DatasetError
from kdad_bench.files import cache_folder
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.environment import describe, keep_freed_memory
from kdad_bench.harness.plain_loop import Stopwatch, train_and_evaluate
from kdad_bench.harness.plan import configured
from kdad_bench.harness.scoring import as_images, score_all
from kdad_bench.harness.teachers import refuse_unknown
from kdad_bench.methods import entry
from kdad_bench.methods.backbones import Backbone, build
from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
from kdad_bench.metrics import image_metrics, pixel_metrics, region_index

PARTS = ("data", "training step", "inference", "metrics", "total")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What both sides do."""

    dataset: str = "synthetic"
    category: str | None = None  # None: the first
    data_root: Path | None = None
    steps: int = 60
    size: int = 128  # side of the images, px
    batch_size: int = 16
    teacher: str = "efficientnet_lite0"
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Seconds by part, and the metrics, of the plain loop and of this harness."""

    what: str
    plain: dict[str, float]
    ours: dict[str, float]
    plain_metrics: dict[str, float]
    metrics: dict[str, float | None]
    environment: str


def compare(task: Task) -> Comparison:
    """Run both sides one after the other on the CPU, in this process; raises SelectionError for what cannot be run."""
    category, teacher = category_of(task), teacher_of(task)
    chosen = {
        "teacher": task.teacher,
        "image_size": task.size,
        "steps": task.steps,
        "batch_size": task.batch_size,
        "optimiser": "sgd",
        "learning_rate": 0.4,  # both sides take the paper's optimiser
        "schedule": "constant",
    }
    where = f"--teacher {task.teacher} --size {task.size}"
    settings = replace(configured(entry("stfpm").presets["quick"], chosen, where), seed=task.seed)
    import_what_is_used()
    plain, plain_metrics = by_plain_loop(category, teacher, settings)
    keep_freed_memory()  # as every job does
    ours, metrics = by_harness(category, teacher, settings)
    machine = describe("cpu")
    return Comparison(
        what=f"STFPM, {task.dataset}/{category.name}, {task.size} px, "
        f"{task.steps} step{'s' if task.steps > 1 else ''} of {min(task.batch_size, len(category.train))}, "
        f"teacher {task.teacher}, CPU",
        plain=plain,
        ours=ours,
        plain_metrics=plain_metrics,
        metrics=metrics,
        environment=f"{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}",
    )


def import_what_is_used() -> None:
    """Import what is part of neither side's time: the first optimiser of a process brings much of torch."""
    import_module("sklearn.metrics")
    torch.optim.SGD([torch.zeros(1)])


def category_of(task: Task) -> Category:
    """The category of `task`, which must have masks."""
    try:
        names = datasets.names_at_hand(task.dataset, task.data_root)[:1] if task.category is None else [task.category]
        found = datasets.categories(task.dataset, task.data_root, names)[0]
    except DatasetError as error:
        raise SelectionError(str(error)) from error
    if not found.has_masks:
        raise SelectionError(f"{task.dataset}/{found.name} has no masks; choose a category with masks")
    return found


def teacher_of(task: Task) -> Backbone:
    """The teacher of both sides, with its weights."""
    refuse_unknown([task.teacher])
    try:
        return load_teacher(task.teacher)[0]
    except WeightsError as error:
        raise SelectionError(f"{error}; or choose a --teacher whose weights `kdad-bench doctor` finds") from error
    except ValueError as error:
        raise SelectionError(str(error)) from error


def by_plain_loop(category: Category, teacher: Backbone, settings: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds by part and metrics of the plain loop."""
    torch.manual_seed(settings.seed)
    student = build(settings.teacher, batch_norm=True)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = settings.norm_momentum  # as the harness sets it, so that both learn the same
    start = time.perf_counter()
    seconds, metrics = train_and_evaluate(
        category, teacher, student, size=settings.image_size, steps=settings.steps, batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, seed=settings.seed,
    )  # fmt: skip
    return {**seconds, "total": time.perf_counter() - start}, metrics


def by_harness(
    category: Category, teacher: Backbone, settings: Any
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Seconds by part and metrics of this harness."""
    watch = Stopwatch()
    with watch.part("total"):
        with watch.part("data"):
            normal = as_images(datasets.load_train(category, settings.image_size), CPU)
        with watch.part("training step"):
            method = entry("stfpm").build(settings, teacher, CPU)
            method.fit(normal)
        with watch.part("data"):
            test = datasets.load_test(category, settings.image_size)
            images = as_images(test.images, CPU)
            assert test.masks is not None  # category_of refuses a category without
        with watch.part("inference"):
            scores = score_all(method, images, "stfpm")
        with watch.part("metrics"):
            figures = dict(image_metrics(scores.image, test.labels))
            regions = region_index(test.masks, cache_folder() / "regions" / "bench-end-to-end.regions")
            figures |= pixel_metrics(scores.pixel, test.masks, region_index=regions)
    return watch.seconds, figures
