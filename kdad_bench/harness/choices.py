"""What a person names on the command line or in a config file: methods, seeds, settings; each name checked once."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdad_bench.datasets.category import each_by_itself
from kdad_bench.datasets.category import suggestion as suggestion
from kdad_bench.methods import METHODS, known, outside

MOST_SEED = 2**63 - 1  # what a column of rows holds
MOST_SEEDS = 10_000
LEAST_SIDE, MOST_SIDE = 32, 8192  # of square images, px
MOST_DIGITS = 20  # of a number as it is typed: MOST_SEED has 19
MOST_BITS = 1024  # of a whole number in TOML: no float is as large
MOST_COUNT = 10**9  # of steps, epochs and images of a batch: a row has 32 bits for each


class SelectionError(ValueError):
    """A selection that cannot be planned: an unknown method, variant, setting or seed; one line with the remedy."""


def unchosen(method: str, chosen: Sequence[tuple[str, str]]) -> str:
    """Why settings of `method` serve nobody, in words: it is not among the `chosen` (method, variant)s, if any were
    chosen; "" where it is."""
    names = dict.fromkeys(name for name, _ in chosen)
    if not names or method in names:
        return ""
    return f"{method} is not among the chosen methods ({', '.join(names)}); add it"


def refuse_unchosen(method: str, chosen: Sequence[tuple[str, str]], said: str) -> None:
    """Raises SelectionError for settings, `said` so on the command line, of a method that is `unchosen`."""
    if why := unchosen(method, chosen):
        raise SelectionError(f"--set {said}: {why}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """What a preset means to the harness; what it means to a method is in the method's own `Entry.presets`."""

    resolution: int  # side in px at which images are given to methods and maps are evaluated
    seeds: int  # how many seeds unless --seeds says otherwise


PRESETS = {
    "quick": Preset(resolution=128, seeds=2),
    "standard": Preset(resolution=256, seeds=3),
    "paper": Preset(resolution=256, seeds=3),
}


MULTI_CLASS = "multi-class"  # the setting in which one model learns from several categories
SETTINGS = ("single", MULTI_CLASS)


def method_choice(text: str) -> tuple[str, str]:
    """Split `method[:variant]`, or load `path/to/file.py[:ENTRY[:VARIANT]]` and give its name; raises SelectionError
    for an unknown method and for code that cannot be used."""
    try:
        file = outside.spelled(text)
        if file is not None:
            return outside.add_file(file[0], file[1], METHODS), file[2]
        method, _, variant = text.partition(":")
        there = known(method)
    except outside.OutsideError as error:
        raise SelectionError(f"--method {error}") from error
    if not there:
        several = each_by_itself(method, "--method")
        have = ", ".join(METHODS)
        raise SelectionError(f"unknown method '{method}'{suggestion(method, METHODS)}; {several}have: {have}")
    return method, variant


def method_of_a_model(text: str) -> str:
    """The name of the method that `text` means, for a model that is trained already; raises SelectionError."""
    name, variant = method_choice(text)
    if variant:
        raise SelectionError(f"--method {text}: a model knows its variant by itself; leave ':{variant}' out")
    return name


def seeds_from(text: str) -> tuple[int, ...]:
    """`4` -> (0, 1, 2, 3); `3,7` -> (3, 7); `5,` -> (5,). Raises SelectionError for anything else."""
    parts = [part for part in text.split(",") if part.strip()]
    if not parts or not all(part.strip().isdecimal() for part in parts):
        raise SelectionError(f"seeds '{text}' is neither a count (3) nor a list (0,4,7)")
    for part in map(str.strip, parts):
        if len(part) > MOST_DIGITS:  # Python reads no number of thousands of them
            raise SelectionError(f"seeds '{part[:MOST_DIGITS]}...': a seed is at most {MOST_SEED}")
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


def read_toml(text: str) -> dict[str, Any]:
    """`text` as TOML. Raises TOMLDecodeError for what is none, and a ValueError of few words for what Python can
    neither read nor print: brackets in brackets without end, whole numbers of thousands of digits."""

    def bits(value: Any) -> int:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return value.bit_length() if isinstance(value, int) else max(map(bits, inside), default=0)

    try:
        content = tomllib.loads(text)
        long = bits(content) > MOST_BITS
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError as error:
        raise ValueError("a number of too many digits") from error
    if long:
        raise ValueError("a number of too many digits")
    return content


def parse_assignment(text: str) -> tuple[str, str, Any]:
    """`stfpm.loss_scale=0.5` -> ("stfpm", "loss_scale", 0.5); the value is read as TOML, else as a bare string."""
    target, equals, raw = text.partition("=")
    if not equals or not target.strip():
        raise SelectionError(f"--set '{text}' is not [METHOD.]FIELD=VALUE")
    try:
        value: Any = read_toml(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw
    except ValueError as error:
        raise SelectionError(f"--set {target.strip()}=...: {error}") from error
    method, _, field = target.strip().rpartition(".")
    if method and not known(method):
        raise SelectionError(f"--set '{text}': unknown method '{method}'{suggestion(method, METHODS)}")
    return method, field, tuple(value) if isinstance(value, list) else value
