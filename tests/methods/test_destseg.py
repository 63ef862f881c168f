"""DeSTSeg against its formulas: networks, products, losses, what is pasted; and faulty ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import build
from kdad_bench.methods.destseg import DESTSEG
from kdad_bench.methods.destseg.detector import Destseg, at_size, denoising_loss, focal_loss
from kdad_bench.methods.destseg.networks import AtrousPyramid, DenoisingStudent, SegmentationHead, products
from kdad_bench.methods.destseg.pasting import anomalous, drawn_keys, shuffled, turned
from kdad_bench.methods.distillation import Batch, Taps
from tests.methods import checks
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.test_rd4ad import one_minus_cosine
from tests.methods.test_stfpm import taps
from tests.methods.toys import normals, small_method


def method_of(**changes: Any) -> Destseg:
    found = small_method("destseg", source="random", **changes)
    assert isinstance(found, Destseg)
    return found


def count_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def stage(inputs: int, outputs: int) -> int:
    """Two residual blocks: convolutions without bias, norms, and a projection where the width changes."""
    first = 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs
    shortcut = inputs * outputs + 2 * outputs if inputs != outputs else 0
    return first + shortcut + 18 * outputs * outputs + 4 * outputs


def test_the_papers_networks_have_the_parameters_counted_by_hand() -> None:
    with torch.device("meta"):
        student = DenoisingStudent(build("resnet18"), signed=False)
        head = SegmentationHead(448, 256)
    encoder = (
        64 * 3 * 49 + 128 + sum(stage(a, b) for a, b in pairwise((64, 64, 128, 256, 512)))
    )  # torchvision's ResNet-18 without its classifier
    assert encoder == 11_176_512 == count_of(student.encoder)
    assert count_of(student.stages) == sum(stage(a, b) for a, b in pairwise((512, 512, 256, 128, 64)))
    assert count_of(student.heads) == 0
    assert count_of(head.body) == stage(448, 256)
    pyramid = 256 * 256 + 512 + 3 * (9 * 256 * 256 + 512) + 9 * 4 * 256 * 256 + 512
    assert count_of(head.rest) == pyramid + 9 * 256 * 256 + 512 + 257


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("resnet50", 16)])
def test_each_residual_block_of_the_encoder_begins_as_its_shortcut_and_none_of_the_decoder(
    name: str, blocks: int
) -> None:
    """timm's ResNets begin so, and the official code's encoder is one of them."""
    student = DenoisingStudent(build(name), signed=False)
    zero = [key for key, value in student.named_parameters() if key.endswith("weight") and not value.any()]
    last = "bn2" if name == "resnet18" else "bn3"
    assert len(zero) == blocks
    assert all(key.startswith("encoder.layer") and key.endswith(f".{last}.weight") for key in zero)


def test_a_student_of_signed_taps_reads_each_through_a_convolution() -> None:
    with torch.device("meta"):
        student = DenoisingStudent(build("efficientnet_lite0"), signed=True)
    assert count_of(student.heads) == sum(c * c + c for c in (24, 40, 112))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_the_student_answers_in_the_shape_of_the_teacher(name: str) -> None:
    teacher = build(name).eval()
    student = DenoisingStudent(teacher, signed=teacher.signed).eval()
    images = normals(2, seed=1, side=96)
    with torch.no_grad():
        assert [tap.shape for tap in student(images)] == [tap.shape for tap in teacher(images)]


def test_the_decoder_enlarges_what_it_made_and_takes_no_shortcut() -> None:
    torch.manual_seed(0)
    student, images = DenoisingStudent(build("resnet18"), signed=False).eval(), normals(1, seed=1)
    with torch.no_grad():
        x = student.stages[0](student.encoder(images)[0])
        assert x.shape == (1, 512, 2, 2)
        expected = []
        for one in list(student.stages)[1:]:
            x = one(nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
            expected.append(x)
        for ours, theirs in zip(student(images), reversed(expected), strict=True):
            torch.testing.assert_close(ours, theirs)
            assert float(ours.min()) == 0


Product = Callable[[Taps, Taps], Tensor]


def check_products(of: Product) -> None:
    """-a_c b_c of unit vectors at the finest tap; the sum over a tap's channels is minus the cosine."""
    teacher, student = taps(1), taps(2)
    found, start = of(teacher, student), 0
    assert found.shape == (2, sum(tap.shape[1] for tap in teacher), *teacher[0].shape[2:])
    for t, s in zip(teacher, student, strict=True):
        a, b = (one.double().numpy() / np.linalg.norm(one.double().numpy(), axis=1, keepdims=True) for one in (t, s))
        size = tuple(teacher[0].shape[2:])
        expected = torch.nn.functional.interpolate(torch.from_numpy(-a * b), size, mode="bilinear")
        mine = found[:, start : start + t.shape[1]]
        np.testing.assert_allclose(mine.numpy(), expected.numpy(), atol=1e-5)
        start += t.shape[1]


def test_the_head_sees_minus_the_product_of_normalised_features() -> None:
    check_products(products)


FAULTY_PRODUCTS: dict[str, Product] = {
    "plus": lambda teacher, student: -products(teacher, student),
    "without norms": lambda teacher, student: products(teacher, student) * 2,
    "the teacher alone": lambda teacher, student: products(teacher, teacher),
    "one for all channels": lambda teacher, student: (
        products(teacher, student).mean(1, keepdim=True).expand(-1, sum(tap.shape[1] for tap in teacher), -1, -1)
    ),
}


@pytest.mark.parametrize("name", FAULTY_PRODUCTS)
def test_faulty_products_are_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_products(FAULTY_PRODUCTS[name])


def test_the_pyramid_is_the_mean_and_three_dilated_convolutions() -> None:
    torch.manual_seed(0)
    pyramid, x = AtrousPyramid(4).eval(), torch.randn(2, 4, 20, 20)
    parts = []
    for branch, rate in zip(pyramid.branches, (6, 12, 18), strict=True):
        y = nn.functional.conv2d(x, branch[0].weight, padding=rate, dilation=rate)
        parts.append(branch[1](y).relu())
    mean = pyramid.mean[1](nn.functional.conv2d(x.mean((2, 3), keepdim=True), pyramid.mean[0].weight)).relu()
    whole = torch.cat([mean.expand(-1, -1, 20, 20), *parts], 1)
    expected = pyramid.fusion[1](nn.functional.conv2d(whole, pyramid.fusion[0].weight, padding=1)).relu()
    torch.testing.assert_close(pyramid(x), expected)


Focal = Callable[[Tensor, Tensor, float], Tensor]


def check_focal(of: Focal) -> None:
    logits = torch.tensor([[[-3.0, 0.5], [2.0, -0.2]], [[0.0, 4.0], [-6.0, 1.0]]])
    shapes = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    for gamma in (0.0, 2.0, 4.0):
        p = 1 / (1 + np.exp(-logits.double().numpy()))
        there = np.where(shapes.numpy() > 0, p, 1 - p)
        expected = np.mean((1 - there) ** gamma * -np.log(there))
        assert float(of(logits, shapes, gamma)) == pytest.approx(expected, rel=1e-5)


def test_the_focal_loss_is_its_formula() -> None:
    check_focal(focal_loss)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 0.99, 1.0, 4.0])
def test_a_head_that_is_sure_has_a_gradient(gamma: float) -> None:
    """1 - p is 0 there, where a power below 1 has no slope."""
    logits = torch.tensor([[[20.0, 100.0, 5.0]]], requires_grad=True)
    focal_loss(logits, torch.ones(1, 1, 3), gamma).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 2] < 0


FAULTY_FOCAL: dict[str, Focal] = {
    "no focus": lambda logits, shapes, gamma: focal_loss(logits, shapes, 0.0),
    "the other way round": lambda logits, shapes, gamma: focal_loss(logits, 1 - shapes, gamma),
    "a sum": lambda logits, shapes, gamma: focal_loss(logits, shapes, gamma) * logits.numel(),
}


@pytest.mark.parametrize("name", FAULTY_FOCAL)
def test_a_faulty_focal_loss_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_focal(FAULTY_FOCAL[name])


def test_the_students_loss_is_the_official_codes_sum_over_images() -> None:
    clean, restored = taps(1, 3), taps(2, 3)
    expected = 3 * sum(one_minus_cosine(t, s, "cosine") for t, s in zip(clean, restored, strict=True))
    assert float(denoising_loss(clean, restored)) == pytest.approx(expected, rel=1e-5)


def test_shapes_are_reduced_to_where_they_cover_at_least_a_half() -> None:
    shape = torch.zeros(1, 16, 16)
    shape[:, 4:8, 4:6] = 1  # half of one cell of 4 x 4 px
    shape[:, 8:12, 9:10] = 1  # a quarter of another, and half of its middle
    found = at_size(shape, (4, 4))
    assert found[0].nonzero().tolist() == [[1, 1], [2, 2]]
    assert at_size(shape, (16, 16)).equal(shape)


Pastes = Callable[[Tensor, list[list[int]], str], tuple[Tensor, Tensor]]
KEYS = [[seed, 5] for seed in range(12)]


def check_pasting(of: Pastes) -> None:
    """Outside a shape the image is as it was; inside it shows through by at most 0.8; each sample follows its key."""
    images = normals(len(KEYS), seed=1)
    before = images.clone()
    pasted, shapes = of(images, KEYS, "drawn")
    assert torch.equal(images, before)
    assert pasted.dtype == shapes.dtype == torch.float32
    assert set(shapes.unique().tolist()) == {0.0, 1.0}
    assert 0 <= float(pasted.min()) <= float(pasted.max()) <= 1
    there = shapes[:, None].expand_as(images) > 0
    assert torch.equal(pasted[~there], images[~there])
    assert float((pasted - images)[there].abs().mean()) > 0.05
    assert float(shapes.mean()) < 0.2
    assert len({one.numpy().tobytes() for one in shapes if float(one.sum()) > 0}) > len(KEYS) / 2
    order = torch.tensor([3, 0, 7])
    again = of(images[order], [KEYS[k] for k in order.tolist()], "drawn")
    assert torch.equal(again[0], pasted[order])
    assert torch.equal(again[1], shapes[order])


def test_textures_are_pasted_into_shapes() -> None:
    check_pasting(anomalous)


FAULTY_PASTING: dict[str, Pastes] = {
    "nothing": lambda images, keys, textures: (images.clone(), anomalous(images, keys, textures)[1]),
    "everywhere": lambda images, keys, textures: (1 - images, anomalous(images, keys, textures)[1]),
    "in place": lambda images, keys, textures: (
        images.copy_(anomalous(images, keys, textures)[0]), anomalous(images, keys, textures)[1]
    ),
    "by the place in the batch": lambda images, keys, textures: anomalous(
        images, [[k, 1] for k in range(len(images))], textures
    ),
    "one for all": lambda images, keys, textures: anomalous(images, [keys[0]] * len(images), textures),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY_PASTING)
def test_faulty_pasting_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_pasting(FAULTY_PASTING[name])


def test_the_image_shows_through_by_zero_to_four_fifths() -> None:
    """White images under black textures: what is left of the white is the share."""
    shares = []
    for seed in range(60):
        ends = torch.stack([torch.ones(3, 64, 64), torch.zeros(3, 64, 64)])
        (pasted, black), (shape, _) = anomalous(ends, [[seed], [seed]], "drawn")
        shares += [float((pasted - black)[:, shape > 0].mean())] if float(shape.sum()) else []
    assert min(shares) < 0.1
    assert 0.7 < max(shares) <= 0.8 + 1e-6


@pytest.mark.parametrize("side", [64, 67])
def test_an_image_that_is_its_own_texture_has_its_tiles_in_another_order(side: int) -> None:
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    found, tile = shuffled(image, np.random.default_rng(1).permutation(64)), side // 8
    assert torch.equal(found[:, 8 * tile :], image[:, 8 * tile :])

    def tiles(of: Tensor) -> list[bytes]:
        cut = (of[:, r : r + tile, c : c + tile] for r in range(0, 8 * tile, tile) for c in range(0, 8 * tile, tile))
        return [one.contiguous().numpy().tobytes() for one in cut]

    assert sorted(tiles(found)) == sorted(tiles(image))
    assert sum(a == b for a, b in zip(tiles(found), tiles(image), strict=True)) < 8


def test_turned_images_are_turned_about_their_middle_with_grey_beyond() -> None:
    images = normals(40, seed=1)
    slight, full = (turned(images, [[k, 1] for k in range(40)], how) for how in ("slight", "full"))
    for one, image in zip(slight, images, strict=True):
        assert float((one - image)[:, 28:36, 28:36].abs().mean()) < 0.08
        assert not torch.equal(one, image)
    best = [
        min(range(4), key=lambda k: float((torch.rot90(image, k, (1, 2)) - one)[:, 16:48, 16:48].abs().mean()))
        for one, image in zip(full, images, strict=True)
    ]
    assert set(best) == {0, 1, 2, 3}
    white = turned(torch.ones(6, 3, 64, 64), [[k, 2] for k in range(6)], "slight")
    assert float(white[:, :, 0, 0].min()) == pytest.approx(114 / 255, abs=0.3)
    assert float(white.min()) >= 114 / 255 - 1e-6
    torch.testing.assert_close(white[:, :, 32, 32], torch.ones(6, 3))


def batch_of(method: Destseg, count: int, step: int, total: int) -> Batch:
    images = normals(count, seed=1)
    with torch.no_grad():
        clean = method.teacher(images)
    generator = torch.Generator().manual_seed(4)
    return Batch(images=images, teacher=clean, step=step, generator=generator, total=total)


def test_the_student_sees_what_was_pasted_and_learns_the_clean_features() -> None:
    method = method_of(denoising=0.5)
    batch = batch_of(method, 3, 1, 2)
    keys = drawn_keys(3, torch.Generator().manual_seed(4))
    pasted, _ = anomalous(batch.images, keys, "drawn")
    expected = denoising_loss(batch.teacher, method.parts.network(pasted))
    found = method.loss(batch)
    assert found.keys() == {"denoising"}
    torch.testing.assert_close(found["denoising"], expected)


def test_the_head_learns_from_the_frozen_networks_where_something_was_pasted() -> None:
    method = method_of(denoising=0.5)
    batch = batch_of(method, 3, 2, 2)
    pasted, shapes = anomalous(batch.images, drawn_keys(3, torch.Generator().manual_seed(4)), "drawn")
    method.parts.network.eval()
    with torch.no_grad():
        logits = method.parts.head(products(method.teacher(pasted), method.parts.network(pasted)))
    target = at_size(shapes, logits.shape[-2:])
    method.student.train()
    method.parts.head.eval()  # so that its norms answer as above
    found = method.loss(batch)
    assert not method.parts.network.training
    expected = {"focal": focal_loss(logits, target, 4.0), "l1": (logits.sigmoid() - target).abs().mean()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in method.parts.network.parameters())
    assert all(parameter.grad is not None for parameter in method.parts.head.parameters())


def test_the_head_has_rates_of_its_own() -> None:
    method = method_of(learning_rate=0.3, body_rate=0.05, head_rate=0.007)
    groups = method.optimiser().param_groups
    assert [group["lr"] for group in groups] == [0.3, 0.05, 0.007]
    held = [{id(one) for one in group["params"]} for group in groups]
    parts = method.parts
    assert held == [{id(p) for p in part.parameters()} for part in (parts.network, parts.head.body, parts.head.rest)]


def test_turned_images_are_turned_before_anything_is_pasted_and_so_are_their_clean_features() -> None:
    method = method_of(denoising=1.0, turned="full")
    assert not method.clean_taps
    assert method_of().clean_taps
    batch = batch_of(method, 3, 1, 2)
    keys = drawn_keys(3, torch.Generator().manual_seed(4))
    images = turned(batch.images, keys, "full")
    pasted, _ = anomalous(images, keys, "drawn")
    with torch.no_grad():
        expected = denoising_loss(method.teacher(images), method.parts.network(pasted))
        found = method.loss(Batch(images=batch.images, teacher=(), step=1, generator=batch.generator, total=2))
    torch.testing.assert_close(found["denoising"], expected)


def test_a_lone_image_is_taken_twice() -> None:
    method = method_of()
    images, clean = method.seen(batch_of(method, 1, 1, 2))
    assert torch.equal(images[0], images[1])
    assert all(len(tap) == 2 and torch.equal(tap[0], tap[1]) for tap in clean)
    assert len(method.seen(batch_of(method, 3, 1, 2))[0]) == 3


def test_the_map_is_the_probability_and_the_score_the_mean_of_its_largest() -> None:
    method = method_of(largest=7)
    logits = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = nn.functional.interpolate(logits.sigmoid()[:, None], (64, 64), mode="bilinear")[:, 0]
    for size in ((64, 64), (80, 96)):
        found = method.judge(logits, size)
        pixel = nn.functional.interpolate(logits.sigmoid()[:, None], size, mode="bilinear")[:, 0]
        torch.testing.assert_close(found.pixel, pixel)
        torch.testing.assert_close(found.image, whole.flatten(1).sort(1, descending=True).values[:, :7].mean(1))


def test_all_pixels_are_the_most_that_a_score_can_be_the_mean_of() -> None:
    found = method_of(largest=10**6).judge(torch.zeros(1, 16, 16), (64, 64))
    assert float(found.image) == pytest.approx(0.5)


def test_the_students_loss_falls() -> None:
    seen = losses("destseg", steps=8, batch_size=4, denoising=1.0, learning_rate=0.003)
    assert seen[-1] < 0.8 * seen[0]


def test_variants_differ() -> None:
    assert_variants_differ("destseg")


def test_a_trained_method_finds_defects_and_scoring_leaves_it_as_it_is() -> None:
    method = small_method("destseg", steps=36, batch_size=4)
    with pytest.raises(AssertionError, match="AUROC"):
        checks.defects_stand_out(method)
    method.fit(normals(16, seed=3))
    checks.defects_stand_out(method)
    checks.scoring_changes_nothing(method)
    checks.scores_do_not_depend_on_the_batch(method)


@pytest.mark.parametrize("teacher", ["resnet18", "vgg16", "efficientnet_lite0"])
@pytest.mark.parametrize(("asked", "found"), [(None, 0.1), (0.1, 0.1), (0.01, 0.01), (0.3, 0.3)])
def test_norms_are_no_slower_than_those_of_most_networks_unless_it_is_asked_for(
    teacher: str, asked: float | None, found: float
) -> None:
    method = method_of(teacher=teacher, norm_momentum=asked)
    assert {one.momentum for one in method.student.modules() if isinstance(one, nn.BatchNorm2d)} == {found}
    said = "momentum 0.1 in the encoder, whose own is 0.01"
    assert (said in " ".join(method.settings.readings)) == (teacher == "efficientnet_lite0" and asked is None)
    assert any(line.startswith("student's norms") for line in method.settings.deviations) == (found != 0.1)


def test_a_small_image_and_half_precision_will_do() -> None:
    method = method_of(precision="bf16", steps=2, batch_size=1, image_size=32, drop_last=False)
    method.fit(normals(1, seed=1))
    assert bool(method.score(normals(1, seed=2)).pixel.isfinite().all())


def test_the_paper_preset_learns_a_thousand_steps_of_denoising_and_four_thousand_of_segmentation() -> None:
    settings: Any = DESTSEG.presets["paper"]
    assert (settings.steps, settings.denoising * settings.steps) == (5000, 1000)
