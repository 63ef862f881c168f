"""`kdad-bench bench`: this harness against the same work written as official codes write it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich_click as click
from rich.console import Console
from rich.table import Table

from kdad_bench.cli import SIDE, BadInput

PARTS = ("data", "training step", "inference", "metrics", "total")


@click.group()
def bench() -> None:
    """Benchmark the harness against a plain PyTorch loop."""


@bench.command(name="end-to-end")
@click.option("--category", default=None, help="A category.  [default: the first]")
@click.option("--dataset", default="synthetic", show_default=True, help="The data set.")
@click.option("--data-root", type=click.Path(path_type=Path), envvar="KDAD_DATA", show_envvar=True, help="Data folder.")
@click.option("--steps", type=click.IntRange(min=1), default=60, show_default=True, help="Optimiser steps.")
@click.option("--size", type=SIDE, default=128, show_default=True, help="Side of the images, px.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Training batch.")
@click.option("--teacher", default="efficientnet_lite0", show_default=True, help="The teacher of both.")
@click.option("--seed", type=int, default=0, show_default=True, help="The seed of both.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def end_to_end(**given: Any) -> None:
    """Train and evaluate STFPM on one category, once by a plain loop and once by this harness; print the ratios.

    Same method, data, teacher, number of steps, batch and optimiser, on the CPU, one after the other in this process.
    The plain loop decodes each image each time, runs the teacher at each step, evaluates one image at a time, and
    computes its metrics with scikit-learn and a loop over 200 thresholds. Needs scikit-learn.
    """
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInput("bench end-to-end needs scikit-learn: pip install 'kdad-bench[bench]'") from error
    result = measured(given)
    if given["as_json"]:
        click.echo(json.dumps(result, indent=2))
        return
    table = Table("part", "plain loop, s", "kdad-bench, s", "ratio", title=result["what"], title_justify="left")
    for part in PARTS:
        plain, ours = result["plain"][part], result["ours"][part]
        table.add_row(part, f"{plain:.3f}", f"{ours:.3f}", f"{plain / ours:.1f}x")
    plain, ours = (sum(result[side][part] for part in ("inference", "metrics")) for side in ("plain", "ours"))
    table.add_row("evaluation (inference + metrics)", f"{plain:.3f}", f"{ours:.3f}", f"{plain / ours:.1f}x")
    console = Console(highlight=False)
    console.print(table)
    for name in ("image_auroc", "pixel_auroc", "aupro_30"):
        console.print(
            f"{name}: plain loop {result['plain_metrics'][name]:.4f}, kdad-bench {result['metrics'][name]:.4f}"
        )
    console.print(result["environment"])


def measured(given: dict[str, Any]) -> dict[str, Any]:
    """Run both sides and return their seconds by part and their metrics."""
    import torch

    from kdad_bench import datasets
    from kdad_bench.files import cache_folder
    from kdad_bench.harness.environment import describe, keep_freed_memory
    from kdad_bench.harness.plain_loop import train_and_evaluate
    from kdad_bench.harness.run import SCORE_BATCH, as_images
    from kdad_bench.methods import entry
    from kdad_bench.methods.backbones import build
    from kdad_bench.methods.backbones.weights import WeightsError, load_teacher
    from kdad_bench.metrics import image_metrics, pixel_metrics, region_index

    try:
        found = datasets.categories(given["dataset"], given["data_root"])
        category = next(one for one in found if given["category"] in (None, one.name))
        teacher, _ = load_teacher(given["teacher"])
    except WeightsError as error:
        raise BadInput(f"{error}; or choose a --teacher whose weights `kdad-bench doctor` finds") from error
    except (datasets.DatasetError, ValueError) as error:
        raise BadInput(str(error)) from error
    except StopIteration:
        have = ", ".join(one.name for one in found)
        raise BadInput(f"category '{given['category']}' not in {given['dataset']}; have: {have}") from None
    stfpm = entry("stfpm")
    settings: Any = stfpm.presets["quick"]
    settings = replace(
        settings,
        teacher=given["teacher"],
        image_size=given["size"],
        steps=given["steps"],
        batch_size=given["batch_size"],
        seed=given["seed"],
        optimiser="sgd",
        learning_rate=0.4,  # both sides take the paper's optimiser
        schedule="constant",
    )
    device = torch.device("cpu")

    torch.manual_seed(given["seed"])
    student = build(given["teacher"], batch_norm=True)
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = settings.norm_momentum  # as the harness sets it, so that both learn the same
    start = time.perf_counter()
    plain, plain_figures = train_and_evaluate(
        category, teacher, student, size=given["size"], steps=given["steps"], batch_size=given["batch_size"],
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, seed=given["seed"],
    )  # fmt: skip
    plain["total"] = time.perf_counter() - start
    keep_freed_memory()  # as every job does
    ours: dict[str, float] = {}
    start = began = time.perf_counter()
    normal = as_images(datasets.load_train(category, given["size"]), device)
    ours["data"] = time.perf_counter() - start
    start = time.perf_counter()
    method = stfpm.build(settings, teacher, device)
    method.fit(normal)
    ours["training step"] = time.perf_counter() - start
    start = time.perf_counter()
    test = datasets.load_test(category, given["size"])
    masks = test.masks
    if masks is None:
        raise BadInput(f"{given['dataset']}/{category.name} has no masks; choose a category with masks")
    images = as_images(test.images, device)
    ours["data"] += time.perf_counter() - start
    start = time.perf_counter()
    with torch.inference_mode():
        scores = [method.score(chunk) for chunk in torch.chunk(images, -(-len(images) // SCORE_BATCH))]
    maps = torch.cat([score.pixel for score in scores]).numpy()
    image_scores = torch.cat([score.image for score in scores]).numpy()
    ours["inference"] = time.perf_counter() - start
    start = time.perf_counter()
    figures = image_metrics(image_scores, test.labels)
    index = region_index(masks, cache_folder() / "regions" / "bench-end-to-end.regions")
    figures |= pixel_metrics(maps, masks, region_index=index)
    ours["metrics"] = time.perf_counter() - start
    ours["total"] = time.perf_counter() - began

    machine = describe("cpu")
    return {
        "what": f"STFPM, {given['dataset']}/{category.name}, {given['size']} px, {given['steps']} steps of "
        f"{given['batch_size']}, teacher {given['teacher']}, CPU",
        "plain": plain,
        "ours": ours,
        "plain_metrics": plain_figures,
        "metrics": figures,
        "environment": f"{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}",
    }
