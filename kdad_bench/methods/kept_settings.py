"""Settings as JSON keeps them, in rows and in saved models, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError


def settings_of(kind: type, values: Mapping[str, Any], whose: str) -> Any:
    """The settings of class `kind` that `values` of JSON say; ValueError that names the field and its value.

    `whose` is the method's name in these words.
    """
    known = {field.name for field in fields(kind)}
    for key in sorted(set(values) ^ known):
        why = "missing" if key in known else f"not one of {whose}'s"
        raise ValueError(f"setting {key[:60]!r} is {why}")
    try:
        return adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # the settings' own words name the field
            raise ValueError(str(first["msg"]).removeprefix("Value error, ")) from error
        field = str(first["loc"][0])
        raise ValueError(f"setting {field!r} is {value_said(values, field)}: {first['msg']}") from error


@lru_cache(maxsize=64)
def adapter(kind: type) -> TypeAdapter[Any]:
    """What reads settings of class `kind`; what their annotations may be is pydantic's to say, by errors of its own."""
    return TypeAdapter(kind)


def value_said(values: Mapping[str, Any], key: str) -> str:
    """The value of `key` as a line can hold it."""
    if key not in values:
        return "missing"
    text = repr(values[key])
    return text if len(text) <= 60 else text[:57] + "..."


def reasons_against_keeping(settings: Any, whose: str) -> Iterator[str]:
    """Why JSON cannot keep `settings` so that they come back equal, in words; nothing where it can.

    Of annotations that cannot be read pydantic raises its own errors.
    """
    values = asdict(settings)
    lost = [name for name in values if not can_be_kept(values[name])]
    for name in lost:
        yield (
            f"setting {name!r} is {value_said(values, name)}, which JSON cannot keep; take a finite number, a text, "
            "True, False, None, or a tuple of such"
        )
    if lost:
        return
    try:
        again = asdict(settings_of(type(settings), values, whose))
    except ValueError as error:
        yield str(error)
        return
    for name in values:
        if plain(again[name]) != plain(values[name]):
            yield f"setting {name!r} is {value_said(values, name)} and would be read as {value_said(again, name)}"


def can_be_kept(value: object) -> bool:
    """Whether `value` is what JSON has."""
    try:
        plain(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def plain(value: object) -> Any:
    """`value` as JSON gives it back; raises TypeError or ValueError for what it has not, and for what is not finite."""
    return json.loads(json.dumps(value, allow_nan=False))
