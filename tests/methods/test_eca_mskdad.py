"""ECA-MSKDAD against its formulas in numpy, its augmentation, and its options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kdad_bench.methods.augmentation import Strengths, distorted
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.eca_mskdad import EcaMskdad, distance, relative_loss
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.test_stfpm import squared_distance, taps
from tests.methods.toys import normals, small_method


def batch_of(method: EcaMskdad, images: Tensor) -> Batch:
    with torch.no_grad():
        teacher = method.teacher(images)
    return Batch(images=images, teacher=teacher, step=1, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("mode", ["normalised_mean", "raw_mean", "literal"])
def test_the_relative_loss_is_its_formula(mode: str) -> None:
    (t, t_a), (s, s_a) = (taps(1), taps(2)), (taps(3), taps(4))

    def d(x: Tensor, y: Tensor) -> np.ndarray:
        if mode == "normalised_mean":
            return squared_distance(x, y).mean((1, 2))
        squares = ((x.double() - y.double()) ** 2).sum(1).numpy()
        return squares.mean((1, 2)) if mode == "raw_mean" else squares.sum((1, 2))

    expected = sum(float(((d(t[k], t_a[k]) - d(s[k], s_a[k])) ** 2).mean()) for k in range(3))
    assert float(relative_loss((t, t_a), (s, s_a), mode)) == pytest.approx(expected, rel=1e-4)


def test_the_feature_loss_is_its_formula_on_both_images() -> None:
    method = small_method("eca_mskdad", joint_pass=False, balance=0.5)
    assert isinstance(method, EcaMskdad)
    answers = [taps(5), taps(6)]
    method.student = torch.nn.Identity()
    method.student.forward = lambda images: answers.pop(0)  # type: ignore[method-assign]
    method.teacher.forward = lambda images: taps(7)  # type: ignore[method-assign]
    batch = Batch(images=normals(2, seed=1), teacher=taps(8), step=1, generator=torch.Generator().manual_seed(0))
    terms = method.loss(batch)
    for name, (t, s) in {"feature": (taps(8), taps(5)), "feature_augmented": (taps(7), taps(6))}.items():
        # eq. 8 + lambda * eq. 9, lambda = 0.5: both are half the squared distance of unit vectors
        expected = sum(1.5 * squared_distance(a, b).mean() / 2 for a, b in zip(t, s, strict=True))
        assert float(terms[name]) == pytest.approx(expected, rel=1e-5)


def test_the_relative_loss_reaches_the_student_through_both_images_and_never_the_teacher() -> None:
    method = small_method("eca_mskdad")
    assert isinstance(method, EcaMskdad)
    method.student.train()
    method.loss(batch_of(method, normals(2, seed=1)))["relative"].backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert any(float(p.grad.abs().sum()) > 0 for p in method.student.parameters() if p.grad is not None)
    x, x_a = (torch.randn(2, 4, 3, 3, requires_grad=True) for _ in range(2))
    distance(x, x_a, "normalised_mean").sum().backward()
    assert x.grad is not None
    assert x_a.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert float(x_a.grad.abs().sum()) > 0


def gradient_ratio(method: EcaMskdad, batch: Batch) -> float:
    """|gradient of L_rel| / |gradient of L_feature| over the student's parameters: what the unweighted sum means."""
    method.student.train()
    terms = method.loss(batch)
    parameters = list(method.student.parameters())

    def norm(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        return torch.stack([gradient.square().sum() for gradient in gradients if gradient is not None]).sum().sqrt()

    return float(norm(terms["relative"]) / norm(terms["feature"] + terms["feature_augmented"]))


def test_the_literal_loss_drowns_the_feature_loss() -> None:
    ratios = {}
    for mode in ("normalised_mean", "literal"):
        method = small_method("eca_mskdad", rel_mode=mode)
        assert isinstance(method, EcaMskdad)
        ratios[mode] = gradient_ratio(method, batch_of(method, normals(4, seed=1)))
    assert ratios["normalised_mean"] < 30
    assert ratios["literal"] > 1e4 * ratios["normalised_mean"]


@pytest.mark.parametrize("joint_pass", [True, False])
def test_each_image_is_compared_with_its_own_copy_and_each_network_with_its_own_image(joint_pass: bool) -> None:
    """A student that is the teacher has no loss on either image; with x and x^a exchanged it would have."""
    method = small_method("eca_mskdad", joint_pass=joint_pass)
    assert isinstance(method, EcaMskdad)
    teacher, seen = method.teacher, []
    method.student = torch.nn.Identity()

    def copy_of_the_teacher(images: Tensor) -> tuple[Tensor, ...]:
        seen.append(images.clone())
        found: tuple[Tensor, ...] = teacher(images)
        return found

    method.student.forward = copy_of_the_teacher  # type: ignore[method-assign]
    images = normals(3, seed=1)
    terms = method.loss(batch_of(method, images))
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(dict.fromkeys(terms, 0), abs=1e-5)
    together = torch.cat(seen)
    assert len(seen) == (1 if joint_pass else 2)
    torch.testing.assert_close(together[:3], images)
    assert not torch.allclose(together[3:], images, atol=0.05)


def test_the_teacher_sees_the_distorted_images_too() -> None:
    method = small_method("eca_mskdad")
    assert isinstance(method, EcaMskdad)
    given: list[Tensor] = []
    forward = method.teacher.forward
    method.teacher.forward = lambda images: (given.append(images), forward(images))[1]  # type: ignore[func-returns-value,method-assign]
    batch = batch_of(method, normals(2, seed=1))
    given.clear()
    method.loss(batch)
    (x_a,) = given
    expected = distorted(batch.images, torch.Generator().manual_seed(3), Strengths.simclr(0.5))
    torch.testing.assert_close(x_a, expected)


def test_the_score_can_be_the_mean_of_the_loss() -> None:
    teacher, student = taps(1, count=2), taps(2, count=2)
    scores = small_method("eca_mskdad", score="loss").judge((teacher, student), (64, 64))  # type: ignore[attr-defined]
    expected = sum(squared_distance(t, s).mean((1, 2)) for t, s in zip(teacher, student, strict=True))  # (1 + 1) / 2
    np.testing.assert_allclose(scores.image.numpy(), expected, rtol=1e-5)


def test_the_loss_falls() -> None:
    seen = losses("eca_mskdad", steps=10, batch_size=4)
    assert seen[-1] < 0.8 * seen[0]


def test_each_switch_changes_the_result() -> None:
    assert_variants_differ("eca_mskdad", learning_rate=0.01)


@pytest.mark.parametrize("field", ["rel_mode", "attention", "score"])
def test_unknown_choices_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} 'other' is not known; have: "):
        small_method("eca_mskdad", **{field: "other"})
