"""Shares of the normals that are set apart: as many as are said, and none of them learnt from."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.protocol import Settings
from kdad_bench.methods.training.parting import (
    drawn_evenly,
    has_a_lone_image,
    learners,
    learnt_from,
    parted,
    set_apart,
)
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
        shares = (settings.held_out, getattr(settings, "validation", 0.0))
        learnt = set_apart(torch.arange(count), settings).learnt
        assert len(learnt) == learners(learners(count, shares[1]), shares[0])
        assert learnt_from(count, settings) == len(learnt)
        alone = (count == 1 and any(shares)) or (count == 2 and all(shares))
        assert has_a_lone_image(count, settings) is alone


def test_the_shares_are_drawn_one_after_the_other_and_leave_the_rest() -> None:
    settings = small_settings("stad", validation=0.2, held_out=0.25, seed=5)
    images = normals(10, seed=1)
    learnt, apart, kinds = set_apart(images, settings)
    first, validation = parted(images, 0.2, 5)
    rest, held_out = parted(first, 0.25, 5, "held out")
    for found, wanted in ((apart["validation"], validation), (apart["held_out"], held_out), (learnt, rest)):
        assert torch.equal(found, wanted)
    assert (len(learnt), len(validation), len(held_out), kinds) == (6, 2, 2, None)
    none = set_apart(images, small_settings("stad", validation=0.0))
    assert none.learnt is images
    assert none.apart == {}


@pytest.mark.parametrize("windows", [[4] * 10, [1, 2, 3, 9, 1, 1, 2]])
def test_all_windows_of_an_image_are_on_one_side(windows: list[int]) -> None:
    """Neighbours overlap: what was learnt from one would be known in the other."""
    sources = [image for image, count in enumerate(windows) for _ in range(count)]
    settings = small_settings("stad", validation=0.3, held_out=0.3)
    parts = set_apart(torch.arange(len(sources)), settings, sources)
    sides = [parts.learnt, parts.apart["validation"], parts.apart["held_out"]]
    assert torch.equal(torch.cat(sides).sort().values, torch.arange(len(sources)))
    assert all(torch.equal(side, side.sort().values) for side in sides)
    images = [{sources[window] for window in side.tolist()} for side in sides]
    assert sum(map(len, images)) == len(windows)
    whole = set_apart(torch.arange(len(windows)), settings)  # the same images as where they are whole
    assert images == [set(one.tolist()) for one in (whole.learnt, whole.apart["validation"], whole.apart["held_out"])]
    places = torch.tensor([window for count in windows for window in range(count)])
    assert torch.equal(places[parts.learnt], parts.kinds)  # which window of its image each is


def test_images_learnt_from_are_told_apart_by_category_and_by_place_in_the_picture() -> None:
    settings = small_settings("stad", validation=0.3, held_out=0.3)
    every, categories, sources = torch.arange(24), [k // 2 % 3 for k in range(24)], [k // 2 for k in range(24)]
    parts = set_apart(every, settings, categories=categories)
    assert parts.kinds is not None
    assert parts.kinds.tolist() == [categories[k] for k in parts.learnt]
    both = set_apart(every, settings, sources, categories)
    assert both.kinds is not None
    pairs = [(categories[k], k % 2) for k in both.learnt.tolist()]
    assert len({*pairs}) == len({*both.kinds.tolist()}) == len({*zip(pairs, both.kinds.tolist(), strict=True)}) == 6
    for alike in ({"sources": range(24)}, {"categories": [7] * 24}):
        assert set_apart(every, settings, **alike).kinds is None


@pytest.mark.parametrize("windows", [1, 3])
def test_every_category_gives_its_part_of_what_is_set_apart(windows: int) -> None:
    """One that gives none is scaled by what is usual in others."""
    settings = small_settings("stad", validation=0.2, held_out=0.25)
    categories = [image % 6 for image in range(60) for _ in range(windows)]
    sources = [image for image in range(60) for _ in range(windows)]
    parts = set_apart(torch.arange(len(sources)), settings, sources, categories)
    sides = {"validation": 2, "held_out": 2, "learnt": 6}
    for name, each in sides.items():
        side = parts.learnt if name == "learnt" else parts.apart[name]
        assert Counter(categories[k] for k in side) == dict.fromkeys(range(6), each * windows), name
    few = set_apart(torch.arange(60), small_settings("stad", validation=0.05), None, categories[::windows])
    assert len({k % 6 for k in few.apart["validation"].tolist()}) == 3


@pytest.mark.parametrize("count", [1, 3, 4, 10, 32, 60, 99])
@pytest.mark.parametrize("kinds", [[k % 4 for k in range(60)], [0] * 50 + [1] * 3 + [2] * 7], ids=["even", "uneven"])
def test_as_many_of_each_kind_are_drawn_as_there_are(kinds: list[int], count: int) -> None:
    """In their order, by the seed; a kind has fewer than another only where there are no more of it, or by one."""
    draws = [drawn_evenly(torch.arange(60), torch.tensor(kinds), count, seed, "some").tolist() for seed in (0, 0, 1)]
    for chosen in draws:
        assert chosen == sorted(set(chosen))
        assert len(chosen) == min(count, 60)
        found, have = Counter(kinds[k] for k in chosen), Counter(kinds)
        most = max(found.values())
        assert all(found[kind] >= min(most - 1, have[kind]) for kind in have)
    assert draws[0] == draws[1]
    assert (draws[0] == draws[2]) is (count >= 60)


def test_which_images_are_drawn_never_changes() -> None:
    chosen = drawn_evenly(torch.arange(40), torch.arange(40) % 3, 8, 5, "last layers")
    assert chosen.tolist() == [2, 3, 17, 21, 22, 27, 31, 38]


def test_windows_of_one_image_alone_are_on_both_sides_all_of_them() -> None:
    images = torch.arange(9)
    learnt, apart, _ = set_apart(images, small_settings("efficientad"), [0] * 9)
    assert torch.equal(learnt, images)
    assert torch.equal(apart["validation"], images)
    assert has_a_lone_image(1, small_settings("efficientad"))


@pytest.mark.parametrize("name", [name for name in METHODS if "held_out" in entry(name).presets["quick"].APART])
def test_nothing_is_learnt_from_the_normals_that_select_the_epoch(name: str) -> None:
    """Of the only state there is: with others in their place each number that was learnt is the same."""
    size = {"image_size": 64} if name == "efficientad" else {}
    fits = []
    for other in (False, True):
        method: Any = small_method(name, source="random", steps=2, batch_size=2, held_out=0.3, **size)
        images = normals(10, seed=1)
        held_out = set_apart(torch.arange(10), method.settings).apart["held_out"]
        assert len(held_out) == 3
        if other:
            images[held_out] = 1 - images[held_out]
        method.fit(images)
        fits.append(method.module.state_dict())
    assert [key for key, value in fits[0].items() if not torch.equal(value, fits[1][key])] == []


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
