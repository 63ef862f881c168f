"""STAD against its formulas in numpy: patches one by one, the descriptors' terms, errors and variances, the map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdad_bench.methods import stad
from kdad_bench.methods.crops import drawn_crops, random_crops
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.patch_network import LAYOUTS, PatchNetwork
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.stad import SOLVED_IMAGES, Scale, Stad, StadSettings, compactness
from kdad_bench.methods.training.parting import parted
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.test_stfpm import bilinear
from tests.methods.toys import auroc, normals, places_in, small_method, with_defects

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def method_of(**changes: Any) -> Stad:
    found = small_method("stad", **changes)
    assert isinstance(found, Stad)
    return found


def scale_of(method: Stad, index: int = 0) -> Scale:
    return list(method.scales)[index]


def convolution(kernel: int, inputs: int, outputs: int) -> int:
    return kernel * kernel * inputs * outputs + outputs


COUNTED = {
    17: convolution(6, 3, 128) + convolution(5, 128, 256) + convolution(5, 256, 256) + convolution(4, 256, 128),
    33: convolution(5, 3, 128) + convolution(5, 128, 256) + convolution(2, 256, 256) + convolution(4, 256, 128),
    65: convolution(5, 3, 128)
    + convolution(5, 128, 128)
    + convolution(5, 128, 256)
    + convolution(4, 256, 256)
    + convolution(1, 256, 128),
}


@pytest.mark.parametrize(("side", "pools"), [(17, 0), (33, 2), (65, 3)])
def test_a_patch_network_has_the_papers_layers_and_makes_one_descriptor_of_a_patch(side: int, pools: int) -> None:
    network = PatchNetwork(side, 128, 128)
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTED[side]
    assert network.pooled == 2**pools
    with torch.no_grad():
        assert tuple(network(torch.zeros(1, 3, side, side), network.pooled).shape) == (1, 128, 1, 1)
        assert tuple(network(torch.zeros(1, 3, side, side), 1).shape[:2]) == (1, 128)


def plain(network: PatchNetwork, patch: Tensor) -> Tensor:
    """The network on a single patch, layer by layer, pooling by two."""
    layers, x = list(network.layers), patch
    for kernel, _ in LAYOUTS[network.side]:
        if kernel == 0:
            x = F.max_pool2d(x, 2)
        else:
            layer = layers.pop(0)
            x = layer(x)
            x = torch.where(x > 0, x, 0.005 * x) if layers else x
    assert x.shape[-2:] == (1, 1)
    return x[0, :, 0, 0]


Dense = Callable[[PatchNetwork, Tensor, int], Tensor]


@torch.no_grad()
def check_dense(dense: Dense) -> None:
    """A descriptor of every cell of the grid: that of the patch about the cell's middle, by itself."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 24, 32)
    for side in LAYOUTS:
        network, half = PatchNetwork(side, 4, 5), side // 2
        padded = F.pad(images, (half, half, half, half), mode="replicate")
        for grid in (1, 2, 4, 8):
            found = dense(network, images, grid)
            assert tuple(found.shape) == (2, 5, 24 // grid, 32 // grid)
            for row, column in ((0, 0), (1, 2), (24 // grid - 1, 32 // grid - 1)):
                y, x = (place * grid + (grid - 1) // 2 for place in (row, column))
                alone = plain(network, padded[1:, :, y : y + side, x : x + side])
                torch.testing.assert_close(found[1, :, row, column], alone, rtol=1e-4, atol=1e-5)


def test_the_dense_descriptors_are_those_of_each_patch_alone() -> None:
    check_dense(lambda network, images, grid: network.of_images(images, grid))


def beside(network: PatchNetwork, images: Tensor, grid: int) -> Tensor:
    return network.of_images(images.roll(1, 2), grid)


def repeated(network: PatchNetwork, images: Tensor, grid: int) -> Tensor:
    coarse = network.of_images(images, 2 * grid)
    return coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("faulty", [beside, repeated])
def test_faulty_dense_descriptors_are_rejected(faulty: Dense) -> None:
    with pytest.raises(AssertionError):
        check_dense(faulty)


def check_compactness(of: Callable[[Tensor], Tensor]) -> None:
    made = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).cumsum(1) + 3
    correlations = np.corrcoef(made.double().numpy().T)
    expected = sum(correlations[i, j] ** 2 for i in range(6) for j in range(6) if i != j)
    assert float(of(made)) == pytest.approx(expected, rel=1e-4)


def test_compactness_is_the_sum_of_squared_correlations_off_the_diagonal() -> None:
    check_compactness(compactness)
    assert float(compactness(torch.ones(4, 3))) == 0  # what does not vary correlates with nothing


FAULTY_COMPACTNESS: dict[str, Callable[[Tensor], Tensor]] = {
    "with the diagonal": lambda made: compactness(made) + made.shape[1],
    "of covariances": lambda made: (torch.cov(made.T) - torch.diag(made.var(0))).square().sum(),
    "not centred": lambda made: compactness(torch.cat([made, -made])),
    "over the patches": lambda made: compactness(made.T),
}


@pytest.mark.parametrize("name", FAULTY_COMPACTNESS)
def test_a_faulty_compactness_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_compactness(FAULTY_COMPACTNESS[name])


def crops_of(method: Stad, images: Tensor, count: int, seed: int) -> Tensor:
    """Crops of 33 px, a share of them altered as the method's settings say."""
    generator = torch.Generator().manual_seed(seed)
    return drawn_crops(len(images), 33, count, method.settings.altered, generator).of(images, 33)


def test_a_descriptor_learns_the_backbones_pooled_features_of_enlarged_crops() -> None:
    method = method_of(scales=(17,), crops=5, compactness=0.5, altered=0.0)
    images, scale = normals(3, seed=1), scale_of(method)
    with torch.no_grad():
        drawn = method.own_drawing(images).of(5, torch.Generator().manual_seed(4))
        found = method.descriptors_terms(images, drawn)
    crops = random_crops(images, 17, 5, torch.Generator().manual_seed(4))
    big = F.interpolate(crops, (64, 64), mode="bilinear", align_corners=False)
    features = method.teacher(big)[-1].mean((2, 3))
    seen = (crops - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    made = torch.stack([plain(scale.descriptor, crop[None]) for crop in seen]).detach()
    decoded = made @ scale.decoder.weight.T + scale.decoder.bias
    expected = ((decoded - features).detach().double().numpy() ** 2).sum(1).mean()
    assert float(found["knowledge"]) == pytest.approx(expected, rel=1e-4)
    assert float(found["compactness"]) == pytest.approx(0.5 * float(compactness(made)), rel=1e-3)


def test_crops_are_pieces_of_the_images_anywhere_in_them() -> None:
    images = torch.arange(2 * 3 * 40 * 40, dtype=torch.float32).view(2, 3, 40, 40)
    crops = random_crops(images, 17, 200, torch.Generator().manual_seed(0))
    corners = crops[:, 0, 0, 0].long()
    image, top, left = corners // 4800, corners % 4800 // 40, corners % 40
    assert set(image.tolist()) == {0, 1}
    assert (int(top.min()), int(left.min()), int(top.max()), int(left.max())) == (0, 0, 23, 23)
    for n in (0, 7):
        piece = images[image[n], :, top[n] : top[n] + 17, left[n] : left[n] + 17]
        assert torch.equal(crops[n], piece)
    assert tuple(random_crops(images[:, :, :8, :8], 17, 2, torch.Generator()).shape) == (2, 3, 17, 17)


def prepared(**changes: Any) -> tuple[Stad, Scale, Tensor]:
    """A method whose targets have a centre and a deviation of their own, its only scale, and images."""
    method = method_of(**({"scales": (17,), "students": 3} | changes))
    scale = scale_of(method)
    generator = torch.Generator().manual_seed(2)
    for name in ("centre", "deviation"):
        scale.get_buffer(name).copy_(0.5 + torch.rand(scale.get_buffer(name).shape, generator=generator))
    return method, scale, normals(2, seed=1)


@torch.no_grad()
def by_hand(method: Stad, scale: Scale, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(normalised target [N, D, h, w], students' answers [M, N, D, h, w]) float64."""
    seen = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    grid = method.settings.grid
    target = scale.descriptor.of_images(seen, grid).double()
    target = (target - scale.get_buffer("centre").double()) / scale.get_buffer("deviation").double()
    said = torch.stack([student.of_images(seen, grid).double() for student in scale.students])
    return target.numpy(), said.numpy()


def batch_of(images: Tensor, step: int) -> Batch:
    return Batch(images=images, teacher=(), step=step, generator=torch.Generator().manual_seed(0))


def test_each_student_learns_the_normalised_descriptors() -> None:
    method, scale, images = prepared()
    target, said = by_hand(method, scale, images)
    expected = ((said - target) ** 2).sum(2).mean((1, 2, 3)).sum()
    terms = method.loss(batch_of(images, step=2))
    assert terms.keys() == {"students"}
    assert float(terms["students"].detach()) == pytest.approx(expected, rel=1e-4)
    terms["students"].backward()
    assert all(parameter.grad is not None for parameter in scale.students.parameters())
    assert all(parameter.grad is None for parameter in scale.descriptor.parameters())


def test_error_and_variance_are_their_formulas() -> None:
    method, scale, images = prepared()
    target, said = by_hand(method, scale, images)
    mean = said.mean(0)
    error = ((mean - target) ** 2).sum(1)
    variance = ((said - mean) ** 2).sum(2).mean(0)  # the same as the mean of squares less the square of the mean
    with torch.no_grad():
        (found,) = method.networks(images)
    np.testing.assert_allclose(found[:, 0].numpy(), error, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found[:, 1].numpy(), variance, rtol=1e-3, atol=1e-4)


def test_the_map_is_the_mean_over_scales_of_errors_and_variances_in_their_own_units() -> None:
    method = method_of(scales=(33, 65))
    generator = torch.Generator().manual_seed(3)
    outputs = tuple(torch.rand(1, 2, 8, 8, generator=generator) for _ in range(2))
    expected = np.zeros((32, 32))
    for index, (scale, both) in enumerate(zip(method.scales, outputs, strict=True)):
        usual, spread = torch.tensor([0.3, 0.2 + index]), torch.tensor([0.5, 2.0 + index])
        scale.get_buffer("usual").copy_(usual)
        scale.get_buffer("spread").copy_(spread)
        for k in range(2):
            small = (both[0, k].double().numpy() - float(usual[k])) / float(spread[k])
            expected += bilinear(small, 32) / 2
    scores = method.judge(outputs, (32, 32))
    np.testing.assert_allclose(scores.pixel[0].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert float(scores.image[0]) == pytest.approx(expected.max(), rel=1e-4)


def test_targets_have_mean_zero_and_deviation_one_over_the_images() -> None:
    method, scale, _ = prepared()
    images = normals(6, seed=1)
    method.learn_targets(images)
    with torch.no_grad():
        made = scale.targets(method.student.normalised(images))  # type: ignore[operator]
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(made.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(made.std((0, 2, 3), correction=0), torch.ones(made.shape[1]), atol=1e-3, rtol=0)


def test_what_is_usual_is_learnt_from_images_that_nothing_learns_from() -> None:
    images = normals(10, seed=1)
    learnt, others = parted(images, 0.2, seed=0)
    assert (len(learnt), len(others)) == (8, 2)
    rows = {tuple(image.flatten().tolist()) for image in torch.cat([learnt, others])}
    assert len(rows) == 10
    assert not torch.equal(parted(images, 0.2, seed=1)[1], others)
    assert parted(images, 0.0, seed=0) == (images, images)
    assert len(parted(images[:1], 0.5, seed=0)[1]) == 1
    assert len(parted(images[:2], 0.9, seed=0)[0]) == 1

    method = method_of(steps=6, batch_size=4, validation=0.2)
    method.fit(images)
    (first, *_) = method.networks(others)
    scale = scale_of(method)
    torch.testing.assert_close(scale.get_buffer("usual"), first.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(scale.get_buffer("spread"), first.std((0, 2, 3), correction=0), rtol=1e-3, atol=1e-5)


def solved_on(images: Tensor, fitting: Fitting, validation: float = 0.0) -> list[int]:
    """The places among `images` of those that the students of a fit are solved on."""
    method, seen = method_of(steps=1, batch_size=2, validation=validation), list[Tensor]()
    real = Scale.solve_students

    def noted(scale: Scale, chunks_of_images: Iterable[Tensor]) -> None:
        some = list(chunks_of_images)
        seen.extend(some)
        real(scale, some)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Scale, "solve_students", noted)
        method.fit(images, fitting)
    return places_in(method.student.normalised(images), torch.cat(seen))  # type: ignore[operator]


def test_students_are_solved_on_whole_images_of_one_category_from_all_through() -> None:
    """Their rows stay what they are."""
    images = normals(60, seed=1)
    for sources in (None, tuple(range(60))):
        assert solved_on(images, Fitting(sources=sources)) == list(range(0, 60, 3))


def test_students_are_solved_on_all_places_of_the_windows_alike() -> None:
    """Every fourth window of pictures that have four is a corner of each."""
    images = normals(4 * SOLVED_IMAGES, seed=1)
    chosen = solved_on(images, Fitting(sources=tuple(k // 4 for k in range(len(images)))))
    assert Counter(place % 4 for place in chosen) == dict.fromkeys(range(4), SOLVED_IMAGES // 4)
    assert len({place // 4 for place in chosen}) > SOLVED_IMAGES // 2


def test_students_are_solved_on_all_categories_alike() -> None:
    images = normals(72, seed=1)
    chosen = solved_on(images, Fitting(categories=tuple(k % 12 for k in range(72))), validation=0.1)
    assert Counter(place % 12 for place in chosen) == dict.fromkeys(range(12), 2)


def test_first_the_descriptors_learn_and_then_the_students_alone() -> None:
    seen: list[tuple[int, set[str]]] = []
    method = method_of(steps=8, batch_size=4, descriptors=0.5, learning_rate=1e-3)
    before = {name: value.clone() for name, value in method.student.named_parameters()}
    method.fit(normals(12, seed=1), Fitting(log=lambda step, terms: seen.append((step, set(terms))), log_every=1))
    assert [names - {"loss"} for _, names in seen] == [{"knowledge", "compactness"}] * 4 + [{"students"}] * 4
    assert not [name for name, value in method.student.named_parameters() if torch.equal(value, before[name])]
    students = method_of(steps=4, batch_size=4, descriptors=0.0, solved=0)
    before = {name: value.clone() for name, value in students.student.named_parameters()}
    students.fit(normals(12, seed=1))
    still = {name for name, value in students.student.named_parameters() if torch.equal(value, before[name])}
    assert still == {name for name in before if "descriptor" in name or "decoder" in name}


def test_the_boundary_is_that_of_the_images_that_are_learnt_from() -> None:
    method = method_of(steps=None, epochs=2, batch_size=2, descriptors=0.5, validation=0.2, held_out=0.5)
    method.fit(normals(10, seed=1))
    assert method.boundary == 2  # eight images, four held out: two batches in each of two epochs
    assert bool(scale_of(method).get_buffer("spread").isfinite().all())


def test_before_any_fit_nothing_is_said() -> None:
    scores = method_of().score(normals(2, seed=1))
    assert not scores.pixel.any()
    assert not scores.image.any()


def test_the_image_is_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    method, _, _ = prepared()
    images = normals(5, seed=1)
    with torch.no_grad():
        (whole,) = method.networks(images)
        monkeypatch.setattr(stad, "AT_ONCE", 2)
        (parts,) = method.networks(images)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scales": (17, 18)}, "scales 17 18 are not different ones of 17 33 65"),
        ({"scales": ()}, "scales none are not"),
        ({"scales": (33, 33)}, "scales 33 33 are not different"),
        ({"grid": 3}, "grid 3 is not a power of two"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        StadSettings(**changes)


def test_the_students_loss_falls() -> None:
    seen = losses("stad", steps=30, batch_size=4, descriptors=0.0, solved=0)
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def test_the_variants_give_other_scores() -> None:
    assert_variants_differ("stad", scales=(33, 65))


def test_half_precision_and_a_small_image_will_do() -> None:
    method = method_of(precision="bf16", steps=2, batch_size=2, image_size=32)
    method.fit(normals(2, seed=1))
    assert bool(method.score(normals(1, seed=2)).pixel.isfinite().all())


@torch.no_grad()
@pytest.mark.parametrize("side", LAYOUTS)
def test_a_descriptor_is_an_affine_function_of_the_inputs_of_its_last_layer(side: int) -> None:
    torch.manual_seed(0)
    network, images = PatchNetwork(side, 4, 5), torch.rand(2, 3, 24, 32)
    for grid in (1, 4, 8):
        seen = network.inputs_of_last(network.continued(images, grid), grid)[..., : 24 // grid, : 32 // grid]
        weight, bias = network.last.weight.flatten(1), network.last.bias
        assert bias is not None
        found = torch.einsum("of,nfhw->nohw", weight, seen) + bias[:, None, None]
        torch.testing.assert_close(found, network.of_images(images, grid), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_network_neither_shrinks_nor_blows_up_what_it_sees() -> None:
    torch.manual_seed(0)
    for side in LAYOUTS:
        answer = PatchNetwork(side, 16, 32).of_images(torch.randn(2, 3, 32, 32), 4)
        assert 0.3 < float(answer.square().mean().sqrt()) < 4


@pytest.fixture(scope="module")
def learnt() -> Stad:
    """A fit of two steps behind a least-squares start."""
    method = method_of(scales=(33,), steps=2, batch_size=2, solved=320, altered=0.0)
    method.fit(normals(16, seed=1))
    return method


@torch.no_grad()
def unlearnt(method: Stad) -> float:
    """What the students get wrong of unseen normals' descriptors, of their variance."""
    seen = method.student.normalised(normals(6, seed=31))  # type: ignore[operator]
    target = scale_of(method).targets(seen)
    said = torch.stack(scale_of(method).answers(seen))
    return float((said - target).square().mean() / (target - target.mean((0, 2, 3), keepdim=True)).square().mean())


@torch.no_grad()
def explained(method: Stad) -> float:
    """How much of the variance of the backbone's features the decoded descriptors explain, of unseen crops."""
    scale = scale_of(method)
    crops, features = method.pair(crops_of(method, normals(6, seed=31), 200, 8))
    decoded = scale.decoder(scale.descriptor(crops, scale.descriptor.pooled)[:, :, 0, 0])
    return 1 - float((decoded - features).square().mean() / (features - features.mean(0)).square().mean())


def check_learnt(method: Stad) -> None:
    assert explained(method) > 0.2
    assert unlearnt(method) < 0.6


def test_descriptors_tell_of_the_backbone_and_students_of_the_descriptors(learnt: Stad) -> None:
    check_learnt(learnt)


def from_random(method: Stad) -> None:
    """No least squares, as few steps."""
    method.settings = replace(method.settings, solved=0)


def of_another_image(method: Stad) -> None:
    """Students that are shown the descriptors of the image before."""
    descriptor = scale_of(method).descriptor
    straight = descriptor.of_images
    descriptor.of_images = lambda images, grid: straight(images.roll(1, 0), grid)  # type: ignore[method-assign]


def of_noise(method: Stad) -> None:
    """A backbone whose features say nothing of the crop."""
    method.pair = lambda crops: (  # type: ignore[method-assign]
        method.student.normalised(crops),  # type: ignore[operator]
        torch.randn(len(crops), 320, generator=torch.Generator().manual_seed(len(crops))),
    )


@pytest.mark.parametrize("broken", [from_random, of_another_image, of_noise])
def test_a_fit_that_learns_nothing_is_noticed(broken: Callable[[Stad], None]) -> None:
    method = method_of(scales=(33,), steps=2, batch_size=2, solved=320, altered=0.0)
    broken(method)
    method.fit(normals(16, seed=1))
    with pytest.raises(AssertionError):
        check_learnt(method)


def test_the_map_is_high_on_the_drawn_defects_and_nowhere_else(learnt: Stad) -> None:
    images, masks = with_defects(8, seed=5)
    scores = learnt.score(images)
    assert auroc(scores.pixel, masks) > 0.95
    near = F.max_pool2d(masks[:, None].float(), 33, 1, 16)[:, 0] > 0  # patches of 33 px that see a defect
    assert all(bool(seen.flatten()[int(one.argmax())]) for one, seen in zip(scores.pixel, near, strict=True))
    assert float(scores.image.min()) > float(learnt.score(normals(8, seed=6)).image.max())


def test_the_solved_descriptors_are_not_correlated() -> None:
    """The least of L_k over last layer and decoder, but for the ridge, and L_c is 0 on the crops it was solved on."""
    method = method_of(scales=(33,), crops=64, altered=0.0)
    scale, images = scale_of(method), normals(6, seed=1)
    pairs = method.pair(random_crops(images, 33, 300, torch.Generator().manual_seed(2)))
    with torch.no_grad():
        scale.solve_descriptor([pairs])
        knowledge, compact = scale.distillation(*pairs)
    assert float(compact) < 1.0  # of 992 pairs of components
    assert float(knowledge) < 0.7 * float((pairs[1] - pairs[1].mean(0)).square().sum(1).mean())


def test_without_least_squares_the_decoder_begins_at_the_features_mean() -> None:
    method = method_of(scales=(33,), crops=8, solved=0)
    images = normals(4, seed=1)
    for boundary in (1, 0):
        before = scale_of(method).decoder.bias.clone()
        method.boundary = boundary
        drawn = method.own_drawing(images)(torch.arange(4), torch.Generator().manual_seed(3), 1)
        method.begin_descriptors(images, drawn.first)
        _, features = method.pair(crops_of(method, images, 8, 3))
        assert torch.equal(before, scale_of(method).decoder.bias) == (boundary == 0)
        if boundary:
            torch.testing.assert_close(scale_of(method).decoder.bias.detach(), features.mean(0))


@pytest.mark.parametrize(("altered", "same"), [(0.0, 8), (0.25, 6), (1.0, 0)])
def test_a_share_of_the_crops_is_altered(altered: float, same: int) -> None:
    method, images = method_of(altered=altered), normals(4, seed=1)
    crops = crops_of(method, images, 8, 3)
    assert tuple(crops.shape) == (8, 3, 33, 33)
    if same:
        assert torch.equal(crops[:same], random_crops(images, 33, same, torch.Generator().manual_seed(3)))
