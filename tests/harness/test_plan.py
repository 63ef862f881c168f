"""From a selection to jobs in a fixed order, each with its settings and its label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdad_bench import datasets
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.lone_batch import learnt_from
from kdad_bench.harness.output import Work
from kdad_bench.harness.perform import perform
from kdad_bench.harness.plan import configured, names_of
from kdad_bench.methods import METHODS, entry
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


@pytest.mark.parametrize(
    ("method", "name", "values", "label"),
    [
        ("pixel_mean", "sigma", (4, 4.0), "quick"),
        ("pixel_mean", "sigma", (5, 5.0), "quick[sigma=5.0]"),
        ("stfpm", "weight_decay", (0, 0.0, -0.0), "quick[weight_decay=0.0]"),
        ("stfpm", "norm_momentum", (1, 1.0), "quick[norm_momentum=1.0]"),  # the default of some is None
        ("rd4ad", "betas", ([0, 0.5], (0.0, 0.5), (-0.0, 0.5)), "quick[betas=(0.0, 0.5)]"),
        ("stfpm", "strides", ([8, 16], (8, 16)), "quick[strides=(8, 16)]"),
    ],
)
def test_a_number_in_two_spellings_is_one_job_under_one_label(
    tiny_tree: Path, method: str, name: str, values: tuple[object, ...], label: str
) -> None:
    found = [jobs_of(tiny_tree, methods=((method, ""),), overrides={name: value})[0] for value in values]
    assert {job.id for job in found} == {found[0].id}
    assert {job.preset for job in found} == {label}
    assert {repr(getattr(job.settings, name)) for job in found} == {repr(getattr(found[0].settings, name))}


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_whose_own_values_are_said_is_the_same_to_the_last_letter(method: str) -> None:
    for settings in entry(method).presets.values():
        own = {name: getattr(settings, name) for name in names_of(settings)}
        assert repr(configured(settings, own, method)) == repr(settings)


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
        ({"stfpm": {"batch_size": 3_000_000_000}}, "batch_size=3000000000 is beyond what a row can say"),
        ({"stfpm": {"steps": -(10**12)}}, "steps=-1000000000000 is beyond what a row can say"),
        ({"stfpm": {"betas": [10**400, 0.5]}}, "'stfpm': int too large to convert to float"),
        ({"stfpm": {"compiled": "fast"}}, "compiled 'fast' is not known; have: off, default, reduce-overhead"),
        ({"stfpm": {"precision": "fp8"}}, "precision 'fp8' is not known; have: fp32, bf16, fp16"),
        ({"stfpm": {"drop_last": None}}, "'stfpm': setting 'drop_last' is None: Input should be a valid boolean"),
        ({"stfpm": {"seed": 3}}, "'seed' cannot be set: choose seeds with --seeds"),
    ],
)
def test_a_wrong_setting_is_named_with_the_remedy(tiny_tree: Path, overrides: dict[str, object], words: str) -> None:
    with pytest.raises(SelectionError, match=words):
        jobs_of(tiny_tree, method_overrides=overrides)


def test_an_unknown_variant_lists_those_there_are(tiny_tree: Path) -> None:
    with pytest.raises(SelectionError, match=r"no variant 'papr_scale' .did you mean 'paper_scale'"):
        jobs_of(tiny_tree, methods=(("stfpm", "papr_scale"),))


def test_a_folder_under_several_spellings_is_one_set_of_jobs(tiny_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_tree.parent))
    monkeypatch.chdir(tiny_tree.parent)
    once = jobs_of(tiny_tree)
    spellings = [
        tiny_tree,
        f"./{tiny_tree.name}",
        f"{tiny_tree}/",
        f"{tiny_tree}/../{tiny_tree.name}",
        f"~/{tiny_tree.name}",
    ]
    found = tuple(one for name in spellings for one in datasets.categories(f"folder:{name}", None))
    assert len(found) == 2 * len(spellings)
    assert [job.id for job in jobs_of(tiny_tree, categories=found)] == [job.id for job in once]


LONE = {"image_size": 32, "batch_size": 5}  # six images: five and one


@pytest.mark.parametrize(
    ("method", "changes", "refused"),
    [
        ("rd4ad", LONE, True),
        ("dskd", LONE, True),
        ("bmkd", LONE, True),
        ("rd4ad", LONE | {"batch_size": 1}, True),
        ("rd4ad", LONE | {"batch_size": 3}, False),
        ("rd4ad", LONE | {"batch_size": 100}, False),
        ("rd4ad", LONE | {"drop_last": True}, False),
        ("rd4ad", LONE | {"steps": 1}, False),
        ("rd4ad", LONE | {"image_size": 64}, False),
        ("rd4ad", LONE | {"held_out": 0.2}, False),  # five images
        ("rd4ad", LONE | {"held_out": 0.2, "batch_size": 4}, True),
        ("stfpm", LONE, False),
    ],
    ids=str,
)
def test_a_last_batch_of_one_value_for_batch_norm_is_refused(
    tiny_tree: Path, method: str, changes: dict[str, object], refused: bool
) -> None:
    chosen: dict[str, object] = {"methods": ((method, ""),), "overrides": changes, "resolution": 32}
    if refused:
        with pytest.raises(SelectionError, match=f"{method} on folder.*images in batches of .* batch norm gets one"):
            jobs_of(tiny_tree, **chosen)
    else:
        assert len(jobs_of(tiny_tree, **chosen)) == 4


@pytest.mark.parametrize(
    ("method", "changes", "images"),
    [
        ("stfpm", {}, 6),
        ("stfpm", {"held_out": 0.5}, 3),
        ("stad", {}, 5),  # a tenth, which is one at the least
        ("stad", {"validation": 0.5}, 3),
        ("efficientad", {"validation": 0.5}, 3),
        ("efficientad", {"validation": 0.5, "held_out": 0.3}, 2),
        ("padim", {}, 6),
    ],
    ids=str,
)
def test_a_lone_batch_is_looked_for_among_the_images_that_the_method_learns_from(
    tiny_tree: Path, method: str, changes: dict[str, object], images: int
) -> None:
    chosen = {"methods": ((method, ""),), "overrides": changes}
    assert {learnt_from(job) for job in jobs_of(tiny_tree, **chosen)} == {images}


def test_what_the_plan_refuses_is_what_a_training_cannot_do(tiny_tree: Path, tmp_path: Path) -> None:
    (job, *_) = jobs_of(
        tiny_tree, methods=(("rd4ad", ""),), overrides={**LONE, "batch_size": 6, "steps": 2}, resolution=32
    )
    for size, ends_well in ((6, True), (5, False)):
        row = perform(
            replace(job, settings=replace(job.settings, batch_size=size)), Work(out=str(tmp_path / str(size)))
        )
        assert row is not None
        assert (row.status == "ok") is ends_well
        assert ends_well or "more than 1 value per channel" in str(row.reason)


def test_a_job_names_the_other_presets_whose_job_it_is(tiny_tree: Path) -> None:
    """PaDiM's standard recipe is its paper's: one job under two names. STFPM's is not, and quick is neither's."""
    found = {
        (preset, job.method): job
        for preset in ("quick", "standard", "paper")
        for job in jobs_of(tiny_tree, preset=preset, methods=(("padim", ""), ("stfpm", "")))
    }
    assert found["standard", "padim"].also_presets == ("paper",)
    assert found["paper", "padim"].also_presets == ("standard",)
    assert found["standard", "padim"].id == found["paper", "padim"].id
    assert found["standard", "stfpm"].id != found["paper", "stfpm"].id
    for job in (found["quick", "padim"], found["standard", "stfpm"], found["paper", "stfpm"]):
        assert job.also_presets == ()
    sizes = {"preset": "standard", "overrides": {"image_size": 64}, "methods": (("padim", ""),)}
    assert jobs_of(tiny_tree, **sizes)[0].also_presets == ("paper[image_size=64]",)


def test_steps_of_one_method_take_the_place_of_epochs_for_all(tiny_tree: Path) -> None:
    """The epochs would rule nothing, and yet stand in the label and in the identity."""
    own = {"method_overrides": {"stfpm": {"steps": 7}}, "methods": (("stfpm", ""),)}
    alone = jobs_of(tiny_tree, **own)
    beside = jobs_of(tiny_tree, overrides={"epochs": 3, "steps": None}, **own)
    assert [job.id for job in beside] == [job.id for job in alone]
    assert {job.preset for job in beside} == {"quick[steps=7]"}


def test_a_wrong_setting_of_a_method_that_is_not_chosen_is_refused_too(tiny_tree: Path) -> None:
    """The tables of a config file that is for several runs."""
    with pytest.raises(SelectionError, match=r"method 'rd4ad': 'stesp' is not a setting .did you mean 'steps'"):
        jobs_of(tiny_tree, methods=(("pixel_mean", ""),), method_overrides={"rd4ad": {"stesp": 3}})
    assert jobs_of(tiny_tree, methods=(("pixel_mean", ""),), method_overrides={"rd4ad": {"steps": 3}})


def others(settings: Any, name: str) -> list[Any]:
    """Values of a setting that are not its own, whether they can be or not."""
    value = getattr(settings, name)
    if name == "teacher":
        return [one for one in ("resnet18", "wide_resnet50_2", "dinov2_vits14") if one != value]
    if name == "strides":
        return [(8, 16), (4, 8), (8,), tuple(range(1, 13))]
    if name in type(settings).CHOICES:
        return [one for one in type(settings).CHOICES[name] if one != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, (int, float)):
        return [value * 2, value / 2, value + 1, 0, 1]
    if isinstance(value, tuple):
        return [(*value, *value), value[:1], tuple(one * 2 for one in value if not isinstance(one, str))]
    return [3, 0.5, "other"]


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_is_kept_as_it_was_asked_for_or_refused(method: str) -> None:
    tried = 0
    for settings in entry(method).presets.values():
        for name in names_of(settings):
            for value in others(settings, name):
                try:
                    final = configured(settings, {name: value}, method)
                except SelectionError:
                    continue
                tried += 1
                assert getattr(final, name) == value
    assert tried > 10


def test_strides_that_a_teacher_has_not_are_refused_and_not_replaced(tiny_tree: Path) -> None:
    vit = {"teacher": "dinov2_vits14_reg", "image_size": 56, "strides": (8, 16)}
    words = "strides 8 16 of teacher dinov2_vits14_reg cannot be: it would be taken as .*; leave it out"
    with pytest.raises(SelectionError, match=words):
        jobs_of(tiny_tree, methods=(("dinomaly", ""),), method_overrides={"dinomaly": vit})
    del vit["strides"]
    (job, *_) = jobs_of(tiny_tree, methods=(("dinomaly", ""),), method_overrides={"dinomaly": vit})
    assert job.settings.strides != (8, 16)


def test_a_teacher_of_a_method_that_has_none_is_refused(tiny_tree: Path) -> None:
    with pytest.raises(SelectionError, match="'pixel_mean': it has no teacher; leave teacher='vgg16' out"):
        jobs_of(tiny_tree, method_overrides={"pixel_mean": {"teacher": "vgg16"}})
