"""What graphs are compared and calibrated on, and the threshold of a graph whose scores all moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from kdad_bench.cli import cli
from kdad_bench.harness.choices import MULTI_CLASS
from kdad_bench.harness.decision import Decision, read
from kdad_bench.harness.export import Source, refitted, said_of
from kdad_bench.harness.export_images import CALIBRATION, Images, Normals, calibration_of, drawn, normals_of
from kdad_bench.harness.run import columns_of
from kdad_bench.leaderboard import store
from kdad_bench.leaderboard.row import Row
from kdad_bench.methods.pixel_mean import PixelMean
from tests.conftest import write_tree
from tests.harness.planned import jobs_of
from tests.methods.toys import small_method


def images(what: str, count: int, value: int = 0) -> Images:
    pixels = np.full((count, 3, 32, 32), value, np.uint8) + np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Images(what, tuple(map(str, range(count))), pixels)


def source(held_out: Images | None) -> Source:
    kept = Decision(category="bolt", resolution=32, normal_scores=(1.0, 2.0), normal_map_peak=2.0)
    return Source(
        name="pixel_mean", method=small_method("pixel_mean"), kept=kept,
        normals=Normals(None, held_out, ""), sets=(),
    )  # fmt: skip


def runner(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first byte is the score and the map."""
    assert len(pixels) == 1
    score = pixels[:, 0, 0, 0].astype(np.float32)
    return score, np.repeat(score, 32 * 32).reshape(1, 32, 32) + 1


def test_the_threshold_of_a_rounded_graph_is_fitted_on_its_own_scores() -> None:
    found = refitted(source(images("held-out normals", 3, value=7)), runner)
    assert found.normal_scores == (7.0, 8.0, 9.0)
    assert found.normal_map_peak == 10.0
    assert found.category == "bolt"


def test_an_export_says_of_its_model_what_its_row_says(tmp_path: Path, tiny_tree: Path) -> None:
    """Settings do not know that one model learnt from several categories, nor with which share held out."""
    job = jobs_of(tiny_tree, methods=(("dinomaly", ""),), setting=MULTI_CLASS, hold_out=0.34)[0]
    model = tmp_path / "models" / f"dinomaly-bolt-s0-{job.id}"
    alone = said_of(model, job.settings)
    assert alone == (job.settings.readings, job.settings.deviations)
    row = Row(**columns_of(job))
    store.write(row, tmp_path)
    assert said_of(model, job.settings) == (row.readings, row.deviations)
    assert "budget: 50 steps (official code: 10000 steps)" in row.deviations
    assert any(line.startswith("hold_out: ") for line in row.deviations)
    assert row.deviations != alone[1]


def test_without_held_out_normals_the_models_threshold_stays() -> None:
    one = source(None)
    assert refitted(one, runner) == one.kept


@pytest.mark.parametrize(("count", "taken"), [(1, 1), (5, 5), (CALIBRATION, CALIBRATION), (200, CALIBRATION)])
def test_ranges_are_measured_on_what_the_model_learnt_from(count: int, taken: int) -> None:
    learnt = images("", count).pixels
    found, words = calibration_of(Normals(learnt, None, ""), [images("test images", 3)])
    assert words == f"{taken} normals that the model learnt from"
    assert len(found) == taken
    assert all(one.shape == (1, 3, 32, 32) for one in found)
    np.testing.assert_array_equal(found[0][0], learnt[0])
    np.testing.assert_array_equal(found[-1][0], learnt[-1])


def test_ranges_measured_on_images_that_were_also_compared_are_said_to_be() -> None:
    found, words = calibration_of(Normals(None, None, "no row"), [images("images of x", 3)])
    assert len(found) == 3
    assert words == "3 images of x, which it was also compared on"


def test_drawn_images_are_no_photographs_and_show_the_extremes() -> None:
    found = drawn(40)
    assert found.pixels.shape == (4, 3, 40, 40)
    assert not found.real
    assert set(np.unique(found.pixels[0])) == {0}
    assert set(np.unique(found.pixels[1])) == {255}


LEARNT: dict[str, tuple[tuple[object, ...], int]] = {
    "all that are not held out": ((), 4),
    "a few": (("--train-images", 2), 2),
    "with defective ones among them": (("--contamination", 0.25), 3),
    "a few with defective ones among them": (("--train-images", 3, "--contamination", 0.33), 2),
    "together with another category": (("--setting", "multi-class"), 4),
    "a few of each together": (("--setting", "multi-class", "--train-images", 2), 2),
}


@pytest.mark.parametrize("case", LEARNT)
def test_the_normals_that_a_model_learnt_from_are_found_again(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a fit is given, in a run, holds the images that are found by the row of the run, and no other normals."""
    more, count = LEARNT[case]
    given: list[np.ndarray] = []
    fit = PixelMean.fit

    def seen(self: PixelMean, normal: torch.Tensor, fitting: Any = None) -> None:
        given.append((normal * 255).round().byte().numpy())
        fit(self, normal, fitting)

    monkeypatch.setattr(PixelMean, "fit", seen)
    tree = write_tree(tmp_path / "tree", test=6)
    arguments = ["run", "-m", "pixel_mean", "-d", f"folder:{tree}", "--preset", "quick", "--seeds", "3,",
                 "--hold-out", 0.34, "--save-models", "--no-pictures", "--no-measure-speed", "--workers", 1,
                 "--out", tmp_path / "out", *more]  # fmt: skip
    done = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    (model,) = (tmp_path / "out" / "models").glob("*-bolt-*")
    found = normals_of(model, read(model), None)
    assert found.fit is not None
    assert found.held_out is not None
    assert len(found.fit) == count
    learnt, apart = ({one.tobytes() for one in images} for images in (found.fit, found.held_out.pixels))
    fed = [{one.tobytes() for one in images} for images in given]
    assert any(learnt <= images for images in fed)
    assert not any(apart & images for images in fed)
    (row,) = (row for row in store.read(tmp_path / "out").rows() if row["category"] == "bolt")
    defective = 0 if row["contamination"] is None else int(row["contamination"] * row["train_images"] + 0.5)
    assert count * max(1, len(row["learnt_together"] or ())) == row["train_images"] - defective
