"""The recipe of every paper, as a table with its sources; and that the loop does what the settings say."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from kdad_bench.methods import entry
from kdad_bench.methods.training.loop import optimiser_of
from kdad_bench.methods.training.settings import DistillationSettings
from tests.methods.toys import small_method

LOOP: dict[str, Any] = {  # the loop's own, where no source says otherwise
    "strides": (4, 8, 16),  # layer1 to layer3
    "steps": None,
    "precision": "fp32",
    "seed": 0,
    "schedule": "constant",  # no scheduler in any of the codes
    "norm_momentum": None,
    "taps": "raw",
    "drop_last": False,
    "compiled": "off",
    "held_out": 0.0,
    "momentum": 0.9,
    "betas": (0.9, 0.999),
    "weight_decay": 0.0,
}
PAPER: dict[str, dict[str, Any]] = {
    # gdwang08/STFPM @2598a5e: ResNet-18, 256 px, SGD 0.4 / 0.9 / 1e-4, batch 32, loss without 1/2; README: 200 epochs
    "stfpm": {
        "teacher": "resnet18",
        "image_size": 256,
        "epochs": 200,
        "batch_size": 32,
        "optimiser": "sgd",
        "learning_rate": 0.4,
        "weight_decay": 1e-4,
        "loss_scale": "official",
    },
    # hq-deng/RD4AD @6554076: WideResNet-50-2, 256 px, Adam 0.005 / (0.5, 0.999), batch 16, 200 epochs, sigma 4
    "rd4ad": {
        "teacher": "wide_resnet50_2",
        "image_size": 256,
        "epochs": 200,
        "batch_size": 16,
        "optimiser": "adam",
        "learning_rate": 0.005,
        "betas": (0.5, 0.999),
        "distance": "flattened",
        "sigma": 4.0,
    },
    # guojiajeremy/Dinomaly @c5c76d0, dinomaly_mvtec_sep.py: one class at a time, 5000 steps
    "dinomaly": {
        "teacher": "dinov2_vitb14_reg",
        "strides": (14,),
        "image_size": 392,
        "epochs": 200,  # not used: steps
        "steps": 5000,
        "batch_size": 16,
        "drop_last": True,
        "optimiser": "stable_adamw",
        "learning_rate": 2e-3,
        "weight_decay": 1e-4,
        "schedule": "warm_cosine",
        "layers": 8,
        "dropout": 0.2,
        "mined": 0.9,
        "mining_steps": 1000,
        "easy": 0.1,
        "sigma": 4.0,
        "radius": 2,
        "top": 0.01,
    },
    # tientrandinh/Revisiting-Reverse-Distillation @7f2ceb7: WideResNet-50-2, 256 px, Adam 0.005 / 0.001, batch 16 x 2
    "rdpp": {
        "teacher": "wide_resnet50_2",
        "image_size": 256,
        "epochs": 200,  # by category 10 to 300; 200 for bottle and pill
        "batch_size": 32,
        "passes": 2,
        "optimiser": "adam",
        "learning_rate": 0.005,
        "projection_rate": 0.001,
        "betas": (0.5, 0.999),
        "projection_weight": 0.2,
        "transport": "batch",
        "sigma": 4.0,
    },
    # arXiv 1911.02357, as recalled: 512 values, patches of 17, 33, 65 px, three students, 100 epochs of batch 1
    "stad": {
        "teacher": "resnet18",
        "strides": (32,),
        "image_size": 256,
        "epochs": 200,
        "batch_size": 1,
        "optimiser": "adam",
        "learning_rate": 1e-4,
        "weight_decay": 1e-5,
        "scales": (17, 33, 65),
        "students": 3,
        "width": 128,
        "dimensions": 128,
        "grid": 1,
        "crops": 64,
        "descriptors": 0.5,
        "altered": 0.5,
        "compactness": 1.0,
        "solved": 0,
        "validation": 0.1,
    },
    # apple/ml-destseg @f6ea31f: ResNet-18, 256 px, SGD 0.4 / 0.1 / 0.01, 0.9, 1e-4, batch 32, 1000 of 5000 steps
    "destseg": {
        "teacher": "resnet18",
        "image_size": 256,
        "epochs": 200,
        "steps": 5000,
        "batch_size": 32,
        "optimiser": "sgd",
        "learning_rate": 0.4,
        "weight_decay": 1e-4,
        "drop_last": True,
        "denoising": 0.2,
        "body_rate": 0.1,
        "head_rate": 0.01,
        "width": 256,
        "gamma": 4.0,
        "largest": 100,
        "textures": "drawn",
        "turned": "no",
    },
    # marco-rudolph/AST @8c243ad: 768 px at stride 32, Adam 2e-4, 1e-5, batch 8, 3 x 24 epochs for each network
    "ast": {
        "teacher": "efficientnet_lite0",
        "strides": (32,),
        "image_size": 768,
        "epochs": 144,
        "batch_size": 8,
        "optimiser": "adam",
        "learning_rate": 2e-4,
        "weight_decay": 1e-5,
        "drop_last": True,
        "inputs": "rgb",
        "flow": 0.5,
        "couplings": 4,
        "clamp": 1.9,
        "flow_width": 64,
        "places": 32,
        "student_width": 1024,
        "student_blocks": 4,
        "score": "max",
    },
    # arXiv 2303.14535, Tables 5 to 7 and Algorithms 1 and 2, as public codes write them out
    "efficientad": {
        "teacher": "pdn_small",
        "strides": (4,),
        "image_size": 256,
        "epochs": 200,  # not used
        "steps": 70_000,
        "batch_size": 1,
        "optimiser": "adam",
        "learning_rate": 1e-4,
        "weight_decay": 1e-5,
        "schedule": "late_drop",
        "initial": "pytorch",
        "network": "small",
        "width": 128,
        "features": 384,
        "autoencoder": 64,
        "padding": False,
        "border": "zeros",
        "hard": 0.999,
        "penalty": "drawn",  # the paper: of ImageNet
        "distilling": 0.5,
        "enlarged": 2,
        "solved": False,
        "validation": 0.1,
    },
    # Computer Science 2024 51(6A), section 4: 128 px, 300 iterations, batch 32, SGD 0.4 / 0.9; the rest is read
    "eca_mskdad": {
        "teacher": "resnet18",
        "image_size": 128,
        "epochs": 300,
        "batch_size": 32,
        "optimiser": "sgd",
        "learning_rate": 0.4,
        "weight_decay": 1e-4,
        "balance": 1.0,
        "rel_mode": "normalised_mean",
        "attention": "blocks",
        "joint_pass": True,
        "distortion": 0.5,
        "score": "max",
    },
    # arXiv 2402.00448: ResNet-18 (abstract); the rest is RD4AD's recipe with STFPM's term
    "dskd": {
        "teacher": "resnet18",
        "image_size": 256,
        "epochs": 200,
        "batch_size": 16,
        "optimiser": "adam",
        "learning_rate": 0.005,
        "betas": (0.5, 0.999),
        "distance": "cosine",
        "sigma": 4.0,
        "attention": "none",
        "fusion": "plain",
        "fed_by": "student",
        "detach": False,
        "over_scales": "sum",
        "over_students": "sum",
    },
}
# Computer and Modernization 2025(2): ResNet-18, attention and a feature-fusion residual module (abstract)
PAPER["bmkd"] = PAPER["dskd"] | {"attention": "eca", "fusion": "ffrm"}


FROZEN: dict[str, Any] = {  # of every yardstick: nothing is trained; taps as they are, blurred as in all three papers
    "image_size": 256,
    "epochs": 0,
    "steps": None,
    "batch_size": 32,  # how many images the teacher sees at a time
    "precision": "fp32",
    "seed": 0,
    "taps": "raw",
    "sigma": 4.0,
}
YARDSTICKS: dict[str, dict[str, Any]] = {
    # arXiv 2011.08785: ResNet-18's first three layers, 100 of 448 channels at random, 0.01 on the diagonal
    "padim": {"teacher": "resnet18", "strides": (4, 8, 16), "channels": 100, "regulariser": 0.01},
    # arXiv 2005.02357: WideResNet-50-2, K = 50 images by the last layer, kappa = 1 pixel in the first three
    "spade": {"teacher": "wide_resnet50_2", "strides": (4, 8, 16, 32), "maps": 3, "images": 50, "pixels": 1},
    # arXiv 2106.08265 and amazon-science/patchcore-inspection: layer2 and layer3, 1024 values, 10 %, b = 9 (anomalib)
    "patchcore": {
        "teacher": "wide_resnet50_2",
        "strides": (8, 16),
        "patch": 3,
        "pooling": "by_width",  # adaptive with this network
        "width": 1024,
        "coreset": 0.1,
        "epsilon": 0.9,
        "reweighted": 9,
    },
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "padim": {"wide": {"teacher": "wide_resnet50_2", "channels": 550}},  # the paper's other network
    "spade": {"stride16": {"strides": (4, 8, 16)}},
    "patchcore": {
        "one_percent": {"coreset": 0.01},
        "maximum": {"reweighted": 0},
        "adaptive": {"pooling": "adaptive"},
        "mean": {"pooling": "mean"},
    },
    "stfpm": {
        "paper_scale": {"loss_scale": "paper"},
        "batch_sum": {"loss_scale": "batch_sum"},
        "held_out": {"held_out": 0.2},  # official code: a fifth of train/good
    },
    "rd4ad": {"per_pixel": {"distance": "cosine"}},
    "stad": {"p17": {"scales": (17,)}, "p33": {"scales": (33,)}, "p65": {"scales": (65,)}},
    "rdpp": {"halves": {"transport": "halves"}},
    "destseg": {
        "image": {"textures": "image"},
        "turned_slightly": {"turned": "slight"},
        "turned": {"turned": "full"},
    },
    "ast": {"mean": {"score": "mean"}},
    "efficientad": {
        "small": {"teacher": "pdn_small", "network": "small", "strides": (4,), "width": 128, "features": 384},
        "medium": {"teacher": "pdn_medium", "network": "medium", "strides": (4,), "width": 128, "features": 384},
        "distilled": {"teacher": "resnet18", "strides": (8, 16)},
        "padded": {"padding": True},
        "penalised": {"penalty": "drawn"},
    },
}


@pytest.mark.parametrize("name", YARDSTICKS)
def test_the_paper_preset_of_a_yardstick_is_the_papers_recipe(name: str) -> None:
    assert asdict(entry(name).presets["paper"]) == FROZEN | YARDSTICKS[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_variants_change_what_they_are_named_for(name: str) -> None:
    assert entry(name).variants == VARIANTS[name]


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_preset_is_the_papers_recipe(name: str) -> None:
    assert asdict(entry(name).presets["paper"]) == LOOP | PAPER[name]


def test_the_floors_settings_are_these() -> None:
    found = asdict(entry("pixel_mean").presets["paper"])
    assert (found["image_size"], found["sigma"], found["epochs"], found["teacher"]) == (256, 4.0, 0, "none")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_the_optimiser_has_every_constant_of_the_settings(name: str, kind: type[torch.optim.Optimizer]) -> None:
    settings = DistillationSettings(
        optimiser=name, learning_rate=0.37, momentum=0.81, betas=(0.51, 0.97), weight_decay=0.013
    )
    found = optimiser_of(iter([torch.nn.Parameter(torch.ones(1))]), settings)
    assert type(found) is kind
    (group,) = found.param_groups
    assert (group["lr"], group["weight_decay"], group["fused"]) == (0.37, 0.013, True)
    own = {"momentum": 0.81, "nesterov": False, "dampening": 0} if name == "sgd" else {"betas": (0.51, 0.97)}
    assert {key: group[key] for key in own} == own


@pytest.mark.parametrize("name", PAPER)
def test_a_methods_optimiser_has_all_of_the_student_and_nothing_of_the_teacher(name: str) -> None:
    method: Any = small_method(name)
    held = {id(parameter) for group in method.optimiser().param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in method.student.parameters()}
