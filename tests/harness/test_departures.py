"""What a row says of the images that its job has otherwise than papers: it says it if, and only if, it is so."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdad_bench import datasets
from kdad_bench.harness import material
from kdad_bench.harness.axes import Axes
from kdad_bench.harness.choices import MULTI_CLASS
from kdad_bench.harness.job import Job, TeacherWeights
from kdad_bench.harness.run import columns_of
from tests.conftest import write_tree
from tests.datasets.test_mvtec_3d_ad import write_scans
from tests.harness.planned import jobs_of

TEACHER = TeacherWeights(teacher="efficientnet_lite0", source="file.pth", sha256="abc")
SUBJECTS = (
    "hold_out", "train_images", "contamination", "test images", "corruption", "depth", "fusion", "relief", "setting",
)  # fmt: skip


def job_of(tree: Path, method: str = "stfpm", modality: str = "rgb", **changes: Any) -> Job:
    """The first job of `method` on a tree."""
    categories = tuple(datasets.categories(f"folder:{tree}", None, modality=modality))
    return jobs_of(tree, methods=((method, ""),), categories=categories, seeds=(0,), **changes)[0]


def said(job: Job) -> dict[str, str]:
    """subject -> words of the deviations that are about images."""
    found = dict(line.split(": ", 1) for line in columns_of(job)["deviations"])
    return {subject: words for subject, words in found.items() if subject in SUBJECTS}


def with_validation(job: Job) -> Job:
    return replace(job, category=replace(job.category, validation=job.category.test[:1]))


def without_validation(job: Job) -> Job:
    return replace(job, category=replace(job.category, validation=()))


def given(job: Job) -> tuple[int, int]:
    """(images that it learns from, images that it is judged on)."""
    return material.count_of(job), len(material.judged_category(job.axes, job.category, job.seed).test)


def test_no_row_says_that_normals_are_kept_where_a_validation_split_is_shipped(tiny_tree: Path) -> None:
    job = job_of(tiny_tree, hold_out=0.34)
    assert given(job) == (4, 6)
    assert said(job) == {"hold_out": "0.34 of the normals are kept from the method (papers: it is given all)"}
    shipped = with_validation(job)
    assert given(shipped) == given(job_of(tiny_tree)) == (6, 6)
    assert said(shipped) == {}


def test_a_model_of_several_categories_is_kept_from_normals_of_those_that_ship_no_validation_split(
    tiny_tree: Path,
) -> None:
    job = job_of(tiny_tree, hold_out=0.34, setting=MULTI_CLASS)
    shipped = [with_validation(replace(job, category=one.category)).category for one in job.together]
    first, second = (one._replace(category=category) for one, category in zip(job.together, shipped, strict=True))
    one = replace(job, category=first.category, together=(first, job.together[1]))
    assert "hold_out" in said(one)
    assert "hold_out" not in said(replace(one, together=(first, second)))


@pytest.mark.parametrize(
    ("axes", "counts", "words"),
    [
        (Axes(), (6, 6), {}),
        (Axes(train_images=6), (6, 6), {}),
        (Axes(train_images=4), (4, 6), {"train_images": "4, drawn by lot (papers: all)"}),
        (
            Axes(contamination=0.0),
            (2, 5),
            {
                "train_images": "no more than can be filled to 0.4 with defective ones, drawn by lot (papers: all)",
                "test images": "without half of the defective ones of each kind, rounded down (papers: all)",
            },
        ),
        (
            Axes(contamination=0.2, train_images=5),
            (5, 5),
            {
                "train_images": "5, drawn by lot (papers: all)",
                "contamination": "0.2 of the training images are defective (papers: none)",
                "test images": "without half of the defective ones of each kind, rounded down (papers: all)",
            },
        ),
        (
            Axes(contamination=0.167, train_images=6),
            (6, 5),
            {
                "contamination": "0.167 of the training images are defective (papers: none)",
                "test images": "without half of the defective ones of each kind, rounded down (papers: all)",
            },
        ),
        (
            Axes(contamination=0.2, train_images=6),
            (6, 5),
            {
                "contamination": "1 of 6 training images (0.2 was asked for) is defective (papers: none)",
                "test images": "without half of the defective ones of each kind, rounded down (papers: all)",
            },
        ),
        (Axes(corruption="blur:1"), (6, 6), {"corruption": "test images with blur:1 (papers: as they are)"}),
    ],
    ids=str,
)
def test_an_axis_says_what_it_takes_away_and_nothing_where_it_takes_nothing(
    tiny_tree: Path, axes: Axes, counts: tuple[int, int], words: dict[str, str]
) -> None:
    job = job_of(tiny_tree, axes=(axes,))
    assert given(job) == counts
    assert said(job) == words


@pytest.mark.parametrize("method", ["stfpm", "dinomaly"])
def test_a_model_of_several_categories_says_what_balancing_them_leaves_out(method: str, tmp_path: Path) -> None:
    write_tree(tmp_path, ("bolt", "cloth"), train=6)
    job = job_of(tmp_path, method, setting=MULTI_CLASS)
    assert "train_images" not in said(job)
    shutil.rmtree(tmp_path / "cloth")
    write_tree(tmp_path, ("cloth",), train=9)
    job = job_of(tmp_path, method, setting=MULTI_CLASS)
    assert material.count_of(job) == 12
    assert said(job)["train_images"] == "6 of each category, as many as the smallest gives, drawn by lot (papers: all)"
    few = job_of(tmp_path, method, setting=MULTI_CLASS, axes=(Axes(train_images=4),))
    assert said(few)["train_images"] == "4 of each category, drawn by lot (papers: all)"


@pytest.mark.parametrize(
    ("trains", "defective", "share", "count", "words"),
    [
        ((4, 9), 20, 0.25, "4 of each category, as many as the smallest gives", "0.25 of the training images are"),
        ((5, 9), 4, 0.0, "5 of each category, as many as the smallest gives", None),
        (
            (9, 9),
            4,
            0.36,
            "5 of each category, no more than can be filled to 0.4 with defective ones in each",
            "2 of 5 training images of each category (0.36 was asked for) are",
        ),
        ((6, 6), 20, 0.167, None, "0.167 of the training images are"),
    ],
)
def test_a_contaminated_model_of_several_categories_says_what_bounds_its_images(
    trains: tuple[int, int], defective: int, share: float, count: str | None, words: str | None, tmp_path: Path
) -> None:
    for name, train in zip(("bolt", "cloth"), trains, strict=True):
        write_tree(tmp_path, (name,), train=train, test=defective)
    for job in jobs_of(tmp_path, methods=(("stfpm", ""),), setting=MULTI_CLASS, axes=(Axes(contamination=share),)):
        found = said(job)
        assert found.get("train_images") == (count and f"{count}, drawn by lot (papers: all)")
        assert found.get("contamination") == (words and f"{words} defective (papers: none)")


@pytest.mark.parametrize(("method", "theirs"), [("dinomaly", "10000 steps"), ("rd4ad", "200 epochs")])
def test_a_budget_is_compared_with_that_of_the_papers_model_of_as_many_categories(
    tiny_tree: Path, method: str, theirs: str
) -> None:
    job = job_of(tiny_tree, method, setting=MULTI_CLASS, overrides={"steps": 70})
    columns = columns_of(job)
    assert f"budget: 70 steps (official code: {theirs})" in columns["deviations"]
    assert any(line.startswith("warm-up: ") for line in columns["deviations"]) is (method == "dinomaly")
    assert not any(line.startswith("warm-up: ") for line in columns["readings"])
    assert ("setting" in said(job)) is (method != "dinomaly")
    alone = columns_of(job_of(tiny_tree, method, overrides={"steps": 70}))
    assert any(line.startswith("warm-up: ") for line in alone["readings"]) is (method == "dinomaly")
    assert "10000" not in " ".join(alone["deviations"])


PICTURES = "a picture of the relief, its height and two components of its normals (papers: photographs)"


def test_a_method_of_photographs_says_what_it_is_given_in_their_place(tmp_path: Path) -> None:
    tree = write_scans(tmp_path / "bagel")
    jobs = {
        (method, modality): with_validation(job_of(tree, method, modality, resolution=64))
        for method in ("stfpm", "ast", "pixel_mean")
        for modality in ("rgb", "depth", "rgb+depth")
    }
    found = {key: said(job) for key, job in jobs.items()}
    assert found["stfpm", "depth"] == {"depth": PICTURES}
    both = found["stfpm", "rgb+depth"]
    assert both.keys() == {"depth", "fusion"}
    assert both["fusion"].startswith("a model for each of rgb and depth, ")
    assert not any(words for key, words in found.items() if key[1] == "rgb" or key[0] != "stfpm")


@pytest.mark.parametrize("method", ["stfpm", "ast"])
def test_what_two_modalities_keep_from_a_method_is_said_where_nothing_asked_for_it(method: str, tmp_path: Path) -> None:
    job = without_validation(job_of(write_scans(tmp_path / "bagel"), method, "rgb+depth", resolution=64))
    left = material.count_of(job)
    assert left < len(job.category.train)
    assert said(job)["hold_out"] == "0.2 of the normals are kept from the method (papers: it is given all)"
    assert "hold_out" not in said(with_validation(job))


@pytest.mark.parametrize("method", ["stfpm", "ast"])
@pytest.mark.parametrize("changes", [{"hold_out": 0.5}, {"axes": Axes(train_images=1)}], ids=str)
def test_scans_that_are_not_learnt_from_and_scale_the_heights_are_said(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    job = without_validation(job_of(write_scans(tmp_path / "bagel"), method, "depth", resolution=64))
    assert "relief" not in said(job)
    assert said(replace(job, **changes))["relief"].startswith("its scale is that of all training scans")
    photographs = job_of(tmp_path / "bagel", method, resolution=64)
    assert "relief" not in said(replace(without_validation(photographs), **changes))


def test_a_method_without_a_teacher_that_is_no_floor_says_what_it_does_otherwise(tiny_tree: Path) -> None:
    """One of a file may need none: it follows a paper all the same."""
    changes: dict[str, Any] = {"hold_out": 0.34, "axes": (Axes(train_images=2, corruption="blur:3"),)}
    job = replace(job_of(tiny_tree, **changes), weights=None)
    assert said(job).keys() == {"hold_out", "train_images", "corruption"}
    assert "weights" not in dict(line.split(": ", 1) for line in job.deviations)
    assert said(job_of(tiny_tree, "pixel_mean", **changes)) == {}
    assert "weights" not in dict(line.split(": ", 1) for line in replace(job, weights=TEACHER).deviations)
