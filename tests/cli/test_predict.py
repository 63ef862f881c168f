"""`run --save-models --hold-out` then `predict`: scores, decisions, overlays."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from kdad_bench.cli import cli
from kdad_bench.harness import predict as harness
from kdad_bench.harness.scoring import SCORE_BATCH
from tests.conftest import write_tree


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a saved model of 'bolt', the tree it was trained on)."""
    folder = tmp_path_factory.mktemp("predict")
    tree = write_tree(folder / "tree", categories=("bolt",), train=20)
    arguments = ["run", "--method", "pixel_mean", "--dataset", f"folder:{tree}", "--seeds", "1", "--save-models"]
    result = CliRunner().invoke(cli, [*arguments, "--hold-out", "0.5", "--no-pictures", "--out", str(folder / "out")])
    assert result.exit_code == 0, result.output
    (saved,) = (folder / "out" / "models").iterdir()
    return saved, tree


def predict(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["predict", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_held_out_normals_give_a_threshold_that_tells_defects_from_normals(
    model: tuple[Path, Path], tmp_path: Path
) -> None:
    saved, tree = model
    code, output, errors = predict(saved, tree / "bolt" / "test", "--json", "--out", tmp_path)
    assert code == 0, errors
    found = json.loads(output)
    decisions = {(Path(one["image"]).parent.name, one["anomalous"]) for one in found["images"]}
    assert ("spot", True) in decisions
    assert ("spot", False) not in decisions
    assert "10 held-out normals" in found["threshold_from"]
    for one in found["images"]:
        with Image.open(one["overlay"]) as overlay:
            assert overlay.size == (64, 64)
    assert json.loads((tmp_path / "predictions.json").read_text()) == found


def test_a_model_scores_an_image_as_the_run_did(model: tuple[Path, Path]) -> None:
    from kdad_bench.leaderboard import store

    saved, tree = model
    (row,) = store.read(saved.parent.parent).rows()
    measured = dict(zip(row["image_names"], row["image_scores"], strict=True))
    code, output, _ = predict(saved, tree / "bolt" / "test" / "spot" / "000.png", "--json")
    assert code == 0
    assert json.loads(output)["images"][0]["score"] == pytest.approx(measured["spot/000.png"], rel=1e-5)


def test_globs_and_single_files_work_and_a_given_threshold_wins(model: tuple[Path, Path]) -> None:
    saved, tree = model
    code, output, errors = predict(saved, f"{tree}/bolt/test/good/*.png", "--threshold", "-1")
    assert code == 0
    assert output.count("ANOMALOUS") == 3
    assert "as given" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}", "/no/such/*.png"], "no such image"),
        (["/no/such/model", "{tree}"], "/no/such/model"),
        (["{model}", "{tree}/bolt/test", "--false-alarms", "0.01"], "take --false-alarms 0.091"),
        (["{model}", "{text}"], "not a readable image"),
        (["{model}", ""], "'': no such image"),
        (["{model}", "{text}", "--threshold", "1", "--false-alarms", "0.2"], "--threshold and --false-alarms exclude"),
        (["{model}", "{text}", "--method", "stfpm"], "is of method 'pixel_mean'; leave --method out"),
        (["{model}", "{text}", "--method", "nowhere.py"], "'--method': nowhere.py: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    model: tuple[Path, Path], tmp_path: Path, arguments: list[str], words: str
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    names = {"model": model[0], "tree": model[1], "text": text}
    code, _, errors = predict(*(argument.format(**names) for argument in arguments))
    assert code == 2
    assert words in errors
    assert errors.count("\n") == 1


def test_a_model_whose_weights_are_not_finite_calls_nothing_normal(model: tuple[Path, Path], tmp_path: Path) -> None:
    saved, tree = model
    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    state = load_file(broken / "model.safetensors")
    state["mean"][0, 3, 3] = float("nan")
    save_file(state, broken / "model.safetensors")
    code, output, errors = predict(broken, tree / "bolt" / "test")
    assert (code, output) == (2, "")
    assert "model.safetensors" in errors
    assert "damaged" in errors
    assert errors.count("\n") == 1


@pytest.fixture
def new(model: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder of three new images."""
    shutil.copytree(model[1] / "bolt" / "test" / "good", tmp_path / "new")
    return tmp_path / "new"


def spoilt(path: Path, kind: str) -> None:
    """Something at `path` that is no image."""
    data = path.read_bytes()
    path.unlink()
    {
        "torn": lambda: path.write_bytes(data[:300]),
        "empty": lambda: path.write_bytes(b""),
        "text": lambda: path.write_text("no image"),
        "PostScript": lambda: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "too many pixels": lambda: path.write_bytes(data[:16] + b"\0\1\0\0\0\1\0\0" + data[24:]),
        "500 MB of nothing": lambda: sparse(path, 500_000_000),
        "petabytes": lambda: sparse(path, 1 << 42),
        "a pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "gone": lambda: path.symlink_to("nowhere"),
        "a circle": lambda: path.symlink_to(path.name),
        "floats": lambda: Image.new("F", (8, 8)).save(path, format="TIFF"),
    }[kind]()


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


KINDS = ("torn", "empty", "text", "PostScript", "too many pixels", "500 MB of nothing", "petabytes", "a pipe",
         "endless", "gone", "a circle", "floats")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["", "/*", "/*.png"])
def test_a_bad_image_is_one_line_and_the_others_are_scored(
    model: tuple[Path, Path], new: Path, tmp_path: Path, kind: str, pattern: str
) -> None:
    spoilt(new / "001.png", kind)
    code, output, errors = predict(model[0], f"{new}{pattern}", "--json", "--out", tmp_path / "out")
    assert code == 1, errors
    assert errors.startswith(f"kdad-bench: {new}/001.png: ")
    assert errors.count("\n") == 1
    found = json.loads(output)
    assert [Path(one["image"]).name for one in found["images"]] == ["000.png", "002.png"]
    assert [Path(one["image"]).name for one in found["failed"]] == ["001.png"]
    assert found["failed"][0]["reason"] in errors
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == found
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_nothing_that_can_be_scored_is_exit_code_2_and_the_reasons_are_kept(
    model: tuple[Path, Path], new: Path, tmp_path: Path
) -> None:
    for path in new.iterdir():
        spoilt(path, "torn")
    code, output, errors = predict(model[0], new, "--out", tmp_path / "out")
    assert (code, output) == (2, "")
    assert errors.count("\n") == 3
    found = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert (len(found["images"]), len(found["failed"])) == (0, 3)


@pytest.mark.parametrize("out", ["answers", "", "../beside"])
@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.png"])
def test_overlays_of_earlier_calls_are_not_scored(model: tuple[Path, Path], new: Path, out: str, pattern: str) -> None:
    for _ in range(3):
        code, output, errors = predict(model[0], f"{new}{pattern}", new.parent, "--json", "--out", new / out)
        assert (code, len(json.loads(output)["images"])) == (0, 3), errors
    assert "3 not used: pictures that were drawn from scores" in errors


def test_what_run_reads_is_scored_and_masks_and_scans_are_not(model: tuple[Path, Path], tmp_path: Path) -> None:
    source = Image.open(model[1] / "bolt" / "test" / "good" / "000.png")
    grey = source.convert("L")
    for name in ("a.pgm", "b.bmp", "c.tif", "d.tiff", "e.webp", "f.ppm"):
        (grey if name != "f.ppm" else source).save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    deep = np.asarray(grey).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "g.png")
    for folder in ("part/test/good/rgb", "part/test/good/gt", "flat/test/good", "flat/ground_truth/cut"):
        (tmp_path / folder).mkdir(parents=True)
        grey.save(tmp_path / folder / "h.png")
    (tmp_path / "part/test/good/xyz").mkdir()
    tifffile.imwrite(tmp_path / "part/test/good/xyz/h.tiff", np.zeros((8, 8, 3), np.float32), photometric="rgb")
    code, output, errors = predict(model[0], tmp_path, "--json")
    assert code == 0, errors
    scores = {str(Path(one["image"]).relative_to(tmp_path)): one["score"] for one in json.loads(output)["images"]}
    wanted = ["a.pgm", "b.bmp", "c.tif", "d.tiff", "e.webp", "f.ppm", "g.png"]
    assert list(scores) == [*wanted, "flat/test/good/h.png", "part/test/good/rgb/h.png"]
    greys = [score for name, score in scores.items() if name != "f.ppm"]
    assert greys == pytest.approx([greys[0]] * len(greys), rel=1e-5)
    assert "3 not used: masks or scans beside photographs" in errors


def test_names_that_steer_a_terminal_are_shown_as_escapes_and_leave_the_json_whole(
    model: tuple[Path, Path], new: Path, tmp_path: Path
) -> None:
    names = [b"a\nb.png", b"\x1b]0;x\x07.png", b"caf\xe9.png", "\u202egnp.png".encode(), b"e" * 250 + b".png",
             "漢".encode() * 80 + b".png"]  # fmt: skip
    for name in names:
        shutil.copy(new / "000.png", os.fsdecode(os.fsencode(new) + b"/" + name))
    (new / "torn\n\x1b.png").write_bytes(b"torn")
    for extra in ([], ["--json"]):
        code, output, errors = predict(model[0], new, "--out", tmp_path / "out", *extra)
        assert code == 1
        assert errors.splitlines()[0].isprintable()
        assert all(line.isprintable() for line in (output + errors).splitlines())
        (output + errors).encode("utf-8")
    found = json.loads(output)
    assert (len(found["images"]), len(found["failed"])) == (9, 1)
    json.dumps(found, ensure_ascii=False).encode("utf-8")  # no half of a surrogate pair
    assert (tmp_path / "out" / "predictions.json").read_bytes().isascii()
    assert all(Path(one["overlay"]).is_file() for one in found["images"])


@pytest.mark.parametrize("missing", ["absent.png", "*.jpg", "empty/", "~nobody-here/x"])
def test_a_name_that_stands_for_nothing_does_not_stop_the_others(
    model: tuple[Path, Path], new: Path, missing: str
) -> None:
    (new / "empty").mkdir()
    name = missing if missing.startswith("~") else f"{new}/{missing}"
    code, output, errors = predict(model[0], name, f"{new}/000.png", "--json")
    assert code == 1
    assert len(json.loads(output)["images"]) == 1
    assert errors.count("\n") == 1
    assert "no such image" in errors or "not a path" in errors


def test_an_image_whose_scores_are_not_finite_is_bad_and_not_normal(
    model: tuple[Path, Path], new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        scores = scored(*arguments)
        with torch.inference_mode():
            scores.pixel[1, 3, 3] = float("nan")
        return scores

    scored = harness.score_all
    monkeypatch.setattr(harness, "score_all", broken)
    code, output, errors = predict(model[0], new)
    assert code == 1
    assert len(output.splitlines()) == 2
    assert "001.png: the scores of method 'pixel_mean' are not finite" in errors


def test_normals_that_cannot_be_read_are_named_and_the_others_give_the_threshold(
    model: tuple[Path, Path], new: Path
) -> None:
    good = new / "000.png"
    spoilt(new / "001.png", "torn")
    code, _, errors = predict(model[0], good, "--normals", new, "--false-alarms", "0.5")
    assert code == 0
    assert "001.png: not a readable image" in errors
    assert "fitted on 2 normals of " in errors
    for path in new.glob("00[02]*"):
        spoilt(path, "torn")
    code, _, errors = predict(model[0], model[1] / "bolt" / "test" / "good", "--normals", new)
    assert code == 2
    assert errors.count("\n") == 1


@pytest.mark.parametrize("name", ["decision.json", "model.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 99])
def test_a_damaged_file_of_a_model_is_one_line(
    model: tuple[Path, Path], new: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    broken = Path(shutil.copytree(model[0], tmp_path / "broken"))
    (broken / name).write_bytes(content)
    code, output, errors = predict(broken, new)
    assert (code, output) == (2, "")
    assert f"broken/{name}: " in errors
    assert errors.count("\n") == 1


def test_an_answer_that_cannot_be_written_is_one_line(model: tuple[Path, Path], new: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "predictions.json").mkdir(parents=True)
    code, _, errors = predict(model[0], new, "--out", tmp_path / "out")
    assert code == 2
    assert "cannot be written" in errors
    assert errors.count("\n") == 1


def test_a_call_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "mine").mkdir()
    for out in ("out/below", "mine"):
        code, _, err = predict(tmp_path / "model", tmp_path / "none.png", "--out", tmp_path / out)
        assert (code, err.count("\n")) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "model"]


def test_the_maps_of_many_images_are_never_in_memory_together(
    model: tuple[Path, Path], new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 120 maps at most a few live at once, with overlays as without."""
    maps: list[weakref.ref[Any]] = []
    most = 0

    class Watched(harness.Answer):
        def __new__(cls, path: Path, score: float, heat: Any) -> Any:
            nonlocal most
            maps.append(weakref.ref(heat))
            most = max(most, sum(one() is not None for one in maps))
            return super().__new__(cls, path, score, heat)

    monkeypatch.setattr(harness, "Answer", Watched)
    for number in range(120):
        os.link(new / "000.png", new / f"x{number}.png")
    for extra in ([], ["--out", tmp_path / "out"]):
        code, output, errors = predict(model[0], new, "--json", *extra)
        assert (code, len(json.loads(output)["images"])) == (0, 123), errors
        assert 1 <= most <= SCORE_BATCH
    assert len(list((tmp_path / "out").iterdir())) == 124, "no debris"


def test_a_damaged_normal_is_no_lost_image(model: tuple[Path, Path], new: Path, tmp_path: Path) -> None:
    normals = Path(shutil.copytree(model[1] / "bolt" / "train" / "good", tmp_path / "normals"))
    spoilt(normals / "000.png", "torn")
    code, output, errors = predict(model[0], new, "--normals", normals, "--json")
    assert code == 0, errors
    found = json.loads(output)
    assert found["failed"] == []
    assert [Path(one["image"]).name for one in found["normals_failed"]] == ["000.png"]
    assert "000.png" in errors


def test_overlays_of_an_earlier_call_do_not_stay_and_other_files_do(
    model: tuple[Path, Path], new: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert predict(model[0], new, "--out", out)[0] == 0
    shutil.copy(next(new.glob("*.png")), out / "0000-mine.png")
    (out / "notes.txt").write_text("mine")
    one = sorted(new.glob("*.png"))[-1]
    code, output, errors = predict(model[0], one, "--out", out, "--json")
    assert code == 0, errors
    (said,) = json.loads(output)["images"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["0000-mine.png", "notes.txt", "predictions.json", Path(said["overlay"]).name]
    )


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_overlay_and_no_answer_is_never_written_over(
    model: tuple[Path, Path], new: Path, tmp_path: Path, linked: bool
) -> None:
    """Photographs may be called as overlays are, and others write a predictions.json."""
    first, second, third = sorted(new.glob("*.png"))
    second.rename(new / "0001-b.png")
    third.rename(new / "b.png")
    first.rename(new / "0002-b.png")
    if linked:
        (tmp_path / "elsewhere").mkdir()
        for name in ("0002-b.png", "0001-b.png"):
            (new / name).rename(tmp_path / "elsewhere" / name)
            (new / name).symlink_to(tmp_path / "elsewhere" / name)
    before = {path: path.read_bytes() for path in new.iterdir()}
    assert len(before) == 3
    for _ in range(2):
        code, output, errors = predict(model[0], new, "--out", new, "--json")
        assert code == 0, errors
        found = json.loads(output)["images"]
        assert {Path(one["image"]) for one in found} == set(before)
        overlays = {Path(one["overlay"]) for one in found}
        assert len(overlays) == 3
        assert {path: path.read_bytes() for path in before} == before
        assert set(new.iterdir()) == {*before, *overlays, new / "predictions.json"}
    (new / "predictions.json").write_text('{"model": 1, "images": []}')
    code, output, errors = predict(model[0], new, "--out", new)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "predictions.json: something else is there than an answer of predict; choose another --out" in errors
    assert (new / "predictions.json").read_text() == '{"model": 1, "images": []}'


def test_a_folder_in_the_place_of_the_answer_is_named_before_anything_is_scored(
    model: tuple[Path, Path], new: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "predictions.json").mkdir(parents=True)
    code, _, errors = predict(model[0], new, "--out", tmp_path / "out")
    assert code == 2
    assert f"{tmp_path / 'out' / 'predictions.json'}: cannot be written (Is a directory); choose --out" in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


class Picky:
    """A method that fails as asked."""

    def __init__(self, method: Any, most: int, white: bool) -> None:
        self.method, self.most, self.white = method, most, white

    def score(self, images: torch.Tensor) -> Any:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.white and float(images.flatten(1).amin(1).max()) == 1:
            raise AssertionError("a white image")
        return self.method.score(images)


@pytest.mark.parametrize("most", [2, 1])
def test_memory_that_does_not_last_is_tried_with_fewer_images(
    model: tuple[Path, Path], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, _ = harness.judge_of(model[0], "cpu")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    images = [str(model[1] / "bolt" / "test")]
    wanted = [one.score for one in judge.answers(images)]
    judge.method = Picky(judge.method, most, white=False)
    assert [one.score for one in judge.answers(images)] == pytest.approx(wanted, rel=1e-5)
    assert judge.failed == []


def test_an_image_at_which_the_method_raises_is_named_and_the_others_are_scored(
    model: tuple[Path, Path], new: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    judge, _ = harness.judge_of(model[0], "cpu")
    judge.method = Picky(judge.method, 16, white=True)
    answers = list(judge.answers([str(new), str(tmp_path / "white.png")]))
    assert len(answers) == len(list(new.glob("*.png")))
    (failed,) = judge.failed
    assert failed.reason == f"{tmp_path / 'white.png'}: method 'pixel_mean' raises AssertionError: a white image"


@pytest.mark.parametrize(("shift", "dark"), [(64, True), (16, True), (4, False), (0, False)])
def test_images_of_fewer_bits_than_their_files_have_are_said_to_be_nearly_black(
    shift: int, dark: bool, model: tuple[Path, Path], tmp_path: Path
) -> None:
    """A camera of 12 bits writes files of 16: every picture is an alarm, as all 16 bits are scaled."""
    saved, tree = model
    with Image.open(next((tree / "bolt/test/good").iterdir())) as image:
        grey = np.asarray(image.convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257 // max(shift, 1)).save(tmp_path / "a.png")
    code, _, errors = predict(saved, tmp_path / "a.png", "--threshold", "1")
    assert code in (0, 1)
    assert ("all images: nearly black as read, no value is above" in errors) is dark


def test_a_run_on_images_of_fewer_bits_than_their_files_have_says_so(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", categories=("bolt",))
    for path in tree.rglob("*.png"):
        if "ground_truth" not in path.parts:
            with Image.open(path) as image:
                grey = np.asarray(image.convert("L")).astype(np.uint16)
            Image.fromarray(grey * 16).save(path)
    what = ["--method", "pixel_mean", "--dataset", f"folder:{tree}", "--seeds", "1", "--resolution", "64"]
    with pytest.warns(UserWarning, match="/bolt: nearly black as read, no value is above [0-9]+ of 255"):
        result = CliRunner().invoke(cli, ["run", *what, "--no-pictures", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
