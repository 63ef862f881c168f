"""What JSON keeps of settings comes back equal; what it cannot keep is named before anything learns."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kdad_bench.methods import METHODS, entry
from kdad_bench.methods.backbones.names import facts_of
from kdad_bench.methods.kept_settings import reasons_against_keeping, settings_of
from kdad_bench.methods.protocol import Settings


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_and_variant_comes_back_equal(name: str) -> None:
    method = entry(name)
    for preset in method.presets.values():
        for changed in ({}, *method.variants.values()):
            settings = replace(preset, **changed)
            assert list(reasons_against_keeping(settings, name)) == []
            assert settings_of(type(settings), json.loads(json.dumps(asdict(settings))), name) == settings


@dataclass(frozen=True)
class Inside:
    """Settings within settings."""

    depth: int = 1


class Word(enum.StrEnum):
    LEFT = "left"


class Kind(enum.Enum):
    LEFT = "left"


def having(kind: Any, value: Any) -> Settings:
    """Settings with one field `own` more."""
    fields = [("own", kind, field(default_factory=lambda: value))]
    made = make_dataclass("Own", fields, bases=(Settings,), frozen=True, kw_only=True, slots=True)
    settings: Settings = made()
    return settings


KEPT: dict[str, tuple[Any, Any]] = {
    "a list": (list[int], [8, 16]),
    "a dict": (dict[str, float], {"a": 0.5}),
    "a sequence": (Sequence[int], (1, 2)),
    "settings within": (Inside, Inside(3)),
    "an enumeration of texts": (Word, Word.LEFT),
    "a whole number of floats": (float, 1),
    "nothing": (int | None, None),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_json_has_is_kept(case: str) -> None:
    kind, value = KEPT[case]
    settings = having(kind, value)
    assert list(reasons_against_keeping(settings, "own")) == []
    again = settings_of(type(settings), json.loads(json.dumps(asdict(settings))), "own")
    assert type(again) is type(settings)
    assert list(again.own) == list(value) if kind == Sequence[int] else again.own == value


LOST: dict[str, tuple[Any, Any, str]] = {
    "infinity": (float, float("inf"), "setting 'own' is inf, which JSON cannot keep; take a finite number"),
    "no number in a tuple": (tuple[float, ...], (0.5, float("nan")), r"setting 'own' is \(0\.5, nan\), which JSON"),
    "a path": (Path, Path("x"), "setting 'own' is PosixPath"),
    "an enumeration": (Kind, Kind.LEFT, "setting 'own' is <Kind"),
    "not what was annotated": (str, None, "setting 'own' is None: Input should be a valid string"),
    "another type": (tuple[str, ...], (1,), r"setting 'own' is \(1,\): Input should be a valid string"),
}


@pytest.mark.parametrize("case", LOST)
def test_what_json_has_not_is_named(case: str) -> None:
    kind, value, words = LOST[case]
    (why,) = reasons_against_keeping(having(kind, value), "own")
    assert re.match(words, why)


@pytest.mark.parametrize("field", ["optimiser", "schedule", "precision"])
def test_a_long_value_of_a_kept_model_is_cut_in_its_line(field: str) -> None:
    values = json.loads(json.dumps(asdict(entry("stfpm").presets["quick"])))
    with pytest.raises(ValueError, match="is not known; have: ") as caught:
        settings_of(type(entry("stfpm").presets["quick"]), values | {field: "x" * 200_000}, "stfpm")
    assert len(str(caught.value)) < 400


def test_a_long_name_of_a_teacher_is_cut_in_its_line() -> None:
    with pytest.raises(ValueError, match="is not known; have: ") as caught:
        facts_of("x" * 200_000)
    assert len(str(caught.value)) < 400
