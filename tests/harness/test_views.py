"""Proportions and tiles: windows and their seams, what counts and what does not, every method, and every door."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kdad_bench import Detector, datasets
from kdad_bench.cli import cli
from kdad_bench.datasets import PAD, SHORT_SIDE, SQUASH, DatasetError
from kdad_bench.datasets.decoding import image_size
from kdad_bench.datasets.fitting import fitted
from kdad_bench.harness import material, run, windows
from kdad_bench.harness.axes import Axes
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.job import id_of_row
from kdad_bench.harness.output import Work
from kdad_bench.harness.scoring import score_all
from kdad_bench.harness.view import WHOLE, View, refuse_what_cannot_be_seen, view_of
from kdad_bench.harness.windows import Windowed, all_windows, along, rule_of, sides
from kdad_bench.leaderboard import store
from kdad_bench.methods import METHODS, distillation, entry
from kdad_bench.methods.pixel_mean import PixelMean
from kdad_bench.methods.protocol import Fitting, Scores
from kdad_bench.methods.resizing import resized
from kdad_bench.methods.training.parting import Parts
from tests.harness.planned import jobs_of

VIEWS = (View(fit=PAD), View(fit=SHORT_SIDE), View(tile=32), View(fit=SHORT_SIDE, tile=32, overlap=4),
         View(fit=PAD, tile=48, overlap=0))  # fmt: skip
SIDE = 64
SMALLER: dict[str, dict[str, Any]] = {
    "stad": {"solved": 64, "width": 16},
    "efficientad": {"image_size": 64, "width": 16},  # the least that its network takes
}


@pytest.fixture(scope="module")
def wide_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A category whose images are wide, and some of its test images tall."""
    root, rng = tmp_path_factory.mktemp("wide"), np.random.default_rng(4)
    shapes = {"train/good": [(40, 96)] * 5 + [(40, 120)], "test/good": [(40, 96), (110, 50)],
              "test/cut": [(40, 96), (40, 120), (110, 50)]}  # fmt: skip
    for folder, these in shapes.items():
        for number, (height, width) in enumerate(these):
            pixels, mask = rng.normal(120, 5, (height, width, 3)), np.zeros((height, width), bool)
            if folder == "test/cut":
                mask[10:22, 30:44] = True
                pixels[mask] += 80
                place = root / "bar" / "ground_truth/cut" / f"{number}_mask.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((mask * 255).astype(np.uint8)).save(place)
            place = root / "bar" / folder / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)
    return root


class Local:
    """A method that sees `reach` px around a pixel; its score is the maximum, the mean or something else."""

    def __init__(self, rule: str = "max", reach: int = 3) -> None:
        self.rule, self.reach = rule, reach
        self.settings, self.module = SimpleNamespace(image_size=32), torch.nn.Module()
        self.seen: list[tuple[int, ...]] = []

    def fit(self, normal: Tensor, fitting: Fitting | None = None) -> None:
        self.seen.append(tuple(normal.shape))

    def score(self, images: Tensor) -> Scores:
        self.seen.append(tuple(images.shape))
        box = 2 * self.reach + 1
        heat = F.avg_pool2d(F.pad(images.mean(1, keepdim=True), (self.reach,) * 4, mode="replicate"), box, 1)[:, 0]
        image = {"max": heat.amax((1, 2)), "mean": heat.mean((1, 2))}.get(self.rule, images[:, 0].amax((1, 2)) + 1)
        return Scores(image, heat)

    def networks(self, images: Tensor) -> Tensor:
        return images


@settings(max_examples=200)
@given(st.integers(1, 300), st.integers(2, 64), st.data())
def test_windows_cover_every_pixel_once_in_weight_and_overlap_as_said(
    length: int, side: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, side // 2))
    found = along(length, side, overlap)
    total = np.zeros(length)
    for places, kept, at, weights in zip(*found, strict=True):
        assert len(places) == side
        assert np.array_equal(places[kept], np.arange(length)[at])
        assert weights.min() > 0
        total[at] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    begins = [at.start for at in found.at]
    if length > side:
        assert (begins[0], begins[-1]) == (0, length - side)
        steps = np.diff(begins)
        assert steps.min() > 0
        assert steps.max() <= side - overlap
        assert len(begins) == -(-(length - side) // (side - overlap)) + 1
    else:
        assert begins == [0]


def test_mirroring_repeats_the_border_and_goes_on_where_the_picture_is_short() -> None:
    assert windows.mirrored(np.arange(-5, 7), 2).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1]
    assert np.array_equal(windows.mirrored(np.arange(-3, 8), 5), np.pad(np.arange(5), 3, mode="symmetric"))


@pytest.mark.parametrize("view", [View(tile=64), View(tile=64, overlap=32), View(tile=48, overlap=12)])
def test_a_local_method_gives_the_whole_image_s_map_away_from_seams_and_no_step_at_them(view: View) -> None:
    rng = torch.Generator().manual_seed(0)
    image = torch.rand((1, 3, 200, 150), generator=rng)
    method = Local()
    whole = method.score(image).pixel[0]
    stitched = Windowed(method, view, 64).score(image).pixel[0]
    near = np.zeros((200, 150), bool)
    for axis, found in enumerate(sides((200, 150), view, 64)):
        for at in found.at:
            for edge in (at.start, at.stop):
                if 0 < edge < near.shape[axis]:
                    band = [slice(None), slice(None)]
                    band[axis] = slice(max(edge - method.reach, 0), edge + method.reach)
                    near[tuple(band)] = True
    assert 0.1 < near.mean() < 0.75
    away = torch.from_numpy(~near)
    torch.testing.assert_close(stitched[away], whole[away], atol=1e-6, rtol=0)
    difference = (stitched - whole).abs()
    assert float(difference.max()) < 0.25 * float(whole.max() - whole.min())  # a window fades out where it errs


def test_a_square_is_its_own_window_and_scores_are_those_of_the_method_itself() -> None:
    images = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    for rule in ("max", "mean", "other"):
        method = Local(rule)
        plain, seen = method.score(images), Windowed(method, View(tile=32), 32).score(images)
        torch.testing.assert_close(seen.pixel, plain.pixel, atol=0, rtol=0)
        torch.testing.assert_close(seen.image, plain.image)


@pytest.mark.parametrize(("rule", "known"), [("max", "max"), ("mean", "mean"), ("other", "")])
def test_the_image_score_of_a_stitched_map(rule: str, known: str) -> None:
    method = Local(rule)
    assert rule_of(method, 3, torch.device("cpu")) == known  # type: ignore[arg-type]
    image = torch.rand((1, 3, 32, 90), generator=torch.Generator().manual_seed(2))
    seen = Windowed(method, View(fit=SHORT_SIDE), 32)  # type: ignore[arg-type]
    found = seen.score(image)
    parts = method.score(seen.windows(image)).image
    expected = {"max": found.pixel.amax(), "mean": found.pixel.mean(), "other": parts.amax()}[rule]
    torch.testing.assert_close(found.image, expected[None])


@pytest.mark.parametrize("rule", ["max", "mean", "other"])
def test_padding_is_in_no_map_and_in_no_score(rule: str) -> None:
    """The mirrored part is scored higher than anything: nothing of that is left."""

    class Blind(Local):
        def score(self, images: Tensor) -> Scores:
            heat = images[:, 0] * 0.1
            heat[:, :20], heat[:, 44:] = 9.0, 9.0  # the mirrored rows of a 24 x 64 picture
            image = {"max": heat.amax((1, 2)), "mean": heat.mean((1, 2))}.get(self.rule, heat.sum((1, 2)))
            return Scores(image, heat)

    method = Blind(rule)
    method.settings.image_size = 64
    found = Windowed(method, View(fit=PAD), 64).score(torch.rand((2, 3, 24, 64)))  # type: ignore[arg-type]
    assert found.pixel.shape == (2, 24, 64)
    assert float(found.pixel.max()) <= 0.1
    assert float(found.image.max()) <= 0.1


def test_no_more_windows_than_a_batch_are_scored_at_once() -> None:
    method = Local()
    Windowed(method, View(tile=32, overlap=0), 256).score(torch.rand((1, 3, 256, 256)))  # type: ignore[arg-type]
    assert {shape[1:] for shape in method.seen} == {(3, 32, 32)}
    assert sum(shape[0] for shape in method.seen) == 64 + windows.PROBES
    assert max(shape[0] for shape in method.seen) == windows.BATCH


@pytest.mark.parametrize(
    ("size", "fit", "shape"),
    [
        ((200, 100), SQUASH, (64, 64)),
        ((200, 100), SHORT_SIDE, (64, 128)),
        ((200, 100), PAD, (32, 64)),
        ((100, 201), PAD, (64, 32)),
        ((1, 1000), PAD, (64, 1)),
        ((3, 4), SHORT_SIDE, (85, 64)),
    ],
)
def test_shapes(size: tuple[int, int], fit: str, shape: tuple[int, int]) -> None:
    assert fitted(size, 64, fit, Path("x.png")) == shape


def test_a_strip_that_would_be_too_long_is_refused_in_one_line() -> None:
    with pytest.raises(DatasetError, match=r"a/strip.png: 8000 x 2 pixels are 1024000 x 256 .*take a smaller --resol"):
        fitted((8000, 2), 256, SHORT_SIDE, Path("a/strip.png"))


def test_images_masks_and_sizes_lie_alike_and_zeros_beside_them(wide_tree: Path) -> None:
    (category,) = datasets.categories(f"folder:{wide_tree}", None)
    for fit in (PAD, SHORT_SIDE):
        test = datasets.load_test(category, SIDE, fit)
        assert test.sizes is not None
        assert test.masks is not None
        assert test.images.shape[2:] == test.masks.shape[1:] == tuple(test.sizes.max(0))
        for image, mask, label, (height, width) in zip(test.images, test.masks, test.labels, test.sizes, strict=True):
            outside = np.ones(mask.shape, bool)
            outside[:height, :width] = False
            assert not image[:, outside].any()
            assert not mask[outside].any()
            assert mask.any() == label
            if label:
                assert image[0][mask].mean() > image[0, :height, :width].mean() + 40
    assert [one.shape for one in datasets.load_pictures(category, "train", SIDE, PAD)] == [(3, 27, 64)] * 5 + [
        (3, 21, 64)
    ]


def test_metrics_of_a_run_count_the_pictures_alone(wide_tree: Path) -> None:
    """The figures are those of the pixels of all pictures, one after the other, by the definition."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    kept: dict[str, Any]
    for view in VIEWS[:2]:
        (job,) = jobs_of(wide_tree, methods=(("pixel_mean", ""),), seeds=(0,), resolution=SIDE, view=view,
                         overrides={"image_size": 32})  # fmt: skip
        kept = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "keep_beside", lambda *them, kept=kept: kept.update(test=them[3], scores=them[4]))
            row = run.run(job, Work(out="unused"), lambda *_: None)
        test, maps = kept["test"], kept["scores"].pixel.numpy()
        own = [(slice(0, h), slice(0, w)) for h, w in test.sizes]
        pixels = np.concatenate([heat[part].ravel() for heat, part in zip(maps, own, strict=True)])
        truth = np.concatenate([mask[part].ravel() for mask, part in zip(test.masks, own, strict=True)])
        assert pixels.size < maps.size
        assert row.pixel_auroc == pytest.approx(roc_auc_score(truth, pixels), abs=1e-9)
        assert row.pixel_ap == pytest.approx(average_precision_score(truth, pixels), abs=1e-9)
        peaks = [float(heat[part].max()) for heat, part in zip(maps, own, strict=True)]
        np.testing.assert_allclose(row.image_scores, peaks, rtol=1e-6)
        assert row.train_images == 6
        assert (row.fit, row.tile, row.resolution) == (view.fit, view.tile, SIDE)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_with_proportions_in_tiles(name: str, wide_tree: Path) -> None:
    overrides = {"image_size": 32, "steps": 1, "batch_size": 2, "teacher": "efficientnet_lite0"}
    view = View(fit=SHORT_SIDE, tile=32, overlap=8)
    settings_of = entry(name).presets["quick"]
    overrides |= SMALLER.get(name, {})
    known = {key: value for key, value in overrides.items() if hasattr(settings_of, key)}
    if name in ("mkd",):
        known.pop("teacher")
    (job,) = jobs_of(wide_tree, methods=((name, ""),), seeds=(0,), resolution=32, view=view, overrides=known)
    row = run.run(job, Work(out="unused"), lambda *_: None)
    assert row.status == "ok"
    assert row.pixel_auroc is not None
    assert row.batch_invariance is not None
    assert row.batch_invariance < 1e-3 * max(1.0, max(map(abs, row.image_scores)))


WINDOWS = {"resolution": 64, "view": View(tile=32, overlap=8)}


def taught_in_windows(
    wide_tree: Path, door: str, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[bytes]], list[set[bytes]]]:
    """(the windows of each image that a fit is given, those in each of the parts that it makes of them)."""
    given: list[list[bytes]] = []
    parts: list[set[bytes]] = []
    real = distillation.set_apart

    def noted(*given: Any) -> Parts:
        found = real(*given)
        every = [found.learnt, *found.apart.values()]
        parts.extend({window.numpy().tobytes() for window in part} for part in every)
        return found

    monkeypatch.setattr(distillation, "set_apart", noted)
    overrides = {"steps": 1, "batch_size": 2, "image_size": 32, "held_out": 0.3, **SMALLER["stad"]}
    (job,) = jobs_of(wide_tree, methods=(("stad", ""),), seeds=(0,), overrides=overrides, **WINDOWS)
    pictures = material.normals(job)[0]
    for picture in pictures:
        seen = all_windows([picture], job.view, 64)
        given.append([window.tobytes() for window in torch.from_numpy(seen).float().div(255).numpy()])
    if door == "run":
        run.run(job, Work(out="unused"), lambda *_: None)
    else:
        images = [Image.fromarray(picture.transpose(1, 2, 0)) for picture in pictures]
        Detector("stad", preset="quick", resolution=64, tile=32, overlap=8, hold_out=0, **overrides).fit(images)
    return given, parts


@pytest.mark.parametrize("door", ["run", "Detector"])
def test_a_method_that_sets_windows_apart_sets_whole_images_apart(
    door: str, wide_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, parts = taught_in_windows(wide_tree, door, monkeypatch)
    assert [len(part) > 0 for part in parts] == [True] * 3  # learnt from, maps' scale, held out
    assert sum(map(len, parts)) == sum(map(len, given))
    for windows_of_one in given:
        assert len({k for k, part in enumerate(parts) for window in windows_of_one if window in part}) == 1


def test_a_lone_image_in_windows_is_wholly_on_both_sides_as_its_row_says(
    wide_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Parts] = []
    real = distillation.set_apart
    monkeypatch.setattr(distillation, "set_apart", lambda *given: seen.append(real(*given)) or seen[-1])
    overrides = {"steps": 1, "batch_size": 2, "image_size": 32, **SMALLER["stad"]}
    lone, two = (
        jobs_of(wide_tree, methods=(("stad", ""),), seeds=(0,), overrides=overrides, axes=(Axes(train_images=k),),
                **WINDOWS)[0] for k in (1, 2)
    )  # fmt: skip
    words = "lone image: learnt from, and taken for those that nothing learns from, too"
    assert [words in run.columns_of(job)["deviations"] for job in (lone, two)] == [True, False]
    for job in (lone, two):
        run.run(job, Work(out="unused"), lambda *_: None)
    first, second = ((parts.learnt, parts.apart["validation"]) for parts in seen)
    assert torch.equal(*first)
    assert len(first[0]) > 1
    assert not {one.numpy().tobytes() for one in second[0]} & {one.numpy().tobytes() for one in second[1]}


def test_a_window_is_of_the_category_of_its_picture() -> None:
    told: list[Fitting | None] = []
    method = Local()
    method.fit = lambda normal, fitting=None: told.append(fitting)  # type: ignore[method-assign]
    Windowed(method, View(tile=32, overlap=0), 64).fit(torch.rand(3, 3, 32, 64), Fitting(categories=(1, 0, 2)))
    assert told[0] is not None
    assert told[0].sources == (0, 0, 1, 1, 2, 2)
    assert told[0].categories == (1, 1, 0, 0, 2, 2)


@pytest.mark.parametrize("view", [View(tile=64), View(fit=PAD), View(fit=SHORT_SIDE)])
def test_many_large_windows_are_learnt_from_as_few_are(
    view: View, wide_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are brought to the networks' side before the method is given them, and are no pictures to cut again."""
    learnt: list[Tensor] = []
    real = PixelMean.fit

    def noted(method: PixelMean, normal: Tensor, fitting: Fitting | None = None) -> None:
        learnt.append(resized(normal, 32))
        real(method, normal, fitting)

    monkeypatch.setattr(PixelMean, "fit", noted)
    (job,) = jobs_of(wide_tree, methods=(("pixel_mean", ""),), seeds=(0,), resolution=SIDE, view=view,
                     overrides={"image_size": 32})  # fmt: skip
    for most in (run.MOST_BYTES, 0):
        monkeypatch.setattr(run, "MOST_BYTES", most)
        run.run(job, Work(out="unused"), lambda *_: None)
    torch.testing.assert_close(*learnt)


def test_the_view_is_in_the_identity_the_label_the_row_and_the_deviations(wide_tree: Path) -> None:
    jobs = [
        jobs_of(wide_tree, methods=(("pixel_mean", ""),), seeds=(0,), resolution=SIDE, view=view)[0]
        for view in (WHOLE, *VIEWS)
    ]
    assert len({job.id for job in jobs}) == len(jobs)
    assert jobs[0].preset == "quick[resolution=64]"
    assert jobs[4].preset == "quick[fit=short-side,overlap=4,resolution=64,tile=32]"
    assert jobs[4].label.endswith("seed 0 fit=short-side,overlap=4,tile=32")
    assert [words.partition(":")[0] for words in jobs[4].deviations][-3:] == ["fit", "tile", "image score"] or not jobs[
        4
    ].weights
    for job in jobs:
        columns = {**dict.fromkeys(("corruption", "k_shot", "contamination")), **run.columns_of(job)}
        assert view_of(columns) == job.view
        row = {
            **columns,
            "kdad_bench": job.identity["kdad_bench"],
            "device": "cpu",
            "environment": '{"deterministic": false}',
        }
        assert id_of_row(row) == job.id
    assert "view" not in jobs[0].identity


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--fit", "padd"), r"--fit 'padd' \(did you mean 'pad'\?\) is not one of squash, short-side, pad"),
        (
            ("--tile", "128"),
            "--tile 128: larger than the images at --resolution 64; take a smaller tile or a higher res",
        ),
        (("--tile", "64", "--overlap", "64"), "--overlap 64: more than half of the 64 px of a tile; take 32 at most"),
        (("--tile", "64", "--overlap", "33"), "--overlap 33: more than half"),
        (("--overlap", "8"), "--overlap 8: there is one window only; add --tile or --fit short-side"),
        (("--fit", "pad", "--overlap", "8"), "--overlap 8: there is one window only"),
        (("--tile", "64", "--overlap", "8"), "--overlap 8: there is one window only, a tile of 64 px is a whole image"),
        (("--fit", "pad", "--corruption", "blur:1"), "--corruption blur:1: is defined on squares; not with --fit pad"),
    ],
)
def test_what_cannot_be_seen_is_one_line(wide_tree: Path, tmp_path: Path, given: tuple[str, ...], words: str) -> None:
    command = [
        "run",
        "-m",
        "pixel_mean",
        "-d",
        f"folder:{wide_tree}",
        "--resolution",
        "64",
        "--out",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(cli, [*command, "--preset", "quick", *given])
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.output.splitlines() if line]
    assert line.startswith("kdad-bench: ")
    assert re.search(words, line)


def test_a_method_that_needs_whole_images_is_refused_with_windows_alone(
    wide_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdad_bench.methods import pixel_mean

    stubborn = replace(pixel_mean.PIXEL_MEAN, whole="it looks at where things lie")
    monkeypatch.setattr(pixel_mean, "PIXEL_MEAN", stubborn)
    for view in (View(tile=32), View(fit=SHORT_SIDE)):
        words = "method 'pixel_mean' cannot see images in windows: it looks at where things lie; leave it or them out"
        with pytest.raises(SelectionError, match=words):
            jobs_of(wide_tree, view=view, resolution=SIDE)
    assert jobs_of(wide_tree, view=View(fit=PAD), resolution=SIDE)
    with pytest.raises(SelectionError, match=r"^tile 32: method 'pixel_mean' cannot"):
        Detector("pixel_mean", preset="quick", tile=32)


@pytest.mark.parametrize("given", [("--tile", "31"), ("--overlap", "-1", "--tile", "32")])
def test_what_is_no_length_is_refused_by_the_command_itself(given: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli, ["run", "--all", *given]).exit_code == 2


def test_a_config_file_takes_the_same_words(tmp_path: Path) -> None:
    from kdad_bench.harness.config import ConfigError, read

    path = tmp_path / "run.toml"
    path.write_text('[run]\nfit = "pad"\ntile = 32\noverlap = 8\n')
    assert (read(path).run.fit, read(path).run.tile, read(path).run.overlap) == ("pad", 32, 8)
    path.write_text('[run]\nfit = "round"\n')
    with pytest.raises(ConfigError, match=r"run.toml:2: run.fit: --fit 'round' is not one of"):
        read(path)


@pytest.fixture(scope="module")
def saved(wide_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with models and maps of each view."""
    out = tmp_path_factory.mktemp("out")
    for view in (View(fit=PAD), View(fit=SHORT_SIDE, tile=32, overlap=4)):
        said = [f"--{name}={value}" for name, value in asdict(view).items() if value is not None]
        command = ["run", "-m", "pixel_mean", "-d", f"folder:{wide_tree}", "--preset", "quick", "--seeds", "1",
                   "--resolution", "64", "--image-size", "32", "--hold-out", "0.4", "--save-models", "--save-maps",
                   "--no-measure-speed", "--executor", "in-process", "--out", str(out)]  # fmt: skip
        done = CliRunner().invoke(cli, [*command, *said])
        assert done.exit_code == 0, done.output
    return out


def models(saved: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    rows = {row["job_id"]: row for row in store.read(saved).rows()}
    for place in sorted((saved / "models").iterdir()):
        yield place, rows[place.name.rpartition("-")[2]]


def test_a_saved_model_sees_a_file_as_its_run_did_at_every_door(saved: Path, wide_tree: Path, tmp_path: Path) -> None:
    for model, row in models(saved):
        files = [wide_tree / "bar/test" / name for name in row["image_names"]]
        done = CliRunner().invoke(
            cli, ["predict", str(model), *map(str, files), "--json", "--false-alarms", "0.4", "--out", str(tmp_path)]
        )
        assert done.exit_code == 0, done.output
        answers = json.loads(done.stdout)["images"]
        np.testing.assert_allclose([one["score"] for one in answers], row["image_scores"], rtol=1e-5)
        assert [image_size(Path(one["overlay"])) for one in answers] == [image_size(path) for path in files]
        again = Detector.load(model)
        found = again.predict(files, threshold=0.0)
        np.testing.assert_allclose(found.scores, row["image_scores"], rtol=1e-5)
        shapes = [fitted(image_size(path), 64, again.view.fit, path) for path in files]
        assert [one.shape for one in found.maps] == shapes
        with np.load(saved / "maps" / f"{row['job_id']}.npz") as file:
            kept = file["maps"]
        for own, whole, (height, width) in zip(found.maps, kept, shapes, strict=True):
            np.testing.assert_allclose(own, whole[:height, :width], rtol=1e-4, atol=1e-5)


def test_an_export_of_such_a_model_is_refused_in_one_line(saved: Path) -> None:
    for model, _ in models(saved):
        done = CliRunner().invoke(cli, ["export", str(model), "--to", "torch"])
        assert done.exit_code == 2
        assert re.search(r"sees images as fit=.*, and a graph takes one square; train without --fit", done.output)


def test_maps_of_other_code_are_judged_with_the_same_proportions(saved: Path, wide_tree: Path, tmp_path: Path) -> None:
    """The maps that a run saved, given back as files of other code, have its pixel figures."""
    (model, row), _ = models(saved)
    view = view_of(row)
    with np.load(saved / "maps" / f"{row['job_id']}.npz") as maps:
        named = list(zip(maps["names"], maps["maps"], strict=True))
    for name, heat in named:
        height, width = fitted(image_size(wide_tree / "bar/test" / name), 64, view.fit, model)
        place = tmp_path / "maps" / "test" / Path(str(name)).with_suffix(".npy")
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(place, heat[:height, :width])
    command = ["evaluate", str(tmp_path / "maps"), "--name", "again", "-d", f"folder:{wide_tree}", "--resolution", "64"]
    done = CliRunner().invoke(cli, [*command, "--fit", view.fit, "--out", str(tmp_path / "rows")])
    assert done.exit_code == 0, done.output
    (other,) = store.read(tmp_path / "rows").rows()
    for metric in ("pixel_auroc", "pixel_ap", "aupro_30", "image_auroc_max", "pixel_ap_small"):
        assert other[metric] == pytest.approx(row[metric], abs=1e-9), metric
    assert (other["fit"], other["preset"]) == (view.fit, f"external[fit={view.fit}]")
    bad = CliRunner().invoke(cli, [*command, "--fit", "round", "--out", str(tmp_path / "rows")])
    assert bad.exit_code == 2
    assert "--fit 'round' is not one of squash, short-side, pad" in bad.output


def test_a_pack_of_such_rows_is_checked_against_the_data(saved: Path, wide_tree: Path, tmp_path: Path) -> None:
    pack = str(tmp_path / "pack.zip")
    assert CliRunner().invoke(cli, ["results", "pack", str(saved), "--out", pack, "--maps"]).exit_code == 0
    done = CliRunner().invoke(cli, ["results", "check", pack, "--dataset", f"folder:{wide_tree}", "--all"])
    assert done.exit_code == 0, done.output
    assert done.output.count("its maps give its") == 2, done.output


def test_tables_are_apart_and_named(saved: Path) -> None:
    page = (saved / "leaderboard.md").read_text()
    for label in ("fit=pad", "fit=short-side", "tile=32"):
        assert label in page


def test_a_detector_of_arrays_and_tensors_keeps_proportions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(90, 130, (40, 96, 3), dtype=np.uint8) for _ in range(8)]
    found = Detector("pixel_mean", preset="quick", resolution=64, fit="short-side", image_size=32, hold_out=0.25,
                     false_alarms=0.4).fit(pictures)  # fmt: skip
    answer = found.predict([*pictures[:2], np.ascontiguousarray(pictures[0].transpose(1, 0, 2))])
    assert [one.shape for one in answer.maps] == [(64, 154), (64, 154), (154, 64)]
    assert found.predict(np.stack(pictures[:2])).maps.shape == (2, 64, 154)
    floats = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    assert found.predict(floats[:2]).maps.shape == (2, 64, 154)
    assert "fit=short-side" in repr(found)
    again = Detector.load(found.save(tmp_path / "model"), false_alarms=0.4)
    assert np.array_equal(again.predict(pictures[:2]).scores, answer.scores[:2])
    with pytest.raises(SelectionError, match="tile 96: larger than the images at resolution 64"):
        Detector("pixel_mean", preset="quick", resolution=64, tile=96)
    with pytest.raises(SelectionError, match="fit 'x' is not one of"):
        Detector("pixel_mean", fit="x")


def test_lots_of_few_and_of_dirty_images_are_of_pictures_too(wide_tree: Path) -> None:
    view = View(fit=PAD)
    for axes, learnt in ((Axes(train_images=2), 2), (Axes(train_images=3, contamination=0.3), 3)):
        (job,) = jobs_of(wide_tree, methods=(("pixel_mean", ""),), seeds=(0,), resolution=SIDE, view=view, axes=(axes,),
                         overrides={"image_size": 32})  # fmt: skip
        fit, _ = material.normals(job)
        assert len(fit) == learnt
        assert all(max(one.shape) == SIDE for one in fit)
        assert run.run(job, Work(out="unused"), lambda *_: None).train_images == learnt


def test_large_maps_lie_in_a_file_and_say_the_same(wide_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdad_bench.harness import scoring

    (job,) = jobs_of(
        wide_tree, methods=(("pixel_mean", ""),), seeds=(0,), resolution=SIDE, overrides={"image_size": 32}
    )
    before = run.run(job, Work(out="unused"), lambda *_: None)
    monkeypatch.setattr(scoring, "MOST_BYTES", 1)
    monkeypatch.setattr(run, "MOST_BYTES", 1)
    after = run.run(job, Work(out="unused"), lambda *_: None)
    assert before.image_scores == after.image_scores
    assert (before.pixel_ap, before.aupro_05, before.aupimo) == (after.pixel_ap, after.aupro_05, after.aupimo)


def test_pages_of_a_file_of_maps_are_let_go_and_read_again() -> None:
    from kdad_bench.files import let_go
    from kdad_bench.harness import scoring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MOST_BYTES", 1)
        maps = scoring.room_for((3, 50, 50), torch.zeros(1))
    assert not maps.any()
    maps[1] = 4.0
    private = np.arange(12.0)
    for array in (maps.numpy(), maps[1].numpy(), private):
        let_go(array)
    assert float(maps[1].sum()) == 4.0 * 2500
    assert private[3] == 3.0


def test_changes_to_a_private_mapping_of_a_user_are_never_let_go(tmp_path: Path) -> None:
    from kdad_bench.metrics import pixel_metrics

    np.save(tmp_path / "maps.npy", np.random.default_rng(0).random((2, 8, 8), np.float32))
    maps = np.load(tmp_path / "maps.npy", mmap_mode="c")
    maps[0, :4, :4] = 5.0
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4, :4] = True
    for view in (maps, maps[:], maps.view(np.ndarray)):
        assert pixel_metrics(view, masks)["pixel_auroc"] == 1.0
        view.flags.writeable = False
        assert pixel_metrics(view, masks)["pixel_auroc"] == 1.0
        assert float(maps[0, 0, 0]) == 5.0


def test_scores_of_pictures_name_shapes_that_break_the_protocol() -> None:
    with pytest.raises(ValueError, match="larger than the images"):
        refuse_what_cannot_be_seen(View(tile=65), 64)
    pictures = [np.zeros((3, 20, 64), np.uint8), np.full((3, 64, 30), 200, np.uint8)]
    found = score_all(Windowed(Local(), View(fit=PAD), 64), pictures, "local")  # type: ignore[arg-type]
    assert found.pixel.shape == (2, 64, 64)
    assert not found.pixel[0, 20:].any()
    assert not found.pixel[1, :, 30:].any()
    assert len(all_windows(pictures, View(fit=PAD), 64)) == 2


def test_a_row_of_the_schema_before_reads_as_one_of_whole_squares(tmp_path: Path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "schema_6.parquet"
    (tmp_path / golden.name).write_bytes(golden.read_bytes())
    (row,) = store.read(tmp_path).rows()
    assert (row["schema_version"], row["corruption"], view_of(row)) == (6, "blur:3", WHOLE)


def test_the_highest_value_of_a_map_is_one_within_its_picture() -> None:
    maps = torch.full((2, 4, 5), 7.0)
    maps[0, :2, :3], maps[1, :4, :1] = -3.0, -1.0
    assert run.peaks_of(maps, np.array([[2, 3], [4, 1]])).tolist() == [-3.0, -1.0]
    assert run.peaks_of(maps, None).tolist() == [7.0, 7.0]
