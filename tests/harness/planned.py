"""Two methods on the two categories of the tiny tree, planned: what tests of jobs and plans start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kdad_bench import datasets
from kdad_bench.harness.job import Job, TeacherWeights
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import Selection

WEIGHTS = {
    name: TeacherWeights(teacher=name, source="random", sha256="random")
    for name in ("efficientnet_lite0", "resnet18", "wide_resnet50_2", "vgg16", "dinov2_vits14_reg", "dinov2_vitb14_reg")
}


QUICKER = {"stad": {"solved": 64}}  # it is as much STAD as with 2,048 crops


def selection(tree: Path, **changes: object) -> Selection:
    """Two methods, two categories, two seeds."""
    base = Selection(
        methods=(("stfpm", ""), ("pixel_mean", "")),
        categories=tuple(datasets.categories(f"folder:{tree}", None)),
        seeds=(0, 1),
        preset="quick",
        device="cpu",
        method_overrides=QUICKER,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def jobs_of(tree: Path, **changes: object) -> list[Job]:
    return plan(selection(tree, **changes), WEIGHTS)
