"""Jobs: identity, plan, selection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdad_bench import datasets
from kdad_bench.harness.job import Job, Selection, SelectionError, TeacherWeights, plan, seeds_from

WEIGHTS = {
    name: TeacherWeights(teacher=name, source="random", sha256="random")
    for name in ("efficientnet_lite0", "resnet18", "wide_resnet50_2", "vgg16")
}


def selection(tree: Path, **changes: object) -> Selection:
    """Two methods, two categories, two seeds."""
    base = Selection(
        methods=(("stfpm", ""), ("pixel_mean", "")),
        categories=tuple(datasets.categories(f"folder:{tree}", None)),
        seeds=(0, 1),
        preset="quick",
        device="cpu",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def jobs_of(tree: Path, **changes: object) -> list[Job]:
    return plan(selection(tree, **changes), WEIGHTS)


def test_the_plan_is_every_method_category_and_seed_with_seeds_outermost(tiny_tree: Path) -> None:
    labels = [(job.seed, job.category.name, job.method) for job in jobs_of(tiny_tree)]
    assert len(labels) == 8
    assert labels == sorted(labels, key=lambda one: (one[0], one[1]))


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


def test_an_override_is_named_in_the_preset_and_one_equal_to_the_default_is_the_same_job(tiny_tree: Path) -> None:
    job = jobs_of(tiny_tree)[0]
    assert job.preset == "quick"
    assert jobs_of(tiny_tree, overrides={"steps": 7})[0].preset == "quick[steps=7]"
    assert jobs_of(tiny_tree, overrides={"steps": job.settings.steps})[0].id == job.id


def test_a_label_holds_the_overrides_that_the_method_takes(tiny_tree: Path) -> None:
    jobs = jobs_of(
        tiny_tree, overrides={"steps": 7, "learning_rate": 0.1}, method_overrides={"stfpm": {"momentum": 0.5}}
    )
    labels = {job.method: job.preset for job in jobs}
    assert labels["pixel_mean"] == "quick[steps=7]"
    assert labels["stfpm"] == "quick[learning_rate=0.1,momentum=0.5,steps=7]"


def test_a_shared_override_reaches_only_methods_that_have_the_field(tiny_tree: Path) -> None:
    stfpm, floor = jobs_of(tiny_tree, overrides={"learning_rate": 0.01})[:2]
    assert stfpm.settings.learning_rate == 0.01
    assert not hasattr(floor.settings, "learning_rate")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"stfpm": {"lerning_rate": 0.1}}, "did you mean 'learning_rate'"),
        ({"stfpm": {"learning_rate": "fast"}}, "learning_rate='fast' does not fit"),
        ({"stfpm": {"compiled": "fast"}}, "compiled 'fast' is not known; have: off, default, reduce-overhead"),
        ({"stfpm": {"precision": "fp8"}}, "precision 'fp8' is not known; have: fp32, bf16, fp16"),
        ({"stfpm": {"seed": 3}}, "'seed' cannot be set: choose seeds with --seeds"),
    ],
)
def test_a_wrong_setting_is_named_with_the_remedy(tiny_tree: Path, overrides: dict[str, object], words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        jobs_of(tiny_tree, method_overrides=overrides)


def test_an_unknown_variant_lists_those_there_are(tiny_tree: Path) -> None:
    with pytest.raises(SelectionError, match=r"no variant 'papr_scale' .did you mean 'paper_scale'"):
        jobs_of(tiny_tree, methods=(("stfpm", "papr_scale"),))


@pytest.mark.parametrize(("text", "seeds"), [("1", (0,)), ("3", (0, 1, 2)), ("3,7", (3, 7)), ("5,", (5,))])
def test_seeds_are_a_count_or_a_list(text: str, seeds: tuple[int, ...]) -> None:
    assert seeds_from(text) == seeds


@pytest.mark.parametrize("text", ["", "x", "0", "1,1", "-1", "1.5", "1,b"])
def test_seeds_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(SelectionError, match="seeds"):
        seeds_from(text)
