"""`kdad-bench data`: fetch, verify, preview or generate data sets."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from click.shell_completion import CompletionItem

from kdad_bench.cli import BadInput
from kdad_bench.cli.amounts import Amounts
from kdad_bench.cli.parameters import DataRoot, LocalPath, spelt
from kdad_bench.cli.tables import show

if TYPE_CHECKING:
    from kdad_bench.datasets import Category, Entry
    from kdad_bench.datasets.verify import Report

SHOWN = 20  # problems printed for each category; --json has all
data_folder = click.option(
    "--out",
    type=LocalPath(file_okay=False),
    envvar="KDAD_DATA",
    default=Path("data"),
    show_default="KDAD_DATA, or ./data",
    help="Folder that holds, or will hold, the data sets.",
)


class DataSetName(click.ParamType[str]):
    """The name of a data set of the table that `fits`; the table is asked when a command runs."""

    name = "data set"

    def __init__(self, fits: Callable[[Entry], object], *more: str) -> None:
        self.fits, self.more = fits, more

    def names(self) -> list[str]:
        """What can be given."""
        from kdad_bench.datasets import entries

        return [*entries(self.fits), *self.more]

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself, if it is one of them."""
        from kdad_bench.datasets import DatasetError, named

        if ctx is not None and ctx.resilient_parsing:  # Tab: a line that is not sent yet runs no file's code
            return value
        try:
            value, path = named(value)  # of a file, or of an installed package
        except DatasetError as error:
            self.fail(str(error), param, ctx)
        if path is not None:
            self.fail(f"{value} takes no path here; leave out :{path}", param, ctx)
        if value not in self.names():
            self.fail(f"{spelt(value, self.names())} is not one of {', '.join(self.names())}", param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The names, as the help shows them."""
        return f"[{'|'.join(self.names())}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that begin so."""
        return [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]


def is_outside(one: Entry) -> bool:
    """Whether a data set is not this package's."""
    from kdad_bench.datasets import DATASETS

    return one.name not in DATASETS


@click.group(name="data")
def data() -> None:
    """Fetch, verify, preview or generate data sets."""


@data.command()
@click.argument("dataset", type=DataSetName(lambda one: one.archive or one.page))
@data_folder
@click.option("--accept-license", is_flag=True, help="Accept the licence of the data set without being asked.")
@click.option("--url", help="Another address of the archive: a mirror.")
@click.option("--archive", type=LocalPath(), help="An archive on this machine; nothing is downloaded.")
@click.option("--sha256", help="Checksum of the archive, where it is not the published one.")
@click.option("--keep-archive", is_flag=True, help="Keep the downloaded archive after it has been unpacked.")
def fetch(
    dataset: str,
    out: Path,
    accept_license: bool,
    url: str | None,
    archive: Path | None,
    sha256: str | None,
    keep_archive: bool,
) -> None:
    """Download a data set, check it, unpack it and count it.

    A broken download is taken up by the same command. The archive is checked before it is unpacked, and the data set
    appears whole or not at all. A data set that is already there is only counted.
    """
    from kdad_bench.datasets import fetch as fetching
    from kdad_bench.datasets.category import DatasetError
    from kdad_bench.datasets.verify import count

    try:
        source = fetching.source_of(dataset)
    except DatasetError as error:
        raise BadInput(str(error)) from error
    if url is not None and archive is not None:
        raise click.UsageError("--url and --archive exclude each other")
    if sha256 is not None and (len(sha256) != 64 or any(letter not in "0123456789abcdefABCDEF" for letter in sha256)):
        raise click.UsageError(f"--sha256 '{sha256}': must be 64 hexadecimal digits")
    try:
        place = fetching.existing(source, out)
        if place is None:
            click.echo(f"{source.title}: {source.licence}\nMore about it: {source.page}", err=True)
            _accept(accept_license)
            with Amounts() as shown:
                place = fetching.fetch(
                    source, out, url=url, archive=archive, sha256=sha256, keep=keep_archive, progress=shown
                )
        else:
            fetching.tidy(source, out)
            click.echo(f"{place}: {source.title} is already there", err=True)
        # an archive of the user's own choice may hold a part of the data set
        report = count(place, against=None if sha256 else dataset)
    except DatasetError as error:
        raise BadInput(str(error)) from error
    except KeyboardInterrupt:
        click.echo("\nstopped; the same command goes on from here", err=True)
        sys.exit(130)
    _show(report)
    sys.exit(report.exit_code)


def _accept(given: bool) -> None:
    if given:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("the licence has to be accepted: add --accept-license")
    if not click.confirm("Do you accept the licence?", err=True):
        raise click.UsageError("the licence was not accepted; nothing was downloaded")


@data.command()
@click.argument("path", type=LocalPath())
@click.option(
    "--against",
    type=DataSetName(lambda one: one.published or is_outside(one), "none"),
    help="Data set to compare with, or its FILE.py; recognised by the names of the categories if not given.",
)
@click.option("--json", "as_json", is_flag=True, help="The whole report as JSON on stdout.")
def verify(path: Path, against: str | None, as_json: bool) -> None:
    """Examine a data set: numbers, unreadable or unused files, masks that do not fit, equal files in two splits.

    PATH is a folder, or a table of `tabular`. Exit code 0 if it is sound, 1 if there is a problem that a run tells and
    lives with, 2 if a run refuses it or PATH holds no data set.
    """
    from kdad_bench.datasets import entries
    from kdad_bench.datasets import verify as verifying
    from kdad_bench.datasets.category import DatasetError, printable

    name, _, alone = str(path).partition(":")
    if alone and name in entries(lambda one: one.takes_path) and not path.exists():
        raise BadInput(f"{path}: give the path alone: {alone}")

    def done(name: str) -> None:
        click.echo(f"examined {printable(name)}", err=True)

    try:
        report = verifying.verify(path, against=against, done=done)
    except DatasetError as error:
        raise BadInput(str(error)) from error
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _show(report)
    sys.exit(report.exit_code)


def _show(report: Report) -> None:
    from rich.markup import escape
    from rich.table import Table

    from kdad_bench.leaderboard.text import counted

    table = Table("category", "train", "valid.", "good", "anomalous", "types", "masks", "published")
    for one in report.categories:
        published = "-" if one.published is None else "differs" if _differs(one.problems + one.notes) else "equal"
        table.add_row(
            escape(one.name), str(one.train), str(one.validation), str(one.test_good), str(one.test_anomalous),
            str(len(one.types)), str(one.masks), published,
        )  # fmt: skip
    show(table)
    for label, lines in (("problem", report.problems), ("note", report.notes)):
        for line in lines:
            click.echo(f"{label}: {line}")
    for one in report.categories:
        for label, lines in (("problem", one.problems), ("note", one.notes)):
            for line in lines[:SHOWN]:
                click.echo(f"{label}: {line}")
            if len(lines) > SHOWN:
                click.echo(f"{label}: {one.name}: {len(lines) - SHOWN} more (--json lists all)")
    total = sum(one.train + one.validation + one.test_good + one.test_anomalous for one in report.categories)
    faults = len(report.problems) + sum(len(one.problems) for one in report.categories)
    state = "sound" if report.sound else counted(faults, "problem")
    numbers = f"{counted(len(report.categories), 'category')}, {counted(total, 'image')}"
    click.echo(f"{report.path}: {numbers}, {state}")


def _differs(lines: list[str]) -> bool:
    return any("differs from the published numbers" in line for line in lines)


@data.command()
@click.argument("dataset")
@click.option("--category", "names", multiple=True, help="Category (repeatable); all of them if not given.")
@click.option("--data-root", type=DataRoot(), envvar="KDAD_DATA", show_envvar=True, help="Folder with data sets.")
@click.option(
    "--modality",
    type=click.Choice(["rgb", "depth", "rgb+depth"]),
    default="rgb",
    show_default=True,
    help="What is drawn.",
)
@click.option(
    "--out", type=LocalPath(file_okay=False), default=Path("preview"), show_default=True, help="Folder to write."
)
@click.option("--columns", type=click.IntRange(1, 50), default=6, show_default=True, help="Images a row.")
@click.option("--side", type=click.IntRange(16, 1024), default=160, show_default=True, help="Pixels of an image.")
def preview(
    dataset: str, names: tuple[str, ...], data_root: Path | None, modality: str, out: Path, columns: int, side: int
) -> None:
    """Draw a contact sheet of each category of DATASET: normal images, then each kind of defect, outlined.

    DATASET is a name of `list datasets`, folder:PATH, or a stand-in under the data root.
    """
    from kdad_bench import datasets
    from kdad_bench.datasets.category import printable
    from kdad_bench.datasets.preview import contact_sheet
    from kdad_bench.files import write_whole

    try:
        found: list[Category] = datasets.categories(dataset, data_root, names, modality=modality, partly=True)
        out.mkdir(parents=True, exist_ok=True)
    except (datasets.DatasetError, OSError) as error:
        raise BadInput(str(error)) from error
    for category in found:
        path = out / f"{_called(category)}-{modality}.png"
        try:
            sheet = contact_sheet(category, columns=columns, side=side)
            write_whole(path, partial(sheet.save, format="PNG"))
        except (datasets.DatasetError, OSError) as error:
            raise BadInput(str(error)) from error
        click.echo(printable(str(path)))


def _called(category: Category) -> str:
    """What a contact sheet is called: data set and category, of a path its last folder (or table), too."""
    from kdad_bench.datasets.table_layout import TABLES

    name, _, path = category.dataset.partition(":")
    place = Path(path)
    ends = [place.stem if place.suffix.lower() in TABLES else place.name, place.parent.name] if path else []
    return "-".join([name, *[end for end in ends if end not in ("", category.name)][:1], category.name])


@data.command()
@click.option(
    "--like", type=DataSetName(lambda one: one.subjects), required=True, help="Data set whose sizes are taken."
)
@data_folder
@click.option("--category", "names", multiple=True, help="Category (repeatable); all of them if not given.")
@click.option("--size", type=click.IntRange(64, 4096), help="Longer side in pixels; the published one if not given.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the drawings.")
def generate(like: str, out: Path, names: tuple[str, ...], size: int | None, seed: int) -> None:
    """Draw a stand-in for a data set: its numbers, sizes and layout, with drawn images.

    It is called synthetic_<data set>, its categories synthetic_<category>: for cost and memory, not for accuracy.
    """
    from kdad_bench.datasets import stand_in
    from kdad_bench.datasets.category import DatasetError

    began = time.perf_counter()
    try:
        total, drawn = stand_in.image_count(like, names), 0
        with Amounts(unit="images") as shown:

            def done() -> None:
                nonlocal drawn
                drawn += 1
                shown("draw", drawn, total)

            place = stand_in.generate(like, out, names, size=size, seed=seed, done=done)
    except (DatasetError, OSError) as error:
        raise BadInput(str(error)) from error
    from kdad_bench.leaderboard.text import counted

    click.echo(f"{place}: {counted(total, 'image')} in {time.perf_counter() - began:.0f} s")
