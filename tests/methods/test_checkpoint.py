"""Saved models: the same maps after reloading, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kdad_bench.methods import METHODS
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


def test_what_is_no_saved_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.json: no description"):
        load(tmp_path)
    save("stfpm", small_method("stfpm"), tmp_path)
    path = tmp_path / "model.json"
    right = json.loads(path.read_text())
    for change, message in (
        ({"format": 99}, "format 99, this version reads 1"),
        ({"method": "stfpn"}, "method 'stfpn' is not known; have: pixel_mean, padim, spade"),
        ({"settings": right["settings"] | {"colour": 1}}, "setting 'colour' is not one of stfpm's"),
        ({"settings": right["settings"] | {"optimiser": "lion"}}, r"model\.json: optimiser 'lion' is not known"),
    ):
        path.write_text(json.dumps(right | change))
        with pytest.raises(ModelError, match=message):
            load(tmp_path)
    path.write_text(json.dumps(right | {"settings": right["settings"] | {"teacher": "resnet18"}}))
    with pytest.raises(ModelError, match=r"model\.safetensors: not the weights that model\.json describes"):
        load(tmp_path)
    path.write_text(json.dumps(right))
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"model\.safetensors: not the weights"):
        load(tmp_path)
