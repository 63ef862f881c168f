"""EfficientAD against its tables and formulas: layers one by one, the losses in numpy, targets, quantiles, the map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdad_bench.methods.augmentation import grey
from kdad_bench.methods.backbones import build
from kdad_bench.methods.backbones.names import BACKBONES, PYRAMIDS
from kdad_bench.methods.backbones.pdn import layers
from kdad_bench.methods.backbones.weights import WeightsError, download, find_weights, load_teacher
from kdad_bench.methods.distillation import Batch
from kdad_bench.methods.drawn_images import drawn_images
from kdad_bench.methods.efficientad import detector
from kdad_bench.methods.efficientad.detector import EfficientAd, hardest, moments
from kdad_bench.methods.efficientad.drawing import drawn_changes, drawn_greys, recoloured, sometimes_grey
from kdad_bench.methods.efficientad.networks import Autoencoder, Networks
from kdad_bench.methods.efficientad.settings import EfficientAdSettings
from kdad_bench.methods.last_layer import solve
from kdad_bench.methods.protocol import Fitting
from kdad_bench.methods.training.parting import parted
from kdad_bench.methods.training.settings import SCHEDULES
from tests.methods.curves import assert_variants_differ
from tests.methods.test_stfpm import bilinear
from tests.methods.toys import normals, places_in, small_method

DISTILLED: dict[str, Any] = {"teacher": "resnet18", "strides": (8, 16)}  # the published networks have one width

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def method_of(**changes: Any) -> EfficientAd:
    found = small_method("efficientad", **changes)
    assert isinstance(found, EfficientAd)
    return found


def convolution(kernel: int, inputs: int, outputs: int) -> int:
    return kernel * kernel * inputs * outputs + outputs


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def table(network: Iterable[nn.Module]) -> list[tuple[object, ...]]:
    """Convolutions (inputs, outputs, kernel, stride, padding) and poolings, each with what follows."""
    found: list[tuple[object, ...]] = []
    for layer in network:
        if isinstance(layer, nn.Conv2d):
            found.append(
                (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
            )
        elif isinstance(layer, nn.AvgPool2d):
            found.append(("pool", layer.kernel_size, layer.stride, layer.padding))
        else:
            assert isinstance(layer, nn.ReLU)
            found.append(("relu",))
    return found


# the paper's Tables 5 and 6, as public codes write them out
SMALL = [
    (3, 128, 4, 1, 3), ("relu",), ("pool", 2, 2, 1), (128, 256, 4, 1, 3), ("relu",), ("pool", 2, 2, 1),
    (256, 256, 3, 1, 1), ("relu",), (256, 384, 4, 1, 0),
]  # fmt: skip
MEDIUM = [
    (3, 256, 4, 1, 3), ("relu",), ("pool", 2, 2, 1), (256, 512, 4, 1, 3), ("relu",), ("pool", 2, 2, 1),
    (512, 512, 1, 1, 0), ("relu",), (512, 512, 3, 1, 1), ("relu",), (512, 384, 4, 1, 0), ("relu",), (384, 384, 1, 1, 0),
]  # fmt: skip
TABLES = {"small": SMALL, "medium": MEDIUM}
PARAMETERS = {"small": 2_694_144, "medium": 8_026_624}
STUDENTS = {"small": 1_120_896 + convolution(4, 256, 768), "medium": 4_732_672 + convolution(4, 512, 768) + 768 * 769}


def without_padding(row: tuple[object, ...]) -> tuple[object, ...]:
    return row if row == ("relu",) else (*row[:-1], 0)


@pytest.mark.parametrize("size", TABLES)
def test_a_patch_description_network_has_the_papers_layers(size: str) -> None:
    with torch.device("meta"):
        padded, bare = (layers(size, 128, 384, padding=padding) for padding in (True, False))
        image = torch.empty(1, 3, 256, 256)
        shapes = [tuple(nn.Sequential(*found)(image).shape) for found in (padded, bare)]
    assert table(padded) == TABLES[size]
    assert table(bare) == [without_padding(row) for row in TABLES[size]]
    assert parameters(nn.Sequential(*padded)) == PARAMETERS[size]
    assert shapes == [(1, 384, 64, 64), (1, 384, 56, 56)]


@torch.no_grad()
def test_an_output_describes_33_pixels_of_the_image_and_no_more() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64)
    for size in TABLES:
        network = nn.Sequential(*layers(size, 4, 5, padding=False))
        whole = network(image)
        assert tuple(whole.shape) == (1, 5, 8, 8)
        for row, column in ((0, 0), (3, 5), (7, 7)):
            y, x = 4 * row, 4 * column
            alone = network(image[:, :, y : y + 33, x : x + 33])
            torch.testing.assert_close(alone[:, :, 0, 0], whole[:, :, row, column], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", TABLES)
def test_the_student_has_twice_the_outputs_and_the_autoencoder_its_table(size: str) -> None:
    with torch.device("meta"):
        networks = Networks(EfficientAdSettings(network=size, **DISTILLED))
        outputs = networks(torch.empty(2, 3, 256, 256))
    assert parameters(networks.descriptor) == PARAMETERS[size]
    assert parameters(networks.student) + parameters(networks.halves) == STUDENTS[size]
    assert [tuple(one.shape) for one in outputs] == [(2, 384, 56, 56)] * 4


def test_the_autoencoder_has_the_papers_layers() -> None:
    with torch.device("meta"):
        network = Autoencoder(EfficientAdSettings(padding=True))
        code, answer = network.encoder(torch.empty(1, 3, 256, 256)), network(torch.empty(1, 3, 256, 256))
    relu = ("relu",)
    assert table(network.encoder) == [
        (3, 32, 4, 2, 1), relu, (32, 32, 4, 2, 1), relu, (32, 64, 4, 2, 1), relu, (64, 64, 4, 2, 1), relu,
        (64, 64, 4, 2, 1), relu, (64, 64, 8, 1, 0),
    ]  # fmt: skip
    assert table(network.decoder) == [(64, 64, 4, 1, 2)] * 6
    assert table(network.last) == [(64, 64, 3, 1, 1), relu, (64, 384, 3, 1, 1)]
    assert network.sizes == (3, 8, 15, 32, 63, 127)
    assert (tuple(code.shape), tuple(answer.shape)) == ((1, 64, 1, 1), (1, 384, 64, 64))


@pytest.mark.parametrize("side", [64, 96, 128, 512])
def test_images_of_other_sides_are_one_vector_too(side: int) -> None:
    settings = EfficientAdSettings(image_size=side, autoencoder=4, features=6, width=2, **DISTILLED)
    with torch.device("meta"):
        networks = Networks(settings)
        code = networks.autoencoder.encoder(torch.empty(1, 3, side, side))
        outputs = networks(torch.empty(1, 3, side, side))
    assert tuple(code.shape) == (1, 4, 1, 1)
    assert {tuple(one.shape) for one in outputs} == {(1, 6, side // 4 - 8, side // 4 - 8)}


def test_the_decoder_enlarges_rectifies_and_drops_values_only_while_it_learns() -> None:
    torch.manual_seed(0)
    network = Autoencoder(EfficientAdSettings(image_size=64, autoencoder=4, features=6, **DISTILLED)).eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        x = network.encoder(image)
        for size, layer in zip(network.sizes, network.decoder, strict=True):
            x = layer(F.interpolate(x, (size, size), mode="bilinear", align_corners=False)).relu()
        expected = network.last(F.interpolate(x, (8, 8), mode="bilinear", align_corners=False))
        torch.testing.assert_close(network(image), expected)
        assert torch.equal(network(image), network(image))
        network.train()
        assert not torch.equal(network(image), network(image))


KEYS = {"pdn_small": (0, 3, 6, 8), "pdn_medium": (0, 3, 6, 8, 10, 12)}


@pytest.mark.parametrize("name", KEYS)
def test_published_weights_have_the_public_codes_keys(name: str) -> None:
    with torch.device("meta"):
        teacher = build(name, strides=(4,)).eval()
        (tap,) = teacher(torch.empty(2, 3, 64, 96))
    assert list(teacher.state_dict()) == [f"{index}.{kind}" for index in KEYS[name] for kind in ("weight", "bias")]
    assert tuple(tap.shape) == (2, 384, 16, 24)
    assert name in BACKBONES
    assert name not in PYRAMIDS
    with pytest.raises(ValueError, match="must rise and be among 4"):
        build(name)


def published(folder: Path, name: str = "pdn_small") -> Path:
    """A file as the public code writes it."""
    torch.manual_seed(3)
    size = name.removeprefix("pdn_")
    path = folder / f"teacher_{size}.pth"
    torch.save(nn.Sequential(*layers(size, 128, 384, padding=True)).state_dict(), path)
    return path


def test_the_descriptor_is_the_file_and_the_file_is_hashed(tmp_path: Path) -> None:
    path = published(tmp_path)
    teacher, info = load_teacher("pdn_small", strides=(4,), source=path)
    assert info.source == "teacher_small.pth"
    assert len(info.sha256) == 64
    settings = EfficientAdSettings(image_size=64)
    method = EfficientAd(settings, teacher, torch.device("cpu"))
    for key, value in torch.load(path, weights_only=True).items():
        assert torch.equal(method.own.descriptor.state_dict()[key], value)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():  # what padding does not reach is the same with and without
        (tap,) = teacher(image)
        bare = method.networks(image).teacher
    torch.testing.assert_close(bare, tap[:, :, 4:-4, 4:-4], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"network": "medium"}, {"width": 64}, {"features": 128}])
def test_a_published_network_is_refused_where_the_settings_ask_for_another(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="pdn_small: it has network small, width 128, features 384; got network"):
        EfficientAdSettings(image_size=64, **changes)


def test_published_weights_are_taken_from_a_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "teacher_small.pth"
    cached.parent.mkdir(parents=True)
    torch.save(build("pdn_small", strides=(4,)).state_dict(), cached)
    assert find_weights("pdn_small") is None
    with pytest.raises(WeightsError, match=r"pdn_small: its weights .* are only taken from a file; give one with"):
        load_teacher("pdn_small", strides=(4,))
    assert load_teacher("pdn_small", strides=(4,), source=cached)[1].source == "teacher_small.pth"
    with pytest.raises(WeightsError, match=r"pdn_small: its weights \(teacher_small.pth\) are only taken from a file"):
        download("pdn_small")
    with pytest.raises(WeightsError, match="not weights of pdn_medium"):
        load_teacher("pdn_medium", strides=(4,), source=published(tmp_path))


def check_hardest(of: Callable[[Tensor, float], Tensor]) -> None:
    """The mean of what is not below the quantile, of each image by itself; numpy."""
    generator = torch.Generator().manual_seed(1)
    squared = torch.rand(3, 7, 11, 13, generator=generator) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1)
    for share in (0.0, 0.5, 0.9, 0.999):
        expected = []
        for image in squared.double().numpy():
            expected.append(image[image >= np.quantile(image, share)].mean())
        assert float(of(squared, share)) == pytest.approx(np.mean(expected), rel=1e-5)


def test_hard_features_are_those_not_below_the_quantile() -> None:
    check_hardest(hardest)
    values = torch.arange(1001.0).view(1, 1, 1, 1001)  # the quantile is an element: it counts
    assert float(hardest(values, 0.999)) == (999 + 1000) / 2


FAULTY_HARDEST: dict[str, Callable[[Tensor, float], Tensor]] = {
    "all": lambda squared, share: squared.mean(),
    "of the batch": lambda squared, share: hardest(squared.flatten()[None], share),
    "the easiest": lambda squared, share: -hardest(-squared, share),
    "one more": lambda squared, share: hardest(squared, max(share - 1 / squared[0].numel(), 0)) + (share == 0),
}


@pytest.mark.parametrize("name", FAULTY_HARDEST)
def test_faulty_hard_features_are_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_hardest(FAULTY_HARDEST[name])


def batch_of(images: Tensor, step: int) -> Batch:
    return Batch(images=images, teacher=(), step=step, generator=torch.Generator().manual_seed(0))


def seen(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("penalty", ["drawn", "none"])
def test_the_students_terms_are_their_formulas(penalty: str) -> None:
    method = method_of(penalty=penalty, hard=0.9)
    images, own = normals(3, seed=1), method.own.eval()
    found = method.students_terms(batch_of(images, 2))
    generator = torch.Generator().manual_seed(0)
    other = recoloured(images, drawn_changes(3, generator))
    with torch.no_grad():
        teacher, student = own.descriptor(seen(images)), own.student(seen(images))
        student = F.conv2d(student, own.halves[0].weight, own.halves[0].bias)  # type: ignore[arg-type]
        expected = {"hard": hardest((teacher - student).square(), 0.9)}
        target, made = own.descriptor(seen(other)), own.autoencoder(seen(other))
        imitation = F.conv2d(own.student(seen(other)), own.halves[1].weight, own.halves[1].bias)  # type: ignore[arg-type]
        expected["autoencoder"] = (target - made).square().mean()
        expected["imitation"] = (imitation - made).square().mean()
        if penalty == "drawn":
            drawn = sometimes_grey(drawn_images(3, 64, generator), drawn_greys(3, 0.3, generator))
            answers = F.conv2d(own.student(seen(drawn)), own.halves[0].weight, own.halves[0].bias)  # type: ignore[arg-type]
            expected["penalty"] = answers.square().mean()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(found[name].detach()) == pytest.approx(float(value), rel=1e-4), name


REACHED = {
    "hard": {"student", "halves.0"},
    "penalty": {"student", "halves.0"},
    "autoencoder": {"autoencoder"},
    "imitation": {"student", "halves.1", "autoencoder"},
}


@pytest.mark.parametrize("name", REACHED)
def test_a_terms_gradient_reaches_what_it_is_about(name: str) -> None:
    method = method_of(penalty="drawn")
    term = method.students_terms(batch_of(normals(2, seed=1), 2))[name]
    term.backward()  # type: ignore[no-untyped-call]
    reached = {key for key, value in method.own.named_parameters() if value.grad is not None and bool(value.grad.any())}
    assert {".".join(key.split(".")[: 1 + key.startswith("halves")]) for key in reached} == REACHED[name]


def test_the_pdn_learns_the_teachers_features_of_normal_and_drawn_images() -> None:
    method = method_of(strides=(8, 16), enlarged=2, features=10)
    images, own = normals(2, seed=1), method.own
    found = method.descriptors_term(batch_of(images, 2), images)
    generator = torch.Generator().manual_seed(0)
    both = torch.cat([images, drawn_images(2, 64, generator)])
    both = sometimes_grey(both, drawn_greys(4, 0.1, generator))
    with torch.no_grad():
        taps = method.teacher(F.interpolate(both, (128, 128), mode="bilinear", align_corners=False))
        grid = [F.interpolate(tap, (16, 16), mode="bilinear", align_corners=False) for tap in taps]
        whole = torch.cat(grid, 1)[:, :, 4:-4, 4:-4]  # [N, 152, 8, 8]
        pooled = np.empty((4, 10, 8, 8))
        for k in range(10):  # adaptive pooling: from floor(k D / n) to ceil((k + 1) D / n)
            first, last = k * 152 // 10, -(-(k + 1) * 152 // 10)
            pooled[:, k] = whole[:, first:last].double().mean(1).numpy()
        made = own.descriptor(seen(both)).double().numpy()
    assert float(found["descriptor"].detach()) == pytest.approx(((made - pooled) ** 2).mean(), rel=1e-4)
    method.learn_features(images)
    centre, deviation = own.get_buffer("centre"), own.get_buffer("deviation")
    assert float(deviation.min()) > 0
    again = method.descriptors_term(batch_of(images, 2), images)
    normalised = (torch.from_numpy(pooled) - centre) / deviation
    assert float(again["descriptor"].detach()) == pytest.approx(
        float((torch.from_numpy(made) - normalised).square().mean()), rel=1e-4
    )


def test_targets_have_mean_zero_and_deviation_one_over_the_images() -> None:
    method, images = method_of(), normals(10, seed=1)
    method.learn_targets(images)
    with torch.no_grad():
        made = method.own.descriptor(seen(images))
    torch.testing.assert_close(made.mean((0, 2, 3)), torch.zeros(made.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(made.std((0, 2, 3), correction=0), torch.ones(made.shape[1]), atol=1e-3, rtol=0)


def test_moments_are_those_of_all_parts_together() -> None:
    whole = torch.randn(7, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    whole[:, 2] = 5.0
    mean, deviation = moments([whole[:2], whole[2:]])
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)))
    torch.testing.assert_close(deviation[:2], whole[:, :2].std((0, 2, 3), correction=0))
    assert float(deviation[2]) == 1


@pytest.mark.parametrize("border", ["zeros", "nearest"])
def test_the_map_is_the_mean_of_both_between_their_quantiles(border: str) -> None:
    method = method_of(border=border)
    generator = torch.Generator().manual_seed(3)
    outputs = type(method.networks(normals(1, seed=1)))(
        *(torch.rand(1, 64, 8, 8, generator=generator) for _ in range(4))
    )
    low, span = torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.05])
    method.own.get_buffer("low").copy_(low)
    method.own.get_buffer("span").copy_(span)
    teacher, student, autoencoder, imitation = (one[0].double().numpy() for one in outputs)
    maps = ((teacher - student) ** 2).mean(0), ((autoencoder - imitation) ** 2).mean(0)
    combined = sum(0.5 * 0.1 * (one - a) / b for one, a, b in zip(maps, low.tolist(), span.tolist(), strict=True))
    around = np.pad(combined, 4) if border == "zeros" else np.pad(combined, 4, mode="edge")  # 8 to 16 of a side of 64
    expected = bilinear(around, 64)
    scores = method.judge(outputs, (64, 64))
    np.testing.assert_allclose(scores.pixel[0].numpy(), expected, rtol=1e-4, atol=1e-5)
    assert float(scores.image[0]) == pytest.approx(expected.max(), rel=1e-4)


def test_the_quantiles_are_of_images_that_nothing_learns_from() -> None:
    images = normals(10, seed=1)
    _, others = parted(images, 0.2, seed=0)
    method = method_of(steps=6, batch_size=4, validation=0.2)
    method.fit(images)
    with torch.no_grad():
        outputs = method.networks(others)
    pairs = (outputs.teacher, outputs.student), (outputs.autoencoder, outputs.imitation)
    for k, (one, other) in enumerate(pairs):
        values = (one - other).square().mean(1).double().numpy()
        low, high = np.quantile(values, (0.9, 0.995))
        assert float(method.own.get_buffer("low")[k]) == pytest.approx(low, rel=1e-3)
        assert float(method.own.get_buffer("span")[k]) == pytest.approx(high - low, rel=1e-2)


def test_first_the_pdn_learns_and_then_student_and_autoencoder_alone() -> None:
    logged: list[set[str]] = []
    method = method_of(steps=8, batch_size=4, distilling=0.5, penalty="drawn", solved=False)
    parts = ("descriptor", "student", "halves", "autoencoder")
    states: list[dict[str, Tensor]] = []

    def log(step: int, terms: Any) -> None:
        logged.append(set(terms) - {"loss"})
        states.append({key: value.detach().clone() for key, value in method.own.named_parameters()})

    states.append({key: value.detach().clone() for key, value in method.own.named_parameters()})
    method.fit(normals(12, seed=1), Fitting(log=log, log_every=1))
    assert logged == [{"descriptor"}] * 4 + [{"hard", "autoencoder", "imitation", "penalty"}] * 4
    moved = [
        {part for part in parts if any(not torch.equal(one[key], other[key]) for key in one if key.startswith(part))}
        for one, other in pairwise(states[4:])
    ]
    assert moved[1:] == [{"student", "halves", "autoencoder"}] * 3  # its outputs were normalised before the fifth step
    assert "descriptor" in moved[0]
    assert all(torch.equal(states[0][key], states[4][key]) for key in states[0] if not key.startswith("descriptor"))


def test_a_published_network_is_never_trained(tmp_path: Path) -> None:
    teacher, _ = load_teacher("pdn_small", strides=(4,), source=published(tmp_path))
    settings = EfficientAdSettings(image_size=64, steps=2, autoencoder=4)
    method = EfficientAd(settings, teacher, torch.device("cpu"))
    before = {key: value.clone() for key, value in method.own.descriptor.state_dict().items()}
    images = normals(4, seed=1)
    method.fit(images)
    assert method.boundary == 0
    after = method.own.descriptor.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"8.weight", "8.bias"}  # its outputs in other units
    scale = after["8.weight"] / before["8.weight"]
    torch.testing.assert_close(scale, scale[:, :1, :1, :1].expand_as(scale), rtol=1e-3, atol=0)
    assert bool(method.score(images).pixel.isfinite().all())


def test_images_differ_in_one_of_brightness_contrast_and_saturation() -> None:
    images = 0.25 + 0.5 * torch.rand(300, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    found = recoloured(images, drawn_changes(300, torch.Generator().manual_seed(1)))
    assert found.shape == images.shape
    luma = grey(images)
    middle = luma.mean((2, 3), keepdim=True)
    rests = (torch.zeros_like(images), middle.expand_as(images), luma.expand_as(images))
    kinds, factors = [], []
    for image, changed, *anchors in zip(images, found, *rests, strict=True):
        fits = []
        for anchor in anchors:
            away = (image - anchor).flatten()
            factor = float(((changed - anchor).flatten() * away).sum() / away.square().sum())
            fits.append((float((anchor + factor * (image - anchor) - changed).abs().max()), factor))
        best = min(range(3), key=lambda k: fits[k][0])
        assert fits[best][0] < 1e-5
        kinds.append(best)
        factors.append(fits[best][1])
    assert all(abs(kinds.count(kind) - 100) < 30 for kind in range(3))
    assert 0.8 <= min(factors) < 0.81
    assert 1.19 < max(factors) <= 1.2


def test_some_images_lose_their_colour() -> None:
    images = torch.rand(400, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = sometimes_grey(images, drawn_greys(400, 0.3, torch.Generator().manual_seed(1)))
    without = (found[:, 0] == found[:, 2]).flatten(1).all(1)
    assert 90 < int(without.sum()) < 150
    assert torch.equal(found[~without], images[~without])
    torch.testing.assert_close(found[without][:, :1], grey(images[without]))


def test_drawn_images_are_pictures_that_follow_from_the_generator() -> None:
    found = drawn_images(6, 64, torch.Generator().manual_seed(2))
    assert tuple(found.shape) == (6, 3, 64, 64)
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) < float(found.max()) <= 1
    assert float(found.std((2, 3)).min()) > 0.01
    assert len({round(float(image.mean()), 5) for image in found}) == 6
    assert torch.equal(found, drawn_images(6, 64, torch.Generator().manual_seed(2)))
    assert not torch.equal(found, drawn_images(6, 64, torch.Generator().manual_seed(3)))


def test_the_rate_falls_to_a_tenth_at_step_66500_of_70000() -> None:
    rate = SCHEDULES["late_drop"]
    assert [rate(step / 70_000) for step in (0, 66_499, 66_500, 69_999)] == [1.0, 1.0, 0.1, 0.1]


def test_he_weights_have_a_deviation_by_fan_in_and_no_biases() -> None:
    torch.manual_seed(0)
    networks = Networks(EfficientAdSettings(image_size=64, initial="he"))
    convolutions = [layer for layer in networks.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 4 + 3 + 2 + 6 + 6 + 2
    for layer in convolutions:
        assert float(layer.weight.detach().std()) == pytest.approx((2 / layer.weight[0].numel()) ** 0.5, rel=0.1)
        assert layer.bias is not None
        assert not bool(layer.bias.any())
    other = Networks(EfficientAdSettings(image_size=64))
    assert all(
        bool(layer.bias.any()) for layer in other.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None
    )


def check_solved(solve_: Callable[..., None]) -> None:
    """Weight and bias of numpy's least squares on all patches at once; the ridge moves them by less than 0.001."""
    generator = torch.Generator().manual_seed(5)
    for padding, kernel in ((0, 4), (1, 3)):
        layer = nn.Conv2d(3, 5, kernel, padding=padding)
        x = torch.randn(6, 3, 9, 10, generator=generator)
        with torch.no_grad():
            y = nn.Conv2d(3, 5, kernel, padding=padding)(x) + 0.1 * torch.randn(layer(x).shape, generator=generator)
        rows = F.unfold(x, kernel, padding=padding).mT.flatten(0, 1).double().numpy()
        rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
        wanted = y.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
        best = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        solve_(layer, ((x[k : k + 2], y[k : k + 2]) for k in (0, 2, 4)))
        found = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)  # type: ignore[index]
        np.testing.assert_allclose(found.detach().numpy().T, best, atol=1e-3)


def test_last_layers_are_solved_as_numpy_solves_them() -> None:
    check_solved(solve)


def solve_the_first_alone(layer: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    solve(layer, [next(iter(pairs))])


def solve_without_bias(layer: nn.Conv2d, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    solve(layer, pairs)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("faulty", [solve_the_first_alone, solve_without_bias])
def test_faulty_solutions_are_rejected(faulty: Callable[..., None]) -> None:
    with pytest.raises(AssertionError):
        check_solved(faulty)


def test_solved_layers_leave_less_of_the_errors_on_the_images_that_are_learnt_from() -> None:
    images, errors = normals(12, seed=1), []
    for solved in (False, True):
        method = method_of(steps=8, batch_size=2, validation=0.0, solved=solved)
        method.fit(images)
        with torch.no_grad():
            outputs = method.networks(images)
        pairs = (outputs.student, outputs.teacher), (outputs.autoencoder, outputs.teacher)
        errors.append([float((one - other).square().mean()) for one, other in pairs])
    assert errors[1][0] < 0.5 * errors[0][0]
    assert errors[1][1] < 0.95 * errors[0][1]


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images on which the PDN's last layer was solved, then those of the other last layers."""
    found: list[Tensor] = []
    for name in ("described_pairs", "solve_last_layers"):
        real = getattr(EfficientAd, name)
        monkeypatch.setattr(EfficientAd, name, lambda own, some, real=real: (found.append(some), real(own, some))[1])
    return found


def test_last_layers_are_solved_on_the_first_of_whole_images_of_one_category(solved: list[Tensor]) -> None:
    """Their rows stay what they are."""
    images = normals(40, seed=1)
    for sources in (None, tuple(range(40))):
        method_of(steps=2, batch_size=2, validation=0.0).fit(images, Fitting(sources=sources))
    assert len(solved) == 4
    assert all(torch.equal(some, images[: detector.ENOUGH]) for some in solved)


def test_last_layers_are_solved_on_all_places_of_the_windows_alike(solved: list[Tensor]) -> None:
    """Every fourth window of pictures that have four is a corner of each."""
    images = normals(4 * detector.ENOUGH, seed=1)
    sources = tuple(k // 4 for k in range(len(images)))
    method_of(steps=2, batch_size=2, validation=0.0).fit(images, Fitting(sources=sources))
    chosen = places_in(images, solved[0])
    assert torch.equal(solved[1], solved[0])
    assert Counter(place % 4 for place in chosen) == dict.fromkeys(range(4), detector.ENOUGH // 4)
    assert len({place // 4 for place in chosen}) > detector.ENOUGH // 2


def test_last_layers_are_solved_on_all_categories_alike(solved: list[Tensor]) -> None:
    images = normals(60, seed=1)
    categories = tuple(k // 20 for k in range(60))
    method_of(steps=2, batch_size=2, validation=0.1).fit(images, Fitting(categories=categories))
    assert torch.equal(solved[1], solved[0])
    assert sorted(Counter(place // 20 for place in places_in(images, solved[0])).values()) == [10, 11, 11]


def test_a_solved_fit_that_was_stopped_goes_on_to_the_same_state(tmp_path: Path) -> None:
    images = normals(6, seed=1)
    whole = method_of(steps=6, batch_size=2)
    whole.fit(images)

    def stop(step: int, terms: Any) -> None:
        if step == stops:
            raise KeyboardInterrupt

    for stops in (2, 4):  # before the targets are made, and after
        path = tmp_path / f"{stops}.pt"
        fitting = Fitting(log=stop, log_every=1, checkpoint=path, checkpoint_every_seconds=0.0)
        with pytest.raises(KeyboardInterrupt):
            method_of(steps=6, batch_size=2).fit(images, fitting)
        again = method_of(steps=6, batch_size=2)
        again.fit(images, Fitting(checkpoint=path, checkpoint_every_seconds=0.0))
        for key, value in whole.module.state_dict().items():
            assert torch.equal(value, again.module.state_dict()[key]), key


def test_before_any_fit_nothing_is_said() -> None:
    scores = method_of().score(normals(2, seed=1))
    assert not scores.pixel.any()
    assert not scores.image.any()


def test_the_variants_give_other_scores() -> None:
    assert_variants_differ("efficientad", source="random", batch_size=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("solved", [False, True])
def test_the_first_step_of_the_students_knows_the_targets_as_they_were_made(precision: str, solved: bool) -> None:
    def first(precision: str) -> dict[str, float]:
        terms: dict[int, dict[str, float]] = {}
        method = method_of(precision=precision, solved=solved, steps=2, batch_size=2, distilling=0.5)
        method.fit(normals(6, seed=1), Fitting(log=lambda step, found: terms.update({step: dict(found)}), log_every=1))
        assert method.boundary == 1
        return terms[2]

    exact, half = first("fp32"), first(precision)
    for name, value in exact.items():
        assert half[name] == pytest.approx(value, rel=0.1), name


def test_half_precision_and_the_smallest_image_will_do() -> None:
    method = method_of(precision="bf16", steps=2, batch_size=2, image_size=64)
    method.fit(normals(2, seed=1))
    assert bool(method.score(normals(1, seed=2)).pixel.isfinite().all())
    with pytest.raises(ValueError, match="image_size 32 is not in"):
        method_of(image_size=32)
