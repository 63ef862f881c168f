"""What every method's settings may be, as a table; and how a setting that is none of it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import Any

import pytest
import torch

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones import build
from kdad_bench.methods.protocol import Range, Settings
from tests.methods.toys import normals, small_method, small_settings

EVERY = {"image_size": "[32, 8192]", "epochs": "[0, inf)", "steps": "[1, inf)", "batch_size": "[1, inf)"}
TRAINED = {
    "epochs": "[1, inf)",
    "learning_rate": "(0, inf)",
    "momentum": "[0, 1]",
    "betas": "[0, 1)",
    "weight_decay": "[0, inf)",
    "norm_momentum": "(0, 1]",
    "held_out": "[0, 0.9]",
}
BLUR = {"sigma": "(0, 1000]"}
OWN: dict[str, dict[str, str]] = {
    "pixel_mean": BLUR,
    "padim": BLUR | {"channels": "[1, inf)", "regulariser": "(0, inf)"},
    "spade": BLUR | {"maps": "[1, 4]", "images": "[1, inf)", "pixels": "[1, 1024]"},
    "patchcore": BLUR
    | {"patch": "[1, 63]", "width": "[1, 65536]", "coreset": "(0, 1]", "epsilon": "(0, 1)", "reweighted": "[0, 1024]"},
    "stfpm": TRAINED,
    "rd4ad": TRAINED | BLUR,
    "rdpp": TRAINED | BLUR | {"passes": "[1, 1024]", "projection_rate": "(0, inf)", "projection_weight": "[0, inf)"},
    "dinomaly": TRAINED
    | BLUR
    | {
        "layers": "[2, 64]",
        "dropout": "[0, 1)",
        "mined": "[0, 1)",
        "mining_steps": "[0, inf)",
        "easy": "[0, 1]",
        "radius": "[0, 1000]",
        "top": "(0, 1]",
    },
    "stad": TRAINED
    | {
        "students": "[1, 64]",
        "width": "[1, 1024]",
        "dimensions": "[2, 4096]",
        "grid": "[1, 32]",
        "crops": "[2, 4096]",
        "descriptors": "[0, 1)",
        "altered": "[0, 1]",
        "compactness": "[0, inf)",
        "solved": "[0, 1e+06]",
        "validation": "[0, 0.9]",
    },
    "destseg": TRAINED
    | {
        "denoising": "[0, 1]",
        "body_rate": "(0, inf)",
        "head_rate": "(0, inf)",
        "width": "[1, 4096]",
        "gamma": "[0, 64]",
        "largest": "[1, inf)",
    },
    "ast": TRAINED
    | {
        "flow": "[0, 1]",
        "couplings": "[1, 64]",
        "clamp": "(0, 100]",
        "flow_width": "[1, 4096]",
        "places": "[4, 1024]",
        "student_width": "[1, 8192]",
        "student_blocks": "[0, 64]",
    },
    "efficientad": TRAINED
    | {
        "image_size": "[64, 8192]",
        "width": "[1, 1024]",
        "features": "[1, 4096]",
        "autoencoder": "[2, 1024]",
        "hard": "[0, 1)",
        "distilling": "[0, 1)",
        "enlarged": "[1, 4]",
        "validation": "[0, 0.9]",
    },
    "mkd": TRAINED | {"scored": "[1, inf)", "value_weight": "[0, inf)"},
    "eca_mskdad": TRAINED | {"balance": "[0, inf)", "distortion": "[0, 1]"},
    "dskd": TRAINED | BLUR,
    "bmkd": TRAINED | BLUR,
    "fractalad": TRAINED | {"head_width": "[1, 4096]", "fractal_points": "[1, 1e+08]"},
}


@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_a_method_takes_are_these(name: str) -> None:
    ranges = dict(entry(name).presets["paper"].RANGES)
    assert 2**63 - 1 in ranges["seed"]
    assert 2**63 not in ranges["seed"]
    assert -1 not in ranges.pop("seed")
    assert {field: str(numbers) for field, numbers in ranges.items()} == EVERY | OWN[name]


@pytest.mark.parametrize(
    ("numbers", "words", "inside", "outside"),
    [
        (Range(1), "[1, inf)", [1, 1e300], [0, 0.999, -1, inf, nan, "1", None]),
        (Range(0, 1), "[0, 1]", [0, 0.5, 1], [-1e-9, 1.001, nan]),
        (Range(0, 1, open_low=True), "(0, 1]", [1e-300, 1], [0, 2]),
        (Range(0, 1, open_high=True), "[0, 1)", [0, 0.999], [1, -inf]),
        (Range(0, open_low=True), "(0, inf)", [1e-300], [0]),
    ],
)
def test_a_range_holds_its_ends_unless_they_are_open(
    numbers: Range, words: str, inside: list[float], outside: list[Any]
) -> None:
    assert str(numbers) == words
    assert all(value in numbers for value in inside)
    assert not any(value in numbers for value in outside)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("stfpm", {"image_size": 100}, "image_size 100 is not a multiple of 32; take 96 or 128"),
        ("stfpm", {"image_size": 0}, r"image_size 0 is not in \[32, 8192\]"),
        ("stfpm", {"betas": (0.5, 1.0)}, r"betas \(0.5, 1.0\) is not in \[0, 1\)"),
        ("stfpm", {"precision": "fp8"}, "precision 'fp8' is not known; have: fp32, bf16, fp16"),
        ("spade", {"pixels": 0}, r"pixels 0 is not in \[1, 1024\]"),
        ("patchcore", {"width": 0}, r"width 0 is not in \[1, 65536\]"),
        ("fractalad", {"fractal_points": 0}, r"fractal_points 0 is not in \[1, 1e\+08\]"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_settings(name, **changes)


VIT = {"teacher": "dinov2_vits14", "strides": (14,), "image_size": 70}
DESCRIPTION = {"teacher": "pdn_small", "strides": (4,)}
SHORT = {"steps": 2, "batch_size": 2}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("stfpm", {"steps": 1.5}, "steps 1.5 is not a whole number"),
        ("stfpm", {"learning_rate": None}, "learning_rate None is not a number"),
        ("stfpm", {"norm_momentum": True}, "norm_momentum True is not a number"),
        ("fractalad", {"head_width": 2.5}, "head_width 2.5 is not a whole number"),
        ("stad", {"scales": (33.0,)}, r"scales \(33.0,\) is not a whole number"),
        ("stfpm", {"strides": (4.0, 8)}, r"strides \(4.0, 8\) is not a whole number"),
        ("rd4ad", {"betas": (0.5,)}, "betas 0.5: must be 2 numbers"),
        ("rd4ad", {"betas": (0.5, 0.9, 0.9)}, "betas 0.5 0.9 0.9: must be 2 numbers"),
    ],
)
def test_what_is_no_number_of_its_kind_is_refused_by_name(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_settings(name, **changes)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pixel_mean", {"strides": ()}, "strides none: must be one or more that rise"),
        ("stfpm", {"strides": (8, 4)}, "strides 8 4: must be one or more that rise"),
        ("stfpm", {"strides": (4, 4)}, "strides 4 4: must be one or more that rise"),
        ("rd4ad", {"strides": (4, 8)}, "strides 4 8: bottleneck and decoder take three taps, each at twice"),
        ("rdpp", {"strides": (4, 8, 32)}, "strides 4 8 32: bottleneck and decoder take three taps"),
        ("dskd", {"strides": (4, 8, 16, 32)}, "strides 4 8 16 32: bottleneck and decoder take three"),
        ("bmkd", DESCRIPTION, "strides 4: bottleneck and decoder take three"),
        *(
            (
                name,
                {"strides": (8, 16, 32), "image_size": side},
                f"image_size {side}: must be a multiple of 64.*; {remedy}$",
            )
            for name in ("rd4ad", "rdpp", "dskd", "bmkd")
            for side, remedy in ((32, "take 64"), (96, "take 64 or 128"), (224, "take 192 or 256"))
        ),
        ("mkd", {"scored": 5}, "scored 5: must be 1 to 4, the number of taps"),
        ("padim", {"channels": 177}, "channels 177: teacher efficientnet_lite0 has 176 in all its taps"),
        ("efficientad", DESCRIPTION, "teacher pdn_small: it has network small, width 128, features 384; got"),
        ("destseg", DESCRIPTION, "teacher pdn_small: it has no layers down to stride 32"),
        ("eca_mskdad", DESCRIPTION, "attention blocks: PDN-S has no blocks with norms"),
        ("stfpm", VIT, "teacher dinov2_vits14: a ViT, whose last tap is a row of tokens and no map"),
        ("padim", VIT, "teacher dinov2_vits14: a ViT"),
        ("patchcore", VIT, "teacher dinov2_vits14: a ViT"),
        ("fractalad", VIT, "teacher dinov2_vits14: a ViT"),
        ("stad", VIT, "teacher dinov2_vits14: a ViT"),
        ("mkd", VIT, "teacher dinov2_vits14: a ViT"),
        ("eca_mskdad", VIT, "teacher dinov2_vits14: a ViT"),
        ("efficientad", VIT, "teacher dinov2_vits14: a ViT"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_settings(name, **changes)


@pytest.mark.parametrize("strides", [(4, 8, 16), (8, 16, 32)])
@pytest.mark.parametrize("name", [name for name in METHODS if entry(name).needs_teacher])
def test_a_method_runs_at_every_image_size_that_its_settings_take(name: str, strides: tuple[int, ...]) -> None:
    sides, ran = [128, 96, 64], 0
    while sides and ran < 2:  # 128 px where 96 are refused
        side, changes = sides.pop(), {"mkd": {"scored": 1}, "ast": {"strides": strides[-1:]}}.get(name, {})
        try:
            method = small_method(name, source="random", **{"strides": strides, "image_size": side, **SHORT, **changes})
        except ValueError as error:
            if not str(error).startswith(f"image_size {side}: must be a multiple of 64"):
                raise
            continue
        method.fit(normals(2, seed=1, side=32))
        assert method.score(normals(1, seed=2, side=32)).pixel.shape == (1, 32, 32)
        ran += 1
    assert ran == 2


@pytest.mark.parametrize("name", [name for name in METHODS if entry(name).needs_teacher])
def test_a_method_can_be_built_on_all_taps_that_its_settings_take(name: str) -> None:
    taken, beside = 0, {"mkd": {"scored": 1}, "spade": {"maps": 1}, "padim": {"channels": 4}}.get(name, {})
    strides = [(16,), (4, 8), (8, 16, 32), (4, 8, 32), (4, 8, 16, 32)]
    for changes in (VIT, DESCRIPTION, *({"strides": some} for some in strides)):
        try:
            settings = small_settings(name, **beside, **changes)
        except ValueError:
            continue
        with torch.device("meta"):
            teacher = build(settings.teacher, strides=settings.strides)
            entry(name).build(settings, teacher, torch.device("meta"))
        taken += 1
    assert taken


def test_no_number_is_none_and_a_multiple_of_32_is_taken() -> None:
    assert Settings(steps=None, image_size=32).image_size == 32
    assert small_settings("stfpm", norm_momentum=None).norm_momentum is None


@dataclass(frozen=True, kw_only=True, slots=True)
class OfSomeone(Settings):
    """With annotations that none of this package's settings has."""

    rate: int | float = 1
    pair: tuple[int, float] = (1, 0.5)
    either: str | int = "all"


def test_annotations_of_two_kinds_take_either() -> None:
    OfSomeone(rate=0.5, pair=(2, 0.25), either=3)
    with pytest.raises(ValueError, match="rate 'much' is not a number"):
        OfSomeone(rate="much")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pair .*: must be 2 numbers"):
        OfSomeone(pair=(1,))  # type: ignore[arg-type]
