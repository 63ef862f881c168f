"""A fitted method on disk: `model.safetensors` (weights) and `model.json` (name and settings), no pickles."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kdad_bench.files import write_text_whole, write_whole
from kdad_bench.methods import METHODS, entry, known
from kdad_bench.methods.backbones import build
from kdad_bench.methods.protocol import Method

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


class ModelError(ValueError):
    """A saved model is missing, damaged or of another version; the message names the file."""


def save(name: str, method: Method, folder: Path) -> None:
    """Write the fitted `method`, registered as `name`, into `folder` (made if need be); each file appears whole."""
    entry(name)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().cpu().contiguous() for key, value in method.module.state_dict().items()}
    description = {"format": FORMAT, "method": name, "settings": asdict(method.settings)}
    write_whole(folder / WEIGHTS, lambda temporary: save_file(state, temporary))
    write_text_whole(folder / DESCRIPTION, json.dumps(description, indent=2, sort_keys=True) + "\n")


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[str, Method]:
    """The name and the method that `save` wrote into `folder`, ready to score with the same maps; raises ModelError."""
    device = torch.device(device)
    name, settings = _described(folder / DESCRIPTION)
    found = entry(name)
    teacher = build(settings.teacher, strides=settings.strides) if found.needs_teacher else None
    method = found.build(settings, teacher, device)
    try:
        method.module.load_state_dict(load_file(folder / WEIGHTS, device=str(device)))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{folder / WEIGHTS}: not the weights that {DESCRIPTION} describes ({reason})") from error
    return name, method


def _described(path: Path) -> tuple[str, Any]:
    """(method's name, its settings) from the JSON file."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        name, values = description["method"], description["settings"]
        version = description["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: no description of a saved model ({error}); give a folder under models/, of `run --save-models`"
        ) from error
    if version != FORMAT:
        raise ModelError(f"{path}: format {version}, this version reads {FORMAT}")
    if not known(name):
        raise ModelError(f"{path}: method {name!r} is not known; have: {', '.join(METHODS)}")
    kind = type(next(iter(entry(name).presets.values())))
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise ModelError(f"{path}: setting {sorted(unknown)[0]!r} is not one of {name}'s")
    try:
        return name, kind(**{key: _frozen(value) for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {error}") from error


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples they were."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
