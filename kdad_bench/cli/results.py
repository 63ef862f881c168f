"""`kdad-bench results`: keep a results folder in order."""

from __future__ import annotations

import json
from pathlib import Path

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.leaderboard.text import printable


@click.group(name="results")
def results() -> None:
    """Compact, verify or export a results folder (a path or an fsspec URL such as s3://bucket/results)."""


@results.command()
@click.argument("folder")
def compact(folder: str) -> None:
    """Put all rows into one Parquet file: ten thousand jobs are then read in milliseconds.

    Safe at any moment: other processes may be writing, and a crash loses nothing.
    """
    from kdad_bench.leaderboard import store

    try:
        replaced, path = store.compact(folder)
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    click.echo(printable(f"{replaced} files are now in {path}" if path else f"{folder}: nothing to compact"))


@results.command()
@click.argument("folder")
@click.option(
    "--expect", type=click.IntRange(min=0), help="Fail unless exactly this many jobs are finished (status ok)."
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def verify(context: click.Context, folder: str, expect: int | None, as_json: bool) -> None:
    """Read every value of every file, with checksums, and count each job once.

    Exit code 1 if a file is torn, foreign or holds impossible values, or if --expect does not hold.
    """
    from kdad_bench.leaderboard import store

    try:
        found = store.verify(folder)
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    short = expect is not None and found.ok != expect
    if as_json:
        report = {name: getattr(found, name) for name in ("files", "rows", "ok", "failed", "superseded", "unfinished")}
        problems = [problem._asdict() for problem in found.problems]
        click.echo(json.dumps({**report, "problems": problems, "sound": found.sound and not short}))
    else:
        click.echo(printable(f"{found.where}: {found.files} files, {found.rows} rows"))
        click.echo(f"{found.jobs} jobs, each counted once: {found.ok} ok, {found.failed} failed")
        if found.superseded:
            click.echo(f"{found.superseded} rows superseded by a newer row of the same job")
        for name in found.unfinished:
            click.echo(printable(f"interrupted write, ignored: {name}"))
        for problem in found.problems:
            click.echo(printable(f"{problem.file}: {problem.what}"), err=True)
        if short:
            click.echo(f"expected {expect} finished jobs, found {found.ok}", err=True)
    if short or not found.sound:
        context.exit(1)


@results.command()
@click.argument("folder")
@click.argument("kind", type=click.Choice(["csv", "json", "sqlite"]))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write [default: results.KIND].")
def export(folder: str, kind: str, out: Path | None) -> None:
    """Write all rows as CSV, JSON or an SQLite database (table `results`)."""
    from kdad_bench.leaderboard import store

    path = out or Path(f"results.{kind}")
    try:
        number = store.export(folder, path, kind)
    except store.StoreError as error:
        raise BadInput(str(error)) from error
    click.echo(printable(f"{number} rows in {path}"))
