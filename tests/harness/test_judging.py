"""What is said of scores and maps from which no figure can be had."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdad_bench import datasets
from kdad_bench.harness.judging import judged, warn_of_conflicts
from kdad_bench.harness.material import normals, unseen_names
from kdad_bench.harness.run import peaks_of, score_unseen
from kdad_bench.harness.scoring import as_images
from kdad_bench.harness.view import SHORT_SIDE, WHOLE, View
from kdad_bench.methods.protocol import Scores
from kdad_bench.metrics import MetricError
from tests.harness.planned import jobs_of

CATEGORY: Any = SimpleNamespace(dataset="d", name="c", test=[SimpleNamespace(defect="spot")] * 6)
NAMES = tuple(f"spot/{k:03}.png" for k in range(6))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDAD_CACHE", str(tmp_path))


def judge(maps: Tensor, scores: Any, *, masked: bool, sizes: Any = None) -> dict[str, Any]:
    masks = np.zeros((6, 12, 12), bool)
    masks[3:, 2:4, 2:4] = True
    test = datasets.TestSet(
        np.zeros((6, 3, 12, 12), np.uint8), np.arange(6) > 2, masks if masked else None, NAMES, None, sizes
    )
    return judged(scores, maps, peaks_of(maps, sizes), test, category=CATEGORY, resolution=12, method="mine")


@pytest.mark.parametrize(
    ("unmarked", "end"),
    [((), "; a higher --resolution helps"), (NAMES[4:5], "; a higher --resolution helps 2 of them"), (NAMES[3:], "")],
)
def test_a_higher_resolution_is_advised_where_it_helps(unmarked: tuple[str, ...], end: str) -> None:
    """Masks vanish as they are reduced; one that marks nothing at its own size does at any."""
    masks = np.zeros((6, 12, 12), bool)
    test = datasets.TestSet(np.zeros((6, 3, 12, 12), np.uint8), np.arange(6) > 2, masks, NAMES, unmarked=unmarked)
    with pytest.warns(UserWarning, match="no defect pixel in the masks of 3 anomalous images") as seen:
        warn_of_conflicts(test, CATEGORY, 12)
    assert str(seen[0].message).endswith(f"as normal in the pixel metrics{end}")


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", ["of its own", "maximum", "mean"])
def test_a_map_that_is_not_finite_is_named_by_its_place_whatever_the_score(rule: str, bad: float, masked: bool) -> None:
    maps = torch.rand(6, 12, 12)
    maps[4, 7, 11] = bad
    scores = {"of its own": torch.rand(6), "maximum": maps.amax((1, 2)), "mean": maps.mean((1, 2))}[rule]
    place = rf"^mine: anomaly map at row 7, column 11 of image 'spot/004.png' is {bad}"
    with pytest.raises(MetricError, match=place):
        judge(maps, scores, masked=masked)


@pytest.mark.parametrize("masked", [True, False])
def test_a_score_that_is_not_finite_is_named_where_the_maps_are(masked: bool) -> None:
    scores = torch.tensor([0, 1, 2, 3, torch.nan, 4])
    with pytest.raises(MetricError, match=r"^mine: image score of image 'spot/004.png' is nan"):
        judge(torch.rand(6, 12, 12), scores, masked=masked)


def test_what_lies_beside_a_picture_is_not_looked_at() -> None:
    maps, sizes = torch.rand(6, 12, 12), np.full((6, 2), (12, 11))
    maps[:, :, 11] = -torch.inf
    assert judge(maps, torch.arange(6.0), masked=False, sizes=sizes)["image_auroc"] == 1


@pytest.mark.parametrize("view", [WHOLE, View(fit=SHORT_SIDE)], ids=["whole", "pictures"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["map", "score"])
def test_an_unseen_normal_that_is_not_finite_is_named(part: str, bad: float, view: View, tiny_tree: Path) -> None:
    job = jobs_of(tiny_tree, methods=(("pixel_mean", ""),), seeds=(0,), resolution=16, hold_out=0.4, view=view)[0]

    class Broken:
        def score(self, images: Tensor) -> Scores:
            maps, scores = images.mean(1), images.mean((1, 2, 3))
            (maps[0, 7] if part == "map" else scores)[0] = bad
            return Scores(scores, maps)

    method: Any = Broken()
    held_out = normals(job)[1]
    place = "anomaly map at row 7, column 0" if part == "map" else "image score"
    with pytest.raises(MetricError, match=rf"^pixel_mean: {place} of image 'train/good/\d+\.png' is {bad}"):
        score_unseen(job, method, as_images(held_out, torch.device("cpu")) if job.view.plain else held_out)


def test_the_names_of_unseen_normals_are_those_of_what_is_held_out(tiny_tree: Path) -> None:
    (job, *_) = jobs_of(tiny_tree, methods=(("pixel_mean", ""),), seeds=(0,), resolution=16, hold_out=0.4)
    every, apart = (normals(one)[k] for one, k in ((jobs_of(tiny_tree, resolution=16)[0], 0), (job, 1)))
    assert len(apart) > 1
    of = dict(zip((sample.path for sample in job.category.train), every, strict=True))
    for name, image in zip(unseen_names(job), apart, strict=True):
        np.testing.assert_array_equal(of[job.category.root / name], image)
