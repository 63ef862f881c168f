"""A method that knows modalities is given all of them at once; the others learn each apart and are fused late."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdad_bench import datasets
from kdad_bench.harness import material, run
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import Job
from kdad_bench.harness.late_fusion import FusedModalities
from kdad_bench.harness.output import Work
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import Selection
from kdad_bench.harness.view import WHOLE, View
from kdad_bench.harness.windows import Windowed
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.ast import Ast
from tests.datasets.test_mvtec_3d_ad import write_scans
from tests.harness.planned import WEIGHTS

SMALL = {"steps": 2, "batch_size": 2, "image_size": 64}


def job_of(tree: Path, method: str, modality: str, view: View = WHOLE) -> Job:
    chosen = Selection(
        methods=((method, ""),),
        categories=tuple(datasets.categories(f"folder:{tree}", None, modality=modality)),
        seeds=(0,),
        preset="quick",
        device="cpu",
        resolution=64,
        overrides=SMALL,
        view=view,
    )
    (job,) = plan(chosen, WEIGHTS)
    return job


def test_the_modality_of_a_run_becomes_a_setting_and_part_of_the_identity(tmp_path: Path) -> None:
    tree = write_scans(tmp_path / "bagel")
    jobs = {modality: job_of(tree, "ast", modality) for modality in ("rgb", "depth", "rgb+depth")}
    assert {modality: job.settings.inputs for modality, job in jobs.items()} == {one: one for one in jobs}
    assert len({job.id for job in jobs.values()}) == 3
    assert jobs["rgb"].preset == jobs["depth"].preset  # no override of anybody's
    assert any(line.startswith("depth: ") for line in jobs["depth"].settings.readings)


@pytest.mark.parametrize(("method", "kind"), [("ast", Ast), ("stfpm", FusedModalities)])
def test_two_modalities_are_one_method_or_one_each(tmp_path: Path, method: str, kind: type) -> None:
    job = job_of(write_scans(tmp_path / "bagel"), method, "rgb+depth")
    assert type(run.build(job, torch.device("cpu"), torch.rand(1, 6, 64, 64))) is kind


@pytest.mark.parametrize("modality", ["rgb", "depth", "rgb+depth"])
def test_a_job_with_each_modality_leaves_a_row(tmp_path: Path, modality: str) -> None:
    job = job_of(write_scans(tmp_path / "bagel"), "ast", modality)
    row = run.run(job, Work(out=str(tmp_path / "out")), lambda step, terms: None)
    assert (row.status, row.modality, row.train_images, row.test_images) == ("ok", modality, 4, 4)
    assert row.batch_invariance is not None
    assert row.batch_invariance < 1e-4


@pytest.mark.parametrize(("method", "unseen"), [("ast", True), ("stfpm", False)])
def test_normals_that_a_fusion_is_calibrated_on_give_no_threshold_and_those_that_nothing_saw_do(
    tmp_path: Path, method: str, unseen: bool
) -> None:
    job = job_of(write_scans(tmp_path / "bagel"), method, "rgb+depth")
    row = run.run(job, Work(out=str(tmp_path / "out")), lambda step, terms: None)
    assert (row.seg_f1 is not None, len(row.normal_scores) > 0, row.false_alarm_floor is not None) == (unseen,) * 3


@pytest.mark.parametrize(("method", "kind"), [("ast", Ast), ("stfpm", FusedModalities)])
def test_tiles_hold_all_modalities_of_their_place(tmp_path: Path, method: str, kind: type) -> None:
    job = job_of(write_scans(tmp_path / "bagel"), method, "rgb+depth", View(fit="pad", tile=32))
    built = run.build(job, torch.device("cpu"), material.normals(job)[1])
    assert isinstance(built, Windowed)
    assert type(built.inner) is kind
    row = run.run(job, Work(out=str(tmp_path / "out")), lambda step, terms: None)
    assert (row.status, row.fit, row.tile, row.train_images, row.test_images) == ("ok", "pad", 32, 4, 4)
    assert row.pixel_auroc is not None


def test_what_a_method_sees_cannot_be_set_apart_from_the_data(tmp_path: Path) -> None:
    tree = write_scans(tmp_path / "bagel")
    chosen = Selection(
        methods=(("ast", ""),),
        categories=tuple(datasets.categories(f"folder:{tree}", None)),
        seeds=(0,),
        preset="quick",
        device="cpu",
        method_overrides={"ast": {"inputs": "depth"}},
    )
    with pytest.raises(SelectionError, match="'inputs' cannot be set: it follows from --modality"):
        plan(chosen, WEIGHTS)


def test_the_methods_that_know_modalities_are_these() -> None:
    known = {name: entry(name).modality_setting for name in METHODS if entry(name).modality_setting}
    assert known == {"ast": "inputs"}
    for name, field in known.items():
        assert set(entry(name).presets["paper"].CHOICES[field]) == set(datasets.category.MODALITIES)
