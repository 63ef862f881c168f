"""Jobs: their identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdad_bench.harness.job import Job, TeacherWeights
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
    assert "file to 256 px to 128 px" in " ".join(replace(real, resolution=256).deviations)
    assert words(replace(floor, resolution=256, hold_out=0.2)) == []
