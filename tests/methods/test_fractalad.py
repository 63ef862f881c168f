"""FractalAD's head, losses, switches and learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kdad_bench.methods.backbones import Backbone, build
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.fractalad import FRACTALAD, FractalAD, FractalADSettings
from kdad_bench.methods.fractalad.anomaly import anomalous
from kdad_bench.methods.fractalad.detector import weighted
from kdad_bench.methods.fractalad.segmentation import SegmentationHead, dice_loss, segmentation_loss, warp
from kdad_bench.methods.protocol import Fitting
from tests.methods.toys import CPU, auroc, normals, with_defects

TINY = FractalADSettings(
    teacher="efficientnet_lite0",
    strides=(4, 8),
    image_size=32,
    steps=3,
    batch_size=4,
    head_width=8,
    fractal_points=500,
    norm_momentum=0.1,
)


def teacher(settings: FractalADSettings = TINY) -> Backbone:
    torch.manual_seed(3)
    return build(settings.teacher, strides=settings.strides)


def detector(**changes: object) -> FractalAD:
    settings = replace(TINY, **changes)
    return FRACTALAD.build(settings, teacher(settings), CPU)  # type: ignore[return-value]


def batch(method: FractalAD, seed: int = 5) -> Batch:
    images = normals(4, 1, 32)
    with torch.no_grad():
        taps = method.teacher(images)
    return Batch(images=images, teacher=taps, step=1, generator=torch.Generator().manual_seed(seed))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum(axis=1, keepdims=True))


def test_the_loss_is_what_numpy_makes_of_its_formulas() -> None:
    method = detector()
    method.student.train()
    terms = method.loss(batch(method))
    keys = torch.randint(2**31, (4, 2), generator=torch.Generator().manual_seed(5)).tolist()
    clean, pasted, masks = anomalous(normals(4, 1, 32), keys, points=500)
    networks = method.student
    with torch.no_grad():
        t_clean, t_pasted = method.teacher(clean), method.teacher(pasted)
        s_clean, s_pasted = networks.network(clean), networks.network(pasted)
        attended = []
        expected = 0.0
        for t, s in zip(t_clean, s_clean, strict=True):
            expected += (1 - (unit(t.numpy()) * unit(s.numpy())).sum(axis=1)).mean()
        for t, s in zip(t_pasted, s_pasted, strict=True):
            cosine = (unit(t.numpy()) * unit(s.numpy())).sum(axis=1, keepdims=True)
            attended.append(torch.from_numpy((1 - cosine) / 2 * s.numpy()))
        logits = networks.head(attended, (32, 32)).double().numpy()
    assert terms["distillation"].item() == pytest.approx(expected, rel=1e-4)
    p, g = 1 / (1 + np.exp(-logits)), masks.numpy().astype(np.float64)
    cross_entropy = -(g * np.log(p) + (1 - g) * np.log(1 - p)).mean()
    dice = 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
    assert terms["segmentation"].item() == pytest.approx(cross_entropy + dice, rel=1e-4)
    assert g.sum() > 0


def test_the_attention_weights_the_students_features_by_half_the_cosine_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    t, s = torch.randn(2, 2, 5, 3, 3, generator=generator)
    s = s.requires_grad_()
    (answer,) = weighted([t], [s])
    cosine = (unit(t.numpy()) * unit(s.detach().numpy())).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer.numpy(), (1 - cosine) / 2 * s.detach().numpy(), atol=1e-6)
    assert not answer.requires_grad


def test_the_segmentation_loss_reaches_the_head_and_never_the_student() -> None:
    method = detector()
    method.student.train()
    terms = method.loss(batch(method))
    terms["segmentation"].backward()
    assert all(p.grad is None for p in method.student.network.parameters())
    reached = [p.grad is not None and bool(p.grad.any()) for p in method.student.head.parameters()]
    assert all(reached)
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())


def test_the_distillation_loss_reaches_the_student_and_never_the_head() -> None:
    method = detector()
    method.student.train()
    method.loss(batch(method))["distillation"].backward()
    assert all(p.grad is None for p in method.student.head.parameters())
    reached = [p.grad is not None for p in method.student.network.parameters()]
    assert all(reached)


@pytest.mark.parametrize("kd", [True, False])
def test_training_leaves_the_teacher_bit_for_bit(kd: bool) -> None:
    method = detector(kd=kd)
    before = {key: value.clone() for key, value in method.teacher.network.state_dict().items()}
    start = {key: value.clone() for key, value in method.student.state_dict().items()}
    method.fit(normals(6, 2, 32))
    after = method.teacher.network.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert any(not torch.equal(method.student.state_dict()[key], value) for key, value in start.items())


def test_both_passes_of_a_step_move_the_students_batch_norms() -> None:
    method = detector()
    method.student.train()
    method.loss(batch(method))
    counts = [int(m.num_batches_tracked) for m in method.student.network.modules() if hasattr(m, "num_batches_tracked")]
    assert counts
    assert set(counts) == {2}


def test_without_distillation_there_is_no_student_and_one_term() -> None:
    method = detector(kd=False)
    assert method.student.network is None
    assert set(method.loss(batch(method))) == {"segmentation"}
    assert FRACTALAD.variants["no_kd"] == {"kd": False, "weight_decay": 1e-2}


@pytest.mark.parametrize(("variant", "decay"), [("kd", 1e-3), ("no_kd", 1e-2)])
def test_everything_that_learns_is_given_to_adamw_with_the_weight_decay_of_the_case(variant: str, decay: float) -> None:
    method = detector(**FRACTALAD.variants[variant])
    optimiser = method.optimiser()
    assert isinstance(optimiser, torch.optim.AdamW)
    (group,) = optimiser.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (1e-3, decay, (0.9, 0.999))
    learnt = {id(p) for p in group["params"]}
    assert learnt == {id(p) for p in method.student.parameters()}


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    images = normals(6, 2, 32)
    maps = []
    for seed in (1, 1, 2):
        method = detector(seed=seed)
        torch.rand(3)  # the caller's random state must not matter
        method.fit(images)
        maps.append(method.score(normals(3, 9, 32)).pixel)
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


def test_every_switch_changes_the_result() -> None:
    images, test = normals(6, 2, 32), normals(2, 9, 32)

    def maps(**changes: object) -> Tensor:
        method = detector(**changes)
        method.fit(images)
        return method.score(test).pixel

    plain = maps()
    for change in ({"kd": False}, {"find_object": True}, {"fractal_points": 40}, {"head_width": 4}):
        assert not torch.equal(plain, maps(**change)), change


def test_the_image_score_is_the_mean_of_the_networks_own_map() -> None:
    method = detector()
    images = normals(3, 4, 32)
    scores = method.score(images)
    assert scores.pixel.shape == (3, 32, 32)
    assert scores.pixel.dtype == scores.image.dtype == torch.float32
    assert (scores.pixel > 0).all()
    assert (scores.pixel < 1).all()
    torch.testing.assert_close(scores.image, scores.pixel.mean(dim=(1, 2)))
    large = method.score(normals(3, 4, 48))
    assert large.pixel.shape == (3, 48, 48)


def test_scores_do_not_depend_on_the_batch_nor_on_inference_mode() -> None:
    method = detector()
    method.fit(normals(6, 2, 32))
    images = normals(5, 4, 32)
    together = method.score(images)
    with torch.inference_mode():
        alone = [method.score(images[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(together.pixel, torch.cat([a.pixel for a in alone]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.image, torch.cat([a.image for a in alone]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "efficientnet_lite0"])
def test_a_teacher_of_any_family_trains_at_its_four_taps(name: str) -> None:
    method = detector(teacher=name, strides=(4, 8, 16, 32), steps=1, batch_size=2)
    seen: list[float] = []
    method.fit(normals(2, 2, 32), Fitting(log=lambda step, terms: seen.append(terms["loss"])))
    assert len(seen) == 1
    assert method.score(normals(1, 3, 32)).pixel.isfinite().all()


def test_training_lowers_the_loss_and_finds_defects_that_the_untrained_detector_does_not() -> None:
    method = detector(image_size=64, strides=(4, 8, 16), steps=24, batch_size=8, learning_rate=5e-3, head_width=16)
    good, (bad, masks) = normals(12, 70), with_defects(12, 71)
    labels = torch.arange(24) >= 12

    def judged() -> tuple[float, float]:
        scores = method.score(torch.cat([good, bad]))
        return auroc(scores.image, labels), auroc(scores.pixel[12:], masks)

    before = judged()
    seen: list[dict[str, float]] = []
    method.fit(normals(12, 2), Fitting(log_every=1, log=lambda step, terms: seen.append(dict(terms))))
    image, pixel = judged()
    for term in ("distillation", "segmentation"):
        assert np.mean([s[term] for s in seen[-4:]]) < 0.8 * np.mean([s[term] for s in seen[:4]])
    assert image > max(0.9, before[0] + 0.1)
    assert pixel > max(0.9, before[1] + 0.1)


def test_dice_is_zero_for_a_perfect_answer_and_near_one_for_a_wrong_one() -> None:
    mask = torch.zeros(2, 8, 8)
    mask[0, :4] = 1
    assert dice_loss(mask, mask).item() == pytest.approx(0.0, abs=1e-7)
    assert dice_loss(1 - mask, mask).item() == pytest.approx(1 - 1 / 129)
    confident = (2 * mask - 1) * 30
    assert segmentation_loss(confident, mask).item() == pytest.approx(0.0, abs=1e-6)


def test_warping_keeps_the_half_pixel_of_the_official_code() -> None:
    """Zero flow reads at i / (h - 1) * h - 1/2, zero beyond the border; a flow of (1, 0) reads from i + 1."""
    maps = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    flow = torch.zeros(1, 2, 5, 7)

    def sampled(array: np.ndarray, row: float, column: float) -> np.ndarray:
        top, left = int(np.floor(row)), int(np.floor(column))
        total = np.zeros(2)
        for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= i < 5 and 0 <= j < 7:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * array[:, i, j]
        return total

    for shift in (0, 1):
        flow[:, 0] = shift
        warped = warp(maps, flow)[0].numpy()
        for i, j in np.ndindex(5, 7):
            expected = sampled(maps[0].numpy(), i / 4 * 5 - 0.5, (j + shift) / 6 * 7 - 0.5)
            np.testing.assert_allclose(warped[:, i, j], expected, atol=1e-5)


def test_the_head_answers_at_the_size_asked_for_even_from_single_pixels() -> None:
    head = SegmentationHead((3, 5, 7, 9), 8).eval()
    taps = [torch.rand(2, c, n, n) for c, n in ((3, 8), (5, 4), (7, 2), (9, 1))]
    assert head(taps, (32, 32)).shape == (2, 32, 32)
