"""Saved models: the same maps after reloading, and clear refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdad_bench.methods import METHODS, checkpoint, entry
from kdad_bench.methods.checkpoint import ModelError, load, save
from tests.methods.toys import normals, small_method, with_defects


@pytest.mark.parametrize("name", METHODS)
def test_a_reloaded_model_gives_the_same_maps(name: str, tmp_path: Path) -> None:
    changes = {} if name == "pixel_mean" else {"taps": "standardised"}
    method = small_method(name, steps=1, batch_size=2, seed=3, **changes)
    method.fit(normals(4, seed=1))
    save(name, method, tmp_path / "model")
    assert sorted(item.name for item in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    again, loaded = load(tmp_path / "model")
    assert again == name
    assert loaded.settings == method.settings
    images = with_defects(3, seed=2)[0]
    ours, theirs = method.score(images), loaded.score(images)
    assert torch.equal(ours.pixel, theirs.pixel)
    assert torch.equal(ours.image, theirs.image)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_a_model_is_loaded_on_a_gpu(name: str, tmp_path: Path) -> None:
    method = small_method(name, steps=1, batch_size=2)
    method.fit(normals(4, seed=1))
    save(name, method, tmp_path)
    images = with_defects(3, seed=2)[0]
    assert load(tmp_path, "cuda")[1].score(images.cuda()).pixel.shape == (3, 64, 64)


def test_a_method_that_draws_from_a_generator_while_it_is_built_is_loaded_on_any_device(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch refuses a generator of the CPU for a tensor of a default device that is another, as RD++'s table was."""
    drawn: list[torch.Tensor] = []

    def built(settings: object, teacher: object, device: torch.device) -> object:
        drawn.append(torch.randperm(4, generator=torch.Generator().manual_seed(0)))
        return device

    monkeypatch.setattr(checkpoint, "entry", lambda name: replace(entry(name), build=built))
    description = checkpoint._described(copy / "model.json")
    for device in (torch.device("cuda"), torch.device("cpu"), torch.device("meta")):
        assert checkpoint._built(description, device) == device
    assert [one.device.type for one in drawn] == ["cpu", "cpu", "meta"]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a teacher."""
    folder = tmp_path_factory.mktemp("right")
    save("stfpm", small_method("stfpm"), folder)
    return folder


@pytest.fixture
def described(right: Path, tmp_path: Path) -> Path:
    """One whose model.json may be changed."""
    return Path(shutil.copytree(right, tmp_path / "copy", copy_function=os.link))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A small one that may be broken."""
    save("pixel_mean", small_method("pixel_mean"), tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(folder: Path, content: object) -> None:
    (folder / "model.json").unlink()  # it may be a link
    (folder / "model.json").write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    """What is said of a folder, in one line."""
    with pytest.raises(ModelError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


SETTINGS: dict[str, tuple[object, str]] = {
    "image_size": (10**9, "image_size 1000000000 is not in"),
    "batch_size": (-1, "batch_size -1 is not in"),
    "precision": ("fp8", "precision 'fp8' is not known"),
    "optimiser": ("lion", "optimiser 'lion' is not known"),
    "teacher": ("resnet1001", "setting 'teacher' is 'resnet1001', but the weights"),
    "strides": ([4, 8], r"setting 'strides' is \[4, 8\], but the weights"),
    "steps": (True, "setting 'steps' is True"),
    "epochs": ([1], r"setting 'epochs' is \[1\]"),
    "seed": (0.5, "setting 'seed' is 0.5"),
    "learning_rate": ("0.4", "setting 'learning_rate' is '0.4'"),
    "momentum": (None, "setting 'momentum' is None"),
    "betas": ([0.9], r"setting 'betas' is \[0.9\]"),
    "drop_last": (1, "setting 'drop_last' is 1"),
    "taps": ({}, r"setting 'taps' is \{\}"),
    "loss_scale": ("paper", "setting 'loss_scale' is 'paper', but the weights were saved with 'official'"),
    "norm_momentum": (0.25, "setting 'norm_momentum' is 0.25, but the weights"),
    "colour": (1, "setting 'colour' is not one of stfpm's"),
}


@pytest.mark.parametrize("field", SETTINGS)
def test_a_setting_that_cannot_be_is_named_with_its_file(described: Path, field: str) -> None:
    value, words = SETTINGS[field]
    content = json.loads((described / "model.json").read_text())
    content["settings"][field] = value
    rewrite(described, content)
    assert re.search(rf"copy/model\.json: {words}", refusal(described))


def test_every_setting_that_is_missing_is_named(described: Path) -> None:
    content = json.loads((described / "model.json").read_text())
    for field in content["settings"]:
        settings = {key: value for key, value in content["settings"].items() if key != field}
        rewrite(described, content | {"settings": settings})
        assert f"model.json: setting '{field}' is missing" in refusal(described)


DESCRIPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "version": ({"format": 99}, "format 99, this version reads 1"),
    "version as text": ({"format": "1"}, "format is '1', not a int"),
    "version is true": ({"format": True}, "format is True"),
    "method": ({"method": "stfpn"}, "method 'stfpn' is not known; have: pixel_mean, padim"),
    "another method": ({"method": "pixel_mean"}, "setting 'betas' is not one of pixel_mean's"),
    "method is a list": ({"method": ["stfpm"]}, "method is .*, not a str"),
    "settings are a list": ({"settings": []}, "settings is .*, not a dict"),
    "digest is a number": ({"weights_sha256": 5}, "weights_sha256 is 5, not a str"),
    "digest is another": ({"weights_sha256": "0" * 64}, "SHA-256 is another"),
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_description_that_cannot_be_names_the_field(described: Path, kind: str) -> None:
    change, words = DESCRIPTIONS[kind]
    content = json.loads((described / "model.json").read_text())
    rewrite(described, content | change)
    assert re.search(words, refusal(described))


@pytest.mark.parametrize("field", ["format", "method", "settings", "weights_sha256"])
def test_a_field_that_is_missing_is_named(described: Path, field: str) -> None:
    content = json.loads((described / "model.json").read_text())
    del content[field]
    rewrite(described, content)
    assert re.search(rf"model\.json: damaged \({field} is missing", refusal(described))


FILES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "one byte long": lambda path: path.write_bytes(b"{"),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "another byte": lambda path: path.write_bytes(path.read_bytes().replace(b"6", b"?", 1)),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "a header without end": lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f" + path.read_bytes()[8:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_damaged_file_is_named(copy: Path, name: str, kind: str) -> None:
    FILES[kind](copy / name)
    assert f"copy/{name}: " in refusal(copy)


def test_keys_that_stand_twice_are_refused(copy: Path) -> None:
    text = (copy / "model.json").read_text()
    (copy / "model.json").write_text(text.replace('"method"', '"method": "rd4ad", "method"'))
    assert "'method' stands there twice" in refusal(copy)


def change(folder: Path, **changes: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write other weights, as a version of before the two files named each other did."""
    state = load_file(folder / "model.safetensors")
    for edit in changes.values():
        edit(state)
    save_file(state, folder / "model.safetensors")
    content = json.loads((folder / "model.json").read_text())
    content.pop("weights_sha256", None)
    (folder / "model.json").write_text(json.dumps(content))


STATES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a tensor is missing": (lambda state: state.pop("mean"), "'mean' is missing"),
    "one too many": (lambda state: state.update(x=torch.ones(1)), "'x' is no part of it"),
    "another shape": (
        lambda state: state.update({"mean": torch.ones(1)}), r"'mean' is float32 \(1,\), not float32 \(3, 64, 64\)"
    ),
    "another dtype": (
        lambda state: state.update({"mean": state["mean"].half()}), r"'mean' is float16 (\(.*\)), not float32 \1"
    ),
    "a dtype that no model has": (
        lambda state: state.update({"mean": state["mean"] > 0}), "'mean' is bool "
    ),
    "NaN": (lambda state: state["mean"].fill_(float("nan")), "'mean' holds values that are not"),
    "infinite": (lambda state: state["deviation"][:1].fill_(-float("inf")), "'deviation' holds"),
}  # fmt: skip


@pytest.mark.parametrize("kind", STATES)
def test_weights_of_another_network_and_such_that_are_not_finite_are_refused(copy: Path, kind: str) -> None:
    edit, words = STATES[kind]
    change(copy, edit=edit)
    assert re.search(rf"model\.safetensors: .*{words}", refusal(copy))


WRITTEN = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "int64", "int32", "int16",
    "int8", "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip


class Stateful:
    """A method of nothing but its state."""

    def __init__(self, **state: torch.Tensor) -> None:
        self.settings, self.module = entry("pixel_mean").presets["quick"], nn.Module()
        for name, value in state.items():
            self.module.register_buffer(name, value)


@pytest.fixture
def built_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Stateful]], None]:
    """Have models of pixel_mean be of that method."""

    def instead(build: Callable[[], Stateful]) -> None:
        found = replace(entry("pixel_mean"), build=lambda settings, teacher, device: build())  # type: ignore[arg-type, return-value]
        monkeypatch.setattr(checkpoint, "entry", lambda name: found)

    return instead


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("shape", [(), (3,)])
def test_state_of_every_type_that_a_file_holds_comes_back(
    kind: str, shape: tuple[int, ...], built_as: Callable[[Callable[[], Stateful]], None], tmp_path: Path
) -> None:
    dtype = getattr(torch, kind)
    built_as(lambda: Stateful(own=torch.zeros(shape, dtype=dtype)))
    save("pixel_mean", Stateful(own=torch.ones(shape).to(dtype)), tmp_path)  # type: ignore[arg-type]
    (again,) = load(tmp_path)[1].module.state_dict().values()
    assert (again.dtype, again.shape) == (dtype, shape)
    assert again.to(torch.complex64).eq(1).all()


@pytest.mark.parametrize("kind", ["float64", "float16", "float8_e4m3fn", "complex64"])
def test_state_of_any_type_that_is_not_finite_is_refused(
    kind: str, built_as: Callable[[Callable[[], Stateful]], None], tmp_path: Path
) -> None:
    dtype = getattr(torch, kind)
    built_as(lambda: Stateful(own=torch.zeros(2, dtype=dtype)))
    save("pixel_mean", Stateful(own=torch.tensor([1.0, float("nan")]).to(dtype)), tmp_path)  # type: ignore[arg-type]
    assert "'own' holds values that are not finite" in refusal(tmp_path)


def test_state_with_two_names_for_one_memory_comes_back_under_both(
    built_as: Callable[[Callable[[], Stateful]], None], tmp_path: Path
) -> None:
    one = torch.arange(6.0).reshape(2, 3)
    tied = Stateful(one=one, other=one, row=one[1], turned=one.T)
    built_as(lambda: Stateful(**{name: torch.zeros_like(value) for name, value in tied.module.state_dict().items()}))
    save("pixel_mean", tied, tmp_path)  # type: ignore[arg-type]
    again = load(tmp_path)[1].module.state_dict()
    assert {name: value.tolist() for name, value in again.items()} == {
        "one": [[0, 1, 2], [3, 4, 5]],
        "other": [[0, 1, 2], [3, 4, 5]],
        "row": [3, 4, 5],
        "turned": [[0, 3], [1, 4], [2, 5]],
    }


def test_a_model_that_cannot_be_saved_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="complex128"):
        save("pixel_mean", Stateful(own=torch.zeros(2, dtype=torch.complex128)), tmp_path / "model")  # type: ignore[arg-type]
    assert not (tmp_path / "model").exists()


NOTES = ("", "{", "[]", "{}", '{"method": "pixel_mean", "settings": 5}', "[" * 100_000,
         '{"method": "pixel_mean", "settings": {}}', '{"method": "stfpm", "settings": {}}')  # fmt: skip


@pytest.mark.parametrize("note", NOTES)
def test_a_damaged_note_in_the_header_is_refused(copy: Path, note: str) -> None:
    state = load_file(copy / "model.safetensors")
    save_file(state, copy / "model.safetensors", metadata={"description": note})
    content = json.loads((copy / "model.json").read_text())
    content["weights_sha256"] = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    rewrite(copy, content)
    assert re.search(r"the description in its header is damaged|, but the weights ", refusal(copy))


def test_a_model_of_before_the_files_named_each_other_loads_without_any_weights_of_its_teacher(
    right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdad_bench.methods.backbones.weights.find_weights", lambda name: pytest.fail("looked for"))
    before = load(right)[1].score(with_defects(2, seed=2)[0])
    older = Path(shutil.copytree(right, tmp_path / "older"))
    change(older)
    assert torch.equal(load(older)[1].score(with_defects(2, seed=2)[0]).pixel, before.pixel)


def test_settings_that_no_network_has_are_refused_where_the_weights_do_not_tell(right: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(right, tmp_path / "older"))
    change(older)
    content = json.loads((older / "model.json").read_text())
    for field, value, words in (
        ("teacher", "resnet1001", "settings that cannot be"),
        ("strides", [8, 4], "strides 8 4: must be one or more that rise"),
        ("strides", [], "strides none: must be one or more that rise"),
    ):
        rewrite(older, content | {"settings": content["settings"] | {field: value}})
        assert f"model.json: {words}" in refusal(older)
    rewrite(older, content | {"settings": content["settings"] | {"teacher": "resnet18"}})
    assert "model.safetensors: not the weights that model.json describes" in refusal(older)


def test_nothing_is_allocated_for_settings_that_the_weights_have_not(tmp_path: Path) -> None:
    save("pixel_mean", small_method("pixel_mean"), tmp_path)
    change(tmp_path)
    content = json.loads((tmp_path / "model.json").read_text())
    content["settings"]["image_size"] = 8192
    (tmp_path / "model.json").write_text(json.dumps(content))
    code = """if True:
        import resource, sys, torch
        from pathlib import Path
        from kdad_bench.methods.checkpoint import ModelError, load
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20),) * 2)
        try:
            load(Path(sys.argv[1]))
        except ModelError as error:
            print(error)"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "float32 (3, 64, 64), not float32 (3, 8192, 8192)" in done.stdout


def test_a_save_that_is_killed_between_its_files_leaves_no_model_of_two_halves(copy: Path, tmp_path: Path) -> None:
    save("pixel_mean", small_method("pixel_mean", seed=5), tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").replace(copy / "model.safetensors")
    assert "model.safetensors: not the weights that model.json describes" in refusal(copy)
