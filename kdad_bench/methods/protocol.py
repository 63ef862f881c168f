"""What a method must be: learn from normal images, answer with scores. No labels, masks, names or files reach it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from kdad_bench.methods.backbones import FACTS, Backbone
from kdad_bench.methods.backbones.names import SHORT


class Range(NamedTuple):
    """The finite numbers a setting may be: an interval whose ends belong to it unless they are said to be open."""

    low: float
    high: float = inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or not isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        closing = ")" if self.open_high or self.high == inf else "]"
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{closing}"


BLURS = Range(0, 1000, open_low=True)  # sigma in px of a blurred map
WHOLE_IMAGES = "whole images"  # in the words of settings, what the networks see; a job puts what else it hands over


class Blur(NamedTuple):
    """A Gaussian in px of a map at the run's resolution, as a source has it."""

    source: str  # as people cite it
    sigma: float
    side: int  # px of its maps, or of the whole images where they show less


class Scores(NamedTuple):
    """A method's verdict on N images; higher is more anomalous."""

    image: Tensor  # [N] float32, by the method's own rule
    pixel: Tensor  # [N, H, W] float32, at the resolution of the images given


def ignore_step(step: int, terms: Mapping[str, float]) -> None:
    """The default step log: nobody listens."""


def always_kept() -> bool:
    """Every step is logged, or nobody asks for losses."""
    return True


def ignore_seconds(seconds: float | None) -> None:
    """Nobody asks how long a fit had taken before it was stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitting:
    """What the harness lends a method while it learns; everything is optional."""

    log: Callable[[int, Mapping[str, float]], None] = ignore_step  # step (from 1), loss terms as floats
    log_every: int = 10  # steps between two calls of `log`, so that a GPU is not synchronised at each step
    checkpoint: Path | None = None  # where to keep the state of an unfinished fit; resumed from there if it exists
    checkpoint_every_seconds: float = 60.0
    # whether one may be written now; false once a step could not be logged: going on there would lack its losses
    may_keep: Callable[[], bool] = always_kept
    # told the steps done and a copy of the method, as it would be if the training ended there, to do with as it likes
    watch: Callable[[int, Any], None] | None = None
    watch_every: int | None = None  # steps between two calls of `watch`; None: a twentieth of the training
    # of which image each of the normals is a window, where images are learnt from window by window; None: all are whole
    sources: tuple[int, ...] | None = None
    # of which category each of the normals is, by a number, where one model learns from several; None: all are of one
    categories: tuple[int, ...] | None = None
    drawers: int = 0  # processes that draw samples ahead of the training; no number depends on it
    # what the numbers depend on besides settings and images, in words: a checkpoint of another place is begun anew
    place: str = ""
    # told, where a fit goes on, the seconds of what was done before; None where the checkpoint does not say
    resumed: Callable[[float | None], None] = ignore_seconds

    def after(self, finish: Callable[[Any], None]) -> Fitting:
        """The same, where each copy is first brought to an end by `finish`: what a fit does behind its last step."""
        watch = self.watch
        if watch is None:
            return self

        def finished(step: int, method: Any) -> None:
            finish(method)
            watch(step, method)

        return replace(self, watch=finished)


def always(settings: Any) -> bool:
    """What a source settles matters to all settings, unless it says otherwise."""
    return True


class Settled(NamedTuple):
    """What a method's sources settle about a setting: its value, or several where paper and code differ."""

    source: str  # as people cite it: "official code", "eq. 7", "section 4.1"
    values: tuple[object, ...]
    matters: Callable[[Any], bool] = always  # whether these settings use the field at all


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings every method has. A method adds its own; each default names its source in a comment."""

    teacher: str = "resnet18"
    strides: tuple[int, ...] = (4, 8, 16)  # the taps that the harness asks of the teacher, in px of the networks' input
    image_size: int = 256  # side of the square the networks see; images of another size are resized by the method
    epochs: int = 200
    steps: int | None = None  # optimiser steps; replaces `epochs` when set
    batch_size: int = 32
    precision: str = "fp32"  # fp32 | bf16 | fp16: autocast of the networks; losses and maps stay fp32
    seed: int = 0

    # field -> the values it may have; a method adds its own
    CHOICES: ClassVar[Mapping[str, Collection[str]]] = {"precision": ("fp32", "bf16", "fp16")}
    # field -> the numbers it, or each of its entries, may be; None is no number. A method adds its own.
    RANGES: ClassVar[Mapping[str, Range]] = {
        "image_size": Range(32, 8192),
        "epochs": Range(0),
        "steps": Range(1),
        "batch_size": Range(1),
        "seed": Range(0, 2**63, open_high=True),
    }
    # field -> why its value cannot go with the others of these settings, in words; "" where it can
    CONFLICTS: ClassVar[Mapping[str, Callable[[Any], str]]] = {}
    # subject -> what these settings choose where no source settles it, in words; "" where it does not apply to them
    READINGS: ClassVar[Mapping[str, Callable[[Any], str]]] = {}
    # field -> what its sources settle
    SETTLED: ClassVar[Mapping[str, Settled]] = {}
    # fields that are shares of the normals which nothing learns from, in the order in which they are set apart
    APART: ClassVar[tuple[str, ...]] = ()
    # how its source blurs maps at the run's resolution by `sigma`; None: it does not, or no source does
    BLUR: ClassVar[Blur | None] = None
    # whether a model of its paper learns from all categories of a data set
    TOGETHER: ClassVar[bool] = False
    # subject -> in words, how these settings depart from a settled source in more than one field; "" if they do not
    DEPARTURES: ClassVar[Mapping[str, Callable[[Any], str]]] = {}
    # subject -> what is said in its place, or besides, of a model that learns from all categories of a data set
    READINGS_TOGETHER: ClassVar[Mapping[str, Callable[[Any], str]]] = {}
    DEPARTURES_TOGETHER: ClassVar[Mapping[str, Callable[[Any], str]]] = {}

    def __post_init__(self) -> None:
        """Raises ValueError that names the field, its value and what it may be."""
        for one in fields(self):
            refuse_other_numbers(one.name, str(one.type), getattr(self, one.name))
        for name, known in self.CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {SHORT.repr(getattr(self, name))} is not known; have: {', '.join(known)}")
        for name, numbers in self.RANGES.items():
            value = getattr(self, name)
            entries = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
            if not all(entry in numbers for entry in entries):
                raise ValueError(f"{name} {SHORT.repr(value)} is not in {numbers}")
        if not self.strides or list(self.strides) != sorted(set(self.strides)):
            raise ValueError(f"strides {shown(self.strides)}: must be one or more that rise")
        facts = FACTS.get(self.teacher)
        multiple = facts.multiple if facts else 32
        if self.image_size % multiple:
            below = self.image_size // multiple * multiple
            near = " or ".join(str(one) for one in (below, below + multiple) if one in self.RANGES["image_size"])
            remedy = f"teacher {self.teacher} takes {near}" if multiple != 32 else f"take {near}"
            raise ValueError(f"image_size {self.image_size} is not a multiple of {multiple}; {remedy}")
        if facts and not set(self.strides) <= set(facts.channels):
            have = ", ".join(map(str, facts.channels))
            raise ValueError(f"strides {shown(self.strides)} of teacher {self.teacher}: must be among {have}")
        for name, why in self.CONFLICTS.items():
            if words := why(self):
                raise ValueError(f"{name} {shown(getattr(self, name))}: {words}")

    @property
    def shortest(self) -> Self:
        """The settings of the shortest fit after which a method costs as much per image as after that of these."""
        return replace(self, steps=1, batch_size=min(self.batch_size, 2))

    def compared(self, images: int) -> int:
        """With how many of `images` normals a score compares an image, if that is most of its work: the harness
        estimates by it. 0: it is not, or is not known."""
        return 0

    def kept_bytes(self, images: int) -> int:
        """At most so many bytes of memory does a method need for what it keeps of `images` normals, at its image size,
        while it learns and after: the harness counts them. 0: next to none, or not known."""
        return 0

    def learning_from(self, images: int) -> tuple[str, ...]:
        """`subject: words` for what a fit on `images` normals does otherwise than its settings say by themselves."""
        return ()

    @property
    def readings(self) -> tuple[str, ...]:
        """`subject: what was chosen` for whatever no source settles; it follows from these very settings."""
        return said_of(self, self.READINGS)

    @property
    def deviations(self) -> tuple[str, ...]:
        """`field: value (source: its value)` for whatever a source settles and these very settings do otherwise."""
        return (*unsettled(self), *said_of(self, self.DEPARTURES))

    @property
    def readings_together(self) -> tuple[str, ...]:
        """`readings` of a model that learns from all categories of a data set, as one of its paper does."""
        return said_of(self, {**self.READINGS, **self.READINGS_TOGETHER})

    @property
    def deviations_together(self) -> tuple[str, ...]:
        """`deviations` of such a model."""
        return (*unsettled(self), *said_of(self, {**self.DEPARTURES, **self.DEPARTURES_TOGETHER}))


def unsettled(settings: Settings) -> Iterator[str]:
    """`field: value (source: its value)` for each field that a source settles otherwise."""
    for name, settled in settings.SETTLED.items():
        if settled.matters(settings) and getattr(settings, name) not in settled.values:
            yield f"{name}: {instead(shown(getattr(settings, name)), settled)}"


def said_of(settings: Settings, words: Mapping[str, Callable[[Any], str]]) -> tuple[str, ...]:
    """`subject: words` of each subject that has any."""
    said = ((subject, say(settings)) for subject, say in words.items())
    return tuple(f"{subject}: {one}" for subject, one in said if one)


def refuse_other_numbers(name: str, kind: str, value: object) -> None:
    """Raises ValueError where `value` is no number, or no whole one, and its field, annotated `kind`, asks for it.

    An int may stand for a float; a bool is neither. Of tuples each entry counts, and how many are named one by one.
    """
    found = re.fullmatch(r"(tuple\[)?(int|float)\b(.*)", kind)
    if found is None or (value is None and found[3].endswith("None")):
        return
    entries = value if found[1] and isinstance(value, (tuple, list)) else (value,)
    types = (int, float) if "float" in kind else (int,)
    if not all(isinstance(one, types) and not isinstance(one, bool) for one in entries):
        what = "a number" if "float" in kind else "a whole number"
        raise ValueError(f"{name} {SHORT.repr(value)} is not {what}")
    count = 1 + found[3].count(",")
    if found[1] and not kind.endswith("...]") and len(entries) != count:
        raise ValueError(f"{name} {shown(value)}: must be {count} numbers")


def takes_maps_alone(settings: Any) -> str:
    """Why a method that compares maps cannot take the teacher of `settings`, in words; "" if it can."""
    facts = FACTS.get(settings.teacher)
    vit = facts is not None and 14 in facts.channels
    return "a ViT, whose last tap is a row of tokens and no map; take a convolutional teacher" if vit else ""


def instead(words: str, settled: Settled) -> str:
    """`words (source: what it settles)`: what is done, and what a source does."""
    return f"{words} ({settled.source}: {' or '.join(map(shown, settled.values))})"


def shown(value: object) -> str:
    """A setting as people write it; two floats that differ are never written alike."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(shown, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


class Method(Protocol):
    """A detector that learns from normal images only."""

    settings: Any  # the method's own Settings
    module: nn.Module  # everything with weights, frozen or learnt: its state_dict is the saved model

    def fit(self, normal: Tensor, fitting: Fitting = ...) -> None:
        """Learn from `normal` [N, 3, H, W] float32 in [0, 1], on any device; normalising is up to the method."""
        ...

    def score(self, images: Tensor) -> Scores:
        """Scores of `images` [N, 3, H, W] float32 in [0, 1]; changes nothing learnt, each image alone."""
        ...

    def networks(self, images: Tensor) -> object:
        """Run the networks alone, without map or score: the part of `score` that is timed apart."""
        ...


# floor: what every method must beat; yardstick: frozen features and no student, to measure the others by
FAMILIES = ("floor", "yardstick", "student-teacher")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entrant: its settings by preset and how to build it."""

    name: str
    title: str  # as shown in tables: "STFPM", "BMKD (reading)"
    paper: str  # authors, year, venue or arXiv number
    presets: Mapping[str, Settings]  # "quick" and "paper"
    build: Callable[[Any, Backbone | None, torch.device], Method]  # (settings, teacher with weights, device)
    needs_teacher: bool = True
    family: str = "student-teacher"  # one of FAMILIES
    # named settings overrides: ablations and compat options, run as `--method NAME:VARIANT`
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    published_variant: str = ""  # the variant that follows the published protocol most closely; "": the default does
    whole: str = ""  # why the method cannot learn and score windows of images, in words; "": it can
    # the setting that says which modalities the images have: such a method is given all of them at once, stacked along
    # the channels, where others learn each apart and are fused late; "": it knows photographs
    modality_setting: str = ""
    reading: bool = False  # the ARCHITECTURE is a reading of an abstract: no published number may be compared with it
