"""A program of torch.export from a file that is not believed: what is not known to be harmless is refused.

`torch.export.load` unpickles, evaluates expressions and guards, imports modules, opens shared libraries and calls
whatever function a file names. So it never sees the file, but an archive written anew of what was read here: weights as
bytes, identifiers for names, symbols made of numbers and known functions, operators for nodes.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

ROOT, MODEL = "graph/", "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_\d{1,9}", re.ASCII)
SAMPLES = "data/sample_inputs/model.pt"  # pickled; the program needs none
LEFT_OUT = (SAMPLES, ".data/serialization_id")
CONSTANT = {  # member -> what it may hold
    "archive_format": rb"pt2",
    "archive_version": rb"\d{1,9}",
    ".data/version": rb"\d{1,9}\n?",
    "byteorder": rb"little",
}

NAME = r"(?!__)[A-Za-z_]\w{0,199}"
IDENTIFIER = re.compile(NAME, re.ASCII)
PATH = re.compile(rf"{NAME}(\.({NAME}|\d{{1,9}}))*", re.ASCII)  # of a tensor in a module
FIELDS: dict[str, re.Pattern[str]] = {  # what the text of a field has to be; of all others an identifier, or nothing
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name"), PATH),
    **dict.fromkeys(("as_float", "as_floats", "min_val", "max_val"), re.compile("-?Infinity|NaN")),
    **dict.fromkeys(
        ("as_string", "as_strings"),  # no name of a file
        re.compile("none|tanh|floor|trunc|mean|sum|ij|xy|linear|nearest|lower|higher|midpoint|left|right"),
    ),
    "torch_version": re.compile(r"[\w.+-]{0,99}", re.ASCII),
    # a symbol is made of these words alone: no attribute, no text but a symbol's name, no other function
    "expr_str": re.compile(
        r"(?:(?:Symbol|Integer|Float|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ToFloat|TruncToInt"
        r"|IntTrueDiv|Eq|Ne|Le|Lt|Ge|Gt|Not|And|Or|true|false|True|False|positive|nonnegative|integer|real)\b"
        r"|[suz]f?\d{1,9}\b|'[suz]f?\d{1,9}'|-?\d{1,18}\b|[(),= ]){1,2000}",
        re.ASCII,
    ),
}
MAPS = ("tensor_values", "sym_int_values", "sym_float_values", "sym_bool_values", "range_constraints")  # by names
NONE_OF = ("as_graph", "as_operator", "as_custom_obj", "custom_obj", "token", "as_string_to_argument", "as_complex")
EMPTY = ("guards_code", "custom_obj_values")  # may be there, and hold nothing

LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
IMAGES = {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF]}
KEYWORDS = {"type": "builtins.dict", "context": "[]", "children_spec": []}
SPECS = {  # how the arguments and the answers lie: always so
    "in_spec": [1, {"type": "builtins.tuple", "context": "null", "children_spec": [IMAGES, KEYWORDS]}],
    "out_spec": [1, {"type": "builtins.tuple", "context": "null", "children_spec": [LEAF, LEAF]}],
}

OPERATOR = re.compile(r"torch\.ops\.aten\.((?!__)\w{1,99})\.((?!__)\w{1,99})", re.ASCII)
PRIVATE = frozenset((  # operators that are neither public nor of the core set, and compute alone
    "_unsafe_view", "_unsafe_index", "_scaled_dot_product_flash_attention_for_cpu", "_linalg_svd", "_linalg_solve_ex",
    "_linalg_eigh", "_linalg_det", "_linalg_slogdet", "_fft_r2c", "_fft_c2c", "_fft_c2r", "_unique2",
    "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_weight_norm_interface",
))  # fmt: skip
OF_FILES = ("from_file", "save")
KINDS = re.compile(r"((Optional|List)\[)*(Tensor|int|float|bool|number|complex|Device|str)\]*")  # of arguments
ON_NUMBERS = frozenset((
    *(f"_operator.{name}" for name in (
        "eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "truediv",
        "and_", "or_",
    )),
    *(f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min", "sqrt")),
    "math.trunc",
))  # fmt: skip


class Unsafe(ValueError):
    """A part of the file of which nothing is known, in words."""


def harmless(path: Path) -> io.BytesIO:
    """The program in `path` as an archive that `torch.export.load` may read.

    Raises Unsafe for whatever this package would not have written, OSError, and what zip and JSON raise for damage.
    """
    members = _members(path)
    written = {ROOT + name: content for name, content in members.items() if TENSOR.fullmatch(name) or name in CONSTANT}
    for name in CONFIGS:
        written[ROOT + name] = _dumped(_config(json.loads(members[name]), name, members))
    written[ROOT + MODEL] = _dumped(_known(json.loads(members[MODEL]), "", MODEL))
    written[ROOT + SAMPLES] = b""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, content in written.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    made.seek(0)
    return made


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def _members(path: Path) -> dict[str, bytes]:
    """The members that a program is made of, by their names below the root."""
    found: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            name = one.filename.removeprefix(ROOT)
            known = name == MODEL or name in (*CONFIGS, *CONSTANT, *LEFT_OUT) or TENSOR.fullmatch(name)
            if not known or name in found or name == one.filename:
                raise Unsafe(f"it holds {one.filename[:80]!r}")
            if one.compress_type != zipfile.ZIP_STORED:  # may unpack to anything
                raise Unsafe("it is packed, as none is written")
            found[name] = b"" if name in LEFT_OUT else archive.read(one)
    lacking = [name for name in (MODEL, *CONFIGS, *CONSTANT) if name not in found]
    if lacking:
        raise Unsafe(f"it has no {lacking[0]}")
    for name, pattern in CONSTANT.items():
        if not re.fullmatch(pattern, found[name]):
            raise Unsafe(f"{name} holds {found[name][:20]!r}")
    return found


def _config(config: Any, name: str, members: dict[str, bytes]) -> Any:
    """Which member is which tensor, if all are stored as their bytes."""
    folder = name.rpartition("/")[0]
    for tensor, payload in config["config"].items():
        if payload["use_pickle"] is not False:
            raise Unsafe(f"{name} names pickled objects")
        if (
            not PATH.fullmatch(tensor)
            or f"{folder}/{payload['path_name']}" not in members
            or "/" in payload["path_name"]
        ):
            raise Unsafe(f"{name} names {tensor[:80]!r} in {str(payload['path_name'])[:80]!r}")
    return {"config": {key: _known(payload, "", name) for key, payload in config["config"].items()}}


def _known(value: Any, field: str, where: str) -> Any:
    """`value`, which stands in `field`, without the notes that programs carry about their origin."""
    if isinstance(value, dict):
        return _known_fields(value, field, where)
    if field in EMPTY and value:
        raise Unsafe(f"{where} has {field}")
    if isinstance(value, list):
        return [_known(one, field, where) for one in value]
    if isinstance(value, str):
        return _known_text(value, field, where)
    return value


def _known_fields(value: dict[str, Any], field: str, where: str) -> dict[str, Any]:
    """The same of a mapping: of names where `field` is one of MAPS, else of fields."""
    wrong = [key for key in value if not IDENTIFIER.fullmatch(key)]
    if field not in MAPS:
        wrong += [key for key in value if key in NONE_OF]
    if wrong:
        raise Unsafe(f"{where} has {wrong[0][:80]!r}")
    if field in EMPTY and value:
        raise Unsafe(f"{where} has {field}")
    if field in MAPS:
        return {key: _known(one, "", where) for key, one in value.items()}
    return {key: {} if key == "metadata" else _known(one, key, where) for key, one in value.items()}


def _known_text(text: str, field: str, where: str) -> str:
    """`text`, if a field like that may hold it."""
    if field in SPECS:
        if json.loads(text) != SPECS[field]:
            raise Unsafe(f"{where} has another {field} than (images) -> (score, map)")
        return json.dumps(SPECS[field])
    if field == "target":
        if not _operator(text):
            raise Unsafe(f"{where} calls {text[:80]!r}, no operator that is known to touch nothing but tensors")
    elif text and not FIELDS.get(field, IDENTIFIER).fullmatch(text):
        raise Unsafe(f"{where} has {text[:80]!r} for {field}")
    return text


def _operator(target: str) -> bool:
    """Whether it takes and gives tensors and numbers alone: a public operator of PyTorch, one of its core set, or a
    function of shapes."""
    if target in ON_NUMBERS:
        return True
    names = OPERATOR.fullmatch(target)
    found = getattr(getattr(torch.ops.aten, names[1], None), names[2], None) if names else None
    if not isinstance(found, torch._ops.OpOverload) or names is None:
        return False
    if names[1] in OF_FILES:
        return False
    public = not names[1].startswith("_") or names[1] in PRIVATE or torch.Tag.core in found.tags
    values = (*found._schema.arguments, *found._schema.returns)
    return public and all(KINDS.fullmatch(str(one.type)) for one in values)
