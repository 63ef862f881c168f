"""MKD's settings: the paper preset as a table, and words that follow from the settings they are printed with."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest

from kdad_bench.methods.mkd import MKD, MkdSettings

PAPER: dict[str, Any] = {  # field -> value; everything from the official code, commit 0c574ae, for MVTec AD
    "teacher": "vgg16",  # network.py
    "strides": (4, 8, 16, 32),  # loss_functions.py: outputs 3, 6, 9, 12
    "image_size": 128,  # config.yaml: mvtec_img_size
    "epochs": 601,  # config.yaml: mvtec
    "steps": None,
    "batch_size": 64,  # config.yaml
    "precision": "fp32",
    "seed": 0,  # ours
    "optimiser": "adam",  # train.py
    "learning_rate": 1e-3,  # config.yaml
    "momentum": 0.9,  # not in use
    "betas": (0.9, 0.999),  # torch's own
    "weight_decay": 0.0,  # train.py
    "schedule": "constant",
    "norm_momentum": None,
    "taps": "raw",
    "drop_last": False,  # dataloader.py
    "compiled": "off",
    "held_out": 0.0,
    "scored": 3,  # test_functions.py: outputs 6, 9, 12
    "cloner": "B",  # config.yaml: equal_network_size False
    "loss": "value_and_direction",  # config.yaml: direction_loss_only False
    "value_weight": 0.5,  # config.yaml: mvtec
    "normalised": False,  # dataloader.py: ToTensor alone
    "saliency": "gradient",  # a reading
    "smooth_noise": "relative",  # not in use
    "stretch": False,  # a deviation: the code stretches
}
STRETCH = "stretch: no (official code: yes)"
OVERRIDES: tuple[tuple[dict[str, Any], str], ...] = (  # change of `paper` -> the line it adds or changes
    ({"teacher": "resnet18"}, "teacher: resnet18 (official code: vgg16)"),
    ({"strides": (4, 8, 16)}, "strides: 4 8 16 (official code: 4 8 16 32)"),
    ({"image_size": 256}, "image_size: 256 (official code, MVTec AD: 128)"),
    ({"epochs": 201}, "budget: 201 epochs (official code, MVTec AD: 601 epochs)"),
    ({"steps": 200}, "budget: 200 steps (official code, MVTec AD: 601 epochs)"),
    ({"batch_size": 32}, "batch_size: 32 (official code: 64)"),
    ({"precision": "fp16"}, "precision: fp16 (official code: fp32)"),
    ({"optimiser": "sgd"}, "optimiser: sgd, momentum 0.9 (official code: adam, betas 0.9 0.999)"),
    ({"learning_rate": 0.01}, "learning_rate: 0.01 (official code: 0.001)"),
    ({"betas": (0.5, 0.999)}, "optimiser: adam, betas 0.5 0.999 (official code: adam, betas 0.9 0.999)"),
    ({"weight_decay": 0.1}, "weight_decay: 0.1 (official code: 0)"),
    ({"schedule": "one_cycle"}, "schedule: one_cycle (official code: constant)"),
    ({"norm_momentum": 0.2}, "cloner's norms: momentum 0.2 (official code: momentum 0.1)"),
    ({"taps": "standardised"}, "taps: standardised (official code: raw)"),
    ({"drop_last": True}, "drop_last: yes (official code: no)"),
    ({"held_out": 0.1}, "held_out: 0.1 (official code: 0)"),
    ({"scored": 4}, "scored: 4 (official code: 3)"),
    ({"cloner": "A"}, "cloner: A (official code: B)"),
    ({"loss": "direction_only"}, "loss: direction_only (official code: value_and_direction)"),
    ({"loss": "direction_only"}, "map: the gradient of the direction term (official code: of both terms"),
    ({"value_weight": 0.01}, "value_weight: 0.01 (official code, MVTec AD: 0.5)"),
    ({"normalised": True}, "normalised: yes (official code, MVTec AD: no)"),
    (
        {"saliency": "smooth_grad"},
        "smooth_noise: 0.05 of the image's range, the same draws for all images (official code: "
        "(0.05 / range) squared, drawn anew for each image)",
    ),
    (
        {"saliency": "smooth_grad", "smooth_noise": "official"},
        "smooth_noise: the same draws for all images (official code: drawn anew for each image)",
    ),
)
SILENT: tuple[dict[str, Any], ...] = (
    {"seed": 9},
    {"momentum": 0.1},
    {"norm_momentum": 0.1},  # torch's own
    {"compiled": "default"},
    {"smooth_noise": "official"},
)


def every_settings() -> list[MkdSettings]:
    """Each preset, with each variant, with each override."""
    changes = [{}, *(change for change, _ in OVERRIDES)]
    variants = [{}, *MKD.variants.values()]
    return [
        replace(preset, **variant, **change)
        for preset, variant, change in product(MKD.presets.values(), variants, changes)
        if not variant.keys() & change.keys()
        and change.get("scored", preset.scored) <= len(change.get("strides", preset.strides))
    ]


def test_the_paper_preset_is_the_official_configuration() -> None:
    preset = MKD.presets["paper"]
    assert {field.name: getattr(preset, field.name) for field in fields(preset)} == PAPER


def test_the_paper_preset_deviates_in_its_maps_alone_and_the_official_variant_in_nothing() -> None:
    assert MKD.presets["paper"].deviations == (STRETCH,)
    assert replace(MKD.presets["paper"], **MKD.variants["official"]).deviations == ()
    assert replace(MKD.presets["paper"], **MKD.variants["official_guided_backprop"]).deviations == ()


def test_what_no_source_settles_is_the_saliency_and_the_epoch() -> None:
    assert [words.split(": ")[0] for words in MKD.presets["paper"].readings] == ["saliency", "epoch kept"]


@pytest.mark.parametrize(("change", "line"), OVERRIDES)
def test_a_setting_that_departs_from_its_source_says_so(change: dict[str, Any], line: str) -> None:
    assert any(words.startswith(line) for words in replace(MKD.presets["paper"], **change).deviations)
    assert not any(words.startswith(line) for words in MKD.presets["paper"].deviations)


@pytest.mark.parametrize("change", SILENT)
def test_a_setting_that_is_not_in_use_or_has_no_source_says_nothing(change: dict[str, Any]) -> None:
    assert replace(MKD.presets["paper"], **change).deviations == (STRETCH,)


def test_settings_that_another_one_puts_out_of_use_say_nothing() -> None:
    sgd = [replace(MKD.presets["paper"], optimiser="sgd", betas=betas).deviations for betas in ((0.9, 0.999), (0, 0))]
    assert sgd[0] == sgd[1]
    alone = [replace(MKD.presets["paper"], loss="direction_only", value_weight=w).deviations for w in (0.5, 0.1)]
    assert alone[0] == alone[1]


def test_words_follow_from_the_settings_in_every_preset_variant_and_override() -> None:
    for settings in every_settings():
        said = dict(words.split(": ", 1) for words in settings.deviations)
        assert ("budget" in said) == ((settings.steps, settings.epochs) != (None, 601))
        assert ("value_weight" in said) == (settings.value_weight != 0.5 and settings.loss != "direction_only")
        assert ("smooth_noise" in said) == (settings.saliency == "smooth_grad")
        assert ("map" in said) == (settings.loss == "direction_only")
        for name, settled in settings.SETTLED.items():
            assert (name in said) == (getattr(settings, name) not in settled.values), name
        read = dict(words.split(": ", 1) for words in settings.readings)
        assert read["saliency"].startswith(f"{settings.saliency};")
        assert read["epoch kept"].startswith("the one with the least" if settings.held_out else "the last")
        assert ("cloner of this source" in read) == (settings.teacher != "vgg16")
        signed = settings.taps == "standardised" or settings.teacher == "efficientnet_lite0"
        assert ("signs" in read) == signed
        assert all("official code" in words for words in said.values())


@pytest.mark.parametrize(("cloner", "inside"), [("A", "VGG-16's widths"), ("B", "16 channels")])
def test_the_cloner_of_another_source_is_a_reading(cloner: str, inside: str) -> None:
    settings = replace(MKD.presets["paper"], teacher="resnet18", cloner=cloner)
    expected = f"VGG-16's layout with {inside} inside and resnet18's widths at the ends of its blocks"
    assert f"cloner of this source: {expected}" in settings.readings
