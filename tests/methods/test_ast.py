"""AST against its formulas: the flow's inverse and log-determinant, places, depth, losses, and faulty ones."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, log, pi, sin
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from torch import Tensor, nn

from kdad_bench.methods.ast import (
    AST,
    Ast,
    AstSettings,
    ConvolutionalStudent,
    Coupling,
    Flow,
    FlowAndStudent,
    Outputs,
    depth_of,
    dilated,
    distances,
    encoded_places,
    negative_log_likelihood,
)
from kdad_bench.methods.distillation import Batch
from tests.methods import checks
from tests.methods.curves import assert_variants_differ, losses
from tests.methods.toys import normals, small_method

SMALL = AstSettings(flow_width=6, places=8, student_width=12, student_blocks=2, couplings=3)


def method_of(**changes: Any) -> Ast:
    found = small_method("ast", source="random", **changes)
    assert isinstance(found, Ast)
    return found


def learnt(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` with weights as a training might leave them: a flow begins as the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return network.double()


def flow_of(channels: int, seed: int = 0) -> Flow:
    torch.manual_seed(seed)
    network = learnt(Flow(channels, SMALL), seed)
    assert isinstance(network, Flow)
    for coupling in network.couplings:
        for subnet in (coupling.by_second, coupling.by_first):
            subnet.forward = in_double(subnet)  # type: ignore[method-assign,assignment,union-attr]
    return network


def in_double(subnet: Any) -> Callable[[Tensor], Tensor]:
    """A subnet that keeps float64, for derivatives to many digits."""
    return lambda x: subnet.last(subnet.first(x).relu()) * subnet.factor


def features(channels: int, side: int, count: int = 1, seed: int = 3) -> tuple[Tensor, Tensor]:
    """(features, places), float64."""
    x = torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, encoded_places(SMALL.places, side, side).double().expand(count, -1, -1, -1)


Runs = Callable[[Flow, Tensor, Tensor], tuple[Tensor, Tensor]]


def jacobian_of(of: Runs, flow: Flow, x: Tensor, places: Tensor) -> Tensor:
    """[n, n] of everything that goes in and out, by autograd."""
    found = torch.autograd.functional.jacobian(lambda one: of(flow, one, places)[0].flatten(), x)
    return found.reshape(x.numel(), x.numel())


def check_flow(of: Runs) -> None:
    """The sum of the log-determinants is autograd's of the whole map; the inverse leads back."""
    for channels in (4, 5):  # halves of equal and of different width
        flow = flow_of(channels)
        x, places = features(channels, 3)
        with torch.no_grad():
            z, log_determinant = of(flow, x, places)
            back = flow.inverse(z, places)
        expected = torch.linalg.slogdet(jacobian_of(of, flow, x, places)).logabsdet
        assert float(log_determinant.sum()) == pytest.approx(float(expected), abs=1e-9)
        assert abs(float(expected)) > 1
        torch.testing.assert_close(back, x)
        assert float((z - x).abs().mean()) > 0.1


def test_the_flow_is_a_bijection_with_autograds_determinant() -> None:
    check_flow(lambda flow, x, places: flow(x, places))


def swapped(flow: Flow, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    for coupling in reversed(flow.couplings):
        x, _ = coupling(x, places)
    return x, x.sum(1)


FAULTY: dict[str, Runs] = {
    "half of the determinant": lambda flow, x, places: (flow(x, places)[0], flow(x, places)[1] / 2),
    "its inverse's": lambda flow, x, places: (flow(x, places)[0], -flow(x, places)[1]),
    "couplings the other way round": swapped,
    "other places": lambda flow, x, places: flow(x, -places),
    "no determinant": lambda flow, x, places: (flow(x, places)[0], 0 * flow(x, places)[1]),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_flow_is_rejected(name: str) -> None:
    with pytest.raises(AssertionError):
        check_flow(FAULTY[name])


def test_a_coupling_is_its_formula() -> None:
    """y1 = e^s(x2) x1 + t(x2), y2 = e^s(y1) x2 + t(y1), with s = 1.9 * 0.636 atan(r / 1.9) of what a subnet says."""
    flow = flow_of(5)
    coupling, (x, places) = flow.couplings[0], features(5, 4)
    assert isinstance(coupling, Coupling)
    given = x[:, coupling.get_buffer("order")]
    first, second = given[:, :2], given[:, 2:]
    said = coupling.by_second(torch.cat([second, places], 1))
    scale = 1.9 * 0.636 * torch.atan(said[:, :2] / 1.9)
    first = scale.exp() * first + said[:, 2:]
    said = coupling.by_first(torch.cat([first, places], 1))
    other = 1.9 * 0.636 * torch.atan(said[:, :3] / 1.9)
    second = other.exp() * second + said[:, 3:]
    found, log_determinant = coupling(x, places)
    torch.testing.assert_close(found, torch.cat([first, second], 1))
    torch.testing.assert_close(log_determinant, scale.sum(1) + other.sum(1))


@torch.no_grad()
def test_a_flow_begins_as_an_order_of_the_channels() -> None:
    torch.manual_seed(1)
    flow, (x, places) = Flow(6, SMALL).double(), features(6, 4)
    z, log_determinant = flow(x, places)
    torch.testing.assert_close(z.sort(1).values, x.sort(1).values)
    assert not torch.equal(z, x)
    assert float(log_determinant.abs().max()) == 0


@torch.no_grad()
def test_log_scales_are_bounded_so_that_nothing_explodes() -> None:
    flow = flow_of(4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1e4)
    x, places = features(4, 4)
    _, log_determinant = flow(x, places)
    assert float(log_determinant.abs().max()) <= 3 * 4 * 1.9


@pytest.mark.parametrize(("count", "height", "width"), [(4, 3, 5), (8, 4, 4), (32, 24, 24)])
def test_places_are_sines_and_cosines_of_the_column_and_the_row(count: int, height: int, width: int) -> None:
    found, half = encoded_places(count, height, width), count // 2
    assert found.shape == (count, height, width)
    for k in range(0, half, 2):
        rate = exp(-k * log(1e4) / half)
        for row in range(height):
            for column in range(width):
                expected = [sin(rate * column), cos(rate * column), sin(rate * row), cos(rate * row)]
                seen = [float(found[c, row, column]) for c in (k, k + 1, half + k, half + k + 1)]
                assert seen == pytest.approx(expected, abs=1e-5)
    assert len({tuple(found[:, r, c].tolist()) for r in range(height) for c in range(width)}) == height * width


def count_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("inputs", "channels"), [("rgb", 304), ("depth", 64), ("rgb+depth", 368)])
def test_the_papers_networks_have_the_parameters_counted_by_hand(inputs: str, channels: int) -> None:
    """EfficientNet-B5's 304 channels, 64 of depth, 32 of the place; kernels of 3, 3, 3 and 5 px."""
    with torch.device("meta"):
        flow, student = Flow(channels, AST.presets["paper"]), ConvolutionalStudent(channels, AST.presets["paper"])  # type: ignore[arg-type]
    half, expected = channels // 2, 0
    for kernel in (3, 3, 3, 5):
        area = kernel * kernel
        expected += 2 * (1 + area * (half + 32) * 64 + 64 + area * 64 * channels + channels)
    assert count_of(flow) == expected
    blocks = 4 * 2 * (9 * 1024 * 1024 + 1024 + 2 * 1024)
    assert count_of(student) == 9 * (channels + 32) * 1024 + 1024 + blocks + 9 * 1024 * channels + channels


def test_the_student_sees_features_and_places_through_residual_blocks() -> None:
    torch.manual_seed(0)
    student = ConvolutionalStudent(5, SMALL).eval()
    x, places = (one.float() for one in features(5, 4))
    y = nn.functional.leaky_relu(student[0](torch.cat([x, places], 1)), 0.01)
    for block in list(student)[2:4]:
        z = y
        for conv, norm in ((block.layers[0], block.layers[1]), (block.layers[3], block.layers[4])):
            z = nn.functional.leaky_relu(norm(conv(z)), 0.01)
        y = y + z
    torch.testing.assert_close(student(torch.cat([x, places], 1)), student[4](y))
    assert len(student) == 5


def relief() -> Tensor:
    """A block of two heights on the table, [1, 1, 64, 64]."""
    found = torch.zeros(1, 1, 64, 64)
    found[..., 16:40, 8:32] = 0.25
    found[..., 24:32, 16:24] = 0.75
    return found


def test_depth_is_the_height_about_the_objects_mean_in_64_channels() -> None:
    given = relief()
    depth, foreground = depth_of(given, 8)  # 64 px: as many as the relief has, so nothing is resized
    mean = given[given > 0].mean()
    expected = torch.where(given > 0, 4 * (given - mean), 0.0)
    torch.testing.assert_close(nn.functional.pixel_shuffle(depth, 8), expected)
    assert depth.shape == (1, 64, 8, 8)
    assert foreground.shape == (1, 8, 8)
    grown = binary_dilation((given > 0)[0, 0].numpy(), np.ones((8, 8)))
    torch.testing.assert_close(
        foreground[0],
        torch.nn.functional.interpolate(torch.tensor(grown)[None, None].float(), (8, 8), mode="bilinear")[0, 0],
    )


def test_a_scan_without_an_object_has_neither_depth_nor_foreground() -> None:
    depth, foreground = depth_of(torch.zeros(2, 1, 64, 64), 4)
    assert float(depth.abs().max()) == float(foreground.max()) == 0


@pytest.mark.parametrize("side", [8, 9, 31])
def test_masks_grow_as_scipys(side: int) -> None:
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 2, side // 3] = 1
    mask[..., 0, side - 1] = 1
    expected = binary_dilation(mask[0, 0].numpy() > 0, np.ones((8, 8)))
    assert np.array_equal(dilated(mask)[0, 0].numpy() > 0, expected)


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_losses_are_their_formulas_with_and_without_a_foreground() -> None:
    z, said, determinant, there = some(2, 5, 3, 3), some(2, 5, 3, 3, seed=1), some(2, 3, 3, seed=2), some(2, 3, 3).abs()
    likelihood = 0.5 * z.numpy() ** 2
    for foreground in (None, there):
        weights = 1.0 if foreground is None else foreground.numpy()
        expected = (weights * (likelihood.sum(1) - determinant.numpy())).mean()
        assert float(negative_log_likelihood(z, determinant, foreground)) == pytest.approx(expected, rel=1e-5)
        apart = weights * ((z - said).numpy() ** 2).mean(1)
        np.testing.assert_allclose(distances(z, said, foreground).numpy(), apart, rtol=1e-4, atol=1e-6)


def test_a_standard_normal_has_its_likelihood() -> None:
    """Plus log(2 pi) / 2 per channel it is a density: of the identity, the entropy of normal numbers."""
    z = some(4, 100, 16, 16)
    found = float(negative_log_likelihood(z, torch.zeros(4, 16, 16), None)) / 100 + 0.5 * log(2 * pi)
    assert found == pytest.approx(0.5 * log(2 * pi) + 0.5, abs=0.01)


@pytest.mark.parametrize("inputs", ["rgb", "depth", "rgb+depth"])
def test_each_kind_of_input_is_learnt_and_scored(inputs: str) -> None:
    method = method_of(inputs=inputs, steps=2, batch_size=2)
    images = torch.cat([normals(4, seed=k) for k in range(len(inputs.split("+")))], 1)
    channels = {"rgb": 112, "depth": 64, "rgb+depth": 176}[inputs]
    first = method.parts.flow.couplings[0]
    assert len(first.get_buffer("order")) == channels
    method.fit(images)
    scores = method.score(images)
    assert scores.pixel.shape == (4, 64, 64)
    assert bool(scores.pixel.isfinite().all())


def test_depth_alone_looks_at_the_reliefs_height_and_at_nothing_else() -> None:
    method = method_of(inputs="depth", steps=2, batch_size=2)
    images = normals(4, seed=1)
    method.fit(images)
    other = images.clone()
    other[:, 1:] = 0.5
    assert torch.equal(method.score(images).pixel, method.score(other).pixel)
    other[:, 0, 20:30] = 0
    assert not torch.equal(method.score(images).pixel, method.score(other).pixel)


def test_of_both_the_photograph_comes_first_and_the_relief_behind_it() -> None:
    method = method_of(inputs="rgb+depth")
    photograph, picture = normals(2, seed=1), normals(2, seed=2)
    x, foreground = method.features(torch.cat([photograph, picture], 1), method.teacher(photograph))
    torch.testing.assert_close(x[:, :112], method.teacher(photograph)[0])
    torch.testing.assert_close(x[:, 112:], depth_of(picture[:, :1], 4)[0])
    assert foreground is not None
    torch.testing.assert_close(method.teacher(torch.cat([photograph, picture], 1))[0], method.teacher(photograph)[0])


def test_beside_the_object_nothing_is_anomalous() -> None:
    z, said = some(1, 5, 8, 8), some(1, 5, 8, 8, seed=1)
    there = torch.zeros(1, 8, 8)
    there[:, :4] = 1
    pixel = method_of().judge(Outputs(z, said, there), (8, 8)).pixel
    assert float(pixel[:, 4:].abs().max()) == 0
    assert float(pixel[:, :4].min()) > 0


def test_the_foreground_weighs_the_map_once_more_than_the_mean() -> None:
    """As in the official code, whose maximum is that of the map."""
    z, said, there = some(2, 5, 8, 8), some(2, 5, 8, 8, seed=1), torch.rand(2, 8, 8)
    apart = (z - said).square().mean(1)
    for score, image in (("max", (there * there * apart).amax((1, 2))), ("mean", (there * apart).mean((1, 2)))):
        found = method_of(score=score).judge(Outputs(z, said, there), (8, 8))
        torch.testing.assert_close(found.pixel, there * there * apart)
        torch.testing.assert_close(found.image, image)


@torch.no_grad()
def test_what_a_coupling_answers_ends_at_a_million() -> None:
    flow = flow_of(4)
    x, places = features(4, 3)
    z, _ = flow.couplings[0](x * 1e9, places)  # type: ignore[operator]
    assert float(z.abs().max()) == 1e6


def test_the_map_is_the_distance_and_the_score_its_maximum_or_mean() -> None:
    z, said = some(2, 5, 4, 4), some(2, 5, 4, 4, seed=1)
    apart = (z - said).square().mean(1)
    for score, of in (("max", apart.amax((1, 2))), ("mean", apart.mean((1, 2)))):
        found = method_of(score=score).judge(Outputs(z, said, None), (4, 4))
        torch.testing.assert_close(found.pixel, apart)
        torch.testing.assert_close(found.image, of)


def test_the_flow_learns_first_and_the_student_learns_what_it_answers() -> None:
    method = method_of(flow=0.5)
    images = normals(2, seed=1)
    with torch.no_grad():
        taps = method.teacher(images)
        x, places = taps[0], method.parts.placed(taps[0])
        z, determinant = method.parts.flow(x, places)
        said = method.parts.student(torch.cat([x, places], 1))
        for step, expected in (
            (1, {"flow": negative_log_likelihood(z, determinant, None)}),
            (2, {"student": (z - said).square().mean()}),
        ):
            batch = Batch(images=images, teacher=taps, step=step, generator=torch.Generator(), total=2)
            found = method.loss(batch)
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value)


def test_a_flow_learns_the_density_of_correlated_numbers() -> None:
    """After a short fit the answers are nearer to standard normal than the features."""
    seen = losses("ast", steps=20, batch_size=4, flow=1.0, learning_rate=0.005)
    assert seen[-1] < 0.8 * seen[0]


def test_the_students_loss_falls() -> None:
    seen = losses("ast", steps=16, batch_size=4, flow=0.0)
    assert seen[-1] < 0.9 * seen[0]


def test_variants_differ() -> None:
    assert_variants_differ("ast")


def test_a_trained_method_finds_defects_and_scoring_leaves_it_as_it_is() -> None:
    method = small_method("ast", steps=30, batch_size=8, strides=(8,))
    method.fit(normals(16, seed=3))
    checks.defects_stand_out(method, image=0.7, pixel=0.7)
    checks.scoring_changes_nothing(method)
    checks.scores_do_not_depend_on_the_batch(method)


def test_a_lone_image_a_single_place_and_half_precision_will_do() -> None:
    method = method_of(steps=3, batch_size=1, image_size=32, strides=(32,), precision="bf16")
    method.fit(normals(1, seed=1))
    assert bool(method.score(normals(1, seed=2)).pixel.isfinite().all())


def test_settings_and_teachers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="places 6 is not a multiple of 4"):
        AstSettings(places=6)
    with pytest.raises(ValueError, match="strides 8 16 are not one tap"):
        AstSettings(strides=(8, 16))


def test_the_saved_state_holds_the_orders_of_the_channels() -> None:
    state = FlowAndStudent(6, 4, SMALL).state_dict()
    assert [key for key in state if key.endswith("order")] == [f"flow.couplings.{k}.order" for k in range(3)]
    assert "places" not in state
