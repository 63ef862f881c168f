"""Shares of the normals that are set apart: as many as are said, and none of them learnt from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.protocol import Settings
from kdad_bench.methods.training.loop import _split
from kdad_bench.methods.training.parting import has_a_lone_image, learners, learnt_from, parted
from tests.methods.toys import normals, small_method, small_settings


@pytest.mark.parametrize(
    ("images", "share", "learning"),
    [
        (10, 0.0, 10),
        (10, 0.2, 8),
        (10, 0.01, 9),
        (10, 0.9, 1),
        (3, 0.9, 1),
        (2, 0.1, 1),
        (1, 0.5, 1),
        (0, 0.5, 0),
        (209, 0.1, 188),
    ],
)
def test_at_least_one_image_is_on_either_side(images: int, share: float, learning: int) -> None:
    assert learners(images, share) == learning


def test_which_images_are_set_apart_follows_from_the_seed_and_never_changes() -> None:
    """What saved rows were learnt from is learnt from again."""
    images = torch.arange(10)
    for seed, apart in ((0, [0, 3, 9]), (1, [1, 6, 9])):
        learnt, others = parted(images, 0.3, seed)
        assert others.tolist() == apart
        assert learnt.tolist() == [image for image in range(10) if image not in apart]


SHARES = [{}, {"held_out": 0.2}, {"validation": 0.5}, {"validation": 0.3, "held_out": 0.5}, {"validation": 0.0}]


@pytest.mark.parametrize("changes", SHARES, ids=str)
@pytest.mark.parametrize("name", ["stfpm", "stad", "efficientad"])
def test_what_is_learnt_from_is_counted_as_it_is_parted(name: str, changes: dict[str, float]) -> None:
    known = {key: value for key, value in changes.items() if key in entry(name).presets["quick"].APART}
    settings = small_settings(name, **known)
    for count in range(1, 14):
        images = torch.arange(count).view(-1, 1, 1, 1)
        learnt = parted(images, getattr(settings, "validation", 0.0), settings.seed)[0]
        parts = _split(learnt, settings)
        assert learnt_from(count, settings) == len(parts[0])
        shares = (settings.held_out, getattr(settings, "validation", 0.0))
        alone = (count == 1 and any(shares)) or (count == 2 and all(shares))
        assert has_a_lone_image(count, settings) is alone


def test_a_lone_image_is_held_out_from_itself() -> None:
    """As the row says, and as STAD and EfficientAD do with their share; the job failed."""
    method = small_method("stfpm", steps=2, held_out=0.3)
    method.fit(normals(1, seed=1))
    assert method.score(normals(1, seed=2)).pixel.isfinite().all()


def test_every_share_that_a_method_sets_apart_is_said() -> None:
    """Settings named as such shares are, and no other."""
    found: dict[str, Any] = {name: entry(name).presets["paper"].APART for name in METHODS}
    for name, apart in found.items():
        have = [field for field in ("validation", "held_out") if hasattr(entry(name).presets["paper"], field)]
        assert list(apart) == have, name
    assert Settings.APART == ()
