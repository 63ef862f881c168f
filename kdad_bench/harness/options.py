"""The choices of a run, with two faces: the options of `kdad-bench run` and the `[run]` table of its config file.

Names, types and checks stand here once; what both faces leave open gets its default here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kdad_bench.datasets import FITS, SQUASH
from kdad_bench.files import at_home
from kdad_bench.harness.axes import corruptions_from, counts_from, shares_from
from kdad_bench.harness.choices import (
    LEAST_SIDE,
    MOST_COUNT,
    MOST_SIDE,
    PRESETS,
    SETTINGS,
    SelectionError,
    method_choice,
    seeds_from,
    suggestion,
)

MODALITIES = ("rgb", "depth", "rgb+depth")
# kinds of mistakes -> what is wanted
WANTED = {
    "tuple_type": "a list", "dict_type": "a table", "mapping_type": "a table", "model_type": "a table",
    "string_type": "a text", "int_type": "a whole number", "float_type": "a number", "bool_type": "true or false",
    "is_instance_of": "a path", "greater_than_equal": "at least {ge:g}", "less_than_equal": "at most {le:g}",
    "greater_than": "above {gt:g}", "less_than": "below {lt:g}", "literal_error": "{expected}",
}  # fmt: skip


def tuple_of_texts(value: object) -> object:
    """TOML's list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def method_of(value: object) -> object:
    """`stfpm:held_out` -> ("stfpm", "held_out"); raises SelectionError for an unknown method."""
    if isinstance(value, (str, tuple)):
        return method_choice(value) if isinstance(value, str) else value
    raise ValueError(f"{value!r} is no name of a method, which is a text")


def seeds_of(value: object) -> object:
    """A count, a list, or either as the command line writes it -> the seeds; raises SelectionError."""
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return seeds_from(",".join(map(str, value)) + ",")
    if isinstance(value, (int, float, list)):
        return seeds_from(str(value))
    return seeds_from(value) if isinstance(value, str) else value


def folder_of(value: object) -> object:
    """A path with `~` expanded; raises ValueError for none, and for the home folder of a user who is not there."""
    if not isinstance(value, (str, Path)):
        return value
    try:
        return Path(at_home(str(value)))
    except ValueError as error:
        raise ValueError(f"'{str(value)[:60]}' {error}") from error


def place_of(value: object) -> object:
    """A folder with `~` expanded, or a URL as it stands."""
    return value if not isinstance(value, str) or "://" in value else str(folder_of(value))


def weights_of(value: object) -> object:
    """A file of weights with `~` expanded, after `TEACHER=` where that is given, or the word `random`."""
    if value == "random" or not isinstance(value, (str, Path)):
        return value
    name, file = teacher_and_file(str(value))
    try:
        path = file if file == "random" else str(folder_of(file))
    except ValueError as error:
        raise ValueError(f"--weights {str(value)[:60]}: {error}") from error
    return f"{name}={path}" if name else path


def teacher_and_file(text: str) -> tuple[str, str]:
    """`[TEACHER=]FILE` in two; no teacher is an empty name."""
    name, given, file = text.partition("=")
    return (name, file) if given and name.isidentifier() else ("", text)


def one_or_more(value: object) -> object:
    """One text as a tuple of one."""
    return (value,) if isinstance(value, str) else value


def one_of(what: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """`value` if it is one of `known`; `what` names the option in the line that refuses another."""
    if value not in known:
        raise ValueError(f"{what} '{value}'{suggestion(value, known)} is not one of {', '.join(known)}")
    return value


def known_preset(value: str) -> str:
    """`value` if it is a preset."""
    return one_of("preset", value, PRESETS)


def known_modality(value: str) -> str:
    """`value` if it is a modality."""
    return one_of("modality", value, MODALITIES)


def known_fit(value: str) -> str:
    """`value` if it is a way to bring a picture to the resolution."""
    return one_of("--fit", value, FITS)


def known_setting(value: str) -> str:
    """`value` if it is a setting."""
    return one_of("setting", value, SETTINGS)


def without_sign(value: float) -> float:
    """`value`, 0.0 for -0.0: one number, one job."""
    return value + 0.0


Texts = Annotated[tuple[str, ...], BeforeValidator(tuple_of_texts)]
Methods = Annotated[tuple[Annotated[tuple[str, str], BeforeValidator(method_of)], ...], BeforeValidator(tuple_of_texts)]
Seeds = Annotated[tuple[int, ...], BeforeValidator(seeds_of)]
Folder = Annotated[Path, BeforeValidator(folder_of)]
Place = Annotated[str, BeforeValidator(place_of)]
Weights = Annotated[str, BeforeValidator(weights_of)]
Side = Annotated[int, Field(ge=LEAST_SIDE, le=MOST_SIDE)]
Positive = Annotated[int, Field(ge=1, le=MOST_COUNT)]
Counts = Annotated[tuple[int | None, ...], BeforeValidator(counts_from)]
Shares = Annotated[tuple[float | None, ...], BeforeValidator(shares_from)]
Corruptions = Annotated[tuple[str | None, ...], BeforeValidator(corruptions_from)]


class RunTable(BaseModel):
    """What both faces may say; the options of the command line win over the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    methods: Methods = ()
    datasets: Texts = ()
    categories: Texts = ()
    seeds: Seeds | None = None  # None: the preset's
    preset: Annotated[str, AfterValidator(known_preset)] | None = None  # None: by device and data
    device: str = "auto"
    data_root: Folder | None = None
    out: Place = "results"  # a folder or an fsspec URL
    resolution: Side | None = None  # None: the preset's
    modality: Annotated[str, AfterValidator(known_modality)] = "rgb"
    weights: Mapping[str, Weights] = Field(default_factory=dict)  # teacher -> file
    train_images: Counts = ()  # None among them: all there are
    contamination: Shares = ()
    corruption: Corruptions = ()
    fit: Annotated[str, AfterValidator(known_fit)] = SQUASH
    tile: Side | None = None  # None: whole images
    overlap: Annotated[int, Field(ge=0, le=MOST_SIDE)] | None = None  # None: a quarter of a window
    setting: Annotated[str, AfterValidator(known_setting)] = "single"


class RunOptions(RunTable):
    """Everything a run was asked for; what it means is judged by `selection`."""

    everything: bool = False
    config: Folder | None = None
    settings: Mapping[str, Any] = Field(default_factory=dict)  # for every method that has the field
    method_settings: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)  # for one method
    assignments: tuple[str, ...] = ()  # [METHOD.]FIELD=VALUE
    dry_run: bool = False
    as_json: bool = False
    force: bool = False
    retry_failed: bool = False
    teacher: str | None = None
    all_weights: Annotated[
        tuple[Weights, ...], BeforeValidator(one_or_more)
    ] = ()  # each [TEACHER=]FILE, before `weights`
    steps: Positive | None = None
    epochs: Positive | None = None
    batch_size: Positive | None = None
    image_size: Side | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    executor: Literal["in-process", "local", "ray"] | None = None  # None: processes where they are worth their start
    workers: Annotated[int, Field(ge=1, le=1024)] | None = None  # None: by jobs, cores and memory
    address: str | None = None
    gpu_fraction: Annotated[float, Field(gt=0, le=1)] | None = None  # None: what so many jobs at a time leave each
    drawers: Annotated[int, Field(ge=0, le=256)] | None = None  # None: by cores with CUDA, else 0
    job_timeout: Annotated[float, Field(gt=0)] | None = None
    checkpoint_every: Annotated[float, Field(ge=0)] = 60.0
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    deterministic: bool = False
    pictures: bool = True
    hold_out: Annotated[float, Field(ge=0, le=0.9), AfterValidator(without_sign)] = 0.0
    save_models: bool = False
    save_maps: bool = False
    tensorboard: bool = False
    audit: bool = False
    audit_every: Positive | None = None  # None: a twentieth of the training
    time_every_job: bool = False
    measure_speed: bool | None = None  # None: what has no measurement yet

    @property
    def chosen(self) -> bool:
        """Whether anything was chosen to run."""
        return bool(self.everything or self.methods or self.datasets or self.categories)


def options_from(said: Mapping[str, Any]) -> RunOptions:
    """The options of what was said; raises SelectionError with one line for the first value that is none."""
    try:
        return RunOptions.model_validate(dict(said))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1]).replace("_", "-")
        raise SelectionError(message_of(first) if own(first) else f"--{name}: {message_of(first)}") from error


def own(mistake: Any) -> bool:
    """Whether the message of a mistake is this package's, and names what it is about."""
    return str(mistake["type"]) == "value_error"


def message_of(mistake: Any) -> str:
    """What is wrong, in words."""
    if own(mistake):
        return str(mistake["msg"]).removeprefix("Value error, ")
    value = repr(mistake["input"])[:60]
    wanted = WANTED.get(mistake["type"])
    if wanted is None:
        return f"{mistake['msg']}, not {value}"
    return f"must be {wanted.format(**mistake.get('ctx', {}))}, not {value}"
