"""Which preset a run without one has, what standard presets have in common, and the teacher they fall back to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdad_bench import datasets
from kdad_bench.datasets import Category
from kdad_bench.harness.agenda import agenda
from kdad_bench.harness.choices import PRESETS, SelectionError
from kdad_bench.harness.options import RunOptions
from kdad_bench.harness.plan import plan
from kdad_bench.harness.selection import usual_preset
from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones import weights
from tests.harness.planned import WEIGHTS, selection

TRAINED = [name for name in METHODS if entry(name).family == "student-teacher"]


def places(tree: Path) -> dict[str, tuple[Category, ...]]:
    drawn = tuple(replace(one, synthetic=True) for one in datasets.categories(f"folder:{tree}", None))
    real = tuple(replace(one, synthetic=False) for one in drawn)
    return {"drawn": drawn, "real": real, "both": (*drawn, *real)}


@pytest.mark.parametrize(
    ("device", "data", "expected"),
    [
        ("cpu", "drawn", "quick"),
        ("cpu", "real", "standard"),
        ("cpu", "both", "standard"),
        ("cuda:0", "drawn", "paper"),
        ("cuda:1", "real", "paper"),
    ],
)
def test_the_usual_preset_follows_from_device_and_data(tiny_tree: Path, device: str, data: str, expected: str) -> None:
    every = tuple((name, "") for name in METHODS)
    assert usual_preset(device, every, places(tiny_tree)[data]) == expected


def without_standard(monkeypatch: pytest.MonkeyPatch) -> None:
    """STFPM as a method from outside may be: with the two presets that are asked of one."""
    own = entry("stfpm")
    lacking = replace(own, presets={name: own.presets[name] for name in ("quick", "paper")})
    monkeypatch.setattr("kdad_bench.methods.entry", lambda name: lacking if name == "stfpm" else entry(name))


def test_a_method_without_a_standard_preset_makes_quick_the_usual_one(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_standard(monkeypatch)
    real = places(tiny_tree)["real"]
    assert usual_preset("cpu", (("stfpm", ""), ("rd4ad", "")), real) == "quick"
    assert usual_preset("cpu", (("rd4ad", ""),), real) == "standard"


def test_a_preset_that_a_method_has_not_is_named_with_those_it_has(
    tiny_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_standard(monkeypatch)
    with pytest.raises(SelectionError, match="method 'stfpm' has no preset 'standard'; have: quick, paper"):
        plan(selection(tiny_tree, preset="standard"), WEIGHTS)


@pytest.mark.parametrize("name", METHODS)
def test_a_standard_preset_is_the_papers_method_on_one_teacher_without_its_last_stage(name: str) -> None:
    paper, standard = entry(name).presets["paper"], entry(name).presets["standard"]
    if name == "dinomaly":  # a method of ViTs: the smallest one, on fewer tokens than a CPU can afford otherwise
        assert (standard.teacher, standard.strides, standard.image_size) == ("dinov2_vits14_reg", (14,), 224)
        return
    assert standard.teacher == ("resnet18" if entry(name).needs_teacher else "none")
    assert max(standard.strides) == 16  # weights without the last stage and the classifier are enough
    side = {"ast": 256}.get(name, paper.image_size)  # AST's 768 px are three times what a run hands over
    assert (standard.image_size, standard.precision, standard.seed) == (side, "fp32", 0)
    assert PRESETS["standard"].resolution == PRESETS["paper"].resolution


@pytest.mark.parametrize("name", TRAINED)
def test_a_standard_preset_has_a_budget_in_steps_whatever_the_number_of_images(name: str) -> None:
    standard = entry(name).presets["standard"]
    assert standard.steps is not None
    said = [words.partition(":")[0] for words in (*standard.readings, *standard.deviations)]
    assert entry(name).reading or {"budget", "iterations"} & set(said)  # a reading of an abstract has no budget to miss


def test_dinomalys_standard_preset_goes_to_the_embedded_teacher_where_no_vit_can_be_had() -> None:
    standard = entry("dinomaly").presets["standard"]
    embedded = replace(standard, teacher="efficientnet_lite0")  # as `with_teachers_at_hand` does
    assert embedded.strides == (4, 8, 16)
    assert any(line.startswith("tokens: feature maps of EfficientNet-Lite0") for line in embedded.deviations)


def options(tree: Path, out: Path, **changes: object) -> RunOptions:
    asked = {"methods": (("stfpm", ""), ("pixel_mean", "")), "datasets": (f"folder:{tree}",), "preset": "standard"}
    return RunOptions(**{"out": str(out), **asked, **changes})


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No checkpoint of torchvision on this machine, and none to be had."""

    def refused(name: str) -> Path:
        raise weights.WeightsError(f"teacher {name}: no weights here, and the server does not answer")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(weights, "download", refused)


@pytest.mark.usefixtures("offline")
def test_where_the_standard_teacher_cannot_be_had_the_embedded_one_stands_in_and_the_rows_say_so(
    tiny_tree: Path, tmp_path: Path
) -> None:
    found = agenda(options(tiny_tree, tmp_path / "out"))
    labels = {job.method: job.preset for job in found.jobs}
    assert labels == {"stfpm": "standard[teacher=efficientnet_lite0]", "pixel_mean": "standard"}
    assert all(job.weights is None or not job.weights.problem for job in found.jobs)
    assert [line for line in found.remarks if "efficientnet_lite0" in line] == [
        "stfpm: taking teacher efficientnet_lite0, as teacher resnet18: no weights here, and the server does not answer"
    ]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "asked",
    [{"teacher": "resnet18"}, {"method_settings": {"stfpm": {"teacher": "resnet18"}}}, {"preset": "paper"}],
    ids=str,
)
def test_a_teacher_that_was_asked_for_is_never_replaced(
    tiny_tree: Path, tmp_path: Path, asked: dict[str, object]
) -> None:
    jobs = [job for job in agenda(options(tiny_tree, tmp_path / "out", **asked)).jobs if job.method == "stfpm"]
    assert {job.settings.teacher for job in jobs} == {"resnet18"}
    assert all(job.weights is not None and job.weights.problem for job in jobs)


@pytest.mark.usefixtures("offline")
def test_a_dry_run_replaces_no_teacher(tiny_tree: Path, tmp_path: Path) -> None:
    found = agenda(options(tiny_tree, tmp_path / "out", dry_run=True))
    assert {job.settings.teacher for job in found.jobs if job.method == "stfpm"} == {"resnet18"}
