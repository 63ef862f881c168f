"""DSKD and BMKD: loss and map against numpy, who is fed by whom, and that every switch matters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from kdad_bench.methods.backbones import Eca
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.dual_student import BMKD, DSKD, DeepestTap, DualStudent, DualStudents, ResidualFusion
from kdad_bench.methods.reverse import Bottleneck
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.test_rd4ad import one_minus_cosine
from tests.methods.test_stfpm import bilinear, squared_distance, taps
from tests.methods.toys import normals, small_method, teacher_of


def dual(name: str, **changes: object) -> tuple[DualStudent, DualStudents]:
    method = small_method(name, **changes)
    assert isinstance(method, DualStudent)
    assert isinstance(method.student, DualStudents)
    return method, method.student


@pytest.mark.parametrize("distance", ["cosine", "flattened"])
def test_the_loss_is_the_sum_over_students_and_scales(distance: str) -> None:
    method, _ = dual("dskd", distance=distance)
    teacher, seen, restored = taps(1), taps(2), taps(3)
    method.student.forward = lambda images, given: (seen, restored)  # type: ignore[method-assign]
    batch = Batch(images=normals(2, seed=1), teacher=teacher, step=1, generator=torch.Generator())
    expected = sum(
        one_minus_cosine(t, s, distance) for answer in (seen, restored) for t, s in zip(teacher, answer, strict=True)
    )
    assert float(method.loss(batch)["feature"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("over_scales", ["sum", "product"])
@pytest.mark.parametrize("over_students", ["sum", "product"])
def test_the_map_is_its_formula(over_scales: str, over_students: str) -> None:
    method, _ = dual("bmkd", over_scales=over_scales, over_students=over_students, sigma=4.0)
    outputs = taps(1, count=1), taps(2, count=1), taps(3, count=1)
    fused = np.zeros((64, 64)) if over_scales == "sum" else np.ones((64, 64))
    for t, a, b in zip(*outputs, strict=True):
        d_a, d_b = squared_distance(t, a)[0] / 2, squared_distance(t, b)[0] / 2
        up = bilinear(d_a + d_b if over_students == "sum" else d_a * d_b, 64)
        fused = fused + up if over_scales == "sum" else fused * up
    expected = gaussian_filter(fused, 4.0)
    scores = method.judge(outputs, (64, 64))
    np.testing.assert_allclose(scores.pixel[0].numpy(), expected, rtol=2e-5, atol=1e-6)
    assert float(scores.image[0]) == pytest.approx(expected.max(), rel=2e-5)


def test_bmkd_is_dskd_with_attention_and_residual_fusion() -> None:
    (_, plain), (_, both) = dual("dskd"), dual("bmkd")
    assert isinstance(plain.bottleneck, Bottleneck)
    assert isinstance(both.bottleneck, ResidualFusion)
    assert not any(isinstance(module, Eca) for module in plain.modules())
    assert any(isinstance(module, Eca) for module in both.forward_student.modules())
    assert not any(isinstance(module, Eca) for module in both.decoder.modules())


@pytest.mark.parametrize(
    ("changes", "reaches"),
    [
        ({}, True),
        ({"fusion": "deepest"}, True),
        ({"fed_by": "both"}, True),
        ({"detach": True}, False),
        ({"detach": True, "fed_by": "both"}, False),
        ({"detach": True, "fusion": "deepest"}, False),
        ({"fed_by": "teacher"}, False),
    ],
)
@pytest.mark.parametrize("name", ["dskd", "bmkd"])
def test_the_reverse_students_gradient_reaches_the_forward_student_unless_told_otherwise(
    name: str, changes: dict[str, object], reaches: bool
) -> None:
    method, students = dual(name, **changes)
    images = normals(2, seed=1)
    students.train()
    with torch.no_grad():
        given = method.teacher(images)
    _, restored = students(images, given)
    sum(tap.square().sum() for tap in restored).backward()  # type: ignore[union-attr]
    touched = any(parameter.grad is not None for parameter in students.forward_student.parameters())
    assert touched == reaches
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.grad is not None for parameter in students.decoder.parameters())


@pytest.mark.parametrize("fusion", ["plain", "ffrm", "deepest"])
@pytest.mark.parametrize("fed_by", ["student", "teacher", "both"])
def test_the_embedding_sees_the_taps_of_whoever_feeds_it(fed_by: str, fusion: str) -> None:
    """The student's first where both do; handed over unchanged, so that a wrong order would show."""
    method, students = dual("dskd", fed_by=fed_by, fusion=fusion)
    seen: list[tuple[torch.Tensor, ...]] = []
    students.bottleneck.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = normals(2, seed=1)
    with torch.no_grad():
        teacher = method.teacher(images)
        forward, restored = students.eval()(images, teacher)
    both = tuple(torch.cat(pair, dim=1) for pair in zip(forward, teacher, strict=True))
    expected = {"student": forward, "teacher": teacher, "both": both}[fed_by]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen[0], expected, strict=True))
    assert [tap.shape for tap in restored] == [tap.shape for tap in teacher]


@pytest.mark.parametrize("fed", [1, 2])
def test_the_deepest_tap_alone_is_all_that_its_embedding_sees(fed: int) -> None:
    kind = DeepestTap(teacher_of("efficientnet_lite0"), fed).eval()
    given = tuple(torch.cat([tap] * fed, dim=1) for tap in taps(1))
    other = (*(tap + 1 for tap in given[:2]), given[2])
    with torch.no_grad():
        torch.testing.assert_close(kind(given), kind.embedding(given[2]))
        assert torch.equal(kind(given), kind(other))


def test_residual_fusion_of_two_networks_keeps_the_first_ones_deepest_tap() -> None:
    fusion = ResidualFusion(teacher_of("efficientnet_lite0"), 2).eval()
    given = tuple(torch.cat(pair, dim=1) for pair in zip(taps(1), taps(2), strict=True))
    with torch.no_grad():
        fusion.residual[1].weight.zero_()  # type: ignore[operator,union-attr]
        torch.testing.assert_close(fusion(given), fusion.embedding(torch.relu(taps(1)[2])))


def test_the_default_is_the_pyramid_term_and_flattening_a_variant() -> None:
    for one in (DSKD, BMKD):
        assert {settings.distance for settings in one.presets.values()} == {"cosine"}
        assert one.variants["flattened"] == {"distance": "flattened"}
        assert {"both_fed", "deepest_tap", "teacher_fed", "detached"} < set(one.variants)
        assert not any(settings.detach for settings in one.presets.values())


def test_residual_fusion_is_the_deepest_tap_plus_what_all_three_say() -> None:
    fusion = ResidualFusion(teacher_of("efficientnet_lite0")).eval()
    given = taps(1)
    with torch.no_grad():
        expected = fusion.embedding(torch.relu(given[2] + fusion.residual(fusion.fusion(given))))
        torch.testing.assert_close(fusion(given), expected)
        fusion.residual[1].weight.zero_()  # type: ignore[operator,union-attr]
        torch.testing.assert_close(fusion(given), fusion.embedding(torch.relu(given[2])))


@pytest.mark.parametrize("name", ["dskd", "bmkd"])
def test_the_loss_falls(name: str) -> None:
    seen = losses(name, steps=10, batch_size=4)
    assert seen[-1] < 0.8 * seen[0]


def test_each_switch_changes_the_result() -> None:
    """BMKD's variants are DSKD's and more."""
    assert set(DSKD.variants) < set(BMKD.variants)
    assert_variants_differ("bmkd")


@pytest.mark.parametrize("field", ["distance", "attention", "fusion", "fed_by", "over_scales", "over_students"])
def test_unknown_choices_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} 'other' is not known; have: "):
        small_method("bmkd", **{field: "other"})
