"""Loss curves and differences between the variants of a method, on toy images."""

from __future__ import annotations

from typing import Any

import torch

from kdad_bench.methods import entry
from kdad_bench.methods.protocol import Fitting, Scores
from tests.methods.toys import normals, small_method, with_defects


def losses(name: str, **changes: Any) -> list[float]:
    """The loss of every step of a toy fit."""
    seen: list[float] = []
    method = small_method(name, **changes)
    method.fit(normals(16, seed=1), Fitting(log=lambda _, terms: seen.append(terms["loss"]), log_every=1))
    return seen


def answers(name: str, **changes: Any) -> Scores:
    """The scores of toy defects after a toy fit."""
    method = small_method(name, **({"steps": 2, "batch_size": 4} | changes))
    method.fit(normals(10, seed=1))
    return method.score(with_defects(3, seed=2)[0])


def assert_variants_differ(name: str, **changes: Any) -> None:
    """Every registered variant of `name` gives other scores than the default and than every other one."""
    found = {"default": answers(name, **changes)}
    for variant, overrides in entry(name).variants.items():
        smaller = {"image_size": 96} if "image_size" in overrides else {}
        found[variant] = answers(name, **(changes | dict(overrides) | smaller))
    names = list(found)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            same_map = torch.equal(found[one].pixel, found[other].pixel)
            same_score = torch.equal(found[one].image, found[other].image)
            assert not (same_map and same_score), f"{name}: {one} and {other} say the same"
