"""FractalAD's settings: the paper preset as a table, and words that follow from the settings they are printed with."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest

from kdad_bench.methods.backbones import FACTS
from kdad_bench.methods.fractalad import FRACTALAD, FractalADSettings

PAPER: dict[str, Any] = {  # field -> value; everything from the official code, commit e3c45b0
    "teacher": "resnet18",  # run.py: the default of --backbone
    "strides": (4, 8, 16, 32),  # networks.py: stage1 to stage4
    "image_size": 256,  # run.py: --load_size
    "epochs": 200,  # not in use: steps replaces it
    "steps": 1200,  # run.py: 100 epochs; mvtec.py: 391 items, 12 whole batches
    "batch_size": 32,  # run.py
    "precision": "fp32",
    "seed": 0,  # ours
    "optimiser": "adamw",  # run.py
    "learning_rate": 1e-3,  # run.py
    "momentum": 0.9,  # not in use
    "betas": (0.9, 0.999),  # torch's own
    "weight_decay": 1e-3,  # run.py, with distillation
    "schedule": "constant",
    "norm_momentum": None,
    "taps": "raw",
    "drop_last": True,  # run.py
    "compiled": "off",
    "held_out": 0.0,  # run.py: the last checkpoint
    "kd": True,  # run.py: kd_cfg of most categories
    "find_object": False,  # run.py: findobj_cfg of most categories
    "head_width": None,  # networks.py: chs[3]
    "fractal_points": 100_000,  # fag.py
}
ALWAYS = (  # deviations of the method itself, whatever its settings
    "switches: distillation yes, object search no, the same for every category (official code: a table by category)",
    "pasting: at 256 x 256 px (official code: at the image file's size, then reduced by Lanczos)",
    "chaos game: 1000 orbits side by side, the first 20 steps of each not drawn (official code: one orbit, all drawn)",
    "sampling: epochs are the images once each, without the incomplete batch (official code: a list cycled to 391 "
    "items, without)",
    "reduction: antialiased bilinear (official code: by Lanczos in training)",
    "random numbers: a generator for each sample, from the seed (official code: fractals without a seed)",
)
OVERRIDES: tuple[tuple[dict[str, Any], str], ...] = (  # change of `paper` -> the line it adds or changes
    ({"teacher": "resnet34"}, "teacher: resnet34 (official code's default: resnet18)"),
    *(
        (
            {"teacher": teacher},
            "teacher's weights: torchvision's first ones unless a file is given (official code: torchvision's DEFAULT",
        )
        for teacher in ("resnet50", "wide_resnet50_2")
    ),
    ({"strides": (4, 8)}, "strides: 4 8 (official code: 4 8 16 32)"),
    ({"image_size": 128}, "image_size: 128 (official code: 256)"),
    ({"steps": 120}, "budget: 120 steps (official code: 1200 steps, 100 epochs of 12)"),
    ({"steps": None, "epochs": 7}, "budget: 7 epochs (official code: 1200 steps, 100 epochs of 12)"),
    ({"batch_size": 8}, "batch_size: 8 (official code: 32)"),
    ({"precision": "bf16"}, "precision: bf16 (official code: fp32)"),
    ({"optimiser": "sgd"}, "optimiser: sgd, momentum 0.9 (official code: adamw, betas 0.9 0.999)"),
    ({"learning_rate": 0.4}, "learning_rate: 0.4 (official code: 0.001)"),
    ({"betas": (0.5, 0.999)}, "optimiser: adamw, betas 0.5 0.999 (official code: adamw, betas 0.9 0.999)"),
    ({"weight_decay": 0.01}, "weight_decay: 0.01 (official code: 0.001 with distillation)"),
    ({"schedule": "cosine"}, "schedule: cosine (official code: constant)"),
    ({"norm_momentum": 0.2}, "norms: momentum 0.2 (official code: momentum 0.1)"),
    (
        {"teacher": "efficientnet_lite0"},
        "norms: momentum 0.01 in the student, momentum 0.1 in the head (official code: momentum 0.1)",
    ),
    ({"taps": "standardised"}, "taps: standardised (official code: raw)"),
    ({"drop_last": False}, "sampling: epochs are the images once each, with the incomplete batch"),
    (
        {"held_out": 0.1},
        "selection: epoch of the least mean map on held-out normals, a share of 0.1 (official code: last step, all",
    ),
    ({"kd": False}, "weight_decay: 0.001 (official code: 0.01 without distillation)"),
    ({"kd": False}, "switches: distillation no, object search no"),
    ({"find_object": True}, "switches: distillation yes, object search yes"),
    ({"head_width": 32}, "head_width: 32 channels (official code: as many as the shallowest tap has)"),
    ({"fractal_points": 500}, "fractal_points: 500 (official code: 100000)"),
    ({"fractal_points": 500}, "chaos game: 500 orbits"),
)
SILENT = (
    {"seed": 9},
    {"momentum": 0.1},
    {"norm_momentum": 0.1},  # torch's own
    {"epochs": 3},
    {"compiled": "default"},
    {"optimiser": "sgd", "betas": (0, 0)},
)


def every_settings() -> list[FractalADSettings]:
    """Each preset, with each variant, with each override."""
    changes = [{}, *(change for change, _ in OVERRIDES)]
    variants = [{}, *FRACTALAD.variants.values()]
    return [
        replace(preset, **variant, **change)
        for preset, variant, change in product(FRACTALAD.presets.values(), variants, changes)
        if not variant.keys() & change.keys()
    ]


def test_the_paper_preset_is_the_official_configuration() -> None:
    preset = FRACTALAD.presets["paper"]
    assert {field.name: getattr(preset, field.name) for field in fields(preset)} == PAPER


def test_the_variants_are_the_official_switches() -> None:
    assert FRACTALAD.variants == {
        "kd": {"kd": True, "weight_decay": 1e-3},
        "no_kd": {"kd": False, "weight_decay": 1e-2},
        "find_object": {"find_object": True},
    }


def test_the_paper_preset_deviates_in_what_no_setting_can_change_alone() -> None:
    preset = FRACTALAD.presets["paper"]
    assert sorted(preset.deviations) == sorted(ALWAYS)
    assert preset.readings == ()


def test_the_paper_preset_without_distillation_has_the_weight_decay_of_that_case() -> None:
    words = replace(FRACTALAD.presets["paper"], **FRACTALAD.variants["no_kd"]).deviations
    assert len(words) == len(ALWAYS)
    assert words[0].startswith("switches: distillation no")


@pytest.mark.parametrize(("change", "line"), OVERRIDES)
def test_a_setting_that_departs_from_its_source_says_so(change: dict[str, Any], line: str) -> None:
    assert any(words.startswith(line) for words in replace(FRACTALAD.presets["paper"], **change).deviations)
    assert not any(words.startswith(line) for words in FRACTALAD.presets["paper"].deviations)


@pytest.mark.parametrize("change", SILENT)
def test_a_setting_that_is_not_in_use_or_has_no_source_says_nothing(change: dict[str, Any]) -> None:
    expected = replace(FRACTALAD.presets["paper"], **{k: v for k, v in change.items() if k == "optimiser"}).deviations
    assert replace(FRACTALAD.presets["paper"], **change).deviations == expected


def test_words_follow_from_the_settings_in_every_preset_variant_and_override() -> None:
    for settings in every_settings():
        said = dict(words.split(": ", 1) for words in settings.deviations)
        assert ("budget" in said) == (settings.steps != 1200)
        assert ("weight_decay" in said) == (settings.weight_decay != (1e-3 if settings.kd else 1e-2))
        assert ("head_width" in said) == (settings.head_width not in (None, FACTS[settings.teacher].channels[4]))
        kd, search = ("yes" if on else "no" for on in (settings.kd, settings.find_object))
        assert said["switches"].startswith(f"distillation {kd}, object search {search}, ")
        assert ("teacher's weights" in said) == (settings.teacher in ("resnet50", "wide_resnet50_2"))
        assert said["pasting"].startswith(f"at {settings.image_size} x {settings.image_size} px")
        for name, settled in settings.SETTLED.items():
            assert (name in said) == (getattr(settings, name) not in settled.values), name
        read = dict(words.split(": ", 1) for words in settings.readings)
        assert ("objects" in read) == settings.find_object
        assert ("taps" in read) == (settings.teacher == "efficientnet_lite0")
        assert ("student" in read) == (
            settings.kd and (settings.teacher == "efficientnet_lite0" or settings.taps == "standardised")
        )
        assert read.keys() <= {"objects", "taps", "student"}
        assert all("official code" in words for words in said.values())


def test_a_teacher_that_no_source_has_is_a_reading() -> None:
    settings = replace(FRACTALAD.presets["paper"], teacher="vgg16", strides=(4, 8))
    taps = "taps: no source says where vgg16 is tapped; here at strides 4, 8"
    assert settings.readings == (taps, "student: VGG-16's architecture with batch norms")
    assert replace(settings, kd=False).readings == (taps,)
