"""`kdad-bench results`: keep a results folder in order."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import rich_click as click

from kdad_bench.cli import BadInput
from kdad_bench.cli.parameters import LocalPath
from kdad_bench.leaderboard.text import printable


@click.group(name="results")
def results() -> None:
    """Compact, verify, export or pack a results folder (a path or an fsspec URL such as s3://bucket/results)."""


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


@results.command()
@click.argument("folder")
@click.option(
    "--out", type=LocalPath(dir_okay=False), default="results.kdad.zip", show_default=True, help="File to write."
)
@click.option("--maps", is_flag=True, help="With the anomaly maps that `run --save-maps` kept.")
def pack(folder: str, out: Path, maps: bool) -> None:
    """Put all rows, with hashes of their models and maps, into one file that `results check` verifies."""
    from kdad_bench.harness import submission
    from kdad_bench.leaderboard.store import StoreError

    try:
        found = submission.pack(folder, out, maps=maps)
    except (submission.SubmissionError, StoreError) as error:
        raise BadInput(str(error)) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise BadInput(f"{error.filename or out}: {error.strerror}; choose another --out") from error
    click.echo(printable(f"{out}: {found.jobs} jobs, {found.maps} with maps"))
    if found.without_maps:
        click.echo(f"{found.without_maps} finished jobs have no maps; `run --save-maps --force` makes them", err=True)
    click.echo(f"SHA-256 {found.sha256}")


@results.command()
@click.argument("file", type=LocalPath(dir_okay=False))
@click.option(
    "--data-root", type=LocalPath(), envvar="KDAD_DATA", show_envvar=True, help="Folder that holds data sets."
)
@click.option("--dataset", "-d", "datasets", multiple=True, help="Where data of its rows lie here, as folder:PATH.")
@click.option("--sample", type=click.IntRange(min=0), default=8, show_default=True, help="Maps to score anew.")
@click.option("--all", "everything", is_flag=True, help="Score all of its maps anew.")
@click.option("--results", "beside", type=LocalPath(file_okay=False), help="Compare models and maps there, too.")
@click.pass_context
def check(
    context: click.Context, file: Path, data_root: Path | None, datasets: tuple[str, ...], sample: int,
    everything: bool, beside: Path | None,
) -> None:  # fmt: skip
    """Verify a FILE of `results pack`: hashes, rows, and a sample of its maps, scored anew where the data are at hand.

    Exit code 1 if anything in it is not as it should be, 2 if it is no such file.
    """
    from kdad_bench.cli.evaluate import remarks_said
    from kdad_bench.datasets import DatasetError
    from kdad_bench.harness.checking import Asked
    from kdad_bench.harness.checking import check as look
    from kdad_bench.harness.submission import SubmissionError

    asked = Asked(data_root=data_root, datasets=datasets, sample=None if everything else sample, beside=beside)
    try:
        with remarks_said():
            found = look(file, asked)
    except (DatasetError, SubmissionError) as error:
        raise BadInput(str(error)) from error
    click.echo(printable(f"{file}: {found.jobs} jobs, {found.failed} failed; {found.derived} rows follow from scores"))
    for line in (*found.judged, *found.notes):
        click.echo(printable(line))
    for line in found.problems:
        click.echo(printable(line), err=True)
    context.exit(1 if found.problems else 0)
