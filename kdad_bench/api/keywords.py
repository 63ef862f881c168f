"""From the options of the command line to keywords: one set of names, one set of checks, two ways to say them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdad_bench.datasets import DatasetError
from kdad_bench.harness.choices import MOST_SEED, MOST_SEEDS, SelectionError, suggestion
from kdad_bench.harness.decision import DecisionError
from kdad_bench.harness.options import RunOptions
from kdad_bench.leaderboard.compare import NothingToCompare
from kdad_bench.leaderboard.store import StoreError
from kdad_bench.methods.backbones.weights import WeightsError
from kdad_bench.methods.checkpoint import ModelError

OPTION = re.compile(r"(?<![\w/\\.-])--([a-z][a-z-]*)(?![\w/\\]|\.\w)")  # none inside of a path or a name
# option -> keyword, where it is not the same word with underscores
KEYWORDS: Mapping[str, str] = {
    "all": "everything=True",
    "category": "categories",
    "dataset": "datasets",
    "metric": "metrics",
    "method": "methods",
    "set": "settings",
}
MENDED_BY_A_PERSON = (
    SelectionError, DatasetError, DecisionError, ModelError, NothingToCompare, StoreError, WeightsError,
)  # fmt: skip
# fields of RunOptions that are of the command line alone, or that other keywords bring
NOT_KEYWORDS = ("as_json", "dry_run", "assignments", "all_weights", "method_settings")


@contextmanager
def said_as_keywords(**others: str) -> Iterator[None]:
    """What a person can mend keeps its class, a ValueError or StoreError; its words name keywords, not options.

    `others` are keywords that an option has here and not in `run`.
    """
    try:
        yield
    except MENDED_BY_A_PERSON as error:
        text = keywords(str(error), {**KEYWORDS, **others})
        if text == str(error):
            raise
        raise type(error)(text) from error


def keywords(text: str, known: Mapping[str, str] = KEYWORDS) -> str:
    """`text` with the options of the command line as the keywords of Python."""
    parts = text.split("`")  # a command between backticks is one to be typed, and stays
    parts[::2] = [
        OPTION.sub(lambda found: known.get(found[1], found[1].replace("-", "_")), part) for part in parts[::2]
    ]
    return "`".join(parts)


def fields_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of RunOptions that keywords mean; raises SelectionError for a keyword that is none.

    `settings` holds the settings of all methods that have them, and a mapping for one method; `weights` a file for
    every teacher, or a mapping from teachers to files.
    """
    said = {name: plain(value) for name, value in said.items()}
    known = [name for name in RunOptions.model_fields if name not in NOT_KEYWORDS]
    for name in said:
        if name not in known:
            raise SelectionError(f"'{name}' is no option{suggestion(name, known)}; have: {', '.join(known)}")
    found = {name: value for name, value in said.items() if value is not None and name not in ("settings", "weights")}
    for name in ("methods", "datasets", "categories", "seeds"):
        if name in found:
            found[name] = listed(name, found[name])
    for name in ("out", "data_root", "config"):
        if isinstance(found.get(name), os.PathLike):
            found[name] = os.fspath(found[name])
    if "device" in found:
        found["device"] = str(found["device"])  # torch.device("cuda", 1) is "cuda:1"
    return {**found, **settings_of(said.get("settings")), **weights_of(said.get("weights"))}


def plain(value: Any) -> Any:
    """`value`, also inside of lists, sets and mappings, with Python's own numbers, texts and lists in place of what
    NumPy, pandas and torch have of them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(plain, value))
    return value


def listed(name: str, value: Any) -> Any:
    """One name as a list of it, any other sequence as a list; a count of seeds stays a count.

    Raises SelectionError for what is neither, and for an empty one: a list that was filtered down to nothing would
    choose everything.
    """
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        return text if name == "seeds" else [text]
    if name == "seeds" and type(value) is int:
        return count_of(value)
    if not isinstance(value, (Sequence, range, set, frozenset)):
        wanted = "a count or a list of whole numbers" if name == "seeds" else "a list of names"
        raise SelectionError(f"{name}={value!r} is of type {type(value).__name__}; give {wanted}")
    if not len(value):
        rest = "those of the preset" if name == "seeds" else "all"
        raise SelectionError(f"{name}={value!r}: an empty list chooses nothing; leave it out for {rest}, or name some")
    found = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in value]
    if name == "seeds":
        refuse_what_is_no_seed(found)
    return found


def count_of(seeds: int) -> int:
    """A count of seeds; raises SelectionError for what is none."""
    if not 1 <= seeds <= MOST_SEEDS:
        alone = f"; for that seed alone give seeds=[{seeds}]" if 0 <= seeds <= MOST_SEED else ""
        raise SelectionError(f"seeds={seeds} is no count from 1 to {MOST_SEEDS}{alone}")
    return seeds


def refuse_what_is_no_seed(seeds: list[Any]) -> None:
    """Raises SelectionError for a list of seeds with one that is none, or is there twice."""
    for one in seeds:
        if not isinstance(one, str) and (type(one) is not int or not 0 <= one <= MOST_SEED):
            raise SelectionError(f"seeds={seeds!r}: {one!r} is no whole number from 0 to {MOST_SEED}")
    if len({*map(str, seeds)}) < len(seeds):
        raise SelectionError(f"seeds={seeds!r} names a seed twice")


def on_this_machine(folder: str | os.PathLike[str]) -> Path:
    """The path of `folder`, `~` being the home folder; raises SelectionError for a URL: it would be a folder `s3:`."""
    if "://" in os.fspath(folder):
        raise SelectionError(f"{os.fspath(folder)!r} is a URL; give a path on this machine")
    return Path(folder).expanduser()


def settings_of(value: Any) -> dict[str, Any]:
    """The fields for settings: those of one method are a mapping under its name."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SelectionError(f"settings={value!r} is of type {type(value).__name__}; give a dict of names and values")
    of_one = {name: dict(inner) for name, inner in value.items() if isinstance(inner, Mapping)}
    return {
        "settings": {name: one for name, one in value.items() if name not in of_one},
        "method_settings": of_one,
    }


def weights_of(value: Any) -> dict[str, Any]:
    """The fields for weights of teachers."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {"weights": {name: os.fspath(one) for name, one in value.items()}}
    if not isinstance(value, (str, Path)):
        raise SelectionError(f"weights={value!r} is of type {type(value).__name__}; give a file, 'random', or a dict")
    return {"all_weights": os.fspath(value)}
