"""The TOML file of `run --config`: checked whole, every mistake reported with its line and a suggestion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdad_bench.harness.choices import parse_assignment, read_toml, refuse_unchosen, suggestion, unchosen
from kdad_bench.harness.options import RunOptions, RunTable, message_of, options_from
from kdad_bench.harness.selection import BUDGETS, EVERYWHERE
from kdad_bench.methods import METHODS, known
from kdad_bench.methods.backbones.names import BACKBONES
from kdad_bench.outside import OutsideError


class ConfigError(ValueError):
    """A config file that cannot be used; one line per mistake."""


class Config(BaseModel):
    """A whole config file: `[run]`, and `[settings]` for all methods or `[settings.<method>]` for one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    run: RunTable = Field(default_factory=RunTable)
    settings: dict[str, Any] = Field(default_factory=dict)

    @property
    def said(self) -> dict[str, Any]:
        """The fields of `RunOptions` that the file names."""
        named = {name: getattr(self.run, name) for name in self.run.model_fields_set}
        return {**named, "settings": self.shared_settings, "method_settings": self.method_settings}

    @property
    def shared_settings(self) -> dict[str, Any]:
        """Overrides for every method that has the field."""
        return {name: value for name, value in self.settings.items() if not is_of_method(name, value)}

    @property
    def method_settings(self) -> dict[str, dict[str, Any]]:
        """Overrides for one method each."""
        return {name: value for name, value in self.settings.items() if is_of_method(name, value)}


def is_of_method(name: str, value: object) -> bool:
    """Whether settings are those of one method: of this package, of a file that was named, or of an installed package.

    Raises OutsideError for an installed package that cannot be used.
    """
    return name in METHODS or (isinstance(value, dict) and known(name))


def read(path: Path) -> Config:
    """The config in `path`; raises ConfigError that lists every mistake as `file:line: key: what is wrong`."""
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            raise ConfigError(f"{path}: cannot be read: not a regular file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {why}; give a TOML file") from error
    try:
        content = read_toml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(mistakes(path, text, error))) from error
    for name in ("methods", "datasets", "categories"):
        if name in config.run.model_fields_set and not getattr(config.run, name):
            where = f"{path}:{line_of(text, ('run', name))}"
            raise ConfigError(f"{where}: run.{name}: an empty list chooses nothing; leave it out for all, or name some")
    for name in config.run.weights:
        if name not in BACKBONES:
            where = f"{path}:{line_of(text, ('run', 'weights', name))}"
            raise ConfigError(f"{where}: run.weights.{name}: not a teacher{suggestion(name, BACKBONES)}")
    for name, value in config.settings.items():
        try:
            is_of_method(name, value)
        except OutsideError as error:
            raise ConfigError(f"{path}:{line_of(text, ('settings', name))}: settings.{name}: {error}") from error
    for name, value in config.method_settings.items():
        if not isinstance(value, dict):
            raise ConfigError(f"{path}:{line_of(text, ('settings', name))}: settings.{name}: a table is expected")
    for name, value in config.shared_settings.items():
        if isinstance(value, dict):
            where = f"{path}:{line_of(text, ('settings', name))}"
            hint = suggestion(name, METHODS) or "; name its file among the methods if it is in one"
            raise ConfigError(f"{where}: settings.{name}: not a method{hint}")
    return config


def options_and_file(said: Mapping[str, Any], data_root: str | Path | None = None) -> RunOptions:
    """The options that were said; where nothing was, those of the config file that they name, then `data_root`.

    Raises SelectionError and ConfigError, also for settings of a method that is not among those that were chosen.
    """
    file = options_from(said).config
    config = read(file) if file else Config()
    options = options_from({"data_root": data_root, **config.said, **said, **settings_of_both(config, said)})
    for name in said.get("method_settings", ()):
        if name in METHODS:
            refuse_unchosen(name, options.methods, name)
    if file:
        refuse_settings_of_nobody(file, config, options)
    return options


def settings_of_both(config: Config, said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`settings` and `method_settings`: those of the file, but for every field that `said` sets, and those of `said`.

    What is said for all methods wins over what the file has for one; steps or epochs over both of the file.
    """
    shared, own = said.get("settings", {}), said.get("method_settings", {})
    fields: dict[str, set[str]] = {"": {*shared, *(name for name in EVERYWHERE if name in said)}}
    for name, values in own.items():
        fields.setdefault(name, set()).update(values)
    for method, field, _ in map(parse_assignment, said.get("assignments", ())):
        fields.setdefault(method, set()).add(field)
    for names in fields.values():
        names |= {*BUDGETS} if names & {*BUDGETS} else set()

    def left(values: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name not in names}

    of_file = {
        method: left(values, fields[""] | fields.get(method, set()))
        for method, values in config.method_settings.items()
    }
    return {
        "settings": {**left(config.shared_settings, fields[""]), **shared},
        "method_settings": {name: {**of_file.get(name, {}), **own.get(name, {})} for name in {**of_file, **own}},
    }


def refuse_settings_of_nobody(file: Path, config: Config, options: RunOptions) -> None:
    """Raises ConfigError for settings of a method that neither the file nor the command line has among its methods:
    nothing would read them. A command line that takes some of the file's methods leaves the others' settings alone."""
    chosen = (*config.run.methods, *options.methods)
    for name in config.method_settings if options.methods else ():
        if why := unchosen(name, chosen):
            where = f"{file}:{line_of(file.read_text(encoding='utf-8-sig'), ('settings', name))}"
            raise ConfigError(f"{where}: settings.{name}: {why}")


def mistakes(path: Path, text: str, error: ValidationError) -> list[str]:
    """One line per mistake."""
    lines = []
    for item in error.errors():
        keys = tuple(str(part) for part in item["loc"])
        message = no_field(keys) if item["type"] == "extra_forbidden" else message_of(item)
        lines.append(f"{path}:{line_of(text, keys)}: {'.'.join(keys)}: {message}")
    return lines


def no_field(keys: tuple[str, ...]) -> str:
    """What is wrong with a key that is no field, and where it belongs or what there is."""
    name, above = keys[-1], keys[:-1]
    if not above and name in RunTable.model_fields:
        return "not a field here; it belongs below [run]"
    if not above and name in METHODS:
        return f"not a field here; settings of a method belong below [settings.{name}]"
    if name in RunOptions.model_fields and name not in RunTable.model_fields and name not in Config.model_fields:
        return "not a field of a file; it is said on the command line alone"
    known = list(RunTable.model_fields if above else Config.model_fields)
    return f"not a field{suggestion(name, known) or '; have: ' + ', '.join(known)}"


def line_of(text: str, keys: tuple[str, ...]) -> int:
    """The line (from 1) where the dotted key stands, or its table's; 1 if it cannot be told."""
    table: tuple[str, ...] = ()
    best = 1
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([^\]]+?)\s*\]", line)
        if header:
            table = tuple(part.strip().strip("\"'") for part in header[1].split("."))
            if table == keys[: len(table)]:
                best = number
            continue
        key = re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line)
        if key:
            full = (*table, *(part.strip("\"'") for part in key[1].split(".")))
            if full == keys[: len(full)]:
                return number
    return best
