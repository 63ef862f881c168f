"""One job: what is trained and evaluated, its identity, and the plan that lists many of them in a fixed order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from kdad_bench import __version__
from kdad_bench.datasets import Category, DatasetError, fingerprint, sealed
from kdad_bench.harness.protocol import PROTOCOL_VERSION
from kdad_bench.methods import METHODS

MOST_SEED = 2**63 - 1  # what a column of rows holds
MOST_SEEDS = 10_000
# settings that stand elsewhere -> where
NOT_SETTINGS = {"seed": "choose seeds with --seeds", "readings": "it follows from the method"}


class SelectionError(ValueError):
    """A selection that cannot be planned: an unknown method, variant, setting or seed; one line with the remedy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What a preset means to the harness; what it means to a method is in the method's own `Entry.presets`."""

    resolution: int  # side in px at which images are given to methods and maps are evaluated
    seeds: int  # how many seeds unless --seeds says otherwise


PRESETS = {
    "quick": Preset(resolution=128, seeds=2),
    "paper": Preset(resolution=256, seeds=3),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherWeights:
    """Which weights a teacher gets: the name shown in rows, where they lie, and their content hash."""

    teacher: str
    source: str
    sha256: str
    path: Path | None = None  # None: random weights, or weights that could not be had
    problem: str = ""  # why the weights could not be had; such a job becomes a failed row


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
            "settings": asdict(self.settings),
            "teacher_sha256": self.weights.sha256 if self.weights else None,
            "device": self.device.partition(":")[0],
            "deterministic": self.deterministic,
            "hold_out": self.hold_out,
        }

    @cached_property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of the canonical JSON of `identity`."""
        text = json.dumps(self.identity, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """How people read this job: `stfpm synthetic/weave seed 0`."""
        modality = "" if self.category.modality == "rgb" else f" {self.category.modality}"
        return f"{self.name} {self.category.dataset}/{self.category.name}{modality} seed {self.seed}"

    @property
    def name(self) -> str:
        """The method with its variant, as the command line takes it: `stfpm` or `stfpm:held_out`."""
        return f"{self.method}:{self.variant}" if self.variant else self.method


def method_choice(text: str) -> tuple[str, str]:
    """Split `method[:variant]`; raises SelectionError for an unknown method."""
    method, _, variant = text.partition(":")
    if method not in METHODS:
        raise SelectionError(f"unknown method '{method}'{suggestion(method, METHODS)}; have: {', '.join(METHODS)}")
    return method, variant


def suggestion(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """` (did you mean 'x'?)` for the closest known word, or nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def seeds_from(text: str) -> tuple[int, ...]:
    """`4` -> (0, 1, 2, 3); `3,7` -> (3, 7); `5,` -> (5,). Raises SelectionError for anything else."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts or not all(part.strip().isdecimal() for part in parts):
        raise SelectionError(f"seeds '{text}' is neither a count (3) nor a list (0,4,7)")
    numbers = tuple(int(part) for part in parts)
    if "," in text:
        if max(numbers) > MOST_SEED:
            raise SelectionError(f"seeds '{text}': a seed is at most {MOST_SEED}")
        if len(set(numbers)) != len(numbers):
            raise SelectionError(f"seeds '{text}' names a seed twice")
        return numbers
    if numbers[0] == 0:
        raise SelectionError("seeds '0' is a count of none; for seed 0 alone write '0,'")
    if numbers[0] > MOST_SEEDS:
        raise SelectionError(
            f"seeds '{text}' is a count of more than {MOST_SEEDS}; for that seed alone write '{text},'"
        )
    return tuple(range(numbers[0]))


def configured(settings: Any, overrides: Mapping[str, Any], where: str) -> Any:
    """`settings` with `overrides` applied; raises SelectionError naming an unknown field or a wrong type."""
    known = {name: getattr(settings, name) for name in names_of(settings)}
    for name, value in overrides.items():
        if name not in known:
            raise not_a_setting(name, list(known), where)
        if not compatible(known[name], value):
            raise SelectionError(
                f"{where}: {name}={value!r} does not fit, the default is {known[name]!r} ({type(known[name]).__name__})"
            )
    try:
        return replace(settings, **overrides)
    except (ValueError, TypeError) as error:
        raise SelectionError(f"{where}: {error}") from error


def names_of(settings: Any) -> list[str]:
    """The fields that a person may set."""
    return [field.name for field in fields(settings) if field.name not in NOT_SETTINGS]


def not_a_setting(name: str, known: Sequence[str], where: str) -> SelectionError:
    """What to raise for a field that is none."""
    if name in NOT_SETTINGS:
        return SelectionError(f"{where}: '{name}' cannot be set: {NOT_SETTINGS[name]}")
    return SelectionError(f"{where}: '{name}' is not a setting{suggestion(name, known)}; have: {', '.join(known)}")


def compatible(default: object, value: object) -> bool:
    """Whether an override has the type of the default it replaces (an int may stand for a float, None is untyped)."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list))
    return isinstance(value, type(default))


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What a person asked to run, after the command line and the config file have been read."""

    methods: tuple[tuple[str, str], ...]  # (method, variant)
    categories: tuple[Category, ...]
    seeds: tuple[int, ...]
    preset: str
    device: str
    resolution: int | None = None
    overrides: Mapping[str, Any] | None = None  # for every method that has the field
    method_overrides: Mapping[str, Mapping[str, Any]] | None = None  # for one method
    deterministic: bool = False
    hold_out: float = 0.0


def plan(selection: Selection, weights: Mapping[str, TeacherWeights]) -> list[Job]:
    """All jobs of a selection in a fixed order: seeds outermost, so that a first full table comes early.

    `weights` maps a teacher's name to its weights; it must hold every teacher that `teachers(selection)` names.
    """
    jobs = []
    configurations = dict(configurations_of(selection))
    resolution = selection.resolution or PRESETS[selection.preset].resolution
    categories = [(one, fingerprint(one) if one.seal else "") for one in map(sealed_or_not, selection.categories)]
    for seed in selection.seeds:
        for category, data in categories:
            for (method, variant), (settings, asked, needs_teacher) in configurations.items():
                jobs.append(
                    Job(
                        method=method,
                        variant=variant,
                        category=category,
                        seed=seed,
                        preset=preset_label(selection, asked),
                        resolution=resolution,
                        settings=replace(settings, seed=seed),
                        weights=weights[settings.teacher] if needs_teacher else None,
                        device=selection.device,
                        deterministic=selection.deterministic,
                        hold_out=selection.hold_out,
                        fingerprint=data,
                    )
                )
    return jobs


def sealed_or_not(category: Category) -> Category:
    """The category with the hashes of its files; without if one is missing, which is told where a job's id is asked."""
    try:
        return sealed(category)
    except DatasetError:
        return category


def teachers(selection: Selection) -> tuple[str, ...]:
    """The names of the teachers that a selection needs, in order of first use."""
    found = [settings.teacher for _, (settings, _, needs) in configurations_of(selection) if needs]
    return tuple(dict.fromkeys(found))


def configurations_of(
    selection: Selection,
) -> Iterator[tuple[tuple[str, str], tuple[Any, dict[str, Any], bool]]]:
    """((method, variant), (settings, overrides that it takes, whether it needs a teacher)) of each selected method.

    Raises SelectionError for an override that no selected method takes.
    """
    from kdad_bench.methods import entry

    presets = [entry(method).presets[selection.preset] for method, _ in selection.methods]
    every = list(dict.fromkeys(name for settings in presets for name in names_of(settings)))
    for name in selection.overrides or {}:
        if name not in every:
            raise not_a_setting(name, every, "settings of all methods")
    for method, variant in selection.methods:
        found = entry(method)
        settings = found.presets[selection.preset]
        if variant:
            if variant not in found.variants:
                have = ", ".join(found.variants) or "none"
                raise SelectionError(
                    f"method '{method}' has no variant '{variant}'{suggestion(variant, found.variants)}; have: {have}"
                )
            settings = replace(settings, **found.variants[variant])
        known = names_of(settings)
        shared = {name: value for name, value in (selection.overrides or {}).items() if name in known}
        asked = {**shared, **(selection.method_overrides or {}).get(method, {})}
        if not found.needs_teacher:
            asked.pop("teacher", None)
        yield (method, variant), (configured(settings, asked, f"method '{method}'"), asked, found.needs_teacher)


def preset_label(selection: Selection, asked: Mapping[str, Any]) -> str:
    """The preset, with overrides in brackets, so that a changed budget is never averaged with the preset's own.

    Only what the method takes stands there: a job that nothing changed is the preset's own, whatever it ran beside.
    """
    parts = dict(asked)
    if selection.resolution and selection.resolution != PRESETS[selection.preset].resolution:
        parts["resolution"] = selection.resolution
    if selection.hold_out:
        parts["hold_out"] = selection.hold_out
    shown = {name: value for name, value in parts.items() if value is not None}
    if not shown:
        return selection.preset
    return f"{selection.preset}[{','.join(f'{name}={shown[name]}' for name in sorted(shown))}]"
