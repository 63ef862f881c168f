"""One job: what is trained and evaluated, and its identity."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from kdad_bench import __version__
from kdad_bench.datasets import Category, fingerprint, single_modalities
from kdad_bench.datasets.splits import FRACTION
from kdad_bench.harness.axes import PLAIN, Axes, axes_of
from kdad_bench.harness.choices import MULTI_CLASS
from kdad_bench.harness.protocol import PROTOCOL_VERSION
from kdad_bench.harness.view import WHOLE, View, view_of
from kdad_bench.methods import METHODS, entry, outside
from kdad_bench.methods.protocol import WHOLE_IMAGES, shown

HELD_OUT = re.compile(r"[\[,]hold_out=([0-9.e+-]+)[,\]]")  # in the label of a preset


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWeights:
    """Which weights a teacher gets: the name shown in rows, where they lie, and their content hash."""

    teacher: str
    source: str
    sha256: str
    path: Path | None = None  # None: random weights, or weights that could not be had
    problem: str = ""  # why the weights could not be had; such a job becomes a failed row
    to_come: bool = False  # of a dry run: it looked for none elsewhere, a run does


class Part(NamedTuple):
    """One of the categories that one model learns from."""

    category: Category
    fingerprint: str


def together_of(row: Mapping[str, Any]) -> dict[str, str]:
    """category -> fingerprint of those that the model of a row has learnt from, where these are several."""
    pairs = (one.rpartition("=") for one in row["learnt_together"] or ())
    return {name: fingerprint for name, _, fingerprint in pairs}


def values_of(settings: Any) -> dict[str, Any]:
    """`dataclasses.asdict`, which copies even what cannot change: a plan of thousands of jobs would wait for that."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return values if all(map(lasting, values.values())) else asdict(settings)


def lasting(value: object) -> bool:
    """Whether `value` cannot change: a plain one, or a tuple of such."""
    return (
        value is None or type(value) in (bool, int, float, str) or (type(value) is tuple and all(map(lasting, value)))
    )


def id_of(identity: Mapping[str, Any]) -> str:
    """16 hex digits of the SHA-256 of the canonical JSON of an identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def id_of_row(row: Mapping[str, Any]) -> str:
    """The id that a job of this version has whose row (all columns) says what it says; "" where it cannot be told."""
    try:
        return id_of(identity_of_row(row))
    except ValueError:
        return ""


def identity_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """`Job.identity`, from what a row (all columns) says; raises ValueError for what no job says."""
    settings, environment = json.loads(row["settings"] or "{}"), json.loads(row["environment"] or "{}")
    axes, view = axes_of(row), view_of(row)
    return {
        "kdad_bench": row["kdad_bench"],
        "protocol": row["protocol_version"],
        "method": row["method"],
        "variant": row["variant"] or "",
        "dataset": row["dataset"].partition(":")[0],
        "category": row["category"],
        "modality": row["modality"],
        "data": row["data_fingerprint"],
        "seed": row["seed"],
        "resolution": row["resolution"],
        "settings": settings,
        "teacher_sha256": row["teacher_sha256"],
        "device": row["device"],
        "deterministic": environment.get("deterministic"),
        "hold_out": hold_out_of(row["preset"]),
        **({"code": row["code_sha256"]} if row["code_sha256"] else {}),
        **({"axes": axes.used} if axes.used else {}),
        **({"view": view.used} if view.used else {}),
        **({"together": together_of(row)} if row["setting"] else {}),
    }


def hold_out_of(preset: str) -> float:
    """The share of the normals that a job kept from its method, from the label of its preset."""
    held_out = HELD_OUT.search(preset)
    return float(held_out[1]) if held_out else 0.0


def restored(content: bytes, attribute: str, where: str, state: bytes) -> Job:
    """The job that `Job.__reduce_ex__` took apart, in a process that has not run its method's code yet."""
    outside.add_content(content, attribute, where, METHODS)
    job = object.__new__(Job)
    job.__dict__.update(pickle.loads(state))
    return job


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides one result row. Two jobs with one `id` give the same numbers on the same machine."""

    method: str
    variant: str
    category: Category
    seed: int
    preset: str  # "quick", "paper", or either with the overrides in brackets: "quick[steps=500]"
    resolution: int
    settings: Any  # the method's Settings, seed included
    weights: TeacherWeights | None
    device: str  # "cpu" or "cuda:N"
    deterministic: bool = False
    hold_out: float = 0.0  # share of the normals that the method never sees; a threshold is fitted on them
    fingerprint: str = ""  # of the category, where the plan has it already: once for all its jobs
    code: str = ""  # SHA-256 of a method's code that is not this package's
    axes: Axes = PLAIN
    view: View = WHOLE
    together: tuple[Part, ...] = ()  # by name: one model learns from all of these; none: from `category` alone
    also_presets: tuple[str, ...] = ()  # other presets, written like `preset`, whose job is this very one

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The fields that are hashed into `id`. Paths, worker counts, device numbers and labels are not among them."""
        return {
            "kdad_bench": __version__,
            "protocol": PROTOCOL_VERSION,
            "method": self.method,
            "variant": self.variant,
            "dataset": self.category.dataset.partition(":")[0],  # where a folder lies does not matter, its files do
            "category": self.category.name,
            "modality": self.category.modality,
            "data": self.fingerprint or fingerprint(self.category),
            "seed": self.seed,
            "resolution": self.resolution,
            "settings": values_of(self.settings),
            "teacher_sha256": self.weights.sha256 if self.weights else None,
            "device": self.device.partition(":")[0],
            "deterministic": self.deterministic,
            "hold_out": self.hold_out,
            **({"code": self.code} if self.code else {}),
            **({"axes": self.axes.used} if self.axes.used else {}),
            **({"view": self.view.used} if self.view.used else {}),
            **({"together": {part.category.name: part.fingerprint for part in self.together}} if self.together else {}),
        }

    @cached_property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON of `identity`."""
        return id_of(self.identity)

    @cached_property
    def training(self) -> str:
        """The id of what is learnt: the job's own, or one that the jobs share whose model is one."""
        if not self.together:
            return self.id
        own = {name: value for name, value in self.identity.items() if name not in ("category", "data")}
        return id_of(own)

    @property
    def siblings(self) -> tuple[Job, ...]:
        """The jobs that share its model, itself among them."""
        return tuple(replace(self, category=one, fingerprint=data) for one, data in self.together) or (self,)

    @property
    def columns(self) -> dict[str, Any]:
        """Which categories its model learns from, as columns of a row."""
        learnt = tuple(f"{one.name}={data}" for one, data in self.together)
        return {"setting": MULTI_CLASS if self.together else None, "learnt_together": learnt}

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A job of a method from a file travels with the code: another process has to run that before its settings."""
        added = outside.ADDED.get(self.method)
        if added is None or not added.content:
            return super().__reduce_ex__(protocol)
        return restored, (added.content, added.attribute, added.where, pickle.dumps(self.__dict__, protocol))

    @property
    def as_its_paper_together(self) -> bool:
        """Whether one model learns from several categories, as one of its paper does."""
        return bool(self.together) and self.settings.TOGETHER

    @property
    def readings(self) -> tuple[str, ...]:
        """What no source settles and its settings choose, in words."""
        return tuple(self.settings.readings_together if self.as_its_paper_together else self.settings.readings)

    @property
    def deviations(self) -> tuple[str, ...]:
        """Where a source settles something and this job does otherwise: the settings' words, then the job's own.

        A floor follows no source. What the files of the category decide is said by `departures_of`.
        """
        if self.floor:
            return tuple(self.settings.deviations)
        found = self.settings.deviations_together if self.as_its_paper_together else self.settings.deviations
        given = tuple(line.replace(f"input: {WHOLE_IMAGES} ", f"input: {self.view.given} ") for line in found)
        size, side = self.settings.image_size, self.view.side(self.resolution)
        said = {
            "blur": self.blur,
            "resizing": size != side and f"twice, file to {side} px to {size} px (papers: once)",
            "depth": self.depth,
            "fusion": fused_late(self)
            and f"a model for each of {self.category.modality.replace('+', ' and ')}, whose maps and image scores are "
            "averaged in standard deviations of unseen normals (papers: one model)",
            "hold_out": self.kept_apart
            and f"{self.kept_apart:g} of the normals are kept from the method (papers: it is given all)",
            "weights": self.weights is not None
            and self.weights.source == "random"
            and "random (papers: trained on ImageNet)",
            "setting": self.together
            and not self.settings.TOGETHER
            and f"one model for {len(self.together)} categories (papers: one for each)",
        }
        own = (f"{subject}: {words}" for subject, words in said.items() if words)
        return (*given, *own, *self.view.deviations)

    @property
    def floor(self) -> bool:
        """Whether its method is one that all others must beat, whatever it does."""
        return entry(self.method).family == "floor"

    @property
    def kept_apart(self) -> float:
        """The share of the training images that is kept from the method; 0 where validation splits are shipped."""
        learnt = [one.category for one in self.together] or [self.category]
        return 0.0 if all(one.validation for one in learnt) else held_out_of(self)

    @property
    def depth(self) -> str:
        """What stands for photographs where a method that knows only these is given depth; "" elsewhere."""
        if "depth" not in self.category.modality or entry(self.method).modality_setting:
            return ""
        return "a picture of the relief, its height and two components of its normals (papers: photographs)"

    @property
    def blur(self) -> str:
        """The blur at a resolution that is not the source's; "" where it is as wide there."""
        blur = self.settings.BLUR
        if blur is None or self.resolution == blur.side:
            return ""
        sigma: float = self.settings.sigma
        if isclose(sigma / self.resolution, blur.sigma / blur.side):
            return ""
        return f"sigma {shown(sigma)} at {self.resolution} px ({blur.source}: {shown(blur.sigma)} at {blur.side} px)"

    @property
    def label(self) -> str:
        """How people read this job: `stfpm synthetic/weave seed 0`."""
        modality = "" if self.category.modality == "rgb" else f" {self.category.modality}"
        point = "".join(f" {one}" for one in (self.axes.label, self.view.label) if one)
        one = f" one model for {len(self.together)}" if self.together else ""
        return f"{self.name} {self.category.dataset}/{self.category.name}{modality} seed {self.seed}{point}{one}"

    @property
    def name(self) -> str:
        """The method with its variant, as the command line takes it: `stfpm` or `stfpm:held_out`."""
        return f"{self.method}:{self.variant}" if self.variant else self.method


def held_out_of(job: Job) -> float:
    """The share of the training images that is held out where the data set ships no validation split."""
    return job.hold_out or (FRACTION if len(single_modalities(job.category)) > 1 else 0.0)


def fused_late(job: Job) -> bool:
    """Whether each modality of `job` has a detector of its own, calibrated on the held-out normals."""
    return "+" in job.category.modality and not entry(job.method).modality_setting
