"""Numbers within bounds, which help and errors tell in words."""

from __future__ import annotations

import math
from typing import Any

import rich_click as click


def in_words(least: float | None, most: float | None, least_open: bool = False, most_open: bool = False) -> str:
    """`1 or more`, `above 0`, `32 to 8192`, `above 0, up to 1`, ...; "" without a bound."""
    if least is not None and most is not None and not least_open and not most_open:
        return f"{_shown(least)} to {_shown(most)}"
    low = "" if least is None else f"above {_shown(least)}" if least_open else f"{_shown(least)} or more"
    high = "" if most is None else f"below {_shown(most)}" if most_open else f"up to {_shown(most)}"
    if low and high:
        low = low if least_open else f"from {_shown(least or 0)}"
    return ", ".join(part for part in (low, high) if part)


def _shown(bound: float) -> str:
    """A bound as people write it; the largest of 63 bits is a power, not nineteen digits."""
    power = math.log2(bound + 1) if bound > 2**31 else 0
    return f"2^{round(power)} - 1" if power and bound == 2 ** round(power) - 1 else f"{bound:g}"


class Whole(click.IntRange):
    """A range of whole numbers."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error for one outside."""
        found = click.INT.convert(value, param, ctx)
        return _within(self, found, param, ctx)

    def _describe_range(self) -> str:
        return in_words(self.min, self.max, self.min_open, self.max_open)


class Number(click.FloatRange):
    """A range of finite numbers: NaN, which no comparison catches, and infinity are refused."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number; a usage error for one outside, or not finite."""
        found = click.FLOAT.convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return _within(self, found, param, ctx)

    def _describe_range(self) -> str:
        return in_words(self.min, self.max, self.min_open, self.max_open)


def _within(kind: Whole | Number, found: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
    """`found`, if it lies in the range."""
    low = kind.min is not None and (found < kind.min or (kind.min_open and found == kind.min))
    high = kind.max is not None and (found > kind.max or (kind.max_open and found == kind.max))
    if low or high:
        kind.fail(f"{found} is out of range; it must be {kind._describe_range()}.", param, ctx)
    return found


def readable(command: click.Command) -> click.Command:
    """`command` and its subcommands with every range told in words, whoever wrote the option."""
    bounds: dict[str, Any]
    for option in command.params:
        kind = option.type
        bounds = {name: getattr(kind, name, None) for name in ("min", "max", "min_open", "max_open")}
        if isinstance(kind, click.IntRange) and not isinstance(kind, Whole) and not kind.clamp:
            option.type = Whole(**bounds)
        elif isinstance(kind, click.FloatRange) and not isinstance(kind, Number) and not kind.clamp:
            option.type = Number(**bounds)
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        readable(below)
    return command
