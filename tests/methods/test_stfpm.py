"""STFPM against its formulas in numpy, and its options."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.stfpm import Stfpm
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.toys import normals, small_method

Array = npt.NDArray[np.float64]


def taps(seed: int, count: int = 2) -> tuple[Tensor, ...]:
    """Random features shaped as Lite0's of 64 x 64 images."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, c, s, s, generator=generator) for c, s in ((24, 16), (40, 8), (112, 4)))


def squared_distance(t: Tensor, s: Tensor) -> Array:
    """|t/|t| - s/|s||^2 per pixel, one pixel at a time."""
    a, b = t.double().numpy(), s.double().numpy()
    answer = np.empty((a.shape[0], *a.shape[2:]))
    for n, i, j in np.ndindex(answer.shape):
        u, v = a[n, :, i, j], b[n, :, i, j]
        answer[n, i, j] = np.sum((u / np.sqrt(np.sum(u * u)) - v / np.sqrt(np.sum(v * v))) ** 2)
    return answer


def bilinear(image: Array, size: int) -> Array:
    """Upsampling with pixel centres at half integers, edges repeated."""
    out = np.empty((size, size))
    for y, x in np.ndindex(out.shape):
        v = min(max((y + 0.5) * image.shape[0] / size - 0.5, 0), image.shape[0] - 1)
        u = min(max((x + 0.5) * image.shape[1] / size - 0.5, 0), image.shape[1] - 1)
        i, j = min(int(v), image.shape[0] - 2), min(int(u), image.shape[1] - 2)
        a, b = v - i, u - j
        out[y, x] = (image[i, j] * (1 - b) + image[i, j + 1] * b) * (1 - a) + (
            image[i + 1, j] * (1 - b) + image[i + 1, j + 1] * b
        ) * a
    return out


def method_with_student(answer: tuple[Tensor, ...], **changes: object) -> Stfpm:
    """STFPM whose student answers with `answer` whatever it sees."""
    method = small_method("stfpm", **changes)
    assert isinstance(method, Stfpm)
    method.student = torch.nn.Identity()
    method.student.forward = lambda images: answer  # type: ignore[method-assign]
    return method


@pytest.mark.parametrize(("scale", "factor"), [("official", 1.0), ("paper", 0.5), ("batch_sum", 0.5 * 2)])
def test_the_loss_is_its_formula_at_every_scale(scale: str, factor: float) -> None:
    teacher, student = taps(1), taps(2)
    method = method_with_student(student, loss_scale=scale)
    batch = Batch(images=normals(2, seed=1), teacher=teacher, step=1, generator=torch.Generator())
    expected = factor * sum(squared_distance(t, s).mean() for t, s in zip(teacher, student, strict=True))
    assert float(sum(method.loss(batch).values())) == pytest.approx(expected, rel=1e-5)


def test_the_map_is_the_product_at_the_finest_tap_and_the_score_its_maximum() -> None:
    teacher, student = taps(1, count=1), taps(2, count=1)
    scores = small_method("stfpm").judge((teacher, student), (64, 64))  # type: ignore[attr-defined]
    product = np.ones((16, 16))
    for t, s in zip(teacher, student, strict=True):
        product = product * bilinear(squared_distance(t, s)[0], 16)
    expected = bilinear(product, 64)
    np.testing.assert_allclose(scores.pixel[0].numpy(), expected, rtol=2e-5, atol=1e-6)
    assert float(scores.image[0]) == pytest.approx(expected.max(), rel=2e-5)


def test_a_student_that_equals_the_teacher_has_no_loss_and_an_empty_map() -> None:
    teacher = taps(1)
    method = method_with_student(teacher)
    batch = Batch(images=normals(2, seed=1), teacher=teacher, step=1, generator=torch.Generator())
    assert float(method.loss(batch)["feature"]) == pytest.approx(0, abs=1e-6)
    assert float(method.judge((teacher, teacher), (64, 64)).pixel.abs().max()) < 1e-6


def test_the_loss_falls() -> None:
    seen = losses("stfpm", steps=10, batch_size=4)
    assert seen[-1] < 0.8 * seen[0]


def test_loss_scales_change_what_is_learnt() -> None:
    assert_variants_differ("stfpm")


def test_an_unknown_loss_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="loss_scale 'half' is not known; have: official, paper, batch_sum"):
        small_method("stfpm", loss_scale="half")
