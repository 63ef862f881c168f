"""Graphs of every method: from the files of each runtime, alone and in batches, they say what the method says."""

from __future__ import annotations

import re
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from torch import Tensor

from kdad_bench.harness import export_runtimes
from kdad_bench.harness.export_graph import Portable, by_turned_weights, graph_of, resized
from kdad_bench.harness.export_runtimes import TARGETS, ExportError, Graph, missing, opened_graph, write_graph
from kdad_bench.kernels import formulas
from kdad_bench.methods import METHODS
from kdad_bench.methods.protocol import Method, Scores
from tests.methods.toys import normals, small_method

SIDE = 80  # of the images: the networks see 64, so that both ways of resizing are in the graph
TOLERANCE = 1e-4  # of an image's score, and of its map's largest value; measured: below 1e-5
PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
# method -> (images at a time, whether it leaves by each of TARGETS), as the page says
LEAVES = {name: cells for name, *cells in re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \| (.+) \| (.+) \|$", PAGE, re.M)}


@cache
def fitted(name: str) -> tuple[Method, Graph]:
    method = small_method(name, source="random")
    method.fit(normals(10, seed=1))
    return method, graph_of(method, SIDE)


Written: TypeAlias = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Where a method's graph lies for a target; a conversion takes seconds, so each is made once."""

    @cache
    def folder_of(name: str, target: str) -> Path:
        folder = tmp_path_factory.mktemp("graph")
        write_graph(fitted(name)[1], target, folder)
        return folder

    return folder_of


def pixels(count: int) -> np.ndarray:
    return (normals(count, seed=2, side=SIDE) * 255).round().to(torch.uint8).numpy()


def apart(method: Method, found: tuple[np.ndarray, np.ndarray], images: np.ndarray) -> float:
    with torch.inference_mode():
        wanted = method.score(torch.from_numpy(images).float() / 255)
    score, heat = wanted.image.numpy(), wanted.pixel.numpy()
    assert found[0].shape == score.shape
    assert found[1].shape == heat.shape
    assert found[0].dtype == found[1].dtype == np.float32
    return max(
        float((abs(found[0] - score) / abs(score)).max()),
        float((abs(found[1] - heat).max((1, 2)) / heat.max((1, 2))).max()),
    )


def test_a_vision_transformer_leaves_as_a_program_that_is_taken_for_harmless(tmp_path: Path) -> None:
    """Attention is an operator of its own, neither public nor of the core set; the quick presets have no ViT."""
    torch.manual_seed(0)
    method = small_method("dinomaly", teacher="dinov2_vits14_reg", source="random", image_size=56)
    method.fit(normals(4, seed=1, side=56))
    graph = graph_of(method, 56)
    write_graph(graph, "torch", tmp_path)
    images = (normals(2, seed=2, side=56) * 255).round().to(torch.uint8).numpy()
    assert apart(method, opened_graph("torch", tmp_path, graph.batch)(images), images) < TOLERANCE


# graphs of torch of every kind of method; converted, the quick ones here; all others with the slow tests
CONVERTED = ("pixel_mean", "stfpm", "patchcore")
LONG = ("mkd", "rdpp", "bmkd", "destseg", "dinomaly", "eca_mskdad", "dskd", "ast")  # 12 to 26 s each
CASES = [
    pytest.param(
        name, target, marks=[] if name in CONVERTED or (target == "torch" and name not in LONG) else [pytest.mark.slow]
    )
    for name in METHODS
    for target in TARGETS
]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_a_graph_says_what_its_method_says(name: str, target: str, written: Written) -> None:
    lacking = missing(target)
    if lacking:
        pytest.skip(lacking)
    method, graph = fitted(name)
    assert LEAVES[name] == ["any" if graph.batch is None else "1", "yes", "yes", "yes"]
    folder = written(name, target)
    assert sorted(path.name for path in folder.iterdir()) == sorted(TARGETS[target].files)
    runner = opened_graph(target, folder, graph.batch)
    for count in (1, 3):
        images = pixels(count)
        assert apart(method, runner(images), images) < TOLERANCE


@pytest.mark.parametrize("target", TARGETS)
def test_each_thread_gets_the_answers_to_its_own_images(target: str, written: Written) -> None:
    if lacking := missing(target):
        pytest.skip(lacking)
    runner, images = opened_graph(target, written("stfpm", target), fitted("stfpm")[1].batch), pixels(6)
    alone = [runner(image[None])[0].item() for image in images]
    with ThreadPoolExecutor(len(images)) as pool:
        asked = [k % len(images) for k in range(120)]
        found = list(pool.map(lambda k: runner(images[k : k + 1])[0].item(), asked))
    assert found == [alone[k] for k in asked]


@pytest.mark.parametrize("target", TARGETS)
def test_graphs_opened_in_several_threads_leave_the_process_as_it_was(
    target: str, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is printed meanwhile arrives, and warnings are shown as before, however the threads overlap."""
    if lacking := missing(target):
        pytest.skip(lacking)
    folder, batch = written("pixel_mean", target), fitted("pixel_mean")[1].batch
    opener, meet = getattr(export_runtimes, f"open_{target}"), threading.Barrier(2)
    during = []

    def waiting(folder: Path) -> object:
        with suppress(threading.BrokenBarrierError):
            meet.wait(timeout=0.5)  # both are in there, where that can be
        during.append(sys.stdout)
        return opener(folder)

    monkeypatch.setattr(export_runtimes, f"open_{target}", waiting)
    before = sys.stdout, list(warnings.filters), warnings.showwarning
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: opened_graph(target, folder, batch), range(2)))
    assert (sys.stdout, list(warnings.filters), warnings.showwarning) == before
    assert during == [before[0]] * 2


@pytest.mark.parametrize("content", [b"", bytes(range(256)) * 20, b"\x08\x07graph"])
def test_a_graph_that_is_no_xml_reaches_no_other_reader_of_openvino(
    content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if lacking := missing("openvino"):
        pytest.skip(lacking)
    (tmp_path / "graph.xml").write_bytes(content)
    (tmp_path / "graph.bin").write_bytes(b"")
    with pytest.raises(ExportError, match=r"graph\.xml: holds more than a graph, or is damaged \(it is no XML\)"):
        opened_graph("openvino", tmp_path, None)
    assert capfd.readouterr() == ("", "")


def test_the_page_has_a_line_for_each_method() -> None:
    assert list(LEAVES) == list(METHODS)
    assert "| method | images at a time | " + " | ".join(TARGETS) + " |" in PAGE


def test_no_op_of_this_package_is_in_a_graph() -> None:
    _, graph = fitted("stfpm")
    names = {str(node.target) for node in graph.program.graph.nodes if node.op == "call_function"}
    assert len(names) > 10
    assert [name for name in names if "kdad" in name or "mkldnn" in name] == []


def test_every_op_that_scores_is_given_its_formula() -> None:
    training = ("distillation_loss", "fuse_scales_gradients", "gaussian_blur_gradients")
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("kdad::")}
    have = {op.name() for op in formulas.FORMULAS}
    assert {name for name in registered if not name.removeprefix("kdad::").startswith(training)} == have


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


CALLS = {
    "pixel_discrepancy": (random(2, 5, 7, 6), random(2, 5, 7, 6) + 1, "cosine", 1.5),
    "dual_discrepancy": (random(2, 5, 7, 6), random(2, 5, 7, 6) + 1, random(2, 5, 7, 6) - 1, "unit_l2", 2.0),
    "pixel_discrepancy_gradients": (
        random(2, 7, 6), random(2, 5, 7, 6), random(2, 5, 7, 6) + 1, "l2", 0.5, True, False
    ),
    "attention_weighting": (random(2, 5, 7, 6), random(2, 5, 7, 6) + 1),
    "flattened_cosine": (random(2, 5, 7, 6), random(2, 5, 7, 6) + 1),
    "flattened_cosine_gradients": (
        random(2).abs(), random(2, 5, 7, 6), random(2, 5, 7, 6) + 1, random(2, 3).double(), False, True
    ),
    "fuse_scales": ([random(2, 5, 4), random(2, 3, 9)], [11, 9], "product", True),
    "gaussian_blur": (random(2, 9, 14), 2.0, "torch", 8),
    "nearest": (random(6, 5), random(20, 5), 3),
}  # fmt: skip


@pytest.mark.parametrize("op", formulas.FORMULAS, ids=lambda op: op.name())
def test_a_formula_gives_what_its_op_gives(op: torch._ops.OpOverload) -> None:
    arguments = list(CALLS[op.name().removeprefix("kdad::")])
    if op.name() == "kdad::flattened_cosine_gradients":  # the sums that the compiled op reads
        arguments[3] = formulas.flattened(arguments[1], arguments[2])[1]
    wanted, found = op(*arguments), formulas.FORMULAS[op](*arguments)
    pairs = zip(wanted, found, strict=True) if isinstance(wanted, tuple) else [(wanted, found)]
    for one, other in pairs:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "to"), [(7, 7), (8, 20), (33, 8), (1, 5)])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_resizing_by_matrices_is_pytorchs(length: int, to: int, align_corners: bool, antialias: bool) -> None:
    images = torch.rand(2, 3, length, length + 2)
    how = {"mode": "bilinear", "align_corners": align_corners, "antialias": antialias}
    wanted = torch.nn.functional.interpolate(images, (to, to + 3), **how)
    torch.testing.assert_close(resized(images, (to, to + 3), align_corners, antialias), wanted, rtol=1e-5, atol=1e-5)
    with Portable():
        torch.testing.assert_close(
            torch.nn.functional.interpolate(images, (to, to + 3), **how), wanted, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1), (3, 0), (5, 2), ((3, 1), (1, 0))], ids=str)
def test_the_gradient_by_turned_weights_is_autograds(side: int, stride: int, kernel: Any, padding: Any) -> None:
    layer = torch.nn.Conv2d(4, 6, kernel, stride, padding)
    images = torch.rand(2, 4, side, side + 3, requires_grad=True)
    out = layer(images)
    upstream = torch.randn(out.shape)
    (wanted,) = torch.autograd.grad(out, images, upstream)
    found = by_turned_weights(upstream, images, layer.weight, layer.stride, layer.padding)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


class InputGradient:
    """A method whose map is the gradient of its score through a convolution of as many inputs as outputs."""

    def __init__(self) -> None:
        self.network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU())

    def score(self, images: Tensor) -> Scores:
        with torch.inference_mode(False), torch.enable_grad():
            images = images.detach().clone().requires_grad_()
            scores = self.network(images).square().mean((1, 2, 3))
            (gradient,) = torch.autograd.grad(scores.sum(), images)
        return Scores(scores.detach(), gradient.abs().sum(1))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_gradient_of_a_square_convolution_is_right_in_every_runtime(target: str, tmp_path: Path) -> None:
    if missing(target):
        pytest.skip(missing(target))
    method = InputGradient()
    graph = graph_of(method, SIDE)
    write_graph(graph, target, tmp_path)
    images = pixels(2)
    found = opened_graph(target, tmp_path, graph.batch)(images)
    wanted = method.score(torch.from_numpy(images).float() / 255)
    np.testing.assert_allclose(found[0], wanted.image.numpy(), rtol=1e-4)
    np.testing.assert_allclose(found[1], wanted.pixel.numpy(), rtol=1e-3, atol=1e-4 * float(wanted.pixel.max()))


class Toy:
    """A method whose `score` is given."""

    def __init__(self, score: object) -> None:
        self.score = score


def test_a_score_that_looks_at_values_is_refused_in_one_line() -> None:
    def score(images: Tensor) -> Scores:
        peak = images.amax((1, 2, 3))
        return Scores(peak, images[:, 0] * (2.0 if float(peak.sum()) > 1 else 1.0))

    with pytest.raises(ExportError, match="has no graph: its `score` cannot be traced") as caught:
        graph_of(Toy(score), 32)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_score_that_counts_its_images_gets_a_graph_for_one() -> None:
    def score(images: Tensor) -> Scores:
        heat = images[:, 0] / len(images)
        return Scores(heat.amax((1, 2)), heat)

    assert graph_of(Toy(score), 32).batch == 1  # type: ignore[arg-type]


def test_8_bits_reach_the_convolutions_alone(tmp_path: Path) -> None:
    lacking = missing("openvino", int8=True)
    if lacking:
        pytest.skip(lacking)
    method, graph = fitted("stfpm")
    images = pixels(4)
    write_graph(graph, "openvino", tmp_path, [images[k : k + 1] for k in range(4)])
    text = (tmp_path / "graph.xml").read_text()
    assert text.count('type="FakeQuantize"') > 20
    found = apart(method, opened_graph("openvino", tmp_path, graph.batch)(images), images)
    assert 1e-5 < found < 10  # random weights: what 8 bits cost a trained model is for the certificate to say
