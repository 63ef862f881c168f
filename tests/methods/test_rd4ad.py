"""RD4AD against its formulas in numpy, and the shapes of its bottleneck and decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from kdad_bench.methods.backbones import build
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.rd4ad import Rd4ad, ReverseStudent
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.test_stfpm import squared_distance, taps
from tests.methods.toys import normals, small_method


def one_minus_cosine(t: Tensor, s: Tensor, distance: str) -> float:
    """1 - cos, the mean over pixels ("cosine") or of each sample's flattened map ("flattened")."""
    if distance == "cosine":
        return float(squared_distance(t, s).mean()) / 2  # 1 - cos = 1/2 |unit difference|^2
    a, b = t.double().numpy().reshape(len(t), -1), s.double().numpy().reshape(len(s), -1)
    cosines = [np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(a, b, strict=True)]
    return 1 - float(np.mean(cosines))


@pytest.mark.parametrize("distance", ["flattened", "cosine"])
def test_the_loss_is_its_formula(distance: str) -> None:
    teacher, restored = taps(1), taps(2)
    expected = sum(one_minus_cosine(t, s, distance) for t, s in zip(teacher, restored, strict=True))
    method = small_method("rd4ad", distance=distance)
    assert isinstance(method, Rd4ad)
    method.student = nn.Identity()
    method.student.forward = lambda given: restored  # type: ignore[method-assign]
    batch = Batch(images=normals(2, seed=1), teacher=teacher, step=1, generator=torch.Generator())
    assert float(method.loss(batch)["feature"]) == pytest.approx(expected, rel=1e-5)


def test_the_map_is_the_blurred_sum_with_aligned_corners() -> None:
    teacher, restored = taps(1, count=1), taps(2, count=1)
    total = np.zeros((64, 64))
    for t, s in zip(teacher, restored, strict=True):
        small = squared_distance(t, s)[0] / 2
        grid = np.linspace(0, small.shape[0] - 1, 64)  # aligned corners: first on first, last on last
        low = np.minimum(grid.astype(int), small.shape[0] - 2)
        part = grid - low
        rows = small[low] * (1 - part)[:, None] + small[low + 1] * part[:, None]
        total += rows[:, low] * (1 - part) + rows[:, low + 1] * part
    expected = gaussian_filter(total, 4.0)
    scores = small_method("rd4ad", sigma=4.0).judge((teacher, restored), (64, 64))  # type: ignore[attr-defined]
    np.testing.assert_allclose(scores.pixel[0].numpy(), expected, rtol=2e-5, atol=1e-6)
    assert float(scores.image[0]) == pytest.approx(expected.max(), rel=2e-5)


@pytest.mark.parametrize(
    ("name", "bottleneck", "decoder"),
    [
        # by hand from the official layout, e = 1: fusion, then two blocks 768 -> 512 -> 512 with their shortcut
        (
            "resnet18",
            (64 * 128 * 9 + 2 * 128)
            + 2 * (128 * 256 * 9 + 2 * 256)
            + (768 * 512 * 9 + 3 * 512 * 512 * 9 + 768 * 512 + 5 * 2 * 512),
            sum(
                # first block: 2x2 transposed twice (main, shortcut) and a 3x3; second block: two 3x3; five norms
                2 * (i * o * 4) + 3 * o * o * 9 + 5 * 2 * o
                for i, o in ((512, 256), (256, 128), (128, 64))
            ),
        ),
    ],
)
def test_bottleneck_and_decoder_have_the_parameters_counted_by_hand(name: str, bottleneck: int, decoder: int) -> None:
    student = ReverseStudent(build(name), signed=False)
    assert sum(p.numel() for p in student.bottleneck.parameters()) == bottleneck
    assert sum(p.numel() for p in student.decoder.parameters()) == decoder


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "wide_resnet50_2", "vgg16", "efficientnet_lite0"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
def test_what_is_restored_has_the_shapes_of_the_taps(name: str, height: int, width: int) -> None:
    with torch.device("meta"):
        teacher = build(name)
        student = ReverseStudent(teacher, signed=False)
        given = teacher(torch.empty(2, 3, height, width))
        code = student.bottleneck(given)
        assert [tap.shape for tap in student(given)] == [tap.shape for tap in given]
    widths = {"wide_resnet50_2": 2048, "efficientnet_lite0": 320}
    assert tuple(code.shape) == (2, widths.get(name, 512), height // 32, width // 32)


def test_linear_taps_are_restored_with_their_negative_values() -> None:
    lite, resnet = build("efficientnet_lite0"), build("resnet18")
    for teacher in (lite, resnet):
        given = tuple(torch.randn(1, c, 64 // s, 64 // s) for c, s in zip(teacher.channels, (4, 8, 16), strict=True))
        restored = ReverseStudent(teacher, signed=teacher.signed)(given)
        assert all((float(tap.detach().min()) < 0) == teacher.signed for tap in restored)


def test_the_loss_falls() -> None:
    seen = losses("rd4ad", steps=10, batch_size=4)
    assert seen[-1] < 0.8 * seen[0]


def test_the_per_pixel_loss_changes_what_is_learnt() -> None:
    assert_variants_differ("rd4ad")


def test_an_unknown_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="distance 'manhattan' is not known; have: flattened, cosine"):
        small_method("rd4ad", distance="manhattan")
