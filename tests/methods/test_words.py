"""The words of a row follow from its settings: what is read into a paper, and where a run departs from its sources.

Every method, preset and variant, a table of overrides, and settings that hypothesis draws. What the sources say is
written down here a second time, from docs/methods, and not taken from the methods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.protocol import Settings, Settled, shown

YARDSTICKS = ("padim", "spade", "patchcore")
LOOPED = ("stfpm", "rd4ad", "rdpp", "dinomaly", "eca_mskdad", "dskd", "bmkd")
HERE = (
    "pixel_mean",
    *YARDSTICKS,
    *LOOPED,
    "stad",
    "destseg",
    "ast",
    "efficientad",
)  # whose deviations are listed here; those of mkd and fractalad: their tests
CODE = {"schedule": ["constant"], "drop_last": [False], "precision": ["fp32"], "taps": ["raw"]}
# method -> field -> the values that a source has
SOURCES: Mapping[str, Mapping[str, list[object]]] = {
    "pixel_mean": {},
    "stfpm": CODE
    | {
        "teacher": ["resnet18"],
        "strides": [(4, 8, 16)],
        "image_size": [256],
        "batch_size": [32],
        "learning_rate": [0.4],
        "weight_decay": [1e-4],
    },
    "rd4ad": CODE
    | {
        "teacher": ["wide_resnet50_2"],
        "strides": [(4, 8, 16)],
        "image_size": [256],
        "batch_size": [16],
        "learning_rate": [0.005],
        "weight_decay": [0.0],
        "distance": ["flattened", "cosine"],
        "sigma": [4.0],
    },
    "dinomaly": {
        "teacher": ["dinov2_vitb14_reg"],
        "strides": [(14,)],
        "taps": ["raw"],
        "batch_size": [16],
        "drop_last": [True],
        "learning_rate": [0.002],
        "weight_decay": [0.0001],
        "schedule": ["warm_cosine"],
        "precision": ["fp32"],
        "layers": [8],
        "dropout": [0.2],
        "mined": [0.9],
        "mining_steps": [1000],
        "easy": [0.1],
        "sigma": [4.0],
        "radius": [2],
        "top": [0.01],
    },
    "rdpp": {
        "teacher": ["wide_resnet50_2"],
        "strides": [(4, 8, 16)],
        "image_size": [256],
        "taps": ["raw"],
        "batch_size": [32],
        "passes": [2],
        "learning_rate": [0.005],
        "projection_rate": [0.001],
        "projection_weight": [0.2],
        "weight_decay": [0.0],
        "schedule": ["constant"],
        "precision": ["fp32"],
        "sigma": [4.0],
    },
    "eca_mskdad": {
        "teacher": ["resnet18"],
        "image_size": [128],
        "batch_size": [32],
        "learning_rate": [0.4],
        "schedule": ["constant"],
        "taps": ["raw"],
        "rel_mode": ["literal"],
        "score": ["loss"],
    },
    "stad": {
        "teacher": ["resnet18"],
        "strides": [(32,)],
        "image_size": [256],
        "taps": ["raw"],
        "batch_size": [1],
        "learning_rate": [1e-4],
        "weight_decay": [1e-5],
        "schedule": ["constant"],
        "precision": ["fp32"],
        "scales": [(17, 33, 65), (17,), (33,), (65,)],
        "students": [3],
        "width": [128],
        "dimensions": [128],
        "grid": [1],
        "compactness": [1.0],
    },
    "destseg": {
        "teacher": ["resnet18"],
        "strides": [(4, 8, 16)],
        "image_size": [256],
        "taps": ["raw"],
        "batch_size": [32],
        "learning_rate": [0.4],
        "body_rate": [0.1],
        "head_rate": [0.01],
        "weight_decay": [1e-4],
        "schedule": ["constant"],
        "drop_last": [True],
        "precision": ["fp32"],
        "denoising": [0.2],
        "width": [256],
        "gamma": [4.0],
        "largest": [100],
    },
    "ast": {
        "image_size": [768],
        "taps": ["raw"],
        "batch_size": [8],
        "learning_rate": [2e-4],
        "weight_decay": [1e-5],
        "schedule": ["constant"],
        "drop_last": [True],
        "precision": ["fp32"],
        "flow": [0.5],
        "couplings": [4],
        "clamp": [1.9],
        "flow_width": [64],
        "places": [32],
        "student_width": [1024],
        "student_blocks": [4],
    },
    "efficientad": {
        "teacher": ["pdn_small", "pdn_medium"],
        "strides": [(8, 16)],
        "image_size": [256],
        "taps": ["raw"],
        "batch_size": [1],
        "learning_rate": [1e-4],
        "weight_decay": [1e-5],
        "schedule": ["late_drop"],
        "precision": ["fp32"],
        "initial": ["pytorch"],
        "width": [128],
        "features": [384],
        "autoencoder": [64],
        "hard": [0.999],
        "enlarged": [2],
    },
    "dskd": {"teacher": ["resnet18"]},
    "bmkd": {"teacher": ["resnet18"]},
    "padim": {
        "teacher": ["resnet18", "wide_resnet50_2"],
        "strides": [(4, 8, 16)],
        "taps": ["raw"],
        "regulariser": [0.01],
        "sigma": [4.0],
    },
    "spade": {
        "teacher": ["wide_resnet50_2"],
        "strides": [(4, 8, 16, 32)],
        "taps": ["raw"],
        "maps": [3],
        "images": [50],
        "pixels": [1],
        "sigma": [4.0],
    },
    "patchcore": {
        "teacher": ["wide_resnet50_2"],
        "strides": [(8, 16)],
        "taps": ["raw"],
        "patch": [3],
        "width": [1024],
        "coreset": [0.25, 0.1, 0.01],
        "epsilon": [0.9],
        "sigma": [4.0],
    },
}
# method -> subject -> the words that depart from no source
WHOLE: Mapping[str, Mapping[str, list[str]]] = {
    "pixel_mean": {},
    "stfpm": {
        "optimiser": ["sgd, momentum 0.9"],
        "budget": ["100 epochs", "200 epochs"],
        "student's norms": ["momentum 0.1"],
        "selection": ["epoch of the least mean map on held-out normals, a share of 0.2"],
    },
    "rd4ad": {
        "optimiser": ["adam, betas 0.5 0.999"],
        "budget": ["200 epochs"],
        "student's norms": ["momentum 0.1"],
        "selection": ["last step, all normals it is given"],
    },
    "rdpp": {
        "optimiser": ["adam, betas 0.5 0.999"],
        "budget": ["10 to 300 epochs by category"],
        "student's norms": ["momentum 0.1"],
        "selection": ["the epoch best on the test images"],
    },
    "dinomaly": {
        "optimiser": ["stable_adamw, betas 0.9 0.999"],
        "budget": ["5000 steps"],
        "selection": ["last step, all normals it is given"],
    },
    "eca_mskdad": {
        "optimiser": ["sgd, momentum 0.9"],
        "budget": ["300 epochs", "300 steps"],
        "attention": ["blocks", "stages"],
    },
    "stad": {
        "optimiser": ["adam, betas 0.9 0.999"],
        "budget": ["200 epochs"],
        "selection": ["last step, all normals it is given"],
    },
    "destseg": {
        "optimiser": ["sgd, momentum 0.9"],
        "budget": ["5000 steps"],
        "student's norms": ["momentum 0.1"],
        "selection": ["last step, all normals it is given"],
    },
    "ast": {
        "optimiser": ["adam, betas 0.9 0.999"],
        "budget": ["144 epochs"],
        "student's norms": ["momentum 0.1"],
        "selection": ["last step, all normals it is given"],
    },
    "efficientad": {
        "optimiser": ["adam, betas 0.9 0.999"],
        "budget": ["70000 steps"],
        "selection": ["last step, all normals it is given"],
    },
    "dskd": {},
    "bmkd": {"attention": ["eca", "cbam"], "fusion": ["ffrm"]},
    "padim": {},
    "spade": {},
    "patchcore": {},
}
PADIMS_CHANNELS = {"resnet18": 100, "wide_resnet50_2": 550}
WIDTH_AT_16 = {"resnet18": 256, "resnet34": 256, "wide_resnet50_2": 1024, "vgg16": 512, "efficientnet_lite0": 112}
WIDTH_AT_32 = {"resnet18": 512, "resnet34": 512, "wide_resnet50_2": 2048, "vgg16": 512, "efficientnet_lite0": 320}
OWN = (
    "attention",
    "fusion",
    "fed by",
    "passes of a batch",
    "loss scale",
    "input",
    "precision",
    "channels",
    "pooling",
    "incomplete batches",
    "crops",
    "descriptor",
    "penalty",
    "last layers",
    "start",
    "textures",
    "turning",
    "backbone",
    "grid",
    "order of the channels",
    "late drop",
    "map",
    "tokens",
)  # subjects in words of their own
VALUES: Mapping[str, list[object]] = {
    "teacher": ["resnet18", "resnet34", "wide_resnet50_2", "vgg16", "efficientnet_lite0"],
    "strides": [(4, 8, 16), (8, 16, 32)],
    "image_size": [128, 256, 512, 768],
    "epochs": [1, 100, 144, 200, 300],
    "steps": [None, 1, 60, 200, 300, 5000],
    "batch_size": [1, 8, 16, 32],
    "learning_rate": [0.4, 0.4000001, 0.005, 1e-5],
    "momentum": [0.9, 0.5],
    "betas": [(0.5, 0.999), (0.9, 0.999)],
    "weight_decay": [0.0, 1e-4, 1e-3],
    "norm_momentum": [None, 0.1, 0.01],
    "drop_last": [False, True],
    "held_out": [0.0, 0.2, 0.29],
    "sigma": [2.0, 4.0, 4.0000001],
    "scales": [(17, 33, 65), (33, 65), (65,)],
    "students": [3, 2],
    "dimensions": [128, 32],
    "grid": [1, 4],
    "crops": [64, 16],
    "descriptors": [0.5, 0.25],
    "altered": [0.5, 0.0, 0.25],
    "compactness": [1.0, 0.5],
    "solved": [0, 1024],
    "validation": [0.1, 0.0],
    "passes": [1, 2],
    "projection_rate": [0.001, 0.002],
    "projection_weight": [0.2, 1.0],
    "denoising": [0.2, 0.5],
    "body_rate": [0.1, 0.002],
    "head_rate": [0.01, 0.002],
    "gamma": [4.0, 2.0],
    "largest": [100, 25],
    "flow": [0.5, 0.25],
    "couplings": [4, 2],
    "clamp": [1.9, 5.0],
    "flow_width": [64, 32],
    "places": [32, 8],
    "student_width": [1024, 128],
    "student_blocks": [4, 2],
    "balance": [0.0, 1.0],
    "joint_pass": [True, False],
    "distortion": [0.5, 0.25],
    "detach": [False, True],
    "channels": [100, 550, 50],
    "regulariser": [0.01, 0.1],
    "maps": [1, 2, 3],
    "images": [50, 10],
    "pixels": [1, 4],
    "patch": [3, 5],
    "width": [1024, 128, 64],
    "features": [384, 64],
    "autoencoder": [64, 16],
    "padding": [False, True],
    "hard": [0.999, 0.9, 0.0],
    "distilling": [0.5, 0.25],
    "enlarged": [2, 1],
    "coreset": [0.25, 0.1, 0.01, 0.5, 1.0],
    "epsilon": [0.9, 0.5],
    "reweighted": [0, 2, 9],
    "scored": [1, 2, 3],
    "value_weight": [0.5, 0.01],
    "normalised": [False, True],
    "stretch": [False, True],
    "kd": [False, True],
    "find_object": [False, True],
    "head_width": [None, 48],
    "fractal_points": [100_000, 500],
    "layers": [8, 2],
    "dropout": [0.2, 0.0],
    "mined": [0.9, 0.0],
    "mining_steps": [1000, 0],
    "easy": [0.1, 1.0],
    "radius": [2, 16],
    "top": [0.01, 1.0],
}
OF_VITS: Mapping[str, list[object]] = {
    "teacher": ["dinov2_vits14", "dinov2_vitb14_reg"],
    "strides": [(14,), (4, 8, 16)],
    "image_size": [224, 392],
}
SILENT = ("seed", "compiled")  # they change no more than rounding and chance
LOOPS = ("epochs", "steps", "batch_size")  # of a training; yardsticks have none


def values_of(settings: Settings, field: str) -> list[object]:
    """Values of `field` to try."""
    values = VALUES | (OF_VITS if settings.teacher.startswith("dinov2") else {})
    values |= {"strides": [(4,)]} if settings.teacher.startswith("pdn") else {}
    values |= {"strides": [(32,), (16,)]} if hasattr(settings, "couplings") else {}  # AST takes one tap
    values |= {"solved": [False, True]} if isinstance(getattr(settings, "solved", None), bool) else {}
    return list(settings.CHOICES[field]) if field in settings.CHOICES else list(values[field])


ROWS = [
    (name, preset, variant)
    for name in METHODS
    for preset in entry(name).presets
    for variant in ("", *entry(name).variants)
]


def settings_of(name: str, preset: str, variant: str) -> Any:
    return replace(entry(name).presets[preset], **(dict(entry(name).variants[variant]) if variant else {}))


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, Any]:
    """A method and any settings of it."""
    name = draw(st.sampled_from([name for name in METHODS if name != "pixel_mean"]))
    settings = entry(name).presets["paper"]
    changes = {
        field.name: draw(st.sampled_from(values_of(settings, field.name)))
        for field in fields(settings)
        if field.name not in SILENT and not (name in YARDSTICKS and field.name in LOOPS)
    }
    found = possible(settings, **changes)
    assume(found is not None)
    return name, found


def momentum_of_norms(name: str, settings: Any) -> float:
    copied = name != "fractalad" or settings.kd  # without distillation there is only the head
    lite = (
        settings.teacher == "efficientnet_lite0" and name not in ("rd4ad", "rdpp", "mkd", "ast", "destseg") and copied
    )  # theirs are no copies, or quickened
    return settings.norm_momentum or (0.01 if lite else 0.1)


def whole_of(name: str, subject: str, settings: Any) -> str:
    """What these settings have of a `subject` that is more than one field, in the words of WHOLE."""
    if subject == "optimiser":
        sgd = settings.optimiser == "sgd"
        return f"{settings.optimiser}, " + (
            f"momentum {shown(settings.momentum)}" if sgd else f"betas {shown(settings.betas)}"
        )
    if subject == "budget" and name == "stad" and settings.steps is None:
        theirs = settings.epochs * (1 - settings.descriptors)
        apart = settings.epochs == 200 and theirs != 100
        return "200 epochs" if theirs == 100 else f"{settings.epochs} epochs" + f", {theirs:g} for the students" * apart
    if subject == "budget" and name == "efficientad" and settings.distilled and settings.steps == 70_000:
        theirs = 70_000 - int(settings.distilling * 70_000)
        return "70000 steps" + f", {theirs} for the student" * (theirs != 70_000)
    if subject == "budget":
        return f"{settings.epochs} epochs" if settings.steps is None else f"{settings.steps} steps"
    if subject == "student's norms":
        return f"momentum {shown(momentum_of_norms(name, settings))}"
    if subject == "selection":
        share = f"epoch of the least mean map on held-out normals, a share of {shown(settings.held_out)}"
        return share if settings.held_out else "last step, all normals it is given"
    return str(getattr(settings, subject))


def smooths(settings: Any) -> bool:
    """Whether PatchCore's adaptive pooling averages neighbourhoods of this teacher's taps."""
    widths = WIDTH_AT_32 if 32 in settings.strides else WIDTH_AT_16
    return widths[settings.teacher] >= settings.width


def takes_means(settings: Any) -> bool:
    """Whether PatchCore's pooling comes to the mean."""
    return settings.pooling == "mean" or (settings.pooling == "by_width" and not smooths(settings))


def possible(settings: Any, **changes: Any) -> Any:
    """`settings` with `changes`; None where two of them cannot go together, as test_protocol.py has it."""
    try:
        return replace(settings, **changes)
    except ValueError as error:
        if str(error).partition(" ")[0] not in settings.CONFLICTS:
            raise
        return None


def own_departures(name: str, settings: Any) -> list[str]:
    """Subjects of OWN in which these settings differ from their sources, besides those of WHOLE."""
    if name == "stfpm":
        return ["loss scale"] * (settings.loss_scale == "batch_sum")
    if name in ("destseg", "ast"):
        if name == "destseg":
            return ["textures", "turning"]
        grid = ["grid"] * (settings.strides != (32,))
        return [*(["backbone"] if settings.inputs != "depth" else grid), "order of the channels", "map"]
    if name == "efficientad":
        solved = ["last layers"] * settings.solved
        learns = settings.distilled and settings.distilling > 0 and settings.steps != 1
        few = settings.steps is not None and settings.steps < 20
        solved += ["late drop"] * ((learns or few) and settings.schedule == "late_drop")
        return [*["descriptor"] * settings.distilled, "penalty", *solved, *["incomplete batches"] * settings.drop_last]
    if name == "dinomaly":
        return ["input", "map", *["tokens"] * (not settings.teacher.startswith("dinov2"))]
    if name not in YARDSTICKS:
        carried = ["incomplete batches"] * (name == "rdpp" or (name == "stad" and settings.drop_last))
        carried += ["passes of a batch"] * (name == "rdpp" and 1 < settings.passes > settings.batch_size // 2)
        carried += ["fed by"] * (name in ("dskd", "bmkd") and settings.fed_by == "teacher")
        own = [*["crops"] * (name == "stad"), *["start"] * (name == "stad" and settings.solved > 0)]
        return [*own, *carried]
    chosen = PADIMS_CHANNELS.get(settings.teacher) if name == "padim" else None
    channels = ["channels"] * (chosen is not None and settings.channels != chosen)
    pooling = ["pooling"] * (name == "patchcore" and takes_means(settings))
    return ["input", *["precision"] * (settings.precision != "fp32"), *channels, *pooling]


def learns_descriptors(settings: Any) -> bool:
    """Whether a step of the training is STAD's descriptors' own."""
    share, steps = settings.descriptors, settings.steps
    return share > 0 and (steps is None or int(share * steps) >= 1)


def unused(name: str, settings: Any) -> tuple[str, ...]:
    """Fields that other settings put out of use."""
    if name == "efficientad":  # of the network that a descriptor is distilled from
        return () if settings.distilled else ("strides", "enlarged", "distilling", "taps")
    if name == "stad":
        return () if learns_descriptors(settings) else ("compactness", "crops")
    if name == "ast":
        return ("taps",) if settings.inputs == "depth" else ()
    if name == "dinomaly":
        return () if settings.mined else ("mining_steps", "easy")
    if name != "patchcore":
        return ()
    return (*["width"] * takes_means(settings), *["epsilon"] * (settings.coreset == 1))


def check_deviations(name: str, settings: Any) -> None:
    """Exactly the fields and subjects that differ from their sources, each with both values."""
    expected = {}
    for field, values in SOURCES[name].items():
        if getattr(settings, field) not in values and field not in unused(name, settings):
            expected[field] = shown(getattr(settings, field)), " or ".join(map(shown, values))
    for subject, right in WHOLE[name].items():
        said = whole_of(name, subject, settings)
        if said not in right:
            expected[subject] = said, right[0]
    expected |= dict.fromkeys(own_departures(name, settings), ("", ""))
    found = dict(line.split(": ", 1) for line in settings.deviations)
    assert len(found) == len(settings.deviations)
    assert found.keys() == expected.keys()
    for subject, (ours, theirs) in expected.items():
        done, _, source = found[subject].partition(" (")
        if subject not in OWN:
            assert done == ours
            assert theirs.partition(" ")[0] in source  # "200" of "200 epochs or 100 epochs"
        assert re.fullmatch(r".+: .+\)", source), f"{subject} names no source"


def own_words(settings: Any) -> str:
    """All words, without what the sources have instead."""
    return "\n".join([*settings.readings, *(line.rpartition(" (")[0] for line in settings.deviations)])


def check_numbers(settings: Any) -> None:
    """Every number of a known kind in the words is that of the settings."""
    words, number = own_words(settings), r"([\d.e+-]*\d)"
    facts = {
        rf"\bsigma:? {number}": lambda: settings.sigma,
        rf"\bbatch(?:_size:)? {number}": lambda: settings.batch_size,
        rf"(?<!first )\b{number} steps\b": lambda: settings.steps,
        rf"\b{number} epochs\b": lambda: settings.epochs if settings.steps is None else None,
        rf"\blearning[_ ]rate:? {number}": lambda: settings.learning_rate,
        rf"\bweight[_ ]decay:? {number}": lambda: settings.weight_decay,
        rf"\bheld-out normals, a share of {number}": lambda: settings.held_out,
        rf"\bstrength {number}": lambda: settings.distortion,
        rf"\bb = {number}": lambda: settings.reweighted,
        rf"^coreset: a share of {number}": lambda: settings.coreset,
        rf"^channels: which {number}": lambda: settings.channels,
        rf"^input: whole images at {number} px": lambda: settings.image_size,
        rf"^pasting: at {number} x": lambda: settings.image_size,
        rf"^lambda: {number}": lambda: settings.balance,
        rf"scaled to {number} px": lambda: settings.image_size,
        rf"^grid: stride {number}": lambda: settings.strides[0],
        rf"^input: {number} px": lambda: settings.image_size,
    }
    for pattern, value in facts.items():
        for found in re.findall(pattern, words, re.MULTILINE):
            assert value() is not None, f"{pattern} says {found} of what does not apply"
            assert float(found) == float(value()), f"{pattern} says {found}"


def check_choices(name: str, settings: Any) -> None:
    """Words that belong to one choice stand there if, and only if, it was made."""
    words = own_words(settings)
    dual, eca = name in ("dskd", "bmkd"), name == "eca_mskdad"
    marks = {
        "of flattened maps": (dual or name == "rd4ad") and settings.distance == "flattened",
        "pyramid term": dual and settings.distance == "cosine",
        "ECA after": (dual and settings.attention == "eca") or (eca and settings.attention != "none"),
        "each stage's last block": eca and settings.attention == "stages",
        "CBAM after": dual and settings.attention == "cbam",
        "one-class embedding alone": dual and settings.fusion == "deepest",
        "RD4AD's bottleneck": dual and settings.fusion == "plain",
        "residual module": dual and settings.fusion == "ffrm",
        "the deepest tap of": dual and settings.fusion == "deepest",
        r"taps? of the teacher$": dual and settings.fed_by == "teacher",
        r"taps? of the forward student$": dual and settings.fed_by == "student",
        "forward student and teacher": dual and settings.fed_by == "both",
        "sees only the teacher": dual and settings.fed_by == "teacher",
        "stops before": dual and settings.detach and settings.fed_by != "teacher",
        "flows into": dual and not settings.detach and settings.fed_by != "teacher",
        "product over students": dual and settings.over_students == "product",
        "product over scales": dual and settings.over_scales == "product",
        "sum over scales": dual and settings.over_scales == "sum",
        "x and x^a in one pass": eca and settings.joint_pass,
        "read as epochs": eca and settings.steps is None and settings.epochs == 300,
        "read as optimiser steps": eca and settings.steps == 300,
        "without 1/2": name == "stfpm" and settings.loss_scale == "official",
        "with 1/2, as eq. 2": name == "stfpm" and settings.loss_scale == "paper",
        "EfficientNet-Lite0": name in (*LOOPED, "destseg") and settings.teacher == "efficientnet_lite0",
        "VGG-16": name in (*LOOPED, "destseg") and settings.teacher == "vgg16",
        "drawn: clouds": name == "destseg" and settings.textures == "drawn",
        "tiles in another order": name == "destseg" and settings.textures == "image",
        "not turned": name == "destseg" and settings.turned == "no",
        "turned by up to": name == "destseg" and settings.turned == "slight",
        "turned by quarters": name == "destseg" and settings.turned == "full",
        "through a 1 x 1 convolution": name == "destseg"
        and (settings.taps == "standardised" or settings.teacher == "efficientnet_lite0"),
        "the relief's height": name == "ast" and settings.inputs != "rgb",
        "the map's maximum; the official": name == "ast" and settings.score == "max",
        "the map's mean; the official": name == "ast" and settings.score == "mean",
        "eq. 7 with b": name == "patchcore" and settings.reweighted > 0,
        "the plain maximum, as": name == "patchcore" and settings.reweighted == 0,
        "smooths no neighbourhood of taps": name == "patchcore"
        and settings.pooling == "by_width"
        and not smooths(settings),
        "adaptive on taps so narrow": name == "patchcore" and settings.pooling == "adaptive" and not smooths(settings),
        "0, as in the official code": name == "rdpp" and settings.transport == "batch",
        "between two random halves": name == "rdpp" and settings.transport == "halves" and settings.batch_size > 1,
        "a lone image has no halves": name == "rdpp" and settings.transport == "halves" and settings.batch_size == 1,
        "scaled to the image's side": name == "rdpp" and settings.image_size != 256,
        "a step of their own": name == "rdpp" and not settings.drop_last,
        "which nothing learns from": name in ("stad", "efficientad") and settings.validation > 0,
        "that the students learnt from": name == "stad" and settings.validation == 0,
        "that the student learnt from": name == "efficientad" and settings.validation == 0,
        "the medium one": name == "efficientad" and settings.network == "medium",
        "distilled here": name == "efficientad"
        and settings.distilled
        and settings.distilling > 0
        and settings.steps != 1,
        "not learnt beyond their start": name == "stad" and not learns_descriptors(settings) and settings.solved > 0,
        "the decoder begins": name == "stad" and learns_descriptors(settings) and not settings.solved,
        "penalty: on drawn images": name == "efficientad" and settings.penalty == "drawn",
        "penalty: none": name == "efficientad" and settings.penalty == "none",
        "as in the paper's tables": name == "efficientad" and settings.padding,
        "have zeros around them": name == "efficientad" and not settings.padding and settings.border == "zeros",
        "have their outermost values": name == "efficientad" and not settings.padding and settings.border == "nearest",
        "by least squares after": name == "efficientad" and settings.solved,
        "bottleneck and decoder scaled": name == "efficientad" and settings.image_size != 256,
        "of each image by itself": name == "efficientad" and settings.batch_size > 1,
        "the first fiftieth": name == "dinomaly"
        and settings.schedule == "warm_cosine"
        and settings.steps not in (1, 5000),
        "on one grid, side by side": name == "dinomaly" and not settings.teacher.startswith("dinov2"),
        "drawn by the seed": name == "patchcore" and settings.coreset < 1,
    }
    for mark, expected in marks.items():
        said = re.search(mark.replace("^", r"\^"), words, re.MULTILINE) is not None
        assert said == expected, f"{mark!r}: said {said}, true {expected}"


@pytest.mark.parametrize(("name", "preset", "variant"), ROWS)
def test_words_are_plain_and_follow_the_settings(name: str, preset: str, variant: str) -> None:
    settings = settings_of(name, preset, variant)
    check_plain(settings)
    check_numbers(settings)
    if name in HERE:
        check_deviations(name, settings)
        check_choices(name, settings)


def check_plain(settings: Any) -> None:
    """Each line is `subject: words`, a subject has one, and a deviation has two values that differ."""
    for line in (*settings.readings, *settings.deviations):
        assert re.fullmatch(r"[^:\n]+: \S[^\n]*", line)
        assert "None" not in line
        assert "True" not in line
    for lines in (settings.readings, settings.deviations):
        assert len({line.partition(":")[0] for line in lines}) == len(lines)
    for line in settings.deviations:
        done, _, source = line.partition(": ")[2].partition(" (")
        assert re.fullmatch(r".+: .+\)", source), f"{line} names no source"
        assert f": {done})" not in f": {source}", f"{line} says the same of both"


@given(drawn())
def test_words_follow_any_settings(given_settings: tuple[str, Any]) -> None:
    name, settings = given_settings
    check_plain(settings)
    check_numbers(settings)
    if name not in HERE:
        return
    check_deviations(name, settings)
    check_choices(name, settings)


def inert(name: str, settings: Any, field: str, value: object) -> bool:
    """Whether another value of `field` changes nothing that a word could tell."""
    if field in SILENT or value == getattr(settings, field):
        return True
    if field in SOURCES.get(name, {}) and {getattr(settings, field), value} <= set(SOURCES[name][field]):
        return False  # two sources differ: the words say which is followed
    if field == "pooling" and {settings.pooling, value} == {"by_width", "adaptive"} and smooths(settings):
        return True
    if name in YARDSTICKS:
        return field in (*LOOPS, *unused(name, settings))
    if name in ("efficientad", "stad", "ast", "dinomaly") and field in unused(name, settings):
        return True
    return (
        (field == "momentum" and settings.optimiser != "sgd")
        or (field == "betas" and settings.optimiser == "sgd")
        or (field == "epochs" and (settings.steps is not None or {settings.epochs, value} <= {100, 200}))
        or (field == "norm_momentum" and (value or 0.1) == momentum_of_norms(name, settings))
        or (field == "norm_momentum" and name in ("stad", "efficientad", "dinomaly"))  # they have no batch norms
        or (name == "dinomaly" and field == "strides" and settings.teacher.startswith("dinov2"))  # it has one grid
        or (field == "detach" and settings.fed_by == "teacher")
        or (field == "smooth_noise" and settings.saliency != "smooth_grad")
        or (field == "value_weight" and settings.loss == "direction_only")
    )


@pytest.mark.parametrize("preset", ["paper", "quick"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "pixel_mean"])
def test_no_setting_changes_without_a_word(name: str, preset: str) -> None:
    settings = entry(name).presets[preset]
    before = settings.readings, settings.deviations
    for field in fields(settings):
        for value in [] if field.name in SILENT else values_of(settings, field.name):
            changed = possible(settings, **{field.name: value})
            if changed is not None and not inert(name, settings, field.name, value):
                after = changed.readings, changed.deviations
                assert after != before, f"{field.name}={value!r} is nowhere said"


@pytest.mark.parametrize(
    ("row", "overrides", "said", "unsaid"),
    [
        ("dskd:", {}, "sigma 2;", "sigma 4"),
        ("dskd:", {"sigma": 3.5}, "sigma 3.5;", "sigma 2"),
        ("bmkd:", {}, "batch 8, 60 steps", "200 epochs"),
        ("bmkd:", {}, "one_cycle schedule", "constant"),
        ("dskd:", {}, "pyramid term", "flattened"),
        ("dskd:flattened", {}, "flattened maps (RD4AD's code)", "pyramid"),
        ("dskd:both_fed", {}, "fed by all taps of forward student and teacher", "fed by all taps of the"),
        ("dskd:deepest_tap", {}, "fed by the deepest tap of the forward student", "all taps"),
        ("bmkd:attention_none", {}, "attention: none (abstract: an attention module", "ECA"),
        ("bmkd:attention_cbam", {}, "CBAM after the last norm", "ECA"),
        ("bmkd:plain_fusion", {}, "fusion: RD4AD's bottleneck (abstract: a feature-fusion", "module and"),
        ("stfpm:held_out", {}, "teacher: efficientnet_lite0 (paper and official code: resnet18)", "selection"),
        ("stfpm:", {"steps": None, "epochs": 7}, "budget: 7 epochs (official code's README", "80 steps"),
        ("stfpm:", {"optimiser": "adam"}, "adam, betas 0.9 0.999 (paper and official code: sgd", "momentum: "),
        ("stfpm:", {"norm_momentum": None}, "student's norms: momentum 0.01 (official code: momentum 0.1)", "None"),
        (
            "stfpm:batch_sum",
            {},
            "loss scale: with 1/2, summed over the batch (official code and eq. 2: its mean)",
            "eq. 2 has it",
        ),
        ("padim:wide", {}, "which 550 follows from the seed", "which 100"),
        ("padim:", {"precision": "bf16"}, "precision: bf16 (public codes: fp32)", "channels: 100 ("),
        ("spade:stride16", {}, "strides: 4 8 16 (paper: 4 8 16 32)", "images: whole"),
        ("patchcore:", {"width": 64}, "pooling: mean (official code: adaptive)", "width"),
        ("patchcore:one_percent", {"pooling": "adaptive", "width": 64}, "a share of 0.01, begun at", "narrow"),
        ("patchcore:maximum", {}, "the plain maximum, as the official code", "eq. 7 with"),
        ("mkd:smooth_grad", {"smooth_noise": "official"}, "smooth_noise: the same draws", "squared"),
        ("rd4ad:", {}, "sigma: 2 (official test code: 4)", "momentum"),
        (
            "rd4ad:per_pixel",
            {"held_out": 0.1},
            "a share of 0.1 (official code: last step, all normals it is given)",
            "of flattened",
        ),
        (
            "rdpp:",
            {},
            "selection: last step, all normals it is given (official code: the epoch best on the test",
            "halves",
        ),
        ("rdpp:halves", {}, "transport: between two random halves of a batch", "transport: 0"),
        ("rdpp:", {"drop_last": True}, "incomplete batches: left out (official code: added", "step of their own"),
        ("stad:", {}, "crops: of the normal images, a share of 0.5 altered (paper: of ImageNet)", "scales: 17"),
        ("dinomaly:", {}, "tokens: feature maps of EfficientNet-Lite0 on one grid", "384"),
        ("dinomaly:", {"steps": 5000}, "layers: 4 (official code: 8)", "warm-up"),
        ("stad:p65", {"crops": 8, "descriptors": 0.5}, "from 8 crops at a time", "scales: "),
        ("stad:", {"altered": 0.0}, "crops: of the normal images (paper: of ImageNet)", "altered"),
        ("stad:", {"solved": 300}, "start: last layers at least squares over 300 crops and up to 24", "start: none"),
        ("stad:", {"solved": 0}, "weights: at first He's", "start: "),
        ("stad:p33", {}, "patches: of 33 px", "the mean of their maps"),
        ("destseg:", {}, "textures: drawn: clouds", "tiles"),
        ("destseg:image", {}, "tiles in another order (paper and official code: photographs", "clouds"),
        ("destseg:turned", {}, "turned by quarters and by up to 5 degrees, the same for every category", "not turned"),
        ("destseg:", {"teacher": "resnet34"}, "ResNet-18's blocks in the decoder for ResNet-34's taps", "EfficientNet"),
        ("ast:", {"inputs": "depth"}, "in units of 1/4 of the highest", "backbone"),
        ("ast:", {"inputs": "depth"}, "grid: stride 16, 8 x 8 places (official code: stride 32, 24 x 24", "at stride"),
        ("ast:", {"inputs": "depth", "strides": (32,)}, "order of the channels: drawn by the run's seed", "grid"),
        ("ast:", {"inputs": "rgb+depth"}, "at stride 16 (paper", "grid"),
        ("ast:mean", {}, "image score: the map's mean", "maximum;"),
        ("ast:", {"teacher": "resnet18", "strides": (8,)}, "backbone: resnet18 at stride 8 (paper", "Lite0"),
        (
            "efficientad:",
            {},
            "descriptor: distilled here, on normal and drawn images, in a share of 0.35",
            "60000 steps,",
        ),
        ("efficientad:small", {}, "the small one", "distilled"),
        ("efficientad:small", {}, "bottleneck and decoder scaled to 128 px", "taps: "),
        ("efficientad:small", {"taps": "standardised", "image_size": 256}, "the small one", "taps: "),
        ("efficientad:small", {"image_size": 256}, "the small one", "scaled to"),
        ("efficientad:distilled", {"taps": "standardised"}, "taps: standardised (paper: raw)", "late drop"),
        (
            "efficientad:distilled",
            {"schedule": "late_drop"},
            "late drop: in the last twentieth of all steps, the PDN's among them (paper: of the student's)",
            "one_cycle",
        ),
        ("efficientad:small", {"schedule": "late_drop"}, "the small one", "late drop"),
        (
            "efficientad:small",
            {"schedule": "late_drop", "steps": 19},
            "late drop: none, a twentieth of so few",
            "PDN's",
        ),
        ("efficientad:small", {"schedule": "late_drop", "steps": 20}, "the small one", "late drop"),
        ("efficientad:distilled", {"schedule": "late_drop", "distilling": 0.0}, "descriptor: none", "late drop"),
        ("efficientad:medium", {}, "the medium one", "network: "),
        ("efficientad:penalised", {}, "penalty: on drawn images (paper: images of ImageNet)", "penalty: none"),
        ("efficientad:padded", {}, "padding: as in the paper's tables", "around them"),
        (
            "stad:",
            {"solved": 0, "descriptors": 0.0},
            "crops: none, the descriptors stay as random",
            "of the normal images,",
        ),
        (
            "stad:",
            {"steps": None, "epochs": 200, "descriptors": 0.25},
            "budget: 200 epochs, 150 for the students (paper, 100 for the students: 200 epochs)",
            "100 for the students (",
        ),
        ("stad:", {"steps": None, "epochs": 125, "descriptors": 0.2}, "patches: ", "budget"),
        ("stad:", {"compactness": 0.5}, "patches: ", "compactness"),
        (
            "efficientad:distilled",
            {"steps": 70_000, "distilling": 0.5},
            "budget: 70000 steps, 35000 for the student (paper: 70000 steps)",
            "budget: 35000",
        ),
        ("efficientad:distilled", {"steps": 140_000, "distilling": 0.5}, "descriptor: distilled", "budget"),
        (
            "dskd:teacher_fed",
            {},
            "fed by: the teacher alone, nothing passes between the students (abstract:",
            "RD4AD: ",
        ),
        ("bmkd:teacher_fed", {}, "fed by: the teacher alone", "fusion: "),
        ("bmkd:both_fed", {}, "forward student and teacher", "fed by: "),
        ("destseg:", {"norm_momentum": None}, "momentum 0.1 in the encoder, whose own is 0.01", "student's norms"),
        ("destseg:", {"norm_momentum": 0.01}, "student's norms: momentum 0.01 (official code: momentum 0.1)", "own"),
        ("destseg:", {}, "EfficientNet-Lite0's architecture as the encoder", "momentum 0.1"),
        ("stfpm:", {"teacher": "pdn_small", "strides": (4,)}, "student's norms: none (official code:", "momentum 0.1,"),
        ("padim:", {"channels": 176}, "upsampling", "which 176"),
        ("ast:", {"inputs": "depth"}, "image score", "taps: "),
        ("dinomaly:", {"mined": 0.0, "easy": 0.5}, "mined: 0 (official code: 0.9)", "easy"),
        ("rdpp:", {"passes": 4}, "passes: 4 (official code: 2)", "passes of a batch"),
        ("rdpp:", {"passes": 5}, "passes of a batch: 4, each needs two images (official code: two of 16)", "None"),
        ("rdpp:halves", {"batch_size": 1}, "transport: 0, as a lone image has no halves", "between"),
        ("fractalad:", {"head_width": 24}, "sampling: ", "head_width"),
        ("eca_mskdad:", {}, "rel_mode: normalised_mean (eq. 15 to 18: literal)", "read as"),
        ("eca_mskdad:score_loss", {}, "maps of 32, 16, 8 px", "score: "),
        ("eca_mskdad:figure_size", {}, "maps of 64, 32, 16 px", "maps of 32"),
        ("stad:", {}, "descriptors: not learnt beyond their start", "the decoder begins"),
        ("stad:", {"steps": 4, "descriptors": 0.5}, "descriptors: learnt in a share of 0.5", "the decoder begins"),
        (
            "stad:",
            {"steps": 4, "descriptors": 0.5, "solved": 0},
            "the decoder begins at the features' mean",
            "as random",
        ),
        (
            "stad:",
            {"steps": 1, "descriptors": 0.5, "solved": 0},
            "crops: none, the descriptors stay as random as they begin",
            "learnt in a share",
        ),
        ("efficientad:", {"distilling": 0.0}, "but for the last layer, which is solved on", "distilled here"),
        ("efficientad:", {"distilling": 0.0, "solved": False}, "the PDN stays as random as it begins (paper", "solved"),
        ("efficientad:", {"steps": 1, "solved": False}, "the PDN stays as random as it begins", "distilled here"),
        ("eca_mskdad:two_passes", {"steps": 300}, "x and x^a in two passes", "one pass"),
    ],
)
def test_a_row_says_this_and_not_that(row: str, overrides: dict[str, Any], said: str, unsaid: str) -> None:
    name, _, variant = row.partition(":")
    settings = replace(settings_of(name, "quick", variant), **overrides)
    words = "\n".join([*settings.readings, *settings.deviations])
    assert said in words
    assert unsaid not in words


def test_paper_presets_depart_only_where_their_pages_say_so() -> None:
    found = {name: [line.partition(":")[0] for line in entry(name).presets["paper"].deviations] for name in HERE}
    assert found == {
        "pixel_mean": [],
        "stfpm": ["selection"],
        "rd4ad": [],
        "rdpp": ["budget", "selection", "incomplete batches"],
        "dinomaly": ["input", "map"],
        "stad": ["crops"],
        "destseg": ["textures", "turning"],
        "ast": ["backbone", "order of the channels", "map"],
        "efficientad": ["penalty"],
        "eca_mskdad": ["rel_mode", "score"],
        "dskd": [],
        "bmkd": [],
        "padim": ["input"],
        "spade": ["input"],
        "patchcore": ["input"],
    }
    assert settings_of("stfpm", "paper", "held_out").deviations == ()


def test_an_architecture_that_is_a_reading_is_marked_and_published_variants_exist() -> None:
    for name in METHODS:
        one = entry(name)
        assert one.reading == one.title.endswith("(reading)")
        assert one.published_variant in ("", *one.variants)
    assert {name for name in METHODS if entry(name).reading} == {"dskd", "bmkd"}
    assert entry("stfpm").published_variant == "held_out"
    assert entry("eca_mskdad").published_variant == "score_loss"


def test_a_setting_that_does_not_matter_is_no_departure() -> None:
    class Small(Settings):
        SETTLED: ClassVar = {"epochs": Settled("a page", (3,), lambda settings: settings.steps is None)}

    assert Small().deviations == ("epochs: 200 (a page: 3)",)
    assert Small(steps=5).deviations == ()
    assert Small(epochs=3).deviations == ()


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_two_numbers_that_differ_are_never_written_alike(one: float, other: float) -> None:
    assert float(shown(one)) == one
    assert (shown(one) == shown(other)) == (one == other) or one == other == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [((4, 8), "4 8"), ((), "none"), (None, "none"), (True, "yes"), (False, "no"), (4.0, "4"), (1e-4, "0.0001")],
)
def test_settings_are_written_as_people_write_them(value: object, words: str) -> None:
    assert shown(value) == words
