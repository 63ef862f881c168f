"""A detector is a run's method on images of one's own: the same scores, decisions and files."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import kdad_bench
from kdad_bench.api import detector as detectors
from kdad_bench.api.detector import NotFitted
from kdad_bench.cli import cli
from kdad_bench.harness import teachers
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.export import Wanted, export
from kdad_bench.harness.export_runtimes import missing
from kdad_bench.harness.job import TeacherWeights
from kdad_bench.methods.checkpoint import ModelError
from tests.conftest import write_tree

SIDE = 64
QUICK = {"steps": 4, "batch_size": 4, "image_size": SIDE}
FAST: dict[str, Any] = {"preset": "quick", "resolution": SIDE}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("detector"), categories=("bolt",), train=12)


@pytest.fixture(scope="module")
def data(tree: Path) -> Any:
    return kdad_bench.datasets.load(f"folder:{tree}", resolution=SIDE)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", ["pixel_mean", "stfpm", "padim"])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_scores_are_those_of_a_run_bit_for_bit(
    method: str, share: float, tree: Path, data: Any, tmp_path: Path, threads: None
) -> None:
    settings = QUICK if method == "stfpm" else {"image_size": SIDE}
    results = kdad_bench.run(
        method, f"folder:{tree}", seeds=[3], out=tmp_path, **FAST, settings=settings, hold_out=share,
        save_models=True, save_maps=True, weights="random" if method != "pixel_mean" else None,
        pictures=False, measure_speed=False,
    )  # fmt: skip
    (row,) = results.frame(["job_id", "image_scores"]).to_pylist()
    options = {"weights": "random"} if method != "pixel_mean" else {}
    detector = kdad_bench.Detector(method, seed=3, **FAST, hold_out=share, false_alarms=0.2, **options, **settings).fit(
        data.train
    )
    found = detector.predict(data.test)
    assert found.scores.tolist() == row["image_scores"]
    with np.load(tmp_path / "maps" / f"{row['job_id']}.npz") as file:
        maps = file["maps"]
    assert np.array_equal(found.maps.astype(maps.dtype), maps)
    (model,) = (tmp_path / "models").iterdir()
    loaded = kdad_bench.Detector.load(model, false_alarms=0.2)
    again = loaded.predict(data.test)
    assert np.array_equal(again.scores, found.scores)
    assert loaded.threshold_ == detector.threshold_
    assert (found.decision is None) == (share == 0.0)
    assert loaded.settings == detector.settings


def test_a_loaded_detector_is_fitted_by_the_settings_of_its_model(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def at_hand(teacher: str, source: str | None, **options: Any) -> TeacherWeights:
        asked.append((teacher, source))
        return TeacherWeights(teacher=teacher, source="random", sha256="random")

    for module in (detectors, teachers):
        monkeypatch.setattr(module, "find", at_hand, raising=False)
    small = {**QUICK, "steps": 1}
    first = kdad_bench.Detector("stfpm", **FAST, **small, hold_out=0.4, false_alarms=0.2, weights="random")
    loaded = kdad_bench.Detector.load(first.fit(data.train).save(tmp_path), false_alarms=0.2)
    assert (loaded.preset, loaded.hold_out) == ("", 0.2)
    loaded.hold_out = 0.4
    asked.clear()
    again = loaded.fit(data.train)
    assert asked == [(first.settings.teacher, None)]
    assert again.settings == first.settings
    assert np.array_equal(again.predict(data.test).scores, first.predict(data.test).scores)
    without = kdad_bench.Detector("pixel_mean", **FAST, hold_out=0).fit(data.train).save(tmp_path / "without")
    assert kdad_bench.Detector.load(without).hold_out == 0


def test_a_saved_detector_is_a_model_of_predict_with_the_same_decisions(tree: Path, data: Any, tmp_path: Path) -> None:
    files = sorted((tree / "bolt" / "test").rglob("*.png"))
    fitted = kdad_bench.Detector("pixel_mean", **FAST, hold_out=0.5, false_alarms=0.15).fit(data.train)
    place = fitted.save(tmp_path / "model")
    assert not list(place.glob("*.tmp"))
    with pytest.raises(SelectionError, match="is a URL; give a path on this machine"):
        fitted.save("s3://bucket/model")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SelectionError, match="file: is no folder; choose another one"):
        fitted.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    ours = kdad_bench.Detector.load(place, false_alarms=0.15).predict(files)
    done = CliRunner().invoke(cli, ["predict", str(place), *map(str, files), "--json", "--false-alarms", "0.15"])
    assert done.exit_code == 0, done.output
    theirs = json.loads(done.stdout)
    assert theirs["threshold"] == fitted.threshold_
    assert [one["score"] for one in theirs["images"]] == pytest.approx(ours.scores.tolist(), rel=1e-6)
    assert ours.decision is not None
    assert [one["anomalous"] for one in theirs["images"]] == ours.decision.tolist()
    assert ours.decision.any()
    assert not ours.decision.all()


@pytest.mark.parametrize("view", [{}, {"fit": "pad"}])
def test_held_out_copies_of_what_is_learnt_from_are_told(view: dict[str, Any], data: Any, tmp_path: Path) -> None:
    wanted = r"10 of 10 held-out normals are copies of images that are learnt from, or of one another"
    detector = kdad_bench.Detector("pixel_mean", **FAST, **view, hold_out=0.21)
    with pytest.warns(UserWarning, match=wanted):
        detector.fit(np.repeat(data.train, 4, axis=0))
    loaded = kdad_bench.Detector.load(detector.save(tmp_path))
    for one in (detector, loaded):
        assert [note for note in one.threshold_notes_ if f"warning: {wanted}" in note] != []
    kdad_bench.Detector("pixel_mean", **FAST, **view, hold_out=0).fit(np.repeat(data.train, 2, axis=0))
    apart = kdad_bench.Detector("pixel_mean", **FAST, **view, hold_out=0.5, false_alarms=0.2).fit(data.train)
    assert not any("copies" in note for note in apart.threshold_notes_)


def test_a_threshold_at_a_score_itself_calls_it_normal_as_predict_does(data: Any) -> None:
    detector = kdad_bench.Detector("pixel_mean", **FAST, hold_out=0).fit(data.train)
    scores, maps, decision = detector.predict(data.test)
    assert decision is None
    assert maps.shape == (len(data.test), SIDE, SIDE)
    assert (scores.dtype, maps.dtype) == (np.float32, np.float32)
    at = float(np.sort(scores)[2])
    found = detector.predict(data.test, threshold=at)
    assert found.decision is not None
    assert found.decision.sum() == (scores > np.float32(at)).sum() == len(scores) - 3
    assert detector.predict(data.test, threshold=float(np.nextafter(at, -1))).decision.sum() == len(scores) - 2  # type: ignore[union-attr]


def test_it_prints_nothing_and_tells_its_losses_to_whom_listens(data: Any, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[int] = []
    detector = kdad_bench.Detector("stfpm", **FAST, weights="random", hold_out=0, **QUICK)
    detector.fit(data.train, log=lambda step, terms: told.append(step))
    detector.predict(data.test)
    repr(detector)
    assert told
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("threshold", ["high", float("nan"), float("inf"), True])
def test_a_threshold_that_is_no_number_is_one_line(threshold: Any, data: Any) -> None:
    detector = kdad_bench.Detector("pixel_mean", **FAST, hold_out=0, seed=np.int64(3), device=torch.device("cpu"))
    detector.fit(data.train)
    with pytest.raises(ValueError, match="is no finite number; give one"):
        detector.predict(data.test, threshold=threshold)


def test_what_is_not_fitted_says_so(tmp_path: Path) -> None:
    detector = kdad_bench.Detector("pixel_mean", **FAST)
    for ask in (lambda: detector.predict([]), lambda: detector.save(tmp_path), lambda: detector.threshold_):
        with pytest.raises(NotFitted, match=r"not fitted: call fit\(images\) first"):
            ask()
    assert list(tmp_path.iterdir()) == []


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown method": ({"method": "stfmp"}, "did you mean 'stfpm'"),
    "an unknown variant": ({"method": "stfpm:wide"}, "no variant 'wide'"),
    "an unknown setting": ({"learning_rat": 1.0}, "did you mean 'learning_rate'"),
    "a setting of the wrong type": ({"learning_rate": "high"}, "learning_rate='high' does not fit"),
    "no steps": ({"steps": 0}, "steps"),
    "an unknown preset": ({"preset": "fast"}, "preset 'fast'"),
    "an unknown device": ({"device": "tpu"}, "device 'tpu'"),
    "a small resolution": ({"resolution": 8}, "resolution"),
    "a resolution in words": ({"resolution": "large"}, "resolution"),
    "a share of one": ({"hold_out": 1.0}, "hold_out=1.0 is no share"),
    "no false alarms": ({"false_alarms": 0}, "false_alarms=0 is no share"),
    "a seed that is none": ({"seed": -1}, "seed=-1"),
    "a seed in words": ({"seed": "0"}, "seed='0'"),
    "no method": ({"method": None}, "method=None is of type NoneType; give a name or a file"),
    "two methods": ({"method": ["stfpm", "rd4ad"]}, "is of type list; give a name or a file"),
    "half a pixel": ({"resolution": 64.5}, ", not 64.5"),
    "weights of a type": ({"weights": 3}, "weights=3 is of type int"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_option_is_one_line_that_names_its_keyword(case: str) -> None:
    options, words = BAD[case]
    with pytest.raises(ValueError) as error:  # noqa: PT011 - each names its value
        kdad_bench.Detector(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "--" not in str(error.value)


def test_what_training_would_find_out_late_is_said_before(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdad_bench.api.detector.built", lambda *_: pytest.fail("was built"))
    few = kdad_bench.Detector("pixel_mean", **FAST)  # 2 of 12 cannot promise 10 %
    with pytest.raises(ValueError, match=r"2 unseen normal images of 12 images cannot support a 10 %"):
        few.fit(data.train)
    with pytest.raises(ValueError, match="at least 2 are needed to hold some out; give more images, or hold_out=0"):
        few.fit(data.train[:1])
    with pytest.raises(ValueError, match=r"no such file; give a checkpoint"):
        kdad_bench.Detector("stfpm", weights="/no/such.pth", **FAST, hold_out=0).fit(data.train)
    with pytest.raises(ValueError, match=r"no\.png: cannot be read"):
        kdad_bench.Detector("pixel_mean", **FAST, hold_out=0).fit(["no.png"])


def test_a_log_that_cannot_be_called_is_told_before_the_training(data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdad_bench.api.detector.built", None)
    with pytest.raises(ValueError, match=r"^log=True is not callable; give a function"):
        kdad_bench.Detector("pixel_mean", preset="quick", resolution=64).fit(data.train, log=True)  # type: ignore[arg-type]


def test_a_score_that_is_not_finite_is_an_error_and_no_decision(data: Any) -> None:
    detector = kdad_bench.Detector("pixel_mean", **FAST, hold_out=0).fit(data.train)
    detector._fitted.method.module.get_buffer("mean")[0, 3, 3] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="image 0: the scores of method 'pixel_mean' are not finite"):
        detector.predict(data.test)


def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no description of a saved model"):
        kdad_bench.Detector.load(tmp_path)


@pytest.mark.parametrize("target", ["torch", pytest.param("onnx", marks=pytest.mark.slow), "openvino"])
def test_an_exported_graph_is_a_detector(target: str, data: Any, tmp_path: Path) -> None:
    if lacking := missing(target):
        pytest.skip(lacking)
    made = kdad_bench.Detector("pixel_mean", **FAST, hold_out=0.4, false_alarms=0.3).fit(data.train)
    model = made.save(tmp_path / "model")
    files = []
    for number, image in enumerate(data.test[:2]):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image).save(files[-1])
    export(Wanted(model=model, target=target, check_on=tuple(files), false_alarms=0.3))
    graph = kdad_bench.Detector.load(model / target, false_alarms=0.3)
    assert (graph.method, graph.resolution, graph.threshold_) == ("pixel_mean", SIDE, made.threshold_)
    assert isinstance(graph.settings, dict)
    found, wanted = graph.predict(data.test), made.predict(data.test)
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4)
    np.testing.assert_allclose(found.maps, wanted.maps, rtol=1e-3, atol=1e-4 * float(wanted.maps.max()))
    assert found.decision is not None
    for work in (lambda: graph.fit(data.train), lambda: graph.save(tmp_path / "again")):
        with pytest.raises(SelectionError, match="an exported graph cannot be"):
            work()
    with pytest.raises(SelectionError, match=r"holds an exported graph \(export.json\); give another folder"):
        made.save(model / target)
    for copied in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert np.array_equal(copied.predict(data.test).scores, found.scores)
        assert copied.threshold_ == graph.threshold_
    with pytest.raises(SelectionError, match="runs on the CPU"):
        kdad_bench.Detector.load(model / target, device="cuda")
    away, pickled = model / "away", pickle.dumps(graph)
    (model / target).rename(away)
    with pytest.raises(ModelError, match="a part of the graph is missing"):
        pickle.loads(pickled)
    away.rename(model / target)
    about = model / target / "export.json"
    about.write_text(about.read_text().replace('"kdad_bench": "', '"kdad_bench": "9.'))
    with pytest.raises(ModelError, match=r"exported with kdad_bench '9\..*export it again"):
        kdad_bench.Detector.load(model / target)


def test_what_it_refuses_is_said_in_its_keywords(tmp_path: Path) -> None:
    """They are none of the command line's, whatever refuses the image or the weights."""
    long = tmp_path / "long.png"
    Image.new("RGB", (30_000, 1)).save(long)
    detector = kdad_bench.Detector("pixel_mean", device="cpu", resolution=64, fit="short-side", hold_out=0)
    with pytest.raises(ValueError, match="take a smaller resolution, fit pad or squash"):
        detector.fit([long, long])
    detector.fit(np.zeros((3, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="take a smaller resolution, fit pad or squash"):
        detector.predict([long])
