"""From a selection to jobs in a fixed order, each with its settings and its label."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdad_bench.harness.choices import SelectionError
from tests.harness.planned import jobs_of


def test_the_plan_is_every_method_category_and_seed_with_seeds_outermost(tiny_tree: Path) -> None:
    labels = [(job.seed, job.category.name, job.method) for job in jobs_of(tiny_tree)]
    assert len(labels) == 8
    assert labels == sorted(labels, key=lambda one: (one[0], one[1]))


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
