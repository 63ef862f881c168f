"""What the yardsticks have in common: what is kept, saved and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.checkpoint import ModelError, load, save
from kdad_bench.methods.frozen_features import FrozenFeatures, Kept
from kdad_bench.methods.protocol import FAMILIES
from tests.methods.toys import CPU, normals, small_method, small_settings, teacher_of, with_defects

YARDSTICKS = tuple(name for name in METHODS if entry(name).family == "yardstick")

ALL_PATCHES = {"patchcore": {"coreset": 1.0}}  # a coreset's choice follows from the last digits


def test_families_tell_floor_yardsticks_and_students_apart() -> None:
    families = {name: entry(name).family for name in METHODS}
    assert set(families.values()) == set(FAMILIES)
    assert YARDSTICKS == ("padim", "spade", "patchcore")
    assert [name for name, family in families.items() if family == "floor"] == ["pixel_mean"]
    for name in METHODS:
        built = small_method(name)
        assert isinstance(built, FrozenFeatures) == (entry(name).family == "yardstick")


@pytest.mark.parametrize("name", YARDSTICKS)
def test_before_any_fit_every_score_is_zero(name: str) -> None:
    scores = small_method(name).score(with_defects(2, seed=1)[0])
    assert float(scores.image.abs().max()) == float(scores.pixel.abs().max()) == 0


@pytest.mark.parametrize("name", YARDSTICKS)
def test_what_was_kept_comes_back_from_a_file(name: str, tmp_path: Path) -> None:
    method = small_method(name)
    method.fit(normals(5, seed=1))
    save(name, method, tmp_path)
    again = load(tmp_path)[1]
    probe = with_defects(2, seed=2)[0]
    assert torch.equal(again.score(probe).pixel, method.score(probe).pixel)
    assert torch.equal(again.score(probe).image, method.score(probe).image)


def test_a_file_that_lacks_what_was_kept_is_refused(tmp_path: Path) -> None:
    method = small_method("patchcore")
    method.fit(normals(2, seed=1))
    save("patchcore", method, tmp_path)
    other = small_method("padim", strides=(8, 16), image_size=64)
    save("padim", other, tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").replace(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: not the weights"):
        load(tmp_path)


@pytest.mark.parametrize("name", YARDSTICKS)
def test_what_is_kept_does_not_depend_on_the_batch(name: str) -> None:
    images, probe = normals(7, seed=1), with_defects(2, seed=2)[0]
    maps = []
    for size in (1, 3, 7):
        method = small_method(name, batch_size=size, **ALL_PATCHES.get(name, {}))
        method.fit(images)
        maps.append(method.score(probe).pixel)
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], rtol=2e-3, atol=2e-3 * float(maps[0].max()))


@pytest.mark.parametrize("name", YARDSTICKS)
def test_one_normal_image_is_enough_and_is_itself_normal(name: str) -> None:
    method = small_method(name, **ALL_PATCHES.get(name, {}))
    image = normals(1, seed=1)
    method.fit(image)
    own, other = method.score(image), method.score(with_defects(1, seed=1)[0])
    assert float(own.pixel.max()) < 0.01 * float(other.pixel.max())
    assert bool(other.pixel.isfinite().all())


@pytest.mark.parametrize("name", YARDSTICKS)
def test_nothing_to_learn_from_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="N > 0"):
        small_method(name).fit(torch.empty(0, 3, 64, 64))


@pytest.mark.parametrize("name", YARDSTICKS)
def test_a_teacher_with_other_taps_is_refused(name: str) -> None:
    settings = small_settings(name)
    for teacher in (None, teacher_of("efficientnet_lite0", (16,))):
        with pytest.raises(ValueError, match="needs a teacher with taps at strides"):
            entry(name).build(settings, teacher, CPU)


@pytest.mark.parametrize("name", YARDSTICKS)
def test_standardised_taps_are_centred_by_the_normals(name: str) -> None:
    plain, standardised = small_method(name), small_method(name, taps="standardised")
    for method in (plain, standardised):
        method.fit(normals(4, seed=1))
    probe = with_defects(2, seed=2)[0]
    assert not torch.equal(plain.score(probe).pixel, standardised.score(probe).pixel)
    assert float(standardised.teacher.deviation0.std()) > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", YARDSTICKS)
def test_deviations_follow_from_the_settings(name: str) -> None:
    paper, quick = entry(name).presets["paper"], entry(name).presets["quick"]
    assert [one.partition(":")[0] for one in paper.deviations] == ["input"]
    said = {one.partition(":")[0] for one in quick.deviations}
    assert {"input", "teacher", "sigma"} <= said
    assert "whole images at 128 px" in " ".join(quick.deviations)


def test_a_name_that_is_not_kept_is_refused() -> None:
    with pytest.raises(AttributeError, match="other"):
        Kept("memory").keep(other=torch.zeros(1))
