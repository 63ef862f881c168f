"""`kdad-bench list`: what can be run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdad_bench.cli.parameters import DataRoot
from kdad_bench.cli.tables import show
from kdad_bench.leaderboard.text import printable

if TYPE_CHECKING:
    from kdad_bench.methods.protocol import Settings


def budget(settings: Settings) -> str:
    """How long a preset trains: steps or epochs with their batch, or that it trains nothing."""
    if settings.steps is None and not settings.epochs:
        return "nothing is trained: one pass over the normals"
    much, what = (settings.epochs, "epoch") if settings.steps is None else (settings.steps, "step")
    return f"{much} {what}{'' if much == 1 else 's'}, batch {settings.batch_size}"


@click.group(name="list")
def list_() -> None:
    """List methods, data sets or teachers."""


@list_.command()
@click.option("--verbose", "-v", is_flag=True, help="Paper, presets, variants and readings of each (imports torch).")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def methods(verbose: bool, as_json: bool) -> None:
    """Names of the methods, as `run --method` takes them."""
    from kdad_bench.methods import METHODS, entry, known, outside

    if not verbose and not as_json:
        for name in dict.fromkeys([*METHODS, *outside.installed()]):
            click.echo(printable(name))
        return
    found = {name: entry(name) for name in [*METHODS, *usable(outside.installed(), known)]}
    if as_json:
        rows = {
            name: {
                "title": one.title,
                "paper": one.paper,
                "needs_teacher": one.needs_teacher,
                "family": one.family,
                "variants": list(one.variants),
                "readings": list(one.presets["paper"].readings),
            }
            for name, one in found.items()
        }
        click.echo(json.dumps(rows, indent=2))
        return
    console = Console(soft_wrap=True)
    for name, one in found.items():
        console.print(f"[bold]{name}[/bold]  {escape(one.title)}", highlight=False)
        console.print(f"  {one.paper}", highlight=False, markup=False)
        for preset, settings in one.presets.items():
            teacher = settings.teacher if one.needs_teacher else "none"
            words = f"  {preset}: teacher {teacher}, {settings.image_size} px, {budget(settings)}"
            console.print(words, highlight=False, markup=False)
        if one.variants:
            words = f"  variants: {', '.join(f'{name}:{variant}' for variant in one.variants)}"
            console.print(words, highlight=False, markup=False)
        for reading in one.presets["paper"].readings:
            console.print(f"  reading: {reading}", highlight=False, markup=False)


@list_.command()
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", help="Folder with data sets (KDAD_DATA).")
def datasets(data_root: Path | None) -> None:
    """Data sets, their categories and image counts as found on disk."""
    from kdad_bench import datasets as rooms
    from kdad_bench.cli import BadInput
    from kdad_bench.harness.selection import no_data

    table = Table("data set", "category", "train", "test good", "test anomalous", "masks")
    installed = usable(rooms.outside.installed(), rooms.known)
    embedded = rooms.entries(lambda one: one.drawn)
    try:
        there = rooms.find(data_root) if data_root else []
    except rooms.DatasetError as error:
        raise BadInput(str(error)) from error
    if data_root and not there:
        if not data_root.is_dir():
            raise BadInput(no_data(data_root))
        click.echo(printable(f"kdad-bench: {no_data(data_root)}"), err=True)
    for name in [*there, *embedded]:
        try:
            found = rooms.categories(name, data_root, partly=True)
        except rooms.DatasetError as error:
            raise BadInput(str(error)) from error
        for category in found:
            good = sum(not sample.label for sample in category.test)
            table.add_row(
                escape(printable(name)), escape(printable(category.name)), str(len(category.train)), str(good),
                str(len(category.test) - good), "yes" if category.has_masks else "no",
            )  # fmt: skip
    show(table)
    for name in installed:
        if not rooms.entry(name).drawn and name not in there:
            click.echo(
                f"{name}: installed ({rooms.outside.ADDED[name].where}), and not found under a data root", err=True
            )
    if not data_root:
        click.echo("No --data-root and no KDAD_DATA: only the embedded data sets are listed.", err=True)


def usable(names: Iterable[str], known: Callable[[str], bool]) -> list[str]:
    """The names of installed packages that can be used; a line on stderr for each other one."""
    found = []
    for name in names:
        try:
            found += [name] if known(name) else []
        except ValueError as error:
            click.echo(f"kdad-bench: {printable(str(error))}", err=True)
    return found


@list_.command()
def teachers() -> None:
    """Teacher networks and whether their weights are on this machine."""
    from kdad_bench.methods.backbones.names import FACTS
    from kdad_bench.methods.backbones.weights import find_weights

    table = Table("teacher", "weights")
    for name, facts in FACTS.items():
        path = find_weights(name)
        remedy = "--weights FILE" if facts.weights_from == "file" else "downloaded at first use, or --weights FILE"
        table.add_row(name, escape(str(path)) if path else f"not here: {remedy}")
    show(table)
