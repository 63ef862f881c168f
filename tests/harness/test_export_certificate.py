"""What a certificate says of scores near zero, drawn images, maps with an offset, ties and single images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdad_bench.harness.decision import Decision
from kdad_bench.harness.export import Source, refuse_other_normals
from kdad_bench.harness.export_certificate import FP32, Comparison, certificate_of, compared, fault
from kdad_bench.harness.export_images import Images, Normals
from kdad_bench.harness.export_runtimes import ExportError
from kdad_bench.methods.protocol import Scores
from tests.methods.toys import small_method


def comparison(theirs: list[float], ours: list[float], *, drawn: int = 0, **more: Any) -> Comparison:
    """Scores of a model and of its graph, the last `drawn` of drawn images; maps that are alike."""
    count = len(theirs)
    real = [number < count - drawn for number in range(count)]
    facts = {"ranges": [1.0] * count, "apart": [0.0] * count, **more}
    names = [str(number) for number in range(count)]
    return Comparison(names=names, real=real, theirs=theirs, ours=[(one,) for one in ours], **facts)


APART: dict[str, tuple[Comparison, float]] = {
    "as they are": (comparison([1.0, 2.0], [1.0, 2.002]), 1e-3),
    "near zero, by 1 % of the largest": (comparison([1.0, 1e-9], [1.0, 1e-9 + 1e-5]), 1e-3),
    "all tiny": (comparison([1e-20, 2e-20], [1e-20, 2.002e-20]), 1e-3),
    "negative": (comparison([-2.0, 1.0], [-2.002, 1.0]), 1e-3),
    "one image": (comparison([4.0], [4.004]), 1e-3),
    "a drawn image hides no photograph": (comparison([1.0, 2.0, 1e6], [1.001, 2.0, 1e6], drawn=1), 1e-3),
    "a drawn image near zero": (comparison([1.0, 1e-9], [1.0, 1e-9 + 1e-5], drawn=1), 1e-3),
    "all zero and alike": (comparison([0.0, 0.0], [0.0, 0.0]), 0.0),
    "all zero and not alike": (comparison([0.0, 0.0], [0.0, 1e-12]), np.inf),
}


@pytest.mark.parametrize("case", APART)
def test_scores_are_apart_in_units_of_their_own_kind(case: str) -> None:
    found, wanted = APART[case]
    assert found.scores_apart() == pytest.approx(wanted, rel=1e-3)


def test_an_offset_hides_no_difference_of_maps() -> None:
    def found_of(offset: float) -> Comparison:
        heat = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4) + np.float32(offset)
        images = Images("test", ("a",), np.zeros((1, 3, 4, 4), np.uint8))

        class Model:
            def score(self, images: Any) -> Scores:
                return Scores(torch.tensor([1.0]), torch.from_numpy(heat))

        def graph(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return np.ones(1, np.float32), heat + np.float32(0.125) * (np.arange(16).reshape(1, 4, 4) == 3)

        return compared(Model(), graph, [images], (1,), "toy")

    assert [found_of(offset).maps_apart() for offset in (0.0, 1024.0)] == pytest.approx([0.125, 0.125], rel=1e-3)


@pytest.mark.parametrize("counts", [(12, 4), (1,), (17,)])
def test_batches_are_as_large_as_the_certificate_says(counts: tuple[int, ...]) -> None:
    asked = []

    class Model:
        def score(self, images: torch.Tensor) -> Scores:
            return Scores(images.mean((1, 2, 3)), images.mean(1))

    def graph(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(pixels))
        scores = Model().score(torch.from_numpy(pixels).float() / 255)
        return scores.image.numpy(), scores.pixel.numpy()

    random = np.random.default_rng(0)
    sets = [
        Images("test", tuple(map(str, range(n))), random.integers(0, 256, (n, 3, 4, 4), dtype=np.uint8)) for n in counts
    ]
    found = compared(Model(), graph, sets, (1, 16), "toy")
    assert {*asked} == {1, 16}
    assert len(found.ours) == sum(counts)
    assert found.scores_apart() < 1e-6


def test_a_flat_map_is_compared_with_the_ranges_of_the_others() -> None:
    flat = comparison([1.0, 1.0], [1.0, 1.0], ranges=[2.0, 0.0], apart=[0.0, 2e-5])
    assert flat.maps_apart() == pytest.approx(1e-3)


TIES: dict[str, tuple[list[float], list[float], float, tuple[int, int, int]]] = {
    "all at the threshold": ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 1.0, (0, 0, 3)),
    "between two equal scores": ([1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], 1.5, (4, 0, 0)),
    "the graph across it": ([1.0, 1.0, 2.0], [1.0, 1.6, 2.0], 1.5, (3, 1, 0)),
    "zero is the threshold": ([0.0, -1.0, 1.0], [0.0, -1.0, 1.0], 0.0, (2, 0, 1)),
    "one image": ([3.0], [3.0], 1.0, (1, 0, 0)),
}


@pytest.mark.parametrize("case", TIES)
def test_decisions_at_a_threshold_are_told_apart_from_those_that_were_compared(case: str) -> None:
    theirs, ours, limit, (count, flipped, at) = TIES[case]
    made = comparison(theirs, ours).decisions(limit, limit)
    assert (made.compared, made.flipped, made.at_threshold) == (count, flipped, at)


def test_one_flipped_decision_is_a_fault_and_a_tie_is_none() -> None:
    images = [Images("test", ("a", "b"), np.zeros((2, 3, 4, 4), np.uint8))]
    tie = certificate_of(comparison([1.0, 2.0], [1.0, 2.0]), images, (1,), (1.0, 1.0), FP32)
    assert fault(tie) == ""
    flipped = certificate_of(comparison([1.0, 1.0009], [1.0, 1.0001]), images, (1,), (1.0005, 1.0005), FP32)
    assert "1 of 2 decisions flipped (1; 0 is tolerated)" in fault(flipped)


def test_normals_with_other_scores_than_those_of_the_threshold_are_refused() -> None:
    kept = Decision(category="bolt", resolution=32, normal_scores=(1.0, 2.0), normal_map_peak=2.0)
    held_out = Images("held-out normals of x/bolt", ("a", "b"), np.zeros((2, 3, 4, 4), np.uint8))
    source = Source(
        name="pixel_mean", method=small_method("pixel_mean"), kept=kept, normals=Normals(None, held_out, ""), sets=()
    )
    refuse_other_normals(Path("m"), source, comparison([2.0, 1.001, 9.0], [2.0, 1.0, 9.0]))
    for theirs in ([2.0, 1.5, 9.0], [1.0]):
        with pytest.raises(ExportError, match=r"^m: the held-out normals of x/bolt .* have other scores than its"):
            refuse_other_normals(Path("m"), source, comparison(theirs, theirs))
