"""`kdad-bench export` and `predict` of what it wrote: certificates, refusals, damaged folders, the page's examples."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from kdad_bench import Detector
from kdad_bench.cli import cli
from kdad_bench.datasets import outside, stand_in
from kdad_bench.harness import decision, export_runtimes
from kdad_bench.harness import export as harness
from kdad_bench.harness.export_certificate import Comparison
from tests.conftest import write_tree

PAGE = Path(__file__).resolve().parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a saved model of 'bolt', the tree it was trained on)."""
    folder = tmp_path_factory.mktemp("export")
    tree = write_tree(folder / "tree", categories=("bolt",), train=20)
    arguments = ["run", "--method", "pixel_mean", "--dataset", f"folder:{tree}", "--preset", "quick", "--save-models"]
    result = CliRunner().invoke(
        cli, [*arguments, "--seeds", "1", "--hold-out", "0.5", "--no-pictures", "--out", str(folder / "out")]
    )
    assert result.exit_code == 0, result.output
    (saved,) = (folder / "out" / "models").iterdir()
    return saved, tree


@pytest.fixture(scope="module")
def exported(model: tuple[Path, Path]) -> Path:
    """The same, as a program of torch.export."""
    code, output, errors = call("export", model[0], "--to", "torch", "--check-on", model[1] / "bolt" / "test")
    assert code == 0, errors
    assert "0 of 15 decisions flipped, 1 at the threshold itself" in output
    return model[0] / "torch"


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def unsealed(folder: Path) -> dict[str, Any]:
    """What decision.json says, without what binds it to the weights."""
    content: dict[str, Any] = json.loads((folder / "decision.json").read_text())
    del content["sha256"]
    return content


def decides(folder: Path, **changes: Any) -> None:
    """Another decision of the saved model in `folder`."""
    replace(decision.read(folder), **changes).write(folder)


def content(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_the_json_says_what_the_graph_does_not(model: tuple[Path, Path], exported: Path) -> None:
    about = json.loads((exported / "export.json").read_text())
    assert about["input"]["shape"] == [None, 3, 128, 128]
    assert about["input"]["dtype"] == "uint8"
    assert about["decision"] == unsealed(model[0])
    assert about["threshold"]["value"] in about["decision"]["normal_scores"]
    seen = {one["what"]: one["count"] for one in about["certificate"]["images"]}
    assert seen == {"held-out normals of folder/bolt": 10, f"images of {model[1]}/bolt/test": 6, "drawn images": 4}
    assert about["certificate"]["batches"] == [1, 16]
    assert 0 <= about["certificate"]["score_difference"] < 1e-5
    assert about["settings"]["sigma"] == 4.0


def test_an_exported_model_predicts_as_its_model_does(model: tuple[Path, Path], exported: Path, tmp_path: Path) -> None:
    images = model[1] / "bolt" / "test"
    answers = []
    for folder in (model[0], exported):
        code, output, errors = call("predict", folder, images, "--json", "--out", tmp_path / folder.name)
        assert code == 0, errors
        answers.append(json.loads(output))
    wanted, found = answers
    assert found["threshold"] == wanted["threshold"]
    assert [one["anomalous"] for one in found["images"]] == [one["anomalous"] for one in wanted["images"]]
    assert [one["score"] for one in found["images"]] == pytest.approx(
        [one["score"] for one in wanted["images"]], rel=1e-5
    )
    assert len(list((tmp_path / "torch").glob("*.png"))) == 6


def test_an_exported_model_keeps_the_rate_that_it_was_exported_with(model: tuple[Path, Path], tmp_path: Path) -> None:
    folder, images = tmp_path / "there", model[1] / "bolt" / "test"
    assert call("export", model[0], "--to", "torch", "--false-alarms", "0.3", "--out", folder)[0] == 0
    limit = json.loads((folder / "export.json").read_text())["threshold"]["value"]
    assert json.loads(call("predict", folder, images, "--json")[1])["threshold"] == limit
    assert Detector.load(folder).threshold_ == limit
    for rate in (0.1, 0.3):
        wanted = json.loads(call("predict", model[0], images, "--json", "--false-alarms", rate)[1])["threshold"]
        assert json.loads(call("predict", folder, images, "--json", "--false-alarms", rate)[1])["threshold"] == wanted
        assert Detector.load(folder, false_alarms=rate).threshold_ == wanted
        assert (wanted == limit) == (rate == 0.3)
    assert json.loads(call("predict", model[0], images, "--json")[1])["threshold"] != limit


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_other_runtimes_are_certified_too(model: tuple[Path, Path], target: str, tmp_path: Path) -> None:
    lacking = export_runtimes.missing(target)
    if lacking:
        pytest.skip(lacking)
    code, output, errors = call("export", model[0], "--to", target, "--out", tmp_path / "there")
    assert code == 0, errors
    assert "0 of 9 decisions flipped" in output
    code, output, errors = call("predict", tmp_path / "there", model[1] / "bolt" / "test")
    assert code == 0, errors
    assert output.count("ANOMALOUS") == 3


def test_the_test_images_of_a_category_are_compared_too(model: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ("--to", "torch", "--out", tmp_path / "there", "--check-on", f"folder:{model[1]}/bolt")
    code, output, errors = call("export", model[0], *arguments)
    assert code == 0, errors
    assert f"6 test images of folder:{model[1]}/bolt" in output
    assert "0 of 15 decisions flipped" in output


def test_a_category_of_a_stand_in_or_of_a_file_is_compared_too(
    model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside, "ADDED", {})
    stand_in.generate("mvtec_ad", tmp_path, ["toothbrush"], size=64)
    page = (PAGE.parent / "adding-a-data-set.md").read_text(encoding="utf-8")
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class FlatLayout" in one)
    (tmp_path / "flat.py").write_text(code)
    for name, words in (
        ("synthetic_mvtec_ad/synthetic_toothbrush", "42 test images of synthetic_mvtec_ad/synthetic_toothbrush"),
        (f"{tmp_path}/flat.py/bolt", "no flat there"),
    ):
        arguments = ("--to", "torch", "--out", tmp_path / "to", "--check-on", name, "--data-root", tmp_path)
        assert words in "".join(call("export", model[0], *arguments)[1:])


def wrong(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Callable[..., Any]:
    """`opened_graph` of a graph whose answers are changed."""

    def opened(target: str, folder: Path, batch: int | None) -> Callable[[np.ndarray], Any]:
        runner = export_runtimes.opened_graph(target, folder, batch)
        return lambda images: change(*map(np.array, runner(images)))

    return opened


def one_pixel(score: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heat[-1, 5, 5] += 0.01 * (heat[-1].max() - heat[-1].min())
    return score, heat


def a_nan(score: np.ndarray, heat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heat[0, 0, 0] = np.nan
    return score, heat


WRONG = {
    "scores": (lambda score, heat: (score * 1.002, heat), "scores differ by up to 0.002"),
    "one score of a batch": (lambda score, heat: (np.append(score[:-1], score[-1:] * 1.1), heat), "scores differ"),
    "batches only": (lambda score, heat: (score * (1.0 if len(score) == 1 else 1.1), heat), "scores differ"),
    "one pixel": (one_pixel, "maps differ by up to 0.01"),
    "not finite": (a_nan, "not finite"),
    "an infinite score": (lambda score, heat: (score + np.inf, heat), "not finite"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_graph_that_says_something_else_is_refused_and_nothing_is_left(
    model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, kind: str, tmp_path: Path
) -> None:
    change, words = WRONG[kind]
    monkeypatch.setattr(harness, "opened_graph", wrong(change))
    code, output, errors = call("export", model[0], "--to", "torch", "--out", tmp_path / "new" / "graph")
    assert (code, output) == (1, "")
    assert words in errors
    assert errors.count("\n") == 1
    assert content(tmp_path) == []


def test_a_flipped_decision_is_refused_however_near_the_score(
    model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(harness, "opened_graph", wrong(lambda score, heat: (score * 0.99, heat)))
    arguments = ("export", model[0], "--to", "torch", "--out", tmp_path / "x", "--false-alarms", 0.9)
    code, _, errors = call(*arguments, "--tolerance", 0.02)
    assert code == 1
    assert re.search(r"refused.* [1-9] of 9 decisions flipped \(held-out normal", errors)
    assert not (tmp_path / "x").exists()


def test_an_earlier_export_survives_a_refusal(
    exported: Path, model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in exported.iterdir()}
    monkeypatch.setattr(harness, "opened_graph", wrong(lambda score, heat: (score * 2, heat)))
    assert call("export", model[0], "--to", "torch")[0] == 1
    assert {path: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.glob(".*")] == []


def test_an_earlier_export_survives_a_folder_that_cannot_take_its_place(
    exported: Path, model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "there"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(16, "Device or resource busy", str(target))
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fails)
        code, _, errors = call("export", model[0], "--to", "torch", "--out", folder)
    assert code == 2
    assert "cannot be written (Device or resource busy)" in errors
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    monkeypatch.chdir(folder)
    code, _, errors = call("export", model[0], "--to", "torch", "--out", ".")
    assert (code, errors.count("\n")) == (2, 1)
    assert "is the current folder, which cannot be replaced; choose another --out" in errors
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def changed(field: str, value: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        about = json.loads((folder / "export.json").read_text())
        *parents, last = field.split(".")
        place = about
        for name in parents:
            place = place[name]
        place.pop(last) if value is None else place.update({last: value})
        resealed(folder, about)

    return change


def resealed(folder: Path, about: dict[str, Any]) -> None:
    """These contents in export.json, with the SHA-256 of all the rest."""
    rest = {name: value for name, value in about.items() if name != "sha256"}
    seal = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / "export.json").write_text(json.dumps(rest | {"sha256": seal}))


def without_threshold(folder: Path) -> None:
    resealed(folder, json.loads((folder / "export.json").read_text()) | {"threshold": None})


def one_digit(folder: Path) -> None:
    """Of a field that fits all others whatever it is."""
    path = folder / "export.json"
    said = path.read_text()
    (peak,) = re.findall(r'"normal_map_peak": ([0-9.]+)', said)
    path.write_text(said.replace(peak, f"9{peak}"))


def unhashed(folder: Path) -> None:
    about = json.loads((folder / "export.json").read_text())
    del about["sha256"]
    (folder / "export.json").write_text(json.dumps(about))


def one_byte(folder: Path) -> None:
    data = bytearray((folder / "graph.pt2").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "graph.pt2").write_bytes(data)


def with_code(folder: Path) -> None:
    """A graph that runs code as it is read, with a hash that fits."""
    with zipfile.ZipFile(folder / "graph.pt2") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "graph.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            archive.writestr(name, pickle.dumps(Evil()) if "sample_inputs" in name else data)
    fitting(folder)


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, ("raise SystemExit('the code ran')",)


def no_program(folder: Path) -> None:
    (folder / "graph.pt2").write_bytes(b"no program")
    fitting(folder)


def fitting(folder: Path) -> None:
    """Let the hash be that of the file."""
    from kdad_bench.harness.exported import sha256

    path = folder / "graph.pt2"
    changed("graph", {"graph.pt2": {"sha256": sha256(path), "bytes": path.stat().st_size}})(folder)


def rewritten(change: Callable[[dict[str, bytes]], object]) -> Callable[[Path], None]:
    """A graph of other members, with a hash that fits."""

    def damage(folder: Path) -> None:
        with zipfile.ZipFile(folder / "graph.pt2") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        change(parts)
        with zipfile.ZipFile(folder / "graph.pt2", "w", zipfile.ZIP_STORED) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        fitting(folder)

    return damage


def in_model(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A graph whose description is changed."""

    def changed(parts: dict[str, bytes]) -> None:
        about = json.loads(parts["graph/models/model.json"])
        change(about)
        parts["graph/models/model.json"] = json.dumps(about).encode()

    return rewritten(changed)


def in_node(**fields: object) -> Callable[[Path], None]:
    return in_model(lambda about: about["graph_module"]["graph"]["nodes"][0].update(fields))


def in_arguments(argument: dict[str, object]) -> Callable[[Path], None]:
    return in_node(inputs=[{"name": "self", "arg": argument, "kind": 1}])


RAN = "__import__('pathlib').Path('ran').touch()"  # code that would leave a file


def in_signature(**fields: str) -> Callable[[Path], None]:
    return in_model(lambda about: about["graph_module"]["module_call_graph"][0]["signature"].update(fields))


def in_symbol(about: dict[str, Any]) -> None:
    for value in about["graph_module"]["graph"]["sym_int_values"].values():
        value["as_expr"]["expr_str"] = f"{RAN} or {value['as_expr']['expr_str']}"


def renamed(about: dict[str, Any]) -> None:
    about["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = f"images_1={RAN}"


def another_directory(folder: Path) -> None:
    """Two directories of members: what Python reads lies at the end, what PyTorch reads where the file says."""
    path = folder / "graph.pt2"
    harmless = path.read_bytes()
    in_node(target="torch.os.system")(folder)
    harmful = path.read_bytes()
    with zipfile.ZipFile(folder / "graph.pt2") as archive:
        start = archive.start_dir
    path.write_bytes(harmful + harmless[:-6] + start.to_bytes(4, "little") + harmless[-2:])
    fitting(folder)


IMPORTS = json.dumps([1, {
    "type": "builtins.dict", "children_spec": [], "context": json.dumps({"__enum__": 1, "fqn": "antigravity:fly"}),
}])  # fmt: skip

# a program that torch.export.load would run code of -> what is said of it
CODE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a symbol": (in_model(in_symbol), "for expr_str"),
    "a guard": (in_model(lambda about: about.update(guards_code=[RAN])), "has guards_code"),
    "a name": (in_model(renamed), "for name"),
    "an import": (in_signature(in_spec=IMPORTS), "another in_spec than (images) -> (score, map)"),
    "a function": (in_node(target="torch.os.system"), "calls 'torch.os.system', no operator"),
    "a private operator": (in_node(target="torch.ops.aten._print.default"), "calls 'torch.ops.aten._print.default'"),
    "an operator of files": (in_node(target="torch.ops.aten.from_file.default"), "calls 'torch.ops.aten.from_file"),
    "another operator": (in_node(target="torch.ops.kdad.nearest.default"), "calls 'torch.ops.kdad.nearest.default'"),
    "no operator": (in_node(target="torch.ops.aten.add.decompose"), "calls 'torch.ops.aten.add.decompose'"),
    "a function given": (in_arguments({"as_operator": "torch.os.system"}), "has 'as_operator'"),
    "a graph in it": (in_arguments({"as_graph": {"name": "x", "graph": {}}}), "has 'as_graph'"),
    "a file's name": (in_arguments({"as_string": "/etc/passwd"}), "has '/etc/passwd' for as_string"),
    "a shared library": (
        rewritten(lambda parts: parts.update({"graph/data/aotinductor/model/x.so": b""})),
        "it holds 'graph/data/aotinductor/model/x.so'",
    ),
    "a second program": (
        rewritten(lambda parts: parts.update({"graph/models/b.json": parts["graph/models/model.json"]})),
        "it holds 'graph/models/b.json'",
    ),
    "another root": (
        rewritten(lambda parts: parts.update({"data/weights/weight_0": b""})), "it holds 'data/weights/weight_0'"
    ),
    "pickled weights": (
        rewritten(lambda parts: parts.update({
            "graph/data/weights/model_weights_config.json": parts[
                "graph/data/weights/model_weights_config.json"
            ].replace(b'"use_pickle": false', b'"use_pickle": true')
        })),
        "names pickled objects",
    ),
    "a pickled constant": (
        rewritten(lambda parts: parts.update({
            "graph/data/constants/opaque_obj_0": pickle.dumps(Evil()),
            "graph/data/constants/model_constants_config.json": b'{"config": {"a": {"path_name": "opaque_obj_0", '
            b'"is_param": false, "use_pickle": true, "tensor_meta": null}}}',
        })),
        "it holds 'graph/data/constants/opaque_obj_0'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CODE)
def test_a_program_that_would_run_code_is_refused_before_it_does(
    exported: Path, model: tuple[Path, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "broken"))
    damage, words = CODE[kind]
    damage(folder)
    monkeypatch.chdir(tmp_path)
    code, output, errors = call("predict", folder, model[1] / "bolt" / "test")
    assert (code, output) == (2, "")
    assert words in errors
    assert "graph.pt2: holds more than a graph, or is damaged" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_pickled_samples_and_a_second_directory_of_members_reach_nobody(
    exported: Path, model: tuple[Path, Path], tmp_path: Path
) -> None:
    wanted = call("predict", exported, model[1] / "bolt" / "test", "--json")[1]
    for name, damage in (("samples", with_code), ("directory", another_directory)):
        folder = Path(shutil.copytree(exported, tmp_path / name))
        damage(folder)
        code, output, errors = call("predict", folder, model[1] / "bolt" / "test", "--json")
        assert code == 0, errors
        assert json.loads(output)["images"] == json.loads(wanted)["images"]


def packed(folder: Path) -> None:
    """The same graph, of members that may unpack to anything."""
    with zipfile.ZipFile(folder / "graph.pt2") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "graph.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    fitting(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "another version": (changed("kdad_bench", "0.0.1"), "kdad_bench '0.0.1', this version has"),
    "another format": (changed("format", 7), "format 7, this version has 1"),
    "no version": (changed("kdad_bench", None), "kdad_bench is missing"),
    "no format": (changed("format", None), "format is missing"),
    "no threshold's scores": (changed("decision.normal_scores", None), "normal_scores is missing"),
    "a score that is none": (changed("decision.normal_scores", ["x"]), "normal_scores.0 is 'x'"),
    "a field more": (changed("more", 1), "more is 1"),
    "a shape that is none": (changed("input.shape", ["n", 3, 128, 128]), "input.shape.0 is 'n'"),
    "a shape of no images": (changed("input.shape", [0, 3, 128, 128]), "not those of images of 128 px"),
    "a shape of another side": (changed("input.shape", [None, 3, 64, 64]), "not those of images of 128 px"),
    "another resolution": (changed("decision.resolution", 64), "not those of images of 64 px"),
    "another output": (changed("outputs", []), "not those of images of 128 px"),
    "an overlap without tiles": (changed("decision.overlap", 3), "damaged (decision: an overlap without tiles)"),
    "another threshold": (changed("threshold.value", 1.0), "damaged (threshold 1 is not that of the held-out normals"),
    "a threshold of other normals": (changed("decision.normal_scores", [9e18] * 10), "is not that of the held-out"),
    "another threshold that was certified": (changed("certificate.decisions.own_threshold", 1.0), "is not that of the"),
    "another threshold of the model": (changed("certificate.decisions.threshold", 1.0), "is not that of the held-out"),
    "no threshold": (without_threshold, "are there together or not"),
    "no normals": (changed("decision.normal_scores", []), "are there together or not"),
    "a rate of none": (changed("threshold.false_alarms", 0.0), "threshold.false_alarms is 0.0"),
    "a rate below none": (changed("threshold.false_alarms", -3.0), "threshold.false_alarms is -3.0"),
    "a rate of all": (changed("threshold.false_alarms", 1.0), "threshold.false_alarms is 1.0"),
    "a rate beyond all": (changed("threshold.false_alarms", 1e308), "threshold.false_alarms is 1e+308"),
    "a rate that the normals cannot promise": (
        changed("threshold.false_alarms", 0.01),
        "support no false-alarm rate of 0.01",
    ),
    "no seed": (changed("settings.seed", None), "settings have no seed"),
    "a seed that is none": (changed("settings.seed", "0"), "settings have no seed"),
    "one digit": (one_digit, "the SHA-256 of the contents is not the one in it"),
    "no hash of itself": (unhashed, "sha256 is missing"),
    "a saved model in the same place": (
        lambda folder: (folder / "model.json").write_text("{}"),
        "beside a saved model (model.json); keep one",
    ),
    "another runtime": (changed("target", "onnx"), "graph names graph.pt2"),
    "no runtime": (changed("target", "tensorrt"), "target is 'tensorrt'"),
    "a graph elsewhere": (changed("graph", {"../graph.pt2": {"sha256": "0" * 64, "bytes": 1}}), "graph names"),
    "no graph": (lambda folder: (folder / "graph.pt2").unlink(), "graph.pt2: a part of the graph is missing"),
    "a byte": (one_byte, "graph.pt2: damaged or another graph"),
    "a graph that is longer": (
        lambda folder: (folder / "graph.pt2").write_bytes((folder / "graph.pt2").read_bytes() + b"x"),
        "damaged or another graph",
    ),
    "an empty json": (lambda folder: (folder / "export.json").write_text(""), "export.json: damaged"),
    "a list": (lambda folder: (folder / "export.json").write_text("[]"), "holds list"),
    "torn json": (lambda folder: (folder / "export.json").write_text('{"format": 1,'), "export.json: damaged"),
    "no program": (no_program, "graph.pt2: holds more than a graph, or is damaged"),
    "packed": (packed, "or is damaged (it is packed, as none is written)"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_export_is_one_line_and_exit_code_2(
    exported: Path, model: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "broken"))
    damage, words = DAMAGE[kind]
    damage(folder)
    code, output, errors = call("predict", folder, model[1] / "bolt" / "test", "--out", tmp_path / "out")
    assert (code, output) == (2, "")
    assert words in errors
    assert "broken/" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_exported_model_has_no_other_device(exported: Path, model: tuple[Path, Path]) -> None:
    for device, words in (("cuda:0", "runs on the CPU; leave --device out"), ("cup", "device 'cup' is not one of")):
        code, _, errors = call("predict", exported, model[1] / "bolt" / "test", "--device", device)
        assert code == 2
        assert words in errors


def full(folder: Path) -> Path:
    (folder / "mine.txt").write_text("mine")
    return folder


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no model": (("/no/such", "--to", "torch"), "/no/such"),
    "8 bits elsewhere": (("{model}", "--to", "torch", "--int8"), "--int8 is for --to openvino"),
    "no such images": (("{model}", "--to", "torch", "--check-on", "/no/images"), "no such image"),
    "text for an image": (("{model}", "--to", "torch", "--check-on", "{text}"), "not a readable image"),
    "no such category": (("{model}", "--to", "torch", "--check-on", "synthetic/nothing"), "category 'nothing' not in"),
    "something else there": (("{model}", "--to", "torch", "--out", "{full}"), "something else is there"),
    "a link to nothing": (("{model}", "--to", "torch", "--out", "{link}"), "something else is there"),
    "below a file": (("{model}", "--to", "torch", "--out", "{text}/x"), "which is no folder"),
    "a file there": (("{model}", "--to", "torch", "--out", "{text}"), "something else is there"),
    "too few normals": (("{model}", "--to", "torch", "--false-alarms", "0.01"), "take --false-alarms 0.091, or train"),
    "moved away": (("{moved}", "--to", "torch"), "name images with --check-on"),
    "8 bits without the normals": (
        ("{moved}", "--to", "openvino", "--int8", "--check-on", "{test}"),
        "the threshold is read anew from",
    ),
    "an exported one": (("{exported}", "--to", "torch"), "no description of a saved model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_exported_is_one_line_and_exit_code_2(
    model: tuple[Path, Path], exported: Path, tmp_path: Path, kind: str
) -> None:
    arguments, words = REFUSED[kind]
    (tmp_path / "full").mkdir()
    (tmp_path / "t.png").write_text("no image")
    (tmp_path / "link").symlink_to("nowhere")
    places = {
        "link": tmp_path / "link",
        "model": model[0],
        "text": tmp_path / "t.png",
        "full": full(tmp_path / "full"),
        "exported": exported,
        "test": model[1] / "bolt" / "test",
    }
    places["moved"] = Path(shutil.copytree(model[0], tmp_path / "moved", ignore=shutil.ignore_patterns("torch")))
    before = content(tmp_path) + content(model[0])
    code, output, errors = call("export", *(argument.format(**places) for argument in arguments))
    assert (code, output) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1
    assert content(tmp_path) + content(model[0]) == before


@pytest.mark.parametrize(("arguments", "extra"), [
    (("--to", "onnx"), "kdad-bench[onnx]"),
    (("--to", "openvino"), "kdad-bench[openvino]"),
    (("--to", "openvino", "--int8"), "kdad-bench[int8]"),
])  # fmt: skip
def test_a_package_that_is_missing_is_one_line_that_names_the_extra(
    model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], extra: str
) -> None:
    monkeypatch.setattr(export_runtimes, "find_spec", lambda name: None)
    before = content(model[0])
    code, output, errors = call("export", model[0], *arguments)
    assert (code, output) == (2, "")
    assert f"pip install '{extra}'" in errors
    assert errors.count("\n") == 1
    assert content(model[0]) == before


def test_a_runtime_that_is_missing_is_one_line_of_predict(
    exported: Path, model: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "onnx"))
    (folder / "graph.pt2").rename(folder / "graph.onnx")
    about = json.loads((folder / "export.json").read_text())
    changed("graph", {"graph.onnx": about["graph"]["graph.pt2"]})(folder)
    changed("target", "onnx")(folder)
    monkeypatch.setattr(export_runtimes, "find_spec", lambda name: None)
    code, _, errors = call("predict", folder, model[1] / "bolt" / "test")
    assert code == 2
    assert "needs onnxruntime: pip install 'kdad-bench[onnx]'" in errors


def test_a_model_without_held_out_normals_is_compared_on_what_is_named(
    model: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(model[0], tmp_path / "moved", ignore=shutil.ignore_patterns("torch")))
    decides(moved, normal_scores=(), normal_map_peak=None)
    code, output, errors = call("export", moved, "--to", "torch", "--check-on", model[1] / "bolt" / "test", "--json")
    assert code == 0, errors
    assert json.loads(output)["threshold"] is None
    assert json.loads(output)["certificate"]["decisions"] is None
    assert json.loads((moved / "torch" / "export.json").read_text()) == json.loads(output)


def test_a_score_that_is_the_threshold_is_counted_apart() -> None:
    found = Comparison(
        names=["at", "below", "above", "drawn"],
        real=[True, True, True, False],
        theirs=[1.0, 0.9, 1.1, 0.5],
        ours=[(1.0 + 1e-7, 1.0), (0.9, 1.2), (1.1, 1.1), (7.0, 7.0)],
        ranges=[1.0, 1.0, 1.0, 1.0],
        apart=[0.0, 0.0, 0.0, 0.0],
    )
    made = found.decisions(1.0, 1.0)
    assert (made.compared, made.flipped, made.at_threshold, made.flipped_images) == (2, 1, 1, ("below",))


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_example_of_the_page_says_what_predict_says(exported: Path, model: tuple[Path, Path]) -> None:
    image = model[1] / "bolt" / "test" / "spot" / "000.png"
    known: dict[str, Any] = {}
    exec(blocks()[0].replace("MODEL/torch", str(exported)).replace("IMAGE", str(image)), known)
    said = json.loads(call("predict", exported, image, "--json")[1])["images"][0]
    assert known["anomalous"] == said["anomalous"] == True  # noqa: E712 - both are bools
    assert float(known["score"][0]) == pytest.approx(said["score"], rel=1e-6)


def test_the_example_for_onnxruntime_runs(exported: Path, model: tuple[Path, Path], tmp_path: Path) -> None:
    lacking = export_runtimes.missing("onnx")
    if lacking:
        pytest.skip(lacking)
    image = model[1] / "bolt" / "test" / "spot" / "000.png"
    assert call("export", model[0], "--to", "onnx", "--out", tmp_path / "onnx")[0] == 0
    known: dict[str, Any] = {}
    for block in blocks():
        known["MODEL"] = ""
        exec(
            block.replace("MODEL/torch", str(exported)).replace("MODEL/onnx", str(tmp_path / "onnx"))
            .replace("IMAGE", str(image)),
            known,
        )  # fmt: skip
    assert known["anomalous"] is True


def test_the_bench_refuses_a_model_that_cannot_be_exported(model: tuple[Path, Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(model[0], tmp_path / "moved", ignore=shutil.ignore_patterns("torch")))
    decides(moved, tile=32)
    code, output, errors = call("bench", "export", moved, "--rounds", 1)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "sees images as tile=32, and a graph takes one square" in errors


def test_the_bench_times_every_runtime_that_is_there(model: tuple[Path, Path]) -> None:
    code, output, errors = call("bench", "export", model[0], "--rounds", 2, "--json")
    assert code == 0, errors
    timings = {one["runtime"]: one for one in json.loads(output)["timings"]}
    assert list(timings)[:2] == ["kdad-bench (PyTorch)", "torch"]
    assert timings["kdad-bench (PyTorch)"]["ratio"] == 1.0
    assert timings["torch"]["ms"] > 0
    for name, int8 in (("onnx", False), ("openvino", False), ("openvino", True)):
        one = timings[f"{name} int8" if int8 else name]
        assert (one["ms"] is None) == bool(export_runtimes.missing(name, int8=int8))
        assert one["why"] == export_runtimes.missing(name, int8=int8)


def test_a_model_away_from_its_row_is_compared_on_what_is_named_and_says_on_what_not(
    model: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(model[0], tmp_path / "moved", ignore=shutil.ignore_patterns("torch")))
    code, _, errors = call("export", moved, "--to", "torch", "--check-on", model[1] / "bolt" / "test")
    assert code == 0, errors
    assert f"not compared on the model's held-out normals: {moved}: no row beside it" in errors
