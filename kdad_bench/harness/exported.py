"""An exported model on disk: a graph's files, and `export.json`, which says all that the graph does not.

Nothing of it is believed: the hashes of the graph's files and of itself, the version that wrote them and each field
are checked.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from kdad_bench import __version__
from kdad_bench.datasets import SQUASH
from kdad_bench.files import DamagedError, read_json
from kdad_bench.harness import decision
from kdad_bench.harness.choices import SelectionError
from kdad_bench.harness.decision import Decision, supported
from kdad_bench.harness.export_runtimes import TARGETS, ExportError, Runner, opened_graph
from kdad_bench.harness.scoring import Scorer
from kdad_bench.harness.selection import device_from
from kdad_bench.harness.trust import FALSE_ALARMS
from kdad_bench.methods.checkpoint import DESCRIPTION, load
from kdad_bench.methods.protocol import Scores

FORMAT: Literal[1] = 1
FILE = "export.json"
REMEDY = "export it again with `kdad-bench export`"
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Line = Annotated[str, Field(max_length=1000)]


class Part(BaseModel):
    """A part of the file: no field more, none less, no number that is none."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class GraphFile(Part):
    """A file of the graph."""

    sha256: Sha256
    bytes: Count


class Port(Part):
    """What goes in, or comes out: null in `shape` stands for any number of images."""

    name: Line
    shape: tuple[int | None, ...]
    dtype: Line
    meaning: Line


class Seen(Part):
    """Images that graph and model were compared on."""

    what: Line
    count: Count


class Decisions(Part):
    """What became of the decisions about the images that were looked at."""

    threshold: float  # of the model
    own_threshold: float  # of the graph: another one only where it was fitted anew
    compared: Count
    flipped: Count
    at_threshold: Count  # images whose score IS the threshold, by which nothing can be told: not compared
    flipped_images: tuple[Line, ...]  # the first few


class Certificate(Part):
    """How far the graph, run from its files, was from the model; relative as docs/export.md defines it."""

    images: tuple[Seen, ...]
    batches: tuple[int, ...]
    score_difference: float
    score_tolerance: float
    map_difference: float
    map_tolerance: float | None  # None: no limit, it is only stated
    decisions: Decisions | None  # None: the model has no threshold
    most_flipped: float  # share of the decisions that may have flipped


class Threshold(Part):
    """Anomalous is what scores above `value`."""

    value: float
    false_alarms: float = Field(gt=0, lt=1)


class Provenance(Part):
    """The saved model that this is a graph of."""

    weights_sha256: Sha256
    description_sha256: Sha256  # of model.json
    decision_sha256: Sha256


class Exported(Part):
    """Everything that export.json holds."""

    format: Literal[1]
    kdad_bench: Line
    method: Line
    title: Line
    settings: dict[str, Any]
    readings: tuple[str, ...]
    deviations: tuple[str, ...]
    model: Provenance
    target: Literal["torch", "onnx", "openvino"]
    precision: Literal["fp32", "int8"]
    calibration: Line  # on what the ranges of int8 were measured; empty for fp32
    graph: dict[str, GraphFile]
    input: Port
    outputs: tuple[Port, ...]
    runtime: dict[str, str]  # packages and the options they ran with
    decision: decision.Written
    threshold: Threshold | None
    certificate: Certificate
    sha256: Sha256  # of all the rest

    @classmethod
    def sealed(cls, **fields: Any) -> Self:
        """The contents with their own SHA-256."""
        return cls(**fields, sha256=cls.model_construct(**fields).digest())

    def digest(self) -> str:
        """SHA-256 of all fields but itself, in JSON with sorted names."""
        rest = json.loads(self.model_dump_json(exclude={"sha256"}))
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Raises ValueError where input, outputs and decision are not of one graph."""
        side = self.decision.resolution
        count = self.input.shape[0] if self.input.shape else 0
        shapes = (count, 3, side, side), (count,), (count, side, side)
        if count == 0 or (self.input.shape, *(one.shape for one in self.outputs)) != shapes:
            raise ValueError(f"input and outputs are not those of images of {side} px, the resolution of the decision")
        return self

    @model_validator(mode="after")
    def _decides_as_certified(self) -> Self:
        """Raises ValueError unless threshold, held-out normals and certificate are of one decision."""
        kept, limit, made = self.decision.decision, self.threshold, self.certificate.decisions
        if (limit is None, made is None) != (not kept.normal_scores,) * 2:
            raise ValueError("threshold, held-out normals and decisions of the certificate are there together or not")
        if limit is None or made is None:
            return self
        if not supported(len(kept.normal_scores), limit.false_alarms):
            raise ValueError(f"its held-out normals support no false-alarm rate of {limit.false_alarms:g}")
        own = kept.threshold(limit.false_alarms)
        if not limit.value == own == made.own_threshold or (self.precision == "fp32" and made.threshold != own):
            raise ValueError(f"threshold {limit.value:g} is not that of the held-out normals and of the certificate")
        return self

    @model_validator(mode="after")
    def _has_a_seed(self) -> Self:
        """Raises ValueError for settings without the one that every method has."""
        if type(self.settings.get("seed")) is not int:
            raise ValueError("settings have no seed that is a whole number")
        return self

    @model_validator(mode="after")
    def _is_as_it_was_written(self) -> Self:
        """Raises ValueError for contents that were changed."""
        if self.digest() != self.sha256:
            raise ValueError("the SHA-256 of the contents is not the one in it")
        return self


class ExportedModel:
    """A graph as the harness scores with it; it learnt long ago. Its copies, in other processes too, open it anew."""

    def __init__(self, folder: Path, found: Exported) -> None:
        """Raises ExportError for a graph in `folder` that is not the one that `found` is about, or cannot be run."""
        self.folder, self.found = folder.absolute(), found
        self.runner = runner_of(self.folder, found)

    def __reduce__(self) -> Any:
        return ExportedModel, (self.folder, self.found)

    def score(self, images: Tensor) -> Scores:
        """Scores of `images` [N, 3, R, R] in [0, 1] that were uint8: the graph sees them as that again, exactly."""
        pixels = (images * 255).round().to(torch.uint8).cpu().numpy()
        score, heat = self.runner(pixels)
        return Scores(torch.from_numpy(np.array(score)), torch.from_numpy(np.array(heat)))


def refuse_other_method(model: Path, name: str, asked: str | None) -> None:
    """Raises SelectionError where a method was asked for that is not the model's, which is `name`."""
    if asked not in (None, name):
        raise SelectionError(f"--method {asked}: {model} is of method '{name}'; leave --method out")


def rate_for(model: Path, given: float | None) -> float:
    """The false-alarm rate of a model's threshold: the one given, else that of its export, else FALSE_ALARMS."""
    if given is not None:
        return given
    threshold = read(model).threshold if (model / FILE).exists() else None
    return FALSE_ALARMS if threshold is None else threshold.false_alarms


def opened(model: Path, device: str) -> tuple[str, Scorer, Decision, torch.device]:
    """(method, what scores, its decision, device) of a saved or an exported model.

    Raises ModelError, DecisionError or SelectionError, in one line.
    """
    if not (model / FILE).exists():
        where = torch.device(device_from(device))
        name, method = load(model, where)
        return name, method, decision.read(model), where
    if (model / DESCRIPTION).exists():
        raise ExportError(f"{model / FILE}: an exported graph beside a saved model ({DESCRIPTION}); keep one of them")
    if device.startswith("cuda"):
        raise SelectionError(f"--device {device}: {model} was exported and runs on the CPU; leave --device out")
    device_from(device)
    found = read(model)
    if (found.decision.fit, found.decision.tile) != (SQUASH, None):
        raise ExportError(f"{model / FILE}: damaged (a graph takes one square of an image); {REMEDY}")
    return found.method, ExportedModel(model, found), found.decision.decision, torch.device("cpu")


def runner_of(folder: Path, found: Exported) -> Runner:
    """What runs the graph in `folder`; raises ExportError for files that are not those `found` is about."""
    if sorted(found.graph) != sorted(TARGETS[found.target].files):
        raise ExportError(f"{folder / FILE}: damaged (graph names {', '.join(found.graph)[:100]}); {REMEDY}")
    for name, file in found.graph.items():
        refuse_another(folder / name, file)
    batch = found.input.shape[0]
    try:
        return opened_graph(found.target, folder, batch)
    except ExportError:
        raise
    except Exception as error:  # each runtime raises its own for a graph it cannot read
        said = " ".join(str(error).split())[:200]
        raise ExportError(f"{folder}: the graph cannot be opened ({type(error).__name__}: {said}); {REMEDY}") from error


def refuse_another(path: Path, file: GraphFile) -> None:
    """Raises ExportError for a file of the graph that is missing or not the one that was checked."""
    try:
        if not path.is_file():
            raise ExportError(f"{path}: a part of the graph is missing; {REMEDY}")
        same = path.stat().st_size == file.bytes and sha256(path) == file.sha256
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    if not same:
        raise ExportError(f"{path}: damaged or another graph (its SHA-256 is not the one in {FILE}); {REMEDY}")


def read(folder: Path) -> Exported:
    """The checked contents of export.json; raises ExportError, in one line that names the field."""
    path = folder / FILE
    try:
        content = read_json(path, dict, remedy=REMEDY)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from error
    except DamagedError as error:
        raise ExportError(str(error)) from error
    for key, mine in (("format", FORMAT), ("kdad_bench", __version__)):
        if key in content and content[key] != mine:
            theirs = repr(content[key])[:60]
            raise ExportError(f"{path}: exported with {key} {theirs}, this version has {mine!r}; {REMEDY}")
    try:
        return Exported.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:80]
        wrong = "is missing" if first["type"] == "missing" else f"is {repr(first['input'])[:60]}: {first['msg']}"
        said = f"{where} {wrong}"
        if first["type"] == "value_error":  # of fields that do not fit together
            said = ": ".join(filter(None, (where, str(first["msg"]).removeprefix("Value error, "))))
        raise ExportError(f"{path}: damaged ({said}); {REMEDY}") from error


def sha256(path: Path) -> str:
    """Of a file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
