"""Jobs: their identity."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kdad_bench.harness.axes import Axes
from kdad_bench.harness.job import Job, TeacherWeights, hold_out_of
from kdad_bench.harness.view import View
from kdad_bench.methods import METHODS, entry
from tests.harness.planned import jobs_of


def test_ids_are_distinct_and_the_same_when_planned_again(tiny_tree: Path) -> None:
    first, second = jobs_of(tiny_tree), jobs_of(tiny_tree)
    assert [job.id for job in first] == [job.id for job in second]
    assert len({job.id for job in first}) == len(first)


@pytest.mark.parametrize(
    "changes",
    [
        {"overrides": {"steps": 7}},
        {"resolution": 96},
        {"preset": "paper"},
        {"deterministic": True},
        {"device": "cuda:0"},
        {"methods": (("stfpm", "paper_scale"), ("pixel_mean", ""))},
    ],
    ids=str,
)
def test_whatever_can_change_a_result_changes_the_id(tiny_tree: Path, changes: dict[str, object]) -> None:
    before, after = jobs_of(tiny_tree)[0], jobs_of(tiny_tree, **changes)[0]
    assert before.id != after.id


def test_other_weights_give_another_id_and_another_gpu_does_not(tiny_tree: Path) -> None:
    job = jobs_of(tiny_tree, device="cuda:0")[0]
    other = TeacherWeights(teacher="efficientnet_lite0", source="file.pth", sha256="abc")
    assert replace(job, weights=other).id != job.id
    assert replace(job, device="cuda:1").id == job.id


def test_changed_data_give_another_id(tmp_path: Path) -> None:
    from tests.conftest import write_tree

    tree = write_tree(tmp_path / "tree", categories=("bolt",))
    before = jobs_of(tree)[0].id
    image = tree / "bolt" / "train" / "good" / "000.png"
    (tree / "bolt" / "train" / "good" / "001.png").write_bytes(image.read_bytes())
    assert jobs_of(tree)[0].id != before


def test_what_a_job_does_otherwise_than_the_papers_follows_from_the_job(tiny_tree: Path) -> None:
    stfpm, floor = jobs_of(tiny_tree)[:2]
    real = replace(stfpm, weights=TeacherWeights(teacher="efficientnet_lite0", source="file.pth", sha256="abc"))

    def words(job: Job) -> list[str]:
        return [one.partition(":")[0] for one in job.deviations if one not in job.settings.deviations]

    assert real.settings.image_size == real.resolution
    assert words(real) == []
    assert words(stfpm) == ["weights"]  # random, in these tests
    assert words(replace(real, hold_out=0.2)) == ["hold_out"]
    assert words(replace(real, resolution=256)) == ["resizing"]
    assert words(replace(real, resolution=256, settings=replace(real.settings, image_size=256))) == []
    assert "file to 256 px to 128 px" in " ".join(replace(real, resolution=256).deviations)
    assert words(replace(floor, resolution=256, hold_out=0.2)) == []


BLURRED = ("padim", "spade", "patchcore", "rd4ad", "rdpp", "dinomaly", "dskd", "bmkd")


def job_of(tree: Path, name: str, preset: str, resolution: int | None, **changes: object) -> Job:
    """A plain job whose settings are the preset's with `changes`."""
    return jobs_of(tree, methods=((name, ""),), preset=preset, resolution=resolution, overrides=changes or None)[0]


def blur_of(job: Job) -> list[str]:
    return [line for line in job.deviations if line.startswith("blur: ")]


def test_methods_whose_maps_are_blurred_at_the_resolution_say_at_which_their_source_does() -> None:
    assert {name for name in METHODS if entry(name).presets["paper"].BLUR} == set(BLURRED)


@pytest.mark.parametrize("name", BLURRED)
def test_a_blur_of_another_width_than_its_sources_is_said_where_the_resolution_is_another(
    tiny_tree: Path, name: str
) -> None:
    (halved,) = blur_of(job_of(tiny_tree, name, "paper", 128))
    assert halved.startswith("blur: sigma 4 at 128 px (")
    for preset in ("paper", "standard", "quick"):
        own = blur_of(job_of(tiny_tree, name, preset, None))
        assert own == [halved] * ((name, preset) == ("dinomaly", "quick"))  # which alone keeps sigma 4 at 128 px
        assert blur_of(job_of(tiny_tree, name, preset, 256)) == []
        assert blur_of(job_of(tiny_tree, name, preset, 512, sigma=8.0)) == []  # as wide as 4 of 256
        (said,) = blur_of(job_of(tiny_tree, name, preset, 512, sigma=4.0))
        assert said.startswith("blur: sigma 4 at 512 px (")
        assert said.endswith(": 4 at 256 px)")
    assert blur_of(job_of(tiny_tree, name, "quick", 128, sigma=2.0)) == []
    assert blur_of(job_of(tiny_tree, name, "quick", None, sigma=4.0)) == [halved]


@pytest.mark.parametrize("name", ["padim", "spade", "patchcore", "dinomaly"])
@pytest.mark.parametrize(
    ("view", "given"),
    [
        (View(), "whole images"),
        (View(tile=64), "tiles"),
        (View(tile=64, fit="short-side"), "tiles"),
        (View(fit="short-side"), "squares of images"),
        (View(fit="pad"), "padded images"),
    ],
)
def test_a_job_says_what_its_method_is_handed(tiny_tree: Path, name: str, view: View, given: str) -> None:
    (job,) = jobs_of(tiny_tree, methods=((name, ""),), seeds=(0,), view=view)[:1]
    assert any(line.startswith(f"input: {given} at 128 px (") for line in job.deviations)
    assert view.plain or not any("whole images" in line.partition(" (")[0] for line in job.deviations)


@pytest.mark.parametrize("name", [name for name in METHODS if hasattr(entry(name).presets["paper"], "held_out")])
def test_no_row_says_that_a_method_learns_from_images_that_its_job_keeps_from_it(tiny_tree: Path, name: str) -> None:
    job = jobs_of(tiny_tree, methods=((name, ""),))[0]
    for kept in (replace(job, hold_out=0.2), replace(job, axes=Axes(train_images=1))):
        for line in (*kept.settings.readings, *kept.deviations):
            assert not re.search(r"all normals(?! it is given)", line)


def test_a_share_that_is_kept_is_read_from_a_label_however_small() -> None:
    labels = {
        "quick": 0.0,
        "quick[hold_out=0.2]": 0.2,
        "quick[hold_out=1e-05,steps=2]": 1e-5,
        "quick[held_out=0.3]": 0.0,
    }
    assert {label: hold_out_of(label) for label in labels} == labels
