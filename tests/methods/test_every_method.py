"""The checks of every method: that the right ones pass, and that methods with one fault do not."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.protocol import Fitting, Method
from kdad_bench.methods.stfpm import Stfpm
from tests.methods import checks
from tests.methods.toys import CPU, normals, small_method, small_settings, teacher_of
from tests.wrong import methods as wrong

STUDENT_TEACHER = tuple(name for name in METHODS if entry(name).needs_teacher)
OWN_TESTS = ("mkd", "fractalad", "destseg", "ast")  # trained in their own tests; here only what is cheap
TRAINED = tuple(name for name in METHODS if name not in OWN_TESTS)


@cache
def trained(name: str) -> Method:
    method = small_method(name, steps=20)
    method.fit(normals(24, seed=1))
    return method


@pytest.mark.parametrize("name", METHODS)
def test_answers_have_the_shape_of_the_images(name: str) -> None:
    checks.answers_have_the_shape_of_the_images(small_method(name))


@pytest.mark.parametrize("name", STUDENT_TEACHER)
def test_the_teacher_is_never_trained(name: str) -> None:
    checks.the_teacher_is_never_trained(small_method(name, steps=2, batch_size=4))


@pytest.mark.parametrize("name", TRAINED)
def test_scoring_changes_nothing(name: str) -> None:
    checks.scoring_changes_nothing(trained(name))


@pytest.mark.parametrize("name", TRAINED)
def test_scores_do_not_depend_on_the_batch(name: str) -> None:
    checks.scores_do_not_depend_on_the_batch(trained(name))


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "pixel_mean"])
def test_a_trained_method_finds_defects_that_it_does_not_find_untrained(name: str) -> None:
    checks.defects_stand_out(trained(name), image=0.9, pixel=0.9)
    with pytest.raises(AssertionError, match="AUROC"):
        checks.defects_stand_out(small_method(name), image=0.9, pixel=0.9)


@pytest.mark.parametrize("name", METHODS)
def test_the_seed_decides_everything(name: str) -> None:
    checks.the_seed_decides_everything(lambda: small_method(name, steps=2, batch_size=4))


def test_another_seed_gives_another_model() -> None:
    methods = [small_method("stfpm", seed=seed) for seed in (0, 1)]
    for method in methods:
        method.fit(normals(8, seed=3))
    first, second = (checks.state(method)["student.network._conv_stem.weight"] for method in methods)
    assert not torch.equal(first, second)


def faulty(kind: type[Stfpm], steps: int = 2) -> Stfpm:
    return kind(small_settings("stfpm", steps=steps), _fresh_teacher(), CPU)


def _fresh_teacher():  # type: ignore[no-untyped-def]  # faulty methods spoil the one they get
    teacher_of.cache_clear()
    found = teacher_of("efficientnet_lite0")
    teacher_of.cache_clear()
    return found


@pytest.mark.parametrize("kind", [wrong.TrainsTheTeacher, wrong.MovesTheTeachersNorms])
def test_a_method_that_trains_its_teacher_is_rejected(kind: type[Stfpm]) -> None:
    with pytest.raises(AssertionError, match="changed the teacher"):
        checks.the_teacher_is_never_trained(faulty(kind))


def test_a_method_that_flips_the_sign_is_rejected() -> None:
    flipped = faulty(wrong.FlipsTheSign)
    flipped.module.load_state_dict(trained("stfpm").module.state_dict())
    checks.defects_stand_out(trained("stfpm"))
    with pytest.raises(AssertionError, match="AUROC"):
        checks.defects_stand_out(flipped)


def test_a_method_that_normalises_over_the_test_batch_is_rejected() -> None:
    with pytest.raises(AssertionError, match="depends on the batch"):
        checks.scores_do_not_depend_on_the_batch(faulty(wrong.NormalisesOverTheTestBatch))


@pytest.mark.parametrize("kind", [wrong.PeeksAtTheTestImages, wrong.AdaptsItsNorms])
def test_a_method_that_learns_from_test_images_is_rejected(kind: type[Stfpm]) -> None:
    with pytest.raises(AssertionError, match=r"scored before|changed the state"):
        checks.scoring_changes_nothing(faulty(kind))


def test_a_method_that_ignores_its_seed_is_rejected() -> None:
    with pytest.raises(AssertionError, match=r"random state|another model"):
        checks.the_seed_decides_everything(lambda: faulty(wrong.IgnoresTheSeed))


@pytest.mark.parametrize("kind", [wrong.LearnsNothing, wrong.CopiesTheTeacher])
def test_a_method_that_learns_nothing_is_rejected(kind: type[Stfpm]) -> None:
    method = faulty(kind)
    method.fit(normals(8, seed=1), Fitting())
    with pytest.raises(AssertionError, match="AUROC"):
        checks.defects_stand_out(method)
