"""What options accept: methods, categories, paths on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import rich_click as click
from click import get_current_context
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from kdad_bench.files import at_home
from kdad_bench.methods import METHODS

SHOWN = 60  # letters of a path in the line that refuses it


class LocalPath(click.Path):
    """A path on this machine; `~` is the home folder, also where no shell has seen it (quotes, variables)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error for what can be none: a URL, the home folder of a user who is not there."""
        if "://" in os.fspath(value):  # it would be a folder called `s3:`
            self.fail(f"'{str(value)[:SHOWN]}' is a URL; a path on this machine is needed here", param, ctx)
        try:
            found: Any = super().convert(at_home(os.fspath(value)), param, ctx)
        except ValueError as error:
            self.fail(f"'{str(value)[:SHOWN]}' {error}", param, ctx)
        if not self.file_okay and os.path.lexists(found) and not Path(found).is_dir():  # a pipe, a link to nothing
            self.fail(f"'{found}' is no folder", param, ctx)
        above = next((one for one in Path(found).parents if os.path.lexists(one)), Path())
        if not above.is_dir():
            self.fail(f"'{found}' would lie below '{above}', which is no folder", param, ctx)
        return found


class DataRoot(LocalPath):
    """A folder that holds data sets. One that is said on the command line has to be there; KDAD_DATA is looked at where
    it is needed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a usage error for one on the command line that is no folder."""
        found = super().convert(value, param, ctx)
        said = ctx is not None and param is not None and param.name and ctx.get_parameter_source(param.name)
        if said is ParameterSource.COMMANDLINE and not Path(found).is_dir():
            what = "is no folder" if os.path.lexists(found) else "no such folder"
            self.fail(f"data root {found}: {what}; name the one that holds {_data_sets()}", param, ctx)
        return found


def _data_sets() -> str:
    """The folders that are looked for below a data root."""
    from kdad_bench.datasets import entries

    return ", ".join(f"{name}/" for name in entries(lambda one: one.folders))


def spelt(word: str, known: Iterable[str]) -> str:
    """A word as it was given, in quotes where it is empty or has blanks, with the closest one that is known."""
    from kdad_bench.datasets.category import suggestion

    return f"{word if word and word == ''.join(word.split()) else repr(word)}{suggestion(word, known)}"


def refuse_both(first: str, second: str) -> None:
    """Raises UsageError where both options (`--first`, `--second`) are said on the command line."""
    context = get_current_context()
    names = [one.name for one in context.command.params if {first, second} & {*one.opts}]
    if all(context.get_parameter_source(str(name)) is ParameterSource.COMMANDLINE for name in names):
        raise click.UsageError(f"{first} and {second} exclude each other")


class Place(click.ParamType[str]):
    """A folder on this machine, `~` expanded, or a URL as it stands: where results lie."""

    name = "dir|url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The folder or URL; a usage error for what can be neither."""
        text = os.fspath(value)
        try:
            return text if "://" in text else at_home(text)
        except ValueError as error:
            self.fail(f"'{text[:SHOWN]}' {error}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Folders, which the shell looks for; of a URL nothing."""
        return [] if "://" in incomplete else [CompletionItem(incomplete, type="dir")]


def refuse_rows_in_memory(out: str) -> None:
    """Raises UsageError for a results folder that ends with the process of a command."""
    if out.startswith("memory://"):
        raise click.UsageError(f"--out {out}: rows there end with this command; give a folder or another URL")


def refuse_to_overwrite_rows(out: Path, results: str) -> None:
    """Raises UsageError for a file among the rows and measurements of the folder that it would be made from."""
    beside = out.resolve().parent == Path(results.removeprefix("file://")).resolve()
    if beside and (out.suffix == ".parquet" or fnmatch(out.name, "speed-*.json")):
        raise click.UsageError(f"--out {out}: rows and measurements of {results} lie there; choose another name")


class MethodName(click.ParamType[Any]):
    """`name` or `name:variant`; completes names without importing torch."""

    name = "method"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split and check the name; the variant is checked when the method is imported."""
        if isinstance(value, tuple):
            return value
        if ctx is not None and ctx.resilient_parsing:  # Tab: a line that is not sent yet runs no file's code
            return value, ""
        from kdad_bench.harness.choices import SelectionError, method_choice

        try:
            return method_choice(value)
        except SelectionError as error:
            self.fail(str(error).removeprefix("--method "), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The methods that begin so."""
        return [CompletionItem(name) for name in METHODS if name.startswith(incomplete)]


class MethodOfModel(MethodName):
    """The method of a saved model, as `FILE.py[:ENTRY]` or `name`: its name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Load a file and give the method's name; a variant is refused."""
        if ctx is not None and ctx.resilient_parsing:
            return value
        from kdad_bench.harness.choices import SelectionError, method_of_a_model

        try:
            return method_of_a_model(value)
        except SelectionError as error:
            self.fail(str(error).removeprefix("--method "), param, ctx)


METHOD_OF_MODEL = click.option(
    "--method", type=MethodOfModel(), help="FILE.py[:ENTRY] of the model's method, where it is in a file."
)


def complete_dataset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of this package's data sets, of the stand-ins below the data root, and `folder:` before a path."""
    from kdad_bench.datasets.table import DATASETS, entry

    names = [f"{name}:" if entry(name).takes_path else name for name in DATASETS]
    names += _lying_below(_data_root_of(ctx))
    return [CompletionItem(name) for name in dict.fromkeys(names) if name.startswith(incomplete)]


def complete_category(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Category names of the chosen data sets that lie there. Tab looks: it runs no file's code and draws nothing."""
    from kdad_bench.datasets.finding import names_at_hand

    root = _data_root_of(ctx)
    chosen = ctx.params.get("datasets") or ctx.params.get("dataset")
    names = [chosen] if isinstance(chosen, str) else chosen or (_lying_below(root) if root else ["synthetic"])
    found = [one for name in names for one in names_at_hand(name, root)]
    return [CompletionItem(name) for name in dict.fromkeys(found) if name.startswith(incomplete)]


def _data_root_of(ctx: click.Context) -> Path | None:
    said = ctx.params.get("data_root") or os.environ.get("KDAD_DATA")
    return Path(said) if said else None


def _lying_below(root: Path | None) -> list[str]:
    """The data sets below a data root; none of one that is no path."""
    from kdad_bench.datasets import DatasetError
    from kdad_bench.datasets.finding import find

    try:
        return find(root) if root else []
    except DatasetError:
        return []
