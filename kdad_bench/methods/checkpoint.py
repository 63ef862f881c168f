"""A fitted method on disk: `model.safetensors` (weights) and `model.json` (name and settings), no pickles.

Each file names the other: model.json the SHA-256 of the weights, the weights' header the description. What is damaged,
changed or swapped is refused before anything of its size is allocated.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kdad_bench.files import DamagedError, read_json, write_text_whole, write_whole
from kdad_bench.methods import METHODS, entry, known, outside
from kdad_bench.methods.backbones import build
from kdad_bench.methods.backbones.undrawn import Undrawn
from kdad_bench.methods.frozen_features import Kept
from kdad_bench.methods.kept_settings import settings_of, value_said
from kdad_bench.methods.protocol import Method
from kdad_bench.outside import OutsideError

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
DIGEST = "weights_sha256"  # in model.json; models of before it exists have none
CODE, CODE_FILE = "code_sha256", "code_file"  # in model.json, of a method that is in a file
REMEDY = "train it again with `run --save-models`"
HEADER_BYTES = 4 << 20  # of model.safetensors; that of the largest network has about 80 kB
NOTE = "description"  # the name in the weights' header under which model.json is repeated


class ModelError(ValueError):
    """A saved model is missing, damaged or of another version; one line that names the file and the remedy."""


class Description(NamedTuple):
    """What model.json says."""

    name: str
    settings: Any
    values: dict[str, Any]  # the settings as JSON has them
    digest: str | None  # SHA-256 of the weights' file
    code: str | None  # SHA-256 of the method's file, where it is in one


def save(name: str, method: Method, folder: Path) -> None:
    """Write the fitted `method`, registered as `name`, into `folder` (made if need be).

    Each file appears whole or not at all, and one that belongs to another save is not taken for its own. OSError.
    """
    entry(name)
    state = _apart(method.module.state_dict())
    description = {"format": FORMAT, "method": name, "settings": asdict(method.settings), **_code_of(name)}
    note = {NOTE: json.dumps(description, sort_keys=True, allow_nan=False)}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(folder / WEIGHTS, lambda temporary: save_file(state, temporary, metadata=note))
    except BaseException:
        with suppress(OSError):  # something else is in it
            folder.rmdir()
        raise
    described = description | {DIGEST: _sha256(folder / WEIGHTS)}
    write_text_whole(folder / DESCRIPTION, json.dumps(described, indent=2, sort_keys=True) + "\n")


def _apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of `state` on the CPU, each in memory of its own: their file takes no two names for one memory."""
    found: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for key, value in state.items():
        own = value.detach().cpu().contiguous()
        found[key] = own.clone() if own.untyped_storage().data_ptr() in taken else own
        taken.add(own.untyped_storage().data_ptr())
    return found


def load(folder: Path, device: torch.device | str = "cpu") -> tuple[str, Method]:
    """The name and the method that `save` wrote into `folder`, ready to score with the same maps.

    Raises ModelError, in one line, for files that are missing, damaged, of another version or not of one save, and for
    weights that are not finite.
    """
    device = torch.device(device)
    description = _described(folder / DESCRIPTION)
    state = _weights(folder, description, device)
    method = _built(description, device)
    try:
        method.module.load_state_dict(state)
    except RuntimeError as error:
        raise _foreign(folder / WEIGHTS, str(error).partition("\n")[0]) from error
    return description.name, method


def _code_of(name: str) -> dict[str, str]:
    """What model.json says of the file of a method: its hash, and where it was; nothing of a method without one."""
    added = outside.ADDED.get(name)
    return {CODE: added.sha256, CODE_FILE: added.where} if added is not None and added.content else {}


def _described(path: Path) -> Description:
    """The checked contents of model.json."""
    try:
        content = read_json(path, dict, remedy=REMEDY)
    except OSError as error:
        reason = error.strerror or error
        raise ModelError(
            f"{path}: no description of a saved model ({reason}); give a folder under models/, of `run --save-models`"
        ) from error
    except DamagedError as error:
        raise ModelError(str(error)) from error
    for key, kind in (("format", int), ("method", str), ("settings", dict)):
        if type(content.get(key)) is not kind:
            raise ModelError(f"{path}: damaged ({key} is {value_said(content, key)}, not a {kind.__name__}); {REMEDY}")
    name, values, digest = content["method"], content["settings"], content.get(DIGEST)
    if content["format"] != FORMAT:
        raise ModelError(f"{path}: format {content['format']}, this version reads {FORMAT}; {REMEDY}")
    _refuse_other_code(path, content)
    if digest is not None and not isinstance(digest, str):
        raise ModelError(f"{path}: damaged ({DIGEST} is {value_said(content, DIGEST)}, not a str); {REMEDY}")
    try:
        return Description(name, settings_of(_kind_of(name), values, name), values, digest, content.get(CODE))
    except ValueError as error:
        raise ModelError(f"{path}: {error}; {REMEDY}") from error


def _refuse_other_code(path: Path, content: Mapping[str, Any]) -> None:
    """Raises ModelError unless the method is known, and its file, if it is in one, is that which the model is of.

    Code is never loaded because a model names it: who runs it names the file.
    """
    name, code, file = content["method"], content.get(CODE), repr(Path(str(content.get(CODE_FILE))).name)[:60]
    try:
        there = known(name)
    except OutsideError as error:
        raise ModelError(f"{path}: {error}") from error
    if not there and code is not None:
        raise ModelError(
            f"{path}: method {value_said(content, 'method')} is in a file, {file}; give it with --method FILE"
        )
    if not there:
        raise ModelError(f"{path}: method {value_said(content, 'method')} is not known; have: {', '.join(METHODS)}")
    have = _code_of(name)
    if have.get(CODE) != code:
        mine = f"code {have[CODE][:12]} of {have[CODE_FILE]}" if have else "code that is in no file"
        theirs = f"code {str(code)[:12]} of {file}" if code is not None else "code that was in no file"
        raise ModelError(f"{path}: saved with {theirs}, and method {name!r} is {mine}; give that file with --method")


def _kind_of(name: str) -> type:
    """The class of the settings of method `name`."""
    return type(next(iter(entry(name).presets.values())))


def _built(description: Description, device: torch.device) -> Method:
    """The untrained method, built as a run does: what it draws by itself, it draws on the CPU and sends to `device`.

    On "meta" nothing of it takes memory.
    """
    found, settings = entry(description.name), description.settings
    with device:
        teacher = build(settings.teacher, strides=settings.strides) if found.needs_teacher else None
    with device if device.type == "meta" else nullcontext():
        return found.build(settings, teacher, device)


def _weights(folder: Path, description: Description, device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of the weights' file, which are those that `description` is about, and finite."""
    path = folder / WEIGHTS
    _refuse_no_file(path)
    try:
        if description.digest not in (None, _sha256(path)):
            raise _foreign(path, "damaged: its SHA-256 is another")
        with safe_open(path, framework="pt", device=str(device)) as file:
            _refuse_other_note(folder, description, file.metadata() or {})
            _refuse_other_shapes(folder, description, file)
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise _foreign(path, str(error).partition("\n")[0]) from error
    for key, tensor in state.items():
        if not _is_finite(tensor):
            raise ModelError(f"{path}: damaged ({key!r} holds values that are not finite); {REMEDY}")
    return state


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # torch asks no number of 8 bits
    return bool(torch.isfinite(wide).all())


def _refuse_no_file(path: Path) -> None:
    """Raises ModelError for what is missing, no regular file, or says of itself that it has a monstrous header."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would block
            raise _foreign(path, "not a regular file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise _foreign(path, str(error.strerror or error)) from error
    if length > HEADER_BYTES:
        raise _foreign(path, f"a header of {length} bytes")


def _refuse_other_note(folder: Path, description: Description, metadata: Mapping[str, str]) -> None:
    """Raises ModelError if the weights were saved with another description, naming the first field that differs."""
    path = folder / DESCRIPTION
    if NOTE not in metadata:  # a model of before there was one
        return
    if description.digest is None:
        raise ModelError(f"{path}: damaged ({DIGEST} is missing); {REMEDY}")
    try:
        noted = json.loads(metadata[NOTE])
        name, values, code = str(noted["method"]), dict(noted["settings"]), noted.get(CODE)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise _foreign(folder / WEIGHTS, f"the {NOTE} in its header is damaged") from error
    if name != description.name:
        raise ModelError(f"{path}: method {description.name!r}, but the weights are {name[:60]!r}'s; {REMEDY}")
    if code != description.code:
        raise ModelError(f"{path}: damaged ({CODE} is not that of the weights); {REMEDY}")
    for key in description.values:
        mine, theirs = value_said(description.values, key), value_said(values, key)
        if description.values[key] != values.get(key):
            raise ModelError(f"{path}: setting {key!r} is {mine}, but the weights were saved with {theirs}; {REMEDY}")


def _refuse_other_shapes(folder: Path, description: Description, file: Any) -> None:
    """Raises ModelError if the weights' header has not the tensors that the settings ask for; nothing is allocated."""
    try:
        with Undrawn():
            module = _built(description, torch.device("meta")).module
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{folder / DESCRIPTION}: settings that cannot be ({reason}); {REMEDY}") from error
    wanted, have = module.state_dict(), set(file.keys())
    for key in sorted(set(wanted) ^ have):
        raise _foreign(folder / WEIGHTS, f"{key[:100]!r} is {'missing' if key in wanted else 'no part of it'}")
    free = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, Kept))
    for key in sorted(have - {key for key in have if free and key.startswith(free)}):
        found = file.get_slice(key)
        shape = tuple(found.get_shape())
        kind = (found[:0] if shape else file.get_tensor(key)).dtype  # nothing of its size is read
        if (shape, kind) != (tuple(wanted[key].shape), wanted[key].dtype):
            asked = _kind_said(tuple(wanted[key].shape), wanted[key].dtype)
            raise _foreign(folder / WEIGHTS, f"{key[:100]!r} is {_kind_said(shape, kind)}, not {asked}")


def _kind_said(shape: tuple[int, ...], kind: torch.dtype) -> str:
    """`float32 (3, 64, 64)`."""
    return f"{str(kind).removeprefix('torch.')} {shape}"


def _foreign(path: Path, why: str) -> ModelError:
    return ModelError(f"{path}: not the weights that {DESCRIPTION} describes ({why[:200]}); {REMEDY}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
